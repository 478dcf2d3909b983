//! The connections that have become streams of events, and which of them there is news for.
//!
//! The store remembers events once for all subscribers; a stream asks for the next part only when
//! its peer has read most of the part before. So a subscriber that does not read costs one full
//! outbox and no work at all, and a turn without events costs one comparison, however many
//! subscribers there are. What an event means is not known here.

use std::collections::HashSet;

use foldhash::fast::FixedState;

use super::agenda::Agenda;
use crate::ids::ClientId;
use crate::limits;

/// The streams. Each is in one of the three places.
#[derive(Debug, Default)]
pub struct Streams {
    /// Has been told everything up to `sequence`.
    told: HashSet<ClientId, FixedState>,
    /// May have something to be told, and room in its outbox.
    behind: Agenda,
    /// Has a full outbox.
    full: HashSet<ClientId, FixedState>,
    /// The store's event sequence at the time of the last comparison.
    sequence: u64,
}

impl Streams {
    /// A connection becomes a stream.
    pub fn insert(&mut self, client: ClientId) {
        self.behind.push(client);
    }

    /// A connection is gone, stream or not.
    pub fn remove(&mut self, client: ClientId) {
        self.told.remove(&client);
        self.behind.remove(client);
        self.full.remove(&client);
    }

    /// Whether there is something to tell that no socket event will remind us of.
    pub fn has_backlog(&self, sequence: u64) -> bool {
        !self.behind.is_empty() || (self.sequence != sequence && !self.told.is_empty())
    }

    /// The streams to be served in this turn are at most as many as this says, each by
    /// [`Self::next_behind`].
    pub fn begin_turn(&mut self, sequence: u64) -> usize {
        if self.sequence != sequence {
            self.sequence = sequence;
            for client in self.told.drain() {
                self.behind.push(client);
            }
        }
        self.behind.len().min(limits::TURN_STREAMS_MAX)
    }

    /// A stream to be served; where it belongs then is told by one of the next two.
    pub fn next_behind(&mut self) -> Option<ClientId> {
        self.behind.pop()
    }

    /// The store had nothing more for this stream.
    pub fn note_told(&mut self, client: ClientId) {
        self.told.insert(client);
    }

    /// The outbox of this stream is full.
    pub fn note_full(&mut self, client: ClientId) {
        self.full.insert(client);
    }

    /// A connection, stream or not, has so many bytes left to send.
    pub fn note_flushed(&mut self, client: ClientId, outbox_bytes: usize) {
        if outbox_bytes < limits::STREAM_REFILL_BYTES && self.full.remove(&client) {
            self.behind.push(client);
        }
    }
}
