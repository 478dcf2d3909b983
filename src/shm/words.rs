//! A shared file as words that several processes read and write at the same time.
//!
//! Every access is atomic, so there is no rule about who may touch a word when: what the words mean
//! is agreed elsewhere, and whoever breaks the agreement makes others read wrong numbers and
//! nothing worse.

use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::slice;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::MmapAdvise;

use super::mapping::Access;
use super::pages::{Pages, check_size};

const WORD_BYTES: usize = size_of::<AtomicU64>();

/// The words of a shared file, from its start. Unmapped on drop.
///
/// Words that are mapped for reading can only be loaded, relaxed or acquiring; any other access to
/// them faults, and ends the process that made it.
#[derive(Debug)]
pub struct Words {
    pages: Pages,
}

impl Words {
    /// Maps the first `count` words of a file. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `InvalidData` if the file is shorter than that, `InvalidInput` if that is nothing or far too
    /// much; otherwise those of `mmap`.
    pub fn map(file: BorrowedFd<'_>, count: usize, access: Access) -> io::Result<Self> {
        let bytes = count.checked_mul(WORD_BYTES).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)? as u64;
        check_size(file, 0, bytes)?;
        Ok(Self { pages: Pages::map(file, 0, bytes, access)? })
    }

    /// Makes the first words present for writing, all in one call, which is far cheaper than a
    /// fault for each page. A kernel before 5.14 cannot do it: they come when they are touched.
    ///
    /// # Errors
    /// If there is no memory for them. `InvalidInput` if there are not so many.
    pub fn populate(&self, words: usize) -> io::Result<()> {
        if words > self.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.pages.populate(0..words * WORD_BYTES, MmapAdvise::MADV_POPULATE_WRITE)
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let (start, count) = (self.pages.start().cast(), self.pages.len() / WORD_BYTES);
        // SAFETY: the words are mapped as long as `self`, a mapping begins on a page and so at a
        // multiple of the size of a word, and every pattern of bits is a number. The file is not
        // shorter, and stays so, since files of words are sealed against shrinking by the store.
        unsafe { slice::from_raw_parts(start.as_ptr(), count) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use nix::sys::stat::fstat;
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
