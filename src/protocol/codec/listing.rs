//! The records that describe the store: objects, clients, and the numbers of the whole.
//!
//! Each is written and read side by side, so that a field which one of the two forgets is seen.

use std::time::Duration;

use super::{check_sum, invalid, read_id};
use crate::ids::ClientId;
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::message::{ClientInfo, ObjectInfo, ObjectState, Stats};

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

pub(super) fn write_client(client: &ClientInfo) -> wire::ClientInfo {
    wire::ClientInfo {
        client_id: client.id,
        name: client.name.clone(),
        pid: client.pid,
        uid: client.uid,
        gid: client.gid,
        objects: client.objects,
        bytes: client.bytes,
        unsealed_objects: client.unsealed_objects,
        waiting_requests: client.waiting_requests,
        quota: client.quota,
        quota_used: client.quota_used,
        subscribed: client.subscribed,
    }
}

pub(super) fn read_client(client: wire::ClientInfo) -> ClientInfo {
    ClientInfo {
        id: client.client_id,
        name: client.name,
        pid: client.pid,
        uid: client.uid,
        gid: client.gid,
        objects: client.objects,
        bytes: client.bytes,
        unsealed_objects: client.unsealed_objects,
        waiting_requests: client.waiting_requests,
        quota: client.quota,
        quota_used: client.quota_used,
        subscribed: client.subscribed,
    }
}

pub(super) fn write_stats(stats: &Stats) -> wire::Stats {
    let counter =
        |(name, value): &(String, u64)| wire::Counter { name: name.clone(), value: *value };
    wire::Stats {
        capacity: stats.capacity,
        used: stats.used,
        pinned: stats.pinned,
        evictable: stats.evictable,
        largest_free_run: stats.largest_free_run,
        objects: stats.objects,
        unsealed_objects: stats.unsealed_objects,
        clients: stats.clients,
        waiting_requests: stats.waiting_requests,
        subscribers: stats.subscribers,
        counters: stats.counters.iter().map(counter).collect(),
    }
}

pub(super) fn read_stats(stats: wire::Stats) -> Stats {
    Stats {
        capacity: stats.capacity,
        used: stats.used,
        pinned: stats.pinned,
        evictable: stats.evictable,
        largest_free_run: stats.largest_free_run,
        objects: stats.objects,
        unsealed_objects: stats.unsealed_objects,
        clients: stats.clients,
        waiting_requests: stats.waiting_requests,
        subscribers: stats.subscribers,
        counters: stats.counters.into_iter().map(|c| (c.name, c.value)).collect(),
    }
}

pub(super) fn write_state(state: ObjectState) -> i32 {
    i32::from(match state {
        ObjectState::Absent => wire::State::Absent,
        ObjectState::Created => wire::State::Created,
        ObjectState::Sealed => wire::State::Sealed,
    })
}

pub(super) fn read_state(field: &'static str, state: i32) -> Result<ObjectState, ProtocolError> {
    let state = wire::State::try_from(state).map_err(|error| invalid(field, error.to_string()))?;
    Ok(match state {
        wire::State::Absent => ObjectState::Absent,
        wire::State::Created => ObjectState::Created,
        wire::State::Sealed => ObjectState::Sealed,
    })
}

/// Rounds down, as is right for what has been measured.
fn to_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
