//! A hundred thousand objects: what is done to all of them is done in parts, and others are served
//! in between.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use plasma::client::{CreateOptions, Event};
use plasma::protocol::message::{Reply, Request};
use plasma::{Client, ObjectId};
use support::{PATIENCE, StoreProcess, numbered};

const OBJECTS: u64 = 100_000;
const BATCH: u64 = 2000;

fn fill(client: &Client) {
    for first in (0..OBJECTS).step_by(BATCH.try_into().unwrap()) {
        let batch: Vec<_> =
            (first..first + BATCH).map(|number| (numbered(number), b"x", b"")).collect();
        client.put_batch(&batch).expect("there is room");
    }
}

fn slices(client: &Client) -> u64 {
    let counters = client.stats().expect("the store answers").counters;
    counters.into_iter().find(|(name, _)| name == "slices").expect("it is counted").1
}

/// What another client saw of the number of objects while `work` went on.
fn seen_meanwhile(store: &StoreProcess, work: impl FnOnce()) -> Vec<u64> {
    let other = store.client();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::Relaxed) && seen.len() < 1_000_000 {
                seen.push(other.stats().expect("the store answers").objects);
            }
            seen
        });
        work();
        is_over.store(true, Ordering::Relaxed);
        looker.join().expect("the looker does not panic")
    })
}

/// On one processor the store may do it all before the other client runs once.
fn assert_seen_in_parts(store: &StoreProcess, client: &Client, mut work: impl FnMut()) {
    for _ in 0..5 {
        fill(client);
        let before = slices(client);
        let seen = seen_meanwhile(store, &mut work);
        assert_eq!(client.stats().expect("the store answers").objects, 0);
        assert!(slices(client) > before + OBJECTS / 2000, "it was done in slices");
        if seen.iter().any(|objects| (1..OBJECTS).contains(objects)) {
            return;
        }
    }
    panic!("nobody was served in between");
}

#[test]
fn others_are_served_during_a_mass_eviction() {
    let store = StoreProcess::start("64M");
    let client = store.client();
    assert_seen_in_parts(&store, &client, || {
        assert_eq!(client.evict(u64::MAX).expect("it evicts").objects, OBJECTS);
    });
}

#[test]
fn others_are_served_while_room_is_made_and_while_a_holder_of_very_much_leaves() {
    let store = StoreProcess::start("16M");
    let client = store.client();
    fill(&client);
    let mut holder = store.raw_client();
    let all: Vec<_> = (0..OBJECTS).map(numbered).collect();
    for ids in all.chunks(8192) {
        let get = Request::Get { ids: ids.to_vec(), timeout: None, fail_if_abandoned: false };
        assert!(matches!(holder.call(get), Reply::Objects(places) if !places.contains(&None)));
    }
    let before = slices(&client);
    drop(holder);
    let large = ObjectId::random();
    // It needs all memory, and so it has to wait for what the other one leaves.
    let patient = CreateOptions { timeout: Some(PATIENCE), ..CreateOptions::default() };
    let put = client.put_with(large, &vec![1; 16_000_000], b"", patient, None);
    put.expect("everything else can go");
    assert!(client.contains(large).expect("the store answers"));
    assert!(slices(&client) > before + OBJECTS / 2000, "it was done in slices");
    assert_eq!(client.stats().expect("the store answers").objects, 1);
}

#[test]
fn a_list_and_a_subscription_name_each_object_once() {
    let store = StoreProcess::start("16M");
    let client = store.client();
    fill(&client);
    let mut listed: Vec<_> = client.list().map(|object| object.expect("it is listed").id).collect();
    listed.sort_unstable();
    let mut all: Vec<_> = (0..OBJECTS).map(numbered).collect();
    all.sort_unstable();
    assert!(listed == all, "{} objects were listed", listed.len());
    let events = client.subscribe().expect("one may subscribe");
    let mut told: Vec<_> = events
        .map(|event| event.expect("the stream goes on"))
        .take_while(|event| *event != Event::SnapshotEnd)
        .map(|event| match event {
            Event::Sealed { id, data_size: 1, metadata_size: 0 } => id,
            other => panic!("{other:?} in a snapshot"),
        })
        .collect();
    told.sort_unstable();
    assert!(told == all, "{} objects were told", told.len());
}
