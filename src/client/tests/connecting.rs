//! Connecting: when it is tried again, when not, and what the error says.

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use super::fake_store::{FakeStore, Peer};
use super::{beside, connected, id, outcome};
use crate::client::{Client, ConnectFailure, Error};
use crate::limits::{
    BATCH_OBJECTS_MAX, CLIENT_NAME_BYTES_MAX, INLINE_BYTES_MAX, PROTOCOL_VERSION,
    PROTOCOL_VERSION_OLDEST, REQUEST_IDS_MAX, SOCKET_PATH_BYTES_MAX,
};
use crate::protocol::message::{ClientMessage, Connected, Reply, Request};
use crate::protocol::refusal::Refusal;

#[test]
fn without_a_socket_it_is_tried_as_often_as_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nobody");
    let (attempts, failure) = failure_of(&path, 3);
    assert_eq!(attempts, 4);
    assert!(matches!(failure, ConnectFailure::Io(_)), "{failure:?}");

    let error = Client::builder().retries(0).connect(&path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn a_socket_that_nobody_listens_on_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stale");
    drop(UnixListener::bind(&path).unwrap());
    let (attempts, failure) = failure_of(&path, 2);
    assert_eq!(attempts, 3);
    assert!(failure.to_string().contains("refused"), "{failure}");
}

#[test]
fn a_store_that_comes_later_is_found() {
    let store = FakeStore::new();
    let hidden = store.path().with_extension("hidden");
    std::fs::rename(store.path(), &hidden).unwrap();
    let path = store.path();
    let connecting = beside(move || {
        // The pause between two attempts is the time to start the store.
        let mut start = || {
            let _ = std::fs::rename(&hidden, &path);
            false
        };
        let builder = Client::builder().retry_interval(Duration::from_millis(1));
        builder.connect_with(&path, Some(&mut start)).map(|client| client.capacity())
    });
    let _peer = store.welcome();
    assert_eq!(outcome(connecting).unwrap().unwrap(), store.connected.capacity);
}

#[test]
fn a_store_that_hangs_up_is_tried_again() {
    let store = FakeStore::new();
    let path = store.path();
    let connecting =
        beside(move || Client::builder().retry_interval(Duration::ZERO).connect(path).map(|_| ()));
    drop(store.accept());
    let mut second = store.accept();
    second.next_message();
    drop(second);
    let _third = store.welcome();
    outcome(connecting).unwrap();
}

#[test]
fn what_would_fail_again_is_not_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let (attempts, failure) = failure_of(&file, 9);
    assert!(matches!(failure, ConnectFailure::NotASocket), "{failure:?}");
    assert_eq!(attempts, 1);

    let long = directory.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
    let (attempts, failure) = failure_of(&long, 9);
    assert!(matches!(failure, ConnectFailure::Io(_)), "{failure:?}");
    assert_eq!(attempts, 1);
}

#[test]
fn a_missing_permission_is_not_tried_again() {
    if nix::unistd::geteuid().is_root() {
        // Root is let in everywhere, but not through a file as if it were a directory.
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(failure_of(&directory.path().join("file/socket"), 9).0, 1);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let closed = directory.path().join("closed");
    std::fs::DirBuilder::new().mode(0o000).create(&closed).unwrap();
    let (attempts, failure) = failure_of(&closed.join("socket"), 9);
    assert!(failure.to_string().contains("ermission denied"), "{failure}");
    assert_eq!(attempts, 1);
}

#[test]
fn another_version_is_named() {
    let store = FakeStore::new();
    let theirs = PROTOCOL_VERSION + 7;
    let mut older = store.connected.clone();
    older.protocol_version = theirs;
    for answer in [Reply::Refused(Refusal::VersionMismatch(theirs)), Reply::Connected(older)] {
        let (attempts, failure) = failure_after(&store, |peer| {
            let (request, _) = peer.next_message();
            peer.reply(request, answer);
        });
        assert_eq!(attempts, 1);
        let is_named = matches!(
            failure,
            ConnectFailure::VersionMismatch { theirs: named, .. } if named == theirs
        );
        assert!(is_named, "{failure:?}");
        let text = failure.to_string();
        for part in [&theirs.to_string(), &PROTOCOL_VERSION.to_string(), "update the older"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// It knows one version only, and takes no other.
#[test]
fn a_store_of_the_release_before_is_asked_in_its_version() {
    let store = FakeStore::new();
    let path = store.path();
    let connecting = beside(move || Client::builder().retries(0).connect(path));
    let version_of = |peer: &mut Peer| {
        let (request, message) = peer.next_message();
        let ClientMessage::Connect(connect) = message else { panic!("{message:?}") };
        (request, connect.protocol_version, connect.oldest_version)
    };
    let mut first = store.accept();
    let (request, newest, oldest) = version_of(&mut first);
    assert_eq!((newest, oldest), (PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST));
    first.reply(request, Reply::Refused(Refusal::VersionMismatch(PROTOCOL_VERSION_OLDEST)));
    let mut second = store.accept();
    let (request, newest, _) = version_of(&mut second);
    assert_eq!(newest, PROTOCOL_VERSION_OLDEST);
    let older = Connected { protocol_version: PROTOCOL_VERSION_OLDEST, ..store.connected.clone() };
    second.reply(request, Reply::Connected(older));
    outcome(connecting).unwrap();
}

#[test]
fn another_program_is_recognised() {
    let store = FakeStore::new();
    let (attempts, failure) = failure_after(&store, |peer| {
        peer.next_message();
        peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    assert_eq!(attempts, 1);
    assert!(matches!(failure, ConnectFailure::Protocol(_)), "{failure:?}");

    let (_, failure) = failure_after(&store, |peer| {
        let (request, _) = peer.next_message();
        peer.reply(request, Reply::Done);
    });
    assert!(matches!(failure, ConnectFailure::Protocol(_)), "{failure:?}");
}

#[test]
fn connecting_can_be_interrupted() {
    let store = FakeStore::new();
    let path = store.path();
    let connecting =
        beside(move || Client::builder().connect_with(path, Some(&mut || true)).map(|_| ()));
    // It accepts and says nothing.
    let _peer = store.accept();
    assert!(matches!(outcome(connecting), Err(Error::Interrupted)));
}

#[test]
fn names_are_not_too_long() {
    let (client, mut store) = connected();
    let long = "n".repeat(CLIENT_NAME_BYTES_MAX + 1);
    for error in [
        client.set_name(&long).unwrap_err(),
        Client::builder().name(&long).connect(client.socket_path()).unwrap_err(),
    ] {
        assert!(error.to_string().contains("257 bytes"), "{error}");
    }
    let renaming = beside(move || client.set_name(&long[1..]));
    let (set, request) = store.next();
    assert!(matches!(request, Request::SetOptions { client_name: Some(_), quota: None }));
    store.reply(set, Reply::Done);
    outcome(renaming).unwrap();
}

/// What it allows would not fit into a frame.
#[test]
fn a_store_cannot_allow_more_than_this_client_can_do() {
    let mut store = FakeStore::new();
    store.connected.inline_bytes_max = 1 << 30;
    store.connected.batch_objects_max = 1 << 30;
    store.connected.request_ids_max = 1 << 30;
    let (client, _store) = store.connect();
    let error = client.put_batch(&[(id(1), vec![0; INLINE_BYTES_MAX + 1], b"")]).unwrap_err();
    assert!(matches!(error, Error::BatchTooLarge { .. }), "{error}");
    let error = client.put_batch(&[(id(1), b"", b""); BATCH_OBJECTS_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::BatchTooLarge { .. }), "{error}");
    let error = client.wait(&[id(1); REQUEST_IDS_MAX + 1], 1, None).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
}

#[test]
fn what_the_store_said_of_itself_is_known() {
    let (client, mut store) = connected();
    assert_eq!(client.server_pid().unwrap(), 4711);
    assert_eq!(client.server_version().unwrap(), "fake");
    assert_eq!(client.client_id().unwrap(), crate::ids::ClientId(1));
    drop(client);
    assert_eq!(store.next_or_end(), None, "nothing of it is worth a message");
}

#[test]
fn a_disconnect_without_holds_waits_for_the_store() {
    let (client, mut store) = connected();
    let closer = beside(move || client.disconnect());
    let (goodbye, message) = store.next_message();
    assert_eq!(message, ClientMessage::Request(Request::Disconnect));
    assert!(!closer.is_finished());
    store.reply(goodbye, Reply::Done);
    outcome(closer);
    assert_eq!(store.next_or_end(), None);
}

/// Number of attempts, and the last failure, when nobody answers.
fn failure_of(path: &Path, retries: u32) -> (u32, ConnectFailure) {
    let builder = Client::builder().retries(retries).retry_interval(Duration::from_millis(1));
    taken_apart(builder.connect(path).unwrap_err())
}

/// The same, when the store answers in this way.
fn failure_after(
    store: &FakeStore,
    answer: impl FnOnce(&mut super::fake_store::Peer),
) -> (u32, ConnectFailure) {
    let path = store.path();
    let connecting = beside(move || Client::connect(path));
    let mut peer = store.accept();
    answer(&mut peer);
    taken_apart(outcome(connecting).unwrap_err())
}

fn taken_apart(error: Error) -> (u32, ConnectFailure) {
    match error {
        Error::Connect { attempts, source, .. } => (attempts, source),
        other => panic!("{other:?}"),
    }
}
