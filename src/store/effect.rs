//! What the store wants done in the world outside: replies, bytes to copy, connections to end.
//!
//! The store decides, `server::effects` carries out, in order. How an effect is carried out is not
//! known here.

use std::collections::VecDeque;

use crate::ids::{ClientId, Extent, Ticket};
use crate::protocol::message::{Reply, RequestId};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a reply. Never with [`RequestId::NONE`].
    Reply {
        /// To whom.
        client: ClientId,
        /// The request that it answers.
        request: RequestId,
        /// The reply itself.
        reply: Reply,
    },
    /// Do something with memory, and say how it went:
    /// [`Store::done`](crate::store::Store::done).
    Start {
        /// Under which name.
        ticket: Ticket,
        /// What to do.
        work: Work,
    },
    /// This connection is a stream of events from now on.
    Stream {
        /// The subscriber.
        client: ClientId,
        /// It wants one event at a time, and no marks.
        one_by_one: bool,
    },
    /// Close the connection after what is queued has been sent: the client said goodbye.
    HangUp {
        /// The client that leaves.
        client: ClientId,
    },
}

/// Work outside of the store on memory that belongs to no usable object meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Copy the bytes of a put into shared memory: at once, before any later effect is carried out,
    /// and before the store is told anything else. If it cannot be done, some of the bytes may have
    /// been written and others not.
    Fill {
        /// Where to, and what; never empty, and each extent is exactly as long as its bytes.
        writes: Vec<(Extent, Vec<u8>)>,
    },
    /// Give memory back to the system. No second such work begins before this one has ended.
    Trim {
        /// The memory.
        extent: Extent,
    },
}

/// How outside work has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkOutcome {
    /// All of it is done.
    Done,
    /// It could not be done, or not all of it, and trying again is of no use.
    Failed,
}

/// Effects in the order in which they must be carried out; reused from request to request.
#[derive(Debug, Default)]
pub struct Effects {
    list: VecDeque<Effect>,
}

impl Effects {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the oldest one out. What follows from carrying it out may be added before the next.
    pub fn pop(&mut self) -> Option<Effect> {
        self.list.pop_front()
    }

    /// Adds an effect after all others.
    pub fn push(&mut self, effect: Effect) {
        self.list.push_back(effect);
    }
}
