//! Who asks the store for something. What he asks for is not known here.

use std::time::Duration;

use crate::ids::ClientId;
use crate::protocol::message::{RequestId, Timeout};

/// Who asks, and under which number.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client that waits for the answer.
    pub client: ClientId,
    /// Its own number for the request.
    pub request: RequestId,
}

/// Whether a request with this timeout may not wait at all.
pub fn is_now(timeout: Timeout) -> bool {
    timeout == Some(Duration::ZERO)
}
