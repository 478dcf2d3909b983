//! The pages of one object, mapped once more for it alone, so that the right to write them can be
//! taken away.
//!
//! A [`Mapping`](super::Mapping) is shared by everything that lies in a segment. Where Rust code
//! writes through it, the compiler sees to it that nobody writes after the object is sealed. Code
//! in another language keeps its pointer for as long as it likes; it gets a pointer into a window,
//! and the kernel sees to the rest.
//!
//! A forked child gets no window that can be written: nobody could take it away from there.
//!
//! Knows a file and a range of it. When the range may be written is decided elsewhere.

use std::io;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::stat::FileStat;

use super::fork;
use super::mapping::Access;
use super::pages::{Pages, check_size, page_bytes};
use crate::ids::Extent;

/// The pages that a range of a shared file lies on, writable at first. Unmapped on drop.
///
/// The address is handed out as a number: what is done with it is up to code that the compiler
/// cannot watch, and stays harmless to others after [`Self::forbid_writing`] or
/// [`Self::replace_with_zeros`]. The memory must not be touched after the window is dropped.
#[derive(Debug)]
pub struct Window {
    pages: ManuallyDrop<Pages>,
    /// From the start of the pages to the range.
    skipped: usize,
    len: usize,
    generation: u64,
}

impl Window {
    /// Maps a range of a file, which must not be empty.
    ///
    /// # Errors
    /// `InvalidData` if the file ends before the range does, `InvalidInput` if the range is empty;
    /// otherwise those of `mmap`.
    pub fn new(file: BorrowedFd<'_>, range: Extent) -> io::Result<Self> {
        let page = granularity(&check_size(file, range.offset, range.len)?);
        let start = range.offset / page * page;
        let pages_bytes = (range.offset - start + range.len).next_multiple_of(page);
        let pages = Pages::map(file, start, pages_bytes, Access::ReadWrite)?;
        pages.prefer_huge(0..pages.len());
        pages.advise(0..pages.len(), MmapAdvise::MADV_DONTFORK)?;
        let count = |bytes: u64| usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
        let (skipped, len) = (count(range.offset - start)?, count(range.len)?);
        let pages = ManuallyDrop::new(pages);
        Ok(Self { pages, skipped, len, generation: fork::generation() })
    }

    /// Where the range begins in this process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.pages.start().as_ptr().expose_provenance() + self.skipped
    }

    /// Bytes in the range.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Makes the pages of a part of the range present and writable in one call, see
    /// [`Mapping::populate`](super::Mapping::populate).
    ///
    /// # Errors
    /// If the memory is not to be had, where touching it would have been fatal.
    ///
    /// # Panics
    /// If the part is not inside the range.
    pub fn populate(&self, part: Range<usize>) -> io::Result<()> {
        assert!(part.start <= part.end && part.end <= self.len, "{part:?} of {}", self.len);
        let range = self.skipped + part.start..self.skipped + part.end;
        self.pages.populate(range, MmapAdvise::MADV_POPULATE_READ)
    }

    /// Takes away the right to write: whoever does so from now on faults. The bytes stay.
    ///
    /// # Errors
    /// If the kernel has not the memory to do so.
    pub fn forbid_writing(&self) -> io::Result<()> {
        let (start, bytes) = (self.pages.start(), self.pages.len());
        // SAFETY: the pages are those of this window, and nothing in Rust has a reference to them.
        unsafe { mman::mprotect(start, bytes, ProtFlags::PROT_READ) }?;
        // Children may read it from now on.
        self.pages.advise(0..bytes, MmapAdvise::MADV_DOFORK).map_err(Into::into)
    }

    /// Cuts the window off from the file: it shows zeros of its own, which may be written and are
    /// seen by nobody.
    ///
    /// # Errors
    /// If the kernel has not the memory to do so. The window is as it was then.
    pub fn replace_with_zeros(&self) -> io::Result<()> {
        let fixed = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        let start = NonZeroUsize::new(self.pages.start().as_ptr().addr());
        let bytes = NonZeroUsize::new(self.pages.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = Access::ReadWrite.protection();
        // SAFETY: what is replaced is this window and nothing else, and nothing in Rust has a
        // reference to it.
        unsafe { mman::mmap_anonymous(start, bytes, protection, fixed) }?;
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // What a forked child has at these addresses may be something else.
        if self.generation == fork::generation() {
            // SAFETY: this is done once, and whoever has the address was told not to use it any
            // more.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}

/// What the kernel wants a mapping of this file to begin and end at a multiple of: a page, and in a
/// file of huge pages a huge one, which is also what the file calls its block size.
fn granularity(status: &FileStat) -> u64 {
    let page = page_bytes() as u64;
    let block = u64::try_from(status.st_blksize).unwrap_or(page);
    if block.is_power_of_two() { block.max(page) } else { page }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;
    use crate::shm::fork::tests::in_child;
    use crate::shm::{Backing, Mapping, Segment};
    use std::sync::Arc;

    fn segment() -> Segment {
        Segment::create(SegmentId(0), &Backing::Memfd, 16 * 4096).unwrap()
    }

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { segment: SegmentId(0), offset, len }
    }

    /// Reads one byte as foreign code would.
    fn peek(address: usize) -> u8 {
        let address = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: as for `poke`.
        unsafe { address.read_volatile() }
    }

    /// Writes one byte as foreign code would.
    fn poke(address: usize, byte: u8) {
        let address = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the tests below poke only into windows that they own, or in a child that may die.
        unsafe { address.write_volatile(byte) };
    }

    #[test]
    fn what_is_written_through_a_window_is_in_the_file_at_that_place() {
        let segment = segment();
        let reader = Mapping::new(segment.descriptor(false), 16 * 4096, Access::ReadOnly);
        let view = Arc::new(reader.unwrap()).view(extent(5000, 8000)).unwrap();
        let window = Window::new(segment.descriptor(true), extent(5000, 8000)).unwrap();
        window.populate(0..window.len()).unwrap();
        poke(window.address(), 7);
        poke(window.address() + window.len() - 1, 8);
        assert_eq!((view[0], view[7999]), (7, 8));
    }

    #[test]
    fn writing_faults_when_it_is_forbidden_and_only_then() {
        let segment = segment();
        let window = Window::new(segment.descriptor(true), extent(64, 64)).unwrap();
        let address = window.address();
        poke(address, 1);
        window.forbid_writing().unwrap();
        assert!(in_child(|| peek(address) == 1));
        assert!(!in_child(|| {
            poke(address, 2);
            true
        }));
    }

    #[test]
    fn a_child_gets_no_window_that_can_be_written() {
        let segment = segment();
        let window = Window::new(segment.descriptor(true), extent(64, 64)).unwrap();
        let address = window.address();
        assert!(!in_child(|| {
            poke(address, 2);
            true
        }));
        assert_eq!(peek(address), 0);
    }

    #[test]
    fn a_window_of_zeros_is_seen_by_nobody() {
        let segment = segment();
        let file = segment.descriptor(true);
        let mapping = Arc::new(Mapping::new(file, 4096, Access::ReadWrite).unwrap());
        mapping.view_mut(extent(0, 6)).unwrap().copy_from_slice(b"others");
        let window = Window::new(file, extent(0, 6)).unwrap();
        window.forbid_writing().unwrap();
        window.replace_with_zeros().unwrap();
        poke(window.address(), 1);
        assert_eq!(&*mapping.view(extent(0, 6)).unwrap(), b"others");
    }

    #[test]
    fn a_range_that_is_not_in_the_file_is_refused() {
        let segment = segment();
        let size = segment.size();
        let file = segment.descriptor(true);
        for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 2), (0, u64::MAX)] {
            let error = Window::new(file, extent(offset, len)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{offset} + {len}");
        }
        let error = Window::new(file, extent(0, 0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
