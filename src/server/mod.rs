//! The program around the store: memory, socket, loop, and the way in and out.
//!
//! [`run`] is a whole store process, [`spawn`] a store inside a program of one's own. Both make
//! everything that can fail first and then turn the loop in `reactor`, the one thread that owns
//! the store. Bytes come in through `connection`, meet the store in `reactor`, and what the store
//! wants done goes out through `effects`. The loop waits for no other thread. Messages and frames
//! are not known here.

pub mod config;
pub mod listener;
pub mod logging;
pub mod signals;

mod acceptor;
mod agenda;
mod close_reason;
mod committing;
mod connection;
mod connections;
mod effects;
mod memory;
mod memory_limit;
mod metrics;
mod outbox;
mod peer_lines;
mod publishing;
mod reactor;
mod streams;
mod trimming;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use mio::Waker;
use mio::net::UnixListener;
use mio::unix::SourceFd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::config::Config;
use self::listener::{ListenError, SocketFile};
use self::memory::Memory;
use self::reactor::Reactor;
use crate::directory::{Layout, Origin};
use crate::ids::ClientId;
use crate::limits;
use crate::protocol::message::Connected;
use crate::shm::{Segment, fork};
use crate::store::directory::Directory;
use crate::store::{Store, StoreConfig, TrimConfig};
use crate::threads;
use crate::time::Clock;

pub use self::memory::MemoryError;

/// A store cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each is")]
pub enum StartupError {
    /// Its memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its socket cannot be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refused something else.
    #[error("cannot {step}: {reason}; {cure}")]
    System { step: &'static str, reason: io::Error, cure: &'static str },
}

/// Runs a store until SIGTERM, SIGINT or SIGHUP, then removes its socket.
///
/// The signals are blocked in this thread, and stay so afterwards. The limit of open files is
/// raised as far as the system allows without asking, because every client needs one.
///
/// # Errors
/// The store cannot be started. Nothing is left behind then.
pub fn run(config: Config) -> Result<(), StartupError> {
    raise_descriptor_limit();
    let signals = signals::block_termination_signals()
        .and_then(|set| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC))
        .map_err(|errno| out_of_descriptors("receive signals")(errno.into()))?;
    let Started { mut reactor, socket_file, directory } = start(&config)?;
    reactor
        .stop_on(&mut SourceFd(&signals.as_raw_fd()))
        .map_err(out_of_descriptors("wait for signals"))?;
    log::info!("ready: {config}");
    serve(&mut reactor, socket_file, &directory);
    let signal = signals.read_signal().ok().flatten().and_then(|info| {
        let number = i32::try_from(info.ssi_signo).ok()?;
        Signal::try_from(number).ok()
    });
    log::info!("ended by {}", signal.map_or("a signal", Signal::as_str));
    Ok(())
}

/// Starts a store in a thread of this program; other processes can use it like any other.
///
/// Nothing of the process is changed: signals and limits are the program's own business. Each
/// client needs a descriptor, so raise the limit if there will be many. A child that is forked off
/// and does not execute another program keeps the connections of the clients open.
///
/// ```
/// use plasma::server::config::{Config, Invocation};
///
/// let directory = tempfile::tempdir()?;
/// let socket = directory.path().join("socket").into_os_string();
/// let arguments = ["-m".into(), "10M".into(), "-s".into(), socket];
/// let Invocation::Serve(config) = Config::from_arguments(arguments)? else { unreachable!() };
/// let store = plasma::server::spawn(config)?;
/// assert!(store.socket().exists());
/// drop(store);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The store cannot be started. Nothing is left behind then.
pub fn spawn(config: Config) -> Result<RunningStore, StartupError> {
    let Started { mut reactor, socket_file, directory } = start(&config)?;
    let stopper = reactor.stopper().map_err(out_of_descriptors("make a waker"))?;
    let serve = move || serve(&mut reactor, socket_file, &directory);
    let thread = threads::spawn("plasma-store", serve)
        .map_err(refused("start a thread", "allow more of them (ulimit -u)"))?;
    log::info!("ready: {config}");
    Ok(RunningStore {
        socket: config.socket,
        stopper,
        thread: Some(thread),
        generation: fork::generation(),
    })
}

/// A store in a thread of this program. Dropping it ends the store and removes its socket; clients
/// keep what they have mapped.
#[derive(Debug)]
pub struct RunningStore {
    socket: PathBuf,
    stopper: Waker,
    thread: Option<JoinHandle<()>>,
    /// A forked child has a copy of this value, but no copy of the thread.
    generation: u64,
}

impl RunningStore {
    /// Where clients connect.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for RunningStore {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            return;
        }
        let Some(thread) = self.thread.take() else { return };
        let ended = self.stopper.wake().map(|()| thread.join());
        // The thread has told about its panic; a second one in here would end the program.
        if !matches!(ended, Ok(Ok(()))) {
            log::error!("the store on {:?} did not end well", self.socket);
        }
    }
}

/// A store that has all it needs.
struct Started {
    reactor: Reactor,
    socket_file: SocketFile,
    /// Where its clients look whether it lives.
    directory: Arc<Segment>,
}

/// Makes everything that can fail. Clients can connect when this returns.
fn start(config: &Config) -> Result<Started, StartupError> {
    // The socket first: of two stores that start at the same instant, the loser takes no memory.
    let (socket, socket_file) =
        listener::bind(&config.socket, config.socket_mode, config.socket_group)?;
    let mut memory =
        Memory::create(&config.backing, config.capacity, config.reserve, config.ahead)?;
    let clock = Clock::start();
    let store_config = StoreConfig {
        capacity: config.capacity,
        segment: memory.segment().id(),
        segment_bytes: memory.segment().size(),
        objects_max: config.objects_max,
        policy: config.policy,
        trim: trim(config, &mut memory),
        unix_start: clock.unix_start(),
    };
    let (directory, directory_file) = directory(config, &mut memory)?;
    let mut store = Store::with_directory(store_config, directory);
    store.limit_request_memory(config.request_memory);
    let mut reactor = Reactor::new(
        UnixListener::from_std(socket),
        store,
        memory,
        clock,
        config.poll_time,
        welcome(config),
    )
    .map_err(out_of_descriptors("make a selector"))?;
    reactor.set_read_only_group(config.read_only_group);
    Ok(Started { reactor, socket_file, directory: directory_file })
}

/// Which free memory goes back to the system. With `--reserve` it has been asked to stay.
fn trim(config: &Config, memory: &mut Memory) -> Option<TrimConfig> {
    let is_wanted = !config.trim_after.is_zero() && !config.reserve;
    (is_wanted && memory.allow_trimming()).then_some(TrimConfig {
        after: config.trim_after,
        ready_bytes: config.ahead,
        bytes_min: limits::TRIM_BYTES_MIN,
        slice_bytes: limits::TRIM_SLICE_BYTES,
        unit_bytes: limits::TRIM_SLICE_BYTES,
    })
}

/// Turns the loop until it is told to stop, and cleans up.
fn serve(reactor: &mut Reactor, socket_file: SocketFile, directory: &Segment) {
    let life = publishing::mark_life(directory);
    let counters = reactor.run();
    // Whoever looks from now on asks, and learns from the end of its connection what is the matter.
    drop(life);
    log::info!("served: {counters}");
    // Before the connections are closed, so that nobody finds a socket that does not answer.
    drop(socket_file);
}

/// What a new client is told. Its number is still to be filled in.
fn welcome(config: &Config) -> Connected {
    Connected {
        protocol_version: limits::PROTOCOL_VERSION,
        capacity: config.capacity,
        server_pid: std::process::id(),
        client: ClientId(0),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        request_ids_max: limits::REQUEST_IDS_MAX,
        inline_bytes_max: limits::INLINE_BYTES_MAX,
        batch_objects_max: limits::BATCH_OBJECTS_MAX,
        clear_new_objects: config.clear_new_objects,
        directory_slots: config.objects_max,
        read_only: false,
        has_directory: config.directory_slots > 0,
    }
}

/// The records of all objects, which clients may read unless they are told to ask.
fn directory(
    config: &Config,
    memory: &mut Memory,
) -> Result<(Box<dyn Directory>, Arc<Segment>), StartupError> {
    let is_offered = config.directory_slots > 0;
    let layout = Layout::new(config.objects_max, config.directory_slots.max(1))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
    let origin = Origin {
        capacity: config.capacity,
        page_bytes: memory.segment().page_bytes(),
        boot: boot_id(),
        incarnation: 1,
    };
    let created = layout.and_then(|layout| publishing::create(layout, &origin, is_offered));
    let cure = "ask for fewer objects (--max-objects), or a larger address space (ulimit -v)";
    let directory = created.map_err(refused("make the records of objects", cure))?;
    let file = Arc::clone(&directory.file);
    memory.directory = Some(Arc::clone(&file));
    memory.unsent = directory.unsent.clone();
    Ok((Box::new(directory), file))
}

/// Which boot of the machine this is; zero if the system does not say.
fn boot_id() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range| digits.get(range).and_then(|half| u64::from_str_radix(half, 16).ok());
    [half(0..16).unwrap_or(0), half(16..32).unwrap_or(0)]
}

/// Not being able to is no reason not to start: the store then serves fewer clients.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files, which is one for each client: {error}");
    }
}

fn out_of_descriptors(step: &'static str) -> impl FnOnce(io::Error) -> StartupError {
    refused(step, "allow more open files (ulimit -n)")
}

fn refused(step: &'static str, cure: &'static str) -> impl FnOnce(io::Error) -> StartupError {
    move |reason| StartupError::System { step, reason, cure }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::eviction::PolicyKind;
    use crate::shm::Backing;

    fn config(directory: &tempfile::TempDir) -> Config {
        Config {
            socket: directory.path().join("socket"),
            socket_mode: 0o600,
            socket_group: None,
            read_only_group: None,
            capacity: 1 << 20,
            backing: Backing::Memfd,
            objects_max: 1000,
            policy: PolicyKind::Lru,
            reserve: false,
            clear_new_objects: false,
            trim_after: limits::TRIM_AFTER,
            poll_time: limits::POLL_TIME,
            ahead: 0,
            request_memory: limits::REQUEST_MEMORY_BYTES,
            directory_slots: 0,
        }
    }

    #[test]
    fn a_store_in_a_thread_lives_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let store = spawn(config(&directory)).unwrap();
        let mut client = UnixStream::connect(store.socket()).unwrap();
        let second = spawn(config(&directory)).unwrap_err();
        assert!(matches!(second, StartupError::Listen(_)), "{second}");
        drop(store);
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the store hung up");
        assert!(!directory.path().join("socket").exists());
    }

    #[test]
    fn memory_that_cannot_be_had_leaves_no_socket_behind() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let config = Config { backing: Backing::Directory(missing), ..config(&directory) };
        let socket = config.socket.clone();
        let error = spawn(config).unwrap_err();
        assert!(matches!(error, StartupError::Memory(_)), "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(!socket.exists());
    }
}
