//! A store made of a socket, a piece of memory and the test's own hands.
//!
//! Every wait has an end: if the client does not send what the test expects, the test fails, the
//! socket closes, and the client's threads end with an error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;

use super::{beside, outcome};
use crate::client::Client;
use crate::ids::{ClientId, ObjectId, SegmentId};
use crate::limits::{BATCH_OBJECTS_MAX, INLINE_BYTES_MAX, PROTOCOL_VERSION, REQUEST_IDS_MAX};
use crate::protocol::codec::{decode_client, encode_server};
use crate::protocol::frame::{FrameReader, append_frame};
use crate::protocol::message::{
    ClientMessage, Connected, DescriptorInfo, Reply, Request, RequestId, ServerMessage,
};
use crate::shm::fd_passing;

/// Longer than any wait of a passing test.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of memory that a fake store has.
pub(super) const MEMORY_BYTES: u64 = 4 << 20;

/// A listening socket, and what its store says of itself.
pub(super) struct FakeStore {
    directory: TempDir,
    listener: UnixListener,
    pub(super) connected: Connected,
}

impl FakeStore {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("plasma")).unwrap();
        let connected = Connected {
            protocol_version: PROTOCOL_VERSION,
            capacity: MEMORY_BYTES,
            server_pid: 4711,
            client: ClientId(1),
            server_version: "fake".to_owned(),
            request_ids_max: REQUEST_IDS_MAX,
            inline_bytes_max: INLINE_BYTES_MAX,
            batch_objects_max: BATCH_OBJECTS_MAX,
            clear_new_objects: false,
            directory_slots: 0,
            read_only: false,
            has_directory: false,
        };
        Self { directory, listener, connected }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("plasma")
    }

    /// A client, and the store's side of its connection.
    pub(super) fn connect(self) -> (Client, Peer) {
        let path = self.path();
        let client = beside(move || Client::builder().name("tested").connect(path));
        let mut peer = self.accept();
        let (request, message) = peer.next_message();
        assert!(
            matches!(&message, ClientMessage::Connect(connect) if connect.client_name == "tested"),
            "{message:?}"
        );
        peer.reply(request, Reply::Connected(self.connected.clone()));
        peer.directory = Some(self.directory);
        (outcome(client).unwrap(), peer)
    }

    /// The next connection, of which nothing has been read.
    pub(super) fn accept(&self) -> Peer {
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let memory = File::from(memfd_create("fake store", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        Peer { socket, frames: FrameReader::new(0), memory, directory: None }
    }

    /// Accepts and answers the opening.
    pub(super) fn welcome(&self) -> Peer {
        let mut peer = self.accept();
        let (request, message) = peer.next_message();
        assert!(matches!(message, ClientMessage::Connect(_)), "{message:?}");
        peer.reply(request, Reply::Connected(self.connected.clone()));
        peer
    }
}

/// The store's side of one connection.
pub(super) struct Peer {
    pub(super) socket: UnixStream,
    frames: FrameReader,
    memory: File,
    directory: Option<TempDir>,
}

impl Peer {
    /// The next request.
    pub(super) fn next(&mut self) -> (RequestId, Request) {
        match self.next_message() {
            (id, ClientMessage::Request(request)) => (id, request),
            (_, other) => panic!("a request was expected: {other:?}"),
        }
    }

    pub(super) fn next_message(&mut self) -> (RequestId, ClientMessage) {
        self.next_or_end().expect("a message was expected, not the end")
    }

    /// The next message; `None` if the client has closed.
    pub(super) fn next_or_end(&mut self) -> Option<(RequestId, ClientMessage)> {
        loop {
            if let Some(frame) = self.frames.next_frame().unwrap() {
                return Some(decode_client(frame.payload).unwrap());
            }
            let space = self.frames.space(4096);
            let mut descriptors = VecDeque::new();
            match fd_passing::receive(self.socket.as_fd(), space, &mut descriptors) {
                Ok(0) => return None,
                Ok(received) => self.frames.advance(received),
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Takes the next message, which must give back one hold of one object.
    pub(super) fn expect_release(&mut self, id: ObjectId) {
        let (request, message) = self.next();
        assert_eq!(request, RequestId::NONE, "a release wants no reply");
        assert_eq!(message, Request::Release { holds: vec![(id, 1)] });
    }

    /// Takes the next message, which must be the seal of a client without a table, and grants it.
    pub(super) fn grant_seal(&mut self, id: ObjectId, release: bool) {
        let (request, message) = self.next();
        assert_eq!(message, Request::Seal { id, release });
        self.reply(request, Reply::Done);
    }

    pub(super) fn reply(&mut self, request: RequestId, reply: Reply) {
        self.send(ServerMessage { request, descriptors: Vec::new(), reply }, &[]);
    }

    /// Two replies that come at once: the client cannot close in between.
    pub(super) fn reply_together(&mut self, replies: [(RequestId, Reply); 2]) {
        let mut frames = Vec::new();
        for (request, reply) in replies {
            let message = ServerMessage { request, descriptors: Vec::new(), reply };
            append_frame(&mut frames, 0, |out| encode_server(out, &message)).unwrap();
        }
        self.send_bytes(&frames);
    }

    /// A reply with a descriptor of the memory.
    pub(super) fn reply_with_memory(&mut self, request: RequestId, reply: Reply, writable: bool) {
        let info = DescriptorInfo { segment: SegmentId(0), segment_size: MEMORY_BYTES, writable };
        let message = ServerMessage { request, descriptors: vec![info], reply };
        let read_only;
        let descriptor = if writable {
            self.memory.as_fd()
        } else {
            let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
            read_only = OwnedFd::from(File::open(path).unwrap());
            read_only.as_fd()
        };
        let descriptor = descriptor.try_clone_to_owned().unwrap();
        self.send(message, &[descriptor.as_fd()]);
    }

    pub(super) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn read(&self, offset: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn send(&mut self, message: ServerMessage, descriptors: &[BorrowedFd<'_>]) {
        let mut frame = Vec::new();
        let count = u16::try_from(descriptors.len()).unwrap();
        append_frame(&mut frame, count, |out| encode_server(out, &message)).unwrap();
        let sent = fd_passing::send(self.socket.as_fd(), &frame, descriptors).unwrap();
        self.socket.write_all(&frame[sent..]).unwrap();
    }
}
