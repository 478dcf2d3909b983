//! A client of a store that is stopped, slow or killed, and clients in event loops: who may wait
//! for whom, and that nothing stays held of what nobody wants any more.

mod support;

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use plasma::client::{
    ConnectFailure, CreateOptions, Error, Event, GetOptions, ObjectState, PendingGet,
    interrupted_by,
};
use plasma::{Client, ObjectBuffer, ObjectId};
use support::{PATIENCE, StoreProcess, numbered, wait_until};

/// Long enough to connect, and short enough for tests.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// More than there is room for in a socket.
const MANY: u64 = 20_000;

fn put_many(client: &Client, numbers: std::ops::Range<u64>) -> Vec<ObjectId> {
    let ids: Vec<_> = numbers.map(numbered).collect();
    for part in ids.chunks(4000) {
        let objects: Vec<_> = part.iter().map(|id| (*id, b"data", b"")).collect();
        client.put_batch(&objects).expect("there is room");
    }
    ids
}

fn waiting_requests(observer: &Client) -> u64 {
    observer.stats().expect("stats work").waiting_requests
}

fn pinned(observer: &Client) -> u64 {
    observer.stats().expect("stats work").pinned
}

#[test]
fn drops_do_not_wait_for_a_stopped_store() {
    let store = StoreProcess::start("100000000");
    let (client, observer) = (store.client(), store.client());
    let ids = put_many(&client, 0..MANY);
    let buffers = client.get(&ids, Some(PATIENCE)).expect("get works");
    assert!(buffers.iter().all(Option::is_some));
    let writer = client.create(numbered(MANY), 8, 0, CreateOptions::default()).expect("room");
    assert!(pinned(&observer) > 0);

    store.pause();
    // Each one is a message of its own.
    drop(buffers);
    drop(writer);
    store.resume();
    wait_until("all of it has been given back", || pinned(&observer) == 0);
    assert!(!observer.contains(numbered(MANY)).expect("contains works"));
    // The client is as good as before.
    assert!(client.contains(ids[0]).expect("contains works"));
    store.stop();
}

#[test]
fn calls_to_a_stopped_store_can_be_interrupted() {
    let store = StoreProcess::start("1000000");
    // One that asks for what is there: what it finds in the directory needs no store.
    let by_message = Client::builder().directory(false);
    let client = by_message.connect(store.socket()).expect("the store is there");
    let observer = store.client();
    let (here, missing, new) = (numbered(1), numbered(2), numbered(3));
    client.put(here, b"data", b"").expect("there is room");

    store.pause();
    let got = client.get_with(&[here], GetOptions::default(), Some(&mut || true));
    assert!(matches!(got, Err(Error::Interrupted)), "{got:?}");
    let waited = client.wait_with(&[missing], 1, None, Some(&mut || true));
    assert!(matches!(waited, Err(Error::Interrupted)), "{waited:?}");
    let patient = CreateOptions { timeout: None, ..CreateOptions::default() };
    let created = client.create_with(new, 8, 0, patient, Some(&mut || true));
    assert!(matches!(created, Err(Error::Interrupted)), "{created:?}");
    store.resume();

    // The store grants the get and the create, and learns later that nobody wants them.
    assert!(client.contains(here).expect("contains works"));
    wait_until("all of it has been given back", || {
        let stats = observer.stats().expect("stats work");
        (stats.pinned, stats.unsealed_objects, stats.waiting_requests) == (0, 0, 0)
    });
    assert!(!observer.contains(new).expect("contains works"));
    store.stop();
}

#[test]
fn a_timeout_ends_though_the_store_is_stopped() {
    let store = StoreProcess::start("1000000");
    let builder = Client::builder().patience(IMPATIENCE).directory(false);
    let client = builder.connect(store.socket()).expect("the store is there");
    let id = numbered(1);
    client
        .put_with(id, b"data", b"", CreateOptions { evict: true, timeout: None }, None)
        .expect("there is room");
    store.pause();
    let got = client.get(&[id], Some(Duration::ZERO));
    assert!(matches!(got, Err(Error::Unresponsive { .. })), "{got:?}");
    store.resume();
    wait_until("it answers again", || match client.get(&[id], Some(PATIENCE)) {
        Ok(found) => found[0].is_some(),
        Err(error) => panic!("{error}"),
    });
    store.stop();
}

/// What a call comes to, for the table in the README.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Unresponsive,
    Interrupted,
    Disconnected,
    /// As with any store.
    Works,
}

impl<T> From<Result<T, Error>> for Outcome {
    fn from(result: Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Works,
            Err(Error::Unresponsive { .. }) => Self::Unresponsive,
            Err(Error::Connect { source: ConnectFailure::Silent(_), .. }) => Self::Unresponsive,
            Err(Error::Interrupted) => Self::Interrupted,
            Err(Error::Disconnected { .. } | Error::Connect { .. }) => Self::Disconnected,
            Err(other) => panic!("{other}"),
        }
    }
}

type Call = fn(&Client) -> Outcome;

const NO_END: CreateOptions = CreateOptions { evict: true, timeout: None };
const AN_END: CreateOptions =
    CreateOptions { evict: true, timeout: Some(Duration::from_millis(1)) };

/// Calls that wait for nobody, or have a timeout.
const WITH_END: &[(&str, Call)] = &[
    ("connect", |client| {
        Client::builder().patience(IMPATIENCE).connect(client.socket_path()).into()
    }),
    ("create", |client| client.create(numbered(1), 8, 0, CreateOptions::default()).into()),
    ("create, timeout", |client| client.create(numbered(1), 8, 0, AN_END).into()),
    ("put", |client| client.put(numbered(1), b"data", b"").into()),
    ("put, large", |client| client.put(numbered(1), &[1; 1 << 16], b"").into()),
    ("put, timeout", |client| client.put_with(numbered(1), b"data", b"", AN_END, None).into()),
    ("put_batch", |client| client.put_batch(&[(numbered(1), b"data", b"")]).into()),
    ("get, zero", |client| client.get(&[numbered(1)], Some(Duration::ZERO)).into()),
    ("get, timeout", |client| client.get(&[numbered(1)], AN_END.timeout).into()),
    ("wait, timeout", |client| client.wait(&[numbered(1)], 1, AN_END.timeout).into()),
    ("contains", |client| client.contains(numbered(1)).into()),
    ("state", |client| client.state(numbered(1)).into()),
    ("states", |client| client.states(&[numbered(1)]).into()),
    ("delete", |client| client.delete(&[numbered(1)]).into()),
    ("evict", |client| client.evict(1).into()),
    ("refresh", |client| client.refresh(&[numbered(1)]).into()),
    ("list", |client| client.list_all().into()),
    ("stats", |client| client.stats().into()),
    ("debug_text", |client| client.debug_text().into()),
    ("clients", |client| client.clients().into()),
    ("holders_of", |client| client.holders_of(numbered(1)).into()),
    ("subscribe", |client| client.subscribe().into()),
    ("subscribe_one_by_one", |client| client.subscribe_one_by_one().into()),
    ("set_name", |client| client.set_name("other").into()),
    ("set_quota", |client| client.set_quota(1).into()),
];

/// Calls that wait for other clients, and have no timeout.
const WITHOUT_END: &[(&str, Call)] = &[
    ("create", |client| client.create(numbered(1), 8, 0, NO_END).into()),
    ("put", |client| client.put_with(numbered(1), b"data", b"", NO_END, None).into()),
    ("put_batch", |client| {
        client.put_batch_with(&[(numbered(1), b"data", b"")], NO_END, None).into()
    }),
    ("get", |client| client.get(&[numbered(1)], None).into()),
    ("wait", |client| client.wait(&[numbered(1)], 1, None).into()),
];

/// Calls that ask nobody about an object that is there.
const AT_HAND: &[(&str, Call)] = &[
    ("capacity", |client| client.capacity().into()),
    ("get", |client| client.get_one(numbered(7), None).into()),
    ("get_at_hand", |client| client.get_at_hand(&[numbered(7)]).into()),
    ("contains", |client| client.contains(numbered(7)).into()),
    ("state", |client| client.state(numbered(7)).into()),
];

/// All of them at once: each waits for as long as the patience lasts.
fn assert_outcomes(client: &Client, calls: &[(&str, Call)], expected: Outcome) {
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = calls.iter().map(|(_, call)| scope.spawn(|| call(client))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no other error")).collect()
    });
    for ((name, _), outcome) in std::iter::zip(calls, outcomes) {
        assert_eq!(outcome, expected, "{name}");
    }
}

/// The rows of the table in the README for a store that is stopped.
#[test]
fn every_call_to_a_stopped_store_has_an_end_or_can_be_interrupted() {
    let store = StoreProcess::start("1000000");
    let builder = Client::builder().patience(IMPATIENCE);
    let client = builder.connect(store.socket()).expect("the store is there");
    let observer = store.client();
    client.put(numbered(7), b"data", b"").expect("there is room");
    let own = client.create(numbered(8), 8, 0, CreateOptions::default()).expect("there is room");
    let mut events = client.subscribe().expect("the store is there");
    while events.next().expect("no end").expect("an event") != Event::SnapshotEnd {}

    store.pause();
    if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_none() {
        assert_outcomes(&client, AT_HAND, Outcome::Works);
    }
    for calls in [WITH_END, WITHOUT_END] {
        for (name, call) in calls {
            let outcome = interrupted_by(|| true, || call(&client));
            assert_eq!(outcome, Outcome::Interrupted, "{name}");
        }
    }
    let next = interrupted_by(|| true, || events.next().expect("no end"));
    assert!(matches!(next, Err(Error::Interrupted)), "{next:?}");
    assert_outcomes(&client, WITH_END, Outcome::Unresponsive);
    assert_eq!(Outcome::from(own.abort()), Outcome::Unresponsive);
    assert!(events.next_timeout(Duration::from_millis(1)).expect("no error").is_none());
    store.resume();

    // The client is as good as before, and nothing is left of what was given up.
    assert_eq!(client.state(numbered(9)).expect("state works"), ObjectState::Absent);
    wait_until("all of it has been given back", || {
        let stats = observer.stats().expect("stats work");
        let connections = observer.clients().expect("clients work").len();
        (stats.unsealed_objects, stats.waiting_requests, stats.pinned, connections) == (0, 0, 0, 3)
    });
    store.stop();
}

/// The rows for a store that was killed.
#[test]
fn every_call_to_a_killed_store_says_so() {
    let mut store = StoreProcess::start("1000000");
    let client = Client::builder().retries(0).connect(store.socket()).expect("the store is there");
    client.put(numbered(7), b"data", b"").expect("there is room");
    let create = |number| client.create(numbered(number), 8, 0, CreateOptions::default());
    let (own, other) = (create(8).expect("there is room"), create(9).expect("there is room"));
    let mut events = client.subscribe().expect("the store is there");
    store.signal(Signal::SIGKILL);
    store.wait();
    // Before any call that asks has found out.
    assert_eq!(Outcome::from(other.seal()), Outcome::Disconnected);
    let at_hand = client.get_at_hand(&[numbered(7)]).expect("it asks nobody");
    assert!(at_hand.is_none(), "what the directory of a dead store says is worth nothing");
    let asks_nobody = ["connect", "capacity", "get_at_hand"];
    let calls = || {
        let calls = AT_HAND.iter().chain(WITH_END).chain(WITHOUT_END);
        calls.filter(|(name, _)| !asks_nobody.contains(name))
    };
    let calls: Vec<_> = calls().copied().collect();
    assert_outcomes(&client, &calls, Outcome::Disconnected);
    let connect = Client::builder().retries(0).connect(store.socket());
    assert_eq!(Outcome::from(connect), Outcome::Disconnected);
    assert_eq!(Outcome::from(own.abort()), Outcome::Disconnected);
    let ended = events.find(Result::is_err).expect("an error, not just the end");
    assert!(matches!(ended, Err(Error::Disconnected { .. })), "{ended:?}");
    // What is known without asking is known on.
    assert_eq!(client.capacity().expect("it is known"), 1_000_000);
}

#[test]
fn a_disconnect_does_not_wait_for_a_stopped_store() {
    let store = StoreProcess::start("1000000");
    let observer = store.client();
    let builder = Client::builder().patience(IMPATIENCE);
    let client = builder.connect(store.socket()).expect("the store is there");
    let pending = client.start_get(&[numbered(1)], GetOptions::default()).expect("it is sent");
    wait_until("it waits", || waiting_requests(&observer) == 1);
    store.pause();
    client.disconnect();
    drop((client, pending));
    store.resume();
    wait_until("the store has let go", || {
        waiting_requests(&observer) == 0 && observer.clients().expect("clients work").len() == 1
    });
    store.stop();
}

/// Waits for the descriptor, and takes what has come.
fn turn(client: &Client, descriptor: impl AsFd) -> Result<(), Error> {
    let mut watched = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).expect("it fits");
    assert_eq!(poll(&mut watched, patience).expect("poll works"), 1, "nothing came");
    client.receive_ready().map(|_requests| ())
}

#[test]
fn an_event_loop_waits_for_a_thousand_gets_at_once() {
    let store = StoreProcess::start("1000000");
    let (client, other) = (store.client(), store.client());
    let ids: Vec<_> = (0..1000).map(numbered).collect();
    let start = |id: &ObjectId| client.start_get(&[*id], GetOptions::default());
    let mut pending: Vec<PendingGet> =
        ids.iter().map(|id| start(id).expect("it is sent")).collect();
    let putter = std::thread::spawn({
        let ids = ids.clone();
        move || {
            for id in ids.iter().rev() {
                other.put(*id, id.as_bytes(), b"").expect("there is room");
            }
            other
        }
    });
    let descriptor = client.descriptor().expect("it is connected");
    let mut buffers: Vec<ObjectBuffer> = Vec::new();
    while !pending.is_empty() {
        turn(&client, &descriptor).expect("the store lives");
        pending.retain_mut(|pending| match pending.try_take().expect("the store lives") {
            Some(found) => {
                buffers.extend(found.into_iter().flatten());
                false
            }
            None => true,
        });
    }
    let other = putter.join().expect("the putter went well");
    assert_eq!(buffers.len(), ids.len());
    assert!(buffers.iter().all(|buffer| buffer.data() == buffer.id().as_bytes()));
    assert_eq!(pinned(&other), 20 * 1000);
    drop(buffers);
    wait_until("all of it has been given back", || pinned(&other) == 0);
    store.stop();
}

#[test]
fn what_an_event_loop_drops_is_forgotten() {
    let store = StoreProcess::start("1000000");
    let (client, other) = (store.client(), store.client());
    let (here, missing) = (numbered(1), numbered(2));
    other.put(here, b"data", b"").expect("there is room");
    let get = client.start_get(&[here, missing], GetOptions::default()).expect("it is sent");
    let wait = client.start_wait(&[missing], 1, None).expect("it is sent");
    wait_until("both wait", || waiting_requests(&other) == 2);
    assert_eq!(pinned(&other), 4, "what is there is held at once");
    drop((get, wait));
    wait_until("the store has forgotten them", || waiting_requests(&other) == 0);
    // What the get was given until then comes with its answer.
    let descriptor = client.descriptor().expect("it is connected");
    turn(&client, &descriptor).expect("the store lives");
    wait_until("it has been given back", || {
        client.receive_ready().expect("the store lives");
        pinned(&other) == 0
    });
    store.stop();
}

#[test]
fn an_event_loop_hears_of_the_death_of_the_store() {
    let store = StoreProcess::start("1000000");
    let client = store.client();
    let mut get = client.start_get(&[numbered(1)], GetOptions::default()).expect("it is sent");
    let descriptor = client.descriptor().expect("it is connected");
    store.signal(Signal::SIGKILL);
    let told = turn(&client, &descriptor);
    assert!(matches!(told, Err(Error::Disconnected { .. })), "{told:?}");
    let taken = get.try_take();
    assert!(matches!(taken, Err(Error::Disconnected { .. })), "{taken:?}");
}

#[test]
fn what_is_in_the_directory_is_read_though_the_store_is_stopped() {
    if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_some() {
        return;
    }
    let store = StoreProcess::start("1000000");
    let client = store.client();
    client.put(numbered(1), b"data", b"").expect("there is room");
    store.pause();
    let object = client.get_one(numbered(1), None).expect("get works").expect("it is there");
    assert_eq!(object.data(), b"data");
    assert!(client.contains(numbered(1)).expect("contains works"));
    drop(object);
    store.resume();
    store.stop();
}
