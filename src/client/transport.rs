//! Requests and replies over one socket, for any number of threads.
//!
//! # Who reads
//!
//! A thread that waits for a reply takes the [`Receiver`] out of the inbox, if it is there, and
//! becomes the *leader*: it receives and puts each reply where its owner looks for it. The others
//! park. When the leader has its own reply, it puts the receiver back and wakes one of those who
//! still wait, which leads on. So at any time one thread sleeps in the kernel and the rest
//! in `park`, and nobody who waits for a slow reply holds up somebody with a quick one.
//!
//! # Who writes
//!
//! Everybody, under a lock that is never held over a wait: see [`super::sending`].
//!
//! # Who looks after what nobody wants
//!
//! A ticket that is dropped before its reply has come leaves the store a cancel, without waiting.
//! The reply comes all the same, to whoever reads then; what it grants is given back.
//!
//! # What ends it
//!
//! The first [`Fault`] is for all: every thread that waits gets it, every later call gets it, and
//! the socket is shut down.
//!
//! Knows nothing of objects, and of replies only whose they are.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;

use super::direct::DirectReader;
use super::error::Fault;
use super::grants::Undo;
use super::inbox::{Inbox, Waiter};
use super::opening::Line;
use super::outbox::Outbox;
use super::process_local::ProcessLocal;
use super::receiver::{Received, Receiver, poll_for};
use super::segments::Segments;
use super::sending::SendTime;
use crate::ids::Slot;
use crate::protocol::message::{Reply, Request, RequestId};
use crate::time::{Clock, Timestamp};

/// One connection after its opening.
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
        clock: Clock,
    ) -> Self {
        let outbox = Outbox::new(request_ids_max);
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

    /// Sends a request and waits for its reply.
    pub(super) fn call(self: &Arc<Self>, request: Request) -> Result<Reply, Fault> {
        self.start(request, SendTime::Unlimited)?.wait()
    }

    /// Sends a request. The ticket is for its reply.
    pub(super) fn start(
        self: &Arc<Self>,
        request: Request,
        time: SendTime,
    ) -> Result<Ticket<'_>, Fault> {
        let halves = self.halves()?;
        let id = self.next_id();
        lock(&halves.inbox).register(id, &request, Waiter::ThisThread)?;
        let ticket = Ticket { transport: self, halves, request: id };
        self.send(halves, id, request, time)?;
        self.note_sent(halves, id);
        Ok(ticket)
    }

    /// Sends a request that is not to be answered. Waits for nothing.
    pub(super) fn nudge(self: &Arc<Self>, request: Request) -> Result<(), Fault> {
        self.send(self.halves()?, RequestId::NONE, request, SendTime::Nothing)
    }

    /// What ended the connection, as far as that is known here.
    pub(super) fn fault(&self) -> Fault {
        let known = self.halves().map(|halves| lock(&halves.inbox).fault().cloned());
        let hung_up = || io::Error::from(io::ErrorKind::UnexpectedEof).into();
        known.unwrap_or_else(Some).unwrap_or_else(hung_up)
    }

    /// Sends a message whose reply, if it has one, is of no interest. Waits for nothing.
    pub(super) fn post(self: &Arc<Self>, request: Request) -> Result<(), Fault> {
        let halves = self.halves()?;
        let gives_back = matches!(request, Request::Release { .. } | Request::Unpinned { .. });
        let id = if gives_back {
            RequestId::NONE
        } else {
            let id = self.next_id();
            lock(&halves.inbox).register(id, &request, Waiter::Nobody)?;
            id
        };
        let outcome = self.send(halves, id, request, SendTime::Nothing);
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
    fn undo(self: &Arc<Self>, undo: Undo) -> Result<(), Fault> {
        for slot in undo.pins {
            self.unpin(slot);
        }
        undo.request.map_or(Ok(()), |request| self.post(request))
    }

    /// The tables that objects are found in without asking the store.
    pub(super) fn direct(&self) -> Option<&DirectReader> {
        self.direct.as_ref().filter(|direct| !direct.is_inherited())
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
    /// in. They are answered as if their time were over; waits for that until `end`.
    pub(super) fn close(self: &Arc<Self>, end: Timestamp) -> Result<(), Fault> {
        let waiting = lock(&self.halves()?.inbox).close();
        let cancels: Vec<_> = waiting
            .into_iter()
            .map(|request| self.start(Request::Cancel { request }, SendTime::Nothing))
            .collect();
        for cancel in cancels {
            cancel?.wait_until(Some(end))?;
        }
        Ok(())
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closing(&self) -> bool {
        self.halves().is_ok_and(|halves| lock(&halves.inbox).is_closing)
    }

    /// Ends the connection at once, for whoever may still have its socket.
    pub(super) fn hang_up(&self) {
        if self.halves().is_ok() {
            self.is_over.store(true, Ordering::Relaxed);
            // If that fails, it has ended already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn halves(&self) -> Result<&Halves, Fault> {
        self.halves.get().ok_or(Fault::Inherited)
    }

    pub(super) fn next_id(&self) -> RequestId {
        RequestId(self.last_request.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// A request has been sent. Between that and its registration `close` could not cancel it.
    pub(super) fn note_sent(self: &Arc<Self>, halves: &Halves, request: RequestId) {
        let is_too_late = lock(&halves.inbox).note_sent(request);
        if is_too_late {
            let _ = self.post(Request::Cancel { request });
        }
    }
}

/// The right to the reply of one request.
pub(super) struct Ticket<'a> {
    transport: &'a Arc<Transport>,
    halves: &'a Halves,
    request: RequestId,
}

impl<'a> Ticket<'a> {
    /// Asks the store to answer now. Waits for nothing. The other ticket is for the answer to that,
    /// which comes after the reply.
    pub(super) fn cancel(&self) -> Result<Option<Ticket<'a>>, Fault> {
        let cancels = lock(&self.halves.inbox).cancel(self.request);
        let cancel = Request::Cancel { request: self.request };
        cancels.then(|| self.transport.start(cancel, SendTime::Nothing)).transpose()
    }

    /// Waits for the reply.
    pub(super) fn wait(&mut self) -> Result<Reply, Fault> {
        loop {
            if let Some(reply) = self.wait_until(None)? {
                return Ok(reply);
            }
        }
    }

    /// Waits for the reply, but no longer than until `end`.
    pub(super) fn wait_until(&mut self, end: Option<Timestamp>) -> Result<Option<Reply>, Fault> {
        loop {
            let mut inbox = lock(&self.halves.inbox);
            if let Some(outcome) = inbox.take_outcome(self.request) {
                return outcome.map(Some);
            }
            let patience = end.map(|end| end.since(self.transport.clock.now()));
            if patience == Some(Duration::ZERO) {
                inbox.look_away(self.request);
                return Ok(None);
            }
            inbox.look(self.request);
            let lead = Lead::take(self.transport, self.halves, &mut inbox);
            drop(inbox);
            match (lead, patience) {
                (Some(mut lead), _) => lead.receive_until(self.request, end),
                (None, Some(patience)) => thread::park_timeout(patience),
                (None, None) => thread::park(),
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.transport.abandon(self.request);
    }
}

/// The part of the leader: whoever has this reads for all. Given up on drop.
pub(super) struct Lead<'a> {
    transport: &'a Arc<Transport>,
    halves: &'a Halves,
    /// Only taken out by `drop`.
    receiver: Option<Receiver>,
}

impl<'a> Lead<'a> {
    /// `None` if another thread leads.
    pub(super) fn take(
        transport: &'a Arc<Transport>,
        halves: &'a Halves,
        inbox: &mut Inbox,
    ) -> Option<Self> {
        let receiver = inbox.receiver.take()?;
        Some(Self { transport, halves, receiver: Some(receiver) })
    }

    /// Reads until there is an outcome for one request, or the time is over.
    fn receive_until(&mut self, request: RequestId, end: Option<Timestamp>) {
        while !lock(&self.halves.inbox).has_outcome(request) {
            let began = self.transport.clock.now();
            if end.is_some_and(|end| end <= began) {
                return;
            }
            self.unless_it_fails(|lead| lead.wait(began, end));
        }
    }

    /// Receives once and delivers what has come.
    pub(super) fn receive(&mut self) {
        self.unless_it_fails(|lead| {
            let Some(receiver) = &mut lead.receiver else { return Ok(()) };
            receiver.receive(&lead.transport.socket)?;
            lead.deliver()
        });
    }

    /// A failure is the end of the connection, for all.
    fn unless_it_fails(&mut self, step: impl FnOnce(&mut Self) -> Result<(), Fault>) {
        if let Err(fault) = step(self) {
            self.transport.is_over.store(true, Ordering::Relaxed);
            let _ = self.transport.socket.shutdown(Shutdown::Both);
            lock(&self.halves.inbox).fail(fault);
        }
    }

    /// Waits until something has come, or the time is over, and delivers it: looks for it first,
    /// and sleeps only then.
    fn wait(&mut self, began: Timestamp, end: Option<Timestamp>) -> Result<(), Fault> {
        let patience = end.map(|end| end.since(began));
        let Some(receiver) = &mut self.receiver else { return Ok(()) };
        let Transport { socket, clock, .. } = &**self.transport;
        let look_time = receiver.polling.begin_wait();
        let look_end = began.after(patience.map_or(look_time, |patience| patience.min(look_time)));
        let mut has_come = false;
        if !look_time.is_zero() {
            while !has_come && clock.now() < look_end {
                has_come = receiver.receive(socket)?;
            }
            receiver.polling.looked(has_come);
        }
        if !has_come {
            // One call that receives and sleeps would be woken twice: Linux wakes who sleeps in it
            // also when the store has taken the request out of the socket, as there is room again.
            let rest = end.map(|end| end.since(clock.now()));
            if !poll_for(socket, PollFlags::POLLIN, rest).is_empty() {
                receiver.receive(socket)?;
            }
        }
        receiver.polling.end_wait(clock.now().since(began));
        self.deliver()
    }

    fn deliver(&mut self) -> Result<(), Fault> {
        let Some(receiver) = &mut self.receiver else {
            return Ok(());
        };
        while let Some(Received { request, reply, descriptors }) = receiver.next()? {
            for (info, descriptor) in descriptors {
                self.transport.segments.add(info, descriptor);
            }
            let undo = lock(&self.halves.inbox).deliver(request, reply)?;
            self.transport.answered.fetch_max(request.0, Ordering::Relaxed);
            self.transport.undo(undo)?;
        }
        Ok(())
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut inbox = lock(&self.halves.inbox);
        inbox.receiver = self.receiver.take();
        inbox.wake_successor();
    }
}

/// A panic in another thread left nothing half done: every change under these locks is complete
/// when it is made.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
