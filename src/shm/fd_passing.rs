//! Bytes and descriptors through a unix socket, blocking or not.
//!
//! Descriptors travel with a byte: the kernel delivers them together with the *first* byte of the
//! `send` that carried them, and keeps them in order. So a receiver that counts them off a queue as
//! frames announce them gets the right ones, however the stream was cut.
//!
//! [`receive`] is written against the C library and not with nix, whose `recvmsg` gives no access
//! to the descriptors that came if others did not fit. They would stay open for ever, and any peer
//! could exhaust our descriptors that way.
//!
//! Knows nothing of frames and of what is behind a descriptor.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{self, ControlMessage, MsgFlags};

use crate::limits::FRAME_DESCRIPTORS_MAX;

/// Bytes of descriptors that one call sends or receives at most.
const DESCRIPTORS_BYTES: u32 = FRAME_DESCRIPTORS_MAX as u32 * RawFd::BITS / 8;

// SAFETY: arithmetic without precondition.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(DESCRIPTORS_BYTES) } as usize;

/// Descriptors that may lie in the queue: those of a frame that is being received, and those of the
/// next one, whose first bytes can come with the last ones of the former.
const QUEUE_MAX: usize = 2 * FRAME_DESCRIPTORS_MAX as usize;

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
        return Ok(socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?);
    }
    if bytes.is_empty() || descriptors.len() > usize::from(FRAME_DESCRIPTORS_MAX) {
        let problem = "descriptors need a byte to travel with, and there may not be many";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    Ok(socket::sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
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
    receive_with(socket, into, descriptors, 0)
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
    receive_with(socket, into, descriptors, libc::MSG_DONTWAIT)
}

fn receive_with(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
    flags: libc::c_int,
) -> io::Result<usize> {
    if into.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no room to receive into"));
    }
    let mut control = Control([0; CONTROL_BYTES]);
    let mut piece = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: a structure of integers and pointers, for which zero means "nothing there".
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;

    // SAFETY: `message` points to `into` and `control`, which live and are writable until the end
    // of this function, and says how long they are.
    let received = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC | flags)
    };
    // Negative exactly when the call failed, and then there is no descriptor.
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;

    take_descriptors(&message, descriptors);
    if message.msg_flags & libc::MSG_CTRUNC != 0 || descriptors.len() > QUEUE_MAX {
        descriptors.clear();
        let problem = "the peer sent too many descriptors, or this process has too many open";
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    Ok(received)
}

/// A buffer for control messages, aligned as they are.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Appends the descriptors that `recvmsg` put into the control buffer of `message`. Must be called
/// once for each call of that.
fn take_descriptors(message: &libc::msghdr, into: &mut VecDeque<OwnedFd>) {
    // SAFETY: the kernel filled in `message` and its control buffer, which the caller holds.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null or, by the contract of the two CMSG functions, a header inside that buffer.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the header is valid, as above.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            // SAFETY: arithmetic without precondition.
            let header_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (header.cmsg_len - header_bytes) / mem::size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors here; nothing says that the place
                // is aligned for them.
                let descriptor = unsafe { first.wrapping_add(index).read_unaligned() };
                // SAFETY: the kernel opened it for this call, so nobody else owns it.
                into.push_back(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        // SAFETY: both are valid, as above.
        next = unsafe { libc::CMSG_NXTHDR(message, next) };
    }
}

#[cfg(test)]
mod tests;
