//! What clients send: the opening and the requests.
//!
//! Both directions are one exhaustive match. Puts take their own way through [`put`]: on the way
//! out because the generated types own their bytes and would have to copy the payload, on the way
//! in because the limits have to be checked while objects are read, not when all are in memory.

use std::time::Duration;

use prost::Message;
use prost::encoding::{DecodeContext, decode_key};

use super::{append, check_sum, invalid, malformed, put, read_id};
use crate::ids::{ClientId, OBJECT_ID_BYTES, ObjectId, Slot};
use crate::limits::{CLIENT_NAME_BYTES_MAX, REQUEST_IDS_MAX};
use crate::protocol::ProtocolError;
use crate::protocol::generated::client_frame::Request as WireRequest;
use crate::protocol::generated::{self as wire, ClientFrame};
use crate::protocol::message::{ClientMessage, Connect, Request, RequestId, Room, Timeout};

/// Appends the payload of a client's frame.
pub fn encode_client(out: &mut Vec<u8>, request_id: RequestId, message: &ClientMessage) {
    match message {
        ClientMessage::Connect(connect) => {
            let connect = WireRequest::Connect(wire::Connect {
                protocol_version: connect.protocol_version,
                client_name: connect.client_name.clone(),
                reads_directory: connect.reads_directory,
                read_only: connect.read_only,
                oldest_version: connect.oldest_version,
            });
            append(out, &frame(request_id, connect));
        }
        ClientMessage::Request(request) => encode_request(out, request_id, request),
        ClientMessage::Unknown => {
            append(out, &ClientFrame { request_id: request_id.0, request: None });
        }
    }
}

/// Reads the payload of a client's frame.
///
/// # Errors
/// If it is not a message, or has a value that no client may send.
pub fn decode_client(payload: &[u8]) -> Result<(RequestId, ClientMessage), ProtocolError> {
    let (request_id, message) = read_frame(payload)?;
    let may_go_unanswered = match &message {
        ClientMessage::Request(request) => request.traits().may_go_unanswered,
        ClientMessage::Connect(_) | ClientMessage::Unknown => false,
    };
    if request_id == RequestId::NONE && !may_go_unanswered {
        return Err(invalid("ClientFrame.request_id", "0 is for seals and releases only"));
    }
    Ok((request_id, message))
}

// ---- encoding -----------------------------------------------------------------------------------

fn encode_request(out: &mut Vec<u8>, request_id: RequestId, request: &Request) {
    let request = match request {
        Request::Put { objects, room } => return put::encode(out, request_id, objects, *room),
        Request::SetOptions { client_name, quota } => WireRequest::SetOptions(wire::SetOptions {
            client_name: client_name.clone(),
            quota: *quota,
        }),
        Request::Create { id, data_size, metadata_size, room } => {
            WireRequest::Create(wire::Create {
                object_id: write_id(*id),
                data_size: *data_size,
                metadata_size: *metadata_size,
                room: Some(write_room(*room)),
            })
        }
        Request::Seal { id, release } => {
            WireRequest::Seal(wire::Seal { object_id: write_id(*id), release: *release })
        }
        Request::Abort { id } => WireRequest::Abort(wire::Abort { object_id: write_id(*id) }),
        Request::Get { ids, timeout, fail_if_abandoned } => WireRequest::Get(wire::Get {
            object_ids: write_ids(ids),
            timeout_us: write_timeout(*timeout),
            fail_if_abandoned: *fail_if_abandoned,
        }),
        Request::Wait { ids, count, timeout } => WireRequest::Wait(wire::Wait {
            object_ids: write_ids(ids),
            // At most the number of ids, which is bounded.
            count: u32::try_from(*count).unwrap_or(u32::MAX),
            timeout_us: write_timeout(*timeout),
        }),
        Request::Cancel { request } => WireRequest::Cancel(wire::Cancel { request_id: request.0 }),
        Request::Release { holds } => WireRequest::Release(write_release(holds)),
        Request::Unpinned { slots } => WireRequest::Unpinned(wire::Unpinned {
            slots: slots.iter().map(|slot| slot.0).collect(),
        }),
        Request::GetState { ids } => {
            WireRequest::GetState(wire::GetState { object_ids: write_ids(ids) })
        }
        Request::Delete { ids } => WireRequest::Delete(wire::Delete { object_ids: write_ids(ids) }),
        Request::Evict { bytes } => WireRequest::Evict(wire::Evict { bytes: *bytes }),
        Request::Refresh { ids } => {
            WireRequest::Refresh(wire::Refresh { object_ids: write_ids(ids) })
        }
        Request::List { cursor } => WireRequest::List(wire::List { cursor: *cursor }),
        Request::Subscribe { one_by_one } => {
            WireRequest::Subscribe(wire::Subscribe { one_by_one: *one_by_one })
        }
        Request::GetStats => WireRequest::GetStats(wire::GetStats {}),
        Request::GetDebugText => WireRequest::GetDebugText(wire::GetDebugText {}),
        Request::ListClients { after, holding } => WireRequest::ListClients(wire::ListClients {
            after: after.0,
            holding: holding.map(write_id),
        }),
        Request::Disconnect => WireRequest::Disconnect(wire::Disconnect {}),
    };
    append(out, &frame(request_id, request));
}

fn frame(request_id: RequestId, request: WireRequest) -> ClientFrame {
    ClientFrame { request_id: request_id.0, request: Some(request) }
}

fn write_id(id: ObjectId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn write_ids<'a>(ids: impl IntoIterator<Item = &'a ObjectId>) -> Vec<u8> {
    ids.into_iter().flat_map(ObjectId::as_bytes).copied().collect()
}

fn write_release(holds: &[(ObjectId, u32)]) -> wire::Release {
    let one_each = holds.iter().all(|(_, count)| *count == 1);
    let counts = if one_each { Vec::new() } else { holds.iter().map(|hold| hold.1).collect() };
    wire::Release { object_ids: write_ids(holds.iter().map(|(id, _)| id)), counts }
}

pub(super) fn write_room(room: Room) -> wire::Room {
    wire::Room { keep_others: !room.evict, timeout_us: write_timeout(room.timeout) }
}

/// Rounds up, because 0 has a meaning of its own: not to wait at all.
fn write_timeout(timeout: Timeout) -> Option<u64> {
    timeout.map(|wait| u64::try_from(wait.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX))
}

// ---- decoding -----------------------------------------------------------------------------------

/// Takes the envelope apart. If a frame has several requests, which no encoder makes, the last one
/// counts, as protobuf has it.
fn read_frame(payload: &[u8]) -> Result<(RequestId, ClientMessage), ProtocolError> {
    let mut frame = ClientFrame::default();
    let mut put = None;
    let mut rest = payload;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(malformed)?;
        if put::is_put(tag) {
            put = Some(put::decode(tag, put::take_bytes(wire_type, &mut rest)?)?);
            frame.request = None;
        } else {
            frame
                .merge_field(tag, wire_type, &mut rest, DecodeContext::default())
                .map_err(malformed)?;
            if frame.request.is_some() {
                put = None;
            }
        }
    }
    let message = match (put, frame.request) {
        (Some(put), _) => ClientMessage::Request(put),
        (None, Some(request)) => read_request(request)?,
        (None, None) => ClientMessage::Unknown,
    };
    Ok((RequestId(frame.request_id), message))
}

fn read_request(request: WireRequest) -> Result<ClientMessage, ProtocolError> {
    let request = match request {
        WireRequest::Connect(connect) => {
            check_name("Connect.client_name", &connect.client_name)?;
            return Ok(ClientMessage::Connect(Connect {
                protocol_version: connect.protocol_version,
                client_name: connect.client_name,
                reads_directory: connect.reads_directory,
                read_only: connect.read_only,
                oldest_version: connect.oldest_version,
            }));
        }
        WireRequest::SetOptions(wire::SetOptions { client_name, quota }) => {
            check_name("SetOptions.client_name", client_name.as_deref().unwrap_or_default())?;
            Request::SetOptions { client_name, quota }
        }
        WireRequest::Create(create) => read_create(&create)?,
        WireRequest::Put(_) | WireRequest::PutBatch(_) => {
            unreachable!("read_frame keeps puts away from the generated code")
        }
        WireRequest::Seal(seal) => {
            Request::Seal { id: read_id("Seal.object_id", &seal.object_id)?, release: seal.release }
        }
        WireRequest::Abort(abort) => {
            Request::Abort { id: read_id("Abort.object_id", &abort.object_id)? }
        }
        WireRequest::Get(get) => Request::Get {
            ids: read_ids("Get.object_ids", &get.object_ids)?,
            timeout: read_timeout(get.timeout_us),
            fail_if_abandoned: get.fail_if_abandoned,
        },
        WireRequest::Wait(wait) => read_wait(&wait)?,
        WireRequest::Cancel(cancel) => Request::Cancel { request: RequestId(cancel.request_id) },
        WireRequest::Release(release) => read_release(&release)?,
        WireRequest::Unpinned(unpinned) => read_unpinned(unpinned)?,
        WireRequest::GetState(get_state) => {
            Request::GetState { ids: read_ids("GetState.object_ids", &get_state.object_ids)? }
        }
        WireRequest::Delete(delete) => {
            Request::Delete { ids: read_ids("Delete.object_ids", &delete.object_ids)? }
        }
        WireRequest::Evict(evict) => Request::Evict { bytes: evict.bytes },
        WireRequest::Refresh(refresh) => {
            Request::Refresh { ids: read_ids("Refresh.object_ids", &refresh.object_ids)? }
        }
        WireRequest::List(list) => Request::List { cursor: list.cursor },
        WireRequest::Subscribe(wire::Subscribe { one_by_one }) => Request::Subscribe { one_by_one },
        WireRequest::GetStats(wire::GetStats {}) => Request::GetStats,
        WireRequest::GetDebugText(wire::GetDebugText {}) => Request::GetDebugText,
        WireRequest::ListClients(list) => Request::ListClients {
            after: ClientId(list.after),
            holding: list.holding.map(|id| read_id("ListClients.holding", &id)).transpose()?,
        },
        WireRequest::Disconnect(wire::Disconnect {}) => Request::Disconnect,
    };
    Ok(ClientMessage::Request(request))
}

fn read_create(create: &wire::Create) -> Result<Request, ProtocolError> {
    check_sum("Create.data_size", &[create.data_size, create.metadata_size])?;
    Ok(Request::Create {
        id: read_id("Create.object_id", &create.object_id)?,
        data_size: create.data_size,
        metadata_size: create.metadata_size,
        room: read_room(create.room.unwrap_or_default()),
    })
}

fn read_wait(wait: &wire::Wait) -> Result<Request, ProtocolError> {
    let ids = read_ids("Wait.object_ids", &wait.object_ids)?;
    let count = usize::try_from(wait.count).ok().filter(|count| *count <= ids.len());
    let count = count.ok_or_else(|| {
        invalid("Wait.count", format!("{} of {} ids can never be ready", wait.count, ids.len()))
    })?;
    Ok(Request::Wait { ids, count, timeout: read_timeout(wait.timeout_us) })
}

fn read_release(release: &wire::Release) -> Result<Request, ProtocolError> {
    let ids = read_ids("Release.object_ids", &release.object_ids)?;
    if release.counts.is_empty() {
        return Ok(Request::Release { holds: ids.into_iter().map(|id| (id, 1)).collect() });
    }
    if release.counts.len() != ids.len() {
        let reason = format!("{} counts for {} ids", release.counts.len(), ids.len());
        return Err(invalid("Release.counts", reason));
    }
    if release.counts.contains(&0) {
        return Err(invalid("Release.counts", "0 holds cannot be given back"));
    }
    Ok(Request::Release { holds: ids.into_iter().zip(release.counts.iter().copied()).collect() })
}

fn read_unpinned(unpinned: wire::Unpinned) -> Result<Request, ProtocolError> {
    let count = unpinned.slots.len();
    if count > REQUEST_IDS_MAX {
        let reason = format!("{count} slots, the limit is {REQUEST_IDS_MAX}");
        return Err(invalid("Unpinned.slots", reason));
    }
    Ok(Request::Unpinned { slots: unpinned.slots.into_iter().map(Slot).collect() })
}

fn read_ids(field: &'static str, bytes: &[u8]) -> Result<Vec<ObjectId>, ProtocolError> {
    let (ids, rest) = bytes.as_chunks::<OBJECT_ID_BYTES>();
    if !rest.is_empty() {
        let reason = format!("{} bytes are not a multiple of {OBJECT_ID_BYTES}", bytes.len());
        return Err(invalid(field, reason));
    }
    if ids.len() > REQUEST_IDS_MAX {
        return Err(invalid(field, format!("{} ids, the limit is {REQUEST_IDS_MAX}", ids.len())));
    }
    Ok(ids.iter().copied().map(ObjectId::from).collect())
}

pub(super) fn read_room(room: wire::Room) -> Room {
    Room { evict: !room.keep_others, timeout: read_timeout(room.timeout_us) }
}

fn read_timeout(timeout_us: Option<u64>) -> Timeout {
    timeout_us.map(Duration::from_micros)
}

fn check_name(field: &'static str, name: &str) -> Result<(), ProtocolError> {
    if name.len() <= CLIENT_NAME_BYTES_MAX {
        return Ok(());
    }
    Err(invalid(field, format!("{} bytes, the limit is {CLIENT_NAME_BYTES_MAX}", name.len())))
}
