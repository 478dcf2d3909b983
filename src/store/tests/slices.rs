//! What the store does in slices, with other requests in between. Slices are as thin as can be
//! here, and steps are counted, never time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::eviction::PolicyKind;
use crate::ids::{ClientId, ObjectId, SegmentId};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{
    DeleteOutcome, NewObject, ObjectState, Reply, Request, RequestId, Room, Timeout,
};
use crate::protocol::refusal::Refusal;
use crate::store::{Effect, Effects, Peer, Store, StoreConfig};
use crate::time::Timestamp;

const OBJECTS: u64 = 200;
const OBJECT_BYTES: u64 = ALIGNMENT;
const AT_ONCE: Timeout = Some(Duration::ZERO);

/// A store with room for just so many objects, and what it has answered.
struct Thin {
    store: Store,
    now: Timestamp,
    last_request: u64,
    answers: BTreeMap<(ClientId, RequestId), Reply>,
}

impl Thin {
    fn new(steps: usize, clients: u64) -> Self {
        let mut store = Store::new(StoreConfig {
            capacity: OBJECTS * OBJECT_BYTES,
            segment: SegmentId(0),
            segment_bytes: OBJECTS * OBJECT_BYTES,
            objects_max: 1000,
            policy: PolicyKind::Lru,
            trim: None,
            unix_start: Duration::ZERO,
        });
        store.slice.steps = steps;
        store.slice.answers = steps;
        for client in 1..=clients {
            let peer = Peer { name: String::new(), pid: 1, uid: 0, gid: 0 };
            store.connect(ClientId(client), peer);
        }
        Self { store, now: Timestamp::ZERO, last_request: 0, answers: BTreeMap::new() }
    }

    /// A store that is full of idle objects.
    fn full(steps: usize, clients: u64) -> Self {
        let mut thin = Self::new(steps, clients);
        let objects = (0..OBJECTS).map(|number| object(number, OBJECT_BYTES)).collect();
        let put = Request::Put { objects, room: Room { evict: false, timeout: AT_ONCE } };
        assert_eq!(thin.ask(1, put), Some(Reply::Done));
        thin
    }

    /// Begins a request.
    fn begin(&mut self, client: u64, request: Request) -> (ClientId, RequestId) {
        self.last_request += 1;
        let asked = (ClientId(client), RequestId(self.last_request));
        let now = self.now;
        self.act(|store, effects| store.apply(asked.0, asked.1, request, now, effects));
        asked
    }

    /// A request and its answer, if that comes at once.
    fn ask(&mut self, client: u64, request: Request) -> Option<Reply> {
        let asked = self.begin(client, request);
        self.answers.remove(&asked)
    }

    fn slice(&mut self) {
        let now = self.now;
        self.act(|store, effects| store.work(now, effects));
    }

    fn act(&mut self, act: impl FnOnce(&mut Store, &mut Effects)) {
        let mut effects = Effects::new();
        act(&mut self.store, &mut effects);
        for effect in effects.drain() {
            if let Effect::Reply { client, request, reply } = effect {
                let before = self.answers.insert((client, request), reply);
                assert_eq!(before, None, "a request is answered once");
            }
        }
        self.store.check_invariants();
    }

    /// Slices until nothing is left to do, with `between` after each; how many there were.
    fn finish(&mut self, mut between: impl FnMut(&mut Self)) -> u64 {
        let mut slices = 0;
        while self.store.has_work() {
            assert!(slices < 10_000, "it comes to an end");
            slices += 1;
            self.slice();
            between(self);
        }
        slices
    }

    fn state(&mut self, number: u64) -> ObjectState {
        match self.ask(1, Request::GetState { ids: vec![id(number)] }) {
            Some(Reply::States(states)) => states[0],
            other => panic!("it is answered at once: {other:?}"),
        }
    }
}

fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

fn object(number: u64, bytes: u64) -> NewObject {
    NewObject { id: id(number), data: vec![1; usize::try_from(bytes).unwrap()], metadata: vec![] }
}

fn get(number: u64, timeout: Timeout) -> Request {
    Request::Get { ids: vec![id(number)], timeout, fail_if_abandoned: false }
}

fn create(number: u64, data_size: u64, timeout: Timeout) -> Request {
    let room = Room { evict: true, timeout };
    Request::Create { id: id(number), data_size, metadata_size: 0, room }
}

#[test]
fn an_eviction_lets_others_in_between() {
    let mut thin = Thin::full(4, 2);
    let eviction = thin.begin(2, Request::Evict { bytes: u64::MAX });
    assert_eq!(thin.answers.get(&eviction), None);
    assert_eq!(thin.state(0), ObjectState::Absent, "it has begun");
    assert_eq!(thin.state(OBJECTS - 1), ObjectState::Sealed, "and has not ended");
    let mut served = 0;
    let slices = thin.finish(|thin| {
        thin.state(0);
        served += 1;
    });
    assert!(slices >= OBJECTS / 4 - 1 && served == slices, "{slices} slices");
    let all = Reply::Evicted { bytes: OBJECTS * OBJECT_BYTES, objects: OBJECTS };
    assert_eq!(thin.answers.remove(&eviction), Some(all));
}

#[test]
fn what_somebody_gets_during_an_eviction_stays() {
    let mut thin = Thin::full(4, 2);
    let eviction = thin.begin(2, Request::Evict { bytes: u64::MAX });
    let last = OBJECTS - 1;
    assert!(matches!(thin.ask(1, get(last, AT_ONCE)), Some(Reply::Objects(_))));
    thin.finish(|_| {});
    let others = Reply::Evicted { bytes: last * OBJECT_BYTES, objects: last };
    assert_eq!(thin.answers.remove(&eviction), Some(others));
    assert_eq!(thin.state(last), ObjectState::Sealed);
}

#[test]
fn who_leaves_during_his_eviction_leaves_nothing_behind() {
    let mut thin = Thin::full(4, 2);
    let eviction = thin.begin(2, Request::Evict { bytes: u64::MAX });
    thin.act(|store, effects| store.disconnect(ClientId(2), Timestamp::ZERO, effects));
    thin.finish(|_| {});
    assert_eq!(thin.answers.get(&eviction), None, "nobody is there to be told");
    assert_eq!(thin.state(OBJECTS - 1), ObjectState::Sealed, "it has ended");
    let stats = thin.store.stats();
    assert_eq!((stats.waiting_requests, stats.clients), (0, 1));
}

#[test]
fn a_client_with_many_holds_leaves_in_slices() {
    let mut thin = Thin::full(4, 2);
    let ids = (0..OBJECTS).map(id).collect();
    let hold = Request::Get { ids, timeout: AT_ONCE, fail_if_abandoned: false };
    assert!(matches!(thin.ask(2, hold), Some(Reply::Objects(_))));
    // Somebody waits for the room, and gets it when enough has been let go.
    let waiting = thin.begin(1, create(1000, OBJECT_BYTES, None));
    thin.act(|store, effects| store.disconnect(ClientId(2), Timestamp::ZERO, effects));
    assert_eq!(thin.store.stats().clients, 2, "it has not gone yet");
    let slices = thin.finish(|thin| {
        thin.state(0);
    });
    assert!(slices >= OBJECTS / 4 - 1, "{slices} slices");
    let stats = thin.store.stats();
    assert_eq!((stats.clients, stats.pinned), (1, OBJECT_BYTES), "only the new one is in use");
    assert!(matches!(thin.answers.get(&waiting), Some(Reply::Created(_))));
}

#[test]
fn room_for_a_large_object_is_made_in_slices() {
    for timeout in [AT_ONCE, None] {
        let mut thin = Thin::full(4, 2);
        let size = OBJECTS / 2 * OBJECT_BYTES;
        let large = thin.begin(2, create(1000, size, timeout));
        assert_eq!(thin.answers.get(&large), None, "it takes longer than one turn");
        let slices = thin.finish(|thin| {
            thin.state(0);
        });
        assert!(slices >= OBJECTS / 2 / 4, "{slices} slices");
        assert!(matches!(thin.answers.get(&large), Some(Reply::Created(_))));
        let stats = thin.store.stats();
        assert_eq!(stats.objects, OBJECTS / 2 + 1, "no more has gone than had to");
        assert_eq!(thin.state(OBJECTS - 1), ObjectState::Sealed, "the most recent ones stay");
    }
}

#[test]
fn who_takes_what_was_to_be_evicted_does_not_stop_it() {
    let mut thin = Thin::full(4, 2);
    let large = thin.begin(2, create(1000, OBJECTS / 2 * OBJECT_BYTES, None));
    // In the middle of what is least recently used, and so of the place that it would get.
    let mut taken = false;
    thin.finish(|thin| {
        if !std::mem::replace(&mut taken, true) {
            assert!(matches!(thin.ask(1, get(50, AT_ONCE)), Some(Reply::Objects(_))));
        }
    });
    assert!(matches!(thin.answers.get(&large), Some(Reply::Created(_))), "elsewhere");
    assert_eq!(thin.state(50), ObjectState::Sealed);
}

#[test]
fn a_search_in_vain_is_not_done_again_and_again() {
    let mut thin = Thin::full(64, 2);
    // Every other object is in use: no place for two.
    let ids: Vec<_> = (0..OBJECTS).step_by(2).map(id).collect();
    let hold = Request::Get { ids: ids.clone(), timeout: AT_ONCE, fail_if_abandoned: false };
    assert!(matches!(thin.ask(1, hold), Some(Reply::Objects(_))));
    let large = thin.begin(2, create(1000, 2 * OBJECT_BYTES, None));
    thin.finish(|_| {});
    assert_eq!(thin.answers.get(&large), None, "it waits");
    // What cannot make a place costs next to nothing: no work is left after it.
    for number in [1, 101, 7] {
        assert!(matches!(thin.ask(1, get(number, AT_ONCE)), Some(Reply::Objects(_))));
        let released = Request::Release { holds: vec![(id(number), 1)] };
        assert_eq!(thin.ask(1, released), Some(Reply::Done));
        assert!(!thin.store.has_work(), "nothing new can be found for object {number}");
    }
    assert_eq!(thin.ask(1, Request::Release { holds: vec![(ids[5], 1)] }), Some(Reply::Done));
    thin.finish(|_| {});
    assert!(matches!(thin.answers.get(&large), Some(Reply::Created(_))));
    assert_eq!(thin.state(0), ObjectState::Sealed, "others are in use still");
}

#[test]
fn many_who_wait_are_told_in_slices_and_nobody_is_forgotten() {
    let mut thin = Thin::new(4, 101);
    assert!(matches!(thin.ask(101, create(1, 10, AT_ONCE)), Some(Reply::Created(_))));
    let waiting: Vec<_> = (1..=100).map(|client| thin.begin(client, get(1, None))).collect();
    assert_eq!(thin.ask(101, Request::Seal { id: id(1), release: true }), Some(Reply::Done));
    assert!(thin.answers.len() < 100, "the others are told later");
    // It is deleted meanwhile: whoever waited has got it all the same.
    let deleted = thin.ask(101, Request::Delete { ids: vec![id(1)] });
    assert_eq!(deleted, Some(Reply::Deleted(vec![DeleteOutcome::DeferredInUse])));
    thin.finish(|_| {});
    for asked in waiting {
        let Some(Reply::Objects(found)) = thin.answers.remove(&asked) else {
            panic!("{asked:?} is answered")
        };
        assert!(found[0].is_some());
    }
}

#[test]
fn whatever_comes_in_between_everybody_is_answered_once_and_all_is_given_back() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let clients = 5;
        let mut thin = Thin::full(random.usize(1..8), clients);
        let mut here: BTreeSet<u64> = (1..=clients).collect();
        let mut open = BTreeSet::new();
        for _ in 0..200 {
            thin.now = thin.now.after(Duration::from_nanos(random.u64(0..3)));
            let now = thin.now;
            let client = random.u64(1..=clients);
            match random.u8(0..10) {
                0..=3 => thin.slice(),
                4 => thin.act(|store, effects| store.expire(now, effects)),
                5 if here.len() > 2 && here.remove(&client) => {
                    open.retain(|(owner, _): &(ClientId, _)| owner.0 != client);
                    thin.act(|store, effects| store.disconnect(ClientId(client), now, effects));
                }
                _ if here.contains(&client) => {
                    open.insert(thin.begin(client, any_request(&mut random)));
                }
                _ => {}
            }
        }
        thin.finish(|_| {});
        for client in here {
            let now = thin.now;
            // What still waits is cancelled, and that is an answer as well.
            for (_, request) in open.iter().filter(|(owner, _)| owner.0 == client) {
                let cancel = Request::Cancel { request: *request };
                assert_eq!(thin.ask(client, cancel), Some(Reply::Done));
            }
            thin.finish(|_| {});
            thin.act(|store, effects| store.disconnect(ClientId(client), now, effects));
        }
        thin.finish(|_| {});
        for asked in &open {
            assert!(thin.answers.contains_key(asked), "seed {seed}: {asked:?} was never answered");
        }
        let stats = thin.store.stats();
        let left = (stats.clients, stats.pinned, stats.waiting_requests, stats.unsealed_objects);
        assert_eq!(left, (0, 0, 0, 0), "seed {seed}");
    }
}

fn any_request(random: &mut fastrand::Rng) -> Request {
    let number = random.u64(0..OBJECTS + 20);
    let timeout = [AT_ONCE, Some(Duration::from_nanos(5)), None][random.usize(0..3)];
    match random.u8(0..9) {
        0 => Request::Evict { bytes: random.u64(0..OBJECTS * OBJECT_BYTES) },
        1 | 2 => create(number, random.u64(0..OBJECTS * OBJECT_BYTES), timeout),
        3 => {
            let objects = (0..random.u64(1..20)).map(|more| object(number + more, 30)).collect();
            Request::Put { objects, room: Room { evict: true, timeout } }
        }
        4 => Request::Seal { id: id(number), release: random.bool() },
        5 => Request::SetOptions {
            client_name: None,
            quota: Some(random.u64(0..OBJECTS / 4) * OBJECT_BYTES),
        },
        6 => Request::Delete { ids: (number..number + 10).map(id).collect() },
        _ => {
            let ids = (number..number + random.u64(1..30)).map(id).collect();
            Request::Get { ids, timeout, fail_if_abandoned: random.bool() }
        }
    }
}

#[test]
fn a_refusal_for_lack_of_room_comes_after_all_the_slices() {
    let mut thin = Thin::full(4, 2);
    // Too much is in use, in the middle, for an object of more than half of the memory.
    assert!(matches!(thin.ask(1, get(OBJECTS / 2, AT_ONCE)), Some(Reply::Objects(_))));
    let large = thin.begin(2, create(1000, (OBJECTS / 2 + 2) * OBJECT_BYTES, AT_ONCE));
    thin.finish(|_| {});
    let refused = matches!(
        thin.answers.get(&large),
        Some(Reply::Refused(Refusal::StoreFull(full))) if full.pinned == OBJECT_BYTES
    );
    assert!(refused, "{:?}", thin.answers.get(&large));
    assert_eq!(thin.store.stats().objects, OBJECTS, "and nothing has gone for it");
}
