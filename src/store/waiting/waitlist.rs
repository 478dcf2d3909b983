//! Requests that wait for objects to be sealed: `get` and `wait`.
//!
//! A waiter knows of each of its ids whether it has been seen sealed; everybody else knows the
//! waiter by its [`WaiterId`]. Three ordered indexes find waiters by missing id, by deadline and by
//! who asked; each change is about one id and costs the logarithm of their number. What a reply
//! looks like is not known here, and neither is the clock.

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
    /// To know when so many distinct ids have been seen sealed. Nothing is held.
    Seen {
        /// How many.
        count: usize,
    },
}

/// What is known of one of the ids of a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It has been seen sealed. A get holds it.
    There,
    /// The waiter is told when it is sealed.
    Missing,
    /// It was not there, or has been let go, and the waiter does not wait for it.
    Left,
    /// It was named before, at this position.
    As(usize),
}

/// How far a waiter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its ids are being looked up.
    Gathering,
    Waiting,
    /// It is being answered.
    Ending,
}

/// One waiting request.
#[derive(Debug)]
pub struct Waiter {
    /// Who waits, and is to be answered.
    pub asked: Asked,
    /// The ids as they were asked for.
    pub ids: Vec<ObjectId>,
    /// What is known of each of them, as far as they have been looked up.
    places: Vec<Place>,
    /// How many distinct ids that are, and how many of them have been seen sealed.
    distinct: usize,
    seen: usize,
    want: Want,
    /// When it is answered at the latest.
    deadline: Option<Timestamp>,
    stage: Stage,
    /// What was given up while its ids were being looked up, if it wants to know.
    pub abandoned: Option<ObjectId>,
}

impl Waiter {
    pub fn new(asked: Asked, ids: Vec<ObjectId>, want: Want, deadline: Option<Timestamp>) -> Self {
        Self {
            asked,
            places: Vec::with_capacity(ids.len()),
            ids,
            distinct: 0,
            seen: 0,
            want,
            deadline,
            stage: Stage::Gathering,
            abandoned: None,
        }
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub const fn is_get(&self) -> bool {
        matches!(self.want, Want::Get { .. })
    }

    /// Whether the id at this position has been seen sealed.
    pub fn is_there(&self, position: usize) -> bool {
        match self.places[position] {
            Place::As(first) => self.places[first] == Place::There,
            place => place == Place::There,
        }
    }

    /// What it keeps in memory.
    pub const fn cost(&self) -> WaitCost {
        WaitCost { ids: self.ids.len(), bytes: 0 }
    }

    /// Whether it has all that it wants, of the ids that have been looked up.
    pub fn is_complete(&self) -> bool {
        match self.want {
            Want::Get { .. } => self.seen == self.distinct,
            Want::Seen { count } => self.seen >= count.min(self.distinct),
        }
    }

    /// Whether it is to be answered because it has all that it wants.
    pub fn has_waited_enough(&self) -> bool {
        self.stage == Stage::Waiting && self.is_complete()
    }

    const fn wants_to_know(&self) -> bool {
        matches!(self.want, Want::Get { fail_if_abandoned: true })
    }

    fn see(&mut self, position: usize) {
        self.places[position] = Place::There;
        self.seen += 1;
    }
}

/// All requests that wait for objects.
#[derive(Debug, Default)]
pub struct Waitlist {
    waiters: BTreeMap<WaiterId, Waiter>,
    /// With the position at which the waiter has named it first.
    by_object: BTreeMap<(ObjectId, WaiterId), usize>,
    by_deadline: BTreeSet<(Timestamp, WaiterId)>,
    by_asked: BTreeSet<(Asked, WaiterId)>,
    next_id: u64,
}

impl Waitlist {
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Adds a waiter whose ids are going to be looked up.
    pub fn add(&mut self, waiter: Waiter) -> WaiterId {
        self.next_id += 1;
        let id = WaiterId(self.next_id);
        self.by_asked.insert((waiter.asked, id));
        self.waiters.insert(id, waiter);
        id
    }

    pub fn try_get(&self, id: WaiterId) -> Option<&Waiter> {
        self.waiters.get(&id)
    }

    pub fn get(&self, id: WaiterId) -> &Waiter {
        self.try_get(id).expect("the waiter exists")
    }

    fn get_mut(&mut self, id: WaiterId) -> &mut Waiter {
        self.waiters.get_mut(&id).expect("the waiter exists")
    }

    /// The next id of a waiter has been looked up. Returns whether it is there.
    pub fn add_place(&mut self, id: WaiterId, place: Place) -> bool {
        let waiter = self.get_mut(id);
        let position = waiter.places.len();
        waiter.places.push(place);
        waiter.distinct += usize::from(!matches!(place, Place::As(_)));
        waiter.seen += usize::from(place == Place::There);
        let (object, is_there) = (waiter.ids[position], waiter.is_there(position));
        if place == Place::Missing {
            self.by_object.insert((object, id), position);
        }
        is_there
    }

    /// All ids of a waiter have been looked up, and now it waits.
    pub fn start(&mut self, id: WaiterId) {
        let waiter = self.get_mut(id);
        debug_assert!(!waiter.is_complete(), "a complete request does not wait");
        waiter.stage = Stage::Waiting;
        let deadline = waiter.deadline;
        self.by_deadline.extend(deadline.map(|deadline| (deadline, id)));
    }

    /// A waiter is going to be answered, and no deadline comes any more.
    pub fn end(&mut self, id: WaiterId) {
        let waiter = self.get_mut(id);
        waiter.stage = Stage::Ending;
        if let Some(deadline) = waiter.deadline {
            self.by_deadline.remove(&(deadline, id));
        }
    }

    /// A waiter does not wait for one of its missing ids any more.
    pub fn leave_id(&mut self, id: WaiterId, position: usize) {
        let waiter = self.get_mut(id);
        waiter.places[position] = Place::Left;
        let object = waiter.ids[position];
        self.by_object.remove(&(object, id));
    }

    /// An id that it has left is there after all.
    pub fn found(&mut self, id: WaiterId, position: usize) {
        self.get_mut(id).see(position);
    }

    /// It has let go of an id that was there.
    pub fn lose(&mut self, id: WaiterId, position: usize) {
        self.get_mut(id).places[position] = Place::Left;
    }

    /// Forgets the last one of its ids that has been looked up. False if there is none left.
    pub fn forget_place(&mut self, id: WaiterId) -> bool {
        let waiter = self.get_mut(id);
        let Some(place) = waiter.places.pop() else { return false };
        let object = waiter.ids[waiter.places.len()];
        if place == Place::Missing {
            self.by_object.remove(&(object, id));
        }
        true
    }

    /// The name of the waiter that came last.
    pub const fn last(&self) -> WaiterId {
        WaiterId(self.next_id)
    }

    /// An object has been sealed: the next one who waited for it, in order of arrival, sees it.
    pub fn sealed(&mut self, object: &ObjectId) -> Option<WaiterId> {
        let id = self.waiting_for(object, WaiterId::FIRST).next()?;
        let position = self.by_object.remove(&(*object, id)).expect("it was found there");
        self.get_mut(id).see(position);
        Some(id)
    }

    pub fn is_awaited(&self, object: &ObjectId) -> bool {
        self.waiting_for(object, WaiterId::FIRST).next().is_some()
    }

    /// The creator of an object gave up: looks at the next one who waits for it, from `from` to
    /// `last`, and names it if it has waited and wants to know. Returns where to look next.
    pub fn abandoned(
        &mut self,
        object: &ObjectId,
        from: WaiterId,
        last: WaiterId,
    ) -> Option<(WaiterId, Option<WaiterId>)> {
        let id = self.waiting_for(object, from).next().filter(|id| *id <= last)?;
        let waiter = self.get_mut(id);
        let wants_to_know = waiter.wants_to_know();
        if waiter.stage == Stage::Gathering && wants_to_know {
            waiter.abandoned = Some(*object);
        }
        let is_told = waiter.stage == Stage::Waiting && wants_to_know;
        Some((id.next(), is_told.then_some(id)))
    }

    /// A waiter whose deadline has come.
    pub fn expired(&self, now: Timestamp) -> Option<WaiterId> {
        let (deadline, id) = *self.by_deadline.first()?;
        (deadline <= now).then_some(id)
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// The waiter of one request.
    pub fn find(&self, asked: Asked) -> Option<WaiterId> {
        let all = (asked, WaiterId::FIRST)..=(asked, WaiterId::LAST);
        self.by_asked.range(all).next().map(|(_, id)| *id)
    }

    /// Some waiter of this client.
    pub fn first_of(&self, client: ClientId) -> Option<WaiterId> {
        let first = (Asked { client, request: RequestId(0) }, WaiterId::FIRST);
        let (asked, id) = *self.by_asked.range(first..).next()?;
        (asked.client == client).then_some(id)
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
        self.by_object.range((*object, from)..=last).map(|((_, id), _)| *id)
    }

    /// Takes out a waiter that waits for no id any more.
    pub fn remove(&mut self, id: WaiterId) -> Waiter {
        self.end(id);
        let waiter = self.waiters.remove(&id).expect("the waiter exists");
        self.by_asked.remove(&(waiter.asked, id));
        waiter
    }

    /// Checks that the indexes agree with the waiters.
    pub fn check_invariants(&self) {
        let (mut missing, mut deadlines) = (0, 0);
        for (id, waiter) in &self.waiters {
            assert!(!waiter.has_waited_enough(), "a waiter misses something");
            let places = || waiter.places.iter().zip(&waiter.ids).enumerate();
            for (position, (_, object)) in places().filter(|(_, (p, _))| **p == Place::Missing) {
                let indexed = self.by_object.get(&(*object, *id));
                assert_eq!(indexed, Some(&position), "a missing id is indexed");
                missing += 1;
            }
            assert!(self.by_asked.contains(&(waiter.asked, *id)), "who waits is indexed");
            if let (Stage::Waiting, Some(at)) = (waiter.stage, waiter.deadline) {
                assert!(self.by_deadline.contains(&(at, *id)), "a deadline is indexed");
                deadlines += 1;
            }
        }
        assert_eq!(self.by_object.len(), missing, "only missing ids are indexed");
        assert_eq!(
            self.by_asked.len(),
            self.waiters.len(),
            "only waiters are indexed by who asked"
        );
        assert_eq!(self.by_deadline.len(), deadlines, "only deadlines of waiters are indexed");
    }
}
