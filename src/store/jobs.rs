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
use crate::store::awaiting::Ending;
use crate::store::clients::WaitCost;
use crate::store::counting::Count;
use crate::store::space::Ranges;
use crate::store::waiting::WaiterId;
use crate::store::{Answer, Asked, Effects, Store};
use crate::time::Timestamp;

/// One kind of what there is to go on with: whether there is any of it, and what does one slice.
type Job = (fn(&Store) -> bool, fn(&mut Store));

/// All kinds. Each has its turn.
const JOBS: [Job; 8] = [
    (|store| !store.jobs.wakes.is_empty(), Store::work_on_wakes),
    (|store| !store.jobs.endings.is_empty(), Store::work_on_endings),
    (|store| !store.jobs.abandoned.is_empty(), Store::work_on_abandoned),
    (|store| !store.jobs.evictions.is_empty(), Store::work_on_evictions),
    (|store| !store.jobs.leaving.is_empty(), Store::work_on_leaving),
    (Store::has_room_work, Store::serve_creates),
    (|store| !store.jobs.counts.is_empty(), Store::work_on_counts),
    (|store| !store.waste.is_empty(), Store::drop_waste),
];

/// What is to be gone on with, the oldest of each kind first.
#[derive(Debug, Default)]
pub struct Jobs {
    /// Sealed objects whose waiters have not all been told. The store holds them meanwhile, so that
    /// nobody misses them.
    pub wakes: VecDeque<Slot>,
    abandoned: VecDeque<Abandoned>,
    /// Gets and waits that have waited and are being answered.
    pub endings: VecDeque<Ending>,
    /// One of them is being answered at this moment.
    pub is_ending: bool,
    evictions: VecDeque<Eviction>,
    /// Numbers that are being counted.
    pub counts: VecDeque<Count>,
    /// Clients that have gone.
    pub leaving: VecDeque<ClientId>,
    /// What had the last slice, as an index of [`JOBS`].
    last: usize,
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

impl Jobs {
    /// Who waits for the end of a job.
    pub fn askers(&self) -> impl Iterator<Item = ClientId> {
        let evictions = self.evictions.iter().map(|eviction| eviction.asked);
        evictions.chain(self.counts.iter().map(|count| count.asked)).map(|asked| asked.client)
    }

    /// Whether memory is being freed, for which a create may wait.
    pub fn is_freeing(&self) -> bool {
        !self.evictions.is_empty() || !self.leaving.is_empty()
    }

    fn is_any_open(&self) -> bool {
        let Self { wakes, abandoned, endings, evictions, counts, leaving, .. } = self;
        let others = wakes.len() + abandoned.len() + endings.len() + counts.len();
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
        self.told(now, effects, |store| {
            store.begin_slice();
            let mut turns = (1..=JOBS.len()).map(|turn| (store.jobs.last + turn) % JOBS.len());
            if let Some(job) = turns.find(|job| JOBS[*job].0(store)) {
                store.jobs.last = job;
                JOBS[job].1(store);
            }
            store.space.plan_look(now);
        });
    }

    /// Every request, and every slice of a job, may do so much.
    ///
    /// # Panics
    /// If the bytes of a put have not been written yet, or nobody has said so.
    pub(super) fn begin_slice(&mut self) {
        assert!(self.filling.is_none(), "puts are filled before anything else happens");
        self.tick += 1;
        self.directory.advance(self.tick);
        self.steps = self.slice.steps;
        self.answers = self.slice.answers;
    }

    /// An object has been sealed: tells everybody who waited for it.
    pub(super) fn wake_waiters(&mut self, slot: Slot) {
        if !self.wake_some(slot) {
            let object = self.objects.get_mut(slot);
            object.holders += 1;
            object.is_waking = true;
            self.jobs.wakes.push_back(slot);
        }
    }

    fn work_on_wakes(&mut self) {
        let Some(slot) = self.jobs.wakes.front().copied() else { return };
        if self.wake_some(slot) {
            self.jobs.wakes.pop_front();
            self.objects.get_mut(slot).is_waking = false;
            self.lose_holder(slot);
        }
    }

    /// The creator of an object gave up: tells those who want to know.
    pub(super) fn fail_waiters(&mut self, id: ObjectId) {
        if !self.waits.is_awaited(&id) {
            return;
        }
        let last = self.waits.last();
        if let Some(next) = self.tell_abandoned(&id, WaiterId::FIRST, last) {
            self.jobs.abandoned.push_back(Abandoned { id, next, last });
        }
    }

    fn work_on_abandoned(&mut self) {
        let Some(Abandoned { id, next, last }) = self.jobs.abandoned.pop_front() else { return };
        if let Some(next) = self.tell_abandoned(&id, next, last) {
            self.jobs.abandoned.push_front(Abandoned { id, next, last });
        }
    }

    /// Evicts idle objects until so many bytes are gone: everybody's first, then those that count
    /// against a quota, owner by owner.
    pub(super) fn evict(&mut self, asked: Asked, bytes: u64) -> Answer {
        let looks = 2 * self.idle.idle_objects();
        let mut eviction = Eviction { asked, bytes, freed: 0, evicted: 0, owner: None, looks };
        if self.evict_some(&mut eviction) {
            return Ok(Some(eviction.reply()));
        }
        self.begin_wait(asked.client, WaitCost::default())?;
        self.jobs.evictions.push_back(eviction);
        Ok(None)
    }

    fn work_on_evictions(&mut self) {
        let Some(mut eviction) = self.jobs.evictions.pop_front() else { return };
        let asked = eviction.asked;
        if !self.clients.is_here(asked.client) {
            // Nobody wants to know.
        } else if self.evict_some(&mut eviction) {
            self.clients.wait_ended(asked.client, WaitCost::default());
            self.reply(asked, eviction.reply());
            self.serve_creates();
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
            self.steps -= 1;
            let first = self.first_idle(eviction.owner).filter(|_| eviction.looks > 0);
            if let Some(slot) = first {
                eviction.looks -= 1;
                if self.step_back_if_used(slot) {
                    continue;
                }
                let size = self.objects.get(slot).size();
                if self.evict_idle(slot) {
                    eviction.freed += size;
                    eviction.evicted += 1;
                }
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
