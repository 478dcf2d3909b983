//! Waiting without the interpreter lock, and with an ear for signals.
//!
//! Python runs signal handlers on the main thread and nowhere else, so no other one is woken up to
//! look. (One that is left behind when the interpreter ends must not touch it any more.)

use std::cell::RefCell;

use nix::unistd::{getpid, gettid};
use plasma::client::{Result, interrupted_by};
use pyo3::prelude::*;

use crate::errors::exception;

thread_local! {
    /// What a signal handler has raised.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs a call of the client without the interpreter lock. A signal handler that raises (Ctrl-C
/// does) ends a wait within 50 ms, and what it raised is the result.
pub fn without_lock<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    let result =
        py.detach(|| if is_main_thread() { interrupted_by(has_raised, call) } else { call() });
    match (RAISED.take(), result) {
        (Some(raised), _) => Err(raised),
        (None, Ok(value)) => Ok(value),
        (None, Err(error)) => Err(exception(error)),
    }
}

/// Runs the signal handlers that are due, on the main thread, and says whether one has raised.
pub fn has_raised() -> bool {
    if !is_main_thread() {
        return false;
    }
    let raised = Python::try_attach(|py| py.check_signals().err()).flatten();
    let has_raised = raised.is_some();
    if has_raised {
        RAISED.set(raised);
    }
    has_raised
}

/// The thread that a process began with, in a forked child the one that forked: as Python has it.
fn is_main_thread() -> bool {
    gettid() == getpid()
}
