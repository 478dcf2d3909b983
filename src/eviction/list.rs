//! Lists of slots in the order of use.
//!
//! Each slot has a [`Node`] of 16 bytes: its place in the order, the size of its object, and which
//! list it is in ([`Place`]). A slot is in one list at most. Every operation takes the logarithm of
//! the number of slots, so a slot can also be put where it belongs by a use that is heard of later.
//!
//! A place in the order is a *tick*, which counts what the store has served, and behind that the
//! order of arrival within the tick.
//!
//! Nodes lie in a slab indexed by slot, which is small and fast when most slots are in use, or in
//! a tree, which does not care how high the numbers of a few slots are. Neither ever moves all that
//! it has at a time. Both tables behave the same.
//!
//! The lists know nothing of policies: how many there are and what they mean is up to the user.

#![forbid(unsafe_code)]

use super::Population;
use crate::ids::Slot;
use crate::slab::Slab;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};

/// Objects are smaller than this, so the place fits into the word of the size.
const BYTES_BITS: u32 = 62;

/// Bits of a key for the order within a tick; those above have the tick, for half a year of a
/// million requests a second.
const ORDER_BITS: u32 = 20;

/// Where a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere. It takes no memory in a sparse table.
    Unknown,
    /// In no list, but remembered.
    Aside,
    /// In the list of this number.
    Listed(usize),
}

/// `N` lists over one set of slots.
#[derive(Debug)]
pub(super) struct Lists<const N: usize> {
    table: Table,
    lists: [List; N],
    /// The last key that was given for a use when it happened.
    latest: u64,
}

/// Slots by their keys, and the sum of their bytes.
#[derive(Debug, Clone, Default)]
struct List {
    order: BTreeSet<(u64, Slot)>,
    bytes: u64,
}

#[derive(Debug)]
enum Table {
    Dense(Slab<Node>),
    Sparse(BTreeMap<Slot, Node>),
}

/// What is known of one slot. The key means something only while it is in a list.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    key: u64,
    /// The bytes of the object, and in the two highest bits the place. A node of zeros is unknown.
    word: u64,
}

const _: () = assert!(size_of::<Node>() == 16, "the memory per slot that `Population` promises");

impl<const N: usize> Lists<N> {
    pub(super) fn new(population: Population) -> Self {
        const { assert!(N <= 2, "a node has two bits for its place") };
        let table = match population {
            Population::Most => Table::Dense(Slab::new()),
            Population::Few => Table::Sparse(BTreeMap::new()),
        };
        Self { table, lists: std::array::from_fn(|_| List::default()), latest: 0 }
    }

    pub(super) fn place(&self, slot: Slot) -> Place {
        self.table.get(slot).place()
    }

    pub(super) fn is_listed(&self, slot: Slot) -> bool {
        matches!(self.place(slot), Place::Listed(_))
    }

    pub(super) fn oldest(&self, list: usize) -> Option<Slot> {
        self.lists[list].order.first().map(|(_, slot)| *slot)
    }

    /// The next newer slot in the same list.
    pub(super) fn newer(&self, slot: Slot) -> Option<Slot> {
        let (list, node) = self.listed(slot);
        let newer = (Excluded((node.key, slot)), Unbounded);
        self.lists[list].order.range(newer).next().map(|(_, slot)| *slot)
    }

    /// The tick at which the slot in a list was used last, as far as is known.
    pub(super) fn placed_at(&self, slot: Slot) -> u64 {
        self.listed(slot).1.key >> ORDER_BITS
    }

    /// The list that the slot is in, and its node.
    fn listed(&self, slot: Slot) -> (usize, Node) {
        let node = self.table.get(slot);
        let Place::Listed(list) = node.place() else { panic!("slot {} is in no list", slot.0) };
        (list, node)
    }

    pub(super) fn bytes(&self, list: usize) -> u64 {
        self.lists[list].bytes
    }

    pub(super) fn objects(&self, list: usize) -> usize {
        self.lists[list].order.len()
    }

    /// Adds a slot that is in no list to the newest end of this one: it is used now.
    pub(super) fn push(&mut self, list: usize, slot: Slot, bytes: u64, now: u64) {
        self.latest = (now << ORDER_BITS).max(self.latest + 1);
        self.insert(list, slot, bytes, self.latest);
    }

    fn insert(&mut self, list: usize, slot: Slot, bytes: u64, key: u64) {
        assert!(bytes < 1 << BYTES_BITS, "{bytes} bytes in slot {}", slot.0);
        let node = self.table.entry(slot);
        assert!(!matches!(node.place(), Place::Listed(_)), "slot {} is in a list already", slot.0);
        *node = Node::new(Place::Listed(list), bytes, key);
        self.lists[list].order.insert((key, slot));
        self.lists[list].bytes += bytes;
    }

    /// Takes a slot out of its list, remembers it, and returns the bytes of its object.
    pub(super) fn set_aside(&mut self, slot: Slot) -> u64 {
        let (list, node) = self.listed(slot);
        *self.table.entry(slot) = Node::new(Place::Aside, 0, 0);
        self.lists[list].order.remove(&(node.key, slot));
        self.lists[list].bytes -= node.bytes();
        node.bytes()
    }

    /// Moves a slot from its list to the newest end of this one, which may be the same.
    pub(super) fn move_to(&mut self, list: usize, slot: Slot, now: u64) {
        let bytes = self.set_aside(slot);
        self.push(list, slot, bytes, now);
    }

    /// Moves a slot from its list to where it belongs in this one, having been used at this tick:
    /// behind all that were used then.
    pub(super) fn move_behind(&mut self, list: usize, slot: Slot, tick: u64) {
        let bytes = self.set_aside(slot);
        self.insert(list, slot, bytes, (tick << ORDER_BITS) | ((1 << ORDER_BITS) - 1));
    }

    /// Forgets a slot, wherever it is.
    pub(super) fn forget(&mut self, slot: Slot) {
        if self.is_listed(slot) {
            self.set_aside(slot);
        }
        self.table.forget(slot);
    }

    pub(super) fn check_invariants(&self) {
        let mut listed = 0;
        for (number, list) in self.lists.iter().enumerate() {
            let mut bytes = 0;
            for (key, slot) in &list.order {
                let node = self.table.get(*slot);
                assert_eq!(node.place(), Place::Listed(number), "a listed slot knows its list");
                assert_eq!(node.key, *key, "and its place there");
                bytes += node.bytes();
            }
            assert_eq!(bytes, list.bytes, "a list has as many bytes as it says");
            listed += list.order.len();
        }
        assert_eq!(self.table.listed(), listed, "a slot whose node names a list is in it");
    }
}

impl Table {
    /// The node of any slot.
    fn get(&self, slot: Slot) -> Node {
        let node = match self {
            Self::Dense(nodes) => nodes.get(slot.index()),
            Self::Sparse(nodes) => nodes.get(&slot),
        };
        node.copied().unwrap_or_default()
    }

    /// The node of any slot, made if need be.
    fn entry(&mut self, slot: Slot) -> &mut Node {
        match self {
            Self::Dense(nodes) => nodes.entry(slot.index()),
            Self::Sparse(nodes) => nodes.entry(slot).or_default(),
        }
    }

    fn forget(&mut self, slot: Slot) {
        match self {
            Self::Dense(nodes) => {
                if let Some(node) = nodes.get_mut(slot.index()) {
                    *node = Node::default();
                }
            }
            Self::Sparse(nodes) => {
                nodes.remove(&slot);
            }
        }
    }

    fn listed(&self) -> usize {
        let is_listed = |node: &&Node| matches!(node.place(), Place::Listed(_));
        match self {
            Self::Dense(nodes) => nodes.iter().filter(is_listed).count(),
            Self::Sparse(nodes) => nodes.values().filter(is_listed).count(),
        }
    }
}

impl Node {
    const fn new(place: Place, bytes: u64, key: u64) -> Self {
        let tag = match place {
            Place::Unknown => 0,
            Place::Aside => 1,
            Place::Listed(list) => 2 + list as u64,
        };
        Self { key, word: tag << BYTES_BITS | bytes }
    }

    const fn place(self) -> Place {
        match self.word >> BYTES_BITS {
            0 => Place::Unknown,
            1 => Place::Aside,
            2 => Place::Listed(0),
            _ => Place::Listed(1),
        }
    }

    const fn bytes(self) -> u64 {
        self.word & ((1 << BYTES_BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGHEST: u32 = u32::MAX;

    #[test]
    fn sparse_table_takes_memory_for_what_it_knows_only() {
        let mut lists = Lists::<1>::new(Population::Few);
        for round in 0..1000 {
            let slot = Slot(HIGHEST - 1 - round * 1_000_003);
            lists.push(0, slot, 1, 0);
            lists.check_invariants();
            lists.forget(slot);
        }
        let Table::Sparse(nodes) = &lists.table else { panic!("few slots are sparse") };
        assert!(nodes.is_empty(), "{} nodes are left", nodes.len());
    }

    #[test]
    fn dense_table_grows_to_the_highest_slot_that_was_listed() {
        let mut lists = Lists::<1>::new(Population::Most);
        lists.forget(Slot(HIGHEST - 1));
        assert_eq!(lists.place(Slot(HIGHEST - 1)), Place::Unknown);
        lists.push(0, Slot(99), 1, 0);
        let Table::Dense(nodes) = &lists.table else { panic!("most slots are dense") };
        let count = nodes.iter().count();
        assert!((100..10_000).contains(&count), "{count} nodes");
    }

    #[test]
    fn place_and_size_share_a_word_without_meeting() {
        let largest = (1 << BYTES_BITS) - 1;
        for place in [Place::Unknown, Place::Aside, Place::Listed(0), Place::Listed(1)] {
            let node = Node::new(place, largest, 7);
            assert_eq!((node.place(), node.bytes(), node.key), (place, largest, 7));
        }
        assert_eq!(Node::default().place(), Place::Unknown);
    }

    #[test]
    #[should_panic(expected = "slot 3 is in a list already")]
    fn slot_is_in_one_list_at_most() {
        let mut lists = Lists::<2>::new(Population::Most);
        lists.push(0, Slot(3), 1, 0);
        lists.push(1, Slot(3), 1, 0);
    }

    #[test]
    fn a_use_that_is_heard_of_later_has_its_place_behind_those_of_its_tick() {
        let mut lists = Lists::<1>::new(Population::Most);
        for (slot, tick) in [(0, 1), (1, 5), (2, 5), (3, 6)] {
            lists.push(0, Slot(slot), 1, tick);
        }
        lists.move_behind(0, Slot(0), 5);
        lists.check_invariants();
        let first = lists.oldest(0).unwrap();
        let order: Vec<Slot> =
            std::iter::successors(Some(first), |slot| lists.newer(*slot)).collect();
        assert_eq!(order, [1, 2, 0, 3].map(Slot));
        assert_eq!([0, 1, 3].map(|slot| lists.placed_at(Slot(slot))), [5, 5, 6]);
    }
}
