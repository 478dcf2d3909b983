//! Each limit in `src/limits.rs` that a peer can reach: at the bound things work, one past it they
//! are refused or the connection ends, and in either case the others are served.
//!
//! Elsewhere: `EVENT_LOG_MAX` is in `hostile_peer.rs` (b31), `CLIENTS_MAX` (more descriptors than a
//! test can count on) beside the acceptor, the bounds of the command line in `command_line.rs`. The
//! budgets of a turn (`TURN_…`) cannot be seen from outside other than by the others being served.

mod support;

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use plasma::client::{Error, Event};
use plasma::ids::ClientId;
use plasma::protocol::message::{
    ClientMessage, Connect, NewObject, Reply, Request, RequestId, Room, Stats,
};
use plasma::protocol::refusal::Refusal;
use plasma::{ObjectId, limits};
use support::{
    AT_ONCE, RawPeer, StoreProcess, Worker, get_numbered, hear, numbered, put_numbered, say,
    wait_until, worker_part,
};

/// Makes a request about these ids, with a timeout if it has one.
type MakeRequest = fn(Vec<ObjectId>, Option<Duration>) -> Request;

/// Longer than a test runs.
const LONG: Option<Duration> = Some(Duration::from_secs(3600));

fn stats(peer: &mut RawPeer) -> Stats {
    match peer.call(Request::GetStats) {
        Reply::Stats(stats) => stats,
        other => panic!("{other:?}"),
    }
}

/// The store hangs up on whoever sends this, and says why in one line.
fn assert_ends(store: &StoreProcess, mut peer: RawPeer, bytes: &[u8], reason: &str) {
    let before = store.log_lines("closed the connection").len();
    // It may hang up before it has read everything.
    let _ = peer.send(bytes);
    peer.wait_for_end();
    wait_until(reason, || store.log_lines("closed the connection").len() > before);
    let lines = store.log_lines("closed the connection");
    assert_eq!(lines.len(), before + 1, "{lines:#?}");
    assert!(lines[before].contains(reason), "not {reason:?}: {lines:#?}");
}

fn frame(request: Request) -> Vec<u8> {
    RawPeer::frame(2, &ClientMessage::Request(request))
}

// ---- bytes --------------------------------------------------------------------------------------

#[test]
fn frame_payload_bytes_max() {
    let mut store = StoreProcess::start("1M");
    // Statistics, and a field that this version does not know.
    let request = frame(Request::GetStats);
    let padded = |payload: usize| {
        let mut bytes = u32::try_from(payload).unwrap().to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(&request[8..]);
        let padding = payload - (request.len() - 8) - 6;
        // Field 100, length-delimited, with a length of four bytes.
        bytes.extend([0xa2, 0x06]);
        bytes.extend((0..4).map(|group| {
            let more = if group < 3 { 0x80 } else { 0 };
            u8::try_from(padding >> (7 * group) & 0x7f).unwrap() | more
        }));
        bytes.resize(8 + payload, 7);
        bytes
    };
    let max = usize::try_from(limits::FRAME_PAYLOAD_BYTES_MAX).unwrap();
    let mut peer = store.raw_client();
    peer.send(&padded(max)).unwrap();
    assert!(matches!(peer.receive().expect("an answer").reply, Reply::Stats(_)));
    assert_ends(&store, peer, &padded(max + 1), "4194305 payload bytes, the limit is 4194304");
    store.assert_serves();
}

#[test]
fn inline_bytes_max() {
    let mut store = StoreProcess::start("8M");
    let mut peer = store.raw_client();
    let object = |number, data, metadata| NewObject {
        id: numbered(number),
        data: vec![1; data],
        metadata: vec![2; metadata],
    };
    let max = limits::INLINE_BYTES_MAX;
    let put = |objects| Request::Put { objects, room: AT_ONCE };
    assert_eq!(peer.call(put(vec![object(1, max - 5, 5)])), Reply::Done);
    assert_eq!(peer.call(put(vec![object(2, 9, 0), object(3, 0, max - 9)])), Reply::Done);
    let reason = "more than 1048576 bytes";
    assert_ends(&store, peer, &frame(put(vec![object(4, max - 5, 6)])), reason);
    let batch = frame(put(vec![object(5, 9, 0), object(6, 1, max - 9)]));
    assert_ends(&store, store.raw_client(), &batch, reason);

    // The client writes larger ones in place.
    let client = store.client();
    client.put(numbered(7), &vec![7; max + 1], b"").unwrap();
    assert_eq!(client.get_one(numbered(7), LONG).unwrap().unwrap().data(), vec![7; max + 1]);
    assert_eq!(client.stats().unwrap().objects, 4, "the two last ones were not put");
    store.assert_serves();
}

#[test]
fn client_name_bytes_max() {
    let mut store = StoreProcess::start("1M");
    let name = |bytes: usize| "n".repeat(bytes);
    let connect = |bytes| {
        let (protocol_version, client_name) = (limits::PROTOCOL_VERSION, name(bytes));
        RawPeer::frame(
            1,
            &ClientMessage::Connect(Connect {
                protocol_version,
                client_name,
                ..Connect::default()
            }),
        )
    };
    let rename = |bytes| Request::SetOptions { client_name: Some(name(bytes)), quota: None };
    let max = limits::CLIENT_NAME_BYTES_MAX;
    let mut peer = store.raw_peer();
    peer.send(&connect(max)).unwrap();
    assert!(matches!(peer.receive().expect("an answer").reply, Reply::Connected(_)));
    assert_ends(&store, store.raw_peer(), &connect(max + 1), "Connect.client_name: 257 bytes");

    let mut peer = store.raw_client();
    assert_eq!(peer.call(rename(max)), Reply::Done);
    assert_ends(&store, peer, &frame(rename(max + 1)), "SetOptions.client_name: 257 bytes");

    let client = store.client();
    client.set_name(&name(max)).unwrap();
    assert!(client.set_name(&name(max + 1)).is_err());
    assert_eq!(client.clients().unwrap().last().unwrap().name, name(max));
    store.assert_serves();
}

#[test]
fn outbox_bytes_max() {
    let mut store = StoreProcess::start("1M");
    let mut other = store.raw_client();
    assert_eq!(other.call(put_numbered(0..2000)), Reply::Done);
    let list = Request::List { cursor: 0 };
    other.request(list.clone());
    let reply_bytes = 8 + other.receive_payload().expect("a list").len();
    let sent_before = stats(&mut other).counter("frames_sent");

    // 20 times what may be unsent, asked for by somebody who does not read.
    let lists = 20 * limits::OUTBOX_BYTES_MAX / reply_bytes;
    let mut peer = store.raw_client();
    let first = peer.request_all((0..lists).map(|_| list.clone()));
    let pings = 2000;
    for _ in 0..pings {
        stats(&mut other);
    }
    let frames = stats(&mut other).counter("frames_sent") - sent_before;
    let answered = usize::try_from(frames).unwrap() - pings;
    // What the socket holds is the system's business; it is no more than a few hundred KB.
    let queued = answered * reply_bytes;
    assert!(queued > limits::OUTBOX_BYTES_MAX, "held back too early, at {queued} bytes");
    assert!(queued < 3 * limits::OUTBOX_BYTES_MAX, "not held back at {queued} bytes");

    // It goes on where it stopped.
    for _ in 0..lists {
        assert_eq!(peer.receive_payload().expect("a list").len() / 100, reply_bytes / 100);
    }
    assert!(first > 1 && matches!(peer.call(Request::GetStats), Reply::Stats(_)));
    store.assert_serves();
}

// ---- numbers in one request ---------------------------------------------------------------------

#[test]
fn request_ids_max() {
    let mut store = StoreProcess::start("1M");
    let ids = |count: usize| (0..count as u64).map(numbered).collect::<Vec<_>>();
    let nothing = Some(Duration::ZERO);
    let requests: [MakeRequest; 6] = [
        |ids, timeout| Request::Get { ids, timeout, fail_if_abandoned: false },
        |ids, timeout| Request::Wait { count: ids.len(), ids, timeout },
        |ids, _| Request::Release { holds: ids.into_iter().map(|id| (id, 1)).collect() },
        |ids, _| Request::GetState { ids },
        |ids, _| Request::Delete { ids },
        |ids, _| Request::Refresh { ids },
    ];
    for request in requests {
        let mut peer = store.raw_client();
        let answers = match peer.call(request(ids(limits::REQUEST_IDS_MAX), nothing)) {
            Reply::Objects(found) => found.len(),
            Reply::Ready(ready) => ready.len(),
            Reply::States(states) => states.len(),
            Reply::Deleted(outcomes) => outcomes.len(),
            Reply::Refreshed { objects: 0 } | Reply::Refused(Refusal::ObjectNotFound(_)) => 8192,
            other => panic!("{other:?}"),
        };
        assert_eq!(answers, limits::REQUEST_IDS_MAX);
        let too_many = frame(request(ids(limits::REQUEST_IDS_MAX + 1), nothing));
        assert_ends(&store, peer, &too_many, "object_ids: 8193 ids, the limit is 8192");
    }
    // The client splits longer lists.
    let states = store.client().states(&ids(3 * limits::REQUEST_IDS_MAX + 1)).unwrap();
    assert_eq!(states.len(), 3 * limits::REQUEST_IDS_MAX + 1);
    store.assert_serves();
}

#[test]
fn batch_objects_max() {
    let mut store = StoreProcess::start("1M");
    let max = limits::BATCH_OBJECTS_MAX as u64;
    let mut peer = store.raw_client();
    assert_eq!(peer.call(put_numbered(0..max)), Reply::Done);
    let too_many = frame(put_numbered(max..2 * max + 1));
    assert_ends(&store, peer, &too_many, "more than 4096 objects");

    let client = store.client();
    assert_eq!(client.stats().unwrap().objects, max, "all of them or none");
    let objects: Vec<_> = (max..2 * max + 1).map(|number| (numbered(number), b"", b"")).collect();
    assert!(matches!(client.put_batch(&objects), Err(Error::BatchTooLarge { .. })));
    client.put_batch(&objects[1..]).unwrap();
    store.assert_serves();
}

// ---- waiting requests ---------------------------------------------------------------------------

#[test]
fn client_waits_max() {
    let mut store = StoreProcess::start("1M");
    let mut peer = store.raw_client();
    let max = limits::CLIENT_WAITS_MAX as u64;
    let first = peer.request_all((0..max).map(|number| get_numbered(number, LONG)));
    assert_eq!(stats(&mut peer).waiting_requests, max, "so many may wait");

    let too_many = Reply::Refused(Refusal::TooManyWaiting(max));
    assert_eq!(peer.call(get_numbered(max, LONG)), too_many);
    let create =
        Request::Create { id: numbered(max), data_size: 1, metadata_size: 0, room: AT_ONCE };
    assert!(matches!(peer.call(create), Reply::Created(_)), "what does not wait is served");
    assert_eq!(store.raw_client().call(put_numbered([max + 1])), Reply::Done, "so are others");

    // One is over, so one more may wait.
    assert_eq!(peer.call(Request::Cancel { request: RequestId(first) }), Reply::Done);
    let last = peer.request(get_numbered(max + 2, LONG));
    assert_eq!(stats(&mut peer).waiting_requests, max);
    assert_eq!(peer.call(get_numbered(max + 3, LONG)), too_many);
    assert_eq!(store.raw_client().call(put_numbered([max + 2])), Reply::Done);
    let answer = peer.receive().expect("the last one is answered");
    assert_eq!(answer.request, RequestId(last));
    drop(peer);
    let mut other = store.raw_client();
    wait_until("nobody waits", || stats(&mut other).waiting_requests == 0);
    store.assert_serves();
}

#[test]
fn client_waited_ids_max() {
    let mut store = StoreProcess::start("1M");
    let mut peer = store.raw_client();
    let each = limits::REQUEST_IDS_MAX as u64;
    let max = limits::CLIENT_WAITED_IDS_MAX as u64;
    let first = peer.request_all((0..max).step_by(limits::REQUEST_IDS_MAX).map(|start| {
        let ids = (start..start + each).map(numbered).collect();
        Request::Get { ids, timeout: LONG, fail_if_abandoned: false }
    }));
    assert_eq!(stats(&mut peer).waiting_requests, max / each, "all of them may wait");
    let too_many = Reply::Refused(Refusal::TooManyWaiting(max));
    assert_eq!(peer.call(get_numbered(max, LONG)), too_many);
    let mut other = store.raw_client();
    other.request(get_numbered(max, LONG));
    assert_eq!(stats(&mut other).waiting_requests, max / each + 1, "the others have their own");

    assert_eq!(peer.call(Request::Cancel { request: RequestId(first) }), Reply::Done);
    peer.request(get_numbered(max, LONG));
    assert_eq!(stats(&mut other).waiting_requests, max / each + 1, "now there is room for one");
    drop(peer);
    wait_until("the others wait alone", || stats(&mut other).waiting_requests == 1);
    store.assert_serves();
}

#[test]
fn client_waited_bytes_max() {
    let mut store = StoreProcess::start("2MiB");
    let mut holder = store.raw_client();
    let all =
        Request::Create { id: numbered(0), data_size: 2 << 20, metadata_size: 0, room: AT_ONCE };
    assert!(matches!(holder.call(all), Reply::Created(_)));
    let mut peer = store.raw_client();
    let put = |number: u64| Request::Put {
        objects: vec![NewObject {
            id: numbered(number),
            data: vec![7; limits::INLINE_BYTES_MAX],
            metadata: vec![],
        }],
        room: Room { evict: true, timeout: None },
    };
    let max = limits::CLIENT_WAITED_BYTES_MAX / limits::INLINE_BYTES_MAX as u64;
    let first = (1..=max).map(|number| peer.request(put(number))).min().expect("some fit");
    let too_many = Reply::Refused(Refusal::TooManyWaiting(limits::CLIENT_WAITED_BYTES_MAX));
    assert_eq!(peer.call(put(max + 1)), too_many);
    assert_eq!(peer.call(Request::Cancel { request: RequestId(first) }), Reply::Done);
    peer.request(put(max + 1));
    assert_eq!(stats(&mut peer).waiting_requests, max, "now there is room for one");
    drop((holder, peer));
    store.assert_serves();
}

// ---- memory for requests ------------------------------------------------------------------------

/// What the store of these tests may keep for requests.
const REQUEST_MEMORY: u64 = 64 << 20;

fn store_with_request_memory() -> StoreProcess {
    StoreProcess::start_with(&["-m", "8MB", "--request-memory", "64MiB"], |_| {})
}

/// Lets gets of very many ids wait until one is refused. Returns how much the process may have.
fn wait_until_refused(peer: &mut RawPeer) -> u64 {
    for round in 0.. {
        let ids =
            (0..limits::REQUEST_IDS_MAX as u64).map(|id| numbered(round << 32 | id)).collect();
        let get = peer.request(Request::Get { ids, timeout: LONG, fail_if_abandoned: false });
        let last = peer.request(Request::GetStats);
        let message = peer.receive().expect("the connection lives on");
        match message.reply {
            Reply::Refused(Refusal::OverRequestMemory(allowed)) => {
                assert_eq!(message.request, RequestId(get));
                return allowed;
            }
            other => assert_eq!(message.request, RequestId(last), "{other:?}"),
        }
    }
    unreachable!("there is a limit")
}

/// A peer of another process that takes all it can get, in this way, and keeps it.
#[test]
fn worker_entry() {
    let Some((part, socket)) = worker_part() else { return };
    assert_eq!(part, "greedy");
    let mut peers: Vec<_> = (0..4).map(|_| RawPeer::connect_to(&socket)).collect();
    for peer in &mut peers {
        assert!(wait_until_refused(peer) <= REQUEST_MEMORY / 4);
    }
    say("full");
    hear();
}

#[test]
fn request_memory_of_one_process() {
    let mut store = store_with_request_memory();
    let mut other = Worker::start("greedy", store.socket());
    other.expect("full");
    other.kill();
    let mut watcher = store.raw_client();
    wait_until("its requests are gone", || stats(&mut watcher).counter("request_memory") == 0);
    let before = store.private_memory();

    let mut peers: Vec<_> = (0..30).map(|_| store.raw_client()).collect();
    for peer in &mut peers {
        assert_eq!(wait_until_refused(peer), REQUEST_MEMORY / 4);
    }
    // An unfinished frame beyond it: an answer to just this request, and the end.
    let mut frame = RawPeer::frame(77, &ClientMessage::Request(put_numbered(0..4000)));
    frame.resize(3 << 20, 0);
    frame[..4].copy_from_slice(&limits::FRAME_PAYLOAD_BYTES_MAX.to_le_bytes());
    let mut halves: Vec<_> = (0..30).map(|_| store.raw_client()).collect();
    for peer in &mut halves {
        // It may hang up before it has been told everything.
        let _ = peer.send(&frame);
        let answer = peer.receive().expect("an answer");
        let refusal = Reply::Refused(Refusal::OverRequestMemory(REQUEST_MEMORY / 4));
        assert_eq!((answer.request, answer.reply), (RequestId(77), refusal));
        peer.wait_for_end();
    }
    let numbers = stats(&mut watcher);
    assert_eq!(numbers.counter("frames_refused"), 30);
    assert!(numbers.counter("refusals_request_memory") >= 30);
    let most = numbers.counter("request_memory_most");
    assert!(most <= REQUEST_MEMORY / 4 + (4 << 20), "{most} bytes for one process");
    let grown = store.private_memory().saturating_sub(before);
    assert!(grown < REQUEST_MEMORY / 4 + (4 << 20), "{grown} bytes of the store's memory");

    // What does not wait is served, and what waits in other processes.
    assert_eq!(peers[0].call(put_numbered([1])), Reply::Done);
    let mut other = Worker::start("greedy", store.socket());
    other.expect("full");
    other.kill();
    drop(peers);
    wait_until("nothing is kept", || stats(&mut watcher).counter("request_memory") == 0);
    store.assert_serves();
}

#[test]
fn request_memory_of_many_processes() {
    let mut store = store_with_request_memory();
    let mut watcher = store.raw_client();
    let before = store.private_memory();
    let start = |_| Worker::start("greedy", store.socket());
    let mut greedy: Vec<_> = (0..8).map(start).collect();
    greedy.iter_mut().for_each(|worker| worker.expect("full"));

    let kept = stats(&mut watcher).counter("request_memory");
    assert!((REQUEST_MEMORY / 2..REQUEST_MEMORY).contains(&kept), "{kept} bytes are kept");
    let grown = store.private_memory().saturating_sub(before);
    assert!(grown < REQUEST_MEMORY + (4 << 20), "{grown} bytes of the store's memory");
    // Somebody who wants little gets it.
    let waiting = stats(&mut watcher).waiting_requests;
    watcher.request_all((0..10).map(|number| get_numbered(number, LONG)));
    assert_eq!(stats(&mut watcher).waiting_requests, waiting + 10);
    store.client().put(numbered(1 << 40), &[7; 100_000], b"").expect("put works");

    greedy.iter_mut().for_each(Worker::kill);
    wait_until("only the watcher waits", || stats(&mut watcher).waiting_requests == 10);
    wait_until("the memory goes back to the system", || {
        store.private_memory() < before + before / 10 + (8 << 20)
    });
    store.assert_serves();
}

// ---- parts of long answers ----------------------------------------------------------------------

#[test]
fn list_part_max() {
    let mut store = StoreProcess::start("1M");
    let mut peer = store.raw_client();
    let max = limits::LIST_PART_MAX as u64;
    let mut list = |cursor| match peer.call(Request::List { cursor }) {
        Reply::ObjectList { objects, next } => (objects.len(), next),
        other => panic!("{other:?}"),
    };
    let mut producer = store.raw_client();
    assert_eq!(producer.call(put_numbered(0..max)), Reply::Done);
    assert_eq!(list(0), (limits::LIST_PART_MAX, None));
    assert_eq!(producer.call(put_numbered([max])), Reply::Done);
    let (objects, next) = list(0);
    assert_eq!(objects, limits::LIST_PART_MAX);
    assert_eq!(list(next.expect("there is more")), (1, None));
    assert_eq!(store.client().list_all().unwrap().len(), limits::LIST_PART_MAX + 1);
    store.assert_serves();
}

#[test]
fn clients_part_max() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut store = StoreProcess::start("1M");
    let mut peers: Vec<_> = (0..limits::CLIENTS_PART_MAX).map(|_| store.raw_client()).collect();
    let list = |peer: &mut RawPeer, after| match peer
        .call(Request::ListClients { after, holding: None })
    {
        Reply::ClientList { clients, next } => (clients.len(), next),
        other => panic!("{other:?}"),
    };
    assert_eq!(list(&mut peers[0], ClientId(0)), (limits::CLIENTS_PART_MAX, None));
    peers.push(store.raw_client());
    let (clients, next) = list(&mut peers[0], ClientId(0));
    assert_eq!(clients, limits::CLIENTS_PART_MAX);
    assert_eq!(list(&mut peers[0], next.expect("there is more")), (1, None));
    let client = store.client();
    assert_eq!(client.clients().unwrap().len(), limits::CLIENTS_PART_MAX + 2);
    store.assert_serves();
}

#[test]
fn events_part_max() {
    let mut store = StoreProcess::start("1M");
    let mut producer = store.raw_client();
    let max = limits::EVENTS_PART_MAX;
    assert_eq!(producer.call(put_numbered(0..max as u64 + 1)), Reply::Done);
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let mut part = || match subscriber.receive().expect("the stream goes on").reply {
        Reply::Events(events) => events,
        other => panic!("{other:?}"),
    };
    assert_eq!(part().len(), max);
    assert!(matches!(part()[..], [Event::Sealed { .. }, Event::SnapshotEnd]));
    let ids = (0..max as u64 + 1).map(numbered).collect();
    assert!(matches!(producer.call(Request::Delete { ids }), Reply::Deleted(_)));
    let mut deleted = 0;
    while deleted < max + 1 {
        let events = part();
        assert!(events.len() <= max && matches!(events[0], Event::Deleted { .. }));
        deleted += events.len();
    }
    assert_eq!(deleted, max + 1);
    store.assert_serves();
}

// ---- time ---------------------------------------------------------------------------------------

#[test]
fn drain_time_max() {
    let mut store = StoreProcess::start("1M");
    let mut other = store.raw_client();
    assert_eq!(other.call(put_numbered(0..2000)), Reply::Done);
    // More than a socket takes and less than stops the store from reading the last request.
    const LISTS: usize = 100;
    let list = Request::List { cursor: 0 };
    let goodbye = |peer: &mut RawPeer| {
        let mut requests = vec![list.clone(); LISTS];
        requests.push(Request::Disconnect);
        peer.request_all(requests);
    };
    let mut reader = store.raw_client();
    goodbye(&mut reader);
    for _ in 0..LISTS {
        let list = reader.receive_payload().expect("a list");
        assert!(list.len() > limits::LIST_PART_MAX * 20);
    }
    assert_eq!(reader.receive().expect("an answer to the goodbye").reply, Reply::Done);
    assert!(reader.receive_payload().is_none(), "whoever reads gets everything");

    let mut sleeper = store.raw_client();
    goodbye(&mut sleeper);
    wait_until("the one who does not read is closed all the same", || {
        stats(&mut other).clients == 1
    });
    while sleeper.receive_payload().is_some() {}
    store.assert_serves();
}
