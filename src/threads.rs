//! Threads that the library starts beside those of its user.
//!
//! A signal for a process goes to any of its threads that has it unblocked. A program that reads
//! its signals with `sigwait` or a `signalfd` blocks them in its own threads, and a thread of ours
//! that did not would take them, or let them end the process. So ours have all of them blocked,
//! from their first instruction on.
//!
//! Knows nothing of what the threads do.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Starts a thread that takes no signals.
///
/// # Errors
/// The system has no more threads for us.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    with_signals_blocked(|| Builder::new().name(name.to_owned()).spawn(work))
}

/// As [`spawn`], for a thread that ends within a scope and has no name.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    with_signals_blocked(|| Builder::new().spawn_scoped(scope, work))
}

/// A new thread inherits the mask of the one that starts it.
fn with_signals_blocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let started = start();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    started
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    fn blocks(signal: Signal) -> bool {
        SigSet::thread_get_mask().expect("the mask").contains(signal)
    }

    #[test]
    fn a_thread_of_ours_takes_no_signal_and_its_starter_takes_them_as_before() {
        let blocked = spawn("quiet", || (blocks(Signal::SIGTERM), blocks(Signal::SIGUSR1)));
        assert_eq!(blocked.expect("started").join().expect("ended"), (true, true));
        std::thread::scope(|scope| {
            let blocked = spawn_scoped(scope, || blocks(Signal::SIGINT)).expect("started");
            assert!(blocked.join().expect("ended"));
        });
        assert!(!blocks(Signal::SIGTERM) && !blocks(Signal::SIGUSR1) && !blocks(Signal::SIGINT));
    }
}
