//! `ObjectID`: the name of an object.

use plasma::ObjectId;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};

/// The name of an object: exactly 20 bytes, chosen by whoever creates it.
///
/// Hashable, comparable, picklable. Two random ones never meet in practice.
///
/// >>> ObjectID(20 * b"a")
/// ObjectID(6161616161616161616161616161616161616161)
#[pyclass(frozen, eq, ord, hash, subclass, weakref, module = "plasma")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd)]
pub struct ObjectID(pub ObjectId);

#[pymethods]
impl ObjectID {
    #[new]
    #[pyo3(text_signature = "(object_id)")]
    fn new(object_id: &Bound<'_, PyAny>) -> PyResult<Self> {
        let bytes = object_id.cast::<PyBytes>().ok().map(|bytes| bytes.as_bytes());
        match bytes.map(ObjectId::try_from) {
            Some(Ok(id)) => Ok(Self(id)),
            Some(Err(error)) => Err(PyValueError::new_err(error.to_string())),
            None => {
                let kind = object_id.get_type().name()?;
                Err(PyValueError::new_err(format!(
                    "an object id is 20 bytes, not {kind}; ObjectID.from_hex takes 40 digits"
                )))
            }
        }
    }

    /// A new id from the system's random source.
    #[classmethod]
    fn from_random(_class: &Bound<'_, PyType>) -> Self {
        Self(ObjectId::random())
    }

    /// The id of 40 hexadecimal digits, as `hex` gives them.
    #[classmethod]
    fn from_hex(_class: &Bound<'_, PyType>, digits: &str) -> PyResult<Self> {
        let id = digits.parse::<ObjectId>();
        id.map(Self).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The 20 bytes.
    fn binary<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.as_bytes())
    }

    /// The 40 hexadecimal digits.
    fn hex(&self) -> String {
        self.0.to_string()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        self.binary(py)
    }

    fn __repr__(&self) -> String {
        format!("ObjectID({})", self.0)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (Bound<'py, PyBytes>,)) {
        (slf.get_type(), (slf.get().binary(slf.py()),))
    }
}
