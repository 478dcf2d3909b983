//! Free memory goes back to the system, and clients notice nothing of it.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use plasma::client::{CreateOptions, DeleteOutcome};
use plasma::{Client, ObjectId};
use support::{PATIENCE, StoreProcess, wait_until};

const MIB: u64 = 1 << 20;

/// All that a store can hold here.
const CAPACITY: u64 = 200 * MIB;

/// What may stay: less than is worth it, at both ends of what has been used.
const REST_MAX: u64 = 20 * MIB;

const AT_ONCE: CreateOptions = CreateOptions { evict: false, timeout: Some(Duration::ZERO) };

fn store(arguments: &[&str]) -> StoreProcess {
    StoreProcess::start_with(&[&["-m", "200MiB"], arguments].concat(), |_| {})
}

#[test]
fn memory_goes_back_and_can_be_used_again() {
    let store = store(&["--trim-after", "1", "--ahead", "0"]);
    let (client, reader) = (store.client(), store.client());
    let file = segment_file(&store);
    for round in 1..=2 {
        let id = create(&client, CAPACITY, round);
        // Another process has it mapped, and has let it go.
        check(&reader, id, CAPACITY, round);
        assert!(allocated(&file) >= CAPACITY);
        assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
        wait_until("the memory is with the system again", || allocated(&file) <= REST_MAX);
    }
    // Then there is nothing left to do: a long wait takes as few turns of the loop as a short one.
    let turns_of_a_wait = |milliseconds| {
        let before = counter(&client, "turns");
        wait_for_nothing(&client, milliseconds);
        counter(&client, "turns") - before
    };
    wait_until("the store is idle", || turns_of_a_wait(2500) <= turns_of_a_wait(1) + 1);
    drop((client, reader));
    store.stop();
}

#[test]
fn what_is_held_stays_as_it_is() {
    let mut store = store(&["--trim-after=1", "--ahead=0"]);
    let client = store.client();
    let file = segment_file(&store);
    let ids: Vec<ObjectId> = (0..10).map(|index| create(&client, CAPACITY / 10, index)).collect();
    let kept: Vec<_> = ids.iter().skip(1).step_by(2).collect();
    let buffers: Vec<_> = kept
        .iter()
        .map(|id| client.get_one(**id, Some(PATIENCE)).expect("an answer").expect("it is there"))
        .collect();
    client.delete(&ids).expect("an answer");
    wait_until("the other half has gone", || allocated(&file) <= CAPACITY / 2 + REST_MAX);
    for (index, buffer) in buffers.iter().enumerate() {
        let value = u8::try_from(2 * index + 1).expect("a small number");
        assert!(buffer.data().iter().all(|byte| *byte == value), "object {index} has changed");
    }
    drop(buffers);
    wait_until("the rest has gone as well", || allocated(&file) <= REST_MAX);
    store.assert_serves();
}

/// Whatever is on its way to the system, the whole capacity can be had at once, and is written and
/// read undamaged.
#[test]
fn an_object_of_the_capacity_fits_while_memory_goes_back() {
    let store = store(&["--trim-after=1", "--ahead=0"]);
    let client = store.client();
    let mut met = 0;
    for round in 0..20 {
        let before = counter(&client, "bytes_trimmed");
        let id = create(&client, CAPACITY, round);
        assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
        wait_until("some memory has gone", || counter(&client, "bytes_trimmed") > before);
        let queued = counter(&client, "creates_queued");
        let id = create(&client, CAPACITY, round + 100);
        met += counter(&client, "creates_queued") - queued;
        check(&client, id, CAPACITY, round + 100);
        assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
        if met >= 3 {
            break;
        }
    }
    assert!(met > 0, "no create has ever met memory that was on its way");
    assert_eq!(counter(&client, "refusals_full"), 0);
}

#[test]
fn memory_that_was_promised_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("text");
    for arguments in [
        ["--trim-after=0"].as_slice(),
        &["--trim-after=1", "--reserve"],
        &["--trim-after=1", "-d", path],
    ] {
        let store = store(arguments);
        let client = store.client();
        let id = create(&client, CAPACITY, 7);
        assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
        wait_for_nothing(&client, 2500);
        assert_eq!(counter(&client, "bytes_trimmed"), 0, "{arguments:?}");
    }
}

#[test]
fn what_is_to_be_ready_stays_ready() {
    let store = store(&["--trim-after=1", "--ahead=50MiB"]);
    let client = store.client();
    let file = segment_file(&store);
    wait_until("some memory is ready", || allocated(&file) >= 50 * MIB);
    let id = create(&client, CAPACITY, 1);
    assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
    wait_until("the rest has gone", || allocated(&file) <= 50 * MIB + REST_MAX);
    wait_until("all is counted", || counter(&client, "bytes_trimmed") >= 130 * MIB);
    assert!(allocated(&file) >= 50 * MIB - 2 * MIB, "{} bytes are left", allocated(&file));
}

/// Where memory runs out, the kernel ends the process that seems to use most of it.
#[test]
fn what_is_made_ready_is_no_memory_of_the_stores_process() {
    let store = store(&["--trim-after=0", "--ahead=150MiB"]);
    let file = segment_file(&store);
    wait_until("the memory is ready", || allocated(&file) >= 150 * MIB);
    let used = store.shared_memory();
    assert!(used < 10 * MIB, "{used} bytes count as the store's");

    let client = store.client();
    let id = create(&client, 140 * MIB, 3);
    check(&client, id, 140 * MIB, 3);
}

fn create(client: &Client, bytes: u64, value: u8) -> ObjectId {
    let id = ObjectId::random();
    let mut writer = client.create(id, bytes, 0, AT_ONCE).expect("there is room");
    writer.data_mut().fill(value);
    writer.seal().expect("it can be sealed");
    id
}

fn wait_for_nothing(client: &Client, milliseconds: u64) {
    let patience = Duration::from_millis(milliseconds);
    let found = client.get_one(ObjectId::random(), Some(patience)).expect("an answer");
    assert!(found.is_none(), "nobody has created it");
}

fn check(client: &Client, id: ObjectId, bytes: u64, value: u8) {
    let buffer = client.get_one(id, Some(PATIENCE)).expect("an answer").expect("it is there");
    assert_eq!(buffer.len() as u64, bytes);
    assert!(buffer.data().iter().all(|byte| *byte == value), "the object is what was written");
}

fn counter(client: &Client, name: &str) -> u64 {
    client.stats().expect("an answer").counter(name)
}

/// Bytes that the system has given to the store's memory.
fn allocated(file: &PathBuf) -> u64 {
    fs::metadata(file).expect("its file").blocks() * 512
}

/// The file behind the shared memory, as a path to its descriptor in the store.
fn segment_file(store: &StoreProcess) -> PathBuf {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", store.pid())).expect("the store runs");
    let mut paths = descriptors.map(|entry| entry.expect("a descriptor").path());
    let is_memory = |path: &PathBuf| {
        fs::read_link(path)
            .is_ok_and(|to| to.as_os_str().to_string_lossy().starts_with("/memfd:plasma"))
    };
    paths.find(is_memory).expect("it has shared memory")
}
