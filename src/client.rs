//! The blocking client of the store.
//!
//! ```
//! # let store = plasma::testing::store();
//! use std::time::Duration;
//! use plasma::{Client, ObjectId};
//!
//! let client = Client::connect(store.path())?;
//! let id = ObjectId::random();
//! client.put(id, b"some data", b"some metadata")?;
//!
//! // In this process or any other one on the machine, without a copy:
//! let buffer = client.get_one(id, Some(Duration::from_secs(1)))?.expect("it was put");
//! assert_eq!(buffer.data(), b"some data");
//! # Ok::<(), plasma::client::Error>(())
//! ```
//!
//! # Threads
//!
//! A [`Client`] is `Send`, `Sync` and cheap to clone; all clones use one connection. A thread that
//! waits in [`Client::get`] holds up neither the calls of other threads nor the drop of a buffer.
//! Dropping a buffer, a writer or a call that was given up never waits. Only if the store does not
//! take what is to be said then, a thread is started that says it later, and ends.
//!
//! # Fork
//!
//! A forked child may use its copy of a client: the first call connects anew, with the same name
//! and attempts (a quota is not taken over). It never speaks on its parent's connection. What it
//! inherits in buffers and writers is described at [`ObjectBuffer`] and [`ObjectWriter`].
//!
//! # How it is made
//!
//! This file knows which connection is the current one. `opening` makes connections; `transport`
//! pairs requests with replies, of which `sending` writes the ones and `receiving` reads the
//! others; `connection` decides how long to wait. `holding` keeps account of what is held,
//! `segments` and `direct` have the memory and the tables that came from the store. The calls are
//! in `making` (with `writer`), `reading` and `looking`. None of it knows the store's side.

#[cfg(feature = "arrow")]
mod arrow;
mod connection;
mod direct;
mod error;
mod holding;
mod looking;
mod making;
mod opening;
mod reading;
mod receiving;
mod segments;
mod sending;
#[cfg(test)]
mod tests;
mod transport;
mod writer;

#[cfg(feature = "arrow")]
pub use arrow::RecordBatches;
pub use error::{ConnectFailure, Error, Result};
pub use holding::{ObjectBuffer, ObjectSlice};
pub use looking::{Evicted, Objects, Subscription};
pub use making::{CreateOptions, Pieces, copy_in_parallel};
pub use opening::{Builder, Interrupt, interrupted_by};
pub use reading::{GetOptions, PendingGet, PendingWait};
pub use writer::{GuardedWriter, ObjectWriter};

pub use crate::protocol::message::{
    ClientInfo, DeleteOutcome, Event, ObjectInfo, ObjectState, RequestId, Stats,
};
pub use crate::protocol::refusal::{FullStore, Refusal};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::ids::ClientId;
use crate::protocol::message::Request;
use crate::time::Clock;
use connection::Connection;

/// A client of a store. See the [module](self) for an example, threads and forks.
///
/// When the last clone of a client and the last buffer and writer have gone, the connection ends,
/// and with it everything that it held.
///
/// # Errors
///
/// Every call may fail with the errors of the connection, and says only which others it has:
///
/// * [`Error::Closed`] after [`Self::disconnect`];
/// * in a forked child, which connects anew, those of [`Builder::connect`];
/// * if the call asks the store, [`Error::Disconnected`] if the store dies, also during a wait,
///   [`Error::Unresponsive`] if it is stopped ([`Builder::patience`] says when; not of a call that
///   waits for other clients without a timeout), and [`Error::Protocol`] if its answer is wrong.
///
/// A client does not connect again by itself: its objects are gone, which its user has to know.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What all clones of a client share. No locks: a forked child must be able to use it.
struct Shared {
    path: PathBuf,
    clock: Clock,
    /// How to connect again after a fork.
    builder: ArcSwap<Builder>,
    /// `None` after `disconnect`.
    current: ArcSwapOption<Connection>,
}

impl Client {
    /// Connects to the store that listens at `path`, the `-s` of `plasma_store`. If there is none
    /// yet, tries again for about 8 seconds.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// let client = plasma::Client::connect(store.path())?;
    /// assert!(client.capacity()? > 0);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().connect(path)
    }

    /// To connect with a name, or with more or less patience.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Ends the use of this client and all its clones: calls of other threads that wait, and every
    /// later call, give [`Error::Closed`]. Does nothing if that was done before.
    ///
    /// Buffers stay valid and pinned, and writers can be sealed. The connection itself ends when
    /// the last of them is dropped. If there are none, the store has released everything when this
    /// returns, unless it is stopped: it is not waited for longer than [`Builder::patience`], nor
    /// than 5 s.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use plasma::{Client, ObjectId, client::Error};
    ///
    /// let client = Client::connect(store.path())?;
    /// let id = ObjectId::random();
    /// client.put(id, b"kept", b"")?;
    /// let buffer = client.get_one(id, None)?.expect("it was put");
    ///
    /// client.disconnect();
    /// assert!(matches!(client.contains(id), Err(Error::Closed)));
    /// assert_eq!(&buffer[..], b"kept");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn disconnect(&self) {
        let Some(connection) = self.shared.current.swap(None) else {
            return;
        };
        let answers = connection.close();
        if let Some(connection) = Arc::into_inner(connection)
            && answers
        {
            connection.say_goodbye();
        }
    }

    /// The path of the store's socket, as it was given to connect.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        &self.shared.path
    }

    /// Bytes that the store was given for objects. Asks nobody.
    pub fn capacity(&self) -> Result<u64> {
        Ok(self.connection()?.connected.capacity)
    }

    /// Whether this client only reads: it said so ([`Builder::read_only`]), or the store gives its
    /// group nothing else (`--read-only-group`). Asks nobody.
    pub fn is_read_only(&self) -> Result<bool> {
        Ok(self.connection()?.connected.read_only)
    }

    /// The store's process id. Asks nobody.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// let client = plasma::Client::connect(store.path())?;
    /// println!("store {} ({})", client.server_pid()?, client.server_version()?);
    /// println!("this is client {}", client.client_id()?);
    /// assert_eq!(client.socket_path(), store.path());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn server_pid(&self) -> Result<u32> {
        Ok(self.connection()?.connected.server_pid)
    }

    /// The version of the store's program, like "0.1.0". Asks nobody.
    pub fn server_version(&self) -> Result<String> {
        Ok(self.connection()?.connected.server_version.clone())
    }

    /// The number of this connection in the store's lists and logs. Asks nobody.
    pub fn client_id(&self) -> Result<ClientId> {
        Ok(self.connection()?.connected.client)
    }

    /// Changes the name that the store shows for this client, at most 256 bytes.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// let client = plasma::Client::connect(store.path())?;
    /// client.set_name("reader of the big table")?;
    /// assert_eq!(client.clients()?[0].name, "reader of the big table");
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is longer.
    pub fn set_name(&self, name: &str) -> Result<()> {
        opening::check_name(name)?;
        let client_name = Some(name.to_owned());
        let set_options = Request::SetOptions { client_name, quota: None };
        self.connection()?.call_for_done(set_options)?;
        self.shared.builder.rcu(|builder| Builder::clone(builder).name(name));
        Ok(())
    }

    /// Limits what this client's objects may use to so many bytes. Can be done once, and is not
    /// taken over by forked children.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// let client = plasma::Client::connect(store.path())?;
    /// client.set_quota(1 << 20)?;
    /// assert_eq!(client.clients()?[0].quota, Some(1 << 20));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Refusal::QuotaAlreadySet`], and [`Refusal::QuotaUnavailable`] if the quotas of all clients
    /// together would take too much of the store.
    pub fn set_quota(&self, bytes: u64) -> Result<()> {
        let set_options = Request::SetOptions { client_name: None, quota: Some(bytes) };
        self.connection()?.call_for_done(set_options)
    }

    fn open(path: &Path, builder: Builder, interrupt: Interrupt<'_>) -> Result<Self> {
        let clock = Clock::start();
        let connection = Connection::open(path, &builder, &clock, interrupt)?;
        let shared = Shared {
            path: path.to_owned(),
            clock,
            builder: ArcSwap::from_pointee(builder),
            current: ArcSwapOption::from_pointee(connection),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The connection to use now.
    fn connection(&self) -> Result<Arc<Connection>> {
        let current = self.shared.current.load_full().ok_or(Error::Closed)?;
        if current.is_inherited() { self.reconnect(current) } else { Ok(current) }
    }

    /// As [`Self::connection`], for a look that is quickly over: it counts no reference.
    #[inline]
    fn with_connection<T>(&self, look: impl FnOnce(&Arc<Connection>) -> Result<T>) -> Result<T> {
        match &*self.shared.current.load() {
            Some(current) if !current.is_inherited() => look(current),
            _ => look(&self.connection()?),
        }
    }

    /// In a forked child: replaces the parent's connection, and lets go of it.
    fn reconnect(&self, inherited: Arc<Connection>) -> Result<Arc<Connection>> {
        let Shared { path, clock, builder, current } = &*self.shared;
        let own = Arc::new(Connection::open(path, &builder.load(), clock, None)?);
        let inherited = Some(inherited);
        let previous = current.compare_and_swap(&inherited, Some(Arc::clone(&own)));
        match &*previous {
            None => Err(Error::Closed),
            Some(previous) if previous.is_inherited() => Ok(own),
            // Another thread of the child was quicker.
            Some(quicker) => Ok(Arc::clone(quicker)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("socket_path", &self.shared.path).finish_non_exhaustive()
    }
}
