//! The options of the command line: one table, from which the parser, `--help`, the ranges, the
//! defaults and the texts of errors are made.
//!
//! [`options!`] takes the table once and makes two things of it: the structure that argh fills, and
//! [`TABLE`]. argh knows `--name value` and nothing else, so [`normalize`] first turns what people
//! type into that. The original took its flags with gflags, where one dash or two mean the same, a
//! value may follow `=`, and a switch may be given as `--h=false`; old command lines go on working.
//!
//! It knows how a value is written and what range it has to be in, and nothing about the machine.

use std::ffi::OsString;
use std::ops::RangeInclusive;

use argh::FromArgs;

use super::byte_size;
use crate::directory::layout::SLOTS_MAX;
use crate::eviction::PolicyKind;
use crate::limits::{
    CAPACITY_MAX, CAPACITY_MIN, OBJECTS_MAX, POLL_US_MAX, REQUEST_MEMORY_BYTES_MIN,
    SOCKET_PATH_BYTES_MAX, TRIM_AFTER_SECONDS_MAX,
};

/// The command line is wrong, whatever the machine looks like: exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each is")]
pub enum UsageError {
    /// An argument is not text.
    #[error("the argument {0:?} is not UTF-8, and only such arguments and paths can be used")]
    NotUtf8(OsString),
    /// An option that does not exist, is given twice or lacks its value; or a stray argument.
    #[error("{0}; `plasma_store --help` lists the options")]
    Arguments(String),
    /// The value of an option is not what it has to be.
    #[error("{option} {value:?}: {reason}; expected {expected}")]
    Value { option: String, value: String, reason: String, expected: String },
}

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Parsed {
    Help,
    Version,
    Serve(Box<Arguments>),
}

/// What the value of an option is, and what it has to be.
#[derive(Debug)]
pub(super) enum Kind {
    Switch,
    Path,
    /// The path of a unix socket.
    SocketPath,
    Bytes(RangeInclusive<u64>),
    Count(RangeInclusive<u64>),
    Octal(RangeInclusive<u64>),
    /// The name of an eviction policy.
    Policy,
    /// The name or the number of a group.
    Group,
}

/// One option.
#[derive(Debug)]
pub(super) struct OptionRow {
    /// With underscores, as gflags and Rust write it.
    pub name: &'static str,
    /// One letter, or nothing.
    pub short: &'static str,
    pub kind: Kind,
    /// What counts if the option is absent: a value as it would be typed, or how it is found.
    pub default: &'static str,
    /// Lines for people.
    pub help: &'static [&'static str],
}

macro_rules! options {
    (
        values { $($(#[doc = $value_help:tt])+ $value:ident
            $kind:expr, short $value_short:literal, default $default:literal;)+ }
        switches { $($(#[doc = $switch_help:tt])+ $switch:ident short $switch_short:literal;)+ }
    ) => {
        /// shared-memory store of immutable objects
        #[derive(Debug, FromArgs)]
        #[argh(help_triggers("--help"))]
        pub(super) struct Arguments {
            $($(#[doc = $value_help])+ #[argh(option)] pub $value: Option<String>,)+
            $($(#[doc = $switch_help])+ #[argh(switch)] pub $switch: bool,)+
        }

        pub(super) struct Table {
            $(pub $value: OptionRow,)+
            $(pub $switch: OptionRow,)+
        }

        pub(super) const TABLE: Table = Table {
            $($value: OptionRow {
                name: stringify!($value),
                short: $value_short,
                kind: $kind,
                default: $default,
                help: &[$($value_help),+],
            },)+
            $($switch: OptionRow {
                name: stringify!($switch),
                short: $switch_short,
                kind: Kind::Switch,
                default: "off",
                help: &[$($switch_help),+],
            },)+
        };

        pub(super) const ROWS: &[OptionRow] = &[$(TABLE.$value,)+ $(TABLE.$switch,)+];
    };
}

options! {
    values {
        /// memory for objects
        memory Kind::Bytes(CAPACITY_MIN..=CAPACITY_MAX), short "m",
            default "30 % of the memory that this process may use";
        /// unix socket that clients connect to; a stale one is replaced
        socket Kind::SocketPath, short "s", default "/tmp/plasma";
        /// directory of the memory file, for example a mounted hugetlbfs; the
        /// file has no name and is gone when the store is
        directory Kind::Path, short "d", default "none, memory without a file";
        /// who may connect: the permissions of the socket
        socket_mode Kind::Octal(0..=0o777), short "",
            default "600, or 660 if there is a group that may connect";
        /// group that may connect: that of the socket
        socket_group Kind::Group, short "",
            default "that of --read-only-group, or else that of the store's user";
        /// group whose members, other than root and the user of the store, can read objects
        /// and not change which there are; they may connect
        read_only_group Kind::Group, short "", default "none";
        /// which objects leave first when room is needed
        eviction_policy Kind::Policy, short "", default "lru";
        /// how many objects there can be
        max_objects Kind::Count(1..=OBJECTS_MAX as u64), short "",
            default "one for each 64 bytes of memory and 65536, at most 16777215";
        /// memory to make ready before it is used, which makes large new objects
        /// several times as fast; an idle store takes so much from the system, and
        /// keeps it
        ahead Kind::Bytes(0..=CAPACITY_MAX), short "",
            default "512 MiB, at most half of -m and 1/16 of what this process may use";
        /// seconds after which large pieces of free memory go back to the system,
        /// at most twice as many; 0 keeps them. -d, -h and --reserve keep them, too
        trim_after Kind::Count(0..=TRIM_AFTER_SECONDS_MAX), short "", default "30";
        /// places in the hash table in which clients find sealed objects without asking
        /// the store; objects beyond are asked for. One takes 16 to 32 bytes from the
        /// start
        directory_slots Kind::Count(1..=SLOTS_MAX as u64), short "",
            default "one for each KiB of memory, from 16384 to 4194304";
        /// the store's own memory that requests may keep: those that wait, unfinished
        /// frames, unread replies. One process may have a quarter of it, and at most
        /// half of what the others leave; what needs more is refused
        request_memory Kind::Bytes(REQUEST_MEMORY_BYTES_MIN..=CAPACITY_MAX), short "",
            default "256 MiB, at most 1/32 of what this process may use";
        /// microseconds to look for the next request before sleeping, while
        /// requests come quickly; 0 sleeps at once, and so does a store that has
        /// one processor
        poll_us Kind::Count(0..=POLL_US_MAX), short "", default "100";
    }
    switches {
        /// take huge pages: from the hugetlbfs that -d names, or without -d from
        /// the system; scripts/hugepages-setup.sh prepares them
        huge_pages short "h";
        /// take all memory from the system at the start
        reserve short "";
        /// tell clients to clear the memory of a new object before they use it,
        /// so that nobody sees what was there before
        clear_new_objects short "";
        /// let all clients ask the store for objects
        no_directory short "";
        /// print the version and exit
        version short "";
    }
}

/// What the arguments (without the program's name) ask for. Values are texts still.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, UsageError> {
    let arguments = arguments
        .into_iter()
        .map(|argument| argument.into_string().map_err(UsageError::NotUtf8))
        .collect::<Result<Vec<_>, _>>()?;
    let normal = normalize(&arguments)?;
    let texts: Vec<&str> = normal.iter().map(String::as_str).collect();
    match Arguments::from_args(&["plasma_store"], &texts) {
        Ok(arguments) if arguments.version => Ok(Parsed::Version),
        Ok(arguments) => Ok(Parsed::Serve(Box::new(arguments))),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Help),
        Err(exit) => {
            // One line, whatever was typed.
            let text = exit.output.trim_end().trim_end_matches('.');
            Err(UsageError::Arguments(text.replace(char::is_control, " ")))
        }
    }
}

/// The text of `--help`.
pub(super) fn help() -> String {
    let mut text = String::from(
        "Usage: plasma_store [OPTIONS]\n\n\
         Shared-memory store of immutable objects: clients create objects in its memory,\n\
         seal them, and read each other's objects in place. It runs until SIGTERM,\n\
         SIGINT or SIGHUP, and logs to stderr what RUST_LOG says (default: info).\n\nOptions:",
    );
    for row in ROWS {
        let value = row.kind.value();
        let placeholder = value.as_ref().map_or_else(String::new, |(name, _)| format!(" {name}"));
        let short = if row.short.is_empty() { "   ".into() } else { format!("-{},", row.short) };
        text += &format!("\n  {short} {}{placeholder}\n", row.long());
        for line in row.help {
            text += &format!("          {}\n", line.trim());
        }
        if let Some((_, expected)) = value {
            text += &format!("          {expected}\n          default: {}\n", row.default);
        }
    }
    text += "\n      --help\n          print this text and exit\n";
    text += "\nEviction policies:\n";
    for policy in PolicyKind::ALL {
        text += &format!("  {policy:<6}{}\n", policy.description());
    }
    text += "\nExit code: 0 after a signal, 1 if the machine does not have what was asked for,\n\
             2 if the command line is wrong.\n";
    text
}

impl OptionRow {
    /// The number that was given, or else this one.
    pub(super) fn number_or(&self, given: &Option<String>, other: u64) -> Result<u64, UsageError> {
        given.as_deref().map_or(Ok(other), |text| self.number(text))
    }

    /// The number that was given, or else the default, where that is a number.
    pub(super) fn number_or_default(&self, given: &Option<String>) -> Result<u64, UsageError> {
        self.number(given.as_deref().unwrap_or(self.default))
    }

    /// The number that `text` is; for the kinds that are numbers.
    pub(super) fn number(&self, text: &str) -> Result<u64, UsageError> {
        let (number, range) = match &self.kind {
            Kind::Bytes(range) => {
                (byte_size::parse(text).map_err(|error| error.to_string()), range)
            }
            Kind::Count(range) => (text.parse().map_err(|_| "no such number".to_owned()), range),
            Kind::Octal(range) => {
                let number = u64::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8);
                (number.map_err(|_| "these are not octal digits".to_owned()), range)
            }
            Kind::Switch | Kind::Path | Kind::SocketPath | Kind::Policy | Kind::Group => {
                unreachable!("{} is no number", self.name)
            }
        };
        match number {
            Ok(number) if range.contains(&number) => Ok(number),
            Ok(_) => Err(self.invalid(text, "out of range".to_owned())),
            Err(reason) => Err(self.invalid(text, reason)),
        }
    }

    /// The eviction policy that `text` names.
    pub(super) fn policy(&self, text: &str) -> Result<PolicyKind, UsageError> {
        text.parse().map_err(|_| self.invalid(text, "there is no such policy".to_owned()))
    }

    /// What was given, if that is not empty.
    pub(super) fn text<'a>(
        &self,
        given: &'a Option<String>,
    ) -> Result<Option<&'a str>, UsageError> {
        match given.as_deref() {
            Some("") => Err(self.invalid("", "it is empty".into())),
            given => Ok(given),
        }
    }

    /// `text`, if it can be a path.
    pub(super) fn path<'a>(&self, text: &'a str) -> Result<&'a str, UsageError> {
        if text.is_empty() {
            return Err(self.invalid(text, "it is empty".into()));
        }
        if matches!(self.kind, Kind::SocketPath) && text.len() > SOCKET_PATH_BYTES_MAX {
            return Err(self.invalid(text, format!("it has {} bytes", text.len())));
        }
        Ok(text)
    }

    /// The error for a value that is not what it has to be.
    fn invalid(&self, value: &str, reason: String) -> UsageError {
        UsageError::Value {
            option: self.typed(),
            value: value.to_owned(),
            reason,
            expected: self.kind.value().map_or_else(String::new, |(_, expected)| expected),
        }
    }

    /// As people type it: the short form if there is one.
    fn typed(&self) -> String {
        if self.short.is_empty() { self.long() } else { format!("-{}", self.short) }
    }

    fn long(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }
}

impl Kind {
    /// The placeholder for a value, and what would be right.
    fn value(&self) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Switch => return None,
            Self::Path => ("PATH", "a path".to_owned()),
            Self::SocketPath => {
                ("PATH", format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes"))
            }
            Self::Bytes(range) => {
                let (from, to) = (range.start(), range.end());
                ("BYTES", format!("bytes from {from} to {to}, or like 500M, 8GiB, 1.5G, 1e9"))
            }
            Self::Count(range) => {
                ("N", format!("a number from {} to {}", range.start(), range.end()))
            }
            Self::Octal(range) => {
                ("OCTAL", format!("octal digits from {:o} to {:o}", range.start(), range.end()))
            }
            Self::Group => ("GROUP", "the name or the number of a group".to_owned()),
            Self::Policy => {
                ("NAME", format!("one of {}", PolicyKind::ALL.map(PolicyKind::name).join(", ")))
            }
        })
    }
}

/// The arguments with every known option as `--name` and its value as an argument of its own. The
/// rest is left for argh to complain about.
fn normalize(arguments: &[String]) -> Result<Vec<String>, UsageError> {
    let mut normal = Vec::with_capacity(arguments.len() + 1);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let undashed = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        let flag = undashed.unwrap_or_default();
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.replace('-', "_"), Some(value)),
            None => (flag.replace('-', "_"), None),
        };
        if name == "help" {
            // Whatever else is there: whoever asks for help gets it.
            return Ok(vec!["--help".to_owned()]);
        }
        let named = |row: &&OptionRow| !name.is_empty() && (row.name == name || row.short == name);
        let Some(row) = ROWS.iter().find(named) else {
            normal.push(argument.clone());
            continue;
        };
        match (&row.kind, value) {
            (Kind::Switch, None | Some("true" | "t" | "yes" | "y" | "1")) => {
                normal.push(row.long())
            }
            (Kind::Switch, Some("false" | "f" | "no" | "n" | "0")) => {}
            (Kind::Switch, Some(value)) => {
                let reason = "a switch has no value".to_owned();
                let (option, value) = (row.typed(), value.to_owned());
                let expected = format!("{option} alone, {option}=true or {option}=false");
                return Err(UsageError::Value { option, value, reason, expected });
            }
            // The next argument is the value even if it looks like an option: `-m -5` is a
            // negative size, not an unknown flag.
            (_, value) => {
                normal.push(row.long());
                normal.extend(value.map(str::to_owned).or_else(|| rest.next().cloned()));
            }
        }
    }
    Ok(normal)
}
