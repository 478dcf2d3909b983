//! Ranges of memory that are free or could be made so, as long as possible.
//!
//! While room is searched for, and while a create waits in vain, this grows with every range that
//! becomes idle or free, and never shrinks: it may have more than there is, never less. So a create
//! that does not fit here does not fit at all. Free memory next to a range is looked up in the
//! pool, and objects are not known here.

use std::collections::BTreeMap;

use crate::store::pool::Pool;

/// Disjoint ranges that do not touch: the end of each by its start.
#[derive(Debug, Default)]
pub struct Runs {
    ends: BTreeMap<u64, u64>,
    longest: u64,
}

impl Runs {
    /// Adds a range, and returns the run that it is part of now, free memory around it included.
    pub fn add(&mut self, start: u64, end: u64, pool: &Pool) -> (u64, u64) {
        let (mut start, mut end) = (start, end);
        while let Some((other_start, other_end)) = self.next_to(start, end, pool) {
            self.ends.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ends.insert(start, end);
        self.longest = self.longest.max(end - start);
        (start, end)
    }

    /// The length of the longest run.
    pub const fn longest(&self) -> u64 {
        self.longest
    }

    /// Forgets one run. False if there was none. To drop very many at once would take long.
    pub fn shrink(&mut self) -> bool {
        self.ends.pop_first().is_some()
    }

    /// A run here, or free memory, that touches this range and is not all inside of it.
    fn next_to(&self, start: u64, end: u64, pool: &Pool) -> Option<(u64, u64)> {
        let here = self.ends.range(..=end).next_back().map(|(start, end)| (*start, *end));
        here.filter(|(_, other_end)| *other_end >= start)
            .or_else(|| pool.run_at(start).filter(|(other, _)| *other < start))
            .or_else(|| pool.run_at(end).filter(|(_, other_end)| *other_end > end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_each_other_and_the_free_memory_between_them() {
        let mut pool = Pool::new(64 * 10);
        for _ in 0..10 {
            pool.allocate(64);
        }
        pool.free(64 * 3, 64);
        let mut runs = Runs::default();
        assert_eq!(runs.add(64 * 4, 64 * 5, &pool), (64 * 3, 64 * 5));
        assert_eq!(runs.add(64, 64 * 2, &pool), (64, 64 * 2));
        assert_eq!(runs.add(64 * 8, 64 * 9, &pool), (64 * 8, 64 * 9));
        assert_eq!(runs.add(64 * 2, 64 * 3, &pool), (64, 64 * 5));
        assert_eq!(runs.add(64 * 2, 64 * 3, &pool), (64, 64 * 5), "it was there already");
        pool.free(64 * 5, 64 * 3);
        assert_eq!(runs.add(64 * 5, 64 * 8, &pool), (64, 64 * 9));
        assert_eq!(runs.ends.len(), 1);
        assert_eq!(runs.longest(), 64 * 8);
    }
}
