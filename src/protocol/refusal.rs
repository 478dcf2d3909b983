//! Why a legitimate request was not granted. Nothing of it is in the store then, and the connection
//! lives on.

use crate::ids::ObjectId;

/// Why a legitimate request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each number is")]
pub enum Refusal {
    /// An object of this name exists, sealed or being created.
    #[error("object {0} exists already")]
    ObjectExists(ObjectId),
    /// There is no object of this name.
    #[error("object {0} does not exist")]
    ObjectNotFound(ObjectId),
    /// There is no room and none can be made (in time).
    #[error("the store is full: {0}")]
    StoreFull(FullStore),
    /// Only the client that created an object may seal or abort it.
    #[error("object {0} is being created by another client")]
    NotCreator(ObjectId),
    /// The object cannot be sealed or aborted (any more), because it is sealed.
    #[error("object {0} is sealed already")]
    AlreadySealed(ObjectId),
    /// A release of something that this client does not hold, or not so often.
    #[error("object {0} is not held by this client (so often)")]
    NotHeld(ObjectId),
    /// The object does not fit into the quota of this client.
    #[error(
        "an object of {requested} bytes does not fit into this client's quota of {quota} bytes, \
         of which {used} are used"
    )]
    QuotaExceeded { requested: u64, quota: u64, used: u64 },
    /// Quotas may take at most 70 % of the store's capacity together.
    #[error("a quota of {requested} bytes cannot be given, at most {available} bytes are left")]
    QuotaUnavailable { requested: u64, available: u64 },
    /// A client's quota is set once.
    #[error("this client has a quota of {0} bytes already")]
    QuotaAlreadySet(u64),
    /// Too many requests of this client wait already, or they name too many ids.
    #[error("too many waiting requests of one client, the limit is {0} (requests or ids)")]
    TooManyWaiting(u64),
    /// The requests of this process would keep more of the store's own memory than it may have now.
    /// If that was a frame of which a part had come, the connection ends.
    #[error(
        "requests of this process may keep {0} bytes of the store's own memory now, and this one \
         would need more (--request-memory)"
    )]
    OverRequestMemory(u64),
    /// The client cancelled its own request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The creator of an object aborted it or died while this request waited for it.
    #[error("the creator of object {0} aborted it or went away")]
    Abandoned(ObjectId),
    /// Too many connections of this process have ended while buffers of theirs are still in use.
    #[error(
        "{0} connections of this process have ended while it keeps buffers of theirs; it has to \
         drop some before it connects again"
    )]
    TooManyEnded(u64),
    /// This connection is a stream of events already.
    #[error("this connection is subscribed already")]
    AlreadySubscribed,
    /// Client and store speak different versions of the protocol.
    #[error("the store speaks version {0} of the protocol")]
    VersionMismatch(u32),
    /// The bytes of a put could not be written: somebody has cut the file of the store's memory
    /// short, or has given pages of it back where no others are to be had. No object of the put is
    /// there; others may have been evicted for it. It may be tried again, and works as soon as the
    /// memory does.
    #[error(
        "the store's memory is not there any more: its file was cut short, or its pages were given \
         back and no others are to be had"
    )]
    MemoryLost,
    /// This client said that it only reads, or is in the group of those that only read.
    #[error(
        "this client is read-only: it can neither make, remove nor evict objects, nor have a quota"
    )]
    ReadOnly,
    /// The store is older than this client, and does not know what was asked for.
    #[error("the store does not know this kind of request; update the store")]
    UnknownRequest,
    /// A newer store has a reason that this client has no name for.
    #[error("the store refused for a reason that this client does not know (code {code})")]
    Other { code: i32 },
}

/// The state of a store that has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{requested} bytes asked for, capacity {capacity}, in use {used}, pinned {pinned}, \
     largest free run {largest_free_run}, objects {objects} of {objects_max}{}",
    if requested > capacity { "; the whole store is smaller than that" } else { "" }
)]
pub struct FullStore {
    /// Bytes that were asked for.
    pub requested: u64,
    /// Bytes that the store was given.
    pub capacity: u64,
    /// Bytes that objects use.
    pub used: u64,
    /// Bytes of those that cannot be evicted, because somebody holds or writes them.
    pub pinned: u64,
    /// Bytes of the longest piece of free memory.
    pub largest_free_run: u64,
    /// Number of objects.
    pub objects: u64,
    /// Most objects that the store may have.
    pub objects_max: u64,
}
