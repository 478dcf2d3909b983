//! Copies into shared memory, by one thread or several: the least that a put of a large object
//! costs.

use std::sync::Arc;
use std::thread;

use plasma::ids::{Extent, SegmentId};
use plasma::shm::{Access, Backing, Mapping, Segment, ViewMut};

use crate::clock::timed;
use crate::{Failure, Samples};

/// Bytes that a thread makes ready, if it does, and copies before it goes on: they are in the
/// cache still.
const PART_BYTES: usize = 256 << 10;

/// Into memory that was written before.
pub fn warm(count: usize, size: usize, threads: usize) -> Result<Samples, Failure> {
    let source = vec![b'x'; size];
    let (_segment, mapping) = shared(size)?;
    copy(&mapping, &source, threads, false)?;
    (0..count).map(|_| copy(&mapping, &source, threads, false)).collect()
}

/// Into memory that nobody has touched yet, which the kernel clears first: page by page as they are
/// touched, or `populated`, with a call for each part (`MADV_POPULATE_WRITE`).
pub fn fresh(
    count: usize,
    size: usize,
    threads: usize,
    populated: bool,
) -> Result<Samples, Failure> {
    let source = vec![b'x'; size];
    let one = |_| {
        let (_segment, mapping) = shared(size)?;
        copy(&mapping, &source, threads, populated)
    };
    (0..count).map(one).collect()
}

fn shared(size: usize) -> Result<(Segment, Arc<Mapping>), Failure> {
    let segment = Segment::create(SegmentId(0), &Backing::Memfd, size as u64)?;
    let mapping = Mapping::new(segment.descriptor(true), size as u64, Access::ReadWrite)?;
    Ok((segment, Arc::new(mapping)))
}

/// Nanoseconds of a copy of everything, each thread its share.
fn copy(
    mapping: &Arc<Mapping>,
    source: &[u8],
    threads: usize,
    populated: bool,
) -> Result<u64, Failure> {
    let share = source.len().div_ceil(threads).next_multiple_of(PART_BYTES);
    let shares: Vec<(u64, &[u8], ViewMut)> = source
        .chunks(share)
        .enumerate()
        .map(|(index, part)| {
            let offset = (index * share) as u64;
            let extent = Extent { segment: SegmentId(0), offset, len: part.len() as u64 };
            let target = mapping.view_mut(extent).ok_or("the share is not in the mapping")?;
            Ok::<_, Failure>((offset, part, target))
        })
        .collect::<Result<_, _>>()?;
    let (nanos, result) = timed(|| {
        thread::scope(|scope| {
            let work = |(offset, source, mut target): (u64, &[u8], ViewMut)| {
                copy_share(mapping, offset, source, &mut target, populated)
            };
            let mut shares = shares.into_iter();
            let own = shares.next();
            let others: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
            let own = own.map_or(Ok(()), work);
            let others = others.into_iter().map(|thread| thread.join().map_err(|_| "a panic"));
            own.and({ others }.try_for_each(|result| result?))
        })
    });
    result.map(|()| nanos)
}

fn copy_share(
    mapping: &Mapping,
    offset: u64,
    source: &[u8],
    target: &mut [u8],
    populated: bool,
) -> Result<(), Failure> {
    let parts = target.chunks_mut(PART_BYTES).zip(source.chunks(PART_BYTES));
    for (index, (target, source)) in parts.enumerate() {
        if populated {
            let start = offset + (index * PART_BYTES) as u64;
            mapping.populate(start, source.len() as u64, true)?;
        }
        target.copy_from_slice(source);
    }
    Ok(())
}
