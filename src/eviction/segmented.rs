//! Segmented LRU: objects that were used once go before those that were used again.
//!
//! ```text
//! evicted first                                                      evicted last
//! │ probation: oldest … newest │ protected, at most 80 %: oldest … newest │
//!        ▲ first time idle  ▲──── what is over 80 % ────┘      ▲ idle again, or touched
//! ```
//!
//! A scan, which reads many objects once, only passes through probation; plain LRU would evict
//! everything else for it. The protected list may have 80 % of the idle bytes, so that new objects
//! have time to prove themselves. When it has more, its oldest objects return to the newest end of
//! probation. That moves the boundary and leaves the order of eviction as it is.
//!
//! While an object is busy the policy remembers that it knows it, until it is removed. An operation
//! may move several objects over the boundary, but each of them
//! came the other way by an operation of its own.

#![forbid(unsafe_code)]

use super::list::{Lists, Place};
use super::{EvictionPolicy, Population};
use crate::ids::Slot;

/// The list of objects that became idle once.
const PROBATION: usize = 0;

/// The list of objects that were used again.
const PROTECTED: usize = 1;

/// Most of the idle bytes that may be protected, in percent.
const PROTECTED_PERCENT: u128 = 80;

#[derive(Debug)]
pub(super) struct Segmented {
    lists: Lists<2>,
}

impl Segmented {
    pub(super) fn new(population: Population) -> Self {
        Self { lists: Lists::new(population) }
    }

    /// Moves the boundary until no more is protected than may be.
    fn restore_share(&mut self) {
        while self.is_share_exceeded() {
            let oldest = self.lists.oldest(PROTECTED).expect("protected bytes are of some object");
            self.lists.move_to(PROBATION, oldest, 0);
        }
    }

    fn is_share_exceeded(&self) -> bool {
        let protected = u128::from(self.lists.bytes(PROTECTED));
        protected * 100 > u128::from(self.idle_bytes()) * PROTECTED_PERCENT
    }
}

impl EvictionPolicy for Segmented {
    fn became_idle(&mut self, slot: Slot, bytes: u64, now: u64) {
        let is_known = self.lists.place(slot) == Place::Aside;
        self.lists.push(if is_known { PROTECTED } else { PROBATION }, slot, bytes, now);
        self.restore_share();
    }

    fn became_busy(&mut self, slot: Slot) {
        self.lists.set_aside(slot);
        self.restore_share();
    }

    fn removed(&mut self, slot: Slot) {
        self.lists.forget(slot);
        self.restore_share();
    }

    fn touch(&mut self, slot: Slot, now: u64) -> bool {
        let is_idle = self.is_idle(slot);
        if is_idle {
            self.lists.move_to(PROTECTED, slot, now);
            self.restore_share();
        }
        is_idle
    }

    fn was_used(&mut self, slot: Slot, tick: u64) {
        self.lists.move_behind(PROTECTED, slot, tick);
        self.restore_share();
    }

    fn placed_at(&self, slot: Slot) -> u64 {
        self.lists.placed_at(slot)
    }

    fn is_idle(&self, slot: Slot) -> bool {
        self.lists.is_listed(slot)
    }

    fn first(&self) -> Option<Slot> {
        self.lists.oldest(PROBATION).or_else(|| self.lists.oldest(PROTECTED))
    }

    fn next(&self, slot: Slot) -> Option<Slot> {
        assert!(self.is_idle(slot), "slot {} is not idle and nothing comes after it", slot.0);
        let newer = self.lists.newer(slot);
        match self.lists.place(slot) {
            Place::Listed(PROBATION) => newer.or_else(|| self.lists.oldest(PROTECTED)),
            _ => newer,
        }
    }

    fn idle_bytes(&self) -> u64 {
        self.lists.bytes(PROBATION) + self.lists.bytes(PROTECTED)
    }

    fn idle_objects(&self) -> usize {
        self.lists.objects(PROBATION) + self.lists.objects(PROTECTED)
    }

    fn check_invariants(&self) {
        self.lists.check_invariants();
        assert!(
            !self.is_share_exceeded(),
            "at most {PROTECTED_PERCENT} % of the idle bytes are protected"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Step, apply, order, slots, steps};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn released(numbers: impl IntoIterator<Item = u32>) -> Segmented {
        let mut policy = Segmented::new(Population::Most);
        for slot in slots(numbers) {
            policy.became_idle(slot, 1, 0);
        }
        policy
    }

    fn use_again(policy: &mut Segmented, number: u32) {
        policy.became_busy(Slot(number));
        policy.became_idle(Slot(number), 1, 0);
    }

    #[test]
    fn objects_used_again_go_after_those_used_once() {
        let mut policy = released(0..6);
        use_again(&mut policy, 1);
        assert!(policy.touch(Slot(0), 0));
        assert_eq!(order(&policy), slots([2, 3, 4, 5, 1, 0]));
        policy.became_idle(Slot(6), 1, 0);
        assert_eq!(order(&policy), slots([2, 3, 4, 5, 6, 1, 0]));
    }

    #[test]
    fn a_fifth_of_the_idle_bytes_stays_on_probation() {
        let mut policy = released(0..10);
        for number in 0..10 {
            use_again(&mut policy, number);
        }
        assert_eq!((policy.lists.objects(PROBATION), policy.lists.objects(PROTECTED)), (2, 8));
        assert_eq!(order(&policy), slots(0..10));
        policy.became_idle(Slot(10), 1, 0);
        assert_eq!(order(&policy), slots([0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]));
    }

    #[test]
    fn lone_object_is_never_protected() {
        let mut policy = released([0]);
        for _ in 0..3 {
            use_again(&mut policy, 0);
            assert_eq!(policy.lists.place(Slot(0)), Place::Listed(PROBATION));
        }
    }

    #[test]
    fn removed_busy_object_leaves_no_merit_to_the_next_in_its_slot() {
        let mut policy = released([0, 1]);
        policy.became_busy(Slot(0));
        policy.removed(Slot(0));
        policy.became_idle(Slot(2), 8, 0);
        policy.became_idle(Slot(0), 1, 0);
        assert_eq!(policy.lists.place(Slot(0)), Place::Listed(PROBATION));
        assert_eq!(order(&policy), slots([1, 2, 0]));
    }

    #[test]
    fn scan_passes_through_probation_and_leaves_the_protected_alone() {
        let mut policy = released(0..100);
        for number in 0..60 {
            use_again(&mut policy, number);
        }
        for scanned in 100..10_000 {
            let victim = policy.first().expect("a hundred objects are idle");
            policy.removed(victim);
            policy.became_idle(Slot(scanned), 1, 0);
        }
        assert_eq!(order(&policy)[40..], slots(0..60));
    }

    /// The policy the slow way: two vectors of slot and size, oldest first, and the slots it knows.
    #[derive(Default)]
    struct Model {
        probation: Vec<(Slot, u64)>,
        protected: Vec<(Slot, u64)>,
        known: BTreeSet<Slot>,
    }

    impl Model {
        fn apply(&mut self, step: Step) {
            let slot = step.slot();
            let bytes = self.order().find(|&(other, _)| other == slot).map(|(_, bytes)| bytes);
            self.probation.retain(|&(other, _)| other != slot);
            self.protected.retain(|&(other, _)| other != slot);
            match step {
                Step::Release(_, bytes) if self.known.insert(slot) => {
                    self.probation.push((slot, bytes));
                }
                Step::Release(_, bytes) => self.protected.push((slot, bytes)),
                Step::Touch(_) => self.protected.extend(bytes.map(|bytes| (slot, bytes))),
                Step::Remove(_) => {
                    self.known.remove(&slot);
                }
                Step::Use(_) => {}
            }
            let all: u64 = self.order().map(|(_, bytes)| bytes).sum();
            while self.protected.iter().map(|&(_, bytes)| bytes).sum::<u64>() * 5 > all * 4 {
                self.probation.push(self.protected.remove(0));
            }
        }

        fn order(&self) -> impl Iterator<Item = (Slot, u64)> {
            self.probation.iter().chain(&self.protected).copied()
        }
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_model(steps in steps()) {
            let mut policy = Segmented::new(Population::Few);
            let mut model = Model::default();
            for step in steps {
                if apply(&mut policy, step) {
                    model.apply(step);
                }
                let expected: Vec<_> = model.order().map(|(slot, _)| slot).collect();
                prop_assert_eq!(order(&policy), expected);
            }
        }
    }
}
