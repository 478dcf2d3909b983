//! An object that is being created by code in another language, which keeps a pointer to it.
//!
//! An [`ObjectWriter`](super::ObjectWriter) lends its memory out, and the compiler sees to it that
//! nobody has it any more when the object is sealed. Where there is no such compiler, the object
//! gets pages of its own in the address space ([`Window`]), and it is the kernel that keeps a late
//! write from reaching anybody else.

use std::fmt;
use std::sync::Arc;

use super::buffers::Hold;
use super::connection::Connection;
use super::copying::make_ready;
use super::error::Error;
use super::options::{CreateOptions, Interrupt};
use super::writer::Claim;
use super::{Client, Result};
use crate::ids::ObjectId;
use crate::limits::{COPY_THREADS, POPULATE_BYTES_MIN};
use crate::protocol::message::Placed;
use crate::shm::{Access, Window};

impl Client {
    /// Starts an object whose memory will be written by code that the compiler cannot watch.
    /// Otherwise as [`Self::create_with`]; the metadata is given at once.
    ///
    /// It costs a mapping of its own for each object, so prefer [`Self::create`] in Rust.
    ///
    /// # Errors
    /// As [`Self::create_with`].
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
        let (placed, cut_short) =
            connection.create_at(id, data_size, metadata_size, options, interrupt)?;
        let writer = GuardedWriter::new(&connection, id, placed, metadata)?;
        // Dropping the writer aborts the object, which came too late.
        cut_short.map_or(Ok(writer), Err)
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
    fn new(
        connection: &Arc<Connection>,
        id: ObjectId,
        placed: Placed,
        metadata: &[u8],
    ) -> Result<Self> {
        // First of all, so that the object is aborted if anything below fails.
        let claim = Claim::new(connection, id, placed);
        let location = &placed.location;
        let segments = &connection.transport.segments;
        let mapping = segments.mapping(location.segment, Access::ReadWrite)?;
        let views = mapping.view_mut(location.data()).zip(mapping.view_mut(location.metadata()));
        let (mut data_view, mut metadata_view) =
            views.ok_or_else(|| connection.outside(id, location))?;
        metadata_view.copy_from_slice(metadata);
        if connection.connected.clear_new_objects {
            data_view.fill(0);
        }
        drop((data_view, metadata_view));
        let window = match location.data_size {
            0 => None,
            _ => Some(segments.window(location.data())?),
        };
        if let Some(window) = &window
            && location.data_size >= POPULATE_BYTES_MIN
        {
            make_ready(window.len(), COPY_THREADS, |part| window.populate(part))
                .map_err(Error::Map)?;
        }
        Ok(Self { window, claim, hold: Hold::GivenBack })
    }

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
    /// As [`ObjectWriter::seal`](super::ObjectWriter::seal); [`Error::InvalidArgument`] if it was
    /// sealed or aborted before.
    pub fn seal(&mut self) -> Result<()> {
        self.check_open("seal")?;
        if let Some(window) = &self.window {
            window.forbid_writing().map_err(Error::Map)?;
        }
        self.hold = self.claim.seal_and_hold()?;
        Ok(())
    }

    /// Removes the object, as if it had never been created.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn abort(&mut self) -> Result<()> {
        self.check_open("abort")?;
        if let Some(window) = &self.window {
            window.replace_with_zeros().map_err(Error::Map)?;
        }
        self.claim.abort()
    }

    fn check_open(&self, call: &str) -> Result<()> {
        if self.claim.connection.is_inherited() {
            return Err(Error::Inherited("this object writer"));
        }
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
