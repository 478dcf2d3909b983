//! The agreement between readers that pin an object and the store that wants its memory back.
//!
//! Neither sends the other a message. Each *writes before it reads*: a reader adds its pin, then
//! looks whether the entry is still sealed; the store marks the entry as retiring, then looks for
//! pins. Between the two steps both have a fence, so at least one of them sees the other (Dekker's
//! argument): a reader that goes on has a pin that the store sees, and a store that goes on has a
//! mark that every later reader sees. If both see the other both step back, which costs nothing but
//! a second try.
//!
//! Telling is the same argument the other way round: the store sets the flag of an entry and then
//! tries once more to retire it, a reader takes its pin back and then looks for the flag.
//!
//! Both sides run these functions, over words that the other side writes at the same time. They are
//! generic over the kind of word, so that a model checker runs the very same code, and over
//! [`Steps`], so that it can be shown that each step is needed. What lies where in memory, and what
//! the memory is, is not known here.

use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::compiler_fence;

use crate::ids::{Location, ObjectId, SegmentId};

/// A word of shared memory.
pub trait Word {
    /// As [`std::sync::atomic::AtomicU64::load`]; so for the others.
    fn load(&self, order: Ordering) -> u64;
    /// Stores.
    fn store(&self, value: u64, order: Ordering);
    /// Adds, and returns what was there.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Replaces one value by another one, or says what was there instead.
    ///
    /// # Errors
    /// What was there.
    fn compare_exchange(&self, from: u64, to: u64, order: Ordering) -> Result<u64, u64>;
    /// A fence between the accesses of this thread to all words of this kind.
    fn fence(order: Ordering);
    /// The same, sequentially consistent, right after this thread has changed a word with
    /// [`Word::fetch_add`] or [`Word::compare_exchange`].
    #[inline]
    fn fence_after_change() {
        Self::fence(SeqCst);
    }
}

impl Word for std::sync::atomic::AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }

    #[inline]
    fn compare_exchange(&self, from: u64, to: u64, order: Ordering) -> Result<u64, u64> {
        self.compare_exchange(from, to, order, Relaxed)
    }

    #[inline]
    fn fence(order: Ordering) {
        std::sync::atomic::fence(order);
    }

    #[inline]
    fn fence_after_change() {
        // There each of these changes is a locked instruction, which no load or store of the same
        // thread passes in either direction: the processor needs no second fence.
        if cfg!(target_arch = "x86_64") {
            compiler_fence(SeqCst);
        } else {
            Self::fence(SeqCst);
        }
    }
}

/// The steps without which something goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A reader's fence between its pin and its look at the entry.
    FencePin,
    /// That look.
    CheckPinned,
    /// The store's fence between its mark and its look at the pins.
    FenceRetire,
    /// The store's look at the pins of an entry that it has marked.
    CheckPins,
    /// A reader's fence between taking its pin back and its look at the flag.
    FenceUnpin,
    /// A reader's look at the flag also when its pin has come to nothing.
    TellAfterAll,
    /// Taking a pin back comes after everything that was read before.
    ReleaseUnpin,
    /// The store takes what it saw of the pins for a sign that their readers have read.
    AcquirePins,
    /// An entry is sealed after everything that it says.
    ReleasePublish,
    /// A look without a pin is made twice.
    LookAgain,
    /// With a fence in between.
    FenceLook,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::FencePin,
        Self::CheckPinned,
        Self::FenceRetire,
        Self::CheckPins,
        Self::FenceUnpin,
        Self::TellAfterAll,
        Self::ReleaseUnpin,
        Self::AcquirePins,
        Self::ReleasePublish,
        Self::LookAgain,
        Self::FenceLook,
    ];
}

/// Which steps are made: all of them, outside of tests.
pub trait Steps {
    /// The one that is left out.
    const WITHOUT: Option<Step> = None;

    /// Whether this step is made.
    #[inline]
    #[must_use]
    fn makes(step: Step) -> bool {
        Self::WITHOUT.is_none_or(|without| without as u8 != step as u8)
    }
}

/// Every step is made.
#[derive(Debug, Clone, Copy)]
pub struct AllSteps;

impl Steps for AllSteps {}

/// Words of an entry.
pub const ENTRY_WORDS: usize = 8;

/// The entry's sequence: what generation of objects is in it, and its state in the two lowest bits.
const SEQUENCE: usize = 0;
/// Bytes 0 to 7 of the id, little-endian.
const ID: usize = 1;
/// Bytes 16 to 19 of the id, and above them the number of the segment.
const ID_END_AND_SEGMENT: usize = 3;
const OFFSET: usize = 4;
const DATA_SIZE: usize = 5;
const METADATA_SIZE: usize = 6;
/// Not zero if the store wants to be told when a client's last pin is gone.
const TELL: usize = 7;

const STATE: u64 = 3;
const EMPTY: u64 = 0;
const SEALED: u64 = 1;
const RETIRING: u64 = 2;
const GENERATION: u64 = 4;

/// Bits of a pin word that count; those above are the tick of the last release.
pub const COUNT_BITS: u32 = 24;

const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Pins of the objects of one block that a client may have at a time. So far below what the bits
/// can count that threads that pin at once do not reach it.
pub const PINS_MAX: u64 = 1 << (COUNT_BITS - 1);

/// How often a pin word says that something is pinned.
#[must_use]
pub const fn count(word: u64) -> u64 {
    word & COUNT
}

/// When something was last let go, by the store's tick.
#[must_use]
pub const fn tick(word: u64) -> u64 {
    word >> COUNT_BITS
}

/// A tick as far as pin words have room for it.
#[must_use]
pub const fn short_tick(tick: u64) -> u64 {
    tick & (u64::MAX >> COUNT_BITS)
}

/// Which objects of which generation an entry had when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence(u64);

/// An entry of the directory.
#[derive(Debug)]
pub struct Entry<'a, W>(pub &'a [W; ENTRY_WORDS]);

/// One client's pins of one entry: the word of the block that the entry is in, and its own.
#[derive(Debug)]
pub struct Pins<'a, W> {
    /// Pins in the whole block.
    pub block: &'a W,
    /// Pins of the entry.
    pub own: &'a W,
}

impl<W> Clone for Entry<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Entry<'_, W> {}

impl<W> Clone for Pins<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Pins<'_, W> {}

/// A pin could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// The store has to be told: it may have seen the attempt.
    pub tell: bool,
}

/// An id as it lies in an entry.
const fn id_words(id: &ObjectId) -> [u64; 3] {
    let bytes = id.as_bytes();
    let (first, rest) = bytes.split_at(8);
    let (second, third) = rest.split_at(8);
    [word(first), word(second), word(third)]
}

const fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let mut index = 0;
    while index < bytes.len() {
        word[index] = bytes[index];
        index += 1;
    }
    u64::from_le_bytes(word)
}

// ---- the reader ---------------------------------------------------------------------------------

impl<W: Word> Entry<'_, W> {
    /// Whether the entry seems to have this object, sealed. Sure only after [`pin`], or
    /// [`Self::is_still`].
    #[inline]
    pub fn look(self, id: &ObjectId) -> Option<Sequence> {
        let sequence = self.0[SEQUENCE].load(Acquire);
        if sequence & STATE != SEALED {
            return None;
        }
        let [first, second, third] = id_words(id);
        let is_it = self.0[ID].load(Relaxed) == first
            && self.0[ID + 1].load(Relaxed) == second
            && self.0[ID_END_AND_SEGMENT].load(Relaxed) & u64::from(u32::MAX) == third;
        is_it.then_some(Sequence(sequence))
    }

    /// Whether the entry had the same object all the time since it was looked at.
    #[inline]
    pub fn is_still<S: Steps>(self, sequence: Sequence) -> bool {
        if S::makes(Step::FenceLook) {
            W::fence(Acquire);
        }
        !S::makes(Step::LookAgain) || self.0[SEQUENCE].load(Relaxed) == sequence.0
    }

    /// Where the object lies. To be asked only while it is pinned: it cannot change then.
    #[inline]
    pub fn location(self) -> Location {
        let segment = self.0[ID_END_AND_SEGMENT].load(Relaxed) >> u32::BITS;
        Location {
            segment: SegmentId(u32::try_from(segment).unwrap_or(u32::MAX)),
            offset: self.0[OFFSET].load(Relaxed),
            data_size: self.0[DATA_SIZE].load(Relaxed),
            metadata_size: self.0[METADATA_SIZE].load(Relaxed),
        }
    }
}

/// Pins the object that an entry had when it was looked at. Then it stays as it is, and where it
/// is, until it is unpinned.
///
/// # Errors
/// It has gone, or is about to, or this client has it pinned too often.
#[inline]
pub fn pin<S: Steps, W: Word>(
    entry: Entry<'_, W>,
    sequence: Sequence,
    pins: Pins<'_, W>,
    now: u64,
) -> Result<(), Missed> {
    let in_block = pins.block.fetch_add(1, Relaxed);
    let others = pins.own.fetch_add(1, Relaxed);
    if S::makes(Step::FencePin) {
        W::fence_after_change();
    }
    let is_same = !S::makes(Step::CheckPinned) || entry.0[SEQUENCE].load(Relaxed) == sequence.0;
    if is_same && count(others) < PINS_MAX && count(in_block) < PINS_MAX {
        return Ok(());
    }
    let tell = unpin::<S, W>(entry, pins, now);
    Err(Missed { tell: tell && S::makes(Step::TellAfterAll) })
}

/// Takes one pin back, and notes when. Whether the store has to be told.
#[inline]
pub fn unpin<S: Steps, W: Word>(entry: Entry<'_, W>, pins: Pins<'_, W>, now: u64) -> bool {
    // In this order: where a block has no pins none of its entries has one.
    let left = take_one::<S, W>(pins.own, now);
    take_one::<S, W>(pins.block, now);
    if left > 0 {
        return false;
    }
    if S::makes(Step::FenceUnpin) {
        W::fence_after_change();
    }
    entry.0[TELL].load(Relaxed) != 0
}

/// Counts one down, notes the tick, and returns the count.
#[inline]
fn take_one<S: Steps, W: Word>(word: &W, now: u64) -> u64 {
    let order = if S::makes(Step::ReleaseUnpin) { Release } else { Relaxed };
    let mut known = word.load(Relaxed);
    loop {
        let left = count(known).saturating_sub(1);
        match word.compare_exchange(known, now << COUNT_BITS | left, order) {
            Ok(_) => return left,
            Err(other) => known = other,
        }
    }
}

// ---- the store ----------------------------------------------------------------------------------

impl<W: Word> Entry<'_, W> {
    /// An object is sealed: everybody may read it. There is none in the entry.
    pub fn publish<S: Steps>(self, id: &ObjectId, location: &Location) {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        debug_assert!(sequence & STATE != SEALED, "an entry has one object");
        let [first, second, third] = id_words(id);
        self.0[ID].store(first, Relaxed);
        self.0[ID + 1].store(second, Relaxed);
        let segment = u64::from(location.segment.0) << u32::BITS;
        self.0[ID_END_AND_SEGMENT].store(segment | third, Relaxed);
        self.0[OFFSET].store(location.offset, Relaxed);
        self.0[DATA_SIZE].store(location.data_size, Relaxed);
        self.0[METADATA_SIZE].store(location.metadata_size, Relaxed);
        let next = (sequence & !STATE).wrapping_add(GENERATION) | SEALED;
        let order = if S::makes(Step::ReleasePublish) { Release } else { Relaxed };
        self.0[SEQUENCE].store(next, order);
    }

    /// Whether there is an object for readers.
    pub fn is_published(self) -> bool {
        self.0[SEQUENCE].load(Relaxed) & STATE == SEALED
    }

    /// Nobody may pin the object any more. Whether somebody has done so before is to be looked up
    /// next, with [`is_pinned`], and until then nothing is decided.
    ///
    /// An entry without an object stays as it is; pins that the store has made for clients may be
    /// there all the same.
    pub fn retire<S: Steps>(self) {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        if sequence & STATE == SEALED {
            self.0[SEQUENCE].store(sequence & !STATE | RETIRING, Relaxed);
        }
        if S::makes(Step::FenceRetire) {
            W::fence(SeqCst);
        }
    }

    /// If the object was retired, it stays after all.
    pub fn restore(self) {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        if sequence & STATE == RETIRING {
            self.0[SEQUENCE].store(sequence & !STATE | SEALED, Release);
        }
    }

    /// If the object was retired, it is gone for good. False if there was none.
    pub fn withdraw(self) -> bool {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        let is_retired = sequence & STATE == RETIRING;
        if is_retired {
            self.0[SEQUENCE].store(sequence & !STATE | EMPTY, Relaxed);
        }
        is_retired
    }

    /// Who takes back the last pin of a client has to tell the store. What counts is what is found
    /// pinned after the next [`Self::retire`], which has the fence that this needs.
    pub fn ask_to_tell(self) {
        self.0[TELL].store(1, Relaxed);
    }

    /// Nobody has to tell anything.
    pub fn stop_asking(self) {
        self.0[TELL].store(0, Relaxed);
    }
}

/// Whether a client has the entry pinned.
#[inline]
pub fn is_pinned<S: Steps, W: Word>(pins: Pins<'_, W>) -> bool {
    let order = if S::makes(Step::AcquirePins) { Acquire } else { Relaxed };
    S::makes(Step::CheckPins)
        && count(pins.block.load(order)) > 0
        && count(pins.own.load(order)) > 0
}

/// Pins a published object for a client, which gives it back itself. False if it has too many.
pub fn pin_for<W: Word>(pins: Pins<'_, W>) -> bool {
    if count(pins.own.load(Relaxed)) >= PINS_MAX || count(pins.block.load(Relaxed)) >= PINS_MAX {
        return false;
    }
    pins.block.fetch_add(1, Relaxed);
    pins.own.fetch_add(1, Relaxed);
    true
}

#[cfg(test)]
mod tests;
