//! The program with clients on it: what it takes and says at its start, how it ends, what happens
//! when it is started twice or was killed, and what its log is like.
//!
//! `command_line.rs` has the arguments and the exit codes as a shell sees them.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plasma::client::Error;
use plasma::time::Clock;
use plasma::{Client, ObjectId};
use support::{PATIENCE, StoreProcess, store_program, wait_until};

// ---- starting -----------------------------------------------------------------------------------

/// Every mistake that ended the original in a signal, a wrong exit code or several lines.
#[test]
fn b32_a_mistake_is_one_line_and_an_exit_code() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let (socket, file, missing) = (path("socket"), path("file"), path("missing"));
    let long = path(&"x".repeat(108));
    let below_missing = format!("{missing}/socket");
    fs::write(&file, "precious").expect("written");
    for (arguments, code, needle) in [
        (["-m", "abc"].as_slice(), 2, "abc"),
        (&["-m", "1X"], 2, "1X"),
        (&["-m", ""], 2, "empty"),
        (&["-m"], 2, "memory"),
        (&["-m", "-1"], 2, "negative"),
        (&["-m", "-5"], 2, "negative"),
        (&["-m", "0"], 2, "range"),
        (&["-m", "99999999999999999999999"], 2, "large"),
        (&["-m", "1000TiB"], 1, "-m"),
        (&["-h", "-d", ""], 2, "-d"),
        (&["-d", ""], 2, "-d"),
        (&["-d", &missing], 1, &missing),
        (&["-d", &file], 1, &file),
        // Not even root can make files there.
        (&["-d", "/proc/self/net"], 1, "/proc/self/net"),
        (&["-h", "-d", directory.path().to_str().expect("text")], 1, "hugetlbfs"),
        (&["-h", "-m", "1000TiB"], 1, "huge pages"),
        (&["-e", "noname"], 2, "-e"),
        (&["-e", "unknown://host"], 2, "-e"),
        (&["-s", &long], 2, "107"),
        (&["-s", &below_missing], 1, &missing),
        (&["-s", &file], 1, &file),
        (&["-s", directory.path().to_str().expect("text")], 1, "-s"),
        (&["-s", ""], 2, "-s"),
        (&["--socket-mode", "999"], 2, "--socket-mode"),
        (&["--socket-mode", "rw"], 2, "--socket-mode"),
        (&["--socket-mode", "7777"], 2, "--socket-mode"),
        (&["--frobnicate"], 2, "--frobnicate"),
        (&["stray"], 2, "stray"),
    ] {
        let mut command = store_program();
        if !arguments.contains(&"-s") {
            command.arg("-s").arg(&socket);
        }
        command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
        let (status, text) = output_of(command);
        assert_eq!(status.signal(), None, "{arguments:?}: {text}");
        assert_eq!(status.code(), Some(code), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(text.contains(needle), "{arguments:?}: {needle:?} is missing in {text}");
        assert!(!Path::new(&socket).exists(), "{arguments:?} left a socket behind");
    }
    assert_eq!(fs::read_to_string(&file).expect("never deleted"), "precious");
}

#[test]
fn b32_the_capacity_is_what_was_asked_for_to_the_byte() {
    for (arguments, capacity) in [
        (["-m", "10000"].as_slice(), 10_000),
        (&["-m", "500M"], 500_000_000),
        (&["-m", "500m"], 500_000_000),
        (&["-m", "1.5MB"], 1_500_000),
        (&["-m", "8MiB"], 8 << 20),
        (&["-m=1e6"], 1_000_000),
        (&["--m=1e9"], 1_000_000_000),
        (&["--memory", "12345678"], 12_345_678),
        (&["-m", "1"], 1),
    ] {
        let store = StoreProcess::start_with(arguments, |_| {});
        let client = store.client();
        assert_eq!(client.capacity().expect("connected"), capacity, "{arguments:?}");
        assert_eq!(client.stats().expect("an answer").capacity, capacity, "{arguments:?}");
        let log = store.log();
        assert!(log.contains(&format!("{capacity} bytes")), "{arguments:?}: {log}");
        drop(client);
        store.stop();
    }
}

#[test]
fn the_ready_line_names_socket_capacity_and_kind_of_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = directory.path().to_str().expect("text");
    for (arguments, kind) in
        [(["-m", "10000"].as_slice(), "memfd"), (&["-m", "10000", "-d", files], files)]
    {
        let store = StoreProcess::start_with(arguments, |_| {});
        let log = store.log();
        let line = log.lines().find(|line| line.contains("ready")).expect("a ready line");
        for needle in ["10000 bytes", kind, store.socket().to_str().expect("text")] {
            assert!(line.contains(needle), "{needle} is missing in {line}");
        }
        store.stop();
    }
    assert_eq!(fs::read_dir(files).expect("a directory").count(), 0, "the file has no name");
}

#[test]
fn the_socket_is_its_owners_unless_told_otherwise() {
    for (arguments, mode) in [
        (["-m", "10000"].as_slice(), 0o600),
        (&["-m", "10000", "--socket-mode", "660"], 0o660),
        (&["-m", "10000", "--socket-mode=0666"], 0o666),
    ] {
        let mut store = StoreProcess::start_with(arguments, |_| {});
        let found = fs::metadata(store.socket()).expect("a socket");
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, mode, "{arguments:?}");
        store.assert_serves();
        store.stop();
    }
}

#[test]
fn the_forms_that_the_original_took_are_taken() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("plasma.sock");
    let socket_argument = format!("-s={}", socket.display());
    let long_argument = format!("--socket={}", socket.display());
    for socket_argument in [socket_argument, long_argument] {
        let mut command = store_program();
        command.args([socket_argument.as_str(), "--m=1e6", "--h=false"]);
        let mut child = command.env_remove("RUST_LOG").stderr(Stdio::null()).spawn().expect("runs");
        let client = Client::connect(&socket);
        let pid = client.as_ref().map(|client| client.server_pid().expect("connected"));
        let running = child.id();
        child.kill().expect("it is our child");
        child.wait().expect("it ends");
        assert_eq!(pid.expect("a store on the socket"), running);
    }
}

// ---- ending -------------------------------------------------------------------------------------

#[test]
fn b32_a_signal_ends_a_busy_store_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut store = StoreProcess::start("1000000");
        let clients: Vec<_> = (0..50).map(|_| store.client()).collect();
        let observer = store.client();
        let missing = ObjectId::random();
        let (waiting, idle) = clients.split_at(25);
        thread::scope(|scope| {
            let waits: Vec<_> = waiting
                .iter()
                .map(|client| scope.spawn(move || client.get_one(missing, None)))
                .collect();
            wait_until("all gets wait", || {
                observer.stats().expect("an answer").waiting_requests == 25
            });
            store.signal(signal);
            let status = store.wait();
            assert_eq!(status.code(), Some(0), "{signal}: {status}\n{}", store.log());
            assert!(!store.socket().exists(), "{signal}: the socket is left behind");
            for wait in waits {
                assert_lost(wait.join().expect("no panic"), store.socket());
            }
        });
        for client in idle {
            assert_lost(client.contains(missing), store.socket());
        }
        let log = store.log();
        assert!(log.contains(signal.as_str()), "it says why it ended: {log}");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "nothing is wrong: {log}");
    }
}

#[test]
fn b32_a_signal_right_after_the_start_is_not_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("plasma.sock");
    for _ in 0..20 {
        let mut store = StoreProcess::spawn_at(&socket, &["-m", "10000"]);
        store.signal(Signal::SIGTERM);
        let status = store.wait();
        // Before the first line of `main` has run, the signal's own action ends the process.
        let by_signal = status.signal() == Some(Signal::SIGTERM as i32) && store.log().is_empty();
        assert!(status.code() == Some(0) || by_signal, "{status}\n{}", store.log());
        assert!(!socket.exists(), "the socket is left behind");
    }
}

// ---- again --------------------------------------------------------------------------------------

#[test]
fn b20_recovery_a_second_store_does_not_disturb_the_first() {
    let mut first = StoreProcess::start("1000000");
    let client = first.client();
    let id = ObjectId::random();
    client.put(id, b"precious", b"").expect("put works");
    for _ in 0..3 {
        let mut second = StoreProcess::spawn_at(first.socket(), &["-m", "1000000"]);
        assert_eq!(second.wait().code(), Some(1), "{}", second.log());
        let log = second.log();
        assert_eq!(log.lines().count(), 1, "{log}");
        for needle in [first.socket().to_str().expect("text"), &first.pid().to_string()] {
            assert!(log.contains(needle), "{needle} is missing in {log}");
        }
    }
    let held = client.get_one(id, None).expect("get works").expect("it is there");
    assert_eq!(held.data(), b"precious");
    assert!(first.client().contains(id).expect("new clients find the same store"));
    first.assert_serves();
    drop((held, client));
    first.stop();
}

#[test]
fn b20_recovery_a_stale_socket_is_replaced() {
    let mut killed = StoreProcess::start("1000000");
    let client = killed.client();
    let id = ObjectId::random();
    client.put(id, b"lost", b"").expect("put works");
    killed.signal(Signal::SIGKILL);
    killed.wait();
    assert!(killed.socket().exists(), "nobody cleaned up");
    assert_lost(client.contains(id), killed.socket());

    let mut next = StoreProcess::spawn_at(killed.socket(), &["-m", "1000000"]);
    next.wait_until_ready();
    assert!(next.log().contains("stale"), "it says what it does: {}", next.log());
    assert!(!next.client().contains(id).expect("an empty store"));
    // A client of the old store knows that its objects are gone; it does not change sides.
    assert_lost(client.contains(id), killed.socket());
    next.assert_serves();
    next.stop();
}

#[test]
fn b20_recovery_of_stores_started_at_once_one_wins() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("plasma.sock");
    for _ in 0..5 {
        let mut running =
            Vec::from([(); 4].map(|()| StoreProcess::spawn_at(&socket, &["-m", "10000"])));
        let mut ended = Vec::new();
        wait_until("one is left", || {
            let dead = running.iter_mut().position(|store| !store.is_alive());
            ended.extend(dead.map(|index| running.swap_remove(index)));
            running.len() == 1
        });
        let mut winner = running.pop().expect("one runs");
        winner.wait_until_ready();
        let client = Client::connect(&socket).expect("it serves");
        assert_eq!(client.server_pid().expect("connected"), winner.pid());
        for mut loser in ended {
            assert_eq!(loser.wait().code(), Some(1), "{}", loser.log());
            assert_eq!(loser.log().lines().count(), 1, "{}", loser.log());
        }
        drop(client);
        winner.stop();
    }
}

// ---- clients without a store --------------------------------------------------------------------

#[test]
fn b20_recovery_a_client_without_a_store_says_where_it_looked_and_why_it_failed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("plasma.sock");
    let error = Client::builder().retries(2).connect(&path).expect_err("there is no store");
    let text = error.to_string();
    for needle in [path.to_str().expect("text"), "No such file", "3"] {
        assert!(text.contains(needle), "{needle} is missing in {text}");
    }
    fs::write(&path, "a file").expect("written");
    let error = Client::builder().retries(2).connect(&path).expect_err("this is a file");
    let text = error.to_string();
    assert!(text.contains(path.to_str().expect("text")) && text.contains("socket"), "{text}");

    let mut store = StoreProcess::start("10000");
    store.signal(Signal::SIGKILL);
    store.wait();
    let error = Client::builder().retries(1).connect(store.socket()).expect_err("it is dead");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_client_may_start_before_its_store() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("plasma.sock");
    let has_tried = AtomicBool::new(false);
    thread::scope(|scope| {
        let early = scope.spawn(|| {
            let mut note = || {
                has_tried.store(true, Ordering::SeqCst);
                false
            };
            Client::builder().retries(10_000).connect_with(&socket, Some(&mut note))
        });
        wait_until("the client has tried once", || has_tried.load(Ordering::SeqCst));
        let mut store = StoreProcess::spawn_at(&socket, &["-m", "10000"]);
        store.wait_until_ready();
        let client = early.join().expect("no panic").expect("it found the store");
        assert_eq!(client.server_pid().expect("connected"), store.pid());
    });
}

// ---- log ----------------------------------------------------------------------------------------

#[test]
fn b32_the_log_has_one_line_an_event_and_none_for_a_goodbye() {
    let lines_of = |level: Option<&str>| {
        let mut store = StoreProcess::start_with(&["-m", "100000"], |command| {
            if let Some(level) = level {
                command.env("RUST_LOG", level);
            }
        });
        for _ in 0..10 {
            let client = Client::builder().name("two\nlines").connect(store.socket());
            let client = client.expect("it connects");
            client.put(ObjectId::random(), &[7; 20_000], b"").expect("older ones are evicted");
            let missing = client.get_one(ObjectId::random(), Some(std::time::Duration::ZERO));
            assert!(missing.expect("an answer").is_none());
            let too_large = client.put(ObjectId::random(), &[7; 200_000], b"");
            assert!(too_large.expect_err("it is larger than the store").refusal().is_some());
            client.disconnect();
        }
        store.signal(Signal::SIGTERM);
        assert_eq!(store.wait().code(), Some(0));
        store.log()
    };
    let quiet = lines_of(None);
    // Ready, the counters, and the signal: nothing that clients did.
    assert_eq!(quiet.lines().count(), 3, "{quiet}");
    let loud = lines_of(Some("debug"));
    assert!(loud.lines().count() >= 3 + 2 * 10, "each connection comes and goes: {loud}");
    for line in quiet.lines().chain(loud.lines()) {
        let mut words = line.split_whitespace();
        let time = words.next().expect("a time");
        assert!(time.len() == 24 && time.contains('T') && time.ends_with('Z'), "{line}");
        let level = words.next().expect("a level");
        assert!(["INFO", "DEBUG"].contains(&level), "{line}");
        assert!(words.next().is_some(), "{line}");
    }
}

/// Status and stderr of a program that ends by itself; one that does not is ended.
fn output_of(mut command: Command) -> (ExitStatus, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program runs");
    let clock = Clock::start();
    let end = clock.now().after(PATIENCE);
    let status = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break status;
        }
        if clock.now() > end {
            child.kill().expect("it is our child");
        }
        thread::yield_now();
    };
    let mut text = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut text).expect("text");
    (status, text)
}

/// The call failed because the store is gone, and the error says which one.
fn assert_lost<T: std::fmt::Debug>(result: Result<T, Error>, socket: &Path) {
    let error = result.expect_err("there is no store any more");
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    assert!(error.to_string().contains(socket.to_str().expect("text")), "{error}");
}

/// More lines than a pipe and the queue before it hold.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    const LINES: usize = 8000;
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let mut command = store_program();
    command.args(["-m", "1M", "-s"]).arg(&socket).env_remove("RUST_LOG").stderr(Stdio::piped());
    let mut store = command.spawn().expect("the store starts");
    let client = Client::connect(&socket).expect("connected");
    for _ in 0..LINES {
        let mut stranger = UnixStream::connect(&socket).expect("a connection");
        stranger.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        let mut answer = Vec::new();
        // Reset or closed: either says that the store has dealt with it.
        let _ = stranger.read_to_end(&mut answer).inspect_err(|error| {
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "the store waits for its log");
        });
    }
    client.put(ObjectId::random(), b"served", b"").expect("the store serves others");
    kill(Pid::from_raw(store.id().cast_signed()), Signal::SIGTERM).expect("told to end");
    let mut log = String::new();
    wait_until("the store has ended", || store.try_wait().expect("our child").is_some());
    store.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
    assert!(log.contains("ready"), "{log}");
    assert!(log.lines().count() < LINES, "the pipe has held everything: this test shows nothing");
}
