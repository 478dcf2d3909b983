//! `plasma_store` as a shell sees it: arguments in, lines on stderr and an exit code out. What is
//! said to clients is tested elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A store of a few bytes on a socket in a directory of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("plasma")
    }

    fn command(&self) -> Command {
        let mut command = plasma_store(["-m", "2000", "-s"]);
        command.arg(self.socket());
        command
    }

    /// What a store that was killed leaves behind.
    fn make_stale(&self) {
        let _ = fs::remove_file(self.socket());
        drop(UnixListener::bind(self.socket()).expect("a free path"));
    }
}

/// A process that runs until it is told to end, or failed to start.
struct Store {
    process: Child,
    log: BufReader<ChildStderr>,
}

impl Store {
    fn spawn(mut command: Command) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().expect("the program runs");
        let log = BufReader::new(process.stderr.take().expect("a pipe"));
        Self { process, log }
    }

    /// The line that says that clients can connect. `Err` has all lines if the store ended instead.
    fn wait_until_ready(&mut self) -> Result<String, String> {
        let mut lines = String::new();
        loop {
            let start = lines.len();
            if self.log.read_line(&mut lines).expect("text") == 0 {
                return Err(lines);
            }
            if lines[start..].contains(" ready: ") {
                return Ok(lines[start..].to_owned());
            }
        }
    }

    fn send(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it is there");
    }

    /// How it ended, and the lines that were not read before.
    fn wait(mut self) -> (ExitStatus, String) {
        let mut lines = String::new();
        self.log.read_to_string(&mut lines).expect("text");
        (self.process.wait().expect("it ends"), lines)
    }
}

fn plasma_store(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plasma_store"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Ends at once with this exit code and one line that has all of `needles`.
fn assert_refused(arguments: &[&str], code: i32, needles: &[&str]) {
    let output = plasma_store(arguments).output().expect("the program runs");
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(text.starts_with("plasma_store: "), "{arguments:?}: {text}");
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{arguments:?}: {text}");
    assert!(output.stdout.is_empty());
    for needle in needles {
        assert!(text.contains(needle), "{arguments:?}: {needle:?} is missing in: {text}");
    }
}

#[test]
fn a_wrong_command_line_is_one_line_and_exit_code_2() {
    let place = Place::new();
    let directory = place.0.path().to_str().expect("text");
    let long = format!("{directory}/{}", "x".repeat(108));
    for (arguments, needles) in [
        (["-m", "abc"].as_slice(), ["-m \"abc\"", "like 500M"]),
        (&["-m", "-5"], ["-m \"-5\"", "negative"]),
        (&["-m", "-1"], ["-m \"-1\"", "negative"]),
        (&["-m", "0"], ["-m \"0\"", "from 1 to"]),
        (&["-m", "9e99"], ["-m \"9e99\"", "too large"]),
        (&["-m", "5\nx"], ["-m \"5\\nx\"", "like 500M"]),
        (&["-d", ""], ["-d \"\"", "a path"]),
        (&["-h", "-d", ""], ["-d \"\"", "a path"]),
        (&["-s", &long], ["at most 107 bytes", "-s"]),
        (&["-e", "noname"], ["-e", "--help"]),
        (&["--frobnicate"], ["--frobnicate", "--help"]),
        (&["stray"], ["stray", "--help"]),
        (&["--socket-mode", "888"], ["--socket-mode \"888\"", "octal"]),
    ] {
        assert_refused(arguments, 2, &needles);
    }
}

#[test]
fn a_machine_without_what_was_asked_for_is_one_line_and_exit_code_1() {
    let place = Place::new();
    let path = |name: &str| place.0.path().join(name).to_str().expect("text").to_owned();
    let (socket, missing, file) = (path("plasma"), path("missing"), path("file"));
    fs::write(&file, "precious").expect("written");
    let live = path("live");
    let _live = UnixListener::bind(&live).expect("a free path");
    let in_missing = format!("{missing}/plasma");
    let pid = std::process::id().to_string();
    for (arguments, needles) in [
        (["-m", "1000T"].as_slice(), ["1000000000000000 bytes", "use a smaller -m"]),
        (&["-m", "1000T", "-d", "/tmp"], ["free in -d \"/tmp\"", "use a smaller -m"]),
        (&["-d", &missing], [missing.as_str(), "create the directory"]),
        (&["-d", &file], [file.as_str(), "Not a directory"]),
        (&["-h", "-d", "/tmp"], ["no file system of huge pages", "hugepages-setup.sh"]),
        (&["-h", "-m", "100T"], ["-h: ", "huge pages"]),
        (&["-s", &in_missing], [missing.as_str(), "create that directory"]),
        (&["-s", &file], [file.as_str(), "remove it yourself"]),
        (&["-s", &live], [pid.as_str(), "stop it"]),
    ] {
        let own_socket = ["-s", socket.as_str()];
        let socket = if arguments.contains(&"-s") { &[] } else { own_socket.as_slice() };
        assert_refused(&[arguments, socket].concat(), 1, &needles);
    }
    assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
    UnixStream::connect(&live).expect("still there");
    assert!(!place.socket().exists());
}

#[test]
fn help_and_version_go_to_stdout() {
    let version = plasma_store(["--version"]).output().expect("the program runs");
    assert_eq!(version.status.code(), Some(0));
    let expected = concat!("plasma_store ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
    let help = plasma_store(["--help"]).output().expect("the program runs");
    assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("-h, --huge-pages"));

    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
    let nobody_reads = plasma_store(["--help"]).stdout(full).output().expect("the program runs");
    assert_eq!((nobody_reads.status.code(), nobody_reads.stderr.len()), (Some(0), 0));
}

#[test]
fn sigterm_ends_a_store_and_removes_its_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let place = Place::new();
        let mut store = Store::spawn(place.command());
        let line = store.wait_until_ready().expect("a store");
        let mut words = line.split_whitespace();
        let time = words.next().expect("a time");
        assert!(time.contains('T') && time.ends_with('Z') && time.contains(':'), "{line}");
        assert_eq!(words.next(), Some("INFO"), "{line}");
        assert!(line.contains("2000 bytes"), "{line}");
        let mode = fs::metadata(place.socket()).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        store.send(signal);
        let (status, lines) = store.wait();
        assert_eq!(status.code(), Some(0), "{signal}: {lines}");
        assert!(!place.socket().exists());
    }
}

#[test]
fn a_signal_that_comes_at_once_is_not_lost() {
    for _ in 0..20 {
        let place = Place::new();
        let store = Store::spawn(place.command());
        store.send(Signal::SIGTERM);
        let (status, lines) = store.wait();
        // Before the first line of ours has run, the system ends the process itself.
        let ended = status.code() == Some(0) || status.signal() == Some(Signal::SIGTERM as i32);
        assert!(ended, "{status}: {lines}");
        assert!(!lines.contains("panicked"), "{lines}");
        assert!(!place.socket().exists());
    }
}

#[test]
fn a_signal_that_the_starter_ignores_is_ignored() {
    let place = Place::new();
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_plasma_store")]);
    nohup.args(["-m", "2000", "-s"]).arg(place.socket()).env_remove("RUST_LOG");
    let mut store = Store::spawn(nohup);
    store.wait_until_ready().expect("a store");
    store.send(Signal::SIGHUP);
    store.send(Signal::SIGTERM);
    let (status, lines) = store.wait();
    assert_eq!(status.code(), Some(0), "{lines}");
    assert!(lines.contains("SIGTERM") && !lines.contains("SIGHUP"), "{lines}");
}

#[test]
fn a_killed_store_can_be_started_again() {
    let place = Place::new();
    let mut killed = Store::spawn(place.command());
    killed.wait_until_ready().expect("a store");
    killed.send(Signal::SIGKILL);
    killed.wait();
    assert!(place.socket().exists());
    let mut next = Store::spawn(place.command());
    next.wait_until_ready().expect("a store in its place");
    UnixStream::connect(place.socket()).expect("it listens");

    let pid = next.process.id().to_string();
    let socket = place.socket();
    assert_refused(&["-s", socket.to_str().expect("text")], 1, &[&pid, "stop it"]);
    next.send(Signal::SIGTERM);
    assert_eq!(next.wait().0.code(), Some(0));
}

#[test]
fn of_stores_that_start_at_the_same_instant_one_runs() {
    let place = Place::new();
    for _ in 0..10 {
        place.make_stale();
        let mut starters = [(); 4].map(|()| Store::spawn(place.command()));
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let waiting = starters.iter_mut().map(|store| scope.spawn(|| store.wait_until_ready()));
            let waiting: Vec<_> = waiting.collect();
            waiting.into_iter().map(|outcome| outcome.join().expect("no panic")).collect()
        });
        let ready = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(ready, 1, "{outcomes:?}");
        UnixStream::connect(place.socket()).expect("the socket leads to the one that runs");
        for (store, outcome) in starters.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    store.send(Signal::SIGTERM);
                    assert_eq!(store.wait().0.code(), Some(0));
                }
                Err(lines) => {
                    assert!(lines.contains("has this socket"), "{lines}");
                    assert_eq!(store.wait().0.code(), Some(1));
                }
            }
        }
        assert!(!place.socket().exists());
    }
}
