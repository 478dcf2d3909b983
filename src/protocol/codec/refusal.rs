//! A refusal to and from its wire form: a code, and a field for each number that goes with it.
//!
//! Two exhaustive matches, made of one list. A code that this version does not know becomes
//! [`Refusal::Other`]: a newer store may have more reasons, and a client that cannot name one can
//! still report it.

use super::{invalid, read_id};
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::generated::refusal::Code;
use crate::protocol::refusal::{FullStore, Refusal};

/// The two functions. Refusals that are alike are listed with their numbers and where these are on
/// the wire; what has a form of its own is in here.
macro_rules! refusals {
    (
        alone { $($alone:ident)+ }
        about_an_object { $($object:ident)+ }
        with_a_limit { $($limit:ident)+ }
        with_numbers { $($numbers:ident { $($number:ident: $place:ident),+ })+ }
    ) => {
        pub(super) fn write_refusal(refusal: &Refusal) -> wire::Refusal {
            match refusal {
                $(Refusal::$alone => bare(Code::$alone),)+
                $(Refusal::$object(id) => {
                    wire::Refusal { object_id: id.as_bytes().to_vec(), ..bare(Code::$object) }
                })+
                $(Refusal::$limit(limit) => wire::Refusal { limit: *limit, ..bare(Code::$limit) },)+
                $(Refusal::$numbers { $($number),+ } => {
                    wire::Refusal { $($place: *$number,)+ ..bare(Code::$numbers) }
                })+
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
                Refusal::VersionMismatch(version) => {
                    wire::Refusal { limit: u64::from(*version), ..bare(Code::VersionMismatch) }
                }
                Refusal::Other { code } => wire::Refusal { code: *code, ..Default::default() },
            }
        }

        pub(super) fn read_refusal(refusal: &wire::Refusal) -> Result<Refusal, ProtocolError> {
            Ok(match Code::try_from(refusal.code) {
                $(Ok(Code::$alone) => Refusal::$alone,)+
                $(Ok(Code::$object) => {
                    Refusal::$object(read_id("Refusal.object_id", &refusal.object_id)?)
                })+
                $(Ok(Code::$limit) => Refusal::$limit(refusal.limit),)+
                $(Ok(Code::$numbers) => Refusal::$numbers { $($number: refusal.$place),+ },)+
                Ok(Code::StoreFull) => Refusal::StoreFull(FullStore {
                    requested: refusal.requested,
                    capacity: refusal.capacity,
                    used: refusal.used,
                    pinned: refusal.pinned,
                    largest_free_run: refusal.largest_free_run,
                    objects: refusal.objects,
                    objects_max: refusal.limit,
                }),
                Ok(Code::VersionMismatch) => {
                    let version = u32::try_from(refusal.limit);
                    let error = |_| invalid("Refusal.limit", "a version has 32 bits");
                    Refusal::VersionMismatch(version.map_err(error)?)
                }
                Ok(Code::Unspecified) | Err(_) => Refusal::Other { code: refusal.code },
            })
        }
    };
}

refusals! {
    alone { Cancelled AlreadySubscribed MemoryLost ReadOnly UnknownRequest }
    about_an_object { ObjectExists ObjectNotFound NotCreator AlreadySealed NotHeld Abandoned }
    with_a_limit { QuotaAlreadySet TooManyWaiting TooManyEnded OverRequestMemory }
    with_numbers {
        QuotaExceeded { requested: requested, quota: limit, used: used }
        QuotaUnavailable { requested: requested, available: limit }
    }
}

/// A refusal without numbers.
fn bare(code: Code) -> wire::Refusal {
    wire::Refusal { code: i32::from(code), ..wire::Refusal::default() }
}
