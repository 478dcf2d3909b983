//! Objects that readers of the directory have pinned without asking. Part of [`Store`].
//!
//! As long as nobody wants the memory of an object, the store neither knows nor cares who reads it:
//! it is idle. When it is to go and turns out to be pinned, the store takes a hold on it for the
//! sake of those readers, so it is in use like any other that a client holds, and nobody looks at
//! it again and again: it is *parked*. One client that has it pinned is its *witness*. A client
//! that takes its last pin out of its table tells, or its table goes with its connection; then the
//! store looks again, and either finds the next witness or lets go.
//!
//! So a parked object costs nothing until somebody tells, and who tells is somebody the store knows
//! to be there. A client that never tells keeps the object, as if it never released it.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ClientId, Slot};
use crate::store::Store;

/// Pin tables that are looked at in one step.
const TABLES_PER_STEP: usize = 32;

/// What the store holds for readers that it does not see.
#[derive(Debug, Default)]
pub struct Parked {
    witnesses: BTreeMap<Slot, ClientId>,
    by_witness: BTreeSet<(ClientId, Slot)>,
}

impl Parked {
    pub fn contains(&self, slot: Slot) -> bool {
        self.witnesses.contains_key(&slot)
    }

    pub fn len(&self) -> usize {
        self.witnesses.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        self.witnesses.keys().copied()
    }

    /// This client has the object pinned; another one may have done so before.
    fn set(&mut self, slot: Slot, witness: ClientId) {
        if let Some(former) = self.witnesses.insert(slot, witness) {
            self.by_witness.remove(&(former, slot));
        }
        self.by_witness.insert((witness, slot));
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(witness) = self.witnesses.remove(&slot) {
            self.by_witness.remove(&(witness, slot));
        }
    }

    /// Checks that both books agree.
    pub fn check_invariants(&self) {
        let pairs = self.witnesses.iter().map(|(slot, client)| (*client, *slot));
        let both: BTreeSet<_> = pairs.collect();
        assert_eq!(both, self.by_witness, "each parked object has one witness");
    }
}

impl Store {
    /// Takes a sealed object that no client holds back from the readers. False if one has it
    /// pinned: then it is in use until the last of them has let go.
    pub(super) fn retire(&mut self, slot: Slot) -> bool {
        self.charge_look();
        if self.directory.retire(slot).is_ok() {
            return true;
        }
        self.charge_look();
        self.directory.ask_to_tell(slot);
        match self.directory.retire(slot) {
            Ok(()) => {
                self.directory.stop_asking(slot);
                true
            }
            Err(witness) => {
                self.park(slot, witness);
                false
            }
        }
    }

    /// Before it is seen whether readers have an object pinned, or used it: that takes many steps,
    /// if there are many readers.
    pub(super) fn charge_look(&mut self) {
        self.steps = self.steps.saturating_sub(self.look_steps());
    }

    /// So many steps more than what costs one in any case.
    pub(super) fn look_steps(&self) -> usize {
        self.directory.tables() / TABLES_PER_STEP
    }

    /// If readers have it pinned, it is in use from now on. Whether they have.
    pub(super) fn park_if_pinned(&mut self, slot: Slot) -> bool {
        let is_free = self.retire(slot);
        if is_free {
            self.directory.restore(slot);
        }
        !is_free
    }

    fn park(&mut self, slot: Slot, witness: ClientId) {
        self.counters.objects_parked += 1;
        self.parked.set(slot, witness);
        // It is not idle if its last holder has let go of it just now.
        if self.is_idle(slot) {
            self.becomes_busy(slot);
        }
        self.objects.get_mut(slot).holders += 1;
    }

    /// A reader says that it has taken the last of its pins on this slot. As long as the witness
    /// has not said so, nothing has changed.
    pub(super) fn unpinned(&mut self, client: ClientId, slot: Slot) {
        if self.parked.by_witness.contains(&(client, slot)) {
            self.look_at_parked(slot);
        }
    }

    /// Somebody may have let go of a parked object.
    fn look_at_parked(&mut self, slot: Slot) {
        self.charge_look();
        match self.directory.pinned_by(slot) {
            Some(witness) => self.parked.set(slot, witness),
            None => {
                self.parked.remove(slot);
                self.directory.stop_asking(slot);
                self.lose_holder(slot);
            }
        }
    }

    /// Looks again at one of the objects that are parked because of a client that cannot tell any
    /// more, from this slot on. Returns where to go on, nothing if there is none.
    pub(super) fn look_at_parked_of(&mut self, client: ClientId, from: Slot) -> Option<Slot> {
        let parked = self.parked.by_witness.range((client, from)..).next();
        let (_, slot) = parked.filter(|(witness, _)| *witness == client).copied()?;
        self.look_at_parked(slot);
        Some(Slot(slot.0 + 1))
    }
}
