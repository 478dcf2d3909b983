//! Streams of events.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use plasma::client::{Error, Event};
use plasma::limits::INTERRUPT_CHECK_INTERVAL as LOOK_INTERVAL;
use plasma::shm::fork;
use plasma::time::Clock;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::convert::{milliseconds, timeout};
use crate::object_id::ObjectID;
use crate::waiting::{has_raised, without_lock};

/// Kind of event, and of which object: id, bytes of data, bytes of metadata.
type Entry = (&'static str, Option<ObjectID>, u64, u64);

/// What happens to the objects of a store, on a connection of its own.
#[pyclass(frozen, module = "plasma._core")]
pub struct Subscription {
    /// To wake up a thread that waits, and for loops that poll.
    socket: UnixStream,
    /// Locked for as long as it takes to look, and never over a wait or a call of Python's.
    events: Mutex<Option<plasma::Subscription>>,
    /// A forked child must not touch its parent's stream.
    generation: u64,
}

impl Subscription {
    pub fn new(events: plasma::Subscription) -> PyResult<Self> {
        let socket = UnixStream::from(events.as_fd().try_clone_to_owned()?);
        Ok(Self { socket, events: Mutex::new(Some(events)), generation: fork::generation() })
    }
}

impl Subscription {
    /// An event, if one is here.
    fn look(&self) -> plasma::client::Result<Option<Event>> {
        if self.is_inherited() {
            return Err(Error::Inherited("this stream of events"));
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.as_mut().ok_or(Error::Closed)?.next_timeout(Duration::ZERO)
    }

    /// Waits until something has come, or the stream has ended, but no longer than that.
    fn wait_readable(&self, patience: Duration) {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let milliseconds = u16::try_from(patience.as_millis() + 1).unwrap_or(u16::MAX);
        // If it fails, the caller looks too often, and nothing worse.
        let _ = poll(&mut polled, milliseconds);
    }
}

#[pymethods]
impl Subscription {
    /// The next event; `None` if none comes in time.
    fn next(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = milliseconds)] timeout_ms: i64,
    ) -> PyResult<Option<Entry>> {
        let clock = Clock::start();
        let end = timeout(timeout_ms).map(|timeout| clock.now().after(timeout));
        let event = without_lock(py, || {
            loop {
                if let Some(event) = self.look()? {
                    return Ok(Some(event));
                }
                let rest = end.map(|end| end.since(clock.now()));
                if rest == Some(Duration::ZERO) {
                    return Ok(None);
                }
                self.wait_readable(rest.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL));
                if has_raised() {
                    return Err(Error::Interrupted);
                }
            }
        })?;
        Ok(event.map(entry))
    }

    /// Whether this is a forked child's copy, which is good for nothing.
    fn is_inherited(&self) -> bool {
        self.generation != fork::generation()
    }

    /// The descriptor, readable when events have come.
    fn fileno(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Ends the stream: who waits for an event gets `OSError`.
    fn close(&self, py: Python<'_>) {
        if self.is_inherited() {
            return;
        }
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
