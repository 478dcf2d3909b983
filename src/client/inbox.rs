//! Replies, and who waits for them.
//!
//! A request is registered before it is sent, and stays until its reply is taken out or nobody
//! wants it any more. If it comes after that, what it grants is to be given back: see [`Grants`].
//!
//! The [`Receiver`] lies here too while no thread reads; whoever takes it has to
//! bring it back and to call [`Inbox::wake_successor`]. All of it is behind one lock, which is
//! never held over a wait.

use std::collections::HashMap;
use std::thread::{self, Thread};

use foldhash::fast::RandomState;

use super::error::{Fault, unexpected};
use super::grants::{Grants, Undo};
use super::receiver::Receiver;
use crate::protocol::message::{Reply, Request, RequestId};

/// Replies, and who waits for them.
#[derive(Debug)]
pub(super) struct Inbox {
    /// `None` while a thread leads.
    pub(super) receiver: Option<Receiver>,
    waiting: HashMap<RequestId, Waiting, RandomState>,
    /// Requests of event loops whose replies have come since the loop last asked.
    answered: Vec<RequestId>,
    /// Why there will be no more replies.
    fault: Option<Fault>,
    /// Requests that may wait long are not wanted any more.
    pub(super) is_closing: bool,
}

#[derive(Debug)]
struct Waiting {
    /// Who is to be woken, if anybody.
    thread: Option<Thread>,
    state: WaitState,
    /// Whether the store may take its time to answer.
    may_wait: bool,
    is_sent: bool,
    is_cancelled: bool,
    grants: Grants,
}

impl Waiting {
    /// Whether there is something to cancel, and nobody has done so.
    const fn cancel(&mut self) -> bool {
        let cancels = self.may_wait && self.is_sent && !self.is_cancelled;
        self.is_cancelled |= cancels;
        cancels
    }
}

/// Who is to get a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    /// The current thread.
    ThisThread,
    /// A loop that watches the socket, and looks when something has come.
    EventLoop,
    Nobody,
}

#[derive(Debug)]
enum WaitState {
    /// The thread is on its way to look for the reply, or sleeps and will look when it is woken.
    Looks,
    /// The thread is busy with something else and cannot be relied on to read for others.
    LooksAway,
    /// The reply is here.
    Replied(Reply),
    /// Nobody wants the reply.
    Abandoned,
}

impl Inbox {
    /// An inbox whose messages this receiver will bring.
    pub(super) fn new(receiver: Receiver) -> Self {
        Self {
            receiver: Some(receiver),
            waiting: HashMap::default(),
            answered: Vec::new(),
            fault: None,
            is_closing: false,
        }
    }

    /// Announces a request that is about to be sent.
    pub(super) fn register(
        &mut self,
        id: RequestId,
        request: &Request,
        waiter: Waiter,
    ) -> Result<(), Fault> {
        let may_wait = may_wait(request);
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.is_closing && may_wait {
            return Err(Fault::Closed);
        }
        let (thread, state) = match waiter {
            Waiter::ThisThread => (Some(thread::current()), WaitState::Looks),
            Waiter::EventLoop => (None, WaitState::LooksAway),
            Waiter::Nobody => (None, WaitState::Abandoned),
        };
        let grants = Grants::of(request);
        let (is_sent, is_cancelled) = (false, false);
        let waiting = Waiting { thread, state, may_wait, is_sent, is_cancelled, grants };
        self.waiting.insert(id, waiting);
        Ok(())
    }

    /// Puts a reply where its thread will find it. If nobody wants it, returns what has to be sent
    /// to give back what it grants.
    pub(super) fn deliver(&mut self, request: RequestId, reply: Reply) -> Result<Undo, Fault> {
        let Some(waiting) = self.waiting.get_mut(&request) else {
            return Err(unexpected("none", &reply).into());
        };
        match waiting.state {
            WaitState::Looks | WaitState::LooksAway => {
                waiting.state = WaitState::Replied(reply);
                match &waiting.thread {
                    Some(thread) if thread.id() == thread::current().id() => {}
                    Some(thread) => thread.unpark(),
                    None => self.answered.push(request),
                }
                Ok(Undo::default())
            }
            WaitState::Replied(_) => Err(unexpected("a second time", &reply).into()),
            WaitState::Abandoned => {
                let undo = waiting.grants.undo(&reply);
                self.waiting.remove(&request);
                Ok(undo)
            }
        }
    }

    /// Ends the connection for everybody. The first reason is the one that counts.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        for thread in self.waiting.values().filter_map(|waiting| waiting.thread.as_ref()) {
            thread.unpark();
        }
    }

    /// Whether there is a reply, or never will be.
    pub(super) fn has_outcome(&self, request: RequestId) -> bool {
        let state = self.waiting.get(&request).map(|waiting| &waiting.state);
        self.fault.is_some() || matches!(state, Some(WaitState::Replied(_)))
    }

    /// The reply, or the reason why there is none.
    pub(super) fn take_outcome(&mut self, request: RequestId) -> Option<Result<Reply, Fault>> {
        let state = self.waiting.get(&request).map(|waiting| &waiting.state);
        if matches!(state, Some(WaitState::Replied(_)))
            && let Some(Waiting { state: WaitState::Replied(reply), .. }) =
                self.waiting.remove(&request)
        {
            return Some(Ok(reply));
        }
        self.fault.clone().map(Err)
    }

    /// The requests of event loops whose replies have come since the last call.
    pub(super) fn take_answered(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.answered)
    }

    /// The thread is back from something else.
    pub(super) fn look(&mut self, request: RequestId) {
        self.set_state(request, WaitState::Looks);
    }

    /// The thread turns to something else, but still wants the reply.
    pub(super) fn look_away(&mut self, request: RequestId) {
        self.set_state(request, WaitState::LooksAway);
        self.wake_successor();
    }

    fn set_state(&mut self, request: RequestId, state: WaitState) {
        if let Some(waiting) = self.waiting.get_mut(&request)
            && !matches!(waiting.state, WaitState::Replied(_))
        {
            waiting.state = state;
        }
    }

    /// Nobody wants the reply, if it has not been taken out. Returns what the store has to be told:
    /// that it need not wait any more, or what is given back.
    pub(super) fn abandon(&mut self, request: RequestId) -> Undo {
        let Some(waiting) = self.waiting.get_mut(&request) else { return Undo::default() };
        let farewell = match &waiting.state {
            _ if self.fault.is_some() => Undo::default(),
            WaitState::Replied(reply) => waiting.grants.undo(reply),
            WaitState::Abandoned => return Undo::default(),
            WaitState::Looks | WaitState::LooksAway => {
                waiting.state = WaitState::Abandoned;
                let cancels = waiting.cancel();
                self.wake_successor();
                return match cancels {
                    true => Request::Cancel { request }.into(),
                    false => Undo::default(),
                };
            }
        };
        self.waiting.remove(&request);
        self.wake_successor();
        farewell
    }

    /// The request is on its way. Whether it has to be cancelled at once.
    pub(super) fn note_sent(&mut self, request: RequestId) -> bool {
        let Some(waiting) = self.waiting.get_mut(&request) else {
            return false;
        };
        waiting.is_sent = true;
        self.is_closing && waiting.cancel()
    }

    /// Whether the store has to be told that a request need not wait any more.
    pub(super) fn cancel(&mut self, request: RequestId) -> bool {
        self.waiting.get_mut(&request).is_some_and(Waiting::cancel)
    }

    /// Whether a loop that watches the socket counts on reading what comes.
    pub(super) fn serves_event_loop(&self) -> bool {
        let mut waiting = self.waiting.values();
        waiting.any(|waiting| {
            waiting.thread.is_none() && matches!(waiting.state, WaitState::LooksAway)
        })
    }

    /// Why there will be no more replies.
    pub(super) const fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Lets no more requests in that may wait long. Returns those that do.
    pub(super) fn close(&mut self) -> Vec<RequestId> {
        self.is_closing = true;
        let waiting = self.waiting.iter_mut();
        waiting.filter_map(|(request, waiting)| waiting.cancel().then_some(*request)).collect()
    }

    /// If nobody leads, wakes a thread that will.
    pub(super) fn wake_successor(&self) {
        if self.receiver.is_none() {
            return;
        }
        let mut looking =
            self.waiting.values().filter(|waiting| matches!(waiting.state, WaitState::Looks));
        if let Some(thread) = looking.find_map(|waiting| waiting.thread.as_ref()) {
            thread.unpark();
        }
    }
}

/// Whether the answer may depend on what others do.
const fn may_wait(request: &Request) -> bool {
    matches!(
        request,
        Request::Get { .. } | Request::Wait { .. } | Request::Create { .. } | Request::Put { .. }
    )
}
