//! A file of shared memory in this process's address space.
//!
//! A [`Mapping`] covers a segment from its first byte. Bytes come out of it as a [`View`] or a
//! [`ViewMut`], bounds-checked, each keeping the mapping alive: memory is unmapped when the last of
//! them is gone, whatever became of the client or the store. What makes the slices sound, and what
//! a caller has to see to, is said in [`crate::shm`].
//!
//! Knows extents and access rights. Which objects lie there, and who may write them, is decided
//! elsewhere.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use super::pages::{self, Pages, check_size};
use crate::ids::Extent;

/// Bytes that are made ready at a time, so that a bit for each is enough to remember it.
const READY_BYTES: usize = 256 << 10;

/// What may be done with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading. A write faults.
    ReadOnly,
    /// Reading and writing. Needs a writable descriptor.
    ReadWrite,
}

impl Access {
    pub(super) const fn protection(self) -> ProtFlags {
        match self {
            Self::ReadOnly => ProtFlags::PROT_READ,
            Self::ReadWrite => ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE),
        }
    }
}

/// A shared file, mapped from its start. Unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    /// Only what [`Self::range`] has checked may be accessed there.
    pub(super) pages: Pages,
    access: Access,
    /// What has been made ready for writing.
    ready: Pieces,
}

impl Mapping {
    /// Maps the first `bytes` bytes of a file. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `InvalidData` if the file is shorter than that, since touching what is beyond would be
    /// fatal; otherwise those of `mmap`: `PermissionDenied` if [`Access::ReadWrite`] is wanted of
    /// a descriptor that is open for reading.
    pub fn new(file: BorrowedFd<'_>, bytes: u64, access: Access) -> io::Result<Self> {
        check_size(file, 0, bytes)?;
        let pages = Pages::map(file, 0, bytes, access)?;
        pages.prefer_huge(0..pages.len());
        let pieces = match access {
            Access::ReadOnly => 0,
            Access::ReadWrite => pages.len().div_ceil(READY_BYTES),
        };
        Ok(Self { pages, access, ready: Pieces::none(pieces) })
    }

    /// Bytes that are mapped.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.pages.len() as u64
    }

    /// The bytes of an object that the caller holds, for as long as the view or a clone of it
    /// lives. `None` if they are not inside the mapping.
    ///
    /// The segment that the extent names is for the caller to look up; only offset and length
    /// matter here.
    #[must_use]
    pub fn view(self: &Arc<Self>, extent: Extent) -> Option<View> {
        let kept =
            View::kept_by(Arc::clone(self), extent, |mapping| Ok::<&Self, Infallible>(mapping));
        kept.unwrap_or_default()
    }

    /// Bytes to fill in, of an object that the caller is creating. `None` if they are not inside
    /// the mapping, or it is read-only.
    ///
    /// The view has to go before the store is told to seal or abort the object: from then on the
    /// memory is others'. Data and metadata may have a view each, but no two views may overlap.
    #[must_use]
    pub fn view_mut(self: &Arc<Self>, extent: Extent) -> Option<ViewMut> {
        let range = self.writable_range(extent.offset, extent.len)?;
        Some(ViewMut { mapping: Arc::clone(self), range })
    }

    /// Makes the pages of a range present in one call, which is far cheaper than a fault for each.
    /// For `write` they are also allocated and made writable. A kernel before 5.14 cannot do it;
    /// that is no error, since the first touch does the same.
    ///
    /// # Errors
    /// If the memory is not to be had, where touching it would have been fatal. `InvalidInput` if
    /// the range is not inside the mapping, or is to be written in one that is read-only.
    pub fn populate(&self, offset: u64, len: u64, write: bool) -> io::Result<()> {
        let (range, advice) = if write {
            (self.writable_range(offset, len), MmapAdvise::MADV_POPULATE_WRITE)
        } else {
            (self.range(offset, len), MmapAdvise::MADV_POPULATE_READ)
        };
        let range = range.ok_or(io::ErrorKind::InvalidInput)?;
        if range.is_empty() { Ok(()) } else { self.pages.populate(range, advice) }
    }

    /// As [`Self::populate`], for memory that is to be written, but does nothing where it was done
    /// before through this mapping, which costs no call then. Works in pieces of 256 KiB, so it may
    /// make more ready than was asked for. What has gone back to the system since is not known
    /// here: its pages come at first touch.
    ///
    /// # Errors
    /// Those of [`Self::populate`].
    pub fn make_ready(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = self.writable_range(offset, len);
        let range = range.ok_or(io::ErrorKind::InvalidInput)?;
        let mut next = range.start / READY_BYTES;
        let end = range.end.div_ceil(READY_BYTES);
        while let Some(first) = (next..end).find(|piece| !self.ready.has(*piece)) {
            next = (first..end).find(|piece| self.ready.has(*piece)).unwrap_or(end);
            let bytes = (first * READY_BYTES)..(next * READY_BYTES).min(self.pages.len());
            // As if for reading: that allocates pages of shared memory too, and where they are
            // allocated already it maps 16 of them at a time, and writable.
            self.populate(bytes.start as u64, bytes.len() as u64, false)?;
            (first..next).for_each(|piece| self.ready.add(piece));
        }
        Ok(())
    }

    /// Maps whole pages of the file where other memory has been mapped over them.
    ///
    /// # Panics
    /// If the system has not even the memory to note that down. There may be nothing at all in that
    /// place then, and soon somebody else's memory, so nobody may go on with this mapping.
    pub(super) fn map_again(&self, file: BorrowedFd<'_>, pages: Range<usize>, page_bytes: usize) {
        let address = NonZeroUsize::new(self.pages.address(pages.start).addr());
        let bytes = NonZeroUsize::new(pages.len()).expect("there are pages");
        let offset = libc::off_t::try_from(pages.start).expect("it is inside the file");
        let mut kind = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        if page_bytes > pages::page_bytes() {
            // No huge page need be free now.
            kind |= MapFlags::MAP_NORESERVE;
        }
        let protection = self.access.protection();
        // SAFETY: the range is inside this mapping, of which nobody has a view: what was there has
        // been replaced, so it would not be the bytes of an object.
        let mapped = unsafe { mman::mmap(address, bytes, protection, kind, file, offset) };
        mapped.expect("the system can map what was mapped before");
        self.pages.keep_out_of_core_files(pages.clone());
        self.pages.prefer_huge(pages);
    }

    fn range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.pages.len()).then_some(start..end)
    }

    pub(super) fn writable_range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        match self.access {
            Access::ReadOnly => None,
            Access::ReadWrite => self.range(offset, len),
        }
    }
}

/// A set of the pieces of a mapping, which only grows.
#[derive(Debug)]
struct Pieces(Box<[AtomicU64]>);

impl Pieces {
    /// No piece of so many.
    fn none(count: usize) -> Self {
        Self((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn has(&self, piece: usize) -> bool {
        self.0[piece / 64].load(Ordering::Relaxed) & (1 << (piece % 64)) != 0
    }

    fn add(&self, piece: usize) {
        self.0[piece / 64].fetch_or(1 << (piece % 64), Ordering::Relaxed);
    }
}

/// Bytes of a held object, read in place. Its *keeper* keeps the memory mapped: the mapping itself,
/// or something that owns it and is counted anyway.
#[derive(Debug)]
pub struct View<K = Mapping> {
    start: NonNull<u8>,
    len: usize,
    keeper: Arc<K>,
}

// SAFETY: the bytes are mapped for the whole process and nobody writes them, so they may be read in
// any thread; and what keeps them mapped may be used in any.
unsafe impl<K: Send + Sync> Send for View<K> {}

// SAFETY: as above.
unsafe impl<K: Send + Sync> Sync for View<K> {}

/// What keeps a mapping lives as long as anybody has a count of it: a type that says so with its
/// lifetimes could stand for one that borrows less, and end earlier than what was borrowed from it.
impl<K: 'static> View<K> {
    /// The bytes of an object that the caller holds, in a mapping that belongs to `keeper`. `None`
    /// if they are not inside the mapping. Otherwise as [`Mapping::view`].
    ///
    /// # Errors
    /// Those of `mapping_of`.
    pub fn kept_by<E>(
        keeper: Arc<K>,
        extent: Extent,
        mapping_of: impl for<'a> FnOnce(&'a K) -> Result<&'a Mapping, E>,
    ) -> Result<Option<Self>, E> {
        let mapping = mapping_of(&keeper)?;
        let range = mapping.range(extent.offset, extent.len);
        let start = range.and_then(|range| NonNull::new(mapping.pages.address(range.start)));
        // Where it fits into the address space its length does too.
        let len = usize::try_from(extent.len).unwrap_or(0);
        Ok(start.map(|start| Self { start, len, keeper }))
    }

    /// What keeps the memory mapped.
    #[must_use]
    pub const fn keeper(&self) -> &Arc<K> {
        &self.keeper
    }
}

impl<K> Deref for View<K> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside a mapping that was borrowed from the keeper for as long as
        // the keeper is shared (it has no lifetimes in its type, so it is the same one by any
        // name). So the mapping ends only when somebody may change or drop the keeper, and that
        // nobody may as long as `self` has its `Arc`. The object is sealed and
        // held, so its bytes do not change (see `crate::shm` for who sees to that).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// Bytes of an object that is being created, written in place. Keeps the memory mapped.
#[derive(Debug)]
pub struct ViewMut {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl ViewMut {
    /// What makes ranges of this memory ready for writing, see [`Mapping::make_ready`], while
    /// somebody has a part of it for writing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness { mapping: Arc::clone(&self.mapping), range: self.range.clone() }
    }
}

/// Makes memory ready that is about to be written. Made by [`ViewMut::readiness`].
#[derive(Debug, Clone)]
pub struct Readiness {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Readiness {
    /// Makes a range of the view's bytes ready, or the part of it that exists.
    ///
    /// # Errors
    /// Those of [`Mapping::populate`].
    pub fn make_ready(&self, range: Range<usize>) -> io::Result<()> {
        let len = range.end.min(self.range.len()).saturating_sub(range.start);
        self.mapping.make_ready((self.range.start + range.start) as u64, len as u64)
    }
}

impl Deref for ViewMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.mapping.pages.address(self.range.start);
        // SAFETY: the range is inside the mapping, which lives as long as `self`. The store gave
        // the extent to one creator, and that one asked for this view alone (see `crate::shm`).
        unsafe { slice::from_raw_parts(start, self.range.len()) }
    }
}

impl DerefMut for ViewMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.mapping.pages.address(self.range.start);
        // SAFETY: as for reading; and the mapping is writable, or there would be no such view.
        unsafe { slice::from_raw_parts_mut(start, self.range.len()) }
    }
}

#[cfg(test)]
mod tests;
