//! Where the life of a connection stands: it introduces itself, it is served, it is closed.
//!
//! What is said on it, and its socket, are not known here.

use super::close_reason::CloseReason;
use crate::time::Timestamp;

/// Where the life of a connection stands.
#[derive(Debug)]
pub enum Stage {
    /// Nothing but `Connect` may come. The store does not know the client.
    Handshake,
    /// Requests may come. The store knows the client.
    Open,
    /// It is to be closed as soon as the outbox is empty. Nothing is read or queued any more.
    Draining {
        /// Why it ends. The first reason stays.
        reason: CloseReason,
        /// Whether the store knows the client.
        was_open: bool,
        /// When it is closed in any case; set when the peer first leaves something unread.
        deadline: Option<Timestamp>,
    },
}

impl Stage {
    /// Begins the end, unless it has begun already.
    pub fn drain(&mut self, reason: CloseReason) {
        let was_open = match self {
            Self::Handshake => false,
            Self::Open => true,
            Self::Draining { .. } => return,
        };
        *self = Self::Draining { reason, was_open, deadline: None };
    }

    /// Whether the end has begun.
    pub const fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    /// The time by which a draining connection is closed in any case, if that was not known before.
    pub fn set_deadline(&mut self, time: Timestamp) -> bool {
        match self {
            Self::Draining { deadline: deadline @ None, .. } => {
                *deadline = Some(time);
                true
            }
            _ => false,
        }
    }
}
