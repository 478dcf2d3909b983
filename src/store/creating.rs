//! Making objects: create, put, seal, abort, and the room for them. Part of [`Store`].
//!
//! Room is made in two steps, so that a create that fails changes nothing. First a plan: idle
//! objects are freed in the pool one by one, least recent first, until everything fits; if it never
//! does, the pool is put back as it was. Then victims that turned out not to be needed (they lie
//! outside the run that was found, and the bytes are not wanted) are spared, and the rest is
//! evicted. So eviction takes what is needed and no more.

use std::collections::BTreeSet;

use crate::eviction::EvictionPolicy;
use crate::ids::{ClientId, Extent, Location, ObjectId, Slot};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{Reply, Room};
use crate::protocol::refusal::{FullStore, Refusal};
use crate::store::clients::Hold;
use crate::store::create_queue::{Creation, QueuedCreate};
use crate::store::object_table::{Object, State};
use crate::store::subscriptions::sealed_event;
use crate::store::{Asked, Effect, Effects, Outcome, Store, is_now};
use crate::time::Timestamp;

/// Room that has been found but not taken yet.
#[derive(Debug, Default)]
struct RoomPlan {
    /// Where the new objects go, already taken in the pool.
    offsets: Vec<u64>,
    /// Bytes of the new objects that have their place.
    placed_bytes: u64,
    /// Idle objects to evict, already free in the pool.
    victims: Vec<Slot>,
    /// Bytes of all victims.
    freed_bytes: u64,
    /// Bytes by which the creator's quota would be exceeded if nothing left it.
    over_quota: u64,
    /// Bytes that leave the quota, evicted or demoted.
    relieved_bytes: u64,
    /// Objects in use, by clients or by readers of the directory, that leave the quota.
    demoted: Vec<Slot>,
    /// How far the idle objects have been searched.
    cursor: Cursor,
}

/// Where the search for victims stands: first everybody's idle objects, then the creator's own.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// The last one of everybody's that was looked at.
    everybodys: Option<Slot>,
    /// The last one of the creator's own.
    own: Option<Slot>,
}

impl Store {
    pub(super) fn create(
        &mut self,
        asked: Asked,
        creation: Creation,
        room: Room,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.check_new(&creation)?;
        self.check_fits_ever(asked.client, &creation)?;
        self.check_quota(asked.client, &creation, room.evict)?;
        let must_not_wait = is_now(room.timeout);
        // Those who came first and wait must not be overtaken by somebody who would wait as well.
        if must_not_wait || self.creates.is_empty() {
            match self.make_room(asked.client, &creation, room.evict) {
                Ok(offsets) => {
                    return Ok(self.place(asked, creation, &offsets, effects).into());
                }
                Err(refusal) if must_not_wait => return Err(refusal),
                Err(_) => {}
            }
        }
        let ids = creation.ids().count();
        self.may_wait(asked.client, ids)?;
        self.clients.get_mut(asked.client).wait_began(ids);
        self.counters.creates_queued += 1;
        self.creates.push(QueuedCreate {
            client: asked.client,
            request: asked.request,
            creation,
            evict: room.evict,
            deadline: asked.deadline(room.timeout),
        });
        Ok(Outcome::Waits)
    }

    /// Serves waiting creates from the head of the queue, as far as there is room.
    pub(super) fn serve_create_queue(&mut self, now: Timestamp, effects: &mut Effects) {
        if !std::mem::take(&mut self.room_appeared) {
            return;
        }
        while let Some(head) = self.creates.head() {
            let is_legal = self
                .check_new(&head.creation)
                .and_then(|()| self.check_quota(head.client, &head.creation, head.evict));
            // What stands in the way now will still do so when the head is tried again.
            let offsets = match is_legal {
                Err(refusal) => Err(refusal),
                Ok(()) => match self.make_room_for_head() {
                    None => break,
                    Some(offsets) => Ok(offsets),
                },
            };
            let Some(create) = self.creates.pop() else { break };
            self.clients.get_mut(create.client).wait_ended(create.creation.ids().count());
            let asked = Asked { client: create.client, request: create.request, now };
            match offsets {
                Ok(offsets) => {
                    let reply = self.place(asked, create.creation, &offsets, effects);
                    effects.reply(asked.client, asked.request, reply);
                }
                Err(refusal) => self.refuse(asked.client, asked.request, refusal, effects),
            }
        }
        self.room_appeared = false;
    }

    fn make_room_for_head(&mut self) -> Option<Vec<u64>> {
        let head = self.creates.head()?;
        let (client, evict) = (head.client, head.evict);
        let sizes: Vec<u64> = head.creation.sizes().collect();
        self.make_room_for(client, &sizes, evict).ok()
    }

    /// Refuses names that are taken, in the store or within the batch.
    fn check_new(&self, creation: &Creation) -> Result<(), Refusal> {
        let mut names = BTreeSet::new();
        for id in creation.ids() {
            if self.objects.find(id).is_some() || !names.insert(id) {
                return Err(Refusal::ObjectExists(*id));
            }
        }
        Ok(())
    }

    /// Refuses what would not even fit into an empty store or an unused quota.
    fn check_fits_ever(&self, client: ClientId, creation: &Creation) -> Result<(), Refusal> {
        let total = creation.sizes().fold(0_u64, u64::saturating_add);
        let too_many = creation.ids().count() as u64 > u64::from(self.config.objects_max);
        // Many small objects need far more memory than they have bytes.
        let rounded = |size: u64| size.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        let in_memory = creation.sizes().map(rounded).fold(0, u64::saturating_add);
        if total > self.config.capacity || in_memory > self.config.segment_bytes || too_many {
            return Err(Refusal::StoreFull(self.full(total)));
        }
        match self.quotas.get(client) {
            Some(account) if total > account.quota => Err(Refusal::QuotaExceeded {
                requested: total,
                quota: account.quota,
                used: account.used,
            }),
            _ => Ok(()),
        }
    }

    /// Refuses what may not evict and exceeds the quota now. Such a create does not wait for its own
    /// quota: it would keep others waiting for whom there is room.
    fn check_quota(
        &self,
        client: ClientId,
        creation: &Creation,
        evict: bool,
    ) -> Result<(), Refusal> {
        let Some(account) = self.quotas.get(client) else { return Ok(()) };
        let (requested, quota, used) = (creation.sizes().sum(), account.quota, account.used);
        if evict || used + requested <= quota {
            return Ok(());
        }
        Err(Refusal::QuotaExceeded { requested, quota, used })
    }

    fn make_room(
        &mut self,
        client: ClientId,
        creation: &Creation,
        evict: bool,
    ) -> Result<Vec<u64>, Refusal> {
        let sizes: Vec<u64> = creation.sizes().collect();
        self.make_room_for(client, &sizes, evict)
    }

    /// Takes memory for objects of these sizes, and evicts what has to go for it. Nothing changes
    /// if there is no room.
    fn make_room_for(
        &mut self,
        client: ClientId,
        sizes: &[u64],
        evict: bool,
    ) -> Result<Vec<u64>, Refusal> {
        let total = sizes.iter().sum();
        let mut plan = RoomPlan::default();
        if evict {
            self.plan_quota(client, total, &mut plan);
        }
        if !self.plan_places(client, sizes, evict, &mut plan) {
            self.undo_plan(&plan, sizes);
            return Err(Refusal::StoreFull(self.full(total)));
        }
        self.spare_victims(&mut plan);
        for slot in &plan.demoted {
            self.demote(*slot);
        }
        for slot in &plan.victims {
            self.forget_evicted(*slot);
        }
        Ok(plan.offsets)
    }

    /// Makes room within the creator's quota: its own idle objects go, and if they are not enough,
    /// its oldest objects in use leave the quota.
    fn plan_quota(&mut self, client: ClientId, total: u64, plan: &mut RoomPlan) {
        let Some(account) = self.quotas.get(client) else { return };
        plan.over_quota = (account.used + total).saturating_sub(account.quota);
        let mut pinned = Vec::new();
        while plan.relieved_bytes < plan.over_quota {
            let Some(slot) = self.next_own_candidate(client, &mut plan.cursor) else { break };
            if !self.plan_victim(slot, plan) {
                pinned.push(slot);
            }
        }
        let busy = self.quotas.get(client).into_iter().flat_map(|account| account.busy());
        for slot in busy.chain(pinned) {
            if plan.relieved_bytes >= plan.over_quota {
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
        let total: u64 = sizes.iter().sum();
        let reachable = if evict { self.reachable_bytes(client) } else { 0 };
        if self.used - reachable + total > self.config.capacity {
            return false;
        }
        self.place_while_evicting(client, sizes, evict, plan)
            || (evict && sizes.len() > 1 && self.place_after_evicting(sizes, plan))
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
                let Some(slot) = candidate else { return false };
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
        let count = self.objects.len() - plan.victims.len() + plan.offsets.len() + objects;
        used <= self.config.capacity && count <= self.config.objects_max as usize
    }

    /// Bytes that a create of this client could evict.
    fn reachable_bytes(&self, client: ClientId) -> u64 {
        let own = self.quotas.get(client).map_or(0, |account| account.idle.idle_bytes());
        self.idle.idle_bytes() + own
    }

    /// The next idle object that a create of this client may evict, least recent first.
    fn next_candidate(&self, client: ClientId, cursor: &mut Cursor) -> Option<Slot> {
        let everybodys = next_idle(&*self.idle, cursor.everybodys);
        if everybodys.is_some() {
            cursor.everybodys = everybodys;
            return everybodys;
        }
        self.next_own_candidate(client, cursor)
    }

    /// The next idle object that counts against the quota of this client.
    fn next_own_candidate(&self, client: ClientId, cursor: &mut Cursor) -> Option<Slot> {
        let own = next_idle(&*self.quotas.get(client)?.idle, cursor.own)?;
        cursor.own = Some(own);
        Some(own)
    }

    /// Frees an idle object for the time being. False if a reader has it pinned.
    fn plan_victim(&mut self, slot: Slot, plan: &mut RoomPlan) -> bool {
        if !self.directory.retire(slot) {
            return false;
        }
        let object = self.objects.get(slot);
        self.pool.free(object.location.offset, object.size());
        plan.freed_bytes += object.size();
        plan.relieved_bytes += charged_bytes(object);
        plan.victims.push(slot);
        true
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
        for index in (0..plan.victims.len()).rev() {
            let slot = plan.victims[index];
            let object = self.objects.get(slot);
            let (size, charged) = (object.size(), charged_bytes(object));
            let untouched = self.pool.is_free(object.location.offset, size);
            let within_quota = charged == 0 || plan.relieved_bytes - charged >= plan.over_quota;
            if untouched && within_quota && self.has_allowance(plan, size, 1) {
                self.take_back(slot);
                plan.freed_bytes -= size;
                plan.relieved_bytes -= charged;
                plan.victims.remove(index);
            }
        }
    }

    /// An object in use leaves its owner's quota: when it becomes idle, anybody may evict it. One
    /// that only readers of the directory use is idle already.
    fn demote(&mut self, slot: Slot) {
        let object = self.objects.get_mut(slot);
        let (size, is_idle) = (object.size(), object.is_sealed() && object.holders == 0);
        let account = object.account.take().and_then(|owner| self.quotas.get_mut(owner));
        account.expect("only charged objects are demoted").discharge(slot, size);
        if is_idle {
            self.idle.became_idle(slot, size);
        }
        self.counters.objects_demoted += 1;
    }

    /// Puts new objects where room was made for them.
    fn place(
        &mut self,
        asked: Asked,
        creation: Creation,
        offsets: &[u64],
        effects: &mut Effects,
    ) -> Reply {
        match creation {
            Creation::Empty { id, data_size, metadata_size } => {
                let location = self.location(offsets[0], data_size, metadata_size);
                self.insert(asked, id, location);
                Reply::Created(location)
            }
            Creation::Filled { objects } => {
                let mut slots = Vec::with_capacity(objects.len());
                for (object, offset) in objects.into_iter().zip(offsets) {
                    let (data, metadata) = (object.data, object.metadata);
                    let location = self.location(*offset, data.len() as u64, metadata.len() as u64);
                    slots.push(self.insert(asked, object.id, location));
                    write(location.data(), data, effects);
                    write(location.metadata(), metadata, effects);
                }
                for slot in &slots {
                    self.seal_slot(*slot, asked.client, asked.now, effects);
                }
                for slot in slots {
                    self.release_hold(asked.client, slot, Hold::granted(1), effects);
                }
                Reply::Done
            }
        }
    }

    fn location(&self, offset: u64, data_size: u64, metadata_size: u64) -> Location {
        Location { segment: self.config.segment, offset, data_size, metadata_size }
    }

    /// Adds an object that its creator holds once.
    fn insert(&mut self, asked: Asked, id: ObjectId, location: Location) -> Slot {
        let creator = asked.client;
        let size = location.size();
        let account = self.quotas.get_mut(creator);
        let slot = self.objects.insert(Object {
            id,
            location,
            state: State::Created { creator },
            created_at: asked.now,
            holders: 0,
            delete_pending: false,
            account: account.is_some().then_some(creator),
        });
        if let Some(account) = account {
            account.charge(slot, size);
        }
        self.used += size;
        self.unsealed += 1;
        self.clients.get_mut(creator).unsealed += 1;
        self.hold(creator, slot, Hold::granted(1));
        // A create that waits is refused when its name is taken or its quota is used up, so that the
        // next one can try.
        let concerns = |head: &QueuedCreate| {
            head.client == creator || head.creation.ids().any(|taken| *taken == id)
        };
        if self.creates.head().is_some_and(concerns) {
            self.room_appeared = true;
        }
        self.counters.objects_created += 1;
        self.counters.bytes_created += size;
        slot
    }

    pub(super) fn seal(
        &mut self,
        asked: Asked,
        id: &ObjectId,
        release: bool,
        effects: &mut Effects,
    ) -> Result<Reply, Refusal> {
        let slot = self.find_own_unsealed(asked.client, id)?;
        self.seal_slot(slot, asked.client, asked.now, effects);
        if release {
            self.release_hold(asked.client, slot, Hold::granted(1), effects);
        }
        Ok(Reply::Done)
    }

    fn seal_slot(&mut self, slot: Slot, creator: ClientId, now: Timestamp, effects: &mut Effects) {
        let event = self.subscriptions.sequence();
        let object = self.objects.get_mut(slot);
        object.state = State::Sealed { at: now, event };
        self.directory.publish(slot, &object.id, &object.location);
        let sealed = sealed_event(object);
        self.unsealed -= 1;
        self.clients.get_mut(creator).unsealed -= 1;
        self.counters.objects_sealed += 1;
        self.record(sealed);
        self.wake_waiters(slot, effects);
    }

    pub(super) fn abort(
        &mut self,
        client: ClientId,
        id: &ObjectId,
        effects: &mut Effects,
    ) -> Result<Reply, Refusal> {
        let slot = self.find_own_unsealed(client, id)?;
        self.clients.get_mut(client).holds.remove(&slot);
        self.let_go(client, slot, effects);
        Ok(Reply::Done)
    }

    /// An object that this client is creating; nobody else may seal or abort it.
    fn find_own_unsealed(&self, client: ClientId, id: &ObjectId) -> Result<Slot, Refusal> {
        let slot = self.objects.find(id).ok_or(Refusal::ObjectNotFound(*id))?;
        match self.objects.get(slot).state {
            State::Sealed { .. } => Err(Refusal::AlreadySealed(*id)),
            State::Created { creator } if creator != client => Err(Refusal::NotCreator(*id)),
            State::Created { .. } => Ok(slot),
        }
    }

    /// The creator of an unsealed object has let go of it: nobody can ever seal it.
    pub(super) fn abandon(&mut self, creator: ClientId, slot: Slot, effects: &mut Effects) {
        let object = self.remove_object(slot);
        self.pool.free(object.location.offset, object.size());
        self.unsealed -= 1;
        self.clients.get_mut(creator).unsealed -= 1;
        self.counters.objects_aborted += 1;
        self.tell_abandoned(&object.id, effects);
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

fn write(extent: Extent, bytes: Vec<u8>, effects: &mut Effects) {
    if !bytes.is_empty() {
        effects.push(Effect::Write { extent, bytes });
    }
}

/// The idle object after `last` in the order of eviction, or the first one.
fn next_idle(policy: &dyn EvictionPolicy, last: Option<Slot>) -> Option<Slot> {
    last.map_or_else(|| policy.first(), |slot| policy.next(slot))
}
