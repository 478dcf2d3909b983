//! What happens next: random clients that do random things, sensible and senseless ones.
//!
//! Each seed has a character of its own ("swarm testing"): it leaves out some operations, prefers
//! others, and has its own capacity, sizes, names and patience. So states that need much of one
//! thing and nothing of another are reached as well. The choices look at the model, never at the
//! store, so that a seed means the same sequence for as long as the store does what it should.

use std::time::Duration;

use fastrand::Rng;

use super::Step;
use crate::eviction::PolicyKind;
use crate::ids::{ClientId, ObjectId, SegmentId};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{NewObject, Request, RequestId, Room, Timeout};
use crate::store::tests::model::{Model, Object};
use crate::store::{StoreConfig, TrimConfig, WorkOutcome};
use crate::time::Timestamp;

/// Requests that wait at a time; beyond, nothing more waits.
const WAITING_MAX: usize = 24;

/// Clients at a time that go on when their connections have ended.
const SURVIVORS_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Connect,
    Die,
    Goodbye,
    Name,
    Quota,
    Create,
    Put,
    Batch,
    Seal,
    Abort,
    Get,
    Wait,
    Cancel,
    Release,
    State,
    Delete,
    Evict,
    Refresh,
    List,
    Subscribe,
    Read,
    Stats,
    DebugText,
    Clients,
    Expire,
    Jump,
    Pin,
    Unpin,
    Scribble,
    WorkEnds,
    Tell,
    Perish,
}

use Operation::{
    Abort, Batch, Cancel, Clients, Connect, Create, DebugText, Delete, Die, Evict, Expire, Get,
    Goodbye, Jump, List, Name, Perish, Pin, Put, Quota, Read, Refresh, Release, Scribble, Seal,
    State, Stats, Subscribe, Tell, Unpin, Wait, WorkEnds,
};

/// How often each operation is done by a seed without a character.
const WEIGHTS: [(Operation, u32); 32] = [
    (Connect, 4),
    (Die, 1),
    (Goodbye, 1),
    (Name, 1),
    (Quota, 1),
    (Create, 14),
    (Put, 10),
    (Batch, 4),
    (Seal, 12),
    (Abort, 3),
    (Get, 14),
    (Wait, 6),
    (Cancel, 4),
    (Release, 16),
    (State, 1),
    (Delete, 6),
    (Evict, 2),
    (Refresh, 3),
    (List, 1),
    (Subscribe, 1),
    (Read, 4),
    (Stats, 1),
    (DebugText, 1),
    (Clients, 1),
    (Expire, 6),
    (Jump, 5),
    (Pin, 4),
    (Unpin, 4),
    (Scribble, 2),
    (WorkEnds, 5),
    (Tell, 10),
    (Perish, 1),
];

/// The character of one seed.
#[derive(Debug)]
pub struct Chaos {
    pub config: StoreConfig,
    weights: Vec<(Operation, u32)>,
    /// Some clients read the directory.
    has_readers: bool,
    clients_max: usize,
    may_survive: bool,
    names: u8,
    /// Most objects are at most this large.
    size_max: u64,
    /// Per cent of the requests that may wait for ever.
    for_ever_percent: u32,
    /// Per cent of the requests that may not wait.
    at_once_percent: u32,
    /// Per cent of the creates that keep what is there.
    keep_percent: u32,
    /// Per cent of the puts whose bytes cannot be written.
    pub fails_percent: u32,
}

impl Chaos {
    pub fn new(random: &mut Rng) -> Self {
        let has_readers = random.bool();
        let mut weight = |(operation, weight): (Operation, u32)| {
            let is_out = match operation {
                Connect => false,
                Pin | Unpin | Tell => !has_readers,
                _ => random.u8(..5) == 0,
            };
            (operation, if is_out { 0 } else { weight * random.u32(1..=4) })
        };
        let weights = WEIGHTS.map(&mut weight).to_vec();
        let capacity = match random.u8(..8) {
            0 => random.u64(1..=64),
            1 => random.u64(1..=300),
            _ => random.u64(200..=4000),
        };
        let objects_max = if random.bool() { random.u32(1..=12) } else { random.u32(12..=40) };
        let slack = match random.u8(..3) {
            0 => 0,
            1 => random.u64(..=8) * ALIGNMENT,
            _ => 40 * ALIGNMENT,
        };
        Self {
            config: StoreConfig {
                capacity,
                segment: SegmentId(random.u32(..3)),
                segment_bytes: capacity.next_multiple_of(ALIGNMENT) + slack,
                objects_max,
                trim: trim(random),
                policy: if random.bool() { PolicyKind::Lru } else { PolicyKind::Segmented },
                unix_start: Duration::from_secs(1_000_000),
            },
            weights,
            has_readers,
            may_survive: random.bool(),
            clients_max: random.usize(1..=8),
            names: random.u8(2..=24),
            size_max: (capacity / [1, 2, 3, 5, 8, 16][random.usize(..6)]).max(1),
            for_ever_percent: [0, 10, 30, 60][random.usize(..4)],
            at_once_percent: [10, 30, 60][random.usize(..3)],
            keep_percent: [0, 10, 50][random.usize(..3)],
            fails_percent: [0, 0, 5, 30][random.usize(..4)],
        }
    }

    /// The next step; nothing if the operation that came up makes no sense now.
    pub fn step(&self, random: &mut Rng, model: &Model, talking: &[ClientId]) -> Option<Step> {
        let operation = self.operation(random);
        if operation == Connect {
            let connected = model.clients.values().filter(|client| !client.survives).count();
            return (connected < self.clients_max)
                .then(|| Step::Connect(self.has_readers && random.bool()));
        }
        match operation {
            Expire => return Some(Step::Expire),
            Jump => return Some(Step::Jump(self.jump(random, model))),
            Pin => {
                let readers = talking.iter().filter(|client| model.clients[client].is_reader);
                let client = random.choice(readers.copied().collect::<Vec<_>>())?;
                return pick(random, model, |o| o.sealed.is_some()).map(|id| Step::Pin(client, id));
            }
            Unpin => {
                let id = pick(random, model, |o| !o.pins.is_empty())?;
                let readers: Vec<_> = model.objects[&id].pins.keys().copied().collect();
                return random.choice(readers).map(|client| Step::Unpin(client, id));
            }
            Scribble => {
                let is_written = |o: &Object| o.sealed.is_none() && o.told.is_none();
                return pick(random, model, is_written).map(Step::Scribble);
            }
            Tell => {
                let is_teller =
                    |client: &ClientId| talking.contains(client) && model.clients[client].is_reader;
                let may_be = |o: &Object| o.sealed.is_none() && o.told.is_none();
                let id = pick(random, model, |o| may_be(o) && is_teller(&o.creator))?;
                return Some(Step::Tell(model.objects[&id].creator, id, random.bool()));
            }
            Perish => {
                let survivors = model.clients.iter().filter(|(_, client)| client.survives);
                let client = random.choice(survivors.map(|(id, _)| *id).collect::<Vec<_>>())?;
                return Some(Step::Perish(client));
            }
            WorkEnds => return model.slice.map(|_| Step::WorkEnds(outcome(random))),
            Read => {
                let subscribers: Vec<_> = model.subscribers().into_iter().collect();
                let max = [1, 2, 5, 1024][random.usize(..4)];
                return random.choice(subscribers).map(|client| Step::Read(client, max));
            }
            _ => {}
        }
        let client = random.choice(talking.iter().copied())?;
        if operation == Die {
            let survivors = model.clients.values().filter(|client| client.survives).count();
            let survives = self.may_survive && survivors < SURVIVORS_MAX && random.bool();
            return Some(Step::Disconnect(client, survives));
        }
        let request = self.request(operation, client, random, model)?;
        let wants_reply = operation != Release || random.u8(..3) > 0;
        Some(Step::Request { client, wants_reply, request })
    }

    fn operation(&self, random: &mut Rng) -> Operation {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut rest = random.u32(..total);
        for (operation, weight) in &self.weights {
            match rest.checked_sub(*weight) {
                Some(less) => rest = less,
                None => return *operation,
            }
        }
        Connect
    }

    fn request(
        &self,
        operation: Operation,
        client: ClientId,
        random: &mut Rng,
        model: &Model,
    ) -> Option<Request> {
        let own_unsealed = |object: &Object| object.sealed.is_none() && object.creator == client;
        Some(match operation {
            Name => Request::SetOptions {
                client_name: Some(format!("client {}", random.u8(..4))),
                quota: None,
            },
            Quota => Request::SetOptions {
                client_name: random.bool().then(|| "with quota".into()),
                quota: Some(self.quota(random)),
            },
            Create => {
                let id = self.new_name(random, model)?;
                let (data_size, metadata_size) = self.sizes(random);
                Request::Create { id, data_size, metadata_size, room: self.room(random, model) }
            }
            Put => Request::Put {
                objects: vec![self.new_object(random, model)?],
                room: self.room(random, model),
            },
            Batch => {
                let count = random.usize(1..=5);
                let objects = (0..count).map(|_| self.new_object(random, model));
                let objects = objects.collect::<Option<Vec<_>>>()?;
                Request::Put { objects, room: self.room(random, model) }
            }
            Seal => Request::Seal {
                id: self.rather(random, model, own_unsealed)?,
                release: random.bool(),
            },
            Abort => Request::Abort { id: self.rather(random, model, own_unsealed)? },
            Get => Request::Get {
                ids: self.list(random),
                timeout: self.timeout(random, model),
                fail_if_abandoned: random.bool(),
            },
            Wait => {
                let ids = self.list(random);
                let count = random.usize(..=ids.len());
                Request::Wait { ids, count, timeout: self.timeout(random, model) }
            }
            Cancel => Request::Cancel { request: some_request(client, random, model)? },
            Release => {
                let holds = self.holds(client, random, model);
                if holds.is_empty() && is_usual(random) {
                    return None;
                }
                Request::Release { holds }
            }
            State => Request::GetState { ids: self.list(random) },
            Delete => Request::Delete { ids: self.list(random) },
            Evict => Request::Evict { bytes: self.size(random) },
            Refresh => Request::Refresh { ids: self.list(random) },
            List => Request::List { cursor: random.u32(..2) * random.u32(..10) },
            Subscribe => Request::Subscribe { one_by_one: random.bool() },
            Stats => Request::GetStats,
            DebugText => Request::GetDebugText,
            Clients => Request::ListClients {
                after: ClientId(random.u64(..2) * client.0),
                holding: random.bool().then(|| self.name(random)),
            },
            Goodbye => Request::Disconnect,
            Connect | Die | Read | Expire | Jump | Pin | Unpin | Scribble | WorkEnds | Tell
            | Perish => {
                panic!("{operation:?} is no request")
            }
        })
    }

    fn name(&self, random: &mut Rng) -> ObjectId {
        name(random.u8(..self.names))
    }

    /// Usually a name that is free, if there is one.
    fn new_name(&self, random: &mut Rng, model: &Model) -> Option<ObjectId> {
        if !is_usual(random) {
            return Some(self.name(random));
        }
        let free = (0..self.names).map(name).filter(|id| !model.objects.contains_key(id));
        random.choice(free.collect::<Vec<_>>())
    }

    /// Usually an object for which the operation makes sense, now and then any other.
    fn rather(
        &self,
        random: &mut Rng,
        model: &Model,
        makes_sense: impl Fn(&Object) -> bool,
    ) -> Option<ObjectId> {
        if is_usual(random) { pick(random, model, makes_sense) } else { Some(self.name(random)) }
    }

    fn list(&self, random: &mut Rng) -> Vec<ObjectId> {
        let mut ids: Vec<ObjectId> =
            (0..[0, 1, 1, 1, 2, 2, 3, 5][random.usize(..8)]).map(|_| self.name(random)).collect();
        if random.u8(..6) == 0 {
            ids.extend(random.choice(ids.clone()));
        }
        ids
    }

    fn holds(&self, client: ClientId, random: &mut Rng, model: &Model) -> Vec<(ObjectId, u32)> {
        let mut holds = Vec::new();
        for (id, object) in &model.objects {
            let granted = object.holds.get(&client).map_or(0, |hold| hold.granted);
            if granted > 0 && random.bool() {
                let all = u32::try_from(granted).unwrap();
                holds.push((*id, if random.bool() { all } else { random.u32(1..=all) }));
            }
        }
        random.shuffle(&mut holds);
        match random.u8(..32) {
            0 => holds.push((self.name(random), random.u32(1..3))),
            1 => holds.push((self.name(random), u32::MAX)),
            2 => holds.extend(random.choice(holds.clone())),
            _ => {}
        }
        holds
    }

    fn size(&self, random: &mut Rng) -> u64 {
        match random.u8(..24) {
            0 | 1 => 0,
            2 => 1,
            3 => self.config.capacity,
            4 => self.config.capacity + 1,
            5 => u64::MAX,
            _ => random.u64(..=self.size_max),
        }
    }

    /// Of data and metadata; the sum of both always fits.
    fn sizes(&self, random: &mut Rng) -> (u64, u64) {
        let size = self.size(random);
        let metadata = if random.bool() { 0 } else { random.u64(..=size) };
        (size - metadata, metadata)
    }

    fn new_object(&self, random: &mut Rng, model: &Model) -> Option<NewObject> {
        let (data, metadata) = self.sizes(random);
        let id = self.new_name(random, model)?;
        let mut bytes = |size: u64| {
            let size = size.min(self.config.capacity + 1);
            (0..size).map(|_| random.u8(..)).collect()
        };
        Some(NewObject { id, data: bytes(data), metadata: bytes(metadata) })
    }

    fn room(&self, random: &mut Rng, model: &Model) -> Room {
        let evict = random.u32(..100) >= self.keep_percent;
        Room { evict, timeout: self.timeout(random, model) }
    }

    fn timeout(&self, random: &mut Rng, model: &Model) -> Timeout {
        let at_once = Some(Duration::ZERO);
        if model.waiting.len() + model.queue.len() >= WAITING_MAX {
            return at_once;
        }
        let dice = random.u32(..100);
        if dice < self.for_ever_percent {
            None
        } else if random.u32(..100) < self.at_once_percent {
            at_once
        } else if random.u8(..20) == 0 {
            Some(Duration::MAX)
        } else {
            Some(Duration::from_nanos(random.u64(1..60)))
        }
    }

    fn quota(&self, random: &mut Rng) -> u64 {
        match random.u8(..8) {
            0 => 0,
            1 => u64::MAX,
            _ => random.u64(..=self.config.capacity),
        }
    }

    /// Into the near future, or to where something becomes due.
    fn jump(&self, random: &mut Rng, model: &Model) -> Timestamp {
        let now = model.now;
        let soon = now.after(Duration::from_nanos(random.u64(..30)));
        let due = model.next_deadline().filter(|due| *due < now.after(Duration::from_secs(1)));
        match (random.u8(..4), due) {
            (0, Some(due)) => due.max(now),
            (1, Some(due)) => Timestamp::from_nanos(due.as_nanos() - 1).max(now),
            (2, Some(due)) => due.after(Duration::from_nanos(1)).max(now),
            _ => soon,
        }
    }
}

/// Usually it works, seldom it does not, which ends it for ever.
fn outcome(random: &mut Rng) -> WorkOutcome {
    if random.u8(..64) == 0 { WorkOutcome::Failed } else { WorkOutcome::Done }
}

/// Most seeds give memory back.
fn trim(random: &mut Rng) -> Option<TrimConfig> {
    let unit_bytes = ALIGNMENT * random.u64(1..=2);
    (random.u8(..4) > 0).then(|| TrimConfig {
        after: Duration::from_nanos(random.u64(..80)),
        ready_bytes: if random.bool() { 0 } else { random.u64(..1000) },
        bytes_min: ALIGNMENT * random.u64(1..=6),
        slice_bytes: unit_bytes * random.u64(1..=6),
        unit_bytes,
    })
}

/// One of a seed's names.
pub fn name(number: u8) -> ObjectId {
    ObjectId::from([number; 20])
}

fn pick(random: &mut Rng, model: &Model, wanted: impl Fn(&Object) -> bool) -> Option<ObjectId> {
    let objects = model.objects.iter().filter(|(_, object)| wanted(object));
    random.choice(objects.map(|(id, _)| *id).collect::<Vec<_>>())
}

/// Usually a request of this client that waits; now and then somebody else's, or one that does not.
fn some_request(client: ClientId, random: &mut Rng, model: &Model) -> Option<RequestId> {
    let waiting = model.waiting.iter().map(|waiting| waiting.call);
    let calls = waiting.chain(model.queue.iter().map(|create| create.call));
    let is_own = is_usual(random);
    let calls = calls.filter(|call| (call.client == client) == is_own);
    match random.choice(calls.collect::<Vec<_>>()) {
        Some(call) => Some(call.request),
        None if is_usual(random) => None,
        None => Some(RequestId(random.u64(..100))),
    }
}

/// Whether something sensible is done, not something odd.
fn is_usual(random: &mut Rng) -> bool {
    random.u8(..16) > 0
}
