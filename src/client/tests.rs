//! The client against a store that the test itself plays, message by message.

mod connecting;
mod fake_store;
mod guarded;
mod making;
mod pending;
mod reading;
mod silence;
mod streams;
mod threads;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::ids::{Location, ObjectId, SegmentId};
use fake_store::FakeStore;

fn id(name: u8) -> ObjectId {
    ObjectId::from([name; 20])
}

fn at(offset: u64, data_size: u64, metadata_size: u64) -> Location {
    Location { segment: SegmentId(0), offset, data_size, metadata_size }
}

/// Runs a call of the client in a thread of its own, while the test plays the store.
fn beside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    thread::spawn(call)
}

/// What a thread came to. A panic there is one here.
fn outcome<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn connected() -> (super::Client, fake_store::Peer) {
    FakeStore::new().connect()
}

/// As [`connected`], with so much patience from now on.
fn connected_with_patience(patience: Duration) -> (super::Client, fake_store::Peer) {
    let (client, store) = connected();
    set_patience(&client, patience);
    (client, store)
}

/// Nobody must be using the connection, nor hold anything.
fn set_patience(client: &super::Client, patience: Duration) {
    let connection = client.shared.current.swap(None);
    let mut connection = connection.and_then(Arc::into_inner).expect("nobody uses it");
    connection.patience = patience;
    client.shared.current.store(Some(Arc::new(connection)));
}
