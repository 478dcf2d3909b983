//! Huge pages from beginning to end: the script sets them up, the store takes them both ways,
//! clients use them, and the script puts the machine back as it was.
//!
//! Needs root and a kernel that gives huge pages; says so on stderr when it leaves something out.

mod support;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::Uid;
use plasma::ObjectId;
use plasma::protocol::message::{Reply, Request};
use plasma::protocol::refusal::Refusal;
use support::{AT_ONCE, PATIENCE, StoreProcess, put_numbered};

const PAGES: &str = "/proc/sys/vm/nr_hugepages";
const GROUP: &str = "/proc/sys/vm/hugetlb_shm_group";
/// Where the script remembers what to put back.
const STATE: &str = "/run/plasma-hugepages.state";

const OBJECT_BYTES: usize = 100_000_000;

#[test]
fn a_store_of_huge_pages() {
    let Some(huge) = HugePages::set_up("160M") else { return };
    let mount = huge.mount.to_str().expect("text").to_owned();
    for (arguments, kind) in [
        (["-m", "150M", "-h", "-d", &mount].as_slice(), format!("huge pages in {mount}")),
        (&["-m", "150M", "-h"], "anonymous huge pages".to_owned()),
    ] {
        let store = StoreProcess::start_with(arguments, |_| {});
        assert!(store.log().contains(&kind), "{}", store.log());
        let writer = store.client();
        let id = ObjectId::random();
        let data: Vec<u8> = (0..OBJECT_BYTES).map(|index| index.to_le_bytes()[0] ^ 0x5a).collect();
        writer.put(id, &data, b"meta").expect("put works");
        let reader = store.client();
        let buffer = reader.get_one(id, Some(PATIENCE)).expect("get works").expect("it is there");
        assert!(buffer.data() == data, "{kind}: the reader sees what was written");
        assert_eq!(buffer.metadata(), b"meta");
        let used = huge_bytes_of_this_process();
        assert!(used >= OBJECT_BYTES as u64, "{kind}: only {used} bytes are in huge pages");
        drop((buffer, reader, writer));
        store.stop();
    }
    huge.put_back();
}

#[test]
fn a_hole_for_which_there_are_no_huge_pages_costs_puts_and_nothing_else() {
    let Some(huge) = HugePages::set_up("20M") else { return };
    let mut store = StoreProcess::start_with(&["-m", "10M", "-h"], |_| {});
    let mut hostile = store.raw_client();
    let (id, room) = (ObjectId::random(), AT_ONCE);
    let create = Request::Create { id, data_size: 1, metadata_size: 0, room };
    assert!(matches!(hostile.call(create), Reply::Created(_)));
    let file = hostile.descriptors.pop_back().expect("the descriptor for writing");
    let size = fstat(&file).expect("its size").st_size;
    let kind = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, kind, 0, size).expect("nobody hinders him");
    let taken = take_all_huge_pages();
    for _ in 0..10 {
        assert_eq!(hostile.call(put_numbered([1])), Reply::Refused(Refusal::MemoryLost));
    }
    let client = store.client();
    let error = client.put(ObjectId::random(), &[1; 3000], b"").expect_err("no memory");
    assert_eq!(error.refusal(), Some(&Refusal::MemoryLost), "{error}");
    drop(taken);
    store.assert_serves();
    drop((client, hostile));
    store.stop();
    huge.put_back();
}

/// A file that has all of them.
fn take_all_huge_pages() -> OwnedFd {
    let file = memfd_create(c"taker", MFdFlags::MFD_HUGETLB).expect("there are huge pages");
    let step = fstat(&file).expect("its size").st_blksize;
    let mut offset = 0;
    while fallocate(&file, FallocateFlags::empty(), offset, step).is_ok() {
        offset += step;
    }
    assert!(offset > 0, "there were some");
    file
}

/// Huge pages for one test at a time. The machine is as before when it is gone.
struct HugePages {
    mount: PathBuf,
    before: Machine,
    _directory: tempfile::TempDir,
    _lock: Flock<fs::File>,
}

/// What the script changes.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    pages: String,
    group: String,
    is_set_up: bool,
}

impl Machine {
    fn now() -> Option<Self> {
        let read = |path| fs::read_to_string(path).ok();
        let is_set_up = Path::new(STATE).exists();
        Some(Self { pages: read(PAGES)?, group: read(GROUP)?, is_set_up })
    }
}

impl HugePages {
    /// `None`, and a line about it, where that is not possible.
    fn set_up(size: &str) -> Option<Self> {
        if !Uid::effective().is_root() {
            return left_out("only root can set up huge pages");
        }
        // They belong to the machine, so tests of other processes have to wait.
        let path = std::env::temp_dir().join("plasma-test-hugepages.lock");
        let lock = fs::File::create(path).expect("a lock file");
        let lock = Flock::lock(lock, FlockArg::LockExclusive).expect("the lock");
        let Some(before) = Machine::now() else { return left_out("this kernel has none") };
        if before.is_set_up {
            return left_out("somebody has set up huge pages on this machine already");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let mount = directory.path().join("huge");
        // From here on dropping it puts back whatever was done.
        let huge = Self { mount, before, _directory: directory, _lock: lock };
        let wanted = huge.mount.to_str().expect("text");
        let output = script(&["--size", size, "--mount", wanted]);
        if !output.status.success() {
            return left_out(&String::from_utf8_lossy(&output.stderr));
        }
        Some(huge)
    }

    /// Puts everything back and makes sure that it is.
    fn put_back(self) {
        let output = script(&["--undo"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(Machine::now().as_ref(), Some(&self.before), "{output:?}");
        assert!(!self.mount.exists(), "the directory is gone");
        let mounts = fs::read_to_string("/proc/mounts").expect("there is a /proc");
        assert!(!mounts.contains(self.mount.to_str().expect("text")), "nothing is mounted");
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if !Path::new(STATE).exists() {
            return;
        }
        // A mount that a dying store still uses goes when that does.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let output = script(&["--undo"]);
        // The script leaves a number alone that somebody else has changed.
        eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        if Machine::now().is_some_and(|now| now.pages != self.before.pages) {
            let _ = fs::write(PAGES, self.before.pages.trim());
        }
    }
}

fn left_out<T>(why: &str) -> Option<T> {
    eprintln!("LEFT OUT: the test of huge pages: {}", why.trim());
    None
}

fn script(arguments: &[&str]) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/hugepages-setup.sh"))
        .args(arguments)
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .output()
        .expect("the script runs")
}

fn huge_bytes_of_this_process() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("there is a /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("HugetlbPages:"));
    let kib: u64 = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("it");
    kib * 1024
}
