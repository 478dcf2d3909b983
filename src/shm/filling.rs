//! Copying bytes into shared memory of which somebody may have taken the pages away.
//!
//! Whoever has a segment's writable descriptor can cut its file short, if it is not sealed against
//! that, or punch a hole into it. Who then touches memory behind the end of the file, or a hole
//! for which there are no pages, gets SIGBUS, which ends a process. The store must not be ended so.
//! To let the kernel do the copying (`process_vm_writev`, `pwrite`) would report such a fault as
//! an error, but costs a system call: 2 and 1 µs for a kilobyte, which is copied in 15 ns, where a
//! whole put takes 7 µs.
//!
//! So a [`Filler`] copies as usual, and the first one installs a handler for SIGBUS. When a thread
//! faults in memory that it is filling, the handler puts other memory there, which nobody else
//! sees, and notes it; the copy goes on into that, and is reported as failed. Then the file's own
//! memory is mapped there again. Every other SIGBUS is passed on to whatever was there before. A
//! program that puts a handler of its own in this one's place later, and does not pass on what is
//! not its, is not protected; the store's program does not. (The model checker of our unit tests
//! does, so the tests of this are in `tests/filling.rs`.)
//!
//! Knows one file and addresses. What lies there is not known here.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, compiler_fence};
use std::sync::{Arc, Once, OnceLock};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::mapping::{Access, Mapping};
use super::segment::Segment;

/// Copies bytes into a segment, and says so if its memory is not there.
#[derive(Debug)]
pub struct Filler {
    segment: Arc<Segment>,
    mapping: Mapping,
    /// The unit in which the segment's memory comes.
    page_bytes: usize,
}

impl Filler {
    /// Maps a segment. From now on this process has a handler for SIGBUS.
    ///
    /// # Errors
    /// Those of [`Mapping::new`].
    pub fn new(segment: Arc<Segment>) -> io::Result<Self> {
        handle_bus_errors();
        let page_bytes =
            usize::try_from(segment.page_bytes()).map_err(|_| io::ErrorKind::InvalidData)?;
        let mapping = Mapping::new(segment.descriptor(true), segment.size(), Access::ReadWrite)?;
        Ok(Self { segment, mapping, page_bytes })
    }

    /// Copies `bytes` to `offset`, into an object that the caller is creating.
    ///
    /// # Errors
    /// The memory is not there, and some of the bytes may have been written; it may be there again
    /// the next time. `InvalidInput`, with nothing written, if that is not inside the segment.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = self.mapping.writable_range(offset, bytes.len() as u64);
        let range = range.ok_or(io::ErrorKind::InvalidInput)?;
        let to = self.mapping.pages.address(range.start);
        // Whole pages; a segment ends with a whole one.
        let start = range.start / self.page_bytes * self.page_bytes;
        let pages = start..range.end.next_multiple_of(self.page_bytes);
        let is_done = GUARD.with(|guard| {
            guard.watch(self.mapping.pages.address(pages.start), pages.len());
            // SAFETY: the range is inside the mapping, which is writable; the caller has the extent
            // from the store for writing, so nobody has a slice of it (see `crate::shm`). Memory is
            // mapped there all the time: if it is not the segment's any more, other memory that the
            // handler has put there.
            unsafe { ptr::copy(bytes.as_ptr(), to, bytes.len()) };
            guard.stop()
        });
        if is_done {
            return Ok(());
        }
        self.mapping.map_again(self.segment.descriptor(true), pages, self.page_bytes);
        Err(Errno::EFAULT.into())
    }
}

/// Memory that a thread is filling. Nobody sees this but the thread itself and the handler that
/// interrupts it, so a fence for the compiler is enough.
struct Guard {
    start: AtomicPtr<u8>,
    /// Zero while nothing is filled.
    bytes: AtomicUsize,
    is_replaced: AtomicBool,
}

thread_local! {
    // Without an initializer to run and without a destructor, so that the handler may look at it.
    static GUARD: Guard = const {
        Guard {
            start: AtomicPtr::new(ptr::null_mut()),
            bytes: AtomicUsize::new(0),
            is_replaced: AtomicBool::new(false),
        }
    };
}

impl Guard {
    /// A fault in these pages, from now on, is noted.
    fn watch(&self, start: *mut u8, bytes: usize) {
        self.start.store(start, Relaxed);
        self.is_replaced.store(false, Relaxed);
        self.bytes.store(bytes, Relaxed);
        // The handler sees what has been set, if the copy faults.
        compiler_fence(SeqCst);
    }

    /// The end of that. Whether the pages were there all the time.
    fn stop(&self) -> bool {
        compiler_fence(SeqCst);
        self.bytes.store(0, Relaxed);
        !self.is_replaced.load(Relaxed)
    }

    /// Called by the handler: if the fault at this address is of the memory that is being filled,
    /// puts other memory there. A second fault is not: that memory is always to be had.
    fn replace(&self, address: usize) -> bool {
        let (start, bytes) = (self.start.load(Relaxed), self.bytes.load(Relaxed));
        let is_here = address.checked_sub(start.addr()).is_some_and(|offset| offset < bytes);
        if !is_here || self.is_replaced.swap(true, Relaxed) {
            return false;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: these are whole pages of the mapping of a filler that is in its `write`, which
        // has put them here; nobody else uses that mapping, and nothing refers to its bytes. `mmap`
        // is a bare system call, so a handler may make it.
        let mapped = unsafe { libc::mmap(start.cast(), bytes, protection, kind, -1, 0) };
        mapped == start.cast()
    }
}

/// What was there before.
static FORMER: OnceLock<SigAction> = OnceLock::new();

fn handle_bus_errors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
        let ours = SigAction::new(SigHandler::SigAction(on_bus_error), flags, SigSet::empty());
        // SAFETY: the handler only does what a handler may: it looks at variables of its thread
        // and of the process, makes bare system calls, and leaves the error number as it was.
        let former = unsafe { sigaction(Signal::SIGBUS, &ours) };
        // Between these two lines a fault is as deadly as before.
        let _ = FORMER.set(former.expect("SIGBUS can be handled"));
    });
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let error_number = Errno::last_raw();
    if !address_of_fault(info).is_some_and(|address| GUARD.with(|guard| guard.replace(address))) {
        pass_on(signal, info, context);
    }
    Errno::set_raw(error_number);
}

/// Where the thread has faulted; nothing if somebody has sent the signal.
fn address_of_fault(info: *mut libc::siginfo_t) -> Option<usize> {
    // SAFETY: the kernel hands the handler a valid one, which is the handler's alone.
    let info = unsafe { &*info };
    // SAFETY: a signal that the kernel itself gives for a fault has an address.
    (info.si_code > 0).then(|| unsafe { info.si_addr() }.addr())
}

/// To whom it concerned before there was this handler.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    match FORMER.get().map(SigAction::handler) {
        Some(SigHandler::Handler(former)) => former(signal),
        Some(SigHandler::SigAction(former)) => former(signal, info, context),
        // Nobody: it comes again, for a fault as soon as the handler is left, and ends the process.
        Some(SigHandler::SigDfl | SigHandler::SigIgn) | None => {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: no code of ours is left to be called.
            let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
            if address_of_fault(info).is_none() {
                // It is blocked until the handler is left.
                let _ = nix::sys::signal::raise(Signal::SIGBUS);
            }
        }
    }
}
