//! The store: which objects there are, who holds them, who waits for them, and what is evicted.
//!
//! [`Store`] is a plain value. It does no I/O, reads no clock and knows no sockets, descriptors or
//! addresses: requests come in as values with the time they are served at, and what has to be done
//! outside leaves as [`Effect`]s, to be carried out in order. So it can be driven by the server, by
//! a simulation or by a fuzzer alike. Its surface is a few verbs: [`Store::connect`],
//! [`Store::apply`], [`Store::expire`], [`Store::disconnect`], [`Store::work`],
//! [`Store::next_deadline`] and [`Store::done`]. None of them takes longer for there being more
//! of anything: what would is done in slices, a long request by [`Store::go_on`] (`busy`) and what
//! nobody waits for, or many do, by [`Store::work`] (`jobs`).
//!
//! Each file here owns one part of the state and the transitions of that part; the verbs of the
//! protocol are in `creating` (create, put, seal, abort) with `filling` (their bytes), `using`
//! (get, release), `awaiting` (what takes longer of get and wait), `removing` (delete, refresh),
//! `jobs` (evict), `leaving` (the end of a client) and `reports` (everything that only looks).
//! `told` looks at what creators say in their tables. `space` has the memory and finds room in it,
//! `waiting` has the requests that wait, `idleness` the order of eviction. `invariants` says what
//! always holds.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::eviction::{EvictionPolicy, PolicyKind, Population};
use crate::ids::{ClientId, Extent, SegmentId, Slot, Ticket};
use crate::limits;
use crate::protocol::message::{Event, Reply, Request, RequestId, Subject, Timeout};
use crate::protocol::refusal::Refusal;
use crate::time::Timestamp;

mod awaiting;
mod busy;
mod clients;
mod counters;
mod counting;
mod creating;
pub mod directory;
mod effect;
mod filling;
mod id_index;
mod idleness;
mod invariants;
mod jobs;
mod leaving;
mod object_table;
mod pinned;
mod quota;
mod removing;
mod reports;
pub mod request_memory;
pub mod space;
mod subscriptions;
mod told;
mod using;
mod waiting;

#[cfg(test)]
mod tests;

pub use clients::Peer;
pub use counters::StoreCounters;
pub use effect::{Effect, Effects, Work, WorkOutcome};
pub use space::TrimConfig;

use awaiting::How;
use busy::{Busy, Task};
use clients::{Asked, Clients};
use directory::{Directory, Unshared};
use filling::Filling;
use jobs::Jobs;
use leaving::Survivors;
use object_table::ObjectTable;
use pinned::Parked;
use quota::Quotas;
use request_memory::RequestMemory;
use space::{Ranges, Search, Space};
use subscriptions::Subscriptions;
use told::Next;
use using::Releasing;
use waiting::{CreateQueue, Creation, Turn, Waitlist};

/// What a store is made of.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Bytes that objects may use; exactly what the user asked for.
    pub capacity: u64,
    /// The segment that holds the objects.
    pub segment: SegmentId,
    /// Bytes of that segment: the capacity and something for rounding, a multiple of the alignment.
    pub segment_bytes: u64,
    /// Most objects at a time.
    pub objects_max: u32,
    /// What is evicted first.
    pub policy: PolicyKind,
    /// Which free memory goes back to the system; nothing for none.
    pub trim: Option<TrimConfig>,
    /// Wall-clock time at [`Timestamp::ZERO`], since the Unix epoch.
    pub unix_start: Duration,
}

/// The state of the store.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    objects: ObjectTable,
    clients: Clients,
    space: Space,
    /// The objects that are being created, by their creators.
    unsealed: BTreeSet<(ClientId, Slot)>,
    /// The idle objects that count against no quota.
    idle: Box<dyn EvictionPolicy>,
    quotas: Quotas,
    waits: Waitlist,
    creates: CreateQueue,
    subscriptions: Subscriptions,
    directory: Box<dyn Directory>,
    /// Objects that would be idle, if readers of the directory had not pinned them.
    parked: Parked,
    /// Clients whose connections have ended and of which processes are left.
    survivors: Survivors,
    /// A put whose bytes are being written.
    filling: Option<Filling>,
    counters: StoreCounters,
    /// Room for the create that has this turn, which is looked for or cannot be found.
    search: Option<(Turn, Search)>,
    jobs: Jobs,
    busy: Busy,
    /// What is not needed any more, and takes time to be dropped.
    waste: Vec<Ranges>,
    slice: Slice,
    /// What is left of the slice: steps, and ids in answers to those who waited.
    steps: usize,
    answers: usize,
    /// The time at which the store is told what it is told now.
    now: Timestamp,
    /// What follows from that and has to be done outside; empty in between.
    effects: Effects,
    /// Counts everything that the store is told: the clock of the orders of eviction, which readers
    /// of the directory see.
    tick: u64,
}

/// How much is done in one go.
#[derive(Debug, Clone, Copy)]
struct Slice {
    steps: usize,
    answers: usize,
}

/// The reply to a request, or none yet if the request waits.
type Answer = Result<Option<Reply>, Refusal>;

impl Store {
    /// An empty store whose clients read by message.
    #[must_use]
    pub fn new(config: StoreConfig) -> Self {
        Self::with_directory(config, Box::new(Unshared::default()))
    }

    /// An empty store that publishes its sealed objects in a directory.
    #[must_use]
    pub fn with_directory(config: StoreConfig, directory: Box<dyn Directory>) -> Self {
        Self {
            objects: ObjectTable::default(),
            clients: Clients::default(),
            space: Space::new(&config),
            unsealed: BTreeSet::new(),
            idle: config.policy.build(Population::Most),
            quotas: Quotas::new(config.capacity, config.policy),
            waits: Waitlist::default(),
            creates: CreateQueue::default(),
            subscriptions: Subscriptions::default(),
            directory,
            parked: Parked::default(),
            survivors: Survivors::default(),
            filling: None,
            counters: StoreCounters::default(),
            search: None,
            jobs: Jobs::default(),
            busy: Busy::new(),
            waste: Vec::new(),
            slice: Slice { steps: limits::SLICE_STEPS, answers: limits::SLICE_ANSWERS },
            steps: 0,
            answers: 0,
            now: Timestamp::ZERO,
            effects: Effects::new(),
            tick: 0,
            config,
        }
    }

    /// Lets a client that has connected read what is in the directory without asking. False if it
    /// has to ask all the same.
    pub fn let_read(&mut self, client: ClientId) -> bool {
        self.directory.join(client)
    }

    /// Requests may keep so many bytes of the store's own memory from now on; without this, any
    /// number.
    pub fn limit_request_memory(&mut self, bytes: u64) {
        self.clients.memory = RequestMemory::new(bytes);
    }

    /// What is kept for requests: those that wait, and what is outside of the store and told here.
    pub fn request_memory(&mut self) -> &mut RequestMemory {
        &mut self.clients.memory
    }

    /// A client has connected. Its id has never been used before.
    ///
    /// # Errors
    /// Its process has too many connections that have ended and of which something is still in use.
    pub fn connect(&mut self, client: ClientId, peer: Peer) -> Result<(), Refusal> {
        self.check_survivors_of(&peer)?;
        self.clients.insert(client, peer);
        self.directory.connect(client);
        self.counters.clients_connected += 1;
        Ok(())
    }

    /// Serves one request of a connected client. The reply is among the effects, unless the request
    /// waits or wants none, or it takes more than a slice: then the client is busy.
    ///
    /// # Panics
    /// If the client is busy with another request.
    pub fn apply(
        &mut self,
        client: ClientId,
        request_id: RequestId,
        request: Request,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        assert!(!self.is_busy(client), "{client} has one request served at a time");
        self.told(now, effects, |store| {
            store.counters.requests += 1;
            store.begin_slice();
            let asked = Asked { client, request: request_id };
            let answer = store.serve(asked, request);
            store.answer(asked, answer);
            store.finish();
        });
    }

    /// The store is told something at this time. What follows from it joins these effects.
    fn told(&mut self, now: Timestamp, effects: &mut Effects, what: impl FnOnce(&mut Self)) {
        self.now = now;
        std::mem::swap(&mut self.effects, effects);
        what(self);
        std::mem::swap(&mut self.effects, effects);
    }

    fn answer(&mut self, asked: Asked, answer: Answer) {
        match answer {
            Ok(Some(reply)) => self.reply(asked, reply),
            Ok(None) => {}
            Err(refusal) => self.refuse(asked, refusal),
        }
    }

    /// Sends a reply, unless none is wanted.
    fn reply(&mut self, to: Asked, reply: Reply) {
        let Asked { client, request } = to;
        if request != RequestId::NONE {
            self.effects.push(Effect::Reply { client, request, reply });
        }
    }

    fn refuse(&mut self, asked: Asked, refusal: Refusal) {
        self.counters.refusals += 1;
        if matches!(refusal, Refusal::StoreFull(_)) {
            self.counters.refusals_full += 1;
        }
        if matches!(refusal, Refusal::OverRequestMemory(_)) {
            self.counters.refusals_request_memory += 1;
        }
        self.reply(asked, Reply::Refused(refusal));
    }

    fn serve(&mut self, asked: Asked, request: Request) -> Answer {
        if request.traits().subject != Subject::Everything {
            // What depends on some objects looks at each of them when it comes to it.
            return self.serve_now(asked, request);
        }
        // Whoever counts counts nothing of those that have died.
        if !self.survivors.is_empty() {
            self.look_at_some_survivors();
        }
        self.serve_task(asked, Task::Look { request, next: Next::FIRST })
    }

    fn serve_now(&mut self, asked: Asked, request: Request) -> Answer {
        let client = asked.client;
        match request {
            Request::SetOptions { client_name, quota } => {
                self.set_options(client, client_name, quota)
            }
            Request::Create { id, data_size, metadata_size, room } => {
                let creation = Creation::Empty { id, data_size, metadata_size };
                self.create(asked, creation, room)
            }
            Request::Put { objects, room } => {
                let creation = Creation::Filled { objects };
                self.create(asked, creation, room)
            }
            Request::Seal { id, release } => self.seal(asked, &id, release),
            Request::Abort { id } => self.abort(client, &id),
            Request::Get { ids, timeout, fail_if_abandoned } => {
                self.get(asked, ids, timeout, fail_if_abandoned)
            }
            Request::Unpinned { slots } => {
                self.serve_task(asked, Task::Unpinned { slots: slots.into_iter() })
            }
            Request::Wait { ids, count, timeout } => self.wait(asked, ids, count, timeout),
            Request::Cancel { request } => self.cancel(asked, request),
            Request::Release { holds } => {
                self.serve_task(asked, Task::Release(Releasing::new(holds)))
            }
            Request::GetState { ids } => {
                let states = Vec::with_capacity(ids.len());
                self.serve_task(asked, Task::States { ids: ids.into_iter(), states })
            }
            Request::Delete { ids } => {
                let outcomes = Vec::with_capacity(ids.len());
                self.serve_task(asked, Task::Delete { ids: ids.into_iter(), outcomes })
            }
            Request::Evict { bytes } => self.evict(asked, bytes),
            Request::Refresh { ids } => {
                self.serve_task(asked, Task::Refresh { ids: ids.into_iter(), objects: 0 })
            }
            Request::List { cursor } => Ok(Some(self.list(cursor))),
            Request::Subscribe { one_by_one } => self.subscribe(asked, one_by_one),
            Request::GetStats => {
                self.count(asked, |store, pinned| Reply::Stats(store.stats_with(pinned)))
            }
            Request::GetDebugText => {
                self.count(asked, |store, pinned| Reply::DebugText(store.debug_text(pinned)))
            }
            Request::ListClients { after, holding } => Ok(Some(self.list_clients(after, holding))),
            Request::Disconnect => {
                self.clients.get_mut(client).said_goodbye = true;
                self.reply(asked, Reply::Done);
                self.effects.push(Effect::HangUp { client });
                Ok(None)
            }
        }
    }

    /// The head of the create queue may not be legal any more: then it is refused.
    fn doubt_head(&mut self) {
        if let Some((_, search)) = &mut self.search {
            search.doubt();
        }
    }

    /// Answers waiting requests whose deadline has come. If they are very many, or a put is served
    /// meanwhile, some are left: then [`Self::next_deadline`] is still in the past.
    pub fn expire(&mut self, now: Timestamp, effects: &mut Effects) {
        self.told(now, effects, |store| {
            store.begin_slice();
            let unsealed = store.unsealed.len();
            store.expire_waits();
            let late = store.creates.next_deadline(store.spared_from_deadlines());
            // What was found sealed just now may be room as well.
            if late.is_some_and(|deadline| deadline <= now)
                && (store.catch_up() || unsealed != store.unsealed.len())
            {
                store.serve_creates();
            }
            store.expire_creates();
            store.look_at_survivors();
            store.space.look(now);
            store.finish();
            store.trim_next();
        });
    }

    fn expire_waits(&mut self) {
        while self.answers > 0
            && let Some(waiter) = self.waits.expired(self.now)
        {
            self.counters.waits_timed_out += 1;
            self.answers -= 1;
            self.end_waiter(waiter, How::AnswerLate);
            self.work_on_endings();
        }
    }

    fn expire_creates(&mut self) {
        let spared = self.spared_from_deadlines();
        // While a put is being filled nobody behind it has been tried.
        while self.answers > 0
            && self.filling.is_none()
            && let Some(create) = self.creates.expired(self.now, spared)
        {
            self.answers -= 1;
            self.counters.creates_timed_out += 1;
            self.clients.wait_ended(create.asked.client, create.creation.cost());
            let full = Refusal::StoreFull(self.full(create.creation.sizes().sum()));
            self.refuse(create.asked, full);
        }
    }

    /// Outside work that [`Effect::Start`] began has ended.
    ///
    /// # Panics
    /// If there was no such effect, or puts whose effects came earlier are still to be filled.
    pub fn done(
        &mut self,
        ticket: Ticket,
        outcome: WorkOutcome,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.told(now, effects, |store| {
            // What follows from a put is part of the slice in which it got its room.
            if store.end_filling(ticket, outcome) {
                return store.finish();
            }
            store.begin_slice();
            store.end_transit(ticket, outcome);
            store.finish();
            store.trim_next();
        });
    }

    /// Memory is not in transit any more.
    fn end_transit(&mut self, ticket: Ticket, outcome: WorkOutcome) {
        let Extent { offset, len, .. } = self.space.done(ticket, outcome);
        self.counters.bytes_trimmed = self.space.trimming.given_bytes;
        self.note_memory(offset, len, false);
        if let Some((_, search)) = &mut self.search {
            search.transit_ended();
        }
    }

    /// Gives the next memory back to the system, if it is time to. Room that somebody waits for is
    /// made first.
    fn trim_next(&mut self) {
        if self.has_room_work() && self.space.postpone_trim(self.now) {
            return;
        }
        if let Some((ticket, extent)) = self.space.begin_trim() {
            self.note_memory(extent.offset, extent.len, false);
            self.effects.push(Effect::Start { ticket, work: Work::Trim { extent } });
        }
    }

    /// What has to be looked at when something has changed.
    fn finish(&mut self) {
        self.drop_search_of_nobody();
        if self.has_room_work() {
            self.serve_creates();
        }
        self.space.plan_look(self.now);
    }

    /// When [`Store::expire`] has something to do at the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let creates = self.creates.next_deadline(self.spared_from_deadlines());
        let deadlines =
            [self.waits.next_deadline(), creates, self.space.next_look(), self.survivors.next_look];
        deadlines.into_iter().flatten().min()
    }

    /// Fills the empty `out` with what a subscriber has to be told next, at most `max` events and a
    /// mark; leaves it empty if there is nothing new, or if [`Self::has_snapshot_left`] and very
    /// many slots are empty: then there is more at the next time. After [`Event::Lagged`] the
    /// stream ends.
    pub fn next_events(&mut self, client: ClientId, max: usize, out: &mut Vec<Event>) {
        if !self.subscriptions.next_events(client, max, &self.objects, out) {
            self.counters.subscribers_lagged += 1;
        }
    }

    /// Whether a subscriber has not been told yet of all objects that there were.
    #[must_use]
    pub fn has_snapshot_left(&self, client: ClientId) -> bool {
        self.subscriptions.has_snapshot_left(client)
    }

    /// Where the memory begins that no object has ever used, in bytes from the segment's start.
    #[must_use]
    pub const fn used_end(&self) -> u64 {
        self.space.used_end()
    }

    /// Grows with every event: tells whether any subscriber may have something new.
    #[must_use]
    pub fn event_sequence(&self) -> u64 {
        self.subscriptions.sequence()
    }

    fn set_options(
        &mut self,
        client: ClientId,
        name: Option<String>,
        quota: Option<u64>,
    ) -> Answer {
        if let Some(quota) = quota {
            self.quotas.grant(client, quota)?;
            // A create of this client that waits may exceed it.
            self.doubt_head();
        }
        if let Some(name) = name {
            self.clients.get_mut(client).peer.name = name;
        }
        Ok(Some(Reply::Done))
    }

    fn subscribe(&mut self, asked: Asked, one_by_one: bool) -> Answer {
        if self.subscriptions.contains(asked.client) {
            return Err(Refusal::AlreadySubscribed);
        }
        self.subscriptions.subscribe(asked.client);
        self.reply(asked, Reply::Done);
        self.effects.push(Effect::Stream { client: asked.client, one_by_one });
        Ok(None)
    }

    /// The time as the rest of the world has it.
    fn unix_now(&self) -> Duration {
        self.config.unix_start + Duration::from_nanos(self.now.as_nanos())
    }

    /// When a request with this timeout is answered at the latest.
    fn deadline(&self, timeout: Timeout) -> Option<Timestamp> {
        timeout.map(|timeout| self.now.after(timeout))
    }

    fn record(&mut self, event: Event) {
        self.counters.events += 1;
        self.subscriptions.push(event);
    }
}

/// Whether a request with this timeout may not wait at all.
fn is_now(timeout: Timeout) -> bool {
    timeout == Some(Duration::ZERO)
}
