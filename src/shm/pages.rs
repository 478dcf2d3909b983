//! Pages of a shared file in this process's address space, and nothing about what lies there.
//!
//! Mappings, windows and words are made of these. Who may read or write them, and when, is theirs
//! to say.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, MmapAdvise};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{SysconfVar, sysconf};

use super::mapping::Access;

/// Pages of a shared file. Unmapped on drop.
#[derive(Debug)]
pub(super) struct Pages {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the memory belongs to the whole process, and any thread may unmap it.
unsafe impl Send for Pages {}

// SAFETY: a shared `Pages` is a constant address and length. Access to the memory behind it goes by
// the rules in `crate::shm`, which are about extents and the same for threads and processes; or it
// is atomic, for words; or it is not Rust's, for windows.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `bytes` bytes of a file from `offset` on, which is a multiple of the size of its pages.
    /// The descriptor may be closed afterwards. The caller has looked whether the file has them.
    ///
    /// # Errors
    /// `InvalidInput` if there is nothing to map or far too much; otherwise those of `mmap`.
    pub fn map(file: BorrowedFd<'_>, offset: u64, bytes: u64, access: Access) -> io::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        let (protection, shared) = (access.protection(), MapFlags::MAP_SHARED);
        // SAFETY: the kernel chooses an address range that is free, so nothing of ours is replaced.
        let start = unsafe { mman::mmap(None, bytes, protection, shared, file, offset) }?;
        let pages = Self { start, bytes };
        pages.keep_out_of_core_files(0..pages.len());
        Ok(pages)
    }

    /// Number of bytes.
    pub const fn len(&self) -> usize {
        self.bytes.get()
    }

    /// Where they are.
    pub const fn start(&self) -> NonNull<c_void> {
        self.start
    }

    /// The address of a byte. Only what lies inside may be accessed there.
    pub const fn address(&self, offset: usize) -> *mut u8 {
        self.start.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    /// Tells the kernel something about a range that begins with a page. It must not be advice that
    /// changes what is in the memory.
    pub fn advise(&self, range: Range<usize>, advice: MmapAdvise) -> nix::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len(), "advice is for our own pages");
        let address = NonNull::new(self.address(range.start).cast()).ok_or(Errno::EFAULT)?;
        // SAFETY: the range is inside these pages, and no caller gives advice that changes what is
        // in the memory.
        unsafe { mman::madvise(address, range.len(), advice) }
    }

    /// Makes the pages that a range lies on present, as `advice` says. A kernel before 5.14 cannot
    /// do it; that is no error, since the first touch does the same.
    ///
    /// # Errors
    /// If the memory is not to be had, where touching it would have been fatal.
    pub fn populate(&self, range: Range<usize>, advice: MmapAdvise) -> io::Result<()> {
        let page = page_bytes();
        let start = range.start / page * page;
        match self.advise(start..range.end, advice) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A crashing client must not write the whole store into its core file. Only a wish: where the
    /// kernel does not know it, nothing is lost but disk space.
    pub fn keep_out_of_core_files(&self, range: Range<usize>) {
        let _ = self.advise(range, MmapAdvise::MADV_DONTDUMP);
    }

    /// Asks for fewer and larger pages, where the system offers them for shared memory; usually it
    /// does not. (`shmem_enabled` in /sys/kernel/mm/transparent_hugepage says so.)
    pub fn prefer_huge(&self, range: Range<usize>) {
        let _ = self.advise(range, MmapAdvise::MADV_HUGEPAGE);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nobody has access any more: views own a reference to their mapping, slices of
        // words borrow the words, and whoever has the address of a window was told not to use it.
        // The range is the one that `mmap` returned.
        let result = unsafe { mman::munmap(self.start, self.bytes.get()) };
        debug_assert_eq!(result, Ok(()), "what is mapped can be unmapped");
    }
}

/// What the system says of a file, if that has so many bytes from `offset` on. To touch what is
/// beyond its end would be fatal.
///
/// # Errors
/// `InvalidData` if it has not.
pub(super) fn check_size(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<FileStat> {
    let status = fstat(file)?;
    let size = u64::try_from(status.st_size).unwrap_or(0);
    let end = offset.saturating_add(bytes);
    if end <= size {
        return Ok(status);
    }
    let problem = format!("shared memory of {end} bytes lies in a file of {size} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// Bytes of a page of memory, as long as it is not a huge one.
pub(super) fn page_bytes() -> usize {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).expect("the system knows its page size")
}
