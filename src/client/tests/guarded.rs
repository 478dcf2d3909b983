//! Objects that code in another language writes: which messages, and what is in memory.

use super::fake_store::Peer;
use super::{at, beside, connected, id, outcome};
use crate::client::{Client, CreateOptions, Error, GuardedWriter};
use crate::protocol::message::{Reply, Request};

fn create(client: &Client, store: &mut Peer, data_size: u64) -> GuardedWriter {
    let creator = beside({
        let client = client.clone();
        move || client.create_guarded(id(1), data_size, b"md", CreateOptions::default(), None)
    });
    let (create, _) = store.next();
    store.reply_with_memory(create, Reply::Created(at(64, data_size, 2).into()), true);
    let writer = outcome(creator).unwrap();
    assert_eq!(store.read(64 + data_size, 2), b"md");
    writer
}

/// Runs a call that has one request and lets the store say yes to it.
fn answered<T: Send + 'static>(
    store: &mut Peer,
    call: impl FnOnce() -> T + Send + 'static,
) -> (T, Request) {
    let call = beside(call);
    let (number, request) = store.next();
    store.reply(number, Reply::Done);
    (outcome(call), request)
}

#[test]
fn a_sealed_object_is_held_until_the_writer_goes() {
    let (client, mut store) = connected();
    let mut writer = create(&client, &mut store, 1000);
    assert_eq!((writer.len(), writer.is_open()), (1000, true));
    let (writer, request) = answered(&mut store, move || {
        writer.seal().unwrap();
        writer
    });
    assert_eq!(request, Request::Seal { id: id(1), release: false });
    assert!(!writer.is_open());
    drop(writer);
    assert_eq!(store.next().1, Request::Release { holds: vec![(id(1), 1)] });
}

#[test]
fn an_aborted_object_is_not_given_back_a_second_time() {
    let (client, mut store) = connected();
    let mut writer = create(&client, &mut store, 1000);
    let (mut writer, request) = answered(&mut store, move || {
        writer.abort().unwrap();
        writer
    });
    assert_eq!(request, Request::Abort { id: id(1) });
    for refused in [writer.seal(), writer.abort()] {
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    drop((writer, client));
    assert_eq!(store.next_or_end(), None);
}

#[test]
fn a_writer_that_is_dropped_aborts() {
    let (client, mut store) = connected();
    drop(create(&client, &mut store, 0));
    assert_eq!(store.next().1, Request::Abort { id: id(1) });
}
