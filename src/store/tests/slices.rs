//! What the store does in slices, with other requests in between.

use std::collections::BTreeSet;
use std::time::Duration;

use super::thin::{AT_ONCE, OBJECT_BYTES, OBJECTS, Thin, create, get, id, object};
use crate::ids::{ClientId, ObjectId};
use crate::protocol::message::{DeleteOutcome, ObjectState, Reply, Request, RequestId, Room};
use crate::protocol::refusal::Refusal;
use crate::store::Effects;
use crate::time::Timestamp;

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
    match random.u8(0..11) {
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
        7 => Request::Refresh { ids: (number..number + 10).map(id).collect() },
        8 => {
            let ids = (number..number + random.u64(1..4)).map(|number| (id(number), 1));
            Request::Release { holds: ids.collect() }
        }
        _ => {
            let ids = (number..number + random.u64(1..30)).map(id).collect();
            Request::Get { ids, timeout, fail_if_abandoned: random.bool() }
        }
    }
}

#[test]
fn objects_that_nobody_waited_for_are_given_up_without_a_slice_for_each() {
    let mut thin = Thin::new(40, 60);
    for number in 0..30 {
        assert!(matches!(thin.ask(2, create(number, 1, AT_ONCE)), Some(Reply::Created(_))));
    }
    for client in 3..=50 {
        let ids = vec![id(0)];
        thin.begin(client, Request::Get { ids, timeout: None, fail_if_abandoned: true });
    }
    thin.act(|store, effects| store.disconnect(ClientId(2), Timestamp::ZERO, effects));
    let slices = thin.finish(|_| {});
    assert!(slices <= 3, "{slices} slices for the waiters of one object");
    assert_eq!(thin.answers.len(), 48, "who waited has been told");
}

fn numbers() -> Vec<ObjectId> {
    (0..OBJECTS).map(id).collect()
}

#[test]
fn what_names_many_objects_comes_to_one_after_the_other() {
    let mut thin = Thin::full(4, 2);
    let asked = thin.begin(2, Request::GetState { ids: numbers() });
    assert_eq!(thin.answers.get(&asked), None, "it has begun");
    // The first ones have been looked at, the last ones have not.
    let ids = vec![id(0), id(OBJECTS - 1)];
    let deleted = vec![DeleteOutcome::Deleted; 2];
    assert_eq!(thin.ask(1, Request::Delete { ids }), Some(Reply::Deleted(deleted)));
    thin.finish(|_| {});
    let mut states = vec![ObjectState::Sealed; numbers().len() - 1];
    states.push(ObjectState::Absent);
    assert_eq!(thin.answers.remove(&asked), Some(Reply::States(states)));
}

#[test]
fn others_may_use_what_is_to_be_deleted_before_its_turn_comes() {
    let mut thin = Thin::full(4, 2);
    let asked = thin.begin(2, Request::Delete { ids: numbers() });
    let last = OBJECTS - 1;
    assert!(matches!(thin.ask(1, get(last, AT_ONCE)), Some(Reply::Objects(_))));
    thin.finish(|_| {});
    let mut outcomes = vec![DeleteOutcome::Deleted; numbers().len() - 1];
    outcomes.push(DeleteOutcome::DeferredInUse);
    assert_eq!(thin.answers.remove(&asked), Some(Reply::Deleted(outcomes)));
    assert_eq!(thin.store.stats().objects, 1);
}

#[test]
fn what_is_deleted_before_its_turn_comes_is_not_refreshed() {
    let mut thin = Thin::full(4, 2);
    let asked = thin.begin(2, Request::Refresh { ids: numbers() });
    thin.ask(1, Request::Delete { ids: vec![id(OBJECTS - 1)] });
    thin.finish(|_| {});
    let objects = u32::try_from(OBJECTS - 1).unwrap();
    assert_eq!(thin.answers.remove(&asked), Some(Reply::Refreshed { objects }));
}

#[test]
fn a_release_of_much_is_all_or_nothing() {
    let mut thin = Thin::full(4, 2);
    let hold = Request::Get { ids: numbers(), timeout: AT_ONCE, fail_if_abandoned: false };
    assert!(matches!(thin.ask(2, hold), Some(Reply::Objects(_))));
    let all = numbers().into_iter().map(|id| (id, 1));
    let too_much = all.clone().chain([(id(0), 1)]).collect();
    let refused = thin.ask(2, Request::Release { holds: too_much });
    assert_eq!(refused, Some(Reply::Refused(Refusal::NotHeld(id(0)))));
    let bytes = OBJECTS * OBJECT_BYTES;
    assert_eq!(thin.store.stats().pinned, bytes, "nothing is released");
    let asked = thin.begin(2, Request::Release { holds: all.collect() });
    thin.slice();
    assert_eq!(thin.store.stats().pinned, bytes, "it is still being checked");
    thin.finish(|_| {});
    assert_eq!(thin.answers.remove(&asked), Some(Reply::Done));
    assert_eq!(thin.store.stats().pinned, 0);
}

#[test]
fn who_leaves_while_he_is_busy_leaves_nothing_behind() {
    let holds = numbers().into_iter().map(|id| (id, 1)).collect();
    let more: Vec<_> = (0..=OBJECTS).map(id).collect();
    for request in [
        Request::GetState { ids: numbers() },
        Request::Delete { ids: numbers() },
        Request::Refresh { ids: numbers() },
        Request::Release { holds },
        Request::Get { ids: numbers(), timeout: AT_ONCE, fail_if_abandoned: false },
        Request::Get {
            ids: (0..=OBJECTS).map(id).collect(),
            timeout: None,
            fail_if_abandoned: true,
        },
        Request::Wait { ids: more, count: 1000, timeout: None },
    ] {
        for slices in [0, 5, 30, 60, 120] {
            let mut thin = Thin::full(4, 2);
            if matches!(request, Request::Release { .. }) {
                let (ids, timeout) = (numbers(), AT_ONCE);
                thin.ask(2, Request::Get { ids, timeout, fail_if_abandoned: false });
            }
            let asked = thin.begin(2, request.clone());
            for _ in 0..slices {
                thin.slice();
            }
            let is_answered = thin.answers.contains_key(&asked);
            thin.act(|store, effects| store.disconnect(ClientId(2), Timestamp::ZERO, effects));
            assert!(!thin.store.is_busy(ClientId(2)));
            thin.finish(|_| {});
            assert_eq!(
                thin.answers.contains_key(&asked),
                is_answered,
                "nobody is there to be told"
            );
            let stats = thin.store.stats();
            let left = (stats.clients, stats.pinned, stats.waiting_requests);
            assert_eq!(left, (1, 0, 0), "{} after {slices} slices", request.traits().name);
        }
    }
}

#[test]
#[should_panic(expected = "one request served at a time")]
fn a_busy_client_has_no_other_request_served() {
    let mut thin = Thin::full(4, 2);
    thin.begin(2, Request::GetState { ids: numbers() });
    let mut effects = Effects::new();
    let goodbye = Request::Disconnect;
    thin.store.apply(ClientId(2), RequestId(1000), goodbye, Timestamp::ZERO, &mut effects);
}
