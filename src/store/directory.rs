//! The seam between the store and what it shares with its clients: records of objects that they
//! read without asking, and a table of each client that the store reads.
//!
//! In its table a client pins objects and says which of its own it has sealed, without a message.
//! So before the memory of a sealed object is reused the store asks the directory to retire it, and
//! if a client has it pinned asks that one to tell when it lets go (`pinned`); and before it denies
//! that an object is sealed it looks whether the creator has said so (`told`). Shared memory and
//! processes are not known here: the store sees this trait only. What a table says is the word of
//! its client, and is never relied on beyond "it is pinned" and "what I have created is sealed".

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::slab::Slab;
pub use crate::store::object_table::Object;

/// Records of all objects, and the tables of clients.
///
/// What is not said otherwise is so for a store whose clients all read by message: they have no
/// tables, so nothing can be pinned or sealed behind the store's back.
pub trait Directory: Debug + Send {
    /// A client has connected: from now on it can be told whether it lives.
    fn connect(&mut self, _client: ClientId) {}

    /// Gives a client a table. False if it has to read by message.
    fn join(&mut self, _client: ClientId) -> bool {
        false
    }

    /// The connection of a client has ended. Its table takes no new pins; those that are there
    /// count as long as [`Directory::is_alive`]. What the client has sealed is known after this.
    fn end(&mut self, _client: ClientId) {}

    /// Whether any process is left that has what a client was given, although its connection has
    /// ended.
    fn is_alive(&self, _client: ClientId) -> bool {
        false
    }

    /// All pins of a client are void. If it has a table, that is to be asked for what the client
    /// released, with [`Directory::releases_left`], and until then it is kept.
    fn leave(&mut self, _client: ClientId) {}

    /// Whether a client has said in its table that it has sealed its object of this generation, and
    /// if so whether it has given up its hold with that.
    fn told_sealed(&self, _client: ClientId, _slot: Slot, _generation: u64) -> Option<bool> {
        None
    }

    /// Names some of these slots, from the first on, in which a client that has left released
    /// something, and at which tick it last did. Returns where to go on; at the end nothing, and
    /// the table is gone.
    fn releases_left(
        &mut self,
        _client: ClientId,
        _slots: Range<u32>,
        _each: &mut dyn FnMut(Slot, u64),
    ) -> Option<Slot> {
        None
    }

    /// The tick at which a client last released the object in this slot, or one before it; zero if
    /// none did. It is what clients say, and may be in the future.
    fn last_release(&self, _slot: Slot) -> u64 {
        0
    }

    /// Whether a client has a table.
    fn has_joined(&self, _client: ClientId) -> bool {
        false
    }

    /// An object has been created in this slot, at a time since the Unix epoch. It has its record
    /// from now on.
    fn create(&mut self, slot: Slot, object: &Object, creator: ClientId, at: Duration);

    /// The object in this slot is sealed, its bytes are there, and anybody may read it.
    fn publish(&mut self, slot: Slot, id: &ObjectId, at: Duration);

    /// When the object in this slot was created, since the Unix epoch, and how long it took to its
    /// seal.
    fn times(&self, slot: Slot) -> (Duration, Duration);

    /// Takes the object back, for eviction or deletion.
    ///
    /// # Errors
    /// A client that has it pinned. It stays published then.
    fn retire(&mut self, _slot: Slot) -> Result<(), ClientId> {
        Ok(())
    }

    /// Undoes [`Directory::retire`]: the object stays after all.
    fn restore(&mut self, _slot: Slot) {}

    /// The object in this slot is gone for good. If it was sealed, it has been retired.
    fn remove(&mut self, _slot: Slot, _id: &ObjectId) {}

    /// Whoever takes the last pin of this slot out of its table, from now on, has to tell the
    /// store. Sure for those whose pin is found by the next [`Directory::retire`] or later.
    fn ask_to_tell(&mut self, _slot: Slot) {}

    /// Nobody has to tell any more.
    fn stop_asking(&mut self, _slot: Slot) {}

    /// A client that has this slot pinned.
    fn pinned_by(&self, _slot: Slot) -> Option<ClientId> {
        None
    }

    /// Names everything in these slots that this client has pinned.
    fn pins_of(&self, _client: ClientId, _slots: Range<u32>, _each: &mut dyn FnMut(Slot)) {}

    /// Whether this client says that it has anything pinned in these slots, or near them.
    fn has_pins(&self, _client: ClientId, _slots: Range<u32>) -> bool {
        false
    }

    /// Number of tables, all of which are looked at for one object.
    fn tables(&self) -> usize {
        0
    }

    /// Whether this client has this slot pinned.
    fn has_pinned(&self, _client: ClientId, _slot: Slot) -> bool {
        false
    }

    /// Pins an object for a client, which unpins it itself. False if it cannot.
    fn pin(&mut self, _client: ClientId, _slot: Slot) -> bool {
        false
    }

    /// Names everything in these slots that is pinned, once for each client that has it pinned, and
    /// client by client.
    fn pins(&self, _slots: Range<u32>, _each: &mut dyn FnMut(ClientId, Slot)) {}

    /// The store has been told so many things: the tick.
    fn advance(&mut self, _tick: u64) {}
}

/// Records of a store whose clients all read by message.
#[derive(Debug, Default)]
pub struct Unshared {
    times: Slab<(Duration, Duration)>,
}

impl Directory for Unshared {
    fn create(&mut self, slot: Slot, _object: &Object, _creator: ClientId, at: Duration) {
        *self.times.entry(slot.index()) = (at, Duration::ZERO);
    }

    fn publish(&mut self, slot: Slot, _id: &ObjectId, at: Duration) {
        let (created, construction) = self.times.entry(slot.index());
        *construction = at.saturating_sub(*created);
    }

    fn times(&self, slot: Slot) -> (Duration, Duration) {
        self.times.get(slot.index()).copied().unwrap_or_default()
    }
}
