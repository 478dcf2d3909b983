//! Payload bytes to plain messages and back; the only code that sees the generated types.
//!
//! This is the border of the program: everything that can be wrong with a peer's bytes is found
//! here, once, before anything acts on them. What comes out of a `decode` function has ids of
//! twenty bytes, lists within [`crate::limits`], sizes whose sums fit into 64 bits and enumerations
//! with known values, so that nobody behind it checks again. Fields that this version does not know
//! are skipped, as protobuf has it; a whole message that it does not know is an error.
//!
//! Encoding appends to the caller's buffer and cannot fail: that a message keeps the limits is the
//! business of whoever made it.
//!
//! `client_message` and `server_message` have the two directions; `put` is the one request that
//! carries payload, `listing` the records inside replies, `refusal` the reply that says no. None of
//! them knows frames, sockets, descriptors or what the store holds.

#![forbid(unsafe_code)]

mod client_message;
mod listing;
mod put;
mod refusal;
mod server_message;
#[cfg(test)]
mod tests;

pub use client_message::{decode_client, encode_client};
pub use server_message::{decode_server, encode_server};

use prost::encoding::decode_varint;
use prost::{DecodeError, Message};

use crate::ids::ObjectId;
use crate::protocol::ProtocolError;
use crate::protocol::message::RequestId;

/// Appends a generated message.
fn append(out: &mut Vec<u8>, message: &impl Message) {
    message.encode(out).expect("a vector grows");
}

/// The number of the request whose payload begins like this, if it begins with its number, as ours
/// do.
#[must_use]
pub fn leading_request_id(mut payload: &[u8]) -> RequestId {
    const REQUEST_ID_KEY: u64 = 1 << 3;
    let mut number = || decode_varint(&mut payload).ok();
    match (number(), number()) {
        (Some(REQUEST_ID_KEY), Some(id)) => RequestId(id),
        _ => RequestId::NONE,
    }
}

/// Bytes that are no message at all.
fn malformed(error: DecodeError) -> ProtocolError {
    ProtocolError::Malformed(error.to_string())
}

/// A message with a field that nobody may send.
fn invalid(field: &'static str, reason: impl Into<String>) -> ProtocolError {
    ProtocolError::InvalidField { field, reason: reason.into() }
}

fn read_id(field: &'static str, bytes: &[u8]) -> Result<ObjectId, ProtocolError> {
    ObjectId::try_from(bytes).map_err(|error| invalid(field, error.to_string()))
}

/// Refuses byte counts that a later sum over them could overflow on.
fn check_sum(field: &'static str, parts: &[u64]) -> Result<(), ProtocolError> {
    let sum = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(*part));
    sum.map(|_| ()).ok_or_else(|| invalid(field, format!("the sum of {parts:?} exceeds 64 bits")))
}
