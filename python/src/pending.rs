//! Requests whose answers an event loop waits for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use plasma::client;
use pyo3::prelude::*;

use crate::buffers::Buffer;
use crate::errors::exception;

/// A get that was sent. Without its answer it is cancelled when it goes.
#[pyclass(frozen, module = "plasma._core")]
pub struct PendingGet(Mutex<Option<client::PendingGet>>);

/// A wait that was sent. Without its answer it is cancelled when it goes.
#[pyclass(frozen, module = "plasma._core")]
pub struct PendingWait(Mutex<Option<client::PendingWait>>);

impl From<client::PendingGet> for PendingGet {
    fn from(pending: client::PendingGet) -> Self {
        Self(Mutex::new(Some(pending)))
    }
}

impl From<client::PendingWait> for PendingWait {
    fn from(pending: client::PendingWait) -> Self {
        Self(Mutex::new(Some(pending)))
    }
}

#[pymethods]
impl PendingGet {
    /// The numbers of its requests that have no answer yet, as `Client.receive_ready` tells them.
    fn requests(&self) -> Vec<u64> {
        let pending = lock(&self.0);
        pending.iter().flat_map(|pending| pending.requests()).map(|request| request.0).collect()
    }

    /// The objects, if the answer is complete; `None` if not, or if it was cancelled.
    fn try_take(&self) -> PyResult<Option<Vec<Option<Buffer>>>> {
        let found = match &mut *lock(&self.0) {
            Some(pending) => pending.try_take().map_err(exception)?,
            None => None,
        };
        Ok(found.map(|found| found.into_iter().map(|one| one.map(Buffer::data_of)).collect()))
    }

    /// Nobody wants the answer any more.
    fn cancel(&self) {
        drop(lock(&self.0).take());
    }
}

#[pymethods]
impl PendingWait {
    /// The number of its request, as `Client.receive_ready` tells it.
    fn requests(&self) -> Vec<u64> {
        lock(&self.0).iter().map(|pending| pending.request().0).collect()
    }

    /// Which objects were seen sealed, if the answer has come; `None` if not, or if it was
    /// cancelled.
    fn try_take(&self) -> PyResult<Option<Vec<bool>>> {
        match &mut *lock(&self.0) {
            Some(pending) => pending.try_take().map_err(exception),
            None => Ok(None),
        }
    }

    /// Nobody wants the answer any more.
    fn cancel(&self) {
        drop(lock(&self.0).take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
