//! Peers that are broken, slow, dead or ill-disposed: whatever one of them does, the store lives
//! and the others do not notice.
//!
//! Each test has the number of the weakness of the original that it stands for. None of them
//! measures how long anything takes; that others are served meanwhile is shown by the order of
//! events.

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use plasma::client::Event;
use plasma::ids::Slot;
use plasma::protocol::codec;
use plasma::protocol::frame::FrameReader;
use plasma::protocol::message::{
    ClientMessage, Connect, NewObject, Reply, Request, RequestId, ServerMessage,
};
use plasma::protocol::refusal::Refusal;
use plasma::{ObjectId, limits};
use support::{
    AT_ONCE, PATIENCE, RawPeer, StoreProcess, get_numbered, numbered, put_numbered, wait_until,
};

/// Longer than a test runs.
const LONG: Duration = Duration::from_secs(3600);

// ---- bytes that are not the protocol ------------------------------------------------------------

fn header(length: u32, descriptors: u16, reserved: u16) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(descriptors.to_le_bytes());
    bytes.extend(reserved.to_le_bytes());
    bytes
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(u32::try_from(payload.len()).unwrap(), 0, 0);
    bytes.extend(payload);
    bytes
}

/// What is sent, and what the log says about it.
fn malformed() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    // Version, type and length of a message of the original, 8 bytes each.
    let original: Vec<u8> = [0_u64, 27, 16].iter().flat_map(|word| word.to_le_bytes()).collect();
    // Kind 99, which is an empty message, without a request id.
    let unknown = framed(&[0x9a, 0x06, 0]);
    vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: store\r\n\r\n".to_vec(), "in its reserved field"),
        ("a reserved field", header(4, 0, 1), "in its reserved field"),
        ("too long", header(limits::FRAME_PAYLOAD_BYTES_MAX + 1, 0, 0), "4194305 payload bytes"),
        ("the longest", header(u32::MAX, 0, 0), "4294967295 payload bytes"),
        ("no payload", header(0, 0, 0), "frame without payload"),
        ("a descriptor", header(4, 1, 0), "announces 1 descriptors"),
        ("64 bytes of ff", vec![0xff; 64], "in its reserved field"),
        ("a frame of ff", framed(&[0xff; 64]), "malformed message"),
        ("an unknown request that wants no answer", unknown, "ClientFrame.request_id"),
        ("the original's header", original, "frame without payload"),
        ("an id of 3 bytes", framed(&[0x08, 7, 0x3a, 5, 0x0a, 3, 1, 2, 3]), "Seal.object_id"),
    ]
}

#[test]
fn an_unknown_request_is_refused_and_the_connection_lives() {
    let store = StoreProcess::start("1M");
    let mut peer = store.raw_client();
    // Request 7 of kind 99, and request 8 of no kind.
    peer.send(&[framed(&[0x08, 7, 0x9a, 0x06, 0]), framed(&[0x08, 8])].concat()).unwrap();
    for number in [7, 8] {
        let ServerMessage { request, reply, .. } = peer.receive().expect("an answer");
        assert_eq!((request, reply), (RequestId(number), Reply::Refused(Refusal::UnknownRequest)));
    }
    assert!(matches!(peer.call(Request::GetStats), Reply::Stats(_)));
    // As the first message it is none.
    let mut stranger = store.raw_peer();
    stranger.send(&framed(&[0x08, 7, 0x9a, 0x06, 0])).unwrap();
    stranger.wait_for_end();
    store.stop();
}

/// A client tells of its own table only.
#[test]
fn slots_that_a_client_does_not_have_break_the_protocol() {
    let store = StoreProcess::start("1M");
    for reads_directory in [false, true] {
        let open = || {
            let mut peer = store.raw_peer();
            let connect = Connect {
                protocol_version: limits::PROTOCOL_VERSION,
                reads_directory,
                ..Connect::default()
            };
            peer.send(&RawPeer::frame(1, &ClientMessage::Connect(connect))).unwrap();
            let reply = peer.receive().expect("an answer").reply;
            let Reply::Connected(connected) = reply else { panic!("{reply:?}") };
            (peer, connected.directory_slots)
        };
        let unpinned = |slot| Request::Unpinned { slots: vec![Slot(slot)] };
        let (mut peer, slots) = open();
        if let Some(last) = slots.checked_sub(1) {
            assert_eq!(peer.call(unpinned(last)), Reply::Done);
        }
        for slot in [slots, u32::MAX] {
            let (mut peer, _) = open();
            peer.request(unpinned(slot));
            peer.wait_for_end();
        }
    }
    wait_until("the log says so", || store.log_lines("Unpinned.slots").len() == 4);
    store.stop();
}

#[test]
fn b01_malformed_input() {
    let mut store = StoreProcess::start("1M");
    let other = store.client();
    other.put(numbered(1), b"before", b"").unwrap();
    let descriptors = store.open_descriptors();
    let mut offences = 0;
    for (name, bytes, reason) in malformed() {
        for is_open in [false, true] {
            let mut peer = if is_open { store.raw_client() } else { store.raw_peer() };
            peer.send(&bytes).expect("the store has not closed yet");
            peer.wait_for_end();
            offences += 1;
            wait_until(name, || store.log_lines("closed the connection").len() >= offences);
            let lines = store.log_lines("closed the connection");
            assert_eq!(lines.len(), offences, "one line each: {lines:#?}");
            assert!(lines[offences - 1].contains(reason), "{name}: {lines:#?}");
            let object = other.get_one(numbered(1), Some(PATIENCE)).unwrap().expect("it was put");
            assert_eq!(object.data(), b"before");
        }
    }
    assert_eq!(other.stats().unwrap().counter("protocol_errors"), offences as u64);
    wait_until("the descriptors are closed", || store.open_descriptors() == descriptors);
    store.assert_serves();
}

/// The same sequence in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        usize::try_from(word % end as u64).expect("it is below a usize")
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("a byte")
    }
}

/// One of each request; few ids, so that they meet.
fn specimens() -> Vec<ClientMessage> {
    let ids = vec![numbered(1), numbered(2), numbered(1)];
    let timeout = Some(Duration::from_millis(5));
    let (id, room) = (numbered(1), AT_ONCE);
    let object = |number| NewObject { id: numbered(number), data: vec![7; 90], metadata: vec![1] };
    let requests = [
        Request::SetOptions { client_name: Some("mutant".to_owned()), quota: Some(1000) },
        Request::Create { id, data_size: 100, metadata_size: 10, room },
        Request::Put { objects: vec![object(1)], room },
        Request::Put { objects: vec![object(2), object(3), object(4)], room },
        Request::Seal { id, release: true },
        Request::Abort { id },
        Request::Get { ids: ids.clone(), timeout, fail_if_abandoned: true },
        Request::Get { ids: ids.clone(), timeout: None, fail_if_abandoned: false },
        Request::Wait { ids: ids.clone(), count: 2, timeout },
        Request::Cancel { request: plasma::protocol::message::RequestId(2) },
        Request::Release { holds: vec![(id, 1), (numbered(2), 2)] },
        Request::GetState { ids: ids.clone() },
        Request::Delete { ids: ids.clone() },
        Request::Evict { bytes: 100 },
        Request::Refresh { ids },
        Request::List { cursor: 0 },
        Request::Subscribe { one_by_one: false },
        Request::GetStats,
        Request::GetDebugText,
        Request::ListClients { after: plasma::ids::ClientId(0), holding: Some(id) },
        Request::Disconnect,
    ];
    let connect =
        Connect { protocol_version: 1, client_name: "mutant".to_owned(), ..Connect::default() };
    let requests = requests.into_iter().map(ClientMessage::Request);
    std::iter::once(ClientMessage::Connect(connect)).chain(requests).collect()
}

/// Damages a frame in one to three places; every other time its length is put right again.
fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let place = random.below(frame.len().max(1)).min(frame.len().saturating_sub(1));
        match random.below(5) {
            _ if frame.is_empty() => frame.push(random.byte()),
            0 => frame[place] ^= 1 << random.below(8),
            1 => frame[place] = random.byte(),
            2 => frame.insert(place, random.byte()),
            3 => frame.truncate(place),
            _ => {
                let end = place + random.below(frame.len() - place);
                frame.extend_from_within(place..end);
            }
        }
    }
    if random.below(2) == 0 && frame.len() > 8 {
        let length = u32::try_from(frame.len() - 8).expect("a short frame");
        frame[..8].copy_from_slice(&header(length, 0, 0));
    }
}

/// Mutated frames on one connection, until they are sent or the store hangs up.
fn send_mutants(store: &StoreProcess, specimens: &[ClientMessage], random: &mut Random) {
    let mut peer = if random.below(8) == 0 { store.raw_peer() } else { store.raw_client() };
    for number in 0..10 {
        let specimen = &specimens[random.below(specimens.len())];
        let mut frame = RawPeer::frame(number + 2, specimen);
        mutate(&mut frame, random);
        if peer.send(&frame).is_err() {
            break;
        }
    }
    // It fails if the store has hung up already.
    let _ = peer.socket.shutdown(Shutdown::Write);
    peer.wait_for_end();
}

#[test]
fn b01_malformed_input_ten_thousand_mutated_frames() {
    const CONNECTIONS: usize = 1000;
    let mut store = StoreProcess::start_with(&["-m", "1M"], |command| {
        command.env("RUST_LOG", "debug");
    });
    let other = store.client();
    other.stats().unwrap();
    let descriptors = store.open_descriptors();
    let (specimens, mut random) = (specimens(), Random(1));
    let mut warm_memory = 0;
    for round in 0..CONNECTIONS {
        if round == CONNECTIONS / 10 {
            warm_memory = store.private_memory();
        }
        send_mutants(&store, &specimens, &mut random);
    }
    let closed = "closed the connection";
    wait_until("all have been closed", || store.log_lines(closed).len() >= CONNECTIONS);
    let lines = store.log_lines(closed);
    let clients: BTreeSet<_> =
        lines.iter().filter_map(|line| line.split("client ").nth(1)?.split(' ').next()).collect();
    assert_eq!((lines.len(), clients.len()), (CONNECTIONS, CONNECTIONS), "one line each");
    let reasons = ["protocol error: ", "goodbye", "cut off inside a frame", "speaks version"];
    for line in &lines {
        assert!(reasons.iter().any(|reason| line.contains(reason)), "{line}");
    }
    let offenders = store.log_lines("protocol error: ").len();
    assert!(offenders > CONNECTIONS / 3, "only {offenders} were recognised");

    let stats = other.stats().expect("the other client is served");
    assert_eq!((stats.clients, stats.waiting_requests, stats.subscribers), (1, 0, 0));
    assert_eq!((stats.pinned, stats.unsealed_objects), (0, 0), "nothing of theirs is left behind");
    wait_until("the descriptors are closed", || store.open_descriptors() == descriptors);
    let memory = store.private_memory();
    assert!(memory < warm_memory + (4 << 20), "from {warm_memory} to {memory} bytes");
    store.assert_serves();
}

#[test]
fn lines_that_peers_cause_are_limited() {
    let mut store = StoreProcess::start("1M");
    let peers = 3 * limits::PEER_LINES_AT_ONCE as usize;
    for _ in 0..peers {
        let mut peer = store.raw_peer();
        let _ = peer.send(&header(0, 0, 0));
        peer.wait_for_end();
    }
    let left_out = || {
        let notes = store.log_lines("lines about clients were left out");
        let numbers =
            notes.iter().filter_map(|line| line.split_whitespace().nth(2)?.parse::<usize>().ok());
        numbers.sum::<usize>()
    };
    // Each has its line, or is counted in one. However long this takes.
    wait_until("every line is accounted for", || {
        store.log_lines("closed the connection").len() + left_out() == peers
    });
    store.assert_serves();
}

// ---- requests that make no sense ----------------------------------------------------------------

fn assert_refused(peer: &mut RawPeer, request: Request, refusal: Refusal) {
    assert_eq!(peer.call(request.clone()), Reply::Refused(refusal), "{request:?}");
}

#[test]
fn b02_misuse() {
    let mut store = StoreProcess::start("1M");
    let mut owner = store.raw_client();
    let (unknown, sealed, foreign) = (numbered(1), numbered(2), numbered(3));
    assert_eq!(owner.call(put_numbered([2])), Reply::Done);
    let create = Request::Create { id: foreign, data_size: 1, metadata_size: 0, room: AT_ONCE };
    assert!(matches!(owner.call(create), Reply::Created(_)));
    let Reply::Objects(held) = owner.call(get_numbered(2, None)) else { panic!("it is there") };

    let mut peer = store.raw_client();
    let release = |id| Request::Release { holds: vec![(id, 1)] };
    let seal = |id| Request::Seal { id, release: false };
    let abort = |id| Request::Abort { id };
    assert_refused(&mut peer, release(unknown), Refusal::ObjectNotFound(unknown));
    for id in [sealed, foreign] {
        assert_refused(&mut peer, release(id), Refusal::NotHeld(id));
    }
    assert_refused(&mut peer, seal(unknown), Refusal::ObjectNotFound(unknown));
    assert_refused(&mut peer, seal(sealed), Refusal::AlreadySealed(sealed));
    assert_refused(&mut peer, seal(foreign), Refusal::NotCreator(foreign));
    assert_refused(&mut peer, abort(unknown), Refusal::ObjectNotFound(unknown));
    assert_refused(&mut peer, abort(foreign), Refusal::NotCreator(foreign));
    assert_refused(&mut peer, abort(sealed), Refusal::AlreadySealed(sealed));
    assert!(matches!(peer.call(Request::GetStats), Reply::Stats(_)), "the connection lives");

    // Its own object again and again: the second seal, the second release, one release too many.
    let own = numbered(4);
    let create = Request::Create { id: own, data_size: 1, metadata_size: 0, room: AT_ONCE };
    assert!(matches!(peer.call(create), Reply::Created(_)));
    assert_eq!(peer.call(seal(own)), Reply::Done);
    assert_refused(&mut peer, seal(own), Refusal::AlreadySealed(own));
    let twice = Request::Release { holds: vec![(own, 2)] };
    assert_refused(&mut peer, twice, Refusal::NotHeld(own));
    assert_eq!(peer.call(release(own)), Reply::Done);
    assert_refused(&mut peer, release(own), Refusal::NotHeld(own));

    // The owner has what it had.
    assert_eq!(owner.call(get_numbered(2, None)), Reply::Objects(held));
    assert_eq!(owner.call(Request::Release { holds: vec![(sealed, 2)] }), Reply::Done);
    assert_eq!(owner.call(seal(foreign)), Reply::Done);
    assert!(store.log_lines("closed the connection").is_empty(), "nobody was hung up on");
    store.assert_serves();
}

#[test]
fn b02_misuse_two_parked_gets_then_disconnect() {
    let mut store = StoreProcess::start("1M");
    let other = store.client();
    let mut peer = store.raw_client();
    let both = Request::Get {
        ids: vec![numbered(1), numbered(2), numbered(1)],
        timeout: Some(LONG),
        fail_if_abandoned: false,
    };
    peer.request_all([get_numbered(1, None), both]);
    wait_until("both are parked", || other.stats().unwrap().waiting_requests == 2);
    drop(peer);
    wait_until("both are gone", || other.stats().unwrap().waiting_requests == 0);
    for number in [1, 2] {
        other.put(numbered(number), b"late", b"").unwrap();
        assert!(other.get_one(numbered(number), Some(PATIENCE)).unwrap().is_some());
    }
    assert_eq!(other.stats().unwrap().pinned, 0, "nothing is held for the dead");
    store.assert_serves();
}

/// A parked get holds what is there. Its client tries to give that back before it has got it.
#[test]
fn b02_misuse_release_of_what_a_parked_get_holds() {
    let mut store = StoreProcess::start("1M");
    let mut other = store.raw_client();
    for (fail_if_abandoned, start) in [(false, 1), (true, 11)] {
        let (there, late) = (start, start + 1);
        let mut peer = store.raw_client();
        assert_eq!(other.call(put_numbered([there])), Reply::Done);
        let create =
            Request::Create { id: numbered(late), data_size: 1, metadata_size: 0, room: AT_ONCE };
        assert!(matches!(other.call(create), Reply::Created(_)));
        peer.request(Request::Get {
            ids: vec![numbered(there), numbered(late)],
            timeout: Some(LONG),
            fail_if_abandoned,
        });
        let release = Request::Release { holds: vec![(numbered(there), 1)] };
        assert_refused(&mut peer, release.clone(), Refusal::NotHeld(numbered(there)));
        other.call(Request::Delete { ids: vec![numbered(there)] });
        let id = numbered(late);
        let end = if fail_if_abandoned {
            Request::Abort { id }
        } else {
            Request::Seal { id, release: true }
        };
        assert_eq!(other.call(end), Reply::Done);
        match peer.receive().expect("the get is answered").reply {
            Reply::Objects(found) => {
                assert!(found.iter().all(Option::is_some), "{found:?}");
                assert_eq!(peer.call(release), Reply::Done, "now it is the client's");
            }
            other => assert_eq!(other, Reply::Refused(Refusal::Abandoned(id))),
        }
        let Reply::Stats(stats) = peer.call(Request::GetStats) else { panic!("no statistics") };
        assert_eq!(stats.pinned, u64::from(!fail_if_abandoned), "the late one, if it is there");
        drop(peer);
        store.assert_serves();
    }
}

/// A stranger announces a frame as large as there may be and sends most of it.
#[test]
fn b01_malformed_input_a_stranger_gets_no_memory() {
    let mut store = StoreProcess::start("1M");
    let before = store.private_memory();
    let mut peers: Vec<_> = (0..30).map(|_| store.raw_peer()).collect();
    for peer in &mut peers {
        let announced = limits::FRAME_PAYLOAD_BYTES_MAX.to_le_bytes();
        let mut frame = [&announced[..], &[0; 4]].concat();
        frame.resize(1 << 20, 0xff);
        // The store may hang up before it has been told everything.
        let _ = peer.send(&frame);
        peer.wait_for_end();
    }
    assert!(store.private_memory() < before + (8 << 20), "strangers were given memory");
    store.assert_serves();
}

// ---- peers that do not go on --------------------------------------------------------------------

#[test]
fn b03_slow_peer_half_a_header_and_half_a_frame() {
    let mut store = StoreProcess::start("1M");
    let frame = RawPeer::frame(2, &ClientMessage::Request(Request::GetStats));
    let mut large = RawPeer::frame(2, &ClientMessage::Request(put_numbered(0..1000)));
    // Only announced: as much as there may be.
    large[..8].copy_from_slice(&header(limits::FRAME_PAYLOAD_BYTES_MAX, 0, 0));
    let memory = store.private_memory();

    let mut announcers: Vec<_> = (0..50).map(|_| store.raw_client()).collect();
    for peer in &mut announcers {
        peer.send(&large).unwrap();
    }
    let mut slow: Vec<_> = (1..frame.len()).map(|cut| (cut, store.raw_client())).collect();
    for (cut, peer) in &mut slow {
        peer.send(&frame[..*cut]).unwrap();
        store.assert_serves();
    }
    let grown = store.private_memory().saturating_sub(memory);
    assert!(grown < 50 << 20, "{grown} bytes for frames that were announced and did not come");
    for (cut, peer) in &mut slow {
        peer.send(&frame[*cut..]).unwrap();
        let reply = peer.receive().expect("the connection lives").reply;
        assert!(matches!(reply, Reply::Stats(_)), "{reply:?}");
    }
}

#[test]
fn b03_slow_peer_that_never_reads_its_replies() {
    const LISTS: usize = 2000;
    let mut store = StoreProcess::start("16M");
    let mut other = store.raw_client();
    assert_eq!(other.call(put_numbered(0..3000)), Reply::Done);
    let memory = store.private_memory();
    let mut peer = store.raw_client();
    let first = peer.request_all((0..LISTS).map(|_| Request::List { cursor: 0 }));
    // Each answer to another client is a turn in which the lists would have had theirs.
    for _ in 0..200 {
        assert!(matches!(other.call(Request::GetStats), Reply::Stats(_)));
        let grown = store.private_memory().saturating_sub(memory);
        assert!(grown < 16 << 20, "{grown} bytes for replies that nobody reads");
    }
    store.assert_serves();
    // When it does read, it gets everything.
    let reply = peer.receive().expect("the first list");
    assert_eq!(reply.request.0, first);
    let part = limits::LIST_PART_MAX;
    assert!(matches!(reply.reply, Reply::ObjectList { objects, .. } if objects.len() == part));
    for _ in 1..LISTS {
        assert!(peer.receive_payload().is_some_and(|list| list.len() > part * 20));
    }
    assert!(matches!(peer.call(Request::GetStats), Reply::Stats(_)));
}

#[test]
fn b03_slow_peer_a_subscriber_that_never_reads() {
    let mut store = StoreProcess::start("16M");
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let mut producer = store.raw_client();
    let memory = store.private_memory();
    for round in 0..20 {
        let numbers = round * 4096..(round + 1) * 4096;
        assert_eq!(producer.call(put_numbered(numbers.clone())), Reply::Done);
        let ids = numbers.map(numbered).collect();
        assert!(matches!(producer.call(Request::Delete { ids }), Reply::Deleted(_)));
        store.assert_serves();
    }
    let grown = store.private_memory().saturating_sub(memory);
    assert!(grown < 32 << 20, "{grown} bytes for 163 840 events that nobody reads");
}

/// A `cat` that writes what comes on a connection into a file; it can be stopped and continued.
struct Copier {
    process: Child,
    file: PathBuf,
}

impl Copier {
    fn start(socket: &UnixStream, file: PathBuf) -> Self {
        let process = Command::new("cat")
            .stdin(OwnedFd::from(socket.try_clone().unwrap()))
            .stdout(File::create(&file).unwrap())
            .spawn()
            .expect("there is a cat");
        Self { process, file }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap())
    }

    /// Returns when it has stopped.
    fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(status, WaitStatus::Stopped(self.pid(), Signal::SIGSTOP));
    }

    fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// The events that have come so far.
    fn events(&self) -> Vec<Event> {
        let bytes = fs::read(&self.file).unwrap();
        let mut reader = FrameReader::new(0);
        reader.space(bytes.len().max(1))[..bytes.len()].copy_from_slice(&bytes);
        reader.advance(bytes.len());
        let mut events = Vec::new();
        while let Some(frame) = reader.next_frame().unwrap() {
            let Reply::Events(more) = codec::decode_server(frame.payload).unwrap().reply else {
                panic!("a stream has events only")
            };
            events.extend(more);
        }
        events
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn b03_slow_peer_a_stopped_process() {
    let mut store = StoreProcess::start("16M");
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let copier = Copier::start(&subscriber.socket, store.directory().join("events"));
    copier.stop();
    let mut producer = store.raw_client();
    for round in 0..10 {
        let numbers = round * 4096..(round + 1) * 4096;
        assert_eq!(producer.call(put_numbered(numbers)), Reply::Done);
        assert!(matches!(producer.call(Request::GetStats), Reply::Stats(_)));
    }
    let told = copier.events().len();
    assert!(told <= 1 + 40_960, "it was not stopped");
    copier.resume();
    wait_until("everything has come", || sealed_in_order(&copier.events()).len() == 40_960);
    assert_eq!(sealed_in_order(&copier.events()), (0..40_960).map(numbered).collect::<Vec<_>>());
    store.assert_serves();
}

/// The ids of the sealed events.
fn sealed_in_order(events: &[Event]) -> Vec<ObjectId> {
    let sealed = events.iter().filter_map(|event| match event {
        Event::Sealed { id, .. } => Some(*id),
        _ => None,
    });
    sealed.collect()
}

// ---- descriptors --------------------------------------------------------------------------------

/// Runs a program with a limit of open files that it cannot raise.
fn limit_descriptors(command: &mut Command, limit: usize) {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -n {limit}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell.env_remove("RUST_LOG").stdin(Stdio::null()).stderr(Stdio::piped());
    *command = shell;
}

fn connect_request() -> Vec<u8> {
    let connect = Connect {
        protocol_version: limits::PROTOCOL_VERSION,
        client_name: "in the queue".to_owned(),
        ..Connect::default()
    };
    RawPeer::frame(1, &ClientMessage::Connect(connect))
}

#[test]
fn b05_descriptors() {
    let store = StoreProcess::start_with(&["-m", "1M"], |command| limit_descriptors(command, 40));
    let mut early = store.raw_client();
    let leaving = store.raw_client();
    let mut late: Vec<_> = (0..100).map(|_| store.raw_peer()).collect();
    for peer in &mut late {
        peer.send(&connect_request()).unwrap();
    }
    wait_until("descriptors run out", || !store.log_lines("cannot accept").is_empty());

    // Those that are connected work, and the loop does not turn for those that are not.
    let counters = |peer: &mut RawPeer| {
        let Reply::Stats(stats) = peer.call(Request::GetStats) else { panic!("no statistics") };
        (stats.counter("turns"), stats.counter("accepts_refused"), stats.clients)
    };
    let (turns, refused, clients) = counters(&mut early);
    assert!(clients < 40);
    assert_eq!(early.call(put_numbered([1])), Reply::Done);
    let cpu_time = store.cpu_time();
    let waited = early.call(get_numbered(2, Some(Duration::from_secs(2))));
    assert_eq!(waited, Reply::Objects(vec![None]));
    let cpu_time = store.cpu_time().saturating_sub(cpu_time);
    assert!(cpu_time < Duration::from_millis(200), "{cpu_time:?} of processor time in 2 s");
    for _ in 0..1000 {
        counters(&mut early);
    }
    let (turns_now, refused_now, _) = counters(&mut early);
    assert!(refused_now - refused < 500, "it tried in vain at every turn");
    assert!(turns_now - turns < 2000, "it turned {} times", turns_now - turns);
    assert_eq!(store.log_lines("cannot accept").len(), 1, "{}", store.log());

    // One leaves, and the queue moves on, to its very end.
    drop(leaving);
    for mut peer in late {
        let reply = peer.receive().expect("its turn comes").reply;
        assert!(matches!(reply, Reply::Connected(_)), "{reply:?}");
    }
    assert!(matches!(early.call(Request::GetStats), Reply::Stats(_)));
    assert!(store.log_lines("cannot accept").len() <= 2, "{}", store.log());
}

// ---- events -------------------------------------------------------------------------------------

/// Reads a stream of events from its start up to the seal of so many objects.
fn read_sealed(subscriber: &mut RawPeer, count: usize) -> Vec<ObjectId> {
    let mut ids = Vec::new();
    while ids.len() < count {
        let Reply::Events(events) = subscriber.receive().expect("the stream goes on").reply else {
            panic!("a stream has events only")
        };
        ids.extend(sealed_in_order(&events));
    }
    ids
}

#[test]
fn b08_big_batch_and_slow_subscriber() {
    let mut store = StoreProcess::start("16M");
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let mut producer = store.raw_client();
    assert_eq!(producer.call(put_numbered(0..4096)), Reply::Done);
    assert_eq!(producer.call(put_numbered(4096..8192)), Reply::Done);
    store.assert_serves();
    let sealed = read_sealed(&mut subscriber, 8192);
    assert_eq!(sealed[..8192], (0..8192).map(numbered).collect::<Vec<_>>());
}

#[test]
fn b08_hundred_thousand_seals_and_a_sleeping_subscriber() {
    const SEALS: u64 = 100_000;
    const TOGETHER: u64 = 1000;
    let mut store = StoreProcess::start("16M");
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let mut producer = store.raw_client();
    for start in (0..SEALS).step_by(1000) {
        producer.request_all((start..start + TOGETHER).flat_map(|number| {
            let id = numbered(number);
            let create = Request::Create { id, data_size: 1, metadata_size: 0, room: AT_ONCE };
            [create, Request::Seal { id, release: true }]
        }));
        for _ in 0..TOGETHER {
            let created = producer.receive().expect("a reply").reply;
            assert!(matches!(created, Reply::Created(_)), "{created:?}");
            assert_eq!(producer.receive().expect("a reply").reply, Reply::Done);
        }
    }
    store.assert_serves();
    let sealed = read_sealed(&mut subscriber, 100_000);
    assert!(sealed[..100_000].iter().copied().eq((0..SEALS).map(numbered)), "in order");
}

#[test]
fn b09_subscriber_closes_its_socket() {
    let mut store = StoreProcess::start("1M");
    let producer = store.client();
    // After its first answer the store has closed what it has sent with its welcome.
    producer.stats().unwrap();
    let descriptors = store.open_descriptors();
    for round in 0..1000 {
        let subscriber = store.client();
        let events = subscriber.subscribe().unwrap();
        drop(events);
        producer.put(numbered(round), b"event", b"").unwrap();
        let newcomer = store.client();
        drop(subscriber);
        producer.delete(&[numbered(round)]).unwrap();
        newcomer.put(numbered(round), b"newcomer", b"").unwrap();
        let object = newcomer.get_one(numbered(round), Some(PATIENCE)).unwrap().unwrap();
        assert_eq!(object.data(), b"newcomer");
    }
    wait_until("all have been closed", || store.open_descriptors() == descriptors);
    assert_eq!(producer.stats().unwrap().subscribers, 0);
    store.assert_serves();
}

#[test]
fn b31_subscriber_that_never_reads_ends_visibly() {
    let mut store = StoreProcess::start("1M");
    let mut subscriber = store.raw_client();
    assert_eq!(subscriber.call(Request::Subscribe { one_by_one: false }), Reply::Done);
    let mut producer = store.raw_client();
    let memory = store.private_memory();
    let batch = limits::BATCH_OBJECTS_MAX as u64;
    // More than the log remembers and than may be on the way to the subscriber.
    for _ in 0..(limits::EVENT_LOG_MAX + 100_000) / (2 * limits::BATCH_OBJECTS_MAX) + 1 {
        let delete = Request::Delete { ids: (0..batch).map(numbered).collect() };
        producer.request_all([put_numbered(0..batch), delete]);
        assert_eq!(producer.receive().expect("a reply").reply, Reply::Done);
        let deleted = producer.receive().expect("a reply").reply;
        assert!(matches!(deleted, Reply::Deleted(_)), "{deleted:?}");
    }
    let grown = store.private_memory().saturating_sub(memory);
    assert!(grown < 160 << 20, "{grown} bytes for a subscriber that does not read");
    store.assert_serves();

    let mut last = Event::SnapshotEnd;
    while let Some(message) = subscriber.receive() {
        assert_ne!(last, Event::Lagged, "nothing follows");
        let Reply::Events(events) = message.reply else { panic!("{message:?}") };
        last = *events.last().expect("events");
    }
    assert_eq!(last, Event::Lagged, "the end is a visible one");
    wait_until("the log says so", || store.log_lines("fell too far behind").len() == 1);
    store.assert_serves();
}

// ---- time ---------------------------------------------------------------------------------------

#[test]
fn b29_many_parked_gets() {
    const PEERS: u64 = 10;
    const EACH: u64 = 1000;
    let mut store = StoreProcess::start("1M");
    let mut other = store.raw_client();
    let mut peers: Vec<_> = (0..PEERS).map(|_| store.raw_client()).collect();
    for (peer, start) in peers.iter_mut().zip((0..).step_by(1000)) {
        let timeout = |number| Some(LONG + Duration::from_millis(number * 7919 % 10_007));
        peer.request_all((start..start + EACH).map(|number| get_numbered(number, timeout(number))));
    }
    wait_until("all are parked", || waiting(&mut other) == PEERS * EACH);
    for _ in 0..100 {
        // A ping that says itself that it was answered before any of them.
        assert_eq!(waiting(&mut other), PEERS * EACH);
    }
    // Some whose time is short are answered although their neighbours wait.
    for peer in &mut peers {
        let missing = peer.call(get_numbered(u64::MAX, Some(Duration::from_millis(20))));
        assert_eq!(missing, Reply::Objects(vec![None]));
    }
    for start in (0..PEERS * EACH).step_by(2500) {
        assert_eq!(other.call(put_numbered(start..start + 2500)), Reply::Done);
    }
    for peer in &mut peers {
        let mut answered = BTreeSet::new();
        for _ in 0..EACH {
            let message = peer.receive().expect("an answer");
            assert!(matches!(&message.reply, Reply::Objects(found) if found[0].is_some()));
            answered.insert(message.request);
        }
        assert_eq!(answered.len(), 1000, "each of them once");
    }
    assert_eq!(waiting(&mut other), 0);
    drop(peers);
    store.assert_serves();
}

fn waiting(peer: &mut RawPeer) -> u64 {
    match peer.call(Request::GetStats) {
        Reply::Stats(stats) => stats.waiting_requests,
        other => panic!("{other:?}"),
    }
}
