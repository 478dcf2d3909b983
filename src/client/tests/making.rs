//! Creates and puts: which messages, and what ends in memory.

use std::io::Write;
use std::time::Duration;

use super::fake_store::{FakeStore, Peer};
use super::{at, beside, connected, id, outcome};
use crate::client::{Client, CreateOptions, Error, FullStore, ObjectWriter, Refusal};
use crate::limits::PUT_INLINE_BYTES;
use crate::protocol::message::{NewObject, Reply, Request, Room};

const AT_ONCE: Room = Room { evict: true, timeout: Some(Duration::ZERO) };

#[test]
fn a_small_put_is_one_message() {
    let (client, mut store) = connected();
    let data = vec![1; PUT_INLINE_BYTES - 2];
    let putter = beside({
        let data = data.clone();
        move || client.put(id(1), &data, b"md")
    });
    let (put, request) = store.next();
    let object = NewObject { id: id(1), data, metadata: b"md".to_vec() };
    assert_eq!(request, Request::Put { objects: vec![object], room: AT_ONCE });
    store.reply(put, Reply::Done);
    outcome(putter).unwrap();
}

#[test]
fn a_large_put_is_written_in_place() {
    for data_size in [PUT_INLINE_BYTES - 1, 2 << 20] {
        let (client, mut store) = connected();
        let data: Vec<u8> = (0..=250).cycle().take(data_size).collect();
        let putter = beside({
            let data = data.clone();
            move || client.put(id(1), &data, b"md")
        });
        let (create, request) = store.next();
        let data_size = data_size as u64;
        let expected = Request::Create { id: id(1), data_size, metadata_size: 2, room: AT_ONCE };
        assert_eq!(request, expected);
        store.reply_with_memory(create, Reply::Created(at(64, data_size, 2).into()), true);
        store.grant_seal(id(1), true);
        outcome(putter).unwrap();
        assert_eq!(store.read(64, data.len()), data);
        assert_eq!(store.read(64 + data_size, 2), b"md");
        assert_eq!(store.next_or_end(), None);
    }
}

#[test]
fn a_put_of_a_name_that_is_taken_leaves_nothing_behind() {
    let (client, mut store) = connected();
    let putter = beside(move || client.put(id(1), &[0; 1 << 20], b""));
    let (create, _) = store.next();
    store.reply(create, Reply::Refused(Refusal::ObjectExists(id(1))));
    let error = outcome(putter).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::ObjectExists(name)) if name == id(1)));
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_full_store_says_its_numbers() {
    let (client, mut store) = connected();
    let creator = beside(move || client.create(id(1), 77, 0, CreateOptions::default()));
    let full = FullStore {
        requested: 77,
        capacity: 100,
        used: 90,
        pinned: 80,
        largest_free_run: 10,
        objects: 3,
        objects_max: 5,
    };
    // Somebody holds something, so it asks again after the time that a release may take.
    for _ in 0..2 {
        let (create, request) = store.next();
        assert!(matches!(request, Request::Create { data_size: 77, .. }), "{request:?}");
        store.reply(create, Reply::Refused(Refusal::StoreFull(full)));
    }
    let text = outcome(creator).unwrap_err().to_string();
    for number in ["77", "100", "90", "80", "10"] {
        assert!(text.contains(number), "{number} is not in {text}");
    }
}

#[test]
fn options_say_how_to_make_room() {
    let (client, mut store) = connected();
    let options = CreateOptions { evict: false, timeout: None };
    let putter = beside(move || client.put_with(id(1), b"", b"", options, None));
    let (put, request) = store.next();
    let Request::Put { room, .. } = request else { panic!("{request:?}") };
    assert_eq!(room, Room { evict: false, timeout: None });
    store.reply(put, Reply::Done);
    outcome(putter).unwrap();
}

#[test]
fn a_batch_is_one_message_or_an_error() {
    let mut store = FakeStore::new();
    store.connected.batch_objects_max = 2;
    store.connected.inline_bytes_max = 10;
    let (client, mut store) = store.connect();
    let small = |name| (id(name), b"abc", b"d");
    for batch in [vec![small(1), small(2), small(3)], vec![(id(1), b"abc", b"d"); 3]] {
        let error = client.put_batch(&batch).unwrap_err();
        let Error::BatchTooLarge { objects: 3, objects_max: 2, bytes: 12, bytes_max: 10 } = error
        else {
            panic!("{error:?}")
        };
    }
    let error = client.put_batch(&[(id(1), [0; 11], b"")]).unwrap_err();
    assert!(error.to_string().contains("11 bytes"), "{error}");
    let nothing: [(_, &[u8], &[u8]); 0] = [];
    client.put_batch(&nothing).unwrap();

    let putter = beside(move || client.put_batch(&[small(1), small(2)]));
    let (put, request) = store.next();
    let Request::Put { objects, .. } = request else { panic!("{request:?}") };
    assert_eq!(objects.iter().map(|object| object.id).collect::<Vec<_>>(), [id(1), id(2)]);
    store.reply(put, Reply::Done);
    outcome(putter).unwrap();
}

#[test]
fn a_writer_that_is_dropped_aborts_and_one_that_was_sealed_does_not() {
    let (client, mut store) = connected();
    drop(create(&client, &mut store, 8, 2));
    let (abort, request) = store.next();
    assert_eq!(request, Request::Abort { id: id(1) });

    let writer = create(&client, &mut store, 8, 2);
    store.reply(abort, Reply::Done);
    let sealer = beside(move || writer.seal());
    store.grant_seal(id(1), true);
    outcome(sealer).unwrap();

    let writer = create(&client, &mut store, 8, 2);
    let aborter = beside(move || writer.abort());
    let (abort, request) = store.next();
    assert_eq!(request, Request::Abort { id: id(1) });
    store.reply(abort, Reply::Done);
    outcome(aborter).unwrap();

    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_writer_writes_as_far_as_there_is_room() {
    let (client, mut store) = connected();
    let mut writer = create(&client, &mut store, 8, 2);
    assert_eq!(writer.write(b"abcdef").unwrap(), 6);
    assert_eq!(writer.write(b"ghijk").unwrap(), 2);
    assert_eq!(writer.write(b"more").unwrap(), 0);
    assert_eq!(writer.position(), 8);
    writer.set_position(2);
    writer.write_all(b"CD").unwrap();
    writer.set_position(usize::MAX);
    assert_eq!(writer.write(b"beyond").unwrap(), 0);
    writer.metadata_mut().copy_from_slice(b"md");
    assert_eq!((writer.data(), writer.metadata()), (&b"abCDefgh"[..], &b"md"[..]));
    assert_eq!(store.read(0, 10), b"abCDefghmd");
}

#[test]
fn new_memory_is_cleared_if_the_store_wants_it() {
    for clear in [false, true] {
        let mut store = FakeStore::new();
        store.connected.clear_new_objects = clear;
        let (client, mut store) = store.connect();
        store.write(0, b"left behind");
        let writer = create(&client, &mut store, 4, 4);
        let expected: &[u8] = if clear { b"\0\0\0\0" } else { b"left" };
        assert_eq!(writer.data(), expected);
        assert_eq!(writer.metadata() == [0; 4], clear);
        drop(writer);
        let expected: &[u8] = if clear { b"\0\0\0\0\0\0\0\0ind" } else { b"left behind" };
        assert_eq!(store.read(0, 11), expected);
    }
}

#[test]
fn a_sealed_object_can_be_kept_through_memory_that_is_read_only() {
    let (client, mut store) = connected();
    for is_first in [true, false] {
        let mut writer = create(&client, &mut store, 4, 0);
        writer.data_mut().copy_from_slice(b"kept");
        let sealer = beside(move || writer.seal_and_get());
        store.grant_seal(id(1), false);
        if is_first {
            let (get, request) = store.next();
            assert!(matches!(request, Request::Get { .. }), "{request:?}");
            store.reply_with_memory(get, Reply::Objects(vec![Some(at(0, 4, 0))]), false);
            store.expect_release(id(1));
        }
        let buffer = outcome(sealer).unwrap();
        assert_eq!(&buffer[..], b"kept");
        assert!(client.contains(id(1)).unwrap(), "it is held, so nobody is asked");
        drop(buffer);
        store.expect_release(id(1));
    }
}

#[test]
fn a_created_object_of_another_size_is_refused() {
    for place in [at(0, 7, 2), at(0, 8, 1), at(0, 80, 20)] {
        let (client, mut store) = connected();
        let creator = beside(move || client.create(id(1), 8, 2, CreateOptions::default()));
        let (create, _) = store.next();
        store.reply_with_memory(create, Reply::Created(place.into()), true);
        assert!(matches!(outcome(creator), Err(Error::Protocol { .. })));
    }
}

#[test]
fn a_created_object_outside_of_the_memory_is_given_back() {
    let (client, mut store) = connected();
    let creator = beside(move || client.create(id(1), 8, 2, CreateOptions::default()));
    let (create, _) = store.next();
    store.reply_with_memory(create, Reply::Created(at(1 << 40, 8, 2).into()), true);
    assert!(matches!(outcome(creator), Err(Error::Protocol { .. })));
    let (_, request) = store.next();
    assert_eq!(request, Request::Abort { id: id(1) });
}

#[test]
fn sizes_beyond_all_measure_are_not_sent() {
    let (client, mut store) = connected();
    let error = client.create(id(1), u64::MAX, 1, CreateOptions::default()).unwrap_err();
    assert!(error.to_string().contains(&u64::MAX.to_string()), "{error}");
    drop(client);
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn an_interrupted_create_leaves_nothing_behind() {
    for comes_too_late in [false, true] {
        let (client, mut store) = connected();
        let creator = beside({
            let client = client.clone();
            move || {
                let options = CreateOptions { timeout: None, ..CreateOptions::default() };
                client.create_with(id(1), 8, 0, options, Some(&mut || true))
            }
        });
        let (create, _) = store.next();
        let (cancel, request) = store.next();
        assert_eq!(request, Request::Cancel { request: create });
        if comes_too_late {
            store.reply_with_memory(create, Reply::Created(at(0, 8, 0).into()), true);
        } else {
            store.reply(create, Reply::Refused(Refusal::Cancelled));
        }
        store.reply(cancel, Reply::Done);
        assert!(matches!(outcome(creator), Err(Error::Interrupted)));
        if comes_too_late {
            let (_, request) = store.next();
            assert_eq!(request, Request::Abort { id: id(1) });
        }
        drop(client);
        assert_eq!(store.next_or_end(), None);
    }
}

#[test]
fn an_interrupted_put_tells_whether_it_was_done() {
    for comes_too_late in [false, true] {
        let (client, mut store) = connected();
        let putter = beside({
            let client = client.clone();
            move || {
                let options = CreateOptions { timeout: None, ..CreateOptions::default() };
                client.put_with(id(1), b"data", b"", options, Some(&mut || true))
            }
        });
        let (put, _) = store.next();
        let (cancel, _) = store.next();
        let cancelled = Reply::Refused(Refusal::Cancelled);
        store.reply(put, if comes_too_late { Reply::Done } else { cancelled });
        store.reply(cancel, Reply::Done);
        let outcome = outcome(putter);
        let is_right = if comes_too_late {
            outcome.is_ok()
        } else {
            matches!(outcome, Err(Error::Interrupted))
        };
        assert!(is_right, "{outcome:?}");
    }
}

fn create(client: &Client, store: &mut Peer, data_size: u64, metadata_size: u64) -> ObjectWriter {
    let creator = beside({
        let client = client.clone();
        move || client.create(id(1), data_size, metadata_size, CreateOptions::default())
    });
    let (create, request) = store.next();
    assert!(matches!(request, Request::Create { .. }), "{request:?}");
    store.reply_with_memory(create, Reply::Created(at(0, data_size, metadata_size).into()), true);
    outcome(creator).unwrap()
}
