//! The agreement between readers that pin an object and the store that wants its memory back.
//!
//! Neither sends the other a message. Each *writes before it reads*: a reader adds its pin, then
//! looks whether the record is still sealed; the store marks the record as retiring, then looks for
//! pins. Between the two steps both have a fence, so at least one of them sees the other (Dekker's
//! argument): a reader that goes on has a pin that the store sees, and a store that goes on has a
//! mark that every later reader sees. If both see the other both step back, which costs nothing but
//! a second try.
//!
//! Telling is the same argument the other way round: the store sets the flag of a record and then
//! tries once more to retire it, a reader takes its pin back and then looks for the flag.
//!
//! So is sealing: a creator writes into its own table that it has sealed an object, then looks
//! whether the table has ended; the store ends the table, then looks for what was sealed. So either
//! the store sees the seal, or the creator sees that it may not have been seen.
//!
//! Both sides run these functions, over words that the other side writes at the same time. They are
//! generic over the kind of word, so that a model checker runs the very same code, and over
//! [`Steps`], so that it can be shown that each step is needed. What lies where in memory, and what
//! the memory is, is not known here.

use std::ops::Range;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, compiler_fence, fence};

use crate::ids::{ClientId, Location, ObjectId, SegmentId};

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

impl Word for AtomicU64 {
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
        fence(order);
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
    /// A reader's fence between its pin and its look at the record.
    FencePin,
    /// That look.
    CheckPinned,
    /// The store's fence between its mark and its look at the pins.
    FenceRetire,
    /// The store's look at the pins of a record that it has marked.
    CheckPins,
    /// A reader's fence between taking its pin back and its look at the flag.
    FenceUnpin,
    /// A reader's look at the flag also when its pin has come to nothing.
    TellAfterAll,
    /// Taking a pin back comes after everything that was read before.
    ReleaseUnpin,
    /// The store takes what it saw of the pins for a sign that their readers have read.
    AcquirePins,
    /// A record is sealed after everything that it says.
    ReleasePublish,
    /// A look without a pin is made twice.
    LookAgain,
    /// With a fence in between.
    FenceLook,
    /// A seal comes after everything that its creator has written.
    ReleaseSeal,
    /// The store takes a seal for a sign that its creator has written.
    AcquireSeal,
    /// A creator's fence between its seal and its look at the end of its table.
    FenceSeal,
    /// That look.
    CheckEnded,
    /// The store's fence between the end of a table and its look at the seals in it.
    FenceEnd,
    /// That look.
    CheckSeals,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 17] = [
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
        Self::ReleaseSeal,
        Self::AcquireSeal,
        Self::FenceSeal,
        Self::CheckEnded,
        Self::FenceEnd,
        Self::CheckSeals,
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

/// Words of each half of a record: a cache line. A get touches the first half only, so the second
/// halves lie apart: they would take room in the caches of those who read at random.
pub const HALF_WORDS: usize = 8;

/// The record's sequence: the generation of its object, and its state in the three lowest bits.
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

// The second half.
/// The connection that created the object.
const CREATOR: usize = 0;
/// When it was created, nanoseconds since the Unix epoch.
const CREATED: usize = 1;
/// Nanoseconds from its creation to its seal.
const CONSTRUCTION: usize = 2;
/// Kept free, and zero: a deadline (3), flags and the place of a name (4), a version (5) and a
/// location (6) in a tier.
const RESERVED: Range<usize> = 3..7;
/// A sum over what is written once, when the object is created.
const CHECK: usize = 7;

const STATE: u64 = 7;
const EMPTY: u64 = 0;
const WRITING: u64 = 1;
const SEALED: u64 = 2;
const RETIRING: u64 = 3;
const STATE_BITS: u32 = 3;

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

/// Which objects of which generation a record had when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence(u64);

/// The half of a record that readers need.
#[derive(Debug)]
pub struct Record<'a, W>(pub &'a [W; HALF_WORDS]);

/// The other half: what only the store wants to know.
#[derive(Debug)]
pub struct Details<'a, W>(pub &'a [W; HALF_WORDS]);

/// One client's pins of one record: the word of the block that the record is in, and its own.
#[derive(Debug)]
pub struct Pins<'a, W> {
    /// Pins in the whole block.
    pub block: &'a W,
    /// Pins of the record.
    pub own: &'a W,
}

impl<W> Clone for Record<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Record<'_, W> {}

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

/// What is written into a record when its object is created.
#[derive(Debug, Clone, Copy)]
pub struct Created<'a> {
    /// Told the creator, who seals with it. Never used twice, and never zero.
    pub generation: u64,
    /// The object's name.
    pub id: &'a ObjectId,
    /// Where its bytes are.
    pub location: Location,
    /// The connection that writes it.
    pub creator: ClientId,
    /// When, nanoseconds since the Unix epoch.
    pub at: u64,
}

/// An odd number with about as many ones as zeros.
const SUM_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The two halves of a product, one over the other.
#[inline]
pub fn fold(left: u64, right: u64) -> u64 {
    let high = (u128::from(left) * u128::from(right)) >> u64::BITS;
    left.wrapping_mul(right) ^ u64::try_from(high).unwrap_or(0)
}

/// An id as it lies in a record.
pub(super) fn id_words(id: &ObjectId) -> [u64; 3] {
    let word = |range: Range<usize>| {
        let mut word = [0; 8];
        word[..range.len()].copy_from_slice(&id.as_bytes()[range]);
        u64::from_le_bytes(word)
    };
    [word(0..8), word(8..16), word(16..20)]
}

// ---- the reader ---------------------------------------------------------------------------------

impl<W: Word> Record<'_, W> {
    /// Whether the record seems to have this object, sealed. Sure only after [`pin`], or
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

    /// Whether the record had the same object all the time since it was looked at.
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

/// Pins the object that a record had when it was looked at. Then it stays as it is, and where it
/// is, until it is unpinned.
///
/// # Errors
/// It has gone, or is about to, or this client has it pinned too often.
#[inline]
pub fn pin<S: Steps, W: Word>(
    record: Record<'_, W>,
    sequence: Sequence,
    pins: Pins<'_, W>,
    now: u64,
) -> Result<(), Missed> {
    let in_block = pins.block.fetch_add(1, Relaxed);
    let others = pins.own.fetch_add(1, Relaxed);
    if S::makes(Step::FencePin) {
        W::fence_after_change();
    }
    let is_same = !S::makes(Step::CheckPinned) || record.0[SEQUENCE].load(Relaxed) == sequence.0;
    if is_same && count(others) < PINS_MAX && count(in_block) < PINS_MAX {
        return Ok(());
    }
    let tell = unpin::<S, W>(record, pins, now);
    Err(Missed { tell: tell && S::makes(Step::TellAfterAll) })
}

/// Takes one pin back, and notes when. Whether the store has to be told.
#[inline]
pub fn unpin<S: Steps, W: Word>(record: Record<'_, W>, pins: Pins<'_, W>, now: u64) -> bool {
    // In this order: where a block has no pins none of its records has one.
    let left = take_one::<S, W>(pins.own, now);
    take_one::<S, W>(pins.block, now);
    if left > 0 {
        return false;
    }
    if S::makes(Step::FenceUnpin) {
        W::fence_after_change();
    }
    record.0[TELL].load(Relaxed) != 0
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

impl<W: Word> Record<'_, W> {
    /// An object has been created, and is being written. The record has no other one.
    pub fn create(self, details: &Details<'_, W>, created: &Created<'_>) {
        let Created { generation, id, location, creator, at } = *created;
        let [first, second, third] = id_words(id);
        let segment = u64::from(location.segment.0) << u32::BITS;
        let words = [
            (ID, first),
            (ID + 1, second),
            (ID_END_AND_SEGMENT, segment | third),
            (OFFSET, location.offset),
            (DATA_SIZE, location.data_size),
            (METADATA_SIZE, location.metadata_size),
        ];
        for (index, value) in words {
            self.0[index].store(value, Relaxed);
        }
        for (index, value) in [(CREATOR, creator.0), (CREATED, at), (CONSTRUCTION, 0)] {
            details.0[index].store(value, Relaxed);
        }
        for index in RESERVED {
            details.0[index].store(0, Relaxed);
        }
        details.0[CHECK].store(self.sum(details, generation), Relaxed);
        // Whoever finds the state finds all of it, also after the store was killed.
        self.0[SEQUENCE].store(generation << STATE_BITS | WRITING, Release);
    }

    /// The object is sealed: everybody may read it.
    pub fn seal<S: Steps>(self) {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        debug_assert!(sequence & STATE == WRITING, "an object is sealed once");
        let order = if S::makes(Step::ReleasePublish) { Release } else { Relaxed };
        self.0[SEQUENCE].store(sequence & !STATE | SEALED, order);
    }

    /// Whether the record is as it was when its object was created.
    pub fn is_whole(self, details: &Details<'_, W>) -> bool {
        let generation = self.0[SEQUENCE].load(Relaxed) >> STATE_BITS;
        details.0[CHECK].load(Relaxed) == self.sum(details, generation)
    }

    /// The check word, in which any change shows.
    fn sum(self, details: &Details<'_, W>, generation: u64) -> u64 {
        let written = self.0[ID..TELL].iter().chain(&details.0[CREATOR..CONSTRUCTION]);
        written.fold(fold(generation, SUM_FACTOR), |sum, word| {
            fold(sum ^ word.load(Relaxed), SUM_FACTOR)
        })
    }

    /// Nobody may pin the object any more. Whether somebody has done so before is to be looked up
    /// next, with [`is_pinned`], and until then nothing is decided.
    ///
    /// A record without a sealed object stays as it is.
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

    /// The object is gone for good. If it was sealed, it has been retired.
    pub fn remove(self) {
        let sequence = self.0[SEQUENCE].load(Relaxed);
        debug_assert!(sequence & STATE != SEALED, "what readers may find is retired first");
        self.0[SEQUENCE].store(sequence & !STATE | EMPTY, Relaxed);
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

impl<W: Word> Details<'_, W> {
    /// The object has been sealed, so many nanoseconds after its creation.
    pub fn set_construction(&self, nanoseconds: u64) {
        self.0[CONSTRUCTION].store(nanoseconds, Relaxed);
    }

    /// When the object was created, nanoseconds since the Unix epoch, and how many it took from
    /// there to its seal.
    pub fn times(&self) -> (u64, u64) {
        (self.0[CREATED].load(Relaxed), self.0[CONSTRUCTION].load(Relaxed))
    }
}

/// Whether a client has the record pinned.
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

// ---- the creator --------------------------------------------------------------------------------

/// What a creator has said of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// It has given up its hold together with the seal.
    pub released: bool,
}

/// Writes into the creator's own table that it has sealed the object of this generation. If this
/// returns true the object is sealed for everybody from now on, whatever becomes of the creator. If
/// not, the table had ended: the store may have aborted the object.
#[inline]
pub fn tell_sealed<S: Steps, W: Word>(seal: &W, ended: &W, generation: u64, told: Told) -> bool {
    let order = if S::makes(Step::ReleaseSeal) { Release } else { Relaxed };
    seal.store(generation << 1 | u64::from(told.released), order);
    if S::makes(Step::FenceSeal) {
        W::fence(SeqCst);
    }
    !S::makes(Step::CheckEnded) || ended.load(Relaxed) == 0
}

/// Whether the creator has sealed the object of this generation. Asked before anything is said
/// that depends on it. Only the creator's own table is ever asked.
#[inline]
pub fn told_sealed<S: Steps, W: Word>(seal: &W, generation: u64) -> Option<Told> {
    let order = if S::makes(Step::AcquireSeal) { Acquire } else { Relaxed };
    let word = seal.load(order);
    let is_told = S::makes(Step::CheckSeals) && word >> 1 == generation;
    is_told.then_some(Told { released: word & 1 == 1 })
}

/// Ends a table: it takes no new pins. What was sealed in it is to be looked up next, with
/// [`told_sealed`], before anything is aborted.
pub fn end<S: Steps, W: Word>(ended: &W) {
    ended.store(1, Release);
    if S::makes(Step::FenceEnd) {
        W::fence(SeqCst);
    }
}

#[cfg(test)]
mod tests;
