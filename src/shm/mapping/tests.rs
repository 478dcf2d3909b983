//! A mapping gives out exactly what is inside it, and nothing that its descriptor does not allow.

use super::*;
use crate::ids::SegmentId;
use crate::shm::{Backing, Segment};
use nix::sys::stat::fstat;
use std::os::fd::AsFd;

#[test]
fn writers_and_readers_see_the_same_memory() {
    let segment = segment(4096 * 4);
    let writer = Arc::new(map(&segment, Access::ReadWrite));
    let reader = Arc::new(map(&segment, Access::ReadOnly));
    let mut data = writer.view_mut(extent(64, 5)).unwrap();
    let mut metadata = writer.view_mut(extent(69, 3)).unwrap();
    data.copy_from_slice(b"hello");
    metadata.copy_from_slice(b"abc");
    drop((data, metadata));
    write(&writer, 72, b"inline");
    assert_eq!(&*reader.view(extent(64, 14)).unwrap(), b"helloabcinline");
}

#[test]
fn a_view_outlives_its_mapping_and_its_segment() {
    let segment = segment(4096);
    write(&Arc::new(map(&segment, Access::ReadWrite)), 0, b"kept");
    let reader = Arc::new(map(&segment, Access::ReadOnly));
    let view = reader.view(extent(0, 4)).unwrap();
    drop((segment, reader));
    let other_thread = std::thread::spawn(move || view.to_vec());
    assert_eq!(other_thread.join().unwrap(), b"kept");
}

#[test]
fn a_dropped_mapping_is_unmapped() {
    let segment = segment(4096);
    let inode = fstat(segment.descriptor(false)).unwrap().st_ino;
    let mapping = Arc::new(map(&segment, Access::ReadOnly));
    let view = mapping.view(extent(0, 1)).unwrap();
    drop(mapping);
    assert!(is_mapped(inode), "a view keeps the memory");
    drop(view);
    assert!(!is_mapped(inode));
}

#[test]
fn nothing_outside_is_given_out() {
    let segment = segment(4096);
    let size = segment.size();
    let mapping = Arc::new(map(&segment, Access::ReadWrite));
    for (offset, len) in [
        (size, 1),
        (size - 1, 2),
        (0, size + 1),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
    ] {
        assert!(mapping.view(extent(offset, len)).is_none(), "{offset} + {len}");
        assert!(mapping.view_mut(extent(offset, len)).is_none(), "{offset} + {len}");
        assert!(mapping.populate(offset, len, false).is_err(), "{offset} + {len}");
    }

    assert_eq!(mapping.view(extent(0, size)).unwrap().len(), 4096);
    assert_eq!(mapping.view(extent(size - 1, 1)).unwrap()[..], [0]);
    assert!(mapping.view(extent(size, 0)).unwrap().is_empty());
    assert!(mapping.view_mut(extent(size, 0)).unwrap().is_empty());
}

#[test]
fn a_read_only_mapping_gives_nothing_to_write() {
    let segment = segment(4096);
    // Even through the writable descriptor: the mapping's own access decides.
    let mapping = Arc::new(Mapping::new(segment.descriptor(true), 4096, Access::ReadOnly).unwrap());
    assert!(mapping.view_mut(extent(0, 1)).is_none());
    assert_eq!(mapping.populate(0, 1, true).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_file_that_is_too_short_is_not_mapped() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(5000).unwrap();
    let error = Mapping::new(file.as_fd(), 5001, Access::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("5001") && error.to_string().contains("5000"), "{error}");
    assert_eq!(Mapping::new(file.as_fd(), 5000, Access::ReadOnly).unwrap().size(), 5000);
    let error = Mapping::new(file.as_fd(), 0, Access::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn populating_allocates_the_pages_and_leaves_the_bytes() {
    let segment = segment(1 << 20);
    let mapping = Arc::new(map(&segment, Access::ReadWrite));
    write(&mapping, 100_000, b"stays");
    // Neither end is at the border of a page.
    mapping.populate(99_999, 500_001, true).unwrap();
    mapping.populate(99_999, 500_001, false).unwrap();
    mapping.populate(segment.size(), 0, true).unwrap();
    assert_eq!(&*mapping.view(extent(100_000, 5)).unwrap(), b"stays");
    let allocated = fstat(segment.descriptor(true)).unwrap().st_blocks * 512;
    assert!(allocated >= 500_000, "{allocated}");
    assert!(allocated < 700_000, "{allocated}");
}

#[test]
fn shared_memory_stays_out_of_core_files() {
    let mapping = map(&segment(4096), Access::ReadOnly);
    let line = format!("{:x}-", mapping.pages.start().as_ptr() as usize);
    let regions = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let region = regions.split_once(&line).unwrap().1;
    let flags = region.lines().find(|line| line.starts_with("VmFlags")).unwrap();
    assert!(flags.contains(" dd"), "{flags}");
}

fn segment(bytes: u64) -> Segment {
    Segment::create(SegmentId(0), &Backing::Memfd, bytes).unwrap()
}

fn map(segment: &Segment, access: Access) -> Mapping {
    let descriptor = segment.descriptor(access == Access::ReadWrite);
    Mapping::new(descriptor, segment.size(), access).unwrap()
}

fn write(mapping: &Arc<Mapping>, offset: u64, bytes: &[u8]) {
    let view = mapping.view_mut(extent(offset, bytes.len() as u64));
    view.unwrap().copy_from_slice(bytes);
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent { segment: SegmentId(0), offset, len }
}

/// By inode, because other tests map and unmap at the same time and addresses come back.
fn is_mapped(inode: u64) -> bool {
    let regions = std::fs::read_to_string("/proc/self/maps").unwrap();
    regions.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(4);
        fields.next() == Some(inode.to_string().as_str()) && line.contains("memfd:plasma")
    })
}
