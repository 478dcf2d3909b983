//! Requests and replies over one socket, for any number of threads and without a thread of its own.
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
//! Everybody, under a lock that is never held over a wait. If the socket is full, the store may
//! have stopped reading because we do not read: so a thread that waits for room to send
//! reads as well, unless another one does.
//!
//! # What ends it
//!
//! The first [`Fault`] is for all: every thread that waits gets it, every later call gets it, and
//! the socket is shut down.
//!
//! Knows nothing of objects, and of replies only whose they are.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;

use super::error::Fault;
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::process_local::ProcessLocal;
use super::receiver::{Received, Receiver, poll_for, wait_readable};
use super::segments::Segments;
use crate::protocol::message::{ClientMessage, Reply, Request, RequestId};
use crate::time::{Clock, Timestamp};

/// How long a thread that cannot send looks away while another one reads.
const YIELD_TIME: Duration = Duration::from_millis(1);

/// One connection after its opening.
#[derive(Debug)]
pub(super) struct Transport {
    socket: UnixStream,
    /// The memory whose descriptors have come.
    pub(super) segments: Segments,
    clock: Clock,
    last_request: AtomicU64,
    halves: ProcessLocal<Halves>,
}

/// What is behind locks.
#[derive(Debug)]
struct Halves {
    outbox: Mutex<Outbox>,
    inbox: Mutex<Inbox>,
}

impl Transport {
    /// A transport over a socket on which requests up to `last_request` have been answered.
    pub(super) fn new(
        socket: UnixStream,
        receiver: Receiver,
        last_request: RequestId,
        clock: Clock,
    ) -> Self {
        let halves = Halves { outbox: Mutex::default(), inbox: Mutex::new(Inbox::new(receiver)) };
        Self {
            socket,
            segments: Segments::default(),
            clock,
            last_request: AtomicU64::new(last_request.0),
            halves: ProcessLocal::new(halves),
        }
    }

    /// Sends a request. The ticket is for its reply; without it the reply is thrown away.
    pub(super) fn start(&self, request: Request) -> Result<Ticket<'_>, Fault> {
        let halves = self.halves()?;
        let id = RequestId(self.last_request.fetch_add(1, Ordering::Relaxed) + 1);
        let waits = may_wait(&request);
        lock(&halves.inbox).register(id, waits)?;
        let ticket = Ticket { transport: self, halves, request: id };
        self.send(halves, id, request)?;
        // Between these two steps `close` may have cancelled what the store had not seen yet.
        if waits && lock(&halves.inbox).is_closing {
            self.call(Request::Cancel { request: id })?;
        }
        Ok(ticket)
    }

    /// Sends a request and waits for its reply.
    pub(super) fn call(&self, request: Request) -> Result<Reply, Fault> {
        self.start(request)?.wait()
    }

    /// Sends a request that has no reply.
    pub(super) fn notify(&self, request: Request) -> Result<(), Fault> {
        self.send(self.halves()?, RequestId::NONE, request)
    }

    /// Cancels all requests that wait for something to happen in the store, and lets no new ones
    /// in. They are answered as if their time were over.
    pub(super) fn close(&self) -> Result<(), Fault> {
        let waiting = lock(&self.halves()?.inbox).close();
        for request in waiting {
            self.call(Request::Cancel { request })?;
        }
        Ok(())
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closing(&self) -> bool {
        self.halves().is_ok_and(|halves| lock(&halves.inbox).is_closing)
    }

    fn halves(&self) -> Result<&Halves, Fault> {
        self.halves.get().ok_or(Fault::Inherited)
    }

    fn send(&self, halves: &Halves, id: RequestId, request: Request) -> Result<(), Fault> {
        let mut outbox = lock(&halves.outbox);
        let end = outbox.append(id, &ClientMessage::Request(request))?;
        loop {
            outbox.flush(&self.socket)?;
            if outbox.has_sent(end) {
                return Ok(());
            }
            drop(outbox);
            self.wait_for_room(halves);
            outbox = lock(&halves.outbox);
        }
    }

    /// Waits until more can be sent, and reads meanwhile.
    fn wait_for_room(&self, halves: &Halves) {
        let events = poll_for(&self.socket, PollFlags::POLLIN | PollFlags::POLLOUT, None);
        if events.is_empty() || events.intersects(!PollFlags::POLLIN) {
            return;
        }
        let lead = Lead::take(self, halves, &mut lock(&halves.inbox));
        match lead {
            Some(mut lead) => lead.receive(),
            None => thread::park_timeout(YIELD_TIME),
        }
    }
}

/// The right to the reply of one request.
pub(super) struct Ticket<'a> {
    transport: &'a Transport,
    halves: &'a Halves,
    request: RequestId,
}

impl Ticket<'_> {
    /// What to name in a cancel.
    pub(super) const fn request(&self) -> RequestId {
        self.request
    }

    /// Waits for the reply.
    pub(super) fn wait(&mut self) -> Result<Reply, Fault> {
        loop {
            if let Some(reply) = self.wait_until(None)? {
                return Ok(reply);
            }
        }
    }

    /// Waits for the reply, but no longer than `patience`.
    pub(super) fn wait_for(&mut self, patience: Duration) -> Result<Option<Reply>, Fault> {
        self.wait_until(Some(self.transport.clock.now().after(patience)))
    }

    fn wait_until(&mut self, end: Option<Timestamp>) -> Result<Option<Reply>, Fault> {
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
        lock(&self.halves.inbox).abandon(self.request);
    }
}

/// The part of the leader: whoever has this reads for all. Given up on drop.
struct Lead<'a> {
    transport: &'a Transport,
    halves: &'a Halves,
    /// Only taken out by `drop`.
    receiver: Option<Receiver>,
}

impl<'a> Lead<'a> {
    /// `None` if another thread leads.
    fn take(transport: &'a Transport, halves: &'a Halves, inbox: &mut Inbox) -> Option<Self> {
        let receiver = inbox.receiver.take()?;
        Some(Self { transport, halves, receiver: Some(receiver) })
    }

    /// Reads until there is an outcome for one request, or the time is over.
    fn receive_until(&mut self, request: RequestId, end: Option<Timestamp>) {
        while !lock(&self.halves.inbox).has_outcome(request) {
            if let Some(end) = end {
                let patience = end.since(self.transport.clock.now());
                if patience.is_zero() {
                    return;
                }
                if !wait_readable(&self.transport.socket, patience) {
                    continue;
                }
            }
            self.receive();
        }
    }

    /// Receives once and delivers what has come.
    fn receive(&mut self) {
        if let Err(fault) = self.try_receive() {
            let _ = self.transport.socket.shutdown(Shutdown::Both);
            lock(&self.halves.inbox).fail(fault);
        }
    }

    fn try_receive(&mut self) -> Result<(), Fault> {
        let Some(receiver) = &mut self.receiver else {
            return Ok(());
        };
        receiver.receive(&self.transport.socket)?;
        while let Some(Received { request, reply, descriptors }) = receiver.next()? {
            for (info, descriptor) in descriptors {
                self.transport.segments.add(info, descriptor);
            }
            lock(&self.halves.inbox).deliver(request, reply)?;
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

/// Whether the answer may depend on what others do.
const fn may_wait(request: &Request) -> bool {
    matches!(
        request,
        Request::Get { .. } | Request::Wait { .. } | Request::Create { .. } | Request::Put { .. }
    )
}

/// A panic in another thread left nothing half done: every change under these locks is complete
/// when it is made.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
