//! A refusal to and from its wire form: a code, and a field for each number that goes with it.
//!
//! Two exhaustive matches. A code that this version does not know becomes [`Refusal::Other`]: a
//! newer store may have more reasons, and a client that cannot name one can still report it.

use super::{invalid, read_id};
use crate::ids::ObjectId;
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::generated::refusal::Code;
use crate::protocol::refusal::{FullStore, Refusal};

pub(super) fn write_refusal(refusal: &Refusal) -> wire::Refusal {
    match refusal {
        Refusal::ObjectExists(id) => about(Code::ObjectExists, *id),
        Refusal::ObjectNotFound(id) => about(Code::ObjectNotFound, *id),
        Refusal::StoreFull(full) => wire::Refusal {
            requested: full.requested,
            capacity: full.capacity,
            used: full.used,
            pinned: full.pinned,
            largest_free_run: full.largest_free_run,
            objects: full.objects,
            limit: full.objects_max,
            ..bare(Code::StoreFull)
        },
        Refusal::NotCreator(id) => about(Code::NotCreator, *id),
        Refusal::AlreadySealed(id) => about(Code::AlreadySealed, *id),
        Refusal::NotHeld(id) => about(Code::NotHeld, *id),
        Refusal::QuotaExceeded { requested, quota, used } => wire::Refusal {
            requested: *requested,
            limit: *quota,
            used: *used,
            ..bare(Code::QuotaExceeded)
        },
        Refusal::QuotaUnavailable { requested, available } => wire::Refusal {
            requested: *requested,
            limit: *available,
            ..bare(Code::QuotaUnavailable)
        },
        Refusal::QuotaAlreadySet(quota) => {
            wire::Refusal { limit: *quota, ..bare(Code::QuotaAlreadySet) }
        }
        Refusal::TooManyWaiting(limit) => {
            wire::Refusal { limit: *limit, ..bare(Code::TooManyWaiting) }
        }
        Refusal::Cancelled => bare(Code::Cancelled),
        Refusal::Abandoned(id) => about(Code::Abandoned, *id),
        Refusal::TooManyEnded(limit) => wire::Refusal { limit: *limit, ..bare(Code::TooManyEnded) },
        Refusal::AlreadySubscribed => bare(Code::AlreadySubscribed),
        Refusal::VersionMismatch(version) => {
            wire::Refusal { limit: u64::from(*version), ..bare(Code::VersionMismatch) }
        }
        Refusal::MemoryLost => bare(Code::MemoryLost),
        Refusal::Other { code } => wire::Refusal { code: *code, ..wire::Refusal::default() },
    }
}

pub(super) fn read_refusal(refusal: &wire::Refusal) -> Result<Refusal, ProtocolError> {
    let Ok(code) = Code::try_from(refusal.code) else {
        return Ok(Refusal::Other { code: refusal.code });
    };
    let id = || read_id("Refusal.object_id", &refusal.object_id);
    Ok(match code {
        Code::Unspecified => Refusal::Other { code: refusal.code },
        Code::ObjectExists => Refusal::ObjectExists(id()?),
        Code::ObjectNotFound => Refusal::ObjectNotFound(id()?),
        Code::StoreFull => Refusal::StoreFull(FullStore {
            requested: refusal.requested,
            capacity: refusal.capacity,
            used: refusal.used,
            pinned: refusal.pinned,
            largest_free_run: refusal.largest_free_run,
            objects: refusal.objects,
            objects_max: refusal.limit,
        }),
        Code::NotCreator => Refusal::NotCreator(id()?),
        Code::AlreadySealed => Refusal::AlreadySealed(id()?),
        Code::NotHeld => Refusal::NotHeld(id()?),
        Code::QuotaExceeded => Refusal::QuotaExceeded {
            requested: refusal.requested,
            quota: refusal.limit,
            used: refusal.used,
        },
        Code::QuotaUnavailable => {
            Refusal::QuotaUnavailable { requested: refusal.requested, available: refusal.limit }
        }
        Code::QuotaAlreadySet => Refusal::QuotaAlreadySet(refusal.limit),
        Code::TooManyWaiting => Refusal::TooManyWaiting(refusal.limit),
        Code::Cancelled => Refusal::Cancelled,
        Code::Abandoned => Refusal::Abandoned(id()?),
        Code::TooManyEnded => Refusal::TooManyEnded(refusal.limit),
        Code::AlreadySubscribed => Refusal::AlreadySubscribed,
        Code::VersionMismatch => Refusal::VersionMismatch(
            u32::try_from(refusal.limit)
                .map_err(|_| invalid("Refusal.limit", "a version has 32 bits"))?,
        ),
        Code::MemoryLost => Refusal::MemoryLost,
    })
}

/// A refusal without numbers.
fn bare(code: Code) -> wire::Refusal {
    wire::Refusal { code: i32::from(code), ..wire::Refusal::default() }
}

/// A refusal that is about one object.
fn about(code: Code, id: ObjectId) -> wire::Refusal {
    wire::Refusal { object_id: id.as_bytes().to_vec(), ..bare(code) }
}
