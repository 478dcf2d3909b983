//! Bytes and descriptors from a socket, put together to messages of the store.
//!
//! One thread at a time receives; who that is, is decided elsewhere. The descriptors of a frame
//! were sent with its bytes and in the same order, so they are counted off a queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::Fault;
use crate::limits::FRAME_DESCRIPTORS_MAX;
use crate::polling::Polling;
use crate::protocol::ProtocolError;
use crate::protocol::codec::decode_server;
use crate::protocol::frame::FrameReader;
use crate::protocol::message::{DescriptorInfo, Reply, RequestId};
use crate::shm::fd_passing;

/// Bytes asked of the socket at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// How often to try where the system does not say when to.
const WITHOUT_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A message of the store.
pub(super) struct Received {
    pub(super) request: RequestId,
    pub(super) reply: Reply,
    pub(super) descriptors: Vec<(DescriptorInfo, OwnedFd)>,
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    frames: FrameReader,
    descriptors: VecDeque<OwnedFd>,
    /// Whether more may be taken out of the socket than the next message.
    reads_ahead: bool,
    /// How long to look for the next message before sleeping.
    pub(super) polling: Polling,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            frames: FrameReader::new(FRAME_DESCRIPTORS_MAX),
            descriptors: VecDeque::new(),
            reads_ahead: true,
            polling: Polling::new(Duration::ZERO),
        }
    }

    /// From now on leaves in the socket what is behind the next message: somebody else may read it.
    pub(super) fn read_one_by_one(&mut self) {
        self.reads_ahead = false;
    }

    /// Takes in what there is, without waiting; whether something has come.
    pub(super) fn receive(&mut self, socket: &UnixStream) -> Result<bool, Fault> {
        let space = match self.reads_ahead {
            true => self.frames.space(CHUNK_BYTES),
            false => self.frames.space_for_one(),
        };
        match fd_passing::receive_now(socket.as_fd(), space, &mut self.descriptors) {
            Ok(0) => Err(Fault::hung_up()),
            Ok(received) => {
                self.frames.advance(received);
                Ok(true)
            }
            Err(error) if is_no_failure(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message, if all of it has come. Must be called until there is none before more is
    /// received.
    pub(super) fn next(&mut self) -> Result<Option<Received>, ProtocolError> {
        let Some(frame) = self.frames.next_frame()? else {
            return Ok(None);
        };
        let message = decode_server(frame.payload)?;
        let count = usize::from(frame.descriptors);
        if self.descriptors.len() < count || message.descriptors.len() != count {
            return Err(ProtocolError::MissingDescriptors);
        }
        let descriptors = message.descriptors.into_iter().zip(self.descriptors.drain(..count));
        Ok(Some(Received {
            request: message.request,
            reply: message.reply,
            descriptors: descriptors.collect(),
        }))
    }
}

/// Whether nothing has come, and something still may.
fn is_no_failure(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Waits until there is something to receive, but no longer than `patience`. False if nothing came;
/// a signal may have been the reason.
pub(super) fn wait_readable(socket: &UnixStream, patience: Duration) -> bool {
    !poll_for(socket, PollFlags::POLLIN, Some(patience)).is_empty()
}

/// Waits until one of `events` is possible, or the connection is gone, which shows in the next send
/// or receive. Empty if the time was over before, or a signal came.
pub(super) fn poll_for(
    socket: &UnixStream,
    events: PollFlags,
    patience: Option<Duration>,
) -> PollFlags {
    let mut polled = [PollFd::new(socket.as_fd(), events)];
    let patience = patience.map_or(PollTimeout::NONE, whole_milliseconds);
    match poll(&mut polled, patience) {
        Ok(_) => polled[0].revents().unwrap_or(PollFlags::empty()),
        Err(Errno::EINTR) => PollFlags::empty(),
        // No memory for the wait, or a process that has forbidden itself all descriptors but those
        // that it has: the caller tries a little later, which is right and only slower.
        Err(_) => {
            thread::park_timeout(WITHOUT_POLL_INTERVAL);
            events
        }
    }
}

/// Rounded up: a wait that ends early would be followed by many short ones.
fn whole_milliseconds(patience: Duration) -> PollTimeout {
    let milliseconds = patience.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(PollTimeout::MAX)
}
