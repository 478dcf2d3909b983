//! A thousand clients at once, of which two hundred are killed in the middle of what they do: the
//! others do not notice, and nothing of the dead remains.

mod support;

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plasma::client::{CreateOptions, DeleteOutcome};
use plasma::{Client, ObjectId};
use support::{PATIENCE, StoreProcess, Worker, wait_until, worker_part};

/// Processes of one client that are killed.
const VICTIMS: u32 = 200;
/// Processes that go on to the end.
const SURVIVORS: u32 = 8;
/// Clients in each of these.
const CLIENTS_PER_SURVIVOR: u32 = 100;
/// Objects that are there for everybody.
const SHARED: u32 = 16;
/// What a client does at most, should nobody end it.
const ROUNDS_MAX: u32 = 20_000;
/// What a survivor does after the others have been killed.
const ROUNDS_AFTER: u32 = 5;

fn id(client: u32, round: u32) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&client.to_be_bytes());
    bytes[4..8].copy_from_slice(&round.to_be_bytes());
    bytes.into()
}

/// The shared objects are those of client 0.
fn contents(client: u32, round: u32) -> Vec<u8> {
    // Now and then large enough to be written in place.
    let size = if round % 7 == 3 { 70_000 } else { 100 + client % 50 };
    (0..size).map(|index| (index ^ client ^ round).to_le_bytes()[0]).collect()
}

fn assert_is(client: &Client, owner: u32, round: u32) {
    let found = client.get_one(id(owner, round), Some(PATIENCE)).expect("get works");
    let object = found.expect("it was put");
    assert!(object.data() == contents(owner, round), "object {round} of client {owner}");
    assert_eq!(object.metadata(), owner.to_be_bytes());
}

/// Puts, gets what it and others have put, deletes.
fn play_round(client: &Client, number: u32, round: u32) {
    let metadata = number.to_be_bytes();
    client.put(id(number, round), &contents(number, round), &metadata).expect("put works");
    assert_is(client, number, round);
    assert_is(client, 0, (number + round) % SHARED);
    let outcome = client.delete_one(id(number, round)).expect("delete works");
    assert_eq!(outcome, DeleteOutcome::Deleted);
}

#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    let (part, number) = part.split_once(' ').expect("a part and a number");
    let number = number.parse().expect("a number");
    match part {
        "victim" => be_victim(&socket, number),
        "survivor" => be_survivors(&socket, number),
        other => panic!("no such part: {other}"),
    }
}

fn hear_line() {
    // The end of the test is as good as a line.
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}

/// Is killed while it holds an object, writes one, waits for one, and is busy.
fn be_victim(socket: &Path, number: u32) {
    let client = Client::connect(socket).expect("the store accepts");
    eprintln!("connected");
    hear_line();
    let _held = client.get_one(id(0, 0), None).expect("get works").expect("it is there");
    let unsealed = id(number, u32::MAX);
    let _writer = client.create(unsealed, 1000, 0, CreateOptions::default()).expect("room");
    thread::spawn({
        let client = client.clone();
        move || client.get_one(unsealed, None)
    });
    for round in 0..ROUNDS_MAX {
        play_round(&client, number, round);
        if round == 2 {
            eprintln!("working");
        }
    }
}

/// Many clients, a thread for each, until somebody says a line.
fn be_survivors(socket: &Path, first: u32) {
    let is_over = Arc::new(AtomicBool::new(false));
    let all_connected = Arc::new(Barrier::new(CLIENTS_PER_SURVIVOR as usize + 1));
    let may_start = Arc::new(Barrier::new(CLIENTS_PER_SURVIVOR as usize + 1));
    let threads: Vec<_> = (first..first + CLIENTS_PER_SURVIVOR)
        .map(|number| {
            let socket = socket.to_owned();
            let is_over = Arc::clone(&is_over);
            let (all_connected, may_start) = (Arc::clone(&all_connected), Arc::clone(&may_start));
            thread::spawn(move || {
                let client = Client::connect(socket).expect("the store accepts");
                all_connected.wait();
                may_start.wait();
                let mut round = 0;
                while round < ROUNDS_MAX && !is_over.load(Ordering::SeqCst) {
                    play_round(&client, number, round);
                    round += 1;
                }
                (0..ROUNDS_AFTER).for_each(|more| play_round(&client, number, round + more));
            })
        })
        .collect();
    all_connected.wait();
    eprintln!("connected");
    hear_line();
    may_start.wait();
    hear_line();
    is_over.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no client saw anything wrong");
    }
}

#[test]
fn a_thousand_clients_of_which_two_hundred_are_killed() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    let mut store = StoreProcess::start("256M");
    let observer = store.client();
    for round in 0..SHARED {
        let data = contents(0, round);
        observer.put(id(0, round), &data, &0_u32.to_be_bytes()).expect("put works");
    }
    // The observer has its descriptors for reading and writing now.
    store.assert_serves();
    let stats = || observer.stats().expect("stats work");
    wait_until("only the observer is connected", || stats().clients == 1);
    let (before, descriptors_before) = (stats(), store.open_descriptors());

    let mut victims: Vec<_> = (0..VICTIMS)
        .map(|index| Worker::start(&format!("victim {}", 1 + index), store.socket()))
        .collect();
    let mut survivors: Vec<_> = (0..SURVIVORS)
        .map(|index| {
            let first = 1000 + index * CLIENTS_PER_SURVIVOR;
            Worker::start(&format!("survivor {first}"), store.socket())
        })
        .collect();
    for worker in victims.iter_mut().chain(&mut survivors) {
        worker.expect("connected");
    }
    assert_eq!(stats().clients, 1 + u64::from(VICTIMS + SURVIVORS * CLIENTS_PER_SURVIVOR));

    for worker in victims.iter_mut().chain(&mut survivors) {
        worker.tell("go");
    }
    for victim in &mut victims {
        victim.expect("working");
    }
    assert!(stats().unsealed_objects >= u64::from(VICTIMS));
    for victim in &mut victims {
        victim.kill();
    }
    for survivor in &mut survivors {
        survivor.tell("end");
    }
    for survivor in survivors {
        survivor.finish();
    }

    wait_until("all have left", || stats().clients == 1);
    let after = stats();
    assert_eq!((after.pinned, after.unsealed_objects, after.waiting_requests), (0, 0, 0));
    wait_until("all sockets are closed", || store.open_descriptors() == descriptors_before);
    assert_eq!(after.counter("protocol_errors"), 0);
    // What the dead had sealed and not deleted yet is the store's, and can be deleted.
    let left: Vec<_> = observer
        .list()
        .map(|object| object.expect("list works").id)
        .filter(|object| object.as_bytes()[..4] != [0; 4])
        .collect();
    assert!(left.len() <= VICTIMS as usize, "{} objects are left", left.len());
    let outcomes = observer.delete(&left).expect("delete works");
    assert!(outcomes.iter().all(|outcome| *outcome == DeleteOutcome::Deleted));
    let after = stats();
    assert_eq!((after.used, after.objects), (before.used, before.objects));
    assert_eq!(after.largest_free_run, before.largest_free_run);
    for round in 0..SHARED {
        assert_is(&observer, 0, round);
    }
    store.assert_serves();
}
