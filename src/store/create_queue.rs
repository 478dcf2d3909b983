//! Creates and puts that wait for room, first come first served.
//!
//! The one at the head is tried whenever room may have appeared; those behind it wait even if they
//! would fit, or a large object would never get its turn. Before all others are those in a hurry,
//! which may not wait for others to make room: they are here only while much is evicted for them or
//! for another one, or until memory is there again that is being given back to the system. The one
//! that much is evicted for is at the head until that is over. How room is made is not known here.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ClientId, ObjectId};
use crate::protocol::message::{NewObject, RequestId};
use crate::store::clients::WaitCost;
use crate::time::Timestamp;

/// What is to be created.
#[derive(Debug)]
pub enum Creation {
    /// An object that its creator will write.
    Empty {
        /// Its name.
        id: ObjectId,
        /// Bytes of data.
        data_size: u64,
        /// Bytes of metadata.
        metadata_size: u64,
    },
    /// Objects that come with their bytes, all or none.
    Filled {
        /// The objects; never empty.
        objects: Vec<NewObject>,
    },
}

impl Creation {
    /// The names of the objects.
    pub fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        let (one, many) = match self {
            Self::Empty { id, .. } => (Some(id), [].as_slice()),
            Self::Filled { objects } => (None, objects.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|object| &object.id))
    }

    /// What it keeps in memory while it waits.
    pub fn cost(&self) -> WaitCost {
        let bytes = match self {
            Self::Empty { .. } => 0,
            Self::Filled { objects } => objects.iter().map(NewObject::size).sum(),
        };
        WaitCost { ids: self.ids().count(), bytes }
    }

    /// The sizes of the objects in bytes.
    pub fn sizes(&self) -> impl Iterator<Item = u64> {
        let (one, many) = match self {
            Self::Empty { data_size, metadata_size, .. } => {
                (Some(data_size + metadata_size), [].as_slice())
            }
            Self::Filled { objects } => (None, objects.as_slice()),
        };
        one.into_iter().chain(many.iter().map(NewObject::size))
    }
}

/// One request that waits for room.
#[derive(Debug)]
pub struct QueuedCreate {
    /// Who asked.
    pub client: ClientId,
    /// The request to answer.
    pub request: RequestId,
    /// What is to be created.
    pub creation: Creation,
    /// Whether idle objects may be evicted for it.
    pub evict: bool,
    /// When it is refused at the latest.
    pub deadline: Option<Timestamp>,
    /// It has been counted as one that had to wait; not while it only takes long.
    pub is_counted: bool,
    /// Bytes of all its objects.
    pub bytes: u64,
}

impl QueuedCreate {
    /// What it keeps in memory.
    pub fn cost(&self) -> WaitCost {
        self.creation.cost()
    }

    /// Whether the one with this ticket is refused as soon as it is known that there is no room.
    pub const fn is_hurried(ticket: u64) -> bool {
        ticket < FIRST_PATIENT
    }
}

/// The tickets of those that may wait are from here on.
const FIRST_PATIENT: u64 = 1 << 62;

/// Creates that wait for room.
#[derive(Debug)]
pub struct CreateQueue {
    // The key counts up, so the first entry is the head of the queue.
    queue: BTreeMap<u64, QueuedCreate>,
    by_deadline: BTreeSet<(Timestamp, u64)>,
    by_client: BTreeSet<(ClientId, RequestId, u64)>,
    next_hurried: u64,
    next_patient: u64,
    /// The head, while that is not the first one.
    favoured: Option<u64>,
    /// The one of which it is known that its names are free and its size is allowed.
    checked: Option<u64>,
}

impl Default for CreateQueue {
    fn default() -> Self {
        Self {
            queue: BTreeMap::new(),
            by_deadline: BTreeSet::new(),
            by_client: BTreeSet::new(),
            next_hurried: 0,
            next_patient: FIRST_PATIENT,
            favoured: None,
            checked: None,
        }
    }
}

impl CreateQueue {
    /// Number of waiting creates.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Adds a create at the end, or behind those in a hurry if it may not wait.
    pub fn push(&mut self, create: QueuedCreate, is_hurried: bool) -> u64 {
        let next = if is_hurried { &mut self.next_hurried } else { &mut self.next_patient };
        let ticket = *next;
        *next += 1;
        self.by_deadline.extend(create.deadline.map(|deadline| (deadline, ticket)));
        self.by_client.insert((create.client, create.request, ticket));
        self.queue.insert(ticket, create);
        ticket
    }

    /// The head of the queue.
    pub fn head(&self) -> Option<&QueuedCreate> {
        self.queue.get(&self.head_ticket()?)
    }

    /// The head of the queue, to be changed.
    pub fn head_mut(&mut self) -> Option<&mut QueuedCreate> {
        self.queue.get_mut(&self.head_ticket()?)
    }

    /// The ticket of the head.
    pub fn head_ticket(&self) -> Option<u64> {
        self.favoured.or_else(|| self.queue.first_key_value().map(|(ticket, _)| *ticket))
    }

    /// The one with this ticket, which is in the queue, stays at the head; `None` lets the order of
    /// arrival decide again.
    pub fn favour(&mut self, ticket: Option<u64>) {
        self.favoured = ticket;
    }

    /// Whether the head is known to be legal, as it was when it was last looked at.
    pub fn is_head_checked(&self) -> bool {
        self.checked.is_some() && self.checked == self.head_ticket()
    }

    /// The head is legal.
    pub fn note_head_checked(&mut self) {
        self.checked = self.head_ticket();
    }

    /// The head may not be legal any more.
    pub fn doubt_head(&mut self) {
        self.checked = None;
    }

    /// Takes the head out.
    pub fn pop(&mut self) -> Option<QueuedCreate> {
        let ticket = self.head_ticket()?;
        Some(self.remove(ticket))
    }

    /// Takes out one create whose deadline has come.
    pub fn expired(&mut self, now: Timestamp) -> Option<QueuedCreate> {
        let (deadline, ticket) = *self.by_deadline.first()?;
        (deadline <= now).then(|| self.remove(ticket))
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out the create of one request.
    pub fn cancelled(&mut self, client: ClientId, request: RequestId) -> Option<QueuedCreate> {
        let range = (client, request, 0)..=(client, request, u64::MAX);
        let (_, _, ticket) = *self.by_client.range(range).next()?;
        Some(self.remove(ticket))
    }

    /// Takes out one create of a client that left.
    pub fn abandoned(&mut self, client: ClientId) -> Option<QueuedCreate> {
        let range = (client, RequestId(0), 0)..=(client, RequestId(u64::MAX), u64::MAX);
        let (_, _, ticket) = *self.by_client.range(range).next()?;
        Some(self.remove(ticket))
    }

    /// All waiting creates, head first.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedCreate> {
        self.queue.values()
    }

    fn remove(&mut self, ticket: u64) -> QueuedCreate {
        let create = self.queue.remove(&ticket).expect("the create is queued");
        self.favoured.take_if(|favoured| *favoured == ticket);
        if let Some(deadline) = create.deadline {
            self.by_deadline.remove(&(deadline, ticket));
        }
        self.by_client.remove(&(create.client, create.request, ticket));
        create
    }

    /// Checks that the index agrees with the queue.
    pub fn check_invariants(&self) {
        let deadlines = self.queue.values().filter(|create| create.deadline.is_some()).count();
        assert_eq!(self.by_deadline.len(), deadlines, "only deadlines of creates are indexed");
        assert_eq!(self.by_client.len(), self.queue.len(), "only creates are indexed by client");
        let is_queued = |ticket: &u64| self.queue.contains_key(ticket);
        assert!(self.favoured.as_ref().is_none_or(is_queued), "the head is in the queue");
        for (ticket, create) in &self.queue {
            let indexed =
                create.deadline.is_none_or(|at| self.by_deadline.contains(&(at, *ticket)));
            assert!(indexed, "the deadline of a create is indexed");
            let by_client = (create.client, create.request, *ticket);
            assert!(self.by_client.contains(&by_client), "the client of a create is indexed");
        }
    }
}
