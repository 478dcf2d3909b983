//! The end of a client: what it was doing is over at once, what it holds stays until nobody is left
//! who has it. Part of [`Store`].
//!
//! The connection of a client may end although it goes on: it broke the protocol, somebody closed
//! its socket, or a forked child lives on. Buffers that it has stay what they are. So its pins and
//! holds count until its last process has gone or let go of them, and memory that it may still be
//! writing to is handed out to nobody until then: such a client *survives*. Nobody tells when that
//! is over, so the store looks now and then, and before it says that there is no room.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{ClientId, Slot, Ticket};
use crate::limits::{
    SURVIVORS_LOOK_FIRST, SURVIVORS_LOOK_LAST, SURVIVORS_LOOKS_MAX, SURVIVORS_OF_PROCESS_MAX,
};
use crate::protocol::refusal::Refusal;
use crate::store::clients::Peer;
use crate::store::object_table::Object;
use crate::store::{Effects, Store, WorkOutcome};
use crate::time::Timestamp;

/// Clients whose connections have ended and of which processes are left, with the memory that
/// these may still be writing to.
#[derive(Debug)]
pub struct Survivors {
    clients: BTreeMap<ClientId, Vec<Ticket>>,
    next_look: Option<Timestamp>,
    pause: Duration,
    /// Where the next look begins: a client, and a slot that it may have pinned.
    cursor: (ClientId, Slot),
}

impl Default for Survivors {
    fn default() -> Self {
        Self {
            clients: BTreeMap::new(),
            next_look: None,
            pause: SURVIVORS_LOOK_FIRST,
            cursor: (ClientId(0), Slot(0)),
        }
    }
}

impl Survivors {
    /// When to look at them again.
    pub const fn next_look(&self) -> Option<Timestamp> {
        self.next_look
    }
}

/// How far the end of a client has come.
enum Leaving {
    /// There is more to do.
    More,
    /// It survives.
    Rests,
    /// Nothing is left of it.
    Gone,
}

impl Store {
    /// The connection of a client has ended.
    pub(super) fn begin_leaving(
        &mut self,
        client: ClientId,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.directory.end(client);
        let idle = self.quotas.get(client).map_or(0, |account| account.idle.idle_objects());
        let leaving = self.clients.get_mut(client);
        leaving.looks_left = 2 * idle;
        leaving.is_leaving = true;
        leaving.survives = !leaving.said_goodbye && self.directory.is_alive(client);
        if !leaving.survives {
            self.note_death(client);
        }
        if self.go_on_leaving(client, now, effects) {
            self.finish(now, effects);
        } else {
            self.jobs.leaving.push_back(client);
        }
    }

    pub(super) fn work_on_leaving(&mut self, now: Timestamp, effects: &mut Effects) {
        let Some(client) = self.jobs.leaving.pop_front() else { return };
        if self.go_on_leaving(client, now, effects) {
            self.finish(now, effects);
        } else {
            self.jobs.leaving.push_front(client);
        }
    }

    /// Whether all is done that can be done now.
    fn go_on_leaving(&mut self, client: ClientId, now: Timestamp, effects: &mut Effects) -> bool {
        match self.leave_some(client, now, effects) {
            Leaving::More => return false,
            Leaving::Rests => {
                self.survivors.clients.entry(client).or_default();
                self.survivors.pause = SURVIVORS_LOOK_FIRST;
                self.survivors.next_look = Some(now.after(SURVIVORS_LOOK_FIRST));
            }
            Leaving::Gone => {}
        }
        true
    }

    /// No process is left that has what this client was given.
    fn note_death(&mut self, client: ClientId) {
        let has_table = self.directory.has_joined(client);
        self.directory.leave(client);
        let leaving = self.clients.get_mut(client);
        leaving.survives = false;
        leaving.notes_from = has_table.then_some(Slot(0));
        for ticket in self.survivors.clients.remove(&client).unwrap_or_default() {
            self.end_transit(ticket, WorkOutcome::Done);
        }
    }

    /// Removes what a client has left, for one slice.
    fn leave_some(&mut self, client: ClientId, now: Timestamp, effects: &mut Effects) -> Leaving {
        while self.steps > 0 {
            self.steps -= 1;
            if let Some(from) = self.clients.get(client).notes_from {
                // Its notes first, before its quota and what it holds are everybody's.
                let next = self.read_notes_left(client, from);
                self.clients.get_mut(client).notes_from = next;
            } else if let Some(create) = self.creates.abandoned(client) {
                self.clients.get_mut(client).wait_ended(create.cost());
            } else if let Some(waiter) = self.waits.disconnected(client) {
                self.steps = self.steps.saturating_sub(waiter.ids.len());
                self.clients.get_mut(client).wait_ended(waiter.cost());
            } else if let Some(slot) = self.first_charged(client) {
                let looks_left = &mut self.clients.get_mut(client).looks_left;
                let may_step_back = *looks_left > 0;
                *looks_left = looks_left.saturating_sub(1);
                if !(may_step_back && self.is_idle(slot) && self.steps_back(slot)) {
                    self.becomes_everybodys(slot);
                }
            } else if let Some(slot) = self.first_unsealed(client) {
                if !self.settle(slot, now, effects) {
                    self.remove_unsealed(client, slot, effects);
                }
            } else if self.clients.get(client).survives {
                return Leaving::Rests;
            } else if let Some((slot, _)) = self.clients.get_mut(client).holds.pop_first() {
                self.let_go(client, slot, effects);
            } else if self.look_at_one_left(client) {
                // One step, as each of the others.
            } else {
                self.quotas.remove(client);
                self.clients.remove(client);
                return Leaving::Gone;
            }
        }
        Leaving::More
    }

    fn first_unsealed(&self, client: ClientId) -> Option<Slot> {
        let first = self.unsealed.range((client, Slot(0))..).next();
        first.filter(|(creator, _)| *creator == client).map(|(_, slot)| *slot)
    }

    /// An object that counts against the quota of a client: its idle ones in order, then others.
    fn first_charged(&self, client: ClientId) -> Option<Slot> {
        let account = self.quotas.get(client)?;
        account.idle.first().or_else(|| account.busy().next())
    }

    /// The memory of an object that was being written, and may still be.
    pub(super) fn quarantine(&mut self, creator: ClientId, object: &Object) {
        let (offset, size) = (object.location.offset, object.size());
        if size > 0 {
            let ticket = self.space.quarantine(offset, size, size);
            self.survivors.clients.entry(creator).or_default().push(ticket);
        }
    }

    /// Looks whether survivors have gone or let go, if it is time to.
    pub(super) fn look_at_survivors(&mut self, now: Timestamp) {
        if self.survivors.next_look.is_none_or(|at| at > now) {
            return;
        }
        self.look_at_some_survivors(SURVIVORS_LOOKS_MAX);
        let pause = (2 * self.survivors.pause).min(SURVIVORS_LOOK_LAST);
        let are_left = !self.survivors.clients.is_empty();
        self.survivors.pause = pause;
        self.survivors.next_look = are_left.then(|| now.after(pause));
    }

    /// Looks at survivors, and at what each of them keeps from going, so many times, and goes on from
    /// there at the next time. Whether something has come free.
    pub(super) fn look_at_some_survivors(&mut self, mut looks: usize) -> bool {
        let before = (self.parked.len(), self.survivors.clients.len());
        let (next, mut slot) = self.survivors.cursor;
        let (earlier, later) = (..next, next..);
        let clients = &self.survivors.clients;
        let round: Vec<_> = clients.range(later).chain(clients.range(earlier)).collect();
        let round: Vec<ClientId> = round.into_iter().map(|(client, _)| *client).collect();
        for client in round {
            if self.directory.is_alive(client) {
                while looks > 0
                    && let Some(next) = self.look_at_parked_of(client, slot)
                {
                    looks -= 1;
                    slot = next;
                }
            } else {
                self.note_death(client);
                self.jobs.leaving.push_back(client);
            }
            if looks == 0 {
                self.survivors.cursor = (client, slot);
                break;
            }
            looks -= 1;
            slot = Slot(0);
            self.survivors.cursor = (ClientId(client.0 + 1), slot);
        }
        before != (self.parked.len(), self.survivors.clients.len())
    }

    /// Refuses a process that has too many survivors.
    pub(super) fn check_survivors_of(&mut self, peer: &Peer) -> Result<(), Refusal> {
        let count = |store: &Self| {
            let clients = store.survivors.clients.keys();
            clients.filter(|client| store.clients.get(**client).peer.pid == peer.pid).count()
        };
        if count(self) >= SURVIVORS_OF_PROCESS_MAX {
            self.look_at_some_survivors(usize::MAX);
        }
        if count(self) >= SURVIVORS_OF_PROCESS_MAX {
            return Err(Refusal::TooManyEnded(SURVIVORS_OF_PROCESS_MAX as u64));
        }
        Ok(())
    }
}
