//! Gets and waits that take longer: for many objects, or for objects that are not there. Part of
//! [`Store`].
//!
//! Such a request is *gathered* first: its ids are looked up one after the other, and what a get
//! finds is held for it. A seal that comes meanwhile counts. Then it waits, if something is missing
//! and it may. In the end it lets go of the ids that it still waits for, a get is granted what it
//! has got, and it is answered. All of that is done in steps, by the task of a busy client or, for
//! those that have waited, by a job.

use std::collections::HashMap;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::{Granted, Reply, RequestId, Timeout};
use crate::protocol::refusal::Refusal;
use crate::store::busy::Task;
use crate::store::clients::{Hold, WaitCost};
use crate::store::waiting::{Place, Waiter, WaiterId, Want};
use crate::store::{Answer, Asked, Store, is_now};

/// A get or wait whose ids are looked up.
#[derive(Debug)]
pub struct Gathering {
    pub waiter: WaiterId,
    timeout: Timeout,
    /// Where each id is named first. Nobody looks at its order.
    names: HashMap<ObjectId, usize>,
}

/// A get or wait that is being answered.
#[derive(Debug)]
pub struct Ending {
    waiter: WaiterId,
    how: How,
    phase: Phase,
    /// The next of its ids.
    next: usize,
    granted: Vec<Option<Granted>>,
}

/// What a get or wait comes to.
#[derive(Debug)]
pub enum How {
    /// It is answered with what there is.
    Answer,
    /// The same, after a last look at what it misses.
    AnswerLate,
    Refuse(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for its ids no longer.
    LeaveIds,
    /// A get is granted what it has got, all of which it holds, so it is all still there.
    Grant,
    /// What it held while it waited is let go, and with it, if it is refused, what it waits for.
    Release,
}

impl Store {
    /// Begins a get or wait that cannot be answered at once.
    pub(super) fn gather(
        &mut self,
        asked: Asked,
        ids: Vec<ObjectId>,
        want: Want,
        timeout: Timeout,
    ) -> Answer {
        // It keeps all its ids in memory from now on.
        self.begin_wait(asked.client, WaitCost { ids: ids.len(), bytes: 0 })?;
        if matches!(want, Want::Get { .. }) {
            self.counters.ids_requested += ids.len() as u64;
        }
        let names = HashMap::with_capacity(ids.len());
        let waiter = self.waits.add(Waiter::new(asked, ids, want, self.deadline(timeout)));
        self.serve_task(asked, Task::Gather(Gathering { waiter, timeout, names }))
    }

    /// Looks up one more id. At the end the request waits, and its client is free, or it is
    /// answered, which is the rest of the task.
    pub(super) fn gather_on(&mut self, task: &mut Task) -> Option<Answer> {
        let Task::Gather(gathering) = task else { return None };
        let (id, waiter) = (gathering.waiter, self.waits.get(gathering.waiter));
        let position = waiter.places().len();
        let how = if let Some(abandoned) = waiter.abandoned {
            How::Refuse(Refusal::Abandoned(abandoned))
        } else if let Some(name) = waiter.ids.get(position).copied() {
            let first = *gathering.names.entry(name).or_insert(position);
            // What may not wait does not want to be told either.
            let missing = if is_now(gathering.timeout) { Place::Left } else { Place::Missing };
            self.look_up(id, name, first, missing);
            return None;
        } else if waiter.is_complete() || is_now(gathering.timeout) {
            How::Answer
        } else {
            self.counters.waits += 1;
            self.waits.start(id);
            return Some(Ok(None));
        };
        *task = Task::End(self.begin_ending(id, how));
        None
    }

    /// Looks up the next id of a get or wait, which has named it first at this position; if it is
    /// not there, that is its place.
    fn look_up(&mut self, id: WaiterId, name: ObjectId, first: usize, missing: Place) {
        let waiter = self.waits.get(id);
        let (client, is_get) = (waiter.asked.client, waiter.is_get());
        let place = if first < waiter.places().len() {
            Place::As(first)
        } else {
            let found = self.find_settled(&name);
            match found.filter(|slot| self.objects.get(*slot).is_sealed()) {
                Some(slot) => {
                    if is_get {
                        self.hold(client, slot, Hold::waiting(1));
                    }
                    Place::There
                }
                None => missing,
            }
        };
        let is_there = self.waits.add_place(id, place);
        self.counters.ids_hit += u64::from(is_get && is_there);
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
            let Some(waiter) = self.waits.sealed(&id) else { break };
            self.answers -= 1;
            let (client, is_get) =
                (self.waits.get(waiter).asked.client, self.waits.get(waiter).is_get());
            if is_get {
                self.hold(client, slot, Hold::waiting(1));
            }
            if self.waits.get(waiter).has_waited_enough() {
                self.end_waiter(waiter, How::Answer);
            }
        }
        self.work_on_endings();
        !self.waits.is_awaited(&id)
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
        let mut next = Some(from);
        while self.answers > 0
            && let Some(from) = next
        {
            let Some((behind, waiter)) = self.waits.abandoned(id, from, last) else {
                next = None;
                break;
            };
            next = Some(behind);
            self.answers -= 1;
            if let Some(waiter) = waiter {
                self.end_waiter(waiter, How::Refuse(Refusal::Abandoned(*id)));
            }
        }
        self.work_on_endings();
        next
    }

    /// Ends a request that has waited: when those before it have been answered, and in slices.
    pub(super) fn end_waiter(&mut self, waiter: WaiterId, how: How) {
        let ending = self.begin_ending(waiter, how);
        self.jobs.endings.push_back(ending);
    }

    fn begin_ending(&mut self, id: WaiterId, how: How) -> Ending {
        self.waits.end(id);
        let waiter = self.waits.get(id);
        let phase = match how {
            How::Refuse(_) if waiter.is_get() => Phase::Release,
            How::Answer if waiter.is_get() && waiter.is_complete() => Phase::Grant,
            _ => Phase::LeaveIds,
        };
        Ending { waiter: id, how, phase, next: 0, granted: Vec::new() }
    }

    pub(super) fn work_on_endings(&mut self) {
        // An object that is found sealed in the end may end further ones: they have their turn.
        if std::mem::replace(&mut self.jobs.is_ending, true) {
            return;
        }
        while self.answers > 0
            && let Some(mut ending) = self.jobs.endings.pop_front()
        {
            // What is left of a client that has gone goes with it.
            let waiter = self.waits.try_get(ending.waiter);
            if waiter.is_none_or(|waiter| !self.clients.is_here(waiter.asked.client)) {
                continue;
            }
            let mut is_over = false;
            while self.answers > 0 && !is_over {
                self.answers -= 1;
                is_over = self.end_on(&mut ending);
            }
            if !is_over {
                self.jobs.endings.push_front(ending);
            }
        }
        self.jobs.is_ending = false;
    }

    /// One step of an ending. Whether it was the last one.
    pub(super) fn end_on(&mut self, ending: &mut Ending) -> bool {
        if let Some(place) = self.waits.get(ending.waiter).places().get(ending.next).copied() {
            self.end_place(ending, place);
            ending.next += 1;
        }
        let waiter = self.waits.get(ending.waiter);
        if ending.next < waiter.places().len() {
            return false;
        }
        ending.next = 0;
        ending.phase = match ending.phase {
            Phase::LeaveIds if waiter.is_get() => Phase::Grant,
            Phase::Grant => Phase::Release,
            Phase::LeaveIds | Phase::Release => {
                self.answer_waiter(ending);
                return true;
            }
        };
        false
    }

    /// What a phase does about one id.
    fn end_place(&mut self, ending: &mut Ending, place: Place) {
        let (id, position) = (ending.waiter, ending.next);
        let waiter = self.waits.get(id);
        let (client, name, is_get) = (waiter.asked.client, waiter.ids[position], waiter.is_get());
        match (ending.phase, place) {
            (Phase::LeaveIds | Phase::Release, Place::Missing) => {
                self.waits.leave_id(id, position);
                let getter = is_get.then_some((client, Hold::waiting(1)));
                if matches!(ending.how, How::AnswerLate)
                    && let Some(slot) = self.objects.find(&name)
                    && self.settle_for_waiter(slot, getter)
                {
                    self.waits.found(id, position);
                }
            }
            (Phase::Grant, _) => {
                let is_there = waiter.is_there(position);
                let slot = is_there.then(|| self.objects.find(&name).expect("what is held exists"));
                let granted = slot.map(|slot| self.grant(client, slot));
                ending.granted.push(granted);
            }
            (Phase::Release, Place::There) => {
                let slot = self.objects.find(&name).expect("what is held exists");
                self.waits.lose(id, position);
                self.release_hold(client, slot, Hold::waiting(1));
            }
            _ => {}
        }
    }

    fn answer_waiter(&mut self, ending: &mut Ending) {
        let waiter = self.waits.remove(ending.waiter);
        self.clients.wait_ended(waiter.asked.client, waiter.cost());
        match &ending.how {
            How::Refuse(refusal) => self.refuse(waiter.asked, refusal.clone()),
            How::Answer | How::AnswerLate => {
                let reply = if waiter.is_get() {
                    self.granted(waiter.asked.client, std::mem::take(&mut ending.granted))
                } else {
                    let all = 0..waiter.ids.len();
                    Reply::Ready(all.map(|position| waiter.is_there(position)).collect())
                };
                self.reply(waiter.asked, reply);
            }
        }
    }

    /// Forgets a request of a client that has gone, as far as this slice allows. What it held is
    /// among the client's holds.
    pub(super) fn forget_waiter(&mut self, id: WaiterId) {
        while self.waits.forget_place(id) {
            if self.steps == 0 {
                return;
            }
            self.steps -= 1;
        }
        let waiter = self.waits.remove(id);
        self.clients.wait_ended(waiter.asked.client, waiter.cost());
    }

    pub(super) fn cancel(&mut self, asked: Asked, request: RequestId) -> Answer {
        let cancelled = Asked { request, ..asked };
        if let Some(waiter) = self.waits.find(cancelled) {
            // It may be on its way already.
            let index = self.jobs.endings.iter().position(|ending| ending.waiter == waiter);
            let ending = index.and_then(|index| self.jobs.endings.remove(index));
            let ending = ending.unwrap_or_else(|| self.begin_ending(waiter, How::AnswerLate));
            return self.serve_task(asked, Task::Cancel(ending));
        }
        if let Some(create) = self.creates.cancelled(cancelled) {
            self.clients.wait_ended(asked.client, create.creation.cost());
            self.refuse(cancelled, Refusal::Cancelled);
        }
        Ok(Some(Reply::Done))
    }
}
