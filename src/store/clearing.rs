//! Making room when very much has to go for it, a slice at a time. Part of [`Store`].
//!
//! [`room`](super::room) plans and evicts in one go, and gives up when that would take too long.
//! Then the create waits at the head of the queue, and this goes on in its place:
//!
//! 1. *Search.* Idle objects are looked at in the order of eviction, and nothing is changed, until
//!    those seen would leave enough bytes and, with free memory between them, a place.
//! 2. *Demote* objects in use, if the quota wants more than is idle.
//! 3. *Choose* what of those seen has to go, beginning with the most recently used one.
//! 4. *Evict* that, the least recently used first.
//!
//! Other requests are served in between. An object that somebody asks for meanwhile is spared, so
//! the place may not be free in the end, and it begins again. Other creates are served during the
//! first search only, and wait from then on, or they would take what is evicted here. A round looks
//! at no more objects than were idle when it began, since those that are used meanwhile come back
//! at the end of the order. After some rounds it is decided in one go, however long that takes: who
//! asks for room gets it if there is some. A search in vain is remembered: until something becomes
//! free or idle that would make a place, there is nothing to do.

use crate::ids::{ClientId, Slot};
use crate::limits::{ALIGNMENT, CLEARING_ROUNDS_MAX};
use crate::store::Store;
use crate::store::create_queue::QueuedCreate;
use crate::store::object_table::Object;
use crate::store::pool::Pool;
use crate::store::runs::Runs;
use crate::store::sums::Sums;

/// Room that is being made for one create.
#[derive(Debug)]
pub struct Clearing {
    /// The place in the queue of the create that this is for.
    pub ticket: u64,
    client: ClientId,
    /// Bytes of the new objects, and how many there are.
    bytes: u64,
    objects: usize,
    /// Bytes that they take in memory, one behind the other, and the largest and the smallest one.
    len: u64,
    len_of_largest: u64,
    len_of_smallest: u64,
    /// A run of so many bytes may make a place where there was none.
    enough: u64,
    phase: Phase,
    /// The next idle objects to look at, everybody's and the client's own.
    next_everybodys: Option<Slot>,
    next_own: Option<Slot>,
    /// Idle objects that may still be looked at in this round.
    looks: usize,
    /// What has been seen, in the order of eviction, and its sums.
    seen: Vec<Slot>,
    seen_sums: Sums,
    /// What of it has to go, the other way round, and the sums of what lies in the target.
    chosen: Vec<Slot>,
    target_sums: Sums,
    /// The memory of what has been seen, and of what became free or idle since.
    runs: Runs,
    /// The place, if there is none in the memory that is free.
    target: Option<(u64, u64)>,
    /// What became free or idle during the search may have made a place.
    may_fit: bool,
    rounds: u32,
    /// Jobs that free memory and were begun before this.
    jobs_before: usize,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Search,
    Demote,
    Choose,
    Evict,
    /// There is no place, and has not been one since the search.
    Barren,
}

/// What one step of work came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    More,
    /// The objects can be placed, if nothing has come in between.
    Cleared,
    /// There is no room.
    NoRoom,
}

impl Clearing {
    /// Room for this create, which is first in the queue.
    pub fn new(ticket: u64, create: &QueuedCreate, jobs_before: usize) -> Self {
        let lens = || create.creation.sizes().map(|size| size.next_multiple_of(ALIGNMENT));
        Self {
            ticket,
            client: create.client,
            bytes: create.creation.sizes().sum(),
            objects: create.creation.sizes().count(),
            len: lens().sum(),
            len_of_largest: lens().max().unwrap_or(0),
            len_of_smallest: lens().min().unwrap_or(0),
            enough: 0,
            phase: Phase::Start,
            next_everybodys: None,
            next_own: None,
            looks: 0,
            seen: Vec::new(),
            seen_sums: Sums::default(),
            chosen: Vec::new(),
            target_sums: Sums::default(),
            runs: Runs::default(),
            target: None,
            may_fit: false,
            rounds: 0,
            jobs_before,
        }
    }

    /// A job that freed memory has ended. The oldest one ends first.
    pub const fn note_job_ended(&mut self) {
        self.jobs_before = self.jobs_before.saturating_sub(1);
    }

    /// Whether memory is being freed that may save some evictions. For what is freed later nobody
    /// waits, or it could be for ever.
    pub const fn waits_for_jobs(&self) -> bool {
        self.jobs_before > 0
    }

    /// Whether there is nothing to do until something becomes free or idle.
    pub fn is_barren(&self) -> bool {
        self.phase == Phase::Barren
    }

    /// Whether creates of others have to wait until it is over.
    pub fn is_exclusive(&self) -> bool {
        let is_first_search =
            self.rounds == 0 && matches!(self.phase, Phase::Start | Phase::Search);
        !self.is_barren() && !is_first_search
    }

    /// Whether its end means nothing: it was given up for having begun too often, or the place was
    /// for a batch, which may still fit in pieces.
    pub fn is_undecided(&self) -> bool {
        !self.is_barren() && (self.rounds >= CLEARING_ROUNDS_MAX || self.objects > 1)
    }

    /// The memory is such that not even all that could go makes room, in whatever pieces.
    pub fn note_barren(&mut self) {
        self.enough = self.len_of_smallest;
        self.phase = Phase::Barren;
        (self.next_everybodys, self.next_own) = (None, None);
    }

    /// The places in the orders of eviction where it stands.
    pub fn cursors(&self) -> impl Iterator<Item = Slot> {
        self.next_everybodys.into_iter().chain(self.next_own)
    }

    /// What takes time to be dropped.
    pub fn into_runs(self) -> Runs {
        self.runs
    }

    /// These bytes have become free or idle. It ends the wait of a create that may fit now, for
    /// which the jobs of this number come first.
    pub fn note_room(&mut self, offset: u64, size: u64, pool: &Pool, jobs: usize) {
        if matches!(self.phase, Phase::Search | Phase::Barren) && size > 0 {
            let (start, end) = self.runs.add(offset, end_of(offset, size), pool);
            if self.phase == Phase::Barren {
                if end - start >= self.enough {
                    self.begin_again();
                    (self.rounds, self.jobs_before) = (0, jobs);
                }
            } else if end - start >= self.len {
                self.may_fit = true;
            }
        }
    }

    /// An object leaves its place in an order of eviction.
    pub fn step_off(
        &mut self,
        slot: Slot,
        mut after: impl FnMut(Option<ClientId>, Slot) -> Option<Slot>,
    ) {
        if self.next_everybodys == Some(slot) {
            self.next_everybodys = after(None, slot);
        }
        if self.next_own == Some(slot) {
            self.next_own = after(Some(self.client), slot);
        }
    }

    fn begin_again(&mut self) {
        self.phase = Phase::Start;
        self.rounds += 1;
        (self.next_everybodys, self.next_own) = (None, None);
    }

    /// What has been seen is all that will be looked at; there are no places to keep in mind.
    fn choose(&mut self) {
        self.phase = Phase::Choose;
        (self.next_everybodys, self.next_own) = (None, None);
    }

    fn is_in_target(&self, object: &Object) -> bool {
        let (offset, end) = (object.location.offset, object.location.offset + object.size());
        object.size() > 0
            && self.target.is_some_and(|(start, _)| offset < start + self.len && start < end)
    }
}

impl Store {
    /// Goes on until this slice is used up, or there is a result.
    pub(super) fn clear_some(&mut self) -> Progress {
        let Some(mut clearing) = self.clearing.take() else { return Progress::NoRoom };
        let mut progress = Progress::More;
        while progress == Progress::More && self.steps > 0 {
            self.steps = self.steps.saturating_sub(self.look_steps());
            progress = match clearing.phase {
                Phase::Start => self.start_search(&mut clearing),
                Phase::Search => self.search_one(&mut clearing),
                Phase::Demote => self.demote_one(&mut clearing),
                Phase::Choose => self.choose_one(&mut clearing),
                Phase::Evict => self.evict_chosen(&mut clearing),
                Phase::Barren => Progress::NoRoom,
            };
        }
        self.clearing = Some(clearing);
        progress
    }

    /// Takes the place that has been cleared. If it is not there, all begins again, but not for
    /// ever.
    pub(super) fn take_cleared(&mut self, sizes: &[u64]) -> Result<Vec<u64>, Progress> {
        let Some(mut clearing) = self.clearing.take() else { return Err(Progress::NoRoom) };
        if self.lacks(&clearing, Sums::default(), true) || !self.claim_target(&mut clearing) {
            clearing.begin_again();
            let is_over = clearing.rounds >= CLEARING_ROUNDS_MAX;
            self.clearing = Some(clearing);
            return Err(if is_over { Progress::NoRoom } else { Progress::More });
        }
        let mut next = clearing.target.map_or(0, |(start, _)| start);
        self.waste.push(clearing.into_runs());
        let place = |size: &u64| {
            let offset = next;
            next += size.next_multiple_of(ALIGNMENT);
            if *size == 0 { 0 } else { offset }
        };
        let offsets: Vec<u64> = sizes.iter().map(place).collect();
        self.note_taken(&offsets, sizes);
        Ok(offsets)
    }

    /// Takes the memory of the target, or any place if it had none. It is the target then.
    fn claim_target(&mut self, clearing: &mut Clearing) -> bool {
        match clearing.target {
            Some((start, _)) if self.pool.is_free(start, clearing.len) => {
                self.pool.claim(start, clearing.len);
                true
            }
            _ => {
                let start = self.pool.allocate(clearing.len);
                clearing.target = start.map(|start| (start, start + clearing.len));
                start.is_some()
            }
        }
    }

    fn start_search(&mut self, clearing: &mut Clearing) -> Progress {
        self.waste.push(std::mem::take(&mut clearing.runs));
        clearing.next_everybodys = self.first_idle(None);
        clearing.next_own = self.first_idle(Some(clearing.client));
        // Each of them may step back once.
        clearing.looks = 2 * self.reachable_objects(clearing.client);
        clearing.seen.clear();
        clearing.chosen.clear();
        clearing.seen_sums = Sums::default();
        clearing.target_sums = Sums::default();
        (clearing.target, clearing.may_fit) = (None, false);
        clearing.phase = Phase::Search;
        Progress::More
    }

    fn search_one(&mut self, clearing: &mut Clearing) -> Progress {
        let has_place = clearing.target.is_some() || self.pool.fits(clearing.len);
        let lacks_quota = self.lacks_quota(clearing, clearing.seen_sums);
        let wants_own = lacks_quota && clearing.next_own.is_some();
        if has_place && !wants_own && !self.lacks(clearing, clearing.seen_sums, false) {
            if self.pool.fits(clearing.len) {
                clearing.target = None;
            }
            clearing.phase = Phase::Demote;
            clearing.next_own = self.first_idle(Some(clearing.client));
            return Progress::More;
        }
        if clearing.looks == 0 && clearing.cursors().next().is_some() {
            clearing.begin_again();
            let is_over = clearing.rounds >= CLEARING_ROUNDS_MAX;
            return if is_over { Progress::NoRoom } else { Progress::More };
        }
        clearing.looks = clearing.looks.saturating_sub(1);
        let slot = if wants_own || clearing.next_everybodys.is_none() {
            let own = clearing.next_own;
            clearing.next_own = own.and_then(|slot| self.idle_after(Some(clearing.client), slot));
            own
        } else {
            let everybodys = clearing.next_everybodys;
            clearing.next_everybodys = everybodys.and_then(|slot| self.idle_after(None, slot));
            everybodys
        };
        match slot {
            Some(slot) => self.see(clearing, slot),
            None => return self.end_search(clearing, has_place),
        }
        Progress::More
    }

    fn see(&mut self, clearing: &mut Clearing, slot: Slot) {
        if self.steps_back(slot) || self.is_pinned(slot) {
            return;
        }
        let object = self.objects.get(slot);
        clearing.seen.push(slot);
        clearing.seen_sums.add(Sums::of(object));
        if object.size() > 0 {
            let offset = object.location.offset;
            let run = clearing.runs.add(offset, end_of(offset, object.size()), &self.pool);
            if clearing.target.is_none() && run.1 - run.0 >= clearing.len {
                clearing.target = Some(run);
            }
        }
    }

    /// The oldest object in use leaves the quota if it would be exceeded although everything seen
    /// went. That only readers of the directory use one is found out when no others are left.
    fn demote_one(&mut self, clearing: &mut Clearing) -> Progress {
        let account = self.quotas.get(clearing.client);
        let oldest = account.and_then(|account| account.busy().next());
        if !self.lacks_quota(clearing, clearing.seen_sums) {
            clearing.choose();
        } else if let Some(slot) = oldest {
            self.demote(slot);
        } else if let Some(slot) = clearing.next_own {
            clearing.next_own = self.idle_after(Some(clearing.client), slot);
            // If so it is in use, and its turn comes.
            self.is_pinned(slot);
        } else {
            clearing.choose();
        }
        Progress::More
    }

    /// All idle objects have been seen, and it is not enough.
    fn end_search(&self, clearing: &mut Clearing, has_place: bool) -> Progress {
        if !has_place && clearing.may_fit && clearing.rounds < CLEARING_ROUNDS_MAX {
            clearing.begin_again();
            return Progress::More;
        }
        let longest = clearing.runs.longest().max(self.pool.largest_free_run());
        // Where there are places for the largest of a batch, it may fit in pieces.
        let is_exact = clearing.objects == 1 || longest < clearing.len_of_largest;
        if is_exact && !has_place && !clearing.may_fit {
            clearing.enough = clearing.len_of_largest;
            clearing.phase = Phase::Barren;
        }
        Progress::NoRoom
    }

    /// The most recently used of those seen stays if the others are enough.
    fn choose_one(&mut self, clearing: &mut Clearing) -> Progress {
        let Some(slot) = clearing.seen.pop() else {
            clearing.phase = Phase::Evict;
            return Progress::More;
        };
        let Some(object) = self.evictable(clearing.client, slot) else { return Progress::More };
        let sums = Sums::of(object);
        if clearing.is_in_target(object) {
            clearing.target_sums.add(sums);
            clearing.chosen.push(slot);
        } else {
            let others = clearing.seen_sums.without(sums);
            let lacks_quota = sums.own_bytes > 0 && self.lacks_quota(clearing, others);
            if lacks_quota || self.lacks(clearing, others, false) {
                clearing.chosen.push(slot);
            } else {
                clearing.seen_sums = others;
            }
        }
        Progress::More
    }

    fn evict_chosen(&mut self, clearing: &mut Clearing) -> Progress {
        let Some(slot) = clearing.chosen.pop() else { return Progress::Cleared };
        let Some(object) = self.evictable(clearing.client, slot) else { return Progress::More };
        let sums = Sums::of(object);
        let is_in_target = clearing.is_in_target(object);
        if is_in_target {
            clearing.target_sums = clearing.target_sums.without(sums);
        }
        // If others have made room meanwhile, less has to go.
        let pending = clearing.target_sums;
        let lacks_quota = sums.own_bytes > 0 && self.lacks_quota(clearing, pending);
        if is_in_target || lacks_quota || self.lacks(clearing, pending, false) {
            self.evict_idle(slot);
        }
        Progress::More
    }

    /// An object that a create of this client may evict, if it is still there.
    fn evictable(&self, client: ClientId, slot: Slot) -> Option<&Object> {
        let object = self.objects.try_get(slot)?;
        let is_reachable = object.account.is_none_or(|owner| owner == client);
        (object.is_sealed() && object.holders == 0 && is_reachable).then_some(object)
    }

    /// Whether the new objects would exceed the capacity or the number of objects if others of
    /// these sums went, or else the quota.
    fn lacks(&self, clearing: &Clearing, gone: Sums, with_quota: bool) -> bool {
        let used = self.used.saturating_sub(gone.bytes) + clearing.bytes;
        let objects = self.objects.len().saturating_sub(gone.objects) + clearing.objects;
        used > self.config.capacity
            || objects > self.config.objects_max as usize
            || (with_quota && self.lacks_quota(clearing, gone))
    }

    fn lacks_quota(&self, clearing: &Clearing, gone: Sums) -> bool {
        self.quotas.get(clearing.client).is_some_and(|account| {
            account.used.saturating_sub(gone.own_bytes) + clearing.bytes > account.quota
        })
    }
}

/// The end of the memory of an object.
const fn end_of(offset: u64, size: u64) -> u64 {
    offset + size.next_multiple_of(ALIGNMENT)
}
