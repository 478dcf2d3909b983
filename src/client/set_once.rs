//! A cell that is set once and then read without counting or locking, also by forked children.
//!
//! A child may be forked while another thread of its parent is setting the cell. For the child it
//! is then neither empty nor set, for ever: it finds nothing there, must not try to set it (it
//! would wait for a thread that it does not have), and forgets the cell instead of dropping it.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

/// A [`OnceLock`] that can be dropped in whatever state a fork found it.
pub(super) struct SetOnce<T>(ManuallyDrop<OnceLock<T>>);

impl<T> SetOnce<T> {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self(ManuallyDrop::new(OnceLock::new()))
    }

    /// What has been set.
    #[inline]
    pub(super) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// Gives the value back if another one is there.
    pub(super) fn set(&self, value: T) -> Result<(), T> {
        self.0.set(value)
    }

    /// What has been set, now at the latest.
    pub(super) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        self.0.get_or_init(init)
    }

    /// Takes out what has been set.
    pub(super) fn take(&mut self) -> Option<T> {
        // `OnceLock::take` expects a cell that nobody is setting.
        self.0.get().is_some().then(|| self.0.take()).flatten()
    }
}

impl<T> Drop for SetOnce<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for SetOnce<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SetOnce").field(&self.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;
    use crate::shm::fork::tests::in_child_as_only_owner;

    #[test]
    fn what_was_set_is_dropped_with_the_cell() {
        let value = Arc::new(());
        let mut cell = SetOnce::default();
        assert_eq!(cell.get(), None);
        assert_eq!(cell.take(), None);
        cell.set(Arc::clone(&value)).unwrap();
        cell.set(Arc::new(())).unwrap_err();
        assert!(Arc::ptr_eq(cell.get_or_init(Arc::default), &value));
        assert_eq!(Arc::strong_count(&value), 2);
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_child_drops_a_cell_that_another_thread_was_setting() {
        let cell = Arc::new(SetOnce::new());
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let setter = thread::spawn({
            let cell = Arc::clone(&cell);
            move || {
                cell.get_or_init(|| {
                    begun.send(()).unwrap();
                    let _ = may_end.recv();
                    7
                });
            }
        });
        has_begun.recv().unwrap();
        let went_well = in_child_as_only_owner(&cell, |cell| {
            let finds_nothing = cell.get().is_none();
            finds_nothing && catch_unwind(AssertUnwindSafe(|| drop(cell))).is_ok()
        });
        drop(end);
        setter.join().unwrap();
        assert!(went_well);
        assert_eq!(cell.get(), Some(&7));
    }
}
