//! Reads the clock and pauses: here both are the job.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::{Duration, Instant};

/// Now. Comparable between the threads of the process.
pub fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds since `start`.
pub fn nanos_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Does something and tells how many nanoseconds it took.
pub fn timed<T>(action: impl FnOnce() -> T) -> (u64, T) {
    let start = now();
    let result = action();
    (nanos_since(start), result)
}

/// Lets so much time pass, to bring about a state that no condition shows: everybody sleeps.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
