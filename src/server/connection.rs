//! One peer: its socket, what has come from it, and what has still to go to it.
//!
//! This is the only reader and the only writer of a socket, and the place where bytes become
//! messages and back. Neither direction ever blocks: reading stops at a budget, at an empty socket,
//! or as long as the peer leaves too many replies unread (a flush says when that is over); writing
//! stops when the socket takes no more. Whatever goes wrong here makes this one connection
//! [`Stage::Draining`] and nothing else; it is taken away by the reactor's last phase, like every
//! other.
//!
//! Other connections, the store and what a request means are not known here.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;

use log::Level;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use super::close_reason::{CloseReason, is_departure};
use super::memory::Memory;
use super::metrics::ServerCounters;
use super::outbox::{DescriptorKind, Outbox};
use super::peer_lines::PeerLines;
use crate::ids::ClientId;
use crate::limits;
use crate::protocol::ProtocolError;
use crate::protocol::codec::{decode_client, encode_server, leading_request_id};
use crate::protocol::frame::{FrameReader, append_frame};
use crate::protocol::message::{
    ClientMessage, Connect, DescriptorInfo, Reply, Request, RequestId, ServerMessage,
};
use crate::protocol::refusal::Refusal;
use crate::shm::fd_passing;
use crate::store::Peer;
use crate::store::request_memory::{Process, RequestMemory};
use crate::time::Timestamp;

/// Bytes to read at a time at first: more than most requests have.
const READ_BYTES: usize = 4 << 10;

/// Bytes to read at a time when there are many.
const READ_BYTES_BUSY: usize = 64 << 10;

/// Descriptors in a frame of a client: it has none to give.
const CLIENT_DESCRIPTORS: u16 = 0;

/// Where the life of a connection stands: it introduces itself, it is served, it is closed.
#[derive(Debug)]
enum Stage {
    /// Nothing but `Connect` may come. The store does not know the client.
    Handshake,
    /// Requests may come. The store knows the client.
    Open,
    /// It is to be closed as soon as the outbox is empty. Nothing is read or queued any more.
    Draining {
        /// Why it ends. The first reason stays.
        reason: CloseReason,
        /// Whether the store knows the client.
        was_open: bool,
        /// When it is closed in any case; set when the peer first leaves something unread.
        deadline: Option<Timestamp>,
    },
}

/// What the peer takes of what is to go to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// The socket has taken all there was. The selector does not wait for more room: a wake-up for
    /// each reply that the peer reads would be one too many.
    Flows,
    /// The selector says when the socket takes bytes again.
    AwaitsRoom,
    /// Nothing any more: it has gone, as far as sending knows. What it said before is still to be
    /// read.
    Deaf,
}

/// What came from a peer.
#[derive(Debug)]
pub enum Received {
    Request(RequestId, Request),
    /// The peer has introduced itself and waits to be welcomed, or turned away.
    Opened {
        request: RequestId,
        connect: Connect,
        /// The version that both speak.
        version: u32,
    },
    /// A request that is not for this peer, or for no store of this version.
    Refused(RequestId, Refusal),
    /// Nothing, until the socket or the outbox gives a reason to try again.
    Nothing,
    /// Nothing in this turn: the budget is spent.
    Later,
    /// Nothing any more: the connection has begun to drain.
    Ended,
}

/// What follows from sending.
#[derive(Debug)]
pub struct Flushed {
    /// It is to be read from again.
    pub resumes_reading: bool,
    /// The system would take no more descriptors, and nothing tells when it will.
    pub is_starved: bool,
}

/// What one connection has used up in one turn, and memory for it to receive into. The bounds are
/// in [`crate::limits`].
#[derive(Debug)]
pub struct Budget<'a> {
    spare: &'a mut Vec<u8>,
    bytes: usize,
    requests: usize,
    /// The socket gave less than there was room for: it is empty.
    socket_is_empty: bool,
}

impl<'a> Budget<'a> {
    /// The budget of a connection for a turn. The memory is for whoever has none: idle connections
    /// have none.
    pub const fn new(spare: &'a mut Vec<u8>) -> Self {
        Self { spare, bytes: 0, requests: 0, socket_is_empty: false }
    }
}

#[derive(Debug)]
pub struct Connection {
    id: ClientId,
    peer: Peer,
    stage: Stage,
    socket: UnixStream,
    frames: FrameReader,
    /// What it sent before is still there to be read, and then the end.
    has_hung_up: bool,
    outbox: Outbox,
    output: Output,
    /// It may not change which objects there are.
    pub is_read_only: bool,
    table_slots: u32,
    /// What the peer has been sent.
    descriptors: Vec<DescriptorKind>,
    /// Bytes that have been counted.
    counted_bytes: u64,
    /// Its process keeps too much, so nothing more is read before it has taken all replies.
    is_over_share: bool,
}

impl Connection {
    /// A connection just accepted, watched from now on under its id.
    ///
    /// # Errors
    /// The system has no memory to watch it.
    pub fn new(
        id: ClientId,
        mut socket: UnixStream,
        peer: Peer,
        registry: &Registry,
    ) -> io::Result<Self> {
        registry.register(&mut socket, token(id), Interest::READABLE)?;
        Ok(Self {
            id,
            peer,
            stage: Stage::Handshake,
            socket,
            frames: FrameReader::new(CLIENT_DESCRIPTORS),
            has_hung_up: false,
            outbox: Outbox::default(),
            output: Output::Flows,
            is_read_only: false,
            table_slots: 0,
            descriptors: Vec::new(),
            counted_bytes: 0,
            is_over_share: false,
        })
    }

    pub const fn id(&self) -> ClientId {
        self.id
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Its process.
    pub fn process(&self) -> Process {
        Process::new(self.peer.pid, self.id)
    }

    /// Whether it has still to introduce itself.
    pub fn is_stranger(&self) -> bool {
        matches!(self.stage, Stage::Handshake)
    }

    pub fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    /// Whether nothing more can be said to it.
    pub fn takes_nothing(&self) -> bool {
        self.is_draining() || self.output == Output::Deaf
    }

    /// Bytes that the peer has still to read or the socket to take.
    pub fn outbox_bytes(&self) -> usize {
        self.outbox.len()
    }

    /// Whether nothing is read from it until it has read some replies.
    pub fn is_held_back(&self) -> bool {
        self.outbox.len() > if self.is_over_share { 0 } else { limits::OUTBOX_BYTES_MAX }
    }

    /// Whether a stream is given nothing more to send before it has sent some.
    pub fn is_full(&self) -> bool {
        self.is_held_back() || self.outbox.len() >= limits::STREAM_REFILL_BYTES
    }

    /// Counts how much is kept for this connection now. Too much for its process is the
    /// end of a connection with a large frame of which a part has come. Whether there is something
    /// to do: something may be read again, or is to be sent.
    pub fn count_memory(&mut self, all: &mut RequestMemory, counters: &mut ServerCounters) -> bool {
        let kept = (self.frames.memory() + self.outbox.memory()) as u64;
        // Nearly always, and nothing was kept before.
        if kept == 0 && self.counted_bytes == 0 && !self.is_over_share {
            return false;
        }
        let process = self.process();
        all.change(process, self.counted_bytes, kept);
        self.counted_bytes = kept;
        let was_held_back = self.is_held_back();
        let allowed = all.check(process, 0);
        self.is_over_share = allowed.is_err();
        match allowed {
            Err(refusal)
                if self.frames.buffered() > limits::SMALL_FRAME_BYTES && !self.is_draining() =>
            {
                let request = leading_request_id(self.frames.partial_payload());
                self.turn_away(request, refusal, counters);
                self.frames = FrameReader::new(CLIENT_DESCRIPTORS);
                counters.frames_refused += 1;
                true
            }
            _ => was_held_back && !self.is_held_back(),
        }
    }

    /// Nothing is kept for it any more.
    pub fn forget_memory(&self, all: &mut RequestMemory) {
        all.change(self.process(), self.counted_bytes, 0);
    }

    /// The store knows the peer from now on, who has so many slots in a table of its own.
    pub fn open(&mut self, table_slots: u32) {
        self.stage = Stage::Open;
        self.table_slots = table_slots;
    }

    /// Ends the connection of a peer that the store does not want to know.
    pub fn turn_away(
        &mut self,
        request: RequestId,
        refusal: Refusal,
        counters: &mut ServerCounters,
    ) {
        self.append(request, Reply::Refused(refusal.clone()), vec![], vec![], counters);
        self.drain(CloseReason::TurnedAway(refusal));
    }

    /// Begins the end, unless it has begun already.
    pub fn drain(&mut self, reason: CloseReason) {
        let was_open = match self.stage {
            Stage::Handshake => false,
            Stage::Open => true,
            Stage::Draining { .. } => return,
        };
        self.stage = Stage::Draining { reason, was_open, deadline: None };
    }

    /// The peer has hung up, says the selector: behind the last byte there is an end to be read.
    pub fn note_hang_up(&mut self) {
        self.has_hung_up = true;
    }

    /// The peer hears nothing any more, says the selector. What it said before is still read.
    pub fn note_deaf(&mut self) {
        self.outbox = Outbox::default();
        self.output = Output::Deaf;
    }

    /// The next thing that the peer said.
    pub fn receive(&mut self, budget: &mut Budget<'_>, counters: &mut ServerCounters) -> Received {
        self.try_receive(budget, counters).unwrap_or_else(|reason| {
            self.drain(reason);
            Received::Ended
        })
    }

    /// Whether the peer has this descriptor already.
    pub fn has_descriptor(&self, kind: DescriptorKind) -> bool {
        self.descriptors.contains(&kind)
    }

    /// Puts a reply behind everything that waits to be sent, with descriptors that ride with it.
    pub fn queue(
        &mut self,
        request: RequestId,
        reply: Reply,
        kinds: Vec<DescriptorKind>,
        memory: &Memory,
        counters: &mut ServerCounters,
    ) {
        if self.takes_nothing() {
            return;
        }
        let described = kinds.iter().map(|kind| memory.describe(self.id, *kind)).collect();
        self.descriptors.extend_from_slice(&kinds);
        self.append(request, reply, described, kinds, counters);
    }

    /// From now on a reader that sees the first byte of a frame has all of it, if it is small.
    pub fn go_frame_by_frame(&mut self) {
        self.outbox.is_frame_by_frame = true;
    }

    /// Whether that is so.
    pub fn is_frame_by_frame(&self) -> bool {
        self.outbox.is_frame_by_frame
    }

    /// Sends until nothing is left or the socket takes no more; then the selector tells when to go
    /// on, unless the answer says otherwise.
    pub fn flush(
        &mut self,
        memory: &Memory,
        registry: &Registry,
        counters: &mut ServerCounters,
    ) -> Flushed {
        let was_held_back = self.is_held_back();
        let sent = self.send_outbox(memory, counters);
        match sent.and_then(|starves| self.await_room(registry).map(|()| starves)) {
            Ok(is_starved) => {
                Flushed { is_starved, resumes_reading: was_held_back && !self.is_held_back() }
            }
            Err(error) => {
                if is_departure(&error) {
                    // It has gone, but what it sealed before must not be lost: it is read to its
                    // end.
                    self.note_deaf();
                } else {
                    self.outbox = Outbox::default();
                    self.drain(error.into());
                }
                Flushed { is_starved: false, resumes_reading: true }
            }
        }
    }

    /// The time by which a draining connection that leaves its last replies unread is closed, if
    /// that was not known before.
    pub fn set_drain_deadline(&mut self, time: Timestamp) -> bool {
        let Stage::Draining { deadline: deadline @ None, .. } = &mut self.stage else {
            return false;
        };
        *deadline = Some(time);
        true
    }

    /// Ends it: the selector forgets the socket, the log gets its line, the socket is closed.
    /// Returns whether the store knows the client.
    pub fn close(
        mut self,
        registry: &Registry,
        lines: &mut PeerLines,
        now: Timestamp,
        counters: &mut ServerCounters,
    ) -> bool {
        // It fails for a socket that is not watched, and this one is.
        let deregistered = registry.deregister(&mut self.socket);
        debug_assert!(deregistered.is_ok(), "{deregistered:?}");
        let Stage::Draining { reason, was_open, .. } = &self.stage else {
            unreachable!("a connection drains before it is closed");
        };
        reason.count(counters);
        let unread = match self.outbox.len() {
            0 => String::new(),
            bytes => format!("; it left {bytes} bytes unread"),
        };
        // Our own mistakes are always logged, and everything for whoever wants to see it all.
        let is_always_logged = reason.level() == Level::Error || log::log_enabled!(Level::Debug);
        if is_always_logged || log::log_enabled!(reason.level()) && lines.allow(now) {
            log::log!(reason.level(), "closed the connection of {self}: {reason}{unread}");
        }
        *was_open
    }

    fn append(
        &mut self,
        request: RequestId,
        reply: Reply,
        descriptors: Vec<DescriptorInfo>,
        kinds: Vec<DescriptorKind>,
        counters: &mut ServerCounters,
    ) {
        let message = ServerMessage { request, descriptors, reply };
        let count = u16::try_from(kinds.len()).unwrap_or(u16::MAX);
        let appended = self.outbox.append(kinds, |out| {
            append_frame(out, count, |payload| encode_server(payload, &message))
        });
        match appended {
            Ok(()) => counters.frames_sent += 1,
            // It ends this connection and not the store: a peer may have had a hand in it.
            Err(error) => self.drain(CloseReason::BadReply(error)),
        }
    }

    fn try_receive(
        &mut self,
        budget: &mut Budget<'_>,
        counters: &mut ServerCounters,
    ) -> Result<Received, CloseReason> {
        loop {
            if self.is_draining() || self.is_held_back() {
                return Ok(Received::Nothing);
            }
            if budget.requests >= limits::TURN_REQUESTS_MAX {
                return Ok(Received::Later);
            }
            if let Some(frame) = self.frames.next_frame()? {
                budget.requests += 1;
                counters.frames_received += 1;
                let (request_id, message) = decode_client(frame.payload)?;
                match self.admit(request_id, message, counters)? {
                    Received::Refused(RequestId::NONE, _) => continue,
                    received => return Ok(received),
                }
            }
            if budget.socket_is_empty {
                self.frames.lend_memory(budget.spare);
                return Ok(Received::Nothing);
            }
            if budget.bytes >= limits::TURN_READ_BYTES_MAX {
                return Ok(Received::Later);
            }
            self.read(budget, counters)?;
        }
    }

    /// Whether behind the next bytes there may be an end that nobody tells of any more.
    fn may_be_at_its_end(&self) -> bool {
        self.has_hung_up || self.output == Output::Deaf
    }

    /// Takes what the socket has, up to a point.
    fn read(
        &mut self,
        budget: &mut Budget<'_>,
        counters: &mut ServerCounters,
    ) -> Result<(), CloseReason> {
        // Who has not introduced himself gets no more memory than it takes to do so.
        let is_stranger = matches!(self.stage, Stage::Handshake);
        if is_stranger && self.frames.buffered() >= limits::HANDSHAKE_BYTES_MAX {
            return Err(
                ProtocolError::Handshake("the first message is too long for Connect").into()
            );
        }
        let at_least = if budget.bytes == 0 { READ_BYTES } else { READ_BYTES_BUSY };
        self.frames.borrow_memory(budget.spare);
        let space = self.frames.space(at_least);
        // A frame that is nearly complete asks for less room than that, and one recv fills it.
        let room = space.len();
        match self.socket.read(space) {
            Ok(0) if self.frames.is_mid_frame() => Err(CloseReason::CutOff),
            Ok(0) => Err(CloseReason::Goodbye),
            Ok(count) => {
                self.frames.advance(count);
                budget.bytes += count;
                counters.bytes_received += count as u64;
                // The next byte to arrive is a new edge, so there is no need to ask again. Only
                // the end of the stream may have been announced together with these bytes. (A
                // peer that sends descriptors, which are thrown away, can make the kernel give
                // less than there is. It then waits for itself.)
                budget.socket_is_empty = count < room && !self.may_be_at_its_end();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                budget.socket_is_empty = true;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a message in if its time has come.
    fn admit(
        &mut self,
        request_id: RequestId,
        message: ClientMessage,
        counters: &mut ServerCounters,
    ) -> Result<Received, CloseReason> {
        match (&self.stage, message) {
            (Stage::Open, ClientMessage::Request(request)) => {
                self.check_slots(&request)?;
                if self.is_read_only && request.traits().changes_objects {
                    return Ok(Received::Refused(request_id, Refusal::ReadOnly));
                }
                Ok(Received::Request(request_id, request))
            }
            (Stage::Open, ClientMessage::Unknown) => {
                Ok(Received::Refused(request_id, Refusal::UnknownRequest))
            }
            (Stage::Handshake, ClientMessage::Connect(connect)) => {
                self.peer.name.clone_from(&connect.client_name);
                let Some(version) = connect.common_version() else {
                    let refusal = Refusal::VersionMismatch(limits::PROTOCOL_VERSION);
                    self.append(request_id, Reply::Refused(refusal), vec![], vec![], counters);
                    return Err(CloseReason::Version(connect.protocol_version));
                };
                self.is_read_only |= connect.read_only;
                Ok(Received::Opened { request: request_id, connect, version })
            }
            (Stage::Open, ClientMessage::Connect(_)) => {
                Err(ProtocolError::Handshake("a second Connect").into())
            }
            (Stage::Handshake, ClientMessage::Request(_) | ClientMessage::Unknown) => {
                Err(ProtocolError::Handshake("the first message was not Connect").into())
            }
            (Stage::Draining { .. }, _) => Ok(Received::Nothing),
        }
    }

    /// Only slots that the peer has can be unpinned.
    fn check_slots(&self, request: &Request) -> Result<(), ProtocolError> {
        let Request::Unpinned { slots } = request else { return Ok(()) };
        match slots.iter().find(|slot| slot.0 >= self.table_slots) {
            None => Ok(()),
            Some(slot) => Err(ProtocolError::InvalidField {
                field: "Unpinned.slots",
                reason: format!("slot {} of a table that has {}", slot.0, self.table_slots),
            }),
        }
    }

    /// Hands the outbox to the socket until one of them has enough. Whether it starves.
    fn send_outbox(&mut self, memory: &Memory, counters: &mut ServerCounters) -> io::Result<bool> {
        let mut is_starved = false;
        while !self.outbox.is_empty() {
            let (bytes, kinds) = self.outbox.next_chunk();
            let wanted = bytes.len();
            let files: Vec<_> = kinds.iter().map(|kind| memory.file(self.id, *kind)).collect();
            let both = std::iter::zip(&files, kinds);
            let descriptors: Vec<_> = both.map(|(file, it)| file.descriptor(it.writable)).collect();
            match fd_passing::send(self.socket.as_fd(), bytes, &descriptors) {
                Ok(count) => {
                    kinds.iter().for_each(|kind| memory.note_sent(self.id, *kind));
                    self.outbox.advance(count);
                    counters.bytes_sent += count as u64;
                    if count < wanted {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Too many descriptors are on their way to others who do not read.
                Err(error) if error.raw_os_error() == Some(nix::libc::ETOOMANYREFS) => {
                    is_starved = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        counters.sends_blocked += u64::from(!self.outbox.is_empty());
        Ok(is_starved)
    }

    /// Has the selector say when the socket takes bytes again, if there are any. If it does so
    /// already by now, the selector says that as well.
    fn await_room(&mut self, registry: &Registry) -> io::Result<()> {
        let (output, interest) = match self.outbox.is_empty() {
            true => (Output::Flows, Interest::READABLE),
            false => (Output::AwaitsRoom, Interest::READABLE | Interest::WRITABLE),
        };
        if output != self.output && self.output != Output::Deaf {
            registry.reregister(&mut self.socket, token(self.id), interest)?;
            self.output = output;
        }
        Ok(())
    }
}

/// For the log: which connection, and whose.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer { name, pid, uid, .. } = &self.peer;
        write!(f, "client {} ({name:?}, process {pid}, user {uid})", self.id)
    }
}

/// The token under which the selector watches a connection.
pub fn token(id: ClientId) -> Token {
    Token(usize::try_from(id.0).expect("ids count connections one by one"))
}
