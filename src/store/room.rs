//! Room for new objects: what is evicted for them, and where they go. Part of [`Store`].
//!
//! Room is made in two steps, so that a create that fails changes nothing. First a plan: idle
//! objects are freed in the pool one by one, least recent first, until everything fits; if it never
//! does, the pool is put back as it was. Then victims that turned out not to be needed (they lie
//! outside the run that was found, and neither the bytes nor the quota want them) are spared, and
//! the rest is evicted. So eviction takes what is needed and no more. A plan for which too many
//! objects would have to be looked at is given up; what happens then is the business of
//! [`clearing`](super::clearing).
//!
//! Memory that is being given back to the system is taken in the pool, and yet has to be there for
//! whoever needs it. So new objects go elsewhere if that costs nobody anything. If not, the plan is
//! made as if that memory were free, and if it wants some of it, the create waits the moment
//! until it is: nothing is evicted or refused for the sake of it.

use crate::eviction::EvictionPolicy;
use crate::ids::{ClientId, Slot};
use crate::protocol::refusal::FullStore;
use crate::store::Store;
use crate::store::object_table::Object;
use crate::store::ranges::Range;

/// Room that has been found but not taken yet.
#[derive(Debug, Default)]
struct RoomPlan {
    /// Where the new objects go, already taken in the pool.
    offsets: Vec<u64>,
    /// Bytes of the new objects that have their place.
    placed_bytes: u64,
    /// Idle objects to evict, already free in the pool.
    victims: Vec<Slot>,
    /// Number of victims, also while they are looked at once more.
    victim_count: usize,
    /// Bytes of all victims.
    freed_bytes: u64,
    /// Bytes by which the creator's quota would be exceeded if nothing left it.
    over_quota: u64,
    /// Bytes that leave the quota, evicted or demoted.
    relieved_bytes: u64,
    /// Objects in use that leave the quota.
    demoted: Vec<Slot>,
    /// Where the search of the idle objects goes on.
    cursor: Cursor,
    /// Objects that were looked at, and how many may be.
    looked: usize,
    looks_max: usize,
}

/// Why nothing was planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// It does not fit. So many objects had to be looked at to see that.
    Full { looked: usize },
    /// Too many objects would have to be looked at.
    TooLong,
    /// There will be when the memory that is being given back to the system is free again.
    Resting,
}

/// Where the search for victims stands: first everybody's idle objects, then the creator's own.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    everybodys: Place,
    own: Place,
}

/// A place in an order of eviction.
#[derive(Debug, Clone, Copy, Default)]
enum Place {
    /// Before the first object.
    #[default]
    Start,
    /// Before this one, or at the end. What was looked at last may not be idle any more.
    Before(Option<Slot>),
}

impl Place {
    /// The object behind this place; goes on to the next place.
    fn pass(&mut self, policy: &dyn EvictionPolicy) -> Option<Slot> {
        let slot = match *self {
            Self::Start => policy.first(),
            Self::Before(slot) => slot,
        };
        *self = Self::Before(slot.and_then(|slot| policy.next(slot)));
        slot
    }
}

impl RoomPlan {
    /// One more object is looked at. False if that is one too many.
    fn may_look(&mut self) -> bool {
        self.looked += 1;
        self.looked <= self.looks_max
    }
}

/// What may be evicted for new objects, and how many objects may be looked at.
#[derive(Debug, Clone, Copy)]
struct MayEvict {
    for_quota: bool,
    for_places: bool,
    looks_max: usize,
}

impl Store {
    /// Takes memory for objects of these sizes, and evicts what has to go for it, after a look at
    /// so many objects at most. Nothing changes if there is no room.
    pub(super) fn make_room(
        &mut self,
        client: ClientId,
        sizes: &[u64],
        evict: bool,
        looks_max: usize,
    ) -> Result<Vec<u64>, NoRoom> {
        let may_evict = MayEvict { for_quota: evict, for_places: evict, looks_max };
        let offsets = match self.trimming.resting() {
            None => self.find_room(client, sizes, may_evict, None),
            Some(resting) => {
                let elsewhere = MayEvict { for_places: false, ..may_evict };
                self.find_room(client, sizes, elsewhere, None).or_else(|_| {
                    self.pool.free(resting.start, resting.len());
                    let offsets = self.find_room(client, sizes, may_evict, Some(resting));
                    self.pool.claim(resting.start, resting.len());
                    offsets
                })
            }
        }?;
        self.note_taken(&offsets, sizes);
        Ok(offsets)
    }

    /// New objects have got these places.
    pub(super) fn note_taken(&mut self, offsets: &[u64], sizes: &[u64]) {
        for (offset, size) in offsets.iter().zip(sizes) {
            self.used_end = self.used_end.max(offset + size);
            self.trimming.note_taken(*offset, *size, self.used_end);
        }
    }

    /// Plans and takes the room; not if it would be any of what is to be kept clear.
    fn find_room(
        &mut self,
        client: ClientId,
        sizes: &[u64],
        may_evict: MayEvict,
        keep_clear: Option<Range>,
    ) -> Result<Vec<u64>, NoRoom> {
        let looks_max = may_evict.looks_max;
        let mut plan = RoomPlan { looks_max, ..RoomPlan::default() };
        if may_evict.for_quota {
            self.plan_quota(client, sizes.iter().sum(), &mut plan);
        }
        let has_places = plan.looked <= looks_max
            && self.plan_places(client, sizes, may_evict.for_places, &mut plan);
        self.steps = self.steps.saturating_sub(plan.looked);
        if !has_places {
            self.undo_plan(&plan, sizes);
            return Err(match plan.looked {
                looked if looked > looks_max => NoRoom::TooLong,
                looked => NoRoom::Full { looked },
            });
        }
        let mut places = plan.offsets.iter().zip(sizes);
        let is_in_the_way =
            |range: Range| places.any(|(offset, size)| range.overlaps(*offset, *size));
        if keep_clear.is_some_and(is_in_the_way) {
            self.undo_plan(&plan, sizes);
            return Err(NoRoom::Resting);
        }
        self.spare_victims(&mut plan);
        for slot in &plan.demoted {
            self.demote(*slot);
        }
        for slot in &plan.victims {
            let object = self.forget_evicted(*slot);
            // Its memory is free already, what the new object leaves of it.
            self.note_room(&object);
        }
        Ok(plan.offsets)
    }

    /// Makes room within the creator's quota: its own idle objects go, and if they are not enough,
    /// its oldest objects in use leave the quota.
    fn plan_quota(&mut self, client: ClientId, total: u64, plan: &mut RoomPlan) {
        let Some(account) = self.quotas.get(client) else { return };
        plan.over_quota = (account.used + total).saturating_sub(account.quota);
        while plan.relieved_bytes < plan.over_quota {
            let Some(slot) = self.next_own_candidate(client, &mut plan.cursor) else { break };
            if !plan.may_look() {
                return;
            }
            self.plan_victim(slot, plan);
        }
        let busy = self.quotas.get(client).into_iter().flat_map(|account| account.busy());
        for slot in busy {
            if plan.relieved_bytes >= plan.over_quota || !plan.may_look() {
                break;
            }
            plan.relieved_bytes += self.objects.get(slot).size();
            plan.demoted.push(slot);
        }
    }

    fn plan_places(
        &mut self,
        client: ClientId,
        sizes: &[u64],
        evict: bool,
        plan: &mut RoomPlan,
    ) -> bool {
        // Without a look at a single object: what is pinned can never make room.
        if !self.has_bytes(client, sizes.iter().sum(), evict) {
            return false;
        }
        self.place_while_evicting(client, sizes, evict, plan)
            || (evict
                && sizes.len() > 1
                && plan.looked <= plan.looks_max
                && self.place_after_evicting(sizes, plan))
    }

    /// Evicts one idle object after another until there is a place for everything.
    fn place_while_evicting(
        &mut self,
        client: ClientId,
        sizes: &[u64],
        evict: bool,
        plan: &mut RoomPlan,
    ) -> bool {
        let mut cursor = plan.cursor;
        for size in sizes {
            loop {
                let new_object = self.has_allowance(plan, *size, 1);
                if new_object && self.take_place(*size, plan) {
                    break;
                }
                let candidate = evict.then(|| self.next_candidate(client, &mut cursor)).flatten();
                let Some(slot) = candidate.filter(|_| plan.may_look()) else { return false };
                self.plan_victim(slot, plan);
            }
        }
        true
    }

    /// Places a batch once more, now that all is evicted that may be: the objects that were placed
    /// first, between what was still there, may have cut the memory into pieces.
    fn place_after_evicting(&mut self, sizes: &[u64], plan: &mut RoomPlan) -> bool {
        for (offset, size) in plan.offsets.drain(..).zip(sizes) {
            self.pool.free(offset, *size);
        }
        plan.placed_bytes = 0;
        sizes.iter().all(|size| self.has_allowance(plan, *size, 1) && self.take_place(*size, plan))
    }

    fn take_place(&mut self, size: u64, plan: &mut RoomPlan) -> bool {
        let Some(offset) = self.pool.allocate(size) else { return false };
        plan.offsets.push(offset);
        plan.placed_bytes += size;
        true
    }

    /// Whether capacity and object count allow so much more, memory aside.
    fn has_allowance(&self, plan: &RoomPlan, bytes: u64, objects: usize) -> bool {
        let used = self.used - plan.freed_bytes + plan.placed_bytes + bytes;
        let count = self.objects.len() - plan.victim_count + plan.offsets.len() + objects;
        used <= self.config.capacity && count <= self.config.objects_max as usize
    }

    /// Whether the capacity would do for so many bytes more, if everything went that a create of
    /// this client could evict.
    pub(super) fn has_bytes(&self, client: ClientId, bytes: u64, evict: bool) -> bool {
        let own = self.quotas.get(client).map_or(0, |account| account.idle.idle_bytes());
        let reachable = if evict { self.idle.idle_bytes() + own } else { 0 };
        self.used - reachable + bytes <= self.config.capacity
    }

    /// Whether bytes and number of objects would do if everything went that may: then it is only
    /// for the places if there is no room.
    pub(super) fn has_numbers(&self, client: ClientId, sizes: &[u64], evict: bool) -> bool {
        let reachable = if evict { self.reachable_objects(client) } else { 0 };
        let objects = self.objects.len() - reachable + sizes.len();
        self.has_bytes(client, sizes.iter().sum(), evict)
            && objects <= self.config.objects_max as usize
    }

    /// Number of objects that a create of this client could evict.
    pub(super) fn reachable_objects(&self, client: ClientId) -> usize {
        let own = self.quotas.get(client).map_or(0, |account| account.idle.idle_objects());
        self.idle.idle_objects() + own
    }

    /// The next idle object that a create of this client may evict, least recent first.
    fn next_candidate(&self, client: ClientId, cursor: &mut Cursor) -> Option<Slot> {
        let everybodys = cursor.everybodys.pass(&*self.idle);
        everybodys.or_else(|| self.next_own_candidate(client, cursor))
    }

    /// The next idle object that counts against the quota of this client.
    fn next_own_candidate(&self, client: ClientId, cursor: &mut Cursor) -> Option<Slot> {
        cursor.own.pass(&*self.quotas.get(client)?.idle)
    }

    /// Frees an idle object for the time being, unless readers have it pinned, or have used it so
    /// that others go first; then its turn comes later.
    fn plan_victim(&mut self, slot: Slot, plan: &mut RoomPlan) {
        plan.looked += self.look_steps() - 1;
        if self.steps_back(slot) || !self.retire(slot) {
            return;
        }
        let object = self.objects.get(slot);
        self.pool.free(object.location.offset, object.size());
        plan.freed_bytes += object.size();
        plan.relieved_bytes += charged_bytes(object);
        plan.victims.push(slot);
        plan.victim_count += 1;
    }

    fn undo_plan(&mut self, plan: &RoomPlan, sizes: &[u64]) {
        for (offset, size) in plan.offsets.iter().zip(sizes) {
            self.pool.free(*offset, *size);
        }
        for slot in &plan.victims {
            self.take_back(*slot);
        }
    }

    fn take_back(&mut self, slot: Slot) {
        let object = self.objects.get(slot);
        self.pool.claim(object.location.offset, object.size());
        self.directory.restore(slot);
    }

    /// Keeps the victims that are not needed after all, the most recently used first.
    fn spare_victims(&mut self, plan: &mut RoomPlan) {
        // What is needed is put behind, so that sparing many costs no more than looking at them.
        let mut candidates = std::mem::take(&mut plan.victims);
        let mut needed = Vec::new();
        plan.victim_count = candidates.len();
        while let Some(slot) = candidates.pop() {
            let object = self.objects.get(slot);
            let (size, charged) = (object.size(), charged_bytes(object));
            let untouched = self.pool.is_free(object.location.offset, size);
            let within_quota = charged == 0 || plan.relieved_bytes - charged >= plan.over_quota;
            if untouched && within_quota && self.has_allowance(plan, size, 1) {
                self.take_back(slot);
                plan.freed_bytes -= size;
                plan.relieved_bytes -= charged;
                plan.victim_count -= 1;
            } else {
                needed.push(slot);
            }
        }
        needed.reverse();
        plan.victims = needed;
    }

    /// An object in use leaves its owner's quota: when it becomes idle, anybody may evict it.
    pub(super) fn demote(&mut self, slot: Slot) {
        self.becomes_everybodys(slot);
        self.counters.objects_demoted += 1;
    }

    /// The numbers that explain why there is no room.
    pub(super) fn full(&self, requested: u64) -> FullStore {
        FullStore {
            requested,
            capacity: self.config.capacity,
            used: self.used,
            pinned: self.used - self.evictable_bytes(),
            largest_free_run: self.largest_free_run(),
            objects: self.objects.len() as u64,
            objects_max: u64::from(self.config.objects_max),
        }
    }
}

/// Bytes that leave a quota with this object.
const fn charged_bytes(object: &Object) -> u64 {
    if object.account.is_some() { object.size() } else { 0 }
}
