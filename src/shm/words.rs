//! A shared file as words that several processes read and write at the same time.
//!
//! Every access is atomic, so there is no rule about who may touch a word when: what the words mean
//! is agreed elsewhere, and whoever breaks the agreement makes others read wrong numbers and
//! nothing worse.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{self, MapFlags, MmapAdvise};
use nix::sys::stat::fstat;

use super::mapping::{Access, unless_unknown};

const WORD_BYTES: usize = size_of::<AtomicU64>();

/// The words of a shared file, from its start. Unmapped on drop.
///
/// Words that are mapped for reading can only be loaded, relaxed or acquiring; any other access to
/// them faults, and ends the process that made it.
#[derive(Debug)]
pub struct Words {
    start: NonNull<AtomicU64>,
    count: NonZeroUsize,
}

// SAFETY: the memory belongs to the whole process, and any thread may unmap it.
unsafe impl Send for Words {}

// SAFETY: a shared `Words` gives shared atomics, which are made for several threads.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `count` words of a file. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `InvalidData` if the file is shorter than that, `InvalidInput` if that is nothing or far too
    /// much; otherwise those of `mmap`.
    pub fn map(file: BorrowedFd<'_>, count: usize, access: Access) -> io::Result<Self> {
        let size = usize::try_from(fstat(file)?.st_size).unwrap_or(0);
        let count = NonZeroUsize::new(count).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = count.get().checked_mul(WORD_BYTES).and_then(NonZeroUsize::new);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        if size < bytes.get() {
            let problem = format!("{bytes} shared bytes lie in a file of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let protection = access.protection();
        // SAFETY: the kernel chooses an address range that is free, so nothing of ours is replaced.
        let start = unsafe { mman::mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }?;
        // SAFETY: the range is the one that was just mapped, and this advice changes no byte of it.
        // A kernel that does not know it only writes larger core files.
        let _ = unsafe { mman::madvise(start, bytes.get(), MmapAdvise::MADV_DONTDUMP) };
        Ok(Self { start: start.cast(), count })
    }

    /// Makes the first words present for writing, all in one call, which is far cheaper than a
    /// fault for each page. A kernel before 5.14 cannot do it: they come when they are touched.
    ///
    /// # Errors
    /// If there is no memory for them. `InvalidInput` if there are not so many.
    pub fn populate(&self, words: usize) -> io::Result<()> {
        if words > self.count.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (start, bytes) = (self.start.cast(), words * WORD_BYTES);
        // SAFETY: the range is inside this mapping, and this advice changes no byte of it.
        unless_unknown(unsafe { mman::madvise(start, bytes, MmapAdvise::MADV_POPULATE_WRITE) })
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the words are mapped as long as `self`, a mapping begins on a page and so at a
        // multiple of the size of a word, and every pattern of bits is a number. The file is not
        // shorter, and stays so, since files of words are sealed against shrinking by the store.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.count.get()) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into the words, since that would borrow `self`. The range
        // is the one that `mmap` returned.
        let result = unsafe { mman::munmap(self.start.cast(), self.count.get() * WORD_BYTES) };
        debug_assert_eq!(result, Ok(()), "a mapping can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use nix::unistd::{SysconfVar, sysconf};

    use super::*;
    use crate::ids::SegmentId;
    use crate::shm::{Backing, Segment};

    #[test]
    fn both_sides_see_the_same_words() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 4096).unwrap();
        let writer = Words::map(segment.descriptor(true), 512, Access::ReadWrite).unwrap();
        let reader = Words::map(segment.descriptor(false), 512, Access::ReadOnly).unwrap();
        writer[511].store(7, Relaxed);
        assert_eq!((reader.len(), reader[511].load(Relaxed)), (512, 7));
    }

    #[test]
    fn words_that_were_made_present_are_there_and_others_are_not() {
        let page = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap();
        let words_a_page = usize::try_from(page).unwrap() / WORD_BYTES;
        let bytes = u64::try_from(16 * page).unwrap();
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, bytes).unwrap();
        let all = 16 * words_a_page;
        let words = Words::map(segment.descriptor(true), all, Access::ReadWrite).unwrap();
        let allocated = || fstat(segment.descriptor(true)).unwrap().st_blocks * 512 / page;
        words.populate(0).unwrap();
        assert_eq!(allocated(), 0);
        words.populate(5 * words_a_page + 1).unwrap();
        assert_eq!(allocated(), 6);
        words.populate(all).unwrap();
        assert_eq!(allocated(), 16);
        let error = words.populate(all + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn words_behind_the_file_and_none_at_all_are_refused() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 4096).unwrap();
        for (count, access, kind) in [
            (513, Access::ReadOnly, io::ErrorKind::InvalidData),
            (0, Access::ReadOnly, io::ErrorKind::InvalidInput),
            (usize::MAX, Access::ReadOnly, io::ErrorKind::InvalidInput),
            (512, Access::ReadWrite, io::ErrorKind::PermissionDenied),
        ] {
            let error = Words::map(segment.descriptor(false), count, access).unwrap_err();
            assert_eq!(error.kind(), kind, "{count} words");
        }
    }
}
