//! Why connections end, and how much of a matter that is.
//!
//! Clients come and go, and die: that is their business and no more than a note. Only a peer that
//! does not speak the protocol is worth a warning, for somebody should mend it. Our own mistakes
//! are errors. What led to the end is not known here.

use std::io;

use log::Level;

use super::metrics::ServerCounters;
use crate::limits::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};
use crate::protocol::ProtocolError;
use crate::protocol::refusal::Refusal;

#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The peer said so, or hung up between two frames.
    #[error("goodbye")]
    Goodbye,
    #[error("cut off inside a frame")]
    CutOff,
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// The peer speaks another version of the protocol, and was told so.
    #[error(
        "it speaks version {0} of the protocol, this store versions {PROTOCOL_VERSION_OLDEST} to \
         {PROTOCOL_VERSION}; update the older of the two"
    )]
    Version(u32),
    /// The store takes no more connections of this process, or no more of a frame, and has told
    /// it why.
    #[error("turned away: {0}")]
    TurnedAway(Refusal),
    /// A subscriber did not keep up, and was told so.
    #[error("a subscriber fell too far behind")]
    Lagged,
    /// Reading or writing failed.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// We were about to break the protocol ourselves.
    #[error("bug: a reply that breaks the protocol: {0}")]
    BadReply(ProtocolError),
}

impl CloseReason {
    /// How much a person who looks after the store wants to know it.
    pub fn level(&self) -> Level {
        match self {
            Self::Goodbye => Level::Debug,
            Self::CutOff | Self::Lagged | Self::TurnedAway(_) => Level::Info,
            Self::Socket(error) if is_departure(error) => Level::Info,
            Self::Protocol(_) | Self::Version(_) | Self::Socket(_) => Level::Warn,
            Self::BadReply(_) => Level::Error,
        }
    }

    /// Counts the end of a connection.
    pub fn count(&self, counters: &mut ServerCounters) {
        match self {
            Self::Goodbye | Self::TurnedAway(_) => {}
            Self::Protocol(_) | Self::Version(_) => counters.protocol_errors += 1,
            Self::CutOff | Self::Lagged | Self::Socket(_) | Self::BadReply(_) => {
                counters.connections_lost += 1;
            }
        }
    }
}

/// Whether this is how the system says that the peer is gone.
pub fn is_departure(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
