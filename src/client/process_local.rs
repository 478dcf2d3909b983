//! Things that only the process that made them may touch.
//!
//! `fork` copies memory at an arbitrary moment of all threads but one. In the child a lock may be
//! held by a thread that does not exist there, for ever, and what it guards may be half changed.
//! So everything that is behind a lock lies in a [`ProcessLocal`]: a forked child does not get at
//! it, and when the child drops its copy, the contents are forgotten instead of dropped.
//!
//! Knows nothing of what is inside.

use std::fmt;

use crate::shm::fork;

/// A value for the process that made it, and for nobody else.
pub(super) struct ProcessLocal<T> {
    generation: u64,
    /// Only taken out by `drop`.
    value: Option<T>,
}

impl<T> ProcessLocal<T> {
    pub(super) fn new(value: T) -> Self {
        Self { generation: fork::generation(), value: Some(value) }
    }

    /// The value; `None` in a child that was forked since.
    pub(super) fn get(&self) -> Option<&T> {
        if self.is_inherited() { None } else { self.value.as_ref() }
    }

    /// Whether this is a child's copy of something that its parent made.
    pub(super) fn is_inherited(&self) -> bool {
        fork::generation() != self.generation
    }
}

impl<T> Drop for ProcessLocal<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            std::mem::forget(self.value.take());
        }
    }
}

impl<T> fmt::Debug for ProcessLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessLocal").field("generation", &self.generation).finish_non_exhaustive()
    }
}
