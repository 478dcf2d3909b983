//! Memory that Python code reads or writes by address: the unsafe code of this crate. (One entry of
//! the buffer protocol is in `writer`, and calls what is here.)
//!
//! [`Buffer`] and [`Exported`] lend memory of the store to Python through the buffer protocol,
//! [`Source`] borrows memory of Python objects. What keeps each of them alive is said at its unsafe
//! block.

#![allow(unsafe_code, reason = "the buffer protocol is made of pointers; the facts are below")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use plasma::ObjectBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::object_id::ObjectID;

/// The bytes of a sealed object, or its metadata, in the store's memory. Read-only down to the page.
///
/// Supports the buffer protocol. As long as it, or a view of it, is alive the object can neither be
/// evicted nor removed, and the memory stays mapped, also after the store is gone.
#[pyclass(frozen, module = "plasma._core")]
pub struct Buffer {
    object: ObjectBuffer,
    is_metadata: bool,
}

impl Buffer {
    /// The data of an object.
    pub const fn data_of(object: ObjectBuffer) -> Self {
        Self { object, is_metadata: false }
    }

    fn bytes(&self) -> &[u8] {
        if self.is_metadata { self.object.metadata() } else { self.object.data() }
    }
}

#[pymethods]
impl Buffer {
    /// The name of the object.
    #[getter]
    fn object_id(&self) -> ObjectID {
        ObjectID(self.object.id())
    }

    /// Where the bytes begin in this process.
    #[getter]
    fn address(&self) -> usize {
        self.bytes().as_ptr().addr()
    }

    /// A copy of the object's metadata.
    fn metadata<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.object.metadata())
    }

    /// The object's metadata, in place.
    fn metadata_buffer(&self) -> Self {
        Self { object: self.object.clone(), is_metadata: true }
    }

    /// The digest that the original made of data and metadata: 8 bytes.
    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let digest = py.detach(|| self.object.digest());
        PyBytes::new(py, &digest)
    }

    fn __len__(&self) -> usize {
        self.bytes().len()
    }

    fn __repr__(&self) -> String {
        format!("<plasma buffer of {} bytes, object {}>", self.bytes().len(), self.object.id())
    }

    /// # Safety
    /// Called by the interpreter with a view to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = slf.get().bytes();
        let exported =
            Exported { address: bytes.as_ptr().addr(), len: bytes.len(), writable: false };
        // SAFETY: the interpreter gave the view; the bytes live as long as `slf`, which does not
        // change and to which the view owns a reference.
        unsafe { exported.fill(slf.as_any(), view, flags) }
    }
}

/// Memory to be lent out by a Python object.
pub struct Exported {
    pub address: usize,
    pub len: usize,
    pub writable: bool,
}

impl Exported {
    /// Fills in a view of the buffer protocol.
    ///
    /// # Safety
    /// `view` is one that the interpreter wants filled in. The memory stays mapped for as long as
    /// `owner` lives, and may be written if it says `writable`, by whoever gets the address.
    pub unsafe fn fill(
        &self,
        owner: &Bound<'_, PyAny>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill in"));
        }
        let address: *mut c_void = std::ptr::with_exposed_provenance_mut(self.address);
        let len = isize::try_from(self.len)?;
        let readonly = c_int::from(!self.writable);
        // SAFETY: the caller's promise; the call takes a reference to `owner` for the view.
        let result =
            unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), address, len, readonly, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
    }
}

/// The contiguous bytes of some Python object, borrowed for a copy. The object cannot give its
/// memory up until this is dropped.
pub struct Source {
    view: ffi::Py_buffer,
}

// SAFETY: a view is plain data; it is released with the interpreter lock held, see `drop`.
unsafe impl Send for Source {}

// SAFETY: a shared `Source` only reads memory, which the view keeps in its place.
unsafe impl Sync for Source {}

impl Source {
    /// The bytes. Another Python thread may change them while they are copied, as with every other
    /// library that copies without the interpreter lock; the copy is torn then, and nothing else.
    pub fn bytes(&self) -> &[u8] {
        let len = usize::try_from(self.view.len).unwrap_or(0);
        if len == 0 || self.view.buf.is_null() {
            return &[];
        }
        // SAFETY: whoever filled in the view promises these bytes until it is released, which
        // happens when `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast::<u8>(), len) }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Source {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::zeroed();
        // SAFETY: the view is ours to be filled in, and the interpreter lock is held.
        let result = unsafe {
            ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), ffi::PyBUF_SIMPLE)
        };
        if result != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: the call above has succeeded, so the view is filled in.
        Ok(Self { view: unsafe { view.assume_init() } })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        Python::attach(|_py| {
            // SAFETY: the view was filled in by the interpreter, is released once, and the
            // interpreter lock is held.
            unsafe { ffi::PyBuffer_Release(&raw mut self.view) }
        });
    }
}
