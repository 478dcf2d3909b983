//! Getting objects, waiting for them, and asking whether they are there.
//!
//! What this client holds already is answered without a message: a held object is sealed, and
//! stays. The store is asked for the rest, each id once, in as few requests as its limit allows.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::connection::Connection;
use super::error::Error;
use super::options::{GetOptions, Interrupt};
use super::waiting::Answer;
use super::{Client, ObjectBuffer, Result};
use crate::ids::{Location, ObjectId};
use crate::protocol::message::{Granted, ObjectState, Reply, Request};

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
        interrupt: Interrupt<'_>,
    ) -> Result<Vec<bool>> {
        let connection = self.connection()?;
        let wait = wait_request(&connection, ids, count, timeout)?;
        let Answer { reply, cut_short } = connection.call_waiting(wait, interrupt)?;
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
        let connection = self.connection()?;
        let states = connection.ask_states(&[id])?;
        Ok(states.first().copied().unwrap_or(ObjectState::Absent))
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
            told.extend(connection.ask_states(part)?);
        }
        let mut told = told.into_iter();
        let state = |is_here| {
            if is_here { Some(ObjectState::Sealed) } else { told.next() }
        };
        Ok(here.into_iter().filter_map(state).collect())
    }

    /// Asks the store for objects, which this client did not hold a moment ago. In the order of
    /// the ids, which are distinct.
    fn fetch(
        &self,
        connection: &std::sync::Arc<Connection>,
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
            let interrupt: Interrupt<'_> = match &mut interrupt {
                Some(interrupt) => Some(&mut **interrupt),
                None => None,
            };
            let Answer { reply, cut_short } = connection.call_waiting(get, interrupt)?;
            let granted = connection.granted(reply, part.len())?;
            // First taken over, so that what came in spite of an interrupt is released again.
            let buffers = connection.admit(&present(part, &granted))?;
            if let Some(error) = cut_short {
                ObjectBuffer::release_all(buffers);
                return Err(error);
            }
            let mut buffers = buffers.into_iter();
            fetched.extend(granted.iter().map(|found| found.and_then(|_| buffers.next())));
        }
        Ok(fetched)
    }
}

impl Connection {
    /// What a get was granted, if the reply is the answer to one for so many ids.
    pub(super) fn granted(&self, reply: Reply, count: usize) -> Result<Vec<Option<Granted>>> {
        match reply {
            Reply::Objects(places) if places.len() == count => {
                let held = |location: Location| Granted { location, pin: None };
                Ok(places.into_iter().map(|place| place.map(held)).collect())
            }
            Reply::Granted(granted) if granted.len() == count => Ok(granted),
            other => Err(self.unexpected("get", &other)),
        }
    }

    fn ask_states(&self, ids: &[ObjectId]) -> Result<Vec<ObjectState>> {
        match self.call(Request::GetState { ids: ids.to_vec() })? {
            Reply::States(states) if states.len() == ids.len() => Ok(states),
            other => Err(self.unexpected("get_state", &other)),
        }
    }
}

/// A wait, if one request can ask for it.
pub(super) fn wait_request(
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

pub(super) fn distinct(ids: impl Iterator<Item = ObjectId>) -> Vec<ObjectId> {
    let mut seen: HashSet<ObjectId, RandomState> =
        HashSet::with_capacity_and_hasher(ids.size_hint().0, RandomState::default());
    ids.filter(|id| seen.insert(*id)).collect()
}

pub(super) fn present(ids: &[ObjectId], granted: &[Option<Granted>]) -> Vec<(ObjectId, Granted)> {
    ids.iter().zip(granted).filter_map(|(id, granted)| Some((*id, (*granted)?))).collect()
}
