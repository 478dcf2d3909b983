//! Requests that are not waited for: for event loops, which watch a descriptor instead.
//!
//! The loop's thread sends, takes in what has come when the socket is readable, and looks which of
//! its requests are complete. None of it ever waits. The other calls of a client may be used
//! beside it, at a price that [`Client::descriptor`] tells.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::connection::Connection;
use super::error::{Error, Fault};
use super::inbox::Waiter;
use super::options::GetOptions;
use super::reading::{distinct, present, wait_request};
use super::receiver::wait_readable;
use super::sending::SendTime;
use super::transport::{Lead, Transport, lock};
use super::{Client, ObjectBuffer, Result};
use crate::ids::ObjectId;
use crate::protocol::message::{Reply, Request, RequestId};
use crate::time::Timestamp;

impl Client {
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
            let granted = requests.connection.granted(reply, ids.len())?;
            let buffers = requests.connection.admit(&present(&ids, &granted))?;
            self.fetched.extend(buffers.into_iter().map(|buffer| (buffer.id(), buffer)));
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
        let started = self.connection.transport.start_for_event_loop(request);
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

/// What only event loops need.
impl Transport {
    /// Sends a request without waiting for anything, for a loop that watches the socket. Its reply
    /// is to be taken out, or [abandoned](Self::abandon).
    fn start_for_event_loop(
        self: &Arc<Self>,
        request: Request,
    ) -> std::result::Result<RequestId, Fault> {
        let halves = self.halves()?;
        let id = self.next_id();
        lock(&halves.inbox).register(id, &request, Waiter::EventLoop)?;
        if let Err(fault) = self.send(halves, id, request, SendTime::Nothing) {
            self.abandon(id);
            return Err(fault);
        }
        self.note_sent(halves, id);
        Ok(id)
    }

    /// The reply, if it has been taken in.
    fn take_reply(&self, request: RequestId) -> std::result::Result<Option<Reply>, Fault> {
        lock(&self.halves()?.inbox).take_outcome(request).transpose()
    }

    /// Takes in what has come, unless another thread is doing so. Says for which requests.
    fn receive_ready(self: &Arc<Self>) -> std::result::Result<Vec<RequestId>, Fault> {
        let halves = self.halves()?;
        let lead = Lead::take(self, halves, &mut lock(&halves.inbox));
        if let Some(mut lead) = lead {
            let has_fault = || lock(&halves.inbox).fault().is_some();
            while !has_fault() && wait_readable(&self.socket, Duration::ZERO) {
                lead.receive();
            }
        }
        let mut inbox = lock(&halves.inbox);
        let answered = inbox.take_answered();
        inbox.fault().map_or(Ok(answered), |fault| Err(fault.clone()))
    }

    /// The socket once more, for somebody who watches it.
    fn duplicate_socket(&self) -> std::result::Result<OwnedFd, Fault> {
        self.halves()?;
        Ok(self.socket.as_fd().try_clone_to_owned()?)
    }
}
