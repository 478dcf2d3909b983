//! Tells a forked child from its parent.
//!
//! A child inherits its parent's sockets and mappings but must not use the sockets: two processes
//! that talk on one connection garble it. Whoever owns such a thing remembers the [`generation`] in
//! which it was made and compares. That is an atomic load, where `getpid` is a system call, and
//! unlike a process id it is never used again.
//!
//! `fork` through the C library is noticed, which covers Python's `os.fork` and `multiprocessing`.
//! A bare `clone` system call is not, and neither is `vfork` or `posix_spawn`, which must not do
//! anything before `exec` anyway.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// A number that differs between this process, its ancestors and its forked children. It says
/// nothing about two processes of which neither descends from the other.
///
/// # Panics
/// If the C library has no memory left to remember that it should tell us of forks.
#[must_use]
pub fn generation() -> u64 {
    static REGISTRATION: Once = Once::new();
    REGISTRATION.call_once(|| {
        // SAFETY: the handler is a plain function that lives as long as the program, and all it
        // does is an atomic addition, which is allowed in the child of a threaded process.
        let result = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
        assert_eq!(result, 0, "pthread_atfork: {}", std::io::Error::from_raw_os_error(result));
    });
    GENERATION.load(Ordering::Relaxed)
}

/// Runs in the child, before `fork` returns there.
extern "C" fn count_fork() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    /// Runs `check` in a forked child and says whether it was true there. `check` must not take a
    /// lock, because another thread may have had it at the time of the fork. (That of the
    /// allocator is fine, the C library sees to it.)
    pub(in crate::shm) fn in_child(check: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only does what `check` promises, and leaves by `_exit`.
        match unsafe { libc::fork() } {
            0 => {
                let status = i32::from(!check());
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(status) }
            }
            child => {
                let child = Pid::from_raw(child);
                waitpid(child, None) == Ok(WaitStatus::Exited(child, 0))
            }
        }
    }

    /// As [`in_child`], with a value that several threads of this process share. The child gets it
    /// for itself, as if somebody had collected the references of the threads that it does not
    /// have; Python does that with those of its objects.
    pub(crate) fn in_child_as_only_owner<T>(
        shared: &Arc<T>,
        check: impl FnOnce(Arc<T>) -> bool,
    ) -> bool {
        in_child(|| {
            while Arc::strong_count(shared) > 1 {
                // SAFETY: the count belongs to threads that do not exist here.
                unsafe { Arc::decrement_strong_count(Arc::as_ptr(shared)) };
            }
            // SAFETY: the last count, which is not used again: the child ends without returning.
            check(unsafe { Arc::from_raw(Arc::as_ptr(shared)) })
        })
    }

    #[test]
    fn a_forked_child_is_another_generation() {
        let parent = generation();
        assert_eq!(generation(), parent);
        assert!(in_child(|| generation() != parent), "the child sees the parent's generation");
        assert_eq!(generation(), parent, "a fork changes nothing in the parent");
    }

    #[test]
    fn a_grandchild_differs_from_both() {
        let parent = generation();
        assert!(in_child(|| {
            let child = generation();
            in_child(|| generation() != parent && generation() != child)
        }));
    }
}
