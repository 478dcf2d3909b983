//! Where new objects lie and what is evicted for them: checked by rule, since the store may choose.
//!
//! The rules: memory of different objects never overlaps. Only idle objects go, and only those that
//! this create may touch. None of them could have stayed: without it the bytes, the number of
//! objects, the quota or the place would not be right. Nothing that is used more recently is taken
//! while what is older would have done. A create that could have been granted is granted, and one
//! that is not granted has changed nothing.

use super::{Creation, Model, Seen};
use crate::ids::{ClientId, ObjectId};
use crate::limits::ALIGNMENT;
use crate::protocol::refusal::{FullStore, Refusal};

/// What a create may evict, in the order in which it is to go.
struct Candidates {
    ids: Vec<ObjectId>,
    /// How many of them go for the sake of the quota, whatever else there is.
    for_quota: usize,
}

impl Model {
    /// Whether the create has to be granted now, its names being free.
    pub fn has_room(&self, create: &Creation) -> bool {
        self.has_room_beside(create, self.slice)
    }

    /// Whether the create can be granted when no memory is being given back.
    pub fn has_room_in_the_end(&self, create: &Creation) -> bool {
        self.has_room_beside(create, None)
    }

    /// Whether there is a create that must wait for the memory that is being given back.
    pub fn head_needs_transit(&self) -> bool {
        let head = self.queue.first().filter(|_| self.slice.is_some());
        head.is_some_and(|head| self.has_room_in_the_end(head))
    }

    fn has_room_beside(&self, create: &Creation, slice: Option<(u64, u64)>) -> bool {
        let candidates = self.candidates(create).ids;
        self.check_quota_allows(create).is_ok() && self.has_room_without(create, &candidates, slice)
    }

    /// Whether there would be room if these objects, and no others, went, and a piece of memory is
    /// not to be had. A batch needs one gap, like an object.
    fn has_room_without(
        &self,
        create: &Creation,
        gone: &[ObjectId],
        slice: Option<(u64, u64)>,
    ) -> bool {
        let sizes = create.sizes();
        let used = self.used() - self.bytes_of(gone) + sizes.iter().sum::<u64>();
        let objects = self.objects.len() - gone.len() + sizes.len();
        let longest = self.gaps_beside(gone, slice).into_iter().max().unwrap_or(0);
        used <= self.config.capacity
            && objects <= self.config.objects_max as usize
            && sizes.iter().map(|size| rounded(*size)).sum::<u64>() <= longest
    }

    /// Idle objects that nobody reads behind the store's back, in the order of [`Self::walk`].
    fn candidates(&self, create: &Creation) -> Candidates {
        let (order, for_quota) = self.walk(create);
        let free = |ids: &[ObjectId]| -> Vec<ObjectId> {
            ids.iter().filter(|id| self.objects[id].pins.is_empty()).copied().collect()
        };
        let first = free(&order[..for_quota]);
        let for_quota_free = first.len();
        let ids = [first, free(&order[for_quota..])].concat();
        Candidates { ids, for_quota: for_quota_free }
    }

    /// In which order the store looks at idle objects for a create: enough of the creator's own for
    /// its quota (how many that are is told), then everybody's, then the rest of its own. Those
    /// that readers have pinned are enough for nothing.
    fn walk(&self, create: &Creation) -> (Vec<ObjectId>, usize) {
        if !create.evict {
            return (Vec::new(), 0);
        }
        let over = self.over_quota(create);
        let own = self.clients[&create.call.client].idle.ids();
        let free_bytes = |ids: &[ObjectId]| -> u64 {
            let free = ids.iter().filter(|id| self.objects[id].pins.is_empty());
            free.map(|id| self.objects[id].size()).sum()
        };
        let is_enough = |count: &usize| free_bytes(&own[..*count]) >= over;
        let for_quota = (0..own.len()).find(is_enough).unwrap_or(own.len());
        let everybodys = self.everybodys.ids();
        ([&own[..for_quota], &everybodys, &own[for_quota..]].concat(), for_quota)
    }

    /// The store has looked at these, and noticed which of them readers have pinned.
    fn park_some(&mut self, looked_at: &[ObjectId], seen: &mut Seen) {
        while let Some(id) = seen.parked.front().copied()
            && looked_at.contains(&id)
            && self.objects[&id].is_idle()
        {
            self.park(id, seen);
        }
    }

    /// The victims of a create that was granted go, after a look at each of them.
    pub fn make_room(&mut self, create: &Creation, offsets: &[u64], seen: &mut Seen) {
        let (order, for_quota) = self.walk(create);
        self.park_some(&order[..for_quota], seen);
        let demoted = self.demoted(create);
        let mut victims: Vec<ObjectId> = Vec::new();
        while let Some(problem) = self.problem(create, offsets, &victims, &demoted) {
            let Some(victim) = seen.gone.pop_front() else { panic!("{problem}") };
            victims.push(victim);
        }
        // The last one that was looked at is the one that made it possible, and so it went.
        let last = order.iter().rposition(|id| victims.contains(id)).map_or(0, |last| last + 1);
        self.park_some(&order[..last], seen);
        let candidates = self.candidates(create);
        let place = |id: &ObjectId| candidates.ids.iter().position(|candidate| candidate == id);
        let mut ranks = Vec::new();
        for victim in &victims {
            let Some(rank) = place(victim) else { panic!("{victim} was evicted and may not be") };
            ranks.push(rank);
            let others: Vec<ObjectId> =
                victims.iter().filter(|other| *other != victim).copied().collect();
            let problem = self.problem(create, offsets, &others, &demoted);
            assert_ne!(problem, None, "{victim} was evicted for nothing");
        }
        assert!(ranks.is_sorted(), "older objects are evicted first: {victims:?}");
        if let Some(last) = ranks.last().filter(|last| **last >= candidates.for_quota) {
            let had_room = self.has_room_without(create, &candidates.ids[..*last], self.slice);
            assert!(!had_room, "evicting older objects would have been enough");
        }
        for id in demoted {
            self.demote(id);
        }
        for id in victims {
            self.remove_evicted(id);
        }
    }

    /// What would be wrong with new objects in these places if these objects went.
    fn problem(
        &self,
        create: &Creation,
        offsets: &[u64],
        gone: &[ObjectId],
        demoted: &[ObjectId],
    ) -> Option<&'static str> {
        let sizes = create.sizes();
        if self.used() - self.bytes_of(gone) + sizes.iter().sum::<u64>() > self.config.capacity {
            return Some("the capacity is exceeded");
        }
        if self.objects.len() - gone.len() + sizes.len() > self.config.objects_max as usize {
            return Some("there are too many objects");
        }
        let owner = create.call.client;
        let own: Vec<ObjectId> =
            gone.iter().filter(|id| self.objects[id].account == Some(owner)).copied().collect();
        let over = self.over_quota(create).saturating_sub(self.bytes_of(demoted));
        // A quota that was set after the request may be smaller than it, and is exceeded then.
        let can_go = self.charged(owner) - self.bytes_of(demoted);
        if self.bytes_of(&own) < over.min(can_go) {
            return Some("the quota is exceeded");
        }
        let stay = self.objects.iter().filter(|(id, _)| !gone.contains(id));
        let old = stay.map(|(_, object)| (object.location.offset, object.size()));
        let new = offsets.iter().copied().zip(sizes.iter().copied());
        let mut extents: Vec<(u64, u64)> =
            old.chain(new.clone()).filter(|(_, size)| *size > 0).collect();
        extents.sort_unstable();
        if extents.windows(2).any(|pair| pair[0].0 + rounded(pair[0].1) > pair[1].0) {
            return Some("two objects lie in the same memory");
        }
        let is_misplaced = |(offset, size): (u64, u64)| {
            offset % ALIGNMENT != 0 || offset + size > self.config.segment_bytes
        };
        let is_early = |(offset, size): (u64, u64)| {
            let kept = self.quarantined.iter().map(|(_, start, end)| (*start, *end));
            let mut kept = kept.chain(self.slice);
            kept.any(|(start, end)| size > 0 && offset < end && start < offset + size)
        };
        if new.clone().any(is_early) {
            return Some("a new object lies in memory that is not to be had");
        }
        new.clone().any(is_misplaced).then_some("a new object lies where none may be")
    }

    /// The objects in use that leave the quota of the creator: only if evicting all of its idle
    /// ones is not enough, the oldest first.
    fn demoted(&self, create: &Creation) -> Vec<ObjectId> {
        let owner = create.call.client;
        let over = if create.evict { self.over_quota(create) } else { 0 };
        let idle = self.clients[&owner].idle.ids();
        let is_free = |id: &ObjectId| self.objects[id].pins.is_empty();
        let evictable: Vec<ObjectId> = idle.iter().copied().filter(is_free).collect();
        let mut busy: Vec<ObjectId> = self.charged_objects(owner);
        busy.retain(|id| !idle.contains(id));
        busy.sort_by_key(|id| self.objects[id].birth);
        let mut relieved = self.bytes_of(&evictable);
        let mut demoted = Vec::new();
        for id in busy {
            if relieved >= over {
                break;
            }
            relieved += self.objects[&id].size();
            demoted.push(id);
        }
        demoted
    }

    fn demote(&mut self, id: ObjectId) {
        let is_idle = self.order_of(&id).contains(&id);
        self.order_of(&id).forget(&id);
        let object = self.objects.get_mut(&id).unwrap();
        object.account = None;
        if is_idle {
            let size = object.size();
            self.everybodys.became_idle(id, size, self.tick);
        }
        self.counters.objects_demoted += 1;
    }

    /// Refuses what would not fit into an empty store or into an unused quota.
    pub fn check_fits_ever(&self, create: &Creation) -> Result<(), Refusal> {
        let sizes = create.sizes();
        let (requested, count) = (sizes.iter().sum::<u64>(), sizes.len());
        let in_memory = sizes.iter().fold(0_u64, |sum, size| sum.saturating_add(rounded(*size)));
        if requested > self.config.capacity
            || count > self.config.objects_max as usize
            || in_memory > self.config.segment_bytes
        {
            return Err(Refusal::StoreFull(self.full(requested)));
        }
        match self.clients[&create.call.client].quota {
            Some(quota) if requested > quota => self.quota_exceeded(create, quota),
            _ => Ok(()),
        }
    }

    /// Refuses what the quota does not allow although there may be room. A create that may evict
    /// is never refused for that: its own older objects go, or leave the quota.
    pub fn check_quota_allows(&self, create: &Creation) -> Result<(), Refusal> {
        match self.clients[&create.call.client].quota {
            Some(quota) if !create.evict && self.over_quota(create) > 0 => {
                self.quota_exceeded(create, quota)
            }
            _ => Ok(()),
        }
    }

    fn quota_exceeded(&self, create: &Creation, quota: u64) -> Result<(), Refusal> {
        let used = self.charged(create.call.client);
        Err(Refusal::QuotaExceeded { requested: create.sizes().iter().sum(), quota, used })
    }

    /// By how many bytes the quota of the creator would be exceeded.
    fn over_quota(&self, create: &Creation) -> u64 {
        let owner = create.call.client;
        let wanted = self.charged(owner) + create.sizes().iter().sum::<u64>();
        self.clients[&owner].quota.map_or(0, |quota| wanted.saturating_sub(quota))
    }

    pub fn charged_objects(&self, owner: ClientId) -> Vec<ObjectId> {
        let charged = self.objects.iter().filter(|(_, object)| object.account == Some(owner));
        charged.map(|(id, _)| *id).collect()
    }

    pub fn charged(&self, owner: ClientId) -> u64 {
        self.bytes_of(&self.charged_objects(owner))
    }

    pub fn granted_quotas(&self) -> u64 {
        self.clients.values().filter_map(|client| client.quota).sum()
    }

    pub fn full(&self, requested: u64) -> FullStore {
        FullStore {
            requested,
            capacity: self.config.capacity,
            used: self.used(),
            pinned: self.used() - self.idle(),
            largest_free_run: self.largest_free_run(),
            objects: self.objects.len() as u64,
            objects_max: u64::from(self.config.objects_max),
        }
    }

    /// The largest object that fits without waiting, or evicting anything.
    pub fn largest_free_run(&self) -> u64 {
        let longest = self.gaps_beside(&[], self.slice).into_iter().max().unwrap_or(0);
        longest.min(self.config.capacity - self.used())
    }

    pub fn used(&self) -> u64 {
        self.objects.values().map(super::Object::size).sum()
    }

    /// Bytes that could go.
    pub fn evictable(&self) -> u64 {
        let evictable = self.objects.values().filter(|object| object.is_evictable());
        evictable.map(super::Object::size).sum()
    }

    /// Bytes that could go as far as the store has noticed.
    fn idle(&self) -> u64 {
        let idle = self.objects.values().filter(|object| object.is_idle());
        idle.map(super::Object::size).sum()
    }

    fn bytes_of(&self, ids: &[ObjectId]) -> u64 {
        ids.iter().map(|id| self.objects[id].size()).sum()
    }

    /// The lengths of the pieces of free memory if these objects went, but for a piece that is not
    /// to be had.
    fn gaps_beside(&self, gone: &[ObjectId], slice: Option<(u64, u64)>) -> Vec<u64> {
        let stay = self.objects.iter().filter(|(id, _)| !gone.contains(id));
        let mut extents: Vec<(u64, u64)> = stay
            .map(|(_, object)| (object.location.offset, rounded(object.size())))
            .filter(|(_, len)| *len > 0)
            .chain(slice.map(|(start, end)| (start, end - start)))
            .chain(self.quarantined.iter().map(|(_, start, end)| (*start, end - start)))
            .collect();
        extents.sort_unstable();
        extents.push((self.config.segment_bytes, 0));
        let mut end = 0;
        let mut gaps = Vec::new();
        for (offset, len) in extents {
            gaps.push(offset - end);
            end = offset + len;
        }
        gaps
    }
}

pub(super) fn rounded(size: u64) -> u64 {
    size.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX)
}
