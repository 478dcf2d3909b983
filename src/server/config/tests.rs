//! The table of options, and every way in which a store cannot be started.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::errno::Errno;

use super::options::{Kind, ROWS};
use super::*;
use crate::limits::{POLL_TIME, SOCKET_PATH_BYTES_MAX, TRIM_AFTER};
use crate::server::listener::ListenError;
use crate::server::listener::tests::as_nobody;

const GIB: u64 = 1 << 30;

/// A machine of 10 GiB and as much swap.
fn plenty() -> MemoryLimit {
    MemoryLimit { memory: 10 * GIB, memory_and_swap: 20 * GIB, cgroup: None }
}

fn parse(line: &[&str]) -> Result<Config, UsageError> {
    match options::parse(line.iter().map(OsString::from))? {
        Parsed::Serve(arguments) => Config::from_values(&arguments, &plenty()),
        other => panic!("{line:?} asks for a store, not for {other:?}"),
    }
}

fn config(line: &[&str]) -> Config {
    parse(line).expect("a command line that is right")
}

/// The text of the error, which has all of `needles`, is one line, and means exit code 2.
fn assert_usage(line: &[&str], needles: &[&str]) {
    let error = parse(line).expect_err("a command line that is wrong");
    let text = error.to_string();
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is missing in: {text}");
    }
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(ConfigError::from(error).exit_code(), 2);
}

/// As [`assert_usage`], for the machine and exit code 1.
fn assert_environment(error: EnvironmentError, needles: &[&str]) {
    let text = error.to_string();
    for needle in needles {
        assert!(text.contains(needle), "{needle:?} is missing in: {text}");
    }
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(ConfigError::from(error).exit_code(), 1);
}

/// A store with this capacity and memory; everybody may make its socket.
struct Place {
    directory: tempfile::TempDir,
    config: Config,
}

impl Place {
    fn new(capacity: u64, backing: Backing) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), everybody).expect("changed");
        let socket = directory.path().join("plasma");
        let config = Config { socket, capacity, backing, ..config(&[]) };
        Self { directory, config }
    }

    fn check(&self, limit: &MemoryLimit) -> Result<(), EnvironmentError> {
        environment::check(&self.config, limit, self.directory.path())
    }

    fn refused(&self, limit: &MemoryLimit) -> EnvironmentError {
        self.check(limit).expect_err("this machine cannot do that")
    }
}

// ---- what is understood ---------------------------------------------------------------------

#[test]
fn without_arguments_everything_has_a_default() {
    let expected = Config {
        socket: "/tmp/plasma".into(),
        socket_mode: 0o600,
        socket_group: None,
        read_only_group: None,
        capacity: 3 * GIB,
        backing: Backing::Memfd,
        objects_max: SLOTS_MAX,
        policy: PolicyKind::Lru,
        reserve: false,
        clear_new_objects: false,
        ahead: 512 << 20,
        request_memory: 256 << 20,
        trim_after: TRIM_AFTER,
        poll_time: POLL_TIME,
        directory_slots: 3 << 20,
    };
    assert_eq!(config(&[]), expected);
}

#[test]
fn every_option_is_heard() {
    let line = [
        "-m",
        "1.5G",
        "-s",
        "/run/p",
        "-d",
        "/mnt/huge",
        "-h",
        "--socket-mode",
        "0660",
        "--eviction-policy",
        "slru",
        "--max-objects",
        "12",
        "--reserve",
        "--clear-new-objects",
        "--ahead=1M",
        "--request-memory=40M",
        "--trim-after=5",
        "--poll-us",
        "7",
        "--directory-slots",
        "11",
    ];
    let expected = Config {
        socket: "/run/p".into(),
        socket_mode: 0o660,
        socket_group: None,
        read_only_group: None,
        capacity: 1_500_000_000,
        backing: Backing::HugeDirectory("/mnt/huge".into()),
        objects_max: 12,
        policy: PolicyKind::Segmented,
        reserve: true,
        clear_new_objects: true,
        ahead: 1_000_000,
        request_memory: 40_000_000,
        trim_after: Duration::from_secs(5),
        poll_time: Duration::from_micros(7),
        directory_slots: 11,
    };
    assert_eq!(config(&line), expected);
}

#[test]
fn flags_are_written_in_many_ways() {
    for line in [
        ["-m=1000", "-s=/tmp/x", "-h"].as_slice(),
        &["--m=1e3", "--s", "/tmp/x", "--h"],
        &["-memory", "1K", "-socket=/tmp/x", "-huge-pages"],
        &["--memory=1KB", "--socket=/tmp/x", "--huge_pages=true"],
        &["--memory", "1000", "--socket", "/tmp/x", "-h=1", "--reserve=false"],
    ] {
        let config = config(line);
        assert_eq!(config.capacity, 1000, "{line:?}");
        assert_eq!(config.socket, Path::new("/tmp/x"), "{line:?}");
        assert_eq!((config.backing, config.reserve), (Backing::HugeMemfd, false), "{line:?}");
    }
    assert_eq!(config(&["-s=a=b"]).socket, Path::new("a=b"));
    assert_eq!(config(&["-s", "-m"]).socket, Path::new("-m"));
    assert_eq!(config(&["-h=false"]).backing, Backing::Memfd);
    assert_eq!(config(&["--max_objects=5"]).objects_max, 5);
    assert_eq!(config(&["--socket-mode=0o644"]).socket_mode, 0o644);
}

#[test]
fn memory_is_of_four_kinds() {
    let directory = || PathBuf::from("/d");
    assert_eq!(config(&[]).backing, Backing::Memfd);
    assert_eq!(config(&["-d", "/d"]).backing, Backing::Directory(directory()));
    assert_eq!(config(&["-h"]).backing, Backing::HugeMemfd);
    assert_eq!(config(&["-h", "-d", "/d"]).backing, Backing::HugeDirectory(directory()));
}

#[test]
fn small_and_large_stores_have_a_bounded_number_of_objects() {
    assert_eq!(config(&["-m", "1"]).objects_max, 65_536);
    assert_eq!(config(&["-m", "10000"]).capacity, 10_000);
    assert_eq!(config(&["-m", "1125899906842624"]).objects_max, SLOTS_MAX);
}

#[test]
fn help_and_version_are_texts() {
    let asked = |line: &[&str]| {
        let arguments = line.iter().map(OsString::from);
        Config::from_arguments(arguments).expect("no error")
    };
    let version = concat!("plasma_store ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(asked(&["--version"]), Invocation::Print(version.into()));
    assert_eq!(asked(&["-version"]), Invocation::Print(version.into()));
    for line in [["--help"].as_slice(), &["-help"], &["-m", "junk", "--help", "-x"]] {
        assert_eq!(asked(line), Invocation::Print(options::help()), "{line:?}");
    }
}

#[test]
fn the_parser_and_the_help_know_every_row_of_the_table() {
    let help = options::help();
    for row in ROWS {
        let long = format!("--{}", row.name.replace('_', "-"));
        assert!(help.contains(&long), "{long}");
        assert!(row.short.is_empty() || help.contains(&format!("\n  -{}, {long}", row.short)));
        for line in row.help {
            assert!(help.contains(line.trim()), "{long}: {line}");
        }
        // argh knows the option; what it gets is then refused only for its value.
        let value = match &row.kind {
            Kind::Switch => {
                options::parse([OsString::from(&long)]).expect("argh knows the switch");
                continue;
            }
            Kind::Path | Kind::SocketPath | Kind::Group => "",
            Kind::Bytes(_) | Kind::Count(_) | Kind::Octal(_) | Kind::Policy => "no value",
        };
        assert!(help.contains(row.default), "{long}");
        let error = parse(&[&long, value]).expect_err("a bad value");
        assert!(matches!(error, UsageError::Value { .. }), "{long}: {error}");
    }
}

#[test]
fn ranges_in_the_help_are_the_ones_that_are_checked() {
    let help = options::help();
    for row in ROWS {
        let (Kind::Bytes(range) | Kind::Count(range)) = &row.kind else {
            continue;
        };
        assert!(help.contains(&format!("from {} to {}", range.start(), range.end())));
        for inside in [*range.start(), *range.end()] {
            assert_eq!(row.number(&inside.to_string()), Ok(inside), "{}", row.name);
        }
        for outside in range.start().checked_sub(1).into_iter().chain([range.end() + 1]) {
            let error = row.number(&outside.to_string()).expect_err("out of range");
            assert!(error.to_string().contains("out of range"), "{error}");
        }
    }
    for policy in PolicyKind::ALL {
        assert!(help.contains(policy.name()) && help.contains(policy.description()));
        assert_eq!(config(&["--eviction-policy", policy.name()]).policy, policy);
    }
}

#[test]
fn the_log_line_has_every_setting() {
    let line = ["-m", "10000000000", "-s", "/run/p", "-d", "/mnt/huge", "-h", "--reserve"];
    let all = config(&line);
    assert_eq!(
        all.to_string(),
        format!(
            "10000000000 bytes (10.00 GB) in {}, all reserved, at most 16777215 objects, eviction \
             policy lru, socket /run/p with mode 600",
            all.backing
        )
    );
    let line = ["-m", "1000", "--max-objects=7", "--clear-new-objects", "--eviction-policy=slru"];
    let other = config(&line);
    assert_eq!(
        other.to_string(),
        format!(
            "1000 bytes (1.00 KB) in {}, at most 7 objects, eviction policy slru, new objects are \
             cleared, socket /tmp/plasma with mode 600",
            other.backing
        )
    );
}

// ---- a wrong command line -------------------------------------------------------------------

#[test]
fn sizes_that_are_none_are_refused() {
    let cure = "expected bytes from 1 to 1125899906842624, or like 500M";
    for (value, reason) in [
        ("", "it is empty"),
        ("-1", "it is negative"),
        ("-5", "it is negative"),
        ("abc", "it does not start with a number"),
        ("1Q", "there is no unit \"Q\""),
        ("0", "out of range"),
        ("0.5", "out of range"),
        ("1125899906842625", "out of range"),
        ("2000T", "out of range"),
        ("99999999999999999999", "it is too large"),
        ("1e30", "it is too large"),
        ("5\nplasma_store: fine", "there is no unit"),
    ] {
        assert_usage(&["-m", value], &[&format!("-m {value:?}: {reason}"), cure]);
        assert_usage(&[&format!("--memory={value}")], &[&format!("-m {value:?}: {reason}"), cure]);
    }
}

#[test]
fn arguments_that_are_not_known_are_refused() {
    let cure = "`plasma_store --help` lists the options";
    for (line, needle) in [
        (["--frobnicate"].as_slice(), "--frobnicate"),
        (&["-x=1"], "-x=1"),
        (&["-e", "name://x"], "-e"),
        (&["-hm", "5"], "-hm"),
        (&["--m5"], "--m5"),
        (&["-"], "-"),
        (&["--=5"], "--=5"),
        (&["stray"], "stray"),
        (&["-h", "false"], "false"),
        (&["help"], "help"),
        (&["--", "-m", "5"], "--m"),
        (&["a\nb"], "a b"),
        (&["-m", "5", "-m", "6"], "duplicate"),
        (&["-m"], "No value provided for option '--memory'"),
        (&["-m", "5", "-s"], "No value provided for option '--socket'"),
    ] {
        assert_usage(line, &[needle, cure]);
    }
}

#[test]
fn values_that_are_none_are_refused() {
    for (line, needles) in [
        (["-s", ""].as_slice(), ["-s \"\": it is empty", "a path of at most 107 bytes"]),
        (&["-d", ""], ["-d \"\": it is empty", "expected a path"]),
        (&["-h", "-d="], ["-d \"\": it is empty", "expected a path"]),
        (&["--socket-mode", "9"], ["--socket-mode \"9\"", "octal digits from 0 to 777"]),
        (&["--socket-mode", "rw"], ["--socket-mode \"rw\"", "octal digits from 0 to 777"]),
        (&["--socket-mode", "1777"], ["\"1777\": out of range", "octal digits from 0 to 777"]),
        (&["--socket-mode", "-1"], ["--socket-mode \"-1\"", "octal digits from 0 to 777"]),
        (&["--socket-mode", ""], ["--socket-mode \"\"", "octal digits from 0 to 777"]),
        (&["--eviction-policy", "fifo"], ["--eviction-policy \"fifo\"", "one of lru, slru"]),
        (&["--eviction-policy="], ["--eviction-policy \"\"", "one of lru, slru"]),
        (&["--max-objects", "0"], ["\"0\": out of range", "a number from 1 to 1073741824"]),
        (&["--max-objects", "1e6"], ["--max-objects \"1e6\"", "a number from 1 to 1073741824"]),
        (&["--max-objects", "-3"], ["--max-objects \"-3\"", "a number from 1 to 1073741824"]),
        (&["-h=maybe"], ["-h \"maybe\": a switch has no value", "-h=true or -h=false"]),
        (&["--version=2"], ["--version \"2\"", "--version alone"]),
    ] {
        assert_usage(line, &needles);
    }
}

#[test]
fn a_socket_path_has_an_end() {
    let longest = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX - 1));
    assert_eq!(config(&["-s", &longest]).socket, Path::new(&longest));
    let longer = format!("{longest}x");
    assert_usage(&["-s", &longer], &[&longer, "it has 108 bytes", "at most 107 bytes"]);
}

#[test]
fn arguments_that_are_not_text_are_refused() {
    let junk = OsStr::from_bytes(b"-s=/tmp/\xff").to_owned();
    let error = options::parse([junk]).expect_err("not UTF-8");
    assert!(error.to_string().contains(r#""-s=/tmp/\xFF" is not UTF-8"#), "{error}");
    assert_eq!(ConfigError::from(error).exit_code(), 2);
}

// ---- a machine that is not as the command line says ------------------------------------------

#[test]
fn a_store_that_fits_is_started() {
    Place::new(20 * GIB, Backing::Memfd).check(&plenty()).expect("it fits");
    let directory = tempfile::tempdir().expect("a directory");
    Place::new(1, Backing::Directory(directory.path().into())).check(&plenty()).expect("it fits");
}

#[test]
fn more_than_the_memory_is_refused() {
    let place = Place::new(20 * GIB + 1, Backing::Memfd);
    let numbers = ["-m: 21474836481 bytes (21.47 GB)", "21474836480 bytes (21.47 GB)"];
    let error = place.refused(&plenty());
    assert_environment(error, &[numbers[0], numbers[1], "of this machine", "use a smaller -m"]);

    let cgroup = Some(PathBuf::from("/sys/fs/cgroup/box"));
    let boxed = MemoryLimit { memory: 1000, memory_and_swap: 2000, cgroup };
    let error = Place::new(2001, Backing::Memfd).refused(&boxed);
    let needles = ["2001 bytes", "2000 bytes", "\"/sys/fs/cgroup/box\"", "raise its limit"];
    assert_environment(error, &needles);
    Place::new(2000, Backing::Memfd).check(&boxed).expect("it fits");
}

#[test]
fn what_is_taken_at_the_start_has_to_be_left_in_the_control_group() {
    let place = |backing, reserve| {
        let mut place = Place::new(100 << 20, backing);
        place.config.reserve = reserve;
        let write = |file: &str, text: &str| {
            let path = place.directory.path().join(file);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("proc/self/cgroup", "4:memory:/box\n");
        let mount = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        write("proc/self/mountinfo", mount);
        write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "209715200\n");
        write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "104857600\n");
        place
    };
    place(Backing::Memfd, false).check(&plenty()).expect("it is taken as it is used");
    let on_tmpfs = Backing::Directory("/dev/shm".into());
    for taken in [place(Backing::Memfd, true), place(on_tmpfs, false)] {
        let needles = ["-m: 104857600 bytes", "box", "has 104857600 bytes", "--reserve"];
        assert_environment(taken.refused(&plenty()), &needles);
        let usage = "sys/fs/cgroup/memory/box/memory.usage_in_bytes";
        fs::write(taken.directory.path().join(usage), "52428800\n").expect("written");
        taken.check(&plenty()).expect("150 MiB are left");
    }
}

#[test]
fn a_directory_in_memory_is_memory() {
    let place = Place::new(4096, Backing::Directory("/dev/shm".into()));
    let boxed = MemoryLimit { memory: 1000, memory_and_swap: 2000, cgroup: None };
    assert_environment(place.refused(&boxed), &["4096 bytes", "2000 bytes", "use a smaller -m"]);
    place.check(&plenty()).expect("it fits");
}

#[test]
fn more_than_a_directory_has_room_for_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    let place = Place::new(CAPACITY_MAX, Backing::Directory(path.into()));
    let needles =
        ["1125899906842624 bytes", "free in -d", path.to_str().expect("text"), "make room"];
    assert_environment(place.refused(&plenty()), &needles);
}

#[test]
fn a_directory_has_to_be_one() {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("file");
    fs::write(&file, "").expect("written");
    let closed = place.path().join("closed");
    fs::create_dir(&closed).expect("made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("changed");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("changed");
    for (path, reason) in [
        (place.path().join("missing"), Errno::ENOENT),
        (file, Errno::ENOTDIR),
        (closed, Errno::EACCES),
    ] {
        let text = path.to_str().expect("text");
        for backing in [Backing::Directory(path.clone()), Backing::HugeDirectory(path.clone())] {
            let place = Place::new(1, backing);
            let error = as_nobody(|| place.refused(&plenty()));
            assert_environment(error, &["-d", text, reason.desc(), "create the directory"]);
        }
    }
}

#[test]
fn huge_pages_need_their_file_system() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place::new(1, Backing::HugeDirectory(directory.path().into()));
    let path = directory.path().to_str().expect("text");
    let needles = ["-h -d", path, "scripts/hugepages-setup.sh", "leave -d out"];
    assert_environment(place.refused(&plenty()), &needles);
    let error = EnvironmentError::HugeWithoutFlag(directory.path().into());
    assert_environment(error, &["-d", path, "add -h"]);
}

#[test]
fn huge_pages_have_to_be_there() {
    let place = Place::new(5 << 20, Backing::HugeMemfd);
    assert_environment(place.refused(&plenty()), &["-h", "no huge pages", "leave -h out"]);

    let machine = place.directory.path();
    let pages = machine.join("sys/kernel/mm/hugepages/hugepages-2048kB");
    fs::create_dir_all(machine.join("proc")).expect("made");
    fs::create_dir_all(&pages).expect("made");
    fs::write(machine.join("proc/meminfo"), "Hugepagesize: 2048 kB\n").expect("written");
    for file in ["resv_hugepages", "nr_overcommit_hugepages", "surplus_hugepages"] {
        fs::write(pages.join(file), "0\n").expect("written");
    }
    fs::write(pages.join("free_hugepages"), "2\n").expect("written");
    let needles = [
        "5242880 bytes (5.24 MB) need 3 huge pages of 2097152 bytes",
        "2 are free",
        "scripts/hugepages-setup.sh --pages 3",
        "smaller -m",
    ];
    assert_environment(place.refused(&plenty()), &needles);
    fs::write(pages.join("free_hugepages"), "3\n").expect("written");
    place.check(&plenty()).expect("enough now");
}

#[test]
fn the_socket_is_looked_at_before_memory_is_made() {
    let mut place = Place::new(1, Backing::Memfd);
    let _live = UnixListener::bind(&place.config.socket).expect("a free path");
    let needles = ["-s", "plasma", &std::process::id().to_string(), "stop it"];
    assert_environment(place.refused(&plenty()), &needles);

    place.config.socket = place.directory.path().join("file");
    fs::write(&place.config.socket, "precious").expect("written");
    assert_environment(place.refused(&plenty()), &["-s", "file", "is not a socket", "remove it"]);

    place.config.socket = "/nonexistent/plasma".into();
    let error = place.refused(&plenty());
    assert!(matches!(error, EnvironmentError::Socket(ListenError::Directory { .. })));
    assert_environment(error, &["-s", "\"/nonexistent\"", "No such file", "create that directory"]);
}

#[test]
fn limits_of_the_process_are_told() {
    environment::check_resource_limit(100, 100, "ulimit -f").expect("it fits");
    let error = environment::check_resource_limit(101, 100, "ulimit -f").expect_err("too much");
    assert_environment(
        error,
        &["-m: 101 bytes", "100 bytes", "`ulimit -f unlimited`", "smaller -m"],
    );
}

#[test]
fn a_machine_that_does_not_tell_is_an_error() {
    let error = MemoryLimit::of_this_process(Path::new("/nonexistent")).expect_err("no /proc");
    assert_environment(EnvironmentError::MemoryUnknown(error), &["No such file", "mount /proc"]);
}
