//! Removing objects, and looking at what the store has: lists, numbers, clients, events.

use std::collections::VecDeque;
use std::iter::FusedIterator;

use super::error::Error;
use super::opening::pause;
use super::subscription::EventForm;
use super::{
    Client, ClientInfo, DeleteOutcome, ObjectInfo, ObjectState, Result, Stats, Subscription,
};
use crate::ids::{ClientId, ObjectId};
use crate::limits::RELEASE_GRACE;
use crate::protocol::message::{Reply, Request};

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
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// What another client released a moment ago may not have come to the store yet. So where
    /// somebody else uses an object this waits 3 ms before it says so.
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn delete(&self, ids: &[ObjectId]) -> Result<Vec<DeleteOutcome>> {
        let connection = self.connection()?;
        let mut all = Vec::with_capacity(ids.len());
        for part in ids.chunks(connection.ids_together()) {
            match connection.call(Request::Delete { ids: part.to_vec() })? {
                Reply::Deleted(outcomes) if outcomes.len() == part.len() => all.extend(outcomes),
                other => return Err(connection.unexpected("delete", &other)),
            }
        }
        self.look_again(ids, &mut all)?;
        Ok(all)
    }

    /// Corrects the outcome of a delete for what others had let go before it.
    fn look_again(&self, ids: &[ObjectId], outcomes: &mut [DeleteOutcome]) -> Result<()> {
        let connection = self.connection()?;
        let in_use: Vec<_> = std::iter::zip(ids, outcomes)
            .filter(|(id, outcome)| {
                **outcome == DeleteOutcome::DeferredInUse && !connection.holds(id)
            })
            .collect();
        if in_use.is_empty() {
            return Ok(());
        }
        pause(&connection.transport.clock, RELEASE_GRACE, &mut None)?;
        let ids: Vec<_> = in_use.iter().map(|(id, _)| **id).collect();
        for ((_, outcome), state) in in_use.into_iter().zip(self.states(&ids)?) {
            if state != ObjectState::Sealed {
                *outcome = DeleteOutcome::Deleted;
            }
        }
        Ok(())
    }

    /// Deletes one object. See [`Self::delete`].
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::{ObjectId, client::DeleteOutcome};
    /// assert_eq!(client.delete_one(ObjectId::random())?, DeleteOutcome::NotFound);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::delete`].
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
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn evict(&self, bytes: u64) -> Result<Evicted> {
        let connection = self.connection()?;
        match connection.call(Request::Evict { bytes })? {
            Reply::Evicted { bytes, objects } => Ok(Evicted { bytes, objects }),
            other => Err(connection.unexpected("evict", &other)),
        }
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
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn refresh(&self, ids: &[ObjectId]) -> Result<u64> {
        let connection = self.connection()?;
        let mut refreshed = 0;
        for part in ids.chunks(connection.ids_together()) {
            match connection.call(Request::Refresh { ids: part.to_vec() })? {
                Reply::Refreshed { objects } => refreshed += u64::from(objects),
                other => return Err(connection.unexpected("refresh", &other)),
            }
        }
        Ok(refreshed)
    }

    /// Lists the objects of the store, sealed or not, in no order. The list comes in parts, while
    /// the iterator goes on; an object that comes or goes meanwhile may or may not be in it.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
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
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// assert!(client.list_all()?.is_empty());
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
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
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn stats(&self) -> Result<Stats> {
        let connection = self.connection()?;
        match connection.call(Request::GetStats)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(connection.unexpected("get_stats", &other)),
        }
    }

    /// The state of the store's memory as text for people.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// assert!(client.debug_text()?.contains("allocated bytes"));
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// None but those of the connection.
    pub fn debug_text(&self) -> Result<String> {
        let connection = self.connection()?;
        match connection.call(Request::GetDebugText)? {
            Reply::DebugText(text) => Ok(text),
            other => Err(connection.unexpected("get_debug_text", &other)),
        }
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
    ///
    /// # Errors
    /// None but those of the connection.
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
    ///
    /// # Errors
    /// None but those of the connection.
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
    /// As [`Client::connect`]; [`Error::Closed`] if this client is disconnected.
    pub fn subscribe(&self) -> Result<Subscription> {
        self.subscribe_in(EventForm::Batches)
    }

    /// As [`Self::subscribe`], with each event in a message of its own and without
    /// [`Event::SnapshotEnd`](super::Event::SnapshotEnd), so that other code can read the socket:
    /// 8 bytes of length, little-endian, then a message for [`Subscription::decode`].
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub fn subscribe_one_by_one(&self) -> Result<Subscription> {
        self.subscribe_in(EventForm::OneByOne)
    }

    fn subscribe_in(&self, form: EventForm) -> Result<Subscription> {
        if self.shared.current.load().is_none() {
            return Err(Error::Closed);
        }
        let shared = &self.shared;
        // There was a store when this client connected: if it is gone, that is the answer, and
        // patience with a store that is still to come would only hold it back.
        let builder = shared.builder.load().as_ref().clone().retries(0);
        Subscription::open(&shared.path, &builder, &shared.clock, form)
    }

    fn clients_holding(&self, holding: Option<ObjectId>) -> Result<Vec<ClientInfo>> {
        let connection = self.connection()?;
        let mut all = Vec::new();
        let mut after = Some(ClientId(0));
        while let Some(last) = after {
            match connection.call(Request::ListClients { after: last, holding })? {
                // A list that does not go on would never end.
                Reply::ClientList { clients, next } if next.is_none_or(|next| next > last) => {
                    all.extend(clients);
                    after = next;
                }
                other => return Err(connection.unexpected("list_clients", &other)),
            }
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
        let connection = self.client.connection()?;
        match connection.call(Request::List { cursor })? {
            // A list that does not go on would never end.
            Reply::ObjectList { objects, next } if next.is_none_or(|next| next > cursor) => {
                Ok((objects.into(), next))
            }
            other => Err(connection.unexpected("list", &other)),
        }
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
