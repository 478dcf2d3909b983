//! Random valid messages of every kind.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::ids::{ClientId, Location, ObjectId, SealPlace, SegmentId, Slot};
use crate::protocol::message::{
    ClientInfo, ClientMessage, Connect, Connected, DeleteOutcome, DescriptorInfo, Event, Granted,
    NewObject, ObjectInfo, ObjectState, Placed, Reply, Request, RequestId, Room, ServerMessage,
    Stats, Timeout,
};
use crate::protocol::refusal::{FullStore, Refusal};

fn placed() -> impl Strategy<Value = Placed> {
    let place = (0..u32::MAX, any::<u64>())
        .prop_map(|(slot, generation)| SealPlace { slot: Slot(slot), generation });
    (location(), option::of(place)).prop_map(|(location, seal)| Placed { location, seal })
}

pub(super) fn client_frame() -> impl Strategy<Value = (RequestId, ClientMessage)> {
    let connect = (any::<(u32, u32, bool, bool)>(), name());
    let connect = connect.prop_map(|(rest, client_name)| {
        let (protocol_version, oldest_version, reads_directory, read_only) = rest;
        ClientMessage::Connect(Connect {
            protocol_version,
            client_name,
            reads_directory,
            read_only,
            oldest_version,
        })
    });
    let answered = prop_oneof![
        1 => connect,
        20 => request().prop_map(ClientMessage::Request),
        1 => Just(ClientMessage::Unknown),
    ];
    let seal = (id(), any::<bool>()).prop_map(|(id, release)| Request::Seal { id, release });
    let one_way = prop_oneof![release(), seal].prop_map(ClientMessage::Request);
    prop_oneof![
        9 => (request_id(), answered),
        1 => (Just(RequestId::NONE), one_way),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        making(),
        using(),
        release(),
        any::<u32>().prop_map(|cursor| Request::List { cursor }),
        (any::<u64>(), option::of(id()))
            .prop_map(|(after, holding)| Request::ListClients { after: ClientId(after), holding }),
        (option::of(name()), option::of(any::<u64>()))
            .prop_map(|(client_name, quota)| Request::SetOptions { client_name, quota }),
        prop_oneof![
            any::<bool>().prop_map(|one_by_one| Request::Subscribe { one_by_one }),
            Just(Request::GetStats),
            Just(Request::GetDebugText),
            Just(Request::Disconnect),
        ],
    ]
}

fn making() -> impl Strategy<Value = Request> {
    prop_oneof![
        (id(), sizes(), room()).prop_map(|(id, (data_size, metadata_size), room)| {
            Request::Create { id, data_size, metadata_size, room }
        }),
        (new_objects(), room()).prop_map(|(objects, room)| Request::Put { objects, room }),
        (id(), any::<bool>()).prop_map(|(id, release)| Request::Seal { id, release }),
        id().prop_map(|id| Request::Abort { id }),
    ]
}

fn using() -> impl Strategy<Value = Request> {
    let wait =
        (ids(), any::<prop::sample::Index>(), timeout()).prop_map(|(ids, count, timeout)| {
            let count = count.index(ids.len() + 1);
            Request::Wait { ids, count, timeout }
        });
    prop_oneof![
        (ids(), timeout(), any::<bool>()).prop_map(|(ids, timeout, fail_if_abandoned)| {
            Request::Get { ids, timeout, fail_if_abandoned }
        }),
        wait,
        any::<u64>().prop_map(|request| Request::Cancel { request: RequestId(request) }),
        ids().prop_map(|ids| Request::GetState { ids }),
        ids().prop_map(|ids| Request::Delete { ids }),
        any::<u64>().prop_map(|bytes| Request::Evict { bytes }),
        vec(any::<u32>().prop_map(Slot), 0..12).prop_map(|slots| Request::Unpinned { slots }),
        ids().prop_map(|ids| Request::Refresh { ids }),
    ]
}

fn release() -> impl Strategy<Value = Request> {
    let count = prop_oneof![Just(1), 1_u32..];
    vec((id(), count), 0..12).prop_map(|holds| Request::Release { holds })
}

pub(super) fn new_objects() -> impl Strategy<Value = Vec<NewObject>> {
    let bytes = || vec(any::<u8>(), 0..40);
    let object =
        (id(), bytes(), bytes()).prop_map(|(id, data, metadata)| NewObject { id, data, metadata });
    vec(object, 1..6)
}

pub(super) fn room() -> impl Strategy<Value = Room> {
    (any::<bool>(), timeout()).prop_map(|(evict, timeout)| Room { evict, timeout })
}

pub(super) fn server_message() -> impl Strategy<Value = ServerMessage> {
    let events = vec(event(), 0..12).prop_map(Reply::Events);
    let answer = prop_oneof![
        9 => (request_id(), reply()),
        1 => (Just(RequestId::NONE), events),
    ];
    (answer, vec(descriptor(), 0..=8)).prop_map(|((request, reply), descriptors)| ServerMessage {
        request,
        descriptors,
        reply,
    })
}

fn granted() -> impl Strategy<Value = Granted> {
    let pin = option::of((0..u32::MAX).prop_map(Slot));
    (location(), pin).prop_map(|(location, pin)| Granted { location, pin })
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        connected().prop_map(Reply::Connected),
        Just(Reply::Done),
        placed().prop_map(Reply::Created),
        vec(option::of(location()), 0..12).prop_map(Reply::Objects),
        vec(option::of(granted()), 1..12).prop_map(Reply::Granted),
        vec(any::<bool>(), 0..12).prop_map(Reply::Ready),
        vec(state(), 0..12).prop_map(Reply::States),
        vec(outcome(), 0..12).prop_map(Reply::Deleted),
        any::<(u64, u64)>().prop_map(|(bytes, objects)| Reply::Evicted { bytes, objects }),
        any::<u32>().prop_map(|objects| Reply::Refreshed { objects }),
        (vec(object(), 0..6), option::of(any::<u32>()))
            .prop_map(|(objects, next)| Reply::ObjectList { objects, next }),
        stats().prop_map(Reply::Stats),
        "\\PC{0,200}".prop_map(Reply::DebugText),
        (vec(client(), 0..6), option::of(any::<u64>())).prop_map(|(clients, next)| {
            Reply::ClientList { clients, next: next.map(ClientId) }
        }),
        refusal().prop_map(Reply::Refused),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let full = any::<[u64; 7]>().prop_map(|numbers| {
        let [requested, capacity, used, pinned, largest_free_run, objects, objects_max] = numbers;
        Refusal::StoreFull(FullStore {
            requested,
            capacity,
            used,
            pinned,
            largest_free_run,
            objects,
            objects_max,
        })
    });
    prop_oneof![
        id().prop_map(Refusal::ObjectExists),
        id().prop_map(Refusal::ObjectNotFound),
        full,
        id().prop_map(Refusal::NotCreator),
        id().prop_map(Refusal::AlreadySealed),
        id().prop_map(Refusal::NotHeld),
        any::<(u64, u64, u64)>().prop_map(|(requested, quota, used)| {
            Refusal::QuotaExceeded { requested, quota, used }
        }),
        any::<(u64, u64)>().prop_map(|(requested, available)| {
            Refusal::QuotaUnavailable { requested, available }
        }),
        any::<u64>().prop_map(Refusal::QuotaAlreadySet),
        any::<u64>().prop_map(Refusal::TooManyWaiting),
        Just(Refusal::Cancelled),
        id().prop_map(Refusal::Abandoned),
        Just(Refusal::AlreadySubscribed),
        any::<u64>().prop_map(Refusal::TooManyEnded),
        any::<u32>().prop_map(Refusal::VersionMismatch),
        Just(Refusal::MemoryLost),
        Just(Refusal::ReadOnly),
        Just(Refusal::UnknownRequest),
        any::<u64>().prop_map(Refusal::OverRequestMemory),
        prop_oneof![i32::MIN..=0, 20..=i32::MAX].prop_map(|code| Refusal::Other { code }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (id(), sizes()).prop_map(|(id, (data_size, metadata_size))| {
            Event::Sealed { id, data_size, metadata_size }
        }),
        (id(), sizes()).prop_map(|(id, (data_size, metadata_size))| {
            Event::Deleted { id, data_size, metadata_size }
        }),
        (id(), sizes()).prop_map(|(id, (data_size, metadata_size))| {
            Event::Evicted { id, data_size, metadata_size }
        }),
        Just(Event::SnapshotEnd),
        Just(Event::Lagged),
    ]
}

fn connected() -> impl Strategy<Value = Connected> {
    let limits = [1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX];
    let numbers = any::<(u32, u64, u32, u64, [bool; 3], u32)>();
    (numbers, name(), limits).prop_map(|(numbers, version, limits)| {
        let (protocol_version, capacity, server_pid, client, flags, slots) = numbers;
        let [request_ids_max, inline_bytes_max, batch_objects_max] =
            limits.map(|limit| usize::try_from(limit).unwrap());
        Connected {
            protocol_version,
            capacity,
            server_pid,
            client: ClientId(client),
            server_version: version,
            request_ids_max,
            inline_bytes_max,
            batch_objects_max,
            clear_new_objects: flags[0],
            directory_slots: slots,
            read_only: flags[1],
            has_directory: flags[2],
        }
    })
}

fn descriptor() -> impl Strategy<Value = DescriptorInfo> {
    any::<(u32, u64, bool)>().prop_map(|(segment, segment_size, writable)| DescriptorInfo {
        segment: SegmentId(segment),
        segment_size,
        writable,
    })
}

fn object() -> impl Strategy<Value = ObjectInfo> {
    let state = prop_oneof![Just(ObjectState::Created), Just(ObjectState::Sealed)];
    let times = (micros(), option::of(micros()));
    (id(), sizes(), any::<(u32, bool)>(), times, state, option::of(any::<u64>())).prop_map(
        |(id, (data_size, metadata_size), (ref_count, delete_pending), times, state, creator)| {
            ObjectInfo {
                id,
                data_size,
                metadata_size,
                ref_count,
                create_time: times.0,
                construct_duration: times.1,
                state,
                delete_pending,
                creator: creator.map(ClientId),
            }
        },
    )
}

fn client() -> impl Strategy<Value = ClientInfo> {
    let numbers = any::<([u64; 6], [u32; 3])>();
    (name(), numbers, option::of(any::<u64>()), any::<bool>()).prop_map(
        |(
            name,
            ([id, objects, bytes, unsealed_objects, waiting_requests, quota_used], ids),
            quota,
            subscribed,
        )| {
            let [pid, uid, gid] = ids;
            ClientInfo {
                id,
                name,
                pid,
                uid,
                gid,
                objects,
                bytes,
                unsealed_objects,
                waiting_requests,
                quota,
                quota_used,
                subscribed,
            }
        },
    )
}

fn stats() -> impl Strategy<Value = Stats> {
    (any::<[u64; 10]>(), vec((name(), any::<u64>()), 0..6)).prop_map(|(gauges, counters)| {
        let [capacity, used, pinned, evictable, largest_free_run, ..] = gauges;
        let [.., objects, unsealed_objects, clients, waiting_requests, subscribers] = gauges;
        Stats {
            capacity,
            used,
            pinned,
            evictable,
            largest_free_run,
            objects,
            unsealed_objects,
            clients,
            waiting_requests,
            subscribers,
            counters,
        }
    })
}

fn state() -> impl Strategy<Value = ObjectState> {
    prop_oneof![Just(ObjectState::Absent), Just(ObjectState::Created), Just(ObjectState::Sealed),]
}

fn outcome() -> impl Strategy<Value = DeleteOutcome> {
    prop_oneof![
        Just(DeleteOutcome::NotFound),
        Just(DeleteOutcome::Deleted),
        Just(DeleteOutcome::DeferredInUse),
        Just(DeleteOutcome::DeferredNotSealed),
    ]
}

fn location() -> impl Strategy<Value = Location> {
    (any::<u32>(), any::<u64>(), sizes()).prop_map(
        |(segment, offset, (data_size, metadata_size))| {
            // What is left above the object bounds where it can start.
            let offset = offset.min(u64::MAX - data_size - metadata_size);
            Location { segment: SegmentId(segment), offset, data_size, metadata_size }
        },
    )
}

/// Sizes of data and metadata whose sum fits.
fn sizes() -> impl Strategy<Value = (u64, u64)> {
    let size = || prop_oneof![0_u64..1000, any::<u64>()];
    (size(), size()).prop_map(|(data, metadata)| (data, metadata.min(u64::MAX - data)))
}

fn request_id() -> impl Strategy<Value = RequestId> {
    (1_u64..).prop_map(RequestId)
}

fn id() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 20]>().prop_map(ObjectId::from)
}

fn ids() -> impl Strategy<Value = Vec<ObjectId>> {
    vec(id(), 0..12)
}

/// At most 60 characters of at most 4 bytes, which is within the limit.
fn name() -> impl Strategy<Value = String> {
    "\\PC{0,60}"
}

fn micros() -> impl Strategy<Value = Duration> {
    prop_oneof![0_u64..1000, any::<u64>()].prop_map(Duration::from_micros)
}

fn timeout() -> impl Strategy<Value = Timeout> {
    option::of(micros())
}
