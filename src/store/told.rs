//! Seals that creators have told in their tables, and that the store has not read a message of.
//! Part of [`Store`].
//!
//! A creator writes into a word of its own table that an object is sealed, and whoever it tells of
//! that may ask the store at once, by any way. So before an answer depends on an object that is
//! being created, the store looks at that word, whatever lies unread in whichever socket: then the
//! object is *settled*. The message that follows the word only saves others from waiting. Waits end
//! in [`using`](super::using), which looks there once more.

use crate::ids::{ClientId, ObjectId, SealPlace, Slot};
use crate::store::Store;
use crate::store::clients::Hold;
use crate::store::object_table::State;

/// Where the look at all that is being created goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next(ClientId, Slot);

impl Next {
    pub const FIRST: Self = Self(ClientId(0), Slot(0));
}

impl Store {
    /// Where this client tells that the object is sealed, if it has a table.
    pub(super) fn seal_place(&self, client: ClientId, slot: Slot) -> Option<SealPlace> {
        let generation = self.objects.get(slot).generation;
        self.directory.has_joined(client).then_some(SealPlace { slot, generation })
    }

    /// Whether an object is sealed, also if only its creator knows that so far.
    pub(super) fn settle(&mut self, slot: Slot) -> bool {
        self.settle_for_waiter(slot, None)
    }

    /// The same. Somebody who waits gets it if it is sealed: before the creator lets go, or it
    /// might be deleted with that.
    pub(super) fn settle_for_waiter(
        &mut self,
        slot: Slot,
        waiter: Option<(ClientId, Hold)>,
    ) -> bool {
        let object = self.objects.get(slot);
        let give = |store: &mut Self| {
            if let Some((client, hold)) = waiter {
                store.hold(client, slot, hold);
            }
        };
        let State::Created { creator } = object.state else {
            give(self);
            return true;
        };
        let told = self.directory.told_sealed(creator, slot, object.generation);
        // What we write ourselves is ours to seal, whatever its creator claims.
        let told = told.filter(|_| !self.is_being_filled(slot));
        if let Some(released) = told {
            self.seal_slot(slot, creator);
            give(self);
            if released {
                self.release_hold(creator, slot, Hold::granted(1));
            }
        }
        told.is_some()
    }

    /// The object of this name. It is known then whether it is sealed.
    pub(super) fn find_settled(&mut self, id: &ObjectId) -> Option<Slot> {
        let slot = self.objects.find(id)?;
        let is_known = self.objects.get(slot).is_sealed() || !self.settle(slot);
        // An object that is to be deleted goes if its creator has let go of it.
        if is_known { Some(slot) } else { self.objects.find(id) }
    }

    /// Looks at all that is being created, from here on. If that is more than fits into a slice,
    /// returns where to go on.
    pub(super) fn settle_from(&mut self, next: Next) -> Option<Next> {
        let Next(mut creator, mut from) = next;
        while let Some((owner, slot)) = self.unsealed.range((creator, from)..).next().copied() {
            if self.steps == 0 {
                return Some(Next(owner, slot));
            }
            self.steps -= 1;
            self.settle(slot);
            (creator, from) = (owner, Slot(slot.0 + 1));
        }
        None
    }

    /// Looks at everything that clients may have told in their tables, and at which of them have
    /// gone. Whether anything has come of it: then there may be room where there was none.
    pub(super) fn catch_up(&mut self) -> bool {
        let unsealed = self.unsealed.len();
        let mut next = Some(Next::FIRST);
        while let Some(from) = next {
            self.steps = self.slice.steps;
            next = self.settle_from(from);
        }
        let survivors_change = self.look_at_some_survivors();
        // Whoever wants room is tried again, with a slice of his own.
        self.steps = self.slice.steps;
        unsealed != self.unsealed.len() || survivors_change
    }
}
