//! Making objects in the model: create, put, seal, abort, and the queue of those that wait for
//! room.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Call, Hold, Model, Object, Seen, Want, deadline};
use crate::ids::{ClientId, Extent, Location, ObjectId};
use crate::protocol::message::{Event, Placed, Reply, Request};
use crate::protocol::refusal::Refusal;
use crate::store::WorkOutcome;
use crate::time::Timestamp;

/// A create or put, waiting or not.
#[derive(Debug)]
pub struct Creation {
    pub call: Call,
    pub objects: Vec<NewObject>,
    /// Whether they come with their bytes.
    pub(super) is_put: bool,
    pub(super) evict: bool,
    pub(super) deadline: Option<Timestamp>,
    /// It waits for memory that is being given back, and for nothing else.
    pub(super) is_urgent: bool,
}

/// One object to be made.
#[derive(Debug)]
pub struct NewObject {
    pub id: ObjectId,
    pub(super) data_size: u64,
    pub(super) metadata_size: u64,
    /// Only of a put.
    pub(super) content: Vec<u8>,
}

/// A put that has its room and not its bytes.
#[derive(Debug)]
pub struct Filling {
    call: Call,
    ids: Vec<ObjectId>,
}

/// Whether this is the answer to a create that there was room for.
fn is_granted(answer: &Reply) -> bool {
    matches!(answer, Reply::Created(_) | Reply::Done | Reply::Refused(Refusal::MemoryLost))
}

impl Creation {
    pub(super) fn new(call: Call, request: &Request) -> Self {
        let (objects, room, is_put) = match request {
            Request::Create { id, data_size, metadata_size, room } => {
                let (data_size, metadata_size) = (*data_size, *metadata_size);
                let object = NewObject { id: *id, data_size, metadata_size, content: Vec::new() };
                (vec![object], room, false)
            }
            Request::Put { objects, room } => {
                let objects = objects.iter().map(|object| NewObject {
                    id: object.id,
                    data_size: object.data.len() as u64,
                    metadata_size: object.metadata.len() as u64,
                    content: [&object.data[..], &object.metadata[..]].concat(),
                });
                (objects.collect(), room, true)
            }
            other => panic!("{} makes no objects", other.traits().name),
        };
        let is_urgent = room.timeout == Some(Duration::ZERO);
        let deadline = deadline(call.now, room.timeout).filter(|_| !is_urgent);
        Self { call, objects, is_put, evict: room.evict, deadline, is_urgent }
    }

    pub fn sizes(&self) -> Vec<u64> {
        self.objects.iter().map(|object| object.data_size + object.metadata_size).collect()
    }
}

impl Model {
    pub(super) fn create(
        &mut self,
        create: Creation,
        seen: &mut Seen,
    ) -> Result<Option<Reply>, Refusal> {
        if let Some(taken) = self.taken_name(&create) {
            return Err(Refusal::ObjectExists(taken));
        }
        self.check_fits_ever(&create)?;
        let must_not_wait = create.is_urgent;
        if must_not_wait || self.queue.is_empty() {
            let has_happened = seen.answer(create.call).is_some_and(is_granted);
            assert_eq!(self.has_room(&create), has_happened, "granted if there is room");
            if has_happened {
                self.place(create, seen);
                return Ok(None);
            }
            self.check_quota_allows(&create)?;
            let is_refused = matches!(seen.answer(create.call), Some(Reply::Refused(_)));
            if must_not_wait && (self.slice.is_none() || is_refused) {
                let is_early = self.has_room_in_the_end(&create);
                assert!(!is_early, "a create is refused that only had to wait");
                self.park_before_refusal(create.call, seen);
                return Err(Refusal::StoreFull(self.full(create.sizes().iter().sum())));
            }
        } else {
            self.check_quota_allows(&create)?;
        }
        self.counters.creates_queued += 1;
        let urgent = self.queue.iter().filter(|other| other.is_urgent).count();
        let place = if create.is_urgent { urgent } else { self.queue.len() };
        self.queue.insert(place, create);
        Ok(None)
    }

    /// Creates that wait are served from the first one on, and the first one waits for room only.
    pub(super) fn serve_queue(&mut self, seen: &mut Seen) {
        self.serve_from_head(seen);
        self.park_what_was_met(seen);
        assert!(seen.parked.is_empty(), "the store says of {:?} that it is pinned", seen.parked);
        assert!(seen.effects.is_empty(), "the store did more than it should: {:?}", seen.effects);
        assert!(seen.gone.is_empty(), "{:?} went for no reason", seen.gone);
        assert!(seen.fills.is_empty() && self.filling.is_empty(), "every put is filled at once");
    }

    fn serve_from_head(&mut self, seen: &mut Seen) {
        loop {
            self.end_fills(seen);
            if seen.effects.is_empty() || self.queue.is_empty() {
                break;
            }
            let mut head = self.queue.remove(0);
            head.call.now = self.now;
            let Some(answer) = seen.answer(head.call) else {
                panic!("the store did more than it should: {:?}", seen.effects);
            };
            if let Some(taken) = self.taken_name(&head) {
                self.refuse(head.call, Refusal::ObjectExists(taken), seen);
            } else if let Err(refusal) =
                self.check_fits_ever(&head).and_then(|()| self.check_quota_allows(&head))
            {
                self.refuse(head.call, refusal, seen);
            } else if head.is_urgent && !is_granted(answer) {
                let is_early = self.has_room_in_the_end(&head);
                assert!(!is_early, "a create is refused that only had to wait");
                self.park_before_refusal(head.call, seen);
                let full = self.full(head.sizes().iter().sum());
                self.refuse(head.call, Refusal::StoreFull(full), seen);
            } else {
                assert!(is_granted(answer), "the head of the queue is refused: {answer:?}");
                assert!(self.has_room(&head), "there is no room for a create that was granted");
                self.place(head, seen);
            }
        }
        if let Some(head) = self.queue.first() {
            assert_eq!(self.taken_name(head), None, "the head of the queue waits for a taken name");
            assert_eq!(
                self.check_fits_ever(head).and_then(|()| self.check_quota_allows(head)),
                Ok(()),
                "the head of the queue waits in vain"
            );
            assert!(!head.is_urgent || self.slice.is_some(), "a create waits that may not");
            assert!(!self.has_room(head), "there is room for a create that waits");
        }
    }

    /// Whether this is a create that can only be refused, at once. While memory is being given
    /// back, one for which too much has to be looked at waits until that is over.
    pub fn must_refuse(&self, call: Call, request: &Request) -> bool {
        let (Request::Create { room, .. } | Request::Put { room, .. }) = request else {
            return false;
        };
        let create = Creation::new(call, request);
        self.taken_name(&create).is_some()
            || self.check_fits_ever(&create).is_err()
            || self.check_quota_allows(&create).is_err()
            || (room.timeout == Some(Duration::ZERO)
                && self.slice.is_none()
                && !self.has_room(&create))
    }

    /// The first name that exists already, in the store or in the batch.
    pub(super) fn taken_name(&self, create: &Creation) -> Option<ObjectId> {
        let names: Vec<ObjectId> = create.objects.iter().map(|object| object.id).collect();
        let is_taken = |(index, id): &(usize, &ObjectId)| {
            self.objects.contains_key(id) || names[..*index].contains(id)
        };
        names.iter().enumerate().find(is_taken).map(|(_, id)| *id)
    }

    /// Takes over what the store did for a create that it granted.
    pub(super) fn place(&mut self, create: Creation, seen: &mut Seen) {
        let (call, is_put, segment) = (create.call, create.is_put, self.config.segment);
        let offsets: Vec<u64> = if is_put {
            seen.placed(&create.objects, segment)
        } else {
            vec![seen.created_at(call)]
        };
        self.make_room(&create, &offsets, seen);
        let ids: Vec<ObjectId> = create.objects.iter().map(|object| object.id).collect();
        let has_bytes = create.sizes().iter().any(|size| *size > 0);
        for (object, offset) in create.objects.into_iter().zip(offsets) {
            self.insert(call, object, offset, is_put);
        }
        if !is_put {
            let (location, slot) = (self.objects[&ids[0]].location, seen.slots[&ids[0]]);
            let seal = seen.seal_told(call);
            assert_eq!(seal.is_some(), self.clients[&call.client].is_reader, "who has a table");
            assert!(seal.is_none_or(|seal| seal.slot == slot), "seals in it, in the right place");
            seen.reply(call, Reply::Created(Placed { location, seal }));
        } else if has_bytes {
            self.filling.push_back(Filling { call, ids });
        } else {
            self.end_put(call, &ids, seen);
        }
    }

    /// The puts whose bytes have been written by now become visible; those whose bytes could not be
    /// have never been there.
    fn end_fills(&mut self, seen: &mut Seen) {
        while let Some((fill, parked)) = seen.next_fill() {
            if let Some(Extent { offset, len, .. }) = fill.trim {
                self.slice = Some((offset, offset + len));
            }
            for _ in 0..parked {
                let id = seen.parked.front().copied().expect("so many are parked");
                assert!(self.objects[&id].is_idle(), "only what is idle is noticed in passing");
                self.park(id, seen);
            }
            let Filling { call, ids } = self.filling.pop_front().expect("a put has begun");
            match fill.outcome {
                WorkOutcome::Done => {
                    for id in &ids {
                        let object = &self.objects[id];
                        let start = usize::try_from(object.location.offset).unwrap();
                        let memory = &mut seen.segment[start..start + object.content.len()];
                        memory.copy_from_slice(&object.content);
                    }
                    self.end_put(call, &ids, seen);
                }
                WorkOutcome::Failed => {
                    self.counters.fills_failed += 1;
                    for id in ids {
                        self.drop_hold(call.client, id, Hold::ONE, seen);
                    }
                    self.refuse(call, Refusal::MemoryLost, seen);
                }
            }
        }
    }

    fn end_put(&mut self, call: Call, ids: &[ObjectId], seen: &mut Seen) {
        for id in ids {
            self.seal(*id, call.now, seen);
        }
        for id in ids {
            self.drop_hold(call.client, *id, Hold::ONE, seen);
        }
        seen.reply(call, Reply::Done);
    }

    pub(super) fn insert(&mut self, call: Call, new: NewObject, offset: u64, is_put: bool) {
        self.births += 1;
        let NewObject { id, data_size, metadata_size, content } = new;
        let segment = self.config.segment;
        let location = Location { segment, offset, data_size, metadata_size };
        let has_quota = self.clients[&call.client].quota.is_some();
        let size = location.size();
        let object = Object {
            location,
            content: if is_put { content } else { self.pattern(size) },
            creator: call.client,
            created_at: call.now,
            sealed: None,
            delete_pending: false,
            account: has_quota.then_some(call.client),
            birth: self.births,
            holds: BTreeMap::from([(call.client, Hold::ONE)]),
            pins: BTreeMap::new(),
            witness: None,
        };
        self.counters.objects_created += 1;
        self.counters.bytes_created += size;
        assert!(self.objects.insert(id, object).is_none(), "names are unique");
    }

    /// Bytes that only this object has.
    pub(super) fn pattern(&self, size: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.births);
        (0..size).map(|_| random.u8(..)).collect()
    }

    pub(super) fn seal_own(
        &mut self,
        call: Call,
        id: ObjectId,
        release: bool,
        seen: &mut Seen,
    ) -> Result<Reply, Refusal> {
        self.check_own_unsealed(call.client, id)?;
        self.seal(id, call.now, seen);
        if release {
            self.drop_hold(call.client, id, Hold::ONE, seen);
        }
        Ok(Reply::Done)
    }

    pub(super) fn check_own_unsealed(&self, client: ClientId, id: ObjectId) -> Result<(), Refusal> {
        match self.objects.get(&id) {
            None => Err(Refusal::ObjectNotFound(id)),
            Some(object) if object.sealed.is_some() => Err(Refusal::AlreadySealed(id)),
            Some(object) if object.creator != client => Err(Refusal::NotCreator(id)),
            Some(_) => Ok(()),
        }
    }

    /// Everybody who waits for the object is served in order of arrival.
    pub(super) fn seal(&mut self, id: ObjectId, now: Timestamp, seen: &mut Seen) {
        let event = self.events.len();
        self.objects.get_mut(&id).unwrap().sealed = Some((now, event));
        self.counters.objects_sealed += 1;
        let (data_size, metadata_size) = self.sizes(&id);
        self.record(Event::Sealed { id, data_size, metadata_size });
        let mut index = 0;
        while index < self.waiting.len() {
            let waiting = &mut self.waiting[index];
            let times = waiting.ids.iter().filter(|other| **other == id).count() as u64;
            if times > 0 && waiting.seen.insert(id) && matches!(waiting.want, Want::Get { .. }) {
                let client = waiting.call.client;
                self.hold(client, id, Hold { granted: 0, waiting: times });
            }
            if self.waiting[index].is_complete() {
                let waiting = self.waiting.remove(index);
                self.answer(waiting, seen);
            } else {
                index += 1;
            }
        }
    }

    pub(super) fn abort(
        &mut self,
        call: Call,
        id: ObjectId,
        seen: &mut Seen,
    ) -> Result<Reply, Refusal> {
        self.check_own_unsealed(call.client, id)?;
        self.drop_hold(call.client, id, Hold::ONE, seen);
        Ok(Reply::Done)
    }
}
