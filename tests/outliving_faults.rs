//! What a process reads stays what it was, also when the store has ended its connection for a
//! fault; and the memory comes back when nobody has it any more.
//!
//! The process with the buffers is a worker that is told what to do, line by line. Another client
//! fills the store several times over meanwhile. `PLASMA_TEST_FAULTS` is how often each kind of
//! fault is made.

#![allow(unsafe_code, reason = "fork and _exit; see the notes there")]

mod support;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, close, fork, write};
use plasma::client::{CreateOptions, Refusal};
use plasma::{Client, Error, ObjectBuffer, ObjectWriter};
use support::{PATIENCE, StoreProcess, Worker, hear, numbered, say, wait_until, worker_part};

const CAPACITY: u64 = 1_000_000;
const STORE: &str = "1000000";
/// Objects that are held, and their size: a part of the store, in pieces.
const HELD: u64 = 100;
const BYTES: usize = 4000;
/// Faults of each kind.
const FAULTS: u64 = 34;
/// How often the store is filled after each of them.
const FILLS: u64 = 3;
/// Writers of objects that are never sealed, and their size.
const WRITERS: u64 = 8;
const WRITER_BYTES: u64 = 50_000;
/// Connections of one process that may have ended and be used all the same.
const ENDED_CONNECTIONS: u64 = 16;
/// Ids of what the store is filled with, and of what is never sealed.
const FILLING: u64 = 1 << 40;
const UNSEALED: u64 = 1 << 41;

/// The bytes of an object follow from its number.
fn contents(number: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(number);
    (0..BYTES).map(|_| random.u8(..)).collect()
}

fn count_changed<'a>(held: impl IntoIterator<Item = &'a (u64, ObjectBuffer)>) -> usize {
    held.into_iter().filter(|(number, buffer)| buffer.data() != contents(*number)).count()
}

// ---- the one who holds buffers ------------------------------------------------------------------

#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    assert_eq!(part, "hold");
    let mut holder = Holder { socket, clients: vec![], held: vec![], writers: vec![] };
    while let Some(line) = hear() {
        let (verb, object) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "hold" => holder.hold(object.parse().expect("a number")),
            "write" => holder.write(),
            "break" => holder.break_connections(object),
            "scribble" => holder.writers.iter_mut().for_each(|writer| writer.data_mut().fill(7)),
            "drop" => {
                holder.held.clear();
                holder.writers.clear();
                holder.clients.clear();
            }
            "close" => close_all(),
            "fork" => fork_here(),
            "end" => leave(),
            _ => {}
        }
        match verb {
            "check" => say(count_changed(&holder.held)),
            "connect" => say(holder.connect()),
            _ => say("done"),
        }
    }
    leave();
}

struct Holder {
    socket: PathBuf,
    clients: Vec<Client>,
    held: Vec<(u64, ObjectBuffer)>,
    writers: Vec<ObjectWriter>,
}

impl Holder {
    /// On a new connection, the first so many objects.
    fn hold(&mut self, count: u64) {
        let client = Client::connect(&self.socket).expect("the store is there");
        let ids: Vec<_> = (0..count).map(numbered).collect();
        let found = client.get(&ids, Some(PATIENCE)).expect("get works");
        let found = found.into_iter().map(|object| object.expect("it is there"));
        self.held.extend((0..).zip(found));
        self.clients.push(client);
    }

    /// On a new connection, objects that are never sealed.
    fn write(&mut self) {
        let client = Client::connect(&self.socket).expect("the store is there");
        let create = |number| {
            let id = numbered(UNSEALED + number);
            client.create(id, WRITER_BYTES, 0, CreateOptions::default()).expect("there is room")
        };
        self.writers.extend((0..WRITERS).map(create));
        self.clients.push(client);
    }

    /// Makes the store end all connections, as far as it has not yet.
    fn break_connections(&self, how: &str) {
        if how == "by close" {
            return close_all();
        }
        for client in &self.clients {
            let socket = client.descriptor().expect("it has one");
            // An error means that it has ended already.
            match how {
                "by rubbish" => drop(write(socket, &[0xff; 64])),
                "by shutdown" => drop(shutdown(socket.as_raw_fd(), Shutdown::Both)),
                other => panic!("no such fault: {other}"),
            }
        }
    }

    fn connect(&self) -> String {
        match Client::builder().retries(0).connect(&self.socket) {
            Ok(_) => "connected".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

/// As programs do that become daemons.
fn close_all() {
    for descriptor in 3..1024 {
        let _ = close(descriptor);
    }
}

/// The child goes on; this process stays until it is killed, or the child has ended.
fn fork_here() {
    // SAFETY: the child looks at memory, allocates (the C library makes that safe), reads, writes
    // pipes, closes descriptors, and leaves by `leave`.
    if let ForkResult::Parent { child } = unsafe { fork() }.expect("a process") {
        let _ = waitpid(child, None);
        leave();
    }
}

/// Ends this process without running anything of its parent's.
fn leave() -> ! {
    // SAFETY: ends the process at once.
    unsafe { nix::libc::_exit(0) }
}

// ---- the others ---------------------------------------------------------------------------------

fn start_holder(store: &StoreProcess) -> Worker {
    Worker::start("hold", store.socket())
}

fn order(holder: &mut Worker, line: &str) {
    holder.tell(line);
    holder.expect("done");
}

/// What the holder holds and has changed.
fn changed(holder: &mut Worker) -> usize {
    holder.tell("check");
    holder.hear().parse().expect("a number")
}

/// A store with the objects that are to be held.
fn store_with_objects() -> (StoreProcess, Client) {
    let store = StoreProcess::start(STORE);
    let client = store.client();
    (0..HELD).for_each(|number| put(&client, number));
    (store, client)
}

fn put(client: &Client, number: u64) {
    match client.put(numbered(number), &contents(number), b"") {
        Ok(()) | Err(Error::Refused(Refusal::ObjectExists(_) | Refusal::StoreFull(_))) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Waits until the store has noticed what has become of the other connections: it looks at them in
/// the order in which they have something for it.
fn settle(client: &Client) {
    for _ in 0..4 {
        client.stats().expect("stats work");
    }
}

/// Another client takes all the memory that it can get, several times over.
fn fill(client: &Client) {
    settle(client);
    client.evict(u64::MAX).expect("evict works");
    for number in 0..FILLS * CAPACITY / BYTES as u64 {
        put(client, FILLING + number);
    }
}

/// Waits until all memory can be had again, as at the start.
fn assert_all_free(client: &Client) {
    wait_until("nobody has anything any more", || {
        client.evict(u64::MAX).expect("evict works");
        let stats = client.stats().expect("stats work");
        let bytes = (stats.used, stats.pinned, stats.evictable, stats.largest_free_run);
        bytes == (0, 0, 0, stats.capacity) && (stats.objects, stats.unsealed_objects) == (0, 0)
    });
}

/// Has the holder drop everything. Rust ends a program that drops what it has closed, so the one
/// that has is replaced by a new one.
fn let_go(store: &StoreProcess, mut holder: Worker, fault: &str) -> Worker {
    if fault == "by close" {
        holder.kill();
        return start_holder(store);
    }
    order(&mut holder, "drop");
    holder
}

fn faults() -> u64 {
    std::env::var("PLASMA_TEST_FAULTS")
        .map_or(FAULTS, |faults| faults.parse().expect("PLASMA_TEST_FAULTS is a number"))
}

fn bytes_stay_after_a_fault(fault: &str) {
    let store = StoreProcess::start(STORE);
    let faults = faults();
    let _limit = store.limit(PATIENCE + Duration::from_secs(faults));
    let client = store.client();
    let mut holder = start_holder(&store);
    let mut all_changed = 0;
    for _ in 0..faults {
        (0..HELD).for_each(|number| put(&client, number));
        order(&mut holder, &format!("hold {HELD}"));
        order(&mut holder, &format!("break {fault}"));
        fill(&client);
        all_changed += changed(&mut holder);
        holder = let_go(&store, holder, fault);
        assert_all_free(&client);
    }
    let buffers = faults * HELD;
    println!("{fault}: {all_changed} of {buffers} buffers changed");
    assert_eq!(all_changed, 0, "of {buffers} buffers after a fault {fault}");
}

#[test]
fn bytes_stay_after_rubbish_on_the_socket() {
    bytes_stay_after_a_fault("by rubbish");
}

#[test]
fn bytes_stay_after_a_shutdown_of_the_socket() {
    bytes_stay_after_a_fault("by shutdown");
}

#[test]
fn bytes_stay_after_all_descriptors_were_closed() {
    bytes_stay_after_a_fault("by close");
}

#[test]
fn the_memory_comes_back_when_the_holder_is_killed() {
    for fault in [None, Some("break by rubbish"), Some("break by close")] {
        let (store, client) = store_with_objects();
        let _limit = store.limit(PATIENCE);
        let mut holder = start_holder(&store);
        order(&mut holder, &format!("hold {HELD}"));
        order(&mut holder, "write");
        if let Some(fault) = fault {
            order(&mut holder, fault);
        }
        fill(&client);
        assert_eq!(changed(&mut holder), 0, "{fault:?}");
        holder.kill();
        assert_all_free(&client);
    }
}

/// A child outlives the process that has got the buffers. What that does before it is forked, and
/// what the child does then.
fn a_child_keeps_the_bytes(before: &[&str], after: &[&str]) {
    let (store, client) = store_with_objects();
    let _limit = store.limit(PATIENCE);
    let mut holder = start_holder(&store);
    order(&mut holder, &format!("hold {HELD}"));
    before.iter().for_each(|line| order(&mut holder, line));
    order(&mut holder, "fork");
    after.iter().for_each(|line| order(&mut holder, line));
    holder.kill();
    fill(&client);
    assert_eq!(changed(&mut holder), 0, "of the child's");
    holder.tell("end");
    assert_all_free(&client);
}

#[test]
fn a_child_that_outlives_the_holder_keeps_the_bytes() {
    a_child_keeps_the_bytes(&[], &[]);
}

#[test]
fn a_child_that_has_closed_all_descriptors_keeps_the_bytes() {
    a_child_keeps_the_bytes(&[], &["close"]);
}

#[test]
fn a_child_that_was_forked_after_a_fault_keeps_the_bytes() {
    a_child_keeps_the_bytes(&["break by rubbish"], &[]);
    a_child_keeps_the_bytes(&["break by close"], &["close"]);
}

#[test]
fn a_writer_whose_connection_has_ended_harms_nobody() {
    for fault in ["by rubbish", "by shutdown", "by close"] {
        let store = StoreProcess::start(STORE);
        let _limit = store.limit(PATIENCE);
        let client = store.client();
        let mut holder = start_holder(&store);
        order(&mut holder, "write");
        order(&mut holder, &format!("break {fault}"));
        fill(&client);
        let sealed: Vec<_> = (0..FILLS * CAPACITY / BYTES as u64)
            .map(|number| FILLING + number)
            .filter_map(|number| Some((number, got(&client, number)?)))
            .collect();
        assert!(sealed.len() >= 100, "{} objects", sealed.len());
        order(&mut holder, "scribble");
        assert_eq!(count_changed(&sealed), 0, "of {} sealed objects, {fault}", sealed.len());
        drop(sealed);
        let _holder = let_go(&store, holder, fault);
        assert_all_free(&client);
    }
}

fn got(client: &Client, number: u64) -> Option<ObjectBuffer> {
    client.get_one(numbered(number), Some(Duration::ZERO)).expect("get works")
}

#[test]
fn a_process_with_many_ended_connections_is_refused_another_one() {
    let (store, client) = store_with_objects();
    let _limit = store.limit(PATIENCE);
    let mut holder = start_holder(&store);
    for _ in 0..ENDED_CONNECTIONS {
        order(&mut holder, "hold 1");
        order(&mut holder, "break by shutdown");
        settle(&client);
    }
    let mut answer = || {
        holder.tell("connect");
        holder.hear()
    };
    let refused = answer();
    assert!(refused.contains(&ENDED_CONNECTIONS.to_string()), "names the limit: {refused:?}");
    // Others may.
    can_connect(store.socket());
    order(&mut holder, "drop");
    wait_until("it may again", || {
        holder.tell("connect");
        holder.hear() == "connected"
    });
    holder.kill();
    assert_all_free(&client);
}

fn can_connect(socket: &Path) {
    Client::builder().retries(0).connect(socket).expect("the store accepts");
}
