//! Memory that nobody has needed for a while goes back to the system: which, when, and in what
//! pieces. How it goes back is the server's business; that it is in transit meanwhile, its owner's.
//!
//! Free memory with pages in it is looked at from time to time. What was free at one look and has
//! stayed so until the next one is *ripe*. It goes back in slices, one at a time, and creates that
//! wait are served between two of them.
//!
//! What has no pages is known to be *clean*: what was given back, and what was never used. That is
//! only an estimate. Bytes that are wrongly taken for clean keep their pages until an object has
//! lain there, and others go back once more, which is cheap. So nothing depends on it but the work.
//!
//! There is no deadline, and nothing to do, when no memory has been freed since all that was worth
//! it went back.

use std::time::Duration;

use crate::ids::Ticket;
use crate::limits::{TRIM_PAUSE, TRIM_RUNS_MAX};
use crate::store::effect::WorkOutcome;
use crate::store::space::pool::Pool;
use crate::store::space::ranges::{Range, Ranges};
use crate::time::Timestamp;

/// What goes back and when. The server takes the sizes from [`crate::limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrimConfig {
    /// How long memory stays with the store after it was freed, at least; at most twice as long.
    pub after: Duration,
    /// So many bytes at the beginning of the segment stay, and as many are made ready behind what
    /// objects have used.
    pub ready_bytes: u64,
    /// Less in one piece does not go back.
    pub bytes_min: u64,
    /// What goes back at a time.
    pub slice_bytes: u64,
    /// What goes back begins and ends at multiples of this.
    pub unit_bytes: u64,
}

/// What is known about free memory.
#[derive(Debug)]
pub struct Trimming {
    /// `None` if nothing is given back, or not any more.
    config: Option<TrimConfig>,
    /// Has no pages, as far as is known.
    clean: Ranges,
    /// Where the pages that are made ready ahead of the objects end.
    ready_end: u64,
    /// Was free and had pages at the last look, and has been free since.
    aging: Ranges,
    /// Has been free for long enough.
    ripe: Ranges,
    /// The slice that is with the system.
    ticket: Option<Ticket>,
    /// Bytes that have gone back.
    pub given_bytes: u64,
    next_look: Option<Timestamp>,
    /// When to go on with what is ripe, after it was put off.
    next_try: Option<Timestamp>,
    /// Not before this is the next look.
    next_look_min: Timestamp,
    /// Something was freed since the next look was decided on.
    was_freed: bool,
}

impl Trimming {
    /// For a segment of so many bytes, nothing of which has been used.
    pub fn new(config: Option<TrimConfig>, segment_bytes: u64) -> Self {
        let ready_end = config.as_ref().map_or(0, |config| config.ready_bytes);
        let mut clean = Ranges::default();
        clean.insert(Range { start: ready_end, end: segment_bytes });
        Self {
            config,
            clean,
            ready_end,
            aging: Ranges::default(),
            ripe: Ranges::default(),
            ticket: None,
            given_bytes: 0,
            next_look: None,
            next_try: None,
            next_look_min: Timestamp::ZERO,
            was_freed: false,
        }
    }

    /// When there is something to look at, or to give back.
    pub fn next_look(&self) -> Option<Timestamp> {
        self.next_look.into_iter().chain(self.next_try).min()
    }

    /// Puts off the next slice if there is to be one, and says whether it has.
    pub fn postpone(&mut self, now: Timestamp) -> bool {
        let waits = self.ticket.is_none() && !self.ripe.is_empty();
        self.next_try = waits.then(|| now.after(TRIM_PAUSE));
        waits
    }

    /// An object is about to use these bytes; objects have used none from `used_end` on.
    pub fn note_taken(&mut self, offset: u64, size: u64, used_end: u64) {
        let Some(config) = &self.config else { return };
        let taken = Range::of(offset, size);
        for ranges in [&mut self.clean, &mut self.aging, &mut self.ripe] {
            ranges.remove(taken);
        }
        let ready_end = used_end.saturating_add(config.ready_bytes);
        if ready_end > self.ready_end {
            self.clean.remove(Range { start: self.ready_end, end: ready_end });
            self.ready_end = ready_end;
        }
    }

    /// Something has become free in the pool.
    pub const fn note_freed(&mut self) {
        self.was_freed = true;
    }

    /// Decides when to look, if there may be something new to see.
    pub fn plan_look(&mut self, pool: &Pool, now: Timestamp) {
        let Some(config) = &self.config else { return };
        let was_freed = std::mem::take(&mut self.was_freed);
        if was_freed && self.next_look.is_none() && pool.fits(config.bytes_min) {
            self.next_look = Some(self.next_look_min.max(now));
        }
    }

    /// Looks at the free memory if it is time to.
    pub fn look(&mut self, pool: &Pool, now: Timestamp) {
        let Some(config) = &self.config else { return };
        if self.next_look.is_none_or(|at| now < at) {
            return;
        }
        for range in std::mem::take(&mut self.aging).iter() {
            self.ripe.insert(range);
        }
        for (offset, len) in pool.runs_of_at_least(config.bytes_min).take(TRIM_RUNS_MAX) {
            let run = Range { start: offset.max(config.ready_bytes), end: offset + len };
            let with_pages = self.clean.gaps(run).into_iter();
            let pieces = with_pages.flat_map(|piece| self.ripe.gaps(piece));
            let whole = pieces.filter_map(|piece| piece.aligned(config.unit_bytes));
            for piece in whole.filter(|piece| piece.len() >= config.bytes_min) {
                self.aging.insert(piece);
            }
        }
        let next = now.after(config.after);
        self.next_look_min = next;
        self.next_look = (!self.aging.is_empty()).then_some(next);
    }

    /// The next slice to go back, if none is with the system.
    pub fn next_slice(&mut self) -> Option<Range> {
        self.next_try = None;
        let config = self.config.as_ref().filter(|_| self.ticket.is_none())?;
        loop {
            let ripe = self.ripe.pop_first()?;
            let Some(Range { start, end }) = ripe.aligned(config.unit_bytes) else { continue };
            let slice = Range { start, end: end.min(start + config.slice_bytes) };
            self.ripe.insert(Range { start: slice.end, end });
            return Some(slice);
        }
    }

    /// That slice is with the system.
    pub const fn began(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// The slice with this ticket has no pages any more, or it is not possible, and nobody tries
    /// again. False if it is not the slice that has this ticket.
    pub fn done(&mut self, ticket: Ticket, slice: Range, outcome: WorkOutcome) -> bool {
        if self.ticket.take_if(|own| *own == ticket).is_none() {
            return false;
        }
        match outcome {
            WorkOutcome::Done => {
                self.given_bytes += slice.len();
                self.clean.insert(slice);
                self.aging.remove(slice);
            }
            WorkOutcome::Failed => {
                self.config = None;
                self.next_look = None;
                (self.aging, self.ripe) = (Ranges::default(), Ranges::default());
            }
        }
        true
    }

    /// Whatever is to go back is free.
    pub fn check_invariants(&self, pool: &Pool) {
        for range in self.aging.iter().chain(self.ripe.iter()) {
            assert!(pool.is_free(range.start, range.len()), "only free memory is given back");
        }
        let waits = self.next_look().is_some() || self.ticket.is_some();
        assert!(waits || (self.aging.is_empty() && self.ripe.is_empty()), "nothing is forgotten");
    }
}

#[cfg(test)]
mod tests;
