//! Compares a configuration with the machine, before anything is made.
//!
//! Each check is one that would otherwise fail later and worse: as a client's SIGBUS when memory
//! that was promised is not there, as a signal for a file beyond `ulimit -f`, as a panic. Nothing
//! is created, and what is free now may be gone a moment later, so whoever takes the memory still
//! has to look at its errors.
//!
//! It knows where a system keeps its numbers only through [`MemoryLimit`] and [`HugePages`].

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{HUGETLBFS_MAGIC, Statfs, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::Group;

use super::Config;
use super::byte_size::Bytes;
use crate::limits::{OWN_BYTES, PAGE_TABLES_DIVISOR};
use crate::server::listener::{self, ListenError};
use crate::server::memory::segment_bytes;
use crate::server::memory_limit::{HugePages, MemoryLimit, room_in_groups};
use crate::shm::segment::Backing;

/// The machine is not as the command line says: exit code 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the message says what each is; capacities, limits and what is free are bytes"
)]
pub enum EnvironmentError {
    /// The system does not say how much memory there is.
    #[error("cannot find out how much memory there is from /proc: {0}; mount /proc")]
    MemoryUnknown(#[source] io::Error),
    /// The socket cannot be made there.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// There is no group of this name.
    #[error("{option} {group:?}: {reason}; expected the name or the number of a group")]
    Group { option: &'static str, group: String, reason: &'static str },
    /// The socket cannot be in two groups.
    #[error(
        "--read-only-group: its members cannot connect, because the socket has another group and \
         mode {mode:03o}; use --socket-mode {:03o}, or only one of the two groups", .mode | 0o006
    )]
    GroupShutOut { mode: u32 },
    /// `-d` is no directory, or not ours to write.
    #[error(
        "-d {directory:?}: cannot make a file there: {reason}; create the directory, mend its \
         permissions, or leave -d out to use memory without a file"
    )]
    Directory { directory: PathBuf, reason: Errno },
    /// `-d` without `-h` is a file system of huge pages.
    #[error("-d {0:?}: this is a file system of huge pages (hugetlbfs); add -h to use them")]
    HugeWithoutFlag(PathBuf),
    /// `-d` with `-h` is some other file system.
    #[error(
        "-h -d {0:?}: this is no file system of huge pages (hugetlbfs); let \
         scripts/hugepages-setup.sh mount one, or leave -d out to take huge pages without a file"
    )]
    NotHuge(PathBuf),
    /// There is no such thing as a huge page.
    #[error("-h: this system has no huge pages (of this size); leave -h out")]
    NoHugePages,
    /// There are not enough of them.
    #[error(
        "-h: {} need {needed} huge pages of {} and {available} are free; let \
         scripts/hugepages-setup.sh --pages {needed} prepare them, or use a smaller -m",
        Bytes(*.capacity), Bytes(*.page_bytes)
    )]
    TooFewHugePages { capacity: u64, page_bytes: u64, needed: u64, available: u64 },
    /// More than the memory of the machine or of the control group.
    #[error(
        "-m: {} are more than the {} of memory and swap {}",
        Bytes(*.capacity),
        Bytes(*.limit),
        .cgroup.as_ref().map_or_else(
            || "of this machine; use a smaller -m, or a directory on a disk with -d".to_owned(),
            |group| format!("in the cgroup {group:?}; use a smaller -m, or raise its limit")
        )
    )]
    MoreThanMemory {
        capacity: u64,
        limit: u64,
        /// Who says so, if not the machine.
        cgroup: Option<PathBuf>,
    },
    /// All of it is to be taken at the start, and the control group has not so much left.
    #[error(
        "-m: {} are taken at the start (--reserve or -d), which needs {} with all that belongs to \
         it, and the cgroup {cgroup:?} has {} left; use a smaller -m, raise its limit, or take \
         memory as it is used (without --reserve and -d)",
        Bytes(*.capacity), Bytes(*.needed), Bytes(*.left)
    )]
    MoreThanGroupHasLeft { capacity: u64, needed: u64, left: u64, cgroup: PathBuf },
    /// More than is free in `-d`.
    #[error(
        "-m: {} are more than the {} that are free in -d {directory:?}; use a smaller -m, make \
         room there, or choose another directory",
        Bytes(*.capacity), Bytes(*.free)
    )]
    MoreThanDirectory { capacity: u64, free: u64, directory: PathBuf },
    /// More than a limit of this process.
    #[error(
        "-m: {} are more than the {} that `{command}` allows; use a smaller -m, or \
         `{command} unlimited` before the start",
        Bytes(*.capacity), Bytes(*.limit)
    )]
    MoreThanResourceLimit {
        capacity: u64,
        limit: u64,
        /// How the limit is shown and set in a shell.
        command: &'static str,
    },
}

/// Whether this store can be started here. `machine` is the root directory.
pub(super) fn check(
    config: &Config,
    limit: &MemoryLimit,
    machine: &Path,
) -> Result<(), EnvironmentError> {
    let capacity = config.capacity;
    let mode = config.socket_mode;
    if config.socket_group != config.read_only_group.or(config.socket_group) && mode & 0o002 == 0 {
        return Err(EnvironmentError::GroupShutOut { mode });
    }
    listener::check(&config.socket)?;
    match &config.backing {
        Backing::Memfd => check_memory(capacity, limit)?,
        Backing::Directory(directory) => {
            check_directory(capacity, limit, directory, machine)?;
        }
        Backing::HugeMemfd => check_huge_pages(capacity, HugePages::of_default_size(machine))?,
        Backing::HugeDirectory(directory) => check_huge_directory(capacity, directory, machine)?,
    }
    if config.reserve && config.backing == Backing::Memfd {
        check_taken(capacity, machine)?;
    }
    for (resource, command) in
        [(Resource::RLIMIT_FSIZE, "ulimit -f"), (Resource::RLIMIT_AS, "ulimit -v")]
    {
        // If the system does not tell, whoever takes the memory finds out.
        let limit = getrlimit(resource).map_or(u64::MAX, |(soft, _)| soft);
        check_resource_limit(capacity, limit, command)?;
    }
    Ok(())
}

/// The number of a group, of which the name or the number is given.
pub(super) fn find_group(option: &'static str, group: &str) -> Result<u32, EnvironmentError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let failed = |reason| EnvironmentError::Group { option, group: group.to_owned(), reason };
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        Ok(None) => Err(failed("there is no such group")),
        Err(reason) => Err(failed(reason.desc())),
    }
}

fn check_memory(capacity: u64, limit: &MemoryLimit) -> Result<(), EnvironmentError> {
    let (limit, cgroup) = (limit.memory_and_swap, limit.cgroup.clone());
    enough(capacity <= limit, || EnvironmentError::MoreThanMemory { capacity, limit, cgroup })
}

fn check_directory(
    capacity: u64,
    limit: &MemoryLimit,
    directory: &Path,
    machine: &Path,
) -> Result<(), EnvironmentError> {
    let kind = file_system(directory)?.filesystem_type();
    if kind == HUGETLBFS_MAGIC {
        return Err(EnvironmentError::HugeWithoutFlag(directory.to_owned()));
    }
    let room = statvfs(directory).map_err(unusable(directory))?;
    check_room(capacity, room.blocks_available().saturating_mul(room.fragment_size()), directory)?;
    // Files of a tmpfs are memory, however large it claims to be.
    if kind != TMPFS_MAGIC {
        return Ok(());
    }
    check_memory(capacity, limit)?;
    check_taken(capacity, machine)
}

/// Whether the control groups have left what is taken at the start. The kernel would not refuse it,
/// but kill whoever takes it. (It refuses huge pages.)
fn check_taken(capacity: u64, machine: &Path) -> Result<(), EnvironmentError> {
    let Some((left, cgroup)) = room_in_groups(machine) else { return Ok(()) };
    let bytes = segment_bytes(capacity);
    let needed = bytes.saturating_add(bytes / PAGE_TABLES_DIVISOR).saturating_add(OWN_BYTES);
    let error = || EnvironmentError::MoreThanGroupHasLeft { capacity, needed, left, cgroup };
    enough(needed <= left, error)
}

fn check_huge_directory(
    capacity: u64,
    directory: &Path,
    machine: &Path,
) -> Result<(), EnvironmentError> {
    let mount = file_system(directory)?;
    if mount.filesystem_type() != HUGETLBFS_MAGIC {
        return Err(EnvironmentError::NotHuge(directory.to_owned()));
    }
    let page_bytes = u64::try_from(mount.block_size()).unwrap_or(0);
    check_huge_pages(capacity, HugePages::of_size(machine, page_bytes))?;
    // A mount without a size of its own says that it has no blocks at all.
    let free = if mount.blocks() == 0 { u64::MAX } else { mount.blocks_free() };
    check_room(capacity, free.saturating_mul(page_bytes), directory)
}

/// The file system of a directory in which a file can be made.
fn file_system(directory: &Path) -> Result<Statfs, EnvironmentError> {
    let writable = listener::check_writable(directory);
    writable.and_then(|()| statfs(directory)).map_err(unusable(directory))
}

fn unusable(directory: &Path) -> impl Fn(Errno) -> EnvironmentError {
    |reason| EnvironmentError::Directory { directory: directory.to_owned(), reason }
}

fn check_huge_pages(capacity: u64, pages: Option<HugePages>) -> Result<(), EnvironmentError> {
    let HugePages { page_bytes, available } = pages.ok_or(EnvironmentError::NoHugePages)?;
    let needed = capacity.div_ceil(page_bytes);
    enough(needed <= available, || EnvironmentError::TooFewHugePages {
        capacity,
        page_bytes,
        needed,
        available,
    })
}

fn check_room(capacity: u64, free: u64, directory: &Path) -> Result<(), EnvironmentError> {
    let directory = directory.to_owned();
    enough(capacity <= free, || EnvironmentError::MoreThanDirectory { capacity, free, directory })
}

pub(super) fn check_resource_limit(
    capacity: u64,
    limit: u64,
    command: &'static str,
) -> Result<(), EnvironmentError> {
    let error = || EnvironmentError::MoreThanResourceLimit { capacity, limit, command };
    enough(capacity <= limit, error)
}

fn enough(
    is_enough: bool,
    error: impl FnOnce() -> EnvironmentError,
) -> Result<(), EnvironmentError> {
    if is_enough { Ok(()) } else { Err(error()) }
}
