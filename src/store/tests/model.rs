//! What the store must do, worked out the slow way.
//!
//! The model keeps objects and clients in plain maps and waiting requests in plain vectors, finds
//! everything by looking at everything, and adds up whatever it is asked for. It is told what the
//! store did in one step ([`Seen`]), goes through it in order, and panics at the first thing that
//! the rules do not allow. The rules are those of `proto/plasma.proto` and of the doc comments; no
//! code of the store is used.
//!
//! Everything is predicted to the bit but two choices that the store may make: where a new object
//! lies, and which idle objects go for it. There the model takes over what was done, after checking
//! that it was right: see [`room`].
//! Slots, indexes and the way the pool works are not known here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::{ClientId, Location, ObjectId};
use crate::protocol::message::{Event, Reply, Request, RequestId, Timeout};
use crate::protocol::refusal::Refusal;
use crate::store::{Effect, Peer, StoreConfig, StoreCounters, WorkOutcome};
use crate::time::Timestamp;

mod making;
mod order;
mod removing;
mod reports;
mod room;
mod seen;
mod using;

pub use making::Creation;
use making::Filling;
use order::Order;
pub use seen::{Fill, Seen};

/// One object.
#[derive(Debug, Clone)]
pub struct Object {
    pub location: Location,
    /// The bytes that it has when it is sealed, data and metadata.
    pub content: Vec<u8>,
    pub creator: ClientId,
    pub created_at: Timestamp,
    /// When, and as which event.
    pub sealed: Option<(Timestamp, usize)>,
    pub delete_pending: bool,
    /// Whose quota it counts against.
    pub account: Option<ClientId>,
    /// Grows from object to object.
    birth: u64,
    pub holds: BTreeMap<ClientId, Hold>,
    /// How often which reader has it pinned.
    pub pins: BTreeMap<ClientId, u64>,
    /// The store has noticed: since then it is in use, until this reader tells and no other one is
    /// left.
    pub witness: Option<ClientId>,
}

/// How often a client holds an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    /// As it was told; so many it may give back.
    pub granted: u64,
    /// For the sake of gets that still wait.
    pub waiting: u64,
}

impl Hold {
    const ONE: Self = Self { granted: 1, waiting: 0 };
}

impl Object {
    pub fn size(&self) -> u64 {
        self.location.size()
    }

    fn is_idle(&self) -> bool {
        self.sealed.is_some() && self.holds.is_empty() && self.witness.is_none()
    }

    fn is_held_by(&self, client: ClientId) -> bool {
        self.holds.contains_key(&client) || self.pins.contains_key(&client)
    }

    /// Whether it may go.
    fn is_evictable(&self) -> bool {
        self.is_idle() && self.pins.is_empty()
    }

    /// The readers that have it pinned, and hold it in no other way.
    fn only_readers(&self) -> impl Iterator<Item = &ClientId> {
        self.pins.keys().filter(|client| !self.holds.contains_key(client))
    }

    /// The memory of a sealed object has what its creator wrote, whatever happened since.
    pub fn check_content(&self, id: &ObjectId, segment: &[u8]) {
        let start = usize::try_from(self.location.offset).unwrap();
        let found = &segment[start..start + self.content.len()];
        assert!(found == self.content, "the bytes of sealed object {id} have changed");
    }
}

/// One connected client.
#[derive(Debug)]
pub struct Client {
    peer: Peer,
    /// Whether it reads the directory.
    pub is_reader: bool,
    pub quota: Option<u64>,
    /// The idle objects that count against the quota.
    idle: Order,
    pub stream: Option<Stream>,
}

/// What a subscriber has been told.
#[derive(Debug)]
pub struct Stream {
    /// The next event.
    next: usize,
    /// While the snapshot lasts: the event at which it began, and what it has named.
    snapshot: Option<(usize, BTreeSet<ObjectId>)>,
    /// The sealed objects and their sizes, as far as it was told.
    mirror: BTreeMap<ObjectId, (u64, u64)>,
}

/// A get or wait that is not answered yet.
#[derive(Debug)]
pub struct Waiting {
    pub call: Call,
    pub ids: Vec<ObjectId>,
    /// What it has seen sealed so far.
    seen: BTreeSet<ObjectId>,
    want: Want,
    deadline: Option<Timestamp>,
    /// It was answered in one go.
    is_new: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Get { fail_if_abandoned: bool },
    Seen { count: usize },
}

impl Waiting {
    pub fn missing(&self) -> BTreeSet<ObjectId> {
        self.ids.iter().filter(|id| !self.seen.contains(id)).copied().collect()
    }

    fn is_complete(&self) -> bool {
        match self.want {
            Want::Get { .. } => self.missing().is_empty(),
            Want::Seen { count } => {
                let distinct: BTreeSet<_> = self.ids.iter().collect();
                self.seen.len() >= count.min(distinct.len())
            }
        }
    }
}

/// Who asks under which number, and when.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub client: ClientId,
    pub request: RequestId,
    pub now: Timestamp,
}

impl Call {
    fn is(&self, other: Self) -> bool {
        (self.client, self.request) == (other.client, other.request)
    }
}

/// What the store must be like.
pub struct Model {
    pub config: StoreConfig,
    pub objects: BTreeMap<ObjectId, Object>,
    pub clients: BTreeMap<ClientId, Client>,
    /// The idle objects that count against no quota.
    everybodys: Order,
    /// Gets and waits, in order of arrival.
    pub waiting: Vec<Waiting>,
    /// Creates and puts that wait for room, in order of arrival.
    pub queue: Vec<Creation>,
    /// Puts whose bytes are being written, in order.
    filling: VecDeque<Filling>,
    pub events: Vec<Event>,
    pub counters: StoreCounters,
    /// The virtual time, which others move.
    pub now: Timestamp,
    /// The memory that is being given back to the system: where it begins and ends.
    pub slice: Option<(u64, u64)>,
    /// The first create that waits does so for that memory: its deadline does not come.
    pub is_head_spared: bool,
    births: u64,
    /// Most ids of a get that the store answers in one go.
    pub ids_in_one_go: usize,
    /// What the store tells its readers the time by.
    pub tick: u64,
}

impl Model {
    pub fn new(config: StoreConfig) -> Self {
        Self {
            everybodys: Order::new(config.policy),
            config,
            objects: BTreeMap::new(),
            clients: BTreeMap::new(),
            waiting: Vec::new(),
            queue: Vec::new(),
            filling: VecDeque::new(),
            events: Vec::new(),
            counters: StoreCounters::default(),
            now: Timestamp::ZERO,
            slice: None,
            is_head_spared: false,
            births: 0,
            ids_in_one_go: usize::MAX,
            tick: 0,
        }
    }

    pub fn connect(&mut self, client: ClientId, peer: Peer, is_reader: bool) {
        let idle = Order::new(self.config.policy);
        let new = Client { peer, is_reader, quota: None, idle, stream: None };
        self.clients.insert(client, new);
        self.counters.clients_connected += 1;
    }

    pub fn apply(&mut self, call: Call, request: &Request, seen: &mut Seen) {
        self.counters.requests += 1;
        match self.serve(call, request, seen) {
            Ok(None) => {}
            Ok(Some(reply)) => seen.reply(call, reply),
            Err(refusal) => self.refuse(call, refusal, seen),
        }
        self.serve_queue(seen);
    }

    /// The reply to give last, if the request does not wait and has not been answered.
    fn serve(
        &mut self,
        call: Call,
        request: &Request,
        seen: &mut Seen,
    ) -> Result<Option<Reply>, Refusal> {
        let client = call.client;
        let reply = match request {
            Request::SetOptions { client_name, quota } => {
                self.set_options(client, client_name.as_ref(), *quota)?
            }
            Request::Create { .. } | Request::Put { .. } => {
                return self.create(Creation::new(call, request), seen);
            }
            Request::Seal { id, release } => self.seal_own(call, *id, *release, seen)?,
            Request::Abort { id } => self.abort(call, *id, seen)?,
            Request::Get { ids, timeout, fail_if_abandoned } => {
                let want = Want::Get { fail_if_abandoned: *fail_if_abandoned };
                self.get_or_wait(call, ids, want, *timeout, seen);
                return Ok(None);
            }
            Request::Wait { ids, count, timeout } => {
                self.get_or_wait(call, ids, Want::Seen { count: *count }, *timeout, seen);
                return Ok(None);
            }
            Request::Cancel { request } => self.cancel(Call { request: *request, ..call }, seen),
            Request::Release { holds } => self.release(client, holds, seen)?,
            Request::Unpinned { slots } => {
                for slot in slots {
                    let witness = |id: &ObjectId| self.objects[id].witness == Some(client);
                    if let Some(id) = seen.id_in(*slot).filter(witness) {
                        self.look_at_parked(id, seen);
                    }
                }
                Reply::Done
            }
            Request::GetState { ids } => {
                Reply::States(ids.iter().map(|id| self.state(id)).collect())
            }
            Request::Delete { ids } => {
                Reply::Deleted(ids.iter().map(|id| self.delete(*id, seen)).collect())
            }
            Request::Evict { bytes } => self.evict(*bytes, seen),
            Request::Refresh { ids } => {
                let touched = ids.iter().filter(|id| self.touch(**id)).count();
                Reply::Refreshed { objects: u32::try_from(touched).unwrap() }
            }
            Request::List { cursor } => self.check_list(call, *cursor, seen),
            Request::Subscribe { one_by_one } => {
                return self.subscribe(call, *one_by_one, seen).map(|()| None);
            }
            Request::GetStats => Reply::Stats(self.stats()),
            Request::GetDebugText => self.check_debug_text(call, seen),
            Request::ListClients { after, holding } => self.list_clients(*after, *holding),
            Request::Disconnect => {
                seen.reply(call, Reply::Done);
                seen.expect(Effect::HangUp { client });
                return Ok(None);
            }
        };
        Ok(Some(reply))
    }

    fn refuse(&mut self, call: Call, refusal: Refusal, seen: &mut Seen) {
        self.counters.refusals += 1;
        self.counters.refusals_full += u64::from(matches!(refusal, Refusal::StoreFull(_)));
        seen.reply(call, Reply::Refused(refusal));
    }

    pub fn next_deadline(&self) -> Option<Timestamp> {
        let waiting = self.waiting.iter().map(|waiting| waiting.deadline);
        let creates = self.queue.iter().skip(usize::from(self.is_head_spared));
        let creates = creates.map(|create| create.deadline);
        waiting.chain(creates).flatten().min()
    }

    /// Whose deadline has come is answered: gets and waits first, each by deadline, then arrival.
    /// A create waits on if it does so for memory that is being given back.
    pub fn expire(&mut self, seen: &mut Seen) {
        let now = self.now;
        let has_come = |deadline: Option<Timestamp>| deadline.is_some_and(|at| at <= now);
        let late = self.waiting.extract_if(.., |waiting| has_come(waiting.deadline));
        let mut late: Vec<Waiting> = late.collect();
        late.sort_by_key(|waiting| waiting.deadline);
        for waiting in late {
            self.counters.waits_timed_out += 1;
            self.answer(waiting, seen);
        }
        let spared = usize::from(self.is_head_spared);
        let late = self.queue.extract_if(spared.., |create| has_come(create.deadline));
        let mut late: Vec<Creation> = late.collect();
        late.sort_by_key(|create| create.deadline);
        for create in late {
            self.counters.creates_timed_out += 1;
            self.park_before_refusal(create.call, seen);
            let full = self.full(create.sizes().iter().sum());
            self.refuse(create.call, Refusal::StoreFull(full), seen);
        }
        self.serve_queue(seen);
    }

    /// Memory has been given back to the system, or not, and there is room again for creates.
    pub fn work_ended(&mut self, outcome: WorkOutcome, seen: &mut Seen) {
        let (start, end) = self.slice.take().expect("work has begun");
        self.counters.bytes_trimmed += if outcome == WorkOutcome::Done { end - start } else { 0 };
        self.serve_queue(seen);
    }

    /// Nothing of a client is left: its requests, its quota, its holds.
    pub fn disconnect(&mut self, client: ClientId, seen: &mut Seen) {
        self.counters.clients_disconnected += 1;
        self.waiting.retain(|waiting| waiting.call.client != client);
        self.queue.retain(|create| create.call.client != client);
        let left = self.clients.remove(&client).expect("only connected clients leave");
        for object in self.objects.values_mut() {
            object.pins.remove(&client);
        }
        for object in self.objects.values_mut().filter(|object| object.account == Some(client)) {
            object.account = None;
        }
        for id in left.idle.ids() {
            self.everybodys.became_idle(id, self.objects[&id].size(), self.tick);
        }
        // All at once, so in no order that a user could know; the store takes that of its list,
        // and what was being created first.
        for is_sealed in [false, true] {
            for id in seen.listed {
                let object = self.objects.get(id).filter(|it| it.sealed.is_some() == is_sealed);
                let hold = object.and_then(|object| object.holds.get(&client));
                if let Some(hold) = hold.copied() {
                    self.drop_hold(client, *id, hold, seen);
                }
            }
        }
        for id in seen.listed {
            let witness = self.objects.get(id).and_then(|object| object.witness);
            if witness == Some(client) {
                self.look_at_parked(*id, seen);
            }
        }
        self.serve_queue(seen);
    }

    fn set_options(
        &mut self,
        client: ClientId,
        name: Option<&String>,
        quota: Option<u64>,
    ) -> Result<Reply, Refusal> {
        let share = u128::from(self.config.capacity) * 70 / 100;
        let available = u64::try_from(share).unwrap() - self.granted_quotas();
        let client = self.clients.get_mut(&client).unwrap();
        if let Some(requested) = quota {
            if let Some(quota) = client.quota {
                return Err(Refusal::QuotaAlreadySet(quota));
            }
            if requested > available {
                return Err(Refusal::QuotaUnavailable { requested, available });
            }
            client.quota = quota;
        }
        if let Some(name) = name {
            client.peer.name.clone_from(name);
        }
        Ok(Reply::Done)
    }

    fn subscribe(&mut self, call: Call, one_by_one: bool, seen: &mut Seen) -> Result<(), Refusal> {
        let next = self.events.len();
        let client = self.clients.get_mut(&call.client).unwrap();
        if client.stream.is_some() {
            return Err(Refusal::AlreadySubscribed);
        }
        let snapshot = Some((next, BTreeSet::new()));
        client.stream = Some(Stream { next, snapshot, mirror: BTreeMap::new() });
        seen.reply(call, Reply::Done);
        seen.expect(Effect::Stream { client: call.client, one_by_one });
        Ok(())
    }

    fn record(&mut self, event: Event) {
        self.counters.events += 1;
        self.events.push(event);
    }

    fn sizes(&self, id: &ObjectId) -> (u64, u64) {
        let location = self.objects[id].location;
        (location.data_size, location.metadata_size)
    }
}

fn deadline(now: Timestamp, timeout: Timeout) -> Option<Timestamp> {
    timeout.map(|timeout| now.after(timeout))
}
