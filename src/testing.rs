//! A store for the examples in the documentation: in a thread, on a socket of its own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::eviction::PolicyKind;
use crate::server::config::Config;
use crate::server::{RunningStore, spawn};
use crate::shm::Backing;

/// With this in the environment clients ask the store for everything, so that the same tests show
/// that both ways give the same answers.
const NO_DIRECTORY: &str = "PLASMA_TEST_NO_DIRECTORY";

/// Bytes that the store can hold.
const CAPACITY: u64 = 16 << 20;

/// Starts a store.
///
/// # Panics
/// If the machine does not allow it.
#[must_use]
pub fn store() -> TestStore {
    static STORES: AtomicU32 = AtomicU32::new(0);
    let number = STORES.fetch_add(1, Ordering::Relaxed);
    let name = format!("plasma-example-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let config = Config {
        socket: directory.join("plasma"),
        socket_mode: 0o600,
        socket_group: None,
        read_only_group: None,
        capacity: CAPACITY,
        backing: Backing::Memfd,
        objects_max: 10_000,
        policy: PolicyKind::Lru,
        reserve: false,
        clear_new_objects: false,
        ahead: 0,
        request_memory: crate::limits::REQUEST_MEMORY_BYTES,
        trim_after: crate::limits::TRIM_AFTER,
        poll_time: crate::limits::POLL_TIME,
        directory_slots: if std::env::var_os(NO_DIRECTORY).is_some() { 0 } else { 1 << 14 },
    };
    TestStore { running: Some(spawn(config).expect("a store")), directory }
}

/// A store in a thread. Ends, and leaves nothing behind, when dropped.
#[derive(Debug)]
pub struct TestStore {
    running: Option<RunningStore>,
    directory: PathBuf,
}

impl TestStore {
    /// Where clients connect.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.running.as_ref().expect("it runs until it is dropped").socket()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        drop(self.running.take());
        // What cannot be removed is the temporary directory's to clean up.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
