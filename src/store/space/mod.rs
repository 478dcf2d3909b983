//! Where bytes lie: what is free, what objects use, and what is in transit between the two.
//!
//! Every byte of the segment is free (`pool`), of an object, or in transit: outside work has it
//! (`transit`), such as giving it back to the system (`trimming` decides what and when). Nobody is
//! put into memory in transit; a create that needs it waits. What has to go for a new object is
//! decided in `search`. Which objects there are, and who waits for room, is not known here.

pub mod pool;
mod ranges;
mod search;
mod transit;
mod trimming;

pub use ranges::Ranges;
pub use search::{Progress, Search};
pub use trimming::TrimConfig;

use crate::ids::{Extent, SegmentId, Ticket};
use crate::limits::ALIGNMENT;
use crate::store::StoreConfig;
use crate::store::effect::WorkOutcome;
use crate::time::Timestamp;
use pool::Pool;
use ranges::Range;
use transit::Transit;
use trimming::Trimming;

/// The memory of the store.
#[derive(Debug)]
pub struct Space {
    segment: SegmentId,
    capacity: u64,
    /// Bytes of all objects, as asked for.
    used: u64,
    /// No object has ever been here or behind.
    used_end: u64,
    /// The free memory.
    pub(in crate::store) pool: Pool,
    transit: Transit,
    pub(in crate::store) trimming: Trimming,
}

impl Space {
    /// Memory that nobody has used yet.
    #[must_use]
    pub fn new(config: &StoreConfig) -> Self {
        Self {
            segment: config.segment,
            capacity: config.capacity,
            used: 0,
            used_end: 0,
            pool: Pool::new(config.segment_bytes),
            transit: Transit::default(),
            trimming: Trimming::new(config.trim.clone(), config.segment_bytes),
        }
    }

    /// Bytes of all objects, as asked for.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Where the memory begins that no object has ever used.
    #[must_use]
    pub const fn used_end(&self) -> u64 {
        self.used_end
    }

    /// Whether the capacity would do for so many bytes more if so many others were gone.
    #[must_use]
    pub const fn has_capacity(&self, more: u64, gone: u64) -> bool {
        self.used.saturating_sub(gone) + more <= self.capacity
    }

    /// The largest object for which nothing has to go.
    #[must_use]
    pub fn largest_free_run(&self) -> u64 {
        self.pool.largest_free_run().min(self.capacity - self.used)
    }

    /// Takes a run of `len` bytes for objects of so many bytes: at this place if it is free, or
    /// where it fits best.
    pub fn take(&mut self, place: Option<u64>, len: u64, bytes: u64) -> Option<u64> {
        let start = match place.filter(|start| self.pool.is_free(*start, len)) {
            Some(start) => {
                self.pool.claim(start, len);
                start
            }
            None => self.pool.allocate(len)?,
        };
        self.used += bytes;
        self.used_end = self.used_end.max(start + len);
        self.trimming.note_taken(start, len, self.used_end);
        Some(start)
    }

    /// Objects of so many bytes have left a run of `len` bytes: it is free.
    pub fn free(&mut self, offset: u64, len: u64, bytes: u64) {
        self.used -= bytes;
        self.pool.free(offset, len);
        self.trimming.note_freed();
    }

    /// A name for work on memory that objects have.
    pub const fn issue_ticket(&mut self) -> Ticket {
        self.transit.issue_ticket()
    }

    /// As [`Self::free`], but nobody may have the memory before [`Self::done`]: somebody may still
    /// write to it, for as long as he likes. So only creates that may wait do so for this memory.
    pub fn quarantine(&mut self, offset: u64, len: u64, bytes: u64) -> Ticket {
        self.used -= bytes;
        self.transit.begin_for_long(Range::of(offset, len))
    }

    /// The work with this ticket has ended: its memory is free.
    ///
    /// # Panics
    /// If there is no such work.
    pub fn done(&mut self, ticket: Ticket, outcome: WorkOutcome) -> Extent {
        let range = self.transit.end(ticket);
        self.pool.free(range.start, range.len());
        if !self.trimming.done(ticket, range, outcome) {
            self.trimming.note_freed();
        }
        self.extent(range)
    }

    /// The next memory to give back to the system, in transit from now on, if it is time to.
    pub fn begin_trim(&mut self) -> Option<(Ticket, Extent)> {
        let slice = self.trimming.next_slice()?;
        self.pool.claim(slice.start, slice.len());
        let ticket = self.transit.begin(slice);
        self.trimming.began(ticket);
        Some((ticket, self.extent(slice)))
    }

    /// Puts off giving memory back, if there is some to give. Whether it is put off.
    pub fn postpone_trim(&mut self, now: Timestamp) -> bool {
        self.trimming.postpone(now)
    }

    /// When there is free memory to look at, or to give back.
    #[must_use]
    pub fn next_look(&self) -> Option<Timestamp> {
        self.trimming.next_look()
    }

    /// Looks for memory to give back, if it is time to.
    pub fn look(&mut self, now: Timestamp) {
        self.trimming.look(&self.pool, now);
    }

    /// Decides when to look, if there may be something new to see.
    pub fn plan_look(&mut self, now: Timestamp) {
        self.trimming.plan_look(&self.pool, now);
    }

    const fn extent(&self, range: Range) -> Extent {
        Extent { segment: self.segment, offset: range.start, len: range.len() }
    }

    /// Walks all memory and checks that each byte is of one of these objects (offset and size), in
    /// transit, or free.
    ///
    /// # Panics
    /// If it is not so.
    pub fn check_invariants(&self, objects: impl Iterator<Item = (u64, u64)>) {
        self.pool.check_invariants();
        self.transit.check_invariants();
        self.trimming.check_invariants(&self.pool);
        let mut used = 0;
        let mut taken: Vec<Range> = self.transit.all().collect();
        for (offset, size) in objects.filter(|(_, size)| *size > 0) {
            used += size;
            assert_eq!(offset % ALIGNMENT, 0, "objects are aligned");
            taken.push(Range::of(offset, size));
        }
        assert_eq!(self.used, used, "used bytes are the sum of the objects");
        assert!(self.used <= self.capacity, "the capacity is not exceeded");
        taken.sort_unstable_by_key(|range| range.start);
        for pair in taken.windows(2) {
            assert!(pair[0].end <= pair[1].start, "no byte is taken twice");
        }
        let end = taken.last().map_or(0, |range| range.end);
        assert!(end <= self.pool.bytes(), "objects are inside the segment");
        let taken: u64 = taken.iter().map(Range::len).sum();
        let all = taken + self.pool.free_bytes();
        assert_eq!(all, self.pool.bytes(), "memory is used, in transit or free");
    }
}
