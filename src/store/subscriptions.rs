//! What subscribers have still to be told.
//!
//! Events are remembered once, in a log that all subscribers share; a subscriber is a position in
//! it. So a slow one costs nothing, and one that is further behind than the log reaches is told
//! that it lagged. A new subscriber first walks the object table, a part at a time: it is told of
//! the objects whose seal is older than its subscription, and the log has all the rest.
//! Sockets and their queues are not known here.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::ClientId;
use crate::limits;
use crate::protocol::message::Event;
use crate::store::object_table::{Object, ObjectTable, State};

/// Events that the log may have before it is trimmed.
const TRIM_MIN: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Subscriber {
    /// The first event of the log that it has not been told.
    next: u64,
    /// Where its snapshot stands; `None` once that is complete.
    snapshot: Option<Snapshot>,
}

#[derive(Debug, Clone, Copy)]
struct Snapshot {
    /// The next slot to look at.
    cursor: u32,
    /// Where the log stood when it began.
    began: u64,
}

/// The event log and the positions of its readers.
#[derive(Debug, Default)]
pub struct Subscriptions {
    log: VecDeque<Event>,
    /// The number of the first event in the log.
    first: u64,
    subscribers: BTreeMap<ClientId, Subscriber>,
    trim_at: usize,
}

impl Subscriptions {
    pub fn len(&self) -> usize {
        self.subscribers.len()
    }

    pub fn contains(&self, client: ClientId) -> bool {
        self.subscribers.contains_key(&client)
    }

    /// The number of the next event: grows with every event, watched or not.
    pub fn sequence(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// Adds a subscriber, whose snapshot begins now.
    pub fn subscribe(&mut self, client: ClientId) {
        let next = self.sequence();
        let snapshot = Some(Snapshot { cursor: 0, began: next });
        self.subscribers.insert(client, Subscriber { next, snapshot });
    }

    /// Removes a subscriber, if it is one.
    pub fn unsubscribe(&mut self, client: ClientId) {
        if self.subscribers.remove(&client).is_some() {
            self.trim();
        }
    }

    pub fn push(&mut self, event: Event) {
        if self.subscribers.is_empty() {
            self.first += 1;
            return;
        }
        self.log.push_back(event);
        if self.log.len() > limits::EVENT_LOG_MAX {
            self.log.pop_front();
            self.first += 1;
        } else if self.log.len() > self.trim_at.max(TRIM_MIN) {
            self.trim();
        }
    }

    /// Forgets what every subscriber has been told. Done when the log has doubled, so that its cost
    /// is spread over the events.
    fn trim(&mut self) {
        let positions = self.subscribers.values().map(|subscriber| subscriber.next);
        let needed = positions.filter(|next| *next >= self.first).min();
        let needed = needed.unwrap_or_else(|| self.sequence());
        let told = usize::try_from(needed - self.first).expect("the log is in memory");
        self.log.drain(..told);
        self.first = needed;
        self.trim_at = 2 * self.log.len();
        if self.log.is_empty() {
            self.log.shrink_to(TRIM_MIN);
        }
    }

    /// Fills the empty `out` with what a subscriber has to be told next, the snapshot first: at
    /// most `max` events (and a mark). False if it has lagged: then [`Event::Lagged`] is the last
    /// one.
    pub fn next_events(
        &mut self,
        client: ClientId,
        max: usize,
        objects: &ObjectTable,
        out: &mut Vec<Event>,
    ) -> bool {
        let Some(subscriber) = self.subscribers.get_mut(&client) else {
            return true;
        };
        if subscriber.next < self.first {
            out.push(Event::Lagged);
            self.unsubscribe(client);
            return false;
        }
        if subscriber.snapshot.is_some() {
            subscriber.snapshot_part(max, objects, out);
        } else {
            let start = usize::try_from(subscriber.next - self.first).expect("it is in memory");
            let count = max.min(self.log.len() - start);
            out.extend(self.log.range(start..start + count));
            subscriber.next += count as u64;
        }
        true
    }

    /// Whether a subscriber has not been told of all objects yet.
    pub fn has_snapshot_left(&self, client: ClientId) -> bool {
        self.subscribers.get(&client).is_some_and(|subscriber| subscriber.snapshot.is_some())
    }

    /// Checks that no subscriber is ahead of the log and that nobody's events are kept for nothing.
    pub fn check_invariants(&self) {
        for subscriber in self.subscribers.values() {
            assert!(subscriber.next <= self.sequence(), "nobody was told the future");
        }
        assert!(self.log.len() <= limits::EVENT_LOG_MAX, "the event log is bounded");
        assert!(
            !self.subscribers.is_empty() || self.log.is_empty(),
            "events are remembered for subscribers only"
        );
    }
}

impl Subscriber {
    fn snapshot_part(&mut self, max: usize, objects: &ObjectTable, out: &mut Vec<Event>) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let is_old = |object: &Object| match object.state {
            State::Created { .. } => false,
            State::Sealed { event } => event < snapshot.began,
        };
        for (looked, (slot, object)) in objects.slots_from(snapshot.cursor).enumerate() {
            if out.len() == max || looked == limits::LIST_LOOKS_MAX {
                snapshot.cursor = slot.0;
                return;
            }
            out.extend(object.filter(|object| is_old(object)).map(sealed_event));
        }
        out.push(Event::SnapshotEnd);
        self.snapshot = None;
    }
}

/// The event that says an object is sealed.
pub fn sealed_event(object: &Object) -> Event {
    Event::Sealed {
        id: object.id,
        data_size: object.location.data_size,
        metadata_size: object.location.metadata_size,
    }
}
