//! What a client refuses to read.

use prost::Message;

use super::{assert_malformed, assert_refused, ids};
use crate::limits::FRAME_DESCRIPTORS_MAX;
use crate::protocol::ProtocolError;
use crate::protocol::codec::decode_server;
use crate::protocol::generated as wire;
use crate::protocol::generated::server_frame::Reply as WireReply;
use crate::protocol::message::{Reply, ServerMessage};
use crate::protocol::refusal::Refusal;

fn decode_reply(reply: WireReply) -> Result<Reply, ProtocolError> {
    let frame = wire::ServerFrame { request_id: 1, descriptors: vec![], reply: Some(reply) };
    decode_server(&frame.encode_to_vec()).map(|message| message.reply)
}

fn decode_event(event: wire::Event) -> Result<ServerMessage, ProtocolError> {
    let reply = Some(WireReply::Events(wire::Events { events: vec![event] }));
    let frame = wire::ServerFrame { request_id: 0, descriptors: vec![], reply };
    decode_server(&frame.encode_to_vec())
}

#[test]
fn unknown_enumeration_values_are_errors() {
    for value in [-1, 3, i32::MAX] {
        let states = wire::States { states: vec![0, value] };
        assert_refused("States.states", decode_reply(WireReply::States(states)));
        let listed = wire::ObjectInfo { object_id: ids(1), state: value, ..Default::default() };
        let list = wire::ObjectList { objects: vec![listed], next: None };
        assert_refused("ObjectInfo.state", decode_reply(WireReply::ObjectList(list)));
    }
    for value in [-1, 4, i32::MIN] {
        let deleted = wire::Deleted { outcomes: vec![0, value] };
        assert_refused("Deleted.outcomes", decode_reply(WireReply::Deleted(deleted)));
    }
    for value in [-1, 5, i32::MAX] {
        let event = wire::Event { kind: value, object_id: ids(1), ..wire::Event::default() };
        assert_refused("Event.kind", decode_event(event));
    }
}

#[test]
fn an_unknown_refusal_is_still_a_refusal() {
    for code in [-1, 0, 20, i32::MAX] {
        let refusal = wire::Refusal { code, object_id: vec![1, 2, 3], ..wire::Refusal::default() };
        let reply = decode_reply(WireReply::Refusal(refusal)).unwrap();
        assert_eq!(reply, Reply::Refused(Refusal::Other { code }));
    }
}

#[test]
fn a_refusal_about_an_object_names_it() {
    use wire::refusal::Code;
    for code in [
        Code::ObjectExists,
        Code::ObjectNotFound,
        Code::NotCreator,
        Code::AlreadySealed,
        Code::NotHeld,
        Code::Abandoned,
    ] {
        let refusal = wire::Refusal { code: i32::from(code), ..wire::Refusal::default() };
        assert_refused("Refusal.object_id", decode_reply(WireReply::Refusal(refusal)));
    }
    let code = i32::from(Code::VersionMismatch);
    let refusal = wire::Refusal { code, limit: 1 << 32, ..wire::Refusal::default() };
    assert_refused("Refusal.limit", decode_reply(WireReply::Refusal(refusal)));
}

#[test]
fn locations_stay_inside_the_address_range() {
    let location = |offset, data_size, metadata_size| {
        let location =
            wire::Location { segment: 1, offset, data_size, metadata_size, ..Default::default() };
        decode_reply(WireReply::Created(location))
    };
    assert!(location(u64::MAX - 2, 1, 1).is_ok());
    assert_refused("Location.offset", location(u64::MAX - 2, 2, 1));
    assert_refused("Location.offset", location(u64::MAX - 2, 0, 3));
    assert_refused("Location.offset", location(0, u64::MAX, 1));

    let missing =
        wire::Location { missing: true, offset: u64::MAX, data_size: 1, ..Default::default() };
    let objects = wire::Objects { objects: vec![missing], pins: vec![] };
    assert_eq!(decode_reply(WireReply::Objects(objects)), Ok(Reply::Objects(vec![None])));
    assert_refused("ServerFrame.created", decode_reply(WireReply::Created(missing)));
}

#[test]
fn records_of_objects_are_checked() {
    let object = wire::ObjectInfo { object_id: ids(1), state: 2, ..Default::default() };
    let decode = |object| {
        let list = wire::ObjectList { objects: vec![object], next: None };
        decode_reply(WireReply::ObjectList(list))
    };
    assert!(decode(object.clone()).is_ok());
    let short = wire::ObjectInfo { object_id: vec![7; 19], ..object.clone() };
    assert_refused("ObjectInfo.object_id", decode(short));
    let absent = wire::ObjectInfo { state: 0, ..object.clone() };
    assert_refused("ObjectInfo.state", decode(absent));
    let huge = wire::ObjectInfo { data_size: u64::MAX, metadata_size: 1, ..object };
    assert_refused("ObjectInfo.data_size", decode(huge));
}

#[test]
fn events_of_objects_are_checked() {
    for kind in 0..3 {
        let event = wire::Event { kind, object_id: ids(1), ..wire::Event::default() };
        assert!(decode_event(event.clone()).is_ok());
        let short = wire::Event { object_id: vec![7; 19], ..event.clone() };
        assert_refused("Event.object_id", decode_event(short));
        let huge = wire::Event { data_size: u64::MAX, metadata_size: 1, ..event };
        assert_refused("Event.data_size", decode_event(huge));
    }
}

#[test]
fn events_and_only_events_answer_request_zero() {
    let frame = |request_id, reply| {
        let frame = wire::ServerFrame { request_id, descriptors: vec![], reply: Some(reply) };
        decode_server(&frame.encode_to_vec())
    };
    let events = || WireReply::Events(wire::Events { events: vec![] });
    assert!(frame(0, events()).is_ok());
    assert_refused("ServerFrame.request_id", frame(1, events()));
    assert!(frame(1, WireReply::Done(wire::Done {})).is_ok());
    assert_refused("ServerFrame.request_id", frame(0, WireReply::Done(wire::Done {})));
}

#[test]
fn a_store_that_allows_nothing_is_refused() {
    let generous = wire::Connected {
        request_ids_max: 1,
        inline_bytes_max: 1,
        batch_objects_max: 1,
        ..wire::Connected::default()
    };
    let decode = |connected| decode_reply(WireReply::Connected(connected));
    assert!(decode(generous.clone()).is_ok());
    let no_ids = wire::Connected { request_ids_max: 0, ..generous.clone() };
    assert_refused("Connected.request_ids_max", decode(no_ids));
    let no_bytes = wire::Connected { inline_bytes_max: 0, ..generous.clone() };
    assert_refused("Connected.inline_bytes_max", decode(no_bytes));
    let no_objects = wire::Connected { batch_objects_max: 0, ..generous };
    assert_refused("Connected.batch_objects_max", decode(no_objects));
}

#[test]
fn frame_descriptors_max() {
    let frame = |count: u16| {
        let descriptors = vec![wire::Descriptor::default(); usize::from(count)];
        let reply = Some(WireReply::Done(wire::Done {}));
        decode_server(&wire::ServerFrame { request_id: 1, descriptors, reply }.encode_to_vec())
    };
    assert!(frame(FRAME_DESCRIPTORS_MAX).is_ok());
    assert_refused("ServerFrame.descriptors", frame(FRAME_DESCRIPTORS_MAX + 1));
}

#[test]
fn a_reply_of_an_unknown_kind_is_named_by_its_request() {
    let no_reply = wire::ServerFrame { request_id: 4711, ..wire::ServerFrame::default() };
    assert!(assert_malformed(decode_server(&no_reply.encode_to_vec())).contains("4711"));
    assert_malformed(decode_server(&[]));
}
