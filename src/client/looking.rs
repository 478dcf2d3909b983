//! Removing objects, and looking at what the store has: lists, numbers, clients, and a stream of
//! what happens.
//!
//! A stream has a connection of its own, which one thread owns, so that reading is all there is to
//! do. Nothing is held through any of this.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::connection::answer;
use super::error::{Error, Fault, unexpected};
use super::opening::{
    CONNECT_REQUEST, Interrupt, Line, Soon, is_interrupted, is_interruptible, open,
};
use super::receiving::Received;
use super::{
    Client, ClientInfo, DeleteOutcome, Event, ObjectInfo, ObjectState, Result, Shared, Stats,
};
use crate::ids::{ClientId, ObjectId};
use crate::limits::INTERRUPT_CHECK_INTERVAL;
use crate::protocol::ProtocolError;
use crate::protocol::codec::decode_server;
use crate::protocol::message::{ClientMessage, Reply, Request, RequestId};
use crate::shm::fork;
use crate::time::{Clock, Timestamp};

impl Client {
    /// Deletes objects, and says in the order of the ids what became of each. An object that
    /// somebody holds (this client's own buffers included) goes when the last one lets go.
    ///
    /// Should the connection fail in the middle of more than 2048 ids, some may have been deleted.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::{ObjectId, client::DeleteOutcome};
    ///
    /// let (idle, held, missing) = (ObjectId::random(), ObjectId::random(), ObjectId::random());
    /// client.put(idle, b"", b"")?;
    /// client.put(held, b"", b"")?;
    /// let buffer = client.get_one(held, None)?;
    /// assert_eq!(
    ///     client.delete(&[idle, held, missing])?,
    ///     [DeleteOutcome::Deleted, DeleteOutcome::DeferredInUse, DeleteOutcome::NotFound],
    /// );
    /// drop(buffer);
    /// assert!(!client.contains(held)?);
    /// assert_eq!(client.delete_one(missing)?, DeleteOutcome::NotFound);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// What another client released a moment ago may not have come to the store yet. So where
    /// somebody else uses an object, this looks once more after 3 ms before it says so.
    pub fn delete(&self, ids: &[ObjectId]) -> Result<Vec<DeleteOutcome>> {
        let connection = self.connection()?;
        let mut all = Vec::with_capacity(ids.len());
        for part in ids.chunks(connection.ids_together()) {
            let delete = Request::Delete { ids: part.to_vec() };
            let outcomes =
                answer!(Reply::Deleted(outcomes) if outcomes.len() == part.len() => outcomes);
            all.extend(connection.ask(delete, outcomes)?);
        }
        // What others have let go may have been on its way, so those are looked at once more.
        let mut in_use: Vec<_> = std::iter::zip(ids, &mut all).collect();
        in_use.retain(|(id, outcome)| {
            **outcome == DeleteOutcome::DeferredInUse && !connection.holds(id)
        });
        if in_use.is_empty() {
            return Ok(all);
        }
        connection.allow_for_releases(&mut None)?;
        let ids: Vec<_> = in_use.iter().map(|(id, _)| **id).collect();
        for ((_, outcome), state) in in_use.into_iter().zip(self.states(&ids)?) {
            if state != ObjectState::Sealed {
                *outcome = DeleteOutcome::Deleted;
            }
        }
        Ok(all)
    }

    /// Deletes one object. See [`Self::delete`].
    pub fn delete_one(&self, id: ObjectId) -> Result<DeleteOutcome> {
        let outcomes = self.delete(&[id])?;
        Ok(outcomes.first().copied().unwrap_or(DeleteOutcome::NotFound))
    }

    /// Removes objects that nobody uses, the least recently used first, until so many bytes have
    /// become free or there are none left.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// client.put(plasma::ObjectId::random(), &[0; 1000], b"")?;
    /// let evicted = client.evict(1)?;
    /// assert_eq!((evicted.bytes, evicted.objects), (1000, 1));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn evict(&self, bytes: u64) -> Result<Evicted> {
        let evicted = answer!(Reply::Evicted { bytes, objects } => Evicted { bytes, objects });
        self.connection()?.ask(Request::Evict { bytes }, evicted)
    }

    /// Makes objects that nobody uses the most recently used ones, the last one named most of all.
    /// Returns how many of the ids were such objects.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::ObjectId;
    ///
    /// let (older, newer) = (ObjectId::random(), ObjectId::random());
    /// client.put(older, b"1", b"")?;
    /// client.put(newer, b"2", b"")?;
    /// assert_eq!(client.refresh(&[older])?, 1);
    /// client.evict(1)?;
    /// assert!(client.contains(older)?);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn refresh(&self, ids: &[ObjectId]) -> Result<u64> {
        let connection = self.connection()?;
        let parts = ids.chunks(connection.ids_together());
        let refresh = |part: &[ObjectId]| {
            let refreshed = answer!(Reply::Refreshed { objects } => u64::from(objects));
            connection.ask(Request::Refresh { ids: part.to_vec() }, refreshed)
        };
        parts.map(refresh).sum()
    }

    /// Lists the objects of the store, sealed or not, in no order. The list comes in parts, while
    /// the iterator goes on; an object that comes or goes meanwhile may or may not be in it.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// assert!(client.list_all()?.is_empty());
    /// client.put(plasma::ObjectId::random(), b"data", b"")?;
    /// for object in client.list() {
    ///     let object = object?;
    ///     println!("{} {} bytes, {} users", object.id, object.data_size, object.ref_count);
    /// }
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    #[must_use]
    pub fn list(&self) -> Objects {
        Objects { client: self.clone(), part: VecDeque::new(), cursor: Some(0) }
    }

    /// The whole list at once. See [`Self::list`].
    pub fn list_all(&self) -> Result<Vec<ObjectInfo>> {
        self.list().collect()
    }

    /// The state of the store in numbers.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// client.put(plasma::ObjectId::random(), &[0; 1000], b"")?;
    /// let stats = client.stats()?;
    /// println!("{} of {} bytes used", stats.used, stats.capacity);
    /// assert_eq!((stats.objects, stats.evictable), (1, 1000));
    /// assert!(client.debug_text()?.contains("allocated bytes"));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn stats(&self) -> Result<Stats> {
        self.connection()?.ask(Request::GetStats, answer!(Reply::Stats(stats) => stats))
    }

    /// The state of the store's memory as text for people. See also [`Self::stats`].
    pub fn debug_text(&self) -> Result<String> {
        self.connection()?.ask(Request::GetDebugText, answer!(Reply::DebugText(text) => text))
    }

    /// The clients of the store, this one included, by their number.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// for client in client.clients()? {
    ///     println!("{} (pid {}) holds {} bytes", client.name, client.pid, client.bytes);
    /// }
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn clients(&self) -> Result<Vec<ClientInfo>> {
        self.clients_holding(None)
    }

    /// The clients that hold an object, which keep it from being evicted or deleted.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// let id = plasma::ObjectId::random();
    /// client.put(id, b"data", b"")?;
    /// assert!(client.holders_of(id)?.is_empty());
    /// let buffer = client.get_one(id, None)?;
    /// assert_eq!(client.holders_of(id)?[0].id, client.client_id()?.0);
    /// # drop(buffer);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn holders_of(&self, id: ObjectId) -> Result<Vec<ClientInfo>> {
        self.clients_holding(Some(id))
    }

    /// Opens a connection on which the store tells of objects that are sealed, deleted and evicted.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::Event;
    ///
    /// let mut events = client.subscribe()?;
    /// let id = plasma::ObjectId::random();
    /// client.put(id, b"data", b"")?;
    /// assert_eq!(events.next().transpose()?, Some(Event::SnapshotEnd));
    /// assert_eq!(
    ///     events.next().transpose()?,
    ///     Some(Event::Sealed { id, data_size: 4, metadata_size: 0 }),
    /// );
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn subscribe(&self) -> Result<Subscription> {
        Subscription::open(&self.shared, false)
    }

    /// As [`Self::subscribe`], with each event in a message of its own and without
    /// [`Event::SnapshotEnd`], so that other code can read the socket:
    /// 8 bytes of length, little-endian, then a message for [`Subscription::decode`].
    pub fn subscribe_one_by_one(&self) -> Result<Subscription> {
        Subscription::open(&self.shared, true)
    }

    fn clients_holding(&self, holding: Option<ObjectId>) -> Result<Vec<ClientInfo>> {
        let connection = self.connection()?;
        let mut all = Vec::new();
        let mut after = Some(ClientId(0));
        while let Some(last) = after {
            // A list that does not go on would never end.
            let goes_on = |next: Option<ClientId>| next.is_none_or(|next| next > last);
            let part =
                answer!(Reply::ClientList { clients, next } if goes_on(next) => (clients, next));
            let (clients, next) =
                connection.ask(Request::ListClients { after: last, holding }, part)?;
            all.extend(clients);
            after = next;
        }
        Ok(all)
    }
}

/// What [`Client::evict`] has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Bytes of data and metadata.
    pub bytes: u64,
    /// Number of objects.
    pub objects: u64,
}

/// The objects of a store, made by [`Client::list`]. Ends after an error.
#[derive(Debug)]
pub struct Objects {
    client: Client,
    part: VecDeque<ObjectInfo>,
    /// Where the next part begins; `None` if there is none.
    cursor: Option<u32>,
}

impl Objects {
    fn next_part(&self, cursor: u32) -> Result<(VecDeque<ObjectInfo>, Option<u32>)> {
        // A list that does not go on would never end.
        let goes_on = |next: Option<u32>| next.is_none_or(|next| next > cursor);
        let part =
            answer!(Reply::ObjectList { objects, next } if goes_on(next) => (objects.into(), next));
        self.client.connection()?.ask(Request::List { cursor }, part)
    }
}

impl Iterator for Objects {
    type Item = Result<ObjectInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(object) = self.part.pop_front() {
                return Some(Ok(object));
            }
            let cursor = self.cursor.take()?;
            match self.next_part(cursor) {
                Ok((part, next)) => (self.part, self.cursor) = (part, next),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl FusedIterator for Objects {}

/// Events of a store, in the order in which they happened. Made by
/// [`Client::subscribe`](super::Client::subscribe).
///
/// At first comes an [`Event::Sealed`] for each object that is there, then [`Event::SnapshotEnd`],
/// then what happens from then on, this process's own actions included. As an iterator it waits for
/// the next event. A reader that falls a million events behind gets [`Event::Lagged`], which
/// is the last one. The end of the client does not end its streams.
///
/// A forked child must subscribe itself: its copy of the stream gives [`Error::Inherited`].
///
/// # With an event loop
///
/// The descriptor ([`AsFd`]) becomes readable when events have arrived. Then take events out with a
/// timeout of zero until there are none, since several of them arrive together:
///
/// ```
/// # let store = plasma::testing::store();
/// # let client = plasma::Client::connect(store.path())?;
/// use std::os::fd::AsFd;
/// use std::time::Duration;
///
/// let mut events = client.subscribe()?;
/// let descriptor = events.as_fd(); // for poll, epoll, an asyncio reader ...
/// # let _ = descriptor;
/// while let Some(event) = events.next_timeout(Duration::ZERO)? {
///     println!("{event:?}");
/// }
/// # Ok::<(), plasma::client::Error>(())
/// ```
#[derive(Debug)]
pub struct Subscription {
    path: PathBuf,
    line: Line,
    events: VecDeque<Event>,
    clock: Clock,
    generation: u64,
    /// There will be no more events.
    has_ended: bool,
}

impl Subscription {
    fn open(client: &Shared, one_by_one: bool) -> Result<Self> {
        let Shared { path, clock, builder, current } = client;
        if current.load().is_none() {
            return Err(Error::Closed);
        }
        // There was a store when this client connected: if it is gone, that is the answer, and
        // patience with a store that is still to come would only hold it back. A stream gets no
        // objects.
        let builder = builder.load().as_ref().clone().retries(0).directory(false);
        let (mut line, _connected) = open(path, &builder, clock, None)?;
        if one_by_one {
            line.receiver.read_one_by_one();
        }
        let request = RequestId(CONNECT_REQUEST.0 + 1);
        let subscribe = ClientMessage::Request(Request::Subscribe { one_by_one });
        line.send(request, &subscribe).map_err(|fault| fault.at(path))?;
        let mut subscription = Self {
            path: path.to_owned(),
            line,
            events: VecDeque::new(),
            clock: clock.clone(),
            generation: fork::generation(),
            has_ended: false,
        };
        let end = clock.now().after(builder.patience);
        let answer = subscription.line.receive_soon(clock, end, &mut None);
        match answer.map_err(|fault| fault.at(path))? {
            Soon::Received(Received { reply: Reply::Done, .. }) => Ok(subscription),
            Soon::Received(Received { reply: Reply::Refused(refusal), .. }) => Err(refusal.into()),
            Soon::Received(other) => Err(subscription.unexpected(&other.reply)),
            Soon::Interrupted => Err(Error::Interrupted),
            Soon::Silent => {
                Err(Error::Unresponsive { path: path.clone(), waited: builder.patience })
            }
        }
    }

    /// The next event, if it comes in that time: zero means, if it is here.
    ///
    /// # Errors
    /// [`Error::Closed`] after the end of the stream; [`Error::Disconnected`] if the store has
    /// gone; [`Error::Inherited`] in a forked child.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>> {
        self.next_with(Some(timeout), None)
    }

    /// As [`Self::next_timeout`] (`None`: waits for ever); the caller can interrupt the wait, after
    /// which the stream goes on.
    pub fn next_with(
        &mut self,
        timeout: Option<Duration>,
        mut interrupt: Interrupt<'_>,
    ) -> Result<Option<Event>> {
        let end = timeout.map(|timeout| self.clock.now().after(timeout));
        loop {
            let in_a_while = || self.clock.now().after(INTERRUPT_CHECK_INTERVAL);
            let next_question = is_interruptible(&interrupt).then(in_a_while);
            let next_look = end.into_iter().chain(next_question).min();
            let event = self.next_until(next_look)?;
            if event.is_some() || next_look == end {
                return Ok(event);
            }
            if is_interrupted(&mut interrupt) {
                return Err(Error::Interrupted);
            }
        }
    }

    /// The events in one message that was read from the descriptor, its 8 bytes of length left out.
    ///
    /// # Errors
    /// It is no message with events.
    pub fn decode(message: &[u8]) -> std::result::Result<Vec<Event>, ProtocolError> {
        match decode_server(message)?.reply {
            Reply::Events(events) => Ok(events),
            other => Err(unexpected("subscribe", &other)),
        }
    }

    fn next_until(&mut self, end: Option<Timestamp>) -> Result<Option<Event>> {
        let event = self.take_event(end);
        self.has_ended |= matches!(event, Ok(Some(Event::Lagged)) | Err(_));
        event
    }

    fn take_event(&mut self, end: Option<Timestamp>) -> Result<Option<Event>> {
        while !self.has_ended {
            if self.generation != fork::generation() {
                return Err(Error::Inherited("this stream of events"));
            }
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.receive(end)? {
                None => return Ok(None),
                Some(Reply::Events(events)) => self.events.extend(events),
                Some(other) => return Err(self.unexpected(&other)),
            }
        }
        Err(Error::Closed)
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        Fault::from(unexpected("subscribe", reply)).at(&self.path)
    }

    fn receive(&mut self, end: Option<Timestamp>) -> Result<Option<Reply>> {
        let received = self.line.receive(&self.clock, end).map_err(|fault| fault.at(&self.path))?;
        Ok(received.map(|received| received.reply))
    }
}

impl Iterator for Subscription {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_with(None, None) {
            Err(Error::Closed) => None,
            event => event.transpose(),
        }
    }
}

impl FusedIterator for Subscription {}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.socket.as_fd()
    }
}
