//! What readers that do not ask the store share with it: the directory and the pin tables.
//!
//! The store publishes every sealed object in the *directory*, which all clients may read and it
//! alone writes. Each client has a *pin table*, which it writes and the store reads: an object that
//! it has pinned there is neither evicted nor deleted. So to get an object is to look it up and to
//! add one to a word of one's own, and to release it is to take that away.
//!
//! [`protocol`] says how the two sides come to an agreement without a message, and is what the
//! model checker goes through. [`layout`] says what lies where; `proto/PROTOCOL.md` has the same
//! for other languages. Who publishes, who reads, and why, is not known here.

#![forbid(unsafe_code)]

pub mod layout;
pub mod protocol;

pub use layout::{DirectoryWords, Layout, PinTable};
