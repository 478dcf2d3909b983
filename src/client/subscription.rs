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
use super::options::Builder;
use super::receiver::wait_readable;
use super::{Event, Result};
use crate::protocol::message::{ClientMessage, Reply, Request, RequestId};
use crate::shm::fork;
use crate::time::{Clock, Timestamp};

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
    pub(super) fn open(path: &Path, builder: &Builder, clock: &Clock) -> Result<Self> {
        let (line, _connected) = open(path, builder, clock, None)?;
        let mut subscription = Self {
            path: path.to_owned(),
            line,
            events: VecDeque::new(),
            clock: clock.clone(),
            generation: fork::generation(),
            has_ended: false,
        };
        subscription.begin()?;
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

    fn begin(&mut self) -> Result<()> {
        let request = RequestId(CONNECT_REQUEST.0 + 1);
        let subscribe = ClientMessage::Request(Request::Subscribe);
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
            if let Some(end) = end {
                let patience = end.since(self.clock.now());
                let is_readable = wait_readable(&self.line.socket, patience);
                if !is_readable && patience.is_zero() {
                    return Ok(None);
                }
                if !is_readable {
                    continue;
                }
            }
            self.line.receiver.receive(&self.line.socket)?;
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
