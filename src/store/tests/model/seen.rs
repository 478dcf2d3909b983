//! What the store did in one step, as the model is told.

use std::collections::{BTreeMap, VecDeque};

use super::Call;
use super::making::NewObject;
use crate::ids::{Extent, Location, ObjectId, SealPlace, SegmentId, Slot};
use crate::protocol::message::{Placed, Reply, RequestId};
use crate::store::tests::simulation::{Notice, Noticed};
use crate::store::{Effect, Work, WorkOutcome};

/// The bytes of a put have been written, or not.
#[derive(Debug)]
pub struct Fill {
    pub outcome: WorkOutcome,
    /// How many of the effects, and of the objects that were parked, had come by then.
    pub effects_before: usize,
    pub parked_before: usize,
    /// The memory that was on its way back to the system then, if that began in this step.
    pub trim: Option<Extent>,
}

/// What the store did in one step, to be used up by the model from the front.
pub struct Seen<'a> {
    /// What it wants done outside.
    pub effects: VecDeque<Effect>,
    pub effects_count: usize,
    /// How its puts were filled, in order.
    pub fills: VecDeque<Fill>,
    /// The sealed objects that it took back for good, as its directory was told.
    pub gone: VecDeque<ObjectId>,
    /// The objects of which the store has noticed that readers have them pinned.
    pub parked: VecDeque<ObjectId>,
    pub parked_count: usize,
    /// What the store has found out by looking: what creators had told, and who survives.
    pub noticed: VecDeque<Noticed>,
    /// The memory that went on its way back to the system in this step.
    pub trim: Option<Extent>,
    /// In which slots the objects were before the step.
    pub slots_before: &'a BTreeMap<ObjectId, Slot>,
    /// In which slots they are after it.
    pub slots: &'a BTreeMap<ObjectId, Slot>,
    /// The bytes of all objects.
    pub segment: &'a mut [u8],
    /// All objects before the step, in the order in which the store lists them.
    pub listed: &'a [ObjectId],
}

impl Seen<'_> {
    /// The next thing that the store did is this.
    pub(super) fn expect(&mut self, expected: Effect) {
        let done = self.effects.pop_front();
        assert!(
            done.as_ref() == Some(&expected),
            "the store should: {expected:?}\n               it did: {done:?}"
        );
    }

    /// What the store found out next.
    pub(super) fn notice(&self) -> Option<Notice> {
        self.noticed.front().map(|noticed| noticed.notice)
    }

    /// The same; it is used up.
    pub(super) fn take_notice(&mut self) -> Option<Notice> {
        self.noticed.pop_front().map(|noticed| noticed.notice)
    }

    /// The next object that was parked before the store found out what it did next.
    pub(super) fn parked_before_notice(&self) -> Option<ObjectId> {
        let parked_before = self.noticed.front()?.parked_before;
        let parked = self.parked_count - self.parked.len();
        self.parked.front().copied().filter(|_| parked < parked_before)
    }

    /// Whether the store went on with this create next.
    pub(super) fn is_next_for(&self, call: Call) -> bool {
        match self.effects.front() {
            Some(Effect::Reply { client, request, .. }) => {
                (*client, *request) == (call.client, call.request)
            }
            other => other.is_some(),
        }
    }

    pub(super) fn reply(&mut self, call: Call, reply: Reply) {
        let Call { client, request, .. } = call;
        if request != RequestId::NONE {
            self.expect(Effect::Reply { client, request, reply });
        }
    }

    /// The object that was in a slot before the step.
    pub(super) fn id_in(&self, slot: Slot) -> Option<ObjectId> {
        self.slots_before.iter().find(|(_, other)| **other == slot).map(|(id, _)| *id)
    }

    /// How the store has answered this request in this step, if it has.
    pub(super) fn answer(&self, call: Call) -> Option<&Reply> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Reply { client, request, reply } => {
                ((*client, *request) == (call.client, call.request)).then_some(reply)
            }
            Effect::Start { .. } | Effect::Stream { .. } | Effect::HangUp { .. } => None,
        })
    }

    /// Where the store has put the object of a create, which it must tell next.
    pub(super) fn created_at(&self, call: Call) -> u64 {
        match self.effects.front() {
            Some(Effect::Reply {
                client,
                request,
                reply: Reply::Created(Placed { location, .. }),
            }) if (*client, *request) == (call.client, call.request) => location.offset,
            other => panic!("the store should tell where the object is, it did: {other:?}"),
        }
    }

    /// Where the creator of an object shall seal it, as it is told next.
    pub(super) fn seal_told(&self, call: Call) -> Option<SealPlace> {
        match self.answer(call) {
            Some(Reply::Created(Placed { seal, .. })) => *seal,
            _ => None,
        }
    }

    /// Where the store has put the objects of a put, whose bytes it must want written next, all in
    /// one go; without any bytes there is nothing to do.
    pub(super) fn placed(&mut self, objects: &[NewObject], segment: SegmentId) -> Vec<u64> {
        let Some(Effect::Start { ticket, work: Work::Fill { writes } }) = self.effects.front()
        else {
            let has_bytes = objects.iter().any(|object| !object.content.is_empty());
            assert!(!has_bytes, "the store should write bytes");
            return vec![0; objects.len()];
        };
        let (ticket, mut found) = (*ticket, writes.iter().map(|(extent, _)| extent.offset));
        let (mut offsets, mut writes) = (Vec::new(), Vec::new());
        for object in objects {
            let NewObject { data_size, metadata_size, .. } = *object;
            let (data, metadata) = object.content.split_at(usize::try_from(data_size).unwrap());
            let pieces = usize::from(data_size > 0) + usize::from(metadata_size > 0);
            let offset = if pieces > 0 { found.next().expect("bytes are written") } else { 0 };
            if pieces == 2 {
                found.next();
            }
            let location = Location { segment, offset, data_size, metadata_size };
            let both = [(location.data(), data), (location.metadata(), metadata)];
            let both = both.into_iter().filter(|(_, bytes)| !bytes.is_empty());
            writes.extend(both.map(|(extent, bytes)| (extent, bytes.to_vec())));
            offsets.push(offset);
        }
        self.expect(Effect::Start { ticket, work: Work::Fill { writes } });
        offsets
    }

    /// How the next put was filled, if the effects have come as far as that, and how many objects
    /// were parked before it that the model does not know of yet.
    pub(super) fn next_fill(&mut self) -> Option<(Fill, usize)> {
        let effects_seen = self.effects_count - self.effects.len();
        let parked_seen = self.parked_count - self.parked.len();
        let fill = self.fills.pop_front_if(|fill| fill.effects_before <= effects_seen)?;
        let parked = fill.parked_before.saturating_sub(parked_seen);
        Some((fill, parked))
    }
}
