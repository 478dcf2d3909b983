//! Making large objects: memory is made ready and filled by several threads.
//!
//! One core does not use all of the memory's bandwidth, and fresh pages are slower still: the
//! kernel clears each one. So threads take parts of an object one by one, have the kernel make the
//! part ready, and copy it while it is in the cache. Threads are started for each object: that
//! costs some 50 µs, which is little beside the milliseconds that such a copy takes, and leaves
//! nothing behind that a `fork` could break.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;

use super::transport::lock;
use crate::limits::{COPY_BYTES_PER_THREAD_MIN, COPY_PART_BYTES};
use crate::threads;

/// Copies `source` to `target`, which are equally long, with up to so many threads: not more than
/// there are cores, and none that has little to do.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// let source = vec![7; 20 << 20];
/// let mut target = vec![0; source.len()];
/// plasma::client::copy_in_parallel(&mut target, &source, 4);
/// assert!(target == source);
/// ```
pub fn copy_in_parallel(target: &mut [u8], source: &[u8], threads: usize) {
    let ready = |_: Range<usize>| Ok(());
    copy_and_make_ready(target, source, threads, ready).expect("only making ready can fail");
}

/// As [`copy_in_parallel`]. Before a part of the target is written it is made `ready`, which may
/// fail; then the rest is left as it is.
pub(super) fn copy_and_make_ready(
    target: &mut [u8],
    source: &[u8],
    threads: usize,
    ready: impl Fn(Range<usize>) -> io::Result<()> + Sync,
) -> io::Result<()> {
    assert_eq!(target.len(), source.len(), "target and source are equally long");
    let threads = useful_threads(source.len(), threads);
    let parts = target.chunks_mut(COPY_PART_BYTES).zip(source.chunks(COPY_PART_BYTES));
    in_parts(parts.enumerate(), threads, |(index, (target, source))| {
        let start = index * COPY_PART_BYTES;
        ready(start..start + target.len())?;
        target.copy_from_slice(source);
        Ok(())
    })
}

/// Makes so many bytes ready, with up to so many threads.
pub(super) fn make_ready(
    bytes: usize,
    threads: usize,
    ready: impl Fn(Range<usize>) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let parts = (0..bytes).step_by(COPY_PART_BYTES);
    in_parts(parts, useful_threads(bytes, threads), |start| {
        ready(start..(start + COPY_PART_BYTES).min(bytes))
    })
}

/// Parts are taken one by one, so that a thread that was held up does not hold up the end. The
/// first failure ends it.
fn in_parts<P>(
    parts: impl Iterator<Item = P> + Send,
    threads: usize,
    work: impl Fn(P) -> io::Result<()> + Sync,
) -> io::Result<()> {
    if threads <= 1 {
        return { parts }.try_for_each(work);
    }
    let rest = Mutex::new(Ok(parts));
    let work_on = || {
        loop {
            let part = lock(&rest).as_mut().map_or(None, Iterator::next);
            let Some(part) = part else { break };
            if let Err(error) = work(part) {
                *lock(&rest) = Err(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where there can be no more threads, this one does it all.
            if threads::spawn_scoped(scope, work_on).is_err() {
                break;
            }
        }
        work_on();
    });
    let rest = rest.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    rest.map(|_done| ())
}

fn useful_threads(bytes: usize, wanted: usize) -> usize {
    let busy = bytes / COPY_BYTES_PER_THREAD_MIN;
    if busy <= 1 {
        return 1;
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    wanted.min(busy).min(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_whatever_the_size_and_the_number_of_threads() {
        let part = COPY_PART_BYTES;
        let many = 3 * COPY_BYTES_PER_THREAD_MIN;
        for size in [0, 1, part - 1, part, part + 1, many - 1, many + part / 2 + 1] {
            let source: Vec<u8> = (0..=250).cycle().take(size).collect();
            for threads in [0, 1, 2, 7] {
                let mut target = vec![0; size];
                copy_in_parallel(&mut target, &source, threads);
                assert!(target == source, "{size} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn every_byte_is_made_ready_once() {
        for bytes in [1, COPY_PART_BYTES, 3 * COPY_BYTES_PER_THREAD_MIN + 5] {
            let done = Mutex::new(Vec::new());
            let ready = |range: Range<usize>| {
                lock(&done).push((range.start, range.end));
                Ok(())
            };
            make_ready(bytes, 4, ready).unwrap();
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!((done[0].0, done[done.len() - 1].1), (0, bytes));
            assert!(done.windows(2).all(|pair| pair[0].1 == pair[1].0), "{done:?}");
        }
    }

    #[test]
    fn a_failure_ends_it_and_is_told() {
        let source = vec![1; 4 * COPY_BYTES_PER_THREAD_MIN];
        for threads in [1, 4] {
            let mut target = vec![0; source.len()];
            let fail = |range: Range<usize>| match range.start {
                0 => Ok(()),
                _ => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
            };
            let error = copy_and_make_ready(&mut target, &source, threads, fail).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(target[COPY_PART_BYTES..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn small_copies_start_no_thread() {
        assert_eq!(useful_threads(COPY_BYTES_PER_THREAD_MIN, 8), 1);
        assert_eq!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 1), 1);
        assert!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 8) <= 8);
    }
}
