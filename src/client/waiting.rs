//! Calls whose answer may depend on what others do: how long to wait for it, and what then.
//!
//! Three things end such a wait: the answer; the caller, through its interrupt function; and the
//! end of all patience with a store that should have answered long ago. After the last two
//! the store is asked to answer now. Usually it does, and the answer says whether the call has done
//! something; but it is not waited for much longer.

use super::Result;
use super::connection::Connection;
use super::error::{Error, Fault};
use super::options::Interrupt;
use super::sending::SendTime;
use crate::limits::{CANCEL_PATIENCE, INTERRUPT_CHECK_INTERVAL};
use crate::protocol::message::{Reply, Request};
use crate::time::{Clock, Timestamp};

/// A reply to a request that might have waited.
pub(super) struct Answer {
    pub(super) reply: Reply,
    /// The wait was cut short, and this is what the user is to be told, whatever the reply says.
    pub(super) cut_short: Option<Error>,
}

impl Connection {
    /// As [`Self::call`], for a request that may wait for what others do.
    pub(super) fn call_waiting(
        &self,
        request: Request,
        interrupt: Interrupt<'_>,
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
            _ => None,
        };
        timeout.map(|timeout| self.transport.clock.now().after(timeout).after(self.answer_grace))
    }

    /// The store has not answered since `started`.
    pub(super) fn unresponsive(&self, started: Timestamp) -> Error {
        let waited = self.transport.clock.now().since(started);
        Error::Unresponsive { path: self.path.clone(), waited }
    }

    fn wait_for_answer(&self, request: Request, interrupt: Interrupt<'_>) -> Result<Answer> {
        let error = |fault: Fault| self.error(fault);
        let mut watch = Watch::new(self, &request, interrupt);
        // Nothing is added to what the store does not take: who tries again and again would fill
        // our memory with it. And what has not been sent is easy to give up.
        while !self.transport.wait_for_empty_outbox(watch.send_time()).map_err(error)? {
            if let Some(error) = watch.cuts_short() {
                return Err(error);
            }
        }
        let mut ticket = self.transport.start(request, watch.send_time()).map_err(error)?;
        let cut_short = loop {
            if let Some(reply) = ticket.wait_until(watch.next_look()).map_err(error)? {
                return Ok(Answer { reply, cut_short: None });
            }
            if let Some(error) = watch.cuts_short() {
                break error;
            }
        };
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

/// What may end a wait before the answer does.
struct Watch<'a, 'i> {
    connection: &'a Connection,
    interrupt: Interrupt<'i>,
    started: Timestamp,
    /// The end of patience with the store.
    end: Option<Timestamp>,
    /// When to ask whether to go on.
    next_question: Option<Timestamp>,
}

impl<'a, 'i> Watch<'a, 'i> {
    fn new(connection: &'a Connection, request: &Request, interrupt: Interrupt<'i>) -> Self {
        let started = connection.transport.clock.now();
        let end = connection.patience_end(request);
        let next_question = interrupt.is_some().then(|| started.after(INTERRUPT_CHECK_INTERVAL));
        Self { connection, interrupt, started, end, next_question }
    }

    /// Until when to wait before [`Self::cuts_short`] is asked.
    fn next_look(&self) -> Option<Timestamp> {
        self.end.into_iter().chain(self.next_question).min()
    }

    fn send_time(&self) -> SendTime {
        self.next_look().map_or(SendTime::Unlimited, SendTime::Until)
    }

    /// Why not to go on waiting.
    fn cuts_short(&mut self) -> Option<Error> {
        let clock: &Clock = &self.connection.transport.clock;
        let now = clock.now();
        if let Some(interrupt) = &mut self.interrupt
            && self.next_question.is_some_and(|question| question <= now)
        {
            if interrupt() {
                return Some(Error::Interrupted);
            }
            self.next_question = Some(clock.now().after(INTERRUPT_CHECK_INTERVAL));
        }
        self.end.is_some_and(|end| end <= now).then(|| self.connection.unresponsive(self.started))
    }
}
