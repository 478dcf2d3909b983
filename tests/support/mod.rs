//! What the process tests stand on: a real store in a process of its own, a peer that can send any
//! bytes, and waiting for conditions.
//!
//! Every store has a directory and a socket of its own. Everything that is started here is ended
//! here, by its pid. Nothing asserts how long something takes: [`wait_until`] gives up after a time
//! that only a hang can reach, and then says what the store printed.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plasma::client::ObjectState;
use plasma::protocol::codec;
use plasma::protocol::frame::{self, FrameReader};
use plasma::protocol::message::{
    ClientMessage, Connect, NewObject, Reply, Request, RequestId, Room, ServerMessage,
};
use plasma::time::Clock;
use plasma::{Client, ObjectId};
use plasma::{limits, shm};
use tempfile::TempDir;

/// Longer than anything takes that does not hang, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the condition holds; fails with `what` if it never does.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let clock = Clock::start();
    let end = clock.now().after(PATIENCE);
    while !condition() {
        assert!(clock.now() < end, "waited {PATIENCE:?} in vain until {what}");
        pause();
    }
}

/// The one place that sleeps.
#[allow(clippy::disallowed_methods, reason = "between two looks at a condition")]
fn pause() {
    thread::sleep(Duration::from_millis(2));
}

/// The program under test.
pub fn store_program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_plasma_store"))
}

/// An id that is easy to tell from others.
pub fn numbered(number: u64) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    ObjectId::from(bytes)
}

/// Room for a new object, or a refusal at once.
pub const AT_ONCE: Room = Room { evict: true, timeout: Some(Duration::ZERO) };

/// A put of one-byte objects with these numbers.
pub fn put_numbered(numbers: impl IntoIterator<Item = u64>) -> Request {
    let object = |number| NewObject { id: numbered(number), data: vec![1], metadata: vec![] };
    Request::Put { objects: numbers.into_iter().map(object).collect(), room: AT_ONCE }
}

/// A get of one object.
pub fn get_numbered(number: u64, timeout: Option<Duration>) -> Request {
    Request::Get { ids: vec![numbered(number)], timeout, fail_if_abandoned: false }
}

/// A store in a process of its own.
#[derive(Debug)]
pub struct StoreProcess {
    child: Child,
    directory: TempDir,
    socket: PathBuf,
    log: Arc<Mutex<String>>,
    log_reader: Option<thread::JoinHandle<()>>,
}

impl StoreProcess {
    /// A store of so many bytes (`-m`), ready.
    pub fn start(memory: &str) -> Self {
        Self::start_with(&["-m", memory], |_| {})
    }

    /// A store with these arguments (the socket is added), ready; `adjust` may change the command.
    pub fn start_with(arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("plasma.sock");
        let mut store = Self::launch(directory, socket, arguments, adjust);
        store.wait_until_ready();
        store
    }

    /// A store for this socket, which may be another one's. It may not be ready, and may never be.
    pub fn spawn_at(socket: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::launch(directory, socket.to_owned(), arguments, |_| {})
    }

    fn launch(
        directory: TempDir,
        socket: PathBuf,
        arguments: &[&str],
        adjust: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = store_program();
        command.args(arguments).arg("-s").arg(&socket);
        // The same tests show that both ways of reading give the same answers.
        if std::env::var_os("PLASMA_TEST_NO_DIRECTORY").is_some() {
            command.arg("--no-directory");
        }
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stderr(Stdio::piped());
        adjust(&mut command);
        let mut child = command.spawn().expect("the store starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let writer = Arc::clone(&log);
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = writer.lock().expect("the log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, directory, socket, log, log_reader: Some(log_reader) }
    }

    /// Waits until clients can connect.
    pub fn wait_until_ready(&mut self) {
        wait_until("the store is ready", || {
            let ended = self.child.try_wait().expect("the store is our child");
            assert!(ended.is_none(), "the store ended: {ended:?}\n{}", self.log());
            self.log().contains("ready")
        });
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A directory of its own, which goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// The lines of its log that have this text.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new client.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// A peer that sends what it is told; nothing has been sent yet.
    pub fn raw_peer(&self) -> RawPeer {
        RawPeer::dial(&self.socket)
    }

    /// A peer whose connection has been opened properly.
    pub fn raw_client(&self) -> RawPeer {
        let mut peer = self.raw_peer();
        peer.connect();
        peer
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("the store is our child").is_none()
    }

    /// Proves that it serves: another client puts and gets.
    pub fn assert_serves(&mut self) {
        assert!(self.is_alive(), "the store died\n{}", self.log());
        let client = self.client();
        let id = plasma::ObjectId::random();
        client.put(id, b"data", b"meta").expect("put works");
        let object = client.get_one(id, Some(PATIENCE)).expect("get works").expect("it is there");
        assert_eq!((object.data(), object.metadata()), (&b"data"[..], &b"meta"[..]));
        drop(object);
        client.delete(&[id]).expect("delete works");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).expect("the store can be signalled");
    }

    /// Stops it (`SIGSTOP`); when this returns it has stopped.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("the store has stopped", || {
            fs::read_to_string(&stat).expect("it exists").contains(") T ")
        });
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it when so much time has passed and this is still there: everybody who waits for it
    /// fails then, so that a test that hangs ends.
    pub fn limit(&self, time: Duration) -> TimeLimit {
        let (is_over, over) = mpsc::channel::<()>();
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        let thread = thread::spawn(move || {
            if over.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                eprintln!("this takes longer than {time:?}: the store is killed");
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        TimeLimit { is_over: Some(is_over), thread: Some(thread) }
    }

    /// Waits for its end. The log is complete then.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the store has ended", || {
            status = self.child.try_wait().expect("the store is our child");
            status.is_some()
        });
        if let Some(reader) = self.log_reader.take() {
            reader.join().expect("the log can be read");
        }
        status.expect("it has ended")
    }

    /// Ends it with SIGTERM: the exit code must be 0 and the socket gone.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "a clean end\n{}", self.log());
        assert!(!self.socket.exists(), "the socket is gone");
    }

    /// Descriptors that it has open.
    pub fn open_descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the store runs");
        let of_the_system = |path: &Path| path.starts_with("/proc") || path.starts_with("/sys");
        // A thread of the store looks now and then how much memory the system has left.
        open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|file| !of_the_system(file))
            .count()
    }

    /// Bytes of its own memory, shared memory not counted.
    pub fn private_memory(&self) -> u64 {
        self.status_kib("RssAnon:") * 1024
    }

    /// Bytes of shared memory that count as the store's.
    pub fn shared_memory(&self) -> u64 {
        self.status_kib("RssShmem:") * 1024
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Processor time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        // USER_HZ is 100 on every Linux that Rust runs on.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- the store's log ----\n{}", self.log());
        }
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// See [`StoreProcess::limit`]. To be dropped before the store is.
#[derive(Debug)]
pub struct TimeLimit {
    is_over: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        drop(self.is_over.take());
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Finds an object as somebody does who was told that it is sealed: by another call for each
/// number. Whether it was there.
pub fn is_found(client: &Client, id: ObjectId, number: u64) -> bool {
    let now = Some(Duration::ZERO);
    match number % 5 {
        0 => client.contains(id).expect("contains works"),
        1 => client.state(id).expect("state works") == ObjectState::Sealed,
        2 => client.get_one(id, now).expect("get works").is_some(),
        3 => client.wait(&[id], 1, now).expect("wait works") == [true],
        _ => client.list().any(|it| {
            let it = it.expect("list works");
            it.id == id && it.state == ObjectState::Sealed
        }),
    }
}

/// Says that it is over, also after a panic.
#[derive(Debug)]
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const WORKER_PART: &str = "PLASMA_TEST_WORKER_PART";
const WORKER_SOCKET: &str = "PLASMA_TEST_WORKER_SOCKET";

/// This test binary once more, in a process that plays a part and can be killed.
///
/// The binary needs a test `worker_entry` that looks at [`worker_part`] and returns at once if
/// there
/// is none. A worker talks in lines: it hears them on stdin and says them on stderr, where the
/// test harness says nothing.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    said: BufReader<ChildStderr>,
}

/// The part and the store's socket, if this process is a [`Worker`].
pub fn worker_part() -> Option<(String, PathBuf)> {
    Some((std::env::var(WORKER_PART).ok()?, std::env::var_os(WORKER_SOCKET)?.into()))
}

/// In a worker, or a child that it has forked: waits for a line; `None` when there is nobody any
/// more who could say one. Takes no lock, which a thread that was not forked might hold.
pub fn hear() -> Option<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        match nix::unistd::read(io::stdin(), &mut byte) {
            Ok(1) if byte == *b"\n" => return String::from_utf8(line).ok(),
            Ok(1) => line.push(byte[0]),
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

/// In a worker, or a child that it has forked: says a line, all at once.
pub fn say(line: impl fmt::Display) {
    let line = format!("{line}\n");
    let written = nix::unistd::write(io::stderr(), line.as_bytes());
    assert_eq!(written, Ok(line.len()), "somebody listens");
}

impl Worker {
    /// Starts a worker.
    pub fn start(part: &str, socket: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "worker_entry", "--nocapture", "--test-threads=1"]);
        command.env(WORKER_PART, part).env(WORKER_SOCKET, socket);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("this program can be started again");
        let said = BufReader::new(child.stderr.take().expect("stderr is piped"));
        Self { child, said }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its next line.
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a worker says text");
        assert!(line.ends_with('\n'), "the worker ended: {line:?}");
        line.trim_end().to_owned()
    }

    /// Waits for a line, which must be this one.
    pub fn expect(&mut self, expected: &str) {
        let line = self.hear();
        if line != expected {
            let mut rest = String::new();
            let _ = self.child.kill();
            let _ = self.said.read_to_string(&mut rest);
            panic!("the worker should say {expected:?}: {line}\n{rest}");
        }
    }

    /// Says a line to it.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").expect("the worker listens");
    }

    /// Ends it with SIGKILL; when this returns it is dead. Processes that it has started can go on
    /// listening.
    pub fn kill(&mut self) {
        // `wait` would close it.
        let stdin = self.child.stdin.take();
        self.child.kill().expect("the worker can be killed");
        self.child.wait().expect("the worker is our child");
        self.child.stdin = stdin;
    }

    /// Waits until it has ended by itself, without a failure.
    pub fn finish(mut self) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("a worker says text");
        let status = self.child.wait().expect("the worker is our child");
        assert!(status.success(), "the worker failed: {status}\n{rest}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 64 MiB of files.
#[derive(Debug)]
pub struct SmallFileSystem(TempDir);

impl SmallFileSystem {
    /// `None`, and a line about it, where this process may not mount.
    pub fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "none"]).arg(directory.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                eprintln!("LEFT OUT: a small file system cannot be mounted here: {other:?}");
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.filler()).expect("room for a name");
        let block = [1; 1 << 16];
        let error = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    /// Gives the room back that [`Self::fill`] has taken.
    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: a store that is still being ended must not keep it.
        let status = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(status.is_ok_and(|status| status.success()), "{:?} stays mounted", self.path());
    }
}

/// A client that sends exactly what it is told and sees exactly what comes.
#[derive(Debug)]
pub struct RawPeer {
    /// The connection.
    pub socket: UnixStream,
    /// Descriptors that have come.
    pub descriptors: std::collections::VecDeque<OwnedFd>,
    reader: FrameReader,
    last_request: u64,
}

impl RawPeer {
    /// A peer on this connection.
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Self {
            socket,
            descriptors: std::collections::VecDeque::new(),
            reader: FrameReader::new(limits::FRAME_DESCRIPTORS_MAX),
            last_request: 0,
        }
    }

    fn dial(socket: &Path) -> Self {
        Self::new(UnixStream::connect(socket).expect("the store accepts"))
    }

    /// A peer of the store with this socket, whose connection has been opened properly.
    pub fn connect_to(socket: &Path) -> Self {
        let mut peer = Self::dial(socket);
        peer.connect();
        peer
    }

    /// The frame of a message.
    pub fn frame(request: u64, message: &ClientMessage) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::append_frame(&mut bytes, 0, |out| {
            codec::encode_client(out, RequestId(request), message);
        })
        .expect("the message fits");
        bytes
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Opens the connection as the protocol demands.
    pub fn connect(&mut self) {
        let hello = ClientMessage::Connect(Connect {
            protocol_version: limits::PROTOCOL_VERSION,
            client_name: "raw".to_owned(),
            ..Connect::default()
        });
        self.send(&Self::frame(1, &hello)).expect("the store reads");
        self.last_request = 1;
        let answer = self.receive().expect("an answer");
        assert!(matches!(answer.reply, Reply::Connected(_)), "{answer:?}");
    }

    /// Sends a request and returns its number.
    pub fn request(&mut self, request: Request) -> u64 {
        self.last_request += 1;
        let frame = Self::frame(self.last_request, &ClientMessage::Request(request));
        self.send(&frame).expect("the store reads");
        self.last_request
    }

    /// Sends many requests, as few calls as possible, and returns the number of the first one.
    pub fn request_all(&mut self, requests: impl IntoIterator<Item = Request>) -> u64 {
        let first = self.last_request + 1;
        let mut frames = Vec::new();
        for request in requests {
            self.last_request += 1;
            frames.extend(Self::frame(self.last_request, &ClientMessage::Request(request)));
        }
        self.send(&frames).expect("the store reads");
        first
    }

    /// Sends a request and waits for its reply; other replies on the way are dropped.
    pub fn call(&mut self, request: Request) -> Reply {
        let number = self.request(request);
        loop {
            let message = self.receive().expect("a reply");
            if message.request == RequestId(number) {
                return message.reply;
            }
        }
    }

    /// The next message; `None` when the store has closed the connection.
    pub fn receive(&mut self) -> Option<ServerMessage> {
        let payload = self.receive_payload()?;
        Some(codec::decode_server(&payload).expect("the store sends proper messages"))
    }

    /// The next message as bytes; `None` when the store has closed the connection.
    pub fn receive_payload(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = self.reader.next_frame().expect("the store sends proper frames") {
                return Some(frame.payload.to_vec());
            }
            let space = self.reader.space(4096);
            let received =
                match shm::fd_passing::receive(self.socket.as_fd(), space, &mut self.descriptors) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                    Err(error) => panic!("nothing came from the store: {error}"),
                };
            if received == 0 {
                return None;
            }
            self.reader.advance(received);
        }
    }

    /// Waits until the store has closed the connection, whatever it sends before.
    pub fn wait_for_end(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the store did not close the connection: {error}"),
            }
        }
    }
}
