//! What readers that do not ask the store share with it: the directory and the client tables.
//!
//! Every object has a *record* in the directory, which all clients may read and the store alone
//! writes. Each client has a *table*, which it writes and the store reads. An object that it has
//! pinned there is neither evicted nor deleted, so to get an object is to look it up and to add one
//! to a word of one's own, and to release it is to take that away. An object that its creator says
//! there to be sealed is sealed, whatever else the store has still to read.
//!
//! [`protocol`] says how the two sides come to an agreement without a message, and is what the
//! model checker goes through. [`layout`] says what lies where; `proto/PROTOCOL.md` has the same
//! for other languages. Who publishes, who reads, and why, is not known here.

#![forbid(unsafe_code)]

pub mod layout;
pub mod protocol;

pub use layout::{ClientTable, DirectoryWords, Layout, Origin};
