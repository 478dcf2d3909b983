//! Which object goes first when room is needed.
//!
//! The store tells a policy what happens to objects: the last user let go of one, somebody uses it
//! again, it is gone. Only idle objects can be evicted; the policy keeps them in the order in which
//! they should go, and the store walks that order and decides itself how far.
//!
//! A store has one policy for most of its objects and one for each client with a quota, so an
//! object is idle in one of them at most. A policy sees slots, sizes and *ticks*, which count what
//! the store has served. It knows no ids, no clients, no memory and no clock, and never frees
//! anything.
//!
//! Of some uses the store hears only when it looks for what to evict: then it says when they
//! happened. [`EvictionPolicy`] has a function for each of these.
//!
//! To add a policy, write its file and name it in [`PolicyKind`]; the conformance suite then does
//! not compile until it covers the new one.

#![forbid(unsafe_code)]

#[cfg(test)]
mod conformance;
mod list;
mod lru;
mod segmented;

use crate::ids::Slot;
use std::fmt;
use std::str::FromStr;

/// The order in which idle objects are to be evicted.
///
/// An event that cannot have happened (an idle object becomes idle) is a bug of the store and a
/// panic. The same events always lead to the same order.
pub trait EvictionPolicy: fmt::Debug + Send {
    /// Nobody uses the object in this slot any more. It is the most recently used idle object now;
    /// where that places it in the order is the policy's business.
    ///
    /// # Panics
    /// If it was idle already, or has 2⁶² bytes or more.
    fn became_idle(&mut self, slot: Slot, bytes: u64, now: u64);

    /// Somebody uses this object again. It cannot be evicted until it becomes idle once more.
    ///
    /// # Panics
    /// If it was not idle.
    fn became_busy(&mut self, slot: Slot);

    /// The object is gone and everything about it is forgotten: whatever comes into this slot is
    /// new. The object may be idle, busy, or one that this policy never heard of.
    fn removed(&mut self, slot: Slot);

    /// Makes an idle object the most recently used one, as if it had been busy and idle again. The
    /// others stay in order. Returns false and does nothing if it is not idle here.
    fn touch(&mut self, slot: Slot, now: u64) -> bool;

    /// An idle object was used at this tick, which is over: it gets the place that it would have
    /// if that had been known then, as far as the policy can tell. The others stay in order.
    ///
    /// # Panics
    /// If it is not idle.
    fn was_used(&mut self, slot: Slot, tick: u64);

    /// The tick of the last use of an idle object, as far as is known here.
    fn placed_at(&self, slot: Slot) -> u64;

    /// Whether this object is idle here.
    fn is_idle(&self, slot: Slot) -> bool;

    /// The idle object to evict first.
    fn first(&self) -> Option<Slot>;

    /// The idle object to evict after that in `slot`. From [`first`](Self::first) on this gives
    /// every idle object once. Removing an object, or making it busy, does not change the order of
    /// the others, so the walk may go on from a successor asked for before.
    ///
    /// # Panics
    /// If the object in `slot` is not idle.
    fn next(&self, slot: Slot) -> Option<Slot>;

    /// Bytes of all idle objects: what evicting every one of them would free.
    fn idle_bytes(&self) -> u64;

    /// Number of idle objects.
    fn idle_objects(&self) -> usize;

    /// Walks everything the policy holds and checks what must be true of it. O(n), for tests and
    /// simulation.
    ///
    /// # Panics
    /// If any of it is not.
    fn check_invariants(&self);
}

/// A policy by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PolicyKind {
    /// `lru`: least recently used first.
    #[default]
    Lru,
    /// `slru`: segmented, those used once before those used again.
    Segmented,
}

/// How much of the store a policy will hear of. This decides how it keeps its books, not what order
/// it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Population {
    /// Most objects. Costs 16 bytes for each slot up to the highest one that was idle, and about
    /// 30 for each idle object.
    Most,
    /// A few of them, in slots anywhere: the objects of one client. Costs about 60 to 90 bytes for
    /// each object, wherever it is, and about twice the time.
    Few,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lru, Self::Segmented];

    /// A new policy of this kind that knows no objects.
    #[must_use]
    pub fn build(self, population: Population) -> Box<dyn EvictionPolicy> {
        match self {
            Self::Lru => Box::new(lru::Lru::new(population)),
            Self::Segmented => Box::new(segmented::Segmented::new(population)),
        }
    }

    /// The name that a user types.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Segmented => "slru",
        }
    }

    /// What the policy does, in the words of `--help`.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Lru => "evict what was released longest ago",
            Self::Segmented => {
                "as lru, but evict objects used once before those used again, \
                 so that a scan through many objects does not empty the store"
            }
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

/// There is no eviction policy of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no eviction policy {0:?}, choose one of: {names}",
    names = PolicyKind::ALL.map(PolicyKind::name).join(", ")
)]
pub struct UnknownPolicy(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_its_name() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "LRU".parse::<PolicyKind>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no eviction policy \"LRU\", choose one of: lru, slru"
        );
    }

    /// Ten objects are used again while a hundred others are used once each, with room for
    /// twenty. Returns how many of the ten are left.
    fn survivors_of_a_scan(kind: PolicyKind) -> usize {
        let mut policy = kind.build(Population::Most);
        let working_set = || (0..10).map(Slot);
        for slot in working_set() {
            policy.became_idle(slot, 1, 0);
        }
        for slot in (10..110).map(Slot) {
            if policy.idle_objects() == 20 {
                let victim = policy.first().expect("twenty objects are idle");
                policy.removed(victim);
            }
            policy.became_idle(slot, 1, 0);
            if slot.index() == 15 {
                for slot in working_set() {
                    policy.became_busy(slot);
                    policy.became_idle(slot, 1, 0);
                }
            }
        }
        working_set().filter(|&slot| policy.is_idle(slot)).count()
    }

    #[test]
    fn segmented_keeps_through_a_scan_what_lru_loses() {
        assert_eq!(survivors_of_a_scan(PolicyKind::Lru), 0);
        assert_eq!(survivors_of_a_scan(PolicyKind::Segmented), 10);
    }
}
