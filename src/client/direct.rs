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

use crate::directory::protocol::{
    AllSteps, PINS_MAX, Pins, Record, Sequence, Told, count, pin, pin_for, unpin,
};
use crate::directory::{ClientTable, DirectoryWords, Layout};
use crate::ids::{Location, ObjectId, SealPlace, SegmentId, Slot};
use crate::protocol::message::DescriptorInfo;
use crate::shm::Access;
use crate::shm::words::Words;

/// The directory of a store, and this connection's pins.
#[derive(Debug)]
pub(super) struct DirectReader {
    directory: DirectoryWords,
    table: ClientTable,
}

/// An object that seemed to be there when it was looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    slot: Slot,
    record: Record<'a, AtomicU64>,
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
    /// Maps the tables. `None` if their descriptors are not among these; an error if they do not
    /// have the size that they should have, or this process has no room for them.
    pub(super) fn open(descriptors: &[(DescriptorInfo, OwnedFd)]) -> io::Result<Option<Self>> {
        let file = |id| descriptors.iter().find(|(info, _)| info.segment == id);
        let tables = file(SegmentId::DIRECTORY).zip(file(SegmentId::CLIENT_TABLE));
        let Some(((info, directory), (_, table))) = tables else { return Ok(None) };
        let count = usize::try_from(info.segment_size / 8).map_err(io::Error::other)?;
        let words = Words::map(directory.as_fd(), count, Access::ReadOnly)?;
        let layout = Layout::read(&words, info.segment_size).ok_or(io::ErrorKind::InvalidData)?;
        let directory = DirectoryWords::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
        let words = Words::map(table.as_fd(), layout.client_table_words(), Access::ReadWrite)?;
        let table = ClientTable::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some(Self { directory, table }))
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
        let (slot, record, sequence) = self.directory.look(id)?;
        let pins = self.table.pins(slot)?;
        // The first access to the pins is one that everything later waits for, unless they are on
        // their way already.
        (count(pins.own.load(Relaxed)) < PINS_MAX).then_some(Found { slot, record, sequence, pins })
    }

    /// Pins an object if it is still there.
    #[inline]
    pub(super) fn pin(&self, found: Found<'_>) -> Attempt {
        let Found { slot, record, sequence, pins } = found;
        match pin::<AllSteps, _>(record, sequence, pins, self.directory.tick()) {
            // The connection may have ended since the last look.
            Ok(()) if self.table.has_ended() => {
                self.unpin(slot);
                Attempt::Missed
            }
            Ok(()) => Attempt::Pinned(slot, record.location()),
            Err(missed) if missed.tell => Attempt::MissedAndTell(slot),
            Err(_) => Attempt::Missed,
        }
    }

    /// Takes one pin back. Whether the store wants to hear of it.
    #[inline]
    pub(super) fn unpin(&self, slot: Slot) -> bool {
        let Some(record) = self.directory.record(slot) else { return false };
        let Some(pins) = self.table.pins(slot) else { return false };
        unpin::<AllSteps, _>(record, pins, self.directory.tick())
    }

    /// Pins an object of this client's own that is not sealed yet, and so is where it is. False if
    /// it cannot.
    pub(super) fn pin_own(&self, slot: Slot) -> bool {
        self.table.pins(slot).is_some_and(pin_for)
    }

    /// Says that an object of this client's own is sealed, and that it has given up the hold of a
    /// creator if `released` says so. False if the store may not have seen that: then the
    /// connection has ended, or the store.
    pub(super) fn tell_sealed(&self, place: SealPlace, released: bool) -> bool {
        self.table.tell_sealed(place.slot, place.generation, Told { released })
            && !self.directory.has_ended()
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
