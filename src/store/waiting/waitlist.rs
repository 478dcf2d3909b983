//! Requests that wait for objects to be sealed: `get` and `wait`.
//!
//! A waiter owns the *set* of distinct ids it still misses, so ids that are named twice are counted
//! once, and everybody else knows it by its [`WaiterId`] only. Three ordered indexes find waiters
//! by missing id, by deadline and by who asked; each change costs the logarithm of their number.
//! What a reply looks like is not known here, and neither is the clock.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ClientId, ObjectId};
use crate::protocol::message::RequestId;
use crate::store::clients::{Asked, WaitCost};
use crate::time::Timestamp;

/// Names a waiter; counts up, so their order is the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterId(u64);

impl WaiterId {
    /// Before all waiters.
    pub const FIRST: Self = Self(0);

    /// Behind all waiters.
    const LAST: Self = Self(u64::MAX);

    const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a waiter wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All objects. Those that are there are held for the client while it waits.
    Get {
        /// Give up when the creator of a missing object does.
        fail_if_abandoned: bool,
    },
    /// To know when so many ids have been seen sealed. Nothing is held.
    Seen {
        /// How many distinct ids are still to come.
        remaining: usize,
    },
}

/// One waiting request.
#[derive(Debug)]
pub struct Waiter {
    /// Who waits, and is to be answered.
    pub asked: Asked,
    /// The ids as they were asked for.
    pub ids: Vec<ObjectId>,
    /// The ids that are not sealed yet, each with how often it was named.
    pub missing: BTreeMap<ObjectId, u32>,
    pub want: Want,
    /// When it is answered at the latest.
    pub deadline: Option<Timestamp>,
}

impl Waiter {
    /// What it keeps in memory.
    pub const fn cost(&self) -> WaitCost {
        WaitCost { ids: self.ids.len(), bytes: 0 }
    }

    fn is_complete(&self) -> bool {
        match self.want {
            Want::Get { .. } => self.missing.is_empty(),
            Want::Seen { remaining } => remaining == 0,
        }
    }
}

/// What a seal did to one waiter.
#[derive(Debug)]
pub struct Progress {
    /// Who waited.
    pub client: ClientId,
    /// Holds to take for that client: how often a get named the id; none for a wait.
    pub holds: u32,
    /// The waiter itself, if it has all it wants.
    pub completed: Option<Waiter>,
}

/// All requests that wait for objects.
#[derive(Debug, Default)]
pub struct Waitlist {
    waiters: BTreeMap<WaiterId, Waiter>,
    by_object: BTreeSet<(ObjectId, WaiterId)>,
    by_deadline: BTreeSet<(Timestamp, WaiterId)>,
    by_asked: BTreeSet<(Asked, WaiterId)>,
    next_id: u64,
}

impl Waitlist {
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Adds a waiter that misses at least one id.
    pub fn add(&mut self, waiter: Waiter) {
        debug_assert!(!waiter.is_complete(), "a complete request does not wait");
        self.next_id += 1;
        let id = WaiterId(self.next_id);
        self.by_object.extend(waiter.missing.keys().map(|object| (*object, id)));
        self.by_deadline.extend(waiter.deadline.map(|deadline| (deadline, id)));
        self.by_asked.insert((waiter.asked, id));
        self.waiters.insert(id, waiter);
    }

    /// The name of the waiter that came last.
    pub const fn last(&self) -> WaiterId {
        WaiterId(self.next_id)
    }

    /// An object has been sealed: what that means to the next one who waited for it, in order of
    /// arrival.
    pub fn sealed(&mut self, object: &ObjectId) -> Option<Progress> {
        let id = self.waiting_for(object, WaiterId::FIRST).next()?;
        self.by_object.remove(&(*object, id));
        let waiter = self.waiters.get_mut(&id).expect("indexed waiters exist");
        let named = waiter.missing.remove(object).expect("indexed ids are missing");
        let client = waiter.asked.client;
        let holds = match &mut waiter.want {
            Want::Get { .. } => named,
            Want::Seen { remaining } => {
                *remaining -= 1;
                0
            }
        };
        let completed = waiter.is_complete().then(|| self.remove(id));
        Some(Progress { client, holds, completed })
    }

    pub fn is_awaited(&self, object: &ObjectId) -> bool {
        self.waiting_for(object, WaiterId::FIRST).next().is_some()
    }

    /// The creator of an object gave up: looks at the next one who waits for it, from `from` to
    /// `last`, and takes it out if it wants to know. Returns where to look next.
    pub fn abandoned(
        &mut self,
        object: &ObjectId,
        from: WaiterId,
        last: WaiterId,
    ) -> Option<(WaiterId, Option<Waiter>)> {
        let id = self.waiting_for(object, from).next().filter(|id| *id <= last)?;
        let wants_to_know = matches!(self.waiters[&id].want, Want::Get { fail_if_abandoned: true });
        Some((id.next(), wants_to_know.then(|| self.remove(id))))
    }

    /// Takes out one waiter whose deadline has come.
    pub fn expired(&mut self, now: Timestamp) -> Option<Waiter> {
        let (deadline, id) = *self.by_deadline.first()?;
        (deadline <= now).then(|| self.remove(id))
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out the waiter of one request.
    pub fn cancelled(&mut self, asked: Asked) -> Option<Waiter> {
        let all = (asked, WaiterId::FIRST)..=(asked, WaiterId::LAST);
        let (_, id) = *self.by_asked.range(all).next()?;
        Some(self.remove(id))
    }

    /// Takes out one waiter of a client that left.
    pub fn disconnected(&mut self, client: ClientId) -> Option<Waiter> {
        let first = (Asked { client, request: RequestId(0) }, WaiterId::FIRST);
        let (asked, id) = *self.by_asked.range(first..).next()?;
        (asked.client == client).then(|| self.remove(id))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.values()
    }

    fn waiting_for(
        &self,
        object: &ObjectId,
        from: WaiterId,
    ) -> impl Iterator<Item = WaiterId> + use<'_> {
        let last = (*object, WaiterId::LAST);
        self.by_object.range((*object, from)..=last).map(|(_, id)| *id)
    }

    fn remove(&mut self, id: WaiterId) -> Waiter {
        let waiter = self.waiters.remove(&id).expect("the waiter exists");
        for object in waiter.missing.keys() {
            self.by_object.remove(&(*object, id));
        }
        if let Some(deadline) = waiter.deadline {
            self.by_deadline.remove(&(deadline, id));
        }
        self.by_asked.remove(&(waiter.asked, id));
        waiter
    }

    /// Checks that the indexes agree with the waiters.
    pub fn check_invariants(&self) {
        let mut missing = 0;
        for (id, waiter) in &self.waiters {
            assert!(!waiter.is_complete(), "a waiter misses something");
            for object in waiter.missing.keys() {
                assert!(self.by_object.contains(&(*object, *id)), "a missing id is indexed");
            }
            missing += waiter.missing.len();
            assert!(self.by_asked.contains(&(waiter.asked, *id)), "who waits is indexed");
            let indexed = waiter.deadline.is_none_or(|at| self.by_deadline.contains(&(at, *id)));
            assert!(indexed, "a deadline is indexed");
        }
        assert_eq!(self.by_object.len(), missing, "only missing ids are indexed");
        assert_eq!(
            self.by_asked.len(),
            self.waiters.len(),
            "only waiters are indexed by who asked"
        );
        let deadlines = self.waiters.values().filter(|waiter| waiter.deadline.is_some()).count();
        assert_eq!(self.by_deadline.len(), deadlines, "only deadlines of waiters are indexed");
    }
}
