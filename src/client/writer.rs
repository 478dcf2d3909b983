//! An object that is being created: bytes to fill in, and the right to seal or abort it.
//!
//! The views on the memory always go before the store is told: from then on it is not ours to
//! write.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use super::Result;
use super::buffers::{Hold, ObjectBuffer};
use super::connection::Connection;
use super::copying::{copy_and_make_ready, make_ready};
use super::direct::DirectReader;
use super::error::Error;
use crate::ids::{Location, ObjectId, SealPlace};
use crate::limits::{COPY_THREADS, POPULATE_BYTES_MIN};
use crate::protocol::message::{Granted, Placed, Reply, Request};
use crate::shm::{Access, ViewMut};

/// An object that this client is creating. Nobody sees it before it is sealed; if it is dropped
/// instead, the store forgets it.
///
/// Fill it through [`Self::data_mut`], or as an [`io::Write`], which goes on where the last write
/// ended and writes no more than there is room for. New memory may show what another object left
/// there, unless the store was told to clear it.
///
/// A writer that a forked child inherits does nothing when dropped: sealing and aborting are up
/// to the parent.
///
/// ```
/// # let store = plasma::testing::store();
/// use std::io::Write;
/// use plasma::{Client, ObjectId, client::CreateOptions};
///
/// let client = Client::connect(store.path())?;
/// let id = ObjectId::random();
/// let mut writer = client.create(id, 11, 4, CreateOptions::default())?;
/// writer.write_all(b"hello ")?;
/// writer.write_all(b"world")?;
/// writer.metadata_mut().copy_from_slice(b"text");
/// writer.seal()?;
/// assert_eq!(&client.get_one(id, None)?.expect("it is sealed")[..], b"hello world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ObjectWriter {
    // In this order: the memory goes before the claim is given up.
    data: ViewMut,
    metadata: ViewMut,
    position: usize,
    claim: Claim,
}

impl ObjectWriter {
    /// The writer for an object that the store has just created for this connection.
    pub(super) fn new(connection: &Arc<Connection>, id: ObjectId, placed: Placed) -> Result<Self> {
        let mut writer = Self::not_ready(connection, id, placed)?;
        if placed.location.size() >= POPULATE_BYTES_MIN {
            // Also the moment to learn that the memory is not there: writing to it would be fatal.
            let data = writer.data.readiness();
            make_ready(writer.data.len(), COPY_THREADS, |part| data.make_ready(part))
                .and_then(|()| writer.metadata.readiness().make_ready(0..writer.metadata.len()))
                .map_err(Error::Map)?;
        }
        if connection.connected.clear_new_objects {
            writer.data.fill(0);
            writer.metadata.fill(0);
        }
        Ok(writer)
    }

    /// As [`Self::new`], for who writes every byte with [`Self::fill`]: the memory is neither ready
    /// nor cleared.
    pub(super) fn not_ready(
        connection: &Arc<Connection>,
        id: ObjectId,
        placed: Placed,
    ) -> Result<Self> {
        let claim = Claim::new(connection, id, placed);
        let location = placed.location;
        let mapping = connection.transport.segments.mapping(location.segment, Access::ReadWrite)?;
        let views = mapping.view_mut(location.data()).zip(mapping.view_mut(location.metadata()));
        let (data, metadata) = views.ok_or_else(|| connection.outside(id, &location))?;
        Ok(Self { data, metadata, position: 0, claim })
    }

    /// The name of the object.
    #[must_use]
    pub const fn id(&self) -> ObjectId {
        self.claim.id
    }

    /// The data as written so far. Starts at a multiple of 64 bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The data, to be filled in.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// The metadata as written so far.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The metadata, to be filled in.
    #[must_use]
    pub fn metadata_mut(&mut self) -> &mut [u8] {
        &mut self.metadata
    }

    /// Copies pieces of data, each at an offset and behind the one before, clears what is between
    /// them, and copies the metadata. With up to so many threads.
    pub(super) fn fill(
        &mut self,
        pieces: &[(usize, &[u8])],
        metadata: &[u8],
        threads: usize,
    ) -> io::Result<()> {
        let ready = self.data.readiness();
        let mut rest = &mut self.data[..];
        let mut done = 0;
        for (offset, source) in pieces {
            let (gap, behind) = rest.split_at_mut(offset - done);
            ready.make_ready(done..*offset)?;
            gap.fill(0);
            let (place, behind) = behind.split_at_mut(source.len());
            copy_and_make_ready(place, source, threads, |part| {
                ready.make_ready(offset + part.start..offset + part.end)
            })?;
            rest = behind;
            done = offset + source.len();
        }
        ready.make_ready(done..done + rest.len())?;
        rest.fill(0);
        self.metadata.readiness().make_ready(0..metadata.len())?;
        self.metadata.copy_from_slice(metadata);
        Ok(())
    }

    /// Where the next [`io::Write::write`] goes, in bytes from the start of the data.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// Moves to another place in the data. Beyond its end there is no room to write.
    pub const fn set_position(&mut self, position: usize) {
        self.position = position;
    }

    /// Makes the object immutable and visible to everyone, and lets go of it.
    ///
    /// The store is not waited for: the seal is a note in memory that it shares with this client,
    /// and that it looks at before it answers anybody. When this has returned, whoever asks finds
    /// the object sealed, also if this process has died since. (A client that does not read the
    /// directory waits for the store's answer.)
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the store is known to have gone, and the object with it;
    /// [`Error::Inherited`] in a forked child.
    pub fn seal(self) -> Result<()> {
        self.into_claim()?.seal()
    }

    /// Makes the object immutable and visible to everyone, and keeps it for reading.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # use plasma::{Client, ObjectId, client::CreateOptions};
    /// let client = Client::connect(store.path())?;
    /// let mut writer = client.create(ObjectId::random(), 3, 0, CreateOptions::default())?;
    /// writer.data_mut().copy_from_slice(b"abc");
    /// let buffer = writer.seal_and_get()?;
    /// assert_eq!(&buffer[..], b"abc");
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::seal`]; [`Error::Map`] if the object was sealed but cannot be mapped for reading.
    pub fn seal_and_get(self) -> Result<ObjectBuffer> {
        let mut claim = self.into_claim()?;
        let hold = claim.seal_and_hold()?;
        claim.connection.keep_sealed(claim.id, claim.placed.location, hold)
    }

    /// Removes the object, as if it had never been created.
    ///
    /// Dropping the writer does the same, without waiting for anything.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # use plasma::{Client, ObjectId, client::CreateOptions};
    /// let client = Client::connect(store.path())?;
    /// let id = ObjectId::random();
    /// client.create(id, 1_000, 0, CreateOptions::default())?.abort()?;
    /// client.create(id, 2_000, 0, CreateOptions::default())?.abort()?;
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn abort(self) -> Result<()> {
        self.into_claim()?.abort()
    }

    /// Gives up the memory.
    fn into_claim(self) -> Result<Claim> {
        if self.claim.connection.is_inherited() {
            return Err(Error::Inherited("this object writer"));
        }
        Ok(self.claim)
    }
}

impl Write for ObjectWriter {
    /// Writes as much as there is room for, which is nothing at the end of the data.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.data.get_mut(self.position..).unwrap_or_default();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.position += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("id", &self.claim.id)
            .field("data_size", &self.data.len())
            .field("metadata_size", &self.metadata.len())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// The right of the creator to seal or abort. Aborts when dropped unused.
pub(super) struct Claim {
    pub(super) connection: Arc<Connection>,
    pub(super) id: ObjectId,
    placed: Placed,
    /// Neither sealed nor aborted.
    pub(super) is_open: bool,
}

impl Claim {
    pub(super) fn new(connection: &Arc<Connection>, id: ObjectId, placed: Placed) -> Self {
        Self { connection: Arc::clone(connection), id, placed, is_open: true }
    }

    /// Seals, and lets go.
    pub(super) fn seal(&mut self) -> Result<()> {
        self.is_open = false;
        match self.table() {
            Some((direct, place)) => self.tell(direct, place, true),
            None => self.connection.call_for_done(Request::Seal { id: self.id, release: true }),
        }
    }

    /// Seals, and says how the object is held from now on.
    pub(super) fn seal_and_hold(&mut self) -> Result<Hold> {
        self.is_open = false;
        let Some((direct, place)) = self.table() else {
            let seal = Request::Seal { id: self.id, release: false };
            return self.connection.call_for_done(seal).map(|()| Hold::Counted);
        };
        // The store sees the pin when it sees the seal.
        let is_pinned = direct.pin_own(place.slot);
        let hold = if is_pinned { Hold::Pinned(place.slot) } else { Hold::Counted };
        let told = self.tell(direct, place, is_pinned);
        if told.is_err() {
            self.connection.give_back(self.id, hold);
        }
        told.map(|()| hold)
    }

    /// Where to seal without the store.
    fn table(&self) -> Option<(&DirectReader, SealPlace)> {
        self.connection.transport.direct().zip(self.placed.seal)
    }

    /// The seal is what is written into the table. The message after it only saves the store from
    /// finding out by itself, so it does not matter what becomes of it.
    fn tell(&self, direct: &DirectReader, place: SealPlace, released: bool) -> Result<()> {
        if !direct.tell_sealed(place, released) {
            return Err(self.connection.error(self.connection.transport.fault()));
        }
        let _ = self.connection.transport.nudge(Request::Seal { id: self.id, release: released });
        Ok(())
    }

    pub(super) fn abort(&mut self) -> Result<()> {
        self.is_open = false;
        self.connection.call_for_done(Request::Abort { id: self.id })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_open {
            // Best effort: if the store has gone, so has the object.
            let _ = self.connection.transport.post(Request::Abort { id: self.id });
        }
    }
}

impl Connection {
    /// Turns the hold of a creator, who has sealed its object, into that of a reader. The writer's
    /// memory is not good enough for that: it is writable.
    fn keep_sealed(
        self: &Arc<Self>,
        id: ObjectId,
        location: Location,
        hold: Hold,
    ) -> Result<ObjectBuffer> {
        if self.transport.segments.knows(location.segment, Access::ReadOnly) {
            let pin = match hold {
                Hold::Pinned(slot) => Some(slot),
                Hold::Counted | Hold::GivenBack => None,
            };
            return self.admit_one(id, Granted { location, pin });
        }
        // A get brings the descriptor, and a hold of its own.
        let fetched = self.fetch_sealed(id);
        self.give_back(id, hold);
        fetched
    }

    fn fetch_sealed(self: &Arc<Self>, id: ObjectId) -> Result<ObjectBuffer> {
        let get = Request::Get {
            ids: vec![id],
            timeout: Some(std::time::Duration::ZERO),
            fail_if_abandoned: false,
        };
        let granted = self.granted(self.call(get)?, 1)?;
        match granted.as_slice() {
            [Some(granted)] => self.admit_one(id, *granted),
            _ => Err(self.unexpected("get", &Reply::Granted(granted))),
        }
    }

    fn admit_one(self: &Arc<Self>, id: ObjectId, granted: Granted) -> Result<ObjectBuffer> {
        let mut admitted = self.admit(&[(id, granted)])?;
        Ok(admitted.remove(0))
    }
}
