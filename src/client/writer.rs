//! An object that is being created: bytes to fill in, and the right to seal or abort it.
//!
//! The views on the memory always go before the store is told: from then on it is not ours to
//! write. An [`ObjectWriter`] lends its memory out, and the compiler sees to it that nobody has it
//! any more when the object is sealed. Code in another language has no such compiler: for it there
//! is the [`GuardedWriter`], whose object gets pages of its own in the address space ([`Window`]),
//! and it is the kernel that keeps a late write from reaching anybody else.
//!
//! How room was made for the object is not known here.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::direct::DirectReader;
use super::error::Error;
use super::holding::{Hold, ObjectBuffer};
use super::making::{CreateOptions, copy_and_make_ready, make_ready};
use super::opening::Interrupt;
use super::{Client, Result};
use crate::ids::{Location, ObjectId, SealPlace};
use crate::limits::{COPY_THREADS, POPULATE_BYTES_MIN};
use crate::protocol::message::{Granted, Placed, Reply, Request};
use crate::shm::{Access, ViewMut, Window};

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
    /// The writer for an object that the store has just created.
    pub(super) fn new(claim: Claim) -> Result<Self> {
        let mut writer = Self::not_ready(claim)?;
        if writer.claim.placed.location.size() >= POPULATE_BYTES_MIN {
            // Also the moment to learn that the memory is not there: writing to it would be fatal.
            let data = writer.data.readiness();
            make_ready(writer.data.len(), COPY_THREADS, |part| data.make_ready(part))
                .and_then(|()| writer.metadata.readiness().make_ready(0..writer.metadata.len()))
                .map_err(Error::Map)?;
        }
        if writer.claim.connection.connected.clear_new_objects {
            writer.data.fill(0);
            writer.metadata.fill(0);
        }
        Ok(writer)
    }

    /// As [`Self::new`], for who writes every byte with [`Self::fill`]: the memory is neither ready
    /// nor cleared.
    pub(super) fn not_ready(claim: Claim) -> Result<Self> {
        let Claim { connection, id, placed: Placed { location, .. }, .. } = &claim;
        let mapping = connection.transport.segments.mapping(location.segment, Access::ReadWrite)?;
        let views = mapping.view_mut(location.data()).zip(mapping.view_mut(location.metadata()));
        let (data, metadata) = views.ok_or_else(|| connection.outside(*id, location))?;
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
        self.into_claim()?.seal(true)
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

    /// Removes the object, as if it had never been created. The errors are those of [`Self::seal`].
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
    pub fn abort(self) -> Result<()> {
        self.into_claim()?.abort()
    }

    /// Gives up the memory.
    fn into_claim(self) -> Result<Claim> {
        self.claim.check_own()?;
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

impl Client {
    /// Starts an object whose memory will be written by code that the compiler cannot watch.
    /// Otherwise as [`Self::create_with`]; the metadata is given at once.
    ///
    /// It costs a mapping of its own for each object, so prefer [`Self::create`] in Rust.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use plasma::{Client, ObjectId, client::CreateOptions};
    ///
    /// let client = Client::connect(store.path())?;
    /// let id = ObjectId::random();
    /// let mut object = client.create_guarded(id, 100, b"zeros", CreateOptions::default(), None)?;
    /// assert_eq!((object.address() % 64, object.len()), (0, 100));
    /// // Foreign code fills it in here, and from now on it can only read:
    /// object.seal()?;
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn create_guarded(
        &self,
        id: ObjectId,
        data_size: u64,
        metadata: &[u8],
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<GuardedWriter> {
        let connection = self.connection()?;
        let metadata_size = metadata.len() as u64;
        let claim = connection.claim(id, data_size, metadata_size, options, interrupt)?;
        let mut writer = ObjectWriter::not_ready(claim)?;
        writer.metadata.copy_from_slice(metadata);
        if connection.connected.clear_new_objects {
            writer.data.fill(0);
        }
        let data = writer.claim.placed.location.data();
        let window = match data.len {
            0 => None,
            _ => Some(connection.transport.segments.window(data)?),
        };
        if let Some(window) = &window
            && data.len >= POPULATE_BYTES_MIN
        {
            make_ready(window.len(), COPY_THREADS, |part| window.populate(part))
                .map_err(Error::Map)?;
        }
        Ok(GuardedWriter { window, claim: writer.claim, hold: Hold::GivenBack })
    }
}

/// An object that is being created, or was created here and is still held.
///
/// The memory at [`Self::address`] stays mapped until this is dropped. Before [`Self::seal`] it may
/// be written; afterwards a write to it faults. After [`Self::abort`] it shows zeros that nobody
/// else sees.
///
/// Dropping it aborts the object if it is not sealed, and releases it if it is. What a forked child
/// inherits does neither; its memory is not there in a child that was forked before the seal.
pub struct GuardedWriter {
    /// `None` if there is no data.
    window: Option<Window>,
    claim: Claim,
    /// How it is held once it is sealed.
    hold: Hold,
}

impl GuardedWriter {
    /// The name of the object.
    #[must_use]
    pub const fn id(&self) -> ObjectId {
        self.claim.id
    }

    /// Where the data begins in this process, a multiple of 64; also if there is none.
    #[must_use]
    pub fn address(&self) -> usize {
        self.window.as_ref().map_or(64, Window::address)
    }

    /// Bytes of data.
    #[must_use]
    pub fn len(&self) -> usize {
        self.window.as_ref().map_or(0, Window::len)
    }

    /// Whether there is no data.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.window.is_none()
    }

    /// Whether the object is neither sealed nor aborted.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.claim.is_open
    }

    /// Makes the object immutable and visible to everyone. It stays held until this is dropped.
    ///
    /// # Errors
    /// As [`ObjectWriter::seal`]; [`Error::InvalidArgument`] if it was sealed or aborted before.
    pub fn seal(&mut self) -> Result<()> {
        self.check_open("seal")?;
        if let Some(window) = &self.window {
            window.forbid_writing().map_err(Error::Map)?;
        }
        self.hold = self.claim.seal_and_hold()?;
        Ok(())
    }

    /// Removes the object, as if it had never been created. The errors are those of [`Self::seal`].
    pub fn abort(&mut self) -> Result<()> {
        self.check_open("abort")?;
        if let Some(window) = &self.window {
            window.replace_with_zeros().map_err(Error::Map)?;
        }
        self.claim.abort()
    }

    fn check_open(&self, call: &str) -> Result<()> {
        self.claim.check_own()?;
        if !self.claim.is_open {
            let text = format!("cannot {call} object {}: it is sealed or aborted", self.claim.id);
            return Err(Error::InvalidArgument(text));
        }
        Ok(())
    }
}

impl Drop for GuardedWriter {
    fn drop(&mut self) {
        // The memory goes before the object is given up, as always.
        self.window = None;
        self.claim.connection.give_back(self.claim.id, self.hold);
    }
}

impl fmt::Debug for GuardedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedWriter")
            .field("id", &self.claim.id)
            .field("len", &self.len())
            .field("is_open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// The right of the creator to seal or abort. Aborts when dropped unused.
pub(super) struct Claim {
    connection: Arc<Connection>,
    id: ObjectId,
    placed: Placed,
    /// Neither sealed nor aborted.
    is_open: bool,
}

impl Claim {
    pub(super) fn new(connection: &Arc<Connection>, id: ObjectId, placed: Placed) -> Self {
        Self { connection: Arc::clone(connection), id, placed, is_open: true }
    }

    /// A child has nothing to do with what its parent creates.
    fn check_own(&self) -> Result<()> {
        match self.connection.is_inherited() {
            true => Err(Error::Inherited("this object writer")),
            false => Ok(()),
        }
    }

    /// Seals, and says how the object is held from now on.
    fn seal_and_hold(&mut self) -> Result<Hold> {
        // The store sees the pin when it sees the seal.
        let own = self.table().filter(|(direct, place)| direct.pin_own(place.slot));
        let hold = own.map_or(Hold::Counted, |(_, place)| Hold::Pinned(place.slot));
        let is_pinned = hold != Hold::Counted;
        let sealed = self.seal(is_pinned);
        if sealed.is_err() && is_pinned {
            self.connection.give_back(self.id, hold);
        }
        sealed.map(|()| hold)
    }

    /// Seals, and gives up the hold of a creator if `release` says so.
    fn seal(&mut self, release: bool) -> Result<()> {
        self.is_open = false;
        let seal = Request::Seal { id: self.id, release };
        let Some((direct, place)) = self.table() else {
            return self.connection.call_for_done(seal);
        };
        // The seal is what is written into the table. The message after it only saves the store
        // from finding out by itself, so it does not matter what becomes of it.
        if !direct.tell_sealed(place, release) {
            return Err(self.connection.error(self.connection.transport.fault()));
        }
        let _ = self.connection.transport.post(seal);
        Ok(())
    }

    /// Where to seal without the store.
    fn table(&self) -> Option<(&DirectReader, SealPlace)> {
        self.connection.transport.direct().zip(self.placed.seal)
    }

    fn abort(&mut self) -> Result<()> {
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
        let reply = if self.transport.segments.knows(location.segment, Access::ReadOnly) {
            let pin = match hold {
                Hold::Pinned(slot) => Some(slot),
                Hold::Counted | Hold::GivenBack => None,
            };
            Reply::Granted(vec![Some(Granted { location, pin })])
        } else {
            // A get brings the descriptor, and a hold of its own.
            let (ids, timeout) = (vec![id], Some(Duration::ZERO));
            let fetched = self.call(Request::Get { ids, timeout, fail_if_abandoned: false });
            self.give_back(id, hold);
            fetched?
        };
        let kept = self.admit(&[id], reply)?.pop().flatten();
        kept.ok_or_else(|| self.unexpected("get", &Reply::Granted(vec![None])))
    }
}
