//! What travels between a client and the store: frames of bytes, and the messages inside.
//!
//! [`frame`] cuts a byte stream into payloads and knows no message. [`message`] has the messages as
//! plain data that is valid by construction. [`codec`] turns one into the other and is the only
//! file that sees the generated types. [`refusal`] says why a legitimate request was not granted.
//! The written form for other languages is `proto/PROTOCOL.md`.

pub mod codec;
pub mod frame;
mod generated;
pub mod message;
pub mod refusal;

/// A peer sent something that is not the protocol. Its connection is closed; nobody else notices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each is; the header announces")]
pub enum ProtocolError {
    /// The reserved half-word of a frame header was not zero.
    #[error("frame header has {0:#06x} in its reserved field, this is not the plasma protocol")]
    ReservedNotZero(u16),
    /// A frame without a payload.
    #[error("frame without payload")]
    EmptyFrame,
    /// A frame larger than [`crate::limits::FRAME_PAYLOAD_BYTES_MAX`].
    #[error("frame announces {announced} payload bytes, the limit is {limit}")]
    FrameTooLarge { announced: u32, limit: u32 },
    /// More descriptors than allowed in this direction.
    #[error("frame announces {announced} descriptors, the limit is {limit}")]
    TooManyDescriptors { announced: u16, limit: u16 },
    /// A frame announced descriptors that did not come.
    #[error("a frame announced descriptors that did not arrive with it")]
    MissingDescriptors,
    /// The payload is no message.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The message is well-formed but a field has a value that no client may send.
    #[error("invalid field {field}: {reason}")]
    InvalidField { field: &'static str, reason: String },
    /// The first message was not `Connect`, or a later one was.
    #[error("{0}")]
    Handshake(&'static str),
    /// The store answered with something else than what was asked for.
    #[error("unexpected reply to {request}: {reply}")]
    UnexpectedReply { request: &'static str, reply: String },
}
