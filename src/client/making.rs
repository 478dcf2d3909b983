//! Making objects: create, put, and puts in batches. Large ones are filled by several threads.
//!
//! One core does not use all of the memory's bandwidth, and fresh pages are slower still: the
//! kernel clears each one. So threads take parts of an object one by one, have the kernel make the
//! part ready, and copy it while it is in the cache. Threads are started for each object: that
//! costs some 50 µs, which is little beside the milliseconds that such a copy takes, and leaves
//! nothing behind that a `fork` could break.
//!
//! What becomes of an object after its creation is not known here.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::connection::{Answer, Connection};
use super::error::Error;
use super::opening::Interrupt;
use super::transport::lock;
use super::writer::Claim;
use super::{Client, ObjectWriter, Result};
use crate::ids::ObjectId;
use crate::limits::{COPY_BYTES_PER_THREAD_MIN, COPY_PART_BYTES, COPY_THREADS, PUT_INLINE_BYTES};
use crate::protocol::message::{NewObject, Reply, Request, Room};
use crate::threads;

/// How to make room for a new object.
///
/// ```
/// use std::time::Duration;
/// use plasma::client::CreateOptions;
///
/// // Wait a second for others to release something, and evict nothing.
/// let patient = CreateOptions { evict: false, timeout: Some(Duration::from_secs(1)) };
/// assert_eq!(CreateOptions::default().timeout, Some(Duration::ZERO));
/// # let _ = patient;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Whether objects that nobody uses may be evicted, least recently used first. True by default.
    pub evict: bool,
    /// How long to wait for room: `None` for ever, zero (the default) not at all. But if somebody
    /// holds objects, the store is asked again after 3 ms, for what he has let go may still be on
    /// its way.
    pub timeout: Option<Duration>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { evict: true, timeout: Some(Duration::ZERO) }
    }
}

impl From<CreateOptions> for Room {
    fn from(options: CreateOptions) -> Self {
        Self { evict: options.evict, timeout: options.timeout }
    }
}

/// The data of an object that lies in several places.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    /// Bytes of data.
    pub total: usize,
    /// Where in the data each piece begins, in rising order, and its bytes. Between them it is
    /// zero.
    pub pieces: &'a [(usize, &'a [u8])],
    /// Threads that copy it, at most.
    pub threads: usize,
}

impl Pieces<'_> {
    fn check(&self) -> Result<()> {
        let mut end = 0;
        for (offset, piece) in self.pieces {
            let next = offset.checked_add(piece.len());
            let Some(next) = next.filter(|next| *offset >= end && *next <= self.total) else {
                let text = format!(
                    "a piece of {} bytes at offset {offset} overlaps the one before, or is not \
                     within {} bytes",
                    piece.len(),
                    self.total
                );
                return Err(Error::InvalidArgument(text));
            };
            end = next;
        }
        Ok(())
    }

    fn to_vec(self) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.total);
        for (offset, piece) in self.pieces {
            data.resize(*offset, 0);
            data.extend_from_slice(piece);
        }
        data.resize(self.total, 0);
        data
    }
}

/// What the calls here can be refused for, in the order of the checks.
///
/// * [`Refusal::ObjectExists`](super::Refusal::ObjectExists): the id is taken, sealed or not.
/// * [`Refusal::QuotaExceeded`](super::Refusal::QuotaExceeded)
/// * [`Refusal::StoreFull`](super::Refusal::StoreFull), with the numbers: no room (in time).
/// * [`Refusal::TooManyWaiting`](super::Refusal::TooManyWaiting)
/// * [`Refusal::MemoryLost`](super::Refusal::MemoryLost), of a put that travels with its bytes:
///   another process has taken memory of the store away. What is put in place fails with
///   [`Error::Map`] then.
impl Client {
    /// Starts an object of so many bytes of data and metadata. Fill it in and seal it.
    ///
    /// An object of a mebibyte or more is made ready for writing before this returns, which
    /// is quicker than if its pages came one by one, and finds out if there is no memory for it.
    ///
    /// # Errors
    /// [`Error::Refused`], see above; [`Error::Map`] if the machine has not the memory that the
    /// store was promised.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// use plasma::{Client, ObjectId, client::{CreateOptions, ObjectState}};
    ///
    /// let client = Client::connect(store.path())?;
    /// let id = ObjectId::random();
    /// let mut writer = client.create(id, 5, 0, CreateOptions::default())?;
    /// assert_eq!(client.state(id)?, ObjectState::Created);
    /// writer.data_mut().copy_from_slice(b"hello");
    /// writer.seal()?;
    /// assert_eq!(client.state(id)?, ObjectState::Sealed);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    pub fn create(
        &self,
        id: ObjectId,
        data_size: u64,
        metadata_size: u64,
        options: CreateOptions,
    ) -> Result<ObjectWriter> {
        self.create_with(id, data_size, metadata_size, options, None)
    }

    /// As [`Self::create`]; the caller can interrupt the wait for room. There is no object then.
    pub fn create_with(
        &self,
        id: ObjectId,
        data_size: u64,
        metadata_size: u64,
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<ObjectWriter> {
        let connection = self.connection()?;
        ObjectWriter::new(connection.claim(id, data_size, metadata_size, options, interrupt)?)
    }

    /// Stores an object: create, copy and seal in one. Nobody holds it afterwards.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// let id = plasma::ObjectId::random();
    /// client.put(id, b"data", b"metadata")?;
    /// assert!(client.contains(id)?);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::create`]. There is no object then.
    pub fn put(&self, id: ObjectId, data: &[u8], metadata: &[u8]) -> Result<()> {
        self.put_with(id, data, metadata, CreateOptions::default(), None)
    }

    /// As [`Self::put`], with a choice of how to make room; the caller can interrupt the wait for
    /// it.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::{CreateOptions, Error, Refusal};
    ///
    /// let too_much = vec![0; usize::try_from(client.capacity()?).unwrap() + 1];
    /// let keep_others = CreateOptions { evict: false, ..CreateOptions::default() };
    /// let id = plasma::ObjectId::random();
    /// let error = client.put_with(id, &too_much, b"", keep_others, None).unwrap_err();
    /// assert!(matches!(error, Error::Refused(Refusal::StoreFull(_))), "{error}");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::create`], and [`Error::Interrupted`]. There is no object then. Should the
    /// interrupt come too late, the object is there and this returns `Ok`. Only if the store does
    /// not answer, even to the interrupt, it is unknown whether it will be there.
    pub fn put_with(
        &self,
        id: ObjectId,
        data: &[u8],
        metadata: &[u8],
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let pieces = Pieces { total: data.len(), pieces: &[(0, data)], threads: COPY_THREADS };
        self.put_pieces(id, pieces, metadata, options, interrupt)
    }

    /// As [`Self::put_with`], for data that lies in several places.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::client::{CreateOptions, Pieces};
    ///
    /// let id = plasma::ObjectId::random();
    /// let pieces = Pieces { total: 8, pieces: &[(0, b"ab"), (4, b"cd")], threads: 1 };
    /// client.put_pieces(id, pieces, b"", CreateOptions::default(), None)?;
    /// assert_eq!(&client.get_one(id, None)?.unwrap()[..], b"ab\0\0cd\0\0");
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::put_with`]; [`Error::InvalidArgument`] if a piece overlaps the one before, or is
    /// not within the data.
    pub fn put_pieces(
        &self,
        id: ObjectId,
        pieces: Pieces<'_>,
        metadata: &[u8],
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        pieces.check()?;
        let connection = self.connection()?;
        let size = pieces.total.saturating_add(metadata.len());
        if size <= PUT_INLINE_BYTES.min(connection.connected.inline_bytes_max) {
            let object =
                || vec![NewObject { id, data: pieces.to_vec(), metadata: metadata.to_vec() }];
            return connection.put(object, options, interrupt);
        }
        let sizes = (pieces.total as u64, metadata.len() as u64);
        // Dropping the writer aborts the object.
        let claim = connection.claim(id, sizes.0, sizes.1, options, interrupt)?;
        let mut writer = ObjectWriter::not_ready(claim)?;
        writer.fill(pieces.pieces, metadata, pieces.threads).map_err(Error::Map)?;
        writer.seal()
    }

    /// Stores many small objects (id, data, metadata) in one message: all of them, or none.
    ///
    /// ```
    /// # let store = plasma::testing::store();
    /// # let client = plasma::Client::connect(store.path())?;
    /// use plasma::ObjectId;
    ///
    /// let objects: Vec<_> = (0..100)
    ///     .map(|number| (ObjectId::random(), format!("object {number}"), b"text"))
    ///     .collect();
    /// client.put_batch(&objects)?;
    /// assert_eq!(client.stats()?.objects, 100);
    /// # Ok::<(), plasma::client::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::BatchTooLarge`] if it does not fit into one message (4096 objects and 1 MiB of data
    /// and metadata, unless the store allows less); otherwise as [`Self::create`].
    pub fn put_batch<D: AsRef<[u8]>, M: AsRef<[u8]>>(
        &self,
        objects: &[(ObjectId, D, M)],
    ) -> Result<()> {
        self.put_batch_with(objects, CreateOptions::default(), None)
    }

    /// As [`Self::put_batch`], with a choice of how to make room; the caller can interrupt the wait
    /// for it, as with [`Self::put_with`].
    pub fn put_batch_with<D: AsRef<[u8]>, M: AsRef<[u8]>>(
        &self,
        objects: &[(ObjectId, D, M)],
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let connection = self.connection()?;
        if objects.is_empty() {
            return Ok(());
        }
        let sizes = objects.iter().flat_map(|(_, data, metadata)| {
            [data.as_ref().len() as u64, metadata.as_ref().len() as u64]
        });
        let bytes = sizes.fold(0, u64::saturating_add);
        let objects_max = connection.connected.batch_objects_max;
        let bytes_max = connection.connected.inline_bytes_max as u64;
        if objects.len() > objects_max || bytes > bytes_max {
            return Err(Error::BatchTooLarge {
                objects: objects.len(),
                objects_max,
                bytes,
                bytes_max,
            });
        }
        let new_object = |(id, data, metadata): &(ObjectId, D, M)| NewObject {
            id: *id,
            data: data.as_ref().to_vec(),
            metadata: metadata.as_ref().to_vec(),
        };
        connection.put(|| objects.iter().map(new_object).collect(), options, interrupt)
    }
}

impl Connection {
    /// Has an object made, which is the caller's to fill and seal.
    pub(super) fn claim(
        self: &Arc<Self>,
        id: ObjectId,
        data_size: u64,
        metadata_size: u64,
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<Claim> {
        if data_size.checked_add(metadata_size).is_none() {
            return Err(Error::InvalidArgument(format!(
                "object {id} of {data_size} bytes of data and {metadata_size} bytes of metadata \
                 is larger than any store"
            )));
        }
        let create = || Request::Create { id, data_size, metadata_size, room: options.into() };
        let Answer { reply, cut_short } = self.call_for_room(create, options, interrupt)?;
        match reply {
            Reply::Created(placed)
                if (placed.location.data_size, placed.location.metadata_size)
                    == (data_size, metadata_size) =>
            {
                // Dropping the claim aborts the object, if it came too late.
                let claim = Claim::new(self, id, placed);
                cut_short.map_or(Ok(claim), Err)
            }
            other => Err(self.unexpected("create", &other)),
        }
    }

    fn put(
        &self,
        objects: impl Fn() -> Vec<NewObject>,
        options: CreateOptions,
        interrupt: Interrupt<'_>,
    ) -> Result<()> {
        let put = || Request::Put { objects: objects(), room: options.into() };
        match self.call_for_room(put, options, interrupt)?.reply {
            Reply::Done => Ok(()),
            other => Err(self.unexpected("put", &other)),
        }
    }

    /// As [`Self::call_waiting`], for a request for room. Where somebody holds objects and the
    /// request does not wait itself, it asks twice: what others have let go already may still be
    /// on its way (see [`super::sending`]).
    fn call_for_room(
        &self,
        request: impl Fn() -> Request,
        options: CreateOptions,
        mut interrupt: Interrupt<'_>,
    ) -> Result<Answer> {
        match self.call_waiting(request(), &mut interrupt) {
            Err(Error::Refused(super::Refusal::StoreFull(full)))
                if full.pinned > 0 && options.timeout == Some(Duration::ZERO) => {}
            other => return other,
        }
        self.allow_for_releases(&mut interrupt)?;
        self.call_waiting(request(), &mut interrupt)
    }
}

/// Copies `source` to `target`, which are equally long, with up to so many threads: not more than
/// there are cores, and none that has little to do.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// let source = vec![7; 20 << 20];
/// let mut target = vec![0; source.len()];
/// plasma::client::copy_in_parallel(&mut target, &source, 4);
/// assert!(target == source);
/// ```
pub fn copy_in_parallel(target: &mut [u8], source: &[u8], threads: usize) {
    let ready = |_: Range<usize>| Ok(());
    copy_and_make_ready(target, source, threads, ready).expect("only making ready can fail");
}

/// As [`copy_in_parallel`]. Before a part of the target is written it is made `ready`, which may
/// fail; then the rest is left as it is.
pub(super) fn copy_and_make_ready(
    target: &mut [u8],
    source: &[u8],
    threads: usize,
    ready: impl Fn(Range<usize>) -> io::Result<()> + Sync,
) -> io::Result<()> {
    assert_eq!(target.len(), source.len(), "target and source are equally long");
    let threads = useful_threads(source.len(), threads);
    let parts = target.chunks_mut(COPY_PART_BYTES).zip(source.chunks(COPY_PART_BYTES));
    in_parts(parts.enumerate(), threads, |(index, (target, source))| {
        let start = index * COPY_PART_BYTES;
        ready(start..start + target.len())?;
        target.copy_from_slice(source);
        Ok(())
    })
}

/// Makes so many bytes ready, with up to so many threads.
pub(super) fn make_ready(
    bytes: usize,
    threads: usize,
    ready: impl Fn(Range<usize>) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let parts = (0..bytes).step_by(COPY_PART_BYTES);
    in_parts(parts, useful_threads(bytes, threads), |start| {
        ready(start..(start + COPY_PART_BYTES).min(bytes))
    })
}

/// Parts are taken one by one, so that a thread that was held up does not hold up the end. The
/// first failure ends it.
fn in_parts<P>(
    parts: impl Iterator<Item = P> + Send,
    threads: usize,
    work: impl Fn(P) -> io::Result<()> + Sync,
) -> io::Result<()> {
    if threads <= 1 {
        return { parts }.try_for_each(work);
    }
    let rest = Mutex::new(Ok(parts));
    let work_on = || {
        loop {
            let part = lock(&rest).as_mut().map_or(None, Iterator::next);
            let Some(part) = part else { break };
            if let Err(error) = work(part) {
                *lock(&rest) = Err(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where there can be no more threads, this one does it all.
            if threads::spawn_scoped(scope, work_on).is_err() {
                break;
            }
        }
        work_on();
    });
    let rest = rest.into_inner().unwrap_or_else(PoisonError::into_inner);
    rest.map(|_done| ())
}

fn useful_threads(bytes: usize, wanted: usize) -> usize {
    let busy = bytes / COPY_BYTES_PER_THREAD_MIN;
    if busy <= 1 {
        return 1;
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    wanted.min(busy).min(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_whatever_the_size_and_the_number_of_threads() {
        let part = COPY_PART_BYTES;
        let many = 3 * COPY_BYTES_PER_THREAD_MIN;
        for size in [0, 1, part - 1, part, part + 1, many - 1, many + part / 2 + 1] {
            let source: Vec<u8> = (0..=250).cycle().take(size).collect();
            for threads in [0, 1, 2, 7] {
                let mut target = vec![0; size];
                copy_in_parallel(&mut target, &source, threads);
                assert!(target == source, "{size} bytes, {threads} threads");
            }
        }
    }

    #[test]
    fn every_byte_is_made_ready_once() {
        for bytes in [1, COPY_PART_BYTES, 3 * COPY_BYTES_PER_THREAD_MIN + 5] {
            let done = Mutex::new(Vec::new());
            let ready = |range: Range<usize>| {
                lock(&done).push((range.start, range.end));
                Ok(())
            };
            make_ready(bytes, 4, ready).unwrap();
            let mut done = done.into_inner().unwrap();
            done.sort_unstable();
            assert_eq!((done[0].0, done[done.len() - 1].1), (0, bytes));
            assert!(done.windows(2).all(|pair| pair[0].1 == pair[1].0), "{done:?}");
        }
    }

    #[test]
    fn a_failure_ends_it_and_is_told() {
        let source = vec![1; 4 * COPY_BYTES_PER_THREAD_MIN];
        for threads in [1, 4] {
            let mut target = vec![0; source.len()];
            let fail = |range: Range<usize>| match range.start {
                0 => Ok(()),
                _ => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
            };
            let error = copy_and_make_ready(&mut target, &source, threads, fail).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(target[COPY_PART_BYTES..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn small_copies_start_no_thread() {
        assert_eq!(useful_threads(COPY_BYTES_PER_THREAD_MIN, 8), 1);
        assert_eq!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 1), 1);
        assert!(useful_threads(10 * COPY_BYTES_PER_THREAD_MIN, 8) <= 8);
    }
}
