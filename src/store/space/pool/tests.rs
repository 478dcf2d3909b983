//! The pool against a model that has one flag for each unit of memory, and what counts as a bug.

#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use std::collections::BTreeMap;

const UNITS_MAX: usize = 96;

/// A pool that does everything the slow way: one flag per unit of memory.
struct Model {
    is_free: Vec<bool>,
}

impl Model {
    /// Start and length, in units, of each free run, from low to high.
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for unit in (0..self.is_free.len()).filter(|&unit| self.is_free[unit]) {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == unit => *len += 1,
                _ => runs.push((unit, 1)),
            }
        }
        runs
    }

    fn best_fit(&self, units: usize) -> Option<usize> {
        if units == 0 {
            return Some(0);
        }
        let fitting = self.runs().into_iter().filter(|&(_, len)| len >= units);
        fitting.min_by_key(|&(start, len)| (len, start)).map(|(start, _)| start)
    }

    fn mark(&mut self, start: usize, units: usize, free: bool) {
        for unit in start..start + units {
            assert_ne!(self.is_free[unit], free, "unit {unit} changes");
            self.is_free[unit] = free;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate(u64),
    /// Frees the range of this index, counted round and round.
    Free(usize),
    /// Frees it and claims it back.
    Undo(usize),
    /// Claims a part of some free run: which one, units to skip, units to take.
    Claim(usize, usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..=12 * ALIGNMENT).prop_map(Step::Allocate),
        1 => (0..=(UNITS_MAX as u64 + 1) * ALIGNMENT).prop_map(Step::Allocate),
        4 => any::<usize>().prop_map(Step::Free),
        1 => any::<usize>().prop_map(Step::Undo),
        1 => any::<(usize, usize, usize)>()
            .prop_map(|(run, skip, take)| Step::Claim(run, skip, take)),
    ];
    prop::collection::vec(step, 0..120)
}

fn units(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(ALIGNMENT)).unwrap()
}

fn bytes(units: usize) -> u64 {
    units as u64 * ALIGNMENT
}

/// The pool and its model side by side, and the ranges that are taken: offset and size.
struct Pair {
    pool: Pool,
    model: Model,
    taken: Vec<(u64, u64)>,
}

impl Pair {
    fn new(units: usize) -> Self {
        let model = Model { is_free: vec![true; units] };
        Self { pool: Pool::new(bytes(units)), model, taken: Vec::new() }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Allocate(size) => {
                let expected = self.model.best_fit(units(size));
                assert_eq!(self.pool.fits(size), expected.is_some());
                assert_eq!(self.pool.allocate(size), expected.map(bytes));
                if let Some(start) = expected {
                    self.model.mark(start, units(size), false);
                    self.taken.push((bytes(start), size));
                }
            }
            Step::Free(which) if !self.taken.is_empty() => {
                let (offset, size) = self.taken.swap_remove(which % self.taken.len());
                self.pool.free(offset, size);
                self.model.mark(units(offset), units(size), true);
            }
            Step::Undo(which) if !self.taken.is_empty() => {
                let (offset, size) = self.taken[which % self.taken.len()];
                let before = (self.pool.runs.clone(), self.pool.by_length.clone());
                self.pool.free(offset, size);
                self.pool.check_invariants();
                self.pool.claim(offset, size);
                assert_eq!(before, (self.pool.runs.clone(), self.pool.by_length.clone()));
            }
            Step::Claim(which, skip, take) if self.pool.free_runs() > 0 => {
                let runs = self.model.runs();
                let (start, len) = runs[which % runs.len()];
                let start_of_part = start + skip % len;
                let part = 1 + take % (start + len - start_of_part);
                self.pool.claim(bytes(start_of_part), bytes(part));
                self.model.mark(start_of_part, part, false);
                self.taken.push((bytes(start_of_part), bytes(part)));
            }
            Step::Free(_) | Step::Undo(_) | Step::Claim(..) => {}
        }
    }

    fn check(&self) {
        self.pool.check_invariants();
        let runs = self.model.runs();
        let expected: Vec<_> = runs.iter().map(|&(at, len)| (bytes(at), bytes(len))).collect();
        let found: Vec<_> = self.pool.runs.iter().map(|run| (run.start, run.len())).collect();
        assert_eq!(found, expected);
        assert_eq!(self.pool.free_runs(), runs.len());
        let longest = runs.iter().map(|&(_, len)| bytes(len)).max().unwrap_or(0);
        assert_eq!(self.pool.largest_free_run(), longest);
        assert_eq!(self.pool.free_bytes(), runs.iter().map(|&(_, len)| bytes(len)).sum());
    }
}

proptest! {
    #[test]
    fn pool_does_what_the_model_does(
        units in 0..=UNITS_MAX,
        steps in steps(),
        which in any::<usize>(),
    ) {
        let mut pair = Pair::new(units);
        for step in &steps {
            pair.apply(step);
            pair.check();
        }
        while !pair.taken.is_empty() {
            pair.apply(&Step::Free(which));
            pair.check();
        }
        prop_assert_eq!(pair.pool.free_bytes(), pair.pool.bytes());
        prop_assert!(pair.pool.free_runs() <= 1, "everything came back, yet in pieces");
    }

    #[test]
    fn object_of_exactly_the_pool_fits_when_it_is_empty(
        units in 1..1u64 << 44,
        missing in 0..ALIGNMENT,
    ) {
        let mut pool = Pool::new(units * ALIGNMENT);
        let size = units * ALIGNMENT - missing;
        prop_assert_eq!(pool.allocate(size), Some(0));
        prop_assert_eq!((pool.free_bytes(), pool.free_runs(), pool.allocate(1)), (0, 0, None));
        pool.free(0, size);
        prop_assert_eq!(pool.largest_free_run(), pool.bytes());
    }
}

#[test]
fn sizes_beyond_the_pool_do_not_fit() {
    let mut pool = Pool::new(1 << 20);
    for size in [(1 << 20) + 1, u64::MAX - ALIGNMENT, u64::MAX - 1, u64::MAX] {
        assert!(!pool.fits(size), "{size} fits");
        assert_eq!(pool.allocate(size), None);
    }
    pool.check_invariants();
    assert!(pool.fits(1 << 20));
}

#[test]
fn nothing_costs_nothing_even_when_full() {
    let mut pool = Pool::new(ALIGNMENT);
    assert_eq!(pool.allocate(ALIGNMENT), Some(0));
    assert!(pool.fits(0));
    assert_eq!(pool.allocate(0), Some(0));
    pool.free(0, 0);
    assert_eq!(pool.free_bytes(), 0, "the other object at offset 0 still has its bytes");
}

#[test]
fn best_fit_is_the_shortest_run_and_the_lowest_of_those() {
    let mut pool = Pool::new(1024);
    for unit in 0..16 {
        assert_eq!(pool.allocate(ALIGNMENT), Some(unit * ALIGNMENT));
    }
    for (offset, size) in [(0, 192), (256, 128), (512, 128), (768, 256)] {
        pool.free(offset, size);
    }
    assert_eq!(pool.allocate(65), Some(256));
    assert_eq!(pool.allocate(128), Some(512));
    assert_eq!(pool.allocate(128), Some(0));
    assert_eq!(pool.allocate(64), Some(128));
    assert_eq!(pool.allocate(257), None);
    assert_eq!(pool.allocate(256), Some(768));
}

#[test]
#[should_panic(expected = "bytes 64..128 came back but are free already")]
fn freeing_twice_is_a_bug() {
    let mut pool = Pool::new(1024);
    assert_eq!(pool.allocate(192), Some(0));
    pool.free(64, 64);
    pool.free(64, 64);
}

#[test]
#[should_panic(expected = "bytes 0..128 came back but are free already")]
fn freeing_into_the_next_run_is_a_bug() {
    let mut pool = Pool::new(1024);
    assert_eq!(pool.allocate(64), Some(0));
    pool.free(0, 65);
}

#[test]
#[should_panic(expected = "bytes 128..192 came back but are free already")]
fn freeing_inside_a_run_is_a_bug() {
    Pool::new(1024).free(128, 1);
}

#[test]
#[should_panic(expected = "reach beyond the pool")]
fn freeing_beyond_the_end_is_a_bug() {
    let mut pool = Pool::new(1024);
    assert_eq!(pool.allocate(1024), Some(0));
    pool.free(960, 65);
}

#[test]
#[should_panic(expected = "no range starts at 1")]
fn freeing_in_the_middle_of_a_unit_is_a_bug() {
    Pool::new(1024).free(1, 1);
}

#[test]
#[should_panic(expected = "bytes 64..192 were claimed but are not all free")]
fn claiming_what_is_taken_is_a_bug() {
    let mut pool = Pool::new(1024);
    assert_eq!(pool.allocate(192), Some(0));
    pool.free(64, 64);
    pool.claim(64, 128);
}

/// Ranges that are taken, and by them the longest free run, found without the pool's help.
#[derive(Default)]
struct Ledger {
    end_of: BTreeMap<u64, u64>,
    used: u64,
}

impl Ledger {
    fn add(&mut self, offset: u64, size: u64) {
        let end = offset + size.next_multiple_of(ALIGNMENT);
        let before = self.end_of.range(..offset).next_back();
        assert!(before.is_none_or(|(_, &end)| end <= offset), "overlap at {offset}");
        let after = self.end_of.range(offset..).next();
        assert!(after.is_none_or(|(&start, _)| end <= start), "overlap before {end}");
        self.end_of.insert(offset, end);
        self.used += end - offset;
    }

    fn remove(&mut self, offset: u64) {
        let end = self.end_of.remove(&offset).unwrap();
        self.used -= end - offset;
    }

    fn longest_gap(&self, bytes: u64) -> u64 {
        let (mut longest, mut previous_end) = (0, 0);
        for (&start, &end) in &self.end_of {
            longest = longest.max(start - previous_end);
            previous_end = end;
        }
        longest.max(bytes - previous_end)
    }
}

/// The load under which the original's store called itself full when it was half empty: sizes
/// up to a tenth of the pool, which is to be nine tenths full, freed in no order.
#[test]
fn fragmented_pool_refuses_only_what_fits_nowhere_and_stays_well_filled() {
    const BYTES: u64 = 64 << 20;
    const FILL: u64 = BYTES / 10 * 9;
    const OPERATIONS: u64 = 100_000;
    let mut random = TestRng::from_seed(RngAlgorithm::XorShift, b"plasma pool seed");
    let mut pool = Pool::new(BYTES);
    let mut ledger = Ledger::default();
    let mut taken: Vec<(u64, u64)> = Vec::new();
    let mut sum_of_used = 0;
    for operation in 0..OPERATIONS {
        let size = random.random_range(1024..=BYTES / 10);
        let expected = size.next_multiple_of(ALIGNMENT) <= ledger.longest_gap(BYTES);
        assert_eq!(pool.fits(size), expected, "operation {operation} for {size} bytes");
        let wanted = ledger.used + size <= FILL;
        if wanted && expected {
            let offset = pool.allocate(size).expect("it fits");
            ledger.add(offset, size);
            taken.push((offset, size));
        } else {
            assert!(expected || pool.allocate(size).is_none(), "what does not fit is refused");
            let (offset, size) = taken.swap_remove(random.random_range(0..taken.len()));
            pool.free(offset, size);
            ledger.remove(offset);
        }
        assert_eq!(pool.free_bytes(), BYTES - ledger.used);
        assert_eq!(pool.largest_free_run(), ledger.longest_gap(BYTES));
        pool.check_invariants();
        sum_of_used += ledger.used;
    }
    let percent = sum_of_used / OPERATIONS * 100 / BYTES;
    assert!(percent >= 75, "on average only {percent} % of the pool were in use");
}
