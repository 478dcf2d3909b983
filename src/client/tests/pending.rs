//! Requests for event loops: what is sent, what is held, and what is given back.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fake_store::{FakeStore, Peer};
use super::{at, beside, connected, connected_with_patience, id, outcome};
use crate::client::{Client, Error, GetOptions, PendingGet, PendingWait, Refusal};
use crate::ids::ObjectId;
use crate::protocol::message::{Reply, Request, RequestId};

fn start(client: &Client, ids: &[ObjectId]) -> PendingGet {
    client.start_get(ids, GetOptions::default()).unwrap()
}

fn expect_get(store: &mut Peer, expected: &[ObjectId]) -> RequestId {
    let (get, request) = store.next();
    let Request::Get { ids, .. } = request else { panic!("a get was expected: {request:?}") };
    assert_eq!(ids, expected);
    get
}

fn is_readable(descriptor: &impl AsFd) -> bool {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn they_can_go_to_other_threads() {
    const fn is_send<T: Send>() {}
    is_send::<PendingGet>();
    is_send::<PendingWait>();
}

#[test]
fn the_descriptor_tells_of_replies() {
    let (client, mut store) = connected();
    let descriptor = client.descriptor().unwrap();
    let flags = FdFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFD).unwrap());
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
    let mut first = start(&client, &[id(1)]);
    let mut second = start(&client, &[id(2), id(1), id(2)]);
    let requests = [expect_get(&mut store, &[id(1)]), expect_get(&mut store, &[id(2), id(1)])];
    assert!(!is_readable(&descriptor));
    client.receive_ready().unwrap();

    let objects = vec![None, Some(at(64, 1, 0))];
    store.reply_with_memory(requests[1], Reply::Objects(objects), false);
    assert!(is_readable(&descriptor));
    assert!(second.try_take().unwrap().is_none(), "it has not been received");
    assert!(second.requests().eq([requests[1]]));
    assert_eq!(client.receive_ready().unwrap(), [requests[1]]);
    assert_eq!(client.receive_ready().unwrap(), [], "told once");
    assert!(!is_readable(&descriptor));
    assert!(first.try_take().unwrap().is_none());
    let found = second.try_take().unwrap().unwrap();
    let names: Vec<_> = found.iter().map(|found| Some(found.as_ref()?.id())).collect();
    assert_eq!(names, [None, Some(id(1)), None]);
    assert!(matches!(second.try_take(), Err(Error::InvalidArgument(_))));

    // Held now, so it is not asked for.
    let mut third = start(&client, &[id(1)]);
    assert!(third.try_take().unwrap().unwrap()[0].is_some());
    drop((found, third));
    store.expect_release(id(1));
    drop(first);
    let (_, request) = store.next();
    assert_eq!(request, Request::Cancel { request: requests[0] });
    drop(client);
    assert_eq!(store.next_or_end(), None, "the duplicate keeps nothing open");
}

#[test]
fn what_comes_after_the_drop_is_given_back() {
    for was_received in [false, true] {
        let (client, mut store) = connected();
        let pending = start(&client, &[id(1), id(2)]);
        let get = expect_get(&mut store, &[id(1), id(2)]);
        let granted = Reply::Objects(vec![Some(at(0, 1, 0)), None]);
        if was_received {
            store.reply_with_memory(get, granted, false);
            client.receive_ready().unwrap();
            drop(pending);
        } else {
            drop(pending);
            let (cancel, request) = store.next();
            assert_eq!(request, Request::Cancel { request: get });
            store.reply_with_memory(get, granted, false);
            store.reply(cancel, Reply::Done);
            client.receive_ready().unwrap();
        }
        store.expect_release(id(1));
        drop(client);
        assert_eq!(store.next_or_end(), None);
    }
}

#[test]
fn long_lists_are_several_requests_at_once() {
    let mut store = FakeStore::new();
    store.connected.request_ids_max = 2;
    let (client, mut store) = store.connect();
    let names = [1, 2, 3].map(id);
    let mut pending = start(&client, &names);
    let requests = [expect_get(&mut store, &names[..2]), expect_get(&mut store, &names[2..])];
    store.reply_with_memory(requests[1], Reply::Objects(vec![Some(at(0, 1, 0))]), false);
    client.receive_ready().unwrap();
    assert!(pending.try_take().unwrap().is_none());
    store.reply(requests[0], Reply::Objects(vec![Some(at(64, 1, 0)), None]));
    client.receive_ready().unwrap();
    let found = pending.try_take().unwrap().unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);

    let mut refused = start(&client, &[id(4), id(5), id(6)]);
    let requests = [store.next().0, store.next().0];
    store.reply(requests[0], Reply::Objects(vec![Some(at(0, 1, 0)), None]));
    store.reply(requests[1], Reply::Refused(Refusal::TooManyWaiting(7)));
    client.receive_ready().unwrap();
    let error = refused.try_take().unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::TooManyWaiting(7)));
    store.expect_release(id(4));
}

#[test]
fn a_wait_is_answered_or_refused_before_it_is_sent() {
    let (client, mut store) = connected();
    let error = client.start_wait(&[id(1)], 2, None).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    let mut pending = client.start_wait(&[id(1), id(2)], 1, Some(Duration::from_secs(9))).unwrap();
    let (wait, request) = store.next();
    assert_eq!(pending.request(), wait);
    assert!(matches!(request, Request::Wait { count: 1, timeout: Some(_), .. }), "{request:?}");
    assert_eq!(pending.try_take().unwrap(), None);
    store.reply(wait, Reply::Ready(vec![false, true]));
    client.receive_ready().unwrap();
    assert_eq!(pending.try_take().unwrap(), Some(vec![false, true]));
    assert!(matches!(pending.try_take(), Err(Error::InvalidArgument(_))));
    let mut pending = client.start_wait(&[id(1)], 1, None).unwrap();
    let (wait, _) = store.next();
    store.reply(wait, Reply::Ready(vec![]));
    client.receive_ready().unwrap();
    assert!(matches!(pending.try_take(), Err(Error::Protocol { .. })));
}

#[test]
fn the_death_of_the_store_is_told() {
    let (client, store) = connected();
    let descriptor = client.descriptor().unwrap();
    let (mut get, mut wait) =
        (start(&client, &[id(1)]), client.start_wait(&[id(1)], 1, None).unwrap());
    drop(store);
    assert!(is_readable(&descriptor));
    for _ in 0..2 {
        assert!(matches!(client.receive_ready(), Err(Error::Disconnected { .. })));
    }
    assert!(matches!(get.try_take(), Err(Error::Disconnected { .. })));
    assert!(matches!(wait.try_take(), Err(Error::Disconnected { .. })));
    let error = client.start_get(&[id(1)], GetOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
}

#[test]
fn disconnect_ends_what_is_pending() {
    let (client, mut store) = connected();
    let mut pending = start(&client, &[id(1)]);
    let get = expect_get(&mut store, &[id(1)]);
    let closer = beside({
        let client = client.clone();
        move || client.disconnect()
    });
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 1, 0))]), false);
    store.reply(cancel, Reply::Done);
    outcome(closer);
    assert!(matches!(pending.try_take(), Err(Error::Closed)));
    store.expect_release(id(1));
    assert!(matches!(client.receive_ready(), Err(Error::Closed)));
    assert!(matches!(client.descriptor(), Err(Error::Closed)));
    assert!(matches!(client.start_wait(&[id(1)], 1, None), Err(Error::Closed)));
    drop(pending);
    assert_eq!(store.next_or_end(), None);
}

/// Another thread's call may read what is for a loop.
#[test]
fn other_calls_of_the_client_go_on_beside_it() {
    let (client, mut store) = connected();
    let mut pending = start(&client, &[id(1)]);
    let get = expect_get(&mut store, &[id(1)]);
    let asker = beside({
        let client = client.clone();
        move || client.set_name("asks something")
    });
    let (ask, _) = store.next();
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 1, 0))]), false);
    store.reply(ask, Reply::Done);
    outcome(asker).unwrap();
    assert!(pending.try_take().unwrap().unwrap()[0].is_some());
}

#[test]
fn a_silent_store_is_told_of_when_the_time_is_over() {
    let (client, mut store) = connected_with_patience(Duration::ZERO);
    let options = GetOptions { timeout: Some(Duration::ZERO), ..GetOptions::default() };
    let mut pending = client.start_get(&[id(1)], options).unwrap();
    let get = expect_get(&mut store, &[id(1)]);
    assert!(matches!(pending.try_take(), Err(Error::Unresponsive { .. })));
    let (_, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });
}
