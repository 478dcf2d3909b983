//! Tests of the layout: what lies where, collisions, full buckets, rubbish in a table.

use std::collections::BTreeSet;

use super::*;
use crate::directory::protocol::{PINS_MAX, pin, pin_for, unpin};
use crate::ids::{Location, SegmentId};
use crate::shm::{Access, Backing, Segment};

fn words(count: usize) -> Words {
    let bytes = count as u64 * 8;
    let segment = Segment::create(SegmentId(0), &Backing::Memfd, bytes).unwrap();
    Words::map(segment.descriptor(true), count, Access::ReadWrite).unwrap()
}

fn directory(slots: u32) -> DirectoryWords {
    let layout = Layout::new(slots).unwrap();
    DirectoryWords::new(words(layout.directory_words()), layout).unwrap()
}

fn table(slots: u32) -> PinTable {
    let layout = Layout::new(slots).unwrap();
    PinTable::new(words(layout.pin_table_words()), layout).unwrap()
}

fn numbered(number: u32) -> ObjectId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes.into()
}

fn location(offset: u64) -> Location {
    Location { segment: SegmentId(7), offset, data_size: 5, metadata_size: 3 }
}

#[test]
fn the_hash_is_that_of_the_document() {
    // The same numbers are in proto/PROTOCOL.md, for clients in other languages.
    assert_eq!(hash(&[0; 20].into()), 0x3c68_d61a_ceb1_9f89);
    let counted: [u8; 20] = std::array::from_fn(|index| u8::try_from(index).unwrap());
    assert_eq!(hash(&counted.into()), 0x1580_4be5_8768_09d4);
}

#[test]
fn there_are_tables_of_one_slot_and_of_very_many_but_of_no_more() {
    assert_eq!(Layout::new(0), None);
    assert_eq!(Layout::new(SLOTS_MAX + 1), None);
    let one = Layout::new(1).unwrap();
    assert_eq!((one.directory_words(), one.pin_table_words()), (512 + 8 + 8, 512 + 1 + 1));
    let many = Layout::new(1 << 20).unwrap();
    let buckets = 1 << 18;
    assert_eq!(many.directory_words(), 512 + buckets * 8 + (1 << 23));
    assert_eq!(many.pin_table_words(), 2048 + (1 << 20) + 1);
    assert!(Layout::new(SLOTS_MAX).is_some());
    assert!(DirectoryWords::new(words(one.directory_words() - 1), one).is_none());
    assert!(PinTable::new(words(one.pin_table_words() - 1), one).is_none());
}

#[test]
fn what_is_published_is_found_with_all_that_it_says() {
    let (directory, table) = (directory(1000), table(1000));
    for number in 0..1000 {
        let entry = directory.entry(Slot(number)).unwrap();
        assert!(directory.insert(&numbered(number), Slot(number)));
        entry.publish::<AllSteps>(&numbered(number), &location(u64::from(number)));
    }
    for number in 0..1000 {
        let (slot, entry, sequence) = directory.look(&numbered(number)).unwrap();
        assert_eq!(slot, Slot(number));
        assert!(directory.contains(&numbered(number)));
        let pins = table.pins(slot).unwrap();
        assert_eq!(pin::<AllSteps, _>(entry, sequence, pins, 0), Ok(()));
        assert_eq!(entry.location(), location(u64::from(number)));
        assert!(table.is_pinned(slot));
        assert!(!unpin::<AllSteps, _>(entry, pins, 9));
        assert!(!table.is_pinned(slot));
    }
    assert!(directory.look(&numbered(1000)).is_none());
    assert!(directory.entry(Slot(1000)).is_none() && table.pins(Slot(1000)).is_none());
    let entry = directory.entry(Slot(3)).unwrap();
    entry.retire::<AllSteps>();
    assert!(!directory.contains(&numbered(3)));
    assert!(entry.withdraw() && directory.remove(&numbered(3), Slot(3)));
    assert!(!entry.withdraw() && !directory.remove(&numbered(3), Slot(3)));
    assert!(directory.look(&numbered(3)).is_none());
}

#[test]
fn a_full_bucket_takes_no_more() {
    let directory = directory(4);
    for slot in 0..16 {
        assert!(directory.insert(&numbered(slot), Slot(slot)), "one bucket has 16 places");
    }
    assert!(!directory.insert(&numbered(16), Slot(16)));
    assert!(directory.remove(&numbered(5), Slot(5)));
    assert!(directory.insert(&numbered(16), Slot(16)));
}

#[test]
fn ids_that_count_are_spread_over_the_buckets() {
    let directory = directory(1 << 16);
    let lost = (0..1 << 16).filter(|slot| !directory.insert(&numbered(*slot), Slot(*slot)));
    assert_eq!(lost.count(), 0);
}

#[test]
fn rubbish_in_a_table_names_no_slot_beyond_it() {
    let table = table(1000);
    for word in table.words.iter() {
        word.store(u64::MAX, Relaxed);
    }
    let pinned: BTreeSet<Slot> = table.pinned(0..u32::MAX).collect();
    assert_eq!(pinned, (0..1000).map(Slot).collect());
    let few: Vec<Slot> = table.pinned(510..514).collect();
    assert_eq!(few, [510, 511, 512, 513].map(Slot));
    assert_eq!(table.pinned(1000..2000).count(), 0);
    assert!(!pin_for(table.pins(Slot(0)).unwrap()), "a count that is full is not counted on");
    assert!(table.last_release(Slot(0)) > 0);
}

#[test]
fn a_release_leaves_its_tick() {
    let (directory, table) = (directory(10), table(10));
    let entry = directory.entry(Slot(4)).unwrap();
    let pins = table.pins(Slot(4)).unwrap();
    assert_eq!(table.last_release(Slot(4)), 0);
    assert!(pin_for(pins));
    unpin::<AllSteps, _>(entry, pins, 77);
    assert_eq!((table.last_release(Slot(4)), table.last_release(Slot(5))), (77, 0));
    directory.set_tick(78);
    assert_eq!(directory.tick(), 78);
}

#[test]
fn the_pins_of_a_block_do_not_overflow_into_none() {
    let table = table(1000);
    let pins = |slot| table.pins(Slot(slot)).unwrap();
    pins(0).block.store(PINS_MAX, Relaxed);
    assert!(!pin_for(pins(1)), "another object of the same block");
    assert!(pin_for(pins(600)), "and one of another block");
}
