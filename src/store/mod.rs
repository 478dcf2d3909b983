//! The store: which objects there are, who holds them, who waits for them, and what is evicted.
//!
//! [`Store`] is a plain value. It does no I/O, reads no clock and knows no sockets, descriptors or
//! addresses: requests come in as values with the time they are served at, and what has to be done
//! outside leaves as [`Effect`]s, to be carried out in order. So it can be driven by the server, by
//! a simulation or by a fuzzer alike. Its surface is eight verbs: [`Store::connect`],
//! [`Store::apply`], [`Store::expire`], [`Store::disconnect`], [`Store::work`],
//! [`Store::next_deadline`], [`Store::done`] and [`Store::trimmed`]. None of them takes longer for there being more
//! of anything: what would is a job (`jobs`), done in slices by [`Store::work`].
//!
//! Each file here owns one part of the state and the transitions of that part; the verbs of the
//! protocol are in `creating` (create, put, seal, abort) with `filling` (the bytes of puts), `room` (where new objects go, and
//! what is evicted for them), `clearing` (the same in slices) and `queueing`, `using` (get, wait,
//! release), `idleness` (the order of eviction), `removing` (delete, refresh), `jobs` (evict, and
//! the departure of clients) and `reports` (everything that only looks). `trimming` says which free
//! memory goes back to the system. `invariants` says what always holds.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::eviction::{EvictionPolicy, PolicyKind, Population};
use crate::ids::{ClientId, SegmentId, Slot};
use crate::limits;
use crate::protocol::message::{Event, Reply, Request, RequestId};
use crate::protocol::refusal::Refusal;
use crate::time::Timestamp;

mod asked;
mod clearing;
mod clients;
mod counters;
mod counting;
mod create_queue;
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
pub mod pool;
mod queueing;
mod quota;
mod ranges;
mod removing;
mod reports;
mod room;
mod runs;
mod subscriptions;
mod sums;
mod told;
mod trimming;
mod using;
mod waitlist;

#[cfg(test)]
mod tests;

pub use clients::Peer;
pub use counters::StoreCounters;
pub use effect::{Effect, Effects, Work, WorkOutcome};
pub use trimming::TrimConfig;

use asked::{Asked, is_now};
use clearing::Clearing;
use clients::Clients;
use counting::Numbers;
use create_queue::CreateQueue;
use directory::{Directory, Unshared};
use filling::Fillings;
use jobs::Jobs;
use leaving::Survivors;
use object_table::ObjectTable;
use pinned::Parked;
use pool::Pool;
use quota::Quotas;
use runs::Runs;
use subscriptions::Subscriptions;
use trimming::Trimming;
use waitlist::Waitlist;

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
    pool: Pool,
    trimming: Trimming,
    /// No object has ever been here or behind.
    used_end: u64,
    /// Bytes of all objects, as asked for.
    used: u64,
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
    /// Puts whose bytes are being written.
    fillings: Fillings,
    counters: StoreCounters,
    /// The head of the create queue has to be tried again: something was freed or became idle, so
    /// it may fit now, or it can only be refused now.
    room_appeared: bool,
    /// Room that is being made for the head of the create queue, or cannot be made.
    clearing: Option<Clearing>,
    /// Creates whose time is over may fit into memory that was being given back: they are served,
    /// slice by slice, before they are refused.
    deadlines_wait: bool,
    jobs: Jobs,
    /// What is not needed any more, and takes time to be dropped.
    waste: Vec<Runs>,
    slice: Slice,
    /// What is left of the slice: steps, and ids in answers to those who waited.
    steps: usize,
    answers: usize,
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

/// What a request leads to.
enum Outcome {
    /// This reply, now.
    Reply(Reply),
    /// A reply later: the request waits.
    Waits,
    /// A reply later: the request has begun to free memory.
    Frees,
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

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
            pool: Pool::new(config.segment_bytes),
            trimming: Trimming::new(config.trim.clone(), config.segment_bytes),
            used_end: 0,
            used: 0,
            unsealed: BTreeSet::new(),
            idle: config.policy.build(Population::Most),
            quotas: Quotas::new(config.capacity, config.policy),
            waits: Waitlist::default(),
            creates: CreateQueue::default(),
            subscriptions: Subscriptions::default(),
            directory,
            parked: Parked::default(),
            survivors: Survivors::default(),
            fillings: Fillings::default(),
            counters: StoreCounters::default(),
            room_appeared: false,
            clearing: None,
            deadlines_wait: false,
            jobs: Jobs::default(),
            waste: Vec::new(),
            slice: Slice { steps: limits::SLICE_STEPS, answers: limits::SLICE_ANSWERS },
            steps: 0,
            answers: 0,
            tick: 0,
            config,
        }
    }

    /// Lets a client that has connected read what is in the directory without asking. False if it
    /// has to ask all the same.
    pub fn let_read(&mut self, client: ClientId) -> bool {
        self.directory.join(client)
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
    /// waits or wants none.
    pub fn apply(
        &mut self,
        client: ClientId,
        request_id: RequestId,
        request: Request,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        self.counters.requests += 1;
        self.begin_slice();
        let asked = Asked { client, request: request_id, now };
        let outcome = self.serve(asked, request, effects);
        self.conclude(asked, outcome, effects);
    }

    fn conclude(
        &mut self,
        asked: Asked,
        outcome: Result<Outcome, Refusal>,
        effects: &mut Effects,
    ) {
        let Asked { client, request: request_id, now } = asked;
        match outcome {
            Ok(Outcome::Reply(reply)) => effects.reply(client, request_id, reply),
            Ok(Outcome::Waits) => {}
            // The queue has its turn when all is free that is to be.
            Ok(Outcome::Frees) => return,
            Err(refusal) => self.refuse(client, request_id, refusal, effects),
        }
        self.finish(now, effects);
    }

    fn serve(
        &mut self,
        asked: Asked,
        request: Request,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        // Nearly always nobody is creating anything.
        if !self.unsealed.is_empty()
            && let Some(next) = self.settle_for(request.subject(), asked.now, effects)
        {
            return self.serve_later(asked, request, next);
        }
        self.serve_now(asked, request, effects)
    }

    fn serve_now(
        &mut self,
        asked: Asked,
        request: Request,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let Asked { client, request: request_id, .. } = asked;
        match request {
            Request::SetOptions { client_name, quota } => {
                self.set_options(client, client_name, quota).map(Into::into)
            }
            Request::Create { id, data_size, metadata_size, room } => {
                let creation = create_queue::Creation::Empty { id, data_size, metadata_size };
                self.create(asked, creation, room, effects)
            }
            Request::Put { objects, room } => {
                let creation = create_queue::Creation::Filled { objects };
                self.create(asked, creation, room, effects)
            }
            Request::Seal { id, release } => {
                self.seal(asked, &id, release, effects).map(Into::into)
            }
            Request::Abort { id } => self.abort(client, &id, effects).map(Into::into),
            Request::Get { ids, timeout, fail_if_abandoned } => {
                self.get(asked, ids, timeout, fail_if_abandoned)
            }
            Request::Unpinned { slots } => {
                self.unpinned(client, &slots);
                Ok(Reply::Done.into())
            }
            Request::Wait { ids, count, timeout } => self.wait(asked, ids, count, timeout),
            Request::Cancel { request } => Ok(self.cancel(asked, request, effects).into()),
            Request::Release { holds } => self.release(asked, &holds, effects).map(Into::into),
            Request::GetState { ids } => Ok(self.states(&ids).into()),
            Request::Delete { ids } => Ok(self.delete(&ids).into()),
            Request::Evict { bytes } => self.evict(asked, bytes),
            Request::Refresh { ids } => Ok(self.refresh(&ids).into()),
            Request::List { cursor } => Ok(self.list(cursor).into()),
            Request::Subscribe { one_by_one } => self.subscribe(asked, one_by_one, effects),
            Request::GetStats => self.count(asked, Numbers::Stats),
            Request::GetDebugText => self.count(asked, Numbers::DebugText),
            Request::ListClients { after, holding } => Ok(self.list_clients(after, holding).into()),
            Request::Disconnect => {
                self.clients.get_mut(client).said_goodbye = true;
                effects.reply(client, request_id, Reply::Done);
                effects.push(Effect::HangUp { client });
                Ok(Outcome::Waits)
            }
        }
    }

    /// Answers waiting requests whose deadline has come. If they are very many, some are left: then
    /// [`Self::next_deadline`] is still in the past.
    pub fn expire(&mut self, now: Timestamp, effects: &mut Effects) {
        self.begin_slice();
        while self.answers > 0
            && let Some(waiter) = self.waits.expired(now)
        {
            self.counters.waits_timed_out += 1;
            self.answers = self.answers.saturating_sub(1 + waiter.missing.len());
            self.answer_late(waiter, now, effects);
        }
        // What is being given back to the system must not be the reason for a refusal.
        if self.may_expire_creates() {
            let is_due = self.creates.next_deadline().is_some_and(|deadline| deadline <= now);
            if is_due && self.catch_up(now, effects) {
                self.serve_create_queue(now, effects);
            }
            self.expire_creates(now, effects);
        }
        self.look_at_survivors(now);
        self.trimming.look(&self.pool, now);
        self.finish(now, effects);
        self.trim_next(now, effects);
    }

    /// Nobody is refused for memory that is being given back, nor before he had his turn at what
    /// has come back from there.
    fn may_expire_creates(&self) -> bool {
        self.trimming.resting().is_none() && !(self.deadlines_wait && self.has_room_work())
    }

    fn expire_creates(&mut self, now: Timestamp, effects: &mut Effects) {
        while self.answers > 0
            && let Some(create) = self.creates.expired(now)
        {
            self.answers -= 1;
            self.counters.creates_timed_out += 1;
            self.clients.get_mut(create.client).wait_ended(create.cost());
            let full = Refusal::StoreFull(self.full(create.creation.sizes().sum()));
            self.refuse(create.client, create.request, full, effects);
            // The next in the queue may be one that fits.
            self.room_appeared = true;
        }
    }

    /// What has to be looked at when something has changed.
    fn finish(&mut self, now: Timestamp, effects: &mut Effects) {
        self.serve_create_queue(now, effects);
        self.trimming.plan_look(&self.pool, now);
    }

    /// When [`Store::expire`] has something to do at the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let creates = self.creates.next_deadline().filter(|_| self.may_expire_creates());
        let survivors = self.survivors.next_look();
        let deadlines = [self.waits.next_deadline(), creates, self.trimming.next_look(), survivors];
        deadlines.into_iter().flatten().min()
    }

    /// The connection of a client has ended, in whatever way. What it waited for is forgotten, and
    /// what it was creating is removed, unless it has told in its table that it is sealed. What it
    /// held is released when no process is left that has it; until then, and until the last of it
    /// is done, it stays among the clients.
    pub fn disconnect(&mut self, client: ClientId, now: Timestamp, effects: &mut Effects) {
        self.counters.clients_disconnected += 1;
        self.begin_slice();
        self.subscriptions.unsubscribe(client);
        self.begin_leaving(client, now, effects);
        self.trimming.plan_look(&self.pool, now);
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
        self.used_end
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
    ) -> Result<Reply, Refusal> {
        if let Some(quota) = quota {
            self.quotas.grant(client, quota)?;
            // A create of this client that waits may exceed it.
            self.creates.doubt_head();
            self.room_appeared = true;
        }
        if let Some(name) = name {
            self.clients.get_mut(client).peer.name = name;
        }
        Ok(Reply::Done)
    }

    fn subscribe(
        &mut self,
        asked: Asked,
        one_by_one: bool,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if self.subscriptions.contains(asked.client) {
            return Err(Refusal::AlreadySubscribed);
        }
        self.subscriptions.subscribe(asked.client);
        effects.reply(asked.client, asked.request, Reply::Done);
        effects.push(Effect::Stream { client: asked.client, one_by_one });
        Ok(Outcome::Waits)
    }

    /// A time as the rest of the world has it.
    fn unix_time(&self, at: Timestamp) -> Duration {
        self.config.unix_start + Duration::from_nanos(at.as_nanos())
    }

    fn record(&mut self, event: Event) {
        self.counters.events += 1;
        self.subscriptions.push(event);
    }

    fn refuse(
        &mut self,
        client: ClientId,
        request: RequestId,
        refusal: Refusal,
        effects: &mut Effects,
    ) {
        self.counters.refusals += 1;
        if matches!(refusal, Refusal::StoreFull(_)) {
            self.counters.refusals_full += 1;
        }
        effects.reply(client, request, Reply::Refused(refusal));
    }
}
