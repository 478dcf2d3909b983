//! Getting, waiting for and letting go of objects: the part of [`Store`] that keeps holds.
//!
//! [`Store::hold`] and [`Store::let_go`] are the only places where an object changes between idle
//! and in use.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::vec::IntoIter;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{Granted, ObjectState, Reply, RequestId, Timeout};
use crate::protocol::refusal::Refusal;
use crate::store::clients::{Hold, WaitCost};
use crate::store::waiting::{Waiter, WaiterId, Want};
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
        self.settle_all(&ids);
        let (found, missing) = self.find_all_sealed(&ids);
        let waits = !missing.is_empty() && !is_now(timeout);
        if waits {
            self.begin_wait(asked.client, WaitCost { ids: ids.len(), bytes: 0 })?;
        }
        self.counters.ids_requested += ids.len() as u64;
        self.counters.ids_hit += found.iter().flatten().count() as u64;
        if !waits {
            let mut grant = |slot| self.grant(asked.client, slot);
            let granted = found.into_iter().map(|slot| slot.map(&mut grant)).collect();
            return Ok(Some(self.granted(asked.client, granted)));
        }
        for slot in found.iter().flatten() {
            self.hold(asked.client, *slot, Hold::waiting(1));
        }
        let want = Want::Get { fail_if_abandoned };
        let deadline = self.deadline(timeout);
        self.counters.waits += 1;
        self.waits.add(Waiter { asked, ids, missing, want, deadline });
        Ok(None)
    }

    pub(super) fn wait(
        &mut self,
        asked: Asked,
        ids: Vec<ObjectId>,
        count: usize,
        timeout: Timeout,
    ) -> Answer {
        self.settle_all(&ids);
        let (found, missing) = self.find_all_sealed(&ids);
        let distinct = ids.iter().collect::<std::collections::BTreeSet<_>>().len();
        let ready = distinct - missing.len();
        let remaining = count.min(distinct).saturating_sub(ready);
        if remaining == 0 || is_now(timeout) {
            return Ok(Some(Reply::Ready(found.iter().map(Option::is_some).collect())));
        }
        self.begin_wait(asked.client, WaitCost { ids: ids.len(), bytes: 0 })?;
        let want = Want::Seen { remaining };
        let deadline = self.deadline(timeout);
        self.counters.waits += 1;
        self.waits.add(Waiter { asked, ids, missing, want, deadline });
        Ok(None)
    }

    /// One more request of a client waits, if it may.
    pub(super) fn begin_wait(&mut self, client: ClientId, cost: WaitCost) -> Result<(), Refusal> {
        self.clients.check_wait(client, cost)?;
        self.clients.wait_began(client, cost);
        Ok(())
    }

    /// Tells those who waited for this object that it is there, as many as this slice allows; a
    /// get holds it from now on. False if there are more.
    pub(super) fn wake_some(&mut self, slot: Slot) -> bool {
        let id = self.objects.get(slot).id;
        while self.answers > 0 {
            let Some(progress) = self.waits.sealed(&id) else { return true };
            self.answers -= 1;
            if progress.holds > 0 {
                self.hold(progress.client, slot, Hold::waiting(u64::from(progress.holds)));
            }
            if let Some(waiter) = progress.completed {
                self.answer_waiter(waiter);
            }
        }
        !self.waits.is_awaited(&id)
    }

    /// Answers a request that is not in the waitlist any more with what there is.
    pub(super) fn answer_waiter(&mut self, waiter: Waiter) {
        self.clients.wait_ended(waiter.asked.client, waiter.cost());
        self.answers = self.answers.saturating_sub(waiter.ids.len());
        let reply = match waiter.want {
            Want::Get { .. } => self.grant_waited(&waiter),
            Want::Seen { .. } => {
                let is_ready = |id| !waiter.missing.contains_key(id);
                Reply::Ready(waiter.ids.iter().map(is_ready).collect())
            }
        };
        self.reply(waiter.asked, reply);
    }

    /// Answers a request that has waited in vain, after a last look at what it misses.
    pub(super) fn answer_late(&mut self, mut waiter: Waiter) {
        for (id, named) in std::mem::take(&mut waiter.missing) {
            let hold = Hold::waiting(u64::from(named));
            let getter =
                matches!(waiter.want, Want::Get { .. }).then_some((waiter.asked.client, hold));
            let slot = self.objects.find(&id);
            if !slot.is_some_and(|slot| self.settle_for_waiter(slot, getter)) {
                waiter.missing.insert(id, named);
            }
        }
        self.answer_waiter(waiter);
    }

    /// Grants what a waiting get has got so far. It holds all of it, so it is all still there.
    fn grant_waited(&mut self, waiter: &Waiter) -> Reply {
        let mut grant_one = |id: &ObjectId| {
            let slot = self.objects.find(id).expect("a held object exists");
            let granted = self.grant(waiter.asked.client, slot);
            self.release_hold(waiter.asked.client, slot, Hold::waiting(1));
            granted
        };
        let is_there = |id: &&ObjectId| !waiter.missing.contains_key(id);
        let ids = waiter.ids.iter();
        let granted = ids.map(|id| Some(id).filter(is_there).map(&mut grant_one)).collect();
        self.granted(waiter.asked.client, granted)
    }

    /// Gives a client a sealed object: as a pin in its table, if it has one, and else as a hold.
    fn grant(&mut self, client: ClientId, slot: Slot) -> Granted {
        let is_pinned = self.directory.pin(client, slot);
        if !is_pinned {
            self.hold(client, slot, Hold::granted(1));
        }
        let location = self.objects.get(slot).location;
        Granted { location, pin: is_pinned.then_some(slot) }
    }

    /// What to tell the client of it. One without a table has no pins.
    fn granted(&self, client: ClientId, granted: Vec<Option<Granted>>) -> Reply {
        if self.directory.has_joined(client) {
            return Reply::Granted(granted);
        }
        let place = |granted: Option<Granted>| granted.map(|granted| granted.location);
        Reply::Objects(granted.into_iter().map(place).collect())
    }

    /// The creator of an object gave up. Waiters that wanted to know are refused, and let go of
    /// what they held while they waited; the others wait for somebody to create it again. As many
    /// as this slice allows, from `from` to `last`; returns where to go on.
    pub(super) fn tell_abandoned(
        &mut self,
        id: &ObjectId,
        from: WaiterId,
        last: WaiterId,
    ) -> Option<WaiterId> {
        let mut from = from;
        while self.answers > 0 {
            let (next, waiter) = self.waits.abandoned(id, from, last)?;
            from = next;
            self.answers -= 1;
            if let Some(waiter) = waiter {
                self.fail_waiter(&waiter, *id);
            }
        }
        Some(from)
    }

    fn fail_waiter(&mut self, waiter: &Waiter, abandoned: ObjectId) {
        self.clients.wait_ended(waiter.asked.client, waiter.cost());
        self.answers = self.answers.saturating_sub(waiter.ids.len());
        for held in waiter.ids.iter().filter(|id| !waiter.missing.contains_key(id)) {
            let slot = self.objects.find(held).expect("a held object exists");
            self.release_hold(waiter.asked.client, slot, Hold::waiting(1));
        }
        self.refuse(waiter.asked, Refusal::Abandoned(abandoned));
    }

    pub(super) fn cancel(&mut self, client: ClientId, request: RequestId) -> Reply {
        let asked = Asked { client, request };
        if let Some(waiter) = self.waits.cancelled(asked) {
            self.answer_late(waiter);
        } else if let Some(create) = self.creates.cancelled(asked) {
            self.clients.wait_ended(client, create.creation.cost());
            self.refuse(asked, Refusal::Cancelled);
        }
        Reply::Done
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

    fn settle_all(&mut self, ids: &[ObjectId]) {
        // Nearly always nobody is creating anything.
        if !self.unsealed.is_empty() {
            for id in ids {
                self.find_settled(id);
            }
        }
    }

    /// Where these objects are, and the ids of which there is none, each with how often it is
    /// named.
    fn find_all_sealed(&self, ids: &[ObjectId]) -> (Vec<Option<Slot>>, BTreeMap<ObjectId, u32>) {
        let found: Vec<_> = ids.iter().map(|id| self.find_sealed(id)).collect();
        let mut missing = BTreeMap::new();
        for (id, _) in ids.iter().zip(&found).filter(|(_, slot)| slot.is_none()) {
            *missing.entry(*id).or_insert(0) += 1;
        }
        (found, missing)
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
