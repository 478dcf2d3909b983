//! The seam between the store and whatever lets clients read without asking it.
//!
//! A directory publishes sealed objects to clients, who may pin them there unseen. So before the
//! memory of a sealed object is reused, the store asks the directory to retire it, and leaves the
//! object alone if it is pinned. Shared memory and processes are not known here: the store sees
//! this trait only.

use std::fmt::Debug;

use crate::ids::{Location, ObjectId, Slot};

/// Where sealed objects are made known to readers that do not ask the store.
pub trait Directory: Debug + Send {
    /// The object in this slot is sealed and may be read by anybody.
    fn publish(&mut self, slot: Slot, id: &ObjectId, location: &Location);

    /// Takes the object back, for eviction or deletion. False if a reader has it pinned: then it
    /// stays published.
    fn retire(&mut self, slot: Slot) -> bool;

    /// Undoes [`Directory::retire`]: the object stays after all.
    fn restore(&mut self, slot: Slot);
}

/// The directory of a store whose clients all read by message: nothing is published, so nothing
/// can be pinned behind the store's back.
#[derive(Debug)]
pub struct Unpublished;

impl Directory for Unpublished {
    fn publish(&mut self, _slot: Slot, _id: &ObjectId, _location: &Location) {}

    fn retire(&mut self, _slot: Slot) -> bool {
        true
    }

    fn restore(&mut self, _slot: Slot) {}
}
