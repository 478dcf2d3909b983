//! A directory without shared memory: what the real one promises, in a map.
//!
//! Readers pin what is published without the store's knowledge, between its steps. The twin checks
//! that the store only takes back what it has published, and remembers in which order it did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::ids::{Location, ObjectId, Slot};
use crate::store::directory::Directory;

/// Shared by the store, which publishes, and the simulation, which reads.
#[derive(Debug, Clone, Default)]
pub struct Twin(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    published: BTreeMap<Slot, (ObjectId, Location)>,
    /// What was taken back in this step and not restored, oldest first.
    retired: Vec<(Slot, ObjectId, Location)>,
    /// What readers have pinned.
    pub pinned: BTreeSet<ObjectId>,
}

impl Twin {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock and goes on")
    }
}

impl State {
    /// What has gone since this was last asked.
    pub fn take_gone(&mut self) -> impl Iterator<Item = ObjectId> {
        self.retired.drain(..).map(|(_, id, _)| id)
    }

    /// What readers find, and where.
    pub fn published(&self) -> BTreeMap<ObjectId, Location> {
        self.published.values().copied().collect()
    }
}

impl Directory for Twin {
    fn publish(&mut self, slot: Slot, id: &ObjectId, location: &Location) {
        let former = self.state().published.insert(slot, (*id, *location));
        assert_eq!(former, None, "a slot is published once");
    }

    fn retire(&mut self, slot: Slot) -> bool {
        let mut state = self.state();
        let (id, location) = state.published[&slot];
        if state.pinned.contains(&id) {
            return false;
        }
        state.published.remove(&slot);
        state.retired.push((slot, id, location));
        true
    }

    fn restore(&mut self, slot: Slot) {
        let mut state = self.state();
        let last = state.retired.iter().rposition(|(retired, ..)| *retired == slot);
        let (_, id, location) =
            state.retired.remove(last.expect("only what is retired is restored"));
        let former = state.published.insert(slot, (id, location));
        assert_eq!(former, None, "nothing else is in the slot of what is restored");
    }
}
