//! What the store sends: replies and events.
//!
//! A client trusts the store with its data, but not with its life: whatever comes is either a valid
//! message or a [`ProtocolError`]. Locations are checked as well, because the client adds up their
//! numbers to find an address.

use prost::Message;

use super::listing::{
    read_client, read_object, read_outcome, read_state, read_stats, write_client, write_object,
    write_outcome, write_state, write_stats,
};
use super::refusal::{read_refusal, write_refusal};
use super::{append, check_sum, invalid, malformed, read_id};
use crate::ids::{ClientId, Location, SealPlace, SegmentId, Slot};
use crate::limits::FRAME_DESCRIPTORS_MAX;
use crate::protocol::ProtocolError;
use crate::protocol::generated::server_frame::Reply as WireReply;
use crate::protocol::generated::{self as wire, ServerFrame, event};
use crate::protocol::message::{
    Connected, DescriptorInfo, Event, Granted, Placed, Reply, RequestId, ServerMessage,
};

/// Appends the payload of a frame of the store.
pub fn encode_server(out: &mut Vec<u8>, message: &ServerMessage) {
    let descriptors = message.descriptors.iter().map(|descriptor| wire::Descriptor {
        segment: descriptor.segment.0,
        segment_size: descriptor.segment_size,
        writable: descriptor.writable,
    });
    append(
        out,
        &ServerFrame {
            request_id: message.request.0,
            descriptors: descriptors.collect(),
            reply: Some(write_reply(&message.reply)),
        },
    );
}

/// Reads the payload of a frame of the store.
///
/// # Errors
/// If it is not a message, not a known one, or has a value that no store may send.
pub fn decode_server(payload: &[u8]) -> Result<ServerMessage, ProtocolError> {
    let frame = ServerFrame::decode(payload).map_err(malformed)?;
    let request = RequestId(frame.request_id);
    let Some(reply) = frame.reply else {
        let text = format!("the reply to request {} is of no known kind", request.0);
        return Err(ProtocolError::Malformed(text));
    };
    let reply = read_reply(reply)?;
    if matches!(reply, Reply::Events(_)) != (request == RequestId::NONE) {
        let reason = format!("{} (events have 0, nothing else does)", request.0);
        return Err(invalid("ServerFrame.request_id", reason));
    }
    if frame.descriptors.len() > usize::from(FRAME_DESCRIPTORS_MAX) {
        let reason = format!("more than {FRAME_DESCRIPTORS_MAX}");
        return Err(invalid("ServerFrame.descriptors", reason));
    }
    let descriptors = frame.descriptors.iter().map(|descriptor| DescriptorInfo {
        segment: SegmentId(descriptor.segment),
        segment_size: descriptor.segment_size,
        writable: descriptor.writable,
    });
    Ok(ServerMessage { request, descriptors: descriptors.collect(), reply })
}

// ---- encoding -----------------------------------------------------------------------------------

fn write_reply(reply: &Reply) -> WireReply {
    match reply {
        Reply::Connected(connected) => WireReply::Connected(write_connected(connected)),
        Reply::Done => WireReply::Done(wire::Done {}),
        Reply::Created(Placed { location, seal }) => WireReply::Created(wire::Location {
            seal_slot: seal.map_or(0, |seal| seal.slot.0.saturating_add(1)),
            generation: seal.map_or(0, |seal| seal.generation),
            ..write_location(Some(location))
        }),
        Reply::Objects(objects) => WireReply::Objects(wire::Objects {
            objects: objects.iter().map(|location| write_location(location.as_ref())).collect(),
            pins: Vec::new(),
        }),
        Reply::Granted(granted) => WireReply::Objects(write_granted(granted)),
        Reply::Ready(ready) => WireReply::Ready(wire::Ready { ready: ready.clone() }),
        Reply::States(states) => WireReply::States(wire::States {
            states: states.iter().copied().map(write_state).collect(),
        }),
        Reply::Deleted(outcomes) => WireReply::Deleted(wire::Deleted {
            outcomes: outcomes.iter().copied().map(write_outcome).collect(),
        }),
        Reply::Evicted { bytes, objects } => {
            WireReply::Evicted(wire::Evicted { bytes: *bytes, objects: *objects })
        }
        Reply::Refreshed { objects } => WireReply::Refreshed(wire::Refreshed { objects: *objects }),
        Reply::ObjectList { objects, next } => WireReply::ObjectList(wire::ObjectList {
            objects: objects.iter().map(write_object).collect(),
            next: *next,
        }),
        Reply::Stats(stats) => WireReply::Stats(write_stats(stats.clone())),
        Reply::DebugText(text) => WireReply::DebugText(wire::DebugText { text: text.clone() }),
        Reply::ClientList { clients, next } => WireReply::ClientList(wire::ClientList {
            clients: clients.iter().cloned().map(write_client).collect(),
            next: next.map(|client| client.0),
        }),
        Reply::Events(events) => {
            WireReply::Events(wire::Events { events: events.iter().map(write_event).collect() })
        }
        Reply::Refused(refusal) => WireReply::Refusal(write_refusal(refusal)),
    }
}

fn write_connected(connected: &Connected) -> wire::Connected {
    // Limits are far below 32 bits; a larger one would only be used less than it could be.
    let limit = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    wire::Connected {
        protocol_version: connected.protocol_version,
        capacity: connected.capacity,
        server_pid: connected.server_pid,
        client_id: connected.client.0,
        server_version: connected.server_version.clone(),
        request_ids_max: limit(connected.request_ids_max),
        inline_bytes_max: limit(connected.inline_bytes_max),
        batch_objects_max: limit(connected.batch_objects_max),
        clear_new_objects: connected.clear_new_objects,
        directory_slots: connected.directory_slots,
        read_only: connected.read_only,
        has_directory: connected.has_directory,
    }
}

fn write_granted(granted: &[Option<Granted>]) -> wire::Objects {
    let location = |granted: &Option<Granted>| {
        write_location(granted.as_ref().map(|granted| &granted.location))
    };
    let pin = |granted: &Option<Granted>| {
        granted.and_then(|granted| granted.pin).map_or(0, |slot| slot.0.saturating_add(1))
    };
    wire::Objects {
        objects: granted.iter().map(location).collect(),
        pins: granted.iter().map(pin).collect(),
    }
}

fn write_location(location: Option<&Location>) -> wire::Location {
    match location {
        Some(location) => wire::Location {
            segment: location.segment.0,
            offset: location.offset,
            data_size: location.data_size,
            metadata_size: location.metadata_size,
            ..wire::Location::default()
        },
        None => wire::Location { missing: true, ..wire::Location::default() },
    }
}

fn write_event(event: &Event) -> wire::Event {
    let kind = i32::from(match event {
        Event::Sealed { .. } => event::Kind::Sealed,
        Event::Deleted { .. } => event::Kind::Deleted,
        Event::Evicted { .. } => event::Kind::Evicted,
        Event::SnapshotEnd => event::Kind::SnapshotEnd,
        Event::Lagged => event::Kind::Lagged,
    });
    match *event {
        Event::Sealed { id, data_size, metadata_size }
        | Event::Deleted { id, data_size, metadata_size }
        | Event::Evicted { id, data_size, metadata_size } => {
            let object_id = id.as_bytes().to_vec();
            wire::Event { kind, object_id, data_size, metadata_size }
        }
        Event::SnapshotEnd | Event::Lagged => wire::Event { kind, ..wire::Event::default() },
    }
}

// ---- decoding -----------------------------------------------------------------------------------

fn read_reply(reply: WireReply) -> Result<Reply, ProtocolError> {
    Ok(match reply {
        WireReply::Connected(connected) => Reply::Connected(read_connected(connected)?),
        WireReply::Done(wire::Done {}) => Reply::Done,
        WireReply::Created(created) => {
            let location = read_location(&created)?
                .ok_or_else(|| invalid("ServerFrame.created", "a new object cannot be missing"))?;
            let generation = created.generation;
            let slot = created.seal_slot.checked_sub(1).map(Slot);
            let seal = slot.map(|slot| SealPlace { slot, generation });
            Reply::Created(Placed { location, seal })
        }
        WireReply::Objects(objects) => read_objects(&objects)?,
        WireReply::Ready(ready) => Reply::Ready(ready.ready),
        WireReply::States(wire::States { states }) => {
            let states = states.into_iter().map(|state| read_state("States.states", state));
            Reply::States(states.collect::<Result<_, _>>()?)
        }
        WireReply::Deleted(wire::Deleted { outcomes }) => {
            let read = |outcome| read_outcome("Deleted.outcomes", outcome);
            Reply::Deleted(outcomes.into_iter().map(read).collect::<Result<_, _>>()?)
        }
        WireReply::Evicted(wire::Evicted { bytes, objects }) => Reply::Evicted { bytes, objects },
        WireReply::Refreshed(wire::Refreshed { objects }) => Reply::Refreshed { objects },
        WireReply::ObjectList(list) => Reply::ObjectList {
            objects: list.objects.iter().map(read_object).collect::<Result<_, _>>()?,
            next: list.next,
        },
        WireReply::Stats(stats) => Reply::Stats(read_stats(stats)),
        WireReply::DebugText(text) => Reply::DebugText(text.text),
        WireReply::ClientList(list) => Reply::ClientList {
            clients: list.clients.into_iter().map(read_client).collect(),
            next: list.next.map(ClientId),
        },
        WireReply::Events(events) => {
            Reply::Events(events.events.iter().map(read_event).collect::<Result<_, _>>()?)
        }
        WireReply::Refusal(refusal) => Reply::Refused(read_refusal(&refusal)?),
    })
}

fn read_connected(connected: wire::Connected) -> Result<Connected, ProtocolError> {
    // The client cuts its lists into pieces of these sizes, so none may be zero.
    let limit = |field: &'static str, value: u32| {
        usize::try_from(value).ok().filter(|value| *value > 0).ok_or_else(|| invalid(field, "0"))
    };
    Ok(Connected {
        protocol_version: connected.protocol_version,
        capacity: connected.capacity,
        server_pid: connected.server_pid,
        client: ClientId(connected.client_id),
        server_version: connected.server_version,
        request_ids_max: limit("Connected.request_ids_max", connected.request_ids_max)?,
        inline_bytes_max: limit("Connected.inline_bytes_max", connected.inline_bytes_max)?,
        batch_objects_max: limit("Connected.batch_objects_max", connected.batch_objects_max)?,
        clear_new_objects: connected.clear_new_objects,
        directory_slots: connected.directory_slots,
        read_only: connected.read_only,
        has_directory: connected.has_directory,
    })
}

fn read_objects(objects: &wire::Objects) -> Result<Reply, ProtocolError> {
    let wire::Objects { objects, pins } = objects;
    let locations = objects.iter().map(read_location);
    if pins.is_empty() {
        return Ok(Reply::Objects(locations.collect::<Result<_, _>>()?));
    }
    if pins.len() != objects.len() {
        let reason = format!("{} pins for {} objects", pins.len(), objects.len());
        return Err(invalid("Objects.pins", reason));
    }
    let grant = |(location, pin): (Result<Option<Location>, ProtocolError>, &u32)| {
        let pin = pin.checked_sub(1).map(Slot);
        Ok(location?.map(|location| Granted { location, pin }))
    };
    Ok(Reply::Granted(locations.zip(pins).map(grant).collect::<Result<_, ProtocolError>>()?))
}

fn read_location(location: &wire::Location) -> Result<Option<Location>, ProtocolError> {
    let wire::Location { segment, offset, data_size, metadata_size, missing, .. } = *location;
    if missing {
        return Ok(None);
    }
    check_sum("Location.offset", &[offset, data_size, metadata_size])?;
    Ok(Some(Location { segment: SegmentId(segment), offset, data_size, metadata_size }))
}

fn read_event(event: &wire::Event) -> Result<Event, ProtocolError> {
    let wire::Event { kind, data_size, metadata_size, .. } = *event;
    let kind =
        event::Kind::try_from(kind).map_err(|error| invalid("Event.kind", error.to_string()))?;
    check_sum("Event.data_size", &[data_size, metadata_size])?;
    let id = || read_id("Event.object_id", &event.object_id);
    Ok(match kind {
        event::Kind::Sealed => Event::Sealed { id: id()?, data_size, metadata_size },
        event::Kind::Deleted => Event::Deleted { id: id()?, data_size, metadata_size },
        event::Kind::Evicted => Event::Evicted { id: id()?, data_size, metadata_size },
        event::Kind::SnapshotEnd => Event::SnapshotEnd,
        event::Kind::Lagged => Event::Lagged,
    })
}
