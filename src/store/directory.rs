//! The seam between the store and whatever lets clients read without asking it.
//!
//! A directory publishes sealed objects to clients, who may pin them there unseen: those that have
//! joined have a pin table each. So before the memory of a sealed object is reused the store asks
//! the directory to retire it, and if a client has it pinned asks that one to tell when it lets go
//! (`pinned`). Shared memory and processes are not known here: the store sees this
//! trait only. What a table says is the word of its client, and is never relied on beyond "it is
//! pinned".

use std::fmt::Debug;
use std::ops::Range;

use crate::ids::{ClientId, Location, ObjectId, Slot};

/// Where sealed objects are made known to readers that do not ask the store.
///
/// A slot that the directory has no room for is not published, and not pinned; every call for it is
/// legal and does nothing.
pub trait Directory: Debug + Send {
    /// Gives a client a pin table. False if it has to read by message.
    fn join(&mut self, client: ClientId) -> bool;

    /// All pins of a client are void. If it has a pin table, that is to be asked for what the
    /// client released, with [`Directory::releases_left`], and until then it is kept.
    fn leave(&mut self, client: ClientId);

    /// Names some of these slots, from the first on, in which a client that has left released
    /// something, and at which tick it last did. Returns where to go on; at the end nothing, and
    /// the table is gone.
    fn releases_left(
        &mut self,
        client: ClientId,
        slots: Range<u32>,
        each: &mut dyn FnMut(Slot, u64),
    ) -> Option<Slot>;

    /// The tick at which a client last released the object in this slot, or one before it; zero if
    /// none did. It is what clients say, and may be in the future.
    fn last_release(&self, slot: Slot) -> u64;

    /// Whether a client has a pin table.
    fn has_joined(&self, client: ClientId) -> bool;

    /// The object in this slot is sealed, its bytes are there, and anybody may read it.
    fn publish(&mut self, slot: Slot, id: &ObjectId, location: &Location);

    /// Takes the object back, for eviction or deletion.
    ///
    /// # Errors
    /// A client that has it pinned. It stays published then.
    fn retire(&mut self, slot: Slot) -> Result<(), ClientId>;

    /// Undoes [`Directory::retire`]: the object stays after all.
    fn restore(&mut self, slot: Slot);

    /// The sealed object in this slot, which was retired, is gone for good.
    fn withdraw(&mut self, slot: Slot, id: &ObjectId);

    /// Whoever takes the last pin of this slot out of its table, from now on, has to tell the
    /// store. Sure for those whose pin is found by the next [`Directory::retire`] or later.
    fn ask_to_tell(&mut self, slot: Slot);

    /// Nobody has to tell any more.
    fn stop_asking(&mut self, slot: Slot);

    /// A client that has this slot pinned.
    fn pinned_by(&self, slot: Slot) -> Option<ClientId>;

    /// Number of pin tables, all of which are looked at for one object.
    fn tables(&self) -> usize;

    /// Whether this client has this slot pinned.
    fn has_pinned(&self, client: ClientId, slot: Slot) -> bool;

    /// Pins an object for a client, which unpins it itself. False if it cannot.
    fn pin(&mut self, client: ClientId, slot: Slot) -> bool;

    /// Names everything in these slots that is pinned, once for each client that has it pinned, and
    /// client by client.
    fn pins(&self, slots: Range<u32>, each: &mut dyn FnMut(ClientId, Slot));

    /// Names everything in these slots that this client has pinned.
    fn pins_of(&self, client: ClientId, slots: Range<u32>, each: &mut dyn FnMut(Slot));

    /// The store has been told so many things: the tick.
    fn advance(&mut self, tick: u64);
}

/// The directory of a store whose clients all read by message: nothing is published, so nothing
/// can be pinned behind the store's back.
#[derive(Debug)]
pub struct Unpublished;

impl Directory for Unpublished {
    fn join(&mut self, _client: ClientId) -> bool {
        false
    }

    fn leave(&mut self, _client: ClientId) {}

    fn releases_left(
        &mut self,
        _client: ClientId,
        _slots: Range<u32>,
        _each: &mut dyn FnMut(Slot, u64),
    ) -> Option<Slot> {
        None
    }

    fn last_release(&self, _slot: Slot) -> u64 {
        0
    }

    fn has_joined(&self, _client: ClientId) -> bool {
        false
    }

    fn publish(&mut self, _slot: Slot, _id: &ObjectId, _location: &Location) {}

    fn retire(&mut self, _slot: Slot) -> Result<(), ClientId> {
        Ok(())
    }

    fn restore(&mut self, _slot: Slot) {}

    fn withdraw(&mut self, _slot: Slot, _id: &ObjectId) {}

    fn ask_to_tell(&mut self, _slot: Slot) {}

    fn stop_asking(&mut self, _slot: Slot) {}

    fn pinned_by(&self, _slot: Slot) -> Option<ClientId> {
        None
    }

    fn tables(&self) -> usize {
        0
    }

    fn has_pinned(&self, _client: ClientId, _slot: Slot) -> bool {
        false
    }

    fn pin(&mut self, _client: ClientId, _slot: Slot) -> bool {
        false
    }

    fn pins(&self, _slots: Range<u32>, _each: &mut dyn FnMut(ClientId, Slot)) {}

    fn pins_of(&self, _client: ClientId, _slots: Range<u32>, _each: &mut dyn FnMut(Slot)) {}

    fn advance(&mut self, _tick: u64) {}
}
