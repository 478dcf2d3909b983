//! Making objects: create, put, seal, abort, and the queue of those that wait for room. Part of
//! [`Store`]. How room is made is the business of `room`.

use std::collections::BTreeSet;

use crate::ids::{ClientId, Extent, Location, ObjectId, Slot};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{Reply, Room};
use crate::protocol::refusal::Refusal;
use crate::store::clients::Hold;
use crate::store::create_queue::{Creation, QueuedCreate};
use crate::store::object_table::{Object, State};
use crate::store::room::NoRoom;
use crate::store::subscriptions::sealed_event;
use crate::store::{Asked, Effect, Effects, Outcome, Store, is_now};
use crate::time::Timestamp;

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
            let sizes: Vec<u64> = creation.sizes().collect();
            match self.make_room(asked.client, &sizes, room.evict) {
                Ok(offsets) => {
                    return Ok(self.place(asked, creation, &offsets, effects).into());
                }
                Err(NoRoom::Full) if must_not_wait => {
                    return Err(Refusal::StoreFull(self.full(sizes.iter().sum())));
                }
                Err(NoRoom::Full | NoRoom::Resting) => {}
            }
        }
        let cost = creation.cost();
        self.may_wait(asked.client, cost)?;
        self.clients.get_mut(asked.client).wait_began(cost);
        self.counters.creates_queued += 1;
        self.creates.push(QueuedCreate {
            client: asked.client,
            request: asked.request,
            creation,
            evict: room.evict,
            deadline: if must_not_wait { None } else { asked.deadline(room.timeout) },
            is_urgent: must_not_wait,
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
                .and_then(|()| self.check_fits_ever(head.client, &head.creation))
                .and_then(|()| self.check_quota(head.client, &head.creation, head.evict));
            // What stands in the way now will still do so when the head is tried again.
            let offsets = match is_legal {
                Err(refusal) => Err(refusal),
                Ok(()) => match self.make_room_for_head() {
                    None => break,
                    Some(offsets) => offsets,
                },
            };
            let Some(create) = self.creates.pop() else { break };
            self.clients.get_mut(create.client).wait_ended(create.cost());
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

    /// `None` if it has to wait on.
    fn make_room_for_head(&mut self) -> Option<Result<Vec<u64>, Refusal>> {
        let head = self.creates.head()?;
        let (client, evict, is_urgent) = (head.client, head.evict, head.is_urgent);
        let sizes: Vec<u64> = head.creation.sizes().collect();
        match self.make_room(client, &sizes, evict) {
            Ok(offsets) => Some(Ok(offsets)),
            Err(NoRoom::Full) if is_urgent => {
                self.counters.creates_timed_out += 1;
                Some(Err(Refusal::StoreFull(self.full(sizes.iter().sum()))))
            }
            Err(NoRoom::Full | NoRoom::Resting) => None,
        }
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

    /// Refuses what may not evict and exceeds the quota now. Such a create does not wait for its
    /// own quota: it would keep others waiting for whom there is room.
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
        // A create that waits is refused when its name is taken or its quota is used up, so that
        // the next one can try.
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
}

fn write(extent: Extent, bytes: Vec<u8>, effects: &mut Effects) {
    if !bytes.is_empty() {
        effects.push(Effect::Write { extent, bytes });
    }
}
