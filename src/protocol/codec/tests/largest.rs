//! The limits fit each other: no legal message is larger than a frame.

use std::time::Duration;

use super::{client_bytes, server_bytes};
use crate::ids::{ClientId, Location, ObjectId, SegmentId};
use crate::limits::{
    BATCH_OBJECTS_MAX, CLIENT_NAME_BYTES_MAX, CLIENTS_PART_MAX, EVENTS_PART_MAX,
    FRAME_DESCRIPTORS_MAX, FRAME_PAYLOAD_BYTES_MAX, INLINE_BYTES_MAX, LIST_PART_MAX,
    REQUEST_IDS_MAX,
};
use crate::protocol::codec::{decode_client, decode_server};
use crate::protocol::message::{
    ClientInfo, ClientMessage, DescriptorInfo, Event, NewObject, ObjectInfo, ObjectState, Reply,
    Request, RequestId, Room, ServerMessage,
};

const ID: [u8; 20] = [0xff; 20];
const LONGEST: Duration = Duration::from_micros(u64::MAX);

#[test]
fn requests() {
    let id = ObjectId::from(ID);
    let timeout = Some(LONGEST);
    // One byte in each object and the rest in the first one.
    let first = INLINE_BYTES_MAX - (BATCH_OBJECTS_MAX - 1);
    let objects = (0..BATCH_OBJECTS_MAX).map(|index| {
        let data = vec![1; if index == 0 { first } else { 1 }];
        NewObject { id, data, metadata: vec![] }
    });
    let room = Room { evict: false, timeout };
    let requests = [
        Request::Put { objects: objects.collect(), room },
        Request::Wait { ids: vec![id; REQUEST_IDS_MAX], count: REQUEST_IDS_MAX, timeout },
        Request::Release { holds: vec![(id, u32::MAX); REQUEST_IDS_MAX] },
    ];
    for request in requests {
        let name = request.traits().name;
        let message = ClientMessage::Request(request);
        let bytes = client_bytes(RequestId(u64::MAX), &message);
        assert!(bytes.len() <= FRAME_PAYLOAD_BYTES_MAX as usize, "{name}: {} bytes", bytes.len());
        assert!(decode_client(&bytes).unwrap().1 == message, "{name} changed on the way");
    }
}

#[test]
fn replies() {
    let location = Location {
        segment: SegmentId(u32::MAX),
        offset: 1 << 62,
        data_size: 1 << 63,
        metadata_size: 1 << 61,
    };
    assert_fits(RequestId(u64::MAX), Reply::Objects(vec![Some(location); REQUEST_IDS_MAX]));
    let objects = vec![largest_object(); LIST_PART_MAX];
    assert_fits(RequestId(u64::MAX), Reply::ObjectList { objects, next: Some(u32::MAX) });
    let clients = vec![largest_client(); CLIENTS_PART_MAX];
    let next = Some(ClientId(u64::MAX));
    assert_fits(RequestId(u64::MAX), Reply::ClientList { clients, next });
}

#[test]
fn events() {
    let id = ObjectId::from(ID);
    let event = Event::Evicted { id, data_size: 1 << 63, metadata_size: (1 << 63) - 1 };
    assert_fits(RequestId::NONE, Reply::Events(vec![event; EVENTS_PART_MAX]));
}

#[track_caller]
fn assert_fits(request: RequestId, reply: Reply) {
    let descriptor =
        DescriptorInfo { segment: SegmentId(u32::MAX), segment_size: u64::MAX, writable: true };
    let descriptors = vec![descriptor; usize::from(FRAME_DESCRIPTORS_MAX)];
    let message = ServerMessage { request, descriptors, reply };
    let bytes = server_bytes(&message);
    assert!(bytes.len() <= FRAME_PAYLOAD_BYTES_MAX as usize, "{} bytes", bytes.len());
    assert!(decode_server(&bytes).unwrap() == message, "changed on the way");
}

fn largest_object() -> ObjectInfo {
    ObjectInfo {
        id: ObjectId::from(ID),
        data_size: 1 << 63,
        metadata_size: (1 << 63) - 1,
        ref_count: u32::MAX,
        create_time: LONGEST,
        construct_duration: Some(LONGEST),
        state: ObjectState::Created,
        delete_pending: true,
        creator: Some(ClientId(u64::MAX)),
    }
}

fn largest_client() -> ClientInfo {
    ClientInfo {
        id: u64::MAX,
        name: "x".repeat(CLIENT_NAME_BYTES_MAX),
        pid: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        objects: u64::MAX,
        bytes: u64::MAX,
        unsealed_objects: u64::MAX,
        waiting_requests: u64::MAX,
        quota: Some(u64::MAX),
        quota_used: u64::MAX,
        subscribed: true,
    }
}
