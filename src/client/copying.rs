//! Copying large objects with several threads.
//!
//! One core does not use all of the memory's bandwidth. Threads are started for each copy: that
//! costs some 50 µs, which is little beside the milliseconds that such a copy takes, and leaves
//! nothing behind that a `fork` could break.

use std::sync::Mutex;
use std::thread;

use super::transport::lock;
use crate::limits::{COPY_BYTES_PER_THREAD_MIN, COPY_PART_BYTES};

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
    assert_eq!(target.len(), source.len(), "target and source are equally long");
    let threads = useful_threads(source.len(), threads);
    if threads <= 1 {
        return target.copy_from_slice(source);
    }
    // Taken one by one, so that a thread that was held up does not hold up the end.
    let parts = target.chunks_mut(COPY_PART_BYTES).zip(source.chunks(COPY_PART_BYTES));
    let parts = Mutex::new(parts);
    let copy_parts = || {
        loop {
            let part = lock(&parts).next();
            let Some((target, source)) = part else { break };
            target.copy_from_slice(source);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where there can be no more threads, this one does it all.
            if thread::Builder::new().spawn_scoped(scope, copy_parts).is_err() {
                break;
            }
        }
        copy_parts();
    });
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
    fn small_copies_start_no_thread() {
        assert_eq!(useful_threads(COPY_BYTES_PER_THREAD_MIN, 8), 1);
        assert_eq!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 1), 1);
        assert!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 8) <= 8);
    }
}
