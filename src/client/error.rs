//! What can go wrong for a user of the client, sorted by whose fault it is.
//!
//! The store's own "no" ([`Error::Refused`]) is an ordinary answer: nothing has changed, and the
//! connection lives. Everything else says what to look at: the socket, the store, the arguments.
//! No error here ends the process, whatever the store sends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::limits::PROTOCOL_VERSION_OLDEST;
use crate::protocol::ProtocolError;
use crate::protocol::message::Reply;
use crate::protocol::refusal::Refusal;

/// The result of talking to the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call of the client failed.
///
/// ```
/// # let store = plasma::testing::store();
/// use plasma::client::{Client, Error, Refusal};
///
/// let client = Client::connect(store.path())?;
/// let id = plasma::ObjectId::random();
/// client.put(id, b"first", b"")?;
/// match client.put(id, b"second", b"") {
///     Err(Error::Refused(Refusal::ObjectExists(existing))) => assert_eq!(existing, id),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There was no way to a store at this path.
    #[error("cannot connect to the store at {}, attempts: {attempts}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// How often it was tried.
        attempts: u32,
        /// What the last attempt failed of.
        source: ConnectFailure,
    },
    /// The connection broke: the store exited, was killed, or hung up on this client. Whatever
    /// this client held is released; buffers can be read on.
    #[error("lost the store at {}: {source}", path.display())]
    Disconnected {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// This client was disconnected by [`Client::disconnect`](super::Client::disconnect), or this
    /// stream of events has come to its end.
    #[error("this client was disconnected, or this stream has ended")]
    Closed,
    /// The store understood and did not grant it. Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What the store sent is not the protocol.
    #[error("the store at {} broke the protocol: {source}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        source: ProtocolError,
    },
    /// The arguments cannot be meant like this; the text has the sizes and the limits.
    #[error("{0}")]
    InvalidArgument(String),
    /// A batch of puts does not fit into one message, and must not be split: it is all or nothing.
    #[error(
        "a batch of {objects} objects and {bytes} bytes is too large, the limits are {objects_max} \
         objects and {bytes_max} bytes of data and metadata"
    )]
    BatchTooLarge {
        /// Objects in the batch.
        objects: usize,
        /// Most objects in one.
        objects_max: usize,
        /// Bytes of data and metadata in the batch.
        bytes: u64,
        /// Most bytes in one.
        bytes_max: u64,
    },
    /// The store has not answered for so long, though it should have: it is stopped, or stuck. See
    /// [`Builder::patience`](super::Builder::patience). It may yet do what it was asked for; what
    /// that grants is given back. The connection lives, and later calls may succeed.
    #[error(
        "the store at {} has not answered for {:.1} s: it is stopped, or stuck",
        path.display(), waited.as_secs_f64()
    )]
    Unresponsive {
        /// The socket.
        path: PathBuf,
        /// Time since the call began.
        waited: Duration,
    },
    /// The caller's interrupt function said so.
    #[error("interrupted")]
    Interrupted,
    /// The store's memory cannot be mapped, or there is no memory behind it.
    #[error("cannot map the store's shared memory: {0}")]
    Map(#[source] io::Error),
    /// The Arrow library could not read or write record batches.
    #[cfg(feature = "arrow")]
    #[error(transparent)]
    Arrow(#[from] arrow_schema::ArrowError),
    /// A writer or a stream of events that was made before a `fork` is its parent's business.
    #[error("{0} was made before a fork and belongs to the parent process")]
    Inherited(&'static str),
}

impl Error {
    /// What the store refused, if that is the error.
    ///
    /// ```
    /// use plasma::client::{Error, Refusal};
    /// let id = plasma::ObjectId::random();
    /// assert_eq!(
    ///     Error::from(Refusal::ObjectNotFound(id)).refusal(),
    ///     Some(&Refusal::ObjectNotFound(id)),
    /// );
    /// assert_eq!(Error::Interrupted.refusal(), None);
    /// ```
    #[must_use]
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// Why an attempt to connect failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectFailure {
    /// The system did not let us.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There is something at that path, but it is no socket.
    #[error("this is not a socket")]
    NotASocket,
    /// The other side closed the connection instead of answering.
    #[error("the other side hung up at once: it is stopping, or it is not a plasma store")]
    HungUp,
    /// The other side does not answer.
    #[error(
        "no answer for {:.1} s: the store is stopped, has too many clients, or is not a plasma \
         store", .0.as_secs_f64()
    )]
    Silent(Duration),
    /// The other side speaks another version of the protocol.
    #[error(
        "the store speaks version {theirs} of the protocol, this client versions \
         {PROTOCOL_VERSION_OLDEST} to {ours}; update the older of the two"
    )]
    VersionMismatch {
        /// The newest version of this client.
        ours: u32,
        /// The version of the store.
        theirs: u32,
    },
    /// The store does not want this client.
    #[error("{0}")]
    Refused(Refusal),
    /// The other side is not a plasma store.
    #[error("this is not a plasma store: {0}")]
    Protocol(#[from] ProtocolError),
}

impl ConnectFailure {
    /// Whether the next attempt may fare better: there is no store yet, or it is just leaving.
    pub(super) fn may_pass(&self) -> bool {
        let Self::Io(error) = self else { return matches!(self, Self::HungUp) };
        matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        )
    }
}

/// What ends a connection, or keeps a call from using it. Many threads may have to hear of one.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The socket failed, or the store closed it.
    Lost(Arc<io::Error>),
    /// The store sent what it must not.
    Protocol(ProtocolError),
    /// The user has disconnected this client.
    Closed,
    /// The connection is the parent's.
    Inherited,
}

impl Fault {
    /// The store closed the connection.
    pub(super) fn hung_up() -> Self {
        let text = "the store closed the connection: it exited, crashed or hung up on this client";
        Self::Lost(Arc::new(io::Error::new(io::ErrorKind::UnexpectedEof, text)))
    }

    /// The error that a user of the store at `path` gets to see.
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Self::Lost(source) => Error::Disconnected { path: path.to_owned(), source },
            Self::Protocol(source) => Error::Protocol { path: path.to_owned(), source },
            Self::Closed => Error::Closed,
            Self::Inherited => Error::Inherited("a connection"),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Lost(Arc::new(error))
    }
}

impl From<ProtocolError> for Fault {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// The store answered `request` with something else than what was asked for.
pub(super) fn unexpected(request: &'static str, reply: &Reply) -> ProtocolError {
    ProtocolError::UnexpectedReply { request, reply: kind(reply).to_owned() }
}

const fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Connected(_) => "connected",
        Reply::Done => "done",
        Reply::Created(_) => "created (or with sizes that were not asked for)",
        Reply::Objects(_) | Reply::Granted(_) => "objects (or a wrong number of them)",
        Reply::Ready(_) => "ready (or a wrong number of them)",
        Reply::States(_) => "states (or a wrong number of them)",
        Reply::Deleted(_) => "deleted (or a wrong number of them)",
        Reply::Evicted { .. } => "evicted",
        Reply::Refreshed { .. } => "refreshed",
        Reply::ObjectList { .. } => "object list",
        Reply::Stats(_) => "stats",
        Reply::DebugText(_) => "debug text",
        Reply::ClientList { .. } => "client list",
        Reply::Events(_) => "events",
        Reply::Refused(_) => "refusal",
    }
}
