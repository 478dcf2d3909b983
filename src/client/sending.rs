//! The writing half of a [`Transport`]: who pushes the outbox into the socket, and when.
//!
//! Whoever sends pushes. If the socket does not take all of it at once, a thread that has time
//! waits until it does. One that must not wait, because it drops a buffer or serves an event loop,
//! leaves the rest to the *flusher*: a thread that is started when it is needed, at most one for a
//! connection, and ends when all has been sent, or the connection ends.
//!
//! If the socket is full, the store may have stopped reading because we do not read: so a thread
//! that waits for room reads as well, unless another one does, or an event loop will.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;

use super::error::Fault;
use super::outbox::Position;
use super::receiver::poll_for;
use super::transport::{Halves, Lead, Transport, lock};
use crate::protocol::message::{ClientMessage, Request, RequestId};
use crate::threads;
use crate::time::Timestamp;

/// How long a thread that cannot send looks away while another one reads.
const YIELD_TIME: Duration = Duration::from_millis(1);

/// How often the flusher looks whether an event loop still reads.
const EVENT_LOOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a sender may wait for room in the socket.
#[derive(Debug, Clone, Copy)]
pub(super) enum SendTime {
    /// As long as it takes.
    Unlimited,
    /// Until then; the flusher sees to the rest.
    Until(Timestamp),
    /// Not at all; the flusher sees to the rest.
    Nothing,
}

impl Transport {
    /// Sends a message.
    pub(super) fn send(
        self: &Arc<Self>,
        halves: &Halves,
        id: RequestId,
        request: Request,
        time: SendTime,
    ) -> Result<(), Fault> {
        let end = {
            let mut outbox = lock(&halves.outbox);
            let end = outbox.append(id, &ClientMessage::Request(request))?;
            outbox.flush(&self.socket)?;
            end
        };
        if !self.push(halves, end, time)? {
            self.start_flusher(halves);
        }
        Ok(())
    }

    /// Sends what is to be given back. Waits for nothing.
    pub(super) fn send_releases(self: &Arc<Self>, halves: &Halves) -> Result<(), Fault> {
        let end = {
            let mut outbox = lock(&halves.outbox);
            let end = outbox.append_releases()?;
            outbox.flush(&self.socket)?;
            end
        };
        if !self.push(halves, end, SendTime::Nothing)? {
            self.start_flusher(halves);
        }
        Ok(())
    }

    /// Waits until nothing is left over of what was sent before; false if that took too long.
    pub(super) fn wait_for_empty_outbox(self: &Arc<Self>, time: SendTime) -> Result<bool, Fault> {
        let halves = self.halves()?;
        let end = lock(&halves.outbox).end();
        self.push(halves, end, time)
    }

    /// Sends the stream as far as `end`; false if that took too long.
    fn push(
        self: &Arc<Self>,
        halves: &Halves,
        end: Position,
        time: SendTime,
    ) -> Result<bool, Fault> {
        loop {
            {
                let mut outbox = lock(&halves.outbox);
                // What has been sent cannot fail any more.
                if outbox.has_sent(end) {
                    return Ok(true);
                }
                outbox.flush(&self.socket)?;
                if outbox.has_sent(end) {
                    return Ok(true);
                }
            }
            let patience = match time {
                SendTime::Unlimited => None,
                SendTime::Until(end) => Some(end.since(self.clock.now())),
                SendTime::Nothing => Some(Duration::ZERO),
            };
            if patience == Some(Duration::ZERO) {
                return Ok(false);
            }
            self.wait_for_room(halves, patience);
        }
    }

    /// Waits until more can be sent, and reads meanwhile.
    fn wait_for_room(self: &Arc<Self>, halves: &Halves, patience: Option<Duration>) {
        let events = poll_for(&self.socket, PollFlags::POLLIN | PollFlags::POLLOUT, patience);
        if events.is_empty() || events.intersects(!PollFlags::POLLIN) {
            return;
        }
        let lead = Lead::take(self, halves, &mut lock(&halves.inbox));
        read_or_yield(lead);
    }

    fn start_flusher(self: &Arc<Self>, halves: &Halves) {
        if std::mem::replace(&mut lock(&halves.outbox).has_flusher, true) {
            return;
        }
        let transport = Arc::clone(self);
        let flusher = threads::spawn("plasma flusher", move || while transport.flush_on() {});
        if flusher.is_err() {
            // Without memory for a thread the rest goes out with the next message.
            lock(&halves.outbox).has_flusher = false;
        }
    }

    /// One step of the flusher. False when it has nothing more to do.
    fn flush_on(self: &Arc<Self>) -> bool {
        let Ok(halves) = self.halves() else { return false };
        {
            let mut outbox = lock(&halves.outbox);
            let is_left_over = outbox.flush(&self.socket).is_ok() && !outbox.is_empty();
            // Under the lock: who appends from now on starts a flusher of its own.
            outbox.has_flusher = is_left_over;
            if !is_left_over {
                return false;
            }
        }
        // What an event loop waits for must stay in the socket, or the loop would not wake up.
        let loop_reads = lock(&halves.inbox).serves_event_loop();
        if loop_reads {
            poll_for(&self.socket, PollFlags::POLLOUT, Some(EVENT_LOOP_CHECK_INTERVAL));
            return true;
        }
        let events = poll_for(&self.socket, PollFlags::POLLIN | PollFlags::POLLOUT, None);
        if !events.is_empty() && PollFlags::POLLIN.contains(events) {
            let lead = {
                let mut inbox = lock(&halves.inbox);
                let loop_reads = inbox.serves_event_loop();
                if loop_reads { None } else { Lead::take(self, halves, &mut inbox) }
            };
            read_or_yield(lead);
        }
        true
    }
}

/// Receives once, or lets whoever else reads do so.
fn read_or_yield(lead: Option<Lead<'_>>) {
    match lead {
        Some(mut lead) => lead.receive(),
        None => thread::park_timeout(YIELD_TIME),
    }
}
