//! What every policy has to do, as tests against the trait alone.
//!
//! Each check takes a function that builds an empty policy; a macro at the end turns all of them
//! into tests, once for each [`PolicyKind`] and [`Population`]. The checks say nothing about which
//! of two objects goes first unless the trait does; that is for the tests of the policy.

#![forbid(unsafe_code)]

use super::{EvictionPolicy, PolicyKind, Population};
use crate::ids::Slot;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Build = fn() -> Box<dyn EvictionPolicy>;

/// Something that happens to an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// Becomes idle with so many bytes.
    Release(Slot, u64),
    /// Becomes busy.
    Use(Slot),
    Touch(Slot),
    Remove(Slot),
}

impl Step {
    pub(super) const fn slot(self) -> Slot {
        match self {
            Self::Release(slot, _) | Self::Use(slot) | Self::Touch(slot) | Self::Remove(slot) => {
                slot
            }
        }
    }
}

/// The slots of [`steps`]: few, so that each is met often, and not side by side.
fn all_slots() -> impl Iterator<Item = Slot> {
    (0..12).map(|number| Slot(number * 7))
}

/// A history of a few objects. Not every step is possible when its turn comes.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = || prop::sample::select(all_slots().collect::<Vec<_>>());
    let bytes = prop_oneof![1 => Just(0), 4 => 1..=10_u64, 1 => Just(1 << 50)];
    let step = prop_oneof![
        5 => (slot(), bytes).prop_map(|(slot, bytes)| Step::Release(slot, bytes)),
        4 => slot().prop_map(Step::Use),
        2 => slot().prop_map(Step::Touch),
        1 => slot().prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..150)
}

/// Lets the step happen if it can, and says whether it did.
pub(super) fn apply(policy: &mut dyn EvictionPolicy, step: Step) -> bool {
    let was_idle = policy.is_idle(step.slot());
    match step {
        Step::Release(..) if was_idle => return false,
        Step::Use(_) if !was_idle => return false,
        Step::Release(slot, bytes) => policy.became_idle(slot, bytes, 0),
        Step::Use(slot) => policy.became_busy(slot),
        Step::Touch(slot) => assert_eq!(policy.touch(slot, 0), was_idle, "touch says what it did"),
        Step::Remove(slot) => policy.removed(slot),
    }
    policy.check_invariants();
    true
}

/// All idle objects in the order of eviction.
pub(super) fn order(policy: &dyn EvictionPolicy) -> Vec<Slot> {
    let walk = std::iter::successors(policy.first(), |&slot| policy.next(slot));
    let order: Vec<Slot> = walk.take(policy.idle_objects() + 1).collect();
    assert_eq!(order.len(), policy.idle_objects(), "the walk ends after the last idle object");
    order
}

pub(super) fn slots(numbers: impl IntoIterator<Item = u32>) -> Vec<Slot> {
    numbers.into_iter().map(Slot).collect()
}

fn empty_policy_has_nothing_to_evict(build: Build) {
    let mut policy = build();
    policy.check_invariants();
    policy.removed(Slot(5));
    assert!(!policy.touch(Slot(5), 0) && !policy.is_idle(Slot(5)));
    assert_eq!((policy.first(), policy.idle_bytes(), policy.idle_objects()), (None, 0, 0));
}

fn idle_set_and_sums_are_exact(build: Build) {
    proptest!(|(steps in steps())| {
        let mut policy = build();
        let mut idle: BTreeMap<Slot, u64> = BTreeMap::new();
        for step in steps {
            if !apply(&mut *policy, step) {
                continue;
            }
            match step {
                Step::Release(slot, bytes) => drop(idle.insert(slot, bytes)),
                Step::Use(slot) | Step::Remove(slot) => drop(idle.remove(&slot)),
                Step::Touch(_) => {}
            }
            let order = order(&*policy);
            prop_assert!(order.iter().collect::<BTreeSet<_>>().into_iter().eq(idle.keys()));
            prop_assert!(all_slots().all(|slot| policy.is_idle(slot) == idle.contains_key(&slot)));
            prop_assert_eq!(policy.idle_objects(), idle.len());
            prop_assert_eq!(policy.idle_bytes(), idle.values().sum::<u64>());
        }
    });
}

fn objects_used_once_go_in_the_order_of_release(build: Build) {
    let mut policy = build();
    let released = slots([30, 10, 20, 0, 40]);
    for &slot in &released {
        policy.became_idle(slot, 100, 0);
    }
    assert_eq!(order(&*policy), released);
    policy.became_busy(Slot(20));
    policy.removed(Slot(30));
    assert_eq!(order(&*policy), slots([10, 0, 40]));
}

fn removed_object_is_forgotten(build: Build) {
    proptest!(|(first_life in steps(), second_life in steps())| {
        let (mut used, mut fresh) = (build(), build());
        for step in first_life {
            apply(&mut *used, step);
        }
        for slot in all_slots() {
            used.removed(slot);
        }
        for step in second_life {
            prop_assert_eq!(apply(&mut *used, step), apply(&mut *fresh, step));
            prop_assert_eq!(order(&*used), order(&*fresh));
        }
    });
}

fn touch_moves_towards_the_safe_end(build: Build) {
    proptest!(|(steps in steps(), pick in any::<prop::sample::Index>())| {
        let mut policy = build();
        for step in steps {
            apply(&mut *policy, step);
        }
        let before = order(&*policy);
        prop_assume!(!before.is_empty());
        let position = pick.index(before.len());
        let slot = before[position];
        prop_assert!(policy.touch(slot, 0));
        policy.check_invariants();
        let after = order(&*policy);
        let place = after.iter().position(|&other| other == slot).expect("it is still idle");
        prop_assert!(place >= position);
        let without = |order: &[Slot]| -> Vec<Slot> {
            order.iter().copied().filter(|&other| other != slot).collect()
        };
        prop_assert_eq!(without(&before), without(&after), "the others stay as they were");
        prop_assert!(place > 0 || after.len() == 1, "the last one used is not the first to go");
    });
}

fn a_use_heard_of_later_moves_towards_the_safe_end(build: Build) {
    for (used, tick) in [(0, 3), (2, 4), (5, 6), (0, 20)] {
        let mut policy = build();
        for number in 0..6 {
            policy.became_idle(Slot(number), 10, u64::from(number) + 1);
        }
        let before = order(&*policy);
        policy.was_used(Slot(used), tick);
        policy.check_invariants();
        let after = order(&*policy);
        let place = |order: &[Slot]| order.iter().position(|&other| other == Slot(used));
        assert!(place(&after) >= place(&before), "{used} at {tick}: {after:?}");
        let behind = after.iter().skip_while(|&&other| other != Slot(used)).skip(1);
        assert!(behind.into_iter().all(|other| u64::from(other.0) + 1 > tick), "{after:?}");
        let without = |order: &[Slot]| -> Vec<Slot> {
            order.iter().copied().filter(|&other| other != Slot(used)).collect()
        };
        assert_eq!(without(&before), without(&after), "the others stay as they were");
    }
}

/// The store evicts while it walks, and passes over what it finds in use.
fn walk_goes_on_while_objects_leave(build: Build) {
    proptest!(|(steps in steps(), fates in prop::collection::vec(0..3, 12))| {
        let mut policy = build();
        for step in steps {
            apply(&mut *policy, step);
        }
        let expected = order(&*policy);
        let mut walked = Vec::new();
        let mut current = policy.first();
        while let Some(slot) = current {
            current = policy.next(slot);
            match fates[walked.len()] {
                0 => policy.removed(slot),
                1 => policy.became_busy(slot),
                _ => {}
            }
            policy.check_invariants();
            walked.push(slot);
        }
        prop_assert_eq!(walked, expected);
    });
}

fn becoming_idle_twice_is_a_bug(build: Build) {
    let mut policy = build();
    policy.became_idle(Slot(1), 1, 0);
    policy.became_idle(Slot(1), 1, 0);
}

fn becoming_busy_without_having_been_idle_is_a_bug(build: Build) {
    let mut policy = build();
    policy.became_idle(Slot(1), 1, 0);
    policy.became_busy(Slot(1));
    policy.became_busy(Slot(1));
}

fn asking_what_comes_after_a_busy_object_is_a_bug(build: Build) {
    let mut policy = build();
    policy.became_idle(Slot(0), 1, 0);
    policy.became_idle(Slot(1), 1, 0);
    policy.became_busy(Slot(0));
    policy.next(Slot(0));
}

/// The tests for one way to build a policy.
macro_rules! suite {
    ($name:ident, $kind:expr, $population:expr) => {
        mod $name {
            use super::*;

            fn build() -> Box<dyn EvictionPolicy> {
                $kind.build($population)
            }

            suite!(@test empty_policy_has_nothing_to_evict);
            suite!(@test idle_set_and_sums_are_exact);
            suite!(@test objects_used_once_go_in_the_order_of_release);
            suite!(@test removed_object_is_forgotten);
            suite!(@test touch_moves_towards_the_safe_end);
            suite!(@test a_use_heard_of_later_moves_towards_the_safe_end);
            suite!(@test walk_goes_on_while_objects_leave);
            suite!(@test becoming_idle_twice_is_a_bug, "slot 1 is in a list already");
            suite!(@test becoming_busy_without_having_been_idle_is_a_bug, "slot 1");
            suite!(@test asking_what_comes_after_a_busy_object_is_a_bug, "slot 0 is not idle");
        }
    };
    (@test $check:ident $(, $panic:literal)?) => {
        #[test]
        $(#[should_panic(expected = $panic)])?
        fn $check() {
            super::$check(build);
        }
    };
}

/// The suite for each kind. The match makes it an error to leave one out.
macro_rules! conformance {
    ($($name:ident => $kind:ident),+ $(,)?) => {
        $(
            mod $name {
                use super::*;
                suite!(most, PolicyKind::$kind, Population::Most);
                suite!(few, PolicyKind::$kind, Population::Few);
            }
        )+

        const _: fn(PolicyKind) = |kind| match kind {
            $(PolicyKind::$kind => (),)+
        };
    };
}

conformance! {
    lru => Lru,
    segmented => Segmented,
}

#[test]
fn population_does_not_change_the_order() {
    for kind in PolicyKind::ALL {
        proptest!(|(steps in steps())| {
            let mut most = kind.build(Population::Most);
            let mut few = kind.build(Population::Few);
            for step in steps {
                prop_assert_eq!(apply(&mut *most, step), apply(&mut *few, step));
                prop_assert_eq!(order(&*most), order(&*few));
            }
        });
    }
}
