//! Getting objects, waiting for them, and asking whether they are there.
//!
//! What this client holds already is answered without a message: a held object is sealed, and
//! stays. The store is asked for the rest, each id once, in as few requests as its limit allows.
//!
//! An event loop does not wait for the answers: it watches a descriptor. Its thread sends, takes in
//! what has come when the socket is readable, and looks which of its requests are complete. None of
//! it ever waits. The other calls of a client may be used beside it, at a price that
//! [`Client::descriptor`] tells.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::connection::{Answer, Connection};
use super::error::Error;
use super::opening::Interrupt;
use super::receiving::Waiter;
use super::transport::AT_ONCE;
use super::{Client, ObjectBuffer, Result};
use crate::ids::ObjectId;
use crate::protocol::message::{ObjectState, Reply, Request, RequestId};
use crate::time::Timestamp;

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

type Fetched = HashMap<ObjectId, Option<ObjectBuffer>, RandomState>;

impl Client {
    /// Gets objects, in the order of the ids, waiting for those that are not sealed yet: `None` for
    /// ever, zero not at all. What is not there in time is `None`. An id may come more than once.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use std::time::Duration;
    /// use plasma::ObjectId;
    ///
    /// let (here, missing) = (ObjectId::random(), ObjectId::random());
    /// client.put(here, b"data", b"")?;
    /// let found = client.get(&[missing, here, here], Some(Duration::from_millis(1)))?;
    /// assert!(found[0].is_none());
    /// assert_eq!(&found[1].as_ref().expect("it was put")[..], b"data");
    /// assert!(found[2].is_some());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::TooManyWaiting`](super::Refusal::TooManyWaiting);
    /// [`Error::Map`] if the store's memory cannot be mapped; [`Error::Unresponsive`] if there is a
    /// timeout and the store is silent long after it. Nothing is held then.
    pub fn get(
        &self,
        ids: &[ObjectId],
        timeout: Option<Duration>,
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        self.get_with(ids, GetOptions { timeout, ..GetOptions::default() }, None)
    }

    /// Gets one object. See [`Self::get`].
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use std::time::Duration;
    ///
    /// let nothing = client.get_one(plasma::ObjectId::random(), Some(Duration::ZERO))?;
    /// assert!(nothing.is_none());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_one(&self, id: ObjectId, timeout: Option<Duration>) -> Result<Option<ObjectBuffer>> {
        let found = self.with_connection(|connection| connection.find_one_in_directory(&id))?;
        if found.is_some() {
            return Ok(found);
        }
        let found = self.get(&[id], timeout)?;
        Ok(found.into_iter().next().flatten())
    }

    /// As [`Self::get`], with more choice; the caller can interrupt the wait.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::{Error, GetOptions};
    ///
    /// // As a signal handler would: it is asked every 50 ms.
    /// let mut asked = 0;
    /// let mut interrupt = || { asked += 1; asked == 2 };
    /// let missing = plasma::ObjectId::random();
    /// let result = client.get_with(&[missing], GetOptions::default(), Some(&mut interrupt));
    /// assert!(matches!(result, Err(Error::Interrupted)));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::get`], [`Error::Interrupted`], and
    /// [`Refusal::Abandoned`](super::Refusal::Abandoned) if that was asked for. Nothing is held
    /// then that was not before.
    pub fn get_with(
        &self,
        ids: &[ObjectId],
        options: GetOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        let connection = self.connection()?;
        let mut found = connection.find_here(ids)?;
        let unknown = ids.iter().zip(&found).filter(|(_, found)| found.is_none());
        let unknown: Vec<ObjectId> = unknown.map(|(id, _)| *id).collect();
        if unknown.is_empty() {
            return Ok(found);
        }
        let asked = distinct(unknown.iter().copied());
        let mut fetched = self.fetch(&connection, &asked, options, interrupt)?;
        let mut missing = found.iter_mut().filter(|found| found.is_none());
        if asked.len() == unknown.len() {
            // Nearly always. Then the answers are in the order of the questions.
            for fetched in fetched {
                if let Some(missing) = missing.next() {
                    *missing = fetched;
                }
            }
        } else {
            let fetched: Fetched = asked.into_iter().zip(fetched.drain(..)).collect();
            for (id, missing) in unknown.iter().zip(missing) {
                *missing = fetched.get(id).cloned().flatten();
            }
        }
        Ok(found)
    }

    /// Gets objects that can be had without asking the store, all of them or none: `None` says
    /// nothing about whether they are there. Costs next to nothing and never waits, so it is the
    /// first thing to try where a call that might wait costs more.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// let id = plasma::ObjectId::random();
    /// client.put(id, b"data", b"")?;
    /// let found = match client.get_at_hand(&[id])? {
    ///     Some(found) => found,
    ///     None => client.get(&[id], None)?.into_iter().flatten().collect(),
    /// };
    /// assert_eq!(found[0].data(), b"data");
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Map`] if the store's memory cannot be mapped, and those of the connection.
    pub fn get_at_hand(&self, ids: &[ObjectId]) -> Result<Option<Vec<ObjectBuffer>>> {
        self.with_connection(|connection| connection.get_at_hand(ids))
    }

    /// Waits until `count` of the objects have been seen sealed, and says which. Holds nothing: an
    /// object that was there may be evicted before the next call. An id that comes more than
    /// once counts once.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::ObjectId;
    ///
    /// let (first, second) = (ObjectId::random(), ObjectId::random());
    /// client.put(second, b"", b"")?;
    /// assert_eq!(client.wait(&[first, second], 1, None)?, [false, true]);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `count` is more than the number of ids, or there are more ids
    /// than fit into one request (8192, unless the store allows less);
    /// [`Refusal::TooManyWaiting`](super::Refusal::TooManyWaiting).
    pub fn wait(
        &self,
        ids: &[ObjectId],
        count: usize,
        timeout: Option<Duration>,
    ) -> Result<Vec<bool>> {
        self.wait_with(ids, count, timeout, None)
    }

    /// As [`Self::wait`]; the caller can interrupt it.
    ///
    /// # Errors
    /// As [`Self::wait`], and [`Error::Interrupted`].
    pub fn wait_with(
        &self,
        ids: &[ObjectId],
        count: usize,
        timeout: Option<Duration>,
        mut interrupt: Interrupt<'_>,
    ) -> Result<Vec<bool>> {
        let connection = self.connection()?;
        let wait = wait_request(&connection, ids, count, timeout)?;
        let Answer { reply, cut_short } = connection.call_waiting(wait, &mut interrupt)?;
        match (reply, cut_short) {
            (_, Some(error)) => Err(error),
            (Reply::Ready(ready), None) if ready.len() == ids.len() => Ok(ready),
            (other, None) => Err(connection.unexpected("wait", &other)),
        }
    }

    /// Whether the object is there: sealed, and not just being created.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// assert!(!client.contains(plasma::ObjectId::random())?);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn contains(&self, id: ObjectId) -> Result<bool> {
        Ok(self.state(id)? == ObjectState::Sealed)
    }

    /// Whether the object is there, if that is known without asking the store. False says nothing.
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn contains_at_hand(&self, id: ObjectId) -> Result<bool> {
        self.with_connection(|connection| Ok(connection.has_here(&id)))
    }

    /// Where the life of an object stands.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::ObjectState;
    /// assert_eq!(client.state(plasma::ObjectId::random())?, ObjectState::Absent);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn state(&self, id: ObjectId) -> Result<ObjectState> {
        if self.contains_at_hand(id)? {
            return Ok(ObjectState::Sealed);
        }
        Ok(self.states(&[id])?.first().copied().unwrap_or(ObjectState::Absent))
    }

    /// Where the lives of many objects stand, in the order of the ids.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::{ObjectId, client::ObjectState};
    ///
    /// let ids = [ObjectId::random(), ObjectId::random()];
    /// client.put(ids[1], b"", b"")?;
    /// assert_eq!(client.states(&ids)?, [ObjectState::Absent, ObjectState::Sealed]);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn states(&self, ids: &[ObjectId]) -> Result<Vec<ObjectState>> {
        let connection = self.connection()?;
        let here: Vec<bool> = ids.iter().map(|id| connection.has_here(id)).collect();
        let unknown = ids.iter().zip(&here).filter(|(_, is_here)| !**is_here);
        let unknown: Vec<_> = unknown.map(|(id, _)| *id).collect();
        let mut told = Vec::with_capacity(unknown.len());
        for part in unknown.chunks(connection.ids_together()) {
            told.extend(connection.ask(Request::GetState { ids: part.to_vec() }, |reply| {
                match reply {
                    Reply::States(states) if states.len() == part.len() => Ok(states),
                    other => Err(other),
                }
            })?);
        }
        let mut told = told.into_iter();
        let state = |is_here| {
            if is_here { Some(ObjectState::Sealed) } else { told.next() }
        };
        Ok(here.into_iter().filter_map(state).collect())
    }

    /// Begins a [`get`](Self::get_with) and waits for nothing. What this client holds already
    /// is not asked for; if that is all, the result is there at once.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// # let other = plasma::Client::connect(store.path())?;
    /// use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    /// use plasma::client::GetOptions;
    /// use std::os::fd::AsFd;
    ///
    /// let id = plasma::ObjectId::random();
    /// let mut pending = client.start_get(&[id], GetOptions::default())?;
    /// assert!(pending.try_take()?.is_none());
    /// other.put(id, b"data", b"")?;
    ///
    /// // The event loop:
    /// let descriptor = client.descriptor()?;
    /// let found = loop {
    ///     let mut watched = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
    ///     poll(&mut watched, PollTimeout::NONE)?;
    ///     client.receive_ready()?;
    ///     if let Some(found) = pending.try_take()? {
    ///         break found;
    ///     }
    /// };
    /// assert_eq!(&found[0].as_ref().expect("it was put")[..], b"data");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection. The store's refusals come with the result.
    pub fn start_get(&self, ids: &[ObjectId], options: GetOptions) -> Result<PendingGet> {
        let connection = self.connection()?;
        let found = connection.find_here(ids)?;
        let unknown = ids.iter().zip(&found).filter(|(_, found)| found.is_none());
        let unknown = distinct(unknown.map(|(id, _)| *id));
        let parts_max = connection.connected.request_ids_max;
        let mut pending = PendingGet {
            ids: ids.to_vec(),
            found,
            fetched: HashMap::default(),
            parts: Vec::new(),
            requests: None,
        };
        let requests = pending.requests.insert(Requests::new(connection));
        for part in unknown.chunks(parts_max) {
            let request = requests.start(Request::Get {
                ids: part.to_vec(),
                timeout: options.timeout,
                fail_if_abandoned: options.fail_if_abandoned,
            })?;
            pending.parts.push((request, part.to_vec()));
        }
        Ok(pending)
    }

    /// Begins a [`wait`](Self::wait) and waits for nothing.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// let id = plasma::ObjectId::random();
    /// let mut pending = client.start_wait(&[id], 1, None)?;
    /// client.put(id, b"", b"")?;
    /// // The put's own wait has taken in what came before its answer, or this does now.
    /// client.receive_ready()?;
    /// assert_eq!(pending.try_take()?, Some(vec![true]));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] as with [`Self::wait`].
    pub fn start_wait(
        &self,
        ids: &[ObjectId],
        count: usize,
        timeout: Option<Duration>,
    ) -> Result<PendingWait> {
        let connection = self.connection()?;
        let wait = wait_request(&connection, ids, count, timeout)?;
        let mut requests = Requests::new(connection);
        let request = requests.start(wait)?;
        Ok(PendingWait { count: ids.len(), request, requests: Some(requests) })
    }

    /// Takes in the replies that have come, without waiting for more, and says which requests have
    /// got one since the last call: a loop with thousands of them need not look at each. Some of
    /// these may have been given up meanwhile. If another thread is reading just now, that
    /// one takes them in.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the store has gone. What came before can still be taken.
    pub fn receive_ready(&self) -> Result<Vec<RequestId>> {
        let connection = self.connection()?;
        connection.transport.receive_ready().map_err(|fault| connection.error(fault))
    }

    /// A duplicate of this client's socket, close-on-exec, to be watched for reading. When it is
    /// readable, call [`Self::receive_ready`], and then `try_take` of everything pending. Read and
    /// write nothing there.
    ///
    /// Other calls on the same client, and its clones, read from the same socket while they wait,
    /// and take in the replies to pending requests as well. So a loop that relies on
    /// the descriptor alone needs a client of its own. One that has not should also look after
    /// each of those calls.
    ///
    /// In a forked child, ask again: the child's client has another connection. The duplicate does
    /// not keep a connection alive.
    ///
    /// # Errors
    /// [`Error::Disconnected`] if the system has no more descriptors.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        let connection = self.connection()?;
        connection.transport.duplicate_socket().map_err(|fault| connection.error(fault))
    }

    /// Asks the store for objects, which this client did not hold a moment ago. In the order of
    /// the ids, which are distinct.
    fn fetch(
        &self,
        connection: &Arc<Connection>,
        ids: &[ObjectId],
        options: GetOptions,
        mut interrupt: Interrupt<'_>,
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        let clock = &self.shared.clock;
        let end = options.timeout.map(|timeout| clock.now().after(timeout));
        let mut fetched = Vec::with_capacity(ids.len());
        for part in ids.chunks(connection.ids_together()) {
            let get = Request::Get {
                ids: part.to_vec(),
                timeout: end.map(|end| end.since(clock.now())),
                fail_if_abandoned: options.fail_if_abandoned,
            };
            let Answer { reply, cut_short } = connection.call_waiting(get, &mut interrupt)?;
            // First taken over, so that what came in spite of an interrupt is released again.
            let found = connection.admit(part, reply)?;
            if let Some(error) = cut_short {
                ObjectBuffer::release_all(found.into_iter().flatten());
                return Err(error);
            }
            fetched.extend(found);
        }
        Ok(fetched)
    }
}

/// A get that has begun, made by [`Client::start_get`]. When dropped before it is complete, the
/// store forgets it, and what comes too late is given back.
#[derive(Debug)]
pub struct PendingGet {
    ids: Vec<ObjectId>,
    /// What was held before, for each id.
    found: Vec<Option<ObjectBuffer>>,
    fetched: HashMap<ObjectId, ObjectBuffer, RandomState>,
    /// Requests without an answer, and their ids.
    parts: Vec<(RequestId, Vec<ObjectId>)>,
    /// `None` when it is over: then it keeps nothing alive.
    requests: Option<Requests>,
}

impl PendingGet {
    /// The requests that were sent and have no answer yet. None: [`Self::try_take`] has the result.
    pub fn requests(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.parts.iter().map(|(request, _)| *request)
    }

    /// The result, as [`Client::get`] gives it; `None` if it is not there yet. Waits for nothing
    /// and receives nothing: see [`Client::receive_ready`].
    ///
    /// # Errors
    /// As [`Client::get_with`]; [`Error::Closed`] after a disconnect; [`Error::Inherited`] in a
    /// child that was forked since. After an error nothing is held and the get is over. When
    /// it is over, [`Error::InvalidArgument`].
    pub fn try_take(&mut self) -> Result<Option<Vec<Option<ObjectBuffer>>>> {
        let Some(mut requests) = self.requests.take() else {
            return Err(Error::InvalidArgument("this get is over".to_owned()));
        };
        match self.take_parts(&mut requests) {
            Ok(false) => {
                self.requests = Some(requests);
                Ok(None)
            }
            Ok(true) => {
                let mut found = std::mem::take(&mut self.found);
                for (id, found) in self.ids.iter().zip(&mut found) {
                    if found.is_none() {
                        *found = self.fetched.get(id).cloned();
                    }
                }
                self.fetched.clear();
                Ok(Some(found))
            }
            Err(error) => {
                let fetched = self.fetched.drain().map(|(_, buffer)| buffer);
                ObjectBuffer::release_all(fetched.chain(self.found.drain(..).flatten()));
                Err(error)
            }
        }
    }

    /// Takes over what has come. True if that is all.
    fn take_parts(&mut self, requests: &mut Requests) -> Result<bool> {
        requests.check("this pending get")?;
        let mut waiting = Vec::new();
        for (request, ids) in std::mem::take(&mut self.parts) {
            let Some(reply) = requests.take(request)? else {
                waiting.push((request, ids));
                continue;
            };
            let found = requests.connection.admit(&ids, reply)?.into_iter().flatten();
            self.fetched.extend(found.map(|buffer| (buffer.id(), buffer)));
        }
        self.parts = waiting;
        Ok(self.parts.is_empty())
    }
}

/// A wait that has begun, made by [`Client::start_wait`]. When dropped before it is complete, the
/// store forgets it.
#[derive(Debug)]
pub struct PendingWait {
    /// Number of ids.
    count: usize,
    request: RequestId,
    /// `None` when it is over: then it keeps nothing alive.
    requests: Option<Requests>,
}

impl PendingWait {
    /// The request that was sent.
    pub const fn request(&self) -> RequestId {
        self.request
    }

    /// The result, as [`Client::wait`] gives it; `None` if it is not there yet. Waits for nothing
    /// and receives nothing: see [`Client::receive_ready`].
    ///
    /// # Errors
    /// As [`Client::wait`], and as [`PendingGet::try_take`].
    pub fn try_take(&mut self) -> Result<Option<Vec<bool>>> {
        let Some(mut requests) = self.requests.take() else {
            return Err(Error::InvalidArgument("this wait is over".to_owned()));
        };
        requests.check("this pending wait")?;
        match requests.take(self.request)? {
            None => {
                self.requests = Some(requests);
                Ok(None)
            }
            Some(Reply::Ready(ready)) if ready.len() == self.count => Ok(Some(ready)),
            Some(other) => Err(requests.connection.unexpected("wait", &other)),
        }
    }
}

/// Requests without an answer, which are abandoned when this is dropped.
#[derive(Debug)]
struct Requests {
    connection: Arc<Connection>,
    unanswered: Vec<RequestId>,
    started: Timestamp,
    /// When any store that runs should have answered.
    end: Option<Timestamp>,
}

impl Requests {
    fn new(connection: Arc<Connection>) -> Self {
        let started = connection.transport.clock.now();
        Self { connection, unanswered: Vec::new(), started, end: None }
    }

    fn start(&mut self, request: Request) -> Result<RequestId> {
        let end = self.connection.patience_end(&request);
        let started = self.connection.transport.begin(request, Waiter::EventLoop, AT_ONCE);
        let request = started.map_err(|fault| self.connection.error(fault))?;
        self.unanswered.push(request);
        self.end = end;
        Ok(request)
    }

    /// Whether there can be results at all.
    fn check(&self, what: &'static str) -> Result<()> {
        if self.connection.is_inherited() {
            return Err(Error::Inherited(what));
        }
        if self.connection.transport.is_closing() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// The reply to a request, if it has come. A refusal is an error.
    fn take(&mut self, request: RequestId) -> Result<Option<Reply>> {
        let connection = &self.connection;
        let taken = connection.transport.take_reply(request);
        let Some(reply) = taken.map_err(|fault| connection.error(fault))? else {
            let is_over = self.end.is_some_and(|end| end <= connection.transport.clock.now());
            return if is_over { Err(connection.unresponsive(self.started)) } else { Ok(None) };
        };
        self.unanswered.retain(|unanswered| *unanswered != request);
        match reply {
            Reply::Refused(refusal) => Err(Error::Refused(refusal)),
            reply => Ok(Some(reply)),
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        for request in self.unanswered.drain(..) {
            self.connection.transport.abandon(request);
        }
    }
}

/// A wait, if one request can ask for it.
fn wait_request(
    connection: &Connection,
    ids: &[ObjectId],
    count: usize,
    timeout: Option<Duration>,
) -> Result<Request> {
    let limit = connection.connected.request_ids_max;
    if count > ids.len() {
        let text = format!("{count} of {} objects can never be ready", ids.len());
        return Err(Error::InvalidArgument(text));
    }
    if ids.len() > limit {
        let text = format!("a wait for {} ids, the limit is {limit} ids", ids.len());
        return Err(Error::InvalidArgument(text));
    }
    Ok(Request::Wait { ids: ids.to_vec(), count, timeout })
}

fn distinct(ids: impl Iterator<Item = ObjectId>) -> Vec<ObjectId> {
    let mut seen: HashSet<ObjectId, RandomState> =
        HashSet::with_capacity_and_hasher(ids.size_hint().0, RandomState::default());
    ids.filter(|id| seen.insert(*id)).collect()
}
