//! An object that Python code is writing.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use plasma::ObjectId;
use plasma::client::{GuardedWriter, Result};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::buffers::Exported;
use crate::errors::ArrowInvalid;
use crate::errors::ArrowTypeError;
use crate::object_id::ObjectID;
use crate::waiting::without_lock;

/// Bytes from which on memory is given back without the interpreter lock.
const DROP_DETACHED_BYTES_MIN: usize = 16 << 20;

const OPEN: u8 = 0;
const SEALED: u8 = 1;
const ABORTED: u8 = 2;

/// An object that is being created: memory to be filled in through the buffer protocol.
///
/// When it is sealed it stays readable, and a write to it faults. When it is aborted it shows zeros
/// that nobody else sees. When it goes without either, the object is aborted.
#[pyclass(frozen, weakref, module = "plasma._core")]
pub struct Writer {
    id: ObjectId,
    address: usize,
    len: usize,
    creator: ThreadId,
    /// What it is, or is just becoming. Apart from the writer, because a view may be asked for
    /// while another thread waits for the store's answer.
    state: AtomicU8,
    writer: Mutex<Option<GuardedWriter>>,
}

impl Writer {
    pub fn new(writer: GuardedWriter) -> Self {
        Self {
            id: writer.id(),
            address: writer.address(),
            len: writer.len(),
            creator: thread::current().id(),
            state: AtomicU8::new(OPEN),
            writer: Mutex::new(Some(writer)),
        }
    }

    pub const fn id(&self) -> ObjectId {
        self.id
    }

    /// Whether the thread that created this object is the current one, and it is still open.
    pub fn is_open_here(&self) -> bool {
        self.creator == thread::current().id() && self.state.load(Ordering::Acquire) == OPEN
    }

    fn end(
        &self,
        py: Python<'_>,
        state: u8,
        call: impl FnOnce(&mut GuardedWriter) -> Result<()> + Send,
    ) -> PyResult<()> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        match self.state.compare_exchange(OPEN, state, success, failure) {
            Ok(_) => without_lock(py, || {
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                writer.as_mut().map_or(Ok(()), call)
            }),
            Err(SEALED) => {
                let text = format!("object {} is sealed already", self.id);
                Err(ArrowTypeError::new_err(text))
            }
            Err(_) => Err(ArrowInvalid::new_err(format!("object {} was aborted", self.id))),
        }
    }
}

#[pymethods]
impl Writer {
    /// The name of the object.
    #[getter]
    fn object_id(&self) -> ObjectID {
        ObjectID(self.id)
    }

    /// Where the data begins in this process, a multiple of 64.
    #[getter]
    const fn address(&self) -> usize {
        self.address
    }

    /// Makes the object immutable and visible to everyone.
    pub fn seal(&self, py: Python<'_>) -> PyResult<()> {
        self.end(py, SEALED, GuardedWriter::seal)
    }

    /// Removes the object, as if it had never been created.
    pub fn abort(&self, py: Python<'_>) -> PyResult<()> {
        self.end(py, ABORTED, GuardedWriter::abort)
    }

    const fn __len__(&self) -> usize {
        self.len
    }

    fn __repr__(&self) -> String {
        let state = match self.state.load(Ordering::Acquire) {
            OPEN => "being created",
            SEALED => "sealed",
            _ => "aborted",
        };
        format!("<plasma writer of {} bytes, object {}, {state}>", self.len, self.id)
    }

    /// # Safety
    /// Called by the interpreter with a view to fill in.
    #[allow(unsafe_code, reason = "the interpreter's signature; the facts are in `buffers`")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let writer = slf.get();
        let writable = writer.state.load(Ordering::Acquire) == OPEN;
        let exported = Exported { address: writer.address, len: writer.len, writable };
        // SAFETY: the interpreter gave the view; the window of a guarded writer stays mapped until
        // `slf` is dropped, to which the view owns a reference. No Rust code has a reference to it.
        unsafe { exported.fill(slf.as_any(), view, flags) }
    }
}

/// Unmapping a gigabyte takes a tenth of a second, which other threads need not wait for.
impl Drop for Writer {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.len < DROP_DETACHED_BYTES_MIN {
            return drop(writer);
        }
        let mut writer = Some(writer);
        Python::try_attach(|py| py.detach(|| drop(writer.take())));
    }
}
