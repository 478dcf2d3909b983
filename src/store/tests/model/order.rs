//! The order of eviction, kept in plain vectors: the idle objects of one list, first to go first.
//!
//! What readers use unseen has its place at once here; the store finds out later, which must come
//! to the same.
//!
//! What the policies promise is written at the top of `eviction/lru.rs` and
//! `eviction/segmented.rs`.

use std::collections::BTreeSet;

use crate::eviction::PolicyKind;
use crate::ids::{ObjectId, Slot};

/// Per cent of the idle bytes that the segmented policy may protect.
const PROTECTED_PERCENT: u64 = 80;

/// Idle objects with their sizes.
#[derive(Debug, Clone)]
pub struct Order {
    kind: PolicyKind,
    /// All of them with plain LRU; those used once with the segmented policy.
    once: Vec<Idle>,
    /// Those used again, with the segmented policy.
    again: Vec<Idle>,
    /// Objects in use that were idle here before.
    known: BTreeSet<ObjectId>,
    latest: Key,
}

/// When an object was used last: the tick, and the place within the tick.
type Key = (u64, u32, u32);

#[derive(Debug, Clone, Copy)]
struct Idle {
    id: ObjectId,
    size: u64,
    used: Key,
}

impl Order {
    pub fn new(kind: PolicyKind) -> Self {
        Self {
            kind,
            once: Vec::new(),
            again: Vec::new(),
            known: BTreeSet::new(),
            latest: (0, 0, 0),
        }
    }

    /// First to go first.
    pub fn ids(&self) -> Vec<ObjectId> {
        self.once.iter().chain(&self.again).map(|idle| idle.id).collect()
    }

    pub fn bytes(&self) -> u64 {
        total(&self.once) + total(&self.again)
    }

    pub fn contains(&self, id: &ObjectId) -> bool {
        self.once.iter().chain(&self.again).any(|idle| idle.id == *id)
    }

    pub fn became_idle(&mut self, id: ObjectId, size: u64, now: u64) {
        assert!(!self.contains(&id), "the model makes {id} idle once");
        let is_known = self.known.remove(&id);
        self.push(is_known, id, size, now);
    }

    /// A reader has used it, at this tick; the store has it in this slot.
    pub fn was_used(&mut self, id: ObjectId, tick: u64, slot: Slot) {
        let idle = self.once.iter_mut().find(|idle| idle.id == id).expect("it is idle");
        if tick >= idle.used.0 && tick > 0 {
            idle.used = (tick, u32::MAX, slot.0);
            self.once.sort_by_key(|idle| idle.used);
        }
    }

    pub fn became_busy(&mut self, id: ObjectId) {
        self.take(&id).expect("the model makes idle objects busy");
        self.known.insert(id);
        self.settle();
    }

    /// Whatever the object was here, it is unknown now.
    pub fn forget(&mut self, id: &ObjectId) {
        self.take(id);
        self.known.remove(id);
        self.settle();
    }

    /// As if it had been used. False if it is not idle here.
    pub fn touch(&mut self, id: ObjectId, now: u64) -> bool {
        let Some(size) = self.take(&id) else { return false };
        self.push(true, id, size, now);
        true
    }

    fn push(&mut self, was_used_before: bool, id: ObjectId, size: u64, now: u64) {
        let (tick, order, _) = self.latest;
        self.latest = (now, if tick == now { order + 1 } else { 0 }, 0);
        let idle = Idle { id, size, used: self.latest };
        match self.kind {
            PolicyKind::Segmented if was_used_before => self.again.push(idle),
            PolicyKind::Segmented => self.once.push(idle),
            PolicyKind::Lru => {
                self.once.push(idle);
                self.once.sort_by_key(|idle| idle.used);
            }
        }
        self.settle();
    }

    fn take(&mut self, id: &ObjectId) -> Option<u64> {
        [&mut self.once, &mut self.again].into_iter().find_map(|list| {
            let index = list.iter().position(|idle| idle.id == *id)?;
            Some(list.remove(index).size)
        })
    }

    fn settle(&mut self) {
        while total(&self.again) * 100 > self.bytes() * PROTECTED_PERCENT {
            let oldest = self.again.remove(0);
            self.once.push(oldest);
        }
    }
}

fn total(list: &[Idle]) -> u64 {
    list.iter().map(|idle| idle.size).sum()
}
