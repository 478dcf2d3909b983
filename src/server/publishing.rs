//! The directory in shared memory, and the tables of those who read it: the store's side.
//!
//! The directory is made at the start, a table when a client that can read connects. Descriptors
//! are kept until they have been sent, and are closed then: a table lives as long as it is
//! mapped here or there. So a connection costs one descriptor, as without, once its client has
//! taken what it was sent. What a client writes into its table is a number like any other; the
//! worst that it can say is that it has something pinned, or that it has sealed what is its own.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::memory_limit::available_bytes;
use crate::directory::layout::{LIFE, LIFE_WORDS};
use crate::directory::protocol::{AllSteps, Created, Details, Record, pin_for, short_tick};
use crate::directory::{ClientTable, DirectoryWords, Layout, Origin};
use crate::ids::{ClientId, ObjectId, SegmentId, Slot};
use crate::limits;
use crate::shm::life_lock::LifeLocks;
use crate::shm::life_mark::LifeMark;
use crate::shm::words::Words;
use crate::shm::{Access, Backing, Segment};
use crate::store::directory::{Directory, Object};

const WORD_BYTES: u64 = size_of::<u64>() as u64;

/// The records of a store whose clients are other processes, and the tables of these.
#[derive(Debug)]
pub struct SharedDirectory {
    words: DirectoryWords,
    /// Whether clients may read it.
    is_offered: bool,
    tables: BTreeMap<ClientId, ClientTable>,
    /// Of clients that have gone, until they have been read.
    left: BTreeMap<ClientId, ClientTable>,
    lives: LifeLocks,
    /// The file behind `words`.
    pub file: Arc<Segment>,
    /// What is still to be sent.
    pub unsent: Unsent,
    tick: u64,
}

/// What clients have been promised and have not got yet.
#[derive(Debug, Clone, Default)]
pub struct Unsent(Arc<Mutex<BTreeMap<ClientId, Parcel>>>);

/// What is made for one client.
#[derive(Debug, Clone, Default)]
pub struct Parcel {
    /// The file of its table.
    pub table: Option<Arc<Segment>>,
    /// The descriptor whose lock says that it lives.
    pub life: Option<Arc<OwnedFd>>,
}

/// Says to all readers of a directory, as long as it exists, that the store lives, which runs in
/// this thread. `None` if the kernel cannot tell them if it is killed.
pub fn mark_life(directory: &Segment) -> Option<LifeMark> {
    let words = Words::map(directory.descriptor(true), LIFE_WORDS, Access::ReadWrite);
    let mark = words.and_then(|words| LifeMark::set(words, LIFE));
    mark.inspect_err(|error| {
        log::warn!("if this store is killed, its clients find out when they need it: {error}");
    })
    .ok()
}

impl Unsent {
    /// What has been made for a client and has not been sent.
    pub fn parcel(&self, client: ClientId) -> Parcel {
        self.lock().get(&client).cloned().unwrap_or_default()
    }

    /// The client has all of it, or never will.
    pub fn forget(&self, client: ClientId) {
        self.lock().remove(&client);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Parcel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a directory, and its hash table ready if there is memory in plenty and clients may read
/// it: that takes 16 to 32 bytes for each slot.
///
/// # Errors
/// There is no memory for it.
pub fn create(layout: Layout, origin: &Origin, is_offered: bool) -> io::Result<SharedDirectory> {
    let count = layout.directory_words();
    let file = file(SegmentId::DIRECTORY, count)?;
    let words = Words::map(file.descriptor(true), count, Access::ReadWrite)?;
    let words = DirectoryWords::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
    words.write_header(origin);
    if is_offered {
        make_ready(&words, available_bytes(Path::new("/")));
    }
    Ok(SharedDirectory {
        words,
        is_offered,
        tables: BTreeMap::new(),
        left: BTreeMap::new(),
        lives: LifeLocks::create()?,
        file: Arc::new(file),
        unsent: Unsent::default(),
        tick: 0,
    })
}

/// The first objects come quicker then. It is no reason not to start: the memory may be in use by
/// others, or be set aside for huge pages.
fn make_ready(words: &DirectoryWords, available: u64) {
    let bytes = words.layout().records_at() as u64 * WORD_BYTES;
    if bytes > available / limits::TABLE_READY_DIVISOR {
        log::info!("the directory's {bytes} bytes of hash table come when they are touched");
    } else if let Err(error) = words.make_ready() {
        log::warn!("the directory's hash table comes when it is touched: {error}");
    }
}

/// The last tick until now of which a pin word has so much; zero if it was never.
const fn full_tick(short: u64, now: u64) -> u64 {
    if short == 0 { 0 } else { now.saturating_sub(short_tick(now.wrapping_sub(short))) }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Shared memory for so many words, all zero. Takes memory as it is touched.
fn file(id: SegmentId, words: usize) -> io::Result<Segment> {
    Segment::create(id, &Backing::Memfd, words as u64 * WORD_BYTES).map_err(io::Error::other)
}

impl SharedDirectory {
    fn record(&self, slot: Slot) -> Record<'_, AtomicU64> {
        self.words.record(slot).expect("there is a record for each object that there can be")
    }

    fn details(&self, slot: Slot) -> Details<'_, AtomicU64> {
        self.words.details(slot).expect("each record has two halves")
    }

    fn make_table(&self, client: ClientId) -> io::Result<ClientTable> {
        let layout = self.words.layout();
        let count = layout.client_table_words();
        let segment = file(SegmentId::CLIENT_TABLE, count)?;
        let words = Words::map(segment.descriptor(true).as_fd(), count, Access::ReadWrite)?;
        let table = ClientTable::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
        self.unsent.lock().entry(client).or_default().table = Some(Arc::new(segment));
        Ok(table)
    }
}

impl Directory for SharedDirectory {
    fn connect(&mut self, client: ClientId) {
        match self.lives.grant(client.0) {
            Ok(life) => {
                self.unsent.lock().entry(client).or_default().life = Some(Arc::new(life));
            }
            // It is taken for dead when its connection ends.
            Err(error) => log::warn!("nobody will see whether client {client} lives on: {error}"),
        }
    }

    fn join(&mut self, client: ClientId) -> bool {
        if !self.is_offered {
            return false;
        }
        match self.make_table(client) {
            Ok(table) => {
                self.tables.insert(client, table);
                true
            }
            Err(error) => {
                log::warn!("client {client} reads by message, there is no table for it: {error}");
                false
            }
        }
    }

    fn end(&mut self, client: ClientId) {
        self.unsent.forget(client);
        if let Some(table) = self.tables.get(&client) {
            table.end();
        }
    }

    fn is_alive(&self, client: ClientId) -> bool {
        self.lives.is_held(client.0)
    }

    fn leave(&mut self, client: ClientId) {
        if let Some(table) = self.tables.remove(&client) {
            self.left.insert(client, table);
        }
    }

    fn told_sealed(&self, client: ClientId, slot: Slot, generation: u64) -> Option<bool> {
        let told = self.tables.get(&client)?.told_sealed(slot, generation);
        told.map(|told| told.released)
    }

    fn releases_left(
        &mut self,
        client: ClientId,
        slots: Range<u32>,
        each: &mut dyn FnMut(Slot, u64),
    ) -> Option<Slot> {
        let next = self.left.get(&client)?.releases(slots, |slot, tick| {
            each(slot, full_tick(tick, self.tick));
        });
        if next.is_none() {
            self.left.remove(&client);
        }
        next
    }

    fn last_release(&self, slot: Slot) -> u64 {
        let ticks = self.tables.values().map(|table| table.last_release(slot));
        ticks.map(|tick| full_tick(tick, self.tick)).max().unwrap_or(0)
    }

    fn has_joined(&self, client: ClientId) -> bool {
        self.tables.contains_key(&client)
    }

    fn create(&mut self, slot: Slot, object: &Object, creator: ClientId, at: Duration) {
        let Object { id, location, generation, .. } = object;
        let (generation, location) = (*generation, *location);
        let created = Created { generation, id, location, creator, at: nanos(at) };
        self.record(slot).create(&self.details(slot), &created);
    }

    fn publish(&mut self, slot: Slot, id: &ObjectId, at: Duration) {
        let details = self.details(slot);
        let (created, _) = details.times();
        details.set_construction(nanos(at).saturating_sub(created));
        self.words.insert(id, slot);
        self.record(slot).seal::<AllSteps>();
    }

    fn times(&self, slot: Slot) -> (Duration, Duration) {
        let (created, construction) = self.details(slot).times();
        (Duration::from_nanos(created), Duration::from_nanos(construction))
    }

    fn retire(&mut self, slot: Slot) -> Result<(), ClientId> {
        self.record(slot).retire::<AllSteps>();
        match self.pinned_by(slot) {
            None => Ok(()),
            Some(client) => {
                self.record(slot).restore();
                Err(client)
            }
        }
    }

    fn restore(&mut self, slot: Slot) {
        self.record(slot).restore();
    }

    fn remove(&mut self, slot: Slot, id: &ObjectId) {
        self.record(slot).remove();
        self.words.remove(id, slot);
    }

    fn ask_to_tell(&mut self, slot: Slot) {
        self.record(slot).ask_to_tell();
    }

    fn stop_asking(&mut self, slot: Slot) {
        self.record(slot).stop_asking();
    }

    fn pinned_by(&self, slot: Slot) -> Option<ClientId> {
        let mut tables = self.tables.iter();
        tables.find(|(_, table)| table.is_pinned(slot)).map(|(client, _)| *client)
    }

    fn tables(&self) -> usize {
        self.tables.len()
    }

    fn has_pinned(&self, client: ClientId, slot: Slot) -> bool {
        self.tables.get(&client).is_some_and(|table| table.is_pinned(slot))
    }

    fn pin(&mut self, client: ClientId, slot: Slot) -> bool {
        self.tables.get(&client).and_then(|table| table.pins(slot)).is_some_and(pin_for)
    }

    fn pins(&self, slots: Range<u32>, each: &mut dyn FnMut(ClientId, Slot)) {
        for (client, table) in &self.tables {
            table.pinned(slots.clone()).for_each(|slot| each(*client, slot));
        }
    }

    fn pins_of(&self, client: ClientId, slots: Range<u32>, each: &mut dyn FnMut(Slot)) {
        if let Some(table) = self.tables.get(&client) {
            table.pinned(slots).for_each(each);
        }
    }

    fn has_pins(&self, client: ClientId, slots: Range<u32>) -> bool {
        self.tables.get(&client).is_some_and(|table| table.has_pins(slots))
    }

    fn advance(&mut self, tick: u64) {
        self.tick = tick;
        self.words.set_tick(tick);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn the_hash_table_is_made_ready_only_where_there_is_memory_in_plenty() {
        let layout = Layout::new(1 << 16, 1 << 16).unwrap();
        let bytes = layout.records_at() as u64 * WORD_BYTES;
        for (available, is_ready) in [(0, false), (16 * bytes - 1, false), (16 * bytes, true)] {
            let count = layout.directory_words();
            let file = file(SegmentId::DIRECTORY, count).unwrap();
            let words = Words::map(file.descriptor(true), count, Access::ReadWrite).unwrap();
            let words = DirectoryWords::new(words, layout).unwrap();
            let allocated =
                || u64::try_from(fstat(file.descriptor(true)).unwrap().st_blocks).unwrap() * 512;
            let before = allocated();
            make_ready(&words, available);
            let taken = allocated() - before;
            assert_eq!(taken >= bytes / 2, is_ready, "{taken} bytes with {available} available");
        }
    }
}
