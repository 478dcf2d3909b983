//! The wire format, written out: a payload of every kind, byte by byte.
//!
//! A change that breaks one of these lines breaks every client in every language; it needs a new
//! protocol version. `ID` stands for the twenty bytes of the one object that all of them are about.

use std::collections::BTreeSet;
use std::time::Duration;

use prost::encoding::{decode_key, skip_field};

use super::{client_bytes, server_bytes};
use crate::ids::{ClientId, Location, ObjectId, SegmentId};
use crate::protocol::codec::{decode_client, decode_server};
use crate::protocol::generated::refusal::Code;
use crate::protocol::message::{
    ClientInfo, ClientMessage, Connect, Connected, DeleteOutcome, DescriptorInfo, Event, NewObject,
    ObjectInfo, ObjectState, Reply, Request, RequestId, Room, ServerMessage, Stats,
};
use crate::protocol::refusal::{FullStore, Refusal};

const ID_BYTES: [u8; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];

/// The object of all examples.
pub(super) fn id() -> ObjectId {
    ObjectId::from(ID_BYTES)
}

#[test]
fn requests_are_written_as_ever() {
    let mut tags = BTreeSet::new();
    for (request, hex) in requests() {
        let bytes = parse_hex(hex);
        assert_eq!(to_hex(&client_bytes(RequestId(3), &request)), to_hex(&bytes), "{request:?}");
        assert_eq!(decode_client(&bytes), Ok((RequestId(3), request)));
        tags.extend(tags_of(&bytes));
    }
    assert_eq!(tags, (1..=22).collect(), "every field of ClientFrame has an example");
}

#[test]
fn replies_are_written_as_ever() {
    let mut tags = BTreeSet::new();
    for (message, hex) in replies() {
        let bytes = parse_hex(hex);
        assert_eq!(to_hex(&server_bytes(&message)), to_hex(&bytes), "{message:?}");
        assert_eq!(decode_server(&bytes), Ok(message));
        tags.extend(tags_of(&bytes));
    }
    assert_eq!(tags, (1..=17).collect(), "every field of ServerFrame has an example");
}

#[test]
fn refusals_are_written_as_ever() {
    let refusals = refusals();
    // One of a newer store at the end.
    assert_eq!(refusals.len(), 20);
    assert!(Code::try_from(19).is_ok() && Code::try_from(20).is_err(), "a new code needs a line");
    for (index, (refusal, hex)) in refusals.into_iter().enumerate() {
        let body = parse_hex(hex);
        assert_eq!(body[..2], [0x08, u8::try_from(index + 1).unwrap()], "codes count up from 1");
        let header = [0x08, 0x03, 0x8a, 0x01, u8::try_from(body.len()).unwrap()];
        let bytes = [&header[..], &body].concat();
        let message = answer(Reply::Refused(refusal));
        assert_eq!(to_hex(&server_bytes(&message)), to_hex(&bytes), "{message:?}");
        assert_eq!(decode_server(&bytes), Ok(message));
    }
}

/// The numbers of the fields in a frame.
fn tags_of(mut payload: &[u8]) -> Vec<u32> {
    let mut tags = Vec::new();
    while !payload.is_empty() {
        let (tag, wire_type) = decode_key(&mut payload).unwrap();
        skip_field(wire_type, tag, &mut payload, Default::default()).unwrap();
        tags.push(tag);
    }
    tags
}

pub(super) fn parse_hex(text: &str) -> Vec<u8> {
    let digits: String = text.replace("ID", &id().to_string()).split_whitespace().collect();
    let pairs = digits.as_bytes().chunks_exact(2);
    assert!(pairs.remainder().is_empty(), "half a byte in {text:?}");
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(reply: Reply) -> ServerMessage {
    ServerMessage { request: RequestId(3), descriptors: vec![], reply }
}

fn requests() -> Vec<(ClientMessage, &'static str)> {
    let connect = Connect { protocol_version: 1, client_name: "me".into(), ..Connect::default() };
    let reader = Connect { read_only: true, oldest_version: 1, ..connect.clone() };
    let mut all = vec![
        (ClientMessage::Connect(connect), "0803 1206 080112026d65"),
        (ClientMessage::Connect(reader), "0803 120a 080112026d6520012801"),
    ];
    let requests = [making_requests(), using_requests(), other_requests()].concat();
    all.extend(requests.into_iter().map(|(request, hex)| (ClientMessage::Request(request), hex)));
    all
}

fn making_requests() -> Vec<(Request, &'static str)> {
    let patient = Room { evict: true, timeout: None };
    let modest = Room { evict: false, timeout: Some(Duration::ZERO) };
    let object = |data: &[u8]| NewObject { id: id(), data: data.into(), metadata: vec![0xee] };
    vec![
        (
            Request::Create { id: id(), data_size: 300, metadata_size: 2, room: modest },
            "0803 2221 0a14 ID 10ac021802220408011000",
        ),
        (
            Request::Create { id: id(), data_size: 0, metadata_size: 0, room: patient },
            "0803 2218 0a14 ID 2200",
        ),
        (
            Request::Put { objects: vec![object(&[0xda])], room: modest },
            "0803 2a24 0a1c0a14 ID 1201da1a01ee120408011000",
        ),
        (
            Request::Put { objects: vec![object(&[0xda]), object(&[])], room: patient },
            "0803 323b 0a1c0a14 ID 1201da1a01ee0a190a14 ID 1a01ee1200",
        ),
        (Request::Seal { id: id(), release: true }, "0803 3a18 0a14 ID 1001"),
        (Request::Abort { id: id() }, "0803 4216 0a14 ID"),
    ]
}

fn using_requests() -> Vec<(Request, &'static str)> {
    let micros = |micros| Some(Duration::from_micros(micros));
    let ids = || vec![id()];
    vec![
        (
            Request::Get { ids: ids(), timeout: micros(300), fail_if_abandoned: true },
            "0803 4a1b 0a14 ID 10ac021801",
        ),
        (
            Request::Get { ids: vec![id(), id()], timeout: None, fail_if_abandoned: false },
            "0803 4a2a 0a28 ID ID",
        ),
        (Request::Wait { ids: ids(), count: 1, timeout: micros(0) }, "0803 521a 0a14 ID 10011800"),
        (Request::Cancel { request: RequestId(300) }, "0803 5a03 08ac02"),
        (Request::Release { holds: vec![(id(), 1)] }, "0803 6216 0a14 ID"),
        (
            Request::Release { holds: vec![(id(), 1), (id(), 300)] },
            "0803 622f 0a28 ID ID 120301ac02",
        ),
        (Request::GetState { ids: ids() }, "0803 6a16 0a14 ID"),
        (Request::Delete { ids: ids() }, "0803 7216 0a14 ID"),
        (Request::Evict { bytes: 300 }, "0803 7a03 08ac02"),
        (Request::Refresh { ids: ids() }, "0803 820116 0a14 ID"),
    ]
}

fn other_requests() -> Vec<(Request, &'static str)> {
    vec![
        (
            Request::SetOptions { client_name: Some("me".into()), quota: Some(300) },
            "0803 1a07 0a026d6510ac02",
        ),
        (Request::SetOptions { client_name: None, quota: None }, "0803 1a00"),
        (Request::List { cursor: 300 }, "0803 8a0103 08ac02"),
        (Request::Subscribe { one_by_one: false }, "0803 920100"),
        (Request::Subscribe { one_by_one: true }, "0803 92010208 01"),
        (Request::GetStats, "0803 9a0100"),
        (Request::GetDebugText, "0803 a20100"),
        (
            Request::ListClients { after: ClientId(300), holding: Some(id()) },
            "0803 aa0119 08ac021214 ID",
        ),
        (Request::Disconnect, "0803 b20100"),
    ]
}

fn replies() -> Vec<(ServerMessage, &'static str)> {
    [object_replies(), other_replies()].concat()
}

fn object_replies() -> Vec<(ServerMessage, &'static str)> {
    let location = Location { segment: SegmentId(1), offset: 64, data_size: 300, metadata_size: 2 };
    let descriptor =
        |writable| DescriptorInfo { segment: SegmentId(1), segment_size: 4096, writable };
    let states = vec![ObjectState::Absent, ObjectState::Created, ObjectState::Sealed];
    let outcomes = vec![
        DeleteOutcome::NotFound,
        DeleteOutcome::Deleted,
        DeleteOutcome::DeferredInUse,
        DeleteOutcome::DeferredNotSealed,
    ];
    vec![
        (answer(Reply::Done), "0803 2200"),
        (
            ServerMessage {
                descriptors: vec![descriptor(true), descriptor(false)],
                ..answer(Reply::Created(location.into()))
            },
            "0803 1207 08011080201801 1205 0801108020 2a09 0801104018ac022002",
        ),
        (
            answer(Reply::Objects(vec![Some(location), None])),
            "0803 320f 0a090801104018ac0220020a022801",
        ),
        (answer(Reply::Ready(vec![true, false])), "0803 3a04 0a020100"),
        (answer(Reply::States(states)), "0803 4205 0a03000102"),
        (answer(Reply::Deleted(outcomes)), "0803 4a06 0a0400010203"),
        (answer(Reply::Evicted { bytes: 300, objects: 2 }), "0803 5205 08ac021002"),
        (answer(Reply::Refreshed { objects: 300 }), "0803 5a03 08ac02"),
    ]
}

fn other_replies() -> Vec<(ServerMessage, &'static str)> {
    let sealed = Event::Sealed { id: id(), data_size: 300, metadata_size: 2 };
    let deleted = Event::Deleted { id: id(), data_size: 300, metadata_size: 2 };
    let evicted = Event::Evicted { id: id(), data_size: 300, metadata_size: 2 };
    let events = vec![sealed, deleted, evicted, Event::SnapshotEnd, Event::Lagged];
    vec![
        (
            answer(Reply::Connected(connected())),
            "0803 1a14 080110ac02180220032a01343005380640074801",
        ),
        (
            answer(Reply::ObjectList { objects: vec![object_info()], next: Some(300) }),
            "0803 622b 0a260a14 ID 1002180320042805300638024001480910ac02",
        ),
        (
            answer(Reply::Stats(stats())),
            "0803 6a1b 080110021803200428053006380740084809500a5a050a016e100b",
        ),
        (answer(Reply::DebugText("text".into())), "0803 7206 0a0474657874"),
        (
            answer(Reply::ClientList { clients: vec![client_info()], next: Some(ClientId(300)) }),
            "0803 7a1e 0a1908011201321803200428053006380740084809500a580b600110ac02",
        ),
        (
            ServerMessage { request: RequestId::NONE, ..answer(Reply::Events(events)) },
            "820163 0a1b1214 ID 18ac022002 \
             0a1d08011214 ID 18ac022002 0a1d08021214 ID 18ac022002 0a020803 0a020804",
        ),
        (answer(Reply::Refused(Refusal::Cancelled)), "0803 8a0102 080b"),
    ]
}

fn refusals() -> Vec<(Refusal, &'static str)> {
    let full = FullStore {
        requested: 1,
        capacity: 2,
        used: 3,
        pinned: 4,
        largest_free_run: 5,
        objects: 6,
        objects_max: 7,
    };
    vec![
        (Refusal::ObjectExists(id()), "08011214 ID"),
        (Refusal::ObjectNotFound(id()), "08021214 ID"),
        (Refusal::StoreFull(full), "08031801200228033004380540064807"),
        (Refusal::NotCreator(id()), "08041214 ID"),
        (Refusal::AlreadySealed(id()), "08051214 ID"),
        (Refusal::NotHeld(id()), "08061214 ID"),
        (Refusal::QuotaExceeded { requested: 1, quota: 2, used: 3 }, "0807180128034802"),
        (Refusal::QuotaUnavailable { requested: 1, available: 2 }, "080818014802"),
        (Refusal::QuotaAlreadySet(300), "080948ac02"),
        (Refusal::TooManyWaiting(300), "080a48ac02"),
        (Refusal::Cancelled, "080b"),
        (Refusal::Abandoned(id()), "080c1214 ID"),
        (Refusal::AlreadySubscribed, "080d"),
        (Refusal::VersionMismatch(2), "080e4802"),
        (Refusal::TooManyEnded(16), "080f4810"),
        (Refusal::MemoryLost, "0810"),
        (Refusal::ReadOnly, "0811"),
        (Refusal::UnknownRequest, "0812"),
        (Refusal::OverRequestMemory(300), "081348ac02"),
        (Refusal::Other { code: 20 }, "0814"),
    ]
}

fn connected() -> Connected {
    Connected {
        protocol_version: 1,
        capacity: 300,
        server_pid: 2,
        client: ClientId(3),
        server_version: "4".into(),
        request_ids_max: 5,
        inline_bytes_max: 6,
        batch_objects_max: 7,
        clear_new_objects: true,
        directory_slots: 0,
        read_only: false,
        has_directory: false,
    }
}

fn object_info() -> ObjectInfo {
    ObjectInfo {
        id: id(),
        data_size: 2,
        metadata_size: 3,
        ref_count: 4,
        create_time: Duration::from_micros(5),
        construct_duration: Some(Duration::from_micros(6)),
        state: ObjectState::Sealed,
        delete_pending: true,
        creator: Some(ClientId(9)),
    }
}

fn client_info() -> ClientInfo {
    ClientInfo {
        id: 1,
        name: "2".into(),
        pid: 3,
        uid: 4,
        gid: 5,
        objects: 6,
        bytes: 7,
        unsealed_objects: 8,
        waiting_requests: 9,
        quota: Some(10),
        quota_used: 11,
        subscribed: true,
    }
}

fn stats() -> Stats {
    Stats {
        capacity: 1,
        used: 2,
        pinned: 3,
        evictable: 4,
        largest_free_run: 5,
        objects: 6,
        unsealed_objects: 7,
        clients: 8,
        waiting_requests: 9,
        subscribers: 10,
        counters: vec![("n".into(), 11)],
    }
}
