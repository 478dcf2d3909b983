//! The client and a real store together: what a user of the Rust API may rely on, and the
//! weaknesses of the original that can be seen from there (`bNN_…`).
//!
//! What the client puts on the wire is tested in `src/client/tests`, where the store is a script.

mod support;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::Signal;
use plasma::client::{
    CreateOptions, DeleteOutcome, Error, Event, GetOptions, ObjectState, Refusal, Subscription,
};
use plasma::{Client, ObjectBuffer, ObjectId};
use support::{PATIENCE, StoreProcess, Worker, wait_until, worker_part};

const NOW: Option<Duration> = Some(Duration::ZERO);
const FOR_EVER: Option<Duration> = None;

/// Does not evict, does not wait.
const KEEP: CreateOptions = CreateOptions { evict: false, timeout: NOW };
/// Evicts and waits for ever.
const PATIENT: CreateOptions = CreateOptions { evict: true, timeout: FOR_EVER };

fn id(number: u32) -> ObjectId {
    let mut bytes = [0x5a; 20];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes.into()
}

fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<ObjectId> {
    numbers.into_iter().map(id).collect()
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(size: usize, seed: u32) -> Vec<u8> {
    let size = u32::try_from(size).expect("test objects are small");
    (0..size).map(|index| index.wrapping_mul(31).wrapping_add(seed).to_be_bytes()[2]).collect()
}

fn held(client: &Client, object: ObjectId) -> ObjectBuffer {
    client.get_one(object, NOW).expect("get works").expect("the object is there")
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("a refusal was expected: {other:?}"),
    }
}

fn wait_for_waiting(observer: &Client, count: u64) {
    wait_until("so many requests wait", || {
        observer.stats().expect("stats work").waiting_requests == count
    });
}

/// Objects that this client holds, as the store sees it. Its releases so far are counted.
fn held_by(client: &Client) -> u64 {
    let own = client.client_id().expect("it is connected").0;
    let clients = client.clients().expect("clients work");
    clients.iter().find(|client| client.id == own).expect("it is in the list").objects
}

/// Waits in a thread of its own.
fn get_in_thread(
    client: &Client,
    ids: &[ObjectId],
    options: GetOptions,
) -> JoinHandle<Result<Vec<Option<ObjectBuffer>>, Error>> {
    let (client, ids) = (client.clone(), ids.to_vec());
    thread::spawn(move || client.get_with(&ids, options, None))
}

fn list_of(client: &Client) -> BTreeSet<ObjectId> {
    client.list_all().expect("list works").iter().map(|object| object.id).collect()
}

fn next_event(events: &mut Subscription) -> Event {
    events.next_timeout(PATIENCE).expect("the stream goes on").expect("an event comes")
}

fn skip_snapshot(events: &mut Subscription) {
    while next_event(events) != Event::SnapshotEnd {}
}

/// The ids in the order in which they are evicted, one by one, until nothing is left to evict.
fn eviction_order(client: &Client) -> Vec<ObjectId> {
    let mut events = client.subscribe().expect("subscribe works");
    skip_snapshot(&mut events);
    let evicted = client.evict(u64::MAX).expect("evict works");
    let order = (0..evicted.objects).map(|_| match next_event(&mut events) {
        Event::Evicted { id, .. } => id,
        other => panic!("an eviction was expected: {other:?}"),
    });
    order.collect()
}

/// A worker of this binary: a client in a process that can be killed.
#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    let client = Client::connect(socket).expect("the store is there");
    let say = |line: &str| writeln!(std::io::stderr(), "{line}").expect("somebody listens");
    let wait = || {
        // Ends with the process that started this one, at the latest.
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    };
    match part.as_str() {
        "create" => {
            let _writer = client.create(id(1), 1000, 0, CreateOptions::default()).expect("room");
            say("created");
            wait();
        }
        "get twice" => {
            say("getting");
            let _ = client.get(&ids([1, 1, 2]), FOR_EVER);
        }
        "hold" => {
            let _buffer = held(&client, id(1));
            say("held");
            wait();
        }
        other => panic!("no such part: {other}"),
    }
}

#[test]
fn objects_of_every_size_go_from_client_to_client() {
    let store = StoreProcess::start("64M");
    let (producer, consumer) = (store.client(), store.client());
    let sizes = [0, 1, 65_535, 65_536, 65_537, 1 << 20, 20_000_000];
    for (number, size) in (0..).zip(sizes) {
        for (offset, metadata_size) in [(0, 0), (100, 7), (200, 70_000)] {
            let (name, seed) = (id(number + offset), number + offset);
            let (data, metadata) = (pattern(size, seed), pattern(metadata_size, seed + 1));
            if offset == 100 {
                let sizes = (data.len() as u64, metadata.len() as u64);
                let mut writer = producer
                    .create(name, sizes.0, sizes.1, CreateOptions::default())
                    .expect("room");
                writer.write_all(&data).expect("the data fits");
                writer.metadata_mut().copy_from_slice(&metadata);
                let own = writer.seal_and_get().expect("seal works");
                assert!(own.data() == data && own.metadata() == metadata, "{size} bytes");
            } else {
                producer.put(name, &data, &metadata).expect("put works");
            }
            let object = held(&consumer, name);
            assert_eq!(object.data().len(), size);
            assert!(object.data() == data, "{size} bytes of data are the same");
            assert!(
                object.metadata() == metadata,
                "{metadata_size} bytes of metadata are the same"
            );
            assert_eq!(object.data().as_ptr() as usize % 64, 0, "aligned");
            drop(object);
            assert_eq!(consumer.delete_one(name).expect("delete works"), DeleteOutcome::Deleted);
        }
    }
    assert_eq!(producer.stats().expect("stats work").used, 0);
}

#[test]
fn an_object_is_seen_when_it_is_sealed_and_never_when_it_is_aborted() {
    let store = StoreProcess::start("1M");
    let (creator, other) = (store.client(), store.client());
    let create = |size| creator.create(id(1), size, 0, CreateOptions::default()).expect("room");

    let writer = create(10);
    assert_eq!(other.state(id(1)).expect("state works"), ObjectState::Created);
    assert!(other.get_one(id(1), NOW).expect("get works").is_none());
    writer.abort().expect("abort works");
    assert_eq!(other.state(id(1)).expect("state works"), ObjectState::Absent);

    let mut writer = create(20);
    writer.data_mut().fill(7);
    let taken = other.create(id(1), 1, 0, CreateOptions::default());
    assert_eq!(refusal(taken), Refusal::ObjectExists(id(1)));
    writer.seal().expect("seal works");
    assert_eq!(held(&other, id(1)).data(), [7; 20]);
    assert_eq!(refusal(other.put(id(1), b"", b"")), Refusal::ObjectExists(id(1)));
    assert_eq!(held_by(&creator), 0, "a seal lets go");
}

#[test]
fn a_batch_is_all_or_nothing() {
    let store = StoreProcess::start("1M");
    let (producer, consumer) = (store.client(), store.client());
    let batch = |numbers: std::ops::Range<u32>, size: usize| -> Vec<_> {
        numbers.map(|number| (id(number), pattern(size, number), number.to_be_bytes())).collect()
    };
    producer.put_batch(&batch(0..100, 500)).expect("the batch fits");
    let objects = consumer.get(&ids(0..100), NOW).expect("get works");
    for (number, object) in (0..).zip(&objects) {
        let object = object.as_ref().expect("all of the batch is there");
        assert_eq!(object.data(), pattern(500, number));
        assert_eq!(object.metadata(), number.to_be_bytes());
    }
    let before = list_of(&consumer);

    // The last name is taken; the name comes twice; there is no room, since all is held.
    let mut taken = batch(100..150, 10);
    taken.push((id(50), Vec::new(), [0; 4]));
    assert_eq!(refusal(producer.put_batch(&taken)), Refusal::ObjectExists(id(50)));
    let mut twice = batch(100..150, 10);
    twice.push((id(149), Vec::new(), [0; 4]));
    assert_eq!(refusal(producer.put_batch(&twice)), Refusal::ObjectExists(id(149)));
    let large = batch(100..200, 9990);
    assert!(matches!(refusal(producer.put_batch(&large)), Refusal::StoreFull(_)));
    assert_eq!(list_of(&consumer), before);

    drop(objects);
    assert_eq!(held_by(&consumer), 0);
    producer.put_batch(&large).expect("now others can be evicted");
    producer.put_batch::<&[u8], &[u8]>(&[]).expect("nothing is little");
}

#[test]
fn a_wait_ends_when_enough_objects_are_there() {
    let store = StoreProcess::start("1M");
    let (waiter, producer) = (store.client(), store.client());
    let waiting = thread::spawn({
        let waiter = waiter.clone();
        move || waiter.wait(&ids([1, 2, 3, 2]), 2, FOR_EVER)
    });
    wait_for_waiting(&producer, 1);
    producer.put(id(2), b"", b"").expect("put works");
    assert_eq!(producer.stats().expect("stats work").waiting_requests, 1, "one is not two");
    producer.put(id(3), b"", b"").expect("put works");
    let ready = waiting.join().expect("no panic").expect("wait works");
    assert_eq!(ready, [false, true, true, true]);
    assert_eq!(held_by(&waiter), 0, "a wait holds nothing");

    assert_eq!(waiter.wait(&ids([1, 2]), 2, NOW).expect("wait works"), [false, true]);
    assert_eq!(waiter.wait(&ids([1, 2]), 1, FOR_EVER).expect("wait works"), [false, true]);
    assert_eq!(waiter.wait(&[], 0, FOR_EVER).expect("wait works"), [false; 0]);
    let impossible = waiter.wait(&ids([1]), 2, NOW);
    assert!(matches!(impossible, Err(Error::InvalidArgument(_))), "{impossible:?}");
}

#[test]
fn evict_takes_the_oldest_and_nothing_that_is_held() {
    let store = StoreProcess::start("1M");
    let (client, holder) = (store.client(), store.client());
    for number in 0..10 {
        client.put(id(number), &[0; 1000], b"").expect("put works");
    }
    let buffer = held(&holder, id(1));
    let evict = |bytes| {
        let evicted = client.evict(bytes).expect("evict works");
        (evicted.bytes, evicted.objects)
    };
    assert_eq!(evict(0), (0, 0));
    assert_eq!(evict(2500), (3000, 3));
    assert_eq!(list_of(&client), ids([1, 4, 5, 6, 7, 8, 9]).into_iter().collect());
    assert_eq!(evict(u64::MAX), (6000, 6));
    assert_eq!(evict(1), (0, 0));
    assert_eq!(buffer.data(), [0; 1000]);
    assert_eq!(list_of(&client), BTreeSet::from([id(1)]));
}

#[test]
fn refreshed_objects_are_evicted_last() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    for number in 0..5 {
        client.put(id(number), b"data", b"").expect("put works");
    }
    let buffer = held(&client, id(4));
    assert_eq!(client.refresh(&ids([0, 1, 4, 77])).expect("refresh works"), 2);
    assert_eq!(eviction_order(&client), ids([2, 3, 0, 1]));
    drop(buffer);
}

#[test]
fn a_long_list_comes_complete() {
    let store = StoreProcess::start("1M");
    let (client, other) = (store.client(), store.client());
    for part in [0..4096, 4096..5000] {
        let part: Vec<_> = part.map(|number| (id(number), [1; 8], [2; 3])).collect();
        client.put_batch(&part).expect("it fits");
    }
    let _held_twice = (held(&client, id(17)), held(&other, id(17)));
    let writer = other.create(id(5000), 100, 1, CreateOptions::default()).expect("room");
    other.delete(&[id(17)]).expect("delete works");

    let list = client.list_all().expect("list works");
    assert_eq!(list.len(), 5001);
    let names: BTreeSet<_> = list.iter().map(|object| object.id).collect();
    assert_eq!(names, (0..=5000).map(id).collect());
    for object in &list {
        if object.id == writer.id() {
            assert_eq!((object.data_size, object.metadata_size, object.ref_count), (100, 1, 1));
            assert_eq!(object.state, ObjectState::Created);
            assert_eq!(object.creator, Some(other.client_id().expect("connected")));
            assert_eq!(object.construct_duration, None);
            continue;
        }
        assert_eq!((object.data_size, object.metadata_size), (8, 3));
        assert_eq!((object.state, object.creator), (ObjectState::Sealed, None));
        assert!(object.construct_duration.is_some());
        let expected = if object.id == id(17) { (2, true) } else { (0, false) };
        assert_eq!((object.ref_count, object.delete_pending), expected);
    }
}

#[test]
fn a_subscription_tells_what_is_there_and_what_happens() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    let sealed = |number: u32, data_size, metadata_size| Event::Sealed {
        id: id(number),
        data_size,
        metadata_size,
    };
    client.put(id(1), b"12345", b"67").expect("put works");
    client.put(id(2), b"", b"").expect("put works");
    let writer = client.create(id(3), 10, 0, CreateOptions::default()).expect("room");
    let aborted = client.create(id(4), 10, 0, CreateOptions::default()).expect("room");

    let mut events = client.subscribe().expect("subscribe works");
    let mut snapshot = [next_event(&mut events), next_event(&mut events)];
    snapshot.sort_by_key(|event| *event != sealed(1, 5, 2));
    assert_eq!(snapshot, [sealed(1, 5, 2), sealed(2, 0, 0)], "what is not sealed is not told");
    assert_eq!(next_event(&mut events), Event::SnapshotEnd);
    assert_eq!(events.next_timeout(Duration::ZERO).expect("the stream goes on"), None);

    writer.seal().expect("seal works");
    aborted.abort().expect("abort works");
    let batch = [(id(5), &b"abc"[..], &b""[..]), (id(6), b"", b"d")];
    client.put_batch(&batch).expect("put works");
    client.delete(&[id(2)]).expect("delete works");
    client.evict(1).expect("evict works");
    let expected = [
        sealed(3, 10, 0),
        sealed(5, 3, 0),
        sealed(6, 0, 1),
        Event::Deleted { id: id(2), data_size: 0, metadata_size: 0 },
        Event::Evicted { id: id(1), data_size: 5, metadata_size: 2 },
    ];
    for event in expected {
        assert_eq!(next_event(&mut events), event);
    }
    assert_eq!(client.stats().expect("stats work").subscribers, 1);
    drop(events);
    wait_until("the subscriber has gone", || client.stats().expect("stats work").subscribers == 0);
}

#[test]
fn the_numbers_are_right() {
    let store = StoreProcess::start("1000000");
    // What is found without the store is not counted by it.
    let other = Client::builder().directory(false).connect(store.socket()).expect("connected");
    let client = store.client();
    assert_eq!(client.capacity().expect("connected"), 1_000_000);
    assert_eq!(client.server_pid().expect("connected"), store.pid());
    client.put(id(1), &[0; 3000], &[0; 100]).expect("put works");
    client.put(id(2), &[0; 500], b"").expect("put works");
    let _writer = other.create(id(3), 70, 7, CreateOptions::default()).expect("room");
    let _buffer = held(&other, id(2));
    let _ = refusal(client.put(id(1), b"", b""));

    let stats = client.stats().expect("stats work");
    assert_eq!((stats.capacity, stats.used), (1_000_000, 3677));
    assert_eq!((stats.pinned, stats.evictable), (577, 3100));
    assert_eq!((stats.objects, stats.unsealed_objects), (3, 1));
    assert_eq!((stats.clients, stats.waiting_requests, stats.subscribers), (2, 0, 0));
    assert!(stats.largest_free_run <= 1_000_000 - 3677 && stats.largest_free_run > 900_000);
    let counters = ["objects_created", "objects_sealed", "bytes_created", "refusals", "ids_hit"];
    let values = counters.map(|name| stats.counter(name));
    assert_eq!(values, [3, 2, 3677, 1, 1]);
    assert!(stats.counter("frames_received") > 0);

    client.set_quota(500_000).expect("the quota fits");
    client.put(id(4), &[0; 1000], b"").expect("put works");
    let text = client.debug_text().expect("debug text works");
    for line in [
        "num clients with quota: 1",
        "quota map size: 1",
        "pinned quota map size: 0",
        "allocated bytes: 4677",
        "allocation limit: 1000000",
        "pinned bytes: 577",
        "(global lru) capacity: 500000",
        "(global lru) used: 50.31%",
        "(global lru) num objects: 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
}

#[test]
fn clients_and_holders_are_known_by_name_and_process() {
    let store = StoreProcess::start("1M");
    let connect = |name: &str| {
        Client::builder().name(name).connect(store.socket()).expect("the store is there")
    };
    let (reader, writer) = (connect("reader"), connect("writer"));
    writer.put(id(1), &[0; 300], b"").expect("put works");
    let _buffer = held(&reader, id(1));
    let _writer = writer.create(id(2), 40, 0, CreateOptions::default()).expect("room");
    writer.set_name("renamed").expect("the name is short");
    let _events = reader.subscribe().expect("subscribe works");
    let waiting = get_in_thread(&reader, &ids([3]), GetOptions::default());
    wait_for_waiting(&writer, 1);

    let clients = writer.clients().expect("clients work");
    let shown: Vec<_> = clients
        .iter()
        .map(|client| (client.name.as_str(), client.objects, client.bytes, client.unsealed_objects))
        .collect();
    assert_eq!(shown, [("reader", 1, 300, 0), ("renamed", 1, 40, 1), ("reader", 0, 0, 0)]);
    let waits: Vec<_> =
        clients.iter().map(|client| (client.waiting_requests, client.subscribed)).collect();
    assert_eq!(waits, [(1, false), (0, false), (0, true)]);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for client in &clients {
        let identity = (client.pid, client.uid, client.gid);
        assert_eq!(identity, (std::process::id(), uid, gid), "as the socket says");
    }
    let names = |object| -> Vec<_> {
        let holders = writer.holders_of(object).expect("holders work");
        holders.into_iter().map(|client| client.name).collect()
    };
    assert_eq!(names(id(1)), ["reader"]);
    assert_eq!(names(id(2)), ["renamed"]);
    assert_eq!(names(id(3)), [""; 0]);

    writer.put(id(3), b"", b"").expect("put works");
    assert!(waiting.join().expect("no panic").expect("get works")[0].is_some());
}

#[test]
fn quotas_are_given_once_and_within_a_share() {
    let store = StoreProcess::start("10000000");
    let (first, second) = (store.client(), store.client());
    const MIB: u64 = 1 << 20;
    let unavailable = |requested, available| Refusal::QuotaUnavailable { requested, available };
    assert_eq!(refusal(first.set_quota(8 * MIB)), unavailable(8 * MIB, 7_000_000));
    first.set_quota(5 * MIB).expect("it fits");
    assert_eq!(refusal(first.set_quota(MIB)), Refusal::QuotaAlreadySet(5 * MIB));
    let left = 7_000_000 - 5 * MIB;
    assert_eq!(refusal(second.set_quota(3 * MIB)), unavailable(3 * MIB, left));
    second.set_quota(MIB).expect("it fits");
    let too_large = second.create(id(1), MIB, 1, CreateOptions::default());
    let expected = Refusal::QuotaExceeded { requested: MIB + 1, quota: MIB, used: 0 };
    assert_eq!(refusal(too_large), expected);

    first.disconnect();
    let third = store.client();
    third.set_quota(5 * MIB).expect("what a client had comes back when it leaves");
}

#[test]
fn b04_an_id_may_be_named_twice_in_a_get() {
    let mut store = StoreProcess::start("1M");
    let (client, producer) = (store.client(), store.client());
    let all_are = |found: Vec<Option<ObjectBuffer>>, expected: &[&[u8]]| {
        let found: Vec<_> = found.iter().map(|object| object.as_ref().map(|o| o.data())).collect();
        assert_eq!(found, expected.iter().copied().map(Some).collect::<Vec<_>>());
    };
    producer.put(id(1), b"one", b"").expect("put works");
    all_are(client.get(&ids([1, 1]), FOR_EVER).expect("get works"), &[b"one", b"one"]);

    let waiting = get_in_thread(&client, &ids([1, 1, 2]), GetOptions::default());
    wait_for_waiting(&producer, 1);
    producer.put(id(2), b"two", b"").expect("put works");
    let found = waiting.join().expect("no panic").expect("get works");
    all_are(found, &[b"one", b"one", b"two"]);

    let waiting = get_in_thread(&client, &ids([3, 3]), GetOptions::default());
    wait_for_waiting(&producer, 1);
    producer.put(id(3), b"three", b"").expect("put works");
    all_are(waiting.join().expect("no panic").expect("get works"), &[b"three", b"three"]);
    assert_eq!(held_by(&client), 0);

    producer.delete(&ids([1, 2])).expect("delete works");
    let mut waiter = Worker::start("get twice", store.socket());
    waiter.expect("getting");
    wait_for_waiting(&producer, 1);
    waiter.kill();
    wait_for_waiting(&producer, 0);
    producer.put(id(1), b"one", b"").expect("put works");
    assert_eq!(producer.stats().expect("stats work").pinned, 0, "nobody holds it");
    store.assert_serves();
}

#[test]
fn b06_ordinary_calls_do_no_harm() {
    let mut store = StoreProcess::start("1000000");
    let (client, other) = (store.client(), store.client());

    let mut streams = [client.subscribe().expect("once"), client.subscribe().expect("twice")];
    client.put(id(1), b"", b"").expect("put works");
    for events in &mut streams {
        skip_snapshot(events);
        assert!(matches!(next_event(events), Event::Sealed { .. }));
    }

    for (data_size, metadata_size) in [(u64::MAX, 0), (0, u64::MAX), (1 << 63, (1 << 63) - 1)] {
        let created = client.create(id(2), data_size, metadata_size, PATIENT);
        assert!(matches!(refusal(created), Refusal::StoreFull(_)), "and it does not wait");
    }
    let beyond = client.create(id(2), u64::MAX, 1, CreateOptions::default());
    assert!(matches!(beyond, Err(Error::InvalidArgument(_))), "{beyond:?}");
    assert_eq!(client.state(id(2)).expect("state works"), ObjectState::Absent);

    let limited = store.client();
    limited.set_quota(100_000).expect("it fits");
    for _ in 0..3 {
        let writer = limited.create(id(2), 60_000, 0, CreateOptions::default()).expect("room");
        writer.abort().expect("abort works");
    }
    limited.put(id(2), &[0; 60_000], b"").expect("an abort gives the quota back");
    let buffer = held(&limited, id(2));
    assert_eq!(other.delete_one(id(2)).expect("delete works"), DeleteOutcome::DeferredInUse);
    assert_eq!(refusal(limited.put(id(2), b"", b"")), Refusal::ObjectExists(id(2)));
    drop(buffer);
    limited.put(id(2), &[0; 70_000], b"").expect("the name is free again, and the quota");
    store.assert_serves();
}

#[test]
fn b13_a_create_that_can_never_fit_evicts_nothing() {
    let store = StoreProcess::start("1000000");
    let client = store.client();
    for number in 0..10 {
        client.put(id(number), &[0; 50_000], b"").expect("put works");
    }
    let before = list_of(&client);
    let create = |size| refusal(client.create(id(99), size, 0, CreateOptions::default()));
    let Refusal::StoreFull(full) = create(2_000_000) else { panic!("the store is full") };
    assert_eq!((full.requested, full.capacity, full.used), (2_000_000, 1_000_000, 500_000));
    let _buffer = held(&client, id(5));
    let Refusal::StoreFull(full) = create(1_000_000) else { panic!("the store is full") };
    assert_eq!((full.pinned, full.objects), (50_000, 10));
    assert_eq!(list_of(&client), before);
}

#[test]
fn b16_a_view_stays_as_it_is_after_disconnect() {
    let mut store = StoreProcess::start("1000000");
    let (client, other) = (store.client(), store.client());
    let data = pattern(600_000, 3);
    client.put(id(1), &data, b"meta").expect("put works");
    let buffer = held(&client, id(1));
    let slice = buffer.slice(100..200);
    client.disconnect();
    client.disconnect();
    assert!(matches!(client.contains(id(1)), Err(Error::Closed)));

    for _ in 0..10 {
        assert!(matches!(refusal(other.put(id(2), &data, b"")), Refusal::StoreFull(_)));
    }
    assert!(buffer.data() == data && buffer.metadata() == b"meta");
    drop(buffer);
    assert!(matches!(refusal(other.put(id(2), &data, b"")), Refusal::StoreFull(_)));
    assert_eq!(slice[..], data[100..200]);
    drop(slice);
    wait_until("the connection has ended", || other.clients().expect("clients work").len() == 1);
    other.put(id(2), &data, b"").expect("now it is evicted");

    let buffer = held(&other, id(2));
    store.signal(Signal::SIGKILL);
    store.wait();
    assert!(buffer.data() == data, "the death of the store changes nothing");
}

#[test]
fn b17_a_waiting_get_holds_up_no_other_thread() {
    let store = StoreProcess::start("1M");
    let (client, observer) = (store.client(), store.client());
    client.put(id(1), b"other", b"").expect("put works");
    let buffer = held(&client, id(1));
    let waiting = get_in_thread(&client, &ids([2]), GetOptions::default());
    wait_for_waiting(&observer, 1);

    let second = thread::spawn({
        let client = client.clone();
        move || {
            drop(buffer);
            assert_eq!(held_by(&client), 0, "the release has arrived");
            assert!(client.contains(id(1))?);
            assert_eq!(client.stats()?.waiting_requests, 1, "the get still waits");
            client.put(id(2), b"wanted", b"")
        }
    });
    second.join().expect("no panic").expect("put works");
    let found = waiting.join().expect("no panic").expect("get works");
    assert_eq!(found[0].as_ref().expect("it was put").data(), b"wanted");
}

#[test]
fn b17_many_threads_share_a_client() {
    const THREADS: u32 = 8;
    const ROUNDS: u32 = 150;
    let store = StoreProcess::start("4M");
    let client = store.client();
    client.put(id(0), &pattern(5000, 0), b"shared").expect("put works");
    let threads: Vec<_> = (1..=THREADS)
        .map(|thread| {
            let client = client.clone();
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    let number = thread * 10_000 + round;
                    let size = if round % 16 == 0 { 70_000 } else { 100 + round as usize };
                    let data = pattern(size, number);
                    client.put(id(number), &data, &number.to_be_bytes()).expect("room");
                    let found = client.get(&[id(number), id(0)], FOR_EVER).expect("get works");
                    let [Some(own), Some(shared)] = &found[..] else { panic!("both are there") };
                    assert!(own.data() == data && own.metadata() == number.to_be_bytes());
                    assert!(shared.data() == pattern(5000, 0) && shared.metadata() == b"shared");
                    let slice = own.slice(..50);
                    drop(found);
                    assert_eq!(slice[..], data[..50]);
                    drop(slice);
                    let deleted = client.delete_one(id(number)).expect("delete works");
                    assert_eq!(deleted, DeleteOutcome::Deleted);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("what is read is what was put");
    }
    assert_eq!(held_by(&client), 0);
    let stats = client.stats().expect("stats work");
    assert_eq!((stats.objects, stats.used, stats.pinned), (1, 5006, 0));
}

#[test]
fn holds_that_were_granted_to_several_threads_are_all_given_back() {
    const THREADS: usize = 4;
    let store = StoreProcess::start("1M");
    let (client, producer) = (store.client(), store.client());
    let barrier = Arc::new(Barrier::new(THREADS));
    for round in 0..50 {
        let name = id(round);
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (client, barrier) = (client.clone(), Arc::clone(&barrier));
                thread::spawn(move || {
                    let found = client.get(&[name, name], FOR_EVER).expect("get works");
                    // Held by all at once: then each of them was granted, or shares a grant.
                    barrier.wait();
                    assert!(found.iter().flatten().all(|object| object.data() == b"data"));
                })
            })
            .collect();
        wait_for_waiting(&producer, THREADS as u64);
        producer.put(name, b"data", b"").expect("put works");
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(held_by(&client), 0);
    }
}

#[test]
fn what_is_held_is_got_again_without_a_message() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    client.put(id(1), b"one", b"").expect("put works");
    client.put(id(2), b"two", b"").expect("put works");
    let _held = (held(&client, id(1)), held(&client, id(2)));
    let frames = || client.stats().expect("stats work").counter("frames_received");
    let before = frames();
    let clone = client.clone();
    for _ in 0..1000 {
        let found = clone.get(&ids([1, 2, 1]), FOR_EVER).expect("get works");
        assert!(found.iter().all(Option::is_some));
        assert!(client.contains(id(2)).expect("contains works"));
    }
    assert_eq!(frames() - before, 1, "only the question how many");
}

#[test]
fn a_get_of_very_many_ids_has_one_deadline() {
    const COUNT: u32 = 20_000;
    let store = StoreProcess::start("4M");
    let client = store.client();
    let numbers: Vec<u32> = (0..COUNT).collect();
    for part in numbers.chunks(4000) {
        let part: Vec<_> =
            part.iter().map(|number| (id(*number), number.to_be_bytes(), [])).collect();
        client.put_batch(&part).expect("it fits");
    }
    let found = client.get(&ids(0..COUNT), FOR_EVER).expect("get works");
    assert_eq!(found.len(), numbers.len());
    for (number, object) in (0_u32..).zip(&found) {
        assert_eq!(object.as_ref().expect("it was put").data(), number.to_be_bytes());
    }
    assert_eq!(held_by(&client), u64::from(COUNT));
    drop(found);
    assert_eq!(held_by(&client), 0);

    // Something is missing in each part. The first one waits until the time is over; nothing is
    // left of it for the others.
    let waits = || client.stats().expect("stats work").counter("waits");
    let (before, missing) = (waits(), [5, 9000, 19_999]);
    client.delete(&ids(missing)).expect("delete works");
    let found = client.get(&ids(0..COUNT), Some(Duration::from_millis(20))).expect("get works");
    for (number, object) in (0..).zip(&found) {
        assert_eq!(object.is_none(), missing.contains(&number), "object {number}");
    }
    assert_eq!(waits() - before, 1, "only one part waited");
}

#[test]
fn b18_an_own_unsealed_object_is_not_there_yet() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    let mut writer = client.create(id(1), 4, 0, CreateOptions::default()).expect("room");
    assert!(client.get_one(id(1), NOW).expect("get works").is_none());
    let interrupted = client.get_with(&ids([1]), GetOptions::default(), Some(&mut || true));
    assert!(matches!(interrupted, Err(Error::Interrupted)), "{interrupted:?}");
    writer.data_mut().copy_from_slice(b"mine");
    writer.seal().expect("seal works");
    assert_eq!(held(&client, id(1)).data(), b"mine");
}

#[test]
fn b18_the_death_of_the_store_is_an_error_in_every_thread() {
    let mut store = StoreProcess::start("1000000");
    let (client, observer) = (store.client(), store.client());
    client.put(id(1), &[9; 900_000], b"").expect("put works");
    let buffer = held(&client, id(1));

    type Call = fn(&Client) -> Result<(), Error>;
    let calls: [Call; 4] = [
        |client| client.get(&ids([2, 3]), FOR_EVER).map(|_| ()),
        |client| client.wait(&ids([2]), 1, Some(PATIENCE)).map(|_| ()),
        |client| client.create(id(4), 500_000, 0, PATIENT).map(|_| ()),
        |client| client.get_with(&ids([2]), GetOptions::default(), Some(&mut || false)).map(|_| ()),
    ];
    let busy: Call = |client| {
        loop {
            client.put(ObjectId::random(), b"data", b"")?;
            client.list_all()?;
        }
    };
    let threads: Vec<_> = calls
        .into_iter()
        .chain([busy, busy])
        .map(|call| {
            let client = client.clone();
            thread::spawn(move || call(&client))
        })
        .collect();
    wait_for_waiting(&observer, 4);
    let created = observer.stats().expect("stats work").counter("objects_created");
    wait_until("the busy threads are busy", || {
        observer.stats().expect("stats work").counter("objects_created") > created
    });
    store.signal(Signal::SIGKILL);

    for thread in threads {
        let error = thread.join().expect("no panic").expect_err("the store is dead");
        let Error::Disconnected { path, .. } = &error else { panic!("{error:?}") };
        assert_eq!(path, store.socket());
        assert!(error.to_string().contains(&store.socket().display().to_string()), "{error}");
        assert!(error.source().is_some(), "the cause is named");
    }
    let later = client.put(id(5), b"", b"");
    assert!(matches!(later, Err(Error::Disconnected { .. })), "{later:?}");
    assert_eq!(buffer.data(), [9; 900_000]);
    drop(buffer);
    client.disconnect();
    assert!(store.wait().code().is_none(), "it was killed");
}

#[test]
fn b19_an_interrupted_wait_is_forgotten_by_the_store() {
    let store = StoreProcess::start("1000000");
    let (client, observer) = (store.client(), store.client());
    observer.put(id(1), &[0; 900_000], b"").expect("put works");
    let buffer = held(&observer, id(1));

    type Call = fn(&Client, &mut dyn FnMut() -> bool) -> Result<(), Error>;
    let calls: [Call; 4] = [
        |client, flag| client.get_with(&ids([1, 2]), GetOptions::default(), Some(flag)).map(|_| ()),
        |client, flag| client.wait_with(&ids([1, 2]), 2, FOR_EVER, Some(flag)).map(|_| ()),
        |client, flag| client.create_with(id(2), 500_000, 0, PATIENT, Some(flag)).map(|_| ()),
        |client, flag| client.put_with(id(2), &[0; 500_000], b"", PATIENT, Some(flag)),
    ];
    for call in calls {
        let flag = Arc::new(AtomicBool::new(false));
        let waiting = thread::spawn({
            let (client, flag) = (client.clone(), Arc::clone(&flag));
            move || call(&client, &mut || flag.load(Ordering::SeqCst))
        });
        wait_for_waiting(&observer, 1);
        flag.store(true, Ordering::SeqCst);
        let result = waiting.join().expect("no panic");
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!(observer.stats().expect("stats work").waiting_requests, 0);
        assert_eq!(held_by(&client), 0, "what had come is given back");
        assert_eq!(observer.state(id(2)).expect("state works"), ObjectState::Absent);
    }
    drop(buffer);
    client.put(id(2), &[0; 500_000], b"").expect("the client goes on");
}

#[test]
fn b19_a_get_can_be_told_that_the_creator_died() {
    let store = StoreProcess::start("1M");
    let (told, patient, observer) = (store.client(), store.client(), store.client());
    let mut creator = Worker::start("create", store.socket());
    creator.expect("created");
    let fail = GetOptions { fail_if_abandoned: true, ..GetOptions::default() };
    let told_get = get_in_thread(&told, &ids([1]), fail);
    let patient_get = get_in_thread(&patient, &ids([1]), GetOptions::default());
    wait_for_waiting(&observer, 2);
    creator.kill();
    assert_eq!(refusal(told_get.join().expect("no panic")), Refusal::Abandoned(id(1)));
    assert_eq!(observer.stats().expect("stats work").waiting_requests, 1, "the other waits on");
    observer.put(id(1), b"anew", b"").expect("the name is free");
    let found = patient_get.join().expect("no panic").expect("get works");
    assert_eq!(found[0].as_ref().expect("it was put").data(), b"anew");

    // An abort is the same as a death.
    let writer = observer.create(id(2), 1, 0, CreateOptions::default()).expect("room");
    let told_get = get_in_thread(&told, &ids([1, 2]), fail);
    wait_for_waiting(&observer, 1);
    writer.abort().expect("abort works");
    assert_eq!(refusal(told_get.join().expect("no panic")), Refusal::Abandoned(id(2)));
    drop(found);
    assert_eq!((held_by(&told), held_by(&patient)), (0, 0));
}

#[test]
fn b20_an_error_of_connect_names_the_path_and_the_cause() {
    let mut store = StoreProcess::start("1M");
    store.signal(Signal::SIGTERM);
    store.wait();
    let error = Client::builder().retries(0).connect(store.socket()).expect_err("it has gone");
    let text = error.to_string();
    assert!(text.contains(&store.socket().display().to_string()), "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn b21_a_deletion_says_what_became_of_each_object() {
    use DeleteOutcome::{DeferredInUse, DeferredNotSealed, Deleted, NotFound};
    let store = StoreProcess::start("1M");
    let (client, other) = (store.client(), store.client());
    let writer = client.create(id(1), 4, 0, CreateOptions::default()).expect("room");
    client.put(id(2), b"held", b"").expect("put works");
    client.put(id(3), b"idle", b"").expect("put works");
    let buffers = (held(&client, id(2)), held(&other, id(2)));
    let outcomes = other.delete(&ids([9, 1, 2, 3, 3])).expect("delete works");
    assert_eq!(outcomes, [NotFound, DeferredNotSealed, DeferredInUse, Deleted, NotFound]);

    drop(buffers.0);
    assert_eq!(held_by(&client), 1, "only the unsealed one");
    assert!(other.contains(id(2)).expect("contains works"), "somebody still holds it");
    assert_eq!(buffers.1.data(), b"held");
    drop(buffers.1);
    assert!(!other.contains(id(2)).expect("contains works"), "gone with its last holder");

    // A ghost: the deletion was meant for the object that is gone, not for the next one.
    writer.abort().expect("abort works");
    client.put(id(1), b"new", b"").expect("the name is free");
    drop(held(&other, id(1)));
    assert_eq!(held_by(&other), 0);
    assert_eq!(held(&client, id(1)).data(), b"new");

    // Sealed while its deletion waits: its readers have it, then it goes.
    let writer = client.create(id(4), 0, 0, CreateOptions::default()).expect("room");
    let waiting = get_in_thread(&other, &ids([4]), GetOptions::default());
    wait_for_waiting(&client, 1);
    assert_eq!(client.delete_one(id(4)).expect("delete works"), DeferredNotSealed);
    writer.seal().expect("seal works");
    let found = waiting.join().expect("no panic").expect("get works");
    assert!(found[0].is_some());
    drop(found);
    assert!(!other.contains(id(4)).expect("contains works"));
}

#[test]
fn b21_the_death_of_a_creator_takes_a_waiting_deletion_with_it() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    let mut creator = Worker::start("create", store.socket());
    creator.expect("created");
    let outcome = client.delete_one(id(1)).expect("delete works");
    assert_eq!(outcome, DeleteOutcome::DeferredNotSealed);
    creator.kill();
    wait_until("the object has gone", || client.list_all().expect("list works").is_empty());
    client.put(id(1), b"new", b"").expect("the name is free");
    drop(held(&client, id(1)));
    assert_eq!(held(&client, id(1)).data(), b"new");
}

#[test]
fn b22_contains_means_sealed_for_everybody() {
    use ObjectState::{Absent, Created, Sealed};
    let store = StoreProcess::start("1M");
    let (creator, other) = (store.client(), store.client());
    let writer = creator.create(id(1), 4, 0, CreateOptions::default()).expect("room");
    for client in [&creator, &other] {
        assert!(!client.contains(id(1)).expect("contains works"));
        let states = client.states(&ids([1, 2, 1])).expect("states work");
        assert_eq!(states, [Created, Absent, Created]);
    }
    let buffer = writer.seal_and_get().expect("seal works");
    for client in [&creator, &other] {
        assert!(client.contains(id(1)).expect("contains works"));
        assert_eq!(client.state(id(1)).expect("state works"), Sealed);
    }
    drop(buffer);
    assert!(creator.contains(id(1)).expect("contains works"));
}

#[test]
fn b23_a_create_can_wait_for_room() {
    let store = StoreProcess::start("1000000");
    let (holder, creator) = (store.client(), store.client());
    let fill = |number| {
        holder.put(id(number), &[0; 700_000], b"").expect("room");
        held(&holder, id(number))
    };
    let put: fn(&Client) -> Result<(), Error> =
        |client| client.put_with(id(3), &[3; 60_000], b"", PATIENT, None);
    let create: fn(&Client) -> Result<(), Error> = |client| {
        let options = CreateOptions { evict: true, timeout: Some(PATIENCE) };
        client.create(id(3), 500_000, 0, options)?.seal()
    };
    // What is put while it waits travels with the message, so the hold must leave less room.
    for (number, call, more) in [(1, create, 0), (2, put, 299_000)] {
        let buffer = fill(number);
        let rest = holder.create(id(10), more, 0, CreateOptions::default()).expect("room");
        let waiting = thread::spawn({
            let creator = creator.clone();
            move || call(&creator)
        });
        wait_for_waiting(&holder, 1);
        assert!(!holder.contains(id(3)).expect("contains works"));
        drop(buffer);
        waiting.join().expect("no panic").expect("there is room now");
        assert!(holder.contains(id(3)).expect("contains works"));
        assert!(!holder.contains(id(number)).expect("contains works"), "it made room");
        rest.abort().expect("abort works");
        creator.evict(u64::MAX).expect("evict works");
    }
    let _buffer = fill(4);
    let at_once = creator.create(id(3), 500_000, 0, CreateOptions::default());
    assert!(matches!(refusal(at_once), Refusal::StoreFull(full) if full.pinned == 700_000));
    let soon = CreateOptions { evict: true, timeout: Some(Duration::from_millis(5)) };
    let in_vain = creator.create(id(3), 500_000, 0, soon);
    assert!(matches!(refusal(in_vain), Refusal::StoreFull(full) if full.pinned == 700_000));
    let stats = creator.stats().expect("stats work");
    assert_eq!((stats.counter("creates_timed_out"), stats.waiting_requests), (1, 0));
}

#[test]
fn b24_the_order_of_eviction_is_that_of_the_last_release() {
    let store = StoreProcess::start("1M");
    let (client, other) = (store.client(), store.client());
    for number in 0..6 {
        client.put(id(number), b"data", b"").expect("put works");
    }
    let buffers = [held(&other, id(3)), held(&other, id(0)), held(&other, id(1))];
    let [three, zero, one] = buffers;
    let again = held(&other, id(3));
    for buffer in [one, three, zero, again] {
        drop(buffer);
        other.stats().expect("a call makes sure that the release has arrived");
    }
    assert_eq!(eviction_order(&client), ids([2, 4, 5, 1, 0, 3]));
}

#[test]
fn b24_quota_objects_keep_their_order_and_can_be_evicted() {
    let store = StoreProcess::start("10000000");
    let (client, observer) = (store.client(), store.client());
    client.set_quota(5000).expect("it fits");
    for number in 0..5 {
        client.put(id(number), &[0; 1000], b"").expect("put works");
    }
    // By last release, not first in first out; and only what has to go.
    drop(held(&client, id(0)));
    client.put(id(5), &[0; 1000], b"").expect("one of its own makes room");
    assert_eq!(list_of(&observer), ids([0, 2, 3, 4, 5]).into_iter().collect());

    // Without eviction the quota holds all the same.
    let refused = refusal(client.put_with(id(6), &[0; 1000], b"", KEEP, None));
    assert_eq!(refused, Refusal::QuotaExceeded { requested: 1000, quota: 5000, used: 5000 });

    // An explicit evict reaches them.
    let evicted = observer.evict(1).expect("evict works");
    assert_eq!((evicted.bytes, evicted.objects), (1000, 1));
    assert_eq!(list_of(&observer), ids([0, 3, 4, 5]).into_iter().collect());

    // And when their owner leaves, they keep their order.
    client.disconnect();
    assert_eq!(eviction_order(&observer), ids([3, 4, 0, 5]));
}

#[test]
fn b25_an_object_whose_writer_has_gone_is_gone() {
    let store = StoreProcess::start("1M");
    let (client, observer) = (store.client(), store.client());
    drop(client.create(id(1), 1000, 0, CreateOptions::default()).expect("room"));
    client.stats().expect("a call makes sure that the abort has arrived");
    assert!(observer.list_all().expect("list works").is_empty());
    assert_eq!(observer.stats().expect("stats work").used, 0);

    // Writing more than there is room for is an error, and leaves nothing behind.
    let result = client
        .create(id(1), 3, 0, CreateOptions::default())
        .map(|mut writer| writer.write_all(b"more").expect_err("it does not fit").kind());
    assert_eq!(result.expect("room"), std::io::ErrorKind::WriteZero);
    client.stats().expect("a call makes sure that the abort has arrived");
    assert!(observer.list_all().expect("list works").is_empty());
    // Nor does a client that is disconnected with a writer, when that goes.
    let leaving = store.client();
    let writer = leaving.create(id(1), 3, 0, CreateOptions::default()).expect("room");
    leaving.disconnect();
    assert_eq!(observer.list_all().expect("list works").len(), 1);
    drop(writer);
    wait_until("it has gone", || observer.list_all().expect("list works").is_empty());
}

#[test]
fn b25_what_a_killed_process_was_creating_or_holding_is_let_go() {
    let mut store = StoreProcess::start("1M");
    let observer = store.client();
    let mut creator = Worker::start("create", store.socket());
    creator.expect("created");
    assert_eq!(observer.clients().expect("clients work")[1].pid, creator.pid());
    creator.kill();
    wait_until("the object has gone", || observer.list_all().expect("list works").is_empty());

    observer.put(id(1), &[1; 100], b"").expect("put works");
    let mut holder = Worker::start("hold", store.socket());
    holder.expect("held");
    assert_eq!(observer.holders_of(id(1)).expect("holders work")[0].pid, holder.pid());
    assert_eq!(observer.stats().expect("stats work").pinned, 100);
    holder.kill();
    wait_until("nothing is held", || observer.stats().expect("stats work").pinned == 0);
    assert!(observer.contains(id(1)).expect("contains works"), "a sealed object stays");
    store.assert_serves();
}

/// Of one who reads by message, and of one whose table says so. The store may know of both only
/// by what lies in another socket.
#[test]
fn what_another_client_let_go_a_moment_ago_can_be_deleted() {
    // Without a directory it depends on how soon a thread of the other client gets a processor.
    if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_some() {
        return;
    }
    let store = StoreProcess::start("1000000");
    let client = store.client();
    for directory in [false, true] {
        let other = Client::builder().directory(directory).connect(store.socket());
        let other = other.expect("connected");
        for _ in 0..200 {
            client.put(id(1), b"data", b"").expect("put works");
            // So many that they are quick ones.
            (0..40).for_each(|_| drop(held(&other, id(1))));
            let buffer = held(&other, id(1));
            // Now the store wants to be told.
            assert_eq!(client.evict(1).expect("evict works").objects, 0);
            drop(buffer);
            let outcome = client.delete_one(id(1)).expect("delete works");
            assert_eq!(outcome, DeleteOutcome::Deleted);
        }
    }
    store.stop();
}
