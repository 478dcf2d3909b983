//! Getting and letting go of objects: the part of [`Store`] that keeps holds. What of a get or wait
//! takes longer is in [`awaiting`](super::awaiting).
//!
//! [`Store::hold`] and [`Store::let_go`] are the only places where an object changes between idle
//! and in use.

use std::collections::{HashMap, VecDeque};
use std::vec::IntoIter;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{Granted, ObjectState, Reply, Timeout};
use crate::protocol::refusal::Refusal;
use crate::store::clients::Hold;
use crate::store::waiting::Want;
use crate::store::{Answer, Asked, Store, is_now};

/// A release as far as it has come. All of it or nothing is released.
#[derive(Debug)]
pub struct Releasing {
    unchecked: IntoIter<(ObjectId, u32)>,
    /// How much of each object is to be released, if the request has several entries. Nobody looks
    /// at its order.
    totals: Option<HashMap<Slot, u64>>,
    /// What may be released: the slots, their generations, and how often.
    checked: VecDeque<(Slot, u64, u64)>,
}

impl Releasing {
    pub fn new(holds: Vec<(ObjectId, u32)>) -> Self {
        let count = holds.len();
        Self {
            unchecked: holds.into_iter(),
            totals: (count > 1).then(|| HashMap::with_capacity(count)),
            checked: VecDeque::with_capacity(count),
        }
    }
}

impl Store {
    pub(super) fn get(
        &mut self,
        asked: Asked,
        ids: Vec<ObjectId>,
        timeout: Timeout,
        fail_if_abandoned: bool,
    ) -> Answer {
        if ids.len() <= self.steps {
            let found = self.find_all_sealed(&ids);
            if is_now(timeout) || found.iter().all(Option::is_some) {
                self.counters.ids_requested += ids.len() as u64;
                self.counters.ids_hit += found.iter().flatten().count() as u64;
                let mut grant = |slot| self.grant(asked.client, slot);
                let granted = found.into_iter().map(|slot| slot.map(&mut grant)).collect();
                return Ok(Some(self.granted(asked.client, granted)));
            }
        }
        self.gather(asked, ids, Want::Get { fail_if_abandoned }, timeout)
    }

    pub(super) fn wait(
        &mut self,
        asked: Asked,
        ids: Vec<ObjectId>,
        count: usize,
        timeout: Timeout,
    ) -> Answer {
        if ids.len() <= self.steps && is_now(timeout) {
            let found = self.find_all_sealed(&ids);
            return Ok(Some(Reply::Ready(found.iter().map(Option::is_some).collect())));
        }
        self.gather(asked, ids, Want::Seen { count }, timeout)
    }

    /// Gives a client a sealed object: as a pin in its table, if it has one, and else as a hold.
    pub(super) fn grant(&mut self, client: ClientId, slot: Slot) -> Granted {
        let is_pinned = self.directory.pin(client, slot);
        if !is_pinned {
            self.hold(client, slot, Hold::granted(1));
        }
        let location = self.objects.get(slot).location;
        Granted { location, pin: is_pinned.then_some(slot) }
    }

    /// What to tell the client of it. One without a table has no pins.
    pub(super) fn granted(&self, client: ClientId, granted: Vec<Option<Granted>>) -> Reply {
        if self.directory.has_joined(client) {
            return Reply::Granted(granted);
        }
        let place = |granted: Option<Granted>| granted.map(|granted| granted.location);
        Reply::Objects(granted.into_iter().map(place).collect())
    }

    /// One step of a release: first everything is checked, then all of it is released, in the
    /// order of the request, in which it becomes least recent. The answer if that was the last one.
    pub(super) fn release_on(
        &mut self,
        client: ClientId,
        releasing: &mut Releasing,
    ) -> Option<Answer> {
        if let Some((id, count)) = releasing.unchecked.next() {
            return self.check_release(client, releasing, &id, count).err().map(Err);
        }
        if let Some((slot, generation, count)) = releasing.checked.pop_front() {
            // Its creator may have told meanwhile that it has let go.
            let object = self.objects.try_get(slot);
            let is_there = object.is_some_and(|object| object.generation == generation);
            if is_there && self.granted_holds(client, slot) >= count {
                self.counters.releases += count;
                self.release_hold(client, slot, Hold::granted(count));
            }
            return None;
        }
        Some(Ok(Some(Reply::Done)))
    }

    /// Refuses to release more than the client holds, all entries of an object together.
    fn check_release(
        &mut self,
        client: ClientId,
        releasing: &mut Releasing,
        id: &ObjectId,
        count: u32,
    ) -> Result<(), Refusal> {
        let count = u64::from(count);
        // An object that is sealed does not go with the hold of its creator.
        let slot = self.find_settled(id).ok_or(Refusal::ObjectNotFound(*id))?;
        let total = releasing.totals.as_mut().map_or(count, |totals| {
            let total = totals.entry(slot).or_insert(0);
            *total += count;
            *total
        });
        if total > self.granted_holds(client, slot) {
            return Err(Refusal::NotHeld(*id));
        }
        releasing.checked.push_back((slot, self.objects.get(slot).generation, count));
        Ok(())
    }

    fn granted_holds(&self, client: ClientId, slot: Slot) -> u64 {
        self.clients.get(client).holds.get(&slot).map_or(0, |hold| hold.granted)
    }

    pub(super) fn state(&mut self, id: &ObjectId) -> ObjectState {
        match self.find_settled(id) {
            None => ObjectState::Absent,
            Some(slot) if self.objects.get(slot).is_sealed() => ObjectState::Sealed,
            Some(_) => ObjectState::Created,
        }
    }

    pub(super) fn find_sealed(&self, id: &ObjectId) -> Option<Slot> {
        self.objects.find(id).filter(|slot| self.objects.get(*slot).is_sealed())
    }

    /// Where these objects are. All are settled first: with that one of them may go.
    fn find_all_sealed(&mut self, ids: &[ObjectId]) -> Vec<Option<Slot>> {
        // Nearly always nobody is creating anything.
        if !self.unsealed.is_empty() {
            for id in ids {
                self.find_settled(id);
            }
        }
        ids.iter().map(|id| self.find_sealed(id)).collect()
    }

    /// A client holds an object so many times more.
    pub(super) fn hold(&mut self, client: ClientId, slot: Slot, more: Hold) {
        let holder = self.clients.get_mut(client);
        let hold = holder.holds.entry(slot).or_default();
        let is_new = hold.is_empty();
        hold.granted += more.granted;
        hold.waiting += more.waiting;
        if !is_new {
            return;
        }
        let object = self.objects.get_mut(slot);
        holder.held_bytes += object.size();
        object.holders += 1;
        if object.holders == 1 && object.is_sealed() {
            self.becomes_busy(slot);
        }
    }

    /// A client gives so many of its holds back; it has at least that many.
    pub(super) fn release_hold(&mut self, client: ClientId, slot: Slot, less: Hold) {
        let holds = &mut self.clients.get_mut(client).holds;
        let hold = holds.get_mut(&slot).expect("the client holds the object");
        hold.granted -= less.granted;
        hold.waiting -= less.waiting;
        if hold.is_empty() {
            holds.remove(&slot);
            self.let_go(client, slot);
        }
    }

    /// A client does not hold an object any more. An unsealed one is removed, since nobody else may
    /// ever seal it.
    pub(super) fn let_go(&mut self, client: ClientId, slot: Slot) {
        let object = self.objects.get(slot);
        let (size, is_sealed) = (object.size(), object.is_sealed());
        self.clients.get_mut(client).held_bytes -= size;
        if is_sealed {
            self.lose_holder(slot);
        } else {
            self.objects.get_mut(slot).holders -= 1;
            self.abandon(client, slot);
        }
    }

    /// A sealed object has one holder less.
    pub(super) fn lose_holder(&mut self, slot: Slot) {
        let object = self.objects.get_mut(slot);
        object.holders -= 1;
        let (is_idle, is_to_go) = (object.holders == 0, object.delete_pending);
        let is_gone = is_idle && is_to_go && self.delete_idle(slot);
        if is_idle && !is_gone && !self.parked.contains(slot) {
            self.becomes_idle(slot);
        }
    }
}
