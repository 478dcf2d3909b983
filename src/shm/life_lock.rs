//! Tells whether any process is left that has what a client was given.
//!
//! A connection can end while its client lives on: it was closed for a fault, or by mistake, or a
//! forked child has outlived its parent. So each client maps a page through an open file of its
//! own, on which the store has set a lock (an *open file description lock*, `fcntl(2)`). The kernel
//! drops the lock with the last process that maps the page or has the descriptor, in whatever way
//! that process ends. Nobody ever touches the page.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, fcntl};

use super::mapping::Access;
use super::words::Words;
use super::{Backing, Segment};
use crate::ids::SegmentId;

/// Bytes of the file: those of the page that clients map.
pub const FILE_BYTES: u64 = 4096;

/// The one file that all locks of a store are on: the byte of its number for each client.
#[derive(Debug)]
pub struct LifeLocks {
    file: Segment,
}

impl LifeLocks {
    /// A file without locks.
    ///
    /// # Errors
    /// The system has no memory or descriptor for it.
    pub fn create() -> io::Result<Self> {
        let file = Segment::create(SegmentId::LIFE, &Backing::Memfd, FILE_BYTES);
        Ok(Self { file: file.map_err(io::Error::other)? })
    }

    /// A descriptor for this client, which has the lock. To be closed here once it has been sent.
    ///
    /// # Errors
    /// There are too many descriptors or locks, or `/proc` is not mounted.
    pub fn grant(&self, number: u64) -> io::Result<OwnedFd> {
        // Opened anew, since a lock belongs to what `open` returned, whoever has copies of it.
        let path = format!("/proc/self/fd/{}", self.file.descriptor(false).as_raw_fd());
        let file = File::open(path)?;
        let lock = lock(libc::F_RDLCK, number)?;
        fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock))?;
        Ok(file.into())
    }

    /// Whether the lock of this client is still held.
    #[must_use]
    pub fn is_held(&self, number: u64) -> bool {
        let Ok(mut lock) = lock(libc::F_WRLCK, number) else { return false };
        let asked = fcntl(self.file.descriptor(true), FcntlArg::F_OFD_GETLK(&mut lock));
        // It cannot fail; and to keep what nobody uses does less harm than the contrary.
        asked.is_err() || i32::from(lock.l_type) != libc::F_UNLCK
    }
}

/// Holds the lock of a client, as long as this exists in any process.
///
/// # Errors
/// Those of `mmap`.
pub fn hold(file: &OwnedFd) -> io::Result<Words> {
    Words::map(file.as_fd(), 1, Access::ReadOnly)
}

/// A lock on the byte of this number.
fn lock(kind: libc::c_int, number: u64) -> io::Result<libc::flock> {
    let start = number.try_into().map_err(io::Error::other)?;
    let kind = kind.try_into().map_err(io::Error::other)?;
    let whence = libc::SEEK_SET.try_into().map_err(io::Error::other)?;
    Ok(libc::flock { l_type: kind, l_whence: whence, l_start: start, l_len: 1, l_pid: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::fork::tests::in_child;

    #[test]
    fn a_lock_is_held_as_long_as_its_page_is_mapped_or_its_descriptor_open() {
        let locks = LifeLocks::create().unwrap();
        let (first, second) = (locks.grant(1).unwrap(), locks.grant(2).unwrap());
        assert!(locks.is_held(1) && locks.is_held(2) && !locks.is_held(3));
        let page = hold(&first).unwrap();
        drop(first);
        assert!(locks.is_held(1), "the page is mapped");
        drop(second);
        assert!(!locks.is_held(2));
        drop(page);
        assert!(!locks.is_held(1));
    }

    #[test]
    fn a_forked_child_holds_the_lock_too() {
        let locks = LifeLocks::create().unwrap();
        let page = hold(&locks.grant(7).unwrap()).unwrap();
        assert!(in_child(|| locks.is_held(7)));
        let (mut wait, mut go) = std::io::pipe().unwrap();
        // SAFETY: the child only reads from a pipe, and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop(go);
            let _ = std::io::Read::read(&mut wait, &mut [0]);
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) };
        }
        drop(page);
        assert!(locks.is_held(7), "the child maps the page");
        std::io::Write::write_all(&mut go, b"x").unwrap();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
        assert!(!locks.is_held(7));
    }
}
