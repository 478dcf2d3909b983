//! The end of a client: what it was doing is over at once, what it holds stays until nobody is left
//! who has it. Part of [`Store`].
//!
//! The connection of a client may end although it goes on: it broke the protocol, somebody closed
//! its socket, or a forked child lives on. Buffers that it has stay what they are. So its pins and
//! holds count until it has taken them back or its last process has gone, and memory that it may
//! still be writing to is handed out to nobody until then: such a client *survives*. Nobody tells
//! when that is over, so the store looks now and then, and before it says that there is no room.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{ClientId, Slot, Ticket};
use crate::limits::{
    SURVIVORS_LOOK_FIRST, SURVIVORS_LOOK_LAST, SURVIVORS_LOOKS_MAX, SURVIVORS_OF_PROCESS_MAX,
};
use crate::protocol::refusal::Refusal;
use crate::store::clients::{Peer, Presence};
use crate::store::object_table::Object;
use crate::store::{Effects, Store, WorkOutcome};
use crate::time::Timestamp;

/// Clients whose connections have ended and of which processes are left, with the memory that
/// these may still be writing to.
#[derive(Debug, Default)]
pub struct Survivors {
    clients: BTreeMap<ClientId, Vec<Ticket>>,
    /// When to look at them again.
    pub next_look: Option<Timestamp>,
    pause: Duration,
    /// Where the next look begins: a client, and a slot that it may have pinned.
    cursor: Option<(ClientId, Slot)>,
}

impl Survivors {
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

impl Store {
    /// The connection of a client has ended, in whatever way. What it waited for is forgotten, and
    /// what it was creating is removed, unless it has told in its table that it is sealed. What it
    /// held is released when no process is left that has it; until then, and until the last of it
    /// is done, it stays among the clients.
    pub fn disconnect(&mut self, client: ClientId, now: Timestamp, effects: &mut Effects) {
        self.told(now, effects, |store| {
            store.counters.clients_disconnected += 1;
            store.begin_slice();
            store.busy.remove(&client);
            store.subscriptions.unsubscribe(client);
            store.directory.end(client);
            let idle = store.quotas.get(client).map_or(0, |account| account.idle.idle_objects());
            let leaving = store.clients.get_mut(client);
            leaving.looks_left = 2 * idle;
            // What it has told of is settled first: then its table is not needed any more.
            leaving.presence = Presence::Settling(Slot(0));
            if store.leave_some(client) {
                store.finish();
            } else {
                store.jobs.leaving.push_back(client);
            }
            store.space.plan_look(now);
        });
    }

    pub(super) fn work_on_leaving(&mut self) {
        let Some(client) = self.jobs.leaving.pop_front() else { return };
        if self.leave_some(client) {
            self.finish();
        } else {
            self.jobs.leaving.push_front(client);
        }
    }

    /// Removes what a client has left, for one slice. Whether all is done that can be done now.
    fn leave_some(&mut self, client: ClientId) -> bool {
        while self.steps > 0 {
            self.steps -= 1;
            let presence = self.clients.get(client).presence;
            match presence {
                Presence::Settling(from) => self.settle_one(client, from),
                Presence::ReadingNotes(from) => {
                    // Its notes first, before its quota and what it holds are everybody's.
                    let next = self.read_notes_left(client, from);
                    let presence = next.map_or(Presence::Going, Presence::ReadingNotes);
                    self.clients.get_mut(client).presence = presence;
                }
                Presence::Surviving | Presence::Going if self.end_one(client) => {}
                Presence::Surviving if self.is_in_use(client) => {
                    self.rest(client);
                    return true;
                }
                Presence::Surviving => self.note_death(client),
                Presence::Going if self.let_go_of_one(client) => {}
                Presence::Going => {
                    self.quotas.remove(client);
                    self.clients.remove(client);
                    return true;
                }
                Presence::Here | Presence::Resting => panic!("{client} is not leaving"),
            }
        }
        false
    }

    /// Looks at one of the objects that a client was creating. At the end it is known whether the
    /// client survives.
    fn settle_one(&mut self, client: ClientId, from: Slot) {
        if let Some(slot) = self.first_unsealed(client, from) {
            self.clients.get_mut(client).presence = Presence::Settling(Slot(slot.0 + 1));
            self.settle(slot);
        } else if self.clients.get(client).said_goodbye || !self.directory.is_alive(client) {
            self.note_death(client);
        } else {
            self.clients.get_mut(client).presence = Presence::Surviving;
        }
    }

    /// Ends one thing that ends with the connection. False if there is nothing left of that.
    fn end_one(&mut self, client: ClientId) -> bool {
        if let Some(create) = self.creates.abandoned(client) {
            self.clients.wait_ended(client, create.creation.cost());
        } else if let Some(waiter) = self.waits.first_of(client) {
            self.forget_waiter(waiter);
        } else if let Some(slot) = self.first_charged(client) {
            let looks_left = &mut self.clients.get_mut(client).looks_left;
            let may_step_back = *looks_left > 0;
            *looks_left = looks_left.saturating_sub(1);
            if !(may_step_back && self.is_idle(slot) && self.step_back_if_used(slot)) {
                self.becomes_everybodys(slot);
            }
        } else if let Some(slot) = self.first_unsealed(client, Slot(0)) {
            self.remove_unsealed(client, slot);
        } else {
            return false;
        }
        true
    }

    /// Lets go of one thing that a process of the client may have used. False if there is nothing
    /// left of that.
    fn let_go_of_one(&mut self, client: ClientId) -> bool {
        let Some((slot, _)) = self.clients.get_mut(client).holds.pop_first() else {
            // Its table is gone, so each of them gets another witness or none.
            return self.look_at_parked_of(client, Slot(0)).is_some();
        };
        self.let_go(client, slot);
        true
    }

    /// A client survives, and nothing more can be done before its last process has gone.
    fn rest(&mut self, client: ClientId) {
        self.clients.get_mut(client).presence = Presence::Resting;
        self.survivors.clients.entry(client).or_default();
        self.survivors.pause = SURVIVORS_LOOK_FIRST;
        self.survivors.next_look = Some(self.now.after(SURVIVORS_LOOK_FIRST));
    }

    /// No process is left that has what this client was given.
    fn note_death(&mut self, client: ClientId) {
        let has_table = self.directory.has_joined(client);
        self.directory.leave(client);
        self.clients.get_mut(client).presence =
            if has_table { Presence::ReadingNotes(Slot(0)) } else { Presence::Going };
        for ticket in self.survivors.clients.remove(&client).unwrap_or_default() {
            self.end_transit(ticket, WorkOutcome::Done);
        }
    }

    fn first_unsealed(&self, client: ClientId, from: Slot) -> Option<Slot> {
        let first = self.unsealed.range((client, from)..).next();
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
    pub(super) fn look_at_survivors(&mut self) {
        if self.survivors.next_look.is_none_or(|at| at > self.now) {
            return;
        }
        self.look_at_some_survivors();
        let pause = (2 * self.survivors.pause).min(SURVIVORS_LOOK_LAST);
        self.survivors.pause = pause;
        self.survivors.next_look = (!self.survivors.is_empty()).then(|| self.now.after(pause));
    }

    /// Whether something of what a client was given is in use, although its connection has ended.
    fn is_in_use(&self, client: ClientId) -> bool {
        let may_be_written = self.survivors.clients.get(&client).is_some_and(|all| !all.is_empty());
        let mut is_in_use = may_be_written || !self.clients.get(client).holds.is_empty();
        is_in_use |= self.directory.has_pins(client, self.objects.slots());
        is_in_use && self.directory.is_alive(client)
    }

    /// Looks at some survivors, and at what each of them keeps from going, and goes on from there
    /// the next time. Whether something has come free.
    pub(super) fn look_at_some_survivors(&mut self) -> bool {
        let mut looks = SURVIVORS_LOOKS_MAX;
        let before = (self.parked.len(), self.survivors.clients.len());
        let (next, mut slot) = self.survivors.cursor.unwrap_or((ClientId(0), Slot(0)));
        let (earlier, later) = (..next, next..);
        let clients = &self.survivors.clients;
        let round = clients.range(later).chain(clients.range(earlier)).map(|(client, _)| *client);
        // What is still leaving sees by itself who has died.
        let round: Vec<_> = round
            .filter(|client| self.clients.get(*client).presence == Presence::Resting)
            .collect();
        for client in round {
            if self.is_in_use(client) {
                while looks > 0
                    && let Some(next) = self.look_at_parked_of(client, slot)
                {
                    looks -= 1;
                    slot = next;
                }
            } else {
                self.note_death(client);
                if !self.leave_some(client) {
                    self.jobs.leaving.push_back(client);
                }
            }
            if looks == 0 {
                self.survivors.cursor = Some((client, slot));
                break;
            }
            looks -= 1;
            slot = Slot(0);
            self.survivors.cursor = Some((ClientId(client.0 + 1), slot));
        }
        before != (self.parked.len(), self.survivors.clients.len())
    }

    /// Refuses a process that has too many survivors.
    pub(super) fn check_survivors_of(&self, peer: &Peer) -> Result<(), Refusal> {
        // All processes outside of our namespace have this number.
        if peer.pid == 0 {
            return Ok(());
        }
        let is_of_process = |client: &&ClientId| self.clients.get(**client).peer.pid == peer.pid;
        let of_process = self.survivors.clients.keys().filter(is_of_process);
        if of_process.filter(|client| self.is_in_use(**client)).count() < SURVIVORS_OF_PROCESS_MAX {
            return Ok(());
        }
        Err(Refusal::TooManyEnded(SURVIVORS_OF_PROCESS_MAX as u64))
    }
}
