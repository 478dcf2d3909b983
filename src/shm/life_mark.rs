//! A word of shared memory that says whether a thread of another process still lives.
//!
//! A program that is killed cannot say so, and to ask the kernel costs a system call. So the kernel
//! says it unasked: it keeps a list of *robust futexes* for each thread, and when the thread ends,
//! in whatever way, it sets a bit in each of them that has the number of the thread
//! (`set_robust_list(2)`). Nobody ever waits on this one; a look at it is a load.

use std::io;
use std::marker::PhantomPinned;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::words::Words;

/// What the kernel sets: the thread has ended.
const OWNER_DIED: u64 = 0x4000_0000;

/// Whether a word says that its thread has ended. One that was never marked does not.
#[inline]
#[must_use]
pub fn has_ended(words: &Words, index: usize) -> bool {
    words[index].load(Acquire) & OWNER_DIED != 0
}

/// As long as this exists, and the thread that made it, a word says so. It cannot leave its thread.
#[derive(Debug)]
pub struct LifeMark {
    words: Words,
    index: usize,
    list: ManuallyDrop<Pin<Box<List>>>,
    /// What the thread had before.
    former: *const ListHead,
}

/// A link of the kernel's list.
#[repr(C)]
#[derive(Debug)]
struct Link {
    next: *const Link,
}

/// What the kernel is given for a thread.
#[repr(C)]
#[derive(Debug)]
struct ListHead {
    first: Link,
    /// From a link to its futex, in bytes.
    futex_offset: libc::c_long,
    pending: *const Link,
}

/// A list of one.
#[derive(Debug)]
struct List {
    head: ListHead,
    link: Link,
    /// The two point at each other, and the kernel points here.
    _pinned: PhantomPinned,
}

impl LifeMark {
    /// Marks a word for the current thread.
    ///
    /// # Errors
    /// The kernel does not do this.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn set(words: Words, index: usize) -> io::Result<Self> {
        let word = words[index].as_ptr();
        let (first, link) = (Link { next: ptr::null() }, Link { next: ptr::null() });
        let head = ListHead { first, futex_offset: 0, pending: ptr::null() };
        let mut list = Box::new(List { head, link, _pinned: PhantomPinned });
        list.head.first.next = &raw const list.link;
        list.link.next = &raw const list.head.first;
        // A thread's number is in the lower half of the word.
        let low = word.addr() + if cfg!(target_endian = "big") { 4 } else { 0 };
        let offset = low.wrapping_sub((&raw const list.link).addr());
        list.head.futex_offset = offset.cast_signed() as libc::c_long;
        let list = Box::into_pin(list);
        let former = robust_list()?;
        words[index].store(u64::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0), Release);
        set_robust_list(&raw const list.head)?;
        Ok(Self { words, index, list: ManuallyDrop::new(list), former })
    }
}

impl Drop for LifeMark {
    fn drop(&mut self) {
        self.words[self.index].store(OWNER_DIED, Release);
        match set_robust_list(self.former) {
            // SAFETY: this is done once, and the kernel does not look at it any more.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.list) },
            // The kernel may still look at the list, so that stays.
            Err(error) => log::debug!("a list of futexes cannot be put back: {error}"),
        }
    }
}

/// The list of this thread, which its C library has made.
fn robust_list() -> io::Result<*const ListHead> {
    let mut head: *const ListHead = ptr::null();
    let mut len: libc::size_t = 0;
    // SAFETY: the kernel writes a pointer and a length, for which there is room.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    if result == 0 { Ok(head) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the list of this thread.
fn set_robust_list(head: *const ListHead) -> io::Result<()> {
    // SAFETY: the kernel reads the list when this thread ends. It is either the one that the thread
    // had before, or one that stays where it is until it has been replaced: it is pinned, belongs
    // to a `LifeMark`, and that neither leaves its thread nor goes without replacing it. The futex
    // that it leads to is mapped as long. Nothing else in this thread uses robust futexes.
    let result = unsafe { libc::syscall(libc::SYS_set_robust_list, head, size_of::<ListHead>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;
    use crate::shm::{Access, Backing, Segment};

    fn both() -> (Segment, Words) {
        let segment = Segment::create(SegmentId(0), &Backing::Memfd, 4096).unwrap();
        let reader = Words::map(segment.descriptor(false), 512, Access::ReadOnly).unwrap();
        (segment, reader)
    }

    fn mark(segment: &Segment) -> LifeMark {
        let words = Words::map(segment.descriptor(true), 512, Access::ReadWrite).unwrap();
        LifeMark::set(words, 3).unwrap()
    }

    #[test]
    fn a_thread_that_ends_without_a_word_is_seen_to_have_ended() {
        let (segment, reader) = both();
        assert!(!has_ended(&reader, 3), "nobody has said anything");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                std::mem::forget(mark(&segment));
                assert!(!has_ended(&reader, 3));
            });
            thread.join().unwrap();
        });
        assert!(has_ended(&reader, 3));
    }

    #[test]
    fn the_end_of_a_mark_is_the_end_as_well_and_leaves_the_thread_what_it_had() {
        let (segment, reader) = both();
        let before = robust_list().unwrap();
        let first = mark(&segment);
        assert_ne!(robust_list().unwrap(), before);
        drop(first);
        assert!(has_ended(&reader, 3));
        assert_eq!(robust_list().unwrap(), before);
        let _second = mark(&segment);
        assert!(!has_ended(&reader, 3), "another one may follow");
    }
}
