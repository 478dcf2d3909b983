//! A store whose slices are as thin as can be, so that everything that may come in between does.
//! Steps are counted, never time.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::eviction::PolicyKind;
use crate::ids::{ClientId, ObjectId, SegmentId};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{NewObject, ObjectState, Reply, Request, RequestId, Room, Timeout};
use crate::store::directory::{Directory, Unshared};
use crate::store::{Effect, Effects, Peer, Store, StoreConfig, Work, WorkOutcome};
use crate::time::Timestamp;

pub const OBJECTS: u64 = 200;
pub const OBJECT_BYTES: u64 = ALIGNMENT;
pub const AT_ONCE: Timeout = Some(Duration::ZERO);

/// A store with room for just so many objects, and what it has answered.
pub struct Thin {
    pub store: Store,
    pub now: Timestamp,
    last_request: u64,
    pub answers: BTreeMap<(ClientId, RequestId), Reply>,
}

impl Thin {
    pub fn new(steps: usize, clients: u64) -> Self {
        Self::over(Box::new(Unshared::default()), steps, clients)
    }

    /// A store with this directory.
    pub fn over(directory: Box<dyn Directory>, steps: usize, clients: u64) -> Self {
        let config = StoreConfig {
            capacity: OBJECTS * OBJECT_BYTES,
            segment: SegmentId(0),
            segment_bytes: OBJECTS * OBJECT_BYTES,
            objects_max: 1000,
            policy: PolicyKind::Lru,
            trim: None,
            unix_start: Duration::ZERO,
        };
        let mut store = Store::with_directory(config, directory);
        store.slice.steps = steps;
        store.slice.answers = steps;
        for client in 1..=clients {
            let peer = Peer { name: String::new(), pid: 1, uid: 0, gid: 0 };
            store.connect(ClientId(client), peer).expect("nobody is turned away");
        }
        Self { store, now: Timestamp::ZERO, last_request: 0, answers: BTreeMap::new() }
    }

    /// A store that is full of idle objects.
    pub fn full(steps: usize, clients: u64) -> Self {
        let mut thin = Self::new(steps, clients);
        let objects = (0..OBJECTS).map(|number| object(number, OBJECT_BYTES)).collect();
        let put = Request::Put { objects, room: Room { evict: false, timeout: AT_ONCE } };
        assert_eq!(thin.ask(1, put), Some(Reply::Done));
        thin
    }

    /// Begins a request, when the one before it of the same client has been served.
    pub fn begin(&mut self, client: u64, request: Request) -> (ClientId, RequestId) {
        self.last_request += 1;
        let asked = (ClientId(client), RequestId(self.last_request));
        self.end_task(asked.0);
        let now = self.now;
        self.act(|store, effects| store.apply(asked.0, asked.1, request, now, effects));
        asked
    }

    /// A request and its answer, if it does not wait.
    pub fn ask(&mut self, client: u64, request: Request) -> Option<Reply> {
        let asked = self.begin(client, request);
        self.end_task(asked.0);
        self.answers.remove(&asked)
    }

    /// A slice for a client that is busy.
    pub fn go_on(&mut self, client: ClientId) {
        let now = self.now;
        self.act(|store, effects| store.go_on(client, now, effects));
    }

    fn end_task(&mut self, client: ClientId) {
        while self.store.is_busy(client) {
            self.go_on(client);
        }
    }

    /// A slice of a job, and one for a client that is busy.
    pub fn slice(&mut self) {
        let now = self.now;
        self.act(|store, effects| store.work(now, effects));
        if let Some(client) = self.store.busy.keys().next().copied() {
            self.go_on(client);
        }
    }

    pub fn act(&mut self, act: impl FnOnce(&mut Store, &mut Effects)) {
        let mut effects = Effects::new();
        act(&mut self.store, &mut effects);
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Reply { client, request, reply } => {
                    let before = self.answers.insert((client, request), reply);
                    assert_eq!(before, None, "a request is answered once");
                }
                Effect::Start { ticket, work: Work::Fill { .. } } => {
                    self.store.done(ticket, WorkOutcome::Done, self.now, &mut effects);
                }
                Effect::Start { work: Work::Trim { .. }, .. }
                | Effect::Stream { .. }
                | Effect::HangUp { .. } => {}
            }
        }
        self.store.check_invariants();
    }

    /// Slices until nothing is left to do, with `between` after each; how many there were.
    pub fn finish(&mut self, mut between: impl FnMut(&mut Self)) -> u64 {
        let mut slices = 0;
        while self.store.has_work() || !self.store.busy.is_empty() {
            assert!(slices < 10_000, "it comes to an end");
            slices += 1;
            self.slice();
            between(self);
        }
        slices
    }

    pub fn state(&mut self, number: u64) -> ObjectState {
        match self.ask(1, Request::GetState { ids: vec![id(number)] }) {
            Some(Reply::States(states)) => states[0],
            other => panic!("it is answered at once: {other:?}"),
        }
    }
}

pub fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

pub fn object(number: u64, bytes: u64) -> NewObject {
    NewObject { id: id(number), data: vec![1; usize::try_from(bytes).unwrap()], metadata: vec![] }
}

pub fn get(number: u64, timeout: Timeout) -> Request {
    Request::Get { ids: vec![id(number)], timeout, fail_if_abandoned: false }
}

pub fn create(number: u64, data_size: u64, timeout: Timeout) -> Request {
    let room = Room { evict: true, timeout };
    Request::Create { id: id(number), data_size, metadata_size: 0, room }
}
