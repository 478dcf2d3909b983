//! Objects that are held: their bytes, read in place, and what ends the hold.
//!
//! Several buffers of one client for the same object share one [`Held`]. The last one to go sends
//! one message that nobody answers, so dropping a buffer waits for nothing, not even for room in
//! the socket. A forked child's copies send nothing.

use std::fmt;
use std::ops::{Bound, Deref, Range, RangeBounds};
use std::sync::Arc;

use super::connection::Connection;
use crate::ids::{ObjectId, Slot};
use crate::shm::View;

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
/// to give back. If the parent dies first, the child's buffers keep the parent's connection open,
/// and everything pinned that the parent held through it.
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
    pub(super) const fn new(held: Arc<Held>) -> Self {
        Self { held }
    }

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
            connection.release(&released);
        }
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
    pub(super) id: ObjectId,
    /// The data, and behind it the metadata. Keeps the connection, and with it the hold, alive.
    pub(super) bytes: View<Connection>,
    /// Bytes of data.
    pub(super) data_len: usize,
    pub(super) hold: Hold,
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
