//! Real sockets in directories of their own.

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Barrier;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::umask;
use nix::unistd::{Uid, geteuid, getpid, setfsuid};
use tempfile::TempDir;

use super::*;

/// Without a group of its own.
fn bind(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), ListenError> {
    super::bind(path, mode, None)
}

const PRIVATE: u32 = 0o600;

/// Runs it with the file permissions of somebody who is not root. The user id for files belongs to
/// the thread alone, so nobody else notices.
pub(in crate::server) fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if geteuid().is_root() {
                setfsuid(Uid::from_raw(65_534));
            }
            act()
        });
        thread.join().expect("the test inside did not panic")
    })
}

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("plasma");
    (directory, path)
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("the file is there").mode() & 0o7777
}

fn own_pid() -> Option<i32> {
    Some(getpid().as_raw())
}

/// What somebody who died leaves behind.
fn stale(path: &Path) {
    drop(UnixListener::bind(path).expect("a free path"));
    assert!(path.exists());
}

fn refused(path: &Path) -> ListenError {
    bind(path, PRIVATE).expect_err("this path cannot be had")
}

#[test]
fn clients_can_connect_until_the_file_is_dropped() {
    let (_directory, path) = place();
    let (socket, file) = bind(&path, PRIVATE).expect("bound");
    assert_eq!(mode_of(&path), PRIVATE);
    let flags = FdFlag::from_bits_retain(fcntl(socket.as_fd(), FcntlArg::F_GETFD).expect("flags"));
    assert!(flags.contains(FdFlag::FD_CLOEXEC));
    let nobody_yet = socket.accept().expect_err("accepting does not wait");
    assert_eq!(nobody_yet.kind(), io::ErrorKind::WouldBlock);

    let _client = UnixStream::connect(&path).expect("connected");
    socket.accept().expect("the client");
    drop(file);
    assert!(!path.exists());
}

#[test]
fn removing_says_whether_there_was_something_to_remove() {
    let (_directory, path) = place();
    let (_socket, file) = bind(&path, PRIVATE).expect("bound");
    assert!(file.remove().expect("removed"));
    assert!(!path.exists());
    drop(file);
    let (_socket, file) = bind(&path, PRIVATE).expect("bound again");
    fs::remove_file(&path).expect("removed by somebody");
    assert!(!file.remove().expect("nothing to do"));
}

#[test]
fn a_file_that_is_not_ours_any_more_stays() {
    let (_directory, path) = place();
    let (_socket, file) = bind(&path, PRIVATE).expect("bound");
    fs::remove_file(&path).expect("removed by somebody");
    stale(&path);
    assert!(!file.remove().expect("left alone"));
    drop(file);
    assert!(path.exists());
    let (_socket, file) = bind(&path, PRIVATE).expect("bound again");
    fs::rename(&path, path.with_extension("moved")).expect("moved by somebody");
    fs::write(&path, "precious").expect("written by somebody");
    drop(file);
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_stale_socket_is_replaced() {
    let (_directory, path) = place();
    stale(&path);
    check(&path).expect("a stale socket is no obstacle");
    let (socket, _file) = bind(&path, PRIVATE).expect("bound");
    let _client = UnixStream::connect(&path).expect("connected");
    socket.accept().expect("the client");
}

#[test]
fn a_live_store_keeps_its_socket() {
    let (_directory, path) = place();
    let (socket, file) = bind(&path, PRIVATE).expect("bound");
    let in_use = ListenError::InUse { path: path.clone(), process: own_pid() };
    assert_eq!(refused(&path), in_use);
    assert_eq!(check(&path), Err(in_use.clone()));
    let text = in_use.to_string();
    let pid = getpid().to_string();
    assert!(text.contains(&pid) && text.contains("-s") && text.contains("stop it"), "{text}");

    let _client = UnixStream::connect(&path).expect("the path still leads to the first one");
    drop((socket, file));
    bind(&path, PRIVATE).expect("free now");
}

#[test]
fn a_live_store_is_found_when_its_file_is_gone() {
    let (directory, path) = place();
    let _listener = bind(&path, PRIVATE).expect("bound");
    fs::remove_file(&path).expect("removed by somebody");
    assert_eq!(refused(&path), ListenError::InUse { path: path.clone(), process: own_pid() });

    let link = directory.path().join("link");
    symlink(directory.path(), &link).expect("another way to the same directory");
    let detour = link.join("plasma");
    assert_eq!(refused(&detour), ListenError::InUse { path: detour, process: own_pid() });
    assert!(!path.exists());
    bind(&directory.path().join("plasma2"), PRIVATE).expect("another name is free");
}

#[test]
fn other_programs_keep_their_sockets() {
    let (_directory, path) = place();
    let _other = UnixListener::bind(&path).expect("a free path");
    assert_eq!(refused(&path), ListenError::InUse { path, process: own_pid() });

    let (_directory, path) = place();
    let _other = UnixDatagram::bind(&path).expect("a free path");
    assert_eq!(refused(&path), ListenError::InUse { path, process: None });
}

#[test]
fn a_full_queue_is_a_sign_of_life() {
    let (_directory, path) = place();
    let other = bind_socket(&path, PRIVATE).expect("a free path");
    socket::listen(&other, Backlog::new(0).expect("a queue of one")).expect("listening");
    let address = UnixAddr::new(&path).expect("a short path");
    let mut waiting = Vec::new();
    loop {
        let client = new_socket().expect("a socket");
        match socket::connect(client.as_raw_fd(), &address) {
            Ok(()) => waiting.push(client),
            Err(error) => break assert_eq!(error, Errno::EAGAIN),
        }
    }
    assert_eq!(refused(&path), ListenError::InUse { path, process: None });
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let (directory, path) = place();
    fs::write(&path, "precious").expect("written");
    assert_eq!(refused(&path), ListenError::NotASocket(path.clone()));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    let text = refused(&path).to_string();
    assert!(text.contains("plasma") && text.contains("remove it yourself"), "{text}");

    assert_eq!(refused(directory.path()), ListenError::NotASocket(directory.path().to_owned()));
    let dangling = directory.path().join("dangling");
    symlink("nowhere", &dangling).expect("a link");
    assert_eq!(refused(&dangling), ListenError::NotASocket(dangling.clone()));
    assert!(fs::symlink_metadata(&dangling).is_ok());
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let (directory, path) = place();
    let cases = [(directory.path().join("missing"), Errno::ENOENT), (path.clone(), Errno::ENOTDIR)];
    fs::write(&path, "a file").expect("written");
    for (parent, reason) in cases {
        let error = refused(&parent.join("plasma"));
        let text = error.to_string();
        let path = parent.join("plasma");
        assert_eq!(error, ListenError::Directory { path, directory: parent, reason });
        assert!(text.contains(reason.desc()) && text.contains("create that directory"), "{text}");
    }
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o555)).expect("changed");
    let free = directory.path().join("free");
    let error = as_nobody(|| refused(&free));
    let reason = Errno::EACCES;
    let directory = directory.path().to_owned();
    assert_eq!(error, ListenError::Directory { path: free, directory, reason });
}

#[test]
fn a_socket_that_cannot_be_asked_is_left_alone() {
    let (directory, path) = place();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("changed");
    let _other = UnixListener::bind(&path).expect("a free path");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("changed");
    let error = as_nobody(|| refused(&path));
    assert_eq!(error, ListenError::Unknown { path: path.clone(), reason: Errno::EACCES });
    assert!(error.to_string().contains("Permission denied"), "{error}");
    assert!(path.exists());
}

#[test]
fn a_path_beyond_the_limit_is_an_error() {
    let (directory, _) = place();
    let path = directory.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
    let text = refused(&path).to_string();
    assert!(text.contains("File name too long") && text.contains("-s"), "{text}");
}

#[test]
fn the_file_is_never_wider_than_asked_for() {
    let (_directory, path) = place();
    // The umask belongs to the whole process; the other tests here do not depend on it.
    let before = umask(Mode::empty());
    let socket = bind_socket(&path, PRIVATE);
    umask(before);
    drop(socket.expect("bound"));
    assert_eq!(mode_of(&path), PRIVATE, "before anybody corrected it");
}

#[test]
fn the_mode_is_the_one_asked_for_whatever_the_umask() {
    for mode in [0o600, 0o660, 0o666, 0o777, 0o200] {
        let (_directory, path) = place();
        let _listener = bind(&path, mode).expect("bound");
        assert_eq!(mode_of(&path), mode);
    }
}

#[test]
fn of_many_that_start_at_the_same_instant_one_wins() {
    const STARTERS: usize = 8;
    const ROUNDS: usize = 200;
    let (_directory, path) = place();
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            stale(&path);
        }
        let start = Barrier::new(STARTERS);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let race = || {
                start.wait();
                bind(&path, PRIVATE)
            };
            let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(race)).collect();
            starters.into_iter().map(|starter| starter.join().expect("no panic")).collect()
        });
        let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(winners.len(), 1, "round {round}");
        for loser in losers {
            let error = loser.expect_err("a loser");
            assert!(matches!(error, ListenError::InUse { .. }), "round {round}: {error}");
        }
        let (socket, file) = winners.into_iter().flatten().next().expect("a winner");
        let _client = UnixStream::connect(&path).expect("the path leads to somebody");
        socket.accept().expect("and it is the winner");
        assert!(file.remove().expect("removed"));
    }
}
