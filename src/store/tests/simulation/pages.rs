//! What the system knows about the store's memory: which of it has pages, and since when it is
//! free. Checks what the store gives back.
//!
//! Goes by the objects of the model, one line of memory after the other.

use crate::ids::Extent;
use crate::limits::ALIGNMENT;
use crate::store::StoreConfig;
use crate::store::tests::model::Model;
use crate::time::Timestamp;

/// One line of memory, the unit in which objects are placed.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    is_taken: bool,
    /// When the last object left it.
    free_since: Timestamp,
    /// An object has lain there since it was last given back.
    has_pages: bool,
}

/// The memory of a simulation.
#[derive(Debug)]
pub struct Pages {
    lines: Vec<Line>,
    /// The system said that it cannot take memory back.
    is_off: bool,
}

impl Pages {
    pub fn new(bytes: usize) -> Self {
        let lines = vec![Line::default(); bytes / usize::try_from(ALIGNMENT).unwrap()];
        Self { lines, is_off: false }
    }

    /// Objects lie where the model says.
    pub fn note_objects(&mut self, model: &Model) {
        let mut taken = vec![false; self.lines.len()];
        for object in model.objects.values() {
            let location = object.location;
            taken[lines(location.offset, object.size())].fill(true);
        }
        for (_, start, end) in &model.quarantined {
            taken[lines(*start, end - start)].fill(true);
        }
        for (line, is_taken) in self.lines.iter_mut().zip(taken) {
            if line.is_taken && !is_taken {
                line.free_since = model.now;
            }
            line.has_pages |= is_taken;
            line.is_taken = is_taken;
        }
    }

    /// The store wants to give memory back: no object is there, and none was for long enough.
    pub fn check_may_go(&self, extent: Extent, model: &Model) {
        let trim = model.config.trim.as_ref().expect("this store gives memory back");
        assert!(!self.is_off, "the system said that it takes nothing back");
        assert_eq!(extent.segment, model.config.segment);
        assert!(extent.len > 0 && extent.len <= trim.slice_bytes, "{extent:?} is one slice");
        assert!((extent.offset | extent.len).is_multiple_of(trim.unit_bytes), "{extent:?}");
        assert!(extent.offset >= trim.ready_bytes, "what is to be ready stays ready");
        for line in &self.lines[lines(extent.offset, extent.len)] {
            assert!(!line.is_taken, "an object lies in memory that is given back");
            // At the end of time nothing takes any.
            let is_old = model.now.since(line.free_since) >= trim.after;
            assert!(is_old || model.now.as_nanos() == u64::MAX, "memory is given back at once");
        }
    }

    /// The system says that it cannot take memory back.
    pub const fn not_given_back(&mut self) {
        self.is_off = true;
    }

    /// So many bytes have arrived at the system.
    pub fn given_back(&mut self, offset: u64, bytes: u64) {
        for line in &mut self.lines[lines(offset, bytes)] {
            line.has_pages = false;
        }
    }

    /// Nothing that is worth it is left.
    pub fn check_all_given_back(&self, config: &StoreConfig) {
        let Some(trim) = config.trim.as_ref().filter(|_| !self.is_off) else { return };
        let mut pages = 0;
        for (index, line) in self.lines.iter().enumerate() {
            let is_kept = (index as u64) * ALIGNMENT < trim.ready_bytes;
            let is_idle = line.has_pages && !line.is_taken && !is_kept;
            pages = if is_idle { pages + ALIGNMENT } else { 0 };
            // As much as may be lost at both ends for the sake of whole units.
            let left = trim.bytes_min + 2 * trim.unit_bytes;
            assert!(pages < left, "{pages} free bytes before line {index} were not given back");
        }
    }
}

fn lines(offset: u64, bytes: u64) -> std::ops::Range<usize> {
    let index = |byte: u64| usize::try_from(byte / ALIGNMENT).unwrap();
    index(offset)..index(offset + bytes.next_multiple_of(ALIGNMENT))
}
