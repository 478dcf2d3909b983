//! The records that describe the store: objects, clients, and the numbers of the whole.
//!
//! Each is written and read side by side, so that a field which one of the two forgets is seen.

use std::convert::identity;
use std::time::Duration;

use super::{check_sum, invalid, read_id};
use crate::ids::ClientId;
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::message::{ClientInfo, DeleteOutcome, ObjectInfo, ObjectState, Stats};

pub(super) fn write_object(object: &ObjectInfo) -> wire::ObjectInfo {
    wire::ObjectInfo {
        object_id: object.id.as_bytes().to_vec(),
        data_size: object.data_size,
        metadata_size: object.metadata_size,
        ref_count: object.ref_count,
        create_time_us: to_micros(object.create_time),
        construct_duration_us: object.construct_duration.map(to_micros),
        state: write_state(object.state),
        delete_pending: object.delete_pending,
        creator: object.creator.map(|client| client.0),
    }
}

pub(super) fn read_object(object: &wire::ObjectInfo) -> Result<ObjectInfo, ProtocolError> {
    check_sum("ObjectInfo.data_size", &[object.data_size, object.metadata_size])?;
    let state = read_state("ObjectInfo.state", object.state)?;
    if state == ObjectState::Absent {
        return Err(invalid("ObjectInfo.state", "a listed object cannot be absent"));
    }
    Ok(ObjectInfo {
        id: read_id("ObjectInfo.object_id", &object.object_id)?,
        data_size: object.data_size,
        metadata_size: object.metadata_size,
        ref_count: object.ref_count,
        create_time: Duration::from_micros(object.create_time_us),
        construct_duration: object.construct_duration_us.map(Duration::from_micros),
        state,
        delete_pending: object.delete_pending,
        creator: object.creator.map(ClientId),
    })
}

/// Two functions that copy a record to and from their wire form, beside one field that differs.
macro_rules! same_record {
    ($name:ident { $($field:ident)+ }, $write:ident, $read:ident,
        $other:ident as $wire_other:ident, $to_wire:expr, $from_wire:expr) => {
        pub(super) fn $write(record: $name) -> wire::$name {
            wire::$name { $wire_other: $to_wire(record.$other), $($field: record.$field,)+ }
        }

        pub(super) fn $read(record: wire::$name) -> $name {
            $name { $other: $from_wire(record.$wire_other), $($field: record.$field,)+ }
        }
    };
}

same_record!(
    ClientInfo {
        name pid uid gid objects bytes unsealed_objects waiting_requests quota quota_used subscribed
    },
    write_client, read_client, id as client_id, identity, identity
);

same_record!(
    Stats {
        capacity used pinned evictable largest_free_run objects unsealed_objects clients
        waiting_requests subscribers
    },
    write_stats, read_stats, counters as counters, write_counters, read_counters
);

fn write_counters(counters: Vec<(String, u64)>) -> Vec<wire::Counter> {
    counters.into_iter().map(|(name, value)| wire::Counter { name, value }).collect()
}

fn read_counters(counters: Vec<wire::Counter>) -> Vec<(String, u64)> {
    counters.into_iter().map(|counter| (counter.name, counter.value)).collect()
}

/// Two functions to and from the number of an enumeration that has the same names on the wire.
macro_rules! enumeration {
    ($name:ident as $wire:ident { $($variant:ident)+ }, $write:ident, $read:ident) => {
        pub(super) fn $write(value: $name) -> i32 {
            i32::from(match value { $($name::$variant => wire::$wire::$variant,)+ })
        }

        pub(super) fn $read(field: &'static str, value: i32) -> Result<$name, ProtocolError> {
            let value = wire::$wire::try_from(value);
            Ok(match value.map_err(|error| invalid(field, error.to_string()))? {
                $(wire::$wire::$variant => $name::$variant,)+
            })
        }
    };
}

enumeration!(ObjectState as State { Absent Created Sealed }, write_state, read_state);
enumeration!(
    DeleteOutcome as DeleteOutcome { NotFound Deleted DeferredInUse DeferredNotSealed },
    write_outcome, read_outcome
);

/// Rounds down, as is right for what has been measured.
fn to_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
