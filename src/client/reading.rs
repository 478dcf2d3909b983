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

use super::connection::{Answer, Connection, answer};
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

type Fetched = HashMap<ObjectId, ObjectBuffer, RandomState>;

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
    /// assert!(client.get_one(missing, Some(Duration::ZERO))?.is_none());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Refusal::TooManyWaiting`](super::Refusal::TooManyWaiting);
    /// [`Error::Map`] if the store's memory cannot be mapped. Nothing is held then.
    pub fn get(
        &self,
        ids: &[ObjectId],
        timeout: Option<Duration>,
    ) -> Result<Vec<Option<ObjectBuffer>>> {
        self.get_with(ids, GetOptions { timeout, ..GetOptions::default() }, None)
    }

    /// Gets one object. See [`Self::get`].
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
        let unknown = unknown(ids, &found);
        if unknown.is_empty() {
            return Ok(found);
        }
        let asked = distinct(&unknown);
        let fetched = self.fetch(&connection, &asked, options, interrupt)?;
        if asked.len() == unknown.len() {
            // Nearly always. Then the answers are in the order of the questions.
            let missing = found.iter_mut().filter(|found| found.is_none());
            missing.zip(fetched).for_each(|(missing, fetched)| *missing = fetched);
        } else {
            let fetched = fetched.into_iter().flatten().map(|buffer| (buffer.id(), buffer));
            fill_in(ids, &mut found, &fetched.collect());
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
    /// [`Error::Map`] if the store's memory cannot be mapped.
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
    pub fn contains(&self, id: ObjectId) -> Result<bool> {
        Ok(self.state(id)? == ObjectState::Sealed)
    }

    /// Whether the object is there, if that is known without asking the store. False says nothing.
    pub fn contains_at_hand(&self, id: ObjectId) -> Result<bool> {
        self.with_connection(|connection| Ok(connection.has_here(&id)))
    }

    /// Where the life of an object stands.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::ObjectState;
    /// let id = plasma::ObjectId::random();
    /// assert_eq!(client.state(id)?, ObjectState::Absent);
    /// assert!(!client.contains(id)?);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
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
    pub fn states(&self, ids: &[ObjectId]) -> Result<Vec<ObjectState>> {
        let connection = self.connection()?;
        let mut states = vec![ObjectState::Sealed; ids.len()];
        let mut unknown: Vec<_> = ids.iter().zip(&mut states).collect();
        unknown.retain(|(id, _)| !connection.has_here(id));
        for part in unknown.chunks_mut(connection.ids_together()) {
            let get_state = Request::GetState { ids: part.iter().map(|(id, _)| **id).collect() };
            let told = answer!(Reply::States(told) if told.len() == part.len() => told);
            let told = connection.ask(get_state, told)?;
            for ((_, state), told) in part.iter_mut().zip(told) {
                **state = told;
            }
        }
        Ok(states)
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
    /// The store's refusals come with the result.
    pub fn start_get(&self, ids: &[ObjectId], options: GetOptions) -> Result<PendingGet> {
        let connection = self.connection()?;
        let found = connection.find_here(ids)?;
        let unknown = distinct(&unknown(ids, &found));
        let parts_max = connection.connected.request_ids_max;
        let mut requests = Requests::new(connection);
        for part in unknown.chunks(parts_max) {
            let get = Request::Get {
                ids: part.to_vec(),
                timeout: options.timeout,
                fail_if_abandoned: options.fail_if_abandoned,
            };
            requests.start(part, get)?;
        }
        let (ids, fetched) = (ids.to_vec(), Fetched::default());
        Ok(PendingGet { ids, found, fetched, requests: Some(requests) })
    }

    /// Begins a [`wait`](Self::wait) and waits for nothing. The limits of that call are the same.
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
    pub fn start_wait(
        &self,
        ids: &[ObjectId],
        count: usize,
        timeout: Option<Duration>,
    ) -> Result<PendingWait> {
        let connection = self.connection()?;
        let wait = wait_request(&connection, ids, count, timeout)?;
        let mut requests = Requests::new(connection);
        let request = requests.start(ids, wait)?;
        Ok(PendingWait { request, requests: Some(requests) })
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
    fetched: Fetched,
    /// `None` when it is over: then it keeps nothing alive.
    requests: Option<Requests>,
}

impl PendingGet {
    /// The requests that were sent and have no answer yet. None: [`Self::try_take`] has the result.
    pub fn requests(&self) -> impl Iterator<Item = RequestId> + '_ {
        let unanswered = self.requests.iter().flat_map(|requests| &requests.unanswered);
        unanswered.map(|(request, _)| *request)
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
        let taken = requests.take("this pending get", |connection, ids, reply| {
            let fetched = connection.admit(ids, reply)?.into_iter().flatten();
            self.fetched.extend(fetched.map(|buffer| (buffer.id(), buffer)));
            Ok(())
        });
        match taken {
            Ok(()) if !requests.unanswered.is_empty() => {
                self.requests = Some(requests);
                Ok(None)
            }
            Ok(()) => {
                let mut found = std::mem::take(&mut self.found);
                fill_in(&self.ids, &mut found, &std::mem::take(&mut self.fetched));
                Ok(Some(found))
            }
            Err(error) => {
                let fetched = self.fetched.drain().map(|(_, buffer)| buffer);
                ObjectBuffer::release_all(fetched.chain(self.found.drain(..).flatten()));
                Err(error)
            }
        }
    }
}

/// A wait that has begun, made by [`Client::start_wait`]. When dropped before it is complete, the
/// store forgets it.
#[derive(Debug)]
pub struct PendingWait {
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
        let mut outcome = None;
        requests.take("this pending wait", |connection, ids, reply| match reply {
            Reply::Ready(ready) if ready.len() == ids.len() => {
                outcome = Some(ready);
                Ok(())
            }
            other => Err(connection.unexpected("wait", &other)),
        })?;
        if outcome.is_none() {
            self.requests = Some(requests);
        }
        Ok(outcome)
    }
}

/// Requests without an answer, which are abandoned when this is dropped.
#[derive(Debug)]
struct Requests {
    connection: Arc<Connection>,
    /// Each with the ids that it is about.
    unanswered: Vec<(RequestId, Vec<ObjectId>)>,
    started: Timestamp,
    /// When any store that runs should have answered.
    end: Option<Timestamp>,
}

impl Requests {
    fn new(connection: Arc<Connection>) -> Self {
        let started = connection.transport.clock.now();
        Self { connection, unanswered: Vec::new(), started, end: None }
    }

    fn start(&mut self, ids: &[ObjectId], request: Request) -> Result<RequestId> {
        let end = self.connection.patience_end(&request);
        let started = self.connection.transport.begin(request, Waiter::EventLoop, AT_ONCE);
        let request = started.map_err(|fault| self.connection.error(fault))?;
        self.unanswered.push((request, ids.to_vec()));
        self.end = end;
        Ok(request)
    }

    /// Hands the replies that have come to `each`, with the ids of their requests. A refusal is an
    /// error.
    fn take(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&Arc<Connection>, &[ObjectId], Reply) -> Result<()>,
    ) -> Result<()> {
        let Self { connection, unanswered, started, end } = self;
        if connection.is_inherited() {
            return Err(Error::Inherited(what));
        }
        if connection.transport.is_closing() {
            return Err(Error::Closed);
        }
        let mut next = 0;
        while let Some((request, _)) = unanswered.get(next) {
            let taken = connection.transport.take_reply(*request);
            let Some(reply) = taken.map_err(|fault| connection.error(fault))? else {
                if end.is_some_and(|end| end <= connection.transport.clock.now()) {
                    return Err(connection.unresponsive(*started));
                }
                next += 1;
                continue;
            };
            let (_, ids) = unanswered.remove(next);
            match reply {
                Reply::Refused(refusal) => return Err(refusal.into()),
                reply => each(connection, &ids, reply)?,
            }
        }
        Ok(())
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        for (request, _) in self.unanswered.drain(..) {
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

/// The ids of what has not been found.
fn unknown(ids: &[ObjectId], found: &[Option<ObjectBuffer>]) -> Vec<ObjectId> {
    let unknown = ids.iter().zip(found).filter(|(_, found)| found.is_none());
    unknown.map(|(id, _)| *id).collect()
}

fn distinct(ids: &[ObjectId]) -> Vec<ObjectId> {
    let mut seen = HashSet::with_capacity_and_hasher(ids.len(), RandomState::default());
    ids.iter().copied().filter(|id| seen.insert(*id)).collect()
}

/// Adds what has been fetched to what was found before.
fn fill_in(ids: &[ObjectId], found: &mut [Option<ObjectBuffer>], fetched: &Fetched) {
    for (id, found) in ids.iter().zip(found) {
        if found.is_none() {
            *found = fetched.get(id).cloned();
        }
    }
}
