//! Threads that the library starts beside those of its user.
//!
//! A signal for a process goes to any of its threads that has it unblocked. A program that reads
//! its signals with `sigwait` or a `signalfd` blocks them in its own threads, and a thread of ours
//! that did not would take them, or let them end the process. So ours have all of them blocked,
//! from their first instruction on; but for SIGBUS, which is a fault of the thread itself: blocked,
//! it would end the process although somebody handles it (`shm::filling`).
//!
//! Knows nothing of what the threads do.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

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
    let (mut blocked, mut before) = (SigSet::all(), SigSet::empty());
    blocked.remove(Signal::SIGBUS);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&blocked), Some(&mut before))?;
    let started = start();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(signal: Signal) -> bool {
        SigSet::thread_get_mask().expect("the mask").contains(signal)
    }

    #[test]
    fn a_thread_of_ours_takes_no_signal_and_its_starter_takes_them_as_before() {
        let blocked = spawn("quiet", || (blocks(Signal::SIGTERM), blocks(Signal::SIGUSR1)));
        assert_eq!(blocked.expect("started").join().expect("ended"), (true, true));
        let blocked = spawn("faulty", || blocks(Signal::SIGBUS)).expect("started");
        assert!(!blocked.join().expect("ended"), "a fault of its own is not for others");
        std::thread::scope(|scope| {
            let blocked = spawn_scoped(scope, || blocks(Signal::SIGINT)).expect("started");
            assert!(blocked.join().expect("ended"));
        });
        assert!(!blocks(Signal::SIGTERM) && !blocks(Signal::SIGUSR1) && !blocks(Signal::SIGINT));
    }
}
