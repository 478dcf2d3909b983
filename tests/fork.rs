//! Clients and `fork` (weakness B7): a child may use its parent's client, and whatever it does with
//! what it inherited, the parent does not notice.
//!
//! A child here does little: what it tests, one answer through a pipe, `_exit`. It neither prints
//! nor panics, since a thread that exists only in its parent may hold the locks for that.
//! The tests take turns, because a child inherits the sockets of all of them.

#![allow(unsafe_code, reason = "fork and _exit; see the notes there")]

mod support;

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use std::{fs, iter};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use plasma::client::{CreateOptions, Error, GetOptions, ObjectState, Refusal};
use plasma::{Client, ObjectBuffer, ObjectId};
use support::{PATIENCE, StoreProcess, Worker, wait_until, worker_part};

const CAPACITY: &str = "1000000";
/// Of this size there is room for one object.
const LARGE: usize = 600_000;

fn id(number: u8) -> ObjectId {
    [number; 20].into()
}

fn held(client: &Client, object: ObjectId) -> ObjectBuffer {
    client.get_one(object, Some(PATIENCE)).expect("get works").expect("the object is there")
}

/// One test at a time.
fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` in the child.
fn fork_here() -> Option<Pid> {
    // SAFETY: the child only calls the client (whose use after a fork is what is tested), reads and
    // writes pipes, allocates (the C library makes that safe), and leaves by `leave`.
    match unsafe { fork() }.expect("a process") {
        ForkResult::Child => None,
        ForkResult::Parent { child } => Some(child),
    }
}

/// Ends a child without running anything of its parent's.
fn leave(went_well: bool) -> ! {
    // SAFETY: ends the process at once.
    unsafe { nix::libc::_exit(i32::from(!went_well)) }
}

fn assert_went_well(child: Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)), "the child went well");
}

/// What two processes tell each other, byte by byte.
struct Talk {
    listen: PipeReader,
    tell: PipeWriter,
}

fn talk() -> (Talk, Talk) {
    let (here, there) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
    (Talk { listen: here.0, tell: there.1 }, Talk { listen: there.0, tell: here.1 })
}

impl Talk {
    /// False if there is nobody any more.
    fn say(&mut self) -> bool {
        self.tell.write_all(b".").is_ok()
    }

    /// False if there is nobody any more.
    fn hear(&mut self) -> bool {
        self.listen.read_exact(&mut [0]).is_ok()
    }
}

/// Tries to push everything out that can be evicted.
fn is_pinned(other: &Client, object: ObjectId) -> bool {
    let pressure = other.create(id(200), LARGE as u64, 0, CreateOptions::default());
    let is_full = matches!(pressure, Err(Error::Refused(Refusal::StoreFull(_))));
    assert!(is_full || pressure.is_ok(), "{pressure:?}");
    assert_eq!(other.contains(object).expect("contains works"), is_full);
    is_full
}

/// Holds an object until it is killed, and has a child that was not forked but started.
#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    assert_eq!(part, "hold and start another program");
    let client = Client::connect(socket).expect("the store is there");
    client.create(id(2), 1, 0, CreateOptions::default()).expect("room").seal().expect("seal works");
    let _buffer = held(&client, id(1));
    // It reads what is for us, and ends when nobody can say anything any more.
    let mut cat = Command::new("cat");
    cat.stdout(Stdio::null()).stderr(Stdio::null());
    let mut cat = cat.spawn().expect("every system has it");
    eprintln!("{}", cat.id());
    let _ = cat.wait();
}

#[test]
fn b07_what_a_child_drops_stays_the_parents() {
    let _turn = my_turn();
    let mut store = StoreProcess::start(CAPACITY);
    let (client, other) = (store.client(), store.client());
    client.put(id(1), &[1; LARGE], b"meta").expect("put works");
    let buffer = held(&client, id(1));
    let slice = buffer.slice(..10);
    let mut writer = client.create(id(2), 10, 0, CreateOptions::default()).expect("room");
    writer.data_mut().fill(2);

    let Some(child) = fork_here() else {
        let is_readable = buffer.data() == [1; LARGE] && buffer.metadata() == b"meta";
        drop((writer, slice, buffer, client));
        leave(is_readable)
    };
    assert_went_well(child);
    assert!(is_pinned(&other, id(1)));
    assert_eq!(other.state(id(2)).expect("state works"), ObjectState::Created);
    assert!(buffer.data() == [1; LARGE] && buffer.metadata() == b"meta");
    writer.seal().expect("the writer is the parent's");
    assert_eq!(held(&other, id(2)).data(), [2; 10]);

    // The parent's own release counts, and only that.
    drop(buffer);
    client.stats().expect("the connection is in order");
    assert!(is_pinned(&other, id(1)), "there is still the slice");
    drop(slice);
    client.stats().expect("a call makes sure that the release has arrived");
    assert!(!is_pinned(&other, id(1)));
    store.assert_serves();
}

#[test]
fn b07_a_child_that_exits_with_live_buffers_releases_nothing() {
    let _turn = my_turn();
    let mut store = StoreProcess::start(CAPACITY);
    let (client, other) = (store.client(), store.client());
    client.put(id(1), &[1; LARGE], b"").expect("put works");
    let buffer = held(&client, id(1));
    for _ in 0..10 {
        let Some(child) = fork_here() else { leave(buffer.data() == [1; LARGE]) };
        assert_went_well(child);
        assert!(is_pinned(&other, id(1)));
    }
    assert!(buffer.data() == [1; LARGE]);
    store.assert_serves();
}

#[test]
fn a_child_cannot_finish_what_its_parent_writes() {
    let _turn = my_turn();
    let store = StoreProcess::start(CAPACITY);
    let client = store.client();
    let writers = [1, 2]
        .map(|number| client.create(id(number), 10, 0, CreateOptions::default()).expect("room"));
    let mut events = client.subscribe().expect("subscribe works");
    let Some(child) = fork_here() else {
        let [seal, abort] = writers;
        let results = [seal.seal(), abort.abort(), events.next_timeout(PATIENCE).map(|_| ())];
        leave(results.iter().all(|result| matches!(result, Err(Error::Inherited(_)))))
    };
    assert_went_well(child);
    for writer in writers {
        assert_eq!(client.state(writer.id()).expect("state works"), ObjectState::Created);
        writer.seal().expect("seal works");
    }
    assert!(events.next().expect("the stream goes on").is_ok());
}

#[test]
fn a_child_uses_a_connection_of_its_own() {
    const ROUNDS: u32 = 200;
    let _turn = my_turn();
    let mut store = StoreProcess::start(CAPACITY);
    let (client, other) = (store.client(), store.client());
    client.put(id(1), b"parent's", b"").expect("put works");
    let buffer = held(&client, id(1));
    // In the middle of a call of another thread, so that locks and the socket are in use.
    let waiting = thread::spawn({
        let client = client.clone();
        move || client.get_one(id(100), None)
    });
    wait_until("the thread waits", || other.stats().expect("stats work").waiting_requests == 1);

    let parents_id = client.client_id().expect("it is connected");
    let (mut here, mut there) = talk();
    let Some(child) = fork_here() else {
        drop(here);
        let own_id = client.client_id().ok();
        let went_well = own_id.is_some_and(|own| own != parents_id)
            && client.put(id(2), b"child's", b"").is_ok()
            && there.say()
            && there.hear()
            && (0..ROUNDS).all(|round| puts_and_gets(&client, "child", round))
            && buffer.data() == b"parent's"
            && client.client_id().ok() == own_id;
        leave(went_well)
    };
    drop(there);
    assert!(here.hear(), "the child is ready");
    assert_eq!(held(&client, id(2)).data(), b"child's");
    let clients = client.clients().expect("clients work");
    let child_pid = u32::try_from(child.as_raw()).expect("a process id");
    let of_child: Vec<_> = clients.iter().filter(|client| client.pid == child_pid).collect();
    assert_eq!(of_child.len(), 1, "{clients:?}");
    assert_ne!(of_child[0].id, parents_id.0);
    assert_eq!(clients.len(), 3);
    let parent = clients.iter().find(|client| client.id == parents_id.0).expect("still there");
    assert_eq!((parent.pid, parent.waiting_requests), (std::process::id(), 1));
    assert_eq!(of_child[0].name, parent.name, "the name is inherited");

    // Both at the same time: on one socket their messages would mix.
    assert!(here.say());
    assert!((0..ROUNDS).all(|round| puts_and_gets(&client, "parent", round)));
    assert_went_well(child);
    assert_eq!(client.client_id().expect("it is connected"), parents_id);
    wait_until("the child's connection has ended", || {
        client.clients().expect("clients work").len() == 2
    });
    other.put(id(100), b"waited for", b"").expect("put works");
    let found = waiting.join().expect("no panic").expect("get works").expect("it was put");
    assert_eq!(found.data(), b"waited for");
    assert_eq!(client.stats().expect("stats work").counter("protocol_errors"), 0);
    store.assert_serves();
}

fn puts_and_gets(client: &Client, who: &str, round: u32) -> bool {
    let data: Vec<u8> = iter::repeat_n(who.as_bytes(), 20).flatten().copied().collect();
    let name = ObjectId::random();
    client.put(name, &data, &round.to_be_bytes()).is_ok()
        && client.get_one(name, Some(PATIENCE)).is_ok_and(|found| {
            found.is_some_and(|object| {
                object.data() == data && object.metadata() == round.to_be_bytes()
            })
        })
}

/// A child that connects, holds an object, forks a child that inherits the hold, and dies. The
/// grandchild speaks when it is there, and when it has read the object, just before `end` gets all
/// that was inherited.
fn orphan_with_a_buffer(store: &StoreProcess, end: fn(Client, ObjectBuffer)) -> (Pid, Talk) {
    let (here, mut there) = talk();
    let Some(child) = fork_here() else {
        // Or it would wait for itself, should the test fail.
        drop(here);
        let Ok(client) = Client::connect(store.socket()) else { leave(false) };
        let Ok(Some(buffer)) = client.get_one(id(1), None) else { leave(false) };
        if fork_here().is_some() {
            leave(true);
        }
        if there.say() && there.hear() && buffer.data() == [1; LARGE] && there.say() {
            end(client, buffer);
            there.say();
            there.hear();
        }
        leave(true)
    };
    (child, here)
}

fn an_orphan_keeps_its_buffer_until(end: fn(Client, ObjectBuffer)) {
    let _turn = my_turn();
    let mut store = StoreProcess::start(CAPACITY);
    let other = store.client();
    other.put(id(1), &[1; LARGE], b"").expect("put works");
    let (parent, mut here) = orphan_with_a_buffer(&store, end);
    assert!(here.hear(), "the grandchild is ready");
    assert_went_well(parent);

    assert!(is_pinned(&other, id(1)), "although its holder is dead");
    let holders = other.holders_of(id(1)).expect("holders work");
    let holders: Vec<_> = holders.iter().map(|client| i32::try_from(client.pid)).collect();
    assert_eq!(holders, [Ok(parent.as_raw())]);

    here.say();
    assert!(here.hear(), "the grandchild can read it");
    wait_until("the hold is given back", || {
        other.holders_of(id(1)).expect("holders work").is_empty()
    });
    assert!(!is_pinned(&other, id(1)));
    // Lets a grandchild that did not exit before go.
    here.say();
    store.assert_serves();
}

#[test]
fn the_buffer_of_an_orphan_is_pinned_until_it_is_dropped() {
    an_orphan_keeps_its_buffer_until(|client, buffer| drop((client, buffer)));
}

#[test]
fn the_buffer_of_an_orphan_is_pinned_until_it_exits() {
    an_orphan_keeps_its_buffer_until(|_client, _buffer| leave(true));
}

#[test]
fn the_buffer_of_an_orphan_is_pinned_even_if_it_connects_anew() {
    an_orphan_keeps_its_buffer_until(|client, buffer| {
        // A buffer of its own goes with its own connection.
        let own = client.get_one(id(1), None);
        if !own.is_ok_and(|own| own.is_some_and(|own| own.data() == buffer.data())) {
            leave(false);
        }
    });
}

#[test]
fn a_program_that_a_client_starts_keeps_nothing_open() {
    let _turn = my_turn();
    let mut store = StoreProcess::start(CAPACITY);
    let client = store.client();
    client.put(id(1), &[1; LARGE], b"").expect("put works");
    let mut worker = Worker::start("hold and start another program", store.socket());
    let program = format!("/proc/{}", worker.hear());
    assert!(is_pinned(&client, id(1)));

    let descriptors = fs::read_dir(format!("{program}/fd")).expect("the program runs");
    for descriptor in descriptors {
        // Some may be closed meanwhile: they are none of ours.
        let Ok(target) = fs::read_link(descriptor.expect("a name").path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        assert!(!target.contains("socket:") && !target.contains("memfd:"), "{target}");
    }

    worker.kill();
    wait_until("the hold is given back", || {
        client.holders_of(id(1)).expect("holders work").is_empty()
    });
    let name = fs::read_to_string(format!("{program}/comm")).expect("the program still runs");
    assert_eq!(name.trim(), "cat");
    assert!(!is_pinned(&client, id(1)));
    store.assert_serves();
}

#[test]
fn what_is_pending_at_a_fork_stays_the_parents() {
    let _turn = my_turn();
    let store = StoreProcess::start(CAPACITY);
    let (client, other) = (store.client(), store.client());
    let mut pending = client.start_get(&[id(1)], GetOptions::default()).expect("it is sent");
    let waits = || other.stats().expect("stats work").waiting_requests == 1;
    wait_until("the get waits", waits);
    let Some(child) = fork_here() else {
        let is_inherited = matches!(pending.try_take(), Err(Error::Inherited(_)));
        drop(pending);
        // Connects anew, and has nothing to take in there.
        leave(is_inherited && client.receive_ready().is_ok() && client.descriptor().is_ok());
    };
    assert_went_well(child);
    assert!(waits(), "the child's drop cancels nothing");
    other.put(id(1), b"data", b"").expect("there is room");
    let mut found = None;
    wait_until("the parent gets it", || {
        client.receive_ready().expect("the store lives");
        found = pending.try_take().expect("the store lives");
        found.is_some()
    });
    assert_eq!(&found.expect("it came")[0].as_ref().expect("it was put")[..], b"data");
    store.stop();
}

/// As programs do that lock themselves in once they have all that they need. `poll` fails then.
#[test]
fn a_client_that_has_forbidden_itself_more_descriptors_waits_all_the_same() {
    const A_WHILE: Duration = Duration::from_millis(100);
    let _turn = my_turn();
    let store = StoreProcess::start(CAPACITY);
    let Some(child) = fork_here() else {
        let client = store.client();
        // What comes with the first get needs a descriptor.
        let has_got = client.put(id(1), b"data", b"").is_ok()
            && matches!(client.get_one(id(1), None), Ok(Some(_)));
        let is_locked_in = setrlimit(Resource::RLIMIT_NOFILE, 0, 0).is_ok();
        let comes_in_vain = matches!(client.get_one(id(2), Some(A_WHILE)), Ok(None));
        let has_put = client.put(id(2), b"data", b"").is_ok();
        let later = client.get_one(id(3), Some(PATIENCE));
        let went_well = has_got && is_locked_in && comes_in_vain && has_put;
        leave(went_well && matches!(later, Ok(Some(_))));
    };
    let client = store.client();
    held(&client, id(2));
    wait_until("the child waits", || client.stats().expect("stats work").waiting_requests == 1);
    client.put(id(3), b"later", b"").expect("there is room");
    assert_went_well(child);
    store.stop();
}
