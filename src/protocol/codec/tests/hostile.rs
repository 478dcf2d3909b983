//! Bytes from nowhere, and messages that somebody damaged.
//!
//! No input may panic. What is accepted in spite of the damage has to be a valid message all the
//! same: encoded again and decoded again it is the same.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{assert_refused, client_bytes, server_bytes, values};
use crate::limits::BATCH_OBJECTS_MAX;
use crate::protocol::codec::{decode_client, decode_server};

#[derive(Debug, Clone)]
enum Damage {
    FlipBit(Index, u8),
    SetByte(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    CutOff(Index),
    Repeat(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = vec(prop_oneof![any::<u8>(), Just(0x80), Just(0xff), Just(0)], 1..12);
    prop_oneof![
        4 => any::<(Index, u8)>().prop_map(|(at, bit)| Damage::FlipBit(at, bit % 8)),
        4 => any::<(Index, u8)>().prop_map(|(at, byte)| Damage::SetByte(at, byte)),
        2 => (any::<Index>(), bytes).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        2 => any::<(Index, Index)>().prop_map(|(from, to)| Damage::Remove(from, to)),
        1 => any::<Index>().prop_map(Damage::CutOff),
        1 => any::<(Index, Index)>().prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn apply(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        // One more than the length, so that there is a place even in an empty message.
        let place = |index: &Index| index.index(bytes.len() + 1);
        match damage {
            Damage::FlipBit(at, bit) => {
                let at = place(at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Damage::SetByte(at, value) => {
                let at = place(at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value);
            }
            Damage::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(from, to) => {
                let (from, to) = (place(from), place(to));
                bytes.drain(from.min(to)..from.max(to));
            }
            Damage::CutOff(at) => bytes.truncate(place(at)),
            Damage::Repeat(from, to) => {
                let (from, to) = (place(from), place(to));
                bytes.extend_from_within(from.min(to)..from.max(to));
            }
        }
    }
    bytes
}

fn check_client(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok((id, message)) = decode_client(bytes) {
        let again = client_bytes(id, &message);
        prop_assert_eq!(decode_client(&again).unwrap(), (id, message));
    }
    Ok(())
}

fn check_server(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = decode_server(bytes) {
        let again = server_bytes(&message);
        prop_assert_eq!(decode_server(&again).unwrap(), message);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        check_client(&bytes)?;
        check_server(&bytes)?;
    }

    #[test]
    fn arbitrary_bodies_of_known_messages_never_panic(
        tag in 1_u8..24,
        body in vec(any::<u8>(), 0..120),
    ) {
        let key = u32::from(tag) << 3 | 2;
        let mut bytes = vec![0x08, 0x01];
        prost::encoding::encode_varint(u64::from(key), &mut bytes);
        bytes.push(u8::try_from(body.len()).unwrap());
        bytes.extend(body);
        check_client(&bytes)?;
        check_server(&bytes)?;
    }

    #[test]
    fn damaged_requests_never_panic(
        (id, message) in values::client_frame(),
        damages in vec(damage(), 1..4),
    ) {
        check_client(&apply(client_bytes(id, &message), &damages))?;
    }

    #[test]
    fn damaged_replies_never_panic(
        message in values::server_message(),
        damages in vec(damage(), 1..4),
    ) {
        check_server(&apply(server_bytes(&message), &damages))?;
    }
}

#[test]
fn groups_nested_without_end_are_an_error_and_no_stack_overflow() {
    // Field 1011, start of a group, a million times.
    let bytes = [0x9b, 0x3f].repeat(1_000_000);
    assert!(decode_client(&bytes).is_err());
    assert!(decode_server(&bytes).is_err());
}

#[test]
fn a_frame_full_of_objects_is_refused_at_the_first_one_too_many() {
    let named = [&[0x0a, 22, 0x0a, 20][..], &[7; 20]].concat();
    // The last object is cut off, which nobody should come to see.
    let body = [named.repeat(BATCH_OBJECTS_MAX + 1), vec![0x0a, 0x7f]].concat();
    let mut bytes = vec![0x08, 0x01, 0x32];
    prost::encoding::encode_varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    assert_refused("PutBatch.objects", decode_client(&bytes));
}
