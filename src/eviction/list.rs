//! Lists of slots in the order of use, threaded through one table.
//!
//! Each slot has a [`Node`] of 16 bytes: its two neighbours, the size of its object, and its
//! [`Place`]. A slot is in one list at most. Every operation takes constant time.
//!
//! ```text
//! oldest ⇄ … ⇄ older ⇄ slot ⇄ newer ⇄ … ⇄ newest       a slot joins at the newest end
//! ```
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
use std::collections::BTreeMap;

/// Objects are smaller than this, so the place fits into the word of the size.
const BYTES_BITS: u32 = 62;

/// A link to nowhere. No slot has this number.
const NONE: u32 = u32::MAX;

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
}

/// The ends of a list, and its sums.
#[derive(Debug, Clone, Copy)]
struct List {
    oldest: u32,
    newest: u32,
    bytes: u64,
    objects: usize,
}

#[derive(Debug)]
enum Table {
    Dense(Slab<Node>),
    Sparse(BTreeMap<Slot, Node>),
}

/// What is known of one slot. The links mean something only while it is in a list.
#[derive(Debug, Clone, Copy, Default)]
struct Node {
    older: u32,
    newer: u32,
    /// The bytes of the object, and in the two highest bits the place. A node of zeros is unknown.
    word: u64,
}

const _: () = assert!(size_of::<Node>() == 16, "the memory per slot that `Population` promises");

impl<const N: usize> Lists<N> {
    /// `N` empty lists.
    pub(super) fn new(population: Population) -> Self {
        const { assert!(N <= 2, "a node has two bits for its place") };
        let table = match population {
            Population::Most => Table::Dense(Slab::new()),
            Population::Few => Table::Sparse(BTreeMap::new()),
        };
        Self { table, lists: [List { oldest: NONE, newest: NONE, bytes: 0, objects: 0 }; N] }
    }

    /// Where the slot is.
    pub(super) fn place(&self, slot: Slot) -> Place {
        self.table.get(slot).place()
    }

    /// Whether the slot is in a list.
    pub(super) fn is_listed(&self, slot: Slot) -> bool {
        matches!(self.place(slot), Place::Listed(_))
    }

    /// The list's oldest slot.
    pub(super) fn oldest(&self, list: usize) -> Option<Slot> {
        linked(self.lists[list].oldest)
    }

    /// The next newer slot in the same list.
    pub(super) fn newer(&self, slot: Slot) -> Option<Slot> {
        debug_assert!(self.is_listed(slot));
        linked(self.table.get(slot).newer)
    }

    /// Bytes of all objects in the list.
    pub(super) fn bytes(&self, list: usize) -> u64 {
        self.lists[list].bytes
    }

    /// Number of objects in the list.
    pub(super) fn objects(&self, list: usize) -> usize {
        self.lists[list].objects
    }

    /// Adds a slot that is in no list to the newest end of this one.
    pub(super) fn push(&mut self, list: usize, slot: Slot, bytes: u64) {
        assert!(slot.0 != NONE && bytes < 1 << BYTES_BITS, "{bytes} bytes in slot {}", slot.0);
        let ends = &mut self.lists[list];
        let node = self.table.entry(slot);
        assert!(!matches!(node.place(), Place::Listed(_)), "slot {} is in a list already", slot.0);
        *node = Node::new(Place::Listed(list), bytes, ends.newest);
        match linked(ends.newest) {
            Some(newest) => self.table.known(newest).newer = slot.0,
            None => ends.oldest = slot.0,
        }
        ends.newest = slot.0;
        ends.bytes += bytes;
        ends.objects += 1;
    }

    /// Takes a slot out of its list, remembers it, and returns the bytes of its object.
    pub(super) fn set_aside(&mut self, slot: Slot) -> u64 {
        let node = self.table.known(slot);
        let Place::Listed(list) = node.place() else {
            panic!("slot {} is in no list", slot.0);
        };
        let taken = *node;
        *node = Node::new(Place::Aside, 0, NONE);
        let ends = &mut self.lists[list];
        match linked(taken.older) {
            Some(older) => self.table.known(older).newer = taken.newer,
            None => ends.oldest = taken.newer,
        }
        match linked(taken.newer) {
            Some(newer) => self.table.known(newer).older = taken.older,
            None => ends.newest = taken.older,
        }
        ends.bytes -= taken.bytes();
        ends.objects -= 1;
        taken.bytes()
    }

    /// Moves a slot from its list to the newest end of this one, which may be the same.
    pub(super) fn move_to(&mut self, list: usize, slot: Slot) {
        let bytes = self.set_aside(slot);
        self.push(list, slot, bytes);
    }

    /// Forgets a slot, wherever it is.
    pub(super) fn forget(&mut self, slot: Slot) {
        if self.is_listed(slot) {
            self.set_aside(slot);
        }
        self.table.forget(slot);
    }

    /// Walks all lists and checks what must be true of them.
    pub(super) fn check_invariants(&self) {
        let mut listed = 0;
        for (number, list) in self.lists.iter().enumerate() {
            let (mut previous, mut bytes, mut objects) = (NONE, 0, 0);
            let mut next = linked(list.oldest);
            while let Some(slot) = next {
                let node = self.table.get(slot);
                assert_eq!(node.place(), Place::Listed(number), "a linked slot knows its list");
                assert_eq!(node.older, previous, "the links of neighbours agree");
                previous = slot.0;
                bytes += node.bytes();
                objects += 1;
                assert!(objects <= list.objects, "a list has as many slots as it says");
                next = linked(node.newer);
            }
            assert_eq!(previous, list.newest, "a list ends with its newest slot");
            assert_eq!(objects, list.objects, "a list has as many slots as it says");
            assert_eq!(bytes, list.bytes, "a list has as many bytes as it says");
            listed += objects;
        }
        assert_eq!(self.table.listed(), listed, "a slot whose node names a list is linked there");
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

    /// The node of a slot that is not unknown.
    fn known(&mut self, slot: Slot) -> &mut Node {
        let node = match self {
            Self::Dense(nodes) => nodes.get_mut(slot.index()),
            Self::Sparse(nodes) => nodes.get_mut(&slot),
        };
        node.unwrap_or_else(|| panic!("nothing is known of slot {}", slot.0))
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

    /// Number of slots whose node says that it is in a list.
    fn listed(&self) -> usize {
        let is_listed = |node: &&Node| matches!(node.place(), Place::Listed(_));
        match self {
            Self::Dense(nodes) => nodes.iter().filter(is_listed).count(),
            Self::Sparse(nodes) => nodes.values().filter(is_listed).count(),
        }
    }
}

impl Node {
    /// A node at the newest end of a list.
    const fn new(place: Place, bytes: u64, older: u32) -> Self {
        let tag = match place {
            Place::Unknown => 0,
            Place::Aside => 1,
            Place::Listed(list) => 2 + list as u64,
        };
        Self { older, newer: NONE, word: tag << BYTES_BITS | bytes }
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

/// The slot that a link leads to.
const fn linked(link: u32) -> Option<Slot> {
    if link == NONE { None } else { Some(Slot(link)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_table_takes_memory_for_what_it_knows_only() {
        let mut lists = Lists::<1>::new(Population::Few);
        for round in 0..1000 {
            let slot = Slot(NONE - 1 - round * 1_000_003);
            lists.push(0, slot, 1);
            lists.check_invariants();
            lists.forget(slot);
        }
        let Table::Sparse(nodes) = &lists.table else { panic!("few slots are sparse") };
        assert!(nodes.is_empty(), "{} nodes are left", nodes.len());
    }

    #[test]
    fn dense_table_grows_to_the_highest_slot_that_was_listed() {
        let mut lists = Lists::<1>::new(Population::Most);
        lists.forget(Slot(NONE - 1));
        assert_eq!(lists.place(Slot(NONE - 1)), Place::Unknown);
        lists.push(0, Slot(99), 1);
        let Table::Dense(nodes) = &lists.table else { panic!("most slots are dense") };
        let count = nodes.iter().count();
        assert!((100..10_000).contains(&count), "{count} nodes");
    }

    #[test]
    fn place_and_size_share_a_word_without_meeting() {
        let largest = (1 << BYTES_BITS) - 1;
        for place in [Place::Unknown, Place::Aside, Place::Listed(0), Place::Listed(1)] {
            let node = Node::new(place, largest, 7);
            assert_eq!((node.place(), node.bytes(), node.older), (place, largest, 7));
        }
        assert_eq!(Node::default().place(), Place::Unknown);
    }

    #[test]
    #[should_panic(expected = "slot 3 is in a list already")]
    fn slot_is_in_one_list_at_most() {
        let mut lists = Lists::<2>::new(Population::Most);
        lists.push(0, Slot(3), 1);
        lists.push(1, Slot(3), 1);
    }
}
