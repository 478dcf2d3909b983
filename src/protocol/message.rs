//! The messages as plain data. A value of these types is valid by construction: [`super::codec`]
//! has checked lengths, counts and sums, so that the store need not.

use std::time::Duration;

use crate::ids::{ClientId, Location, ObjectId, SealPlace, SegmentId, Slot};
use crate::limits::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};
use crate::protocol::refusal::Refusal;

/// Pairs a reply with its request, within one connection. 0 stands for "no reply wanted".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

impl RequestId {
    /// No reply is wanted.
    pub const NONE: Self = Self(0);
}

/// How long a request may wait: `None` for ever, `Some(Duration::ZERO)` not at all.
pub type Timeout = Option<Duration>;

/// The opening of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub struct Connect {
    pub protocol_version: u32,
    pub client_name: String,
    pub reads_directory: bool,
    pub read_only: bool,
    pub oldest_version: u32,
}

impl Connect {
    /// The version that this client and this program speak with each other, if there is one.
    #[must_use]
    pub fn common_version(&self) -> Option<u32> {
        let Self { protocol_version: newest, oldest_version: oldest, .. } = *self;
        let oldest = if oldest == 0 { newest } else { oldest.min(newest) };
        let common = newest.min(PROTOCOL_VERSION);
        (common >= oldest.max(PROTOCOL_VERSION_OLDEST)).then_some(common)
    }
}

/// How to make room for a new object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Whether idle objects may be evicted for it.
    pub evict: bool,
    /// How long to wait for room.
    pub timeout: Timeout,
}

/// An object that comes inside a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub struct NewObject {
    pub id: ObjectId,
    pub data: Vec<u8>,
    pub metadata: Vec<u8>,
}

impl NewObject {
    /// Bytes of data and metadata together.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.data.len() as u64 + self.metadata.len() as u64
    }
}

/// What a connected client can ask for. `proto/plasma.proto` describes each.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub enum Request {
    SetOptions {
        client_name: Option<String>,
        quota: Option<u64>,
    },
    /// The sum of the two sizes fits into 64 bits.
    Create {
        id: ObjectId,
        data_size: u64,
        metadata_size: u64,
        room: Room,
    },
    /// One object or a batch, all or nothing. Never empty.
    Put {
        objects: Vec<NewObject>,
        room: Room,
    },
    Seal {
        id: ObjectId,
        release: bool,
    },
    Abort {
        id: ObjectId,
    },
    Get {
        ids: Vec<ObjectId>,
        timeout: Timeout,
        fail_if_abandoned: bool,
    },
    /// `count` is at most the number of ids.
    Wait {
        ids: Vec<ObjectId>,
        count: usize,
        timeout: Timeout,
    },
    Cancel {
        request: RequestId,
    },
    /// How many holds of which objects; no count is zero.
    Release {
        holds: Vec<(ObjectId, u32)>,
    },
    /// The client has no pin on these slots any more, and the store wants to know.
    Unpinned {
        slots: Vec<Slot>,
    },
    GetState {
        ids: Vec<ObjectId>,
    },
    Delete {
        ids: Vec<ObjectId>,
    },
    Evict {
        bytes: u64,
    },
    Refresh {
        ids: Vec<ObjectId>,
    },
    List {
        cursor: u32,
    },
    Subscribe {
        /// One event a frame, and no [`Event::SnapshotEnd`].
        one_by_one: bool,
    },
    GetStats,
    GetDebugText,
    ListClients {
        after: ClientId,
        holding: Option<ObjectId>,
    },
    Disconnect,
}

impl Request {
    /// What there is to know of this kind of request. Whoever needs to know more of kinds adds a
    /// column here, and a new kind does not compile without its row.
    #[must_use]
    pub const fn traits(&self) -> Traits<'_> {
        use Subject::{Everything, Nothing, Objects};
        match self {
            Self::SetOptions { quota, .. } => {
                Traits { changes_objects: quota.is_some(), ..Traits::of("set_options", Nothing) }
            }
            // Creates and puts look for themselves, when there is no room. What a create makes goes
            // with the connection, unless it is sealed.
            Self::Create { .. } => Traits::of("create", Nothing).changing().waiting(),
            Self::Put { .. } => Traits::of("put", Nothing).changing().with_effects().waiting(),
            Self::Seal { id, .. } => Traits::of("seal", Objects(std::slice::from_ref(id)))
                .changing()
                .with_effects()
                .unanswered(),
            Self::Abort { id } => {
                Traits::of("abort", Objects(std::slice::from_ref(id))).changing().with_effects()
            }
            Self::Get { ids, .. } => Traits::of("get", Objects(ids.as_slice())).waiting(),
            Self::Wait { ids, .. } => Traits::of("wait", Objects(ids.as_slice())).waiting(),
            Self::Cancel { .. } => Traits::of("cancel", Nothing),
            Self::Release { .. } => Traits::of("release", Nothing).with_effects().unanswered(),
            Self::Unpinned { .. } => Traits::of("unpinned", Nothing).with_effects().unanswered(),
            Self::GetState { ids } => Traits::of("get_state", Objects(ids.as_slice())),
            Self::Delete { ids } => {
                Traits::of("delete", Objects(ids.as_slice())).changing().with_effects()
            }
            Self::Evict { .. } => Traits::of("evict", Everything).changing().with_effects(),
            Self::Refresh { ids } => Traits::of("refresh", Objects(ids.as_slice())).with_effects(),
            Self::List { .. } => Traits::of("list", Everything),
            Self::Subscribe { .. } => Traits::of("subscribe", Nothing),
            Self::GetStats => Traits::of("get_stats", Everything),
            Self::GetDebugText => Traits::of("get_debug_text", Everything),
            Self::ListClients { .. } => Traits::of("list_clients", Everything),
            Self::Disconnect => Traits::of("disconnect", Nothing).with_effects(),
        }
    }
}

/// What there is to know of a kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits<'a> {
    /// Its name, for counters and messages.
    pub name: &'static str,
    /// On which objects the answer depends. If one of them is being created, it is looked up
    /// whether it has been sealed.
    pub subject: Subject<'a>,
    /// It may change which objects there are, or can be: what a client that only reads may not ask
    /// for.
    pub changes_objects: bool,
    /// Others notice that it was carried out, also if nobody hears the answer.
    pub has_effects: bool,
    /// The answer may depend on what others do, and until then the request can be cancelled.
    pub may_wait: bool,
    /// It may be sent without a number, and is not answered then.
    pub may_go_unanswered: bool,
}

impl<'a> Traits<'a> {
    const fn of(name: &'static str, subject: Subject<'a>) -> Self {
        Self {
            name,
            subject,
            changes_objects: false,
            has_effects: false,
            may_wait: false,
            may_go_unanswered: false,
        }
    }

    const fn changing(self) -> Self {
        Self { changes_objects: true, ..self }
    }

    const fn with_effects(self) -> Self {
        Self { has_effects: true, ..self }
    }

    const fn waiting(self) -> Self {
        Self { may_wait: true, ..self }
    }

    const fn unanswered(self) -> Self {
        Self { may_go_unanswered: true, ..self }
    }
}

/// The objects on which the answer to a request depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// None, or none that others could be creating.
    Nothing,
    /// These.
    Objects(&'a [ObjectId]),
    /// All that there are.
    Everything,
}

/// What a client sends in one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// The opening; only as the first message.
    Connect(Connect),
    /// Everything after it.
    Request(Request),
    /// A request of a kind that only another version knows.
    Unknown,
}

/// The store's side of the opening.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub struct Connected {
    pub protocol_version: u32,
    pub capacity: u64,
    pub server_pid: u32,
    pub client: ClientId,
    pub server_version: String,
    pub request_ids_max: usize,
    pub inline_bytes_max: usize,
    pub batch_objects_max: usize,
    pub clear_new_objects: bool,
    pub directory_slots: u32,
    pub read_only: bool,
    pub has_directory: bool,
}

/// A new object for its creator to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where it lies.
    pub location: Location,
    /// Where to tell that it is sealed, for a client with a table. Without one it asks the store to
    /// seal it.
    pub seal: Option<SealPlace>,
}

impl From<Location> for Placed {
    fn from(location: Location) -> Self {
        Self { location, seal: None }
    }
}

/// An object that a client with a table has been given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Where it lies.
    pub location: Location,
    /// The slot in which it is pinned in the client's table. Without one it is held.
    pub pin: Option<Slot>,
}

/// Where the life of an object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectState {
    /// There is no such object.
    Absent,
    /// Somebody is writing it.
    Created,
    /// It is complete and never changes any more.
    Sealed,
}

/// What became of one id in a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeleteOutcome {
    /// There was no such object.
    NotFound,
    /// It is gone.
    Deleted,
    /// Somebody uses it; it goes when the last one lets go.
    DeferredInUse,
    /// It is not sealed; it goes when its creator and its readers have let go.
    DeferredNotSealed,
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub id: ObjectId,
    /// Bytes of data.
    pub data_size: u64,
    /// Bytes of metadata.
    pub metadata_size: u64,
    /// Clients that hold it, the creator of an unsealed one included.
    pub ref_count: u32,
    /// When it was created, since the Unix epoch.
    pub create_time: Duration,
    /// From create to seal; `None` until then.
    pub construct_duration: Option<Duration>,
    /// [`ObjectState::Created`] or [`ObjectState::Sealed`].
    pub state: ObjectState,
    /// Gone when the last holder lets go.
    pub delete_pending: bool,
    /// Who is writing it, until it is sealed.
    pub creator: Option<ClientId>,
}

/// One client in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientInfo {
    /// The number of its connection.
    pub id: u64,
    /// The name it gave itself.
    pub name: String,
    /// Its process, as the socket says.
    pub pid: u32,
    /// Its user, as the socket says.
    pub uid: u32,
    /// Its group, as the socket says.
    pub gid: u32,
    /// Distinct objects that it holds.
    pub objects: u64,
    /// Bytes of those objects.
    pub bytes: u64,
    /// How many of them it is creating.
    pub unsealed_objects: u64,
    /// Requests that wait.
    pub waiting_requests: u64,
    /// Its quota in bytes, if it has one.
    pub quota: Option<u64>,
    /// Bytes that count against the quota.
    pub quota_used: u64,
    /// Whether it is a stream of events.
    pub subscribed: bool,
}

/// The state of the store in numbers; bytes unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// What the store was given.
    pub capacity: u64,
    /// What objects use.
    pub used: u64,
    /// What of it is held or being created.
    pub pinned: u64,
    /// What of it could be evicted.
    pub evictable: u64,
    /// The longest piece of free memory.
    pub largest_free_run: u64,
    /// Number of objects.
    pub objects: u64,
    /// Number of objects that are being created.
    pub unsealed_objects: u64,
    /// Number of connected clients.
    pub clients: u64,
    /// Number of requests that wait.
    pub waiting_requests: u64,
    /// Number of clients that are streams of events.
    pub subscribers: u64,
    /// Everything that only counts up, by name.
    pub counters: Vec<(String, u64)>,
}

impl Stats {
    /// The counter of that name; 0 if there is none.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value)
    }
}

/// Something that happened to an object, or a mark in the stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "as in a listing: an object, and its sizes in bytes")]
pub enum Event {
    /// The object is complete: now, or (in the snapshot) before.
    Sealed { id: ObjectId, data_size: u64, metadata_size: u64 },
    /// The object was deleted.
    Deleted { id: ObjectId, data_size: u64, metadata_size: u64 },
    /// The object was removed to make room.
    Evicted { id: ObjectId, data_size: u64, metadata_size: u64 },
    /// All objects that were sealed at the time of the subscription, and still are, have been
    /// named.
    SnapshotEnd,
    /// The reader fell too far behind; the stream ends here.
    Lagged,
}

/// What the store sends in one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub enum Reply {
    Connected(Connected),
    Done,
    Created(Placed),
    Objects(Vec<Option<Location>>),
    /// For a client with a table.
    Granted(Vec<Option<Granted>>),
    Ready(Vec<bool>),
    States(Vec<ObjectState>),
    Deleted(Vec<DeleteOutcome>),
    Evicted {
        bytes: u64,
        objects: u64,
    },
    Refreshed {
        objects: u32,
    },
    ObjectList {
        objects: Vec<ObjectInfo>,
        next: Option<u32>,
    },
    Stats(Stats),
    DebugText(String),
    ClientList {
        clients: Vec<ClientInfo>,
        next: Option<ClientId>,
    },
    /// Comes unasked, with [`RequestId::NONE`].
    Events(Vec<Event>),
    Refused(Refusal),
}

/// What a descriptor of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the schema has a comment for each field")]
pub struct DescriptorInfo {
    pub segment: SegmentId,
    pub segment_size: u64,
    pub writable: bool,
}

/// What the store sends in one frame, with what it answers and what its descriptors are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerMessage {
    /// The request that this answers; [`RequestId::NONE`] for events.
    pub request: RequestId,
    /// What the descriptors of the frame are, in their order.
    pub descriptors: Vec<DescriptorInfo>,
    /// The reply itself.
    pub reply: Reply,
}
