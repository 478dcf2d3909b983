//! What the store refuses to read, each rule at its bound and one past it.

use prost::Message;

use super::{assert_malformed, assert_refused, decode_raw, ids, put, raw_client_bytes};
use crate::ids::ObjectId;
use crate::limits::{BATCH_OBJECTS_MAX, CLIENT_NAME_BYTES_MAX, INLINE_BYTES_MAX, REQUEST_IDS_MAX};
use crate::protocol::codec::decode_client;
use crate::protocol::generated as wire;
use crate::protocol::generated::client_frame::Request as WireRequest;
use crate::protocol::message::{ClientMessage, Request, RequestId};

fn object(bytes: usize) -> wire::NewObject {
    wire::NewObject { object_id: ids(1), data: vec![1; bytes], metadata: vec![] }
}

fn batch(objects: Vec<wire::NewObject>) -> WireRequest {
    WireRequest::PutBatch(wire::PutBatch { objects, room: None })
}

/// Every request with a list of ids, with these bytes as the list.
fn with_id_list(object_ids: &[u8]) -> Vec<(&'static str, WireRequest)> {
    let object_ids = || object_ids.to_vec();
    vec![
        (
            "Get.object_ids",
            WireRequest::Get(wire::Get { object_ids: object_ids(), ..wire::Get::default() }),
        ),
        (
            "Wait.object_ids",
            WireRequest::Wait(wire::Wait { object_ids: object_ids(), ..wire::Wait::default() }),
        ),
        (
            "Release.object_ids",
            WireRequest::Release(wire::Release { object_ids: object_ids(), counts: vec![] }),
        ),
        ("GetState.object_ids", WireRequest::GetState(wire::GetState { object_ids: object_ids() })),
        ("Delete.object_ids", WireRequest::Delete(wire::Delete { object_ids: object_ids() })),
        ("Refresh.object_ids", WireRequest::Refresh(wire::Refresh { object_ids: object_ids() })),
    ]
}

/// Every request with one id, with these bytes as the id.
fn with_one_id(object_id: &[u8]) -> Vec<(&'static str, WireRequest)> {
    let object_id = || object_id.to_vec();
    let new_object = || wire::NewObject { object_id: object_id(), ..wire::NewObject::default() };
    let create = wire::Create { object_id: object_id(), ..wire::Create::default() };
    let list = wire::ListClients { after: 0, holding: Some(object_id()) };
    let put = wire::Put { object: Some(new_object()), room: None };
    vec![
        ("Create.object_id", WireRequest::Create(create)),
        ("NewObject.object_id", WireRequest::Put(put)),
        ("NewObject.object_id", batch(vec![new_object()])),
        (
            "Seal.object_id",
            WireRequest::Seal(wire::Seal { object_id: object_id(), release: false }),
        ),
        ("Abort.object_id", WireRequest::Abort(wire::Abort { object_id: object_id() })),
        ("ListClients.holding", WireRequest::ListClients(list)),
    ]
}

#[test]
fn request_ids_max() {
    for (field, request) in with_id_list(&ids(REQUEST_IDS_MAX)) {
        assert!(decode_raw(request).is_ok(), "{field}");
    }
    for (field, request) in with_id_list(&ids(REQUEST_IDS_MAX + 1)) {
        assert_refused(field, decode_raw(request));
    }
}

#[test]
fn id_lists_are_multiples_of_twenty_bytes() {
    for len in [0, 20, 40] {
        for (field, request) in with_id_list(&vec![7; len]) {
            assert!(decode_raw(request).is_ok(), "{field} of {len} bytes");
        }
    }
    for len in [1, 19, 21, 39] {
        for (field, request) in with_id_list(&vec![7; len]) {
            assert_refused(field, decode_raw(request));
        }
    }
}

#[test]
fn ids_have_twenty_bytes() {
    for (field, request) in with_one_id(&[7; 20]) {
        assert!(decode_raw(request).is_ok(), "{field}");
    }
    for len in [0, 3, 19, 21, 40] {
        for (field, request) in with_one_id(&vec![7; len]) {
            assert_refused(field, decode_raw(request));
        }
    }
}

#[test]
fn inline_bytes_max() {
    let half = INLINE_BYTES_MAX / 2;
    let with_metadata =
        |data, metadata| wire::NewObject { metadata: vec![2; metadata], ..object(data) };
    let one = |object| WireRequest::Put(wire::Put { object: Some(object), room: None });
    for request in [
        one(object(INLINE_BYTES_MAX)),
        one(with_metadata(half, half)),
        batch(vec![object(INLINE_BYTES_MAX)]),
        batch(vec![with_metadata(half - 1, 1), object(half)]),
    ] {
        assert!(decode_raw(request).is_ok());
    }
    for request in [
        one(object(INLINE_BYTES_MAX + 1)),
        one(with_metadata(half, half + 1)),
        batch(vec![object(INLINE_BYTES_MAX + 1)]),
        batch(vec![with_metadata(half, 1), object(half)]),
    ] {
        assert_refused("NewObject.data", decode_raw(request));
    }
}

#[test]
fn batch_objects_max() {
    assert!(decode_raw(batch(vec![object(0); BATCH_OBJECTS_MAX])).is_ok());
    let one_more = batch(vec![object(0); BATCH_OBJECTS_MAX + 1]);
    assert_refused("PutBatch.objects", decode_raw(one_more));
}

#[test]
fn a_batch_is_not_empty_and_a_put_has_exactly_one_object() {
    assert_refused("PutBatch.objects", decode_raw(batch(vec![])));
    let nothing = WireRequest::Put(wire::Put { object: None, room: None });
    assert_refused("Put.object", decode_raw(nothing));

    // The body of a batch of two, under the number of a put.
    let two = wire::PutBatch { objects: vec![object(1), object(2)], room: None }.encode_to_vec();
    let mut frame = vec![0x08, 0x01, 0x2a, u8::try_from(two.len()).unwrap()];
    frame.extend(two);
    assert_refused("Put.object", decode_client(&frame));
}

#[test]
fn client_name_bytes_max() {
    // Bytes count, not characters.
    let longest = "é".repeat(CLIENT_NAME_BYTES_MAX / 2);
    let too_long = format!("{longest}x");
    let connect = |name: &str| {
        let client_name = name.to_owned();
        WireRequest::Connect(wire::Connect {
            protocol_version: 1,
            client_name,
            ..wire::Connect::default()
        })
    };
    let set_options = |name: &str| {
        let client_name = Some(name.to_owned());
        WireRequest::SetOptions(wire::SetOptions { client_name, quota: None })
    };
    assert!(decode_raw(connect(&longest)).is_ok());
    assert!(decode_raw(set_options(&longest)).is_ok());
    assert_refused("Connect.client_name", decode_raw(connect(&too_long)));
    assert_refused("SetOptions.client_name", decode_raw(set_options(&too_long)));
}

#[test]
fn sizes_that_overflow_their_sum() {
    let create = |data_size, metadata_size| {
        let object_id = ids(1);
        WireRequest::Create(wire::Create { object_id, data_size, metadata_size, room: None })
    };
    assert!(decode_raw(create(u64::MAX, 0)).is_ok());
    assert!(decode_raw(create(u64::MAX - 5, 5)).is_ok());
    assert_refused("Create.data_size", decode_raw(create(u64::MAX - 5, 6)));
}

#[test]
fn wait_count_is_at_most_the_number_of_ids() {
    let wait =
        |count| WireRequest::Wait(wire::Wait { object_ids: ids(3), count, timeout_us: None });
    assert!(decode_raw(wait(0)).is_ok());
    assert!(decode_raw(wait(3)).is_ok());
    assert_refused("Wait.count", decode_raw(wait(4)));
    assert_refused("Wait.count", decode_raw(wait(u32::MAX)));
}

#[test]
fn release_counts_match_the_ids() {
    let release = |counts: &[u32]| {
        let release = wire::Release { object_ids: ids(2), counts: counts.to_vec() };
        decode_raw(WireRequest::Release(release))
    };
    let id = ObjectId::from([7; 20]);
    let holds = |counts: [u32; 2]| {
        let holds = counts.into_iter().map(|count| (id, count)).collect();
        Ok(ClientMessage::Request(Request::Release { holds }))
    };
    assert_eq!(release(&[]), holds([1, 1]));
    assert_eq!(release(&[1, u32::MAX]), holds([1, u32::MAX]));
    for wrong in [&[1][..], &[1, 1, 1], &[1, 0], &[0, 0]] {
        assert_refused("Release.counts", release(wrong));
    }
}

#[test]
fn request_id_zero_is_for_seals_and_releases_only() {
    let may = |(name, _): &(&str, WireRequest)| name.contains("Release") || name.contains("Seal");
    let all = with_one_id(&ids(1)).into_iter().chain(with_id_list(&ids(1)));
    let (one_way, mut others): (Vec<_>, Vec<_>) = all.partition(may);
    assert_eq!(one_way.len(), 2);
    for (_, request) in one_way {
        let bytes = raw_client_bytes(0, request);
        assert_eq!(decode_client(&bytes).unwrap().0, RequestId::NONE);
    }
    others.push(("", WireRequest::GetStats(wire::GetStats {})));
    others.push(("", WireRequest::Connect(wire::Connect::default())));
    for (_, request) in others {
        assert_refused("ClientFrame.request_id", decode_client(&raw_client_bytes(0, request)));
    }
}

#[test]
fn a_request_of_an_unknown_kind_is_one_that_can_be_answered() {
    let empty = wire::ClientFrame { request_id: 4711, request: None }.encode_to_vec();
    let from_the_future = [&empty[..], &[0xba, 0x3e, 0x01, 0xff]].concat();
    for frame in [empty, from_the_future] {
        let unknown = (RequestId(4711), ClientMessage::Unknown);
        assert_eq!(decode_client(&frame), Ok(unknown));
    }
    // Nobody waits for an answer.
    assert_refused("ClientFrame.request_id", decode_client(&[]));
}

#[test]
fn fields_from_the_future_are_skipped_on_every_level() {
    /// A varint, eight bytes, a string, a group and four bytes, all with unknown numbers.
    const UNKNOWN: &[u8] = &[
        0x98, 0x3f, 0x05, // 1011, varint
        0x99, 0x3f, 1, 2, 3, 4, 5, 6, 7, 8, // 1011, fixed64
        0x9a, 0x3f, 0x02, b'h', b'i', // 1011, length-delimited
        0x9b, 0x3f, 0x08, 0x01, 0x9c, 0x3f, // 1011, group with a varint inside
        0x9d, 0x3f, 1, 2, 3, 4, // 1011, fixed32
    ];
    let nest = |tag: u8, parts: &[&[u8]]| {
        let body = parts.concat();
        let mut field = vec![tag << 3 | 2];
        prost::encoding::encode_varint(body.len() as u64, &mut field);
        [field, body].concat()
    };
    let id = nest(1, &[&ids(1)]);
    let data = nest(2, &[b"data"]);
    let object = nest(1, &[UNKNOWN, &id, UNKNOWN, &data]);
    let room = nest(2, &[UNKNOWN, &[0x08, 0x01], UNKNOWN]);

    for (tag, body) in [(5, [&object[..], UNKNOWN, &room].concat()), (8, id)] {
        let plain = decode_client(&[&[0x08, 0x01][..], &nest(tag, &[&body])].concat()).unwrap();
        let body = [UNKNOWN, &body, UNKNOWN].concat();
        let frame = [UNKNOWN, &[0x08, 0x01], &nest(tag, &[&body]), UNKNOWN].concat();
        assert_eq!(decode_client(&frame).unwrap(), plain);
    }
}

#[test]
fn a_put_that_is_cut_off_or_of_the_wrong_type_is_malformed() {
    let put = raw_client_bytes(1, WireRequest::Put(put(b"some data")));
    for len in 0..put.len() {
        // Of the number alone nobody can say what it was to be.
        let cut_off = decode_client(&put[..len]);
        let is_nothing = matches!(cut_off, Err(_) | Ok((_, ClientMessage::Unknown)));
        assert!(is_nothing, "cut off after {len} bytes: {cut_off:?}");
    }
    // Field 5 as a number; field 5 longer than any memory; inside it an id that is a number.
    for bytes in [
        &[0x28, 0x01][..],
        &[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x2a, 0x04, 0x0a, 0x02, 0x08, 0x01],
    ] {
        assert_malformed(decode_client(bytes));
    }
}
