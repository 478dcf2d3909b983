//! The connected clients: who they are, what each one holds, and how much of it waits.
//!
//! A hold is a count: every grant of an object to a client adds one, every release takes one away,
//! and the store sees the client as *one* holder while the count is above zero. Counting makes it
//! harmless that a release and a grant of the same object cross on the wire. What a get has got
//! while it still waits is counted apart: the client has not been told and cannot give it back.
//! States and places of objects are not known here, beyond their sizes for the totals.

use std::collections::BTreeMap;

use crate::ids::{ClientId, Slot};
use crate::limits;
use crate::protocol::message::RequestId;
use crate::protocol::refusal::Refusal;
use crate::store::request_memory::{Process, RequestMemory};

/// Who a client is. Everything but the name comes from the socket, not from the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// The name it gave itself.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Who asks the store for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The client that waits for the answer.
    pub client: ClientId,
    /// Its own number for the request.
    pub request: RequestId,
}

/// How often a client holds one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hold {
    /// Granted by a reply: the client gives these back.
    pub granted: u64,
    /// Taken for gets that wait: granted when they are answered.
    pub waiting: u64,
}

impl Hold {
    /// So many holds that the client has been granted.
    pub const fn granted(count: u64) -> Self {
        Self { granted: count, waiting: 0 }
    }

    /// So many holds for a get that waits.
    pub const fn waiting(count: u64) -> Self {
        Self { granted: 0, waiting: count }
    }

    pub const fn is_empty(&self) -> bool {
        self.granted == 0 && self.waiting == 0
    }
}

/// One connected client.
#[derive(Debug, Default)]
pub struct Client {
    pub peer: Peer,
    /// How often it holds which object. Ordered, so that a disconnect is deterministic.
    pub holds: BTreeMap<Slot, Hold>,
    /// Bytes of the objects it holds.
    pub held_bytes: u64,
    /// How many of them it is creating.
    pub unsealed: u64,
    /// Whether it is here, or how far its end has come.
    pub presence: Presence,
    /// How often its idle objects may still step back while it is leaving.
    pub looks_left: usize,
    /// It has said that nothing is left of what it was given.
    pub said_goodbye: bool,
    /// Its requests that wait, for objects or for room.
    pub waiting: usize,
    /// What those requests cost together.
    pub waited: WaitCost,
}

/// Where a client is between its connection and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It is connected.
    #[default]
    Here,
    /// Its connection has ended. From this slot on it has still to be seen what it has told of.
    Settling(Slot),
    /// For all that is known a process is left that has what it was given. What ends with the
    /// connection is being removed.
    Surviving,
    /// It survives, and all is done that can be done before its last process has gone.
    Resting,
    /// No process is left. From this slot on its notes have still to be read: when it last used
    /// what.
    ReadingNotes(Slot),
    /// No process is left, and what it has left is being removed.
    Going,
}

/// What a waiting request keeps in the server's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitCost {
    /// Ids that it names, those named twice and those that are there already included: the store
    /// keeps them all, and answers them all at once.
    pub ids: usize,
    /// Bytes that came with it, to be written when there is room.
    pub bytes: u64,
}

impl WaitCost {
    /// Bytes of the store's own memory for so many requests that cost this together.
    const fn memory(self, requests: usize) -> u64 {
        let each = requests * limits::WAIT_BYTES + self.ids * limits::WAITED_ID_BYTES;
        each as u64 + self.bytes
    }
}

impl Client {
    /// The limit that one more waiting request would break.
    fn broken_limit(&self, cost: WaitCost) -> Option<u64> {
        let waiting = (self.waiting as u64 + 1, limits::CLIENT_WAITS_MAX as u64);
        let ids = ((self.waited.ids + cost.ids) as u64, limits::CLIENT_WAITED_IDS_MAX as u64);
        let bytes = (self.waited.bytes + cost.bytes, limits::CLIENT_WAITED_BYTES_MAX);
        [waiting, ids, bytes].into_iter().find(|(sum, max)| sum > max).map(|(_, max)| max)
    }

    /// Bytes that its waiting requests keep.
    pub const fn waited_memory(&self) -> u64 {
        self.waited.memory(self.waiting)
    }

    const fn process(&self, id: ClientId) -> Process {
        Process::new(self.peer.pid, id)
    }
}

/// All connected clients.
#[derive(Debug, Default)]
pub struct Clients {
    table: BTreeMap<ClientId, Client>,
    /// What is kept for requests, also outside of the store.
    pub memory: RequestMemory,
}

impl Clients {
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn contains(&self, id: ClientId) -> bool {
        self.table.contains_key(&id)
    }

    /// Whether this client is connected and stays.
    pub fn is_here(&self, id: ClientId) -> bool {
        self.table.get(&id).is_some_and(|client| client.presence == Presence::Here)
    }

    /// A client that is connected.
    pub fn get(&self, id: ClientId) -> &Client {
        self.table.get(&id).expect("the client is connected")
    }

    /// Whether there is such a client, and it holds this object.
    pub fn has_hold(&self, id: ClientId, slot: Slot) -> bool {
        self.table.get(&id).is_some_and(|client| client.holds.contains_key(&slot))
    }

    /// A client that is connected, to be changed.
    pub fn get_mut(&mut self, id: ClientId) -> &mut Client {
        self.table.get_mut(&id).expect("the client is connected")
    }

    pub fn insert(&mut self, id: ClientId, peer: Peer) {
        let former = self.table.insert(id, Client { peer, ..Client::default() });
        assert!(former.is_none(), "a client id is used once");
    }

    pub fn remove(&mut self, id: ClientId) -> Client {
        let client = self.table.remove(&id).expect("the client is connected");
        self.memory.change(client.process(id), client.waited_memory(), 0);
        client
    }

    /// Whether one more request of a client may wait.
    ///
    /// # Errors
    /// It would break a limit of the client, or of its process.
    pub fn check_wait(&self, id: ClientId, cost: WaitCost) -> Result<(), Refusal> {
        let client = self.get(id);
        match client.broken_limit(cost) {
            Some(limit) => Err(Refusal::TooManyWaiting(limit)),
            None => self.memory.check(client.process(id), cost.memory(1)),
        }
    }

    pub fn wait_began(&mut self, id: ClientId, cost: WaitCost) {
        let client = self.table.get_mut(&id).expect("the client is connected");
        client.waiting += 1;
        client.waited.ids += cost.ids;
        client.waited.bytes += cost.bytes;
        self.memory.change(client.process(id), 0, cost.memory(1));
    }

    pub fn wait_ended(&mut self, id: ClientId, cost: WaitCost) {
        let client = self.table.get_mut(&id).expect("the client is connected");
        client.waiting -= 1;
        client.waited.ids -= cost.ids;
        client.waited.bytes -= cost.bytes;
        self.memory.change(client.process(id), cost.memory(1), 0);
    }

    /// The clients with ids above `after`, in order.
    pub fn after(&self, after: ClientId) -> impl Iterator<Item = (ClientId, &Client)> {
        let above = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.table.range(above).map(|(id, client)| (*id, client))
    }

    /// All clients, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, &Client)> {
        self.table.iter().map(|(id, client)| (*id, client))
    }
}
