//! What a user may choose when connecting, creating and getting.

use std::path::Path;
use std::time::Duration;

use super::error::Error;
use super::{Client, Result};
use crate::limits::{
    ANSWER_GRACE, CLIENT_NAME_BYTES_MAX, CONNECT_RETRIES, CONNECT_RETRY_INTERVAL, POLL_TIME,
    POLL_US_MAX,
};
use crate::protocol::message::Room;

/// Asked now and then by a call that waits (every 50 ms, so use it for things that are quick); when
/// it says true, the call ends with [`Error::Interrupted`](super::Error::Interrupted) and the store
/// forgets the request. If the store does not answer, the call ends all the same, half a second
/// later at most; what the store grants after that is given back.
///
/// It is called on the thread that waits, and holds up no other one.
pub type Interrupt<'a> = Option<&'a mut dyn FnMut() -> bool>;

/// How to connect. Made by [`Client::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) name: String,
    pub(super) retries: u32,
    pub(super) retry_interval: Duration,
    pub(super) answer_grace: Duration,
    pub(super) poll_time: Duration,
    pub(super) reads_directory: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: format!("pid {}", std::process::id()),
            retries: CONNECT_RETRIES,
            retry_interval: CONNECT_RETRY_INTERVAL,
            answer_grace: ANSWER_GRACE,
            poll_time: POLL_TIME,
            reads_directory: true,
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

    /// How long past its timeout a call goes on waiting for a store that does not answer at all.
    /// Then it fails with [`Error::Unresponsive`]. The default is 5 s.
    #[must_use]
    pub const fn answer_grace(mut self, grace: Duration) -> Self {
        self.answer_grace = grace;
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
    /// # Errors
    /// As [`Self::connect`], and [`Error::Interrupted`].
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

/// How to make room for a new object.
///
/// ```
/// use std::time::Duration;
/// use plasma::client::CreateOptions;
///
/// // Wait a second for others to release something, and evict nothing.
/// let patient = CreateOptions { evict: false, timeout: Some(Duration::from_secs(1)) };
/// assert_eq!(CreateOptions::default().timeout, Some(Duration::ZERO));
/// # let _ = patient;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Whether objects that nobody uses may be evicted, least recently used first. True by default.
    pub evict: bool,
    /// How long to wait for room: `None` for ever, zero (the default) not at all, but for 3 ms if
    /// somebody holds objects: what he has let go may still be on its way.
    pub timeout: Option<Duration>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { evict: true, timeout: Some(Duration::ZERO) }
    }
}

impl From<CreateOptions> for Room {
    fn from(options: CreateOptions) -> Self {
        Self { evict: options.evict, timeout: options.timeout }
    }
}

/// How to wait for objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GetOptions {
    /// How long to wait for objects that are not sealed yet: `None` (the default) for ever, zero
    /// not at all.
    pub timeout: Option<Duration>,
    /// Whether to fail with [`Refusal::Abandoned`](super::Refusal::Abandoned) when the creator of
    /// an object aborts it or dies during the wait. False by default: somebody else may create it.
    pub fail_if_abandoned: bool,
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
