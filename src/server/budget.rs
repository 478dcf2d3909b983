//! What a turn of the loop has for one connection: memory to receive into, and how much it may do.
//!
//! The bounds are in [`crate::limits`]; who keeps to them is `connection`.

/// What one connection has used up in one turn.
#[derive(Debug)]
pub struct Budget<'a> {
    /// Memory to receive into, for whoever has none: idle connections have none.
    pub spare: &'a mut Vec<u8>,
    /// Bytes read.
    pub bytes: usize,
    /// Requests served.
    pub requests: usize,
    /// The socket gave less than there was room for: it is empty.
    pub socket_is_empty: bool,
}

impl<'a> Budget<'a> {
    /// The budget of a connection for a turn.
    pub const fn new(spare: &'a mut Vec<u8>) -> Self {
        Self { spare, bytes: 0, requests: 0, socket_is_empty: false }
    }
}
