//! A client does not wait for the store when it seals. That must not show: whoever knows of a seal
//! finds the object sealed, and what was sealed stays, even if its creator dies at that moment.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plasma::client::{CreateOptions, DeleteOutcome, Error, GetOptions};
use plasma::{Client, ObjectId};
use support::{Ends, PATIENCE, StoreProcess, Worker, is_found, numbered, wait_until, worker_part};

/// Objects that are sealed one after the other and told of.
const ROUNDS: u64 = 3000;

/// Workers that die.
const DEATHS: u64 = 16;

fn seal(client: &Client, id: ObjectId) {
    let mut writer = client.create(id, 8, 0, CreateOptions::default()).expect("there is room");
    writer.data_mut().copy_from_slice(b"the data");
    writer.seal().expect("the store is there");
}

#[test]
fn who_is_told_of_a_seal_finds_the_object_sealed() {
    let store = StoreProcess::start("10000000");
    let by_message = Client::builder().directory(false);
    let (sealer, finder) = (store.client(), store.client());
    let asker = by_message.connect(store.socket()).expect("the store is there");
    let noisy = [finder.clone(), asker.clone()];
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each has something to say already when it comes to know: its socket is read in any case.
        for client in noisy {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    client.contains(numbered(u64::MAX)).expect("contains works");
                }
            });
        }
        let _ends = Ends(&is_over);
        let (tell, told) = mpsc::sync_channel(0);
        scope.spawn(move || {
            for number in 0..ROUNDS {
                seal(&sealer, numbered(number));
                if tell.send(number).is_err() {
                    break;
                }
            }
        });
        for number in told {
            let id = numbered(number);
            let client = if number.is_multiple_of(2) { &finder } else { &asker };
            assert!(is_found(client, id, number), "object {number} was sealed");
            // Who has let go of it is its creator, and that came with the seal.
            assert_eq!(client.delete_one(id).expect("delete works"), DeleteOutcome::Deleted);
        }
    });
    assert_eq!(asker.stats().expect("stats work").objects, 0);
}

#[test]
fn what_was_sealed_stays_if_its_creator_dies_at_that_moment() {
    let store = StoreProcess::start("10000000");
    let observer = store.client();
    for number in 0..DEATHS {
        let mut worker = Worker::start("seal and die", store.socket());
        worker.tell(&number.to_string());
        let object = observer.get_one(numbered(number), Some(PATIENCE)).expect("get works");
        assert_eq!(object.as_deref(), Some(&b"the data"[..]), "round {number}");
        worker.kill();
    }
    wait_until("nothing of the dead is left", || {
        let stats = observer.stats().expect("stats work");
        (stats.clients, stats.unsealed_objects, stats.waiting_requests) == (1, 0, 0)
    });
}

#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    assert_eq!(part, "seal and die");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a number comes");
    let number = line.trim().parse().expect("it is a number");
    let client = Client::connect(socket).expect("the store is there");
    // Answers that nobody reads any more are on their way to it.
    let get = || client.start_get(&[numbered(number)], GetOptions::default()).expect("get works");
    let pending: Vec<_> = (0..200).map(|_| get()).collect();
    seal(&client, numbered(number));
    kill(Pid::this(), Signal::SIGKILL).expect("it may");
    drop(pending);
}

#[test]
fn a_seal_does_not_wait_for_a_store_that_is_stopped() {
    let store = StoreProcess::start("10000000");
    let (client, observer) = (store.client(), store.client());
    let writer = client.create(numbered(1), 8, 0, CreateOptions::default()).expect("room");
    store.pause();
    writer.seal().expect("the socket takes it");
    store.resume();
    assert!(observer.contains(numbered(1)).expect("contains works"));
}

#[test]
fn a_store_that_has_ended_has_no_sealed_objects() {
    let mut store = StoreProcess::start("10000000");
    let client = store.client();
    let create = |number| client.create(numbered(number), 8, 0, CreateOptions::default());
    let writers = [1, 2].map(|number| create(number).expect("room"));
    store.signal(Signal::SIGKILL);
    store.wait();
    for writer in writers {
        let error = writer.seal().expect_err("nobody has heard of it");
        assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    }
}

#[test]
fn more_seals_than_a_socket_takes_wait_for_nothing_and_none_is_lost() {
    let store = StoreProcess::start("10000000");
    let (client, observer) = (store.client(), store.client());
    let count = 20_000;
    let create = |number| client.create(numbered(number), 8, 0, CreateOptions::default());
    let writers: Vec<_> = (0..count).map(|number| create(number).expect("room")).collect();
    store.pause();
    for writer in writers {
        writer.seal().expect("the store goes on");
    }
    store.resume();
    let stats = observer.stats().expect("stats work");
    assert_eq!((stats.objects, stats.unsealed_objects), (count, 0));
}
