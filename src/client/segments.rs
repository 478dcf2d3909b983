//! The store's memory as this connection knows it: descriptors that came, and their mappings.
//!
//! A segment comes up to twice, opened read-only and writable. It is mapped when it is first used,
//! by the thread that uses it. Nothing is ever taken out, so who looks for a segment walks along a
//! list whose links are set once, and counts no references: every get does that. A forked child
//! reads on in what it inherits and drops its copy in the end, so no lock is here but that of
//! [`super::set_once`], which allows for that.

use std::io;
use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::error::Error;
use super::set_once::SetOnce;
use crate::ids::{Extent, SegmentId};
use crate::protocol::message::DescriptorInfo;
use crate::shm::{Access, Mapping, Window};

/// All segments that have come with the replies on one connection.
#[derive(Debug, Default)]
pub(super) struct Segments {
    first: Link,
}

type Link = SetOnce<Box<Segment>>;

#[derive(Debug)]
struct Segment {
    info: DescriptorInfo,
    descriptor: OwnedFd,
    mapping: SetOnce<Arc<Mapping>>,
    next: Link,
}

impl Segments {
    /// Takes in a descriptor. Of two with the same name the first one counts.
    pub(super) fn add(&self, info: DescriptorInfo, descriptor: OwnedFd) {
        let access = if info.writable { Access::ReadWrite } else { Access::ReadOnly };
        if self.knows(info.segment, access) {
            return;
        }
        let mut new =
            Box::new(Segment { info, descriptor, mapping: SetOnce::new(), next: Link::new() });
        let mut end = &self.first;
        loop {
            match end.get() {
                Some(known) => end = &known.next,
                None => match end.set(new) {
                    Ok(()) => return,
                    // Another thread was quicker.
                    Err(refused) => new = refused,
                },
            }
        }
    }

    /// Whether this connection can map the segment in that way.
    pub(super) fn knows(&self, id: SegmentId, access: Access) -> bool {
        self.find(id, access).is_some()
    }

    /// The mapping of a segment.
    #[inline]
    pub(super) fn mapping(&self, id: SegmentId, access: Access) -> Result<&Arc<Mapping>, Error> {
        self.get(id, access)?.map(access).map_err(Error::Map)
    }

    /// The pages of an object, writable, for it alone.
    pub(super) fn window(&self, range: Extent) -> Result<Window, Error> {
        let segment = self.get(range.segment, Access::ReadWrite)?;
        Window::new(segment.descriptor.as_fd(), range).map_err(Error::Map)
    }

    #[inline]
    fn get(&self, id: SegmentId, access: Access) -> Result<&Segment, Error> {
        self.find(id, access).ok_or_else(|| {
            let kind = if access == Access::ReadWrite { "writable" } else { "read-only" };
            let problem = format!("the store sent no {kind} descriptor of segment {}", id.0);
            Error::Map(io::Error::new(io::ErrorKind::InvalidData, problem))
        })
    }

    #[inline]
    fn find(&self, id: SegmentId, access: Access) -> Option<&Segment> {
        let writable = access == Access::ReadWrite;
        let mut known = iter::successors(self.first.get(), |known| known.next.get());
        let found = known.find(|known| known.info.segment == id && known.info.writable == writable);
        found.map(|found| &**found)
    }
}

/// One after another: dropped by itself, each link would drop the next one within.
impl Drop for Segments {
    fn drop(&mut self) {
        let mut rest = self.first.take();
        while let Some(mut segment) = rest {
            rest = segment.next.take();
        }
    }
}

impl Segment {
    #[inline]
    fn map(&self, access: Access) -> io::Result<&Arc<Mapping>> {
        if let Some(mapping) = self.mapping.get() {
            return Ok(mapping);
        }
        let bytes = self.info.segment_size;
        let mapping = Arc::new(Mapping::new(self.descriptor.as_fd(), bytes, access)?);
        // Should two threads map at once, one of the mappings goes again.
        Ok(self.mapping.get_or_init(|| mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::{Backing, Segment as File};

    #[test]
    fn descriptors_that_come_in_several_threads_are_all_known_and_mapped_once() {
        let file = File::create(SegmentId(0), &Backing::Memfd, 4096).unwrap();
        let segments = Segments::default();
        let both = [(false, Access::ReadOnly), (true, Access::ReadWrite)];
        let kinds = (0..8).flat_map(|id| both.map(|(writable, access)| (id, writable, access)));
        std::thread::scope(|scope| {
            for (id, writable, _) in kinds.clone() {
                let (segments, file) = (&segments, &file);
                scope.spawn(move || {
                    let info =
                        DescriptorInfo { segment: SegmentId(id), segment_size: 4096, writable };
                    let descriptor = || file.descriptor(writable).try_clone_to_owned().unwrap();
                    segments.add(info, descriptor());
                    segments.add(info, descriptor());
                });
            }
        });
        for (id, _, access) in kinds {
            let first = segments.mapping(SegmentId(id), access).unwrap();
            let again = segments.mapping(SegmentId(id), access).unwrap();
            assert!(Arc::ptr_eq(first, again) && first.size() == 4096);
        }
        assert!(!segments.knows(SegmentId(8), Access::ReadOnly));
        let unknown = segments.mapping(SegmentId(8), Access::ReadOnly).unwrap_err().to_string();
        assert!(unknown.contains("no read-only descriptor of segment 8"), "{unknown}");
    }
}
