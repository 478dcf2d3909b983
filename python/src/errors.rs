//! Errors of the Rust client as exceptions of Python.
//!
//! The classes that the original defined come from `plasma.errors`; the rest are what a Python
//! programmer expects: `OSError` with the system's error number for everything about the socket and
//! the machine, `ValueError` and `TypeError` for arguments.

use std::io;
use std::path::Path;

use plasma::ObjectId;
use plasma::client::{ConnectFailure, Error, Refusal};
use pyo3::exceptions::{PyConnectionError, PyOSError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;

pyo3::import_exception!(plasma.errors, PlasmaObjectExists);
pyo3::import_exception!(plasma.errors, PlasmaObjectNotFound);
pyo3::import_exception!(plasma.errors, PlasmaStoreFull);
pyo3::import_exception!(pyarrow.lib, ArrowInvalid);
pyo3::import_exception!(pyarrow.lib, ArrowTypeError);

/// `EBADF`, `EACCES`, `EFAULT`, `EPROTO` and `EOPNOTSUPP`, as the original and the system name these situations.
const BAD_DESCRIPTOR: i32 = 9;
const NO_PERMISSION: i32 = 13;
const BAD_ADDRESS: i32 = 14;
const PROTOCOL_ERROR: i32 = 71;
const NOT_SUPPORTED: i32 = 95;

/// The exception for an error. `Interrupted` has none of its own: whoever interrupts has one.
pub fn exception(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Refused(refusal) => refused(&refusal, text),
        Error::Connect { source, path, .. } => match &source {
            ConnectFailure::Io(reason) => os_error(reason, with_cure(reason, &path, text)),
            ConnectFailure::Silent(_) => PyTimeoutError::new_err(text),
            _ => PyConnectionError::new_err(text),
        },
        Error::Disconnected { source, .. } => {
            os_error(&source, format!("{text}; this client is of no use any more, connect anew"))
        }
        Error::Unresponsive { .. } => PyTimeoutError::new_err(text),
        Error::Closed => PyOSError::new_err((BAD_DESCRIPTOR, text)),
        Error::Protocol { .. } => PyOSError::new_err((PROTOCOL_ERROR, text)),
        Error::Map(source) => os_error(&source, text),
        Error::InvalidArgument(_) | Error::BatchTooLarge { .. } => PyValueError::new_err(text),
        Error::Inherited(_) | Error::Interrupted => PyOSError::new_err(text),
        _ => PyOSError::new_err(text),
    }
}

/// What to do where nobody listens.
fn with_cure(reason: &io::Error, path: &Path, text: String) -> String {
    match reason.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("{text}; is it running? (plasma_store -m 1GB -s {})", path.display())
        }
        _ => text,
    }
}

/// With an error number Python itself chooses the class: `FileNotFoundError`, `BrokenPipeError` …
fn os_error(reason: &io::Error, text: String) -> PyErr {
    match (reason.raw_os_error(), reason.kind()) {
        (Some(number), _) => PyOSError::new_err((number, text)),
        (None, io::ErrorKind::TimedOut) => PyTimeoutError::new_err(text),
        (None, _) => PyConnectionError::new_err(text),
    }
}

fn refused(refusal: &Refusal, text: String) -> PyErr {
    match refusal {
        Refusal::ObjectExists(_) => PlasmaObjectExists::new_err(text),
        Refusal::ObjectNotFound(_) | Refusal::NotHeld(_) | Refusal::Abandoned(_) => {
            PlasmaObjectNotFound::new_err(text)
        }
        // The original had one exception for all that does not fit.
        Refusal::StoreFull(_)
        | Refusal::QuotaExceeded { .. }
        | Refusal::QuotaUnavailable { .. }
        | Refusal::QuotaAlreadySet(_)
        | Refusal::TooManyWaiting(_)
        | Refusal::OverRequestMemory(_) => PlasmaStoreFull::new_err(text),
        // As the system says where memory is not there that was.
        Refusal::MemoryLost => PyOSError::new_err((BAD_ADDRESS, text)),
        // `PermissionError`.
        Refusal::ReadOnly => PyOSError::new_err((NO_PERMISSION, text)),
        Refusal::UnknownRequest => PyOSError::new_err((NOT_SUPPORTED, text)),
        Refusal::AlreadySealed(_) => ArrowTypeError::new_err(text),
        _ => ArrowInvalid::new_err(text),
    }
}

/// Says in the text of a full store which object there was no room for: the store's answer has the
/// numbers only.
pub fn about(py: Python<'_>, id: ObjectId, error: PyErr) -> PyErr {
    if !error.is_instance_of::<PlasmaStoreFull>(py) {
        return error;
    }
    PlasmaStoreFull::new_err(format!("no room for object {id}: {}", error.value(py)))
}
