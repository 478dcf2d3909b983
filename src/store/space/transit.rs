//! Memory that belongs to no object and is not free: outside work has it, under a ticket.
//!
//! What kind of work it is, and whether it went well, is not known here.

use std::collections::BTreeMap;

use crate::ids::Ticket;
use crate::store::space::ranges::{Range, Ranges};

/// All memory in transit.
#[derive(Debug, Default)]
pub struct Transit {
    by_ticket: BTreeMap<Ticket, Range>,
    /// What of it is soon back, for which it is worth waiting; neighbours joined.
    pub soon: Ranges,
    last: u64,
}

impl Transit {
    /// Outside work has this memory from now on, and will end soon.
    pub fn begin(&mut self, range: Range) -> Ticket {
        self.soon.insert(range);
        self.begin_for_long(range)
    }

    /// As [`Self::begin`], but nobody knows when it ends.
    pub fn begin_for_long(&mut self, range: Range) -> Ticket {
        let ticket = self.issue_ticket();
        self.by_ticket.insert(ticket, range);
        ticket
    }

    /// A ticket that was never given before.
    pub const fn issue_ticket(&mut self) -> Ticket {
        self.last += 1;
        Ticket(self.last)
    }

    /// The work has ended: this is its memory.
    ///
    /// # Panics
    /// If there is no such work.
    pub fn end(&mut self, ticket: Ticket) -> Range {
        let range = self.by_ticket.remove(&ticket).expect("only work that began ends, and once");
        self.soon.remove(range);
        range
    }

    /// All bytes in transit.
    pub fn all(&self) -> impl Iterator<Item = Range> {
        self.by_ticket.values().copied()
    }

    /// Where the first `len` bytes of this range begin of which none will soon be back.
    pub fn first_part_without(&self, range: Range, len: u64) -> Option<u64> {
        if range.len() < len {
            return None;
        }
        let parts = self.soon.gaps(range).into_iter();
        parts.filter(|part| part.len() >= len).map(|part| part.start).next()
    }

    /// Checks that no byte is in transit twice.
    pub fn check_invariants(&self) {
        let by_ticket: u64 = self.by_ticket.values().map(Range::len).sum();
        let joined: u64 = self.soon.iter().map(|range| range.len()).sum();
        assert!(joined <= by_ticket, "only bytes in transit come back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_transit_end_one_by_one() {
        let mut transit = Transit::default();
        let whole = Range { start: 0, end: 640 };
        let one = transit.begin(Range { start: 64, end: 128 });
        let other = transit.begin(Range { start: 128, end: 256 });
        assert_ne!(one, other);
        assert_eq!(transit.soon.iter().count(), 1);
        assert_eq!(transit.first_part_without(whole, 64), Some(0));
        assert_eq!(transit.first_part_without(whole, 128), Some(256));
        assert_eq!(transit.first_part_without(whole, 448), None);
        assert_eq!(transit.end(one), Range { start: 64, end: 128 });
        assert_eq!(transit.first_part_without(whole, 128), Some(0));
        transit.check_invariants();
        assert_eq!(transit.end(other), Range { start: 128, end: 256 });
        assert_eq!(transit.first_part_without(whole, 640), Some(0));
    }

    #[test]
    #[should_panic(expected = "once")]
    fn work_ends_once() {
        let mut transit = Transit::default();
        let ticket = transit.begin(Range { start: 0, end: 64 });
        transit.end(ticket);
        transit.end(ticket);
    }
}
