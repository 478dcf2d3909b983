//! What lies where in the directory and in a pin table, in words of 8 bytes.
//!
//! ```text
//! directory │ header, 512 words │ buckets, 8 words each │ entries, 8 words each
//! pin table │ blocks, a word each, rounded up to 512 words │ pins, a word for each slot │ end
//! ```
//!
//! The header's first word is the *tick*, the number of things that the store was told; the
//! second one says whether the store still lives ([`life_mark`]). A slot
//! has the same number in both tables. A bucket has places for 16 slots, 4 bytes each: the slot
//! plus one, and above its 24 bits the highest byte of the id's hash; 0 is a free place. An object
//! whose bucket is full is not in the directory, which costs its readers a message and nothing
//! else.
//!
//! A pin word counts in its lowest 24 bits and has the tick of the last release above them. A block
//! is 512 slots: a page of pins. So whoever looks for pins has to touch those pages only on which
//! there are some, and a table takes memory for what its client uses.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::directory::protocol::{
    AllSteps, ENTRY_WORDS, Entry, Pins, Sequence, count, is_pinned, tick,
};
use crate::ids::{ObjectId, Slot};
use crate::shm::life_mark;
use crate::shm::words::Words;

/// Most slots of a directory: a place in a bucket has 24 bits for one.
pub const SLOTS_MAX: u32 = (1 << SLOT_BITS) - 1;

const SLOT_BITS: u32 = 24;

/// Words of a page, on which each part begins.
const PAGE_WORDS: usize = 512;

/// Words of the header, of which the first one is used.
const HEADER_WORDS: usize = PAGE_WORDS;

const TICK: usize = 0;

/// Words up to and including the one that says whether the store lives, and where that is.
pub const LIFE_WORDS: usize = PAGE_WORDS;
/// See [`LIFE_WORDS`].
pub const LIFE: usize = 1;

const BUCKET_WORDS: usize = 8;

/// Slots for each bucket: a quarter of its places, so that one in a million is full.
const SLOTS_PER_BUCKET: u32 = 4;

/// Slots in a block.
pub const BLOCK_SLOTS: u32 = 512;

/// The sizes of a directory and of its pin tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    slots: u32,
    buckets: usize,
}

impl Layout {
    /// Tables for so many slots. `None` if that is nothing, or more than [`SLOTS_MAX`].
    #[must_use]
    pub fn new(slots: u32) -> Option<Self> {
        let buckets = slots.div_ceil(SLOTS_PER_BUCKET).checked_next_power_of_two()?;
        let layout = Self { slots, buckets: usize::try_from(buckets).ok()? };
        (1..=SLOTS_MAX).contains(&slots).then_some(layout)
    }

    /// Slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Words of the directory.
    #[must_use]
    pub const fn directory_words(&self) -> usize {
        self.entries_at() + self.slots as usize * ENTRY_WORDS
    }

    /// Words of a pin table.
    #[must_use]
    pub const fn pin_table_words(&self) -> usize {
        self.end_at() + 1
    }

    /// Where the entries begin: behind the header and all buckets.
    pub(crate) const fn entries_at(&self) -> usize {
        HEADER_WORDS + self.buckets * BUCKET_WORDS
    }

    /// Where a pin table says that it counts no more.
    const fn end_at(&self) -> usize {
        self.pins_at() + self.slots as usize
    }

    const fn pins_at(&self) -> usize {
        (self.slots.div_ceil(BLOCK_SLOTS) as usize).next_multiple_of(PAGE_WORDS)
    }
}

/// The hash that says in which bucket an id is, and with what tag.
#[must_use]
pub fn hash(id: &ObjectId) -> u64 {
    let bytes = id.as_bytes();
    let word = |range: Range<usize>| {
        let mut word = [0; 8];
        word[..range.len()].copy_from_slice(&bytes[range]);
        u64::from_le_bytes(word)
    };
    let first = fold(word(0..8) ^ 0x9e37_79b9_7f4a_7c15, word(8..16) ^ 0xc2b2_ae3d_27d4_eb4f);
    fold(first ^ word(16..20), 0x1656_67b1_9e37_79f9)
}

/// The two halves of a product, one over the other.
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    let halves = product.to_le_bytes();
    let half = |range: Range<usize>| {
        let mut half = [0; 8];
        half.copy_from_slice(&halves[range]);
        u64::from_le_bytes(half)
    };
    half(0..8) ^ half(8..16)
}

const fn tag(hash: u64) -> u32 {
    (hash >> 56) as u32
}

/// The directory, mapped.
#[derive(Debug)]
pub struct DirectoryWords {
    words: Words,
    layout: Layout,
}

impl DirectoryWords {
    /// A directory of this layout. `None` if there are not so many words.
    #[must_use]
    pub fn new(words: Words, layout: Layout) -> Option<Self> {
        (words.len() >= layout.directory_words()).then_some(Self { words, layout })
    }

    /// Makes all buckets present at once. Ids are spread over all of them, so a few thousand
    /// objects touch every page: without this each of the first ones waits for one. For the store.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn make_ready(&self) -> io::Result<()> {
        self.words.populate(self.layout.entries_at())
    }

    /// Its sizes.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// The number of things that the store was told.
    #[inline]
    #[must_use]
    pub fn tick(&self) -> u64 {
        self.words[TICK].load(Relaxed)
    }

    /// Whether the store has ended, in whatever way. What is here says nothing then.
    #[inline]
    #[must_use]
    pub fn has_ended(&self) -> bool {
        life_mark::has_ended(&self.words, LIFE)
    }

    /// Sets that number. For the store.
    pub fn set_tick(&self, tick: u64) {
        self.words[TICK].store(tick, Relaxed);
    }

    /// The entry of a slot, if it has one.
    #[inline]
    #[must_use]
    pub fn entry(&self, slot: Slot) -> Option<Entry<'_, AtomicU64>> {
        if slot.0 >= self.layout.slots {
            return None;
        }
        let start = self.layout.entries_at() + slot.index() * ENTRY_WORDS;
        self.words.get(start..)?.first_chunk().map(Entry)
    }

    /// The slot that seems to have this object, sealed.
    #[inline]
    #[must_use]
    pub fn look(&self, id: &ObjectId) -> Option<(Slot, Entry<'_, AtomicU64>, Sequence)> {
        let hash = hash(id);
        self.bucket(hash).iter().find_map(|word| {
            places(word.load(Relaxed)).into_iter().find_map(|place| {
                let slot = slot_of(place, hash)?;
                let entry = self.entry(slot)?;
                Some((slot, entry, entry.look(id)?))
            })
        })
    }

    /// Whether this object is published, surely.
    #[inline]
    #[must_use]
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.look(id).is_some_and(|(_, entry, sequence)| entry.is_still::<AllSteps>(sequence))
    }

    /// Makes an object known by its id. False if its bucket is full. For the store.
    pub fn insert(&self, id: &ObjectId, slot: Slot) -> bool {
        let hash = hash(id);
        self.replace(hash, 0, tag(hash) << SLOT_BITS | (slot.0 + 1))
    }

    /// Takes back what [`Self::insert`] has done. False if it has done nothing. For the store.
    pub fn remove(&self, id: &ObjectId, slot: Slot) -> bool {
        let hash = hash(id);
        self.replace(hash, tag(hash) << SLOT_BITS | (slot.0 + 1), 0)
    }

    /// Replaces one place of a bucket.
    fn replace(&self, hash: u64, from: u32, to: u32) -> bool {
        for word in self.bucket(hash) {
            let mut both = places(word.load(Relaxed));
            if let Some(place) = both.iter_mut().find(|place| **place == from) {
                *place = to;
                word.store(u64::from(both[1]) << u32::BITS | u64::from(both[0]), Release);
                return true;
            }
        }
        false
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &[AtomicU64] {
        // A mask first: no bit of what is left is lost on any machine.
        let index = usize::try_from(hash & (self.layout.buckets as u64 - 1)).unwrap_or(0);
        let start = HEADER_WORDS + index * BUCKET_WORDS;
        &self.words[start..start + BUCKET_WORDS]
    }
}

/// The two places in a word of a bucket.
const fn places(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The slot in a place of a bucket, if its tag is that of the hash.
#[inline]
const fn slot_of(place: u32, hash: u64) -> Option<Slot> {
    if place == 0 || place >> SLOT_BITS != tag(hash) {
        return None;
    }
    match (place & SLOTS_MAX).checked_sub(1) {
        Some(slot) => Some(Slot(slot)),
        None => None,
    }
}

/// One client's pin table, mapped.
#[derive(Debug)]
pub struct PinTable {
    words: Words,
    layout: Layout,
}

impl PinTable {
    /// A pin table of this layout. `None` if there are not so many words.
    #[must_use]
    pub fn new(words: Words, layout: Layout) -> Option<Self> {
        (words.len() >= layout.pin_table_words()).then_some(Self { words, layout })
    }

    /// The pins of a slot, if it has an entry.
    #[inline]
    #[must_use]
    pub fn pins(&self, slot: Slot) -> Option<Pins<'_, AtomicU64>> {
        if slot.0 >= self.layout.slots {
            return None;
        }
        let block = self.words.get((slot.0 / BLOCK_SLOTS) as usize)?;
        let own = self.words.get(self.layout.pins_at() + slot.index())?;
        Some(Pins { block, own })
    }

    /// Says that no pin in here counts any more: the connection has ended. For the store.
    pub fn end(&self) {
        self.words[self.layout.end_at()].store(1, Release);
    }

    /// Whether no pin in here counts any more.
    #[inline]
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.words[self.layout.end_at()].load(Acquire) != 0
    }

    /// Whether the client has this slot pinned.
    #[inline]
    #[must_use]
    pub fn is_pinned(&self, slot: Slot) -> bool {
        self.pins(slot).is_some_and(is_pinned::<AllSteps, _>)
    }

    /// When the client last let go of an object in this slot, by the tick as far as a pin word has
    /// it; 0 if it never did.
    #[must_use]
    pub fn last_release(&self, slot: Slot) -> u64 {
        self.pins(slot).map_or(0, |pins| match tick(pins.block.load(Relaxed)) {
            0 => 0,
            _ => tick(pins.own.load(Relaxed)),
        })
    }

    /// Names the slots of the first block that has any of these in which the client let go of
    /// something, and when it last did, by the tick as far as a pin word has it. Returns where to
    /// go on, nothing at the end.
    pub fn releases(&self, slots: Range<u32>, mut each: impl FnMut(Slot, u64)) -> Option<Slot> {
        let end = slots.end.min(self.layout.slots);
        let is_used = |block: &u32| tick(self.words[*block as usize].load(Relaxed)) > 0;
        let block = (slots.start / BLOCK_SLOTS..end.div_ceil(BLOCK_SLOTS)).find(is_used)?;
        let first = block * BLOCK_SLOTS;
        let next = first + BLOCK_SLOTS;
        for slot in (first.max(slots.start)..next.min(end)).map(Slot) {
            match self.last_release(slot) {
                0 => {}
                tick => each(slot, tick),
            }
        }
        (next < end).then_some(Slot(next))
    }

    /// The slots in this range that the client has pinned.
    pub fn pinned(&self, slots: Range<u32>) -> impl Iterator<Item = Slot> {
        let slots = slots.start.min(self.layout.slots)..slots.end.min(self.layout.slots);
        let blocks = slots.start / BLOCK_SLOTS..slots.end.div_ceil(BLOCK_SLOTS);
        let has_pins = |block: &u32| count(self.words[*block as usize].load(Relaxed)) > 0;
        blocks
            .filter(has_pins)
            .flat_map(move |block| {
                let first = block * BLOCK_SLOTS;
                first.max(slots.start)..(first + BLOCK_SLOTS).min(slots.end)
            })
            .map(Slot)
            .filter(|slot| self.is_pinned(*slot))
    }
}

#[cfg(test)]
mod tests;
