//! A store that does not answer, or does not even read: nobody has to wait for it, and what it
//! grants too late is given back.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use super::fake_store::Peer;
use super::{at, beside, connected, connected_with_patience, id, outcome, set_patience};
use crate::client::{
    Client, ConnectFailure, CreateOptions, DeleteOutcome, Error, GetOptions, ObjectBuffer,
    ObjectState, interrupted_by,
};
use crate::ids::ObjectId;
use crate::limits::{CLIENT_PATIENCE, INLINE_BYTES_MAX, REQUEST_IDS_TOGETHER};
use crate::protocol::message::{ClientMessage, Reply, Request, RequestId};
use crate::protocol::refusal::Refusal;

const FOR_EVER: CreateOptions = CreateOptions { evict: true, timeout: None };

fn numbered(number: u32) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

/// More of them than a socket takes ids.
const MANY: u32 = 24_000;

fn hold_many(client: &Client, store: &mut Peer) -> Vec<ObjectBuffer> {
    let ids: Vec<_> = (0..MANY).map(numbered).collect();
    let getter = beside({
        let (client, ids) = (client.clone(), ids.clone());
        move || client.get(&ids, None)
    });
    for (index, part) in ids.chunks(REQUEST_IDS_TOGETHER).enumerate() {
        let (get, _) = store.next();
        let objects = Reply::Objects(vec![Some(at(0, 4, 0)); part.len()]);
        if index == 0 {
            store.reply_with_memory(get, objects, false);
        } else {
            store.reply(get, objects);
        }
    }
    outcome(getter).unwrap().into_iter().flatten().collect()
}

/// They come in order, one or more in a message.
fn expect_many_released(store: &mut Peer) {
    let mut released = 0;
    while released < MANY {
        let (request, message) = store.next();
        assert_eq!(request, RequestId::NONE);
        let Request::Release { holds } = message else { panic!("{}", message.traits().name) };
        for hold in holds {
            assert_eq!(hold, (numbered(released), 1));
            released += 1;
        }
    }
}

#[test]
fn drops_do_not_wait_for_a_store_that_does_not_read() {
    let (client, mut store) = connected();
    let buffers = hold_many(&client, &mut store);
    // Returns though nobody reads: the store here is this thread.
    drop(buffers);
    expect_many_released(&mut store);
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_connection_can_end_while_much_is_unsent() {
    let (client, mut store) = connected();
    let buffers = hold_many(&client, &mut store);
    drop(client);
    drop(buffers);
    let mut released = 0;
    while let Some((_, message)) = store.next_or_end() {
        let ClientMessage::Request(Request::Release { holds }) = message else {
            panic!("no release, but {message:?}");
        };
        released += holds.len();
    }
    assert!(released < MANY as usize, "the socket took all of them, which makes this no test");
}

#[test]
fn what_was_left_unsent_keeps_its_place() {
    let (client, mut store) = connected();
    let buffers = hold_many(&client, &mut store);
    drop(buffers);
    let asker = beside({
        let client = client.clone();
        move || client.contains(id(1))
    });
    expect_many_released(&mut store);
    let (ask, request) = store.next();
    assert_eq!(request, Request::GetState { ids: vec![id(1)] });
    store.reply(ask, Reply::States(vec![ObjectState::Absent]));
    assert!(!outcome(asker).unwrap());
}

/// The store does not read before we do, both have more to say than a socket takes, and nobody
/// calls the client any more.
#[test]
fn what_is_left_unsent_goes_out_though_answers_fill_the_way_back() {
    let (client, mut store) = connected();
    let aborted = 1_000;
    let creator = beside({
        let client = client.clone();
        move || {
            for _ in 0..aborted {
                drop(client.create(id(1), 1, 0, CreateOptions::default()).unwrap());
            }
        }
    });
    let mut unanswered = Vec::new();
    for _ in 0..aborted {
        let (create, _) = store.next();
        let created = Reply::Created(at(0, 1, 0).into());
        if unanswered.is_empty() {
            store.reply_with_memory(create, created, true);
        } else {
            store.reply(create, created);
        }
        unanswered.push(store.next().0);
    }
    outcome(creator);
    let large = [(id(2), vec![7; INLINE_BYTES_MAX], b"")];
    let interrupted = client.put_batch_with(&large, FOR_EVER, Some(&mut || true));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");

    for abort in unanswered {
        store.reply(abort, Reply::Done);
    }
    let (put, request) = store.next();
    let Request::Put { objects, .. } = request else { panic!("{request:?}") };
    assert_eq!(objects[0].data, vec![7; INLINE_BYTES_MAX]);
    let (_, request) = store.next();
    assert_eq!(request, Request::Cancel { request: put });
}

#[test]
fn an_interrupted_get_does_not_wait_and_gives_back_what_comes_late() {
    let (client, mut store) = connected();
    let interrupted =
        client.get_with(&[id(1), id(2), id(3)], GetOptions::default(), Some(&mut || true));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    let (get, request) = store.next();
    assert!(matches!(request, Request::Get { .. }), "{request:?}");
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });

    let objects = vec![Some(at(0, 1, 0)), None, Some(at(64, 1, 0))];
    store.reply_with_memory(get, Reply::Objects(objects), false);
    store.reply(cancel, Reply::Done);
    serve_one_call(&client, &mut store, |store| {
        let (request, message) = store.next();
        assert_eq!(request, RequestId::NONE);
        assert_eq!(message, Request::Release { holds: vec![(id(1), 1), (id(3), 1)] });
    });
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn an_interrupted_create_that_is_granted_late_is_aborted() {
    let (client, mut store) = connected();
    let interrupted = client.create_with(id(1), 8, 0, FOR_EVER, Some(&mut || true));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    let (create, _) = store.next();
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: create });
    store.reply_with_memory(create, Reply::Created(at(0, 8, 0).into()), true);
    store.reply(cancel, Reply::Done);
    serve_one_call(&client, &mut store, |store| {
        let (abort, request) = store.next();
        assert_eq!(request, Request::Abort { id: id(1) });
        store.reply(abort, Reply::Done);
    });
}

#[test]
fn a_late_refusal_gives_nothing_to_give_back() {
    let (client, mut store) = connected();
    let interrupted = client.create_with(id(1), 8, 0, FOR_EVER, Some(&mut || true));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    let (create, _) = store.next();
    let (cancel, _) = store.next();
    store.reply(create, Reply::Refused(Refusal::Cancelled));
    store.reply(cancel, Reply::Done);
    serve_one_call(&client, &mut store, |_| {});
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_panic_of_the_interrupt_function_gives_back_too() {
    let (client, mut store) = connected();
    let panicking = beside({
        let client = client.clone();
        move || {
            let mut interrupt = || std::panic::panic_any("from the interrupt function");
            client.get_with(&[id(1)], GetOptions::default(), Some(&mut interrupt))
        }
    });
    assert!(panicking.join().is_err());
    let (get, _) = store.next();
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 1, 0))]), false);
    store.reply(cancel, Reply::Done);
    serve_one_call(&client, &mut store, |store| store.expect_release(id(1)));
}

/// Neither the request nor anything else can be sent.
#[test]
fn a_call_that_cannot_even_be_sent_can_be_interrupted() {
    let (client, mut store) = connected();
    let buffers = hold_many(&client, &mut store);
    drop(buffers);
    for _ in 0..3 {
        let interrupted = client.get_with(&[id(1)], GetOptions::default(), Some(&mut || true));
        assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    }
    expect_many_released(&mut store);
    drop(client);
    assert_eq!(store.next_or_end(), None, "what was given up before it was sent is not sent");
}

#[test]
fn a_timeout_ends_though_the_store_does_not_answer() {
    let patience = Duration::from_millis(20);
    let (client, mut store) = connected_with_patience(patience);
    let timeout = Some(Duration::from_millis(1));
    let patient = CreateOptions { evict: true, timeout };

    for error in [
        client.get(&[id(1)], timeout).unwrap_err(),
        client.wait(&[id(1)], 1, timeout).unwrap_err(),
        client.create(id(1), 8, 0, patient).unwrap_err(),
        client.put_with(id(1), b"data", b"", patient, None).unwrap_err(),
    ] {
        let Error::Unresponsive { waited, path } = &error else { panic!("{error:?}") };
        assert!(*waited > patience, "{waited:?}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        let (request, message) = store.next();
        assert!(!matches!(message, Request::Cancel { .. }), "{message:?}");
        let (_, cancel) = store.next();
        assert_eq!(cancel, Request::Cancel { request });
    }
}

/// What waits for nobody is not cancelled, and what it is told late is nobody else's answer.
#[test]
fn a_call_that_waits_for_nobody_ends_though_the_store_does_not_answer() {
    let (client, mut store) = connected_with_patience(Duration::from_millis(20));
    let told = client.delete(&[id(1)]);
    assert!(matches!(told, Err(Error::Unresponsive { .. })), "{told:?}");
    let told = client.contains(id(1));
    assert!(matches!(told, Err(Error::Unresponsive { .. })), "{told:?}");
    let (delete, request) = store.next();
    assert_eq!(request, Request::Delete { ids: vec![id(1)] });
    let (first, request) = store.next();
    assert_eq!(request, Request::GetState { ids: vec![id(1)] });

    set_patience(&client, CLIENT_PATIENCE);
    let asker = beside({
        let client = client.clone();
        move || client.contains(id(2))
    });
    let (second, request) = store.next();
    assert_eq!(request, Request::GetState { ids: vec![id(2)] });
    store.reply(delete, Reply::Deleted(vec![DeleteOutcome::Deleted]));
    store.reply(first, Reply::States(vec![ObjectState::Sealed]));
    store.reply(second, Reply::States(vec![ObjectState::Absent]));
    assert!(!outcome(asker).unwrap());
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn the_hold_of_a_seal_that_was_given_up_is_given_back() {
    let (client, mut store) = connected();
    let creator = beside({
        let client = client.clone();
        move || client.create(id(1), 8, 0, CreateOptions::default())
    });
    let (create, _) = store.next();
    store.reply_with_memory(create, Reply::Created(at(0, 8, 0).into()), true);
    let writer = outcome(creator).unwrap();
    let sealed = interrupted_by(|| true, || writer.seal_and_get());
    assert!(matches!(sealed, Err(Error::Interrupted)), "{sealed:?}");
    let (seal, request) = store.next();
    assert_eq!(request, Request::Seal { id: id(1), release: false });
    store.reply(seal, Reply::Done);
    serve_one_call(&client, &mut store, |store| store.expect_release(id(1)));
}

#[test]
fn every_call_of_a_thread_can_be_interrupted() {
    let (client, mut store) = connected();
    let told = interrupted_by(|| true, || client.stats());
    assert!(matches!(told, Err(Error::Interrupted)), "{told:?}");
    assert_eq!(store.next().1, Request::GetStats);
    // From here on nobody asks.
    serve_one_call(&client, &mut store, |_| {});
}

#[test]
fn a_disconnect_that_is_interrupted_waits_for_nothing_more() {
    let (client, mut store) = connected();
    let start = |name| client.start_get(&[id(name)], GetOptions::default()).unwrap();
    let pending = [1, 2, 3].map(start);
    interrupted_by(|| true, || client.disconnect());
    drop((pending, client));
    let gets = [1, 2, 3].map(|_| store.next().0);
    assert_eq!(gets.map(|_| store.next().1.traits().name), ["cancel"; 3]);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn connecting_to_a_socket_with_a_full_queue_can_be_interrupted_and_has_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plasma");
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let told = Client::builder().connect_with(&path, Some(&mut || true));
    assert!(matches!(told, Err(Error::Interrupted)), "{told:?}");
    let told = Client::builder().patience(Duration::from_millis(20)).connect(&path);
    let Err(Error::Connect { source: ConnectFailure::Silent(_), .. }) = told else {
        panic!("{told:?}");
    };
}

/// What waits for others without a timeout waits on, however short the patience.
#[test]
fn a_call_without_a_timeout_waits_on() {
    let (client, mut store) = connected_with_patience(Duration::ZERO);
    let (asks, asked) = mpsc::channel();
    let getter = beside(move || {
        let mut interrupt = || {
            asks.send(()).unwrap();
            false
        };
        client.get_with(&[id(1)], GetOptions::default(), Some(&mut interrupt))
    });
    let (get, _) = store.next();
    for _ in 0..3 {
        asked.recv().unwrap();
    }
    store.reply(get, Reply::Objects(vec![None]));
    assert!(outcome(getter).unwrap()[0].is_none());
}

/// Another thread's call takes in what has come before; `first` is what the store sees of that.
fn serve_one_call(client: &Client, store: &mut Peer, first: impl FnOnce(&mut Peer)) {
    let asker = beside({
        let client = client.clone();
        move || client.set_name("asks something")
    });
    // The question may overtake what is given back, which waits for somebody to read.
    let (ask, request) = store.next();
    assert!(matches!(request, Request::SetOptions { .. }), "{request:?}");
    first(store);
    store.reply(ask, Reply::Done);
    outcome(asker).unwrap();
}
