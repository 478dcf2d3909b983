//! The second phase of a run: no more chaos, everybody who waits is served, and everybody leaves.
//!
//! What the first phase cannot show is shown here: that nothing waits for ever although what it
//! waits for has come, and that nothing is left when everybody has gone.

use std::time::Duration;

use super::{Simulation, Step, chaos};
use crate::ids::{ClientId, ObjectId};
use crate::limits::ALIGNMENT;
use crate::protocol::message::{NewObject, ObjectState, Reply, Request, RequestId, Room};
use crate::protocol::refusal::Refusal;
use crate::store::{Effect, WorkOutcome};
use crate::time::Timestamp;

/// Rounds of help after which nobody may wait any more.
const ROUNDS_MAX: usize = 1000;

impl Simulation {
    /// The chaos is over. Whatever waits is served, then everybody leaves.
    pub(super) fn calm(&mut self) {
        self.readers_let_go();
        for client in std::mem::take(&mut self.leaving) {
            self.take(Step::Disconnect(client));
        }
        self.past_all_deadlines();
        let mut rounds = 0;
        while !self.model.waiting.is_empty() || !self.model.queue.is_empty() {
            assert!(rounds < ROUNDS_MAX, "nothing helps those who wait");
            rounds += 1;
            self.let_everybody_finish();
            self.serve_one_that_waits();
        }
        assert!(self.open.is_empty(), "every request has been answered");
        self.everybody_reads_all_events();
        let mut clients: Vec<ClientId> = self.model.clients.keys().copied().collect();
        self.random.shuffle(&mut clients);
        for client in clients {
            self.take(Step::Disconnect(client));
        }
        self.check_empty();
    }

    fn readers_let_go(&mut self) {
        let pins = self.model.objects.iter().flat_map(|(id, object)| {
            let times = |(client, count): (&ClientId, &u64)| (*client, *id, *count);
            object.pins.iter().map(times).collect::<Vec<_>>()
        });
        for (client, id, count) in pins.collect::<Vec<_>>() {
            for _ in 0..count {
                self.take(Step::Unpin(client, id));
            }
        }
        self.everything_is_heard();
    }

    fn everything_is_heard(&mut self) {
        for (client, slot) in std::mem::take(&mut self.told) {
            self.ask(client, Request::Unpinned { slots: vec![slot] });
        }
    }

    /// Creators seal what they create, and everybody gives back what it was given.
    fn let_everybody_finish(&mut self) {
        for (id, creator) in self.unsealed() {
            self.ask(creator, Request::Seal { id, release: true });
        }
        self.readers_let_go();
        for client in self.talking() {
            let held = self.model.objects.iter().filter_map(|(id, object)| {
                let granted = object.holds.get(&client)?.granted;
                (granted > 0).then(|| (*id, u32::try_from(granted).unwrap()))
            });
            let holds: Vec<_> = held.collect();
            if !holds.is_empty() {
                self.ask(client, Request::Release { holds });
            }
        }
    }

    fn unsealed(&self) -> Vec<(ObjectId, ClientId)> {
        let objects = self.model.objects.iter().filter(|(_, object)| object.sealed.is_none());
        objects.map(|(id, object)| (*id, object.creator)).collect()
    }

    /// The first get or wait gets the objects that it misses. If there is no room for them because
    /// of what other gets hold while they wait, it is cancelled. Creates that keep what is there
    /// wait until somebody else evicts it.
    fn serve_one_that_waits(&mut self) {
        let Some(waiting) = self.model.waiting.first() else {
            if let Some(create) = self.model.queue.first() {
                self.ask(create.call.client, Request::Evict { bytes: u64::MAX });
            }
            return;
        };
        let (call, missing) = (waiting.call, waiting.missing());
        for id in missing {
            let object = NewObject { id, data: vec![], metadata: vec![] };
            let room = Room { evict: true, timeout: Some(Duration::ZERO) };
            let reply = self.ask(call.client, Request::Put { objects: vec![object], room });
            if matches!(reply, Some(Reply::Refused(Refusal::StoreFull(_)))) {
                self.ask(call.client, Request::Cancel { request: call.request });
                return;
            }
        }
    }

    fn past_all_deadlines(&mut self) {
        self.take(Step::Jump(Timestamp::from_nanos(u64::MAX)));
        self.give_back_what_is_due();
        self.take(Step::Expire);
        self.give_back_what_is_due();
        assert_eq!(self.model.next_deadline(), None, "the end of time is past all deadlines");
    }

    /// Whatever is on its way back to the system arrives there.
    fn give_back_what_is_due(&mut self) {
        let mut slices = 0;
        while self.model.slice.is_some() {
            assert!(slices <= self.chaos.config.segment_bytes / ALIGNMENT, "it comes to an end");
            slices += 1;
            self.take(Step::WorkEnds(WorkOutcome::Done));
        }
    }

    /// All free memory goes back, and then there is nothing left to do.
    fn become_idle(&mut self) {
        self.give_back_what_is_due();
        let mut looks = 0;
        while self.store.next_deadline().is_some() {
            assert!(looks < 4, "a store without clients comes to rest");
            looks += 1;
            self.take(Step::Expire);
            self.give_back_what_is_due();
        }
        self.pages.check_all_given_back(&self.model.config);
    }

    fn everybody_reads_all_events(&mut self) {
        for client in self.model.subscribers() {
            let mut reads = 0;
            while !self.model.is_told_all(client) {
                assert!(reads <= self.model.events.len() + 1, "a stream goes on");
                reads += 1;
                self.take(Step::Read(client, 100));
            }
        }
    }

    /// Without clients there are idle objects only. When they are gone the memory is in one piece.
    fn check_empty(&mut self) {
        let stats = self.store.stats();
        let pinned = (stats.pinned, stats.unsealed_objects, stats.waiting_requests, stats.clients);
        assert_eq!(pinned, (0, 0, 0, 0), "everybody has left");
        self.take(Step::Connect(false));
        let client = ClientId(self.last_client);
        self.ask(client, Request::Evict { bytes: u64::MAX });
        let stats = self.store.stats();
        assert_eq!((stats.used, stats.objects), (0, 0), "everything is evicted");
        let (id, capacity) = (chaos::name(0), self.chaos.config.capacity);
        let room = Room { evict: false, timeout: Some(Duration::ZERO) };
        let whole = Request::Create { id, data_size: capacity, metadata_size: 0, room };
        let waits = self.model.slice.is_some();
        let reply = self.ask(client, whole);
        let created = matches!(reply, Some(Reply::Created(_)));
        assert!(created || (waits && reply.is_none()), "one object may fill the store");
        // One slice at most is in its way.
        if !created && self.model.slice.is_some() {
            self.take(Step::WorkEnds(WorkOutcome::Done));
        }
        assert!(self.model.objects.contains_key(&id), "one object may fill the store");
        self.take(Step::Disconnect(client));
        self.become_idle();
        assert_eq!(self.store.space.pool.free_bytes(), self.chaos.config.segment_bytes);
        assert_eq!(self.store.space.pool.free_runs(), 1, "the memory is in one piece");
        assert_eq!(self.store.state(&id), ObjectState::Absent, "nothing is left");
    }

    /// One request, and its answer if it does not wait.
    fn ask(&mut self, client: ClientId, request: Request) -> Option<Reply> {
        self.take(Step::Request { client, wants_reply: true, request });
        let asked = RequestId(self.last_request);
        let (_, _, effects) = self.trace.back().expect("this step is in the trace");
        effects.iter().find_map(|effect| match effect {
            Effect::Reply { request, reply, .. } => (*request == asked).then(|| reply.clone()),
            Effect::Start { .. } | Effect::Stream { .. } | Effect::HangUp { .. } => None,
        })
    }
}
