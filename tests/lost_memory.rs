//! Clients that take memory away from the store, through the descriptor that they were given to
//! write with: they cut its file short, or punch holes into it where there are no other pages. Then
//! puts are refused, and the store and everybody else go on.
//!
//! Huge pages have the same test in `huge_pages.rs`.

mod support;

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use plasma::ObjectId;
use plasma::client::Error;
use plasma::protocol::message::{NewObject, ObjectState, Reply, Request, Stats};
use plasma::protocol::refusal::Refusal;
use support::{AT_ONCE, RawPeer, SmallFileSystem, StoreProcess, numbered, wait_until};

const LONG: Option<Duration> = Some(Duration::from_secs(3600));

/// Opens a connection and creates something, which brings the descriptor for writing.
fn writable_file(peer: &mut RawPeer) -> OwnedFd {
    let id = ObjectId::random();
    let create = Request::Create { id, data_size: 1, metadata_size: 0, room: AT_ONCE };
    assert!(matches!(peer.call(create), Reply::Created(_)));
    assert_eq!(peer.call(Request::Abort { id }), Reply::Done);
    peer.descriptors.pop_back().expect("the descriptor for writing")
}

fn put(number: u64, bytes: usize) -> Request {
    let object = NewObject { id: numbered(number), data: vec![7; bytes], metadata: vec![8; 3] };
    Request::Put { objects: vec![object], room: AT_ONCE }
}

fn stats(peer: &mut RawPeer) -> Stats {
    match peer.call(Request::GetStats) {
        Reply::Stats(stats) => stats,
        other => panic!("no statistics: {other:?}"),
    }
}

fn state(peer: &mut RawPeer, number: u64) -> ObjectState {
    match peer.call(Request::GetState { ids: vec![numbered(number)] }) {
        Reply::States(states) => states[0],
        other => panic!("no state: {other:?}"),
    }
}

const LOST: Reply = Reply::Refused(Refusal::MemoryLost);

/// No put has its memory; all else works.
fn assert_only_puts_fail(store: &mut StoreProcess, hostile: &mut RawPeer) {
    let mut other = store.raw_client();
    let before = stats(&mut other);
    for round in 0..50 {
        for bytes in [1, 100, 3000, 100_000] {
            assert_eq!(hostile.call(put(round, bytes)), LOST, "{bytes} bytes");
            assert_eq!(other.call(put(round, bytes)), LOST, "{bytes} bytes");
        }
    }
    // Of a batch there is nothing, what needs no memory neither, and who waits for it is told.
    let mut waiting = store.raw_client();
    waiting.request(Request::Get {
        ids: vec![numbered(11)],
        timeout: LONG,
        fail_if_abandoned: true,
    });
    wait_until("it waits", || stats(&mut other).waiting_requests == 1);
    let object = |number: u64, bytes| NewObject {
        id: numbered(number),
        data: vec![1; bytes],
        metadata: vec![],
    };
    let objects = vec![object(10, 0), object(11, 0), object(12, 500), object(13, 700)];
    assert_eq!(hostile.call(Request::Put { objects, room: AT_ONCE }), LOST);
    let told = waiting.receive().expect("an answer").reply;
    assert_eq!(told, Reply::Refused(Refusal::Abandoned(numbered(11))));
    for number in 0..50 {
        assert_eq!(state(&mut other, number), ObjectState::Absent);
    }
    let client = store.client();
    let error = client.put(numbered(1), b"data", b"").expect_err("there is no memory");
    assert!(matches!(error, Error::Refused(Refusal::MemoryLost)), "{error}");
    assert!(!client.contains(numbered(1)).expect("an answer"));

    let objects = vec![object(20, 0)];
    assert_eq!(other.call(Request::Put { objects, room: AT_ONCE }), Reply::Done, "no memory");
    assert_eq!(state(&mut other, 20), ObjectState::Sealed);
    let Reply::Deleted(_) = other.call(Request::Delete { ids: vec![numbered(20)] }) else {
        panic!("it can be deleted");
    };
    let after = stats(&mut other);
    let counted = |stats: &Stats| (stats.used, stats.pinned, stats.objects, stats.unsealed_objects);
    assert_eq!(counted(&after), counted(&before), "nothing is left of all that");
    assert!(store.is_alive());
    assert_eq!(store.log_lines("not there any more").len(), 1, "{}", store.log());
}

#[test]
fn a_file_that_is_cut_short_costs_puts_and_nothing_else() {
    let mut store =
        StoreProcess::start_with(&["-m", "1M", "-d", "/dev/shm", "--ahead", "0"], |_| {});
    let mut hostile = store.raw_client();
    let file = writable_file(&mut hostile);
    let client = store.client();
    client.put(numbered(100), &[1; 1000], b"").expect("there is memory");
    let size = fstat(&file).expect("its size").st_size;
    // Of a page that is there in part all of it is.
    for left in [0, size / 2 / 4096 * 4096] {
        // Objects fill the memory from its beginning on.
        let filler = numbered(101);
        if left > 0 {
            let writer = client.create(filler, left.unsigned_abs(), 0, Default::default());
            writer.expect("there is room").seal().expect("it can be sealed");
        }
        ftruncate(&file, left).expect("nobody hinders him");
        assert_only_puts_fail(&mut store, &mut hostile);
        assert!(client.contains(numbered(100)).expect("an answer"), "it is known");
        ftruncate(&file, size).expect("nobody hinders him");
        // The memory is there again, and nothing of what was there before.
        store.assert_serves();
    }
    drop((client, hostile));
    store.stop();
}

#[test]
fn a_hole_for_which_there_are_no_pages_costs_puts_and_nothing_else() {
    let Some(mount) = SmallFileSystem::mount() else { return };
    let directory = mount.path().to_str().expect("text");
    let arguments = ["-m", "40000000", "-d", directory, "--ahead", "0"];
    let mut store = StoreProcess::start_with(&arguments, |_| {});
    let mut hostile = store.raw_client();
    let file = writable_file(&mut hostile);
    let size = fstat(&file).expect("its size").st_size;
    let kind = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, kind, 0, size).expect("nobody hinders him");
    mount.fill();
    assert_only_puts_fail(&mut store, &mut hostile);
    mount.empty();
    store.assert_serves();
    drop(hostile);
    store.stop();
}

/// A thread of the store makes memory ready meanwhile, which makes the file longer again.
#[test]
fn who_cuts_and_punches_again_and_again_ends_nothing() {
    let mut store = StoreProcess::start_with(&["-m", "200M", "-d", "/dev/shm"], |_| {});
    let mut hostile = store.raw_client();
    let file = writable_file(&mut hostile);
    let size = fstat(&file).expect("its size").st_size;
    let kind = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for round in 0..300 {
        fallocate(&file, kind, 0, size).expect("nobody hinders him");
        ftruncate(&file, size / 300 * round).expect("nobody hinders him");
        let answer = hostile.call(put(round.unsigned_abs(), 100_000));
        assert!([Reply::Done, LOST].contains(&answer), "{answer:?}");
    }
    ftruncate(&file, size).expect("nobody hinders him");
    store.assert_serves();
    drop(hostile);
    store.stop();
}
