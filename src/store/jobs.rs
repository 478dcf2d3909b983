//! What takes longer than one turn may, in slices. Part of [`Store`].
//!
//! A request that is long starts at once. If one slice does not do, the rest is a *job*:
//! [`Store::work`] does one slice of one job, and each kind of job has its turn. In between other
//! requests are served, and whatever they change the job finds changed. After every slice the store
//! is as consistent as after every request.
//!
//! How room is found for a create is not known here.

use std::collections::VecDeque;

use crate::ids::{ClientId, ObjectId, Slot};
use crate::protocol::message::Reply;
use crate::protocol::refusal::Refusal;
use crate::store::clients::WaitCost;
use crate::store::counting::Count;
use crate::store::space::Ranges;
use crate::store::waiting::WaiterId;
use crate::store::{Asked, Effects, Outcome, Store};
use crate::time::Timestamp;

/// What there is to go on with. Each has its turn.
#[derive(Debug, Clone, Copy, Default)]
enum Job {
    #[default]
    Wake,
    Abandon,
    Evict,
    Leave,
    FindRoom,
    Count,
    Drop,
}

impl Job {
    /// Whose turn it is after this one.
    const fn next(self) -> Self {
        match self {
            Self::Wake => Self::Abandon,
            Self::Abandon => Self::Evict,
            Self::Evict => Self::Leave,
            Self::Leave => Self::FindRoom,
            Self::FindRoom => Self::Count,
            Self::Count => Self::Drop,
            Self::Drop => Self::Wake,
        }
    }
}

/// What is to be gone on with, the oldest of each kind first.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Sealed objects whose waiters have not all been told. The store holds them meanwhile, so that
    /// nobody misses them.
    pub wakes: VecDeque<Slot>,
    abandoned: VecDeque<Abandoned>,
    evictions: VecDeque<Eviction>,
    /// Numbers that are being counted.
    pub counts: VecDeque<Count>,
    /// Clients that have gone.
    leaving: VecDeque<ClientId>,
    /// What had the last slice.
    last: Job,
}

/// Waiters for an object that was given up are to be told.
#[derive(Debug)]
struct Abandoned {
    id: ObjectId,
    /// The first one to look at.
    next: WaiterId,
    /// Those behind this one came later.
    last: WaiterId,
}

/// An `Evict` that is being carried out.
#[derive(Debug)]
pub struct Eviction {
    asked: Asked,
    bytes: u64,
    freed: u64,
    evicted: u64,
    /// Whose objects are evicted now; everybody's first, then those of each quota.
    owner: Option<ClientId>,
    /// Looks that may still be taken at objects of that owner: two for each that was idle at first,
    /// or an eviction could go on for ever.
    looks: usize,
}

/// What an unfinished eviction, or count, costs its client.
pub const EVICTION_COST: WaitCost = WaitCost { ids: 0, bytes: 0 };

impl Jobs {
    /// Who waits for the end of a job: of an eviction, or of a count.
    pub fn askers(&self) -> impl Iterator<Item = ClientId> {
        let evictions = self.evictions.iter().map(|eviction| eviction.asked.client);
        evictions.chain(self.counts.iter().map(|count| count.asked.client))
    }

    /// Whether memory is being freed, for which a create may wait.
    pub fn is_freeing(&self) -> bool {
        !self.evictions.is_empty() || !self.leaving.is_empty()
    }

    fn is_any_open(&self) -> bool {
        let Self { wakes, abandoned, evictions, counts, leaving, last: _ } = self;
        let others = wakes.len() + abandoned.len() + counts.len();
        others + evictions.len() + leaving.len() > 0
    }
}

impl Store {
    /// Whether [`Store::work`] has something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        // Asked several times in each turn, so not one kind after the other.
        self.jobs.is_any_open() || !self.waste.is_empty() || self.has_room_work()
    }

    /// Goes on with what was too long for one turn, for one slice.
    pub fn work(&mut self, now: Timestamp, effects: &mut Effects) {
        if !self.has_work() {
            return;
        }
        self.begin_slice();
        let mut job = self.jobs.last.next();
        while !self.is_open(job) {
            job = job.next();
        }
        self.jobs.last = job;
        match job {
            Job::Wake => self.work_on_wakes(effects),
            Job::Abandon => self.work_on_abandoned(effects),
            Job::Evict => self.work_on_evictions(now, effects),
            Job::Leave => self.work_on_leaving(now, effects),
            Job::FindRoom => self.serve_creates(now, effects),
            Job::Count => self.work_on_counts(effects),
            Job::Drop => self.drop_waste(),
        }
        self.space.plan_look(now);
    }

    fn is_open(&self, job: Job) -> bool {
        match job {
            Job::Wake => !self.jobs.wakes.is_empty(),
            Job::Abandon => !self.jobs.abandoned.is_empty(),
            Job::Evict => !self.jobs.evictions.is_empty(),
            Job::Leave => !self.jobs.leaving.is_empty(),
            Job::FindRoom => self.has_room_work(),
            Job::Count => !self.jobs.counts.is_empty(),
            Job::Drop => !self.waste.is_empty(),
        }
    }

    /// Every request, and every slice of a job, may do so much.
    pub(super) fn begin_slice(&mut self) {
        self.tick += 1;
        self.directory.advance(self.tick);
        self.steps = self.slice.steps;
        self.answers = self.slice.answers;
    }

    /// An object has been sealed: tells everybody who waited for it.
    pub(super) fn wake_waiters(&mut self, slot: Slot, effects: &mut Effects) {
        if !self.wake_some(slot, effects) {
            self.objects.get_mut(slot).holders += 1;
            self.jobs.wakes.push_back(slot);
        }
    }

    fn work_on_wakes(&mut self, effects: &mut Effects) {
        let Some(slot) = self.jobs.wakes.front().copied() else { return };
        if self.wake_some(slot, effects) {
            self.jobs.wakes.pop_front();
            self.lose_holder(slot);
        }
    }

    /// The creator of an object gave up: tells those who want to know.
    pub(super) fn fail_waiters(&mut self, id: ObjectId, effects: &mut Effects) {
        if !self.waits.is_awaited(&id) {
            return;
        }
        let last = self.waits.last();
        if let Some(next) = self.tell_abandoned(&id, WaiterId::FIRST, last, effects) {
            self.jobs.abandoned.push_back(Abandoned { id, next, last });
        }
    }

    fn work_on_abandoned(&mut self, effects: &mut Effects) {
        let Some(Abandoned { id, next, last }) = self.jobs.abandoned.pop_front() else { return };
        if let Some(next) = self.tell_abandoned(&id, next, last, effects) {
            self.jobs.abandoned.push_front(Abandoned { id, next, last });
        }
    }

    /// Evicts idle objects until so many bytes are gone: everybody's first, then those that count
    /// against a quota, owner by owner.
    pub(super) fn evict(&mut self, asked: Asked, bytes: u64) -> Result<Outcome, Refusal> {
        let looks = 2 * self.idle.idle_objects();
        let mut eviction = Eviction { asked, bytes, freed: 0, evicted: 0, owner: None, looks };
        if self.evict_some(&mut eviction) {
            return Ok(eviction.reply().into());
        }
        self.may_wait(asked.client, EVICTION_COST)?;
        self.clients.get_mut(asked.client).wait_began(EVICTION_COST);
        self.jobs.evictions.push_back(eviction);
        Ok(Outcome::Waits)
    }

    fn work_on_evictions(&mut self, now: Timestamp, effects: &mut Effects) {
        let Some(mut eviction) = self.jobs.evictions.pop_front() else { return };
        let Asked { client, request, .. } = eviction.asked;
        if !self.clients.is_here(client) {
            // Nobody wants to know.
        } else if self.evict_some(&mut eviction) {
            self.clients.get_mut(client).wait_ended(EVICTION_COST);
            effects.reply(client, request, eviction.reply());
            self.serve_creates(now, effects);
        } else {
            self.jobs.evictions.push_front(eviction);
        }
    }

    /// Evicts for one slice. Whether it is done then.
    fn evict_some(&mut self, eviction: &mut Eviction) -> bool {
        while eviction.freed < eviction.bytes {
            if self.steps == 0 {
                return false;
            }
            self.steps = self.steps.saturating_sub(self.look_steps());
            let first = self.first_idle(eviction.owner).filter(|_| eviction.looks > 0);
            if let Some(slot) = first {
                eviction.looks -= 1;
                if self.steps_back(slot) {
                    continue;
                }
                self.evict_for(eviction, slot);
            } else {
                let after = eviction.owner.unwrap_or(ClientId(0));
                let Some(owner) = self.quotas.next_after(after) else { return true };
                eviction.owner = Some(owner);
                let account = self.quotas.get(owner);
                eviction.looks = account.map_or(0, |account| 2 * account.idle.idle_objects());
            }
        }
        true
    }

    fn evict_for(&mut self, eviction: &mut Eviction, slot: Slot) {
        let size = self.objects.get(slot).size();
        if self.evict_idle(slot) {
            eviction.freed += size;
            eviction.evicted += 1;
        }
    }

    /// A client has gone. What it was creating is removed, what it held is released, what it waited
    /// for is forgotten.
    pub(super) fn begin_leaving(
        &mut self,
        client: ClientId,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let has_table = self.directory.has_joined(client);
        self.directory.leave(client);
        let idle = self.quotas.get(client).map_or(0, |account| account.idle.idle_objects());
        let leaving = self.clients.get_mut(client);
        leaving.looks_left = 2 * idle;
        leaving.is_leaving = true;
        leaving.notes_from = has_table.then_some(Slot(0));
        if self.leave_some(client, effects) {
            self.serve_creates(now, effects);
        } else {
            self.jobs.leaving.push_back(client);
        }
    }

    fn work_on_leaving(&mut self, now: Timestamp, effects: &mut Effects) {
        let Some(client) = self.jobs.leaving.pop_front() else { return };
        if self.leave_some(client, effects) {
            self.serve_creates(now, effects);
        } else {
            self.jobs.leaving.push_front(client);
        }
    }

    /// Removes what a client has left, for one slice. Whether nothing is left then.
    fn leave_some(&mut self, client: ClientId, effects: &mut Effects) -> bool {
        while self.steps > 0 {
            self.steps -= 1;
            if let Some(from) = self.clients.get(client).notes_from {
                // Its notes first, before its quota and what it holds are everybody's.
                let next = self.read_notes_left(client, from);
                self.clients.get_mut(client).notes_from = next;
            } else if let Some(create) = self.creates.abandoned(client) {
                self.clients.get_mut(client).wait_ended(create.cost());
            } else if let Some(waiter) = self.waits.disconnected(client) {
                self.steps = self.steps.saturating_sub(waiter.ids.len());
                self.clients.get_mut(client).wait_ended(waiter.cost());
            } else if let Some(slot) = self.first_charged(client) {
                let looks_left = &mut self.clients.get_mut(client).looks_left;
                let may_step_back = *looks_left > 0;
                *looks_left = looks_left.saturating_sub(1);
                if !(may_step_back && self.is_idle(slot) && self.steps_back(slot)) {
                    self.becomes_everybodys(slot);
                }
            } else if let Some((slot, _)) = self.clients.get_mut(client).holds.pop_first() {
                self.let_go(client, slot, effects);
            } else if self.look_at_one_left(client) {
                // One step, as each of the others.
            } else {
                self.quotas.remove(client);
                self.clients.remove(client);
                return true;
            }
        }
        false
    }

    /// An object that counts against the quota of a client: its idle ones in order, then others.
    fn first_charged(&self, client: ClientId) -> Option<Slot> {
        let account = self.quotas.get(client)?;
        account.idle.first().or_else(|| account.busy().next())
    }

    /// Drops what may be so much that it takes long.
    pub(super) fn drop_slowly(&mut self, ranges: Ranges) {
        if ranges.len() > self.slice.steps {
            self.waste.push(ranges);
        }
    }

    fn drop_waste(&mut self) {
        while let Some(ranges) = self.waste.last_mut() {
            while ranges.pop_first().is_some() {
                if self.steps == 0 {
                    return;
                }
                self.steps -= 1;
            }
            self.waste.pop();
        }
    }
}

impl Eviction {
    const fn reply(&self) -> Reply {
        Reply::Evicted { bytes: self.freed, objects: self.evicted }
    }
}
