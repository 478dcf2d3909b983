//! Programs that talk outside of the store: one seals objects and tells another one, through a
//! pipe. Whoever was told finds the object, whatever else both do, and whatever the store is busy
//! with.
//!
//! `PLASMA_TEST_SEALS` is how many objects are told of in the longest of these tests.

mod support;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use nix::unistd::Pid;
use plasma::client::{CreateOptions, DeleteOutcome, GetOptions, ObjectState, PendingGet};
use plasma::protocol::message::{Reply, Request};
use plasma::time::{Clock, Timestamp};
use plasma::{Client, ObjectId, ObjectWriter};
use support::{
    Ends, PATIENCE, RawPeer, StoreProcess, Worker, hear, is_found, numbered, say, wait_until,
    worker_part,
};

const NOW: Option<Duration> = Some(Duration::ZERO);
const DATA: &[u8; 8] = b"the data";

/// Objects that are told of.
const SEALS: u64 = 4000;
/// The same, where the store has less room than objects need.
const TIGHT_SEALS: u64 = 500;
/// Most time that one of them may take.
const SEAL_PATIENCE: Duration = Duration::from_millis(20);
/// How often the store is stopped while many seals are on their way to it, and how many.
const STOPS: u64 = 10;
const MANY: u64 = 500;
/// More than they need in a socket.
const MANY_BYTES: usize = 1 << 20;
/// Tellers that die.
const DEATHS: u64 = 12;
/// Gets whose answers are left unread, and objects in each of them: some MiB.
const UNREAD_GETS: usize = 100;
const UNREAD_OBJECTS: u64 = 2000;
/// Ids of these, and of what is never sealed.
const UNREAD: u64 = 1 << 40;
const UNSEALED: u64 = 1 << 41;
/// And of what is sealed before the object that counts.
const OTHERS: u64 = 1 << 42;

/// How long the store stays stopped when a seal waits for it, or for no reason.
const STOP: Duration = Duration::from_millis(300);
const SHORT_STOP: Duration = Duration::from_millis(1);
const BETWEEN_STOPS: Duration = Duration::from_millis(25);

fn create(client: &Client, number: u64, size: u64) -> ObjectWriter {
    client.create(numbered(number), size, 0, CreateOptions::default()).expect("there is room")
}

fn seal(mut writer: ObjectWriter) {
    writer.data_mut()[..DATA.len()].copy_from_slice(DATA);
    writer.seal().expect("the store is there");
}

/// One that asks for everything, and so has no table either.
fn by_message(store: &StoreProcess) -> Client {
    Client::builder().directory(false).connect(store.socket()).expect("the store is there")
}

// ---- those who tell -----------------------------------------------------------------------------

#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    let words: Vec<_> = part.split(' ').collect();
    let builder = Client::builder().directory(words[0] == "reader");
    let client = builder.connect(socket).expect("the store is there");
    let number = |index: usize| words[index].parse::<u64>().expect("a number");
    match words[1] {
        "one" => busily(&client, || tell_one_by_one(&client, number(2), number(3))),
        "many" => tell_of_many(&client),
        "busy" => busily(&client, || seal_and_die(&client, number(2), 0)),
        "die" => seal_and_die(&client, number(2), 0),
        "many-die" => seal_and_die(&client, number(2), MANY),
        "unread" => leave_answers_unread(&client, number(2)),
        other => panic!("no such part: {other}"),
    }
}

/// Does something while other threads use the same client for what the store has to look into.
fn busily(client: &Client, work: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    let uses: [fn(&Client); 3] = [
        |client| drop(client.stats().expect("stats work")),
        |client| drop(client.clients().expect("clients work")),
        |client| assert_eq!(client.evict(0).expect("evict works").objects, 0),
    ];
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        for use_it in uses {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    use_it(client);
                }
            });
        }
        work();
    });
}

/// Goes on when the one who was told has looked.
fn tell_one_by_one(client: &Client, seals: u64, size: u64) {
    for number in 0..seals {
        seal(create(client, number, size));
        say(number);
        hear().expect("it was looked for");
    }
}

/// Rounds of many objects, of which is told when all of them are sealed.
fn tell_of_many(client: &Client) {
    make_room_for_many(client);
    let mut first = 0;
    while hear().is_some() {
        let numbers = first..first + MANY;
        let writers: Vec<_> = numbers.map(|number| create(client, number, 8)).collect();
        say("created");
        hear().expect("the store is stopped");
        writers.into_iter().for_each(seal);
        say("sealed");
        first += MANY;
    }
}

/// So that many seals go into the socket of a store that does not read.
fn make_room_for_many(client: &Client) {
    let socket = client.descriptor().expect("it is connected");
    setsockopt(&socket, SndBuf, &MANY_BYTES).expect("it can be set");
}

/// Seals this object after some others, and leaves one unsealed.
fn seal_and_die(client: &Client, number: u64, others: u64) {
    make_room_for_many(client);
    let _unsealed = create(client, UNSEALED + number, 8);
    let first = OTHERS + number * MANY;
    let others: Vec<_> = (first..first + others).map(|other| create(client, other, 8)).collect();
    let writer = create(client, number, 8);
    say("created");
    hear().expect("it may seal");
    others.into_iter().for_each(seal);
    seal(writer);
    say("sealed");
    kill(Pid::this(), Signal::SIGKILL).expect("it may");
}

/// As an event loop does that has no time for its answers.
fn leave_answers_unread(client: &Client, size: u64) {
    let writer = create(client, 0, size);
    let ids: Vec<_> = (UNREAD..UNREAD + UNREAD_OBJECTS).map(numbered).collect();
    let get = || client.start_get(&ids, GetOptions::default()).expect("it is sent");
    let pending: Vec<_> = (0..UNREAD_GETS).map(|_| get()).collect();
    say("asked");
    hear().expect("all is answered");
    seal(writer);
    say("sealed");
    hear();
    drop(pending);
}

// ---- those who are told -------------------------------------------------------------------------

/// Both kinds of tellers: with a table in shared memory and without.
const TELLERS: [&str; 2] = ["reader", "asker"];

fn start(store: &StoreProcess, part: impl AsRef<str>) -> Worker {
    Worker::start(part.as_ref(), store.socket())
}

/// What was asked, and how often the answer was that a told object is not there.
#[derive(Debug, Default)]
struct Tally {
    seals: u64,
    questions: u64,
    denials: u64,
}

impl Tally {
    fn note(&mut self, is_found: bool) {
        self.questions += 1;
        self.denials += u64::from(!is_found);
    }

    /// In a form that `scripts/soak.sh` understands.
    fn assert_none_denied(&self) {
        let Self { seals, questions, denials } = self;
        println!("{seals} seals told, {questions} questions asked, {denials} denied");
        assert!(*denials == 0, "{denials} of {questions} answers deny what was told");
    }
}

/// Somebody who is always creating something, until it is over.
fn create_and_abort(client: &Client, is_over: &AtomicBool) {
    let _unsealed = create(client, UNSEALED, 8);
    while !is_over.load(Ordering::Relaxed) {
        create(client, UNSEALED + 1, 8).abort().expect("abort works");
    }
}

/// The store is stopped now and then, until it is over.
fn stop_now_and_then(store: &StoreProcess, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        thread::park_timeout(BETWEEN_STOPS);
        store.pause();
        thread::park_timeout(SHORT_STOP);
        store.resume();
    }
}

/// Does something as soon as each of so many objects has been told of, and tallies how often it
/// worked, while everybody is busy.
fn ask_one_by_one(
    store: &StoreProcess,
    teller: &str,
    (seals, size): (u64, u64),
    mut ask: impl FnMut(u64, &mut Tally),
) {
    let _limit = store.limit(PATIENCE + SEAL_PATIENCE * u32::try_from(seals).expect("so few"));
    let mut teller = start(store, format!("{teller} one {seals} {size}"));
    let creator = store.client();
    let is_over = AtomicBool::new(false);
    let mut tally = Tally { seals, ..Tally::default() };
    thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| create_and_abort(&creator, &is_over));
        scope.spawn(|| stop_now_and_then(store, &is_over));
        for number in 0..seals {
            teller.expect(&number.to_string());
            ask(number, &mut tally);
            teller.tell("go on");
        }
    });
    teller.finish();
    tally.assert_none_denied();
}

fn who_is_told_finds_it(teller: &str) {
    let seals = std::env::var("PLASMA_TEST_SEALS")
        .map_or(SEALS, |seals| seals.parse().expect("PLASMA_TEST_SEALS is a number"));
    let store = StoreProcess::start("64M");
    let askers = [store.client(), by_message(&store)];
    ask_one_by_one(&store, teller, (seals, 8), |number, tally| {
        let client = &askers[usize::from(number.is_multiple_of(2))];
        if !number.is_multiple_of(6) {
            tally.note(is_found(client, numbered(number), number));
        }
        let deleted = client.delete_one(numbered(number)).expect("delete works");
        tally.note(deleted == DeleteOutcome::Deleted);
    });
}

#[test]
fn who_is_told_by_a_busy_program_finds_the_object() {
    who_is_told_finds_it("reader");
}

#[test]
fn who_is_told_by_a_busy_program_without_a_table_finds_the_object() {
    who_is_told_finds_it("asker");
}

#[test]
fn who_is_told_by_a_busy_program_has_the_room_of_the_object() {
    let store = StoreProcess::start("1M");
    let client = store.client();
    ask_one_by_one(&store, "reader", (TIGHT_SEALS, 600_000), |_, tally| {
        // Aborted at once, so that the next one has its room.
        let made = client.create(numbered(UNREAD), 600_000, 0, CreateOptions::default());
        tally.note(made.is_ok());
        if let Ok(made) = made {
            made.abort().expect("abort works");
        } else {
            wait_until("the object can be evicted", || {
                client.evict(1).expect("it works").bytes > 0
            });
        }
    });
}

/// Has many seals told of while the store is stopped, and lets it go on when `ask` has been called:
/// or a little later, should the seals wait for it.
fn while_stopped(store: &StoreProcess, teller: &mut Worker, ask: impl FnOnce()) {
    store.pause();
    thread::scope(|scope| {
        let (is_over, over) = mpsc::channel::<()>();
        scope.spawn(move || {
            let _ = over.recv_timeout(STOP);
            store.resume();
        });
        teller.tell("the store is stopped");
        teller.expect("sealed");
        ask();
        drop(is_over);
    });
}

fn taken(client: &Client, mut pending: PendingGet) -> bool {
    let mut found = None;
    wait_until("it is answered", || {
        client.receive_ready().expect("the store lives");
        found = pending.try_take().expect("the store lives");
        found.is_some()
    });
    found.is_some_and(|found| found[0].is_some())
}

/// What a raw peer asks about an object, and whether the answer is that it is sealed.
type Question = (fn(ObjectId) -> Request, fn(&Reply, ObjectId) -> bool);

fn questions() -> Vec<Question> {
    vec![
        (
            |id| Request::Get { ids: vec![id], timeout: NOW, fail_if_abandoned: false },
            |reply, _| matches!(reply, Reply::Objects(found) if found[0].is_some()),
        ),
        (
            |id| Request::Wait { ids: vec![id], count: 1, timeout: NOW },
            |reply, _| *reply == Reply::Ready(vec![true]),
        ),
        (
            |id| Request::GetState { ids: vec![id] },
            |reply, _| *reply == Reply::States(vec![ObjectState::Sealed]),
        ),
        (
            |_| Request::List { cursor: 0 },
            |reply, id| {
                let Reply::ObjectList { objects, .. } = reply else { return false };
                objects.iter().any(|it| it.id == id && it.state == ObjectState::Sealed)
            },
        ),
        // The others do not find it any more.
        (
            |id| Request::Delete { ids: vec![id] },
            |reply, _| {
                let Reply::Deleted(outcomes) = reply else { return false };
                matches!(outcomes[0], DeleteOutcome::Deleted | DeleteOutcome::DeferredInUse)
            },
        ),
    ]
}

/// Until nothing is left of what nobody holds.
fn evict_all(observer: &Client) {
    wait_until("all is gone", || {
        observer.evict(u64::MAX).expect("evict works");
        observer.stats().expect("stats work").objects == 0
    });
}

fn answer(peer: &mut RawPeer) -> Reply {
    let mut answer = peer.receive().expect("an answer").reply;
    // A list comes in parts.
    while let Reply::ObjectList { objects, next: Some(cursor) } = answer {
        answer = peer.call(Request::List { cursor });
        let Reply::ObjectList { objects: more, .. } = &mut answer else {
            panic!("no list: {answer:?}")
        };
        more.extend(objects);
    }
    answer
}

#[test]
fn who_is_told_of_the_last_of_many_finds_it_when_a_stopped_store_goes_on() {
    let store = StoreProcess::start("10000000");
    let _limit = store.limit(PATIENCE);
    let observer = store.client();
    for kind in TELLERS {
        let mut teller = start(&store, format!("{kind} many"));
        let mut tally = Tally { seals: STOPS * MANY, ..Tally::default() };
        for round in 0..STOPS {
            teller.tell("create");
            teller.expect("created");
            let last = numbered((round + 1) * MANY - 1);
            let client = store.client();
            let mut asked: Vec<_> =
                questions().into_iter().map(|question| (store.raw_client(), question)).collect();
            let mut pending = None;
            while_stopped(&store, &mut teller, || {
                let options = GetOptions { timeout: NOW, ..GetOptions::default() };
                // Before the others, of which one deletes it.
                pending = Some(client.start_get(&[last], options).expect("it is sent"));
                for (peer, (ask, _)) in &mut asked {
                    peer.request(ask(last));
                }
            });
            tally.note(taken(&client, pending.expect("it was asked for")));
            for (peer, (_, is_sealed)) in &mut asked {
                tally.note(is_sealed(&answer(peer), last));
            }
            drop((client, asked));
            evict_all(&observer);
        }
        teller.kill();
        tally.assert_none_denied();
    }
}

/// Whether something has come that was not read yet.
fn is_answered(peer: &RawPeer) -> bool {
    let mut watched = [PollFd::new(peer.socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::ZERO).expect("poll works") > 0
}

#[test]
fn a_timeout_that_is_over_when_a_stopped_store_goes_on_finds_what_was_told() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    let store = StoreProcess::start("10000000");
    let _limit = store.limit(PATIENCE);
    let observer = store.client();
    let waiting = || observer.stats().expect("stats work").waiting_requests;
    for kind in TELLERS {
        let mut teller = start(&store, format!("{kind} many"));
        let mut tally = Tally { seals: STOPS * MANY, ..Tally::default() };
        for round in 0..STOPS {
            teller.tell("create");
            teller.expect("created");
            let last = numbered((round + 1) * MANY - 1);
            let (mut getter, mut waiter) = (store.raw_client(), store.raw_client());
            let (ids, timeout) = (vec![last], Some(TIMEOUT));
            getter.request(Request::Get { ids: ids.clone(), timeout, fail_if_abandoned: false });
            waiter.request(Request::Wait { ids, count: 1, timeout });
            let are_over = || is_answered(&getter) && is_answered(&waiter);
            wait_until("both wait, or have waited", || waiting() == 2 || are_over());
            let clock = Clock::start();
            let mut were_told_in_time = false;
            while_stopped(&store, &mut teller, || {
                // If not, the answers say nothing.
                were_told_in_time = !is_answered(&getter) && !is_answered(&waiter);
                let end = Timestamp::ZERO.after(TIMEOUT);
                wait_until("their time is over", || clock.now() >= end);
            });
            let got = matches!(answer(&mut getter), Reply::Objects(found) if found[0].is_some());
            let has_waited = answer(&mut waiter) == Reply::Ready(vec![true]);
            if were_told_in_time {
                tally.note(got);
                tally.note(has_waited);
            }
        }
        teller.kill();
        evict_all(&observer);
        tally.assert_none_denied();
    }
}

// ---- one whose seals the store has no time to read ----------------------------------------------

/// A teller that leaves some MiB of answers unread, told an object of this size of.
fn deaf_teller(store: &StoreProcess, kind: &str, size: u64) -> Worker {
    let client = store.client();
    let mut teller = start(store, format!("{kind} unread {size}"));
    teller.expect("asked");
    let stats = || client.stats().expect("stats work");
    wait_until("all gets wait", || stats().waiting_requests == UNREAD_GETS as u64);
    let objects: Vec<_> =
        (UNREAD..UNREAD + UNREAD_OBJECTS).map(|number| (numbered(number), DATA, b"")).collect();
    client.put_batch(&objects).expect("there is room");
    wait_until("all is answered", || stats().waiting_requests == 0);
    teller.tell("go on");
    teller.expect("sealed");
    teller
}

#[test]
fn who_is_told_by_one_who_reads_no_answers_finds_the_object() {
    for kind in TELLERS {
        let store = StoreProcess::start("10000000");
        let _limit = store.limit(PATIENCE);
        let askers = [store.client(), by_message(&store)];
        let _teller = deaf_teller(&store, kind, 8);
        let mut tally = Tally { seals: 1, ..Tally::default() };
        for client in &askers {
            (0..5).for_each(|call| tally.note(is_found(client, numbered(0), call)));
        }
        let outcome = askers[0].delete_one(numbered(0)).expect("delete works");
        tally.note(outcome == DeleteOutcome::Deleted);
        tally.assert_none_denied();
    }
}

#[test]
fn who_is_told_by_one_who_reads_no_answers_has_the_room_of_the_object() {
    for kind in TELLERS {
        let store = StoreProcess::start("10000000");
        let _limit = store.limit(PATIENCE);
        let client = store.client();
        let _teller = deaf_teller(&store, kind, 9_000_000);
        let made = client.create(numbered(1), 9_000_000, 0, CreateOptions::default());
        assert!(made.is_ok(), "the {kind}'s object can go: {made:?}");
    }
}

// ---- those who die ------------------------------------------------------------------------------

/// Starts tellers that seal one object, do not seal another one, tell, and die at that moment.
fn what_a_dead_teller_told_of_stays(how: &str, is_stopped: bool) {
    let store = StoreProcess::start("10000000");
    let _limit = store.limit(PATIENCE);
    let askers = [store.client(), by_message(&store)];
    let [observer, _] = &askers;
    let mut tally = Tally::default();
    for number in 0..DEATHS {
        let kind = TELLERS[usize::from(number.is_multiple_of(2))];
        let mut teller = start(&store, format!("{kind} {how} {number}"));
        teller.expect("created");
        if is_stopped {
            while_stopped(&store, &mut teller, || {});
        } else {
            teller.tell("go on");
            teller.expect("sealed");
        }
        tally.seals += 1;
        let find_all = |tally: &mut Tally| {
            for call in 0..5 {
                let client = &askers[usize::from(call % 2 == 0)];
                tally.note(is_found(client, numbered(number), call));
            }
        };
        find_all(&mut tally);
        teller.kill();
        find_all(&mut tally);
        wait_until("what it has not sealed is gone", || {
            let state = observer.state(numbered(UNSEALED + number)).expect("state works");
            state == ObjectState::Absent
        });
        find_all(&mut tally);
    }
    wait_until("nothing of the dead is left", || {
        let stats = observer.stats().expect("stats work");
        (stats.clients, stats.unsealed_objects, stats.pinned) == (2, 0, 0)
    });
    let stats = observer.stats().expect("stats work");
    assert_eq!((stats.objects % MANY, stats.evictable), (DEATHS, stats.used));
    tally.assert_none_denied();
}

#[test]
fn what_was_told_of_stays_though_its_creator_dies_at_once() {
    what_a_dead_teller_told_of_stays("die", false);
}

#[test]
fn what_was_told_of_stays_though_its_busy_creator_dies_at_once() {
    what_a_dead_teller_told_of_stays("busy", false);
}

#[test]
fn what_was_told_of_stays_though_its_creator_dies_while_the_store_is_stopped() {
    what_a_dead_teller_told_of_stays("many-die", true);
}
