//! The store's memory as this connection knows it: descriptors that came, and their mappings.
//!
//! A segment comes up to twice, opened read-only and writable. It is mapped when it is first used,
//! by the thread that uses it. Nothing is ever taken out, so who looks for a segment walks along a
//! list whose links are set once, and counts no references: every get does that. A forked child
//! reads on in what it inherits and drops its copy in the end, so the only lock here is that of
//! [`SetOnce`], which allows for that.
//!
//! What lies in a segment is not known here.

use std::io;
use std::iter;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use super::error::Error;
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
        let (mapping, next) = (SetOnce::default(), Link::default());
        let mut new = Box::new(Segment { info, descriptor, mapping, next });
        let mut end = &self.first;
        // A link that is set refuses; another thread may have set it just now.
        while let Err(refused) = end.set(new) {
            let Some(known) = end.get() else { return };
            (new, end) = (refused, &known.next);
        }
    }

    /// Whether this connection can map the segment in that way.
    pub(super) fn knows(&self, id: SegmentId, access: Access) -> bool {
        self.find(id, access).is_some()
    }

    /// The mapping of a segment.
    #[inline]
    pub(super) fn mapping(&self, id: SegmentId, access: Access) -> Result<&Arc<Mapping>, Error> {
        let Segment { info, descriptor, mapping, .. } = self.get(id, access)?;
        if let Some(mapping) = mapping.get() {
            return Ok(mapping);
        }
        let new = Mapping::new(descriptor.as_fd(), info.segment_size, access);
        let new = Arc::new(new.map_err(Error::Map)?);
        // Should two threads map at once, one of the mappings goes again.
        Ok(mapping.get_or_init(|| new))
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

/// A cell that is set once and then read without counting or locking, also by forked children.
///
/// A child may be forked while another thread of its parent is setting the cell. For the child it
/// is then neither empty nor set, for ever: it finds nothing there, must not try to set it (it
/// would wait for a thread that it does not have), and forgets the cell instead of dropping it.
#[derive(Debug)]
struct SetOnce<T>(ManuallyDrop<OnceLock<T>>);

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self(ManuallyDrop::default())
    }
}

impl<T> Deref for SetOnce<T> {
    type Target = OnceLock<T>;

    #[inline]
    fn deref(&self) -> &OnceLock<T> {
        &self.0
    }
}

impl<T> SetOnce<T> {
    /// Takes out what has been set.
    fn take(&mut self) -> Option<T> {
        // `OnceLock::take` expects a cell that nobody is setting.
        self.get().is_some().then(|| self.0.take()).flatten()
    }
}

impl<T> Drop for SetOnce<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::shm::fork::tests::in_child_as_only_owner;
    use crate::shm::{Backing, Segment as File};

    #[test]
    fn descriptors_that_come_in_several_threads_are_all_known_and_mapped_once() {
        let file = File::create(SegmentId(0), &Backing::Memfd, 4096).unwrap();
        let segments = Segments::default();
        let both = [(false, Access::ReadOnly), (true, Access::ReadWrite)];
        let kinds = (0..8).flat_map(|id| both.map(|(writable, access)| (id, writable, access)));
        thread::scope(|scope| {
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

    #[test]
    fn what_was_set_is_dropped_with_the_cell() {
        let value = Arc::new(());
        let mut cell = SetOnce::default();
        assert_eq!(cell.get(), None);
        assert_eq!(cell.take(), None);
        cell.set(Arc::clone(&value)).unwrap();
        cell.set(Arc::new(())).unwrap_err();
        assert!(Arc::ptr_eq(cell.get_or_init(Arc::default), &value));
        assert_eq!(Arc::strong_count(&value), 2);
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_child_drops_a_cell_that_another_thread_was_setting() {
        let cell = Arc::new(SetOnce::default());
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let setter = thread::spawn({
            let cell = Arc::clone(&cell);
            move || {
                cell.get_or_init(|| {
                    begun.send(()).unwrap();
                    let _ = may_end.recv();
                    7
                });
            }
        });
        has_begun.recv().unwrap();
        let went_well = in_child_as_only_owner(&cell, |cell| {
            let finds_nothing = cell.get().is_none();
            finds_nothing && catch_unwind(AssertUnwindSafe(|| drop(cell))).is_ok()
        });
        drop(end);
        setter.join().unwrap();
        assert!(went_well);
        assert_eq!(cell.get(), Some(&7));
    }
}
