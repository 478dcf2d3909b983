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

use crate::limits::ALIGNMENT;
use std::collections::{BTreeMap, BTreeSet};

/// The free memory of one segment.
#[derive(Debug)]
pub struct Pool {
    bytes: u64,
    free_bytes: u64,
    /// The length of each free run, by its offset.
    by_offset: BTreeMap<u64, u64>,
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
        let mut pool =
            Self { bytes, free_bytes: 0, by_offset: BTreeMap::new(), by_length: BTreeSet::new() };
        pool.insert_run(0, bytes);
        pool
    }

    /// Takes a range for `size` bytes and returns where it starts, or nothing if no run is long
    /// enough.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        let len = rounded(size)?;
        if len == 0 {
            return Some(0);
        }
        let &(run_len, offset) = self.by_length.range((len, 0)..).next()?;
        self.cut(offset, run_len, offset, len);
        Some(offset)
    }

    /// Takes back a range that [`allocate`](Self::allocate) returned for `size` bytes.
    ///
    /// # Panics
    /// If any part of the range is free already, or outside the pool.
    pub fn free(&mut self, offset: u64, size: u64) {
        let (offset, end) = self.range(offset, size);
        if offset == end {
            return;
        }
        let before = self.by_offset.range(..offset).next_back().map(|(&start, &len)| (start, len));
        let after = self.by_offset.range(offset..).next().map(|(&start, &len)| (start, len));
        let is_taken = before.is_none_or(|(start, len)| start + len <= offset)
            && after.is_none_or(|(start, _)| end <= start);
        assert!(is_taken, "bytes {offset}..{end} came back but are free already, all or in part");

        let mut merged = (offset, end - offset);
        if let Some((start, len)) = before.filter(|(start, len)| start + len == offset) {
            self.remove_run(start, len);
            merged = (start, len + merged.1);
        }
        if let Some((start, len)) = after.filter(|(start, _)| end == *start) {
            self.remove_run(start, len);
            merged.1 += len;
        }
        self.insert_run(merged.0, merged.1);
    }

    /// Takes exactly this range, all of which must be free, but not for an object: this undoes a
    /// [`free`](Self::free), or keeps the range from being handed out.
    ///
    /// # Panics
    /// If any part of the range is not free.
    pub fn claim(&mut self, offset: u64, size: u64) {
        let (offset, end) = self.range(offset, size);
        if offset == end {
            return;
        }
        let run = self.by_offset.range(..=offset).next_back().map(|(&start, &len)| (start, len));
        let (start, len) = run
            .filter(|(start, len)| end <= start + len)
            .unwrap_or_else(|| panic!("bytes {offset}..{end} were claimed but are not all free"));
        self.cut(start, len, offset, end - offset);
    }

    /// Whether all of this range is free.
    #[must_use]
    pub fn is_free(&self, offset: u64, size: u64) -> bool {
        let (offset, end) = self.range(offset, size);
        let run = self.by_offset.range(..=offset).next_back();
        offset == end || run.is_some_and(|(&start, &len)| end <= start + len)
    }

    /// The free run, as its start and its end, that this place is in or at the end of.
    #[must_use]
    pub fn run_at(&self, offset: u64) -> Option<(u64, u64)> {
        let run = self.by_offset.range(..=offset).next_back();
        run.map(|(&start, &len)| (start, start + len)).filter(|(_, end)| *end >= offset)
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
        self.by_offset.len()
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
        for (&offset, &len) in &self.by_offset {
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
            self.by_offset.len(),
            "the index by length has the runs of the index by offset and no others"
        );
        assert_eq!(self.free_bytes, sum, "the free bytes are the sum of all runs");
    }

    /// The range of `size` bytes at `offset`, as its start and its end after rounding.
    fn range(&self, offset: u64, size: u64) -> (u64, u64) {
        assert!(offset.is_multiple_of(ALIGNMENT), "no range starts at {offset}");
        let end = rounded(size)
            .and_then(|len| offset.checked_add(len))
            .filter(|&end| end <= self.bytes)
            .unwrap_or_else(|| panic!("{size} bytes at {offset} reach beyond the pool"));
        (offset, end)
    }

    /// Takes `len` bytes at `offset` out of the run of `run_len` bytes at `run_offset`, which holds
    /// them all. What is left of the run on either side stays free.
    fn cut(&mut self, run_offset: u64, run_len: u64, offset: u64, len: u64) {
        self.remove_run(run_offset, run_len);
        self.insert_run(run_offset, offset - run_offset);
        self.insert_run(offset + len, run_offset + run_len - (offset + len));
    }

    fn insert_run(&mut self, offset: u64, len: u64) {
        if len > 0 {
            self.by_offset.insert(offset, len);
            self.by_length.insert((len, offset));
            self.free_bytes += len;
        }
    }

    fn remove_run(&mut self, offset: u64, len: u64) {
        let by_offset = self.by_offset.remove(&offset);
        let by_length = self.by_length.remove(&(len, offset));
        assert!(by_offset == Some(len) && by_length, "both indexes know the run at {offset}");
        self.free_bytes -= len;
    }
}

/// The bytes that a range of `size` bytes takes. Nothing if there is no number for that many.
fn rounded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests;
