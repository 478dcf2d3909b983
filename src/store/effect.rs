//! What the store wants done in the world outside: replies, bytes to copy, connections to end.
//!
//! The store decides, `server::effects` carries out, in order. How an effect is carried out is not
//! known here.

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
    /// Copy bytes into shared memory, before any later effect is carried out.
    Write {
        /// Where to; exactly as long as `bytes`.
        extent: Extent,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// This connection is a stream of events from now on.
    Stream {
        /// The subscriber.
        client: ClientId,
        /// It wants one event at a time, and no marks.
        one_by_one: bool,
    },
    /// Start work outside of the loop, and tell of its end:
    /// [`Store::done`](crate::store::Store::done).
    Start {
        /// The name of the work.
        ticket: Ticket,
        /// What to do.
        work: Work,
    },
    /// Close the connection after what is queued has been sent: the client said goodbye.
    HangUp {
        /// The client that leaves.
        client: ClientId,
    },
}

/// Work outside, on memory in which no object lies until it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
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
    /// None of it is, and trying again is of no use.
    Failed,
}

/// Effects in the order in which they must be carried out; reused from request to request.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
}

impl Effects {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes everything out, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.list.drain(..)
    }

    /// Adds an effect after all others.
    pub fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Adds a reply, unless none is wanted.
    pub fn reply(&mut self, client: ClientId, request: RequestId, reply: Reply) {
        if request != RequestId::NONE {
            self.push(Effect::Reply { client, request, reply });
        }
    }
}
