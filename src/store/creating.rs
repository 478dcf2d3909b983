//! Making objects: create, put, seal and abort. Part of [`Store`]. How room is made is the business
//! of `space`, and who waits for it that of `waiting`.

use std::collections::BTreeSet;

use crate::ids::{ClientId, Location, ObjectId, Slot};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{Placed, Reply, RequestId, Room};
use crate::protocol::refusal::Refusal;
use crate::store::clients::{Hold, Presence};
use crate::store::object_table::{Object, State};
use crate::store::space::{Progress, Search};
use crate::store::subscriptions::sealed_event;
use crate::store::waiting::{Creation, QueuedCreate};
use crate::store::{Answer, Asked, Store, is_now};

impl Store {
    pub(super) fn create(&mut self, asked: Asked, creation: Creation, room: Room) -> Answer {
        self.check_create(asked.client, &creation, room.evict)?;
        let must_not_wait = is_now(room.timeout);
        let is_in_between = self.search.as_ref().is_some_and(|(_, other)| other.is_exclusive());
        // Those who came first and wait must not be overtaken by somebody who would wait as well.
        let is_tried = !is_in_between && (must_not_wait || self.creates.first().is_none());
        let mut search = Search::new(asked.client, &creation, room.evict);
        if is_tried {
            let mut progress = self.search_on(&mut search);
            // Somebody may have sealed, or let go of, what could be evicted.
            if progress == Progress::NoRoom && search.may_catch_up() && self.catch_up() {
                // Its name may be free or taken by now.
                self.check_create(asked.client, &creation, room.evict)?;
                search.doubt();
                progress = self.search_on(&mut search);
            }
            match progress {
                Progress::Room(start) => {
                    return Ok(self.place(asked, creation, start));
                }
                Progress::NoRoom if must_not_wait && !search.waits_for_transit() => {
                    return Err(Refusal::StoreFull(self.full(creation.sizes().sum())));
                }
                Progress::NoRoom | Progress::More => {}
            }
        }
        let cost = creation.cost();
        // What has begun to evict is not refused. Others wait for its end: it is one at a time.
        if search.is_exclusive() {
            self.clients.wait_began(asked.client, cost);
        } else {
            self.begin_wait(asked.client, cost)?;
        }
        self.counters.creates_queued += 1;
        let deadline = self.deadline(room.timeout).filter(|_| !must_not_wait);
        let create = QueuedCreate { asked, creation, evict: room.evict, deadline };
        let turn = self.creates.push(create, must_not_wait);
        if is_tried {
            self.keep_search(turn, search);
        }
        Ok(None)
    }

    /// Whether it may be created, there being room.
    pub(super) fn check_create(
        &self,
        client: ClientId,
        creation: &Creation,
        evict: bool,
    ) -> Result<(), Refusal> {
        self.check_new(creation)?;
        self.check_fits_ever(creation)?;
        self.check_quota(client, creation, evict)
    }

    /// Refuses names that are taken, in the store or within the batch.
    fn check_new(&self, creation: &Creation) -> Result<(), Refusal> {
        let is_batch = creation.ids().nth(1).is_some();
        let mut names = BTreeSet::new();
        for id in creation.ids() {
            if self.objects.find(id).is_some() || is_batch && !names.insert(id) {
                return Err(Refusal::ObjectExists(*id));
            }
        }
        Ok(())
    }

    /// Refuses what would not even fit into an empty store.
    fn check_fits_ever(&self, creation: &Creation) -> Result<(), Refusal> {
        let total = creation.sizes().fold(0_u64, u64::saturating_add);
        let too_many = creation.ids().count() as u64 > u64::from(self.config.objects_max);
        // Many small objects need far more memory than they have bytes.
        let rounded = |size: u64| size.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        let in_memory = creation.sizes().map(rounded).fold(0, u64::saturating_add);
        if total > self.config.capacity || in_memory > self.config.segment_bytes || too_many {
            return Err(Refusal::StoreFull(self.full(total)));
        }
        Ok(())
    }

    /// Refuses what would not even fit into an unused quota, and what may not evict and exceeds the
    /// quota now. Such a create does not wait for its own quota: it would keep others waiting for
    /// whom there is room.
    fn check_quota(
        &self,
        client: ClientId,
        creation: &Creation,
        evict: bool,
    ) -> Result<(), Refusal> {
        let Some(account) = self.quotas.get(client) else { return Ok(()) };
        let (requested, quota, used) = (creation.sizes().sum(), account.quota, account.used);
        if requested <= quota && (evict || used + requested <= quota) {
            return Ok(());
        }
        Err(Refusal::QuotaExceeded { requested, quota, used })
    }

    /// Puts new objects into the run that begins here, one behind the other. Those that come with
    /// their bytes are sealed, and the put answered, when the bytes are there: see
    /// [`filling`](super::filling).
    pub(super) fn place(&mut self, asked: Asked, creation: Creation, start: u64) -> Option<Reply> {
        match creation {
            Creation::Empty { id, data_size, metadata_size } => {
                let location = self.location(start, data_size, metadata_size);
                let slot = self.insert(asked, id, location);
                let seal = self.seal_place(asked.client, slot);
                Some(Reply::Created(Placed { location, seal }))
            }
            Creation::Filled { objects } => {
                let mut slots = Vec::with_capacity(objects.len());
                let mut writes = Vec::with_capacity(objects.len());
                let mut next = start;
                for object in objects {
                    let (data, metadata) = (object.data, object.metadata);
                    let location = self.location(next, data.len() as u64, metadata.len() as u64);
                    next += location.size().next_multiple_of(ALIGNMENT);
                    slots.push(self.insert(asked, object.id, location));
                    let both = [(location.data(), data), (location.metadata(), metadata)];
                    writes.extend(both.into_iter().filter(|(_, bytes)| !bytes.is_empty()));
                }
                self.fill(asked, slots, writes)
            }
        }
    }

    /// What has no bytes lies at the beginning.
    fn location(&self, offset: u64, data_size: u64, metadata_size: u64) -> Location {
        let offset = if data_size + metadata_size == 0 { 0 } else { offset };
        Location { segment: self.config.segment, offset, data_size, metadata_size }
    }

    /// Adds an object that its creator holds once.
    fn insert(&mut self, asked: Asked, id: ObjectId, location: Location) -> Slot {
        let creator = asked.client;
        let size = location.size();
        let has_quota = self.quotas.get(creator).is_some();
        let slot = self.objects.insert(Object::new(id, location, creator, has_quota));
        self.quotas.change(creator, |account| account.charge(slot, size));
        self.unsealed.insert((creator, slot));
        self.clients.get_mut(creator).unsealed += 1;
        let at = self.unix_now();
        self.directory.create(slot, self.objects.get(slot), creator, at);
        self.hold(creator, slot, Hold::granted(1));
        // A create that waits is refused when its name is taken or its quota is used up, so that
        // the next one can try.
        let concerns = |head: &QueuedCreate| {
            head.asked.client == creator || head.creation.ids().any(|taken| *taken == id)
        };
        if self.creates.first().is_some_and(|head| concerns(self.creates.get(head))) {
            self.doubt_head();
        }
        self.counters.objects_created += 1;
        self.counters.bytes_created += size;
        slot
    }

    pub(super) fn seal(&mut self, asked: Asked, id: &ObjectId, release: bool) -> Answer {
        // After a seal in the creator's table comes a message, to have a look there. The name
        // may be that of a later object, which is not sealed.
        if asked.request == RequestId::NONE && self.directory.has_joined(asked.client) {
            self.find_settled(id);
            return Ok(Some(Reply::Done));
        }
        let slot = self.find_own_unsealed(asked.client, id)?;
        self.seal_slot(slot, asked.client);
        if release {
            self.release_hold(asked.client, slot, Hold::granted(1));
        }
        Ok(Some(Reply::Done))
    }

    /// Nobody changes the bytes any more, and from now on everybody may read them.
    pub(super) fn seal_slot(&mut self, slot: Slot, creator: ClientId) {
        let event = self.subscriptions.sequence();
        let object = self.objects.get_mut(slot);
        object.state = State::Sealed { event };
        let (id, sealed) = (object.id, sealed_event(object));
        self.unsealed.remove(&(creator, slot));
        self.clients.get_mut(creator).unsealed -= 1;
        let at = self.unix_now();
        self.directory.publish(slot, &id, at);
        self.counters.objects_sealed += 1;
        self.record(sealed);
        self.wake_waiters(slot);
    }

    pub(super) fn abort(&mut self, client: ClientId, id: &ObjectId) -> Answer {
        let slot = self.find_own_unsealed(client, id)?;
        self.remove_unsealed(client, slot);
        Ok(Some(Reply::Done))
    }

    /// The creator of an object does without it.
    pub(super) fn remove_unsealed(&mut self, client: ClientId, slot: Slot) {
        self.clients.get_mut(client).holds.remove(&slot);
        self.let_go(client, slot);
    }

    /// An object that this client is creating; nobody else may seal or abort it.
    fn find_own_unsealed(&mut self, client: ClientId, id: &ObjectId) -> Result<Slot, Refusal> {
        let slot = self.find_settled(id).ok_or(Refusal::ObjectNotFound(*id))?;
        match self.objects.get(slot).state {
            State::Sealed { .. } => Err(Refusal::AlreadySealed(*id)),
            State::Created { creator } if creator != client => Err(Refusal::NotCreator(*id)),
            State::Created { .. } => Ok(slot),
        }
    }

    /// The creator of an unsealed object has let go of it: nobody can ever seal it.
    pub(super) fn abandon(&mut self, creator: ClientId, slot: Slot) {
        let object = self.remove_object(slot);
        if matches!(self.clients.get(creator).presence, Presence::Settling(_) | Presence::Surviving)
        {
            self.quarantine(creator, &object);
        } else {
            self.free_memory(&object);
        }
        self.unsealed.remove(&(creator, slot));
        self.clients.get_mut(creator).unsealed -= 1;
        self.counters.objects_aborted += 1;
        self.fail_waiters(object.id);
    }
}
