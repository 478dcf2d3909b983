//! The request that carries payload, `Put` or `PutBatch` on the wire, field by field.
//!
//! ```text
//! ClientFrame   1: request_id   5 or 6: Put or PutBatch
//! Put(Batch)    1: NewObject, once or repeated   2: Room
//! NewObject     1: object_id   2: data   3: metadata
//! ```
//!
//! By hand for two reasons. A generated message owns its bytes, so each put would be copied once
//! more on either side. And four megabytes of empty objects would become hundreds of megabytes of
//! generated structs before anybody could count them; here every object is checked against the
//! limits before memory is set aside for it. The tests compare with what prost makes of the schema.

use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, key_len, message, skip_field, uint64,
};

use super::client_message::{read_room, write_room};
use super::{invalid, malformed, read_id};
use crate::limits::{BATCH_OBJECTS_MAX, INLINE_BYTES_MAX};
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::message::{NewObject, Request, RequestId, Room};

const FRAME_REQUEST_ID: u32 = 1;
const FRAME_PUT: u32 = 5;
const FRAME_PUT_BATCH: u32 = 6;

const PUT_OBJECT: u32 = 1;
const PUT_ROOM: u32 = 2;

const OBJECT_ID: u32 = 1;
const OBJECT_DATA: u32 = 2;
const OBJECT_METADATA: u32 = 3;

/// Whether a field of `ClientFrame` is a put.
pub(super) const fn is_put(tag: u32) -> bool {
    matches!(tag, FRAME_PUT | FRAME_PUT_BATCH)
}

/// Appends the payload of a client's frame.
pub(super) fn encode(out: &mut Vec<u8>, id: RequestId, objects: &[NewObject], room: Room) {
    let tag = if objects.len() == 1 { FRAME_PUT } else { FRAME_PUT_BATCH };
    let room = write_room(room);
    let body_len = objects.iter().map(|object| field_len(PUT_OBJECT, object_len(object)));
    let body_len = body_len.sum::<usize>() + message::encoded_len(PUT_ROOM, &room);
    out.reserve(uint64::encoded_len(FRAME_REQUEST_ID, &id.0) + field_len(tag, body_len));

    if id != RequestId::NONE {
        uint64::encode(FRAME_REQUEST_ID, &id.0, out);
    }
    append_header(out, tag, body_len);
    for object in objects {
        append_header(out, PUT_OBJECT, object_len(object));
        append_bytes(out, OBJECT_ID, object.id.as_bytes());
        append_bytes(out, OBJECT_DATA, &object.data);
        append_bytes(out, OBJECT_METADATA, &object.metadata);
    }
    message::encode(PUT_ROOM, &room, out);
}

/// Reads the body of the put that is in this field of `ClientFrame`.
pub(super) fn decode(put: u32, body: &[u8]) -> Result<Request, ProtocolError> {
    let mut objects = Vec::new();
    let mut room = wire::Room::default();
    let mut inline_bytes = 0;
    let mut rest = body;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(malformed)?;
        match tag {
            PUT_OBJECT => {
                let object = ObjectFields::read(take_bytes(wire_type, &mut rest)?)?;
                // Both are slices of one payload, so no sum here comes near the end of usize.
                inline_bytes += object.data.len() + object.metadata.len();
                check_limits(put, objects.len() + 1, inline_bytes)?;
                objects.push(NewObject {
                    id: read_id("NewObject.object_id", object.id)?,
                    data: object.data.to_vec(),
                    metadata: object.metadata.to_vec(),
                });
            }
            PUT_ROOM => message::merge(wire_type, &mut room, &mut rest, DecodeContext::default())
                .map_err(malformed)?,
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                .map_err(malformed)?,
        }
    }
    if !objects.is_empty() {
        Ok(Request::Put { objects, room: read_room(room) })
    } else if put == FRAME_PUT {
        Err(invalid("Put.object", "missing"))
    } else {
        Err(invalid("PutBatch.objects", "an empty batch"))
    }
}

/// Splits the value of a length-delimited field off the front of `rest`, without a copy.
pub(super) fn take_bytes<'a>(
    wire_type: WireType,
    rest: &mut &'a [u8],
) -> Result<&'a [u8], ProtocolError> {
    check_wire_type(WireType::LengthDelimited, wire_type).map_err(malformed)?;
    let len = decode_varint(rest).map_err(malformed)?;
    let value = usize::try_from(len).ok().and_then(|len| rest.split_off(..len));
    value.ok_or_else(|| ProtocolError::Malformed(format!("a field of {len} bytes is cut off")))
}

/// The fields of a `NewObject`, still where the peer's bytes are.
#[derive(Default)]
struct ObjectFields<'a> {
    id: &'a [u8],
    data: &'a [u8],
    metadata: &'a [u8],
}

impl<'a> ObjectFields<'a> {
    fn read(mut rest: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut fields = Self::default();
        while !rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut rest).map_err(malformed)?;
            match tag {
                OBJECT_ID => fields.id = take_bytes(wire_type, &mut rest)?,
                OBJECT_DATA => fields.data = take_bytes(wire_type, &mut rest)?,
                OBJECT_METADATA => fields.metadata = take_bytes(wire_type, &mut rest)?,
                _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default())
                    .map_err(malformed)?,
            }
        }
        Ok(fields)
    }
}

fn check_limits(put: u32, objects: usize, inline_bytes: usize) -> Result<(), ProtocolError> {
    if put == FRAME_PUT && objects > 1 {
        return Err(invalid("Put.object", "more than one"));
    }
    if objects > BATCH_OBJECTS_MAX {
        let reason = format!("more than {BATCH_OBJECTS_MAX} objects");
        return Err(invalid("PutBatch.objects", reason));
    }
    if inline_bytes > INLINE_BYTES_MAX {
        let reason = format!("more than {INLINE_BYTES_MAX} bytes of data and metadata");
        return Err(invalid("NewObject.data", reason));
    }
    Ok(())
}

fn object_len(object: &NewObject) -> usize {
    bytes_len(OBJECT_ID, object.id.as_bytes())
        + bytes_len(OBJECT_DATA, &object.data)
        + bytes_len(OBJECT_METADATA, &object.metadata)
}

/// Length of a field of bytes; an empty one is left out, as proto3 has it.
fn bytes_len(tag: u32, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { field_len(tag, bytes.len()) }
}

fn field_len(tag: u32, value_len: usize) -> usize {
    key_len(tag) + encoded_len_varint(value_len as u64) + value_len
}

fn append_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        append_header(out, tag, bytes.len());
        out.extend_from_slice(bytes);
    }
}

fn append_header(out: &mut Vec<u8>, tag: u32, value_len: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value_len as u64, out);
}
