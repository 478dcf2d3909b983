//! The free memory of one segment: which ranges of it are free, and which one to hand out next.
//!
//! The free ranges are kept as *runs*: as long as possible, so no two of them touch. Each run is in
//! two indexes, by offset (to find the neighbours of a range that comes back, and merge with them)
//! and by length (to find the best fit: the shortest run that is long enough, and the lowest of
//! those). Everything takes O(log runs), and memory is proportional to the number of runs: next to
//! nothing while the free memory is in one piece, about 60 bytes a run when it is not.
//!
//! Best fit leaves long runs alone for as long as a shorter one will do, and a part is always cut
//! from the low end, so memory that was never used yet is touched last. Nothing is added to a
//! range: it starts at a multiple of [`ALIGNMENT`] and its length is rounded up to one, no more.
//! A range of no bytes takes nothing and lies at offset 0.
//!
//! The pool knows no addresses, no objects and no owners. It is told the size again when a range
//! comes back; one that was not handed out is a bug of the store, and a panic.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use crate::limits::ALIGNMENT;
use crate::store::space::ranges::{Range, Ranges};

/// The free memory of one segment.
#[derive(Debug)]
pub struct Pool {
    bytes: u64,
    free_bytes: u64,
    /// The free runs.
    runs: Ranges,
    /// The length and the offset of each free run.
    by_length: BTreeSet<(u64, u64)>,
}

impl Pool {
    /// A pool of so many bytes, all of them free.
    ///
    /// # Panics
    /// If `bytes` is not a multiple of [`ALIGNMENT`].
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(ALIGNMENT), "a pool of {bytes} bytes has a broken last unit");
        let (runs, by_length) = (Ranges::default(), BTreeSet::new());
        let mut pool = Self { bytes, free_bytes: 0, runs, by_length };
        pool.free(0, bytes);
        pool
    }

    /// Takes a range for `size` bytes and returns where it starts, or nothing if no run is long
    /// enough.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        let len = rounded(size)?;
        if len == 0 {
            return Some(0);
        }
        let &(_, offset) = self.by_length.range((len, 0)..).next()?;
        self.claim(offset, len);
        Some(offset)
    }

    /// Takes back a range that [`allocate`](Self::allocate) returned for `size` bytes.
    ///
    /// # Panics
    /// If any part of the range is free already, or outside the pool.
    pub fn free(&mut self, offset: u64, size: u64) {
        let range = self.range(offset, size);
        if range.is_empty() {
            return;
        }
        let Range { start, end } = range;
        let is_taken = self.runs.last_overlap(range).is_none();
        assert!(is_taken, "bytes {start}..{end} came back but are free already, all or in part");
        let run = self.runs.insert(range);
        // The neighbours have become parts of it.
        self.forget_length(Range { start: run.start, end: start });
        self.forget_length(Range { start: end, end: run.end });
        self.note_length(run);
        self.free_bytes += range.len();
    }

    /// Takes exactly this range, all of which must be free, but not for an object: this undoes a
    /// [`free`](Self::free), or keeps the range from being handed out.
    ///
    /// # Panics
    /// If any part of the range is not free.
    pub fn claim(&mut self, offset: u64, size: u64) {
        let range = self.range(offset, size);
        if range.is_empty() {
            return;
        }
        let Range { start, end } = range;
        let run = self.runs.last_until(start).filter(|run| end <= run.end);
        let run =
            run.unwrap_or_else(|| panic!("bytes {start}..{end} were claimed but are not all free"));
        self.runs.remove(range);
        self.forget_length(run);
        // What is left of the run on either side stays free.
        self.note_length(Range { start: run.start, end: start });
        self.note_length(Range { start: end, end: run.end });
        self.free_bytes -= range.len();
    }

    /// Whether all of this range is free.
    #[must_use]
    pub fn is_free(&self, offset: u64, size: u64) -> bool {
        let range = self.range(offset, size);
        let run = self.runs.last_until(offset);
        range.is_empty() || run.is_some_and(|run| range.end <= run.end)
    }

    /// The free run, as its start and its end, that this place is in or at the end of.
    #[must_use]
    pub fn run_at(&self, offset: u64) -> Option<(u64, u64)> {
        let run = self.runs.last_until(offset).filter(|run| run.end >= offset);
        run.map(|run| (run.start, run.end))
    }

    /// Whether [`allocate`](Self::allocate) would find room for `size` bytes now.
    #[must_use]
    pub fn fits(&self, size: u64) -> bool {
        rounded(size).is_some_and(|len| len <= self.largest_free_run())
    }

    /// Bytes of the longest run: the largest size that [`fits`](Self::fits).
    #[must_use]
    pub fn largest_free_run(&self) -> u64 {
        self.by_length.last().map_or(0, |&(len, _)| len)
    }

    /// The free runs of at least `len` bytes, as offset and length, the longest first.
    pub fn runs_of_at_least(&self, len: u64) -> impl Iterator<Item = (u64, u64)> {
        self.by_length.range((len, 0)..).rev().map(|&(len, offset)| (offset, len))
    }

    /// Bytes that are free, in however many pieces.
    #[must_use]
    pub const fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Number of pieces that the free memory is in.
    #[must_use]
    pub fn free_runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of the whole segment, free or not.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Walks all runs and checks what must be true of them. O(n), for tests and simulation.
    ///
    /// # Panics
    /// If any of it is not.
    pub fn check_invariants(&self) {
        let mut sum = 0;
        let mut previous_end = None;
        for range in self.runs.iter() {
            let (offset, len) = (range.start, range.len());
            let run = format!("the free run at {offset} of {len} bytes");
            assert!(len > 0, "{run} is not empty");
            assert!(
                offset.is_multiple_of(ALIGNMENT) && len.is_multiple_of(ALIGNMENT),
                "{run} starts and ends at a multiple of {ALIGNMENT}"
            );
            assert!(
                previous_end.is_none_or(|end| end < offset),
                "{run} neither overlaps nor touches the run before it"
            );
            assert!(self.by_length.contains(&(len, offset)), "{run} is in the index by length");
            let end = offset.checked_add(len).filter(|&end| end <= self.bytes);
            assert!(end.is_some(), "{run} ends inside the pool");
            previous_end = end;
            sum += len;
        }
        assert_eq!(
            self.by_length.len(),
            self.runs.len(),
            "the index by length has the runs of the index by offset and no others"
        );
        assert_eq!(self.free_bytes, sum, "the free bytes are the sum of all runs");
    }

    /// The range of `size` bytes at `offset` after rounding.
    fn range(&self, offset: u64, size: u64) -> Range {
        assert!(offset.is_multiple_of(ALIGNMENT), "no range starts at {offset}");
        let end = rounded(size)
            .and_then(|len| offset.checked_add(len))
            .filter(|&end| end <= self.bytes)
            .unwrap_or_else(|| panic!("{size} bytes at {offset} reach beyond the pool"));
        Range { start: offset, end }
    }

    fn note_length(&mut self, run: Range) {
        if !run.is_empty() {
            self.by_length.insert((run.len(), run.start));
        }
    }

    fn forget_length(&mut self, run: Range) {
        let is_known = run.is_empty() || self.by_length.remove(&(run.len(), run.start));
        assert!(is_known, "both indexes know the run at {}", run.start);
    }
}

/// The bytes that a range of `size` bytes takes. Nothing if there is no number for that many.
fn rounded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests;
