//! Readers that do not ask the store, at full speed, while objects are evicted, deleted and made
//! anew in the same memory and the same slots, and while readers are killed: no wrong byte, and at
//! the end nothing is pinned and all memory is free.

mod support;

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use plasma::client::{CreateOptions, DeleteOutcome, Refusal};
use plasma::directory::layout::BLOCK_SLOTS;
use plasma::directory::{ClientTable, DirectoryWords, Layout};
use plasma::ids::{SegmentId, Slot};
use plasma::protocol::message::{ClientMessage, Connect, Reply, Request};
use plasma::shm::Access;
use plasma::shm::words::Words;
use plasma::{Client, Error, ObjectBuffer, limits};
use support::{PATIENCE, StoreProcess, Worker, numbered, wait_until, worker_part};

/// Objects that readers ask for most of the time, and all of them. Not all fit into the store.
const HOT: u64 = 64;
const ALL: u64 = 2048;
const STORE: &str = "256K";
/// Gets of a reader before it says so; readers at a time; how often each of them says so.
const GETS: u64 = 100_000;
const READERS: usize = 3;
const ROUNDS: usize = 36;
/// Buffers that a reader holds at a time.
const HELD: usize = 24;

const NOT_AT_ALL: Option<Duration> = Some(Duration::ZERO);

/// Whether both sides of the store are used; if not, these tests have nothing to show.
fn has_directory() -> bool {
    std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_none()
}

/// The bytes of an object follow from its id and from a number that no two objects share.
fn contents(id: u64, salt: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(id ^ salt.rotate_left(32));
    (0..40 + salt % 300).map(|_| random.u8(..)).collect()
}

fn check(number: u64, object: &ObjectBuffer) {
    let (id, salt) = object.metadata().split_at(8);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    assert_eq!(word(id), number, "it is the object that was asked for");
    assert!(object.data() == contents(number, word(salt)), "all bytes of {number} are right");
}

#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    match part.split_once(' ').expect("a part and a number") {
        ("reader", seed) => read(&socket, seed.parse().expect("a number")),
        ("writer", seed) => write(&socket, seed.parse().expect("a number")),
        other => panic!("no such part: {other:?}"),
    }
}

/// Reads and checks for as long as it may, and says now and then that it did.
fn read(socket: &Path, seed: u64) {
    let client = Client::connect(socket).expect("the store accepts");
    let mut random = Rng::with_seed(seed);
    let mut held: VecDeque<(u64, ObjectBuffer)> = VecDeque::new();
    for _ in 0..ROUNDS {
        let mut found = 0;
        while found < GETS {
            let number = if random.u8(..) == 0 { random.u64(..ALL) } else { random.u64(..HOT) };
            // A message now and then, and otherwise none: a miss is asked for by a wait.
            let object = client.get_one(numbered(number), NOT_AT_ALL).expect("get works");
            let Some(object) = object else { continue };
            found += 1;
            check(number, &object);
            held.push_back((number, object));
            if held.len() > HELD
                && let Some((number, object)) = held.swap_remove_back(random.usize(..HELD))
            {
                check(number, &object);
            }
        }
        eprintln!("read");
    }
    // Until the last one is through, so that all of them can be killed.
    drop(held);
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}

/// Makes what is missing, evicts and deletes what is there, until it is told to end.
fn write(socket: &Path, seed: u64) {
    let client = Client::connect(socket).expect("the store accepts");
    let mut random = Rng::with_seed(seed);
    let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    std::thread::spawn({
        let is_over = is_over.clone();
        move || {
            let _ = std::io::stdin().lock().read_line(&mut String::new());
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    });
    for salt in 0..50_000_000_u64 {
        if is_over.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        let hot = random.u64(..HOT);
        match random.u8(..) {
            0 => drop(client.evict(u64::MAX).expect("evict works")),
            1..16 => drop(client.delete_one(numbered(hot)).expect("delete works")),
            16..32 => make(&client, random.u64(..ALL), salt),
            _ => make(&client, hot, salt),
        }
    }
}

fn make(client: &Client, number: u64, salt: u64) {
    let metadata = [number.to_le_bytes(), salt.to_le_bytes()].concat();
    let put = client.put(numbered(number), &contents(number, salt), &metadata);
    match put {
        Ok(()) | Err(Error::Refused(Refusal::ObjectExists(_) | Refusal::StoreFull(_))) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn no_reader_ever_sees_a_wrong_byte() {
    let mut store = StoreProcess::start(STORE);
    let start = |part: &str, seed: u64| Worker::start(&format!("{part} {seed}"), store.socket());
    let mut random = Rng::new();
    let mut writer = start("writer", random.u64(..));
    let mut readers: Vec<_> = (0..READERS).map(|_| start("reader", random.u64(..))).collect();
    let mut gets = 0;
    for round in 0..ROUNDS {
        for reader in &mut readers {
            reader.expect("read");
            gets += GETS;
        }
        // It is in the middle of reading, and holds something.
        if round + 1 < ROUNDS && round % 2 == 0 {
            let victim = random.usize(..READERS);
            readers[victim].kill();
            let rest = ROUNDS - round - 1;
            readers[victim] = start("reader", random.u64(..));
            assert!(rest > 0);
        }
    }
    assert!(gets >= 10_000_000, "{gets} gets");
    for reader in &mut readers {
        reader.kill();
    }
    writer.tell("end");
    writer.finish();
    let client = store.client();
    wait_until("the others have gone", || client.stats().expect("stats work").clients == 1);
    let stats = client.stats().expect("stats work");
    assert_eq!((stats.pinned, stats.unsealed_objects), (0, 0), "{stats:?}");
    println!(
        "{gets} gets, {} evicted, {} noticed in use",
        stats.counter("objects_evicted"),
        stats.counter("objects_parked")
    );
    if has_directory() {
        assert!(stats.counter("objects_parked") > 0, "the store met objects that were being read");
        let asked = stats.counter("ids_requested");
        assert!(asked < gets, "most gets were no message: {asked} ids of {gets}");
    }
    client.evict(u64::MAX).expect("evict works");
    let stats = client.stats().expect("stats work");
    assert_eq!((stats.objects, stats.used, stats.largest_free_run), (0, 0, stats.capacity));
    store.assert_serves();
}

#[test]
fn a_deferred_delete_comes_when_the_last_reader_of_several_lets_go_or_dies() {
    let store = StoreProcess::start("1M");
    let (first, second, deleter) = (store.client(), store.client(), store.client());
    deleter.put(numbered(1), b"data", b"").expect("there is room");
    let is_there = || deleter.contains(numbered(1)).expect("contains works");
    let held = [&first, &first, &second]
        .map(|client| client.get_one(numbered(1), None).expect("get works").expect("it is there"));
    let listed = deleter.list_all().expect("list works");
    assert_eq!(listed[0].ref_count, 2, "{listed:?}");
    let outcome = deleter.delete_one(numbered(1)).expect("delete works");
    assert_eq!(outcome, DeleteOutcome::DeferredInUse);
    let holders = deleter.holders_of(numbered(1)).expect("it is known");
    assert_eq!(holders.iter().map(|client| client.objects).collect::<Vec<_>>(), [1, 1]);
    let [one, two, three] = held;
    drop(one);
    drop(two);
    assert!(is_there(), "the second client still reads it");
    drop(second);
    assert!(is_there(), "its buffer keeps the connection");
    drop(three);
    wait_until("it has gone", || !is_there());
}

#[test]
fn a_store_full_of_what_is_read_is_full_and_waits_for_the_readers() {
    let store = StoreProcess::start("64K");
    let (reader, writer) = (store.client(), store.client());
    for number in 0..16 {
        writer.put(numbered(number), &[7; 4000], b"").expect("there is room");
    }
    let ids: Vec<_> = (0..16).map(numbered).collect();
    let mut held = reader.get(&ids, None).expect("get works");
    for _ in 0..3 {
        let full = writer.put(numbered(99), &[7; 4000], b"").expect_err("everything is in use");
        assert!(matches!(full, Error::Refused(Refusal::StoreFull(full)) if full.pinned == 64_000));
    }
    let waiting = std::thread::spawn({
        let writer = writer.clone();
        move || {
            let options = CreateOptions { timeout: Some(PATIENCE), ..CreateOptions::default() };
            writer.put_with(numbered(99), &[8; 4000], b"", options, None)
        }
    });
    wait_until("the put waits", || reader.stats().expect("stats work").waiting_requests == 1);
    held[5] = None;
    waiting.join().expect("no panic").expect("there is room now");
    assert!(!writer.contains(numbered(5)).expect("contains works"));
    assert_eq!(writer.stats().expect("stats work").pinned, 15 * 4000);
}

#[test]
fn rubbish_in_a_pin_table_harms_nobody_else() {
    if !has_directory() {
        return;
    }
    let mut store = StoreProcess::start("1M");
    let client = store.client();
    client.put(numbered(1), b"data", b"").expect("there is room");
    let mut liar = store.raw_peer();
    let hello = Connect {
        protocol_version: limits::PROTOCOL_VERSION,
        client_name: "liar".to_owned(),
        reads_directory: true,
        ..Connect::default()
    };
    liar.send(&support::RawPeer::frame(1, &ClientMessage::Connect(hello))).expect("it is sent");
    let welcome = liar.receive().expect("a reply");
    let described = welcome.descriptors;
    let Reply::Connected(connected) = welcome.reply else { panic!("{:?}", welcome.reply) };
    let map = |id, words: usize, access| {
        let index = described.iter().position(|info| info.segment == id).expect("it was sent");
        Words::map(std::os::fd::AsFd::as_fd(&liar.descriptors[index]), words, access)
    };
    let size = described.iter().find(|info| info.segment == SegmentId::DIRECTORY);
    let size = size.expect("it was sent").segment_size;
    let directory_words = usize::try_from(size / 8).expect("it fits into memory");
    let denied = map(SegmentId::DIRECTORY, directory_words, Access::ReadWrite);
    assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    let directory = map(SegmentId::DIRECTORY, directory_words, Access::ReadOnly).expect("it maps");
    let layout = Layout::read(&directory, size).expect("it has a header");
    assert_eq!(layout.records(), connected.directory_slots);
    let directory = DirectoryWords::new(directory, layout).expect("it is large enough");
    assert!(directory.contains(&numbered(1)));
    let table_words = layout.client_table_words();
    let words = map(SegmentId::CLIENT_TABLE, table_words, Access::ReadWrite).expect("it maps");
    // Everything is pinned as often as a word can say, in all slots, used or not.
    for word in words.iter() {
        word.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    }
    let stats = client.stats().expect("stats work");
    assert_eq!((stats.pinned, stats.objects), (4, 1));
    assert_eq!(client.delete_one(numbered(1)).expect("it answers"), DeleteOutcome::DeferredInUse);
    assert_eq!(client.holders_of(numbered(1)).expect("it answers").len(), 1);
    // What it has been told to give back it gives back wrongly, and more than it has.
    let table = ClientTable::new(words, layout).expect("it is large enough");
    let pins = table.pins(Slot(0)).expect("there is a first slot");
    assert!(table.is_pinned(Slot(BLOCK_SLOTS)));
    let slots = vec![Slot(0), Slot(layout.records() - 1), Slot(0)];
    assert_eq!(liar.call(Request::Unpinned { slots: slots.clone() }), Reply::Done);
    assert!(client.contains(numbered(1)).expect("it answers"), "it is still pinned");
    let get = Request::Get { ids: vec![numbered(1)], timeout: None, fail_if_abandoned: false };
    let granted = liar.call(get);
    assert!(
        matches!(&granted, Reply::Granted(one) if one[0].is_some_and(|it| it.pin.is_none())),
        "a count that is full is not counted on: {granted:?}"
    );
    pins.own.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(liar.call(Request::Unpinned { slots }), Reply::Done);
    let holds = vec![(numbered(1), 1)];
    assert_eq!(liar.call(Request::Release { holds }), Reply::Done);
    assert!(!client.contains(numbered(1)).expect("it answers"), "now nobody has it any more");
    // What it claims ends with its connection.
    client.put(numbered(2), &[1; 900_000], b"").expect("there is room");
    drop(liar);
    wait_until("it has gone", || client.stats().expect("stats work").clients == 1);
    client.put(numbered(3), &[1; 900_000], b"").expect("nobody holds the other one any more");
    store.assert_serves();
}
