//! What the server has done since its start, beside what the store counts itself.
//!
//! The counters are plain numbers in the hands of the reactor's thread. They leave in two ways: at
//! the end of the counters of every `Stats` reply, and in one log line at a clean end. How the
//! numbers come about is not known here.

use std::fmt;
use std::time::Duration;

use crate::protocol::message::Stats;

/// Makes the structure and [`ServerCounters::named`] of one list.
macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Numbers that only count up, except where the comment says otherwise.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct ServerCounters {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl ServerCounters {
            /// All counters with their names.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }
    };
}

counters! {
    /// Connections accepted.
    connections_accepted,
    /// Times that a connection had to be left in the listen queue, because descriptors or memory
    /// ran out or too many were connected.
    accepts_refused,
    /// Connections closed because the peer broke the protocol.
    protocol_errors,
    /// Connections that ended in any other way than a goodbye: cut off, reset, not reading.
    connections_lost,
    /// Connections ended for an unfinished frame: their processes kept too much memory.
    frames_refused,
    /// Bytes of the store's own memory that requests keep now. Goes up and down.
    request_memory,
    /// The most of these bytes at any reply.
    request_memory_most,
    /// Bytes read from sockets.
    bytes_received,
    /// Bytes written to sockets.
    bytes_sent,
    /// Frames taken out of those bytes.
    frames_received,
    /// Frames queued to be sent.
    frames_sent,
    /// Times that a socket took less than there was to send.
    sends_blocked,
    /// Turns of the loop.
    turns,
    /// Turns that left work to the next one, because a budget was spent.
    turns_backlogged,
    /// Slices of work that was too long for one turn.
    slices,
    /// The longest turn so far, from the end of the poll to the next one, in microseconds.
    turn_longest_us,
}

impl ServerCounters {
    /// A turn of the loop is over.
    pub fn turn_ended(&mut self, duration: Duration, backlogged: bool) {
        self.turns += 1;
        self.turns_backlogged += u64::from(backlogged);
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.turn_longest_us = self.turn_longest_us.max(microseconds);
    }

    /// Requests keep so many bytes now.
    pub fn note_request_memory(&mut self, bytes: u64) {
        self.request_memory = bytes;
        self.request_memory_most = self.request_memory_most.max(bytes);
    }

    /// Adds the counters to those of the store.
    pub fn append_to(&self, stats: &mut Stats) {
        stats.counters.extend(self.named().map(|(name, value)| (name.to_owned(), value)));
    }
}

/// As one line: `name=value`, in the order of the fields.
impl fmt::Display for ServerCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters: Vec<_> =
            self.named().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&counters.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_turn_is_a_maximum_and_turns_are_a_sum() {
        let mut counters = ServerCounters::default();
        counters.turn_ended(Duration::from_micros(70), true);
        counters.turn_ended(Duration::from_micros(7), false);
        let mut stats = Stats::default();
        counters.append_to(&mut stats);
        assert_eq!(stats.counter("turns"), 2);
        assert_eq!(stats.counter("turns_backlogged"), 1);
        assert_eq!(stats.counter("turn_longest_us"), 70);
        assert!(
            counters
                .to_string()
                .ends_with("turns=2 turns_backlogged=1 slices=0 turn_longest_us=70")
        );
    }
}
