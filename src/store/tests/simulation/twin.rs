//! A directory without shared memory: what the real one promises, in maps.
//!
//! Readers pin and unpin without the store's knowledge, between its steps. The twin checks that the
//! store only takes back what it has published, and remembers in which order it did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::ids::{ClientId, Location, ObjectId, Slot};
use crate::store::directory::{Directory, Object};

/// Shared by the store, which publishes, and the simulation, which reads.
#[derive(Debug, Clone, Default)]
pub struct Twin(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    records: BTreeMap<Slot, Record>,
    /// What creators have told: the generation, and whether they have let go.
    pub seals: BTreeMap<(ClientId, Slot), (u64, bool)>,
    /// What the store has noticed in this step, in order.
    noticed: VecDeque<Noticed>,
    /// Clients that go on when their connections have ended.
    pub survivors: BTreeSet<ClientId>,
    published: BTreeMap<Slot, (ObjectId, Location)>,
    /// What has been taken back, and neither restored nor withdrawn.
    retired: BTreeMap<Slot, (ObjectId, Location)>,
    /// What was withdrawn in this step, oldest first.
    gone: Vec<ObjectId>,
    /// How often each client has which slot pinned.
    tables: BTreeMap<ClientId, BTreeMap<Slot, u64>>,
    /// At which tick each client last released what, of those who have gone too until that is read.
    releases: BTreeMap<ClientId, BTreeMap<Slot, u64>>,
    /// Clients do not note when they release something.
    pub is_forgetful: bool,
    /// As the store tells it.
    pub tick: u64,
    /// Slots whose readers have to tell, and those of them that were added in this step, in order.
    asked: BTreeSet<Slot>,
    newly_asked: Vec<Slot>,
    /// Clients that shall get a table when they join.
    pub may_join: bool,
}

/// What the store finds out when it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A creator had told that this object is sealed.
    Sealed(ObjectId),
    /// Whether this client survives.
    Alive(ClientId, bool),
}

/// The same, and how many objects the store had asked readers about before, in this step.
#[derive(Debug, Clone, Copy)]
pub struct Noticed {
    pub notice: Notice,
    pub parked_before: usize,
}

#[derive(Debug)]
struct Record {
    id: ObjectId,
    creator: ClientId,
    generation: u64,
    location: Location,
    /// When it was created, and how long it took to its seal.
    times: (Duration, Duration),
}

impl Twin {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock and goes on")
    }
}

impl State {
    /// What has gone since this was last asked.
    pub fn take_gone(&mut self) -> Vec<ObjectId> {
        assert!(self.retired.is_empty(), "what is retired is restored or withdrawn");
        std::mem::take(&mut self.gone)
    }

    /// What the store has noticed since this was last asked.
    pub fn take_noticed(&mut self) -> VecDeque<Noticed> {
        std::mem::take(&mut self.noticed)
    }

    fn note(&mut self, notice: Notice) {
        let parked_before = self.newly_asked.len();
        self.noticed.push_back(Noticed { notice, parked_before });
    }

    /// A creator seals its object in its table.
    pub fn tell_sealed(&mut self, client: ClientId, slot: Slot, release: bool) {
        let generation = self.records[&slot].generation;
        self.seals.insert((client, slot), (generation, release));
    }

    /// The slots that readers have to tell of since this was last asked.
    pub fn take_newly_asked(&mut self) -> Vec<Slot> {
        std::mem::take(&mut self.newly_asked)
    }

    /// How many there are.
    pub fn newly_asked(&self) -> usize {
        self.newly_asked.len()
    }

    /// What readers find, and where.
    pub fn published(&self) -> BTreeMap<ObjectId, Location> {
        self.published.values().copied().collect()
    }

    /// A reader finds an object and pins it, in this slot.
    pub fn read(&mut self, client: ClientId, id: ObjectId) -> Slot {
        let slot = self.published.iter().find(|(_, (published, _))| *published == id);
        let slot = *slot.expect("only what is published is read").0;
        *self.tables.get_mut(&client).expect("readers have joined").entry(slot).or_default() += 1;
        slot
    }

    /// Whether readers have noted a release.
    pub fn has_releases(&self) -> bool {
        self.releases.values().any(|releases| !releases.is_empty())
    }

    /// A reader takes a pin back. Whether it has to tell.
    pub fn unpin(&mut self, client: ClientId, slot: Slot) -> bool {
        let table = self.tables.get_mut(&client).expect("readers have joined");
        let pins = table.get_mut(&slot).expect("only what is pinned is unpinned");
        *pins -= 1;
        let is_pinned = *pins > 0;
        if !is_pinned {
            table.remove(&slot);
        }
        if !self.is_forgetful {
            self.releases.entry(client).or_default().insert(slot, self.tick);
        }
        if is_pinned {
            return false;
        }
        self.asked.contains(&slot)
    }
}

impl Directory for Twin {
    fn connect(&mut self, _client: ClientId) {}

    fn join(&mut self, client: ClientId) -> bool {
        let mut state = self.state();
        if state.may_join {
            state.tables.insert(client, BTreeMap::new());
        }
        state.may_join
    }

    fn end(&mut self, _client: ClientId) {}

    fn is_alive(&self, client: ClientId) -> bool {
        let mut state = self.state();
        let is_alive = state.survivors.contains(&client);
        state.note(Notice::Alive(client, is_alive));
        is_alive
    }

    fn leave(&mut self, client: ClientId) {
        self.state().tables.remove(&client);
    }

    fn told_sealed(&self, client: ClientId, slot: Slot, generation: u64) -> Option<bool> {
        let state = self.state();
        let (told, released) = *state.seals.get(&(client, slot))?;
        (told == generation).then_some(released)
    }

    fn releases_left(
        &mut self,
        client: ClientId,
        slots: Range<u32>,
        each: &mut dyn FnMut(Slot, u64),
    ) -> Option<Slot> {
        let mut state = self.state();
        let from = Slot(slots.start)..Slot(slots.end);
        let (&slot, &tick) = state.releases.get(&client)?.range(from).next()?;
        each(slot, tick);
        let releases = state.releases.get_mut(&client)?;
        releases.remove(&slot);
        (!releases.is_empty()).then_some(Slot(slot.0 + 1))
    }

    fn last_release(&self, slot: Slot) -> u64 {
        let state = self.state();
        let here = state.releases.iter().filter(|(client, _)| state.tables.contains_key(client));
        here.filter_map(|(_, releases)| releases.get(&slot)).copied().max().unwrap_or(0)
    }

    fn has_joined(&self, client: ClientId) -> bool {
        self.state().tables.contains_key(&client)
    }

    fn create(&mut self, slot: Slot, object: &Object, creator: ClientId, at: Duration) {
        let &Object { id, location, generation, .. } = object;
        let record = Record { id, creator, generation, location, times: (at, at) };
        let former = self.state().records.insert(slot, record);
        assert!(former.is_none(), "what was in the slot has been removed before");
    }

    fn publish(&mut self, slot: Slot, id: &ObjectId, at: Duration) {
        let mut state = self.state();
        let record = state.records.get_mut(&slot).expect("what is sealed was created");
        assert_eq!(record.id, *id, "it is the object of its record");
        record.times.1 = at - record.times.0;
        let object = (record.id, record.location);
        let (creator, generation) = (record.creator, record.generation);
        if state.seals.get(&(creator, slot)).is_some_and(|(told, _)| *told == generation) {
            state.note(Notice::Sealed(*id));
        }
        let former = state.published.insert(slot, object);
        assert!(former.is_none_or(|former| former == object), "it was removed before");
    }

    fn times(&self, slot: Slot) -> (Duration, Duration) {
        self.state().records[&slot].times
    }

    fn retire(&mut self, slot: Slot) -> Result<(), ClientId> {
        if let Some(client) = self.pinned_by(slot) {
            return Err(client);
        }
        let mut state = self.state();
        if let Some(object) = state.published.remove(&slot) {
            let former = state.retired.insert(slot, object);
            assert_eq!(former, None, "an object is retired once");
        }
        Ok(())
    }

    fn restore(&mut self, slot: Slot) {
        let mut state = self.state();
        if let Some(object) = state.retired.remove(&slot) {
            let former = state.published.insert(slot, object);
            assert_eq!(former, None, "nothing else is in the slot of what is restored");
        }
    }

    fn remove(&mut self, slot: Slot, id: &ObjectId) {
        assert_eq!(self.pinned_by(slot), None, "what is pinned does not go");
        let mut state = self.state();
        let record = state.records.remove(&slot);
        assert_eq!(record.map(|record| record.id), Some(*id), "every object has its record");
        let retired = state.retired.remove(&slot);
        assert!(retired.is_none_or(|(retired, _)| retired == *id), "it has its own slot");
        assert!(!state.published.contains_key(&slot), "it is retired before it goes");
        assert!(!state.asked.contains(&slot), "nobody is asked about what has gone");
        if retired.is_some() {
            state.gone.push(*id);
        }
    }

    fn ask_to_tell(&mut self, slot: Slot) {
        let mut state = self.state();
        if state.asked.insert(slot) {
            state.newly_asked.push(slot);
        }
    }

    fn stop_asking(&mut self, slot: Slot) {
        self.state().asked.remove(&slot);
    }

    fn pinned_by(&self, slot: Slot) -> Option<ClientId> {
        let state = self.state();
        let mut tables = state.tables.iter();
        tables.find(|(_, table)| table.contains_key(&slot)).map(|(client, _)| *client)
    }

    fn tables(&self) -> usize {
        self.state().tables.len()
    }

    fn has_pinned(&self, client: ClientId, slot: Slot) -> bool {
        self.state().tables.get(&client).is_some_and(|table| table.contains_key(&slot))
    }

    fn pin(&mut self, client: ClientId, slot: Slot) -> bool {
        let mut state = self.state();
        let Some(table) = state.tables.get_mut(&client) else { return false };
        *table.entry(slot).or_default() += 1;
        true
    }

    fn pins(&self, slots: Range<u32>, each: &mut dyn FnMut(ClientId, Slot)) {
        let state = self.state();
        for (client, table) in &state.tables {
            for slot in table.keys().filter(|slot| slots.contains(&slot.0)) {
                each(*client, *slot);
            }
        }
    }

    fn pins_of(&self, client: ClientId, slots: Range<u32>, each: &mut dyn FnMut(Slot)) {
        let state = self.state();
        let pinned = state.tables.get(&client).into_iter().flat_map(BTreeMap::keys).copied();
        pinned.filter(|slot| slots.contains(&slot.0)).for_each(each);
    }

    fn advance(&mut self, tick: u64) {
        self.state().tick = tick;
    }
}
