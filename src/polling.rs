//! How long to look for news before going to sleep.
//!
//! To sleep and to be woken costs far more than a message: tens of microseconds against one. So who
//! expects an answer soon looks again and again for a while, and sleeps only then. That pays only
//! while it succeeds. It must cost nothing when nobody talks, and must not keep the other side from
//! running when there are more busy threads than processors. Three rules see to that:
//!
//! * with one processor nobody looks, because the other side could not run meanwhile;
//! * who waited long the last time sleeps at once, as the traffic is not hot;
//! * who looked in vain sleeps at once the next times, and twice as many times after each further
//!   failure; a success halves that. With more busy threads than processors most looks are in
//!   vain, so they become rare, though one succeeds now and then. Where there were failures a look
//!   lasts as long as a wait of hot traffic: while both sides sleep, each has to outlast the
//!   other's waking up, or neither would ever find anything again.
//!
//! Store and clients both use it. Knows neither clock nor socket.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::limits::{POLL_HOT, POLL_SKIPS_MAX};

/// What one waiting thread, or one loop, has learned about the traffic.
#[derive(Debug, Clone)]
pub struct Polling {
    /// How long to look while that succeeds; zero is never.
    time: Duration,
    /// The last wait was short.
    is_hot: bool,
    /// Waits without looking that a failure costs; doubles with each.
    penalty: u32,
    /// How many of them are left.
    skips: u32,
}

impl Polling {
    /// Looks for `time`, and never if that is zero or this process has one processor only.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        // Asked once, and not by those who never look: the answer costs reading several files.
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        let count = || thread::available_parallelism().map_or(1, usize::from);
        let processors = if time.is_zero() { 1 } else { *PROCESSORS.get_or_init(count) };
        Self::with_processors(time, processors)
    }

    /// As [`Self::new`], with so many processors.
    fn with_processors(time: Duration, processors: usize) -> Self {
        let time = if processors > 1 { time } else { Duration::ZERO };
        Self { time, is_hot: false, penalty: 0, skips: 0 }
    }

    /// A wait begins: how long to look before sleeping. Zero is not at all. Unless it is zero,
    /// [`Self::looked`] has to be told what came of it.
    pub fn begin_wait(&mut self) -> Duration {
        if !self.is_hot {
            return Duration::ZERO;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return Duration::ZERO;
        }
        if self.penalty > 0 { self.time.max(POLL_HOT) } else { self.time }
    }

    /// Whether looking was enough.
    pub const fn looked(&mut self, found: bool) {
        if found {
            self.penalty /= 2;
        } else {
            let doubled = self.penalty * 2 + 1;
            self.penalty = if doubled < POLL_SKIPS_MAX { doubled } else { POLL_SKIPS_MAX };
            self.skips = self.penalty;
        }
    }

    /// The wait is over, and took so long, asleep or not.
    pub fn end_wait(&mut self, waited: Duration) {
        self.is_hot = waited <= POLL_HOT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(60);
    const LONG: Duration = Duration::from_millis(5);

    fn hot() -> Polling {
        let mut polling = Polling::with_processors(TIME, 2);
        polling.end_wait(SHORT);
        polling
    }

    /// Of so many waits, all of them short, how many begin with a look that is in vain.
    fn looks_in_vain(polling: &mut Polling, waits: usize) -> usize {
        let mut looks = 0;
        for _ in 0..waits {
            if !polling.begin_wait().is_zero() {
                looks += 1;
                polling.looked(false);
            }
            polling.end_wait(SHORT);
        }
        looks
    }

    #[test]
    fn only_who_waited_shortly_looks() {
        let mut polling = Polling::with_processors(TIME, 2);
        assert_eq!(polling.begin_wait(), Duration::ZERO, "nothing is known yet");
        polling.end_wait(SHORT);
        assert_eq!(polling.begin_wait(), TIME);
        polling.looked(true);
        polling.end_wait(LONG);
        assert_eq!(polling.begin_wait(), Duration::ZERO);
    }

    #[test]
    fn one_processor_or_no_time_is_never() {
        for mut polling in
            [Polling::with_processors(TIME, 1), Polling::with_processors(Duration::ZERO, 8)]
        {
            polling.end_wait(SHORT);
            assert_eq!(polling.begin_wait(), Duration::ZERO);
        }
    }

    #[test]
    fn looking_in_vain_becomes_rare() {
        let mut polling = hot();
        assert_eq!(looks_in_vain(&mut polling, 1 + 1 + 1 + 3 + 1), 3, "1 and 3 skips between");
        looks_in_vain(&mut polling, 10_000);
        let more = 100 * (POLL_SKIPS_MAX as usize + 1);
        assert_eq!(looks_in_vain(&mut polling, more), 100);
    }

    #[test]
    fn after_failures_a_look_outlasts_two_that_sleep() {
        let mut polling = hot();
        assert_eq!(looks_in_vain(&mut polling, 1), 1);
        assert_eq!(polling.begin_wait(), Duration::ZERO, "a skip");
        polling.end_wait(SHORT);
        assert_eq!(polling.begin_wait(), POLL_HOT);
        polling.looked(true);
        polling.end_wait(SHORT);
        assert_eq!(polling.begin_wait(), TIME);
    }

    #[test]
    fn successes_make_up_for_failures() {
        let mut polling = hot();
        looks_in_vain(&mut polling, 1000);
        while polling.begin_wait().is_zero() {
            polling.end_wait(SHORT);
        }
        polling.looked(true);
        polling.end_wait(SHORT);
        for _ in 0..8 {
            assert!(polling.begin_wait() >= TIME, "who succeeds goes on looking");
            polling.looked(true);
            polling.end_wait(SHORT);
        }
        assert_eq!(looks_in_vain(&mut polling, 3), 2, "as at the beginning");
    }

    #[test]
    fn rare_successes_do_not_keep_it_looking() {
        let mut polling = hot();
        let mut looks = 0;
        for _ in 0..100_000 {
            if !polling.begin_wait().is_zero() {
                looks += 1;
                polling.looked(looks % 5 == 0);
            }
            polling.end_wait(SHORT);
        }
        assert!(looks < 2_000, "{looks} of 100,000");
    }
}
