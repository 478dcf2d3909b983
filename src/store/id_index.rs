//! From ids to slots, in many small hash tables instead of a large one.
//!
//! A hash table that is full moves everything it has to a larger one. With a million entries that
//! takes tens of milliseconds, for which everybody would wait. Here a part of the hash chooses one
//! of many tables, and only that one grows at a time. An entry keeps some of the hash, so growing
//! and most comparisons touch no object. What is in a slot is not known here.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::ids::{ObjectId, Slot};

/// Number of tables, a power of two. With a million objects each has about a thousand of them,
/// which are moved in about ten microseconds.
const TABLES: usize = 1024;

/// A slot, and the low half of the hash of the id in it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: Slot,
    hash: u32,
}

/// The slots of all objects, by id.
#[derive(Debug)]
pub struct IdIndex {
    tables: Box<[HashTable<Entry>]>,
    len: usize,
    // Seeded at random against crafted ids. The index is never iterated, so this does not show.
    hasher: RandomState,
}

impl Default for IdIndex {
    fn default() -> Self {
        let tables = std::iter::repeat_with(HashTable::new).take(TABLES).collect();
        Self { tables, len: 0, hasher: RandomState::default() }
    }
}

impl IdIndex {
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The slot of this id; `has_id` tells whether the id is that of a slot.
    pub fn find(&self, id: &ObjectId, mut has_id: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let (table, hash) = self.place(id);
        let is_it = |entry: &Entry| entry.hash == hash && has_id(entry.slot);
        self.tables[table].find(spread(hash), is_it).map(|entry| entry.slot)
    }

    /// Adds an id that is not there yet.
    pub fn insert(&mut self, id: &ObjectId, slot: Slot) {
        let (table, hash) = self.place(id);
        self.tables[table]
            .insert_unique(spread(hash), Entry { slot, hash }, |entry| spread(entry.hash));
        self.len += 1;
    }

    /// Takes out an id that is there.
    pub fn remove(&mut self, id: &ObjectId, slot: Slot) {
        let (table, hash) = self.place(id);
        let found = self.tables[table].find_entry(spread(hash), |entry| entry.slot == slot);
        found.expect("every object is in the index").remove();
        self.len -= 1;
    }

    /// The table and the part of the hash that is kept there. The two share no bit.
    fn place(&self, id: &ObjectId) -> (usize, u32) {
        let bytes = self.hasher.hash_one(id).to_le_bytes();
        let [kept, choice] = [&bytes[..4], &bytes[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("a half of eight bytes")));
        (choice as usize % TABLES, kept)
    }
}

/// A hash as wide as the table wants it: it uses the low bits and the very highest ones.
const fn spread(hash: u32) -> u64 {
    (hash as u64) << 32 | hash as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_moves_a_small_part() {
        let mut index = IdIndex::default();
        let id = |number: u32| {
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            ObjectId::from(bytes)
        };
        for number in 0..100_000 {
            index.insert(&id(number), Slot(number));
        }
        assert_eq!(index.len(), 100_000);
        let largest = index.tables.iter().map(HashTable::len).max();
        assert!(largest < Some(1000), "one table has {largest:?} of them");
        for number in (0..100_000).step_by(2) {
            index.remove(&id(number), Slot(number));
        }
        for number in 0..100_000 {
            let expected = (number % 2 == 1).then_some(Slot(number));
            assert_eq!(index.find(&id(number), |slot| slot == Slot(number)), expected);
        }
    }
}
