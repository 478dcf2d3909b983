//! The codec against itself, against prost, against bytes from nowhere and against the document.

mod client_rules;
mod document;
mod golden;
mod hostile;
mod largest;
mod server_rules;
mod values;

use std::time::Duration;

use proptest::prelude::*;
use prost::Message;

use super::{decode_client, decode_server, encode_client, encode_server};
use crate::ids::ObjectId;
use crate::protocol::ProtocolError;
use crate::protocol::generated as wire;
use crate::protocol::generated::client_frame::Request as WireRequest;
use crate::protocol::message::{ClientMessage, Request, RequestId, ServerMessage};

fn client_bytes(request_id: RequestId, message: &ClientMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_client(&mut bytes, request_id, message);
    bytes
}

fn server_bytes(message: &ServerMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_server(&mut bytes, message);
    bytes
}

/// A frame as the generated code writes it, checked by nobody.
fn raw_client_bytes(request_id: u64, request: WireRequest) -> Vec<u8> {
    wire::ClientFrame { request_id, request: Some(request) }.encode_to_vec()
}

fn decode_raw(request: WireRequest) -> Result<ClientMessage, ProtocolError> {
    decode_client(&raw_client_bytes(1, request)).map(|(_, message)| message)
}

fn ids(count: usize) -> Vec<u8> {
    vec![7; 20 * count]
}

fn put(data: &[u8]) -> wire::Put {
    let object = wire::NewObject { object_id: ids(1), data: data.to_vec(), metadata: vec![] };
    wire::Put { object: Some(object), room: None }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(expected: &str, result: Result<T, ProtocolError>) {
    match result {
        Err(ProtocolError::InvalidField { field, .. }) => assert_eq!(field, expected),
        other => panic!("{expected} was not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_malformed<T: std::fmt::Debug>(result: Result<T, ProtocolError>) -> String {
    match result {
        Err(ProtocolError::Malformed(text)) => text,
        other => panic!("not seen as malformed: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn client_messages_survive_the_round_trip((id, message) in values::client_frame()) {
        let bytes = client_bytes(id, &message);
        prop_assert_eq!(decode_client(&bytes).unwrap(), (id, message));
    }

    #[test]
    fn server_messages_survive_the_round_trip(message in values::server_message()) {
        let bytes = server_bytes(&message);
        prop_assert_eq!(decode_server(&bytes).unwrap(), message);
    }

    #[test]
    fn encoding_appends(
        (id, request) in values::client_frame(),
        reply in values::server_message(),
    ) {
        let mut bytes = b"before".to_vec();
        encode_client(&mut bytes, id, &request);
        let end = bytes.len();
        encode_server(&mut bytes, &reply);
        prop_assert_eq!(&bytes[..6], b"before");
        prop_assert_eq!(&bytes[6..end], client_bytes(id, &request));
        prop_assert_eq!(&bytes[end..], server_bytes(&reply));
    }

    #[test]
    fn puts_by_hand_are_what_prost_makes(
        id in 1_u64..,
        objects in values::new_objects(),
        room in values::room(),
    ) {
        let message = ClientMessage::Request(Request::Put { objects: objects.clone(), room });
        let by_hand = client_bytes(RequestId(id), &message);

        let room = Some(super::client_message::write_room(room));
        let mut wire_objects: Vec<wire::NewObject> = objects
            .iter()
            .map(|object| wire::NewObject {
                object_id: object.id.as_bytes().to_vec(),
                data: object.data.clone(),
                metadata: object.metadata.clone(),
            })
            .collect();
        let batch = wire::PutBatch { objects: wire_objects.clone(), room };
        let batch = raw_client_bytes(id, WireRequest::PutBatch(batch));
        prop_assert_eq!(decode_client(&batch).unwrap(), (RequestId(id), message));

        let expected = if wire_objects.len() == 1 {
            let put = wire::Put { object: wire_objects.pop(), room };
            raw_client_bytes(id, WireRequest::Put(put))
        } else {
            batch
        };
        prop_assert_eq!(by_hand, expected);
    }
}

#[test]
fn a_timeout_too_short_for_the_wire_is_rounded_up_and_not_down_to_no_waiting() {
    let timeout = Some(Duration::from_nanos(1));
    let get = Request::Get { ids: vec![], timeout, fail_if_abandoned: false };
    let bytes = client_bytes(RequestId(1), &ClientMessage::Request(get));
    let (_, ClientMessage::Request(Request::Get { timeout, .. })) = decode_client(&bytes).unwrap()
    else {
        panic!("a get became something else");
    };
    assert_eq!(timeout, Some(Duration::from_micros(1)));
}

#[test]
fn an_endless_duration_becomes_the_longest_that_the_wire_has() {
    let timeout = Some(Duration::MAX);
    let wait = Request::Wait { ids: vec![], count: 0, timeout };
    let bytes = client_bytes(RequestId(1), &ClientMessage::Request(wait));
    let (_, ClientMessage::Request(Request::Wait { timeout, .. })) = decode_client(&bytes).unwrap()
    else {
        panic!("a wait became something else");
    };
    assert_eq!(timeout, Some(Duration::from_micros(u64::MAX)));
}

#[test]
fn a_room_that_was_not_given_evicts_and_waits_for_ever() {
    let create = wire::Create { object_id: vec![7; 20], ..wire::Create::default() };
    let object = wire::NewObject { object_id: vec![7; 20], ..wire::NewObject::default() };
    let put = wire::Put { object: Some(object), room: None };
    for request in [WireRequest::Create(create), WireRequest::Put(put)] {
        let message = decode_raw(request).unwrap();
        let ClientMessage::Request(Request::Create { room, .. } | Request::Put { room, .. }) =
            message
        else {
            panic!("a new object became {message:?}");
        };
        assert!(room.evict);
        assert_eq!(room.timeout, None);
    }
}

#[test]
fn the_last_of_several_requests_in_a_frame_counts() {
    let delete = Request::Delete { ids: vec![ObjectId::from([1; 20])] };
    let delete = client_bytes(RequestId(1), &ClientMessage::Request(delete));
    let put = raw_client_bytes(2, WireRequest::Put(put(&[1])));
    for (first, last) in [(&delete, &put), (&put, &delete), (&put, &put)] {
        let both = [first.as_slice(), last.as_slice()].concat();
        assert_eq!(decode_client(&both), decode_client(last));
    }
}
