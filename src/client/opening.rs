//! From a path to an open connection: attempts, the first message, and the first reply.
//!
//! Until a connection is open one thread owns all of it, so what is here is plain send and receive.
//! A stream of events stays like that ([`Line`]); a client goes on with
//! [`Transport`](super::transport::Transport).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Result;
use super::error::{ConnectFailure, Error, Fault, unexpected};
use super::options::{Builder, Interrupt};
use super::receiver::{Receiver, wait_readable};
use crate::limits::{
    BATCH_OBJECTS_MAX, HANDSHAKE_PATIENCE, INLINE_BYTES_MAX, INTERRUPT_CHECK_INTERVAL,
    PROTOCOL_VERSION, REQUEST_IDS_MAX,
};
use crate::protocol::codec::encode_client;
use crate::protocol::frame::append_frame;
use crate::protocol::message::{
    ClientMessage, Connect, Connected, DescriptorInfo, Reply, RequestId,
};
use crate::protocol::refusal::Refusal;
use crate::shm::fd_passing;
use crate::time::{Clock, Timestamp};

/// The id of the first request on every connection.
pub(super) const CONNECT_REQUEST: RequestId = RequestId(1);

/// A connection that one thread owns.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) socket: UnixStream,
    pub(super) receiver: Receiver,
    /// What came with the first reply.
    pub(super) descriptors: Vec<(DescriptorInfo, OwnedFd)>,
}

/// Connects as often as `builder` says.
pub(super) fn open(
    path: &Path,
    builder: &Builder,
    clock: &Clock,
    mut interrupt: Interrupt<'_>,
) -> Result<(Line, Connected)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failure = match attempt(path, builder, clock, &mut interrupt) {
            Ok(open) => return Ok(open),
            Err(AttemptError::Interrupted) => return Err(Error::Interrupted),
            Err(AttemptError::Failed(failure)) => failure,
        };
        if attempts > builder.retries || !failure.may_pass() {
            return Err(Error::Connect { path: path.to_owned(), attempts, source: failure });
        }
        pause(clock, builder.retry_interval, &mut interrupt)?;
    }
}

impl Line {
    /// Sends one message, waiting for as long as the socket is full.
    pub(super) fn send(
        &self,
        id: RequestId,
        message: &ClientMessage,
    ) -> std::result::Result<(), Fault> {
        let mut frame = Vec::new();
        append_frame(&mut frame, 0, |out| encode_client(out, id, message))?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match fd_passing::send(self.socket.as_fd(), rest, &[]) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

enum AttemptError {
    Failed(ConnectFailure),
    Interrupted,
}

impl<T: Into<ConnectFailure>> From<T> for AttemptError {
    fn from(failure: T) -> Self {
        Self::Failed(failure.into())
    }
}

fn attempt(
    path: &Path,
    builder: &Builder,
    clock: &Clock,
    interrupt: &mut Interrupt<'_>,
) -> std::result::Result<(Line, Connected), AttemptError> {
    let socket = UnixStream::connect(path).map_err(|error| explain(path, error))?;
    let mut line = Line { socket, receiver: Receiver::new(), descriptors: Vec::new() };
    let connect = Connect {
        protocol_version: PROTOCOL_VERSION,
        client_name: builder.name.clone(),
        reads_directory: builder.reads_directory,
    };
    line.send(CONNECT_REQUEST, &ClientMessage::Connect(connect)).map_err(opening_failure)?;
    let connected = match first_reply(&mut line, clock, interrupt)? {
        Reply::Connected(connected) => connected,
        Reply::Refused(Refusal::VersionMismatch(theirs)) => return Err(mismatch(theirs).into()),
        Reply::Refused(refusal) => return Err(ConnectFailure::Refused(refusal).into()),
        other => return Err(unexpected("connect", &other).into()),
    };
    if connected.protocol_version != PROTOCOL_VERSION {
        return Err(mismatch(connected.protocol_version).into());
    }
    Ok((line, within_limits(connected)))
}

fn first_reply(
    line: &mut Line,
    clock: &Clock,
    interrupt: &mut Interrupt<'_>,
) -> std::result::Result<Reply, AttemptError> {
    let end = clock.now().after(HANDSHAKE_PATIENCE);
    loop {
        if let Some(received) = line.receiver.next()? {
            line.descriptors = received.descriptors;
            return Ok(received.reply);
        }
        if wait_readable(&line.socket, next_look(clock, end)) {
            line.receiver.receive(&line.socket).map_err(opening_failure)?;
        } else if is_interrupted(interrupt) {
            return Err(AttemptError::Interrupted);
        } else if clock.now() >= end {
            return Err(ConnectFailure::Silent(HANDSHAKE_PATIENCE).into());
        }
    }
}

/// Connecting to a file that is no socket looks to the system as if nobody listened.
fn explain(path: &Path, error: io::Error) -> ConnectFailure {
    let is_other_file = || path.metadata().is_ok_and(|file| !file.file_type().is_socket());
    if error.kind() == io::ErrorKind::ConnectionRefused && is_other_file() {
        ConnectFailure::NotASocket
    } else {
        ConnectFailure::Io(error)
    }
}

fn opening_failure(fault: Fault) -> ConnectFailure {
    match fault {
        Fault::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            ConnectFailure::HungUp
        }
        Fault::Lost(error) => {
            ConnectFailure::Io(Arc::try_unwrap(error).unwrap_or_else(|error| error.kind().into()))
        }
        Fault::Protocol(error) => ConnectFailure::Protocol(error),
        Fault::Closed | Fault::Inherited => ConnectFailure::HungUp,
    }
}

const fn mismatch(theirs: u32) -> ConnectFailure {
    ConnectFailure::VersionMismatch { ours: PROTOCOL_VERSION, theirs }
}

/// A store may allow less than this client can do, and no more.
fn within_limits(connected: Connected) -> Connected {
    Connected {
        request_ids_max: connected.request_ids_max.min(REQUEST_IDS_MAX),
        inline_bytes_max: connected.inline_bytes_max.min(INLINE_BYTES_MAX),
        batch_objects_max: connected.batch_objects_max.min(BATCH_OBJECTS_MAX),
        ..connected
    }
}

/// Waits for so long.
pub(super) fn pause(clock: &Clock, time: Duration, interrupt: &mut Interrupt<'_>) -> Result<()> {
    let end = clock.now().after(time);
    while clock.now() < end {
        if is_interrupted(interrupt) {
            return Err(Error::Interrupted);
        }
        thread::park_timeout(next_look(clock, end));
    }
    Ok(())
}

fn next_look(clock: &Clock, end: Timestamp) -> Duration {
    end.since(clock.now()).min(INTERRUPT_CHECK_INTERVAL)
}

fn is_interrupted(interrupt: &mut Interrupt<'_>) -> bool {
    interrupt.as_mut().is_some_and(|interrupt| interrupt())
}
