//! Memory that is ready before it is needed.
//!
//! The kernel hands out memory page by page, and clears each one: whoever writes to fresh memory
//! waits for that far longer than for his own bytes. So a thread of its own touches the memory
//! behind what objects have used so far, up to a bound. Fresh memory is used from low addresses
//! on, so that is where the next object will lie. When the bound is reached the thread sleeps
//! until objects come nearer to it; it has no timer, and stops for good when the machine is short
//! of memory.
//!
//! The thread has the mapping and two numbers, and never sees the store's state. It works in small
//! steps: during one the kernel may make the loop wait that asks for memory of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::limits::{COMMIT_FREE_BYTES_MIN, COMMIT_STEP_BYTES, COMMIT_WAKE_BYTES};
use crate::shm::Mapping;
use crate::shm::segment::free_memory_bytes;

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
    mapping: Arc<Mapping>,
    /// Bytes from the start of the mapping that are to be made ready.
    target: AtomicU64,
    is_over: AtomicBool,
}

impl Committer {
    /// Keeps so many bytes ready, beginning with the first ones.
    pub fn start(mapping: Arc<Mapping>, ahead: u64) -> Self {
        let target = ahead.min(mapping.size());
        let shared = Arc::new(Shared {
            mapping,
            target: AtomicU64::new(target),
            is_over: AtomicBool::new(false),
        });
        let thread = thread::Builder::new().name("plasma-commit".to_owned()).spawn({
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
        let target = used.saturating_add(self.ahead).min(self.shared.mapping.size());
        let is_end = target == self.shared.mapping.size() && target > self.target;
        if target >= self.target.saturating_add(COMMIT_WAKE_BYTES) || is_end {
            self.target = target;
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
        let mut done = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let target = self.target.load(Ordering::Relaxed);
            if done >= target {
                thread::park();
                continue;
            }
            let step = COMMIT_STEP_BYTES.min(target - done);
            if let Err(error) = self.commit(done, step) {
                log::info!("no more memory is made ready ahead of its use: {error}");
                return;
            }
            done += step;
        }
    }

    fn commit(&self, offset: u64, len: u64) -> io::Result<()> {
        let is_time_to_look = offset % COMMIT_WAKE_BYTES < COMMIT_STEP_BYTES;
        if is_time_to_look && free_memory_bytes() < COMMIT_FREE_BYTES_MIN {
            let problem = "the machine has little memory left";
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, problem));
        }
        self.mapping.populate(offset, len, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;
    use crate::shm::{Access, Backing, Segment};
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
        let mapping = Mapping::new(segment.descriptor(true), segment.size(), Access::ReadWrite);
        let mut committer = Committer::start(Arc::new(mapping.unwrap()), 20 * MIB);
        wait_for(&segment, 20 * MIB);
        committer.note_used(100);
        assert_eq!(committer.target, 20 * MIB, "nearly nothing has been used");
        committer.note_used(30 * MIB);
        wait_for(&segment, 50 * MIB);
        assert_eq!(allocated(&segment), 50 * MIB, "and no more");
        committer.note_used(95 * MIB);
        wait_for(&segment, 100 * MIB);
    }

    #[test]
    fn it_ends_in_the_middle_of_its_work() {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 2000 * MIB).unwrap();
        let mapping = Mapping::new(segment.descriptor(true), segment.size(), Access::ReadWrite);
        drop(Committer::start(Arc::new(mapping.unwrap()), 2000 * MIB));
        assert!(allocated(&segment) < 2000 * MIB);
    }
}
