//! What was promised must be there, what was sealed must hold, and what cannot be had must be
//! said with numbers. Against real file systems; those that only root can make are left out, with
//! a word on stderr, for others.

use super::*;
use crate::ids::Extent;
use nix::fcntl::{FdFlag, Flock, FlockArg};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
use nix::unistd::Uid;
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// Pages for the tests that need real ones.
const HUGE_PAGES: u64 = 4;

#[test]
fn a_memfd_cannot_be_resized_by_anybody() {
    let segment = create(&Backing::Memfd, MIB).unwrap();
    let file = segment.descriptor(true);
    assert_eq!(ftruncate(file, 0), Err(Errno::EPERM));
    assert_eq!(ftruncate(file, 1 << 21), Err(Errno::EPERM));
    let harmful = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE);
    assert_eq!(fcntl(file, harmful), Err(Errno::EPERM), "a client could stop all writing");
    assert_eq!(fstat(file).unwrap().st_size, 1 << 20);
}

#[test]
fn the_descriptor_for_readers_gives_no_way_to_write() {
    let directory = tempfile::tempdir().unwrap();
    for backing in [Backing::Memfd, Backing::Directory(directory.path().into())] {
        let segment = create(&backing, MIB).unwrap();
        let file = segment.descriptor(false);
        let error = Mapping::new(file, MIB, Access::ReadWrite).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32), "{backing}: {error}");
        assert_eq!(nix::unistd::write(file, b"x"), Err(Errno::EBADF), "{backing}");
        assert_eq!(ftruncate(file, 0), Err(Errno::EINVAL), "{backing}");

        let bytes = NonZeroUsize::new(4096).unwrap();
        let read = ProtFlags::PROT_READ;
        // SAFETY: the kernel chooses a free range.
        let start = unsafe { mmap(None, bytes, read, MapFlags::MAP_SHARED, file, 0) }.unwrap();
        // SAFETY: nobody but this test knows the range.
        let result = unsafe { mprotect(start, 4096, read | ProtFlags::PROT_WRITE) };
        assert_eq!(result, Err(Errno::EACCES), "{backing}");
        // SAFETY: as above, and it is not used any more.
        unsafe { munmap(start, 4096) }.unwrap();
    }
}

#[test]
fn only_this_user_can_reopen_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let named = OpenOptions::new().read(true).write(true).mode(0o600).clone();
    let files = [
        create(&Backing::Memfd, MIB).unwrap().read_write,
        unnamed_file(directory.path()).unwrap(),
        unlinked_file(directory.path(), &named).unwrap(),
    ];
    for file in files {
        let status = fstat(&file).unwrap();
        assert_eq!(status.st_mode & 0o7777, 0o600);
        assert_eq!(status.st_nlink, 0, "the file has no name");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn descriptors_are_close_on_exec() {
    let directory = tempfile::tempdir().unwrap();
    for backing in [Backing::Memfd, Backing::Directory(directory.path().into())] {
        let segment = create(&backing, 1).unwrap();
        for writable in [true, false] {
            let flags = fcntl(segment.descriptor(writable), FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC), "{backing}");
        }
    }
}

#[test]
fn sizes_are_whole_pages_and_all_bytes_are_zero() {
    let page = page_bytes() as u64;
    for (wanted, size) in [(0, page), (1, page), (page, page), (page + 1, 2 * page)] {
        let segment = create(&Backing::Memfd, wanted).unwrap();
        assert_eq!(segment.size(), size);
        assert_eq!(segment.id(), SegmentId(7));
        assert_eq!(fstat(segment.descriptor(false)).unwrap().st_size.cast_unsigned(), size);
        assert!(contents(&segment).iter().all(|&byte| byte == 0));
    }
    let error = create(&Backing::Memfd, u64::MAX).unwrap_err().to_string();
    assert!(error.contains("File too large") && error.contains("-m"), "{error}");
}

#[test]
fn a_file_in_a_directory_has_its_room_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let segment = create(&Backing::Directory(directory.path().into()), MIB).unwrap();
    assert!(segment.allocated_bytes() >= MIB);
    fill(&segment);
    segment.reserve().unwrap();
    assert!(contents(&segment).iter().all(|&byte| byte == 0xA5), "reserving keeps the bytes");
}

#[test]
fn reserving_takes_all_pages_of_a_memfd() {
    let segment = create(&Backing::Memfd, MIB).unwrap();
    let at_creation = if kernel_keeps_strict_account() { MIB } else { 0 };
    assert_eq!(segment.allocated_bytes(), at_creation);
    segment.reserve().unwrap();
    assert_eq!(segment.allocated_bytes(), MIB);
    segment.reserve().unwrap();
    assert_eq!(segment.allocated_bytes(), MIB);
}

#[test]
fn reserving_more_than_the_machine_has_fails_before_it_hurts() {
    // Should it ever be taken instead, then this process is to be killed and not somebody's editor.
    fs::write("/proc/self/oom_score_adj", "1000").unwrap();
    let wanted = 1 << 50;
    // With strict accounting it is the creation that fails.
    let result = create(&Backing::Memfd, wanted).and_then(|segment| segment.reserve());
    let error = result.unwrap_err();
    let text = error.to_string();
    let SegmentError::NoRoom { available, .. } = error else { panic!("{text}") };
    assert!(available > 0 && available < wanted, "{text}");
    for part in [&wanted.to_string(), &available.to_string(), "Cannot allocate memory", "-m"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = create(&Backing::Directory(missing.clone()), MIB).unwrap_err().to_string();
    for part in [missing.to_str().unwrap(), "No such file or directory", "-d"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn a_directory_without_huge_pages_is_refused_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let error = create(&Backing::HugeDirectory(directory.path().into()), MIB).unwrap_err();
    assert!(matches!(error, SegmentError::NotHugetlbfs(_)), "{error}");
    let text = error.to_string();
    for part in [directory.path().to_str().unwrap(), "scripts/hugepages-setup.sh"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_directory_that_is_too_small_is_an_error_with_numbers() {
    let Some(mount) = Mount::new("tmpfs", "size=1m") else {
        return;
    };
    let backing = Backing::Directory(mount.path().into());
    let wanted = 3 * MIB;
    let text = create(&backing, wanted).unwrap_err().to_string();
    for part in [
        &wanted.to_string(),
        &MIB.to_string(),
        mount.path().to_str().unwrap(),
        "No space left on device",
        "-m",
        "-d",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    assert!(eventually(|| create(&backing, MIB).is_ok()), "all of it is free again");
    assert!(eventually(|| create(&backing, MIB).is_ok_and(|segment| {
        fill(&segment);
        create(&backing, 1).is_err()
    })));
}

#[test]
fn huge_pages_are_taken_at_creation_and_given_back() {
    let Some(pool) = HugePages::provide(HUGE_PAGES) else {
        return;
    };
    let Some(mount) = Mount::new("hugetlbfs", "mode=0700") else {
        return;
    };
    for backing in [Backing::HugeMemfd, Backing::HugeDirectory(mount.path().into())] {
        let free = free_huge_pages(pool.page_bytes);
        let segment = create(&backing, pool.page_bytes + 1).unwrap();
        assert_eq!(segment.size(), 2 * pool.page_bytes, "{backing}: whole pages");
        assert_eq!(free_huge_pages(pool.page_bytes), free - 2, "{backing}");
        fill(&segment);
        segment.reserve().unwrap();
        assert!(contents(&segment).iter().all(|&byte| byte == 0xA5), "{backing}");

        let mapping = map(&segment, Access::ReadOnly);
        mapping.populate(pool.page_bytes - 1, 2, false).unwrap();
        drop(mapping);
        drop(segment);
        assert!(eventually(|| free_huge_pages(pool.page_bytes) == free), "{backing}");
    }
}

#[test]
fn a_lack_of_huge_pages_is_an_error_with_numbers() {
    let Some(pool) = HugePages::provide(HUGE_PAGES) else {
        return;
    };
    let Some(mount) = Mount::new("hugetlbfs", "mode=0700") else {
        return;
    };
    let free = free_huge_pages(pool.page_bytes);
    assert!(free >= HUGE_PAGES);
    for backing in [Backing::HugeMemfd, Backing::HugeDirectory(mount.path().into())] {
        let error = create(&backing, (free + 10) * pool.page_bytes).unwrap_err();
        let text = error.to_string();
        let SegmentError::NoHugePages { wanted, free: told, .. } = error else { panic!("{text}") };
        assert_eq!((wanted, told), (free + 10, free), "{text}");
        assert!(text.contains("scripts/hugepages-setup.sh"), "{text}");
        assert_eq!(free_huge_pages(pool.page_bytes), free, "{backing}: all are free again");
    }
}

#[test]
fn a_hugetlbfs_mount_is_refused_for_ordinary_pages() {
    let Some(mount) = Mount::new("hugetlbfs", "mode=0700") else {
        return;
    };
    let error = create(&Backing::Directory(mount.path().into()), MIB).unwrap_err();
    assert!(matches!(error, SegmentError::HugePagesNotAskedFor(_)), "{error}");
    let text = error.to_string();
    for part in [mount.path().to_str().unwrap(), "-h"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn create(backing: &Backing, bytes: u64) -> Result<Segment, SegmentError> {
    Segment::create(SegmentId(7), backing, bytes)
}

fn map(segment: &Segment, access: Access) -> Arc<Mapping> {
    let file = segment.descriptor(access == Access::ReadWrite);
    Arc::new(Mapping::new(file, segment.size(), access).unwrap())
}

/// Touches every byte, which kills the test if a page is not to be had.
fn fill(segment: &Segment) {
    let extent = Extent { segment: segment.id(), offset: 0, len: segment.size() };
    map(segment, Access::ReadWrite).view_mut(extent).unwrap().fill(0xA5);
}

fn contents(segment: &Segment) -> Vec<u8> {
    let extent = Extent { segment: segment.id(), offset: 0, len: segment.size() };
    map(segment, Access::ReadOnly).view(extent).unwrap().to_vec()
}

/// A descriptor that was closed lives on for a moment in a process that another test forks.
fn eventually(condition: impl Fn() -> bool) -> bool {
    (0..100_000).any(|_| {
        condition() || {
            std::thread::yield_now();
            false
        }
    })
}

/// A file system of its own, gone with the value.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(kind: &str, options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options, "none"]).arg(directory.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(directory)),
            result => {
                assert!(!may_mount(), "cannot mount {kind}: {result:?}");
                eprintln!("left out: only root can mount a {kind}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays", self.path().display());
    }
}

/// Root in a container may lack the right; the tests then say that they are left out.
fn may_mount() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let capabilities = u64::from_str_radix(line.trim(), 16).unwrap();
    capabilities & (1 << CAP_SYS_ADMIN) != 0
}

/// Huge pages of the default size that nobody else uses meanwhile. The machine gets its former
/// number back.
struct HugePages {
    page_bytes: u64,
    former: String,
    _lock: Flock<fs::File>,
}

impl HugePages {
    const SETTING: &str = "/proc/sys/vm/nr_hugepages";

    fn provide(count: u64) -> Option<Self> {
        if !Uid::effective().is_root() {
            eprintln!("left out: only root can provide huge pages");
            return None;
        }
        // The pages belong to the machine, so tests of other processes have to wait as well.
        let path = std::env::temp_dir().join("plasma-test-hugepages.lock");
        let lock = fs::File::create(path).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        let page_bytes = huge_page_bytes(&memory_file(MFdFlags::MFD_HUGETLB).ok()?)?;
        let former = fs::read_to_string(Self::SETTING).unwrap();
        let total = former.trim().parse::<u64>().unwrap() + count;
        if let Err(error) = fs::write(Self::SETTING, total.to_string()) {
            eprintln!("left out: {} cannot be written: {error}", Self::SETTING);
            return None;
        }
        let pages = Self { page_bytes, former, _lock: lock };
        if free_huge_pages(page_bytes) < count {
            eprintln!("left out: the machine has not enough memory in one piece for huge pages");
            return None;
        }
        Some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        fs::write(Self::SETTING, self.former.trim()).expect("the number can be set back");
    }
}

#[test]
fn memory_that_is_made_ready_keeps_what_is_in_it() {
    let segment = Segment::create(SegmentId(0), &Backing::Memfd, 8 << 20).unwrap();
    let mapping = Mapping::new(segment.descriptor(true), segment.size(), Access::ReadWrite);
    let mapping = std::sync::Arc::new(mapping.unwrap());
    let object = Extent { segment: SegmentId(0), offset: 5000, len: 9 };
    mapping.view_mut(object).unwrap().copy_from_slice(b"an object");
    segment.commit(0, 4 << 20).unwrap();
    assert_eq!(segment.allocated_bytes(), 4 << 20, "that much, and no more");
    let extent = Extent { segment: SegmentId(0), offset: 4990, len: 30 };
    let view = mapping.view(extent).unwrap();
    assert_eq!(&*view, b"\0\0\0\0\0\0\0\0\0\0an object\0\0\0\0\0\0\0\0\0\0\0");
    assert!(segment.commit(8 << 20, 1).is_err(), "beyond the end");
}
