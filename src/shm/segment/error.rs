//! Memory that the system does not give, said so that a person knows what to do.
//!
//! Each message has the step that failed, the place, the numbers, what the system said, and a cure
//! in terms of the program's options.

use std::io;
use std::path::PathBuf;

use super::Backing;

/// Memory that could not be had, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message says what each number is, and its unit")]
pub enum SegmentError {
    /// The system refused a step.
    #[error("cannot {step} {backing}: {reason}; {cure}")]
    System { step: &'static str, backing: Backing, reason: io::Error, cure: &'static str },
    /// There is not enough memory, or no room in the file system. What is wanted is not there yet;
    /// the reason is what the system said, or would have.
    #[error(
        "cannot reserve {wanted} bytes of {backing}: {available} bytes are available ({reason}); \
         {}",
        cure_for_lack(.backing)
    )]
    NoRoom { backing: Backing, wanted: u64, available: u64, reason: io::Error },
    /// There are not enough huge pages.
    #[error(
        "cannot reserve {wanted} of the {page_bytes}-byte pages for {backing}: {free} are free \
         ({reason}); ask for less memory (-m) or see scripts/hugepages-setup.sh"
    )]
    NoHugePages { backing: Backing, page_bytes: u64, wanted: u64, free: u64, reason: io::Error },
    /// A directory for ordinary files is on hugetlbfs.
    #[error("{0} is on hugetlbfs: ask for huge pages (-h), or name another directory (-d)")]
    HugePagesNotAskedFor(PathBuf),
    /// A directory for huge pages is not on hugetlbfs.
    #[error(
        "{0} is not on hugetlbfs, so there are no huge pages: leave -d out, or name a directory \
         that scripts/hugepages-setup.sh has set up"
    )]
    NotHugetlbfs(PathBuf),
}

/// The error for a step that the system refuses.
pub(super) fn refused<E: Into<io::Error>>(
    step: &'static str,
    backing: &Backing,
    cure: &'static str,
) -> impl Fn(E) -> SegmentError + Copy {
    move |reason| {
        let (backing, reason) = (backing.clone(), reason.into());
        SegmentError::System { step, backing, reason, cure }
    }
}

/// What a person can do when [`SegmentError::NoRoom`].
pub(super) fn cure_for_lack(backing: &Backing) -> &'static str {
    match backing {
        Backing::Memfd | Backing::HugeMemfd => {
            "ask for less memory (-m), or end programs that use much of it"
        }
        Backing::Directory(_) | Backing::HugeDirectory(_) => {
            "ask for less memory (-m), make room in the directory, or name another one (-d)"
        }
    }
}
