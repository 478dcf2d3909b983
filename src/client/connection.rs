//! One open connection: how it comes to be, calls that give typed errors, and how it ends.
//!
//! # Waiting
//!
//! Three things end a wait for an answer: the answer; the caller, through its interrupt function;
//! and the end of patience with a store that should have answered long ago. After the last two, a
//! store whose answer may depend on what others do is asked to answer now. Usually it does, and the
//! answer says whether the call has done something; but it is not waited for much longer.
//!
//! # Life
//!
//! A connection lives as long as the client uses it or something is held through it. In a forked
//! child nothing is said on it and no lock is taken. What is held is not known here, but for where
//! it is written down.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Result;
use super::direct::DirectReader;
use super::error::{Error, Fault, unexpected};
use super::holding::HeldTable;
use super::opening::{
    Builder, CONNECT_REQUEST, Interrupt, is_interrupted, is_interruptible, open, pause,
};
use super::receiving::{Ticket, may_wait};
use super::transport::Transport;
use crate::ids::{Location, ObjectId, SegmentId};
use crate::limits::{
    CANCEL_PATIENCE, GOODBYE_PATIENCE, INTERRUPT_CHECK_INTERVAL, RELEASE_GRACE,
    REQUEST_IDS_TOGETHER,
};
use crate::polling::Polling;
use crate::protocol::ProtocolError;
use crate::protocol::message::{Connected, Reply, Request};
use crate::shm::life_lock;
use crate::shm::words::Words;
use crate::time::{Clock, Timestamp};

/// What makes an answer of a reply: a function that takes the answer out of the right kind of
/// reply, and gives back any other one.
macro_rules! answer {
    ($reply:pat $(if $condition:expr)? => $answer:expr) => {
        |reply| match reply {
            $reply $(if $condition)? => Ok($answer),
            other => Err(other),
        }
    };
}
pub(super) use answer;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) path: PathBuf,
    /// What the store said at the opening; its limits are within ours.
    pub(super) connected: Connected,
    pub(super) transport: Arc<Transport>,
    /// How long past its timeout, if it may have one, a request may go without an answer.
    pub(super) patience: Duration,
    /// As long as a process has this, the store keeps what was given here, whatever becomes of the
    /// socket.
    life: Option<Words>,
    pub(super) held: HeldTable,
}

impl Connection {
    /// Connects, with as many attempts as `builder` says.
    pub(super) fn open(
        path: &Path,
        builder: &Builder,
        clock: &Clock,
        interrupt: Interrupt<'_>,
    ) -> Result<Self> {
        let (mut line, connected) = open(path, builder, clock, interrupt)?;
        line.receiver.polling = Polling::new(builder.poll_time);
        let direct = match DirectReader::open(&line.descriptors) {
            Ok(direct) => direct,
            // What the store gives to such a client it pins, so it has to connect anew without.
            Err(error) if builder.reads_directory => {
                log::info!("this process asks for objects, it cannot map the directory: {error}");
                let by_message = builder.clone().directory(false);
                return Self::open(path, &by_message, clock, None);
            }
            Err(error) => return Err(Error::Map(error)),
        };
        let life = line.descriptors.iter().find(|(info, _)| info.segment == SegmentId::LIFE);
        let life = life.map(|(_, file)| life_lock::hold(file)).transpose().map_err(Error::Map)?;
        // What is mapped has no more use for its descriptor.
        line.descriptors.retain(|(info, _)| {
            ![SegmentId::DIRECTORY, SegmentId::CLIENT_TABLE, SegmentId::LIFE]
                .contains(&info.segment)
        });
        let transport = Transport::new(
            line,
            direct,
            CONNECT_REQUEST,
            connected.request_ids_max.min(REQUEST_IDS_TOGETHER),
            !connected.has_directory,
            clock.clone(),
        );
        Ok(Self {
            path: path.to_owned(),
            connected,
            transport: Arc::new(transport),
            patience: builder.patience,
            life,
            held: HeldTable::new(Mutex::default()),
        })
    }

    /// Whether this is the parent's connection, and this process a forked child.
    pub(super) fn is_inherited(&self) -> bool {
        self.transport.is_inherited()
    }

    /// Ids in one of several requests for as many as somebody wants.
    pub(super) fn ids_together(&self) -> usize {
        self.connected.request_ids_max.min(REQUEST_IDS_TOGETHER)
    }

    /// Sends a request and waits for its reply. A refusal is an error.
    pub(super) fn call(&self, request: Request) -> Result<Reply> {
        self.call_waiting(request, &mut None).map(|answer| answer.reply)
    }

    /// As [`Self::call`], for a request whose reply is `Done`.
    pub(super) fn call_for_done(&self, request: Request) -> Result<()> {
        self.ask(request, answer!(Reply::Done => ()))
    }

    /// As [`Self::call`], with what makes an answer of the reply: see [`answer`].
    pub(super) fn ask<T>(
        &self,
        request: Request,
        answer: impl FnOnce(Reply) -> std::result::Result<T, Reply>,
    ) -> Result<T> {
        let name = request.traits().name;
        answer(self.call(request)?).map_err(|other| self.unexpected(name, &other))
    }

    /// Gives what others have let go the time to come to the store: those without a table say so by
    /// message, and the store may read ours before theirs.
    pub(super) fn allow_for_releases(&self, interrupt: &mut Interrupt<'_>) -> Result<()> {
        pause(&self.transport.clock, RELEASE_GRACE, interrupt)
    }

    pub(super) fn error(&self, fault: Fault) -> Error {
        fault.at(&self.path)
    }

    pub(super) fn unexpected(&self, request: &'static str, reply: &Reply) -> Error {
        self.error(unexpected(request, reply).into())
    }

    /// Ends this connection in an orderly way, so that all that was held has been released when
    /// this returns. If the store does not play along it is left to itself.
    pub(super) fn say_goodbye(&self) {
        let end = self.goodbye_end();
        if let Ok(mut goodbye) = self.transport.start(Request::Disconnect, Some(end)) {
            let _ = wait_unless_interrupted(&self.transport, &mut goodbye, end);
        }
    }

    /// Cancels what waits, and lets nothing in that may wait. False if the store does not answer,
    /// or the caller does not want to wait.
    pub(super) fn close(&self) -> bool {
        let end = self.goodbye_end();
        let closed =
            self.transport.close(|cancel| wait_unless_interrupted(&self.transport, cancel, end));
        // If the store has gone, nobody waits for it any more.
        closed.unwrap_or(true)
    }

    /// When to give up on the answers to a goodbye.
    fn goodbye_end(&self) -> Timestamp {
        self.transport.clock.now().after(self.patience.min(GOODBYE_PATIENCE))
    }

    /// The store named a place that is not in its memory.
    pub(super) fn outside(&self, id: ObjectId, location: &Location) -> Error {
        let reason = format!("object {id} would lie outside of its segment: {location:?}");
        self.error(ProtocolError::InvalidField { field: "Location", reason }.into())
    }

    /// As [`Self::call`], for a request that may wait for what others do; the caller can interrupt
    /// it.
    pub(super) fn call_waiting(
        &self,
        request: Request,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Answer> {
        let Answer { reply, cut_short } = self.wait_for_answer(request, interrupt)?;
        let cut_short = cut_short.or_else(|| self.transport.is_closing().then_some(Error::Closed));
        match reply {
            Reply::Refused(refusal) => Err(cut_short.unwrap_or(Error::Refused(refusal))),
            reply => Ok(Answer { reply, cut_short }),
        }
    }

    /// When a request that is sent now should have been answered by any store that runs.
    pub(super) fn patience_end(&self, request: &Request) -> Option<Timestamp> {
        let timeout = match request {
            Request::Get { timeout, .. } | Request::Wait { timeout, .. } => *timeout,
            Request::Create { room, .. } | Request::Put { room, .. } => room.timeout,
            _ => Some(Duration::ZERO),
        };
        timeout.map(|timeout| self.transport.clock.now().after(timeout).after(self.patience))
    }

    pub(super) fn unresponsive(&self, started: Timestamp) -> Error {
        let waited = self.transport.clock.now().since(started);
        Error::Unresponsive { path: self.path.clone(), waited }
    }

    fn wait_for_answer(&self, request: Request, interrupt: &mut Interrupt<'_>) -> Result<Answer> {
        if self.connected.read_only && request.traits().changes_objects {
            return Err(super::Refusal::ReadOnly.into());
        }
        let error = |fault: Fault| self.error(fault);
        let started = self.transport.clock.now();
        let in_a_while = || started.after(INTERRUPT_CHECK_INTERVAL);
        let next_question = is_interruptible(interrupt).then(in_a_while);
        let (end, may_wait) = (self.patience_end(&request), may_wait(&request));
        let mut watch = Watch { connection: self, interrupt, started, end, next_question };
        // Nothing is added to what the store does not take: who tries again and again would fill
        // our memory with it. And what has not been sent is easy to give up.
        while !self.transport.wait_for_empty_outbox(watch.next_look()).map_err(error)? {
            watch.look()?;
        }
        let mut ticket = self.transport.start(request, watch.next_look()).map_err(error)?;
        let cut_short = loop {
            if let Some(reply) = ticket.wait_until(watch.next_look()).map_err(error)? {
                return Ok(Answer { reply, cut_short: None });
            }
            if let Err(error) = watch.look() {
                break error;
            }
        };
        if !may_wait {
            return Err(cut_short);
        }
        let cancel = ticket.cancel().map_err(error)?;
        let end = Some(self.transport.clock.now().after(CANCEL_PATIENCE));
        if let Some(mut cancel) = cancel {
            cancel.wait_until(end).map_err(error)?;
        }
        match ticket.wait_until(end).map_err(error)? {
            Some(reply) => Ok(Answer { reply, cut_short: Some(cut_short) }),
            None => Err(cut_short),
        }
    }
}

/// Waits for a reply that is of no interest. False if it has not come.
fn wait_unless_interrupted(
    transport: &Transport,
    ticket: &mut Ticket<'_>,
    end: Timestamp,
) -> std::result::Result<bool, Fault> {
    loop {
        let next_look = end.min(transport.clock.now().after(INTERRUPT_CHECK_INTERVAL));
        let has_come = ticket.wait_until(Some(next_look))?.is_some();
        if has_come || transport.clock.now() >= end || is_interrupted(&mut None) {
            return Ok(has_come);
        }
    }
}

impl Drop for Connection {
    /// Closing the socket would not be enough while the flusher has it, or an event loop.
    fn drop(&mut self) {
        // First, so that the store finds nobody left when the socket ends.
        self.life = None;
        self.transport.hang_up();
    }
}

/// A reply to a request that might have waited.
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// The wait was cut short, and this is what the user is to be told, whatever the reply says.
    pub(super) cut_short: Option<Error>,
}

/// What may end a wait before the answer does.
struct Watch<'a, 'i> {
    connection: &'a Connection,
    interrupt: &'a mut Interrupt<'i>,
    started: Timestamp,
    /// The end of patience with the store.
    end: Option<Timestamp>,
    next_question: Option<Timestamp>,
}

impl Watch<'_, '_> {
    /// Until when to wait before the next [`Self::look`].
    fn next_look(&self) -> Option<Timestamp> {
        self.end.into_iter().chain(self.next_question).min()
    }

    /// Whether to go on waiting. If not, the error says why.
    fn look(&mut self) -> Result<()> {
        let clock = &self.connection.transport.clock;
        let now = clock.now();
        if self.next_question.is_some_and(|question| question <= now) {
            if is_interrupted(self.interrupt) {
                return Err(Error::Interrupted);
            }
            self.next_question = Some(clock.now().after(INTERRUPT_CHECK_INTERVAL));
        }
        match self.end.is_some_and(|end| end <= now) {
            true => Err(self.connection.unresponsive(self.started)),
            false => Ok(()),
        }
    }
}
