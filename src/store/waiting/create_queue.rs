//! Creates and puts that wait for room, first come first served.
//!
//! Those behind the head wait even if they would fit, or a large object would never get its turn.
//! Before all others are those in a hurry, which may not wait for others to make room: they are
//! here only while a search for room takes longer than one slice, or while memory is in transit.
//! Whose search is under way, and how room is made, is not known here.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{ClientId, ObjectId};
use crate::protocol::message::{NewObject, RequestId};
use crate::store::clients::{Asked, WaitCost};
use crate::time::Timestamp;

#[derive(Debug)]
pub enum Creation {
    /// An object of so many bytes that its creator will write.
    Empty { id: ObjectId, data_size: u64, metadata_size: u64 },
    /// Objects that come with their bytes, all or none.
    Filled {
        /// The objects; never empty.
        objects: Vec<NewObject>,
    },
}

impl Creation {
    pub fn ids(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects().map(|(id, _)| id)
    }

    /// The sizes of the objects in bytes.
    pub fn sizes(&self) -> impl Iterator<Item = u64> {
        self.objects().map(|(_, size)| size)
    }

    fn objects(&self) -> impl Iterator<Item = (&ObjectId, u64)> {
        let (one, many) = match self {
            Self::Empty { id, data_size, metadata_size } => {
                (Some((id, data_size + metadata_size)), [].as_slice())
            }
            Self::Filled { objects } => (None, objects.as_slice()),
        };
        one.into_iter().chain(many.iter().map(|object| (&object.id, object.size())))
    }

    /// What it keeps in memory while it waits.
    pub fn cost(&self) -> WaitCost {
        let bytes = match self {
            Self::Empty { .. } => 0,
            Self::Filled { .. } => self.sizes().sum(),
        };
        WaitCost { ids: self.ids().count(), bytes }
    }
}

/// One request that waits for room.
#[derive(Debug)]
pub struct QueuedCreate {
    /// Who asked, and is to be answered.
    pub asked: Asked,
    pub creation: Creation,
    /// Whether idle objects may be evicted for it.
    pub evict: bool,
    /// When it is refused at the latest.
    pub deadline: Option<Timestamp>,
}

/// The place of a create in the queue. Counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u64);

/// The turns of those that may wait are from here on.
const FIRST_PATIENT: u64 = 1 << 62;

impl Turn {
    /// Whether it is refused as soon as it is known that there is no room.
    pub const fn is_hurried(self) -> bool {
        self.0 < FIRST_PATIENT
    }
}

/// Creates that wait for room.
#[derive(Debug, Default)]
pub struct CreateQueue {
    queue: BTreeMap<Turn, QueuedCreate>,
    by_deadline: BTreeSet<(Timestamp, Turn)>,
    by_asked: BTreeSet<(Asked, Turn)>,
    pushed: u64,
}

impl CreateQueue {
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a create at the end, or behind those in a hurry if it may not wait.
    pub fn push(&mut self, create: QueuedCreate, is_hurried: bool) -> Turn {
        self.pushed += 1;
        let turn = Turn(if is_hurried { self.pushed } else { FIRST_PATIENT + self.pushed });
        self.by_deadline.extend(create.deadline.map(|deadline| (deadline, turn)));
        self.by_asked.insert((create.asked, turn));
        self.queue.insert(turn, create);
        turn
    }

    pub fn first(&self) -> Option<Turn> {
        self.queue.first_key_value().map(|(turn, _)| *turn)
    }

    pub fn contains(&self, turn: Turn) -> bool {
        self.queue.contains_key(&turn)
    }

    pub fn get(&self, turn: Turn) -> &QueuedCreate {
        self.queue.get(&turn).expect("the create is queued")
    }

    /// Takes out one create whose deadline has come, but not the spared one.
    pub fn expired(&mut self, now: Timestamp, spared: Option<Turn>) -> Option<QueuedCreate> {
        let (deadline, turn) = self.first_deadline(spared)?;
        (deadline <= now).then(|| self.remove(turn))
    }

    /// The earliest deadline, but not that of the spared one.
    pub fn next_deadline(&self, spared: Option<Turn>) -> Option<Timestamp> {
        self.first_deadline(spared).map(|(deadline, _)| deadline)
    }

    fn first_deadline(&self, spared: Option<Turn>) -> Option<(Timestamp, Turn)> {
        self.by_deadline.iter().find(|(_, turn)| Some(*turn) != spared).copied()
    }

    /// Takes out the create of one request.
    pub fn cancelled(&mut self, asked: Asked) -> Option<QueuedCreate> {
        let (_, turn) = *self.by_asked.range((asked, Turn(0))..=(asked, Turn(u64::MAX))).next()?;
        Some(self.remove(turn))
    }

    /// Takes out one create of a client that left.
    pub fn abandoned(&mut self, client: ClientId) -> Option<QueuedCreate> {
        let first = (Asked { client, request: RequestId(0) }, Turn(0));
        let (asked, turn) = *self.by_asked.range(first..).next()?;
        (asked.client == client).then(|| self.remove(turn))
    }

    /// All waiting creates, head first.
    pub fn iter(&self) -> impl Iterator<Item = &QueuedCreate> {
        self.queue.values()
    }

    /// Takes out one that waits.
    pub fn remove(&mut self, turn: Turn) -> QueuedCreate {
        let create = self.queue.remove(&turn).expect("the create is queued");
        if let Some(deadline) = create.deadline {
            self.by_deadline.remove(&(deadline, turn));
        }
        self.by_asked.remove(&(create.asked, turn));
        create
    }

    /// Checks that the index agrees with the queue.
    pub fn check_invariants(&self) {
        let deadlines = self.queue.values().filter(|create| create.deadline.is_some()).count();
        assert_eq!(self.by_deadline.len(), deadlines, "only deadlines of creates are indexed");
        assert_eq!(self.by_asked.len(), self.queue.len(), "only creates are indexed by who asked");
        for (turn, create) in &self.queue {
            let indexed = create.deadline.is_none_or(|at| self.by_deadline.contains(&(at, *turn)));
            assert!(indexed, "the deadline of a create is indexed");
            assert!(self.by_asked.contains(&(create.asked, *turn)), "who asked is indexed");
        }
    }
}
