//! A stream of what happens to the objects of a store, on a connection of its own.
//!
//! One thread owns it, so that reading is all there is to do. Nothing is held through it.

use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Error, Fault, unexpected};
use super::opening::{CONNECT_REQUEST, Line, open};
use super::options::{Builder, Interrupt};
use super::receiver::wait_readable;
use super::{Event, Result};
use crate::limits::INTERRUPT_CHECK_INTERVAL;
use crate::protocol::ProtocolError;
use crate::protocol::codec::decode_server;
use crate::protocol::message::{ClientMessage, Reply, Request, RequestId};
use crate::shm::fork;
use crate::time::{Clock, Timestamp};

/// How events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventForm {
    /// As many in a message as there are.
    Batches,
    /// Each in a message of its own, and no marks.
    OneByOne,
}

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
    pub(super) fn open(
        path: &Path,
        builder: &Builder,
        clock: &Clock,
        form: EventForm,
    ) -> Result<Self> {
        // A stream gets no objects.
        let builder = builder.clone().directory(false);
        let (mut line, _connected) = open(path, &builder, clock, None)?;
        let one_by_one = form == EventForm::OneByOne;
        if one_by_one {
            line.receiver.read_one_by_one();
        }
        let mut subscription = Self {
            path: path.to_owned(),
            line,
            events: VecDeque::new(),
            clock: clock.clone(),
            generation: fork::generation(),
            has_ended: false,
        };
        subscription.begin(one_by_one)?;
        Ok(subscription)
    }

    /// The next event, if it comes in that time: zero means, if it is here.
    ///
    /// # Errors
    /// [`Error::Closed`] after the end of the stream; [`Error::Disconnected`] if the store has
    /// gone; [`Error::Inherited`] in a forked child.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>> {
        self.next_until(Some(self.clock.now().after(timeout)))
    }

    /// The next event, if it comes in that time (`None`: waits for ever); the caller can interrupt
    /// the wait.
    ///
    /// # Errors
    /// As [`Self::next_timeout`], and [`Error::Interrupted`]; the stream goes on then.
    pub fn next_with(
        &mut self,
        timeout: Option<Duration>,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Event>> {
        let end = timeout.map(|timeout| self.clock.now().after(timeout));
        let Some(interrupt) = interrupt else {
            return self.next_until(end);
        };
        loop {
            let next_look = self.clock.now().after(INTERRUPT_CHECK_INTERVAL);
            let is_last = end.is_some_and(|end| end <= next_look);
            let event = self.next_until(if is_last { end } else { Some(next_look) })?;
            if event.is_some() || is_last {
                return Ok(event);
            }
            if interrupt() {
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
        if let Ok(Some(Event::Lagged)) | Err(_) = event {
            self.has_ended = true;
        }
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

    fn begin(&mut self, one_by_one: bool) -> Result<()> {
        let request = RequestId(CONNECT_REQUEST.0 + 1);
        let subscribe = ClientMessage::Request(Request::Subscribe { one_by_one });
        self.line.send(request, &subscribe).map_err(|fault| fault.at(&self.path))?;
        match self.receive(None)? {
            None | Some(Reply::Done) => Ok(()),
            Some(Reply::Refused(refusal)) => Err(refusal.into()),
            Some(other) => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        Fault::from(unexpected("subscribe", reply)).at(&self.path)
    }

    fn receive(&mut self, end: Option<Timestamp>) -> Result<Option<Reply>> {
        self.try_receive(end).map_err(|fault| fault.at(&self.path))
    }

    /// The next message; `None` if the time is over before it came.
    fn try_receive(&mut self, end: Option<Timestamp>) -> std::result::Result<Option<Reply>, Fault> {
        loop {
            if let Some(received) = self.line.receiver.next()? {
                return Ok(Some(received.reply));
            }
            // The receive need not wait: the socket is for others to use as well, and an event loop
            // makes it non-blocking.
            let patience = end.map_or(Duration::MAX, |end| end.since(self.clock.now()));
            if wait_readable(&self.line.socket, patience) {
                self.line.receiver.receive(&self.line.socket)?;
            } else if patience.is_zero() {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Subscription {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_until(None) {
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
