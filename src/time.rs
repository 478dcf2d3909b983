//! The only place that reads a clock.
//!
//! Everything else takes a [`Timestamp`] as an argument. Timestamps are monotonic: setting the
//! system's clock neither fires nor delays a timeout. Wall-clock time is read once at the start,
//! for the creation times that `list` shows.

#![allow(clippy::disallowed_methods, reason = "this is the file that may")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in monotonic time: nanoseconds since the [`Clock`] was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The start of time.
    pub const ZERO: Self = Self(0);

    /// A timestamp so many nanoseconds after the start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This point moved into the future; the end of time if that is too far.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A source of [`Timestamp`]s.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    unix_start: Duration,
}

impl Default for Clock {
    fn default() -> Self {
        Self::start()
    }
}

impl Clock {
    /// A clock that reads zero now.
    #[must_use]
    pub fn start() -> Self {
        let unix_start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), unix_start }
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::ZERO.after(self.start.elapsed())
    }

    /// Wall-clock time at [`Timestamp::ZERO`], as a distance from the Unix epoch.
    #[must_use]
    pub const fn unix_start(&self) -> Duration {
        self.unix_start
    }
}
