//! Memory that is ready before it is needed.
//!
//! The kernel hands out memory page by page, and clears each one: whoever writes to fresh memory
//! waits for that far longer than for his own bytes. So a thread of its own touches the memory
//! behind what objects have used so far, up to a bound. Fresh memory is used from low addresses
//! on, so that is where the next object will lie. When the bound is reached the thread sleeps
//! until objects come nearer to it; it has no timer. When memory is short it waits likewise, and
//! then looks again. It gives way to everybody who wants the processor.
//!
//! The thread has the segment and two numbers, and never sees the store's state. The pages do not
//! count as memory of the store's process (or it would be the first to be killed when memory runs
//! out). What goes back to the system later is not made ready again: objects have used it once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::memory_limit::available_bytes;
use crate::limits::{COMMIT_FREE_BYTES_MIN, COMMIT_STEP_BYTES, COMMIT_WAKE_BYTES};
use crate::shm::Segment;
use crate::threads;

/// What `nice` calls 19.
const PRIORITY_LEAST: i32 = 19;

/// Commits memory ahead of its use. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Committer {
    shared: Arc<Shared>,
    /// Bytes to have ready behind what is used.
    ahead: u64,
    /// What the thread has been told.
    target: u64,
    /// `None` when it could not be started.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    segment: Arc<Segment>,
    /// Bytes from the start of the segment that objects have used.
    used: AtomicU64,
    /// Bytes from there that are to be ready.
    target: AtomicU64,
    is_over: AtomicBool,
}

impl Committer {
    /// Keeps so many bytes ready, beginning with the first ones.
    pub fn start(segment: Arc<Segment>, ahead: u64) -> Self {
        let target = ahead.min(segment.size());
        let shared = Arc::new(Shared {
            segment,
            used: AtomicU64::new(0),
            target: AtomicU64::new(target),
            is_over: AtomicBool::new(false),
        });
        let thread = threads::spawn("plasma-commit", {
            let shared = Arc::clone(&shared);
            move || shared.run()
        });
        if let Err(error) = &thread {
            log::warn!("memory will be made ready when it is used: no thread to do so: {error}");
        }
        Self { shared, ahead, target, thread: thread.ok() }
    }

    /// Objects have used the memory up to here. Costs next to nothing.
    pub fn note_used(&mut self, used: u64) {
        let target = used.saturating_add(self.ahead).min(self.shared.segment.size());
        let is_end = target == self.shared.segment.size() && target > self.target;
        if target >= self.target.saturating_add(COMMIT_WAKE_BYTES) || is_end {
            self.target = target;
            self.shared.used.store(used, Ordering::Relaxed);
            self.shared.target.store(target, Ordering::Relaxed);
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has told about its panic, and the memory works without it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        // Whoever writes objects now comes before those who will. Without it, it still works.
        let _ = rustix::process::setpriority_process(None, PRIORITY_LEAST);
        let mut done = 0;
        let mut was_short = false;
        while !self.is_over.load(Ordering::Relaxed) {
            let target = self.target.load(Ordering::Relaxed);
            // What objects have used may have gone back to the system since, and is to stay there.
            let used = self.used.load(Ordering::Relaxed);
            done = done.max(used - used % COMMIT_STEP_BYTES);
            let is_time_to_look = was_short || done % COMMIT_WAKE_BYTES < COMMIT_STEP_BYTES;
            let is_short =
                is_time_to_look && available_bytes(Path::new("/")) < COMMIT_FREE_BYTES_MIN;
            if done >= target || is_short {
                was_short |= is_short;
                thread::park();
                continue;
            }
            was_short = false;
            let step = COMMIT_STEP_BYTES.min(target - done);
            if let Err(error) = self.segment.commit(done, step) {
                log::info!("no more memory is made ready ahead of its use: {error}");
                return;
            }
            done += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;
    use crate::shm::{Backing, Segment};
    use nix::sys::stat::fstat;

    const MIB: u64 = 1 << 20;

    fn allocated(segment: &Segment) -> u64 {
        fstat(segment.descriptor(true)).unwrap().st_blocks.cast_unsigned() * 512
    }

    fn wait_for(segment: &Segment, bytes: u64) {
        for _ in 0..10_000 {
            if allocated(segment) >= bytes {
                return;
            }
            thread::park_timeout(std::time::Duration::from_millis(1));
        }
        panic!("{} bytes are ready, not {bytes}", allocated(segment));
    }

    #[test]
    fn so_much_is_ready_and_more_when_objects_come_nearer() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 100 * MIB).unwrap();
        let segment = Arc::new(segment);
        let mut committer = Committer::start(Arc::clone(&segment), 20 * MIB);
        wait_for(&segment, 20 * MIB);
        committer.note_used(100);
        assert_eq!(committer.target, 20 * MIB, "nearly nothing has been used");
        committer.note_used(30 * MIB);
        // Whoever has used the 10 MiB in between has made them ready, and they may have gone back.
        wait_for(&segment, 40 * MIB);
        assert_eq!(allocated(&segment), 40 * MIB, "and no more");
        committer.note_used(95 * MIB);
        wait_for(&segment, 45 * MIB);
    }

    #[test]
    fn it_ends_in_the_middle_of_its_work() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 2000 * MIB).unwrap();
        let segment = Arc::new(segment);
        drop(Committer::start(Arc::clone(&segment), 2000 * MIB));
        assert!(allocated(&segment) < 2000 * MIB);
    }
}
