//! Seals that creators have told in their tables, and that the store has not read a message of.
//! Part of [`Store`].
//!
//! A creator writes into a word of its own table that an object is sealed, and whoever it tells of
//! that may ask the store at once, by any way. So before an answer depends on an object that is
//! being created, the store looks at that word, whatever lies unread in whichever socket: then the
//! object is *settled*. The message that follows the word only saves others from waiting. Waits end
//! in [`using`](super::using), which looks there once more.

use crate::ids::{ClientId, SealPlace, Slot};
use crate::protocol::message::{Request, Subject};
use crate::store::clients::{Hold, WaitCost};
use crate::store::object_table::State;
use crate::store::{Answer, Asked, Store};

/// Where the look at all that is being created goes on.
type Next = (ClientId, Slot);

/// A request that is served when all that is being created has been looked at.
#[derive(Debug)]
pub struct Later {
    /// Who asks.
    pub asked: Asked,
    request: Request,
    /// What it keeps in memory.
    pub cost: WaitCost,
    next: Next,
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

    /// Looks at what a request depends on. If that is more than fits into a slice, returns where to
    /// go on.
    pub(super) fn settle_for(&mut self, subject: Subject<'_>) -> Option<Next> {
        match subject {
            Subject::Nothing => None,
            Subject::Objects(ids) if ids.len() <= self.unsealed.len() => {
                for id in ids {
                    if let Some(slot) = self.objects.find(id) {
                        self.settle(slot);
                    }
                }
                None
            }
            Subject::Objects(_) | Subject::Everything => self.settle_from((ClientId(0), Slot(0))),
        }
    }

    fn settle_from(&mut self, mut next: Next) -> Option<Next> {
        while let Some((creator, slot)) = self.unsealed.range(next..).next().copied() {
            if self.steps == 0 {
                return Some((creator, slot));
            }
            self.steps -= 1;
            self.settle(slot);
            next = (creator, Slot(slot.0 + 1));
        }
        None
    }

    pub(super) fn serve_later(&mut self, asked: Asked, request: Request, next: Next) -> Answer {
        // It keeps all its ids in memory until its turn comes.
        let ids = match request.subject() {
            Subject::Objects(ids) => ids.len(),
            Subject::Nothing | Subject::Everything => 0,
        };
        let cost = WaitCost { ids, bytes: 0 };
        self.begin_wait(asked.client, cost)?;
        self.jobs.later.push_back(Later { asked, request, cost, next });
        Ok(None)
    }

    pub(super) fn work_on_later(&mut self) {
        let Some(later) = self.jobs.later.pop_front() else { return };
        let Later { asked, request, cost, next } = later;
        if !self.clients.is_here(asked.client) {
            return;
        }
        if let Some(next) = self.settle_from(next) {
            return self.jobs.later.push_front(Later { asked, request, cost, next });
        }
        self.clients.wait_ended(asked.client, cost);
        let answer = self.serve_now(asked, request);
        self.answer(asked, answer);
        self.finish();
    }

    /// Looks at everything that clients may have told in their tables, and at which of them have
    /// gone. Whether anything has come of it: then there may be room where there was none.
    pub(super) fn catch_up(&mut self) -> bool {
        let unsealed = self.unsealed.len();
        let mut next = Some((ClientId(0), Slot(0)));
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
