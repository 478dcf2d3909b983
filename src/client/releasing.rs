//! Giving back holds, many with one message.
//!
//! A release is not answered, so all it costs is the call that sends it and the turn of the store
//! that reads it. While objects come and go quickly that is half of the whole cost. So while
//! traffic is hot a release waits for the next request and travels with it. Nobody may be left
//! waiting for the memory, though, because a client has fallen silent: a thread, the *sweeper*,
//! looks every millisecond and sends what is still there. It is started after some quick releases,
//! and ends when there were none for a while; without it, and at any lower rate, a release is sent
//! at once.
//!
//! So another client may find an object in use that this one has let go a moment ago. It gives
//! that moment to us (`RELEASE_GRACE`) before it tells its user that there is no room, or that an
//! object is in use. A sweeper that gets no processor time (real-time scheduling, a stopped
//! process) keeps holds for as long; so does a thread that would send them at once.

use std::sync::{Arc, Weak};
use std::thread;

use super::transport::{Halves, Transport, lock};
use crate::ids::ObjectId;
use crate::limits::{
    POLL_HOT, RELEASE_RUN, RELEASES_TOGETHER_MAX, SWEEP_INTERVAL, SWEEPS_IDLE_MAX,
};
use crate::threads;
use crate::time::Timestamp;

/// Holds that are to be given back with the next message, and who sees to it that there is one.
#[derive(Debug, Default)]
pub(super) struct Releases {
    /// Ids that the store takes in one message.
    ids_max: usize,
    waiting: Vec<(ObjectId, u32)>,
    /// Quick releases in a row.
    run: u32,
    last: Timestamp,
    has_sweeper: bool,
    /// There was a quick release since the last sweep.
    is_fresh: bool,
}

/// What to do about a release.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It may wait.
    Wait,
    /// It has to be sent.
    Send,
    /// It has to be sent, and from now on they may wait: a sweeper is to be started.
    SendAndStartSweeper,
}

impl Releases {
    /// No releases, of at most so many ids in a message.
    pub(super) fn new(ids_max: usize) -> Self {
        Self { ids_max, ..Self::default() }
    }

    /// What is waiting, in as many messages as it needs, to be sent now.
    pub(super) fn take(&mut self) -> Vec<Vec<(ObjectId, u32)>> {
        // Nearly always there is nothing, which allocates nothing.
        let parts = self.waiting.chunks(self.ids_max.max(1)).map(<[_]>::to_vec).collect();
        self.waiting.clear();
        self.waiting.shrink_to(RELEASES_TOGETHER_MAX);
        parts
    }

    fn add(&mut self, holds: &[(ObjectId, u32)], now: Timestamp) -> Step {
        self.waiting.extend_from_slice(holds);
        let is_quick = now.since(self.last) <= POLL_HOT;
        self.is_fresh |= is_quick;
        self.run = if is_quick { self.run.saturating_add(1) } else { 0 };
        self.last = now;
        if self.has_sweeper {
            let may_wait = is_quick && self.waiting.len() < RELEASES_TOGETHER_MAX;
            if may_wait { Step::Wait } else { Step::Send }
        } else if self.run >= RELEASE_RUN {
            self.has_sweeper = true;
            Step::SendAndStartSweeper
        } else {
            Step::Send
        }
    }
}

impl Transport {
    /// Gives back holds, now or with the next request. Waits for nothing.
    pub(super) fn release(self: &Arc<Self>, holds: &[(ObjectId, u32)]) {
        let Ok(halves) = self.halves() else { return };
        let now = self.clock.now();
        let step = lock(&halves.outbox).releases.add(holds, now);
        self.note_given_back();
        if step == Step::SendAndStartSweeper {
            self.start_sweeper(halves);
        }
        if step != Step::Wait {
            // If the store has gone, there are no holds.
            let _ = self.send_releases(halves);
        }
    }

    fn start_sweeper(self: &Arc<Self>, halves: &Halves) {
        let transport = Arc::downgrade(self);
        let sweeper = threads::spawn("plasma sweeper", move || while sweep(&transport) {});
        if sweeper.is_err() {
            let mut outbox = lock(&halves.outbox);
            outbox.releases.has_sweeper = false;
            outbox.releases.run = 0;
        }
    }
}

/// One round of the sweeper. False when it is not needed any more.
fn sweep(transport: &Weak<Transport>) -> bool {
    for _ in 0..SWEEPS_IDLE_MAX {
        thread::park_timeout(SWEEP_INTERVAL);
        let Some(transport) = transport.upgrade() else { return false };
        let Ok(halves) = transport.halves() else { return false };
        let is_fresh = std::mem::take(&mut lock(&halves.outbox).releases.is_fresh);
        if transport.send_releases(halves).is_err() {
            return false;
        }
        if is_fresh {
            return true;
        }
    }
    let Some(transport) = transport.upgrade() else { return false };
    let Ok(halves) = transport.halves() else { return false };
    let mut outbox = lock(&halves.outbox);
    // Under the lock: who releases from now on sends, or starts another one.
    outbox.releases.has_sweeper = outbox.releases.is_fresh;
    outbox.releases.has_sweeper
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SWEEPS_IDLE_MAX;

    fn hold() -> [(ObjectId, u32); 1] {
        [([7; 20].into(), 1)]
    }

    /// So many releases, each a microsecond after the one before.
    fn quick(releases: &mut Releases, count: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..count {
            let now = releases.last.after(std::time::Duration::from_micros(1));
            steps.push(releases.add(&hold(), now));
            if steps.last() != Some(&Step::Wait) {
                releases.take();
            }
        }
        steps
    }

    #[test]
    fn rare_releases_are_sent_at_once() {
        let mut releases = Releases::new(8192);
        for _ in 0..10 * RELEASE_RUN {
            let now = releases.last.after(2 * POLL_HOT);
            assert_eq!(releases.add(&hold(), now), Step::Send);
            assert_eq!(releases.take(), [hold().to_vec()]);
        }
        assert!(!releases.has_sweeper);
    }

    #[test]
    fn a_slow_one_is_sent_at_once_while_there_is_a_sweeper_and_does_not_keep_it() {
        let mut releases = Releases { has_sweeper: true, ..Releases::new(8192) };
        for _ in 0..3 {
            let now = releases.last.after(2 * POLL_HOT);
            assert_eq!(releases.add(&hold(), now), Step::Send);
        }
        assert!(!releases.is_fresh);
        quick(&mut releases, 1);
        assert!(releases.is_fresh);
    }

    #[test]
    fn after_a_run_of_quick_ones_they_wait_but_not_too_many() {
        let mut releases = Releases::new(8192);
        let run = RELEASE_RUN as usize;
        let steps = quick(&mut releases, run + RELEASES_TOGETHER_MAX);
        assert!(steps[..run - 1].iter().all(|step| *step == Step::Send), "{steps:?}");
        assert_eq!(steps[run - 1], Step::SendAndStartSweeper);
        let (last, waiting) = steps[run..].split_last().unwrap();
        assert!(waiting.iter().all(|step| *step == Step::Wait), "{steps:?}");
        assert_eq!(*last, Step::Send, "as many as may wait");
    }

    #[test]
    fn what_waits_is_cut_to_what_the_store_takes() {
        let mut releases = Releases::new(3);
        releases.has_sweeper = true;
        quick(&mut releases, 7);
        let sizes: Vec<_> = releases.take().iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 3, 1]);
        assert!(releases.take().is_empty(), "once");
    }

    #[test]
    fn others_do_not_find_in_use_what_was_let_go() {
        let store = crate::testing::store();
        let by_message = crate::Client::builder().directory(false);
        let reader = by_message.connect(store.path()).unwrap();
        let other = crate::Client::connect(store.path()).unwrap();
        let rounds = 40;
        let is_deleted = |_: &i32| {
            let id = ObjectId::random();
            other.put(id, b"data", b"").unwrap();
            for _ in 0..3 * RELEASE_RUN {
                drop(reader.get_one(id, None).unwrap());
            }
            other.delete_one(id).unwrap() == crate::client::DeleteOutcome::Deleted
        };
        let deleted = (0..rounds).filter(is_deleted).count();
        // On a busy machine a sweeper may come late; without the grace nearly none is deleted.
        assert!(deleted > 20, "{deleted} of {rounds}");
    }

    #[test]
    fn the_sweeper_ends_and_another_one_starts() {
        let store = crate::testing::store();
        let by_message = crate::Client::builder().directory(false);
        let client = by_message.connect(store.path()).unwrap();
        let id = ObjectId::random();
        client.put(id, b"data", b"").unwrap();
        let has_sweeper = || {
            let connection = client.connection().unwrap();
            let halves = connection.transport.halves().unwrap();
            lock(&halves.outbox).releases.has_sweeper
        };
        for _ in 0..2 {
            for _ in 0..100_000 {
                drop(client.get_one(id, None).unwrap());
                if has_sweeper() {
                    break;
                }
            }
            assert!(has_sweeper(), "that was quick enough");
            // Nothing is said any more, and yet it is sent, and then the thread ends.
            for _ in 0..1000 * SWEEPS_IDLE_MAX {
                if !has_sweeper() {
                    break;
                }
                thread::park_timeout(SWEEP_INTERVAL);
            }
            assert!(!has_sweeper());
            let other = crate::Client::connect(store.path()).unwrap();
            assert_eq!(other.stats().unwrap().pinned, 0);
        }
    }
}
