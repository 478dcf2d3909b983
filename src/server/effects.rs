//! Carries out what the store wants done, in the order in which it wants it.
//!
//! This is the only place that matches [`Effect`]. A reply is encoded into the outbox of its client
//! at once, and it is known here which replies need descriptors to be of use. Effects for a client
//! that is gone are dropped: the store learns of that a little later. Why an effect was produced is
//! not known here.

use super::close_reason::CloseReason;
use super::connections::Connections;
use super::memory::Memory;
use super::metrics::ServerCounters;
use super::outbox::DescriptorKind;
use super::streams::Streams;
use crate::ids::{ClientId, SegmentId};
use crate::protocol::message::{Event, Placed, Reply, RequestId};
use crate::store::{Effect, Effects, Store, Work};
use crate::time::Timestamp;

/// Everything that effects act on: the world outside of the store.
#[derive(Debug)]
pub struct Outside {
    pub connections: Connections,
    /// Those of them that are streams of events.
    pub streams: Streams,
    pub memory: Memory,
    pub counters: ServerCounters,
}

impl Outside {
    /// Does everything on the list, and what follows from it, and empties it.
    pub fn carry_out(&mut self, store: &mut Store, now: Timestamp, effects: &mut Effects) {
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Reply { client, request, reply } => {
                    self.counters.note_request_memory(store.request_memory().used());
                    self.reply(client, request, reply);
                }
                Effect::Start { ticket, work: Work::Fill { writes } } => {
                    store.done(ticket, self.memory.fill(&writes), now, effects);
                }
                Effect::Start { ticket, work: Work::Trim { extent } } => {
                    self.memory.trim(ticket, extent);
                }
                Effect::Stream { client, one_by_one } => {
                    self.streams.insert(client);
                    if one_by_one && let Some(connection) = self.connections.get_mut(client) {
                        connection.go_frame_by_frame();
                    }
                }
                Effect::HangUp { client } => self.connections.drain(client, CloseReason::Goodbye),
            }
        }
    }

    /// Queues the next part of a subscriber's stream, in one frame, or one frame for each event if
    /// it wanted that. It is the last one if the subscriber lagged.
    pub fn tell(&mut self, client: ClientId, events: Vec<Event>) {
        let is_over = events.last() == Some(&Event::Lagged);
        let connection = self.connections.get_mut(client);
        if connection.is_some_and(|connection| connection.is_frame_by_frame()) {
            for event in events.into_iter().filter(|event| *event != Event::SnapshotEnd) {
                self.reply(client, RequestId::NONE, Reply::Events(vec![event]));
            }
        } else {
            self.reply(client, RequestId::NONE, Reply::Events(events));
        }
        if is_over {
            self.connections.drain(client, CloseReason::Lagged);
        }
    }

    pub fn reply(&mut self, client: ClientId, request: RequestId, mut reply: Reply) {
        let Some(connection) = self.connections.get_mut(client) else {
            return;
        };
        if let Reply::Stats(stats) = &mut reply {
            self.counters.append_to(stats);
        }
        let has_life = matches!(reply, Reply::Connected(_)) && self.memory.has_life(client);
        let has = |kind| connection.has_descriptor(kind);
        let kinds = needed_descriptors(&reply, self.memory.segment().id(), has_life, has);
        connection.queue(request, reply, kinds, &self.memory, &mut self.counters);
        self.connections.flush_later(client);
    }
}

/// The descriptors without which the peer could not use the reply, each once, unless it has them.
fn needed_descriptors(
    reply: &Reply,
    segment: SegmentId,
    has_life: bool,
    has: impl Fn(DescriptorKind) -> bool,
) -> Vec<DescriptorKind> {
    // Allocates only when there is one: the first time on a connection.
    let mut needed = Vec::new();
    let mut need = |kind| {
        if !has(kind) && !needed.contains(&kind) {
            needed.push(kind);
        }
    };
    match reply {
        Reply::Created(Placed { location, .. }) => {
            need(DescriptorKind { segment: location.segment, writable: true });
        }
        // Who reads the directory learns from it where objects are, and not from us.
        Reply::Connected(connected) => {
            if connected.directory_slots > 0 {
                need(DescriptorKind { segment, writable: false });
                need(DescriptorKind { segment: SegmentId::DIRECTORY, writable: false });
                need(DescriptorKind { segment: SegmentId::CLIENT_TABLE, writable: true });
            }
            if has_life {
                need(DescriptorKind { segment: SegmentId::LIFE, writable: false });
            }
        }
        Reply::Objects(locations) => {
            for location in locations.iter().flatten() {
                need(DescriptorKind { segment: location.segment, writable: false });
            }
        }
        Reply::Granted(_)
        | Reply::Done
        | Reply::Ready(_)
        | Reply::States(_)
        | Reply::Deleted(_)
        | Reply::Evicted { .. }
        | Reply::Refreshed { .. }
        | Reply::ObjectList { .. }
        | Reply::Stats(_)
        | Reply::DebugText(_)
        | Reply::ClientList { .. }
        | Reply::Events(_)
        | Reply::Refused(_) => {}
    }
    needed
}
