//! The signals that end a store: SIGTERM, SIGINT and SIGHUP, held back so that none is lost.
//!
//! A blocked signal stays pending until the event loop reads it from a signalfd, so it makes no
//! difference when it comes: before the loop, inside it, or twice.

use std::fs;

use nix::sys::signal::{SigSet, Signal};

/// Blocks the signals that ask for the end in this thread and those it starts, and returns them.
/// To be called first thing, before there are other threads, which would still receive them. May
/// be called again.
///
/// A signal that whoever started us ignores (`nohup` does that, and shells do for background jobs)
/// is left out: blocked, it would become pending and end a store that was meant to survive it.
///
/// # Errors
/// The system refused.
pub fn block_termination_signals() -> nix::Result<SigSet> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_signals(&status);
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        if ignored >> (signal as u32 - 1) & 1 == 0 {
            signals.add(signal);
        }
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Bit n-1 for signal n, from the line `SigIgn:`. The system call would need unsafe code.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        assert_eq!(
            ignored_signals("SigBlk:\t01\nSigIgn:\t0000000000001001\nSigCgt:\t02\n"),
            0x1001
        );
        assert_eq!(ignored_signals("Name:\tx\n"), 0);
    }

    #[test]
    fn a_signal_that_comes_early_waits() {
        // In a thread of its own: other tests keep their masks.
        std::thread::scope(|scope| {
            let pending = scope.spawn(|| {
                let signals = block_termination_signals().expect("blocked");
                assert!(signals.contains(Signal::SIGTERM));
                nix::sys::signal::raise(Signal::SIGTERM).expect("raised");
                signals.wait().expect("a signal")
            });
            assert_eq!(pending.join().expect("the signal did not end us"), Signal::SIGTERM);
        });
    }
}
