//! What each operation does if nothing else happens meanwhile, and what it may answer.
//!
//! Left out: when an object goes whose deletion is deferred, once nobody uses it (at any moment);
//! whether a deletion finds an object in use of which a reader has taken its last pin, or that is
//! being evicted at the moment; which idle objects go for whom, and how many; that creates which
//! may not evict are granted whenever there is room. A list looks at one object after the other
//! whether its creator has told that it is sealed: of two that are sealed meanwhile it may show the
//! second one only. Which objects there are is what it was at one moment.

use std::fmt;

use super::super::thin::id;
use crate::ids::ObjectId;
use crate::protocol::message::{DeleteOutcome, ObjectInfo, ObjectState, Reply, Request, RequestId};
use crate::protocol::refusal::Refusal;

/// Most clients, and most names.
pub const CLIENTS: usize = 5;
pub const NAMES: usize = 4;

/// What one client did.
#[derive(Debug, Clone)]
pub struct Operation {
    pub client: usize,
    pub begun: u64,
    /// When the store came to it: only a hint.
    pub served: u64,
    pub completed: u64,
    pub what: What,
    /// Of which request it is which part, if it is one of several.
    pub part: Option<(RequestId, usize)>,
}

impl Operation {
    /// A request comes to its objects in their order.
    pub fn is_before_in_request(&self, other: &Self) -> bool {
        match (self.part, other.part) {
            (Some((one, part)), Some((same, next))) => one == same && part < next,
            _ => false,
        }
    }
}

#[derive(Debug, Clone)]
pub enum What {
    Asked(Request, Reply),
    /// In the client's table.
    Sealed {
        id: ObjectId,
        release: bool,
    },
    /// In the directory; pinned.
    Found(ObjectId),
    Unpinned(ObjectId),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, begun, served, completed, what, part: _ } = self;
        let mut text = format!("{what:?}");
        for number in 0..NAMES as u64 {
            text = text.replace(&format!("{:?}", id(number)), &format!("o{number}"));
        }
        write!(f, "{begun:>4} {served:>4} {completed:>4}  client {client}: {text}")
    }
}

/// One name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Object {
    #[default]
    Absent,
    Created {
        creator: usize,
        is_to_go: bool,
    },
    Sealed {
        at: u64,
        /// How often each client holds it or has it pinned.
        holds: [u8; CLIENTS],
        is_to_go: bool,
        /// A pin was taken back, and the store may not know of it.
        is_stale: bool,
    },
}

impl Object {
    /// Nobody uses it: evictions may take it.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Sealed { holds, .. } if holds == [0; CLIENTS])
    }

    /// Nobody uses it, and it is to go for a deletion.
    pub fn is_going(self) -> bool {
        self.is_idle() && matches!(self, Self::Sealed { is_to_go: true, .. })
    }

    const fn state(self) -> ObjectState {
        match self {
            Self::Absent => ObjectState::Absent,
            Self::Created { .. } => ObjectState::Created,
            Self::Sealed { .. } => ObjectState::Sealed,
        }
    }

    /// Whether a list that was begun then may not show the seal.
    fn may_be_unseen(self, looks_from: u64) -> bool {
        matches!(self, Self::Sealed { at, .. } if at > looks_from)
    }

    fn change_hold(&mut self, client: usize, more: i8) -> bool {
        let Self::Sealed { holds, .. } = self else { return false };
        let changed = holds[client].checked_add_signed(more);
        holds[client] = changed.unwrap_or(0);
        changed.is_some()
    }

    fn is_listed_as(self, info: &ObjectInfo, looks_from: u64) -> bool {
        match self {
            Self::Sealed { .. } if info.state == ObjectState::Created => {
                self.may_be_unseen(looks_from)
            }
            Self::Absent => false,
            Self::Created { creator, is_to_go } => {
                info.state == ObjectState::Created
                    && info.creator.map(|it| it.0) == Some(creator as u64)
                    && info.delete_pending == is_to_go
            }
            Self::Sealed { holds, is_to_go, .. } => {
                let users = holds.iter().filter(|count| **count > 0).count();
                info.state == ObjectState::Sealed
                    && info.ref_count as usize == users
                    && info.delete_pending == is_to_go
            }
        }
    }
}

/// All names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct World {
    pub objects: [Object; NAMES],
}

impl World {
    pub fn object(&mut self, wanted: &ObjectId) -> &mut Object {
        let index = (0..NAMES as u64).position(|number| id(number) == *wanted);
        &mut self.objects[index.expect("the world has few names")]
    }

    fn count(&self, is: impl Fn(Object) -> bool) -> usize {
        self.objects.iter().filter(|object| is(**object)).count()
    }

    /// Whether the operation may do and answer this; then it has happened.
    pub fn apply(&mut self, operation: &Operation, capacity: usize) -> bool {
        let client = operation.client;
        match &operation.what {
            What::Sealed { id, release } => self.seal(client, id, *release, operation.begun),
            What::Found(id) => self.object(id).change_hold(client, 1),
            What::Unpinned(id) => {
                let object = self.object(id);
                let is_pinned = object.change_hold(client, -1);
                if let Object::Sealed { is_stale, .. } = object {
                    *is_stale = true;
                }
                is_pinned
            }
            What::Asked(request, reply) => {
                self.answer(client, operation.begun, request, reply, capacity)
            }
        }
    }

    fn answer(
        &mut self,
        client: usize,
        begun: u64,
        request: &Request,
        reply: &Reply,
        capacity: usize,
    ) -> bool {
        match (request, reply) {
            (Request::Create { id, .. }, Reply::Created(_)) => {
                self.create(id, Object::Created { creator: client, is_to_go: false }, capacity)
            }
            (Request::Put { objects, .. }, Reply::Done) => {
                let holds = [0; CLIENTS];
                let new = Object::Sealed { at: 0, holds, is_to_go: false, is_stale: false };
                self.create(&objects[0].id, new, capacity)
            }
            (
                Request::Create { .. } | Request::Put { .. },
                Reply::Refused(Refusal::ObjectExists(id)),
            ) => *self.object(id) != Object::Absent,
            (
                Request::Create { room, .. } | Request::Put { room, .. },
                Reply::Refused(Refusal::StoreFull(_)),
            ) => {
                let is_stale = |object| matches!(object, Object::Sealed { is_stale: true, .. });
                let may_stay = |object: Object| {
                    object != Object::Absent && (!object.is_idle() || is_stale(object))
                };
                !room.evict || self.count(may_stay) >= capacity
            }
            (Request::Seal { id, release }, Reply::Done) => self.seal(client, id, *release, 0),
            (Request::Abort { id }, Reply::Done) => {
                let object = self.object(id);
                let is_own =
                    matches!(*object, Object::Created { creator, .. } if creator == client);
                *object = Object::Absent;
                is_own
            }
            (Request::Seal { .. } | Request::Abort { .. }, Reply::Refused(refusal)) => {
                self.is_right(client, refusal)
            }
            (Request::Delete { ids }, Reply::Deleted(outcomes)) => {
                self.delete(&ids[0], outcomes[0])
            }
            (Request::Evict { .. }, Reply::Evicted { .. }) => true,
            (Request::Get { ids, .. }, Reply::Objects(found)) => {
                self.get(client, &ids[0], found[0].is_some())
            }
            (Request::Get { ids, .. }, Reply::Granted(found)) => {
                self.get(client, &ids[0], found[0].is_some())
            }
            (Request::Wait { ids, .. }, Reply::Ready(ready)) => {
                let is_sealed = self.object(&ids[0]).state() == ObjectState::Sealed;
                *ready == [is_sealed]
            }
            (Request::Release { holds }, Reply::Done) => {
                holds.iter().all(|(id, _)| self.object(id).change_hold(client, -1))
            }
            (Request::GetState { ids }, Reply::States(states)) => {
                self.object(&ids[0]).state() == states[0]
            }
            (Request::List { .. }, Reply::ObjectList { objects, next: None }) => {
                self.count(|object| object != Object::Absent) == objects.len()
                    && objects.iter().all(|info| self.object(&info.id).is_listed_as(info, begun))
            }
            _ => false,
        }
    }

    fn create(&mut self, id: &ObjectId, new: Object, capacity: usize) -> bool {
        let object = self.object(id);
        let is_new = *object == Object::Absent;
        *object = new;
        is_new && self.count(|object| object != Object::Absent) <= capacity
    }

    fn seal(&mut self, client: usize, id: &ObjectId, release: bool, at: u64) -> bool {
        let object = self.object(id);
        let Object::Created { creator, is_to_go } = *object else { return false };
        let mut holds = [0; CLIENTS];
        holds[client] = u8::from(!release);
        *object = Object::Sealed { at, holds, is_to_go, is_stale: false };
        creator == client
    }

    /// Why nobody but the creator of an unsealed object seals or aborts it.
    fn is_right(&mut self, client: usize, refusal: &Refusal) -> bool {
        match refusal {
            Refusal::ObjectNotFound(id) => *self.object(id) == Object::Absent,
            Refusal::AlreadySealed(id) => self.object(id).state() == ObjectState::Sealed,
            Refusal::NotCreator(id) => {
                matches!(*self.object(id), Object::Created { creator, .. } if creator != client)
            }
            _ => false,
        }
    }

    fn get(&mut self, client: usize, id: &ObjectId, is_found: bool) -> bool {
        let object = self.object(id);
        if is_found { object.change_hold(client, 1) } else { object.state() != ObjectState::Sealed }
    }

    fn delete(&mut self, id: &ObjectId, outcome: DeleteOutcome) -> bool {
        let object = self.object(id);
        let is_idle = object.is_idle();
        match (object, outcome) {
            (Object::Absent, DeleteOutcome::NotFound) => true,
            (object, DeleteOutcome::Deleted) => {
                *object = Object::Absent;
                is_idle
            }
            (Object::Sealed { is_to_go, is_stale, .. }, DeleteOutcome::DeferredInUse) => {
                *is_to_go = true;
                !is_idle || *is_stale
            }
            (Object::Created { is_to_go, .. }, DeleteOutcome::DeferredNotSealed) => {
                *is_to_go = true;
                true
            }
            _ => false,
        }
    }
}
