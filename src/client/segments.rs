//! The store's memory as this connection knows it: descriptors that came, and their mappings.
//!
//! A segment comes up to twice, opened read-only and writable. It is mapped when it is first used,
//! by the thread that uses it. There is no lock here, because a forked child still drops its copy
//! (see [`super::process_local`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::error::Error;
use crate::ids::{Extent, SegmentId};
use crate::protocol::message::DescriptorInfo;
use crate::shm::{Access, Mapping, Window};

/// All segments that have come with the replies on one connection.
#[derive(Debug, Default)]
pub(super) struct Segments(ArcSwap<Vec<Arc<Segment>>>);

#[derive(Debug)]
struct Segment {
    info: DescriptorInfo,
    descriptor: OwnedFd,
    mapping: ArcSwapOption<Mapping>,
}

impl Segments {
    /// Takes in a descriptor. Of two with the same name the first one counts.
    pub(super) fn add(&self, info: DescriptorInfo, descriptor: OwnedFd) {
        let access = if info.writable { Access::ReadWrite } else { Access::ReadOnly };
        if self.knows(info.segment, access) {
            return;
        }
        let segment = Arc::new(Segment { info, descriptor, mapping: ArcSwapOption::empty() });
        self.0.rcu(|known| {
            let mut known = Vec::clone(known);
            known.push(Arc::clone(&segment));
            known
        });
    }

    /// Whether this connection can map the segment in that way.
    pub(super) fn knows(&self, id: SegmentId, access: Access) -> bool {
        self.find(id, access).is_some()
    }

    /// The mapping of a segment.
    pub(super) fn mapping(&self, id: SegmentId, access: Access) -> Result<Arc<Mapping>, Error> {
        self.get(id, access)?.map(access).map_err(Error::Map)
    }

    /// The pages of an object, writable, for it alone.
    pub(super) fn window(&self, range: Extent) -> Result<Window, Error> {
        let segment = self.get(range.segment, Access::ReadWrite)?;
        Window::new(segment.descriptor.as_fd(), range).map_err(Error::Map)
    }

    fn get(&self, id: SegmentId, access: Access) -> Result<Arc<Segment>, Error> {
        self.find(id, access).ok_or_else(|| {
            let kind = if access == Access::ReadWrite { "writable" } else { "read-only" };
            let problem = format!("the store sent no {kind} descriptor of segment {}", id.0);
            Error::Map(io::Error::new(io::ErrorKind::InvalidData, problem))
        })
    }

    fn find(&self, id: SegmentId, access: Access) -> Option<Arc<Segment>> {
        let writable = access == Access::ReadWrite;
        let known = self.0.load();
        let mut known = known.iter();
        known.find(|known| known.info.segment == id && known.info.writable == writable).cloned()
    }
}

impl Segment {
    fn map(&self, access: Access) -> io::Result<Arc<Mapping>> {
        if let Some(mapping) = self.mapping.load_full() {
            return Ok(mapping);
        }
        let bytes = self.info.segment_size;
        let mapping = Arc::new(Mapping::new(self.descriptor.as_fd(), bytes, access)?);
        // Should two threads map at once, one mapping goes as soon as its objects have gone.
        self.mapping.store(Some(Arc::clone(&mapping)));
        Ok(mapping)
    }
}
