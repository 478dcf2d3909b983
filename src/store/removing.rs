//! Removing sealed objects: delete, evict, and the order of eviction. Part of [`Store`].
//!
//! Before the memory of a sealed object is freed the directory is asked to retire it; an object
//! that a reader has pinned there stays.

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{DeleteOutcome, Event, Reply};
use crate::store::Store;
use crate::store::object_table::Object;

impl Store {
    pub(super) fn delete(&mut self, ids: &[ObjectId]) -> Reply {
        Reply::Deleted(ids.iter().map(|id| self.delete_one(id)).collect())
    }

    fn delete_one(&mut self, id: &ObjectId) -> DeleteOutcome {
        let Some(slot) = self.objects.find(id) else { return DeleteOutcome::NotFound };
        let object = self.objects.get(slot);
        if object.is_sealed() && object.holders == 0 && self.delete_idle(slot) {
            return DeleteOutcome::Deleted;
        }
        let object = self.objects.get_mut(slot);
        if !object.delete_pending {
            object.delete_pending = true;
            self.counters.deletes_deferred += 1;
        }
        if object.is_sealed() {
            DeleteOutcome::DeferredInUse
        } else {
            DeleteOutcome::DeferredNotSealed
        }
    }

    /// Deletes a sealed object that no client holds. False if a reader has it pinned.
    pub(super) fn delete_idle(&mut self, slot: Slot) -> bool {
        if !self.directory.retire(slot) {
            return false;
        }
        let object = self.remove_object(slot);
        self.pool.free(object.location.offset, object.size());
        self.counters.objects_deleted += 1;
        self.record(Event::Deleted {
            id: object.id,
            data_size: object.location.data_size,
            metadata_size: object.location.metadata_size,
        });
        true
    }

    /// Evicts idle objects until so many bytes are gone: everybody's first, then those that count
    /// against a quota, owner by owner.
    pub(super) fn evict(&mut self, bytes: u64) -> Reply {
        let (mut freed, mut evicted) = (0, 0);
        let mut owners: Vec<Option<ClientId>> = vec![None];
        owners.extend(self.quotas.iter().map(|(client, _)| Some(client)));
        for owner in owners {
            let mut pinned = None;
            while freed < bytes {
                let Some(slot) = self.next_idle_of(owner, pinned) else { break };
                if self.directory.retire(slot) {
                    let object = self.objects.get(slot);
                    freed += object.size();
                    evicted += 1;
                    self.pool.free(object.location.offset, object.size());
                    self.forget_evicted(slot);
                } else {
                    pinned = Some(slot);
                }
            }
        }
        Reply::Evicted { bytes: freed, objects: evicted }
    }

    fn next_idle_of(&self, owner: Option<ClientId>, last: Option<Slot>) -> Option<Slot> {
        let policy = match owner {
            None => &self.idle,
            Some(owner) => &self.quotas.get(owner)?.idle,
        };
        last.map_or_else(|| policy.first(), |slot| policy.next(slot))
    }

    /// Removes an idle object whose memory is free already.
    pub(super) fn forget_evicted(&mut self, slot: Slot) {
        let object = self.remove_object(slot);
        self.counters.objects_evicted += 1;
        self.counters.bytes_evicted += object.size();
        self.record(Event::Evicted {
            id: object.id,
            data_size: object.location.data_size,
            metadata_size: object.location.metadata_size,
        });
    }

    /// Takes an object that nobody holds out of the tables. Its memory is the caller's business.
    pub(super) fn remove_object(&mut self, slot: Slot) -> Object {
        let object = self.objects.remove(slot);
        self.used -= object.size();
        match object.account.and_then(|owner| self.quotas.get_mut(owner)) {
            Some(account) => account.discharge(slot, object.size()),
            None => self.idle.removed(slot),
        }
        self.room_appeared = true;
        self.trimming.note_freed();
        object
    }

    pub(super) fn refresh(&mut self, ids: &[ObjectId]) -> Reply {
        let touched = ids.iter().filter(|id| self.touch(id)).count();
        Reply::Refreshed { objects: u32::try_from(touched).unwrap_or(u32::MAX) }
    }

    fn touch(&mut self, id: &ObjectId) -> bool {
        let Some(slot) = self.objects.find(id) else { return false };
        match self.objects.get(slot).account.and_then(|owner| self.quotas.get_mut(owner)) {
            Some(account) => account.idle.touch(slot),
            None => self.idle.touch(slot),
        }
    }

    /// The owner of a quota leaves: what counted against it belongs to everybody, in the order that
    /// it had.
    pub(super) fn close_account(&mut self, client: ClientId) {
        let Some(account) = self.quotas.remove(client) else { return };
        let mut next = account.idle.first();
        while let Some(slot) = next {
            let object = self.objects.get_mut(slot);
            object.account = None;
            self.idle.became_idle(slot, object.size());
            next = account.idle.next(slot);
        }
        for slot in account.busy() {
            self.objects.get_mut(slot).account = None;
        }
    }
}
