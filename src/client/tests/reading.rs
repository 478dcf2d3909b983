//! Gets: what is asked, what is held, and what is given back.

use std::time::Duration;

use super::fake_store::{FakeStore, MEMORY_BYTES, Peer};
use super::{at, beside, connected, id, outcome};
use crate::client::{Client, DeleteOutcome, Error, GetOptions, ObjectBuffer, ObjectState, Refusal};
use crate::ids::{ObjectId, SegmentId};
use crate::protocol::message::{Reply, Request, RequestId};

#[test]
fn a_buffer_has_the_bytes_in_place() {
    let (client, mut store) = connected();
    store.write(192, b"datameta");
    let getter = beside(move || client.get(&[id(1)], None));
    let get = expect_get(&mut store, &[id(1)]);
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(192, 4, 4))]), false);
    let buffer = outcome(getter).unwrap().remove(0).unwrap();
    assert_eq!(
        (buffer.data(), buffer.metadata(), buffer.id()),
        (&b"data"[..], &b"meta"[..], id(1))
    );
    assert_eq!(buffer.data().as_ptr() as usize % 64, 0);
    assert_eq!(&buffer.slice(1..=2)[..], b"at");
    let slices = [buffer.slice(..), buffer.slice(4..)];
    drop(buffer);
    assert_eq!((&slices[0][..], &slices[1][..]), (&b"data"[..], &b""[..]));
    store.write(192, b"seen");
    assert_eq!(&slices[0][..], b"seen", "this is a copy");
}

#[test]
#[should_panic(expected = "slice 3..5 of 4 bytes")]
fn a_slice_cannot_reach_beyond_its_object() {
    let (client, mut store) = connected();
    let _ = hold(&client, &mut store, id(1)).slice(3..5);
}

#[test]
fn what_is_held_is_not_asked_for_again() {
    let (client, mut store) = connected();
    let first = hold(&client, &mut store, id(1));
    let second = client.get_one(id(1), None).unwrap().unwrap();
    assert!(client.contains(id(1)).unwrap());
    assert_eq!(client.state(id(1)).unwrap(), ObjectState::Sealed);
    assert_eq!(first.data().as_ptr(), second.data().as_ptr());

    let getter = beside({
        let client = client.clone();
        move || client.get(&[id(2), id(1), id(2), id(3)], None)
    });
    let get = expect_get(&mut store, &[id(2), id(3)]);
    store.reply(get, Reply::Objects(vec![Some(at(64, 1, 0)), None]));
    let found = outcome(getter).unwrap();
    let names: Vec<_> = found.iter().map(|found| Some(found.as_ref()?.id())).collect();
    assert_eq!(names, [Some(id(2)), Some(id(1)), Some(id(2)), None]);

    drop((first, second));
    drop(found);
    for last in [id(1), id(2)] {
        store.expect_release(last);
    }
    drop(client);
    assert_eq!(store.next_or_end(), None, "one hold each was all there was");
}

#[test]
fn many_buffers_can_go_in_one_message() {
    let (first_client, mut first_store) = connected();
    let (second_client, mut second_store) = connected();
    let buffers = [
        hold(&first_client, &mut first_store, id(1)),
        hold(&second_client, &mut second_store, id(2)),
        hold(&first_client, &mut first_store, id(3)),
        hold(&first_client, &mut first_store, id(4)),
    ];
    let clone = buffers[3].clone();
    ObjectBuffer::release_all(buffers);
    let (_, request) = first_store.next();
    assert_eq!(request, Request::Release { holds: vec![(id(1), 1), (id(3), 1)] });
    second_store.expect_release(id(2));
    assert!(first_client.contains(id(4)).unwrap(), "there is a clone");
    drop(clone);
    first_store.expect_release(id(4));
    drop(hold(&first_client, &mut first_store, id(1)));
    first_store.expect_release(id(1));
}

#[test]
fn after_the_last_drop_the_store_is_asked_again() {
    let (client, mut store) = connected();
    drop(hold(&client, &mut store, id(1)));
    store.expect_release(id(1));
    drop(hold(&client, &mut store, id(1)));
    store.expect_release(id(1));
}

#[test]
fn a_hold_that_came_twice_is_given_back_once_and_for_all() {
    let (client, mut store) = connected();
    let getters = [(); 2].map(|()| {
        let client = client.clone();
        beside(move || client.get_one(id(1), None))
    });
    let first = expect_get(&mut store, &[id(1)]);
    let second = expect_get(&mut store, &[id(1)]);
    let granted = || Reply::Objects(vec![Some(at(0, 4, 0))]);
    store.reply_with_memory(first, granted(), false);
    store.reply(second, granted());
    store.expect_release(id(1));
    let buffers = getters.map(|getter| outcome(getter).unwrap().unwrap());
    assert!(client.contains(id(1)).unwrap(), "still held");
    drop(buffers);
    store.expect_release(id(1));
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn long_lists_are_split() {
    let mut store = FakeStore::new();
    store.connected.request_ids_max = 2;
    let (client, mut store) = store.connect();
    let names = [1, 2, 3, 4, 5].map(id);

    let getter = beside({
        let client = client.clone();
        move || client.get(&names, Some(Duration::from_secs(3600)))
    });
    let mut last_timeout = Duration::from_secs(3600);
    for part in names.chunks(2) {
        let (get, request) = store.next();
        let Request::Get { ids, timeout, .. } = request else { panic!("{request:?}") };
        assert_eq!(ids, part);
        let timeout = timeout.expect("there is one deadline for all parts");
        assert!(timeout <= last_timeout, "{timeout:?} is left after {last_timeout:?}");
        last_timeout = timeout;
        let objects = part.iter().map(|id| (*id == names[4]).then_some(at(0, 1, 0)));
        store.reply_with_memory(get, Reply::Objects(objects.collect()), false);
    }
    let found = outcome(getter).unwrap();
    assert_eq!(
        found.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, false, false, false, true]
    );

    let deleter = beside({
        let client = client.clone();
        move || client.delete(&names)
    });
    for (part, became) in names.chunks(2).zip([
        vec![DeleteOutcome::NotFound, DeleteOutcome::Deleted],
        vec![DeleteOutcome::DeferredInUse, DeleteOutcome::DeferredNotSealed],
        vec![DeleteOutcome::Deleted],
    ]) {
        let (delete, request) = store.next();
        assert_eq!(request, Request::Delete { ids: part.to_vec() });
        store.reply(delete, Reply::Deleted(became));
    }
    // What was in use is looked at again, after the time that others' releases may take.
    let (again, request) = store.next();
    assert_eq!(request, Request::GetState { ids: vec![names[2]] });
    store.reply(again, Reply::States(vec![ObjectState::Absent]));
    assert_eq!(
        outcome(deleter).unwrap()[2..],
        [DeleteOutcome::Deleted, DeleteOutcome::DeferredNotSealed, DeleteOutcome::Deleted]
    );

    let error = client.wait(&names, 1, None).unwrap_err();
    assert!(error.to_string().contains("5 ids, the limit is 2 ids"), "{error}");
    let error = client.wait(&names[..1], 2, None).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
}

#[test]
fn what_came_of_a_split_get_is_given_back_if_a_later_part_fails() {
    let mut store = FakeStore::new();
    store.connected.request_ids_max = 1;
    let (client, mut store) = store.connect();
    let getter = beside(move || client.get(&[id(1), id(2)], None));
    let get = expect_get(&mut store, &[id(1)]);
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 1, 0))]), false);
    let get = expect_get(&mut store, &[id(2)]);
    store.reply(get, Reply::Refused(Refusal::TooManyWaiting(7)));
    let error = outcome(getter).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::TooManyWaiting(7)));
    store.expect_release(id(1));
}

#[test]
fn a_get_without_ids_asks_nothing() {
    let (client, mut store) = connected();
    assert!(client.get(&[], None).unwrap().is_empty());
    assert!(client.delete(&[]).unwrap().is_empty());
    assert!(client.states(&[]).unwrap().is_empty());
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn an_interrupt_cancels_and_releases() {
    let (client, mut store) = connected();
    let getter = beside({
        let client = client.clone();
        move || {
            let mut interrupt = || true;
            client.get_with(&[id(1), id(2)], GetOptions::default(), Some(&mut interrupt))
        }
    });
    let get = expect_get(&mut store, &[id(1), id(2)]);
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });
    store.reply_with_memory(get, Reply::Objects(vec![None, Some(at(0, 4, 0))]), false);
    store.reply(cancel, Reply::Done);
    assert!(matches!(outcome(getter), Err(Error::Interrupted)));
    store.expect_release(id(2));
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn an_interrupt_reaches_a_thread_that_does_not_read() {
    let (client, mut store) = connected();
    let leader = beside({
        let client = client.clone();
        move || client.get_one(id(1), None)
    });
    let first = expect_get(&mut store, &[id(1)]);
    let follower = beside(move || {
        let mut interrupt = || true;
        client.wait_with(&[id(2)], 1, None, Some(&mut interrupt))
    });
    let (wait, _) = store.next();
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: wait });
    store.reply(wait, Reply::Ready(vec![true]));
    store.reply(cancel, Reply::Done);
    assert!(matches!(outcome(follower), Err(Error::Interrupted)));
    store.reply(first, Reply::Objects(vec![None]));
    assert!(outcome(leader).unwrap().is_none());
}

/// Whoever asks its interrupt function cannot read meanwhile, so somebody else has to.
#[test]
fn a_slow_interrupt_function_holds_up_nobody() {
    let (client, mut store) = connected();
    let (asks, is_asked) = std::sync::mpsc::channel();
    let (answers, answer) = std::sync::mpsc::channel::<bool>();
    let slow = beside({
        let client = client.clone();
        move || {
            let mut interrupt = || {
                asks.send(()).unwrap();
                answer.recv().unwrap()
            };
            client.get_with(&[id(1)], GetOptions::default(), Some(&mut interrupt))
        }
    });
    let first = expect_get(&mut store, &[id(1)]);
    let other = beside(move || client.get_one(id(2), None));
    let second = expect_get(&mut store, &[id(2)]);
    is_asked.recv().unwrap();
    store.reply(second, Reply::Objects(vec![None]));
    assert!(outcome(other).unwrap().is_none());
    answers.send(true).unwrap();
    let (cancel, _) = store.next();
    store.reply(first, Reply::Objects(vec![None]));
    store.reply(cancel, Reply::Done);
    assert!(matches!(outcome(slow), Err(Error::Interrupted)));
}

#[test]
fn an_interrupt_function_that_panics_does_not_stop_the_others() {
    let (client, mut store) = connected();
    let panicking = beside({
        let client = client.clone();
        move || {
            let mut interrupt = || std::panic::panic_any("from the interrupt function");
            client.get_with(&[id(1)], GetOptions::default(), Some(&mut interrupt))
        }
    });
    let first = expect_get(&mut store, &[id(1)]);
    let other = beside(move || client.get_one(id(2), None));
    let second = expect_get(&mut store, &[id(2)]);
    assert!(panicking.join().is_err());
    store.reply(first, Reply::Objects(vec![None]));
    store.reply(second, Reply::Objects(vec![None]));
    assert!(outcome(other).unwrap().is_none());
}

#[test]
fn places_outside_of_the_memory_are_refused() {
    for place in [at(MEMORY_BYTES, 1, 0), at(0, MEMORY_BYTES, 1), at(u64::MAX - 4, 2, 2)] {
        let (client, mut store) = connected();
        let getter = beside(move || client.get(&[id(1), id(2)], None));
        let get = expect_get(&mut store, &[id(1), id(2)]);
        let objects = vec![Some(at(0, 1, 0)), Some(place)];
        store.reply_with_memory(get, Reply::Objects(objects), false);
        let error = outcome(getter).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
        for granted in [id(2), id(1)] {
            store.expect_release(granted);
        }
    }
}

#[test]
fn memory_that_did_not_come_is_an_error() {
    let (client, mut store) = connected();
    let getter = beside(move || client.get_one(id(1), None));
    let get = expect_get(&mut store, &[id(1)]);
    let mut elsewhere = at(0, 1, 0);
    elsewhere.segment = SegmentId(9);
    store.reply_with_memory(get, Reply::Objects(vec![Some(elsewhere)]), false);
    let error = outcome(getter).unwrap_err();
    assert!(matches!(error, Error::Map(_)), "{error:?}");
    assert!(error.to_string().contains("segment 9"), "{error}");
    store.expect_release(id(1));
}

#[test]
fn replies_of_another_shape_are_errors() {
    let (client, mut store) = connected();
    for reply in [
        Reply::Done,
        Reply::Objects(vec![]),
        Reply::Objects(vec![None, None]),
        Reply::States(vec![]),
    ] {
        let client = client.clone();
        let getter = beside(move || client.get_one(id(1), None));
        let get = expect_get(&mut store, &[id(1)]);
        store.reply(get, reply);
        assert!(matches!(outcome(getter), Err(Error::Protocol { .. })));
    }
    let asker = beside(move || client.contains(id(1)));
    let (asked, _) = store.next();
    store.reply(asked, Reply::States(vec![]));
    assert!(matches!(outcome(asker), Err(Error::Protocol { .. })));
}

fn expect_get(store: &mut Peer, expected: &[ObjectId]) -> RequestId {
    let (get, request) = store.next();
    let Request::Get { ids, .. } = request else { panic!("a get was expected: {request:?}") };
    assert_eq!(ids, expected);
    get
}

fn hold(client: &Client, store: &mut Peer, name: ObjectId) -> ObjectBuffer {
    let getter = beside({
        let client = client.clone();
        move || client.get_one(name, None)
    });
    let get = expect_get(store, &[name]);
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 4, 0))]), false);
    outcome(getter).unwrap().unwrap()
}
