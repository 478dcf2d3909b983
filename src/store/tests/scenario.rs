//! A small language for tests of the store's rules, so that a rule reads as a table.
//!
//! A script has one step a line: who, what, and after `->` everything that happens, in order. The
//! client that asks is named by a letter and connects when it is first seen; a reply to another
//! client is written with its letter. Objects are named by any word. Sizes are `data` or
//! `data+metadata` bytes. The first line gives the store's capacity.
//!
//! ```text
//! store 1000
//! a create X 10          -> created
//! b get X                ->
//! a seal X               -> b: got X; done
//! tick 5                 ->
//! ```
//!
//! After `memory lost` the bytes of puts cannot be written, until `memory back`. `done` and
//! `failed` say how the outside work has ended that began last. Timeouts are in milliseconds; a
//! `get` or `wait` without one waits for ever, a `create` or `put` without one does not wait.
//! `invariants` are checked after each step.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::eviction::PolicyKind;
use crate::ids::{ClientId, Location, ObjectId, SegmentId, Ticket};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{
    DeleteOutcome, Event, NewObject, ObjectInfo, ObjectState, Placed, Reply, Request, RequestId,
    Room, Timeout,
};
use crate::protocol::refusal::Refusal;
use crate::store::{Effect, Effects, Peer, Store, StoreConfig, TrimConfig, Work, WorkOutcome};
use crate::time::Timestamp;

/// Runs a script and fails at the first step whose outcome is another one.
pub fn scenario(script: &str) {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut world = World::new(lines.next().expect("a script begins with its store"));
    for line in lines.filter(|line| !line.starts_with('#')) {
        let (step, expected) = line.split_once("->").unwrap_or_else(|| panic!("no `->`: {line}"));
        let outcome = world.run(step.trim());
        assert_eq!(outcome, expected.trim(), "\nafter `{}`\nin {script}", step.trim());
        world.store.check_invariants();
    }
}

struct World {
    store: Store,
    now: Timestamp,
    clients: BTreeMap<String, ClientId>,
    clients_seen: u64,
    last_request: u64,
    /// What each request asked for, to name the objects in its reply.
    asked: BTreeMap<RequestId, Vec<String>>,
    names: BTreeMap<ObjectId, String>,
    effects: Effects,
    /// Bytes of puts cannot be written.
    is_memory_lost: bool,
    work: Option<Ticket>,
}

impl World {
    /// `store CAPACITY [objects=N] [segment=BYTES] [policy=lru|slru] [trim=MILLISECONDS]`
    fn new(line: &str) -> Self {
        let line = Line::parse(line);
        assert_eq!(line.words[0], "store");
        let capacity: u64 = line.words[1].parse().unwrap();
        let roomy = (capacity + 65_536).next_multiple_of(ALIGNMENT);
        Self {
            store: Store::new(StoreConfig {
                capacity,
                segment: SegmentId(0),
                segment_bytes: line.number("segment").unwrap_or(roomy),
                objects_max: line.number("objects").map_or(1000, |n| u32::try_from(n).unwrap()),
                policy: line.option("policy").map_or(PolicyKind::Lru, |p| p.parse().unwrap()),
                trim: line.number("trim").map(|after| TrimConfig {
                    after: Duration::from_millis(after),
                    ready_bytes: 0,
                    bytes_min: 128,
                    slice_bytes: 256,
                    unit_bytes: ALIGNMENT,
                }),
                unix_start: Duration::from_secs(1_000_000),
            }),
            now: Timestamp::ZERO,
            clients: BTreeMap::new(),
            clients_seen: 0,
            last_request: 0,
            asked: BTreeMap::new(),
            names: BTreeMap::new(),
            effects: Effects::new(),
            is_memory_lost: false,
            work: None,
        }
    }

    fn run(&mut self, step: &str) -> String {
        let line = Line::parse(step);
        if line.words[0] == "tick" {
            let wait = Duration::from_millis(line.words[1].parse().unwrap());
            self.now = self.now.after(wait);
            self.store.expire(self.now, &mut self.effects);
            return self.outcome("");
        }
        if let Some(outcome) = match line.words[0] {
            "done" => Some(WorkOutcome::Done),
            "failed" => Some(WorkOutcome::Failed),
            _ => None,
        } {
            let ticket = self.work.take().expect("some work has begun");
            self.store.done(ticket, outcome, self.now, &mut self.effects);
            return self.outcome("");
        }
        if line.words[0] == "memory" {
            self.is_memory_lost = line.words[1] == "lost";
            return String::new();
        }
        let actor = line.words[0];
        match line.words[1] {
            "dies" => {
                let client = self.clients.remove(actor).expect("a connected client dies");
                self.store.disconnect(client, self.now, &mut self.effects);
                self.outcome(actor)
            }
            "events" => self.events(actor),
            "usage" => {
                let stats = self.store.stats();
                format!("used {} pinned {} objects {}", stats.used, stats.pinned, stats.objects)
            }
            verb => {
                let names: Vec<String> = line
                    .list(2)
                    .iter()
                    .map(|name| name.split(':').next().unwrap().into())
                    .collect();
                let request = self.request(verb, &line);
                self.apply(actor, request, names);
                self.outcome(actor)
            }
        }
    }

    fn client(&mut self, name: &str) -> ClientId {
        if let Some(client) = self.clients.get(name) {
            return *client;
        }
        self.clients_seen += 1;
        let client = ClientId(self.clients_seen);
        let peer = Peer { name: name.to_owned(), pid: 1, uid: 2, gid: 3 };
        self.store.connect(client, peer).expect("nobody is turned away");
        self.clients.insert(name.to_owned(), client);
        client
    }

    fn apply(&mut self, actor: &str, request: Request, names: Vec<String>) {
        let client = self.client(actor);
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.asked.insert(id, names);
        self.store.apply(client, id, request, self.now, &mut self.effects);
    }

    fn request(&mut self, verb: &str, line: &Line) -> Request {
        let timeout = line.number("timeout").map(Duration::from_millis);
        let ids: Vec<ObjectId> = line.list(2).iter().map(|name| self.id(name)).collect();
        let first = ids.first().copied();
        let id = || first.expect("an object is named");
        match verb {
            "create" => {
                let (data_size, metadata_size) = sizes(line.words[3]);
                Request::Create { id: id(), data_size, metadata_size, room: line.room() }
            }
            "put" => {
                let objects = line.list(2).iter().map(|object| self.new_object(object)).collect();
                Request::Put { objects, room: line.room() }
            }
            "seal" => Request::Seal { id: id(), release: line.has("release") },
            "abort" => Request::Abort { id: id() },
            "get" => Request::Get { ids, timeout, fail_if_abandoned: line.has("or-abandoned") },
            "wait" => {
                let count = usize::try_from(line.number("count").unwrap()).unwrap();
                Request::Wait { ids, count, timeout }
            }
            "cancel" => {
                let back = line.words.get(2).map_or(0, |back| back.parse().unwrap());
                Request::Cancel { request: RequestId(self.last_request - back) }
            }
            "release" => {
                let count = line.number("times").map_or(1, |n| u32::try_from(n).unwrap());
                Request::Release { holds: ids.into_iter().map(|id| (id, count)).collect() }
            }
            "state" => Request::GetState { ids },
            "delete" => Request::Delete { ids },
            "evict" => Request::Evict { bytes: line.words[2].parse().unwrap() },
            "refresh" => Request::Refresh { ids },
            "list" => Request::List { cursor: 0 },
            "subscribe" => Request::Subscribe { one_by_one: false },
            "debug" => Request::GetDebugText,
            "clients" => Request::ListClients { after: ClientId(0), holding: first },
            "name" => Request::SetOptions { client_name: Some(line.words[2].into()), quota: None },
            "quota" => Request::SetOptions {
                client_name: None,
                quota: Some(line.words[2].parse().unwrap()),
            },
            "goodbye" => Request::Disconnect,
            _ => panic!("unknown verb {verb}"),
        }
    }

    /// `NAME:SIZE`
    fn new_object(&mut self, text: &str) -> NewObject {
        let (name, size) = text.split_once(':').expect("put NAME:SIZE");
        let (data, metadata) = sizes(size);
        let bytes = |len: u64| vec![7; usize::try_from(len).unwrap()];
        NewObject { id: self.id(name), data: bytes(data), metadata: bytes(metadata) }
    }

    fn id(&mut self, name: &str) -> ObjectId {
        let name = name.split(':').next().unwrap();
        let mut bytes = [0; 20];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let id = ObjectId::from(bytes);
        self.names.insert(id, name.to_owned());
        id
    }

    fn name(&self, id: &ObjectId) -> &str {
        &self.names[id]
    }

    fn events(&mut self, actor: &str) -> String {
        let client = self.clients[actor];
        let mut told = Vec::new();
        loop {
            let mut events = Vec::new();
            self.store.next_events(client, 2, &mut events);
            if events.is_empty() {
                return told.join(", ");
            }
            told.extend(events.iter().map(|event| self.event_text(event)));
        }
    }

    fn event_text(&self, event: &Event) -> String {
        match event {
            Event::Sealed { id, data_size, metadata_size } => {
                format!("sealed {} {data_size}+{metadata_size}", self.name(id))
            }
            Event::Deleted { id, .. } => format!("deleted {}", self.name(id)),
            Event::Evicted { id, .. } => format!("evicted {}", self.name(id)),
            Event::SnapshotEnd => "snapshot end".into(),
            Event::Lagged => "lagged".into(),
        }
    }

    /// Everything that happened, in order, without the bytes that were written.
    fn outcome(&mut self, actor: &str) -> String {
        let names: BTreeMap<ClientId, String> =
            self.clients.iter().map(|(name, client)| (*client, name.clone())).collect();
        let mut happened = Vec::new();
        while let Some(effect) = self.effects.pop() {
            match effect {
                Effect::Reply { client, request, reply } => {
                    let text = self.reply_text(&self.asked[&request], &reply);
                    let to = &names[&client];
                    happened.push(if to == actor { text } else { format!("{to}: {text}") });
                }
                Effect::Start { ticket, work: Work::Fill { writes } } => {
                    assert!(!writes.is_empty(), "there is something to do");
                    for (extent, bytes) in writes {
                        assert!(extent.len == bytes.len() as u64 && extent.len > 0);
                    }
                    self.store.check_invariants();
                    let outcome =
                        if self.is_memory_lost { WorkOutcome::Failed } else { WorkOutcome::Done };
                    self.store.done(ticket, outcome, self.now, &mut self.effects);
                }
                Effect::Stream { .. } => happened.push("stream".into()),
                Effect::Start { ticket, work: Work::Trim { extent } } => {
                    self.work = Some(ticket);
                    happened.push(format!("trim {}+{}", extent.offset, extent.len));
                }
                Effect::HangUp { .. } => happened.push("hang up".into()),
            }
        }
        happened.join("; ")
    }

    fn reply_text(&self, asked: &[String], reply: &Reply) -> String {
        let flags = |flags: Vec<bool>| {
            let named = asked.iter().zip(flags);
            named
                .map(|(name, is)| if is { name.as_str() } else { "-" })
                .collect::<Vec<_>>()
                .join(",")
        };
        match reply {
            Reply::Connected(_) | Reply::Events(_) => panic!("not the store's: {reply:?}"),
            Reply::Done => "done".into(),
            Reply::Created(Placed { location: Location { offset, .. }, .. }) => {
                assert_eq!(offset % ALIGNMENT, 0);
                "created".into()
            }
            Reply::Objects(found) => {
                format!("got {}", flags(found.iter().map(Option::is_some).collect()))
            }
            Reply::Granted(_) => panic!("no client of a scenario reads the directory"),
            Reply::Ready(ready) => format!("ready {}", flags(ready.clone())),
            Reply::States(states) => join(states.iter().map(|state| match state {
                ObjectState::Absent => "absent".into(),
                ObjectState::Created => "created".into(),
                ObjectState::Sealed => "sealed".into(),
            })),
            Reply::Deleted(outcomes) => join(outcomes.iter().map(|outcome| match outcome {
                DeleteOutcome::NotFound => "not found".into(),
                DeleteOutcome::Deleted => "deleted".into(),
                DeleteOutcome::DeferredInUse => "in use".into(),
                DeleteOutcome::DeferredNotSealed => "not sealed".into(),
            })),
            Reply::Evicted { bytes, objects } => format!("evicted {bytes} in {objects}"),
            Reply::Refreshed { objects } => format!("refreshed {objects}"),
            Reply::ObjectList { objects, next } => {
                assert_eq!(*next, None);
                let mut lines: Vec<_> =
                    objects.iter().map(|object| self.info_text(object)).collect();
                lines.sort();
                lines.join(", ")
            }
            Reply::Stats(stats) => format!("{stats:?}"),
            Reply::DebugText(text) => text.replace('\n', "|"),
            Reply::ClientList { clients, .. } => join(clients.iter().map(|client| {
                format!("{} {} objects {} bytes", client.name, client.objects, client.bytes)
            })),
            Reply::Refused(refusal) => self.refusal_text(refusal),
        }
    }

    fn info_text(&self, info: &ObjectInfo) -> String {
        let state = match info.construct_duration {
            Some(duration) => format!("sealed after {}", duration.as_millis()),
            None => "created".into(),
        };
        let pending = if info.delete_pending { " delete pending" } else { "" };
        format!(
            "{} {}+{} refs {} {state}{pending}",
            self.name(&info.id),
            info.data_size,
            info.metadata_size,
            info.ref_count,
        )
    }

    fn refusal_text(&self, refusal: &Refusal) -> String {
        match refusal {
            Refusal::ObjectExists(id) => format!("exists {}", self.name(id)),
            Refusal::ObjectNotFound(id) => format!("not found {}", self.name(id)),
            Refusal::NotCreator(id) => format!("not creator {}", self.name(id)),
            Refusal::AlreadySealed(id) => format!("already sealed {}", self.name(id)),
            Refusal::NotHeld(id) => format!("not held {}", self.name(id)),
            Refusal::Abandoned(id) => format!("abandoned {}", self.name(id)),
            Refusal::StoreFull(full) => format!(
                "full: {} asked, {} used, {} pinned",
                full.requested, full.used, full.pinned
            ),
            Refusal::MemoryLost => "memory lost".into(),
            other => other.to_string(),
        }
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// `DATA` or `DATA+METADATA`
fn sizes(text: &str) -> (u64, u64) {
    let (data, metadata) = text.split_once('+').unwrap_or((text, "0"));
    (data.parse().unwrap(), metadata.parse().unwrap())
}

/// One step, cut into words and `key=value` options.
struct Line<'a> {
    words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        Self { words: text.split_whitespace().collect() }
    }

    fn list(&self, index: usize) -> Vec<&'a str> {
        self.words.get(index).map(|word| word.split(',').collect()).unwrap_or_default()
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    fn option(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.option(key).map(|value| value.parse().unwrap())
    }

    fn room(&self) -> Room {
        let timeout: Timeout = match self.option("wait") {
            None => Some(Duration::ZERO),
            Some("forever") => None,
            Some(millis) => Some(Duration::from_millis(millis.parse().unwrap())),
        };
        Room { evict: !self.has("keep"), timeout }
    }
}
