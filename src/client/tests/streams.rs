//! Streams of events.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fake_store::{FakeStore, PATIENCE, Peer};
use super::{beside, id, outcome};
use crate::client::receiving::Receiver;
use crate::client::{Client, Error, Event, Refusal, Subscription};
use crate::protocol::message::{Reply, Request, RequestId};

fn sealed(name: u8) -> Event {
    Event::Sealed { id: id(name), data_size: 1, metadata_size: 2 }
}

#[test]
fn events_come_in_order_and_end_with_a_lag() {
    let (mut events, mut store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
    });
    assert_eq!(events.next_timeout(Duration::ZERO).unwrap(), None);
    let gone = Event::Evicted { id: id(1), data_size: 1, metadata_size: 2 };
    store.reply(RequestId::NONE, Reply::Events(vec![sealed(1), Event::SnapshotEnd]));
    store.reply(RequestId::NONE, Reply::Events(vec![gone, Event::Lagged, sealed(3)]));
    assert_eq!(events.next().unwrap().unwrap(), sealed(1));
    assert_eq!(events.next_timeout(Duration::MAX).unwrap(), Some(Event::SnapshotEnd));
    assert_eq!(events.next().unwrap().unwrap(), gone);
    assert_eq!(events.next().unwrap().unwrap(), Event::Lagged);
    assert!(events.next().is_none());
    assert!(matches!(events.next_timeout(Duration::ZERO), Err(Error::Closed)));
}

#[test]
fn events_may_follow_the_answer_at_once() {
    let (mut events, _store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
        store.reply(RequestId::NONE, Reply::Events(vec![Event::SnapshotEnd]));
    });
    assert_eq!(events.next().unwrap().unwrap(), Event::SnapshotEnd);
}

#[test]
fn the_descriptor_tells_of_events() {
    let (mut events, mut store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
    });
    let is_readable = |events: &Subscription| {
        let mut polled = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!is_readable(&events));
    store.reply(RequestId::NONE, Reply::Events(vec![sealed(1)]));
    assert!(is_readable(&events));
    assert_eq!(events.next_timeout(Duration::ZERO).unwrap(), Some(sealed(1)));
    assert_eq!(events.next_timeout(Duration::ZERO).unwrap(), None);
    assert!(!is_readable(&events));
}

#[test]
fn the_death_of_the_store_is_told_once() {
    let (mut events, store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
        store.reply(RequestId::NONE, Reply::Events(vec![sealed(1)]));
    });
    drop(store);
    assert_eq!(events.next().unwrap().unwrap(), sealed(1));
    assert!(matches!(events.next(), Some(Err(Error::Disconnected { .. }))));
    assert!(events.next().is_none());
}

#[test]
fn a_refused_subscription_is_an_error() {
    let store = FakeStore::new();
    let (error, _) = subscribe(&store, |store, subscribe| {
        store.reply(subscribe, Reply::Refused(Refusal::AlreadySubscribed));
    });
    assert_eq!(error.unwrap_err().refusal(), Some(&Refusal::AlreadySubscribed));

    let (error, _) = subscribe(&store, |store, subscribe| {
        store.reply(subscribe, Reply::States(vec![]));
    });
    assert!(matches!(error.unwrap_err(), Error::Protocol { .. }));
}

fn subscribed(answer: impl FnOnce(&mut Peer, RequestId)) -> (Subscription, Peer) {
    let (events, peer) = subscribe(&FakeStore::new(), answer);
    (events.unwrap(), peer)
}

fn subscribe(
    store: &FakeStore,
    answer: impl FnOnce(&mut Peer, RequestId),
) -> (crate::client::Result<Subscription>, Peer) {
    let path = store.path();
    let subscribing = beside(move || Client::connect(path)?.subscribe());
    let _client = store.welcome();
    let mut peer = store.welcome();
    let (subscribe, request) = peer.next();
    assert_eq!(request, Request::Subscribe { one_by_one: false });
    answer(&mut peer, subscribe);
    (outcome(subscribing), peer)
}

#[test]
fn a_stream_of_single_events_leaves_in_the_socket_what_is_behind_the_next() {
    let store = FakeStore::new();
    let path = store.path();
    let subscriber = beside(move || Client::connect(path)?.subscribe_one_by_one());
    let _client = store.welcome();
    let mut watcher = store.welcome();
    let (subscribe, request) = watcher.next();
    assert_eq!(request, Request::Subscribe { one_by_one: true });
    watcher.reply(subscribe, Reply::Done);
    for name in 1..=3 {
        watcher.reply(RequestId::NONE, Reply::Events(vec![sealed(name)]));
    }
    let mut stream = outcome(subscriber).unwrap();
    assert_eq!(stream.next_timeout(Duration::MAX).unwrap(), Some(sealed(1)));
    // What somebody reads from the socket is the second message and nothing else …
    let mut socket = UnixStream::from(stream.as_fd().try_clone_to_owned().unwrap());
    let mut length = [0; 8];
    socket.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
    socket.read_exact(&mut message).unwrap();
    assert_eq!(Subscription::decode(&message).unwrap(), [sealed(2)]);
    assert!(Subscription::decode(b"garbage").is_err());
    // … and the stream goes on behind it.
    assert_eq!(stream.next_timeout(Duration::MAX).unwrap(), Some(sealed(3)));
}

#[test]
fn a_descriptor_that_somebody_made_non_blocking_is_waited_for_all_the_same() {
    let (events, mut store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
    });
    // The flag belongs to the socket and not to the descriptor: an event loop sets it for all.
    let shared = UnixStream::from(events.as_fd().try_clone_to_owned().unwrap());
    shared.set_nonblocking(true).unwrap();
    // Nothing has come, which is no error.
    let mut receiver = Receiver::new();
    receiver.receive(&shared).unwrap();
    assert!(receiver.next().unwrap().is_none());

    let (say_asked, is_asked) = mpsc::channel();
    let waiting = beside(move || {
        let mut events = events;
        let mut interrupt = || {
            say_asked.send(()).unwrap();
            false
        };
        let first = events.next_with(None, Some(&mut interrupt));
        (first, events.next(), events)
    });
    is_asked.recv_timeout(PATIENCE).expect("it waits");
    store.reply(RequestId::NONE, Reply::Events(vec![sealed(1)]));
    store.reply(RequestId::NONE, Reply::Events(vec![sealed(2)]));
    let (first, second, mut events) = outcome(waiting);
    assert_eq!(first.unwrap(), Some(sealed(1)));
    assert_eq!(second.unwrap().unwrap(), sealed(2));
    assert_eq!(events.next_timeout(Duration::ZERO).unwrap(), None);
}

#[test]
fn an_interrupted_stream_goes_on() {
    let (mut events, mut store) = subscribed(|store, subscribe| {
        store.reply(subscribe, Reply::Done);
    });
    let mut asked = 0;
    let mut interrupt = || {
        asked += 1;
        asked == 2
    };
    let interrupted = events.next_with(None, Some(&mut interrupt));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    assert_eq!(events.next_with(Some(Duration::from_millis(1)), None).unwrap(), None);
    store.reply(RequestId::NONE, Reply::Events(vec![sealed(1)]));
    assert_eq!(events.next_with(None, Some(&mut || true)).unwrap(), Some(sealed(1)));
}
