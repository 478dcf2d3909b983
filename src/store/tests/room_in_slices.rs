//! Room that is made in slices, for one create, while others use, take and bring objects.

use std::time::Duration;

use super::thin::{AT_ONCE, OBJECT_BYTES, OBJECTS, Thin, create, get, id, object};
use crate::ids::ClientId;
use crate::protocol::message::{ObjectState, Reply, Request, Room};
use crate::protocol::refusal::Refusal;
use crate::store::WorkOutcome;
use crate::time::Timestamp;

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

/// An object of each client that may be evicted at once.
fn put(numbers: std::ops::Range<u64>, evict: bool) -> Request {
    let objects = numbers.map(|number| object(number, OBJECT_BYTES)).collect();
    Request::Put { objects, room: Room { evict, timeout: AT_ONCE } }
}

fn refresh(numbers: impl Iterator<Item = u64>) -> Request {
    Request::Refresh { ids: numbers.map(id).collect() }
}

#[test]
fn own_objects_that_go_leave_nobody_standing_on_their_place() {
    let mut thin = Thin::new(4, 2);
    let quota = Request::SetOptions { client_name: None, quota: Some(100 * OBJECT_BYTES) };
    assert_eq!(thin.ask(2, quota), Some(Reply::Done));
    assert_eq!(thin.ask(2, put(0..100, false)), Some(Reply::Done));
    let large = thin.begin(2, create(5000, 50 * OBJECT_BYTES, AT_ONCE));
    let mut next = 10_000;
    // Their slots are used by others at once.
    thin.finish(|thin| {
        thin.begin(1, put(next..next + 6, false));
        thin.ask(1, Request::Delete { ids: (next..next + 6).map(id).collect() });
        next += 6;
    });
    assert!(matches!(thin.answers.get(&large), Some(Reply::Created(_))));
}

#[test]
fn who_asks_for_room_gets_it_while_others_bring_in_new_objects() {
    for timeout in [AT_ONCE, None] {
        let mut thin = Thin::full(4, 3);
        let large = thin.begin(2, create(5000, OBJECTS / 2 * OBJECT_BYTES, timeout));
        let mut small = Vec::new();
        let mut slices = 0;
        thin.finish(|thin| {
            slices += 1;
            if slices < 1000 {
                let number = 10_000 + slices;
                small.push(thin.begin(3, put(number..number + 1, true)));
            }
            // Where they lie is as it comes: they are in use, and cut the memory into pieces.
            thin.ask(1, get(10_000 + slices / 2, AT_ONCE));
        });
        let answer = thin.answers.get(&large);
        assert!(matches!(answer, Some(Reply::Created(_))), "{answer:?}");
        for asked in small {
            assert!(thin.answers.contains_key(&asked), "those who had to wait are answered");
        }
    }
}

#[test]
fn who_asks_for_room_gets_it_while_others_go_and_evict_without_end() {
    let mut thin = Thin::full(4, 300);
    let large = thin.begin(2, create(5000, OBJECTS / 2 * OBJECT_BYTES, AT_ONCE));
    for client in 3..300 {
        // Each of them takes more than a slice to be gone, so there is always one that goes.
        let ids = (190..199).map(id).collect();
        thin.begin(client, Request::Get { ids, timeout: AT_ONCE, fail_if_abandoned: false });
        let now = thin.now;
        thin.act(|store, effects| store.disconnect(ClientId(client), now, effects));
        thin.slice();
    }
    assert!(thin.store.has_work(), "they are not all gone");
    let answer = thin.answers.get(&large);
    assert!(matches!(answer, Some(Reply::Created(_))), "{answer:?}");
}

#[test]
fn a_search_ends_although_what_it_looks_for_is_used_again_and_again() {
    let mut thin = Thin::full(4, 3);
    // Every tenth is in use: there is no place for twenty side by side.
    for number in (0..OBJECTS).step_by(10) {
        thin.ask(1, get(number, AT_ONCE));
    }
    let large = thin.begin(2, create(5000, 20 * OBJECT_BYTES, AT_ONCE));
    let mut slices = 0;
    while thin.store.has_work() {
        slices += 1;
        assert!(slices < 20 * OBJECTS, "it comes to an end");
        thin.slice();
        thin.ask(3, refresh((slices * 16..slices * 16 + 16).map(|number| number % OBJECTS)));
    }
    let refused = matches!(thin.answers.get(&large), Some(Reply::Refused(Refusal::StoreFull(_))));
    assert!(refused, "{:?}", thin.answers.get(&large));
}

#[test]
fn a_search_succeeds_although_what_it_finds_is_used_again_and_again() {
    let mut thin = Thin::full(4, 3);
    let large = thin.begin(2, create(5000, OBJECTS / 2 * OBJECT_BYTES, AT_ONCE));
    let mut slices = 0;
    thin.finish(|thin| {
        slices += 1;
        thin.ask(3, refresh((slices * 16..slices * 16 + 16).map(|number| number % OBJECTS)));
        let number = slices * 7 % OBJECTS;
        if let Some(Reply::Objects(found)) = thin.ask(1, get(number, AT_ONCE))
            && found[0].is_some()
        {
            thin.ask(1, Request::Release { holds: vec![(id(number), 1)] });
        }
    });
    let answer = thin.answers.get(&large);
    assert!(matches!(answer, Some(Reply::Created(_))), "{answer:?}");
}

#[test]
fn a_batch_for_which_there_is_no_place_is_remembered_as_well() {
    let mut thin = Thin::full(64, 3);
    for number in (0..OBJECTS).step_by(10) {
        thin.ask(1, get(number, AT_ONCE));
    }
    let objects = [5000, 5001].map(|number| object(number, 20 * OBJECT_BYTES)).into();
    let room = Room { evict: true, timeout: None };
    let batch = thin.begin(2, Request::Put { objects, room });
    thin.finish(|_| {});
    assert_eq!(thin.answers.get(&batch), None, "it waits");
    for number in [1, 101, 7] {
        thin.ask(3, get(number, AT_ONCE));
        thin.ask(3, Request::Release { holds: vec![(id(number), 1)] });
        assert!(!thin.store.has_work(), "nothing new can be found for object {number}");
    }
    // Now there is a place for one of the two, and still small ones make none for both.
    for number in [10, 20] {
        thin.ask(1, Request::Release { holds: vec![(id(number), 1)] });
        thin.finish(|_| {});
    }
    for number in [101, 57] {
        thin.ask(3, get(number, AT_ONCE));
        thin.ask(3, Request::Release { holds: vec![(id(number), 1)] });
        assert!(!thin.store.has_work(), "nothing new can be found for object {number}");
    }
    for number in [30, 40] {
        thin.ask(1, Request::Release { holds: vec![(id(number), 1)] });
        thin.finish(|_| {});
    }
    assert_eq!(thin.answers.get(&batch), Some(&Reply::Done), "one behind the other");
}

#[test]
fn a_batch_takes_one_run_of_memory_like_one_object() {
    let mut thin = Thin::full(4, 2);
    for number in (0..OBJECTS).step_by(10) {
        thin.ask(1, get(number, AT_ONCE));
    }
    for (objects, fits) in [(10, false), (9, true)] {
        let batch = thin.begin(2, put(5000..5000 + objects, true));
        thin.finish(|thin| {
            thin.state(0);
        });
        assert_eq!(thin.answers.get(&batch) == Some(&Reply::Done), fits, "{objects} objects");
    }
}

#[test]
fn a_new_object_in_the_slot_of_an_old_one_is_not_evicted_in_its_place() {
    let mut thin = Thin::full(4, 2);
    let large = thin.begin(2, create(5000, OBJECTS / 2 * OBJECT_BYTES, AT_ONCE));
    // The first object has been seen. Now another one has its slot, and its memory.
    thin.ask(1, Request::Delete { ids: vec![id(0)] });
    assert_eq!(thin.ask(1, put(6000..6001, true)), Some(Reply::Done));
    thin.finish(|_| {});
    assert!(matches!(thin.answers.get(&large), Some(Reply::Created(_))), "elsewhere");
    assert_eq!(thin.state(6000), ObjectState::Sealed, "it is the most recently used one");
    assert_eq!(thin.store.stats().objects, OBJECTS / 2 + 1, "and no more has gone than had to");
}

#[test]
fn beside_a_search_a_create_evicts_all_it_needs_in_its_slice_or_nothing() {
    let mut thin = Thin::full(12, 3);
    let large = thin.begin(2, create(5000, OBJECTS / 2 * OBJECT_BYTES, AT_ONCE));
    let small = thin.begin(3, create(5001, 3 * OBJECT_BYTES, AT_ONCE));
    assert!(matches!(thin.answers.get(&small), Some(Reply::Created(_))), "that fits into a slice");
    let medium = thin.begin(3, create(5002, 4 * OBJECT_BYTES, AT_ONCE));
    assert_eq!(thin.answers.get(&medium), None, "that does not");
    assert_eq!(thin.store.stats().objects, OBJECTS - 3 + 1, "so nothing has gone for it yet");
    thin.finish(|_| {});
    for asked in [large, medium] {
        assert!(matches!(thin.answers.get(&asked), Some(Reply::Created(_))), "everybody has room");
    }
}

#[test]
fn nobody_waits_for_memory_in_quarantine() {
    let mut thin = Thin::full(64, 3);
    for number in 3..OBJECTS {
        thin.ask(1, get(number, AT_ONCE));
    }
    thin.ask(1, Request::Delete { ids: vec![id(0), id(1)] });
    let first = thin.store.space.take(Some(0), OBJECT_BYTES, 0).unwrap();
    let ticket = thin.store.space.quarantine(first, OBJECT_BYTES, 0);
    let three = thin.begin(2, create(5000, 3 * OBJECT_BYTES, AT_ONCE));
    thin.finish(|_| {});
    let three = thin.answers.get(&three);
    assert!(matches!(three, Some(Reply::Refused(_))), "it may come back never: {three:?}");
    let patient = thin.begin(2, create(5001, 3 * OBJECT_BYTES, Some(Duration::from_secs(1))));
    let two = thin.begin(3, create(5002, 2 * OBJECT_BYTES, AT_ONCE));
    thin.finish(|_| {});
    assert_eq!(thin.answers.get(&patient), None, "it may come back in time");
    assert!(matches!(thin.answers.get(&two), Some(Reply::Created(_))), "there is room for this");
    assert_eq!(thin.ask(3, Request::Abort { id: id(5002) }), Some(Reply::Done));
    assert_eq!(thin.answers.get(&patient), None);
    thin.act(|store, effects| store.done(ticket, WorkOutcome::Done, Timestamp::ZERO, effects));
    assert!(matches!(thin.answers.get(&patient), Some(Reply::Created(_))));
}

#[test]
fn a_name_that_is_taken_while_another_create_is_first_is_refused() {
    let mut thin = Thin::full(4, 3);
    for number in (0..OBJECTS).step_by(10) {
        thin.ask(1, get(number, AT_ONCE));
    }
    // It waits in vain, and its name is known to be free.
    let patient = thin.begin(2, create(5000, 20 * OBJECT_BYTES, None));
    thin.finish(|_| {});
    let hurried = thin.begin(3, create(5001, 20 * OBJECT_BYTES, AT_ONCE));
    assert_eq!(thin.answers.get(&hurried), None, "it is first now");
    assert_eq!(thin.ask(1, put(5000..5001, true)), Some(Reply::Done));
    thin.ask(1, get(5000, AT_ONCE));
    let ids = (0..OBJECTS).step_by(10).map(|number| (id(number), 1)).collect();
    thin.ask(1, Request::Release { holds: ids });
    thin.finish(|_| {});
    assert!(thin.answers.contains_key(&hurried));
    let taken = Reply::Refused(Refusal::ObjectExists(id(5000)));
    assert_eq!(thin.answers.get(&patient), Some(&taken));
}
