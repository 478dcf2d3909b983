//! Reading without the store: looking objects up in its directory and pinning them.
//!
//! The memory of both tables comes with the opening of the connection. A get is then a look at the
//! directory and a pin in our own table, and a release takes the pin back; neither is a message. A
//! miss says nothing: whoever misses asks the store. Any number of threads do so at once, without a
//! lock. A forked child does neither: the table is its parent's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::directory::protocol::{AllSteps, Entry, PINS_MAX, Pins, Sequence, count, pin, unpin};
use crate::directory::{DirectoryWords, Layout, PinTable};
use crate::ids::{Location, ObjectId, SegmentId, Slot};
use crate::protocol::message::DescriptorInfo;
use crate::shm::words::Words;
use crate::shm::{Access, fork};

/// The directory of a store, and this connection's pins.
#[derive(Debug)]
pub(super) struct DirectReader {
    directory: DirectoryWords,
    table: PinTable,
    generation: u64,
}

/// An object that seemed to be there when it was looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    slot: Slot,
    entry: Entry<'a, AtomicU64>,
    sequence: Sequence,
    pins: Pins<'a, AtomicU64>,
}

/// What came of an attempt to pin an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It is ours until it is unpinned.
    Pinned(Slot, Location),
    /// The store has to be asked.
    Missed,
    /// The same, and it wants to hear of this slot.
    MissedAndTell(Slot),
}

impl DirectReader {
    /// Maps the tables, if their descriptors are among these. `None` if they are not, or do not
    /// have the size that they should have, or this process has no room for them.
    pub(super) fn open(
        slots: u32,
        descriptors: &[(DescriptorInfo, OwnedFd)],
    ) -> Option<io::Result<Self>> {
        let layout = Layout::new(slots)?;
        let file = |id| {
            let mut descriptors = descriptors.iter();
            descriptors.find(|(info, _)| info.segment == id).map(|(_, file)| file.as_fd())
        };
        let (directory, table) = (file(SegmentId::DIRECTORY)?, file(SegmentId::PIN_TABLE)?);
        let open = || {
            let words = Words::map(directory, layout.directory_words(), Access::ReadOnly)?;
            let directory = DirectoryWords::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
            let words = Words::map(table, layout.pin_table_words(), Access::ReadWrite)?;
            let table = PinTable::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Self { directory, table, generation: fork::generation() })
        };
        Some(open())
    }

    /// Whether these are the tables of a parent of this process.
    pub(super) fn is_inherited(&self) -> bool {
        fork::generation() != self.generation
    }

    /// Whether the store has ended, or this connection as far as the store is concerned. What is
    /// published says nothing then, and pins are void.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.directory.has_ended() || self.table.has_ended()
    }

    /// Looks for an object that seems to be there. Several are looked for faster before the first
    /// one is pinned: the processor waits for the memory of all of them at once.
    #[inline]
    pub(super) fn look(&self, id: &ObjectId) -> Option<Found<'_>> {
        let (slot, entry, sequence) = self.directory.look(id)?;
        let pins = self.table.pins(slot)?;
        // The first access to the pins is one that everything later waits for, unless they are on
        // their way already.
        (count(pins.own.load(Relaxed)) < PINS_MAX).then_some(Found { slot, entry, sequence, pins })
    }

    /// Pins an object if it is still there.
    #[inline]
    pub(super) fn pin(&self, found: Found<'_>) -> Attempt {
        let Found { slot, entry, sequence, pins } = found;
        match pin::<AllSteps, _>(entry, sequence, pins, self.directory.tick()) {
            // The connection may have ended since the last look.
            Ok(()) if self.table.has_ended() => {
                self.unpin(slot);
                Attempt::Missed
            }
            Ok(()) => Attempt::Pinned(slot, entry.location()),
            Err(missed) if missed.tell => Attempt::MissedAndTell(slot),
            Err(_) => Attempt::Missed,
        }
    }

    /// Takes one pin back. Whether the store wants to hear of it.
    #[inline]
    pub(super) fn unpin(&self, slot: Slot) -> bool {
        let Some(entry) = self.directory.entry(slot) else { return false };
        let Some(pins) = self.table.pins(slot) else { return false };
        unpin::<AllSteps, _>(entry, pins, self.directory.tick())
    }

    /// Whether the object is there, surely. False says nothing.
    #[inline]
    pub(super) fn contains(&self, id: &ObjectId) -> bool {
        self.directory.contains(id)
    }

    /// Whether this connection has the object pinned.
    pub(super) fn has_pinned(&self, id: &ObjectId) -> bool {
        self.directory.look(id).is_some_and(|(slot, ..)| self.table.is_pinned(slot))
    }
}
