//! What is held: objects whose bytes are read in place, and what ends each hold.
//!
//! The store counts how often a connection holds an object: once for each time that a reply granted
//! it. Here each [`Held`] stands for exactly one of these, and gives back exactly one when it is
//! dropped. The [`HeldTable`] lets a second get of the same object share the first one's `Held`,
//! but nothing depends on it being up to date: when a drop in one thread races with a get in
//! another, there are two holds for a moment, and the store counts them. An object that the
//! directory has is pinned instead, each time that it is asked for, and no table of ours knows of
//! it.
//!
//! Dropping a buffer waits for nothing, not even for room in the socket. A forked child's copies
//! give nothing back.
//!
//! How the store is asked for objects is not known here.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Bound, Deref, Range, RangeBounds};
use std::sync::{Arc, Mutex, Weak};

use foldhash::fast::RandomState;
use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::Result;
use super::connection::Connection;
use super::direct::{Attempt, DirectReader, Found};
use super::transport::{ProcessLocal, lock};
use crate::ids::{Extent, Location, ObjectId, Slot};
use crate::protocol::message::{Granted, Reply};
use crate::shm::{Access, View};

/// Objects that are looked for in the directory before the first of them is pinned.
const LOOKS_TOGETHER: usize = 16;

/// Data from this size on is hashed in parts, for which the original had threads.
const IN_PARTS_BYTES_MIN: usize = 1 << 20;

/// Equal parts, and behind them the rest.
const PARTS: usize = 8;

const SEED: u64 = 0;

/// A sealed object, readable in place, without a copy.
///
/// The store neither evicts nor removes the object as long as there is such a buffer, or a clone or
/// slice of it. That holds after [`Client::disconnect`](super::Client::disconnect) too; the
/// connection itself ends with the last buffer. If the store dies, the memory stays mapped and the
/// bytes stay as they are.
///
/// # After a fork
///
/// A child inherits its parent's buffers and can read them. Dropping them there releases nothing.
/// The object stays pinned as long as the *parent* keeps its own buffer: the hold is the parent's
/// to give back. If the parent dies first, all that it held stays until its children have gone as
/// well, whatever descriptors they close.
///
/// ```
/// # let store = plasma::testing::store();
/// use plasma::{Client, ObjectId};
///
/// let client = Client::connect(store.path())?;
/// let id = ObjectId::random();
/// client.put(id, b"payload", b"kind")?;
///
/// let buffer = client.get_one(id, None)?.expect("it was put");
/// assert_eq!(&buffer[..], b"payload");
/// assert_eq!(buffer.metadata(), b"kind");
/// assert_eq!(buffer.id(), id);
/// assert_eq!(buffer.data().as_ptr() as usize % 64, 0);
/// # Ok::<(), plasma::client::Error>(())
/// ```
#[derive(Clone)]
pub struct ObjectBuffer {
    held: Arc<Held>,
}

impl ObjectBuffer {
    /// The name of the object.
    #[must_use]
    pub fn id(&self) -> ObjectId {
        self.held.id
    }

    /// The data. Starts at a multiple of 64 bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.held.data()
    }

    /// The metadata. Its address has no alignment.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        self.held.bytes.get(self.held.data_len..).unwrap_or_default()
    }

    /// Drops many buffers with one message, where dropping one after the other sends as many. What
    /// clones and slices of them hold stays held.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::{ObjectBuffer, ObjectId};
    ///
    /// let ids: Vec<_> = (0..1000).map(|_| ObjectId::random()).collect();
    /// client.put_batch(&ids.iter().map(|id| (*id, b"small", b"")).collect::<Vec<_>>())?;
    /// let buffers = client.get(&ids, None)?;
    /// ObjectBuffer::release_all(buffers.into_iter().flatten());
    /// assert_eq!(client.stats()?.pinned, 0);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn release_all(buffers: impl IntoIterator<Item = Self>) {
        // What is pinned needs no message, and goes at once.
        let is_counted = |held: &Held| held.hold == Hold::Counted;
        let last_ones = buffers.into_iter().filter_map(|buffer| Arc::into_inner(buffer.held));
        let mut last_ones: Vec<_> = last_ones.filter(is_counted).collect();
        while let Some(held) = last_ones.first() {
            let connection = Arc::clone(held.connection());
            let of_connection = |held: &mut Held| Arc::ptr_eq(held.connection(), &connection);
            let mut released = Vec::new();
            for mut held in last_ones.extract_if(.., of_connection) {
                connection.forget(&held.id);
                released.push((held.id, 1));
                held.hold = Hold::GivenBack;
            }
            connection.transport.release(&released);
        }
    }

    /// The original's digest of data and metadata: XXH64 as 8 bytes, little-endian. Data of a
    /// mebibyte or more is cut into eight parts and a rest, and their hashes are hashed.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// # let id = plasma::ObjectId::random();
    /// client.put(id, b"abc", b"d")?;
    /// let digest = client.get_one(id, None)?.expect("it was put").digest();
    /// assert_eq!(digest, [0xcc, 0x92, 0x5d, 0xd2, 0xb0, 0x27, 0x03, 0xde]);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    #[must_use]
    pub fn digest(&self) -> [u8; 8] {
        digest(self.data(), self.metadata()).to_le_bytes()
    }

    /// A part of the data that owns its share of the hold, for code that wants to own its memory.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// # let id = plasma::ObjectId::random();
    /// client.put(id, b"header,body", b"")?;
    /// let body = client.get_one(id, None)?.expect("it was put").slice(7..);
    /// assert_eq!(&body[..], b"body");
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Panics
    /// If the range is not inside the data.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> ObjectSlice {
        let size = self.data().len();
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => size,
        };
        assert!(start <= end && end <= size, "slice {start}..{end} of {size} bytes of data");
        ObjectSlice { held: Arc::clone(&self.held), range: start..end }
    }
}

impl Deref for ObjectBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.data()
    }
}

impl AsRef<[u8]> for ObjectBuffer {
    fn as_ref(&self) -> &[u8] {
        self.data()
    }
}

impl fmt::Debug for ObjectBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectBuffer")
            .field("id", &self.held.id)
            .field("data_size", &self.data().len())
            .field("metadata_size", &self.metadata().len())
            .finish_non_exhaustive()
    }
}

/// Some of the data of a held object. Made by [`ObjectBuffer::slice`]; what is said there about
/// holds is true here.
#[derive(Clone)]
pub struct ObjectSlice {
    held: Arc<Held>,
    range: Range<usize>,
}

impl Deref for ObjectSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.held.data()[self.range.clone()]
    }
}

impl AsRef<[u8]> for ObjectSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for ObjectSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectSlice")
            .field("id", &self.held.id)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// One hold of this connection on an object. Gives it back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    id: ObjectId,
    /// The data, and behind it the metadata. Keeps the connection, and with it the hold, alive.
    bytes: View<Connection>,
    data_len: usize,
    hold: Hold,
}

/// How an object is held, and so how it is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// The store counts it.
    Counted,
    /// By a pin on this slot of our own table.
    Pinned(Slot),
    /// Somebody else sees to it.
    GivenBack,
}

impl Held {
    const fn connection(&self) -> &Arc<Connection> {
        self.bytes.keeper()
    }

    fn data(&self) -> &[u8] {
        self.bytes.get(..self.data_len).unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection().give_back(self.id, self.hold);
    }
}

/// What is held by count, for whoever gets it once more.
pub(super) type HeldTable = ProcessLocal<Mutex<HashMap<ObjectId, Weak<Held>, RandomState>>>;

impl Connection {
    /// What there is of these objects as far as it is known without asking the store: what is in
    /// its directory, and what is held.
    pub(super) fn find_here(
        self: &Arc<Self>,
        ids: &[ObjectId],
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        let mut found = Vec::with_capacity(ids.len());
        self.find_in_directory(ids, |object| {
            found.push(object);
            true
        })?;
        found.resize(ids.len(), None);
        let mut missing =
            ids.iter().zip(&mut found).filter(|(_, found)| found.is_none()).peekable();
        if missing.peek().is_some()
            && let Some(held) = self.held.get().map(lock)
        {
            for (id, found) in missing {
                *found = held.get(id).and_then(Weak::upgrade).map(|held| ObjectBuffer { held });
            }
        }
        Ok(found)
    }

    /// All of these objects, if the directory has them.
    pub(super) fn get_at_hand(
        self: &Arc<Self>,
        ids: &[ObjectId],
    ) -> Result<Option<Vec<ObjectBuffer>>> {
        let mut found = Vec::with_capacity(ids.len());
        self.find_in_directory(ids, |object| object.map(|object| found.push(object)).is_some())?;
        Ok((found.len() == ids.len()).then_some(found))
    }

    /// The object, if the directory has it.
    pub(super) fn find_one_in_directory(
        self: &Arc<Self>,
        id: &ObjectId,
    ) -> Result<Option<ObjectBuffer>> {
        let Some(direct) = self.transport.directory() else { return Ok(None) };
        match direct.look(id) {
            Some(seen) => self.pin(direct, *id, seen),
            None => Ok(None),
        }
    }

    /// Says of one object after another what the directory has, until `each` wants no more.
    fn find_in_directory(
        self: &Arc<Self>,
        ids: &[ObjectId],
        mut each: impl FnMut(Option<ObjectBuffer>) -> bool,
    ) -> Result<()> {
        let mut seen = [None; LOOKS_TOGETHER];
        for ids in ids.chunks(LOOKS_TOGETHER) {
            // Meanwhile another thread may have given something back, or the store have ended.
            let Some(direct) = self.transport.directory() else { return Ok(()) };
            for (seen, id) in seen.iter_mut().zip(ids) {
                *seen = direct.look(id);
            }
            for (seen, id) in seen.iter().zip(ids) {
                let object = seen.map_or(Ok(None), |seen| self.pin(direct, *id, seen))?;
                if !each(object) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn pin(
        self: &Arc<Self>,
        direct: &DirectReader,
        id: ObjectId,
        seen: Found<'_>,
    ) -> Result<Option<ObjectBuffer>> {
        match direct.pin(seen) {
            Attempt::Pinned(slot, location) => {
                self.hold(id, &location, Hold::Pinned(slot)).map(Some)
            }
            Attempt::Missed => Ok(None),
            Attempt::MissedAndTell(slot) => {
                self.transport.tell_unpinned(slot);
                Ok(None)
            }
        }
    }

    /// Whether the object is there, if that is known without asking the store.
    pub(super) fn has_here(&self, id: &ObjectId) -> bool {
        self.transport.directory().is_some_and(|direct| direct.contains(id)) || self.holds(id)
    }

    pub(super) fn holds(&self, id: &ObjectId) -> bool {
        let is_held = |held: &Weak<Held>| held.strong_count() > 0;
        self.transport.direct().is_some_and(|direct| direct.has_pinned(id))
            || self.held.get().map(lock).is_some_and(|held| held.get(id).is_some_and(is_held))
    }

    /// Takes over what the store has granted to a get of these, one hold or pin for each.
    pub(super) fn admit(
        self: &Arc<Self>,
        ids: &[ObjectId],
        reply: Reply,
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        let granted = match reply {
            Reply::Granted(granted) if granted.len() == ids.len() => granted,
            other => return Err(self.unexpected("get", &other)),
        };
        // All of them first, so that those that are not used give themselves back.
        let buffers = ids.iter().zip(granted).map(|(id, granted)| {
            let Granted { location, pin } = granted?;
            Some(self.hold(*id, &location, pin.map_or(Hold::Counted, Hold::Pinned)))
        });
        let buffers: Vec<_> = buffers.collect();
        let buffers: Result<Vec<_>> = buffers.into_iter().map(Option::transpose).collect();
        let mut buffers = buffers?;
        // Those that are not needed must be dropped after the lock has been given up.
        let _surplus = self.share(buffers.iter_mut().flatten());
        Ok(buffers)
    }

    #[inline]
    fn hold(
        self: &Arc<Self>,
        id: ObjectId,
        location: &Location,
        hold: Hold,
    ) -> Result<ObjectBuffer> {
        match self.view(id, location) {
            Ok((bytes, data_len)) => {
                Ok(ObjectBuffer { held: Arc::new(Held { id, bytes, data_len, hold }) })
            }
            Err(error) => {
                self.give_back(id, hold);
                Err(error)
            }
        }
    }

    /// An object's data with the metadata behind it, and how much of it is data.
    #[inline]
    fn view(self: &Arc<Self>, id: ObjectId, location: &Location) -> Result<(View<Self>, usize)> {
        let Location { segment, offset, data_size, metadata_size } = *location;
        // What the directory says was not checked on its way, as what comes by message is.
        let len = data_size.checked_add(metadata_size);
        let len = len.ok_or_else(|| self.outside(id, location))?;
        let extent = Extent { segment, offset, len };
        let view = View::kept_by(Arc::clone(self), extent, |connection| {
            let mapping = connection.transport.segments.mapping(segment, Access::ReadOnly);
            mapping.map(|mapping| &**mapping)
        })?;
        // The whole is no longer than what is mapped, and so is its part.
        view.zip(usize::try_from(data_size).ok()).ok_or_else(|| self.outside(id, location))
    }

    /// Gives one hold back. Waits for nothing.
    pub(super) fn give_back(&self, id: ObjectId, hold: Hold) {
        match hold {
            Hold::Counted => {
                self.forget(&id);
                self.transport.release(&[(id, 1)]);
            }
            Hold::Pinned(slot) => self.transport.unpin(slot),
            Hold::GivenBack => {}
        }
    }

    /// Strikes out an object that is not held any more, unless it is held anew.
    fn forget(&self, id: &ObjectId) {
        let Some(mut held) = self.held.get().map(lock) else { return };
        if held.get(id).is_some_and(|known| known.strong_count() == 0) {
            held.remove(id);
        }
    }

    /// Enters objects into the table. Those that are there already replace their newcomers, which
    /// are returned.
    fn share<'a>(&self, newcomers: impl Iterator<Item = &'a mut ObjectBuffer>) -> Vec<Arc<Held>> {
        let mut surplus = Vec::new();
        let Some(mut table) = self.held.get().map(lock) else { return surplus };
        // Each pin is one of its own.
        for ObjectBuffer { held } in newcomers.filter(|new| new.held.hold == Hold::Counted) {
            match table.get(&held.id).and_then(Weak::upgrade) {
                Some(known) => surplus.push(std::mem::replace(held, known)),
                None => {
                    table.insert(held.id, Arc::downgrade(held));
                }
            }
        }
        surplus
    }
}

fn digest(data: &[u8], metadata: &[u8]) -> u64 {
    let mut hasher = Xxh64::new(SEED);
    if data.len() < IN_PARTS_BYTES_MIN {
        hasher.update(data);
    } else {
        let part = data.len() / 64 / PARTS * 64;
        let (parts, rest) = data.split_at(part * PARTS);
        for part in parts.chunks_exact(part).chain([rest]) {
            hasher.update(&xxh64(part, SEED).to_le_bytes());
        }
    }
    hasher.update(metadata);
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests that the original's client gave for the same bytes.
    #[test]
    fn digests_are_the_originals() {
        for (size, expected) in ORIGINAL {
            let data: Vec<u8> = (0..=250).cycle().take(*size).collect();
            assert_eq!(&digest(&data, b"md").to_le_bytes(), expected, "{size} bytes");
        }
    }

    #[rustfmt::skip]
    const ORIGINAL: &[(usize, [u8; 8])] = &[
        (0, [0xae, 0x25, 0x48, 0x9c, 0x68, 0xf7, 0x5a, 0xff]),
        (1, [0x30, 0x9f, 0x6d, 0xd5, 0x99, 0x0d, 0xc1, 0x9a]),
        (3, [0x88, 0x2d, 0x99, 0xfd, 0xf0, 0x7f, 0x27, 0x77]),
        (1000, [0x34, 0xa9, 0xb1, 0x48, 0x2f, 0xad, 0x1d, 0x89]),
        (1048575, [0x36, 0x4c, 0xd5, 0xa9, 0x21, 0x1b, 0xe1, 0xb0]),
        (1048576, [0xba, 0xc5, 0xd0, 0x93, 0xf9, 0x19, 0x71, 0x60]),
        (1048577, [0x9d, 0xeb, 0x58, 0x53, 0xe3, 0x48, 0x38, 0xc7]),
        (1049087, [0xb1, 0x93, 0x99, 0x57, 0x93, 0x26, 0xac, 0x51]),
        (1049088, [0x82, 0x1a, 0x00, 0xa9, 0xe5, 0x4e, 0x0a, 0x1b]),
        (3000001, [0x4b, 0x3e, 0x71, 0x91, 0x16, 0x5d, 0x78, 0xa7]),
    ];
}
