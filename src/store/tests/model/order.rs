//! The order of eviction, kept in plain vectors: the idle objects of one list, first to go first.
//!
//! What the policies promise is written at the top of `eviction/lru.rs` and
//! `eviction/segmented.rs`.

use std::collections::BTreeSet;

use crate::eviction::PolicyKind;
use crate::ids::ObjectId;

/// Per cent of the idle bytes that the segmented policy may protect.
const PROTECTED_PERCENT: u64 = 80;

/// Idle objects with their sizes.
#[derive(Debug, Clone)]
pub struct Order {
    kind: PolicyKind,
    /// All of them with plain LRU; those used once with the segmented policy.
    once: Vec<(ObjectId, u64)>,
    /// Those used again, with the segmented policy.
    again: Vec<(ObjectId, u64)>,
    /// Objects in use that were idle here before.
    known: BTreeSet<ObjectId>,
}

impl Order {
    pub fn new(kind: PolicyKind) -> Self {
        Self { kind, once: Vec::new(), again: Vec::new(), known: BTreeSet::new() }
    }

    /// First to go first.
    pub fn ids(&self) -> Vec<ObjectId> {
        self.once.iter().chain(&self.again).map(|(id, _)| *id).collect()
    }

    pub fn bytes(&self) -> u64 {
        total(&self.once) + total(&self.again)
    }

    pub fn contains(&self, id: &ObjectId) -> bool {
        self.once.iter().chain(&self.again).any(|(idle, _)| idle == id)
    }

    pub fn became_idle(&mut self, id: ObjectId, size: u64) {
        assert!(!self.contains(&id), "the model makes {id} idle once");
        let is_known = self.known.remove(&id);
        self.push(is_known, id, size);
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
    pub fn touch(&mut self, id: ObjectId) -> bool {
        let Some(size) = self.take(&id) else { return false };
        self.push(true, id, size);
        true
    }

    fn push(&mut self, was_used_before: bool, id: ObjectId, size: u64) {
        match self.kind {
            PolicyKind::Segmented if was_used_before => self.again.push((id, size)),
            PolicyKind::Segmented | PolicyKind::Lru => self.once.push((id, size)),
        }
        self.settle();
    }

    fn take(&mut self, id: &ObjectId) -> Option<u64> {
        [&mut self.once, &mut self.again].into_iter().find_map(|list| {
            let index = list.iter().position(|(idle, _)| idle == id)?;
            Some(list.remove(index).1)
        })
    }

    fn settle(&mut self) {
        while total(&self.again) * 100 > self.bytes() * PROTECTED_PERCENT {
            let oldest = self.again.remove(0);
            self.once.push(oldest);
        }
    }
}

fn total(list: &[(ObjectId, u64)]) -> u64 {
    list.iter().map(|(_, size)| size).sum()
}
