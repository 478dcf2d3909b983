//! Drives a reactor turn by turn, with real sockets in the hands of the same thread.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;

mod seals;

use crate::eviction::PolicyKind;
use crate::ids::ObjectId;
use crate::protocol::codec::{decode_server, encode_client};
use crate::protocol::frame::{FrameReader, append_frame};
use crate::protocol::message::{
    ClientMessage, Connect, DescriptorInfo, Event, NewObject, Request, RequestId, Room,
    ServerMessage, Stats,
};
use crate::protocol::refusal::Refusal;
use crate::shm::{Access, Backing, Mapping, fd_passing};
use crate::store::StoreConfig;

const CAPACITY: u64 = 1 << 20;

/// Far more than any test needs; reaching it means that something never happens.
const TURNS_MAX: usize = 100_000;

const NOW_OR_NEVER: Room = Room { evict: true, timeout: Some(Duration::ZERO) };

struct Harness {
    reactor: Reactor,
    waker: Waker,
    directory: tempfile::TempDir,
}

impl Harness {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let memory = Memory::create(&Backing::Memfd, CAPACITY, false, 0).unwrap();
        let clock = Clock::start();
        let store = Store::new(StoreConfig {
            capacity: CAPACITY,
            segment: memory.segment().id(),
            segment_bytes: memory.segment().size(),
            objects_max: 10_000,
            policy: PolicyKind::Lru,
            trim: None,
            unix_start: clock.unix_start(),
        });
        let welcome = Connected {
            protocol_version: limits::PROTOCOL_VERSION,
            capacity: CAPACITY,
            server_pid: std::process::id(),
            client: ClientId(0),
            server_version: "test".to_owned(),
            request_ids_max: limits::REQUEST_IDS_MAX,
            inline_bytes_max: limits::INLINE_BYTES_MAX,
            batch_objects_max: limits::BATCH_OBJECTS_MAX,
            clear_new_objects: false,
            directory_slots: 0,
            read_only: false,
            has_directory: false,
        };
        let reactor =
            Reactor::new(listener, store, memory, clock, limits::POLL_TIME, welcome).unwrap();
        let waker = reactor.stopper().unwrap();
        Self { reactor, waker, directory }
    }

    /// One turn that does not wait: the reactor notes that it should stop, which only its `run`
    /// looks at.
    fn turn(&mut self) {
        self.waker.wake().unwrap();
        self.reactor.turn();
    }

    fn turn_until<T>(&mut self, mut condition: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..TURNS_MAX {
            if let Some(result) = condition(self) {
                return result;
            }
            self.turn();
        }
        panic!("it never happens; {}", self.counters());
    }

    /// A socket that nobody has said anything on.
    fn dial(&self) -> Peer {
        let socket = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let frames = FrameReader::new(limits::FRAME_DESCRIPTORS_MAX);
        Peer { socket, frames, descriptors: VecDeque::new(), unsent: Vec::new() }
    }

    fn connect(&mut self) -> Peer {
        let mut peer = self.dial();
        peer.send_connect(limits::PROTOCOL_VERSION);
        let welcome = self.reply_to(&mut peer);
        assert!(matches!(welcome.reply, Reply::Connected(_)), "{welcome:?}");
        peer
    }

    fn reply_to(&mut self, peer: &mut Peer) -> ServerMessage {
        self.turn_until(|_| match peer.receive() {
            Incoming::Message(message) => Some(message),
            Incoming::Nothing => None,
            Incoming::End => panic!("the store hung up"),
        })
    }

    fn ask(&mut self, peer: &mut Peer, request: Request) -> Reply {
        peer.send(RequestId(7), request);
        let message = self.reply_to(peer);
        assert_eq!(message.request, RequestId(7));
        message.reply
    }

    fn wait_for_end(&mut self, peer: &mut Peer) {
        self.turn_until(|_| match peer.receive() {
            Incoming::Message(message) => panic!("{message:?}"),
            Incoming::Nothing => None,
            Incoming::End => Some(()),
        });
    }

    fn wait_for_connections(&mut self, count: usize) {
        self.turn_until(|harness| (harness.connections() == count).then_some(()));
    }

    fn connections(&self) -> usize {
        self.reactor.outside.connections.len()
    }

    fn counters(&self) -> &ServerCounters {
        &self.reactor.outside.counters
    }

    fn outbox_bytes(&mut self, client: ClientId) -> usize {
        self.reactor.outside.connections.get_mut(client).map_or(0, |it| it.outbox_bytes())
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.reactor.store.check_invariants();
        }
    }
}

enum Incoming {
    Message(ServerMessage),
    Nothing,
    End,
}

struct Peer {
    socket: UnixStream,
    frames: FrameReader,
    descriptors: VecDeque<OwnedFd>,
    unsent: Vec<u8>,
}

impl Peer {
    fn send_connect(&mut self, protocol_version: u32) {
        let connect =
            Connect { protocol_version, client_name: "test".to_owned(), ..Connect::default() };
        self.write(RequestId(1), &ClientMessage::Connect(connect));
    }

    fn send(&mut self, id: RequestId, request: Request) {
        self.write(id, &ClientMessage::Request(request));
    }

    fn write(&mut self, id: RequestId, message: &ClientMessage) {
        append_frame(&mut self.unsent, 0, |out| encode_client(out, id, message)).unwrap();
        self.push();
    }

    fn write_bytes(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.push();
    }

    /// Sends as much as the socket takes.
    fn push(&mut self) {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn receive(&mut self) -> Incoming {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                let message = decode_server(frame.payload).unwrap();
                assert_eq!(message.descriptors.len(), usize::from(frame.descriptors));
                return Incoming::Message(message);
            }
            let space = self.frames.space(4096);
            match fd_passing::receive(self.socket.as_fd(), space, &mut self.descriptors) {
                Ok(0) => return Incoming::End,
                Ok(count) => self.frames.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Incoming::Nothing,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Incoming::End,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn id(number: u64) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    ObjectId::from(bytes)
}

fn put(number: u64, data: &[u8]) -> Request {
    let object = NewObject { id: id(number), data: data.to_vec(), metadata: Vec::new() };
    Request::Put { objects: vec![object], room: NOW_OR_NEVER }
}

fn get(number: u64, timeout: Option<Duration>) -> Request {
    Request::Get { ids: vec![id(number)], timeout, fail_if_abandoned: true }
}

fn create(number: u64, data_size: u64) -> Request {
    Request::Create { id: id(number), data_size, metadata_size: 0, room: NOW_OR_NEVER }
}

#[test]
fn the_store_welcomes_those_who_speak_its_version() {
    let mut harness = Harness::new();
    let mut peer = harness.dial();
    peer.send_connect(limits::PROTOCOL_VERSION);
    let message = harness.reply_to(&mut peer);
    assert_eq!(message.request, RequestId(1));
    let Reply::Connected(welcome) = message.reply else { panic!("{:?}", message.reply) };
    assert_eq!((welcome.capacity, welcome.client), (CAPACITY, ClientId(1)));
}

#[test]
fn the_newest_version_that_both_speak_is_spoken() {
    let (oldest, newest) = (limits::PROTOCOL_VERSION_OLDEST, limits::PROTOCOL_VERSION);
    for (theirs, their_oldest, spoken) in
        [(oldest, 0, oldest), (newest, oldest, newest), (newest + 1, newest, newest)]
    {
        let mut harness = Harness::new();
        let mut peer = harness.dial();
        let versions = Connect {
            protocol_version: theirs,
            oldest_version: their_oldest,
            ..Connect::default()
        };
        peer.write(RequestId(1), &ClientMessage::Connect(versions));
        let reply = harness.reply_to(&mut peer).reply;
        let Reply::Connected(welcome) = reply else { panic!("{reply:?}") };
        assert_eq!(welcome.protocol_version, spoken);
    }
}

#[test]
fn another_version_is_told_ours_and_hung_up_on() {
    let mut harness = Harness::new();
    let mut peer = harness.dial();
    peer.send_connect(limits::PROTOCOL_VERSION + 1);
    // What comes behind it, be it in whatever language, is not looked at.
    peer.write_bytes(&[0xff; 100]);
    let refusal = Refusal::VersionMismatch(limits::PROTOCOL_VERSION);
    assert_eq!(harness.reply_to(&mut peer).reply, Reply::Refused(refusal));
    harness.wait_for_end(&mut peer);
    assert_eq!(harness.connections(), 0);
}

#[test]
fn those_who_break_the_protocol_are_hung_up_on_and_nobody_else_notices() {
    let mut harness = Harness::new();
    let mut good = harness.connect();
    assert_eq!(harness.ask(&mut good, put(1, b"safe")), Reply::Done);

    let mut no_greeting = harness.dial();
    no_greeting.send(RequestId(1), Request::GetStats);
    let mut second_greeting = harness.connect();
    second_greeting.send_connect(limits::PROTOCOL_VERSION);
    let mut other_language = harness.dial();
    other_language.write_bytes(b"GET / HTTP/1.1\r\nHost: plasma\r\n\r\n");
    let mut nonsense = harness.connect();
    nonsense.write_bytes(&[3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff]);
    let mut too_large = harness.connect();
    too_large.write_bytes(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let bad = [no_greeting, second_greeting, other_language, nonsense, too_large];
    let count = bad.len();
    for mut peer in bad {
        harness.wait_for_end(&mut peer);
    }
    assert_eq!(harness.counters().protocol_errors, count as u64);
    assert_eq!(harness.connections(), 1);

    let mut half_a_header = harness.dial();
    half_a_header.write_bytes(&[9, 0, 0]);
    let Reply::Objects(found) = harness.ask(&mut good, get(1, None)) else { panic!() };
    assert!(found[0].is_some());
    drop(half_a_header);
    harness.wait_for_connections(1);
    assert_eq!(harness.counters().connections_lost, 1);
}

#[test]
fn descriptors_come_once_for_each_kind_with_the_reply_that_needs_them() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    let mut kinds = |harness: &mut Harness, request| {
        peer.send(RequestId(9), request);
        let message = harness.reply_to(&mut peer);
        let kinds: Vec<_> = message.descriptors.iter().map(|it| it.writable).collect();
        (kinds, message.descriptors, peer.descriptors.pop_front())
    };
    assert!(kinds(&mut harness, put(1, b"hello")).0.is_empty());
    // A get that finds nothing has no use for one.
    assert!(kinds(&mut harness, get(2, Some(Duration::ZERO))).0.is_empty());
    let (found, described, descriptor) = kinds(&mut harness, get(1, None));
    assert_eq!(found, [false]);
    assert_eq!(kinds(&mut harness, create(3, 100)).0, [true]);
    assert!(kinds(&mut harness, get(1, None)).0.is_empty());
    assert!(kinds(&mut harness, create(4, 100)).0.is_empty());

    // And it is the right one: what was put is there to be read, and for nothing else.
    let DescriptorInfo { segment_size, .. } = described[0];
    let descriptor = descriptor.expect("it came with its frame");
    let refused = Mapping::new(descriptor.as_fd(), segment_size, Access::ReadWrite);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    let mapping = Mapping::new(descriptor.as_fd(), segment_size, Access::ReadOnly).unwrap();
    let Reply::Objects(objects) = harness.ask(&mut peer, get(1, None)) else { panic!() };
    let bytes = Arc::new(mapping).view(objects[0].unwrap().data()).unwrap();
    assert_eq!(&*bytes, b"hello");
}

#[test]
fn a_greedy_client_does_not_hold_up_a_modest_one() {
    let mut harness = Harness::new();
    let mut greedy = harness.connect();
    let mut modest = harness.connect();
    let count = 20 * limits::TURN_REQUESTS_MAX;
    for _ in 0..count {
        greedy.send(RequestId(1), Request::GetState { ids: vec![id(1)] });
    }
    modest.send(RequestId(2), Request::GetState { ids: vec![id(1)] });
    // A turn ends after some requests, or some time, whichever comes first.
    harness.turn();
    harness.turn();
    assert!(matches!(modest.receive(), Incoming::Message(_)), "its turn comes next");
    assert!(harness.counters().turns_backlogged > 0, "the greedy one goes on later");

    // Without any further event from its socket, the greedy one gets everything.
    let mut answers = 0;
    harness.turn_until(|_| {
        greedy.push();
        while let Incoming::Message(_) = greedy.receive() {
            answers += 1;
        }
        (answers == count).then_some(())
    });
}

#[test]
fn who_does_not_read_is_not_read_from() {
    let mut harness = Harness::new();
    let mut lazy = harness.connect();
    let mut other = harness.connect();
    for number in 0..2000 {
        assert_eq!(harness.ask(&mut other, put(number, b"")), Reply::Done);
    }
    // Each answer has some kB, all together far more than may lie in the outbox.
    let count = 1000;
    for _ in 0..count {
        lazy.send(RequestId(5), Request::List { cursor: 0 });
    }
    let mut largest = 0;
    for _ in 0..2 * count {
        lazy.push();
        harness.turn();
        largest = largest.max(harness.outbox_bytes(ClientId(1)));
        let bytes_max = limits::OUTBOX_BYTES_MAX + (256 << 10);
        assert!(largest < bytes_max, "{largest} bytes are kept for one client");
    }
    assert!(largest > limits::OUTBOX_BYTES_MAX, "it was held back");
    assert!(matches!(harness.ask(&mut other, Request::GetStats), Reply::Stats(_)));

    // Then it reads, and nothing is missing.
    let mut answers = 0;
    harness.turn_until(|_| {
        lazy.push();
        while let Incoming::Message(message) = lazy.receive() {
            assert!(matches!(message.reply, Reply::ObjectList { .. }));
            answers += 1;
        }
        (answers == count).then_some(())
    });
    assert_eq!(harness.outbox_bytes(ClientId(1)), 0);
}

#[test]
fn who_vanishes_lets_go_of_everything_and_others_hear_of_it() {
    let mut harness = Harness::new();
    let mut creator = harness.connect();
    let mut waiting = harness.connect();
    assert!(matches!(harness.ask(&mut creator, create(1, 100)), Reply::Created(_)));
    waiting.send(RequestId(3), get(1, None));
    harness.turn();
    // Half a frame is the last that is heard.
    creator.write_bytes(&[1, 0]);
    drop(creator);
    let message = harness.reply_to(&mut waiting);
    assert_eq!(message.request, RequestId(3));
    assert_eq!(message.reply, Reply::Refused(Refusal::Abandoned(id(1))));
    assert_eq!(harness.connections(), 1);
    assert_eq!(harness.counters().connections_lost, 1);
}

#[test]
fn who_has_nothing_more_to_say_still_gets_all_answers() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    let count = 10 * limits::TURN_REQUESTS_MAX;
    let request = ClientMessage::Request(Request::GetState { ids: vec![id(1)] });
    let mut bytes = Vec::new();
    for _ in 0..count {
        let frame = |out: &mut Vec<u8>| encode_client(out, RequestId(1), &request);
        append_frame(&mut bytes, 0, frame).unwrap();
    }
    peer.write_bytes(&bytes);
    assert!(peer.unsent.is_empty(), "in one piece the socket takes them all");
    peer.socket.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..count {
        assert!(matches!(harness.reply_to(&mut peer).reply, Reply::States(_)));
    }
    harness.wait_for_end(&mut peer);
    assert_eq!(harness.counters().connections_lost, 0);
}

#[test]
fn a_reply_that_is_too_long_ends_one_connection() {
    let mut harness = Harness::new();
    let mut unlucky = harness.connect();
    let mut other = harness.connect();
    let too_long = Reply::DebugText("x".repeat(limits::FRAME_PAYLOAD_BYTES_MAX as usize));
    harness.reactor.outside.reply(ClientId(1), RequestId(1), too_long);
    harness.wait_for_end(&mut unlucky);
    assert!(matches!(harness.ask(&mut other, Request::GetStats), Reply::Stats(_)));
}

#[test]
fn a_goodbye_is_answered_and_then_the_connection_ends() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    peer.send(RequestId(1), Request::GetState { ids: vec![id(1)] });
    peer.send(RequestId(2), Request::Disconnect);
    peer.send(RequestId(3), Request::GetState { ids: vec![id(1)] });
    assert_eq!(harness.reply_to(&mut peer).request, RequestId(1));
    let goodbye = harness.reply_to(&mut peer);
    assert_eq!((goodbye.request, goodbye.reply), (RequestId(2), Reply::Done));
    harness.wait_for_end(&mut peer);
    assert_eq!(harness.counters().connections_lost, 0);
}

#[test]
fn who_leaves_without_reading_is_closed_when_its_time_is_up() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    for number in 0..2000 {
        assert_eq!(harness.ask(&mut peer, put(number, b"")), Reply::Done);
    }
    for _ in 0..100 {
        peer.send(RequestId(5), Request::List { cursor: 0 });
    }
    peer.send(RequestId(6), Request::Disconnect);
    let deadline = harness.turn_until(|it| it.reactor.outside.connections.next_deadline());
    assert_eq!(harness.connections(), 1);
    assert!(harness.reactor.poll_timeout().expect("the loop knows") > Duration::ZERO);

    let connections = &mut harness.reactor.outside.connections;
    assert_eq!(connections.next_to_close(Timestamp::ZERO), None);
    assert_eq!(connections.next_to_close(deadline), Some(ClientId(1)));
    assert_eq!(connections.next_to_close(deadline), None);
}

#[test]
fn an_idle_loop_waits_for_deadlines_only() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    harness.turn();
    assert_eq!(harness.reactor.poll_timeout(), None);
    peer.send(RequestId(1), get(1, Some(Duration::from_secs(3600))));
    // The time of one turn may be over when the request is served.
    (0..3).for_each(|_| harness.turn());
    let timeout = harness.reactor.poll_timeout().expect("somebody waits");
    assert!(timeout > Duration::from_secs(3000), "{timeout:?}");

    peer.send(RequestId(2), get(1, Some(Duration::from_millis(1))));
    let message = harness.reply_to(&mut peer);
    assert_eq!((message.request, message.reply), (RequestId(2), Reply::Objects(vec![None])));
}

#[test]
fn statistics_have_the_counters_of_store_and_server() {
    let mut harness = Harness::new();
    let mut peer = harness.connect();
    assert_eq!(harness.ask(&mut peer, put(1, b"x")), Reply::Done);
    let Reply::Stats(stats) = harness.ask(&mut peer, Request::GetStats) else { panic!() };
    assert_eq!(stats.counter("objects_created"), 1);
    assert_eq!(stats.counter("connections_accepted"), 1);
    assert_eq!(stats.counter("frames_received"), 3);
    assert!(stats.counter("bytes_received") > 0 && stats.counter("turns") > 0);
    let mut names: Vec<_> = stats.counters.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), stats.counters.len(), "no name stands for two counters");
}

/// Reads events until one of them makes `is_last` true.
fn read_events(
    harness: &mut Harness,
    peer: &mut Peer,
    is_last: impl Fn(&Event) -> bool,
) -> Vec<Event> {
    let mut events = Vec::new();
    while !events.last().is_some_and(&is_last) {
        let message = harness.reply_to(peer);
        assert_eq!(message.request, RequestId::NONE);
        let Reply::Events(part) = message.reply else { panic!("{:?}", message.reply) };
        events.extend(part);
    }
    events
}

fn put_many(harness: &mut Harness, peer: &mut Peer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(harness.ask(peer, put(number, b"")), Reply::Done);
    }
}

#[test]
fn a_stream_has_the_snapshot_and_then_what_happens() {
    let mut harness = Harness::new();
    let mut producer = harness.connect();
    put_many(&mut harness, &mut producer, 0..3);
    let mut watcher = harness.connect();
    assert_eq!(harness.ask(&mut watcher, Request::Subscribe { one_by_one: false }), Reply::Done);
    let snapshot = read_events(&mut harness, &mut watcher, |it| *it == Event::SnapshotEnd);
    assert_eq!(snapshot.len(), 4);
    harness.turn();
    assert_eq!(harness.reactor.poll_timeout(), None, "a stream without news costs nothing");

    harness.ask(&mut producer, Request::Delete { ids: vec![id(1)] });
    let news = read_events(&mut harness, &mut watcher, |_| true);
    assert_eq!(news, [Event::Deleted { id: id(1), data_size: 0, metadata_size: 0 }]);
}

#[test]
fn a_sleeping_subscriber_costs_little_and_misses_nothing() {
    let mut harness = Harness::new();
    let mut producer = harness.connect();
    let mut sleeper = harness.connect();
    assert_eq!(harness.ask(&mut sleeper, Request::Subscribe { one_by_one: false }), Reply::Done);
    let count = 9000;
    let mut largest = 0;
    for round in 0..3 {
        put_many(&mut harness, &mut producer, 0..count);
        let all = (0..count).map(id).collect::<Vec<_>>();
        for ids in all.chunks(limits::REQUEST_IDS_MAX) {
            harness.ask(&mut producer, Request::Delete { ids: ids.to_vec() });
        }
        largest = largest.max(harness.outbox_bytes(ClientId(2)));
        assert!(largest > limits::STREAM_REFILL_BYTES, "round {round}: the socket took it all");
    }
    let part = limits::EVENTS_PART_MAX * 64;
    assert!(largest < limits::STREAM_REFILL_BYTES + part, "{largest} bytes for a sleeper");
    // Soon there is no work: what one turn had no time for, the next ones do.
    harness.turn_until(|harness| harness.reactor.poll_timeout().is_none().then_some(()));

    let expected = 3 * 2 * usize::try_from(count).unwrap();
    let mut seen = Vec::new();
    while seen.len() < expected + 1 {
        seen.extend(read_events(&mut harness, &mut sleeper, |_| true));
    }
    assert_eq!(seen[0], Event::SnapshotEnd);
    for (index, event) in seen[1..].iter().enumerate() {
        let number = id(u64::try_from(index).unwrap() % count);
        match event {
            Event::Sealed { id, .. } => assert_eq!(*id, number),
            Event::Deleted { id, .. } => assert_eq!(*id, number),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_subscriber_too_far_behind_is_told_so_and_hung_up_on() {
    let mut harness = Harness::new();
    let mut producer = harness.connect();
    let mut sleepers = [false, true].map(|one_by_one| {
        let mut sleeper = harness.connect();
        assert_eq!(harness.ask(&mut sleeper, Request::Subscribe { one_by_one }), Reply::Done);
        sleeper
    });
    let batch = u64::try_from(limits::BATCH_OBJECTS_MAX).unwrap();
    let new = |number| NewObject { id: id(number), data: vec![], metadata: vec![] };
    let mut happened = 0;
    while happened < limits::EVENT_LOG_MAX + 100_000 {
        let objects = (0..batch).map(new).collect();
        producer.send(RequestId(1), Request::Put { objects, room: NOW_OR_NEVER });
        producer.send(RequestId(2), Request::Delete { ids: (0..batch).map(id).collect() });
        harness.turn_until(|_| {
            producer.push();
            producer.unsent.is_empty().then_some(())
        });
        assert_eq!(harness.reply_to(&mut producer).reply, Reply::Done);
        assert!(matches!(harness.reply_to(&mut producer).reply, Reply::Deleted(_)));
        happened += 2 * limits::BATCH_OBJECTS_MAX;
    }
    for sleeper in &mut sleepers {
        read_events(&mut harness, sleeper, |it| *it == Event::Lagged);
        harness.wait_for_end(sleeper);
    }
    let Reply::Stats(Stats { subscribers, .. }) = harness.ask(&mut producer, Request::GetStats)
    else {
        panic!()
    };
    assert_eq!(subscribers, 0);
}

#[test]
fn a_stream_of_single_events_has_one_in_each_message_and_no_marks() {
    let mut harness = Harness::new();
    let mut producer = harness.connect();
    put_many(&mut harness, &mut producer, 0..3);
    let mut watcher = harness.connect();
    assert_eq!(harness.ask(&mut watcher, Request::Subscribe { one_by_one: true }), Reply::Done);
    put_many(&mut harness, &mut producer, 3..5);
    for number in 0..5 {
        let events = read_events(&mut harness, &mut watcher, |_| true);
        let sealed = Event::Sealed { id: id(number), data_size: 0, metadata_size: 0 };
        assert_eq!(events, [sealed], "the message of object {number}");
    }
}

#[test]
fn one_by_one_each_event_is_a_frame_that_comes_whole() {
    let mut harness = Harness::new();
    let mut producer = harness.connect();
    assert_eq!(harness.ask(&mut producer, put(0, b"")), Reply::Done);
    assert_eq!(harness.ask(&mut producer, put(1, b"odd")), Reply::Done);
    let mut reader = harness.connect();
    reader.send(RequestId(7), Request::Subscribe { one_by_one: true });
    let answer = harness.turn_until(|_| read_whole_frame(&reader.socket));
    assert_eq!(decode_server(&answer).unwrap().reply, Reply::Done);
    // More than the socket takes, so that the rest is sent in whatever pieces there is room for.
    let count = 9000;
    // Frames of two lengths: where the kernel cuts a long chunk must not be where one ends.
    let data = |number| if number % 2 == 0 { &b""[..] } else { b"odd" };
    for number in 2..count {
        assert_eq!(harness.ask(&mut producer, put(number, data(number))), Reply::Done);
    }
    harness.ask(&mut producer, Request::Delete { ids: vec![id(0)] });
    let waiting = harness.outbox_bytes(ClientId(2));
    assert!(waiting > limits::STREAM_REFILL_BYTES, "the socket took it all");
    assert!(waiting < limits::STREAM_REFILL_BYTES + limits::EVENTS_PART_MAX * 64, "{waiting}");

    let mut seen = Vec::new();
    while seen.len() <= usize::try_from(count).unwrap() {
        // What is there is read to its end before the store can go on: a cut frame would show.
        let body = harness.turn_until(|harness| {
            let body = read_whole_frame(&reader.socket);
            if body.is_none() {
                (0..10).for_each(|_| harness.turn());
            }
            body
        });
        let message = decode_server(&body).unwrap();
        assert_eq!(message.request, RequestId::NONE);
        match message.reply {
            Reply::Events(events) if events.len() == 1 => seen.extend(events),
            other => panic!("{other:?}"),
        }
    }
    let sealed = |number| Event::Sealed {
        id: id(number),
        data_size: data(number).len() as u64,
        metadata_size: 0,
    };
    seen[..2].sort_by_key(|event| *event != sealed(0));
    let deleted = Event::Deleted { id: id(0), data_size: 0, metadata_size: 0 };
    assert_eq!(seen.pop(), Some(deleted));
    assert_eq!(seen, (0..count).map(sealed).collect::<Vec<_>>(), "and no mark among them");
}

/// Reads as those do who know of a length and a body only: twice, and relies on having it all.
fn read_whole_frame(mut socket: &UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 8];
    match socket.read(&mut length) {
        Ok(count) => assert_eq!(count, 8, "half a length"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
        Err(error) => panic!("{error}"),
    }
    let mut body = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
    let count = socket.read(&mut body).unwrap();
    assert_eq!(count, body.len(), "half a body");
    Some(body)
}
