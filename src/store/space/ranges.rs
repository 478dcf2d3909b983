//! A set of bytes, kept as ranges that neither overlap nor touch.
//!
//! Everything takes O(log ranges) and what the ranges cost that are passed on the way. What the
//! bytes mean is not known here.

use std::collections::BTreeMap;

use crate::limits::ALIGNMENT;

/// Bytes from `start` up to, and not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    /// The first byte behind.
    pub end: u64,
}

impl Range {
    /// The memory that `size` bytes take at `offset`.
    pub const fn of(offset: u64, size: u64) -> Self {
        Self { start: offset, end: offset + size.next_multiple_of(ALIGNMENT) }
    }

    pub const fn len(&self) -> u64 {
        self.end - self.start
    }

    pub const fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether it has any of the `size` bytes at `offset`.
    pub const fn overlaps(&self, offset: u64, size: u64) -> bool {
        size > 0 && self.start < offset + size && offset < self.end
    }

    /// What is left of it between two multiples of `unit`.
    pub fn aligned(self, unit: u64) -> Option<Self> {
        let start = self.start.checked_next_multiple_of(unit)?;
        let end = self.end / unit * unit;
        (start < end).then_some(Self { start, end })
    }
}

/// A set of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The end of each range, by its start.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds bytes, some of which may be there. Returns the range that they are part of now.
    pub fn insert(&mut self, range: Range) -> Range {
        let Range { mut start, mut end } = range;
        if range.is_empty() {
            return range;
        }
        while let Some(other) = self.last_until(end).filter(|other| other.end >= start) {
            self.ends.remove(&other.start);
            start = start.min(other.start);
            end = end.max(other.end);
        }
        self.ends.insert(start, end);
        Range { start, end }
    }

    /// Takes out bytes, some of which may not be there.
    pub fn remove(&mut self, range: Range) {
        while let Some(other) = self.last_overlap(range) {
            self.ends.remove(&other.start);
            if other.end > range.end {
                self.ends.insert(range.end, other.end);
            }
            if other.start < range.start {
                self.ends.insert(other.start, range.start);
            }
        }
    }

    /// The part of a range that is not in the set, in ascending order.
    pub fn gaps(&self, within: Range) -> Vec<Range> {
        let mut gaps = Vec::new();
        if within.is_empty() {
            return gaps;
        }
        let mut start = within.start;
        let before = self.last_until(within.start);
        let inside = self.ends.range(within.start..within.end).map(|(&start, &end)| (start, end));
        for (from, end) in before.map(|range| (range.start, range.end)).into_iter().chain(inside) {
            if start < from {
                gaps.push(Range { start, end: from });
            }
            start = start.max(end);
        }
        if start < within.end {
            gaps.push(Range { start, end: within.end });
        }
        gaps
    }

    /// Takes out the first range.
    pub fn pop_first(&mut self) -> Option<Range> {
        self.ends.pop_first().map(|(start, end)| Range { start, end })
    }

    /// The first range that begins at this byte or behind it.
    pub fn first_from(&self, start: u64) -> Option<Range> {
        self.ends.range(start..).next().map(|(&start, &end)| Range { start, end })
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// All ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Range> {
        self.ends.iter().map(|(&start, &end)| Range { start, end })
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The last range that has some bytes of this one.
    pub fn last_overlap(&self, range: Range) -> Option<Range> {
        let last = self.last_until(range.end.checked_sub(1)?)?;
        (last.end > range.start && !range.is_empty()).then_some(last)
    }

    /// The last range that starts at this byte or before it.
    pub fn last_until(&self, start: u64) -> Option<Range> {
        self.ends.range(..=start).next_back().map(|(&start, &end)| Range { start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u64 = 40;

    fn range(random: &mut fastrand::Rng) -> Range {
        let (one, other) = (random.u64(..=END), random.u64(..=END));
        Range { start: one.min(other), end: one.max(other) }
    }

    fn bytes(ranges: impl IntoIterator<Item = Range>) -> Vec<u64> {
        ranges.into_iter().flat_map(|range| range.start..range.end).collect()
    }

    #[test]
    fn ranges_are_a_set_of_bytes() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut ranges, mut twin) = (Ranges::default(), std::collections::BTreeSet::new());
            for _ in 0..100 {
                let range = range(&mut random);
                if random.bool() {
                    ranges.insert(range);
                    twin.extend(range.start..range.end);
                } else {
                    ranges.remove(range);
                    twin.retain(|byte| !(range.start..range.end).contains(byte));
                }
                assert!(twin.iter().copied().eq(bytes(ranges.iter())), "{seed}: {ranges:?}");
                let all: Vec<Range> = ranges.iter().collect();
                assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "{all:?}");
                let within = self::range(&mut random);
                let missing = (within.start..within.end).filter(|byte| !twin.contains(byte));
                assert!(missing.eq(bytes(ranges.gaps(within))), "{seed}: {ranges:?} {within:?}");
                assert_eq!(ranges.is_empty(), twin.is_empty());
            }
            let first = ranges.pop_first();
            assert_eq!(first.map(|range| range.start), twin.first().copied());
        }
    }

    #[test]
    fn a_range_is_cut_to_whole_units() {
        let aligned = |start, end| Range { start, end }.aligned(10).map(|r| (r.start, r.end));
        assert_eq!(aligned(1, 39), Some((10, 30)));
        assert_eq!(aligned(10, 30), Some((10, 30)));
        assert_eq!(aligned(11, 29), None);
        assert_eq!(aligned(u64::MAX - 1, u64::MAX), None);
    }

    #[test]
    fn nothing_overlaps_an_empty_place() {
        let range = Range { start: 10, end: 20 };
        assert!(range.overlaps(19, 1) && range.overlaps(0, 11) && range.overlaps(12, 2));
        assert!(!range.overlaps(20, 1) && !range.overlaps(0, 10) && !range.overlaps(12, 0));
    }
}
