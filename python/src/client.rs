//! The client: calls of Python in, calls of the Rust client out.

use std::collections::HashMap;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plasma::ObjectId;
use plasma::client::{CreateOptions, DeleteOutcome, GetOptions, ObjectState, Pieces};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefReference};

use crate::buffers::{Buffer, Source};
use crate::convert::{Ids, milliseconds, room, size, timeout, whole_bytes};
use crate::creating::{Creating, make_room};
use crate::errors::{ArrowInvalid, ArrowTypeError, PlasmaObjectNotFound, about, exception};
use crate::listing;
use crate::object_id::ObjectID;
use crate::pending::{PendingGet, PendingWait};
use crate::subscription::Subscription;
use crate::waiting::without_lock;
use crate::writer::Writer;

/// Ids of a get for which the interpreter lock is kept if all is at hand, some 20 µs.
const AT_HAND_IDS_MAX: usize = 64;

/// A connection to a store. Safe to use from many threads; may be used in a forked child.
#[pyclass(frozen, module = "plasma._core")]
pub struct Client {
    client: plasma::Client,
    /// The objects that this client is creating, by name: users seal by name. Only locked while the
    /// interpreter lock is held, and never for long, so a forked child finds it unlocked.
    creating: Mutex<HashMap<ObjectId, Creating>>,
}

#[pymethods]
impl Client {
    /// Connects to the store that listens at `path`; tries again `retries` times, every 100 ms.
    #[staticmethod]
    #[pyo3(signature = (path, retries, *, name, poll_us, directory, patience, read_only))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the call in Python")]
    fn connect(
        py: Python<'_>,
        path: PathBuf,
        retries: u32,
        name: Option<String>,
        poll_us: Option<u64>,
        directory: bool,
        patience: Duration,
        read_only: bool,
    ) -> PyResult<Self> {
        let mut builder = plasma::Client::builder().retries(retries).directory(directory);
        builder = builder.patience(patience).read_only(read_only);
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(microseconds) = poll_us {
            builder = builder.poll_time(Duration::from_micros(microseconds));
        }
        let client = without_lock(py, || builder.connect(&path))?;
        Ok(Self { client, creating: Mutex::default() })
    }

    fn disconnect(&self, py: Python<'_>) -> PyResult<()> {
        // Taken out first: what is dropped with them must not find the table locked.
        let creating = std::mem::take(&mut *self.creating());
        drop(creating);
        without_lock(py, || {
            self.client.disconnect();
            Ok(())
        })
    }

    /// Starts an object. One that is `kept` can be sealed by its name and lives until then; another
    /// one lives as long as its writer.
    #[pyo3(signature = (object_id, data_size, metadata, evict, timeout_ms, kept = true))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the call in Python")]
    fn create(
        &self,
        py: Python<'_>,
        object_id: &ObjectID,
        #[pyo3(from_py_with = whole_bytes)] data_size: i64,
        metadata: Source,
        evict: bool,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
        kept: bool,
    ) -> PyResult<Py<Writer>> {
        let (id, data_size) = (object_id.0, size("data_size", data_size)?);
        let options = room(evict, timeout_ms);
        let writer = without_lock(py, || {
            self.client.create_guarded(id, data_size, metadata.bytes(), options, None)
        })
        .map_err(|error| about(py, id, error))?;
        let writer = Py::new(py, Writer::new(writer))?;
        if !kept {
            return Ok(writer);
        }
        let mut creating = self.creating();
        let gone = make_room(py, &mut creating);
        let previous = creating.insert(id, Creating::Kept(writer.clone_ref(py)));
        // What is dropped now must not find the table locked.
        drop(creating);
        drop((gone, previous));
        Ok(writer)
    }

    fn seal(&self, py: Python<'_>, object_id: &ObjectID) -> PyResult<()> {
        let writer = self.find(py, object_id.0)?;
        let sealed = writer.get().seal(py);
        self.strike_out(py, object_id.0, &writer);
        sealed
    }

    fn abort(&self, py: Python<'_>, object_id: &ObjectID) -> PyResult<()> {
        let writer = self.find(py, object_id.0)?;
        let aborted = writer.get().abort(py);
        self.strike_out(py, object_id.0, &writer);
        aborted
    }

    /// Gives up the client's own share of an object that it is creating: it lives as long as its
    /// buffer then. Sealed objects are released by their buffers.
    fn release(&self, py: Python<'_>, object_id: &ObjectID) -> PyResult<()> {
        let id = object_id.0;
        let known = self.creating().get(&id).and_then(|creating| creating.writer(py));
        let Some(writer) = known else {
            return match without_lock(py, || self.client.state(id))? {
                ObjectState::Sealed => Ok(()),
                _ => Err(not_here(id)),
            };
        };
        let weak = PyWeakrefReference::new(writer.bind(py).as_any())?.unbind();
        let mut creating = self.creating();
        let released = Creating::Released(weak);
        // In its place: an insertion would make the table grow before it looks.
        let previous = creating.get_mut(&id).map(|known| std::mem::replace(known, released));
        drop(creating);
        drop(previous);
        Ok(())
    }

    /// Stores an object of `total_bytes` bytes, made of pieces that each begin at an offset and do
    /// not overlap; what is between them is zero. All or nothing.
    #[pyo3(signature = (object_id, total_bytes, pieces, metadata, threads, evict, timeout_ms))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of the call in Python")]
    fn put(
        &self,
        py: Python<'_>,
        object_id: &ObjectID,
        total_bytes: usize,
        pieces: Vec<(usize, Source)>,
        metadata: Source,
        threads: usize,
        evict: bool,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<()> {
        let options = room(evict, timeout_ms);
        let id = object_id.0;
        let places: Vec<_> =
            pieces.iter().map(|(offset, source)| (*offset, source.bytes())).collect();
        let data = Pieces { total: total_bytes, pieces: &places, threads };
        without_lock(py, || self.client.put_pieces(id, data, metadata.bytes(), options, None))
            .map_err(|error| about(py, id, error))
    }

    /// Stores many small objects in one message: all or none.
    fn put_batch(
        &self,
        py: Python<'_>,
        objects: Vec<(PyRef<'_, ObjectID>, Source, Source)>,
        evict: bool,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<()> {
        let objects: Vec<_> =
            objects.into_iter().map(|(id, data, metadata)| (id.0, data, metadata)).collect();
        let options: CreateOptions = room(evict, timeout_ms);
        without_lock(py, || {
            let bytes: Vec<_> = objects
                .iter()
                .map(|(id, data, metadata)| (*id, data.bytes(), metadata.bytes()))
                .collect();
            self.client.put_batch_with(&bytes, options, None)
        })
    }

    /// The objects' data in the order of the ids, `None` for what is not there in time.
    fn get(
        &self,
        py: Python<'_>,
        object_ids: Ids,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<Vec<Option<Buffer>>> {
        // Nearly always, and far less than what it takes to let go of the interpreter lock.
        if object_ids.0.len() <= AT_HAND_IDS_MAX
            && let Some(found) = self.client.get_at_hand(&object_ids.0).map_err(exception)?
        {
            return Ok(found.into_iter().map(|object| Some(Buffer::data_of(object))).collect());
        }
        let options = GetOptions { timeout: timeout(timeout_ms), ..GetOptions::default() };
        if options.timeout.is_none() {
            self.check_not_waiting_for_itself(py, &object_ids.0)?;
        }
        let found = without_lock(py, || self.client.get_with(&object_ids.0, options, None))?;
        Ok(found.into_iter().map(|object| object.map(Buffer::data_of)).collect())
    }

    fn wait(
        &self,
        py: Python<'_>,
        object_ids: Ids,
        count: usize,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<Vec<bool>> {
        without_lock(py, || self.client.wait_with(&object_ids.0, count, timeout(timeout_ms), None))
    }

    /// Begins a get and waits for nothing.
    fn start_get(
        &self,
        py: Python<'_>,
        object_ids: Ids,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<PendingGet> {
        let options = GetOptions { timeout: timeout(timeout_ms), ..GetOptions::default() };
        Ok(without_lock(py, || self.client.start_get(&object_ids.0, options))?.into())
    }

    /// Begins a wait and waits for nothing.
    fn start_wait(
        &self,
        py: Python<'_>,
        object_ids: Ids,
        count: usize,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<PendingWait> {
        let timeout = timeout(timeout_ms);
        Ok(without_lock(py, || self.client.start_wait(&object_ids.0, count, timeout))?.into())
    }

    /// Takes in the replies that have come; the numbers of their requests.
    fn receive_ready(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        let answered = without_lock(py, || self.client.receive_ready())?;
        Ok(answered.into_iter().map(|request| request.0).collect())
    }

    /// A duplicate of the socket, the caller's to close: readable when replies have come.
    fn descriptor(&self) -> PyResult<i32> {
        Ok(self.client.descriptor().map_err(exception)?.into_raw_fd())
    }

    fn states(&self, py: Python<'_>, object_ids: Ids) -> PyResult<Vec<&'static str>> {
        let states = without_lock(py, || self.client.states(&object_ids.0))?;
        Ok(states.into_iter().map(listing::state_name).collect())
    }

    fn contains(&self, py: Python<'_>, object_id: &ObjectID) -> PyResult<bool> {
        if self.client.contains_at_hand(object_id.0).map_err(exception)? {
            return Ok(true);
        }
        without_lock(py, || self.client.contains(object_id.0))
    }

    fn delete(&self, py: Python<'_>, object_ids: Ids) -> PyResult<Vec<&'static str>> {
        let outcomes = without_lock(py, || self.client.delete(&object_ids.0))?;
        Ok(outcomes.into_iter().map(outcome_name).collect())
    }

    fn evict(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = whole_bytes)] bytes: i64,
    ) -> PyResult<(u64, u64)> {
        // As in the original, less than nothing is nothing.
        let bytes = u64::try_from(bytes).unwrap_or(0);
        let evicted = without_lock(py, || self.client.evict(bytes))?;
        Ok((evicted.bytes, evicted.objects))
    }

    fn refresh(&self, py: Python<'_>, object_ids: Ids) -> PyResult<u64> {
        without_lock(py, || self.client.refresh(&object_ids.0))
    }

    fn objects<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        listing::objects(py, &without_lock(py, || self.client.list_all())?)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        listing::stats(py, &without_lock(py, || self.client.stats())?)
    }

    #[pyo3(signature = (holding = None))]
    fn clients<'py>(
        &self,
        py: Python<'py>,
        holding: Option<&ObjectID>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let clients = without_lock(py, || match holding {
            Some(id) => self.client.holders_of(id.0),
            None => self.client.clients(),
        })?;
        clients.iter().map(|client| listing::client(py, client)).collect()
    }

    fn debug_text(&self, py: Python<'_>) -> PyResult<String> {
        without_lock(py, || self.client.debug_text())
    }

    fn set_name(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        without_lock(py, || self.client.set_name(name))
    }

    fn set_quota(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = whole_bytes)] bytes: i64,
    ) -> PyResult<()> {
        let bytes = size("a quota", bytes)?;
        without_lock(py, || self.client.set_quota(bytes))
    }

    /// Opens a stream of events; one by one and without marks, if a program is to read the socket.
    fn subscribe(&self, py: Python<'_>, one_by_one: bool) -> PyResult<Subscription> {
        let events = without_lock(py, || {
            if one_by_one { self.client.subscribe_one_by_one() } else { self.client.subscribe() }
        })?;
        Subscription::new(events)
    }

    fn capacity(&self) -> PyResult<u64> {
        self.client.capacity().map_err(exception)
    }

    fn is_read_only(&self) -> PyResult<bool> {
        self.client.is_read_only().map_err(exception)
    }

    fn server_pid(&self) -> PyResult<u32> {
        self.client.server_pid().map_err(exception)
    }

    fn client_id(&self) -> PyResult<u64> {
        Ok(self.client.client_id().map_err(exception)?.0)
    }
}

impl Client {
    fn creating(&self) -> MutexGuard<'_, HashMap<ObjectId, Creating>> {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object of that name that this client is creating.
    fn find(&self, py: Python<'_>, id: ObjectId) -> PyResult<Py<Writer>> {
        let known = self.creating().get(&id).map(|creating| creating.writer(py));
        match known {
            Some(Some(writer)) => Ok(writer),
            Some(None) => {
                // Its last buffer has gone, and the object with it.
                self.creating().remove(&id);
                Err(not_here(id))
            }
            None => match without_lock(py, || self.client.state(id))? {
                ObjectState::Sealed => {
                    Err(ArrowTypeError::new_err(format!("object {id} is sealed already")))
                }
                ObjectState::Created => Err(PlasmaObjectNotFound::new_err(format!(
                    "object {id} is being created by another client, or within a block that ends it"
                ))),
                ObjectState::Absent => Err(not_here(id)),
            },
        }
    }

    /// Forgets an object that was sealed or aborted, unless there is a new one of that name.
    fn strike_out(&self, py: Python<'_>, id: ObjectId, writer: &Py<Writer>) {
        let mut creating = self.creating();
        let is_this =
            |creating: &Creating| creating.writer(py).is_some_and(|known| known.is(writer));
        let removed =
            if creating.get(&id).is_some_and(is_this) { creating.remove(&id) } else { None };
        // What is dropped now must not find the table locked.
        drop(creating);
        drop(removed);
    }

    /// A thread that waits for an object that it is creating itself would wait for ever.
    fn check_not_waiting_for_itself(&self, py: Python<'_>, ids: &[ObjectId]) -> PyResult<()> {
        let creating = self.creating();
        if creating.is_empty() {
            return Ok(());
        }
        let own = ids.iter().find(|id| {
            let writer = creating.get(id).and_then(|creating| creating.writer(py));
            writer.is_some_and(|writer| writer.get().is_open_here())
        });
        match own {
            None => Ok(()),
            Some(id) => Err(ArrowInvalid::new_err(format!(
                "object {id} is being created by this thread, which would wait for itself for \
                 ever: seal it first, or give a timeout"
            ))),
        }
    }
}

fn not_here(id: ObjectId) -> PyErr {
    PlasmaObjectNotFound::new_err(format!("object {id} is not being created by this client"))
}

const fn outcome_name(outcome: DeleteOutcome) -> &'static str {
    match outcome {
        DeleteOutcome::NotFound => "not found",
        DeleteOutcome::Deleted => "deleted",
        DeleteOutcome::DeferredInUse => "in use",
        DeleteOutcome::DeferredNotSealed => "not sealed",
    }
}
