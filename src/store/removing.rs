//! Removing sealed objects one by one: delete and evict, and their order. Part of [`Store`].
//!
//! Before the memory of a sealed object is freed it is taken back from the readers of the
//! directory; one that they have pinned stays, see [`pinned`](super::pinned).

use crate::ids::{Location, ObjectId, Slot};
use crate::protocol::message::{DeleteOutcome, Event};
use crate::store::Store;
use crate::store::object_table::Object;

impl Store {
    pub(super) fn delete(&mut self, id: &ObjectId) -> DeleteOutcome {
        let Some(slot) = self.find_settled(id) else { return DeleteOutcome::NotFound };
        let object = self.objects.get(slot);
        if object.is_unused() && self.delete_idle(slot) {
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
        let Some(Object { id, location, .. }) = self.remove_idle(slot) else { return false };
        self.counters.objects_deleted += 1;
        let Location { data_size, metadata_size, .. } = location;
        self.record(Event::Deleted { id, data_size, metadata_size });
        true
    }

    /// Evicts an idle object. False if a reader has it pinned.
    pub(super) fn evict_idle(&mut self, slot: Slot) -> bool {
        let Some(Object { id, location, .. }) = self.remove_idle(slot) else { return false };
        self.counters.objects_evicted += 1;
        self.counters.bytes_evicted += location.size();
        let Location { data_size, metadata_size, .. } = location;
        self.record(Event::Evicted { id, data_size, metadata_size });
        true
    }

    fn remove_idle(&mut self, slot: Slot) -> Option<Object> {
        if !self.retire(slot) {
            return None;
        }
        let object = self.remove_object(slot);
        self.free_memory(&object);
        Some(object)
    }

    /// Takes an object that nobody holds out of the tables. Its memory is the caller's business.
    pub(super) fn remove_object(&mut self, slot: Slot) -> Object {
        let object = self.objects.remove(slot);
        self.directory.remove(slot, &object.id);
        self.leaves_order(slot, &object);
        object
    }

    /// An object counts as used. False if it is not idle.
    pub(super) fn refresh(&mut self, id: &ObjectId) -> bool {
        let Some(slot) = self.find_settled(id) else { return false };
        if !self.is_idle(slot) {
            return false;
        }
        self.charge_look();
        self.directory.pinned_by(slot).is_none() && self.becomes_recent(slot)
    }
}
