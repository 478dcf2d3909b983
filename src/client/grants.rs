//! What the reply to a request gives to this client, and how to give it back unused.
//!
//! A request whose reply nobody waits for any more may still be granted: the store does not know
//! that its user has gone. What it hands out then would be held until the connection ends. So
//! the inbox keeps with each request what it would take to undo it.

use crate::ids::{ObjectId, Slot};
use crate::protocol::message::{Reply, Request};

/// What it takes to give back what came with a reply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undo {
    /// To be said to the store.
    pub(super) request: Option<Request>,
    /// To be taken out of the pin table.
    pub(super) pins: Vec<Slot>,
}

impl From<Request> for Undo {
    fn from(request: Request) -> Self {
        Self { request: Some(request), pins: Vec::new() }
    }
}

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

    /// What gives back what came with this reply.
    pub(super) fn undo(&self, reply: &Reply) -> Undo {
        let release = |held: Vec<ObjectId>| {
            let holds: Vec<_> = held.into_iter().map(|id| (id, 1)).collect();
            (!holds.is_empty()).then_some(Request::Release { holds })
        };
        match (self, reply) {
            (Self::Holds(ids), Reply::Objects(places)) => {
                let held = ids.iter().zip(places).filter(|(_, place)| place.is_some());
                Undo { request: release(held.map(|(id, _)| *id).collect()), pins: Vec::new() }
            }
            (Self::Holds(ids), Reply::Granted(granted)) => {
                let granted = || ids.iter().zip(granted).filter_map(|(id, it)| Some((id, (*it)?)));
                let held = granted().filter(|(_, it)| it.pin.is_none()).map(|(id, _)| *id);
                let pins = granted().filter_map(|(_, it)| it.pin).collect();
                Undo { request: release(held.collect()), pins }
            }
            (Self::Creation(id), Reply::Created(_)) => Request::Abort { id: *id }.into(),
            _ => Undo::default(),
        }
    }
}
