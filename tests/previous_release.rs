//! Clients of the release before are served: what they sent then is sent once more.

mod support;

use std::collections::HashMap;

use plasma::limits::PROTOCOL_VERSION_OLDEST;
use plasma::protocol::message::{Reply, RequestId};
use support::StoreProcess;

/// Lines with a name and the kind of the answer, each with lines of bytes behind it.
const FRAMES: &str = include_str!("frames/version_1.txt");

/// Request, kind of its answer, bytes.
type Frame<'a> = (&'a str, &'a str, Vec<u8>);

fn frames(text: &str) -> Vec<Frame<'_>> {
    let mut frames: Vec<Frame<'_>> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some((request, answer)) = line.split_once(" -> ") {
            frames.push((request, answer, Vec::new()));
            continue;
        }
        let (.., bytes) = frames.last_mut().expect("a name comes first");
        let byte = |digits| u8::from_str_radix(digits, 16).expect("hexadecimal digits");
        bytes.extend(line.split_whitespace().map(byte));
    }
    frames
}

fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Connected(connected) => {
            assert_eq!(connected.protocol_version, PROTOCOL_VERSION_OLDEST);
            "Connected"
        }
        Reply::Done => "Done",
        Reply::Created(_) => "Created",
        Reply::Objects(_) | Reply::Granted(_) => "Objects",
        Reply::Ready(_) => "Ready",
        Reply::States(_) => "States",
        Reply::Deleted(_) => "Deleted",
        Reply::Evicted { .. } => "Evicted",
        Reply::Refreshed { .. } => "Refreshed",
        Reply::ObjectList { .. } => "ObjectList",
        Reply::Stats(_) => "Stats",
        Reply::DebugText(_) => "DebugText",
        Reply::ClientList { .. } => "ClientList",
        Reply::Events(_) => "Events",
        Reply::Refused(refusal) => panic!("{refusal}"),
    }
}

#[test]
fn what_the_previous_release_sent_is_answered() {
    let store = StoreProcess::start("10000000");
    let connections: Vec<_> =
        FRAMES.split("\n\n").map(frames).filter(|it| !it.is_empty()).collect();
    assert_eq!(connections.len(), 3);
    for frames in connections {
        let mut peer = store.raw_peer();
        let bytes: Vec<u8> = frames.iter().flat_map(|(.., bytes)| bytes).copied().collect();
        peer.send(&bytes).expect("the store reads");
        let mut expected: HashMap<RequestId, _> = HashMap::new();
        for (request, answer, bytes) in frames.iter().filter(|(_, answer, _)| *answer != "nothing")
        {
            let (id, _) = plasma::protocol::codec::decode_client(&bytes[8..]).expect("a request");
            expected.insert(id, (*request, *answer));
        }
        while !expected.is_empty() {
            let message = peer.receive().expect("an answer to each");
            let answer = kind(&message.reply);
            if let Some((request, expected)) = expected.remove(&message.request) {
                assert_eq!(answer, expected, "{request}");
            } else {
                assert_eq!((answer, message.request), ("Events", RequestId::NONE));
            }
        }
    }
    store.stop();
}
