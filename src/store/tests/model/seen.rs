//! What the store did in one step, as the model is told.

use std::collections::{BTreeMap, VecDeque};

use super::Call;
use super::making::NewObject;
use crate::ids::{Location, ObjectId, SegmentId, Slot};
use crate::protocol::message::{Reply, RequestId};
use crate::store::Effect;

/// What the store did in one step, to be used up by the model from the front.
pub struct Seen<'a> {
    /// What it wants done outside.
    pub effects: VecDeque<Effect>,
    /// The sealed objects that it took back for good, as its directory was told.
    pub gone: VecDeque<ObjectId>,
    /// The objects of which the store has noticed that readers have them pinned.
    pub parked: VecDeque<ObjectId>,
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
    /// The next thing that the store did is this. Bytes that it wants written are written.
    pub(super) fn expect(&mut self, expected: Effect) {
        let done = self.effects.pop_front();
        assert!(
            done.as_ref() == Some(&expected),
            "the store should: {expected:?}\n               it did: {done:?}"
        );
        if let Effect::Write { extent, bytes } = expected {
            let start = usize::try_from(extent.offset).unwrap();
            self.segment[start..start + bytes.len()].copy_from_slice(&bytes);
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
            Effect::Write { .. }
            | Effect::Stream { .. }
            | Effect::Start { .. }
            | Effect::HangUp { .. } => None,
        })
    }

    /// Where the store has put the object of a create, which it must tell next.
    pub(super) fn created_at(&self, call: Call) -> u64 {
        match self.effects.front() {
            Some(Effect::Reply { client, request, reply: Reply::Created(location) })
                if (*client, *request) == (call.client, call.request) =>
            {
                location.offset
            }
            other => panic!("the store should tell where the object is, it did: {other:?}"),
        }
    }

    /// Where the store has put an object of a put, whose bytes it must write next.
    pub(super) fn written(&mut self, object: &NewObject, segment: SegmentId) -> u64 {
        let Some(Effect::Write { extent, .. }) = self.effects.front() else {
            assert!(object.content.is_empty(), "the store should write bytes");
            return 0;
        };
        if object.content.is_empty() {
            return 0;
        }
        let offset = extent.offset;
        let NewObject { data_size, metadata_size, .. } = *object;
        let location = Location { segment, offset, data_size, metadata_size };
        let (data, metadata) = object.content.split_at(usize::try_from(data_size).unwrap());
        for (extent, bytes) in [(location.data(), data), (location.metadata(), metadata)] {
            if !bytes.is_empty() {
                self.expect(Effect::Write { extent, bytes: bytes.to_vec() });
            }
        }
        offset
    }
}
