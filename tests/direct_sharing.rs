//! What readers that do not ask the store have in common with those that do: objects that they use
//! stay longer, any number of threads may read at a time, and nobody has to hear of it.

mod support;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use plasma::{Client, Error, ObjectBuffer};
use support::{StoreProcess, numbered, wait_until};

const NOT_AT_ALL: Option<Duration> = Some(Duration::ZERO);

/// Objects that fill a store of 64 KiB, nearly.
const OBJECTS: u64 = 16;
const BYTES: usize = 4000;

fn read(client: &Client, number: u64) -> Option<ObjectBuffer> {
    client.get_one(numbered(number), NOT_AT_ALL).expect("get works")
}

fn put(client: &Client, number: u64) {
    client.put(numbered(number), &[1; BYTES], b"").expect("there is room");
}

/// A full store whose objects are of the same age, in the order of their numbers.
fn full(arguments: &[&str]) -> StoreProcess {
    let store = StoreProcess::start_with(&[&["-m", "64K"], arguments].concat(), |_| {});
    let client = store.client();
    (0..OBJECTS).for_each(|number| put(&client, number));
    store
}

fn left(client: &Client) -> Vec<u64> {
    let is_there = |number: &u64| client.contains(numbered(*number)).expect("contains works");
    (0..OBJECTS).filter(is_there).collect()
}

#[test]
fn what_is_read_last_goes_last() {
    // What is used again goes after all that was used once, if the policy makes a difference.
    for (policy, in_the_end) in [("lru", [0, 3].as_slice()), ("slru", &[0, 3, 5])] {
        let store = full(&["--eviction-policy", policy]);
        let (reader, writer) = (store.client(), store.client());
        for number in [5, 0, 3] {
            drop(read(&reader, number).expect("it is there"));
            // The order of reads is known as far as requests of anybody come in between.
            reader.stats().expect("stats work");
        }
        for number in 100..113 {
            put(&writer, number);
        }
        assert_eq!(left(&writer), [0, 3, 5], "{policy}");
        put(&writer, 113);
        assert_eq!(left(&writer), in_the_end, "{policy}");
    }
}

#[test]
fn what_a_reader_has_read_who_has_gone_goes_last_as_well() {
    let store = full(&[]);
    let (reader, writer) = (store.client(), store.client());
    for number in [2, 7] {
        drop(read(&reader, number).expect("it is there"));
    }
    drop(reader);
    wait_until("it has gone", || writer.stats().expect("stats work").clients == 1);
    for number in 100..114 {
        put(&writer, number);
    }
    assert_eq!(left(&writer), [2, 7]);
}

#[test]
fn what_is_read_between_two_requests_is_younger_than_the_first_one() {
    let store = StoreProcess::start("64K");
    let (reader, writer) = (store.client(), store.client());
    let all: Vec<_> = (0..OBJECTS).map(|number| (numbered(number), [1; BYTES], [0; 0])).collect();
    writer.put_batch(&all).expect("there is room");
    drop(read(&reader, 0).expect("it is there"));
    (100..115).for_each(|number| put(&writer, number));
    assert_eq!(left(&writer), [0]);
}

#[test]
fn the_owner_of_a_quota_loses_first_what_nobody_reads() {
    let store = StoreProcess::start("1M");
    let (owner, reader) = (store.client(), store.client());
    owner.set_quota(10 * BYTES as u64).expect("there is room");
    (0..10).for_each(|number| put(&owner, number));
    // Nobody who reads without the store waits until it has heard of the last seal.
    owner.stats().expect("stats work");
    drop(read(&reader, 0).expect("it is there"));
    drop(read(&reader, 4).expect("it is there"));
    (100..108).for_each(|number| put(&owner, number));
    assert_eq!(left(&reader), [0, 4]);
}

#[test]
fn the_store_hears_nothing_of_a_hundred_thousand_reads() {
    if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_some() {
        return;
    }
    let store = full(&[]);
    let client = store.client();
    let requests = || {
        let counters = client.stats().expect("stats work").counters;
        counters.iter().find(|(name, _)| name == "requests").expect("they are counted").1
    };
    // The first one maps the memory.
    drop(read(&client, 0));
    let before = requests();
    let ids: Vec<_> = (0..OBJECTS).map(numbered).collect();
    for _ in 0..5000 {
        assert!(client.get(&ids, None).expect("get works").iter().all(Option::is_some));
        assert!(client.contains(ids[3]).expect("contains works"));
        assert!(read(&client, 5).is_some());
    }
    assert_eq!(requests(), before + 1, "nothing but the question itself");
}

#[test]
fn a_store_that_is_killed_is_not_read_any_more() {
    let mut store = full(&[]);
    let client = store.client();
    let held = read(&client, 1).expect("it is there");
    store.signal(nix::sys::signal::Signal::SIGKILL);
    store.wait();
    // What is held stays what it is.
    assert_eq!(held.data(), [1; BYTES]);
    let found = client.get_one(numbered(2), NOT_AT_ALL);
    assert!(matches!(found, Err(Error::Disconnected { .. })), "{found:?}");
    let contained = client.contains(numbered(2));
    assert!(matches!(contained, Err(Error::Disconnected { .. })), "{contained:?}");
}

#[test]
fn a_client_whose_connection_is_cut_reads_no_more() {
    let store = StoreProcess::start("1M");
    let (client, other) = (store.client(), store.client());
    (0..3).for_each(|number| put(&other, number));
    let held = read(&client, 1).expect("it is there");
    // As somebody does who closes all descriptors that he finds.
    let cut = client.descriptor().expect("it is connected");
    nix::sys::socket::shutdown(cut.as_raw_fd(), nix::sys::socket::Shutdown::Both).expect("cut");
    wait_until("it is told", || {
        let found = client.get_one(numbered(2), NOT_AT_ALL);
        matches!(found, Err(Error::Disconnected { .. }))
    });
    assert!(client.contains(numbered(2)).is_err());
    assert_eq!(other.stats().expect("stats work").clients, 2, "it has a buffer still");
    drop(held);
    if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_some() {
        // A client without a table cannot say that it has let go: only its end does.
        drop(client);
    }
    wait_until("nothing is left of it", || other.stats().expect("stats work").clients == 1);
}

#[test]
fn clients_that_connect_in_any_order_are_all_seen() {
    const CLIENTS: usize = 24;
    let mut store = StoreProcess::start("1M");
    let asker = store.client();
    put(&asker, 1);
    let early: Vec<_> = (0..4).map(|_| store.raw_peer()).collect();
    for _ in 0..10 {
        let buffers: Vec<_> = std::thread::scope(|scope| {
            let connect = || read(&store.client(), 1).expect("it is there");
            let readers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(connect)).collect();
            readers.into_iter().map(|reader| reader.join().expect("no panic")).collect()
        });
        let holders = asker.holders_of(numbered(1)).expect("it is known");
        assert_eq!(holders.len(), CLIENTS);
        assert_eq!(asker.list_all().expect("list works")[0].ref_count as usize, CLIENTS);
        drop(buffers);
        wait_until("they have gone", || asker.stats().expect("stats work").clients == 1);
    }
    for mut peer in early {
        peer.connect();
    }
    assert_eq!(asker.stats().expect("stats work").pinned, 0);
    store.assert_serves();
}

#[test]
fn statistics_of_very_many_pins_are_right() {
    const MANY: u64 = 20_000;
    let store = StoreProcess::start("10M");
    let (client, others) = (store.client(), [store.client(), store.client()]);
    let ids: Vec<_> = (0..MANY).map(numbered).collect();
    for part in ids.chunks(4000) {
        let objects: Vec<_> = part.iter().map(|id| (*id, [7; 10], [0; 0])).collect();
        client.put_batch(&objects).expect("there is room");
    }
    let pinned = || client.stats().expect("stats work").pinned;
    assert_eq!(pinned(), 0);
    // Whoever else reads it, an object is in use once.
    let all = others[0].get(&ids, None).expect("get works");
    let half = others[1].get(&ids[..ids.len() / 2], None).expect("get works");
    assert_eq!(pinned(), MANY * 10);
    let text = client.debug_text().expect("it is known");
    assert!(text.contains(&format!("pinned bytes: {}", MANY * 10)), "{text}");
    drop(all);
    wait_until("half of it is in use", || pinned() == MANY * 5);
    drop(half);
    wait_until("nothing is in use", || pinned() == 0);
}

#[test]
fn every_answer_of_a_large_get_is_that_of_its_own_id() {
    let store = StoreProcess::start_with(&["-m", "1M"], |_| {});
    let (writer, reader) = (store.client(), store.client());
    let content = |number: u64| number.to_le_bytes();
    let is_there = |number: &u64| number % 3 != 1 && *number < 200;
    for number in (0..300).filter(is_there) {
        writer.put(numbered(number), &content(number), &[9; 3]).expect("there is room");
    }
    let mut random = Rng::with_seed(5);
    for count in [0, 1, 2, 15, 16, 17, 32, 33, 500] {
        let asked: Vec<u64> = (0..count).map(|_| random.u64(..300)).collect();
        let ids: Vec<_> = asked.iter().map(|number| numbered(*number)).collect();
        let found = reader.get(&ids, NOT_AT_ALL).expect("get works");
        assert_eq!(found.len(), asked.len());
        for (number, object) in asked.iter().zip(&found) {
            let bytes = object.as_ref().map(|object| (object.data(), object.metadata()));
            let expected = content(*number);
            let expected = is_there(number).then_some((expected.as_slice(), [9; 3].as_slice()));
            assert_eq!(bytes, expected, "object {number} of {count}");
        }
        let at_hand = reader.get_at_hand(&ids).expect("get works");
        assert_eq!(at_hand.is_some(), asked.iter().all(is_there), "{count}");
        ObjectBuffer::release_all(found.into_iter().flatten().chain(at_hand.into_iter().flatten()));
        // Without a directory a long release takes the store several slices.
        wait_until("nothing is in use", || writer.stats().expect("stats work").pinned == 0);
    }
}

#[test]
fn any_number_of_threads_read_with_one_client() {
    const THREADS: u64 = 8;
    const ROUNDS: usize = 30_000;
    let store = StoreProcess::start("1M");
    let (client, writer) = (store.client(), store.client());
    // The bytes of an object say which one it is, and are all the same.
    let make = |number: u64| {
        let byte = u8::try_from(number).expect("few objects");
        writer.put(numbered(number), &[byte; 300], b"").map(drop)
    };
    (0..32).for_each(|number| make(number).expect("there is room"));
    let (is_over, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|seed| {
                let (client, seen) = (client.clone(), &seen);
                scope.spawn(move || {
                    let mut random = Rng::with_seed(seed);
                    let mut held = Vec::new();
                    for _ in 0..ROUNDS {
                        let number = random.u64(..32);
                        let Some(object) = read(&client, number) else { continue };
                        assert!(object.iter().all(|byte| u64::from(*byte) == number));
                        held.push(object);
                        if held.len() > 5 {
                            held.swap_remove(random.usize(..5));
                        }
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        // Objects go and come back, in other places and slots.
        scope.spawn(|| {
            let mut random = Rng::with_seed(99);
            while !is_over.load(Ordering::Relaxed) {
                let number = random.u64(..32);
                writer.delete_one(numbered(number)).expect("delete works");
                wait_until("it has gone", || make(number).is_ok());
            }
        });
        for reader in readers {
            reader.join().expect("every byte is right");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner() > ROUNDS, "they have found something most of the time");
    let pinned = || writer.stats().expect("stats work").pinned;
    wait_until("all has been given back", || pinned() == 0);
    let ids: Vec<_> = (0..32).map(numbered).collect();
    writer.delete(&ids).expect("delete works");
    assert_eq!(writer.stats().expect("stats work").objects, 0);
}
