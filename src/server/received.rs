//! What a connection has to say when it is asked for the next message of its peer.

use crate::protocol::message::{Request, RequestId};

/// What came from a peer.
#[derive(Debug)]
pub enum Received {
    /// A request to be served.
    Request(RequestId, Request),
    /// The peer has introduced itself and waits to be welcomed, or turned away.
    Opened(RequestId),
    /// Nothing, until the socket or the outbox gives a reason to try again.
    Nothing,
    /// Nothing in this turn: the budget is spent.
    Later,
    /// Nothing any more: the connection has begun to drain.
    Ended,
}
