//! What the reply to a request gives to this client, and how to give it back unused.
//!
//! A request whose reply nobody waits for any more may still be granted: the store does not know
//! that its user has gone. What it hands out then would be held until the connection ends. So
//! the inbox keeps with each request what it would take to undo it.

use crate::ids::ObjectId;
use crate::protocol::message::{Reply, Request};

/// What a request asks for that has to be given back one day.
#[derive(Debug)]
pub(super) enum Grants {
    Nothing,
    /// A hold on each of these that the reply has.
    Holds(Vec<ObjectId>),
    /// The right to write this object.
    Creation(ObjectId),
}

impl Grants {
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::Get { ids, .. } => Self::Holds(ids.clone()),
            Request::Create { id, .. } => Self::Creation(*id),
            _ => Self::Nothing,
        }
    }

    /// The request that gives back what came with this reply, if anything did.
    pub(super) fn undo(&self, reply: &Reply) -> Option<Request> {
        match (self, reply) {
            (Self::Holds(ids), Reply::Objects(locations)) => {
                let granted = ids.iter().zip(locations).filter(|(_, place)| place.is_some());
                let holds: Vec<_> = granted.map(|(id, _)| (*id, 1)).collect();
                (!holds.is_empty()).then_some(Request::Release { holds })
            }
            (Self::Creation(id), Reply::Created(_)) => Some(Request::Abort { id: *id }),
            _ => None,
        }
    }
}
