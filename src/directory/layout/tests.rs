//! Tests of the layout: what lies where, collisions, full buckets, rubbish in a table.

use std::collections::BTreeSet;

use super::*;
use crate::directory::protocol::{Created, PINS_MAX, pin, pin_for, unpin};
use crate::ids::{ClientId, Location, SegmentId};
use crate::shm::{Access, Backing, Segment};

fn words(count: usize) -> Words {
    let bytes = count as u64 * 8;
    let segment = Segment::create(SegmentId(0), &Backing::Memfd, bytes).unwrap();
    Words::map(segment.descriptor(true), count, Access::ReadWrite).unwrap()
}

fn directory(slots: u32) -> DirectoryWords {
    let layout = Layout::new(slots, slots).unwrap();
    DirectoryWords::new(words(layout.directory_words()), layout).unwrap()
}

fn table(slots: u32) -> ClientTable {
    let layout = Layout::new(slots, slots).unwrap();
    ClientTable::new(words(layout.client_table_words()), layout).unwrap()
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
fn there_are_tables_of_one_record_and_of_very_many() {
    assert_eq!(Layout::new(1, 0), None);
    assert_eq!(Layout::new(0, 1), None);
    assert_eq!(Layout::new(1, SLOTS_MAX + 1), None);
    let one = Layout::new(1, 1).unwrap();
    assert_eq!(one.directory_words(), 512 + 8 + 16);
    assert_eq!(one.client_table_words(), 512 + 512 + 512 + 1);
    let many = Layout::new(1 << 20, 1 << 10).unwrap();
    assert_eq!(many.directory_words(), 512 + 256 * 8 + (1 << 24));
    assert_eq!(many.client_table_words(), 512 + 2048 + (2 << 20));
    assert!(Layout::new(u32::MAX, SLOTS_MAX).is_some());
    assert!(DirectoryWords::new(words(one.directory_words() - 1), one).is_none());
    assert!(ClientTable::new(words(one.client_table_words() - 1), one).is_none());
}

#[test]
fn a_header_says_the_layout_and_is_not_believed_blindly() {
    let directory = directory(1000);
    let (layout, words) = (directory.layout, &directory.words);
    let bytes = words.len() as u64 * 8;
    assert_eq!(Layout::read(words, bytes), None, "there is no header yet");
    let origin = Origin { capacity: 1 << 20, page_bytes: 4096, boot: [1, 2], incarnation: 1 };
    directory.write_header(&origin);
    assert_eq!(Layout::read(words, bytes), Some(layout));
    assert_eq!(Layout::read(words, bytes - 8), None, "it has no room for its records");
    for (index, wrong) in [(MAGIC, 0), (VERSION, 9), (BUCKETS, 3), (RECORDS, 0), (RECORDS, 1 << 32)]
    {
        let right = words[index].swap(wrong, Relaxed);
        assert_eq!(Layout::read(words, bytes), None, "word {index} is {wrong}");
        words[index].store(right, Relaxed);
    }
}

fn put(directory: &DirectoryWords, slot: Slot, generation: u64, id: &ObjectId, offset: u64) {
    let record = directory.record(slot).unwrap();
    let (location, creator) = (location(offset), ClientId(9));
    let details = directory.details(slot).unwrap();
    record.create(&details, &Created { generation, id, location, creator, at: 1000 });
    details.set_construction(50);
    record.seal::<AllSteps>();
}

#[test]
fn a_record_whose_words_have_changed_is_not_whole() {
    let directory = directory(10);
    put(&directory, Slot(3), 7, &numbered(3), 64);
    let record = directory.record(Slot(3)).unwrap();
    let details = directory.details(Slot(3)).unwrap();
    assert!(record.is_whole(&details));
    assert_eq!(details.times(), (1000, 50));
    for word in record.0[1..7].iter().chain([0, 1, 7].map(|index| &details.0[index])) {
        let right = word.fetch_add(1, Relaxed);
        assert!(!record.is_whole(&details));
        word.store(right, Relaxed);
    }
    assert!(record.is_whole(&details));
}

#[test]
fn only_the_object_of_the_generation_that_was_told_is_sealed() {
    let table = table(1000);
    assert_eq!(table.told_sealed(Slot(7), 5), None);
    assert!(table.tell_sealed(Slot(7), 5, Told { released: false }));
    assert_eq!(table.told_sealed(Slot(7), 5), Some(Told { released: false }));
    assert!(table.tell_sealed(Slot(7), 6, Told { released: true }));
    assert_eq!(table.told_sealed(Slot(7), 5), None);
    assert_eq!(table.told_sealed(Slot(7), 6), Some(Told { released: true }));
    assert_eq!(table.told_sealed(Slot(1000), 5), None);
    assert!(!table.tell_sealed(Slot(1000), 5, Told { released: false }));
    table.end();
    assert!(!table.tell_sealed(Slot(8), 5, Told { released: false }), "nobody may see it");
    assert_eq!(table.told_sealed(Slot(8), 5), Some(Told { released: false }), "but may");
}

#[test]
fn what_is_published_is_found_with_all_that_it_says() {
    let (directory, table) = (directory(1000), table(1000));
    for number in 0..1000 {
        assert!(directory.insert(&numbered(number), Slot(number)));
        put(&directory, Slot(number), 1, &numbered(number), u64::from(number));
    }
    for number in 0..1000 {
        let (slot, record, sequence) = directory.look(&numbered(number)).unwrap();
        assert_eq!(slot, Slot(number));
        assert!(directory.contains(&numbered(number)));
        let pins = table.pins(slot).unwrap();
        assert_eq!(pin::<AllSteps, _>(record, sequence, pins, 0), Ok(()));
        assert_eq!(record.location(), location(u64::from(number)));
        assert!(table.is_pinned(slot));
        assert!(!unpin::<AllSteps, _>(record, pins, 9));
        assert!(!table.is_pinned(slot));
    }
    assert!(directory.look(&numbered(1000)).is_none());
    assert!(directory.record(Slot(1000)).is_none() && table.pins(Slot(1000)).is_none());
    let record = directory.record(Slot(3)).unwrap();
    record.retire::<AllSteps>();
    assert!(!directory.contains(&numbered(3)));
    record.remove();
    assert!(directory.remove(&numbered(3), Slot(3)));
    assert!(!directory.remove(&numbered(3), Slot(3)));
    assert!(directory.look(&numbered(3)).is_none());
}

#[test]
fn a_full_bucket_takes_no_more() {
    let directory = directory(4);
    assert!(!directory.insert(&numbered(0), Slot(SLOTS_MAX)), "a place has 24 bits for a slot");
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
    let record = directory.record(Slot(4)).unwrap();
    let pins = table.pins(Slot(4)).unwrap();
    assert_eq!(table.last_release(Slot(4)), 0);
    assert!(pin_for(pins));
    unpin::<AllSteps, _>(record, pins, 77);
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
