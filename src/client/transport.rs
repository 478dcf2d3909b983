//! One connection after its opening: requests and replies over one socket, for any number of
//! threads.
//!
//! It has two halves, each behind a lock that is never held over a wait: [`super::sending`] writes,
//! [`super::receiving`] reads. Here is what a request needs of both, and what the connection was
//! given besides: memory and tables.
//!
//! # What ends it
//!
//! The first [`Fault`] is for all: every thread that waits gets it, every later call gets it, and
//! the socket is shut down. A forked child gets at nothing that is behind a lock: see
//! [`ProcessLocal`].
//!
//! Knows nothing of objects, and of replies only whose they are.

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::direct::DirectReader;
use super::error::Fault;
use super::opening::Line;
use super::receiving::{Inbox, Ticket, Undo, Waiter};
use super::segments::Segments;
use super::sending::Outbox;
use crate::ids::Slot;
use crate::protocol::message::{Request, RequestId};
use crate::shm::fork;
use crate::time::{Clock, Timestamp};

/// A time to wait until that is over: not to wait at all. (Without a time: as long as it takes.)
pub(super) const AT_ONCE: Option<Timestamp> = Some(Timestamp::ZERO);

#[derive(Debug)]
pub(super) struct Transport {
    pub(super) socket: UnixStream,
    /// The memory whose descriptors have come.
    pub(super) segments: Segments,
    direct: Option<DirectReader>,
    pub(super) clock: Clock,
    last_request: AtomicU64,
    /// The last request before something was given back with a message, and the last one that has
    /// been answered: see [`Self::directory`].
    given_back_after: AtomicU64,
    answered: AtomicU64,
    /// The connection has ended with a fault.
    is_over: AtomicBool,
    halves: ProcessLocal<Halves>,
}

/// What is behind locks.
#[derive(Debug)]
pub(super) struct Halves {
    pub(super) outbox: Mutex<Outbox>,
    pub(super) inbox: Mutex<Inbox>,
}

impl Transport {
    /// A transport over a socket on which requests up to `last_request` have been answered.
    pub(super) fn new(
        line: Line,
        direct: Option<DirectReader>,
        last_request: RequestId,
        request_ids_max: usize,
        releases_may_wait: bool,
        clock: Clock,
    ) -> Self {
        let outbox = Outbox::new(request_ids_max, releases_may_wait);
        let Line { socket, receiver, descriptors } = line;
        let halves = Halves { outbox: Mutex::new(outbox), inbox: Mutex::new(Inbox::new(receiver)) };
        let segments = Segments::default();
        for (info, descriptor) in descriptors {
            segments.add(info, descriptor);
        }
        Self {
            socket,
            segments,
            direct,
            clock,
            last_request: AtomicU64::new(last_request.0),
            given_back_after: AtomicU64::new(0),
            answered: AtomicU64::new(last_request.0),
            is_over: AtomicBool::new(false),
            halves: ProcessLocal::new(halves),
        }
    }

    pub(super) fn is_inherited(&self) -> bool {
        self.halves.is_inherited()
    }

    /// Sends a request, waiting for room until then. The ticket is for its reply.
    pub(super) fn start(
        self: &Arc<Self>,
        request: Request,
        until: Option<Timestamp>,
    ) -> Result<Ticket<'_>, Fault> {
        Ok(Ticket::new(self, self.begin(request, Waiter::ThisThread, until)?))
    }

    /// As [`Self::start`], with a reply that is to be taken out or [abandoned](Self::abandon).
    pub(super) fn begin(
        self: &Arc<Self>,
        request: Request,
        waiter: Waiter,
        until: Option<Timestamp>,
    ) -> Result<RequestId, Fault> {
        let halves = self.halves()?;
        let id = RequestId(self.last_request.fetch_add(1, Ordering::Relaxed) + 1);
        lock(&halves.inbox).register(id, &request, waiter)?;
        if let Err(fault) = self.send(halves, id, request, until) {
            self.abandon(id);
            return Err(fault);
        }
        // Between its registration and now `close` could not cancel it.
        let is_too_late = lock(&halves.inbox).note_sent(id);
        if is_too_late {
            let _ = self.post(Request::Cancel { request: id });
        }
        Ok(id)
    }

    /// Sends a message whose reply, if it has one, is of no interest. Waits for nothing.
    pub(super) fn post(self: &Arc<Self>, request: Request) -> Result<(), Fault> {
        let gives_back = matches!(request, Request::Release { .. } | Request::Unpinned { .. });
        if !gives_back && !matches!(request, Request::Seal { .. }) {
            return self.begin(request, Waiter::Nobody, AT_ONCE).map(|_| ());
        }
        let outcome = self.send(self.halves()?, RequestId::NONE, request, AT_ONCE);
        if gives_back {
            self.note_given_back();
        }
        outcome
    }

    /// Nobody wants the reply to this request any more. Waits for nothing.
    pub(super) fn abandon(self: &Arc<Self>, request: RequestId) {
        let Ok(halves) = self.halves() else { return };
        let farewell = lock(&halves.inbox).abandon(request);
        // If the connection is lost, there is nothing to give back.
        let _ = self.undo(farewell);
    }

    /// Gives back what nobody wants. Waits for nothing.
    pub(super) fn undo(self: &Arc<Self>, undo: Undo) -> Result<(), Fault> {
        for slot in undo.pins {
            self.unpin(slot);
        }
        undo.request.map_or(Ok(()), |request| self.post(request))
    }

    /// The tables that objects are found in without asking the store.
    pub(super) fn direct(&self) -> Option<&DirectReader> {
        self.direct.as_ref().filter(|_| !self.is_inherited())
    }

    /// The same, to look for something. Not while the store may not have heard yet of what this
    /// client has given back: an object that goes with its last holder would still be there for
    /// that holder. Whoever asks instead is answered after it. And not when the store has ended:
    /// whoever asks instead is told so.
    pub(super) fn directory(&self) -> Option<&DirectReader> {
        let heard = self.answered.load(Ordering::Relaxed);
        let has_heard = heard > self.given_back_after.load(Ordering::Relaxed);
        let is_over = self.is_over.load(Ordering::Relaxed);
        self.direct().filter(|direct| has_heard && !is_over && !direct.has_ended())
    }

    /// Something has been said that has no answer. What is asked from now on is said after it.
    pub(super) fn note_given_back(&self) {
        let last = self.last_request.load(Ordering::Relaxed);
        self.given_back_after.fetch_max(last, Ordering::Relaxed);
    }

    /// The store has answered this request, and so has heard what was said before it.
    pub(super) fn note_answered(&self, request: RequestId) {
        self.answered.fetch_max(request.0, Ordering::Relaxed);
    }

    /// Takes back a pin in this connection's table. Waits for nothing.
    pub(super) fn unpin(self: &Arc<Self>, slot: Slot) {
        if self.direct().is_some_and(|direct| direct.unpin(slot)) {
            self.tell_unpinned(slot);
        }
    }

    /// The store wanted to know when a pin is gone.
    pub(super) fn tell_unpinned(self: &Arc<Self>, slot: Slot) {
        // If it has gone, it does not any more.
        let _ = self.post(Request::Unpinned { slots: vec![slot] });
    }

    /// Cancels all requests that wait for something to happen in the store, and lets no new ones
    /// in. They are answered as if their time were over, and then it is answered that they were
    /// cancelled: `wait` waits for that, and says whether it has come. So does this.
    pub(super) fn close(
        self: &Arc<Self>,
        wait: impl Fn(&mut Ticket<'_>) -> Result<bool, Fault>,
    ) -> Result<bool, Fault> {
        let waiting = lock(&self.halves()?.inbox).close();
        let cancels: Vec<_> = waiting
            .into_iter()
            .map(|request| self.start(Request::Cancel { request }, AT_ONCE))
            .collect();
        for cancel in cancels {
            if !wait(&mut cancel?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.halves().is_ok_and(|halves| lock(&halves.inbox).is_closing)
    }

    /// What ended the connection, as far as that is known here.
    pub(super) fn fault(&self) -> Fault {
        let known = self.halves().map(|halves| lock(&halves.inbox).fault.clone());
        let hung_up = || io::Error::from(io::ErrorKind::UnexpectedEof).into();
        known.unwrap_or_else(Some).unwrap_or_else(hung_up)
    }

    /// Ends the connection at once, for whoever may still have its socket; unless it is a parent's.
    pub(super) fn hang_up(&self) {
        if !self.is_inherited() {
            self.is_over.store(true, Ordering::Relaxed);
            // If that fails, it has ended already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }

    /// The socket once more, for somebody who watches it.
    pub(super) fn duplicate_socket(&self) -> Result<OwnedFd, Fault> {
        self.halves()?;
        Ok(self.socket.as_fd().try_clone_to_owned()?)
    }

    pub(super) fn halves(&self) -> Result<&Halves, Fault> {
        self.halves.get().ok_or(Fault::Inherited)
    }
}

/// A value for the process that made it, and for nobody else: whatever is behind a lock.
///
/// `fork` copies memory at an arbitrary moment of all threads but one. In the child a lock may be
/// held by a thread that does not exist there, for ever, and what it guards may be half changed.
/// So a forked child does not get at it, and when the child drops its copy, the contents are
/// forgotten instead of dropped.
pub(super) struct ProcessLocal<T> {
    generation: u64,
    /// Only taken out by `drop`.
    value: Option<T>,
}

impl<T> ProcessLocal<T> {
    pub(super) fn new(value: T) -> Self {
        Self { generation: fork::generation(), value: Some(value) }
    }

    /// The value; `None` in a child that was forked since.
    pub(super) fn get(&self) -> Option<&T> {
        if self.is_inherited() { None } else { self.value.as_ref() }
    }

    /// Whether this is a child's copy of something that its parent made.
    fn is_inherited(&self) -> bool {
        fork::generation() != self.generation
    }
}

impl<T> Drop for ProcessLocal<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            std::mem::forget(self.value.take());
        }
    }
}

impl<T> fmt::Debug for ProcessLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessLocal").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// A panic in another thread left nothing half done: every change under these locks is complete
/// when it is made.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
