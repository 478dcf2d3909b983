//! Bytes and descriptors through a unix socket, blocking or not.
//!
//! Descriptors travel with a byte: the kernel delivers them together with the *first* byte of the
//! `send` that carried them, and keeps them in order. So a receiver that counts them off a queue as
//! frames announce them gets the right ones, however the stream was cut.
//!
//! Both directions use rustix and not nix, whose `recvmsg` gives no access to the descriptors that
//! came if others did not fit. They would stay open for ever, and any peer could exhaust our
//! descriptors that way. rustix gives them as owned ones, and closes those that nobody takes.
//!
//! Knows nothing of frames and of what is behind a descriptor.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::limits::FRAME_DESCRIPTORS_MAX;

/// Descriptors that one call sends or receives at most.
const CALL_MAX: usize = FRAME_DESCRIPTORS_MAX as usize;

/// Bytes of the control message that carries them. Some more may fit, so they are counted.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(CALL_MAX));

/// Descriptors that may lie in the queue: those of a frame that is being received, and those of the
/// next one, whose first bytes can come with the last ones of the former.
const QUEUE_MAX: usize = 2 * CALL_MAX;

/// Sends `descriptors`, attached to the first of `bytes`, and as many of the bytes as the socket
/// takes. Returns how many, never zero unless `bytes` is empty. The descriptors are sent then, so
/// the rest of the bytes goes without them. A vanished peer is an error, not a signal.
///
/// # Errors
/// Those of `sendmsg`; nothing was sent then. `InvalidInput` if there are descriptors but no byte
/// to carry them, or more than [`FRAME_DESCRIPTORS_MAX`].
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if descriptors.is_empty() {
        return Ok(net::send(socket, bytes, SendFlags::NOSIGNAL)?);
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
    if bytes.is_empty() || descriptors.len() > CALL_MAX || !fits {
        let problem = "descriptors need a byte to travel with, and there may not be many";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives into `into`, which must not be empty, and appends the descriptors that came along.
/// Returns the number of bytes; zero means that the peer has closed.
///
/// The caller takes the descriptors of complete frames out of the queue before it receives again.
///
/// # Errors
/// Those of `recvmsg`, `Interrupted` among them; nothing was received then. `InvalidData` if the
/// peer sent more descriptors than frames may carry, or this process may not open as many. Then
/// all descriptors of the queue are closed and the stream is of no use any more.
pub fn receive(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, into, descriptors, RecvFlags::empty())
}

/// As [`receive`], but does not wait, even if the socket is a blocking one.
///
/// # Errors
/// Those of [`receive`]; `WouldBlock` if there is nothing.
pub fn receive_now(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, into, descriptors, RecvFlags::DONTWAIT)
}

fn receive_with(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    if into.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no room to receive into"));
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(into)];
    let received =
        net::recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC | flags)?;
    let before = descriptors.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    let is_cut_off = received.flags.contains(ReturnFlags::CTRUNC);
    if is_cut_off || descriptors.len() > QUEUE_MAX || descriptors.len() - before > CALL_MAX {
        descriptors.clear();
        let problem = "the peer sent too many descriptors, or this process has too many open";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests;
