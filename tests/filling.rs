//! What is written arrives, and what cannot be written is an error and nothing worse.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io};

use nix::sys::signal::{Signal, raise};
use nix::sys::stat::fstat;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, ftruncate};
use plasma::ids::{Extent, SegmentId};
use plasma::shm::{Access, Backing, Filler, Mapping, Segment};

const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;

fn filler(backing: &Backing, bytes: u64) -> (Arc<Segment>, Filler) {
    let segment = Arc::new(Segment::create(SegmentId(0), backing, bytes).unwrap());
    let filler = Filler::new(Arc::clone(&segment)).unwrap();
    (segment, filler)
}

/// Of a kind that can be cut short.
fn in_a_directory(bytes: u64) -> (Arc<Segment>, Filler) {
    filler(&Backing::Directory(PathBuf::from("/dev/shm")), bytes)
}

fn cut(segment: &Segment, bytes: u64) {
    ftruncate(segment.descriptor(true), bytes.cast_signed()).unwrap();
}

/// What others see, as long as the file is there.
fn read(segment: &Segment, offset: u64, len: u64) -> Vec<u8> {
    let file = segment.descriptor(false);
    let mapping = Arc::new(Mapping::new(file, segment.size(), Access::ReadOnly).unwrap());
    mapping.view(Extent { segment: SegmentId(0), offset, len }).unwrap().to_vec()
}

#[test]
fn bytes_arrive_in_any_kind_of_memory() {
    for backing in [Backing::Memfd, Backing::Directory("/dev/shm".into())] {
        let (segment, mut filler) = filler(&backing, 3 * PAGE);
        filler.write(PAGE - 2, b"hello").unwrap();
        filler.write(3 * PAGE - 1, b"x").unwrap();
        filler.write(3 * PAGE, b"").unwrap();
        assert_eq!(read(&segment, PAGE - 2, 5), b"hello");
        assert_eq!(read(&segment, 3 * PAGE - 1, 1), b"x");
    }
}

#[test]
fn what_is_not_inside_is_not_written() {
    let (segment, mut filler) = filler(&Backing::Memfd, PAGE);
    for (offset, bytes) in [(PAGE - 1, &b"ab"[..]), (PAGE, b"a"), (u64::MAX, b"ab")] {
        let error = filler.write(offset, bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset}");
    }
    assert_eq!(read(&segment, PAGE - 1, 1), [0]);
}

#[test]
fn a_file_that_was_cut_short_is_an_error_as_long_as_it_is() {
    let (segment, mut filler) = in_a_directory(4 * PAGE);
    filler.write(100, b"before").unwrap();
    cut(&segment, 0);
    for offset in [100, 2 * PAGE, 4 * PAGE - 5] {
        let error = filler.write(offset, b"lost!").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EFAULT as i32), "{error}");
    }
    cut(&segment, 4 * PAGE);
    assert_eq!(read(&segment, 0, 4 * PAGE), vec![0; 4 * PAGE_BYTES], "nothing came back");
    filler.write(100, b"after").unwrap();
    assert_eq!(read(&segment, 100, 5), b"after", "it is the file's own memory again");
}

#[test]
fn a_copy_that_runs_over_the_end_is_an_error_and_the_rest_is_untouched() {
    let (segment, mut filler) = in_a_directory(8 * PAGE);
    filler.write(0, &[1; 8 * PAGE_BYTES]).unwrap();
    cut(&segment, 3 * PAGE);
    filler.write(2 * PAGE + 10, &[2; 3 * PAGE_BYTES]).unwrap_err();
    filler.write(PAGE, b"there").unwrap();
    cut(&segment, 8 * PAGE);
    assert_eq!(read(&segment, PAGE, 5), b"there");
    assert_eq!(read(&segment, 2 * PAGE, 10), [1; 10], "what lies before it on the same page");
    let inode = fstat(segment.descriptor(true)).unwrap().st_ino.to_string();
    let regions = fs::read_to_string("/proc/self/maps").unwrap();
    let regions = regions.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode));
    assert_eq!(regions.count(), 1, "one piece of memory as before");
}

#[test]
fn threads_that_fill_at_once_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for is_cut in [true, false, true, false] {
            scope.spawn(move || {
                let (segment, mut filler) = in_a_directory(2 * PAGE);
                if is_cut {
                    cut(&segment, PAGE);
                }
                for _ in 0..200 {
                    assert_eq!(filler.write(PAGE + 1, b"bytes").is_err(), is_cut);
                    filler.write(1, b"bytes").unwrap();
                }
            });
        }
    });
}

#[test]
#[allow(unsafe_code, reason = "a fault that ends a process cannot be had in safe code")]
fn any_other_fault_is_as_deadly_as_ever() {
    let (segment, mut filler) = in_a_directory(2 * PAGE);
    let other = Mapping::new(segment.descriptor(true), 2 * PAGE, Access::ReadWrite).unwrap();
    let extent = Extent { segment: SegmentId(0), offset: 10, len: 1 };
    let mut view = Arc::new(other).view_mut(extent).unwrap();
    let address = view.as_mut_ptr();
    cut(&segment, 0);
    filler.write(0, b"x").unwrap_err();
    for is_sent in [false, true] {
        // SAFETY: the child makes system calls only, and allocates nothing.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                if is_sent {
                    // The first one removes the handler that every Rust program has.
                    let _ = raise(Signal::SIGBUS);
                    let _ = raise(Signal::SIGBUS);
                } else {
                    // SAFETY: it is mapped, although there is no memory behind it.
                    unsafe { address.write_volatile(1) };
                }
                // SAFETY: it ends without the destructors of its parent.
                unsafe { nix::libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                assert!(
                    matches!(status, WaitStatus::Signaled(_, Signal::SIGBUS, _)),
                    "{is_sent}: {status:?}"
                );
            }
        }
    }
}
