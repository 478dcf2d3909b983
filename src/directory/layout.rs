//! What lies where in the directory and in a client's table, in words of 8 bytes.
//!
//! ```text
//! directory    │ header, 512 words │ buckets, 8 words each │ first halves of the records,
//!              │ 8 words each │ second halves of the records, 8 words each
//! client table │ header, 512 words │ blocks, a word each, rounded up to 512 words │
//!              │ pins, a word for each record │ seals, a word for each record
//! ```
//!
//! The directory's header says in its first words what it is and never changes, and in a cache line
//! of its own the *tick*, the number of things that the store was told, and whether the store still
//! lives ([`life_mark`]). Every object has a record from its creation on, in the slot that is its
//! number everywhere. The buckets only say where records of sealed objects are. Each has places for
//! 16 slots, 4 bytes each: the slot plus one, and above its 24 bits the highest byte of the id's
//! hash; 0 is a free place. An object whose bucket is full, or whose slot has more than 24 bits, is
//! not found there, which costs its readers a message and nothing else.
//!
//! A client table is written by one client. A pin word counts in its lowest 24 bits and has the
//! tick of the last release above them. A block is 512 slots: a page of pins. So whoever looks for
//! pins has to touch those pages only on which there are some, and a table takes memory for what
//! its client uses. A seal word names the generation of the object in this slot that the client has
//! created and sealed.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::directory::protocol::{
    self, AllSteps, Details, HALF_WORDS, Pins, Record, Sequence, Told, count, fold, id_words,
    is_pinned, tell_sealed, tick, told_sealed,
};
use crate::ids::{ObjectId, Slot};
use crate::shm::life_mark;
use crate::shm::words::Words;

/// Most slots that buckets can name.
pub const SLOTS_MAX: u32 = (1 << SLOT_BITS) - 1;

const SLOT_BITS: u32 = 24;

/// Words of a page, on which each part begins.
const PAGE_WORDS: usize = 512;

/// Words of a header.
const HEADER_WORDS: usize = PAGE_WORDS;

// The directory's header.
const MAGIC: usize = 0;
const VERSION: usize = 1;
const BUCKETS: usize = 2;
const RECORDS: usize = 3;
const CAPACITY: usize = 4;
const PAGE_BYTES: usize = 5;
const BOOT: Range<usize> = 6..8;
const INCARNATION: usize = 8;
const TICK: usize = 16;

/// "plasmadr", little-endian.
const MAGIC_WORD: u64 = u64::from_le_bytes(*b"plasmadr");

/// Version of all that lies in a directory and in the tables of its clients.
pub const LAYOUT_VERSION: u64 = 1;

/// Words up to and including the one that says whether the store lives, and where that is.
pub const LIFE_WORDS: usize = PAGE_WORDS;
/// See [`LIFE_WORDS`].
pub const LIFE: usize = 17;

/// Where a client table says that it has ended.
const ENDED: usize = 0;

const BUCKET_WORDS: usize = 8;

/// Slots for each bucket: a quarter of its places, so that one in a million is full.
const SLOTS_PER_BUCKET: u32 = 4;

/// Slots in a block.
pub const BLOCK_SLOTS: u32 = 512;

/// The sizes of a directory and of its client tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    records: u32,
    buckets: usize,
}

/// What a directory's header says beside its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Bytes that objects may use.
    pub capacity: u64,
    /// Bytes of a page of the memory of the objects.
    pub page_bytes: u64,
    /// Which boot of the machine it belongs to.
    pub boot: [u64; 2],
    /// Counts the programs that have served it, from 1.
    pub incarnation: u64,
}

impl Layout {
    /// So many records, and buckets for so many slots. `None` if that is none, or more slots than
    /// [`SLOTS_MAX`].
    #[must_use]
    pub fn new(records: u32, slots: u32) -> Option<Self> {
        let buckets = slots.div_ceil(SLOTS_PER_BUCKET).checked_next_power_of_two()?;
        let layout = Self { records, buckets: usize::try_from(buckets).ok()? };
        (records > 0 && (1..=SLOTS_MAX).contains(&slots)).then_some(layout)
    }

    /// The layout of a directory of so many bytes with this header. `None` if it is no directory,
    /// or of another version, or does not have room for what it says.
    #[must_use]
    pub fn read(header: &[AtomicU64], bytes: u64) -> Option<Self> {
        let word = |index: usize| header.get(index).map(|word| word.load(Relaxed));
        if word(MAGIC)? != MAGIC_WORD || word(VERSION)? != LAYOUT_VERSION {
            return None;
        }
        let records = u32::try_from(word(RECORDS)?).ok()?;
        let buckets = usize::try_from(word(BUCKETS)?).ok()?;
        // Of a size that no sum below exceeds.
        let is_possible = buckets.is_power_of_two() && buckets <= 1 << SLOT_BITS && records > 0;
        let layout = is_possible.then_some(Self { records, buckets })?;
        (layout.directory_words() as u64 <= bytes / 8).then_some(layout)
    }

    /// Records, and so words for pins and seals in a client table.
    #[must_use]
    pub const fn records(&self) -> u32 {
        self.records
    }

    /// Words of the directory.
    #[must_use]
    pub const fn directory_words(&self) -> usize {
        self.details_at() + self.records as usize * HALF_WORDS
    }

    /// Words of a client table.
    #[must_use]
    pub const fn client_table_words(&self) -> usize {
        self.seals_at() + self.records as usize
    }

    /// Where the records begin: behind the header and all buckets.
    pub(crate) const fn records_at(&self) -> usize {
        HEADER_WORDS + self.buckets * BUCKET_WORDS
    }

    const fn details_at(&self) -> usize {
        self.records_at() + self.records as usize * HALF_WORDS
    }

    const fn pins_at(&self) -> usize {
        let blocks = self.records.div_ceil(BLOCK_SLOTS) as usize;
        HEADER_WORDS + blocks.next_multiple_of(PAGE_WORDS)
    }

    const fn seals_at(&self) -> usize {
        self.pins_at() + (self.records as usize).next_multiple_of(PAGE_WORDS)
    }
}

/// The hash that says in which bucket an id is, and with what tag.
#[must_use]
pub fn hash(id: &ObjectId) -> u64 {
    let [first, second, third] = id_words(id);
    let both = fold(first ^ 0x9e37_79b9_7f4a_7c15, second ^ 0xc2b2_ae3d_27d4_eb4f);
    fold(both ^ third, 0x1656_67b1_9e37_79f9)
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

    /// Says what it is. For the store, before anybody else has it.
    pub fn write_header(&self, origin: &Origin) {
        let Origin { capacity, page_bytes, boot, incarnation } = *origin;
        let words = [
            (BUCKETS, self.layout.buckets as u64),
            (RECORDS, u64::from(self.layout.records)),
            (CAPACITY, capacity),
            (PAGE_BYTES, page_bytes),
            (BOOT.start, boot[0]),
            (BOOT.start + 1, boot[1]),
            (INCARNATION, incarnation),
            (VERSION, LAYOUT_VERSION),
            (MAGIC, MAGIC_WORD),
        ];
        for (index, value) in words {
            self.words[index].store(value, Relaxed);
        }
    }

    /// Makes all buckets present at once. Ids are spread over all of them, so a few thousand
    /// objects touch every page: without this each of the first ones waits for one. For the store.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn make_ready(&self) -> io::Result<()> {
        self.words.populate(self.layout.records_at())
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

    /// The record in a slot, the half that readers need.
    #[inline]
    #[must_use]
    pub fn record(&self, slot: Slot) -> Option<Record<'_, AtomicU64>> {
        self.half(self.layout.records_at(), slot).map(Record)
    }

    /// The half of that record which readers do not need.
    #[must_use]
    pub fn details(&self, slot: Slot) -> Option<Details<'_, AtomicU64>> {
        self.half(self.layout.details_at(), slot).map(Details)
    }

    /// The half of this slot's record, among those that begin at word `halves_at`.
    #[inline]
    fn half(&self, halves_at: usize, slot: Slot) -> Option<&[AtomicU64; HALF_WORDS]> {
        if slot.0 >= self.layout.records {
            return None;
        }
        self.words.get(halves_at + slot.index() * HALF_WORDS..)?.first_chunk()
    }

    /// The slot that seems to have this object, sealed.
    #[inline]
    #[must_use]
    pub fn look(&self, id: &ObjectId) -> Option<(Slot, Record<'_, AtomicU64>, Sequence)> {
        let hash = hash(id);
        self.bucket(hash).iter().find_map(|word| {
            places(word.load(Relaxed)).into_iter().find_map(|place| {
                let slot = slot_of(place, hash)?;
                let record = self.record(slot)?;
                Some((slot, record, record.look(id)?))
            })
        })
    }

    /// Whether this object is published, surely.
    #[inline]
    #[must_use]
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.look(id).is_some_and(|(_, record, sequence)| record.is_still::<AllSteps>(sequence))
    }

    /// Makes an object known by its id. False if its bucket is full, or cannot name such a slot.
    /// For the store.
    pub fn insert(&self, id: &ObjectId, slot: Slot) -> bool {
        let hash = hash(id);
        place_of(slot, hash).is_some_and(|place| self.replace(hash, 0, place))
    }

    /// Takes back what [`Self::insert`] has done. False if it has done nothing. For the store.
    pub fn remove(&self, id: &ObjectId, slot: Slot) -> bool {
        let hash = hash(id);
        place_of(slot, hash).is_some_and(|place| self.replace(hash, place, 0))
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

/// What a place of a bucket has for this slot, if buckets can name it.
fn place_of(slot: Slot, hash: u64) -> Option<u32> {
    (slot.0 < SLOTS_MAX).then(|| tag(hash) << SLOT_BITS | (slot.0 + 1))
}

/// The slot in a place of a bucket, if its tag is that of the hash.
#[inline]
fn slot_of(place: u32, hash: u64) -> Option<Slot> {
    if place >> SLOT_BITS != tag(hash) {
        return None;
    }
    (place & SLOTS_MAX).checked_sub(1).map(Slot)
}

/// One client's table, mapped: what it has pinned, and what it has sealed.
#[derive(Debug)]
pub struct ClientTable {
    words: Words,
    layout: Layout,
}

impl ClientTable {
    /// A client table of this layout. `None` if there are not so many words.
    #[must_use]
    pub fn new(words: Words, layout: Layout) -> Option<Self> {
        (words.len() >= layout.client_table_words()).then_some(Self { words, layout })
    }

    /// The pins of a slot, if there is such a one.
    #[inline]
    #[must_use]
    pub fn pins(&self, slot: Slot) -> Option<Pins<'_, AtomicU64>> {
        if slot.0 >= self.layout.records {
            return None;
        }
        let block = self.words.get(HEADER_WORDS + (slot.0 / BLOCK_SLOTS) as usize)?;
        let own = self.words.get(self.layout.pins_at() + slot.index())?;
        Some(Pins { block, own })
    }

    fn seal(&self, slot: Slot) -> Option<&AtomicU64> {
        let is_there = slot.0 < self.layout.records;
        is_there.then(|| self.words.get(self.layout.seals_at() + slot.index())).flatten()
    }

    /// Says that the object of this generation is sealed. False if the table has ended: the store
    /// may not have seen it. For the client.
    #[must_use]
    pub fn tell_sealed(&self, slot: Slot, generation: u64, told: Told) -> bool {
        let ended = &self.words[ENDED];
        self.seal(slot)
            .is_some_and(|seal| tell_sealed::<AllSteps, _>(seal, ended, generation, told))
    }

    /// Whether the client has sealed the object of this generation. For the store.
    #[must_use]
    pub fn told_sealed(&self, slot: Slot, generation: u64) -> Option<Told> {
        told_sealed::<AllSteps, _>(self.seal(slot)?, generation)
    }

    /// Says that the connection has ended: there are no new pins. For the store.
    pub fn end(&self) {
        protocol::end::<AllSteps, _>(&self.words[ENDED]);
    }

    /// Whether the connection has ended.
    #[inline]
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.words[ENDED].load(Acquire) != 0
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
        let (in_block, _) = self.blocks(slots.clone()).find(|(_, word)| tick(*word) > 0)?;
        let next = in_block.end;
        for slot in in_block.map(Slot) {
            match self.last_release(slot) {
                0 => {}
                tick => each(slot, tick),
            }
        }
        (next < slots.end.min(self.layout.records)).then_some(Slot(next))
    }

    /// Whether the client says that it has pinned anything in the blocks of these slots. It may be
    /// wrong for the moment of an attempt; to look no closer costs the same whatever the client
    /// writes.
    #[must_use]
    pub fn has_pins(&self, slots: Range<u32>) -> bool {
        self.blocks(slots).any(|(_, word)| count(word) > 0)
    }

    /// The slots in this range that the client has pinned.
    pub fn pinned(&self, slots: Range<u32>) -> impl Iterator<Item = Slot> {
        let blocks = self.blocks(slots).filter(|(_, word)| count(*word) > 0);
        blocks.flat_map(|(in_block, _)| in_block.map(Slot)).filter(|slot| self.is_pinned(*slot))
    }

    /// The blocks of these slots: which of the slots are in each, and its word.
    fn blocks(&self, slots: Range<u32>) -> impl Iterator<Item = (Range<u32>, u64)> {
        let end = slots.end.min(self.layout.records);
        (slots.start / BLOCK_SLOTS..end.div_ceil(BLOCK_SLOTS)).map(move |block| {
            let first = block * BLOCK_SLOTS;
            let in_block = first.max(slots.start)..end.min(first + BLOCK_SLOTS);
            (in_block, self.words[HEADER_WORDS + block as usize].load(Relaxed))
        })
    }
}

#[cfg(test)]
mod tests;
