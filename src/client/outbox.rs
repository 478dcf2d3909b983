//! Bytes on their way to the store.
//!
//! Threads append whole frames and push what the socket takes at once; the lock around an outbox is
//! held for that long and no longer. A thread whose frame did not go out entirely waits for room
//! without the lock, or leaves that to another one, and meanwhile others may append behind it. See
//! [`super::sending`].

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::error::Fault;
use super::releasing::Releases;
use crate::protocol::codec::encode_client;
use crate::protocol::frame::append_frame;
use crate::protocol::message::{ClientMessage, Request, RequestId};

/// Bytes of memory that an empty outbox keeps for the next request.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// A place in the stream of bytes to the store, counted from the start of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(u64);

/// Frames that have not been sent, or not entirely: `bytes[sent..]`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes of the stream before `bytes`.
    start: u64,
    /// Nothing can be sent any more.
    fault: Option<Fault>,
    /// A thread has been started that sends what is left over.
    pub(super) has_flusher: bool,
    /// Holds to be given back with the next frame.
    pub(super) releases: Releases,
}

impl Outbox {
    /// An empty one, for a store that takes so many ids in one request.
    pub(super) fn new(request_ids_max: usize) -> Self {
        Self { releases: Releases::new(request_ids_max), ..Self::default() }
    }

    /// Appends a frame, behind what is to be given back. The position returned is its end.
    pub(super) fn append(
        &mut self,
        request: RequestId,
        message: &ClientMessage,
    ) -> Result<Position, Fault> {
        self.append_releases()?;
        append_frame(&mut self.bytes, 0, |out| encode_client(out, request, message))?;
        Ok(self.end())
    }

    /// Appends what is to be given back. The position returned is its end.
    pub(super) fn append_releases(&mut self) -> Result<Position, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        for holds in self.releases.take() {
            let release = ClientMessage::Request(Request::Release { holds });
            append_frame(&mut self.bytes, 0, |out| encode_client(out, RequestId::NONE, &release))?;
        }
        Ok(self.end())
    }

    /// The end of what has been appended.
    pub(super) const fn end(&self) -> Position {
        Position(self.start + self.bytes.len() as u64)
    }

    /// Sends what the socket takes without waiting.
    pub(super) fn flush(&mut self, socket: &UnixStream) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while self.sent < self.bytes.len() {
            match send(socket.as_raw_fd(), &self.bytes[self.sent..], flags) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => {
                    let fault = Fault::from(io::Error::from(error));
                    self.fault = Some(fault.clone());
                    return Err(fault);
                }
            }
        }
        self.forget_sent();
        Ok(())
    }

    /// Whether nothing is left over.
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the stream has been sent as far as `position`.
    pub(super) const fn has_sent(&self, position: Position) -> bool {
        self.start + self.sent as u64 >= position.0
    }

    fn forget_sent(&mut self) {
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES_MAX);
        } else if self.sent > self.bytes.len() / 2 {
            // The half that is moved is paid for by the half that was sent.
            self.bytes.drain(..self.sent);
        } else {
            return;
        }
        self.start += self.sent as u64;
        self.sent = 0;
    }
}
