//! Clients that tell each other things outside the store: whatever has completed before something
//! else began must be seen by it, in whatever order the store reads their sockets.
//!
//! A random world has a few clients, each with a queue of requests that the store has not read and
//! a queue of answers that it has not taken, and few names. Clients with a table seal in it. Every
//! operation has a moment at which it was begun and one at which it was completed; then [`checker`]
//! looks for an order of all operations that agrees with these moments and with [`spec`]. A request
//! that names several objects is an operation for each of them.
//!
//! A seed that fails is printed; `PLASMA_SEED=n` runs it alone.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;

use super::simulation::{Twin, number_from_environment, seeds};
use super::thin::{AT_ONCE, OBJECT_BYTES, id, object};
use crate::eviction::PolicyKind;
use crate::ids::{ClientId, Location, ObjectId, SealPlace, SegmentId, Slot};
use crate::protocol::message::{
    Granted, ObjectState, Placed, Reply, Request, RequestId, Room, Subject, Timeout,
};
use crate::store::{Effect, Effects, Peer, Store, StoreConfig, Work, WorkOutcome};
use crate::time::Timestamp;

mod checker;
mod spec;

use checker::find_order;
use spec::{Operation, What};

/// Half of the seeds that every run of the tests goes through: see [`seeds`].
const SEEDS: u64 = 2000;

/// Operations that are begun in one seed.
const OPERATIONS: usize = 50;

/// A client with so many answers that it has not taken is not read.
const UNREAD_MAX: usize = 3;

/// Requests that a client has under way at a time.
const UNDER_WAY_MAX: usize = 3;

#[test]
fn what_has_completed_is_seen_by_everything_that_begins_later() {
    if let Some(seed) = number_from_environment("PLASMA_SEED") {
        return check(seed);
    }
    for seed in seeds(SEEDS) {
        check(seed);
    }
}

fn check(seed: u64) {
    let mut world = World::new(seed);
    let capacity = world.objects_max;
    let history = world.run();
    if find_order(&history, capacity, world.names).is_none() {
        for operation in &history {
            println!("{operation}");
        }
        panic!("no order of these operations is right; seed={seed}, room for {capacity}");
    }
}

/// A request that is on its way, or being served.
struct UnderWay {
    client: usize,
    begun: u64,
    request: Request,
}

#[derive(Default)]
struct Client {
    has_table: bool,
    /// Requests that the store has not read, and answers that the client has not taken.
    requests: VecDeque<(RequestId, Request)>,
    answers: VecDeque<(RequestId, Reply, u64)>,
    /// Requests without an answer.
    under_way: usize,
    /// What it is creating, and where it tells that that is sealed.
    own: BTreeMap<ObjectId, Option<SealPlace>>,
    /// What it holds and what it has pinned.
    holds: Vec<ObjectId>,
    pins: Vec<(ObjectId, Slot)>,
    /// Messages after seals that are sent later.
    nudges: Vec<Request>,
}

struct World {
    random: Rng,
    store: Store,
    twin: Twin,
    clients: Vec<Client>,
    names: u64,
    objects_max: usize,
    /// Counts everything that happens.
    moment: u64,
    under_way: BTreeMap<RequestId, UnderWay>,
    last_request: u64,
    /// When the store came to the objects of a request, as far as it has.
    looks: BTreeMap<RequestId, Vec<u64>>,
    history: Vec<Operation>,
    /// The store does nothing before this moment.
    stopped_until: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let names = random.u64(2..=4);
        let objects_max = random.usize(1..=usize::try_from(names).unwrap());
        let bytes = objects_max as u64 * OBJECT_BYTES;
        let config = StoreConfig {
            capacity: bytes,
            segment: SegmentId(0),
            segment_bytes: bytes,
            objects_max: 1000,
            policy: if random.bool() { PolicyKind::Lru } else { PolicyKind::Segmented },
            trim: None,
            unix_start: Duration::ZERO,
        };
        let twin = Twin::default();
        let mut store = Store::with_directory(config, Box::new(twin.clone()));
        if random.bool() {
            store.slice.steps = random.usize(1..8);
        }
        let mut clients = Vec::new();
        for number in 0..random.u64(3..=5) {
            let peer = Peer { name: String::new(), pid: 1, uid: 0, gid: 0 };
            let has_table = random.u8(..3) > 0;
            store.connect(ClientId(number), peer).expect("nobody is turned away");
            twin.state().may_join = has_table;
            store.let_read(ClientId(number));
            clients.push(Client { has_table, ..Client::default() });
        }
        Self {
            random,
            store,
            twin,
            clients,
            names,
            objects_max,
            moment: 0,
            under_way: BTreeMap::new(),
            last_request: 0,
            looks: BTreeMap::new(),
            history: Vec::new(),
            stopped_until: 0,
        }
    }

    /// All that happened, in the order in which the store came to it.
    fn run(&mut self) -> Vec<Operation> {
        while self.history.len() + self.under_way.len() < OPERATIONS {
            self.moment += 1;
            let client = self.random.usize(..self.clients.len());
            match self.random.u8(..32) {
                0..12 => self.begin(client),
                12..20 => self.take_answer(client),
                20..28 => self.read(client),
                28 => self.nudge(client),
                29 if self.random.u8(..4) == 0 => {
                    self.stopped_until = self.moment + self.random.u64(..60);
                }
                _ => self.work(),
            }
        }
        self.stopped_until = 0;
        while !self.under_way.is_empty() {
            for client in 0..self.clients.len() {
                self.moment += 1;
                self.read(client);
                self.work();
                self.moment += 1;
                self.take_answer(client);
            }
        }
        let mut history = std::mem::take(&mut self.history);
        history.sort_by_key(|operation| operation.served);
        history
    }

    fn name(&mut self) -> ObjectId {
        id(self.random.u64(..self.names))
    }

    fn names(&mut self) -> Vec<ObjectId> {
        (0..self.random.usize(1..=3)).map(|_| self.name()).collect()
    }

    /// A moment takes a nanosecond.
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.moment)
    }

    /// How long a request may wait for one object. (What a get of several has found while it waits
    /// is in use, although nobody has been told: that is left out.)
    fn timeout(&mut self) -> Timeout {
        Some(Duration::from_nanos(self.random.u64(1..100)))
    }

    /// A client begins something: in its table, or with a request.
    fn begin(&mut self, client: usize) {
        let name = self.name();
        let is_own = self.clients[client].own.contains_key(&name);
        let mut others = self.under_way.values().filter(|it| it.client == client);
        let is_creating =
            others.any(|it| matches!(it.request, Request::Create { id, .. } if id == name));
        let room = Room { evict: self.random.u8(..4) > 0, timeout: AT_ONCE };
        let bytes = OBJECT_BYTES;
        let request = match self.random.u8(..24) {
            0..5 => {
                // A message after an earlier seal would seal the new object of the same name.
                let is_other = |it: &Request| it.traits().subject != Subject::Objects(&[name]);
                self.clients[client].nudges.retain(is_other);
                Request::Create { id: name, data_size: bytes, metadata_size: 0, room }
            }
            5..7 => {
                let number = self.random.u64(..self.names);
                Request::Put { objects: vec![object(number, bytes)], room }
            }
            7..12 if is_own => return self.seal(client, name),
            // It does not know yet whether that is its own.
            7 | 12 if is_creating => return,
            7 => Request::Seal { id: name, release: false },
            8..10 => {
                if let Some(request) = self.let_go(client) {
                    request
                } else {
                    return;
                }
            }
            12 => {
                self.clients[client].own.remove(&name);
                Request::Abort { id: name }
            }
            13..15 => Request::Delete { ids: self.names() },
            15 => Request::Evict { bytes: bytes * self.random.u64(1..3) },
            16..19 => {
                if self.find(client, name) {
                    return;
                }
                match self.random.u8(..4) {
                    0 => {
                        let timeout = self.timeout();
                        Request::Get { ids: vec![name], timeout, fail_if_abandoned: false }
                    }
                    1 => Request::Wait { ids: vec![name], count: 1, timeout: self.timeout() },
                    _ => {
                        let ids = self.names();
                        Request::Get { ids, timeout: AT_ONCE, fail_if_abandoned: false }
                    }
                }
            }
            19..22 => Request::GetState { ids: self.names() },
            _ => Request::List { cursor: 0 },
        };
        self.ask(client, request);
    }

    fn ask(&mut self, client: usize, request: Request) {
        if self.clients[client].under_way == UNDER_WAY_MAX {
            return self.take_answer(client);
        }
        self.last_request += 1;
        let number = RequestId(self.last_request);
        let copy = request.clone();
        self.under_way.insert(number, UnderWay { client, begun: self.moment, request: copy });
        self.clients[client].under_way += 1;
        self.clients[client].requests.push_back((number, request));
    }

    /// Seals an object in the table, with a message now or later; or by message.
    fn seal(&mut self, client: usize, id: ObjectId) {
        let release = self.random.bool();
        let Some(place) = self.clients[client].own.remove(&id).expect("it is his") else {
            return self.ask(client, Request::Seal { id, release });
        };
        let told = (place.generation, release);
        self.twin.state().seals.insert((ClientId(client as u64), place.slot), told);
        self.happens(client, What::Sealed { id, release });
        if !release {
            self.clients[client].holds.push(id);
        }
        let nudge = Request::Seal { id, release };
        if self.random.bool() {
            self.clients[client].requests.push_back((RequestId::NONE, nudge));
        } else {
            self.clients[client].nudges.push(nudge);
        }
    }

    /// What a client has begun and completed in this moment.
    fn happens(&mut self, client: usize, what: What) {
        let moment = self.moment;
        let operation = Operation {
            client,
            begun: moment,
            served: moment,
            completed: moment,
            what,
            part: None,
        };
        self.history.push(operation);
    }

    /// The message after a seal comes, at last.
    fn nudge(&mut self, client: usize) {
        if let Some(nudge) = self.clients[client].nudges.pop() {
            self.clients[client].requests.push_back((RequestId::NONE, nudge));
        }
    }

    /// A reader finds an object in the directory and pins it.
    fn find(&mut self, client: usize, id: ObjectId) -> bool {
        let mut directory = self.twin.state();
        let is_there = directory.published().contains_key(&id);
        if !self.clients[client].has_table || !is_there {
            return false;
        }
        let slot = directory.read(ClientId(client as u64), id);
        drop(directory);
        self.clients[client].pins.push((id, slot));
        self.happens(client, What::Found(id));
        true
    }

    /// Gives back a pin in the table, or else says how to give back a hold.
    fn let_go(&mut self, client: usize) -> Option<Request> {
        if let Some((id, slot)) = self.clients[client].pins.pop() {
            if self.twin.state().unpin(ClientId(client as u64), slot) {
                let unpinned = Request::Unpinned { slots: vec![slot] };
                self.clients[client].requests.push_back((RequestId::NONE, unpinned));
            }
            self.happens(client, What::Unpinned(id));
            return None;
        }
        let is_free = self.clients[client].under_way < UNDER_WAY_MAX;
        let held = is_free.then(|| self.clients[client].holds.pop())?;
        held.map(|id| Request::Release { holds: vec![(id, 1)] })
    }

    fn is_stopped(&self) -> bool {
        self.moment < self.stopped_until
    }

    /// The store reads some of what a client has sent.
    fn read(&mut self, client: usize) {
        for _ in 0..self.random.usize(1..4) {
            let sender = &mut self.clients[client];
            let is_busy = self.store.is_busy(ClientId(client as u64));
            if self.moment < self.stopped_until || is_busy || sender.answers.len() > UNREAD_MAX {
                return;
            }
            let Some((number, request)) = sender.requests.pop_front() else { return };
            self.act(|store, now, effects| {
                store.apply(ClientId(client as u64), number, request, now, effects);
            });
        }
    }

    fn work(&mut self) {
        if self.is_stopped() {
            return;
        }
        match self.random.u8(..4) {
            0 => self.act(Store::expire),
            1 => self.act(Store::work),
            _ => {
                let client = ClientId(self.random.u64(..self.clients.len() as u64));
                self.act(|store, now, effects| store.go_on(client, now, effects));
            }
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Store, Timestamp, &mut Effects)) {
        let now = self.now();
        let mut effects = Effects::new();
        act(&mut self.store, now, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Reply { client, request, reply } => {
                    let client = usize::try_from(client.0).unwrap();
                    self.clients[client].answers.push_back((request, reply, self.moment));
                }
                Effect::Start { ticket, work: Work::Fill { .. } } => {
                    self.store.done(ticket, WorkOutcome::Done, now, &mut effects);
                }
                other => panic!("nobody asked for {other:?}"),
            }
            self.moment += 1;
        }
        for (asked, task) in self.store.busy.values() {
            let looks = self.looks.entry(asked.request).or_default();
            looks.resize(self.store.looks(task).max(looks.len()), self.moment);
        }
        self.moment += 1;
        self.twin.state().take_gone();
        self.store.check_invariants();
    }

    fn take_answer(&mut self, client: usize) {
        let Some((number, reply, served)) = self.clients[client].answers.pop_front() else {
            return;
        };
        let UnderWay { client, begun, request } =
            self.under_way.remove(&number).expect("it is answered once");
        let asker = &mut self.clients[client];
        asker.under_way -= 1;
        match (&request, &reply) {
            (Request::Create { id, .. }, Reply::Created(Placed { seal, .. })) => {
                asker.own.insert(*id, *seal);
            }
            (Request::Seal { id, release: false }, Reply::Done) => asker.holds.push(*id),
            (Request::Get { ids, .. }, Reply::Objects(found)) => {
                let found = ids.iter().zip(found).filter(|(_, found)| found.is_some());
                asker.holds.extend(found.map(|(id, _)| *id));
            }
            (Request::Get { ids, .. }, Reply::Granted(granted)) => {
                let pin = |granted: &Granted| granted.pin.expect("a reader gets pins");
                let pins = ids.iter().zip(granted);
                asker.pins.extend(pins.filter_map(|(id, it)| Some((*id, pin(it.as_ref()?)))));
            }
            _ => {}
        }
        let completed = self.moment;
        let looks = self.looks.remove(&number).unwrap_or_default();
        // A get looks up each name once.
        let names = match &request {
            Request::Get { ids, .. } => ids.clone(),
            _ => Vec::new(),
        };
        for (index, (request, reply)) in split(request, reply).into_iter().enumerate() {
            let name = names.get(index);
            let first = name.and_then(|name| names.iter().position(|other| other == name));
            let index = first.unwrap_or(index);
            let served = looks.get(index).copied().unwrap_or(served);
            let (what, part) = (What::Asked(request, reply), Some((number, index)));
            self.history.push(Operation { client, begun, served, completed, what, part });
        }
    }
}

/// A request that comes to one object after the other, as requests for one each.
fn split(request: Request, reply: Reply) -> Vec<(Request, Reply)> {
    match (request, reply) {
        (Request::Get { ids, timeout, fail_if_abandoned }, Reply::Objects(found)) => {
            let get = |id| Request::Get { ids: vec![id], timeout, fail_if_abandoned };
            let pairs = ids.into_iter().zip(found);
            pairs.map(|(id, found)| (get(id), Reply::Objects(vec![found]))).collect()
        }
        (Request::Get { ids, timeout, fail_if_abandoned }, Reply::Granted(found)) => {
            let get = |id| Request::Get { ids: vec![id], timeout, fail_if_abandoned };
            let pairs = ids.into_iter().zip(found);
            pairs.map(|(id, found)| (get(id), Reply::Granted(vec![found]))).collect()
        }
        (Request::GetState { ids }, Reply::States(states)) => {
            let look = |id| Request::GetState { ids: vec![id] };
            let pairs = ids.into_iter().zip(states);
            pairs.map(|(id, state)| (look(id), Reply::States(vec![state]))).collect()
        }
        (Request::Delete { ids }, Reply::Deleted(outcomes)) => {
            let delete = |id| Request::Delete { ids: vec![id] };
            let pairs = ids.into_iter().zip(outcomes);
            pairs.map(|(id, outcome)| (delete(id), Reply::Deleted(vec![outcome]))).collect()
        }
        other => vec![other],
    }
}

fn told(client: usize, moment: u64, number: u64) -> Operation {
    let what = What::Sealed { id: id(number), release: true };
    Operation { client, begun: moment, served: moment, completed: moment, what, part: None }
}

fn asked(client: usize, begun: u64, completed: u64, request: Request, reply: Reply) -> Operation {
    let what = What::Asked(request, reply);
    Operation { client, begun, served: completed, completed, what, part: None }
}

fn created(client: usize, begun: u64, completed: u64) -> Operation {
    let room = Room { evict: false, timeout: AT_ONCE };
    let create = Request::Create { id: id(0), data_size: OBJECT_BYTES, metadata_size: 0, room };
    let data_size = OBJECT_BYTES;
    let location = Location { segment: SegmentId(0), offset: 0, data_size, metadata_size: 0 };
    asked(client, begun, completed, create, Reply::Created(Placed { location, seal: None }))
}

fn state_is(begun: u64, completed: u64, state: ObjectState) -> Operation {
    let request = Request::GetState { ids: vec![id(0)] };
    asked(1, begun, completed, request, Reply::States(vec![state]))
}

#[test]
fn a_seal_that_is_told_and_then_denied_has_no_order() {
    let after = [created(0, 1, 2), told(0, 3, 0), state_is(4, 5, ObjectState::Created)];
    assert!(find_order(&after, 1, 1).is_none());
    let beside = [created(0, 1, 2), told(0, 4, 0), state_is(3, 5, ObjectState::Created)];
    assert!(find_order(&beside, 1, 1).is_some());
}

#[test]
fn a_sealed_object_that_vanishes_for_no_reason_has_no_order() {
    let evict = |begun, completed| {
        let evicted = Reply::Evicted { bytes: OBJECT_BYTES, objects: 1 };
        asked(2, begun, completed, Request::Evict { bytes: 1 }, evicted)
    };
    let begin = [created(0, 1, 2), told(0, 3, 0)];
    let gone = state_is(5, 6, ObjectState::Absent);
    let history = |more: &[Operation]| [&begin, more].concat();
    assert!(find_order(&history(std::slice::from_ref(&gone)), 1, 1).is_none());
    assert!(find_order(&history(&[gone.clone(), evict(4, 9)]), 1, 1).is_some());
    assert!(find_order(&history(&[gone, evict(7, 9)]), 1, 1).is_none());
}
