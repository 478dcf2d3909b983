//! From a path to an open connection: what a user may choose, attempts, the first message, and the
//! first reply.
//!
//! Until a connection is open one thread owns all of it, so what is here is plain send and receive.
//! A stream of events stays like that ([`Line`]); a client goes on with
//! [`Transport`](super::transport::Transport). What is said on it later is not known here.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

use super::error::{ConnectFailure, Error, Fault, unexpected};
use super::receiving::{Received, Receiver, wait_readable};
use super::{Client, Result};
use crate::limits::{
    BATCH_OBJECTS_MAX, CLIENT_NAME_BYTES_MAX, CLIENT_PATIENCE, CONNECT_RETRIES,
    CONNECT_RETRY_INTERVAL, INLINE_BYTES_MAX, INTERRUPT_CHECK_INTERVAL, POLL_TIME, POLL_US_MAX,
    PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, REQUEST_IDS_MAX,
};
use crate::protocol::codec::encode_client;
use crate::protocol::frame::append_frame;
use crate::protocol::message::{
    ClientMessage, Connect, Connected, DescriptorInfo, Reply, RequestId,
};
use crate::protocol::refusal::Refusal;
use crate::shm::fd_passing;
use crate::time::{Clock, Timestamp};

/// Asked now and then by a call that waits (every 50 ms, so use it for things that are quick); when
/// it says true, the call ends with [`Error::Interrupted`](super::Error::Interrupted) and the store
/// forgets the request. If the store does not answer, the call ends all the same, half a second
/// later at most; what the store grants after that is given back.
///
/// It is called on the thread that waits, and holds up no other one.
pub type Interrupt<'a> = Option<&'a mut dyn FnMut() -> bool>;

thread_local! {
    /// Asked by all calls of this thread.
    static INTERRUPT: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
}

/// Runs `call`. What this thread waits for meanwhile, in any call of any client, `interrupt` can
/// end as an [`Interrupt`] can: for languages in which every call can be interrupted.
///
/// ```
/// # let store = plasma::testing::store();
/// use plasma::client::{Client, Error, interrupted_by};
///
/// let client = Client::connect(store.path())?;
/// let nothing = plasma::ObjectId::random();
/// let result = interrupted_by(|| true, || client.get(&[nothing], None));
/// assert!(matches!(result, Err(Error::Interrupted)));
/// # Ok::<(), Error>(())
/// ```
pub fn interrupted_by<T>(interrupt: fn() -> bool, call: impl FnOnce() -> T) -> T {
    struct Reset(Option<fn() -> bool>);
    impl Drop for Reset {
        fn drop(&mut self) {
            INTERRUPT.set(self.0);
        }
    }
    let _reset = Reset(INTERRUPT.replace(Some(interrupt)));
    call()
}

/// How to connect. Made by [`Client::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    retries: u32,
    retry_interval: Duration,
    pub(super) patience: Duration,
    pub(super) poll_time: Duration,
    pub(super) reads_directory: bool,
    read_only: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: format!("pid {}", std::process::id()),
            retries: CONNECT_RETRIES,
            retry_interval: CONNECT_RETRY_INTERVAL,
            patience: CLIENT_PATIENCE,
            poll_time: POLL_TIME,
            reads_directory: true,
            read_only: false,
        }
    }
}

impl Builder {
    /// The name that the store shows for this client in lists and logs, at most 256 bytes. The
    /// default is made of the process id.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How often to try again if there is no socket yet, or nobody listens on it. The default
    /// is 80.
    #[must_use]
    pub const fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// The time between two attempts. The default is 100 ms.
    #[must_use]
    pub const fn retry_interval(mut self, interval: Duration) -> Self {
        self.retry_interval = interval;
        self
    }

    /// How long a call waits for a store that does not answer at all, because it is stopped or
    /// stuck; one with a timeout waits so much longer than that. Then it fails with
    /// [`Error::Unresponsive`], and connecting with [`ConnectFailure::Silent`]. The default is
    /// 30 s.
    ///
    /// Calls that wait for other clients and have no timeout wait on: their answer may take long.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long a call looks for its reply before it sleeps, while replies come quickly; more than
    /// a millisecond counts as that. Being woken costs far more than a reply takes, so this makes
    /// calls several times as fast, and keeps a processor busy meanwhile. Calls that wait
    /// long sleep at once, and so do all calls if there is one processor only. Zero switches it
    /// off; the default is 100 µs.
    #[must_use]
    pub fn poll_time(mut self, time: Duration) -> Self {
        self.poll_time = time.min(Duration::from_micros(POLL_US_MAX));
        self
    }

    /// Whether to find objects in the store's directory, without asking it. True by default, if
    /// the store has one. Without it every get, release and [`Client::contains`] is a message; the
    /// answers are the same.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// let client = plasma::Client::builder().directory(false).connect(store.path())?;
    /// let nothing = client.get_one(plasma::ObjectId::random(), Some(std::time::Duration::ZERO))?;
    /// assert!(nothing.is_none());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    #[must_use]
    pub const fn directory(mut self, reads_directory: bool) -> Self {
        self.reads_directory = reads_directory;
        self
    }

    /// Whether this client only reads. False by default. Such a client never gets memory that it
    /// could write objects to, and whatever changes which objects there are (`create`, `put`,
    /// `delete`, `evict`, `set_quota` and their kin) is refused with [`Refusal::ReadOnly`]. It
    /// keeps what it uses from being evicted, as all readers do.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use plasma::client::Refusal;
    ///
    /// let reader = plasma::Client::builder().read_only(true).connect(store.path())?;
    /// let refused = reader.put(plasma::ObjectId::random(), b"", b"").unwrap_err();
    /// assert_eq!(refused.refusal(), Some(&Refusal::ReadOnly));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    #[must_use]
    pub const fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Connects to the store that listens at `path`.
    ///
    /// # Errors
    /// [`Error::Connect`] if there is no store (after all attempts), or at once if trying again
    /// would not help: no permission, a path of more than 107 bytes, a store of another version,
    /// something else than a store. [`Error::InvalidArgument`] if the name is too long.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use plasma::Client;
    ///
    /// let client = Client::builder().name("loader").retries(3).connect(store.path())?;
    /// assert_eq!(client.clients()?[0].name, "loader");
    ///
    /// let nobody = Client::builder().retries(0).connect("/nonexistent/plasma");
    /// assert!(nobody.unwrap_err().to_string().contains("/nonexistent/plasma"));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn connect(self, path: impl AsRef<Path>) -> Result<Client> {
        self.connect_with(path, None)
    }

    /// As [`Self::connect`]; the caller can interrupt the attempts.
    ///
    /// ```
    /// let mut interrupt = || true;
    /// let result = plasma::Client::builder().connect_with("/nonexistent", Some(&mut interrupt));
    /// assert!(matches!(result, Err(plasma::client::Error::Interrupted)));
    /// ```
    pub fn connect_with(self, path: impl AsRef<Path>, interrupt: Interrupt<'_>) -> Result<Client> {
        check_name(&self.name)?;
        Client::open(path.as_ref(), self, interrupt)
    }
}

/// The id of the first request on every connection.
pub(super) const CONNECT_REQUEST: RequestId = RequestId(1);

/// A connection that one thread owns.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) socket: UnixStream,
    pub(super) receiver: Receiver,
    /// What came with the first reply.
    pub(super) descriptors: Vec<(DescriptorInfo, OwnedFd)>,
}

/// Connects as often as `builder` says.
pub(super) fn open(
    path: &Path,
    builder: &Builder,
    clock: &Clock,
    mut interrupt: Interrupt<'_>,
) -> Result<(Line, Connected)> {
    let mut attempts = 0;
    let mut version = PROTOCOL_VERSION;
    loop {
        attempts += 1;
        let failure = match attempt(path, version, builder, clock, &mut interrupt) {
            Ok(open) => return open.ok_or(Error::Interrupted),
            // A store of the first version has to be asked in it.
            Err(ConnectFailure::VersionMismatch { theirs, .. })
                if (PROTOCOL_VERSION_OLDEST..version).contains(&theirs) =>
            {
                version = theirs;
                attempts -= 1;
                continue;
            }
            Err(failure) => failure,
        };
        if attempts > builder.retries || !failure.may_pass() {
            return Err(Error::Connect { path: path.to_owned(), attempts, source: failure });
        }
        pause(clock, builder.retry_interval, &mut interrupt)?;
    }
}

impl Line {
    /// Sends one message, waiting for as long as the socket is full.
    pub(super) fn send(
        &self,
        id: RequestId,
        message: &ClientMessage,
    ) -> std::result::Result<(), Fault> {
        let mut frame = Vec::new();
        append_frame(&mut frame, 0, |out| encode_client(out, id, message))?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match fd_passing::send(self.socket.as_fd(), rest, &[]) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` if the time is over before it came.
    pub(super) fn receive(
        &mut self,
        clock: &Clock,
        end: Option<Timestamp>,
    ) -> std::result::Result<Option<Received>, Fault> {
        loop {
            if let Some(received) = self.receiver.next()? {
                return Ok(Some(received));
            }
            // The receive need not wait: the socket may be for others to use as well, and an event
            // loop makes it non-blocking.
            let patience = end.map_or(Duration::MAX, |end| end.since(clock.now()));
            if wait_readable(&self.socket, patience) {
                self.receiver.receive(&self.socket)?;
            } else if patience.is_zero() {
                return Ok(None);
            }
        }
    }

    /// The next message of a store that should answer at once.
    pub(super) fn receive_soon(
        &mut self,
        clock: &Clock,
        end: Timestamp,
        interrupt: &mut Interrupt<'_>,
    ) -> std::result::Result<Soon, Fault> {
        loop {
            let next_look = end.min(clock.now().after(INTERRUPT_CHECK_INTERVAL));
            if let Some(received) = self.receive(clock, Some(next_look))? {
                return Ok(Soon::Received(received));
            } else if is_interrupted(interrupt) {
                return Ok(Soon::Interrupted);
            } else if clock.now() >= end {
                return Ok(Soon::Silent);
            }
        }
    }
}

/// What came of a wait for a message that should come at once.
pub(super) enum Soon {
    Received(Received),
    Interrupted,
    /// The end of patience.
    Silent,
}

/// `None` if it was interrupted.
fn attempt(
    path: &Path,
    version: u32,
    builder: &Builder,
    clock: &Clock,
    interrupt: &mut Interrupt<'_>,
) -> std::result::Result<Option<(Line, Connected)>, ConnectFailure> {
    let end = clock.now().after(builder.patience);
    let socket = loop {
        match connect_now(path).map_err(|error| explain(path, error))? {
            Some(socket) => break socket,
            None if is_interrupted(interrupt) => return Ok(None),
            None if clock.now() >= end => return Err(ConnectFailure::Silent(builder.patience)),
            None => thread::park_timeout(INTERRUPT_CHECK_INTERVAL.min(end.since(clock.now()))),
        }
    };
    let mut line = Line { socket, receiver: Receiver::new(), descriptors: Vec::new() };
    let connect = Connect {
        protocol_version: version,
        client_name: builder.name.clone(),
        reads_directory: builder.reads_directory,
        read_only: builder.read_only,
        oldest_version: PROTOCOL_VERSION_OLDEST,
    };
    line.send(CONNECT_REQUEST, &ClientMessage::Connect(connect))?;
    let received = match line.receive_soon(clock, end, interrupt)? {
        Soon::Received(received) => received,
        Soon::Interrupted => return Ok(None),
        Soon::Silent => return Err(ConnectFailure::Silent(builder.patience)),
    };
    line.descriptors = received.descriptors;
    let mismatch = |theirs| ConnectFailure::VersionMismatch { ours: PROTOCOL_VERSION, theirs };
    match received.reply {
        Reply::Connected(connected)
            if (PROTOCOL_VERSION_OLDEST..=version).contains(&connected.protocol_version) =>
        {
            let read_only = connected.read_only || builder.read_only;
            Ok(Some((line, Connected { read_only, ..within_limits(connected) })))
        }
        Reply::Connected(connected) => Err(mismatch(connected.protocol_version)),
        Reply::Refused(Refusal::VersionMismatch(theirs)) => Err(mismatch(theirs)),
        Reply::Refused(refusal) => Err(ConnectFailure::Refused(refusal)),
        other => Err(unexpected("connect", &other).into()),
    }
}

/// A connection; `None` if so many wait for a store that does not accept that the system would make
/// this one wait as well.
fn connect_now(path: &Path) -> io::Result<Option<UnixStream>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Connecting to a file that is no socket looks to the system as if nobody listened.
fn explain(path: &Path, error: io::Error) -> ConnectFailure {
    let is_other_file = || path.metadata().is_ok_and(|file| !file.file_type().is_socket());
    if error.kind() == io::ErrorKind::ConnectionRefused && is_other_file() {
        ConnectFailure::NotASocket
    } else {
        ConnectFailure::Io(error)
    }
}

impl From<Fault> for ConnectFailure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::HungUp,
            Fault::Lost(error) => {
                Self::Io(Arc::try_unwrap(error).unwrap_or_else(|error| error.kind().into()))
            }
            Fault::Protocol(error) => Self::Protocol(error),
            Fault::Closed | Fault::Inherited => Self::HungUp,
        }
    }
}

/// A store may allow less than this client can do, and no more.
fn within_limits(connected: Connected) -> Connected {
    Connected {
        request_ids_max: connected.request_ids_max.min(REQUEST_IDS_MAX),
        inline_bytes_max: connected.inline_bytes_max.min(INLINE_BYTES_MAX),
        batch_objects_max: connected.batch_objects_max.min(BATCH_OBJECTS_MAX),
        ..connected
    }
}

pub(super) fn pause(clock: &Clock, time: Duration, interrupt: &mut Interrupt<'_>) -> Result<()> {
    let end = clock.now().after(time);
    while clock.now() < end {
        if is_interrupted(interrupt) {
            return Err(Error::Interrupted);
        }
        thread::park_timeout(end.since(clock.now()).min(INTERRUPT_CHECK_INTERVAL));
    }
    Ok(())
}

/// Whether the caller does not want to wait any more.
pub(super) fn is_interrupted(interrupt: &mut Interrupt<'_>) -> bool {
    interrupt.as_mut().is_some_and(|interrupt| interrupt())
        || INTERRUPT.get().is_some_and(|interrupt| interrupt())
}

/// Whether there is anybody to ask.
pub(super) fn is_interruptible(interrupt: &Interrupt<'_>) -> bool {
    interrupt.is_some() || INTERRUPT.get().is_some()
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if name.len() <= CLIENT_NAME_BYTES_MAX {
        return Ok(());
    }
    let text = format!(
        "a client name of {} bytes is too long, the limit is {CLIENT_NAME_BYTES_MAX} bytes",
        name.len()
    );
    Err(Error::InvalidArgument(text))
}
