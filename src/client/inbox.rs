//! Replies, and who waits for them.
//!
//! A request is registered before it is sent, and stays until its reply is taken out or nobody
//! wants it any more. The [`Receiver`] lies here too while no thread reads; whoever takes it has to
//! bring it back and to call [`Inbox::wake_successor`]. All of it is behind one lock, which is
//! never held over a wait.

use std::collections::HashMap;
use std::thread::{self, Thread};

use foldhash::fast::RandomState;

use super::error::{Fault, unexpected};
use super::receiver::Receiver;
use crate::protocol::message::{Reply, RequestId};

/// Replies, and who waits for them.
#[derive(Debug)]
pub(super) struct Inbox {
    /// `None` while a thread leads.
    pub(super) receiver: Option<Receiver>,
    waiting: HashMap<RequestId, Waiting, RandomState>,
    /// Why there will be no more replies.
    fault: Option<Fault>,
    /// Requests that may wait long are not wanted any more.
    pub(super) is_closing: bool,
}

#[derive(Debug)]
struct Waiting {
    thread: Thread,
    state: WaitState,
    /// Whether the store may take its time to answer.
    may_wait: bool,
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
            fault: None,
            is_closing: false,
        }
    }

    /// Announces a request of the current thread.
    pub(super) fn register(&mut self, request: RequestId, may_wait: bool) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.is_closing && may_wait {
            return Err(Fault::Closed);
        }
        let state = WaitState::Looks;
        self.waiting.insert(request, Waiting { thread: thread::current(), state, may_wait });
        Ok(())
    }

    /// Puts a reply where its thread will find it.
    pub(super) fn deliver(&mut self, request: RequestId, reply: Reply) -> Result<(), Fault> {
        let Some(waiting) = self.waiting.get_mut(&request) else {
            return Err(unexpected("none", &reply).into());
        };
        match waiting.state {
            WaitState::Looks | WaitState::LooksAway => {
                waiting.state = WaitState::Replied(reply);
                if waiting.thread.id() != thread::current().id() {
                    waiting.thread.unpark();
                }
            }
            WaitState::Replied(_) => return Err(unexpected("a second time", &reply).into()),
            WaitState::Abandoned => {
                self.waiting.remove(&request);
            }
        }
        Ok(())
    }

    /// Ends the connection for everybody. The first reason is the one that counts.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        for waiting in self.waiting.values() {
            waiting.thread.unpark();
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

    /// Nobody wants the reply, if it has not been taken out.
    pub(super) fn abandon(&mut self, request: RequestId) {
        let Some(waiting) = self.waiting.get_mut(&request) else {
            return;
        };
        match waiting.state {
            WaitState::Looks | WaitState::LooksAway if self.fault.is_none() => {
                waiting.state = WaitState::Abandoned;
            }
            _ => {
                self.waiting.remove(&request);
            }
        }
        self.wake_successor();
    }

    /// Lets no more requests in that may wait long. Returns those that do.
    pub(super) fn close(&mut self) -> Vec<RequestId> {
        self.is_closing = true;
        let waiting = self.waiting.iter().filter(|(_, waiting)| waiting.may_wait);
        waiting.map(|(request, _)| *request).collect()
    }

    /// If nobody leads, wakes a thread that will.
    pub(super) fn wake_successor(&self) {
        if self.receiver.is_none() {
            return;
        }
        let mut waiting = self.waiting.values();
        if let Some(next) = waiting.find(|waiting| matches!(waiting.state, WaitState::Looks)) {
            next.thread.unpark();
        }
    }
}
