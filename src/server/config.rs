//! What the store is told at its start: the arguments, checked, as plain data.
//!
//! [`Config::from_arguments`] goes three steps. `options` turns arguments into values and finds
//! what is wrong whatever the machine looks like ([`UsageError`], exit code 2). Defaults that
//! depend on the machine are filled in. `environment` compares the result with the machine: socket,
//! directories, memory, file systems, huge pages ([`EnvironmentError`], exit code 1). Everything
//! that can be known before any memory is taken is known when it returns. Each error is one line
//! that has the value and the cure.
//!
//! It creates nothing, and does not know how anything here is used.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::byte_size::Bytes;
pub use self::environment::EnvironmentError;
pub use self::options::UsageError;
use self::options::{Arguments, Parsed, TABLE};
use super::memory_limit::MemoryLimit;
use crate::directory::layout::SLOTS_MAX;
use crate::eviction::PolicyKind;
use crate::limits::{
    ALIGNMENT, CAPACITY_MAX, CAPACITY_MIN, COMMIT_AHEAD_BYTES, COMMIT_AHEAD_DIVISOR,
    COMMIT_AHEAD_STORE_DIVISOR, REQUEST_MEMORY_BYTES, REQUEST_MEMORY_BYTES_MIN,
    REQUEST_MEMORY_DIVISOR,
};
use crate::shm::segment::Backing;

mod byte_size;
mod environment;
mod options;
#[cfg(test)]
mod tests;

/// Objects that a store of any size can hold by default, beside one for each line of its memory.
const OBJECTS_EXTRA: u64 = 65_536;

/// Bytes of a store for which it has a slot in the directory by default. Slots take memory when
/// they are used, so there may be too many.
const DIRECTORY_SLOT_BYTES: u64 = 1 << 10;

/// The fewest and the most slots by default.
const DIRECTORY_SLOTS_LEAST: u64 = 1 << 14;
const DIRECTORY_SLOTS_MOST: u64 = 1 << 22;

/// How to run a store. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub socket_mode: u32,
    /// The group of the socket, if it is not that of the user.
    pub socket_group: Option<u32>,
    /// The group of those who only read.
    pub read_only_group: Option<u32>,
    /// What all objects may use together, to the byte.
    pub capacity: u64,
    /// What the memory is made of.
    pub backing: Backing,
    /// How many objects there can be.
    pub objects_max: u32,
    /// Which objects leave first.
    pub policy: PolicyKind,
    /// Take all memory from the system at the start.
    pub reserve: bool,
    /// Clients clear the memory of new objects.
    pub clear_new_objects: bool,
    /// Bytes of memory to have ready beyond what objects have used, and to keep for the next ones.
    pub ahead: u64,
    /// Bytes of the store's own memory that requests may keep.
    pub request_memory: u64,
    /// How long free memory stays with the store before it goes back to the system; zero is for
    /// ever.
    pub trim_after: Duration,
    /// How long to look for the next request before sleeping, while traffic is hot.
    pub poll_time: Duration,
    /// Objects that clients find without asking the store, 0 for none.
    pub directory_slots: u32,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Run a store.
    Serve(Config),
    /// Print this text and exit.
    Print(String),
}

/// A store that cannot be started as asked.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The machine is not as the command line says.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

impl ConfigError {
    /// The exit code of the program: 2 for a wrong command line, 1 for the machine.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Environment(_) => 1,
        }
    }
}

impl Config {
    /// Reads the arguments, the program's own name not among them, and looks at the machine.
    ///
    /// # Errors
    /// A command line that is wrong, or asks for what this machine does not have.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Invocation, ConfigError> {
        let machine = Path::new("/");
        match options::parse(arguments)? {
            Parsed::Help => Ok(Invocation::Print(options::help())),
            Parsed::Version => {
                let version = concat!("plasma_store ", env!("CARGO_PKG_VERSION"), "\n");
                Ok(Invocation::Print(version.to_owned()))
            }
            Parsed::Serve(arguments) => {
                let limit = MemoryLimit::of_this_process(machine)
                    .map_err(EnvironmentError::MemoryUnknown)?;
                let mut config = Self::from_values(&arguments, &limit)?;
                let find = |option, given: &Option<String>| {
                    given.as_deref().map(|group| environment::find_group(option, group)).transpose()
                };
                config.read_only_group = find("--read-only-group", &arguments.read_only_group)?;
                config.socket_group =
                    find("--socket-group", &arguments.socket_group)?.or(config.read_only_group);
                environment::check(&config, &limit, machine)?;
                Ok(Invocation::Serve(config))
            }
        }
    }

    fn from_values(given: &Arguments, limit: &MemoryLimit) -> Result<Self, UsageError> {
        let capacity = (limit.memory / 10 * 3).clamp(CAPACITY_MIN, CAPACITY_MAX);
        let capacity = TABLE.memory.number_or(&given.memory, capacity)?;
        let objects_max = (capacity / ALIGNMENT + OBJECTS_EXTRA).min(u64::from(SLOTS_MAX));
        let objects_max = TABLE.max_objects.number_or(&given.max_objects, objects_max)?;
        let socket = given.socket.as_deref().unwrap_or(TABLE.socket.default);
        let policy = given.eviction_policy.as_deref().unwrap_or(TABLE.eviction_policy.default);
        let ahead = COMMIT_AHEAD_BYTES
            .min(limit.memory / COMMIT_AHEAD_DIVISOR)
            .min(capacity / COMMIT_AHEAD_STORE_DIVISOR);
        let slots =
            (capacity / DIRECTORY_SLOT_BYTES).clamp(DIRECTORY_SLOTS_LEAST, DIRECTORY_SLOTS_MOST);
        let slots = TABLE.directory_slots.number_or(&given.directory_slots, slots)?;
        let request_memory = REQUEST_MEMORY_BYTES
            .min(limit.memory / REQUEST_MEMORY_DIVISOR)
            .max(REQUEST_MEMORY_BYTES_MIN);
        let trim_after = TABLE.trim_after.number_or_default(&given.trim_after)?;
        let group = TABLE.socket_group.text(&given.socket_group)?;
        let has_group = TABLE.read_only_group.text(&given.read_only_group)?.or(group).is_some();
        let socket_mode = if has_group { 0o660 } else { 0o600 };
        let poll_us = TABLE.poll_us.number_or_default(&given.poll_us)?;
        Ok(Self {
            socket: TABLE.socket.path(socket)?.into(),
            socket_mode: narrow(TABLE.socket_mode.number_or(&given.socket_mode, socket_mode)?),
            socket_group: None,
            read_only_group: None,
            capacity,
            backing: backing(given)?,
            objects_max: narrow(objects_max),
            policy: TABLE.eviction_policy.policy(policy)?,
            reserve: given.reserve,
            clear_new_objects: given.clear_new_objects,
            ahead: TABLE.ahead.number_or(&given.ahead, ahead)?,
            request_memory: TABLE
                .request_memory
                .number_or(&given.request_memory, request_memory)?,
            trim_after: Duration::from_secs(trim_after),
            poll_time: Duration::from_micros(poll_us),
            directory_slots: if given.no_directory { 0 } else { narrow(slots.min(objects_max)) },
        })
    }
}

/// One line for the log.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, socket_mode, backing, objects_max, policy, .. } = self;
        write!(f, "{} in {backing}", Bytes(self.capacity))?;
        f.write_str(if self.reserve { ", all reserved" } else { "" })?;
        write!(f, ", at most {objects_max} objects, eviction policy {policy}")?;
        f.write_str(if self.clear_new_objects { ", new objects are cleared" } else { "" })?;
        write!(f, ", socket {} with mode {socket_mode:03o}", socket.display())?;
        self.socket_group.map_or(Ok(()), |group| write!(f, " and group {group}"))?;
        self.read_only_group.map_or(Ok(()), |group| write!(f, ", group {group} only reads"))
    }
}

fn backing(given: &Arguments) -> Result<Backing, UsageError> {
    let directory =
        given.directory.as_deref().map(|path| TABLE.directory.path(path)).transpose()?;
    Ok(match (directory.map(PathBuf::from), given.huge_pages) {
        (None, false) => Backing::Memfd,
        (Some(directory), false) => Backing::Directory(directory),
        (None, true) => Backing::HugeMemfd,
        (Some(directory), true) => Backing::HugeDirectory(directory),
    })
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("the ranges in the table of options keep this within 32 bits")
}
