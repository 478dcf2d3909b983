//! Frames must not depend on how the stream was cut, and memory must follow the bytes that came.

use super::*;
use proptest::prelude::*;

type OwnedFrame = (u16, Vec<u8>);

#[test]
fn every_split_position_gives_the_same_frames() {
    let frames =
        [(0, b"x".to_vec()), (3, vec![7; 300]), (8, vec![0; HEADER_BYTES]), (0, b"last".to_vec())];
    let stream = encode(&frames);
    for first in 0..=stream.len() {
        for second in [first, (first + 1).min(stream.len()), stream.len()] {
            let mut reader = FrameReader::new(FRAME_DESCRIPTORS_MAX);
            let mut seen = Vec::new();
            for piece in [&stream[..first], &stream[first..second], &stream[second..]] {
                feed(&mut reader, piece, 16, &mut seen).unwrap();
            }
            assert_eq!(seen, frames, "split at {first} and {second}");
            assert!(!reader.is_mid_frame());
        }
    }
}

#[test]
fn a_header_has_the_documented_bytes() {
    let mut out = b"before".to_vec();
    append_frame(&mut out, 2, |out| out.extend_from_slice(b"abc")).unwrap();
    assert_eq!(out, b"before\x03\0\0\0\x02\0\0\0abc");
}

#[test]
fn a_frame_that_cannot_be_sent_leaves_nothing_behind() {
    let mut out = b"before".to_vec();
    let limit = FRAME_PAYLOAD_BYTES_MAX;
    let largest = usize::try_from(limit).unwrap();

    assert_eq!(append_frame(&mut out, 0, |_| {}), Err(ProtocolError::EmptyFrame));
    assert_eq!(
        append_frame(&mut out, 0, |out| out.resize(out.len() + largest + 1, 0)),
        Err(ProtocolError::FrameTooLarge { announced: limit + 1, limit })
    );
    assert_eq!(
        append_frame(&mut out, FRAME_DESCRIPTORS_MAX + 1, |out| out.push(0)),
        Err(ProtocolError::TooManyDescriptors {
            announced: FRAME_DESCRIPTORS_MAX + 1,
            limit: FRAME_DESCRIPTORS_MAX
        })
    );
    assert_eq!(out, b"before");

    append_frame(&mut out, 0, |out| out.resize(out.len() + largest, 0)).unwrap();
    assert_eq!(out.len(), 6 + HEADER_BYTES + largest);
}

#[test]
fn each_bad_header_has_its_error() {
    let limit = FRAME_PAYLOAD_BYTES_MAX;
    let cases = [
        (header(1, 0, 0x0102), ProtocolError::ReservedNotZero(0x0102)),
        (header(0, 0, 0), ProtocolError::EmptyFrame),
        (header(limit + 1, 0, 0), ProtocolError::FrameTooLarge { announced: limit + 1, limit }),
        (header(u32::MAX, 0, 0), ProtocolError::FrameTooLarge { announced: u32::MAX, limit }),
        (header(1, 3, 0), ProtocolError::TooManyDescriptors { announced: 3, limit: 2 }),
    ];
    for (bytes, expected) in cases {
        let mut reader = FrameReader::new(2);
        let result = feed(&mut reader, &bytes, 16, &mut Vec::new());
        assert_eq!(result, Err(expected));
    }
}

#[test]
fn frames_before_a_bad_one_are_delivered_and_the_reader_stays_poisoned() {
    let good = (0, b"good".to_vec());
    let mut stream = encode(std::slice::from_ref(&good));
    stream.extend_from_slice(&header(0, 0, 0));
    let mut reader = FrameReader::new(0);
    let mut seen = Vec::new();
    assert_eq!(feed(&mut reader, &stream, 4096, &mut seen), Err(ProtocolError::EmptyFrame));
    assert_eq!(seen, std::slice::from_ref(&good));

    let later = encode(&[good]);
    for _ in 0..1000 {
        let result = feed(&mut reader, &later, 4096, &mut seen);
        assert_eq!(result, Err(ProtocolError::EmptyFrame));
    }
    assert_eq!(seen.len(), 1, "nothing comes out of a poisoned reader");
    assert!(reader.buffer.capacity() < 8192, "a poisoned reader collects nothing");
}

#[test]
fn the_end_of_the_stream_inside_a_frame_is_noticed() {
    let stream = encode(&[(0, b"payload".to_vec())]);
    let mut reader = FrameReader::new(0);
    assert!(!reader.is_mid_frame());
    feed(&mut reader, &stream[..1], 16, &mut Vec::new()).unwrap();
    assert!(reader.is_mid_frame(), "inside the header");
    feed(&mut reader, &stream[1..12], 16, &mut Vec::new()).unwrap();
    assert!(reader.is_mid_frame(), "inside the payload");
    feed(&mut reader, &stream[12..], 16, &mut Vec::new()).unwrap();
    assert!(!reader.is_mid_frame());
}

#[test]
fn announcing_a_large_frame_allocates_one_step_only() {
    let mut reader = FrameReader::new(0);
    feed(&mut reader, &header(FRAME_PAYLOAD_BYTES_MAX, 0, 0), 16, &mut Vec::new()).unwrap();
    let room = reader.space(16).len();
    assert!(room <= STEP_BYTES, "{room}");
    assert!(reader.buffer.capacity() <= STEP_BYTES + 64);
}

#[test]
fn a_large_frame_does_not_stay_allocated() {
    let largest = usize::try_from(FRAME_PAYLOAD_BYTES_MAX).unwrap();
    let mut stream = encode(&[(0, vec![1; largest])]);
    stream.extend_from_slice(&encode(&[(0, b"next".to_vec())])[..10]);
    let mut reader = FrameReader::new(0);
    let mut seen = Vec::new();
    feed(&mut reader, &stream, 4096, &mut seen).unwrap();
    assert_eq!(seen.len(), 1);
    assert!(reader.is_mid_frame());
    assert!(reader.buffer.capacity() <= RETAINED_BYTES_MAX, "{}", reader.buffer.capacity());
}

#[test]
fn an_idle_reader_costs_nothing() {
    let mut reader = FrameReader::new(0);
    let mut seen = Vec::new();
    feed(&mut reader, &encode(&[(0, b"one".to_vec())]), 4096, &mut seen).unwrap();
    // The receive that finds the socket empty.
    reader.space(4096);
    reader.give_back_memory();
    assert_eq!(reader.buffer.capacity(), 0);

    let second = encode(&[(0, b"two".to_vec())]);
    feed(&mut reader, &second[..9], 4096, &mut seen).unwrap();
    reader.give_back_memory();
    feed(&mut reader, &second[9..], 4096, &mut seen).unwrap();
    assert_eq!(seen.last().unwrap().1, b"two", "what was half received is kept");
}

#[test]
fn readers_share_one_buffer() {
    let mut spare = vec![1; 5000];
    let (buffer, frame) = (spare.as_ptr(), encode(&[(0, b"frame".to_vec())]));
    for _ in 0..3 {
        let mut reader = FrameReader::new(0);
        reader.borrow_memory(&mut spare);
        reader.space(4096)[..frame.len()].copy_from_slice(&frame);
        reader.advance(frame.len());
        assert_eq!(reader.next_frame().unwrap().unwrap().payload, b"frame");
        reader.lend_memory(&mut spare);
        assert_eq!((spare.as_ptr(), reader.buffer.capacity()), (buffer, 0));
    }

    let mut busy = FrameReader::new(0);
    busy.borrow_memory(&mut spare);
    busy.space(4096)[..9].copy_from_slice(&frame[..9]);
    busy.advance(9);
    busy.lend_memory(&mut spare);
    assert!(spare.is_empty(), "who has received half a frame keeps it");
    let space = busy.space(1);
    space[..frame.len() - 9].copy_from_slice(&frame[9..]);
    busy.advance(frame.len() - 9);
    assert_eq!(busy.next_frame().unwrap().unwrap().payload, b"frame");
}

#[test]
fn complete_frames_may_stay_inside_while_more_is_received() {
    let frames: Vec<OwnedFrame> = (0..50).map(|n| (0, vec![n; 100])).collect();
    let mut reader = FrameReader::new(0);
    let stream = encode(&frames);
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let room = reader.space(90);
        let (piece, later) = rest.split_at(room.len().min(rest.len()));
        room[..piece.len()].copy_from_slice(piece);
        reader.advance(piece.len());
        rest = later;
    }
    let mut seen = Vec::new();
    take_frames(&mut reader, &mut seen).unwrap();
    assert_eq!(seen, frames);
}

#[test]
#[should_panic(expected = "more came than there was room for")]
fn advancing_beyond_the_room_is_our_own_bug() {
    let mut reader = FrameReader::new(0);
    let room = reader.space(10).len();
    reader.advance(room + 1);
}

proptest! {
    #[test]
    fn any_cutting_gives_the_same_frames(
        frames in prop::collection::vec(
            (0..=FRAME_DESCRIPTORS_MAX, prop::collection::vec(any::<u8>(), 1..4000)),
            0..12,
        ),
        pieces in prop::collection::vec(1_usize..6000, 1..20),
        at_least in 0_usize..9000,
    ) {
        let stream = encode(&frames);
        let mut reader = FrameReader::new(FRAME_DESCRIPTORS_MAX);
        let mut seen = Vec::new();
        let mut rest = &stream[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            feed(&mut reader, now, at_least, &mut seen).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, frames);
        prop_assert!(!reader.is_mid_frame());
    }

    #[test]
    fn arbitrary_bytes_neither_panic_nor_allocate_much(
        start in prop::collection::vec(any::<u8>(), 0..40),
        announced in 0..=FRAME_PAYLOAD_BYTES_MAX + 1,
        pieces in prop::collection::vec(1_usize..3000, 1..40),
    ) {
        let mut reader = FrameReader::new(1);
        let mut came = 0;
        let head = [&header(announced, 0, 0)[..], &start].concat();
        for piece in std::iter::once(head).chain(pieces.iter().map(|&bytes| vec![1; bytes])) {
            came += piece.len();
            // A bad header is one of the expected outcomes.
            let _ = feed(&mut reader, &piece, 512, &mut Vec::new());
            prop_assert!(reader.buffer.capacity() <= 2 * came + STEP_BYTES + 2 * 512);
        }
    }
}

fn header(length: u32, descriptors: u16, reserved: u16) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&descriptors.to_le_bytes());
    bytes.extend_from_slice(&reserved.to_le_bytes());
    bytes
}

fn encode(frames: &[OwnedFrame]) -> Vec<u8> {
    let mut out = Vec::new();
    for (descriptors, payload) in frames {
        append_frame(&mut out, *descriptors, |out| out.extend_from_slice(payload)).unwrap();
    }
    out
}

/// Does with `bytes` what the owner of a socket does with what it receives.
fn feed(
    reader: &mut FrameReader,
    mut bytes: &[u8],
    at_least: usize,
    seen: &mut Vec<OwnedFrame>,
) -> Result<(), ProtocolError> {
    while !bytes.is_empty() {
        let room = reader.space(at_least);
        let piece = room.len().min(bytes.len());
        assert!(piece > 0, "the room is never empty");
        room[..piece].copy_from_slice(&bytes[..piece]);
        reader.advance(piece);
        bytes = &bytes[piece..];
        take_frames(reader, seen)?;
    }
    Ok(())
}

fn take_frames(reader: &mut FrameReader, seen: &mut Vec<OwnedFrame>) -> Result<(), ProtocolError> {
    while let Some(frame) = reader.next_frame()? {
        seen.push((frame.descriptors, frame.payload.to_vec()));
    }
    Ok(())
}
