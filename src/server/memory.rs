//! The shared memory that the objects lie in: how large it is, and the way to write into it.
//!
//! There is one segment, made at the start. It is larger than the capacity, because the store gives
//! every object an extent of whole lines and cannot fill every gap between them: what users may use
//! is counted to the byte as they asked for, and rounding is ours. What is stored where is not
//! known here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::committing::Committer;
use super::outbox::DescriptorKind;
use super::publishing::Unsent;
use super::trimming::Trimmer;
use crate::ids::{ClientId, Extent, SegmentId, Ticket};
use crate::limits::ALIGNMENT;
use crate::protocol::message::DescriptorInfo;
use crate::shm::{Backing, Filler, Segment, SegmentError, life_lock};
use crate::store::WorkOutcome;

const SEGMENT: SegmentId = SegmentId(0);

/// The share of the capacity that is added for rounding, as a divisor: what the gaps between
/// objects of 4 KiB and more need.
const SLACK_DIVISOR: u64 = 64;

/// Least bytes added, so that a tiny store can hold many tiny objects.
const SLACK_BYTES_MIN: u64 = 64 << 10;

/// Most bytes added: beyond, objects are large and gaps are few.
const SLACK_BYTES_MAX: u64 = 64 << 20;

/// The shared memory, mapped.
#[derive(Debug)]
pub struct Memory {
    segment: Arc<Segment>,
    filler: Filler,
    /// It has been written to the log that some of it is not there.
    has_told_of_loss: bool,
    /// `None` if everything is ready, or nothing is to be.
    committer: Option<Committer>,
    /// What gives memory back. `None` if all of it stays with the store.
    pub trimmer: Option<Trimmer>,
    /// Clients that want it get the file of the directory. `None` in tests of the memory alone.
    pub directory: Option<Arc<Segment>>,
    /// Clients get what is made for each of them.
    pub unsent: Unsent,
}

/// The memory cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each is")]
pub enum MemoryError {
    /// The system does not give it.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// It is there and cannot be reached.
    #[error(
        "cannot map {bytes} bytes of shared memory: {reason}; ask for less (-m), or allow this \
         process a larger address space (ulimit -v)"
    )]
    Mapping { bytes: u64, reason: io::Error },
}

impl Memory {
    /// Makes memory for a store of this capacity; all pages of it ready for use if `reserve` says
    /// so, and otherwise as many bytes as `ahead` says beyond what is used.
    ///
    /// # Errors
    /// If the system does not have it.
    pub fn create(
        backing: &Backing,
        capacity: u64,
        reserve: bool,
        ahead: u64,
    ) -> Result<Self, MemoryError> {
        let segment = Segment::create(SEGMENT, backing, segment_bytes(capacity))?;
        if reserve {
            segment.reserve()?;
        }
        let bytes = segment.size();
        let segment = Arc::new(segment);
        let filler = Filler::new(Arc::clone(&segment))
            .map_err(|reason| MemoryError::Mapping { bytes, reason })?;
        // What lies on a disk is not made faster by touching it.
        let commits = !reserve && ahead > 0 && segment.is_memory();
        let committer = commits.then(|| Committer::start(Arc::clone(&segment), ahead));
        Ok(Self {
            segment,
            filler,
            has_told_of_loss: false,
            committer,
            trimmer: None,
            directory: None,
            unsent: Unsent::default(),
        })
    }

    /// Makes it possible to give memory back to the system, where that breaks no promise; says
    /// whether it is.
    pub fn allow_trimming(&mut self) -> bool {
        if self.segment.comes_when_touched() {
            match Trimmer::start(Arc::clone(&self.segment)) {
                Ok(trimmer) => self.trimmer = Some(trimmer),
                Err(error) => log::warn!("free memory stays with the store: no thread: {error}"),
            }
        }
        self.trimmer.is_some()
    }

    /// A client has got what was made for it.
    pub fn note_sent(&self, client: ClientId, kind: DescriptorKind) {
        if matches!(kind.segment, SegmentId::CLIENT_TABLE | SegmentId::LIFE) {
            self.unsent.forget(client);
        }
    }

    /// Whether it can be told that this client lives.
    pub fn has_life(&self, client: ClientId) -> bool {
        self.unsent.parcel(client).life.is_some()
    }

    pub fn trim(&self, ticket: Ticket, extent: Extent) {
        assert_eq!(extent.segment, self.segment.id(), "there is one segment");
        let trimmer = self.trimmer.as_ref().expect("the store knows whether memory can go back");
        trimmer.begin(ticket, extent.offset, extent.len);
    }

    /// Objects have used the memory up to here.
    pub fn note_used(&mut self, end: u64) {
        if let Some(committer) = &mut self.committer {
            committer.note_used(end);
        }
    }

    /// The one segment: at least the capacity, and some more for rounding.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Copies bytes to where the store wants them.
    pub fn fill(&mut self, writes: &[(Extent, Vec<u8>)]) -> WorkOutcome {
        for (extent, bytes) in writes {
            assert_eq!(extent.segment, self.segment.id(), "there is one segment");
            if let Err(error) = self.filler.write(extent.offset, bytes) {
                assert_ne!(
                    error.kind(),
                    io::ErrorKind::InvalidInput,
                    "the store places objects inside the segment"
                );
                self.tell_of_loss(*extent, &error);
                return WorkOutcome::Failed;
            }
        }
        WorkOutcome::Done
    }

    /// Once: whoever did this can do it again and again.
    fn tell_of_loss(&mut self, extent: Extent, error: &io::Error) {
        if !std::mem::replace(&mut self.has_told_of_loss, true) {
            log::warn!(
                "memory of the store is not there any more ({error}, {} bytes at {}): a process \
                 that may create objects has cut its file short or punched a hole into it; puts \
                 into such memory are refused, and readers of what was there may end with SIGBUS",
                extent.len,
                extent.offset,
            );
        }
    }

    /// The file that a client has to be given for this kind of descriptor.
    pub fn file(&self, client: ClientId, kind: DescriptorKind) -> File {
        let parcel = || self.unsent.parcel(client);
        match kind.segment {
            SegmentId::DIRECTORY => {
                let directory = self.directory.clone();
                File::Segment(directory.expect("only those who read it are told of it"))
            }
            SegmentId::CLIENT_TABLE => File::Segment(parcel().table.expect("it is sent once")),
            SegmentId::LIFE => File::Life(parcel().life.expect("it is sent once")),
            segment => {
                assert_eq!(segment, self.segment.id(), "there is one segment of objects");
                File::Segment(Arc::clone(&self.segment))
            }
        }
    }

    /// What a client has to be told of the descriptor.
    pub fn describe(&self, client: ClientId, kind: DescriptorKind) -> DescriptorInfo {
        let DescriptorKind { segment, writable } = kind;
        DescriptorInfo { segment, segment_size: self.file(client, kind).size(), writable }
    }
}

/// A file whose descriptor a client is given.
#[derive(Debug)]
pub enum File {
    Segment(Arc<Segment>),
    /// Nothing but a lock.
    Life(Arc<OwnedFd>),
}

impl File {
    /// Its descriptor, if there is one of that kind.
    pub fn descriptor(&self, writable: bool) -> BorrowedFd<'_> {
        match self {
            Self::Segment(segment) => segment.descriptor(writable),
            Self::Life(life) => life.as_fd(),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Segment(segment) => segment.size(),
            Self::Life(_) => life_lock::FILE_BYTES,
        }
    }
}

/// What a store of this capacity needs. The segment rounds it up to whole pages.
pub fn segment_bytes(capacity: u64) -> u64 {
    let slack = (capacity / SLACK_DIVISOR).clamp(SLACK_BYTES_MIN, SLACK_BYTES_MAX);
    capacity.next_multiple_of(ALIGNMENT) + slack
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CAPACITY_MAX, CAPACITY_MIN};
    use crate::shm::{Access, Mapping};

    #[test]
    fn the_segment_has_room_for_the_capacity_and_its_rounding() {
        assert_eq!(segment_bytes(CAPACITY_MIN), 64 + SLACK_BYTES_MIN);
        assert_eq!(segment_bytes(64 << 20), (64 << 20) + (1 << 20));
        assert_eq!(segment_bytes(CAPACITY_MAX), CAPACITY_MAX + SLACK_BYTES_MAX);
    }

    #[test]
    fn bytes_written_are_what_a_reader_of_the_descriptor_sees() {
        let mut memory = Memory::create(&Backing::Memfd, 1000, false, 0).unwrap();
        let extent = Extent { segment: memory.segment().id(), offset: 64, len: 5 };
        assert_eq!(memory.fill(&[(extent, b"hello".to_vec())]), WorkOutcome::Done);
        let kind = DescriptorKind { segment: memory.segment().id(), writable: false };
        let file = memory.file(ClientId(1), kind);
        let mapping =
            Mapping::new(file.descriptor(false), memory.segment().size(), Access::ReadOnly);
        let view = std::sync::Arc::new(mapping.unwrap()).view(extent).unwrap();
        assert_eq!(&*view, b"hello");
    }
}
