//! Waiting without the interpreter lock, and with an ear for signals.
//!
//! Python runs signal handlers on the main thread and nowhere else, so no other one is woken up to
//! look. (One that is left behind when the interpreter ends must not touch it any more.)

use nix::unistd::{getpid, gettid};
use plasma::client::{Interrupt, Result};
use pyo3::prelude::*;

use crate::errors::exception;

/// Runs a call of the client without the interpreter lock.
pub fn without_lock<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    py.detach(call).map_err(exception)
}

/// As [`without_lock`], for a call that may wait for long: a signal handler that raises (Ctrl-C
/// does) ends it within 50 ms, and what it raised is the result.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(Interrupt<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    if !is_main_thread() {
        return without_lock(py, || call(None));
    }
    let mut raised = None;
    let result = py.detach(|| {
        let mut interrupt = || {
            raised = Python::try_attach(|py| py.check_signals().err()).flatten();
            raised.is_some()
        };
        call(Some(&mut interrupt))
    });
    match (raised, result) {
        (Some(raised), _) => Err(raised),
        (None, Ok(value)) => Ok(value),
        (None, Err(error)) => Err(exception(error)),
    }
}

/// The thread that a process began with, in a forked child the one that forked: as Python has it.
fn is_main_thread() -> bool {
    gettid() == getpid()
}
