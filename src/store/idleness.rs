//! Which objects are idle, and in whose order of eviction they stand. Part of [`Store`].
//!
//! An object that counts against a quota stands in the order of that account, all others in that of
//! everybody. This is the only place that changes an order, so it is also where the search for room
//! learns of it. Why an object becomes idle is not known here.
//!
//! Readers of the directory use idle objects unseen, and leave a note when: the tick, the number of
//! things that the store had been told. It is read when an object is looked at because it might go,
//! or when its reader leaves; then the object gets the place that it had deserved. Since a later
//! use can only make it safer, the object that goes first is always the right one.

use crate::eviction::EvictionPolicy;
use crate::ids::{ClientId, Slot};
use crate::store::Store;
use crate::store::object_table::Object;

impl Store {
    /// Nobody holds a sealed object any more: it is now the most recently used one that may go.
    pub(super) fn becomes_idle(&mut self, slot: Slot) {
        let object = self.objects.get(slot);
        let (size, account, offset) = (object.size(), object.account(), object.location.offset);
        let now = self.tick;
        match account {
            Some(owner) => {
                self.quotas.change(owner, |account| account.became_idle(slot, size, now));
            }
            None => self.idle.became_idle(slot, size, now),
        }
        self.note_memory(offset, size, true);
    }

    /// Somebody holds an idle object again.
    pub(super) fn becomes_busy(&mut self, slot: Slot) {
        self.leaves_its_place(slot);
        match self.objects.get(slot).account() {
            Some(owner) => {
                self.quotas.change(owner, |account| account.became_busy(slot));
            }
            None => self.idle.became_busy(slot),
        }
    }

    /// An idle object becomes the most recently used one. False if it is not idle.
    pub(super) fn becomes_recent(&mut self, slot: Slot) -> bool {
        self.leaves_its_place(slot);
        let object = self.objects.get(slot);
        let (size, account, offset) = (object.size(), object.account(), object.location.offset);
        let now = self.tick;
        let order = self.order_to_change(account);
        let was_idle = order.is_some_and(|order| order.touch(slot, now));
        // The search may not have seen it, and may have passed where it is now.
        if was_idle {
            self.note_memory(offset, size, true);
        }
        was_idle
    }

    /// Gives an idle object that might go another place if readers have used it since it got its
    /// own. Whether others go first now.
    pub(super) fn step_back_if_used(&mut self, slot: Slot) -> bool {
        let owner = self.objects.get(slot).account();
        let next = self.idle_after(owner, slot);
        self.charge_look();
        let used_at = self.directory.last_release(slot);
        self.was_used(slot, used_at) && self.idle_after(owner, slot) != next
    }

    /// A reader has used an idle object at this tick. False if its place shows that already.
    fn was_used(&mut self, slot: Slot, used_at: u64) -> bool {
        let used_at = used_at.min(self.tick);
        let owner = self.objects.get(slot).account();
        let Some(order) = self.order_of(owner) else { return false };
        // In the tick of its place: after it, since that was given by the request.
        if used_at < order.placed_at(slot) || used_at == 0 {
            return false;
        }
        self.leaves_its_place(slot);
        if let Some(order) = self.order_to_change(owner) {
            order.was_used(slot, used_at);
        }
        true
    }

    /// Reads some of the notes that a reader has left who has gone, from this slot on. Returns
    /// where to go on, nothing at the end.
    pub(super) fn read_notes_left(&mut self, client: ClientId, from: Slot) -> Option<Slot> {
        let mut notes = Vec::new();
        let slots = from.0..self.objects.slots().end;
        let next = self.directory.releases_left(client, slots, &mut |slot, used_at| {
            notes.push((slot, used_at));
        });
        for (slot, used_at) in notes {
            self.steps = self.steps.saturating_sub(1);
            let object = self.objects.try_get(slot);
            if object.is_some_and(Object::is_sealed) && self.is_idle(slot) {
                self.was_used(slot, used_at);
            }
        }
        next
    }

    fn order_of(&self, owner: Option<ClientId>) -> Option<&dyn EvictionPolicy> {
        match owner {
            None => Some(&*self.idle),
            Some(owner) => Some(&*self.quotas.get(owner)?.idle),
        }
    }

    /// The same, to be changed without a change of what is in it.
    fn order_to_change(&mut self, owner: Option<ClientId>) -> Option<&mut dyn EvictionPolicy> {
        match owner {
            None => Some(&mut *self.idle),
            Some(owner) => self.quotas.order_of(owner),
        }
    }

    /// An object, idle or not, is gone.
    pub(super) fn leaves_order(&mut self, slot: Slot, object: &Object) {
        self.leaves_its_place(slot);
        match object.account() {
            Some(owner) => {
                self.quotas.change(owner, |account| account.discharge(slot, object.size()));
            }
            None => self.idle.removed(slot),
        }
    }

    /// An object does not count against its owner's quota any more. If it is idle it is now the
    /// most recently used one of everybody's.
    pub(super) fn becomes_everybodys(&mut self, slot: Slot) {
        self.leaves_its_place(slot);
        let object = self.objects.get_mut(slot);
        let (size, offset) = (object.size(), object.location.offset);
        let is_idle = object.is_unused();
        let owner = object.leave_account().expect("only charged objects leave a quota");
        self.quotas.change(owner, |account| account.discharge(slot, size));
        if is_idle {
            self.idle.became_idle(slot, size, self.tick);
            self.note_memory(offset, size, true);
        }
    }

    /// Whether it may go.
    pub(super) fn is_idle(&self, slot: Slot) -> bool {
        self.order_of(self.objects.get(slot).account()).is_some_and(|order| order.is_idle(slot))
    }

    /// The idle object of an owner, or of everybody, that is to go first.
    pub(super) fn first_idle(&self, owner: Option<ClientId>) -> Option<Slot> {
        self.order_of(owner)?.first()
    }

    /// The idle object to go after this one.
    pub(super) fn idle_after(&self, owner: Option<ClientId>, slot: Slot) -> Option<Slot> {
        self.order_of(owner)?.next(slot)
    }

    /// The memory of an object that is gone is free.
    pub(super) fn free_memory(&mut self, object: &Object) {
        let (offset, size) = (object.location.offset, object.size());
        self.space.free(offset, size, size);
        self.note_memory(offset, size, false);
    }

    /// These bytes are free, in transit, or of an object that may go now: a create that waits may
    /// fit.
    pub(super) fn note_memory(&mut self, offset: u64, size: u64, is_idle: bool) {
        if let Some((_, search)) = &mut self.search {
            search.note_memory(&self.space, offset, size, is_idle);
        }
    }

    /// Before an object leaves its place in an order: a search for room that goes on from there
    /// goes on from the next one.
    fn leaves_its_place(&mut self, slot: Slot) {
        if let Some((turn, mut search)) = self.search.take() {
            search.step_off(slot, |owner, slot| self.idle_after(owner, slot));
            self.search = Some((turn, search));
        }
    }
}
