//! The files behind shared memory, of four kinds, and when each kind's memory is really there.
//!
//! | kind | memory is taken | what may go wrong later |
//! |---|---|---|
//! | memfd | at first touch, or by [`Segment::reserve`] | the machine runs out of memory |
//! | file in a directory | at creation, without being touched | nothing |
//! | huge pages, either way | at creation | nothing |
//!
//! A file in a directory of limited size must be filled up at once: a file that is merely long
//! enough kills whoever touches the page for which there is no room. A memfd is limited by the
//! machine alone; where the kernel keeps strict account of memory (`vm.overcommit_memory` is 2), it
//! has to be filled up as well, for the same reason.
//!
//! A segment has two descriptors. The second one was opened anew for reading, so that a process
//! that gets it cannot map the memory for writing, not even by `mprotect`. It could open the file
//! again through `/proc`, but only as the user that the file belongs to.
//!
//! Knows the system. Mapping and use are elsewhere.

mod error;
mod machine;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::ftruncate;

use crate::ids::SegmentId;
use crate::shm::mapping::{Access, Mapping};
use crate::shm::pages::page_bytes;

pub use error::SegmentError;
use error::{cure_for_lack, refused};
#[cfg(feature = "server")]
pub(crate) use machine::meminfo_bytes;
use machine::{free_huge_pages, free_memory_bytes, kernel_keeps_strict_account};

/// Bytes asked of the system at a time. A signal undoes one step and not all of them.
const ALLOCATION_STEP_BYTES: u64 = 1 << 30;

/// Unit of `st_blocks`, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

/// Where a segment's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory of the machine.
    Memfd,
    /// An unlinked file in this directory, on any file system but hugetlbfs.
    Directory(PathBuf),
    /// Anonymous huge pages of the default size.
    HugeMemfd,
    /// An unlinked file in this directory of a hugetlbfs mount.
    HugeDirectory(PathBuf),
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memfd => write!(f, "anonymous memory (memfd)"),
            Self::Directory(path) => write!(f, "an unlinked file in {}", path.display()),
            Self::HugeMemfd => write!(f, "anonymous huge pages (memfd)"),
            Self::HugeDirectory(path) => write!(f, "huge pages in {}", path.display()),
        }
    }
}

/// A piece of shared memory: an unnamed file of constant size.
#[derive(Debug)]
pub struct Segment {
    id: SegmentId,
    backing: Backing,
    bytes: u64,
    read_write: OwnedFd,
    read_only: OwnedFd,
}

impl Segment {
    /// Makes a segment of at least so many bytes; the size is rounded up to whole pages. All bytes
    /// are zero.
    ///
    /// # Errors
    /// If the memory cannot be had; nothing is left behind then.
    pub fn create(id: SegmentId, backing: &Backing, bytes: u64) -> Result<Self, SegmentError> {
        let file = create_file(backing)?;
        let page = page_of(&file, backing)?;
        let refused = refused("set the size of", backing, "ask for less memory (-m)");
        let bytes = bytes.max(1).checked_next_multiple_of(page).ok_or(Errno::EFBIG);
        let bytes = bytes.map_err(refused)?;
        let length = i64::try_from(bytes).map_err(|_| refused(Errno::EFBIG))?;
        ftruncate(&file, length).map_err(refused)?;
        if matches!(backing, Backing::Memfd | Backing::HugeMemfd) {
            forbid_resizing(&file, backing)?;
        }
        let read_only = reopen_read_only(&file, backing)?;
        let backing = backing.clone();
        let segment = Self { id, backing, bytes, read_write: file, read_only };
        if segment.backing != Backing::Memfd || kernel_keeps_strict_account() {
            segment.allocate()?;
        }
        Ok(segment)
    }

    /// The name of the segment.
    #[must_use]
    pub const fn id(&self) -> SegmentId {
        self.id
    }

    /// Bytes, a whole number of pages.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a page of it.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        huge_page_bytes(&self.read_write).unwrap_or(page_bytes() as u64)
    }

    /// The descriptor for those who create objects, or the one for readers.
    #[must_use]
    pub fn descriptor(&self, writable: bool) -> BorrowedFd<'_> {
        if writable { self.read_write.as_fd() } else { self.read_only.as_fd() }
    }

    /// Takes every page of the memory now and makes it ready for use, which needs a second for a
    /// few GB. Afterwards it cannot run short and is as fast as it gets. A file on a disk has its
    /// room since its creation; it is not read in.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn reserve(&self) -> Result<(), SegmentError> {
        self.allocate()?;
        if !self.is_memory() {
            return Ok(());
        }
        Mapping::new(self.descriptor(true), self.bytes, Access::ReadWrite)
            .and_then(|mapping| mapping.populate(0, self.bytes, true))
            .map_err(refused(
                "make ready every page of",
                &self.backing,
                cure_for_lack(&self.backing),
            ))
    }

    /// Whether the system gives the memory page by page, when it is first touched. Only then can
    /// some of it go back: all other kinds are promised to be there.
    #[must_use]
    pub fn comes_when_touched(&self) -> bool {
        self.backing == Backing::Memfd && !kernel_keeps_strict_account()
    }

    /// Takes the pages of a range from the system and clears them, without mapping them: they do
    /// not count as memory of this process, and nothing of it waits meanwhile. What is in use there
    /// stays as it is.
    ///
    /// # Errors
    /// There is not enough memory, or this kind of file cannot do it. `InvalidInput` if the range
    /// is not inside the segment.
    pub fn commit(&self, offset: u64, len: u64) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The first call leaves the clearing to the first touch. The second one finds pages that
        // nobody has touched, and clears them.
        for _ in 0..2 {
            self.fallocate(FallocateFlags::empty(), offset, len)?;
        }
        Ok(())
    }

    /// Gives the pages of a range back to the system. Its bytes are zero then, for everybody, and
    /// take memory again when they are touched. Nobody may be using them.
    ///
    /// # Errors
    /// The system cannot do it.
    pub fn give_back(&self, offset: u64, len: u64) -> io::Result<()> {
        let kind = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(self.fallocate(kind, offset, len)?)
    }

    fn fallocate(&self, kind: FallocateFlags, offset: u64, len: u64) -> nix::Result<()> {
        loop {
            match fallocate(&self.read_write, kind, offset.cast_signed(), len.cast_signed()) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// Makes the system set aside room for every byte.
    fn allocate(&self) -> Result<(), SegmentError> {
        let wanted = self.bytes.saturating_sub(self.allocated_bytes());
        let room = self.file_system_room();
        let available = room.min(self.machine_room());
        // Taking more memory than there is would not fail: it would get some process killed.
        if self.is_memory() && wanted > available {
            let reason = if wanted > room { Errno::ENOSPC } else { Errno::ENOMEM };
            return Err(self.lacking(wanted, available, reason));
        }
        let mut offset = 0;
        while offset < self.bytes {
            let step = ALLOCATION_STEP_BYTES.min(self.bytes - offset);
            match self.fallocate(FallocateFlags::empty(), offset, step) {
                Ok(()) => offset += step,
                Err(error @ (Errno::ENOSPC | Errno::ENOMEM | Errno::EDQUOT)) => {
                    return Err(self.lacking(wanted, available, error));
                }
                Err(error) => {
                    let cure = "name a directory (-d) on tmpfs, ext4, xfs or btrfs";
                    return Err(refused("reserve the room for", &self.backing, cure)(error));
                }
            }
        }
        Ok(())
    }

    fn lacking(&self, wanted: u64, available: u64, reason: Errno) -> SegmentError {
        let (backing, reason) = (self.backing.clone(), reason.into());
        match huge_page_bytes(&self.read_write) {
            Some(page_bytes) => SegmentError::NoHugePages {
                backing,
                page_bytes,
                wanted: wanted / page_bytes,
                free: available / page_bytes,
                reason,
            },
            None => SegmentError::NoRoom { backing, wanted, available, reason },
        }
    }

    /// Whether the bytes lie in memory that comes one ordinary page at a time.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        fstatfs(&self.read_write).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
    }

    /// Bytes that the system has given so far.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        let blocks = fstat(&self.read_write).map_or(0, |status| status.st_blocks);
        u64::try_from(blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES)
    }

    /// Bytes that the file system still has, if it has a limit of its own.
    fn file_system_room(&self) -> u64 {
        let status = fstatvfs(&self.read_write).ok().filter(|status| status.blocks() > 0);
        status.map_or(u64::MAX, |status| {
            status.blocks_available().saturating_mul(status.fragment_size())
        })
    }

    /// Bytes that the machine still has of the kind of memory that the file lies in, if it does.
    fn machine_room(&self) -> u64 {
        if let Some(page_bytes) = huge_page_bytes(&self.read_write) {
            free_huge_pages(page_bytes).saturating_mul(page_bytes)
        } else if self.is_memory() {
            free_memory_bytes()
        } else {
            u64::MAX
        }
    }
}

fn create_file(backing: &Backing) -> Result<OwnedFd, SegmentError> {
    let (file, cure) = match backing {
        Backing::Memfd => {
            (memory_file(MFdFlags::empty()), "use a directory instead, for example -d /dev/shm")
        }
        Backing::HugeMemfd => {
            (memory_file(MFdFlags::MFD_HUGETLB), "leave -h out if the kernel has no huge pages")
        }
        Backing::Directory(path) | Backing::HugeDirectory(path) => {
            (unnamed_file(path), "name a directory (-d) in which this user may create files")
        }
    };
    file.map_err(refused("create", backing, cure))
}

fn memory_file(kind: MFdFlags) -> io::Result<OwnedFd> {
    let flags = kind | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Hardened systems (`vm.memfd_noexec`) insist that nobody can execute the file; a kernel
    // before 6.3 does not know the flag.
    let not_executable = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let file = match memfd_create(c"plasma", flags | not_executable) {
        Err(Errno::EINVAL) => memfd_create(c"plasma", flags)?,
        result => result?,
    };
    // Otherwise every user who is given the descriptor for reading could reopen it for writing.
    fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok(file)
}

/// A file in `directory` that has no name, and no access for other users.
fn unnamed_file(directory: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(OFlag::O_TMPFILE.bits()).open(directory) {
        Ok(file) => Ok(file.into()),
        Err(error) if cannot_make_unnamed(&error) => unlinked_file(directory, &options),
        Err(error) => Err(error),
    }
}

/// Whether this is how a file system says that it has only files with a name.
fn cannot_make_unnamed(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw);
    matches!(error, Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL))
}

fn unlinked_file(directory: &Path, options: &OpenOptions) -> io::Result<OwnedFd> {
    let name = getrandom::u64().map_err(io::Error::other)?;
    let path = directory.join(format!(".plasma-{name:016x}"));
    let file = options.clone().create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file.into())
}

/// The unit in which the memory of `file` comes. Refuses a file on the wrong file system.
fn page_of(file: &OwnedFd, backing: &Backing) -> Result<u64, SegmentError> {
    match (huge_page_bytes(file), backing) {
        (Some(_), Backing::Directory(path)) => {
            Err(SegmentError::HugePagesNotAskedFor(path.clone()))
        }
        (None, Backing::HugeDirectory(path)) => Err(SegmentError::NotHugetlbfs(path.clone())),
        (Some(bytes), _) => Ok(bytes),
        (None, _) => Ok(page_bytes() as u64),
    }
}

/// Size of the file's pages if they are huge ones.
fn huge_page_bytes(file: &OwnedFd) -> Option<u64> {
    let system = fstatfs(file).ok().filter(|it| it.filesystem_type() == HUGETLBFS_MAGIC)?;
    u64::try_from(system.block_size()).ok().filter(|&bytes| bytes > 0)
}

/// Nobody who has a descriptor can cut the memory short under the others any more.
fn forbid_resizing(file: &OwnedFd, backing: &Backing) -> Result<(), SegmentError> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let refused = refused("fix the size of", backing, "use a directory instead (-d)");
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop).map_err(refused)
}

fn reopen_read_only(file: &OwnedFd, backing: &Backing) -> Result<OwnedFd, SegmentError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let cure = "/proc has to be mounted, and the limit of open files not reached (ulimit -n)";
    let file = fs::File::open(path).map_err(refused("reopen for reading", backing, cure))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
