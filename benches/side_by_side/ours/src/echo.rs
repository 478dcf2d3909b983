//! A bare round trip through a unix socket: the least that any store with a process of its own
//! costs. The other side is this program in a second process, with epoll as in a real server.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::setsid;

use crate::clock::{nanos_since, now, pause};
use crate::{Failure, Samples};

/// About as much as a small request and its reply.
const REQUEST_BYTES: usize = 48;
const REPLY_BYTES: usize = 32;

const CONNECT_RETRIES: usize = 400;
const CONNECT_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The other side, and a connection to it. It ends with the connection.
pub struct Echo {
    stream: UnixStream,
    server: Child,
    polls: bool,
}

impl Echo {
    /// `waiting` is how both sides wait: `sleeping` in the kernel, or `polling`.
    pub fn start(waiting: &str) -> Result<Self, Failure> {
        let name = format!("plasma-echo-{}-{waiting}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&socket);
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("echo").arg(&socket).arg(waiting).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = command.spawn()?;
        let stream = connect(&socket);
        let _ = std::fs::remove_file(&socket);
        match stream {
            Ok(stream) => {
                let polls = waiting == "polling";
                stream.set_nonblocking(polls)?;
                Ok(Self { stream, server, polls })
            }
            Err(error) => {
                let _ = server.kill();
                let _ = server.wait();
                Err(error.into())
            }
        }
    }

    pub fn round_trips(&mut self, count: usize) -> Result<Samples, Failure> {
        let mut samples = Samples::with_capacity(count);
        let mut reply = [0; REPLY_BYTES];
        for _ in 0..count {
            let start = now();
            self.stream.write_all(&[1; REQUEST_BYTES])?;
            if self.polls {
                read_polling(&mut self.stream, &mut reply)?;
            } else {
                self.stream.read_exact(&mut reply)?;
            }
            samples.push(nanos_since(start));
        }
        Ok(samples)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.server.wait();
    }
}

fn connect(socket: &std::path::Path) -> std::io::Result<UnixStream> {
    let mut result = UnixStream::connect(socket);
    for _ in 0..CONNECT_RETRIES {
        if result.is_ok() {
            break;
        }
        pause(CONNECT_RETRY_INTERVAL);
        result = UnixStream::connect(socket);
    }
    result
}

fn read_polling(stream: &mut UnixStream, reply: &mut [u8]) -> std::io::Result<()> {
    loop {
        match stream.read(reply) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            // So little comes in one piece.
            Ok(_) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The other side: answers one connection until it ends.
pub fn serve(socket: &str, waiting: &str) -> Result<(), Failure> {
    // As the stores are. Linux may give a core to sessions in turn (autogroups), so on one core
    // two processes of one session find each other sooner than those of two.
    setsid()?;
    let timeout = match waiting {
        "sleeping" => EpollTimeout::NONE,
        "polling" => EpollTimeout::ZERO,
        _ => return Err(format!("{waiting} is neither sleeping nor polling").into()),
    };
    let (mut stream, _) = UnixListener::bind(socket)?.accept()?;
    stream.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut events = [EpollEvent::empty(); 8];
    let mut request = [0; 4096];
    loop {
        if epoll.wait(&mut events, timeout)? == 0 {
            continue;
        }
        match stream.read(&mut request) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&[2; REPLY_BYTES])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
