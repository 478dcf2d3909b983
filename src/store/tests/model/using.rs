//! Using objects in the model: get, wait, release, and what follows when nobody holds one any more.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Call, Hold, Model, Seen, Waiting, Want, deadline};
use crate::eviction::PolicyKind;
use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{Granted, ObjectState, Reply, Timeout};
use crate::protocol::refusal::Refusal;

impl Model {
    pub(super) fn get_or_wait(
        &mut self,
        call: Call,
        ids: &[ObjectId],
        want: Want,
        timeout: Timeout,
        seen: &mut Seen,
    ) {
        let is_sealed = |id: &&ObjectId| self.state(id) == ObjectState::Sealed;
        let found: BTreeSet<ObjectId> = ids.iter().filter(is_sealed).copied().collect();
        let is_answered = found.len() == ids.iter().collect::<BTreeSet<_>>().len()
            || timeout == Some(Duration::ZERO);
        let is_new = is_answered && ids.len() <= self.ids_in_one_go;
        if matches!(want, Want::Get { .. }) {
            self.counters.ids_requested += ids.len() as u64;
            for id in ids.iter().filter(|id| found.contains(id)) {
                self.counters.ids_hit += 1;
                // A reader who is answered in one go only gets pins, which is no use that counts.
                if !(is_new && self.clients[&call.client].is_reader) {
                    self.hold(call.client, *id, Hold { granted: 0, waiting: 1 });
                }
            }
        }
        let deadline = deadline(call.now, timeout);
        let waiting = Waiting { call, ids: ids.to_vec(), seen: found, want, deadline, is_new };
        if waiting.is_complete() || timeout == Some(Duration::ZERO) {
            self.answer(waiting, seen);
        } else {
            self.counters.waits += 1;
            self.waiting.push(waiting);
        }
    }

    /// With what there is. What a get has got is the client's from now on.
    pub(super) fn answer(&mut self, waiting: Waiting, seen: &mut Seen) {
        let has = |id: &ObjectId| waiting.seen.contains(id);
        match waiting.want {
            Want::Seen { .. } => {
                seen.reply(waiting.call, Reply::Ready(waiting.ids.iter().map(has).collect()));
            }
            Want::Get { .. } if self.clients[&waiting.call.client].is_reader => {
                let client = waiting.call.client;
                let mut granted = Vec::new();
                for id in &waiting.ids {
                    granted.push(has(id).then(|| {
                        let object = self.objects.get_mut(id).expect("what is found is there");
                        *object.pins.entry(client).or_default() += 1;
                        object.check_content(id, seen.segment);
                        Granted { location: object.location, pin: Some(seen.slots[id]) }
                    }));
                }
                if !waiting.is_new {
                    self.let_go_of_waited(client, &waiting, seen);
                }
                seen.reply(waiting.call, Reply::Granted(granted));
            }
            Want::Get { .. } => {
                let mut found = Vec::new();
                for id in &waiting.ids {
                    found.push(has(id).then(|| {
                        let object = self.objects.get_mut(id).expect("what is held is there");
                        let hold = object.holds.get_mut(&waiting.call.client).unwrap();
                        hold.granted += 1;
                        hold.waiting -= 1;
                        object.check_content(id, seen.segment);
                        object.location
                    }));
                }
                seen.reply(waiting.call, Reply::Objects(found));
            }
        }
    }

    /// What a get held while it waited is let go, in the order in which it is named first.
    fn let_go_of_waited(&mut self, client: ClientId, waiting: &Waiting, seen: &mut Seen) {
        for (index, id) in waiting.ids.iter().enumerate() {
            if waiting.seen.contains(id) && !waiting.ids[..index].contains(id) {
                let times = waiting.ids.iter().filter(|other| *other == id).count() as u64;
                self.drop_hold(client, *id, Hold { granted: 0, waiting: times }, seen);
            }
        }
    }

    pub(super) fn cancel(&mut self, cancelled: Call, seen: &mut Seen) -> Reply {
        let waiting = self.waiting.iter().position(|waiting| waiting.call.is(cancelled));
        let queued = self.queue.iter().position(|create| create.call.is(cancelled));
        if let Some(index) = waiting {
            let waiting = self.waiting.remove(index);
            self.answer(waiting, seen);
        } else if let Some(index) = queued {
            let create = self.queue.remove(index);
            self.refuse(create.call, Refusal::Cancelled, seen);
        }
        Reply::Done
    }

    /// All or nothing. Only what the client was told that it holds can be given back.
    pub(super) fn release(
        &mut self,
        client: ClientId,
        holds: &[(ObjectId, u32)],
        seen: &mut Seen,
    ) -> Result<Reply, Refusal> {
        for (index, (id, _)) in holds.iter().enumerate() {
            let object = self.objects.get(id).ok_or(Refusal::ObjectNotFound(*id))?;
            let same = holds[..=index].iter().filter(|(other, _)| other == id);
            let asked: u64 = same.map(|(_, count)| u64::from(*count)).sum();
            if asked > object.holds.get(&client).map_or(0, |hold| hold.granted) {
                return Err(Refusal::NotHeld(*id));
            }
        }
        for (id, count) in holds {
            self.counters.releases += u64::from(*count);
            self.drop_hold(client, *id, Hold { granted: u64::from(*count), waiting: 0 }, seen);
        }
        Ok(Reply::Done)
    }

    pub(super) fn state(&self, id: &ObjectId) -> ObjectState {
        match self.objects.get(id) {
            None => ObjectState::Absent,
            Some(object) if object.sealed.is_some() => ObjectState::Sealed,
            Some(_) => ObjectState::Created,
        }
    }

    pub(super) fn hold(&mut self, client: ClientId, id: ObjectId, more: Hold) {
        if self.objects[&id].is_idle() {
            self.order_of(&id).became_busy(id);
        }
        let hold = self.objects.get_mut(&id).unwrap().holds.entry(client).or_default();
        hold.granted += more.granted;
        hold.waiting += more.waiting;
    }

    pub(super) fn drop_hold(
        &mut self,
        client: ClientId,
        id: ObjectId,
        less: Hold,
        seen: &mut Seen,
    ) {
        let object = self.objects.get_mut(&id).expect("what is held is there");
        let hold = object.holds.get_mut(&client).expect("only what is held is given back");
        hold.granted -= less.granted;
        hold.waiting -= less.waiting;
        if *hold != Hold::default() {
            return;
        }
        object.holds.remove(&client);
        if object.sealed.is_none() {
            self.abandon(id, seen);
        } else if object.holds.is_empty() {
            let size = object.size();
            if object.witness.is_some() {
                return;
            }
            if object.delete_pending && object.pins.is_empty() {
                self.remove_deleted(id, seen);
            } else if object.delete_pending {
                self.park(id, seen);
            } else {
                let now = self.tick;
                self.order_of(&id).became_idle(id, size, now);
            }
        }
    }

    /// The store notices that readers have an object pinned, which is to go.
    pub(super) fn park(&mut self, id: ObjectId, seen: &mut Seen) {
        assert_eq!(seen.parked.pop_front(), Some(id), "the store notices pins when it meets them");
        if self.order_of(&id).contains(&id) {
            self.order_of(&id).became_busy(id);
        }
        let object = self.objects.get_mut(&id).unwrap();
        object.witness = object.pins.keys().next().copied();
        assert_ne!(object.witness, None, "only what is pinned is parked");
        self.counters.objects_parked += 1;
    }

    /// What the store had noticed when it refused a create for want of room. It need not have
    /// looked at anything.
    pub(super) fn park_before_refusal(&mut self, call: Call, seen: &mut Seen) {
        let Some(Reply::Refused(Refusal::StoreFull(told))) = seen.answer(call).cloned() else {
            return;
        };
        while self.full(told.requested).pinned < told.pinned
            && let Some(id) = seen.parked.front().copied()
            && self.objects.get(&id).is_some_and(|object| object.is_idle())
        {
            self.park(id, seen);
        }
    }

    /// While the store looks for room it notices the pins of what it looks at.
    pub(super) fn park_what_was_met(&mut self, seen: &mut Seen) {
        while let Some(id) = seen.parked.front().copied()
            && self.objects.get(&id).is_some_and(|object| object.is_idle())
        {
            self.park(id, seen);
        }
    }

    /// Somebody says that he has let go of an object that readers had pinned.
    pub(super) fn look_at_parked(&mut self, id: ObjectId, seen: &mut Seen) {
        let object = self.objects.get_mut(&id).expect("what is parked is there");
        if object.witness.is_none() {
            return;
        }
        object.witness = object.pins.keys().next().copied();
        if object.witness.is_some() || !object.holds.is_empty() {
            return;
        }
        let size = object.size();
        if object.delete_pending {
            self.remove_deleted(id, seen);
        } else {
            let now = self.tick;
            self.order_of(&id).became_idle(id, size, now);
        }
    }

    /// A reader has let go of an object, and noted when.
    pub fn was_used(&mut self, id: ObjectId, slot: Slot) {
        let is_noted = self.config.policy == PolicyKind::Lru;
        if is_noted && self.order_of(&id).contains(&id) {
            let now = self.tick;
            self.order_of(&id).was_used(id, now, slot);
        }
    }

    /// The creator let go of an unsealed object: it is gone, and those who want to know are told.
    pub(super) fn abandon(&mut self, id: ObjectId, seen: &mut Seen) {
        self.remove(id);
        self.counters.objects_aborted += 1;
        let wants_to_know = |waiting: &Waiting| {
            waiting.want == Want::Get { fail_if_abandoned: true } && waiting.missing().contains(&id)
        };
        while let Some(index) = self.waiting.iter().position(wants_to_know) {
            let waiting = self.waiting.remove(index);
            let client = waiting.call.client;
            self.let_go_of_waited(client, &waiting, seen);
            self.refuse(waiting.call, Refusal::Abandoned(id), seen);
        }
    }
}
