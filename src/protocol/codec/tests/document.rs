//! What `proto/PROTOCOL.md` says is what the code does: its limits, its tables and its example.

use std::collections::BTreeSet;
use std::time::Duration;

use super::golden::{id, parse_hex, to_hex};
use super::{client_bytes, server_bytes};
use crate::ids::{ClientId, Location, SegmentId};
use crate::limits::{self, BATCH_OBJECTS_MAX, INLINE_BYTES_MAX, PROTOCOL_VERSION, REQUEST_IDS_MAX};
use crate::protocol::generated::refusal::Code;
use crate::protocol::message::{
    ClientMessage, Connect, Connected, DescriptorInfo, Event, Reply, Request, RequestId, Room,
    ServerMessage,
};

const DOCUMENT: &str = include_str!("../../../../proto/PROTOCOL.md");
const SCHEMA: &str = include_str!("../../../../proto/plasma.proto");

#[test]
fn the_table_of_limits_has_the_numbers_of_the_code() {
    macro_rules! constants {
        ($($name:ident),* $(,)?) => {
            vec![$((stringify!($name), u128::try_from(limits::$name).unwrap())),*]
        };
    }
    let constants: Vec<(&str, u128)> = constants![
        PROTOCOL_VERSION,
        PROTOCOL_VERSION_OLDEST,
        FRAME_PAYLOAD_BYTES_MAX,
        FRAME_DESCRIPTORS_MAX,
        REQUEST_IDS_MAX,
        INLINE_BYTES_MAX,
        BATCH_OBJECTS_MAX,
        CLIENT_NAME_BYTES_MAX,
        HANDSHAKE_BYTES_MAX,
        CLIENT_WAITS_MAX,
        CLIENT_WAITED_IDS_MAX,
        CLIENT_WAITED_BYTES_MAX,
        OUTBOX_BYTES_MAX,
        LIST_PART_MAX,
        CLIENTS_PART_MAX,
        EVENT_LOG_MAX,
        EVENTS_PART_MAX,
        CLIENTS_MAX,
        ALIGNMENT,
        CAPACITY_MIN,
        CAPACITY_MAX,
        OBJECTS_MAX,
        SOCKET_PATH_BYTES_MAX,
    ];
    let written: Vec<(&str, u128)> = rows("## Limits")
        .iter()
        .map(|row| (code(row[0]), row[1].replace(' ', "").parse().unwrap()))
        .collect();
    assert_eq!(written, constants);
}

#[test]
fn the_table_of_requests_is_the_schema() {
    let written: Vec<(String, String)> = rows("## Requests")
        .iter()
        .map(|row| (row[0].to_owned(), code(row[1]).to_owned()))
        .collect();
    let requests = oneof_fields("message ClientFrame {");
    assert_eq!(written, requests);

    let replies: BTreeSet<String> =
        oneof_fields("message ServerFrame {").into_iter().map(|(_, name)| name).collect();
    let answers = rows("## Requests").iter().map(|row| code(row[2]).to_owned()).collect();
    let unasked = BTreeSet::from(["Events".to_owned(), "Refusal".to_owned()]);
    assert_eq!(&replies - &unasked, answers);
}

#[test]
fn the_tables_of_refusals_are_the_schema() {
    let codes: Vec<(i32, &str)> = (1..)
        .map_while(|number| Code::try_from(number).ok())
        .map(|code| (i32::from(code), code.as_str_name()))
        .collect();
    let written: Vec<(i32, &str)> =
        rows("## Refusals").iter().map(|row| (row[0].parse().unwrap(), code(row[1]))).collect();
    assert_eq!(written, codes);

    let mut named: BTreeSet<&str> =
        rows("## Requests").into_iter().flat_map(|row| codes_in(row[4])).collect();
    // Of requests that are not in the table.
    named.insert("UNKNOWN_REQUEST");
    assert_eq!(named, codes.iter().map(|(_, name)| *name).collect());
}

#[test]
fn the_worked_example_is_what_travels() {
    let mut written: Vec<(&str, Vec<u8>)> = Vec::new();
    let block = DOCUMENT.split_once("```frames\n").expect("the example").1;
    let block = block.split_once("```").expect("its end").0;
    for line in block.lines().filter(|line| !line.is_empty()) {
        let (who, rest) = line.split_at(8);
        let hex = rest.split(';').next().expect("split gives at least one piece");
        if !who.trim().is_empty() {
            written.push((who.trim(), Vec::new()));
        }
        written.last_mut().expect("a frame has begun").1.extend(parse_hex(hex));
    }
    let travels = conversation();
    assert_eq!(written.len(), travels.len());
    for ((who, bytes), (expected_who, expected)) in written.iter().zip(&travels) {
        assert_eq!((who, to_hex(bytes)), (expected_who, to_hex(expected)));
    }
}

/// A frame with its header, and who sends it.
type Sent = (&'static str, Vec<u8>);

/// The frames of the example.
fn conversation() -> Vec<Sent> {
    let location = Location { segment: SegmentId(0), offset: 64, data_size: 5, metadata_size: 2 };
    let room = Room { evict: true, timeout: Some(Duration::ZERO) };
    let timeout = Some(Duration::from_secs(1));
    vec![
        opening(),
        from_store(1, vec![], Reply::Connected(connected())),
        from_client(2, Request::Create { id: id(), data_size: 5, metadata_size: 2, room }),
        from_store(2, vec![descriptor(true)], Reply::Created(location.into())),
        from_client(3, Request::Seal { id: id(), release: true }),
        from_store(3, vec![], Reply::Done),
        from_client(4, Request::Get { ids: vec![id()], timeout, fail_if_abandoned: false }),
        from_store(4, vec![descriptor(false)], Reply::Objects(vec![Some(location)])),
        from_client(0, Request::Release { holds: vec![(id(), 1)] }),
        from_store(0, vec![], Reply::Events(events())),
    ]
}

fn opening() -> Sent {
    let connect = Connect {
        protocol_version: PROTOCOL_VERSION,
        client_name: "me".into(),
        ..Connect::default()
    };
    let payload = client_bytes(RequestId(1), &ClientMessage::Connect(connect));
    ("client", with_header(0, &payload))
}

fn from_client(number: u64, request: Request) -> Sent {
    let payload = client_bytes(RequestId(number), &ClientMessage::Request(request));
    ("client", with_header(0, &payload))
}

fn from_store(number: u64, descriptors: Vec<DescriptorInfo>, reply: Reply) -> Sent {
    let count = u8::try_from(descriptors.len()).unwrap();
    let message = ServerMessage { request: RequestId(number), descriptors, reply };
    ("store", with_header(count, &server_bytes(&message)))
}

fn descriptor(writable: bool) -> DescriptorInfo {
    DescriptorInfo { segment: SegmentId(0), segment_size: 1 << 20, writable }
}

fn events() -> Vec<Event> {
    let sealed = Event::Sealed { id: id(), data_size: 5, metadata_size: 2 };
    vec![sealed, Event::SnapshotEnd]
}

fn connected() -> Connected {
    Connected {
        protocol_version: PROTOCOL_VERSION,
        capacity: 1_000_000,
        server_pid: 4711,
        client: ClientId(1),
        server_version: "0.1.0".into(),
        request_ids_max: REQUEST_IDS_MAX,
        inline_bytes_max: INLINE_BYTES_MAX,
        batch_objects_max: BATCH_OBJECTS_MAX,
        clear_new_objects: false,
        directory_slots: 0,
        read_only: false,
        has_directory: false,
    }
}

/// Payload length in four bytes, descriptors in two, two zeros: as the document has it.
fn with_header(descriptors: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&len[..], &[descriptors, 0, 0, 0], payload].concat()
}

/// The cells of the first table under a heading, without its two head lines.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = DOCUMENT.split_once(&format!("\n{heading}\n")).expect(heading).1;
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The first thing in backticks.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_else(|| panic!("no name in {cell:?}"))
}

/// Everything in backticks.
fn codes_in(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Number and type of the fields of the oneof in a message of the schema.
fn oneof_fields(message: &str) -> Vec<(String, String)> {
    let body = SCHEMA.split_once(message).expect(message).1;
    let body = body.split_once("oneof").expect("a oneof").1;
    let body = body.split_once('}').expect("its end").0;
    let fields = body.lines().filter_map(|line| {
        let (left, number) = line.trim().strip_suffix(';')?.split_once(" = ")?;
        let (kind, _name) = left.split_once(' ')?;
        Some((number.to_owned(), kind.to_owned()))
    });
    fields.collect()
}
