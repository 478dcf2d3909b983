//! Who asks the store for something, and how long he waits for it. What he asks for is not known
//! here.

use std::time::Duration;

use crate::ids::ClientId;
use crate::protocol::message::{RequestId, Timeout};
use crate::time::Timestamp;

/// Who asks, under which number, and when.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client that waits for the answer.
    pub client: ClientId,
    /// Its own number for the request.
    pub request: RequestId,
    /// When it is served.
    pub now: Timestamp,
}

impl Asked {
    /// When a request with this timeout is answered at the latest.
    pub fn deadline(&self, timeout: Timeout) -> Option<Timestamp> {
        timeout.map(|timeout| self.now.after(timeout))
    }
}

/// Whether a request with this timeout may not wait at all.
pub fn is_now(timeout: Timeout) -> bool {
    timeout == Some(Duration::ZERO)
}
