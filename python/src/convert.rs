//! Arguments of Python as values of the client, each checked here once.

use std::time::Duration;

use plasma::ObjectId;
use plasma::client::CreateOptions;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyFloat, PyString};

use crate::object_id::ObjectID;

/// Many ids, in any sequence of `ObjectID`s.
pub struct Ids(pub Vec<ObjectId>);

impl<'a, 'py> FromPyObject<'a, 'py> for Ids {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if object.is_instance_of::<ObjectID>() {
            return Err(PyTypeError::new_err("a list of ObjectIDs was expected, use [object_id]"));
        }
        if object.is_instance_of::<PyBytes>() || object.is_instance_of::<PyString>() {
            return Err(not_an_id(&object));
        }
        // Not as many as its length says: that may be anything.
        let mut ids = Vec::new();
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

/// Milliseconds, to be used with `from_py_with`. A float is rounded up, because programs compute
/// timeouts, and nobody means "not at all" by half a millisecond.
pub fn milliseconds(number: &Bound<'_, PyAny>) -> PyResult<i64> {
    match number.cast::<PyFloat>() {
        Ok(float) => float.call_method0("__ceil__")?.extract(),
        Err(_) => number.extract(),
    }
}

/// Bytes, to be used with `from_py_with`: a float such as `1e9` will do, but no part of a byte,
/// which the original cut off.
pub fn whole_bytes(number: &Bound<'_, PyAny>) -> PyResult<i64> {
    match number.cast::<PyFloat>() {
        Ok(float) if float.value().fract() == 0.0 => float.call_method0("__trunc__")?.extract(),
        Ok(float) => Err(PyTypeError::new_err(format!(
            "a whole number of bytes was expected, not {}",
            float.value()
        ))),
        Err(_) => number.extract(),
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
