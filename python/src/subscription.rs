//! Streams of events.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use plasma::client::{Error, Event};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert::timeout;
use crate::object_id::ObjectID;
use crate::waiting::interruptible;

/// Kind of event, and of which object: id, bytes of data, bytes of metadata.
type Entry = (&'static str, Option<ObjectID>, u64, u64);

/// What happens to the objects of a store, on a connection of its own.
#[pyclass(frozen, module = "plasma._core")]
pub struct Subscription {
    /// To wake up a thread that waits, and for loops that poll.
    socket: UnixStream,
    /// Held by the thread that waits, without the interpreter lock.
    events: Mutex<Option<plasma::Subscription>>,
}

impl Subscription {
    pub fn new(events: plasma::Subscription) -> PyResult<Self> {
        let socket = UnixStream::from(events.as_fd().try_clone_to_owned()?);
        Ok(Self { socket, events: Mutex::new(Some(events)) })
    }
}

#[pymethods]
impl Subscription {
    /// The next event; `None` if none comes in time.
    fn next(&self, py: Python<'_>, timeout_ms: i64) -> PyResult<Option<Entry>> {
        let event = interruptible(py, |interrupt| {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            let events = events.as_mut().ok_or(Error::Closed)?;
            events.next_with(timeout(timeout_ms), interrupt)
        })?;
        Ok(event.map(entry))
    }

    /// The descriptor, readable when events have come.
    fn fileno(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Ends the stream: who waits for an event gets `OSError`.
    fn close(&self, py: Python<'_>) {
        // Fails if the store has closed it first, which is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
        py.detach(|| self.events.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The events in one message of a stream.
    #[staticmethod]
    fn decode(message: crate::buffers::Source) -> PyResult<Vec<Entry>> {
        let events = plasma::Subscription::decode(message.bytes())
            .map_err(|error| PyValueError::new_err(format!("this is no notification: {error}")))?;
        Ok(events.into_iter().map(entry).collect())
    }
}

fn entry(event: Event) -> Entry {
    match event {
        Event::Sealed { id, data_size, metadata_size } => {
            ("sealed", Some(ObjectID(id)), data_size, metadata_size)
        }
        Event::Deleted { id, data_size, metadata_size } => {
            ("deleted", Some(ObjectID(id)), data_size, metadata_size)
        }
        Event::Evicted { id, data_size, metadata_size } => {
            ("evicted", Some(ObjectID(id)), data_size, metadata_size)
        }
        Event::SnapshotEnd => ("snapshot end", None, 0, 0),
        Event::Lagged => ("lagged", None, 0, 0),
        _ => ("unknown", None, 0, 0),
    }
}
