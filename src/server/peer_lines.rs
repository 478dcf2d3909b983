//! How many lines of the log peers may cause: so many at once, and so many a second.
//!
//! Who connects and breaks the protocol again and again would fill the disk with what is logged of
//! it. Lines beyond are left out, and one line says how many were. Lines that no peer can cause
//! are not counted here. What the lines say is not known here.

use crate::limits::{PEER_LINE_INTERVAL, PEER_LINES_AT_ONCE};
use crate::time::Timestamp;

/// Which lines may be written.
#[derive(Debug, Default)]
pub struct PeerLines {
    /// Lines written lately. One goes after each interval.
    recent: u32,
    /// Since when the next one is on its way out.
    since: Timestamp,
    left_out: u64,
}

impl PeerLines {
    /// Whether one more line may be written at this time. If lines were left out before it, says so
    /// first.
    pub fn allow(&mut self, now: Timestamp) -> bool {
        self.forget_old(now);
        if self.recent >= PEER_LINES_AT_ONCE {
            self.left_out += 1;
            return false;
        }
        self.recent += 1;
        self.tell();
        true
    }

    /// When [`Self::look`] has something to say.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        (self.left_out > 0).then(|| self.since.after(PEER_LINE_INTERVAL))
    }

    /// Says how many lines were left out, if there is room for that line.
    pub fn look(&mut self, now: Timestamp) {
        self.forget_old(now);
        if self.left_out > 0 && self.recent < PEER_LINES_AT_ONCE {
            self.recent += 1;
            self.tell();
        }
    }

    fn forget_old(&mut self, now: Timestamp) {
        let passed = now.since(self.since).as_nanos() / PEER_LINE_INTERVAL.as_nanos();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        if passed >= self.recent {
            self.recent = 0;
            self.since = now;
        } else {
            self.recent -= passed;
            self.since = self.since.after(passed * PEER_LINE_INTERVAL);
        }
    }

    fn tell(&mut self) {
        if self.left_out > 0 {
            log::warn!("{} lines about clients were left out here: too many", self.left_out);
            self.left_out = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_after_each_interval() {
        let mut lines = PeerLines::default();
        let start = Timestamp::from_nanos(1_000_000_000);
        for _ in 0..PEER_LINES_AT_ONCE {
            assert!(lines.allow(start));
        }
        assert_eq!(lines.next_deadline(), None);
        assert!(!lines.allow(start) && !lines.allow(start));
        let next = lines.next_deadline().expect("two were left out");
        lines.look(start);
        assert_eq!(lines.left_out, 2, "there is no room to say so");
        lines.look(next);
        assert_eq!((lines.left_out, lines.next_deadline()), (0, None));
        assert!(!lines.allow(next), "the one line was about that");
        let later = next.after(PEER_LINE_INTERVAL * 2 * PEER_LINES_AT_ONCE);
        for _ in 0..PEER_LINES_AT_ONCE {
            assert!(lines.allow(later));
        }
        assert!(!lines.allow(later), "time without lines saves no more than that");
    }
}
