//! Removing objects in the model: delete, evict, and the order in which idle objects go.

use super::order::Order;
use super::{Model, Object, Seen};
use crate::ids::ObjectId;
use crate::protocol::message::{DeleteOutcome, Event, Reply};

impl Model {
    pub(super) fn delete(&mut self, id: ObjectId, seen: &mut Seen) -> DeleteOutcome {
        let Some(object) = self.objects.get_mut(&id) else { return DeleteOutcome::NotFound };
        if object.is_evictable() {
            self.remove_deleted(id, seen);
            return DeleteOutcome::Deleted;
        }
        if object.is_idle() {
            self.park(id, seen);
        }
        let object = self.objects.get_mut(&id).unwrap();
        self.counters.deletes_deferred += u64::from(!object.delete_pending);
        object.delete_pending = true;
        match object.sealed {
            Some(_) => DeleteOutcome::DeferredInUse,
            None => DeleteOutcome::DeferredNotSealed,
        }
    }

    pub(super) fn remove_deleted(&mut self, id: ObjectId, seen: &mut Seen) {
        assert_eq!(seen.gone.pop_front(), Some(id), "the object to be deleted goes");
        let (data_size, metadata_size) = self.sizes(&id);
        self.record(Event::Deleted { id, data_size, metadata_size });
        self.counters.objects_deleted += 1;
        self.remove(id);
    }

    pub(super) fn remove_evicted(&mut self, id: ObjectId) {
        let (data_size, metadata_size) = self.sizes(&id);
        self.record(Event::Evicted { id, data_size, metadata_size });
        self.counters.objects_evicted += 1;
        self.counters.bytes_evicted += data_size + metadata_size;
        self.remove(id);
    }

    pub(super) fn remove(&mut self, id: ObjectId) -> Object {
        self.order_of(&id).forget(&id);
        self.objects.remove(&id).expect("only what is there is removed")
    }

    /// Everybody's idle objects first, then those of each quota by client, oldest first. What a
    /// reader has pinned is in use from now on.
    pub(super) fn evict(&mut self, bytes: u64, seen: &mut Seen) -> Reply {
        let (mut freed, mut objects) = (0, 0);
        let charged = self.clients.values().flat_map(|client| client.idle.ids());
        let order: Vec<ObjectId> = self.everybodys.ids().into_iter().chain(charged).collect();
        for id in order {
            if freed < bytes && !self.objects[&id].pins.is_empty() {
                self.park(id, seen);
            } else if freed < bytes {
                assert_eq!(seen.gone.pop_front(), Some(id), "the oldest idle object goes");
                freed += self.objects[&id].size();
                objects += 1;
                self.remove_evicted(id);
            }
        }
        Reply::Evicted { bytes: freed, objects }
    }

    pub(super) fn touch(&mut self, id: ObjectId) -> bool {
        let now = self.tick;
        let is_idle = self.objects.get(&id).is_some_and(|object| object.pins.is_empty());
        is_idle && self.order_of(&id).touch(id, now)
    }

    /// The list that the object is on when it is idle.
    pub(super) fn order_of(&mut self, id: &ObjectId) -> &mut Order {
        match self.objects[id].account {
            Some(owner) => &mut self.clients.get_mut(&owner).unwrap().idle,
            None => &mut self.everybodys,
        }
    }
}
