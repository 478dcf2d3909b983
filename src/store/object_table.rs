//! All objects of the store, sealed or being created, by slot and by id.
//!
//! An object lives in a slot, a small number that stays the same for its life and is reused
//! afterwards; everything else in the store refers to it by that. The index from id to slot
//! compares ids in place, which keeps an object's whole book-keeping near 150 bytes. No single call
//! takes longer for there being more objects. Who waits for an object and how the policy orders it
//! is not known here.

use std::num::NonZeroU64;

use crate::ids::{ClientId, Location, ObjectId, Slot};
use crate::slab::Slab;
use crate::store::id_index::IdIndex;

/// Where an object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its creator writes it. The creator is connected and the only holder.
    Created {
        /// Who may write, seal and abort it.
        creator: ClientId,
    },
    /// It never changes any more.
    Sealed {
        /// The number of its event, which tells whether a snapshot has to name it.
        event: u64,
    },
}

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its name.
    pub id: ObjectId,
    /// Where its bytes are.
    pub location: Location,
    /// Created or sealed.
    pub state: State,
    /// Number of distinct clients that hold it.
    pub holders: u32,
    /// It goes when the last holder lets go. A field of the object, so that it cannot survive it.
    pub delete_pending: bool,
    /// The store holds it until all who waited for it have been told.
    pub is_waking: bool,
    /// The number of the client whose quota it counts against: half as large as an optional id.
    owner: Option<NonZeroU64>,
    /// Which object this is, given by `ObjectTable::insert` from 1 on: slots are reused, this
    /// never is.
    pub generation: u64,
}

impl Object {
    /// An object that its creator is going to hold, and whose quota it counts against if there is
    /// one.
    pub fn new(id: ObjectId, location: Location, creator: ClientId, has_quota: bool) -> Self {
        let owner = NonZeroU64::new(creator.0).filter(|_| has_quota);
        let state = State::Created { creator };
        Self {
            id,
            location,
            state,
            holders: 0,
            delete_pending: false,
            is_waking: false,
            owner,
            generation: 0,
        }
    }

    /// The client whose quota it counts against.
    pub fn account(&self) -> Option<ClientId> {
        self.owner.map(|owner| ClientId(owner.get()))
    }

    /// It counts against nobody's quota any more.
    pub fn leave_account(&mut self) -> Option<ClientId> {
        self.owner.take().map(|owner| ClientId(owner.get()))
    }

    /// Bytes of data and metadata.
    pub const fn size(&self) -> u64 {
        self.location.size()
    }

    /// Whether it is sealed.
    pub const fn is_sealed(&self) -> bool {
        matches!(self.state, State::Sealed { .. })
    }

    /// Whether it is sealed and nobody holds it.
    pub const fn is_unused(&self) -> bool {
        self.is_sealed() && self.holders == 0
    }
}

/// All objects.
#[derive(Debug, Default)]
pub struct ObjectTable {
    slots: Slab<Option<Object>>,
    /// The slots from here on have never been used.
    fresh: u32,
    /// The slots before that one that are free; the first `free_count` of them count.
    free: Slab<u32>,
    free_count: usize,
    index: IdIndex,
    last_generation: u64,
}

impl ObjectTable {
    pub const fn len(&self) -> usize {
        self.index.len()
    }

    pub fn find(&self, id: &ObjectId) -> Option<Slot> {
        self.index.find(id, |slot| self.get(slot).id == *id)
    }

    /// The object in a slot, if there is one.
    pub fn try_get(&self, slot: Slot) -> Option<&Object> {
        self.slots.get(slot.index())?.as_ref()
    }

    /// The object in a slot that is in use.
    pub fn get(&self, slot: Slot) -> &Object {
        self.try_get(slot).expect("the slot is in use")
    }

    /// The object in a slot that is in use, to be changed. Its id must stay.
    pub fn get_mut(&mut self, slot: Slot) -> &mut Object {
        let object = self.slots.get_mut(slot.index()).and_then(Option::as_mut);
        object.expect("the slot is in use")
    }

    /// Adds an object whose id is not there yet, and gives it its generation.
    pub fn insert(&mut self, mut object: Object) -> Slot {
        debug_assert!(self.find(&object.id).is_none(), "an id is inserted once");
        self.last_generation += 1;
        object.generation = self.last_generation;
        let slot = self.take_slot();
        self.index.insert(&object.id, slot);
        *self.slots.entry(slot.index()) = Some(object);
        slot
    }

    /// Takes an object out; its slot may be reused from now on.
    pub fn remove(&mut self, slot: Slot) -> Object {
        let taken = self.slots.get_mut(slot.index()).and_then(Option::take);
        let object = taken.expect("the slot is in use");
        self.index.remove(&object.id, slot);
        *self.free.entry(self.free_count) = slot.0;
        self.free_count += 1;
        object
    }

    /// All slots that have ever been used.
    pub const fn slots(&self) -> std::ops::Range<u32> {
        0..self.fresh
    }

    /// The objects in the slots from `cursor` on, in slot order.
    pub fn iter_from(&self, cursor: u32) -> impl Iterator<Item = (Slot, &Object)> {
        self.slots_from(cursor).filter_map(|(slot, object)| object.map(|object| (slot, object)))
    }

    /// All slots from `cursor` on that have ever been used, those without an object included.
    pub fn slots_from(&self, cursor: u32) -> impl Iterator<Item = (Slot, Option<&Object>)> {
        (cursor..self.fresh).map(Slot).map(|slot| (slot, self.try_get(slot)))
    }

    fn take_slot(&mut self) -> Slot {
        if let Some(last) = self.free_count.checked_sub(1) {
            self.free_count = last;
            return Slot(*self.free.entry(last));
        }
        let slot = Slot(self.fresh);
        self.fresh += 1;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;

    fn object(byte: u8) -> Object {
        let location =
            Location { segment: SegmentId(0), offset: 0, data_size: 1, metadata_size: 0 };
        Object::new(ObjectId::from([byte; 20]), location, ClientId(1), false)
    }

    #[test]
    fn a_slot_is_reused_and_the_index_follows() {
        let mut table = ObjectTable::default();
        let slots: Vec<Slot> = (0..100).map(|byte| table.insert(object(byte))).collect();
        assert_eq!(table.len(), 100);
        table.remove(slots[7]);
        assert_eq!(table.find(&object(7).id), None);
        let reused = table.insert(object(200));
        assert_eq!(reused, slots[7]);
        assert_eq!((table.get(slots[0]).generation, table.get(reused).generation), (1, 101));
        assert_eq!(table.find(&object(200).id), Some(reused));
        assert_eq!(table.iter_from(u32::MAX).count(), 0);
        assert_eq!(
            table.iter_from(98).map(|(_, o)| o.id).collect::<Vec<_>>(),
            [object(98).id, object(99).id]
        );
    }

    #[test]
    fn an_object_costs_little() {
        assert!(size_of::<Option<Object>>() <= 96, "{} bytes", size_of::<Option<Object>>());
    }
}
