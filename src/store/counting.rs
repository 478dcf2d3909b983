//! Numbers for which all is looked at that readers have pinned: statistics and the debug text. Part
//! of [`Store`].
//!
//! What readers of the directory have pinned is in use, and the store does not know it. So it looks
//! through their tables, slot by slot, and for one slice at a time: the reply comes when it is
//! through, with all other numbers as they are then.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::protocol::message::Reply;
use crate::store::clients::WaitCost;
use crate::store::object_table::Object;
use crate::store::{Answer, Asked, Store};

/// Slots that are looked at together, and pins found among them that count as one step.
const SLOTS_TOGETHER: u32 = 512;
const PINS_PER_STEP: usize = 8;

/// A request for numbers that is being served.
#[derive(Debug)]
pub struct Count {
    /// Who wants to know.
    pub asked: Asked,
    /// Makes the reply from the bytes of idle objects that are pinned.
    reply: MakeReply,
    /// The slots before this one have been looked at.
    next: u32,
    /// Bytes of idle objects that are pinned, as far as that.
    pinned_bytes: u64,
}

type MakeReply = fn(&Store, u64) -> Reply;

impl Store {
    pub(super) fn count(&mut self, asked: Asked, reply: MakeReply) -> Answer {
        let mut count = Count { asked, reply, next: 0, pinned_bytes: 0 };
        if self.count_some(&mut count) {
            return Ok(Some(reply(self, count.pinned_bytes)));
        }
        self.begin_wait(asked.client, WaitCost::default())?;
        self.jobs.counts.push_back(count);
        Ok(None)
    }

    pub(super) fn work_on_counts(&mut self) {
        let Some(mut count) = self.jobs.counts.pop_front() else { return };
        let asked = count.asked;
        if !self.clients.is_here(asked.client) {
            return;
        }
        if self.count_some(&mut count) {
            self.clients.wait_ended(asked.client, WaitCost::default());
            let reply = (count.reply)(self, count.pinned_bytes);
            self.reply(asked, reply);
        } else {
            self.jobs.counts.push_front(count);
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
            let (bytes, found) = self.pinned_idle_bytes(slots);
            count.pinned_bytes += bytes;
            self.charge_look();
            self.steps = self.steps.saturating_sub(1 + found / PINS_PER_STEP);
        }
        true
    }

    /// Bytes of idle objects in these slots that readers have pinned, and how many pins there are.
    pub(super) fn pinned_idle_bytes(&self, slots: Range<u32>) -> (u64, usize) {
        let (mut pinned, mut found) = (BTreeSet::new(), 0);
        self.directory.pins(slots, &mut |_, slot| {
            found += 1;
            pinned.insert(slot);
        });
        let objects = pinned.into_iter().filter_map(|slot| self.objects.try_get(slot));
        (objects.filter(|object| object.is_unused()).map(Object::size).sum(), found)
    }
}
