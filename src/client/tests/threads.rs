//! Several threads on one client: nobody holds up anybody, and everybody hears of the end.

use std::io::Write;
use std::time::Duration;

use super::{at, beside, connected, id, outcome};
use crate::client::{Client, CreateOptions, Error, ObjectBuffer, ObjectState};
use crate::limits::INLINE_BYTES_MAX;
use crate::protocol::message::{ClientMessage, Reply, Request};

use super::fake_store::Peer;

#[test]
fn a_waiting_get_does_not_hold_up_a_put() {
    let (client, mut store) = connected();
    let getter = beside({
        let client = client.clone();
        move || client.get_one(id(1), None)
    });
    let (get, request) = store.next();
    assert!(matches!(request, Request::Get { .. }), "{request:?}");

    let putter = beside(move || client.put(id(1), b"data", b""));
    let (put, request) = store.next();
    assert!(matches!(request, Request::Put { .. }), "{request:?}");
    store.reply(put, Reply::Done);
    outcome(putter).unwrap();

    store.write(64, b"data");
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(64, 4, 0))]), false);
    assert_eq!(&outcome(getter).unwrap().unwrap()[..], b"data");
}

#[test]
fn a_waiting_get_does_not_hold_up_a_drop() {
    let (client, mut store) = connected();
    let buffer = get_granted(&client, &mut store, 1);
    let getter = beside(move || client.get_one(id(2), None));
    let (get, _) = store.next();
    drop(buffer);
    store.expect_release(id(1));
    store.reply(get, Reply::Objects(vec![None]));
    assert!(outcome(getter).unwrap().is_none());
}

#[test]
fn replies_find_their_threads_in_any_order() {
    let (client, mut store) = connected();
    for round in 0..50_u8 {
        let askers: Vec<_> = (0..8)
            .map(|asker| {
                let client = client.clone();
                beside(move || client.state(id(asker)))
            })
            .collect();
        let mut requests: Vec<_> = askers.iter().map(|_| store.next()).collect();
        let middle = usize::from(round) % requests.len();
        requests.rotate_left(middle);
        for (request, asked) in requests {
            let Request::GetState { ids } = asked else { panic!("{asked:?}") };
            let is_even = ids[0].as_bytes()[0].is_multiple_of(2);
            let state = if is_even { ObjectState::Sealed } else { ObjectState::Created };
            store.reply(request, Reply::States(vec![state]));
        }
        for (asker, state) in askers.into_iter().enumerate() {
            let is_sealed = outcome(state).unwrap() == ObjectState::Sealed;
            assert_eq!(is_sealed, asker % 2 == 0, "asker {asker} got another one's reply");
        }
    }
}

#[test]
fn the_lead_goes_from_thread_to_thread() {
    let (client, mut store) = connected();
    let mut getters = Vec::new();
    for name in 0..5 {
        let client = client.clone();
        getters.push(beside(move || client.get_one(id(name), None)));
    }
    let mut requests: Vec<_> = getters.iter().map(|_| store.next()).collect();
    // Whoever leads gets its answer at some point before the others, who must then read on.
    while let Some((request, _)) = requests.pop() {
        store.reply(request, Reply::Objects(vec![None]));
        let done = move |getters: &mut Vec<std::thread::JoinHandle<_>>| {
            let position = getters.iter().position(std::thread::JoinHandle::is_finished)?;
            Some(getters.swap_remove(position))
        };
        let finished = loop {
            match done(&mut getters) {
                Some(finished) => break finished,
                None => std::thread::yield_now(),
            }
        };
        assert!(outcome(finished).unwrap().is_none());
    }
}

#[test]
fn the_death_of_the_store_reaches_every_thread() {
    let (client, mut store) = connected();
    let getters: Vec<_> = (0..4)
        .map(|name| {
            let client = client.clone();
            beside(move || client.get_one(id(name), None))
        })
        .collect();
    for _ in &getters {
        store.next();
    }
    let path = client.socket_path().display().to_string();
    drop(store);
    for getter in getters {
        let error = outcome(getter).unwrap_err();
        assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
        assert!(error.to_string().contains(&path), "{error}");
    }
    assert!(matches!(client.contains(id(1)), Err(Error::Disconnected { .. })));
    assert!(matches!(client.put(id(1), b"", b""), Err(Error::Disconnected { .. })));
}

#[test]
fn bytes_that_are_no_protocol_reach_every_thread() {
    let (client, mut store) = connected();
    let getters: Vec<_> = (0..3)
        .map(|name| {
            let client = client.clone();
            beside(move || client.get_one(id(name), None))
        })
        .collect();
    for _ in &getters {
        store.next();
    }
    store.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    for getter in getters {
        let error = outcome(getter).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    }
    assert!(matches!(client.contains(id(1)), Err(Error::Protocol { .. })));
}

#[test]
fn replies_to_nothing_and_second_replies_end_the_connection() {
    for is_second in [false, true] {
        let (client, mut store) = connected();
        let getter = beside(move || (client.get_one(id(1), None), client.contains(id(1))));
        let (get, _) = store.next();
        let other = crate::protocol::message::RequestId(get.0 + 1);
        store.reply(if is_second { get } else { other }, Reply::Done);
        let (got, contains) = if is_second {
            store.next();
            store.reply(get, Reply::Done);
            outcome(getter)
        } else {
            outcome(getter)
        };
        assert!(matches!(got, Err(Error::Protocol { .. })), "{got:?}");
        assert!(matches!(contains, Err(Error::Protocol { .. })), "{contains:?}");
    }
}

/// The store does not read while we do not, and both have more to say than a socket takes.
#[test]
fn a_thread_that_cannot_send_reads() {
    let (client, mut store) = connected();
    let aborted = 1_000;
    let sender = beside(move || {
        for _ in 0..aborted {
            drop(client.create(id(1), 1, 0, CreateOptions::default()).unwrap());
        }
        client.put_batch(&[(id(2), vec![7; INLINE_BYTES_MAX], b"")])
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
        let (abort, request) = store.next();
        assert_eq!(request, Request::Abort { id: id(1) });
        unanswered.push(abort);
    }
    for abort in unanswered {
        store.reply(abort, Reply::Done);
    }
    let (put, request) = store.next();
    let Request::Put { objects, .. } = request else { panic!("{request:?}") };
    assert_eq!(objects[0].data, vec![7; INLINE_BYTES_MAX]);
    store.reply(put, Reply::Done);
    outcome(sender).unwrap();
}

#[test]
fn requests_of_many_threads_do_not_mix_in_a_full_socket() {
    let (client, mut store) = connected();
    let senders: Vec<_> = (0..6)
        .map(|name| {
            let client = client.clone();
            beside(move || client.put_batch(&[(id(name), vec![name; INLINE_BYTES_MAX], b"")]))
        })
        .collect();
    for _ in &senders {
        let (put, request) = store.next();
        let Request::Put { objects, .. } = request else { panic!("{request:?}") };
        let name = objects[0].id.as_bytes()[0];
        assert!(objects[0].data.iter().all(|byte| *byte == name), "bytes of two requests mixed");
        store.reply(put, Reply::Done);
    }
    for sender in senders {
        outcome(sender).unwrap();
    }
}

#[test]
fn disconnect_ends_waiting_calls() {
    let (client, mut store) = connected();
    let getter = beside({
        let client = client.clone();
        move || client.get_one(id(1), None)
    });
    let (get, _) = store.next();
    let closer = beside({
        let client = client.clone();
        move || client.disconnect()
    });
    let (cancel, request) = store.next();
    assert_eq!(request, Request::Cancel { request: get });
    store.reply_together([(get, Reply::Objects(vec![None])), (cancel, Reply::Done)]);
    assert!(matches!(outcome(getter), Err(Error::Closed)));
    // If the other thread was slow to go, it has closed the socket instead.
    if let Some((goodbye, request)) = store.next_or_end() {
        assert_eq!(request, ClientMessage::Request(Request::Disconnect));
        store.reply(goodbye, Reply::Done);
        assert_eq!(store.next_or_end(), None);
    }
    outcome(closer);
    assert!(matches!(client.contains(id(1)), Err(Error::Closed)));
    assert!(matches!(client.subscribe(), Err(Error::Closed)));
    client.disconnect();
}

#[test]
fn a_connection_lasts_until_the_last_buffer_has_gone() {
    let (client, mut store) = connected();
    let buffer = get_granted(&client, &mut store, 1);
    let slice = buffer.slice(1..);
    client.disconnect();
    assert!(matches!(client.get_one(id(1), None), Err(Error::Closed)));
    assert_eq!(&slice[..], &buffer[1..]);
    drop(buffer);
    store.socket.set_nonblocking(true).unwrap();
    assert!(std::io::Read::read(&mut store.socket, &mut [0]).is_err(), "nothing is said yet");
    store.socket.set_nonblocking(false).unwrap();
    drop(slice);
    store.expect_release(id(1));
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_writer_can_be_sealed_after_disconnect() {
    let (client, mut store) = connected();
    let creator = beside({
        let client = client.clone();
        move || client.create(id(1), 4, 0, CreateOptions::default())
    });
    let (create, _) = store.next();
    store.reply_with_memory(create, Reply::Created(at(128, 4, 0).into()), true);
    let mut writer = outcome(creator).unwrap();
    client.disconnect();
    writer.write_all(b"late").unwrap();
    let sealer = beside(move || writer.seal());
    store.grant_seal(id(1), true);
    outcome(sealer).unwrap();
    assert_eq!(store.read(128, 4), b"late");
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn buffers_outlive_the_store() {
    let (client, mut store) = connected();
    let buffer = get_granted(&client, &mut store, 1);
    drop(store);
    assert!(matches!(client.stats(), Err(Error::Disconnected { .. })));
    assert_eq!(&buffer[..], b"data of 1");
    assert!(client.get_one(id(1), Some(Duration::ZERO)).unwrap().is_some(), "it is still held");
}

fn get_granted(client: &Client, store: &mut Peer, name: u8) -> ObjectBuffer {
    let getter = beside({
        let client = client.clone();
        move || client.get_one(id(name), None)
    });
    let (get, _) = store.next();
    store.write(0, format!("data of {name}").as_bytes());
    store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 9, 0))]), false);
    outcome(getter).unwrap().unwrap()
}
