//! What the store must say when it is asked what there is: lists, numbers, events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Call, Model, Seen};
use crate::ids::{ClientId, ObjectId};
use crate::protocol::message::{ClientInfo, Event, ObjectInfo, ObjectState, Reply, Stats};

impl Model {
    pub fn object_infos(&self) -> BTreeMap<ObjectId, ObjectInfo> {
        self.objects.keys().map(|id| (*id, self.object_info(*id))).collect()
    }

    fn object_info(&self, id: ObjectId) -> ObjectInfo {
        let object = &self.objects[&id];
        let created = Duration::from_nanos(object.created_at.as_nanos());
        ObjectInfo {
            id,
            data_size: object.location.data_size,
            metadata_size: object.location.metadata_size,
            ref_count: u32::try_from(object.holds.len() + object.only_readers().count()).unwrap(),
            create_time: self.config.unix_start + created,
            construct_duration: object.sealed.map(|(at, _)| at.since(object.created_at)),
            state: match object.sealed {
                Some(_) => ObjectState::Sealed,
                None => ObjectState::Created,
            },
            delete_pending: object.delete_pending,
            creator: object.sealed.is_none().then_some(object.creator),
        }
    }

    /// A list, or its end from some place on. It creates nothing, so what was listed before is.
    pub(super) fn check_list(&self, call: Call, cursor: u32, seen: &Seen) -> Reply {
        let Some(Reply::ObjectList { objects, next: None }) = seen.answer(call) else {
            panic!("the store should answer with a list");
        };
        // With a seal that was told an object may go whose deletion was deferred.
        let listed = seen.listed.iter().filter(|id| self.objects.contains_key(id));
        let skipped = if cursor == 0 { 0 } else { listed.clone().count() - objects.len() };
        let rest = listed.skip(skipped).map(|id| self.object_info(*id));
        Reply::ObjectList { objects: rest.collect(), next: None }
    }

    pub fn list_clients(&self, after: ClientId, holding: Option<ObjectId>) -> Reply {
        let holds = |client: &ClientId| match holding {
            None => true,
            Some(id) => self.objects.get(&id).is_some_and(|object| object.is_held_by(*client)),
        };
        let wanted = self.clients.keys().filter(|client| **client > after && holds(client));
        Reply::ClientList { clients: wanted.map(|id| self.client_info(*id)).collect(), next: None }
    }

    fn client_info(&self, id: ClientId) -> ClientInfo {
        let client = &self.clients[&id];
        let held = || self.objects.values().filter(move |object| object.is_held_by(id));
        let waiting = self.waiting.iter().filter(|waiting| waiting.call.client == id).count();
        let queued = self.queue.iter().filter(|create| create.call.client == id).count();
        ClientInfo {
            id: id.0,
            name: client.peer.name.clone(),
            pid: client.peer.pid,
            uid: client.peer.uid,
            gid: client.peer.gid,
            objects: held().count() as u64,
            bytes: held().map(super::Object::size).sum(),
            unsealed_objects: held().filter(|object| object.sealed.is_none()).count() as u64,
            waiting_requests: (waiting + queued) as u64,
            quota: client.quota,
            quota_used: self.charged(id),
            subscribed: client.stream.is_some(),
        }
    }

    pub fn stats(&self) -> Stats {
        let (used, evictable) = (self.used(), self.evictable());
        let unsealed = self.objects.values().filter(|object| object.sealed.is_none()).count();
        let subscribers = self.clients.values().filter(|client| client.stream.is_some()).count();
        Stats {
            capacity: self.config.capacity,
            used,
            pinned: used - evictable,
            evictable,
            largest_free_run: self.largest_free_run(),
            objects: self.objects.len() as u64,
            unsealed_objects: unsealed as u64,
            clients: self.clients.len() as u64,
            waiting_requests: (self.waiting.len() + self.queue.len()) as u64,
            subscribers: subscribers as u64,
            counters: self.counters.named().map(|(name, n)| (name.to_owned(), n)).collect(),
        }
    }

    /// The text of the original, line by line; percentages have six digits, so they are compared as
    /// numbers.
    pub(super) fn check_debug_text(&self, call: Call, seen: &Seen) -> Reply {
        let Some(Reply::DebugText(text)) = seen.answer(call) else {
            panic!("the store should answer with its debug text");
        };
        let charged: usize = self.clients.keys().map(|id| self.charged_objects(*id).len()).sum();
        let idle: usize = self.clients.values().map(|client| client.idle.ids().len()).sum();
        let (capacity, used) = (self.config.capacity, self.used());
        let granted = self.granted_quotas();
        let global = granted + self.everybodys.bytes();
        let mut lines = vec![
            format!("num clients with quota: {}", self.quota_clients().len()),
            format!("quota map size: {charged}"),
            format!("pinned quota map size: {}", charged - idle),
            format!("allocated bytes: {used}"),
            format!("allocation limit: {capacity}"),
            format!("pinned bytes: {}", used - self.evictable()),
            format!("(global lru) capacity: {}", capacity - granted),
            format!("(global lru) used: {}%", percent(global, capacity)),
            format!("(global lru) num objects: {}", self.everybodys.ids().len()),
            format!("(global lru) num evictions: {}", self.counters.objects_evicted),
            format!("(global lru) bytes evicted: {}", self.counters.bytes_evicted),
        ];
        for (id, quota) in self.quota_clients() {
            let name = &self.clients[&id].peer.name;
            lines.push(format!("({name}) capacity: {quota}"));
            lines.push(format!("({name}) used: {}%", percent(self.charged(id), quota)));
            lines.push(format!("({name}) num objects: {}", self.charged_objects(id).len()));
        }
        assert_eq!(text.lines().count(), lines.len(), "lines of the debug text: {text}");
        for (found, expected) in text.lines().zip(&lines) {
            match (number_before_percent(found), number_before_percent(expected)) {
                (Some(found), Some(expected)) => {
                    assert!((found - expected).abs() <= expected * 1e-5, "{found}% is {expected}%");
                }
                _ => assert_eq!(found, expected, "line of the debug text"),
            }
        }
        Reply::DebugText(text.clone())
    }

    fn quota_clients(&self) -> Vec<(ClientId, u64)> {
        let quotas = self.clients.iter().filter_map(|(id, client)| Some((*id, client.quota?)));
        quotas.collect()
    }

    /// What a subscriber may be told next: a part of the snapshot, or the next events exactly.
    pub fn read_events(&mut self, client: ClientId, max: usize, told: &[Event]) {
        let Self { clients, objects, events, .. } = self;
        let Some(stream) = &mut clients.get_mut(&client).unwrap().stream else {
            assert!(told.is_empty(), "only subscribers are told events");
            return;
        };
        let Some((began, named)) = &mut stream.snapshot else {
            let count = max.min(events.len() - stream.next);
            assert_eq!(told, &events[stream.next..stream.next + count], "events come in order");
            stream.next += count;
            told.iter().for_each(|event| apply_event(&mut stream.mirror, event));
            return;
        };
        let is_over = told.last() == Some(&Event::SnapshotEnd);
        let part = if is_over { &told[..told.len() - 1] } else { told };
        assert!(part.len() == max || is_over && part.len() < max, "a part of a snapshot is full");
        for event in part {
            let Event::Sealed { id, data_size, metadata_size } = *event else {
                panic!("{event:?} in a snapshot");
            };
            let object = objects.get(&id).expect("a snapshot names what is there");
            let sizes = (object.location.data_size, object.location.metadata_size);
            assert_eq!(sizes, (data_size, metadata_size), "a snapshot has the right sizes");
            let is_old = object.sealed.is_some_and(|(_, event)| event < *began);
            assert!(is_old && named.insert(id), "a snapshot names each older object once");
            apply_event(&mut stream.mirror, event);
        }
        if is_over {
            let old = objects.iter().filter(|(_, o)| o.sealed.is_some_and(|(_, e)| e < *began));
            assert!(old.into_iter().all(|(id, _)| named.contains(id)), "a snapshot is complete");
            stream.snapshot = None;
        }
    }

    /// Whether a subscriber has been told everything; then it knows exactly what is sealed.
    pub fn is_told_all(&self, client: ClientId) -> bool {
        let Some(stream) = &self.clients[&client].stream else { return true };
        if stream.snapshot.is_some() || stream.next < self.events.len() {
            return false;
        }
        let sealed = self.objects.iter().filter(|(_, object)| object.sealed.is_some());
        let sealed: BTreeMap<ObjectId, (u64, u64)> =
            sealed.map(|(id, o)| (*id, (o.location.data_size, o.location.metadata_size))).collect();
        assert_eq!(stream.mirror, sealed, "the events tell exactly what is sealed");
        true
    }

    pub fn subscribers(&self) -> BTreeSet<ClientId> {
        let clients = self.clients.iter().filter(|(_, client)| client.stream.is_some());
        clients.map(|(id, _)| *id).collect()
    }
}

/// An object that went before the snapshot came to it is not in the mirror when it goes.
fn apply_event(mirror: &mut BTreeMap<ObjectId, (u64, u64)>, event: &Event) {
    match *event {
        Event::Sealed { id, data_size, metadata_size } => {
            let former = mirror.insert(id, (data_size, metadata_size));
            assert_eq!(former, None, "{id} is sealed once");
        }
        Event::Deleted { id, data_size, metadata_size }
        | Event::Evicted { id, data_size, metadata_size } => {
            let former = mirror.remove(&id);
            let sizes = (data_size, metadata_size);
            assert!(former.is_none_or(|former| former == sizes), "{id} goes with its sizes");
        }
        Event::SnapshotEnd | Event::Lagged => panic!("{event:?} among the events"),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

fn number_before_percent(line: &str) -> Option<f64> {
    line.strip_suffix('%')?.rsplit(' ').next()?.parse().ok()
}
