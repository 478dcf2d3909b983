//! Numbers for which all is looked at that readers have pinned: statistics and the debug text. Part
//! of [`Store`].
//!
//! What readers of the directory have pinned is in use, and the store does not know it. So it looks
//! through their tables, slot by slot, and for one slice at a time: the reply comes when it is
//! through, with all other numbers as they are then.

use std::collections::BTreeSet;

use crate::protocol::message::Reply;
use crate::protocol::refusal::Refusal;
use crate::store::jobs::EVICTION_COST;
use crate::store::{Asked, Outcome, Store};

/// Slots that are looked at together, and pins found among them that count as one step.
const SLOTS_TOGETHER: u32 = 512;
const PINS_PER_STEP: usize = 8;

/// A request for numbers that is being served.
#[derive(Debug)]
pub struct Count {
    /// Who wants to know.
    pub asked: Asked,
    what: Numbers,
    /// The slots before this one have been looked at.
    next: u32,
    /// Bytes of idle objects that are pinned, as far as that.
    pinned_bytes: u64,
}

/// Which numbers are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Numbers {
    /// `GetStats`.
    Stats,
    /// `GetDebugText`.
    DebugText,
}

impl Store {
    pub(super) fn count(&mut self, asked: Asked, what: Numbers) -> Result<Outcome, Refusal> {
        let mut count = Count { asked, what, next: 0, pinned_bytes: 0 };
        if self.count_some(&mut count) {
            return Ok(self.counted(&count).into());
        }
        self.may_wait(asked.client, EVICTION_COST)?;
        self.clients.get_mut(asked.client).wait_began(EVICTION_COST);
        self.jobs.counts.push_back(count);
        Ok(Outcome::Waits)
    }

    pub(super) fn work_on_counts(&mut self) {
        let Some(mut count) = self.jobs.counts.pop_front() else { return };
        let Asked { client, request, .. } = count.asked;
        if !self.clients.is_here(client) {
            return;
        }
        if self.count_some(&mut count) {
            self.clients.get_mut(client).wait_ended(EVICTION_COST);
            let reply = self.counted(&count);
            self.effects.reply(client, request, reply);
        } else {
            self.jobs.counts.push_front(count);
        }
    }

    fn counted(&self, count: &Count) -> Reply {
        match count.what {
            Numbers::Stats => Reply::Stats(self.stats_with(count.pinned_bytes)),
            Numbers::DebugText => Reply::DebugText(self.debug_text(count.pinned_bytes)),
        }
    }

    /// Looks for one slice. Whether it is through then.
    fn count_some(&mut self, count: &mut Count) -> bool {
        let end = self.objects.slots().end;
        // Without readers there is nothing to look through.
        while count.next < end && self.directory.tables() > 0 {
            if self.steps == 0 {
                return false;
            }
            let slots = count.next..count.next.saturating_add(SLOTS_TOGETHER).min(end);
            count.next = slots.end;
            let (mut pinned, mut found) = (BTreeSet::new(), 0);
            self.directory.pins(slots, &mut |_, slot| {
                found += 1;
                pinned.insert(slot);
            });
            let idle = pinned.iter().filter_map(|slot| self.objects.try_get(*slot));
            let idle = idle.filter(|object| object.is_sealed() && object.holders == 0);
            count.pinned_bytes += idle.map(|object| object.size()).sum::<u64>();
            self.steps = self.steps.saturating_sub(self.look_steps() + found / PINS_PER_STEP);
        }
        true
    }

    /// Bytes of idle objects that readers have pinned, counted in one go.
    pub(super) fn pinned_idle_bytes(&self) -> u64 {
        let mut pinned = BTreeSet::new();
        self.directory.pins(self.objects.slots(), &mut |_, slot| {
            pinned.insert(slot);
        });
        let idle = pinned.into_iter().filter_map(|slot| self.objects.try_get(slot));
        let idle = idle.filter(|object| object.is_sealed() && object.holders == 0);
        idle.map(|object| object.size()).sum()
    }
}
