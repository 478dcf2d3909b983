//! Serving the creates that wait for room. Part of [`Store`].
//!
//! The head of the queue is tried whenever room may have appeared, and whatever is too long for one
//! turn is left to [`clearing`](super::clearing). How a new object is made is not known here.

use crate::limits::SEARCH_WORTH;
use crate::protocol::refusal::Refusal;
use crate::store::clearing::{Clearing, Progress};
use crate::store::create_queue::QueuedCreate;
use crate::store::room::NoRoom;
use crate::store::{Asked, Effects, Outcome, Store};
use crate::time::Timestamp;

impl Store {
    /// Serves waiting creates from the head of the queue, as far as there is room.
    pub(super) fn serve_create_queue(&mut self, now: Timestamp, effects: &mut Effects) {
        while std::mem::take(&mut self.room_appeared) {
            self.check_clearing();
            let Some(head) = self.creates.head() else { return };
            if self.steps == 0 {
                self.room_appeared = true;
                return;
            }
            let is_known = self.creates.is_head_checked();
            let is_legal = if is_known { Ok(()) } else { self.check_head(head) };
            self.creates.note_head_checked();
            // What stands in the way now will still do so when the head is tried again.
            let offsets = match is_legal {
                Err(refusal) => Err(refusal),
                Ok(()) => match self.make_room_for_head() {
                    None => return,
                    Some(offsets) => offsets,
                },
            };
            self.end_head(offsets, now, effects);
        }
    }

    /// Whether the head may be created, there being room.
    fn check_head(&self, head: &QueuedCreate) -> Result<(), Refusal> {
        self.check_new(&head.creation)?;
        self.check_fits_ever(head.client, &head.creation)?;
        self.check_quota(head.client, &head.creation, head.evict)
    }

    /// Goes on making room for the head of the queue.
    pub(super) fn work_on_room(&mut self, now: Timestamp, effects: &mut Effects) {
        self.check_clearing();
        if self.may_clear() {
            self.creates.favour(self.creates.head_ticket());
            let offsets = match self.clear_some() {
                Progress::More => return,
                Progress::Cleared => self.take_cleared_for_head(),
                Progress::NoRoom => Err(Progress::NoRoom),
            };
            match offsets {
                Err(Progress::NoRoom) => self.end_in_vain(now, effects),
                Err(_) => return,
                Ok(offsets) => self.end_head(Ok(offsets), now, effects),
            }
        }
        self.serve_create_queue(now, effects);
        self.expire_creates_put_off(now, effects);
    }

    /// Refuses creates whose time is over, as soon as they have had their turn at memory that has
    /// come back from the system.
    pub(super) fn expire_creates_put_off(&mut self, now: Timestamp, effects: &mut Effects) {
        if self.deadlines_wait && !self.has_room_work() {
            self.deadlines_wait = false;
            self.expire_creates(now, effects);
            self.serve_create_queue(now, effects);
        }
    }

    /// Whether [`Self::work_on_room`] has something to do.
    pub(super) fn has_room_work(&self) -> bool {
        self.may_clear() || (self.room_appeared && !self.creates.is_empty())
    }

    /// Whether room is being made, and is not to wait: for memory that is being freed, or that is
    /// being given back to the system, which is as good as free, but not to be seen so.
    pub(super) fn may_clear(&self) -> bool {
        let waits =
            self.jobs.freeing() > 0 && self.clearing.as_ref().is_some_and(Clearing::waits_for_jobs);
        self.is_clearing() && !waits && self.trimming.resting().is_none()
    }

    /// Whether room is being made, slice by slice.
    pub(super) fn is_clearing(&self) -> bool {
        self.clearing.as_ref().is_some_and(|clearing| !clearing.is_barren())
    }

    /// The head of the queue needs more room than can be made in one go.
    pub(super) fn begin_clearing(&mut self) {
        // It is tried again when that memory is free.
        if self.trimming.resting().is_some() {
            return;
        }
        if let (Some(ticket), Some(head)) = (self.creates.head_ticket(), self.creates.head()) {
            self.clearing = Some(Clearing::new(ticket, head, self.jobs.freeing()));
            self.creates.favour(Some(ticket));
        }
    }

    /// Room is only ever made for the head, which may be another one by now.
    fn check_clearing(&mut self) {
        let head = self.creates.head_ticket();
        if self.clearing.as_ref().is_some_and(|clearing| Some(clearing.ticket) != head) {
            self.drop_clearing();
        }
    }

    fn drop_clearing(&mut self) {
        self.creates.favour(None);
        self.waste.extend(self.clearing.take().map(Clearing::into_runs));
    }

    /// Where the head goes. `None` if it has to go on waiting.
    fn make_room_for_head(&mut self) -> Option<Result<Vec<u64>, Refusal>> {
        // While the search has to pause, what is free elsewhere may do.
        let pauses = self.is_clearing() && self.trimming.resting().is_some();
        if self.clearing.is_some() && !pauses {
            return None;
        }
        let (ticket, head) = (self.creates.head_ticket()?, self.creates.head()?);
        let (client, evict, is_counted) = (head.client, head.evict, head.is_counted);
        let is_hopeless = !self.has_bytes(client, head.bytes, evict);
        if is_hopeless && !QueuedCreate::is_hurried(ticket) {
            return None;
        }
        let sizes: Vec<u64> = head.creation.sizes().collect();
        match self.make_room(client, &sizes, evict, self.slice.steps) {
            Ok(offsets) => return Some(Ok(offsets)),
            Err(NoRoom::Resting) => {}
            Err(NoRoom::TooLong) => self.begin_clearing(),
            Err(NoRoom::Full { .. }) if QueuedCreate::is_hurried(ticket) => {
                self.counters.creates_timed_out += u64::from(is_counted);
                return Some(Err(Refusal::StoreFull(self.full(sizes.iter().sum()))));
            }
            // It would be looked for again and again, whatever becomes free. So it is looked for
            // once in a way that is remembered.
            Err(NoRoom::Full { looked })
                if looked > self.slice.steps / SEARCH_WORTH
                    && self.trimming.resting().is_none() =>
            {
                self.begin_clearing();
            }
            Err(NoRoom::Full { .. }) => {}
        }
        None
    }

    fn take_cleared_for_head(&mut self) -> Result<Vec<u64>, Progress> {
        let head = self.creates.head().ok_or(Progress::NoRoom)?;
        // The name may be taken, or the quota, by now.
        let is_legal = self.check_head(head).is_ok();
        let sizes: Vec<u64> = head.creation.sizes().collect();
        if is_legal { self.take_cleared(&sizes) } else { Err(Progress::NoRoom) }
    }

    /// No room could be made for the head.
    fn end_in_vain(&mut self, now: Timestamp, effects: &mut Effects) {
        let (Some(ticket), Some(head)) = (self.creates.head_ticket(), self.creates.head()) else {
            return self.drop_clearing();
        };
        if self.check_head(head).is_err() {
            // It is refused when the queue is served.
            self.creates.doubt_head();
            self.room_appeared = true;
            return self.drop_clearing();
        }
        let (client, evict, is_counted) = (head.client, head.evict, head.is_counted);
        let sizes: Vec<u64> = head.creation.sizes().collect();
        if self.clearing.as_ref().is_some_and(Clearing::is_undecided) {
            // Now it takes as long as it takes, but the answer is right.
            match self.make_room(client, &sizes, evict, usize::MAX) {
                Ok(offsets) => return self.end_head(Ok(offsets), now, effects),
                Err(NoRoom::Full { .. }) if self.has_numbers(client, &sizes, evict) => {
                    if let Some(clearing) = &mut self.clearing {
                        clearing.note_barren();
                    }
                }
                Err(_) => {}
            }
        }
        if QueuedCreate::is_hurried(ticket) {
            self.counters.creates_timed_out += u64::from(is_counted);
            let full = Refusal::StoreFull(self.full(sizes.iter().sum()));
            return self.end_head(Err(full), now, effects);
        }
        if let Some(head) = self.creates.head_mut().filter(|head| !head.is_counted) {
            head.is_counted = true;
            self.counters.creates_queued += 1;
        }
        if self.is_clearing() {
            self.drop_clearing();
        }
        // Those who had to wait meanwhile have their turn.
        self.creates.favour(None);
        self.room_appeared |= self.creates.head_ticket() != Some(ticket);
    }

    /// The head of the queue is answered, and the next one has its turn.
    fn end_head(
        &mut self,
        offsets: Result<Vec<u64>, Refusal>,
        now: Timestamp,
        effects: &mut Effects,
    ) {
        let head = self.creates.pop();
        self.drop_clearing();
        let Some(create) = head else { return };
        self.clients.get_mut(create.client).wait_ended(create.cost());
        self.steps = self.steps.saturating_sub(create.creation.ids().count());
        let asked = Asked { client: create.client, request: create.request, now };
        match offsets {
            Ok(offsets) => {
                if let Outcome::Reply(reply) = self.place(asked, create.creation, &offsets, effects)
                {
                    effects.reply(asked.client, asked.request, reply);
                }
            }
            Err(refusal) => self.refuse(asked.client, asked.request, refusal, effects),
        }
        self.room_appeared = true;
    }
}
