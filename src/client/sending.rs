//! The writing half of a connection: what is on its way to the store, and who pushes it.
//!
//! # Who writes
//!
//! Everybody. Threads append whole frames to the [`Outbox`] and push what the socket takes at once;
//! its lock is held for that long and no longer. If the socket does not take all of it, a thread
//! that has time waits until it does, without the lock, and meanwhile others may append behind it.
//! One that must not wait, because it drops a buffer or serves an event loop, leaves the rest to
//! the *flusher*: a thread that is started when it is needed, at most one for a connection, and
//! ends when all has been sent, or the connection ends.
//!
//! If the socket is full, the store may have stopped reading because we do not read: so a thread
//! that waits for room reads as well, unless another one does.
//!
//! # Releases
//!
//! Where the store has no directory, releases are messages. A release is not answered, so all it
//! costs is the call that sends it and the turn of the store that reads it. While objects come and
//! go quickly that is half of the whole cost. So while traffic is hot a release waits there for the
//! next request and travels with it. Nobody may be left waiting for the memory, though, because a
//! client has fallen silent: a thread, the *sweeper*, looks every millisecond and sends what is
//! still there. It is started after some quick releases, and ends when there were none for a while;
//! without it, and at any lower rate, a release is sent at once.
//!
//! So another client may find an object in use that this one has let go a moment ago. It gives
//! that moment to us (`RELEASE_GRACE`) before it tells its user that there is no room, or that an
//! object is in use. A sweeper that gets no processor time (real-time scheduling, a stopped
//! process) keeps holds for as long; so does a thread that would send them at once.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};

use super::error::Fault;
use super::receiving::{Inbox, Lead, poll_for};
use super::transport::{AT_ONCE, Halves, Transport, lock};
use crate::ids::ObjectId;
use crate::limits::{
    POLL_HOT, RELEASE_RUN, RELEASES_TOGETHER_MAX, SWEEP_INTERVAL, SWEEPS_IDLE_MAX,
};
use crate::protocol::codec::encode_client;
use crate::protocol::frame::append_frame;
use crate::protocol::message::{ClientMessage, Request, RequestId};
use crate::threads;
use crate::time::Timestamp;

/// How long a thread that cannot send looks away while another one reads.
const YIELD_TIME: Duration = Duration::from_millis(1);

/// How often the flusher looks whether an event loop still reads.
const EVENT_LOOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes of memory that an empty outbox keeps for the next request.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A place in the stream of bytes to the store, counted from the start of the connection.
#[derive(Debug, Clone, Copy)]
struct Position(u64);

/// Frames that have not been sent, or not entirely: `bytes[sent..]`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes of the stream before `bytes`.
    start: u64,
    /// Nothing can be sent any more.
    fault: Option<Fault>,
    /// A thread has been started that sends what is left over.
    has_flusher: bool,
    /// Holds to be given back with the next frame.
    releases: Releases,
}

impl Outbox {
    /// An empty one, for a store that takes so many ids in one request; where others allow for it,
    /// releases may wait.
    pub(super) fn new(request_ids_max: usize, releases_may_wait: bool) -> Self {
        let mut releases = Releases::new(request_ids_max);
        releases.may_wait = releases_may_wait;
        Self { releases, ..Self::default() }
    }

    /// Appends a frame, behind what is to be given back. The position returned is its end.
    fn append(&mut self, request: RequestId, message: &ClientMessage) -> Result<Position, Fault> {
        self.append_releases()?;
        append_frame(&mut self.bytes, 0, |out| encode_client(out, request, message))?;
        Ok(self.end())
    }

    /// Appends what is to be given back. The position returned is its end.
    fn append_releases(&mut self) -> Result<Position, Fault> {
        self.fault.clone().map_or(Ok(()), Err)?;
        for holds in self.releases.take() {
            let release = ClientMessage::Request(Request::Release { holds });
            append_frame(&mut self.bytes, 0, |out| encode_client(out, RequestId::NONE, &release))?;
        }
        Ok(self.end())
    }

    /// The end of what has been appended.
    const fn end(&self) -> Position {
        Position(self.start + self.bytes.len() as u64)
    }

    /// Sends what the socket takes without waiting.
    fn flush(&mut self, socket: &UnixStream) -> Result<(), Fault> {
        self.fault.clone().map_or(Ok(()), Err)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.sent < self.bytes.len() {
            match send(socket.as_raw_fd(), &self.bytes[self.sent..], flags) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(self.fault.insert(io::Error::from(error).into()).clone()),
            }
        }
        self.forget_sent();
        Ok(())
    }

    /// Whether the stream has been sent as far as `position`.
    const fn has_sent(&self, position: Position) -> bool {
        self.start + self.sent as u64 >= position.0
    }

    fn forget_sent(&mut self) {
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES_MAX);
        } else if self.sent > self.bytes.len() / 2 {
            // The half that is moved is paid for by the half that was sent.
            self.bytes.drain(..self.sent);
        } else {
            return;
        }
        self.start += self.sent as u64;
        self.sent = 0;
    }
}

impl Transport {
    /// Sends a message. If that takes longer than until then, the flusher sees to the rest.
    pub(super) fn send(
        self: &Arc<Self>,
        halves: &Halves,
        id: RequestId,
        request: Request,
        until: Option<Timestamp>,
    ) -> Result<(), Fault> {
        let end = lock(&halves.outbox).append(id, &ClientMessage::Request(request))?;
        self.push_or_leave(halves, end, until)
    }

    /// Sends what is to be given back. Waits for nothing.
    fn send_releases(self: &Arc<Self>, halves: &Halves) -> Result<(), Fault> {
        let end = lock(&halves.outbox).append_releases()?;
        self.push_or_leave(halves, end, AT_ONCE)
    }

    /// Waits until nothing is left over of what was sent before; false if that took too long.
    pub(super) fn wait_for_empty_outbox(
        self: &Arc<Self>,
        until: Option<Timestamp>,
    ) -> Result<bool, Fault> {
        let halves = self.halves()?;
        let end = lock(&halves.outbox).end();
        self.push(halves, end, until)
    }

    fn push_or_leave(
        self: &Arc<Self>,
        halves: &Halves,
        end: Position,
        until: Option<Timestamp>,
    ) -> Result<(), Fault> {
        if !self.push(halves, end, until)? {
            self.start_flusher(halves);
        }
        Ok(())
    }

    /// Sends the stream as far as `end`; false if that took too long.
    fn push(
        self: &Arc<Self>,
        halves: &Halves,
        end: Position,
        until: Option<Timestamp>,
    ) -> Result<bool, Fault> {
        loop {
            {
                let mut outbox = lock(&halves.outbox);
                // What has been sent cannot fail any more.
                if !outbox.has_sent(end) {
                    outbox.flush(&self.socket)?;
                }
                if outbox.has_sent(end) {
                    return Ok(true);
                }
            }
            let patience = until.map(|until| until.since(self.clock.now()));
            if patience == Some(Duration::ZERO) {
                return Ok(false);
            }
            self.wait_for_room(halves, patience, |_| true);
        }
    }

    /// Waits until more can be sent, and reads meanwhile if it may.
    fn wait_for_room(
        self: &Arc<Self>,
        halves: &Halves,
        patience: Option<Duration>,
        may_read: impl FnOnce(&Inbox) -> bool,
    ) {
        let events = poll_for(&self.socket, PollFlags::POLLIN | PollFlags::POLLOUT, patience);
        if events.is_empty() || events.intersects(!PollFlags::POLLIN) {
            return;
        }
        let lead = {
            let mut inbox = lock(&halves.inbox);
            if may_read(&inbox) { Lead::take(self, halves, &mut inbox) } else { None }
        };
        match lead {
            Some(mut lead) => lead.receive(),
            None => thread::park_timeout(YIELD_TIME),
        }
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
            let is_left_over = outbox.flush(&self.socket).is_ok() && !outbox.bytes.is_empty();
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
        } else {
            self.wait_for_room(halves, None, |inbox| !inbox.serves_event_loop());
        }
        true
    }
}

/// Holds that are to be given back with the next message, and who sees to it that there is one.
#[derive(Debug, Default)]
struct Releases {
    /// Ids that the store takes in one message.
    ids_max: usize,
    /// Whether other clients allow for it.
    may_wait: bool,
    waiting: Vec<(ObjectId, u32)>,
    /// Quick releases in a row.
    run: u32,
    last: Timestamp,
    has_sweeper: bool,
    /// There was a quick release since the last sweep.
    is_fresh: bool,
}

/// What to do about a release.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Send,
    /// It has to be sent, and from now on they may wait: a sweeper is to be started.
    SendAndStartSweeper,
}

impl Releases {
    /// No releases, of at most so many ids in a message.
    fn new(ids_max: usize) -> Self {
        Self { ids_max, may_wait: true, ..Self::default() }
    }

    /// What is waiting, in as many messages as it needs, to be sent now.
    fn take(&mut self) -> Vec<Vec<(ObjectId, u32)>> {
        // Nearly always there is nothing, which allocates nothing.
        let parts = self.waiting.chunks(self.ids_max.max(1)).map(<[_]>::to_vec).collect();
        self.waiting.clear();
        self.waiting.shrink_to(RELEASES_TOGETHER_MAX);
        parts
    }

    fn add(&mut self, holds: &[(ObjectId, u32)], now: Timestamp) -> Step {
        self.waiting.extend_from_slice(holds);
        if !self.may_wait {
            return Step::Send;
        }
        let is_quick = now.since(self.last) <= POLL_HOT;
        self.is_fresh |= is_quick;
        self.run = if is_quick { self.run.saturating_add(1) } else { 0 };
        self.last = now;
        if self.has_sweeper {
            let may_wait = is_quick && self.waiting.len() < RELEASES_TOGETHER_MAX;
            if may_wait { Step::Wait } else { Step::Send }
        } else if self.run >= RELEASE_RUN {
            self.has_sweeper = true;
            Step::SendAndStartSweeper
        } else {
            Step::Send
        }
    }
}

impl Transport {
    /// Gives back holds, now or with the next request. Waits for nothing.
    pub(super) fn release(self: &Arc<Self>, holds: &[(ObjectId, u32)]) {
        let Ok(halves) = self.halves() else { return };
        let now = self.clock.now();
        let step = lock(&halves.outbox).releases.add(holds, now);
        self.note_given_back();
        if step == Step::SendAndStartSweeper {
            self.start_sweeper(halves);
        }
        if step != Step::Wait {
            // If the store has gone, there are no holds.
            let _ = self.send_releases(halves);
        }
    }

    fn start_sweeper(self: &Arc<Self>, halves: &Halves) {
        let transport = Arc::downgrade(self);
        let sweeper = threads::spawn("plasma sweeper", move || while sweep(&transport) {});
        if sweeper.is_err() {
            let mut outbox = lock(&halves.outbox);
            outbox.releases.has_sweeper = false;
            outbox.releases.run = 0;
        }
    }
}

/// One round of the sweeper. False when it is not needed any more.
fn sweep(transport: &Weak<Transport>) -> bool {
    for sweeps_left in (0..SWEEPS_IDLE_MAX).rev() {
        thread::park_timeout(SWEEP_INTERVAL);
        let Some(transport) = transport.upgrade() else { return false };
        let Ok(halves) = transport.halves() else { return false };
        if transport.send_releases(halves).is_err() {
            return false;
        }
        let releases = &mut lock(&halves.outbox).releases;
        if std::mem::take(&mut releases.is_fresh) {
            return true;
        }
        // Under the lock: who releases from now on sends, or starts another one.
        releases.has_sweeper = sweeps_left > 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SWEEPS_IDLE_MAX;

    fn hold() -> [(ObjectId, u32); 1] {
        [([7; 20].into(), 1)]
    }

    /// So many releases, each a microsecond after the one before.
    fn quick(releases: &mut Releases, count: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..count {
            let now = releases.last.after(std::time::Duration::from_micros(1));
            steps.push(releases.add(&hold(), now));
            if steps.last() != Some(&Step::Wait) {
                releases.take();
            }
        }
        steps
    }

    #[test]
    fn rare_releases_are_sent_at_once() {
        let mut releases = Releases::new(8192);
        for _ in 0..10 * RELEASE_RUN {
            let now = releases.last.after(2 * POLL_HOT);
            assert_eq!(releases.add(&hold(), now), Step::Send);
            assert_eq!(releases.take(), [hold().to_vec()]);
        }
        assert!(!releases.has_sweeper);
    }

    #[test]
    fn a_slow_one_is_sent_at_once_while_there_is_a_sweeper_and_does_not_keep_it() {
        let mut releases = Releases { has_sweeper: true, ..Releases::new(8192) };
        for _ in 0..3 {
            let now = releases.last.after(2 * POLL_HOT);
            assert_eq!(releases.add(&hold(), now), Step::Send);
        }
        assert!(!releases.is_fresh);
        quick(&mut releases, 1);
        assert!(releases.is_fresh);
    }

    #[test]
    fn after_a_run_of_quick_ones_they_wait_but_not_too_many() {
        let mut releases = Releases::new(8192);
        let run = RELEASE_RUN as usize;
        let steps = quick(&mut releases, run + RELEASES_TOGETHER_MAX);
        assert!(steps[..run - 1].iter().all(|step| *step == Step::Send), "{steps:?}");
        assert_eq!(steps[run - 1], Step::SendAndStartSweeper);
        let (last, waiting) = steps[run..].split_last().unwrap();
        assert!(waiting.iter().all(|step| *step == Step::Wait), "{steps:?}");
        assert_eq!(*last, Step::Send, "as many as may wait");
    }

    #[test]
    fn where_nobody_allows_for_it_none_waits() {
        let mut releases = Releases { may_wait: false, ..Releases::new(8192) };
        let steps = quick(&mut releases, 10 * RELEASE_RUN as usize);
        assert!(steps.iter().all(|step| *step == Step::Send), "{steps:?}");
    }

    #[test]
    fn what_waits_is_cut_to_what_the_store_takes() {
        let mut releases = Releases::new(3);
        releases.has_sweeper = true;
        quick(&mut releases, 7);
        let sizes: Vec<_> = releases.take().iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 3, 1]);
        assert!(releases.take().is_empty(), "once");
    }

    #[test]
    fn others_do_not_find_in_use_what_was_let_go() {
        let store = crate::testing::store();
        let by_message = crate::Client::builder().directory(false);
        let reader = by_message.connect(store.path()).unwrap();
        let other = crate::Client::connect(store.path()).unwrap();
        let rounds = 40;
        let is_deleted = |_: &i32| {
            let id = ObjectId::random();
            other.put(id, b"data", b"").unwrap();
            for _ in 0..3 * RELEASE_RUN {
                drop(reader.get_one(id, None).unwrap());
            }
            other.delete_one(id).unwrap() == crate::client::DeleteOutcome::Deleted
        };
        let deleted = (0..rounds).filter(is_deleted).count();
        // On a busy machine a sweeper may come late; without the grace nearly none is deleted.
        assert!(deleted > 20, "{deleted} of {rounds}");
    }

    #[test]
    fn the_sweeper_ends_and_another_one_starts() {
        let store = crate::testing::store();
        let by_message = crate::Client::builder().directory(false);
        let client = by_message.connect(store.path()).unwrap();
        let id = ObjectId::random();
        client.put(id, b"data", b"").unwrap();
        let connection = client.connection().unwrap();
        let outbox = || lock(&connection.transport.halves().unwrap().outbox);
        // As if the store had no directory.
        outbox().releases.may_wait = true;
        let has_sweeper = || outbox().releases.has_sweeper;
        for _ in 0..2 {
            for _ in 0..100_000 {
                drop(client.get_one(id, None).unwrap());
                if has_sweeper() {
                    break;
                }
            }
            assert!(has_sweeper(), "that was quick enough");
            // Nothing is said any more, and yet it is sent, and then the thread ends.
            for _ in 0..1000 * SWEEPS_IDLE_MAX {
                if !has_sweeper() {
                    break;
                }
                thread::park_timeout(SWEEP_INTERVAL);
            }
            assert!(!has_sweeper());
            let other = crate::Client::connect(store.path()).unwrap();
            assert_eq!(other.stats().unwrap().pinned, 0);
        }
    }
}
