//! The directory in shared memory, and the pin tables of those who read it: the store's side.
//!
//! The directory is made at the start, a pin table when a client that can read connects. Its
//! descriptor is kept until it has been sent, and is closed then: a table lives as long as it is
//! mapped here or there. So a connection costs one descriptor, as without, once its client has
//! taken what it was sent. What a client writes into its table is a number like any other; the
//! worst that it can say is that it has something pinned.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory_limit::available_bytes;
use crate::directory::layout::{LIFE, LIFE_WORDS};
use crate::directory::protocol::{AllSteps, pin_for, short_tick};
use crate::directory::{DirectoryWords, Layout, PinTable};
use crate::ids::{ClientId, Location, ObjectId, SegmentId, Slot};
use crate::limits;
use crate::shm::life_mark::LifeMark;
use crate::shm::words::Words;
use crate::shm::{Access, Backing, Segment};
use crate::store::directory::Directory;

const WORD_BYTES: u64 = size_of::<u64>() as u64;

/// The directory of a store whose clients are other processes.
#[derive(Debug)]
pub struct SharedDirectory {
    words: DirectoryWords,
    /// In the order of the clients' numbers.
    tables: Vec<(ClientId, PinTable)>,
    /// Of clients that have gone, until they have been read.
    left: BTreeMap<ClientId, PinTable>,
    unsent: UnsentTables,
    tick: u64,
}

/// The files of pin tables that their clients have not got yet.
#[derive(Debug, Clone, Default)]
pub struct UnsentTables(Arc<Mutex<BTreeMap<ClientId, Arc<Segment>>>>);

/// What the server needs to let clients read the directory.
#[derive(Debug)]
pub struct DirectoryFiles {
    /// The directory.
    pub directory: Arc<Segment>,
    /// The pin tables that are still to be sent.
    pub unsent: UnsentTables,
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

impl UnsentTables {
    /// The file of a client's table, unless it has been sent.
    pub fn get(&self, client: ClientId) -> Option<Arc<Segment>> {
        self.lock().get(&client).cloned()
    }

    /// The client has it, or never will.
    pub fn forget(&self, client: ClientId) {
        self.lock().remove(&client);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Arc<Segment>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a directory, and its hash table ready if there is memory in plenty: that takes 16 to 32
/// bytes for each slot.
///
/// # Errors
/// There is no memory for it.
pub fn create(layout: Layout) -> io::Result<(SharedDirectory, DirectoryFiles)> {
    let count = layout.directory_words();
    let directory = file(SegmentId::DIRECTORY, count)?;
    let words = Words::map(directory.descriptor(true), count, Access::ReadWrite)?;
    let words = DirectoryWords::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
    make_ready(&words, available_bytes(Path::new("/")));
    let unsent = UnsentTables::default();
    let (tables, left) = (Vec::new(), BTreeMap::new());
    let shared = SharedDirectory { words, tables, left, unsent: unsent.clone(), tick: 0 };
    Ok((shared, DirectoryFiles { directory: Arc::new(directory), unsent }))
}

/// The first objects come quicker then. It is no reason not to start: the memory may be in use by
/// others, or be set aside for huge pages.
fn make_ready(words: &DirectoryWords, available: u64) {
    let bytes = words.layout().entries_at() as u64 * WORD_BYTES;
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

/// Shared memory for so many words, all zero. Takes memory as it is touched.
fn file(id: SegmentId, words: usize) -> io::Result<Segment> {
    Segment::create(id, &Backing::Memfd, words as u64 * WORD_BYTES).map_err(io::Error::other)
}

impl SharedDirectory {
    fn table(&self, client: ClientId) -> Option<&PinTable> {
        let index = self.tables.binary_search_by_key(&client, |(client, _)| *client).ok()?;
        self.tables.get(index).map(|(_, table)| table)
    }

    fn make_table(&self, client: ClientId) -> io::Result<PinTable> {
        let layout = self.words.layout();
        let count = layout.pin_table_words();
        let segment = file(SegmentId::PIN_TABLE, count)?;
        let words = Words::map(segment.descriptor(true).as_fd(), count, Access::ReadWrite)?;
        let table = PinTable::new(words, layout).ok_or(io::ErrorKind::InvalidData)?;
        self.unsent.lock().insert(client, Arc::new(segment));
        Ok(table)
    }
}

impl Directory for SharedDirectory {
    fn join(&mut self, client: ClientId) -> bool {
        match self.make_table(client) {
            Ok(table) => {
                // Clients say who they are in whatever order they come to it.
                let later = self.tables.partition_point(|(other, _)| *other < client);
                self.tables.insert(later, (client, table));
                true
            }
            Err(error) => {
                log::warn!("client {client} reads by message, there is no pin table: {error}");
                false
            }
        }
    }

    fn leave(&mut self, client: ClientId) {
        self.unsent.forget(client);
        if let Ok(index) = self.tables.binary_search_by_key(&client, |(client, _)| *client) {
            let (client, table) = self.tables.remove(index);
            // Whoever pins something from now on, and looks, sees that it is void.
            table.end();
            self.left.insert(client, table);
        }
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
        let ticks = self.tables.iter().map(|(_, table)| table.last_release(slot));
        ticks.map(|tick| full_tick(tick, self.tick)).max().unwrap_or(0)
    }

    fn has_joined(&self, client: ClientId) -> bool {
        self.table(client).is_some()
    }

    fn publish(&mut self, slot: Slot, id: &ObjectId, location: &Location) {
        let Some(entry) = self.words.entry(slot).filter(|entry| !entry.is_published()) else {
            return;
        };
        if self.words.insert(id, slot) {
            entry.publish::<AllSteps>(id, location);
        }
    }

    fn retire(&mut self, slot: Slot) -> Result<(), ClientId> {
        let Some(entry) = self.words.entry(slot) else { return Ok(()) };
        entry.retire::<AllSteps>();
        match self.pinned_by(slot) {
            None => Ok(()),
            Some(client) => {
                entry.restore();
                Err(client)
            }
        }
    }

    fn restore(&mut self, slot: Slot) {
        if let Some(entry) = self.words.entry(slot) {
            entry.restore();
        }
    }

    fn withdraw(&mut self, slot: Slot, id: &ObjectId) {
        if let Some(entry) = self.words.entry(slot)
            && entry.withdraw()
        {
            let is_removed = self.words.remove(id, slot);
            debug_assert!(is_removed, "what is published can be found");
        }
    }

    fn ask_to_tell(&mut self, slot: Slot) {
        if let Some(entry) = self.words.entry(slot) {
            entry.ask_to_tell();
        }
    }

    fn stop_asking(&mut self, slot: Slot) {
        if let Some(entry) = self.words.entry(slot) {
            entry.stop_asking();
        }
    }

    fn pinned_by(&self, slot: Slot) -> Option<ClientId> {
        let mut tables = self.tables.iter();
        tables.find(|(_, table)| table.is_pinned(slot)).map(|(client, _)| *client)
    }

    fn tables(&self) -> usize {
        self.tables.len()
    }

    fn has_pinned(&self, client: ClientId, slot: Slot) -> bool {
        self.table(client).is_some_and(|table| table.is_pinned(slot))
    }

    fn pin(&mut self, client: ClientId, slot: Slot) -> bool {
        self.table(client).and_then(|table| table.pins(slot)).is_some_and(pin_for)
    }

    fn pins(&self, slots: Range<u32>, each: &mut dyn FnMut(ClientId, Slot)) {
        for (client, table) in &self.tables {
            table.pinned(slots.clone()).for_each(|slot| each(*client, slot));
        }
    }

    fn pins_of(&self, client: ClientId, slots: Range<u32>, each: &mut dyn FnMut(Slot)) {
        if let Some(table) = self.table(client) {
            table.pinned(slots).for_each(each);
        }
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
        let layout = Layout::new(1 << 16).unwrap();
        let bytes = layout.entries_at() as u64 * WORD_BYTES;
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
