//! Least recently used first: one list, in the order of the last release.
//!
//! An object joins at the safe end when its last user lets go of it, and leaves when somebody uses
//! it again or it is gone. What is busy is not remembered. A use that
//! is heard of later gives it the place that it would have had.

#![forbid(unsafe_code)]

use super::list::Lists;
use super::{EvictionPolicy, Population};
use crate::ids::Slot;

const IDLE: usize = 0;

#[derive(Debug)]
pub(super) struct Lru {
    lists: Lists<1>,
}

impl Lru {
    pub(super) fn new(population: Population) -> Self {
        Self { lists: Lists::new(population) }
    }
}

impl EvictionPolicy for Lru {
    fn became_idle(&mut self, slot: Slot, bytes: u64, now: u64) {
        self.lists.push(IDLE, slot, bytes, now);
    }

    fn became_busy(&mut self, slot: Slot) {
        assert!(self.is_idle(slot), "slot {} becomes busy and was not idle", slot.0);
        self.lists.forget(slot);
    }

    fn removed(&mut self, slot: Slot) {
        self.lists.forget(slot);
    }

    fn touch(&mut self, slot: Slot, now: u64) -> bool {
        let is_idle = self.is_idle(slot);
        if is_idle {
            self.lists.move_to(IDLE, slot, now);
        }
        is_idle
    }

    fn was_used(&mut self, slot: Slot, tick: u64) {
        self.lists.move_behind(IDLE, slot, tick);
    }

    fn placed_at(&self, slot: Slot) -> u64 {
        self.lists.placed_at(slot)
    }

    fn is_idle(&self, slot: Slot) -> bool {
        self.lists.is_listed(slot)
    }

    fn first(&self) -> Option<Slot> {
        self.lists.oldest(IDLE)
    }

    fn next(&self, slot: Slot) -> Option<Slot> {
        assert!(self.is_idle(slot), "slot {} is not idle and nothing comes after it", slot.0);
        self.lists.newer(slot)
    }

    fn idle_bytes(&self) -> u64 {
        self.lists.bytes(IDLE)
    }

    fn idle_objects(&self) -> usize {
        self.lists.objects(IDLE)
    }

    fn check_invariants(&self) {
        self.lists.check_invariants();
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Step, apply, order, slots, steps};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_that_of_the_last_release() {
        let mut policy = Lru::new(Population::Most);
        for slot in slots([2, 0, 1]) {
            policy.became_idle(slot, 1, 0);
        }
        assert_eq!(order(&policy), slots([2, 0, 1]));
        policy.became_busy(Slot(0));
        policy.became_busy(Slot(2));
        policy.became_idle(Slot(2), 1, 0);
        policy.became_idle(Slot(0), 1, 0);
        assert_eq!(order(&policy), slots([1, 2, 0]));
    }

    #[test]
    fn refreshing_the_two_oldest_of_four_makes_them_the_newest() {
        let mut policy = Lru::new(Population::Most);
        for slot in slots([0, 1, 2, 3]) {
            policy.became_idle(slot, 1, 0);
        }
        assert!(policy.touch(Slot(0), 0) && policy.touch(Slot(1), 0));
        assert_eq!(order(&policy), slots([2, 3, 0, 1]));
    }

    proptest! {
        #[test]
        fn order_is_that_of_a_plain_vector(steps in steps()) {
            let mut policy = Lru::new(Population::Few);
            let mut expected: Vec<Slot> = Vec::new();
            for step in steps {
                if !apply(&mut policy, step) {
                    continue;
                }
                let slot = step.slot();
                let was_idle = expected.contains(&slot);
                expected.retain(|&other| other != slot);
                if matches!(step, Step::Release(..)) || matches!(step, Step::Touch(_) if was_idle) {
                    expected.push(slot);
                }
                prop_assert_eq!(order(&policy), expected.clone());
            }
        }
    }
}
