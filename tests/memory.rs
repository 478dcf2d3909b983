//! The shared memory as processes see it: who can write it, how much of it there is, and that what
//! somebody holds stays what it was.

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use plasma::client::{CreateOptions, DeleteOutcome, Error, Refusal};
use plasma::protocol::message::{Reply, Request};
use plasma::shm::{Access, Mapping};
use plasma::{Client, ObjectBuffer, ObjectId, limits};
use support::{PATIENCE, SmallFileSystem, StoreProcess, store_program, wait_until};

const NO_EVICTION: CreateOptions =
    CreateOptions { evict: false, timeout: Some(std::time::Duration::ZERO) };

// ---- sealed means sealed ------------------------------------------------------------------------

/// Tells this test's own program to be the reader, and which socket and object to use.
const VICTIM: &str = "PLASMA_TEST_VICTIM";

#[test]
fn b11_sealed_is_read_only() {
    if let Ok(text) = std::env::var(VICTIM) {
        write_into_what_is_only_held(&text);
    }
    let mut store = StoreProcess::start("1000000");
    let client = store.client();
    let id = ObjectId::random();
    client.put(id, &[7; 100_000], b"meta").expect("put works");
    let held = get(&client, id);

    let mut victim = Command::new(std::env::current_exe().expect("this program"));
    victim.args(["--exact", "b11_sealed_is_read_only", "--nocapture"]).stdin(Stdio::null());
    victim.env(VICTIM, format!("{} {id}", store.socket().display()));
    let output = victim.output().expect("the reader runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("it reads 7"), "{output:?}");
    assert!(!text.contains("it wrote"), "{output:?}");
    assert_eq!(output.status.signal(), Some(Signal::SIGSEGV as i32), "{output:?}");

    assert!(held.iter().all(|byte| *byte == 7), "nothing has changed");
    wait_until("the store forgets the dead reader", || {
        client.holders_of(id).expect("an answer").len() == 1
    });
    drop(held);
    assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
    store.assert_serves();
}

/// The reader: dies of what it does.
#[allow(unsafe_code, reason = "what the kernel has to forbid cannot be tried in safe code")]
fn write_into_what_is_only_held(arguments: &str) -> ! {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("no core file");
    let (socket, id) = arguments.rsplit_once(' ').expect("two arguments");
    let client = Client::connect(socket).expect("a store");
    let buffer = get(&client, id.parse().expect("an id"));
    println!("it reads {}", buffer.data()[1000]);
    let address = buffer.data()[1000..].as_ptr().cast_mut();
    // SAFETY: the address is mapped. If it can be written, the test that started us fails.
    unsafe { address.write_volatile(8) };
    println!("it wrote");
    std::process::exit(0);
}

#[test]
fn b11_a_readers_descriptor_cannot_be_mapped_for_writing() {
    for backing in [&[][..], &["-d", "/tmp"]] {
        let store = StoreProcess::start_with(&[&["-m", "1000000"], backing].concat(), |_| {});
        let client = store.client();
        let id = ObjectId::random();
        client.put(id, b"data", b"").expect("put works");
        let mut reader = store.raw_client();
        let get = Request::Get { ids: vec![id], timeout: None, fail_if_abandoned: false };
        let Reply::Objects(objects) = reader.call(get) else { panic!("no objects") };
        let location = objects[0].expect("it is there");
        assert_eq!(reader.descriptors.len(), 2, "its life file, and one for objects");
        let file = reader.descriptors.pop_back().expect("one");

        let map = |access| Mapping::new(file.as_fd(), location.offset + location.size(), access);
        map(Access::ReadOnly).expect("it can be read");
        let error = map(Access::ReadWrite).expect_err("it cannot be written");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        assert!(nix::unistd::write(&file, b"x").is_err());
        assert!(nix::unistd::ftruncate(&file, 0).is_err());
        assert_eq!(self::get(&client, id).data(), b"data");
    }
}

// ---- -m is what there is ------------------------------------------------------------------------

#[test]
fn b12_memory_is_a_limit_for_a_million_tiny_objects() {
    const CAPACITY: u64 = 1_000_000;
    let mut store = StoreProcess::start("1000000");
    let client = store.client();
    let segment = segment_file(&store);
    for _ in 0..1_000_000 / 4000 {
        let objects: Vec<_> = (0..4000).map(|_| (ObjectId::random(), [1], [])).collect();
        client.put_batch(&objects).expect("older ones are evicted");
    }
    let size = fs::metadata(&segment).expect("its file").len();
    assert!(size <= CAPACITY + (1 << 20), "the file has {size} bytes");
    let stats = client.stats().expect("an answer");
    assert!(stats.used <= CAPACITY && stats.objects <= CAPACITY / limits::ALIGNMENT * 2);
    // What subscribers may have to be told is remembered whether there are any or not.
    let events = limits::EVENT_LOG_MAX as u64 * 64;
    let private = store.private_memory();
    assert!(private < events + (32 << 20), "the store has {private} bytes of its own");
    store.assert_serves();
}

#[test]
fn b12_memory_is_a_limit_an_object_of_the_capacity_fits_and_no_larger_one() {
    for capacity in [10_000, 1 << 20, 10_000_019, 1] {
        let store = StoreProcess::start(&capacity.to_string());
        let client = store.client();
        let metadata_size = capacity / 10;
        let data_size = capacity - metadata_size;
        for _ in 0..3 {
            // Every round evicts the one before.
            let id = ObjectId::random();
            let writer = client.create(id, data_size, metadata_size, CreateOptions::default());
            let mut writer = writer.expect("it fits exactly");
            writer.data_mut().fill(1);
            writer.metadata_mut().fill(2);
            writer.seal().expect("it can be sealed");
            let buffer = get(&client, id);
            assert!(buffer.data().iter().all(|byte| *byte == 1));
            assert!(buffer.metadata().iter().all(|byte| *byte == 2));
            assert_eq!(client.stats().expect("an answer").used, capacity);
            drop(buffer);
            let extra = client.create(ObjectId::random(), 1, 0, NO_EVICTION);
            assert_full(extra.expect_err("it is full"), 1, capacity);
        }
        let larger = client.create(ObjectId::random(), capacity + 1, 0, CreateOptions::default());
        assert_full(larger.expect_err("it is too large"), capacity + 1, capacity);
        assert_eq!(client.stats().expect("an answer").objects, 1, "nothing was evicted for it");
    }
}

#[test]
fn b12_memory_is_a_limit_and_is_there_when_others_fill_the_file_system() {
    const CAPACITY: u64 = 40_000_000;
    let Some(mount) = SmallFileSystem::mount() else { return };
    let directory = mount.path().to_str().expect("text");
    let mut store = StoreProcess::start_with(&["-m", "40000000", "-d", directory], |_| {});
    mount.fill();
    let client = store.client();
    let size = CAPACITY / 8;
    let ids: Vec<_> = (0..8).map(|_| ObjectId::random()).collect();
    for id in &ids {
        let mut writer = client.create(*id, size, 0, NO_EVICTION).expect("it was promised");
        writer.data_mut().fill(9);
        writer.seal().expect("it can be sealed");
    }
    let extra = client.create(ObjectId::random(), size, 0, NO_EVICTION);
    assert_full(extra.expect_err("it is full"), size, CAPACITY);
    let other = store.client();
    for id in ids {
        assert!(get(&other, id).iter().all(|byte| *byte == 9));
    }
    store.assert_serves();
    drop((client, other));
    store.stop();
}

#[test]
fn b12_memory_is_a_limit_more_than_the_file_system_has_is_refused_at_the_start() {
    let Some(mount) = SmallFileSystem::mount() else { return };
    let directory = mount.path().to_str().expect("text");
    let refusal = |memory: &str| {
        let socket = mount.path().join("socket");
        let mut store = StoreProcess::spawn_at(&socket, &["-m", memory, "-d", directory]);
        let status = store.wait();
        let text = store.log();
        assert_eq!(status.code(), Some(1), "-m {memory}: {text}");
        assert_eq!(text.lines().count(), 1, "-m {memory}: {text}");
        assert!(text.contains(directory) && text.contains("-m"), "-m {memory}: {text}");
        text
    };
    let text = refusal("100000000");
    assert!(text.contains("100000000") && text.contains("67108864"), "{text}");
    // It would fit, but not with what is added for rounding.
    let text = refusal("67000000");
    assert!(text.contains("67108864"), "{text}");
    mount.fill();
    refusal("10000");
}

/// A control group of version 1 or 2 with a limit of memory, inside of that of this process.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// `None`, and a line about it, where this process may not make one.
    fn new(limit: u64) -> Option<Self> {
        Self::make(limit)
            .inspect_err(|error| eprintln!("LEFT OUT: no control group can be made here: {error}"))
            .ok()
    }

    fn make(limit: u64) -> Result<Self, String> {
        let read =
            |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
        let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
        let path_of = |version: &str| {
            let line = groups.lines().find(|line| line.contains(version))?;
            line.splitn(3, ':').nth(2)
        };
        let mount_of = |kind: &str| {
            let line = mounts.lines().find(|line| line.contains(kind))?;
            line.split(' ').nth(4)
        };
        let one = (mount_of(" - cgroup cgroup rw,memory"), path_of(":memory:"), "limit_in_bytes");
        let two = (mount_of(" - cgroup2 "), path_of("0::"), "max");
        let mut reason = "there is no hierarchy of them".to_owned();
        for (mount, path, limit_file) in [one, two] {
            let (Some(mount), Some(path)) = (mount, path) else { continue };
            let name = format!("plasma-test-{}", std::process::id());
            let group = PathBuf::from(format!("{mount}{}/{name}", path.trim_end_matches('/')));
            match fs::create_dir(&group) {
                Ok(()) => {
                    let group = Self(group);
                    let file = group.0.join(format!("memory.{limit_file}"));
                    let written = fs::write(&file, limit.to_string());
                    match written {
                        Ok(()) => return Ok(group),
                        Err(error) => reason = format!("{}: {error}", file.display()),
                    }
                }
                Err(error) => reason = format!("{}: {error}", group.display()),
            }
        }
        Err(reason)
    }

    /// Runs the store in it, which has to end by itself: its exit code, if it was not killed, and
    /// what it has printed.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store_program();
        // A store that is not refused runs until `timeout` ends it.
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec timeout 20 "$@""#;
        let mut shell = Command::new("sh");
        shell.args(["-c", enter]).arg(&self.0).arg(store.get_program()).args(arguments);
        shell.arg("-s").arg(directory.path().join("socket"));
        let output = shell.output().expect("a shell runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

#[test]
fn b12_memory_is_a_limit_more_than_a_control_group_allows_is_refused_at_the_start() {
    let Some(group) = ControlGroup::new(100 << 20) else { return };
    let lines = [
        // With swap more can be had, but never so much.
        &["-m", "1T"][..],
        &["-m", "1T", "--reserve"],
        // This would fit alone.
        &["-m", "99MiB", "--reserve"],
        &["-m", "99MiB", "-d", "/dev/shm"],
    ];
    for line in lines {
        let (code, text) = group.run(line);
        // A machine that has less says so itself.
        assert_eq!(code, Some(1), "{line:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{line:?}: {text}");
        let of_group = text.contains(&format!("{:?}", group.0));
        assert!(of_group || text.contains("in -d"), "{line:?}: {text}");
    }
}

// ---- fragmentation ------------------------------------------------------------------------------

#[test]
fn b14_fragmentation() {
    const CAPACITY: u64 = 10_000_000;
    const FILL: u64 = CAPACITY / 10 * 9;
    let store = StoreProcess::start("10000000");
    let client = store.client();
    let segment = segment_file(&store);
    let size_before = fs::metadata(&segment).expect("its file").len();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut live: Vec<(ObjectId, u64)> = Vec::new();
    let (mut used, mut created, mut refused) = (0, 0, 0);
    for _ in 0..3000 {
        let size = random.below(CAPACITY / 10 - 1000) + 1000;
        while used + size > FILL {
            let victim = usize::try_from(random.below(live.len() as u64)).expect("an index");
            let (id, size) = live.swap_remove(victim);
            assert_eq!(client.delete_one(id).expect("an answer"), DeleteOutcome::Deleted);
            used -= size;
        }
        let id = ObjectId::random();
        match client.create(id, size, 0, NO_EVICTION) {
            Ok(mut writer) => {
                writer.data_mut().fill(id.as_bytes()[0]);
                writer.seal().expect("it can be sealed");
                live.push((id, size));
                used += size;
                created += 1;
            }
            Err(Error::Refused(Refusal::StoreFull(full))) => {
                assert!(full.largest_free_run < size, "{full}");
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(client.stats().expect("an answer").used, used);
    }
    // Objects cannot be moved, so a large one often finds its room in pieces; but not most often.
    assert!(created > refused, "{created} created, {refused} refused at 90 % fill");
    for (id, size) in &live {
        let buffer = get(&client, *id);
        assert_eq!(buffer.len() as u64, *size);
        assert!(buffer.iter().all(|byte| *byte == id.as_bytes()[0]), "nobody wrote over it");
    }
    assert_eq!(fs::metadata(&segment).expect("its file").len(), size_before);

    // With eviction there is always room, and not by throwing everything away.
    let mut least = CAPACITY;
    for _ in 0..1000 {
        let size = random.below(CAPACITY / 10 - 1000) + 1000;
        let writer = client.create(ObjectId::random(), size, 0, CreateOptions::default());
        writer.expect("older ones go").seal().expect("it can be sealed");
        least = least.min(client.stats().expect("an answer").used);
    }
    assert!(least >= CAPACITY / 2, "only {least} bytes were left in use");
}

// ---- what was there before ----------------------------------------------------------------------

#[test]
fn b15_former_contents() {
    let store = StoreProcess::start_with(&["-m", "100000", "--clear-new-objects"], |_| {});
    let owner = store.client();
    let secret = ObjectId::random();
    owner.put(secret, &[0xaa; 90_000], &[0xaa; 10_000]).expect("put works");
    assert_eq!(owner.delete_one(secret).expect("an answer"), DeleteOutcome::Deleted);

    let stranger = store.client();
    let id = ObjectId::random();
    let writer = stranger.create(id, 99_000, 1000, NO_EVICTION).expect("it fits");
    assert!(writer.data().iter().all(|byte| *byte == 0), "the creator sees zeros");
    assert!(writer.metadata().iter().all(|byte| *byte == 0), "in the metadata, too");
    writer.seal().expect("it can be sealed");
    let buffer = get(&owner, id);
    assert!(buffer.iter().all(|byte| *byte == 0), "and so do the readers");

    // Whoever does not ask for it can read that it has to be asked for.
    let help = store_program().arg("--help").output().expect("the program runs");
    let help = String::from_utf8(help.stdout).expect("text");
    assert!(help.contains("--clear-new-objects") && help.contains("what was there before"));
}

// ---- what is held stays -------------------------------------------------------------------------

#[test]
fn b16_views_survive_disconnect() {
    let store = StoreProcess::start("1000000");
    let (reader, other) = (store.client(), store.client());
    let id = ObjectId::random();
    reader.put(id, &[5; 400_000], b"meta").expect("put works");
    let buffer = get(&reader, id);
    reader.disconnect();
    force_eviction(&other);
    assert_unchanged(&buffer);
    assert_eq!(other.holders_of(id).expect("an answer").len(), 1, "it is still pinned");
    drop(buffer);
    wait_until("the connection ends with its last buffer", || {
        other.holders_of(id).expect("an answer").is_empty()
    });
    force_eviction(&other);
    assert!(!other.contains(id).expect("an answer"), "then it can be evicted");
}

#[test]
fn b16_views_survive_their_client() {
    let store = StoreProcess::start("1000000");
    let (reader, other) = (store.client(), store.client());
    let id = ObjectId::random();
    reader.put(id, &[5; 400_000], b"meta").expect("put works");
    let buffer = get(&reader, id);
    let slice = buffer.slice(1000..2000);
    drop(reader);
    force_eviction(&other);
    assert_unchanged(&buffer);
    // Not even deletion takes it from under a reader.
    assert_eq!(other.delete_one(id).expect("an answer"), DeleteOutcome::DeferredInUse);
    drop(buffer);
    force_eviction(&other);
    assert!(slice.iter().all(|byte| *byte == 5), "a part keeps the whole");
}

#[test]
fn b16_views_survive_the_store() {
    for backing in [&[][..], &["-d", "/tmp"]] {
        let arguments = [&["-m", "1000000"], backing].concat();
        let mut store = StoreProcess::start_with(&arguments, |_| {});
        let client = store.client();
        let (id, unfinished) = (ObjectId::random(), ObjectId::random());
        client.put(id, &[5; 400_000], b"meta").expect("put works");
        let buffer = get(&client, id);
        let mut writer =
            client.create(unfinished, 100_000, 0, CreateOptions::default()).expect("it fits");
        store.signal(Signal::SIGKILL);
        store.wait();
        assert_unchanged(&buffer);
        writer.data_mut().fill(6);
        let lost = writer.seal().expect_err("nobody is there to seal it");
        assert!(matches!(lost, Error::Disconnected { .. }), "{lost:?}");
        assert_unchanged(&buffer);
        drop(client);
        assert_unchanged(&buffer);
    }
}

// ---- what a large object costs the store --------------------------------------------------------

#[test]
fn b28_syscalls_and_rss() {
    const SIZE: usize = 500_000_000;
    const LITTLE: u64 = 16 << 20;
    let store = StoreProcess::start("550M");
    let client = store.client();
    client.put(ObjectId::random(), b"warm", b"").expect("put works");
    let before = store.private_memory();
    let assert_little = |what: &str| {
        let grown = store.private_memory().saturating_sub(before);
        assert!(grown < LITTLE, "{what}: the store's own memory grew by {grown} bytes");
    };

    let data = vec![3; SIZE];
    client.put(ObjectId::random(), &data, b"meta").expect("put works");
    assert_little("a large put");
    drop(data);

    let id = ObjectId::random();
    let mut writer = client.create(id, SIZE as u64, 0, CreateOptions::default()).expect("fits");
    writer.data_mut().fill(4);
    writer.seal().expect("it can be sealed");
    assert_little("a large create");
    assert!(get(&store.client(), id).iter().all(|byte| *byte == 4));

    // As much again, inside the messages.
    let part = vec![5; limits::INLINE_BYTES_MAX - 1000];
    for _ in 0..SIZE / part.len() {
        client.put_batch(&[(ObjectId::random(), &part, b"")]).expect("older ones are evicted");
    }
    assert_little("large messages");
    let stats = client.stats().expect("an answer");
    assert!(stats.used > SIZE as u64 / 2, "{stats:?}");
}

// ---- helpers ------------------------------------------------------------------------------------

fn get(client: &Client, id: ObjectId) -> ObjectBuffer {
    client.get_one(id, Some(PATIENCE)).expect("get works").expect("it is there")
}

/// Fills a store of a million bytes several times.
fn force_eviction(client: &Client) {
    for value in 10..20 {
        client.put(ObjectId::random(), &[value; 300_000], b"").expect("others are evicted");
    }
}

fn assert_unchanged(buffer: &ObjectBuffer) {
    assert!(buffer.data().len() == 400_000 && buffer.data().iter().all(|byte| *byte == 5));
    assert_eq!(buffer.metadata(), b"meta");
}

/// The error of a full store has the numbers.
fn assert_full(error: Error, requested: u64, capacity: u64) {
    let Error::Refused(Refusal::StoreFull(full)) = error else { panic!("{error:?}") };
    assert_eq!((full.requested, full.capacity), (requested, capacity));
    assert!(full.used <= capacity && full.largest_free_run < requested.max(1), "{full}");
}

/// The file of the shared memory, as the store has it open.
fn segment_file(store: &StoreProcess) -> PathBuf {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", store.pid())).expect("the store runs");
    let mut paths = descriptors.map(|entry| entry.expect("a descriptor").path());
    let is_memory = |path: &PathBuf| {
        fs::read_link(path)
            .is_ok_and(|to| to.as_os_str().to_string_lossy().starts_with("/memfd:plasma"))
    };
    paths.find(is_memory).expect("it has shared memory")
}

/// Xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
