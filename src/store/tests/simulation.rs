//! The store against the model, through millions of random steps.
//!
//! A run is decided by its seed alone: there is no clock, no thread and no hash order in it. What
//! the store does in slices it does to the end here; in half of the runs the slices are as thin as
//! can be ([`slices`](super::slices) has other requests in between). After each step the model has
//! checked everything that the store did ([`model`](super::model)), the whole observable state is
//! compared, and the store's own invariants are checked. After the chaos comes a second phase
//! without any: everything that still waits gets what it waits for and must be answered, then
//! everybody leaves and the store must be empty again.
//!
//! When a run fails, its seed and its last steps are printed. `PLASMA_SEED=n` runs one seed only,
//! `PLASMA_STEPS` and `PLASMA_SEEDS` set the number of steps of a seed and of seeds;
//! `scripts/simulate.sh` does the same with less typing. What a seed chooses is in [`chaos`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fastrand::Rng;

use super::model::{Call, Fill, Model, Seen};
use crate::eviction::PolicyKind;
use crate::ids::{ClientId, Extent, ObjectId, Slot, Ticket};
use crate::protocol::message::{ObjectInfo, Reply, Request, RequestId};
use crate::store::{Effect, Effects, Peer, Store, StoreCounters, Work, WorkOutcome};
use crate::time::Timestamp;

mod calm;
mod chaos;
mod pages;
mod trace;
pub mod twin;

use chaos::Chaos;
use pages::Pages;
pub use twin::Twin;

/// Half of the seeds that every run of the tests goes through: see [`seeds`].
const SEEDS: u64 = 500;

/// Steps of one seed, the second phase not counted.
const STEPS: usize = 2000;

/// Steps of a slice that does everything that one step of the simulation can lead to.
const THICK_SLICE: usize = 1024;

/// Steps that are remembered to be printed when the next one fails.
const TRACE: usize = 30;

/// Every so many steps the expensive comparisons are made as well.
const THOROUGH_EVERY: usize = 16;

#[test]
fn the_store_does_what_the_model_does() {
    let steps = number_from_environment("PLASMA_STEPS");
    let steps = steps.map_or(STEPS, |steps| usize::try_from(steps).unwrap());
    if let Some(seed) = number_from_environment("PLASMA_SEED") {
        println!("seed={seed} steps={steps}");
        run(seed, steps);
        return;
    }
    let count = number_from_environment("PLASMA_SEEDS").unwrap_or(SEEDS);
    println!("{steps} steps each");
    let seeds = seeds(count);
    let counted = run_all(&seeds, steps);
    println!("{counted:?}");
    if count >= SEEDS {
        let never = counted.iter().filter(|(_, count)| **count == 0);
        let never: Vec<&str> = never.map(|(name, _)| *name).collect();
        // The model knows no limit of memory, and a million events are too many to wait for.
        let expected = ["refusals_request_memory", "subscribers_lagged"];
        assert_eq!(never, expected, "everything else happens in these seeds");
    }
}

/// So many known seeds, and as many others: `scripts/simulate.sh` asks for some that nobody has
/// seen before, and the tests are the same in every run.
pub fn seeds(count: u64) -> Vec<u64> {
    let base = match std::env::var_os("PLASMA_NEW_SEEDS") {
        Some(_) => fastrand::u64(1 << 32..1 << 63),
        None => count,
    };
    println!("seeds 0..{count} and {base}..{}", base + count);
    (0..count).chain(base..base + count).collect()
}

pub fn number_from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// On all processors; the seeds know nothing of each other. Ends at the first failure. Returns what
/// all stores together have counted.
fn run_all(seeds: &[u64], steps: usize) -> BTreeMap<&'static str, u64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, has_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let counted = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if has_failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = catch_unwind(|| run(*seed, steps));
                    has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    let counters = outcome.unwrap_or_else(|failure| resume_unwind(failure));
                    let mut counted = counted.lock().expect("adding does not panic");
                    for (name, count) in counters.named() {
                        *counted.entry(name).or_default() += count;
                    }
                }
            });
        }
    });
    counted.into_inner().expect("adding does not panic")
}

fn run(seed: u64, steps: usize) -> StoreCounters {
    let mut simulation = Simulation::new(seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        simulation.chaos(steps);
        simulation.calm();
    }));
    if let Err(failure) = outcome {
        let (trace, step) = (simulation.trace_text(), simulation.step);
        eprintln!("\n{trace}seed={seed} step={step}");
        eprintln!("to replay it: scripts/simulate.sh {seed} --steps {steps}\n");
        resume_unwind(failure);
    }
    simulation.model.counters
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody connects, who reads the directory or not.
    Connect(bool),
    /// The connection is gone, for whatever reason.
    Disconnect(ClientId),
    Request {
        client: ClientId,
        wants_reply: bool,
        request: Request,
    },
    /// Virtual time goes on; the store is not told.
    Jump(Timestamp),
    Expire,
    /// A subscriber takes at most so many events.
    Read(ClientId, usize),
    /// A reader pins an object in the directory, or takes a pin back.
    Pin(ClientId, ObjectId),
    Unpin(ClientId, ObjectId),
    /// The creator of an unsealed object writes something else than it will have in the end.
    Scribble(ObjectId),
    /// The memory that the store gave back has arrived at the system, or not.
    WorkEnds(WorkOutcome),
}

/// What the store wanted done in one step, and what came of it.
#[derive(Debug, Default)]
struct Carried {
    /// All of it in order, but memory that goes back to the system.
    effects: VecDeque<Effect>,
    fills: VecDeque<Fill>,
    trim: Option<(Ticket, Extent)>,
}

/// The store in its world: clients, memory, readers of the directory, time.
struct Simulation {
    random: Rng,
    chaos: Chaos,
    store: Store,
    twin: Twin,
    model: Model,
    segment: Vec<u8>,
    pages: Pages,
    /// Of the memory that is on its way to the system.
    ticket: Option<Ticket>,
    /// What readers have said, and the store has not heard yet.
    told: Vec<(ClientId, Slot)>,
    /// Said goodbye and not gone yet.
    leaving: BTreeSet<ClientId>,
    last_client: u64,
    last_request: u64,
    /// Requests that have not been answered.
    open: BTreeSet<(ClientId, RequestId)>,
    step: usize,
    trace: VecDeque<(usize, Step, Vec<Effect>)>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let chaos = Chaos::new(&mut random);
        let twin = Twin::default();
        // The segmented policy learns of it when it looks, and the model at once, with other lists.
        twin.state().is_forgetful = chaos.config.policy == PolicyKind::Segmented;
        let bytes = usize::try_from(chaos.config.segment_bytes).unwrap();
        let mut store = Store::with_directory(chaos.config.clone(), Box::new(twin.clone()));
        // The model does a step of the simulation in one go.
        (store.slice.steps, store.slice.answers) = (THICK_SLICE, THICK_SLICE);
        if random.bool() {
            store.slice.steps = random.usize(1..6);
        }
        let mut model = Model::new(chaos.config.clone());
        model.ids_in_one_go = store.slice.steps;
        Self {
            store,
            twin,
            model,
            segment: vec![0; bytes],
            pages: Pages::new(bytes),
            ticket: None,
            told: Vec::new(),
            leaving: BTreeSet::new(),
            last_client: 0,
            last_request: 0,
            open: BTreeSet::new(),
            step: 0,
            trace: VecDeque::new(),
            random,
            chaos,
        }
    }

    fn chaos(&mut self, steps: usize) {
        while self.step < steps {
            let left = self.leaving.first().copied().filter(|_| self.random.u8(..4) == 0);
            let step = match left {
                Some(client) => Some(Step::Disconnect(client)),
                None => {
                    let talking = self.talking();
                    match self.tell(&talking) {
                        None => self.chaos.step(&mut self.random, &self.model, &talking),
                        step => step,
                    }
                }
            };
            if let Some(step) = step {
                self.take(step);
            }
        }
    }

    /// Sooner or later the store hears what a reader has said.
    fn tell(&mut self, talking: &[ClientId]) -> Option<Step> {
        let is_heard = !self.told.is_empty() && self.random.u8(..4) == 0;
        let index = is_heard.then(|| self.random.usize(..self.told.len()))?;
        let (client, slot) = self.told.swap_remove(index);
        let wants_reply = self.random.bool();
        let request = Request::Unpinned { slots: vec![slot] };
        talking.contains(&client).then_some(Step::Request { client, wants_reply, request })
    }

    fn talking(&self) -> Vec<ClientId> {
        let connected = self.model.clients.keys();
        connected.filter(|client| !self.leaving.contains(client)).copied().collect()
    }

    /// One step of the store and of the model; whatever differs is a failure.
    fn take(&mut self, step: Step) {
        self.step += 1;
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back((self.step, step.clone(), Vec::new()));
        let listed: Vec<ObjectId> = self.list().into_iter().map(|info| info.id).collect();
        match step {
            Step::Connect(is_reader) => {
                self.last_client += 1;
                let client = ClientId(self.last_client);
                let peer = Peer { name: format!("client {client}"), pid: 7, uid: 8, gid: 9 };
                self.store.connect(client, peer.clone()).expect("nobody is turned away");
                self.twin.state().may_join = is_reader;
                assert_eq!(self.store.let_read(client), is_reader);
                self.model.connect(client, peer, is_reader);
            }
            Step::Disconnect(client) => {
                self.leaving.remove(&client);
                self.open.retain(|(asker, _)| *asker != client);
                self.told.retain(|(teller, _)| *teller != client);
                let now = self.model.now;
                self.observe(
                    &listed,
                    |store, effects| store.disconnect(client, now, effects),
                    |model, seen| model.disconnect(client, seen),
                );
            }
            Step::Expire => {
                let now = self.model.now;
                self.observe(
                    &listed,
                    |store, effects| store.expire(now, effects),
                    |model, seen| model.expire(seen),
                );
            }
            Step::Request { client, wants_reply, request } => {
                self.request(client, wants_reply, request, &listed);
            }
            Step::Jump(to) => self.model.now = to,
            Step::Read(client, max) => {
                let mut told = Vec::new();
                self.store.next_events(client, max, &mut told);
                self.model.read_events(client, max, &told);
                self.model.is_told_all(client);
            }
            Step::Pin(client, id) => {
                self.twin.state().read(client, id);
                let object = self.model.objects.get_mut(&id).expect("what is read is there");
                object.check_content(&id, &self.segment);
                *object.pins.entry(client).or_default() += 1;
            }
            Step::Unpin(client, id) => {
                let object = self.model.objects.get_mut(&id).expect("what is pinned is there");
                object.check_content(&id, &self.segment);
                let pins = object.pins.get_mut(&client).expect("only what is pinned is unpinned");
                *pins -= 1;
                object.pins.retain(|_, pins| *pins > 0);
                let slot = self.store.objects.find(&id).expect("what is pinned is there");
                self.model.was_used(id, slot);
                if self.twin.state().unpin(client, slot) {
                    self.told.push((client, slot));
                }
            }
            Step::Scribble(id) => {
                let byte = self.random.u8(..);
                self.memory_of(id).fill(byte);
            }
            Step::WorkEnds(outcome) => self.work_ends(outcome, &listed),
        }
        self.compare();
    }

    fn request(
        &mut self,
        client: ClientId,
        wants_reply: bool,
        request: Request,
        listed: &[ObjectId],
    ) {
        self.last_request += 1;
        let number = if wants_reply { RequestId(self.last_request) } else { RequestId::NONE };
        if wants_reply {
            self.open.insert((client, number));
        }
        let call = Call { client, request: number, now: self.model.now };
        match &request {
            Request::Seal { id, .. } => self.write_before_seal(client, *id),
            Request::Disconnect => {
                self.leaving.insert(client);
            }
            _ => {}
        }
        let must_not_change = self.model.must_refuse(call, &request);
        let is_looked_at = must_not_change && self.random.u8(..8) == 0;
        let before = is_looked_at.then(|| self.digest());
        let parked_before = self.model.counters.objects_parked;
        let copy = request.clone();
        self.observe(
            listed,
            |store, effects| store.apply(client, number, copy, call.now, effects),
            |model, seen| model.apply(call, &request, seen),
        );
        // What it learns of readers on the way it keeps: their pins, and when they released what.
        let has_noticed =
            self.model.counters.objects_parked != parked_before || self.twin.state().has_releases();
        if let Some(before) = before.filter(|_| !has_noticed) {
            assert!(before == self.digest(), "a create that was refused has changed something");
        }
    }

    /// The system takes memory, and what was in there is gone, or it does not.
    fn work_ends(&mut self, outcome: WorkOutcome, listed: &[ObjectId]) {
        let (start, end) = self.model.slice.expect("there is memory on its way");
        match outcome {
            WorkOutcome::Done => {
                self.pages.given_back(start, end - start);
                let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                self.segment[range].fill(0);
            }
            WorkOutcome::Failed => self.pages.not_given_back(),
        }
        let ticket = self.ticket.take().expect("work has begun");
        let now = self.model.now;
        self.observe(
            listed,
            |store, effects| store.done(ticket, outcome, now, effects),
            |model, seen| model.work_ended(outcome, seen),
        );
    }

    /// Lets the store do something and the model check what it did.
    fn observe(
        &mut self,
        listed: &[ObjectId],
        act: impl FnOnce(&mut Store, &mut Effects),
        check: impl FnOnce(&mut Model, &mut Seen),
    ) {
        let mut effects = Effects::new();
        let slots_before = &self.slots();
        act(&mut self.store, &mut effects);
        let mut carried = Carried::default();
        self.carry_out(&mut effects, &mut carried);
        // Nothing comes in between, so it does not matter how thin the slices are.
        loop {
            let now = self.model.now;
            if let Some(client) = self.store.busy.keys().next().copied() {
                self.store.go_on(client, now, &mut effects);
            } else if self.store.has_work() {
                self.store.work(now, &mut effects);
            } else {
                break;
            }
            self.carry_out(&mut effects, &mut carried);
        }
        let Carried { effects, fills, trim } = carried;
        let (_, _, remembered) = self.trace.back_mut().expect("this step is in the trace");
        remembered.extend(effects.iter().cloned());
        let work = trim.map(|(ticket, extent)| (ticket, Work::Trim { extent }));
        remembered.extend(work.map(|(ticket, work)| Effect::Start { ticket, work }));
        for effect in &effects {
            if let Effect::Reply { client, request, .. } = effect {
                assert!(self.open.remove(&(*client, *request)), "an answer that nobody waits for");
            }
        }
        let mut directory = self.twin.state();
        let gone = directory.take_gone().into();
        let id_in = |slot: Slot| self.store.objects.get(slot).id;
        let parked = directory.take_newly_asked().into_iter().map(id_in);
        let parked: VecDeque<ObjectId> = parked.collect();
        self.model.tick = directory.tick;
        drop(directory);
        let slots = &self.slots();
        let segment = &mut self.segment;
        let mut seen = Seen {
            effects_count: effects.len(),
            effects,
            fills,
            gone,
            parked_count: parked.len(),
            parked,
            slots_before,
            slots,
            segment,
            listed,
        };
        check(&mut self.model, &mut seen);
        if let Some((ticket, extent)) = trim {
            assert_eq!(self.ticket.replace(ticket), None, "one slice at a time");
            let slice = Some((extent.offset, extent.offset + extent.len));
            assert!([None, slice].contains(&self.model.slice), "one slice at a time");
            self.pages.note_objects(&self.model);
            self.pages.check_may_go(extent, &self.model);
            self.model.slice = slice;
        }
    }

    /// Does what the store wants done, as the server would: puts are filled at once, which fails
    /// now and then.
    fn carry_out(&mut self, effects: &mut Effects, carried: &mut Carried) {
        let mut open = VecDeque::new();
        loop {
            while let Some(effect) = effects.pop() {
                match &effect {
                    Effect::Start { ticket, work: Work::Fill { .. } } => open.push_back(*ticket),
                    Effect::Start { ticket, work: Work::Trim { extent } } => {
                        let former = carried.trim.replace((*ticket, *extent));
                        assert_eq!(former, None, "one slice at a time");
                        continue;
                    }
                    Effect::Reply { .. } | Effect::Stream { .. } | Effect::HangUp { .. } => {}
                }
                carried.effects.push_back(effect);
            }
            let Some(ticket) = open.pop_front() else { return };
            self.store.check_invariants();
            let fails = self.random.u32(..100) < self.chaos.fails_percent;
            let outcome = if fails { WorkOutcome::Failed } else { WorkOutcome::Done };
            carried.fills.push_back(Fill {
                outcome,
                effects_before: carried.effects.len(),
                parked_before: self.twin.state().newly_asked(),
                trim: carried.trim.map(|(_, extent)| extent),
            });
            self.store.done(ticket, outcome, self.model.now, effects);
        }
    }

    /// Where the objects are in the store's tables, which nobody could predict.
    fn slots(&self) -> BTreeMap<ObjectId, Slot> {
        self.store.objects.iter_from(0).map(|(slot, object)| (object.id, slot)).collect()
    }

    /// What its creator does before it seals an object: write all of it.
    fn write_before_seal(&mut self, client: ClientId, id: ObjectId) {
        let object = self.model.objects.get(&id);
        let own = object.filter(|object| object.sealed.is_none() && object.creator == client);
        if let Some(content) = own.map(|object| object.content.clone()) {
            self.memory_of(id).copy_from_slice(&content);
        }
    }

    fn memory_of(&mut self, id: ObjectId) -> &mut [u8] {
        let location = self.model.objects[&id].location;
        let start = usize::try_from(location.offset).unwrap();
        let len = usize::try_from(location.size()).unwrap();
        &mut self.segment[start..start + len]
    }

    fn list(&self) -> Vec<ObjectInfo> {
        let Reply::ObjectList { objects, next: None } = self.store.list(0) else {
            panic!("a short list is one part");
        };
        objects
    }

    /// Everything that the store knows, counters and events aside.
    fn digest(&self) -> String {
        let Store { objects, clients, space, idle, quotas, waits, creates, .. } = &self.store;
        let creates: Vec<_> = creates.iter().collect();
        format!("{objects:?}{clients:?}{space:?}{idle:?}{quotas:?}{waits:?}{creates:?}")
    }

    /// Whether the head of the queue waits for memory in transit the store may judge by what was
    /// idle when it looked; and a create that takes more than a slice counts as one that waited.
    fn take_over_what_is_up_to_the_store(&mut self) {
        let is_spared = self.store.spared_from_deadlines().is_some();
        assert!(is_spared || !self.model.head_needs_transit(), "the head waits for transit");
        assert!(!is_spared || self.model.slice.is_some(), "there is transit to wait for");
        self.model.is_head_spared = is_spared;
        if self.store.slice.steps < THICK_SLICE {
            let queued = self.store.counters.creates_queued;
            assert!(queued >= self.model.counters.creates_queued, "those that wait are counted");
            self.model.counters.creates_queued = queued;
        }
    }

    /// Everything that can be observed is as the model says.
    fn compare(&mut self) {
        self.store.check_invariants();
        self.take_over_what_is_up_to_the_store();
        let (store, model) = (&self.store, &self.model);
        let objects = self.list().into_iter().map(|info| (info.id, info));
        let objects: BTreeMap<_, _> = objects.collect();
        assert_eq!(objects, model.object_infos(), "the objects are those of the model");
        assert_eq!(
            store.list_clients(ClientId(0), None),
            model.list_clients(ClientId(0), None),
            "the clients are those of the model"
        );
        assert_eq!(store.counters, model.counters, "everything is counted");
        self.pages.note_objects(model);
        // When memory is looked at is the store's choice; what comes of it is checked.
        let deadlines = [model.next_deadline(), store.space.next_look()];
        let next_deadline = deadlines.into_iter().flatten().min();
        assert_eq!(store.next_deadline(), next_deadline, "the next deadline is known");
        assert_eq!(store.event_sequence(), model.events.len() as u64, "events are numbered");
        let waiting = model.waiting.iter().map(|waiting| waiting.call);
        let waiting = waiting.chain(model.queue.iter().map(|create| create.call));
        let waiting: BTreeSet<_> = waiting.map(|call| (call.client, call.request)).collect();
        assert_eq!(self.open, waiting, "every request is either answered or waits");
        let published = self.twin.state().published();
        let sealed = model.objects.iter().filter(|(_, object)| object.sealed.is_some());
        let sealed: BTreeMap<_, _> = sealed.map(|(id, object)| (*id, object.location)).collect();
        assert_eq!(published, sealed, "exactly the sealed objects are published");
        if self.step.is_multiple_of(THOROUGH_EVERY) {
            assert_eq!(store.stats(), model.stats(), "the numbers are those of the model");
            for id in sealed.keys() {
                model.objects[id].check_content(id, &self.segment);
            }
        }
    }
}
