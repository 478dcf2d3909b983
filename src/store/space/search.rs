//! Room for one create: search, choose, evict. Part of [`Store`].
//!
//! This is the one way to room, with or without evicting. It is a machine that goes on from slice
//! to slice, and mostly ends in its first one:
//!
//! 1. *Begin*. What fits into free memory is placed. What would not fit if all went is given up.
//! 2. *Look* at idle objects in the order of eviction, until those seen would leave enough bytes
//!    and objects, and with the free memory between them one run that is long enough, the *target*.
//! 3. *Demote* objects in use, if the quota wants more than is idle.
//! 4. *Choose* what of those seen has to go, beginning with the most recently used one.
//! 5. *Evict* that, the least recently used first.
//! 6. *Place*: take the target.
//!
//! Nothing is changed before 3. Others are served between two slices. If one of them uses an object
//! in the target, all begins again, but not for ever. What was seen is known by its generation: its
//! slot may be another object's when its turn comes.
//!
//! A search in vain is *barren*, and remembers what it has seen: there is nothing to do until bytes
//! become free or idle that join a long enough run, or the numbers change. If memory in transit
//! would join one (*gather*), there may be room when that comes back. Who waits, and what is
//! answered, is not known here.

use crate::ids::{ClientId, Slot};
use crate::limits::{ALIGNMENT, SEARCH_ROUNDS_MAX};
use crate::store::Store;
use crate::store::object_table::Object;
use crate::store::space::Space;
use crate::store::space::ranges::{Range, Ranges};
use crate::store::waiting::Creation;

/// Room that is looked for.
#[derive(Debug)]
pub struct Search {
    client: ClientId,
    evict: bool,
    /// What the new objects come to, and the run that they take, one behind the other.
    bytes: u64,
    objects: usize,
    len: u64,
    phase: Phase,
    /// How often it has begun again.
    rounds: u32,
    /// What others have told in memory has been looked at, after it was in vain.
    has_caught_up: bool,
    /// The next idle objects to look at, everybody's and the client's own.
    next: Option<Slot>,
    next_own: Option<Slot>,
    /// How often it may still look at an object: those that are used meanwhile come again.
    looks: usize,
    /// What has been seen, in the order of eviction, and its sums.
    seen: Vec<Seen>,
    seen_sums: Sums,
    /// What of it has to go, the other way round, and the sums of what of it is in the target.
    chosen: Vec<Seen>,
    target_sums: Sums,
    /// Where the new objects go; nothing if free memory will do.
    target: Option<u64>,
    /// The memory that could be had: free, in transit, or of what was seen or became idle since.
    /// It only grows. What does not fit here does not fit at all. Takes time to be dropped, if it
    /// is much.
    pub reach: Ranges,
    longest: u64,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    Look,
    /// It was in vain, and memory in transit has been gathered up to here.
    Gather(u64),
    Demote,
    Choose,
    Evict,
    Place,
    Barren(Lack),
}

/// Why a search is barren.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Too many bytes or objects are in use.
    Numbers,
    /// There is no run that is long enough.
    Run,
    /// There may be one when work outside has ended.
    Transit,
}

/// An object that was idle, and where it lay.
#[derive(Debug, Clone, Copy)]
struct Seen {
    slot: Slot,
    generation: u64,
    offset: u64,
    size: u64,
}

/// What some objects come to.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    bytes: u64,
    objects: usize,
    /// Bytes that count against the client's quota.
    own_bytes: u64,
}

impl Sums {
    fn of(object: &Object) -> Self {
        let own_bytes = if object.account().is_some() { object.size() } else { 0 };
        Self { bytes: object.size(), objects: 1, own_bytes }
    }

    const fn with(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            objects: self.objects + other.objects,
            own_bytes: self.own_bytes + other.own_bytes,
        }
    }

    /// Objects may have changed since they were added.
    const fn without(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            objects: self.objects.saturating_sub(other.objects),
            own_bytes: self.own_bytes.saturating_sub(other.own_bytes),
        }
    }
}

/// What a slice of a search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    More,
    /// The run that begins here has been taken for the new objects.
    Room(u64),
    /// There is no room now.
    NoRoom,
}

impl Search {
    /// Room for this, of this client. A batch takes one run of memory, like one object.
    pub fn new(client: ClientId, creation: &Creation, evict: bool) -> Self {
        Self {
            client,
            evict,
            bytes: creation.sizes().sum(),
            objects: creation.sizes().count(),
            len: creation.sizes().map(|size| size.next_multiple_of(ALIGNMENT)).sum(),
            phase: Phase::Begin,
            rounds: 0,
            has_caught_up: false,
            next: None,
            next_own: None,
            looks: 0,
            seen: Vec::new(),
            seen_sums: Sums::default(),
            chosen: Vec::new(),
            target_sums: Sums::default(),
            target: None,
            reach: Ranges::default(),
            longest: 0,
        }
    }

    /// Whether it is not known whether its create is legal.
    pub fn is_new(&self) -> bool {
        self.phase == Phase::Begin
    }

    /// Whether it is somewhere between its begin and its end.
    pub fn is_under_way(&self) -> bool {
        self.rounds > 0 || !matches!(self.phase, Phase::Begin | Phase::Barren(_))
    }

    /// Whether other creates have to wait until it is over, or they would take what goes for it.
    pub fn is_exclusive(&self) -> bool {
        self.is_under_way()
            && (self.rounds > 0 || !matches!(self.phase, Phase::Look | Phase::Gather(_)))
    }

    /// Whether it is the first time that this is asked. Whatever completed before the create began
    /// is seen by one look at what others have told; a second one would be for those who go on
    /// telling, for as long as they like.
    pub const fn may_catch_up(&mut self) -> bool {
        !std::mem::replace(&mut self.has_caught_up, true)
    }

    /// Whether it waits for the end of work outside.
    pub fn waits_for_transit(&self) -> bool {
        self.phase == Phase::Barren(Lack::Transit)
    }

    /// The places in the orders of eviction where it stands.
    pub fn cursors(&self) -> impl Iterator<Item = Slot> {
        self.next.into_iter().chain(self.next_own)
    }

    /// The room that was taken is not wanted after all.
    pub fn give_back(&self, space: &mut Space, start: u64) {
        space.free(start, self.len, self.bytes);
    }

    /// Its create may not be legal any more.
    pub const fn doubt(&mut self) {
        if let Phase::Barren(_) = self.phase {
            self.phase = Phase::Begin;
        }
    }

    /// Work outside has ended.
    pub fn transit_ended(&mut self) {
        if self.waits_for_transit() {
            self.phase = Phase::Begin;
        }
    }

    /// These bytes have become free, idle, or in transit. That may end the wait of a create.
    pub fn note_memory(&mut self, space: &Space, offset: u64, size: u64, is_idle: bool) {
        let remembers =
            matches!(self.phase, Phase::Gather(_) | Phase::Look | Phase::Barren(Lack::Run))
                || self.waits_for_transit();
        if !remembers || size == 0 || (is_idle && !self.evict) {
            return;
        }
        let run = self.add_to_reach(space, Range::of(offset, size));
        let is_of_use = match self.phase {
            Phase::Barren(Lack::Run) => run.len() >= self.len,
            Phase::Barren(_) => space.transit.first_part_without(run, self.len).is_some(),
            _ => false,
        };
        if is_of_use {
            self.phase = Phase::Begin;
        }
    }

    /// An object leaves its place in an order of eviction.
    pub fn step_off(
        &mut self,
        slot: Slot,
        mut after: impl FnMut(Option<ClientId>, Slot) -> Option<Slot>,
    ) {
        if self.next == Some(slot) {
            self.next = after(None, slot);
        }
        if self.next_own == Some(slot) {
            self.next_own = after(Some(self.client), slot);
        }
    }

    /// Adds memory and what is free around it. Returns the run that it is part of.
    fn add_to_reach(&mut self, space: &Space, range: Range) -> Range {
        let before = space.pool.run_at(range.start).map_or(range.start, |(start, _)| start);
        let behind = space.pool.run_at(range.end).map_or(range.end, |(_, end)| end);
        let run = self.reach.insert(Range { start: before, end: behind });
        self.longest = self.longest.max(run.len());
        run
    }

    /// No more is looked at, and so there are no places to keep in mind.
    fn stop_looking(&mut self, phase: Phase) {
        self.phase = phase;
        (self.next, self.next_own) = (None, None);
    }

    /// Others have come in between. After some times they come first.
    fn begin_again(&mut self) -> Progress {
        self.stop_looking(Phase::Begin);
        self.rounds += 1;
        if self.rounds < SEARCH_ROUNDS_MAX {
            return Progress::More;
        }
        self.rounds = 0;
        Progress::NoRoom
    }

    fn give_up(&mut self, lack: Lack) -> Progress {
        self.stop_looking(Phase::Barren(lack));
        self.rounds = 0;
        Progress::NoRoom
    }

    fn is_in_target(&self, seen: Seen) -> bool {
        let target = self.target.map(|start| Range { start, end: start + self.len });
        target.is_some_and(|target| target.overlaps(seen.offset, seen.size))
    }
}

impl Store {
    /// Goes on with a search until there is a result, or this slice is used up.
    pub(in crate::store) fn search_on(&mut self, search: &mut Search) -> Progress {
        while self.steps > 0 {
            let progress = match search.phase {
                Phase::Begin => self.begin_search(search),
                Phase::Gather(from) => self.gather_one(search, from),
                Phase::Look => self.look_at_one(search),
                Phase::Demote => self.demote_one(search),
                Phase::Choose => self.choose_one(search),
                Phase::Evict => self.evict_one(search),
                Phase::Place => return self.take_room(search),
                Phase::Barren(_) if !self.has_search_work(search) => return Progress::NoRoom,
                Phase::Barren(_) => {
                    search.phase = Phase::Begin;
                    Progress::More
                }
            };
            if progress != Progress::More {
                return progress;
            }
        }
        Progress::More
    }

    /// Whether a search has anything to do.
    pub(in crate::store) fn has_search_work(&self, search: &Search) -> bool {
        match search.phase {
            Phase::Barren(Lack::Numbers) => self.has_numbers(search),
            Phase::Barren(_) => false,
            _ => true,
        }
    }

    fn begin_search(&mut self, search: &mut Search) -> Progress {
        search.target = None;
        if self.allows(search) && self.space.pool.fits(search.len) {
            search.phase = Phase::Place;
            return Progress::More;
        }
        if !self.has_numbers(search) {
            return search.give_up(Lack::Numbers);
        }
        self.drop_slowly(std::mem::take(&mut search.reach));
        search.longest = 0;
        search.seen.clear();
        search.chosen.clear();
        (search.seen_sums, search.target_sums) = (Sums::default(), Sums::default());
        if search.evict {
            search.next = self.first_idle(None);
            search.next_own = self.first_idle(Some(search.client));
        }
        // Each of them may step back once.
        search.looks = 2 * self.reachable_objects(search.client);
        search.phase = Phase::Look;
        Progress::More
    }

    fn look_at_one(&mut self, search: &mut Search) -> Progress {
        let is_free = self.space.pool.fits(search.len);
        let has_run = is_free || search.target.is_some();
        let wants_own = search.next_own.is_some() && self.lacks_quota(search, search.seen_sums);
        if has_run && !wants_own && !self.lacks(search, search.seen_sums) {
            search.target.take_if(|_| is_free);
            search.stop_looking(Phase::Demote);
            return Progress::More;
        }
        if search.looks == 0 || search.cursors().next().is_none() {
            return self.end_look(search, has_run);
        }
        search.looks -= 1;
        self.steps -= 1;
        let is_own = wants_own || search.next.is_none();
        let (owner, next) = if is_own {
            (Some(search.client), &mut search.next_own)
        } else {
            (None, &mut search.next)
        };
        if let Some(slot) = next.take() {
            *next = self.idle_after(owner, slot);
            self.see(search, slot);
        }
        Progress::More
    }

    fn see(&mut self, search: &mut Search, slot: Slot) {
        if self.step_back_if_used(slot) || self.park_if_pinned(slot) {
            return;
        }
        let object = self.objects.get(slot);
        let (offset, size) = (object.location.offset, object.size());
        search.seen.push(Seen { slot, generation: object.generation, offset, size });
        search.seen_sums = search.seen_sums.with(Sums::of(object));
        if size > 0 {
            let range = Range::of(offset, size);
            let run = search.add_to_reach(&self.space, range);
            if search.target.is_none() && run.len() >= search.len {
                search.target = Some(run.start);
            }
        }
    }

    /// All idle objects have been seen, and it is not enough.
    fn end_look(&self, search: &mut Search, has_run: bool) -> Progress {
        let has_seen_all = search.cursors().next().is_none();
        // What became idle meanwhile was not seen: with that it may be enough.
        if !has_seen_all || has_run && self.has_numbers(search) {
            search.begin_again()
        } else if !self.has_numbers(search) {
            search.give_up(Lack::Numbers)
        } else {
            search.phase = Phase::Gather(0);
            Progress::More
        }
    }

    /// Nothing goes for the sake of memory in transit, but it may be what is missing.
    fn gather_one(&mut self, search: &mut Search, from: u64) -> Progress {
        if let Some(range) = self.space.transit.soon.first_from(from) {
            self.steps -= 1;
            search.add_to_reach(&self.space, range);
            search.phase = Phase::Gather(range.end);
            return Progress::More;
        }
        if search.longest < search.len {
            search.give_up(Lack::Run)
        } else if self.space.transit.soon.is_empty() {
            search.begin_again()
        } else {
            search.give_up(Lack::Transit)
        }
    }

    /// The oldest object in use leaves the quota if it would be exceeded although everything seen
    /// went.
    fn demote_one(&mut self, search: &mut Search) -> Progress {
        let account = self.quotas.get(search.client);
        let oldest = account.and_then(|account| account.busy().next());
        match oldest.filter(|_| self.lacks_quota(search, search.seen_sums)) {
            Some(slot) => {
                self.steps -= 1;
                // When it becomes idle, anybody may evict it.
                self.becomes_everybodys(slot);
                self.counters.objects_demoted += 1;
            }
            None => search.phase = Phase::Choose,
        }
        Progress::More
    }

    /// The most recently used of those seen stays if the others are enough.
    fn choose_one(&mut self, search: &mut Search) -> Progress {
        let Some(seen) = search.seen.pop() else {
            // Beside another search this one is forgotten at the end of its slice: all or nothing.
            let is_beside = self.search.as_ref().is_some_and(|(_, other)| other.is_under_way());
            if is_beside && search.chosen.len() * (1 + 2 * self.look_steps()) >= self.steps {
                search.phase = Phase::Begin;
                self.steps = 0;
            } else {
                search.phase = Phase::Evict;
            }
            return Progress::More;
        };
        self.steps -= 1;
        let Some(sums) = self.victim(search, seen) else {
            return self.without_victim(search, seen);
        };
        let others = search.seen_sums.without(sums);
        if search.is_in_target(seen) {
            search.target_sums = search.target_sums.with(sums);
            search.chosen.push(seen);
        } else if self.needs(search, sums, others) {
            search.chosen.push(seen);
        } else {
            search.seen_sums = others;
        }
        Progress::More
    }

    fn evict_one(&mut self, search: &mut Search) -> Progress {
        let Some(seen) = search.chosen.pop() else {
            search.phase = Phase::Place;
            return Progress::More;
        };
        self.steps -= 1;
        if let Some(sums) = self.victim(search, seen) {
            let is_in_target = search.is_in_target(seen);
            if is_in_target {
                search.target_sums = search.target_sums.without(sums);
            }
            // If others have made room meanwhile, less has to go.
            if is_in_target || self.needs(search, sums, search.target_sums) {
                self.evict_idle(seen.slot);
            }
        }
        self.without_victim(search, seen)
    }

    /// The sums of an object that was seen, if it may still go. Another one in its slot may not.
    fn victim(&self, search: &Search, seen: Seen) -> Option<Sums> {
        let object = self.objects.try_get(seen.slot)?;
        let is_own = object.account().is_none_or(|owner| owner == search.client);
        let may_go = object.generation == seen.generation && is_own && self.is_idle(seen.slot);
        may_go.then(|| Sums::of(object))
    }

    /// Goes on after an object that was seen, which is no victim any more. If somebody has its
    /// memory that is needed, all begins again.
    fn without_victim(&self, search: &mut Search, seen: Seen) -> Progress {
        if search.is_in_target(seen) && !self.space.pool.is_free(seen.offset, seen.size) {
            search.begin_again()
        } else {
            Progress::More
        }
    }

    fn take_room(&mut self, search: &mut Search) -> Progress {
        if self.allows(search)
            && let Some(start) = self.space.take(search.target, search.len, search.bytes)
        {
            return Progress::Room(start);
        }
        search.begin_again()
    }

    /// Whether this object has to go if others of these sums go.
    fn needs(&self, search: &Search, object: Sums, others: Sums) -> bool {
        self.lacks(search, others) || object.own_bytes > 0 && self.lacks_quota(search, others)
    }

    /// Whether the new objects would exceed the capacity or the number of objects if others of
    /// these sums went.
    fn lacks(&self, search: &Search, gone: Sums) -> bool {
        let objects = self.objects.len().saturating_sub(gone.objects) + search.objects;
        !self.space.has_capacity(search.bytes, gone.bytes)
            || objects > self.config.objects_max as usize
    }

    /// Whether the new objects would exceed neither of them as it is now.
    fn allows(&self, search: &Search) -> bool {
        !self.lacks(search, Sums::default()) && !self.lacks_quota(search, Sums::default())
    }

    fn lacks_quota(&self, search: &Search, gone: Sums) -> bool {
        self.quotas.get(search.client).is_some_and(|account| {
            account.used.saturating_sub(gone.own_bytes) + search.bytes > account.quota
        })
    }

    /// Whether bytes and number of objects would do if all went that may. Known without a look at
    /// any object: what is in use can never make room.
    fn has_numbers(&self, search: &Search) -> bool {
        let own = self.quotas.get(search.client).map_or(0, |account| account.idle.idle_bytes());
        let bytes = self.idle.idle_bytes() + own;
        let objects = self.reachable_objects(search.client);
        let all = Sums { bytes, objects, own_bytes: 0 };
        !self.lacks(search, if search.evict { all } else { Sums::default() })
    }

    /// Number of objects that a create of this client could evict.
    fn reachable_objects(&self, client: ClientId) -> usize {
        let own = self.quotas.get(client).map_or(0, |account| account.idle.idle_objects());
        self.idle.idle_objects() + own
    }
}
