//! Arguments of Python as values of the client, each checked here once.

use std::time::Duration;

use plasma::ObjectId;
use plasma::client::CreateOptions;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::object_id::ObjectID;

/// Many ids, in any sequence of `ObjectID`s.
pub struct Ids(pub Vec<ObjectId>);

impl<'a, 'py> FromPyObject<'a, 'py> for Ids {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let mut ids = Vec::with_capacity(object.len().unwrap_or(0));
        for item in object.try_iter()? {
            let item = item?;
            let id = item.cast::<ObjectID>().map_err(|_| not_an_id(&item))?;
            ids.push(id.get().0);
        }
        Ok(Self(ids))
    }
}

fn not_an_id(item: &Bound<'_, PyAny>) -> PyErr {
    match item.get_type().name() {
        Ok(kind) => PyTypeError::new_err(format!("an ObjectID was expected, not {kind}")),
        Err(error) => error,
    }
}

/// A timeout as the original counts it: -1 means for ever, other negative numbers not at all.
pub fn timeout(milliseconds: i64) -> Option<Duration> {
    match milliseconds {
        -1 => None,
        other => Some(Duration::from_millis(u64::try_from(other).unwrap_or(0))),
    }
}

/// A number of bytes.
pub fn size(name: &str, bytes: i64) -> PyResult<u64> {
    u64::try_from(bytes)
        .map_err(|_| PyValueError::new_err(format!("{name} must not be negative: {bytes}")))
}

/// How to make room for an object.
pub fn room(evict: bool, timeout_ms: i64) -> CreateOptions {
    CreateOptions { evict, timeout: timeout(timeout_ms) }
}
