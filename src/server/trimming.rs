//! Gives memory back to the system, in a thread of its own.
//!
//! That takes about 0.4 s for a GiB, during which the loop has better things to do. The loop hands
//! one piece of memory at a time to the thread and hears through a pipe when it has gone: a pipe
//! can be waited for together with the sockets. The pieces are small, because somebody may be
//! waiting for that memory, and so that the thread does not keep the loop from its processor.
//! Without work it sleeps, and it ends when this is dropped.
//!
//! Which memory may go, and that nobody uses it meanwhile, is the store's business.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use mio::unix::pipe;

use crate::ids::Ticket;
use crate::shm::Segment;
use crate::store::WorkOutcome;
use crate::threads;

/// Bytes of a report: the ticket, and whether the piece has gone.
const REPORT_BYTES: usize = size_of::<u64>() + 1;

/// A piece of memory: its ticket, its first byte and its length.
type Piece = (Ticket, u64, u64);

/// The thread and the two ways to talk to it.
#[derive(Debug)]
pub struct Trimmer {
    /// `None` only while it is being dropped.
    thread: Option<(SyncSender<Piece>, JoinHandle<()>)>,
    reports: pipe::Receiver,
}

impl Trimmer {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no thread, or no pipe.
    pub fn start(segment: Arc<Segment>) -> io::Result<Self> {
        let (report_to, reports) = pipe::new()?;
        // One piece is under way at a time.
        let (pieces, queue) = sync_channel(1);
        let thread = threads::spawn("plasma-trim", move || work(&segment, &queue, report_to))?;
        Ok(Self { thread: Some((pieces, thread)), reports })
    }

    /// What becomes readable when a piece has gone.
    pub const fn reports(&mut self) -> &mut pipe::Receiver {
        &mut self.reports
    }

    /// Lets a piece of memory go. The one before has to be gone.
    pub fn begin(&self, ticket: Ticket, offset: u64, len: u64) {
        let sent = self.thread.as_ref().map(|(pieces, _)| pieces.try_send((ticket, offset, len)));
        assert_eq!(sent, Some(Ok(())), "one piece of memory is given back at a time");
    }

    /// Which piece has gone, or cannot go. `None` if it is still under way.
    pub fn ended(&mut self) -> Option<(Ticket, WorkOutcome)> {
        let mut report = [0; REPORT_BYTES];
        match self.reports.read_exact(&mut report) {
            Ok(()) => {
                let [ticket @ .., has_gone] = report;
                let outcome = if has_gone == 0 { WorkOutcome::Failed } else { WorkOutcome::Done };
                Some((Ticket(u64::from_ne_bytes(ticket)), outcome))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("the thread that gives memory back is gone: {error}"),
        }
    }
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        if let Some((pieces, thread)) = self.thread.take() {
            drop(pieces);
            // It has told about its panic, and memory that stays is no harm.
            let _ = thread.join();
        }
    }
}

/// Runs in the thread until there can be no more pieces.
fn work(segment: &Segment, pieces: &Receiver<Piece>, mut report_to: pipe::Sender) {
    for (ticket, offset, len) in pieces {
        let given = segment.give_back(offset, len);
        if let Err(error) = &given {
            log::warn!("free memory stays with the store, the system does not take it: {error}");
        }
        let mut report = [u8::from(given.is_ok()); REPORT_BYTES];
        report[..size_of::<u64>()].copy_from_slice(&ticket.0.to_ne_bytes());
        // A pipe that nobody reads has ended with the store.
        if report_to.write_all(&report).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Extent, SegmentId};
    use crate::limits::TRIM_SLICE_BYTES;
    use crate::shm::{Access, Backing, Mapping};

    const MIB: u64 = 1 << 20;

    /// Waits for the report as the loop does, but for nothing else.
    fn wait_for_report(trimmer: &mut Trimmer) -> (Ticket, WorkOutcome) {
        for _ in 0..10_000 {
            if let Some(ended) = trimmer.ended() {
                return ended;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        panic!("no report");
    }

    #[test]
    fn what_goes_is_zero_and_what_stays_is_not() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 100 * MIB).unwrap();
        let segment = Arc::new(segment);
        let mapping = Mapping::new(segment.descriptor(true), 100 * MIB, Access::ReadWrite);
        let mapping = Arc::new(mapping.unwrap());
        let whole = Extent { segment: SegmentId(0), offset: 0, len: 100 * MIB };
        mapping.view_mut(whole).unwrap().fill(7);
        assert_eq!(segment.allocated_bytes(), 100 * MIB);

        let mut trimmer = Trimmer::start(Arc::clone(&segment)).unwrap();
        let (mut offset, end) = (10 * MIB, 90 * MIB);
        while offset < end {
            let len = TRIM_SLICE_BYTES.min(end - offset);
            trimmer.begin(Ticket(offset), offset, len);
            assert_eq!(wait_for_report(&mut trimmer), (Ticket(offset), WorkOutcome::Done));
            offset += len;
        }
        assert_eq!(segment.allocated_bytes(), 20 * MIB);
        drop(trimmer);
        let view = mapping.view(whole).unwrap();
        let hole = usize::try_from(10 * MIB).unwrap()..usize::try_from(90 * MIB).unwrap();
        assert!(view[hole.clone()].iter().all(|byte| *byte == 0));
        assert!(view[..hole.start].iter().chain(&view[hole.end..]).all(|byte| *byte == 7));
    }

    #[test]
    fn what_the_system_refuses_is_reported() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, MIB).unwrap();
        let mut trimmer = Trimmer::start(Arc::new(segment)).unwrap();
        // The length of a file is a signed number.
        trimmer.begin(Ticket(7), i64::MAX.cast_unsigned(), MIB);
        assert_eq!(wait_for_report(&mut trimmer), (Ticket(7), WorkOutcome::Failed));
    }
}
