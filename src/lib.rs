//! A shared-memory store of immutable objects for one machine.
//!
//! The server, `plasma_store`, owns a pool of memory. Any process creates an object in it, seals
//! it, and every other process reads it in place, without a copy. Start with [`Client`]; a store
//! inside one's own program is [`server::spawn`].
//!
//! Features: `server` (default) is the store itself, without it the crate is the client alone;
//! `arrow` adds putting and getting Arrow record batches.

// The modules, in the order in which they may use each other:
pub mod ids;
pub mod limits;
pub mod time;

mod polling;
mod threads;

pub mod protocol;
pub mod shm;

pub mod directory;

#[cfg(feature = "server")]
mod slab;

#[cfg(feature = "server")]
pub mod eviction;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod store;

pub mod client;

#[cfg(feature = "server")]
#[doc(hidden)]
pub mod testing;

pub use client::{Client, Error, ObjectBuffer, ObjectWriter, Subscription};
pub use ids::ObjectId;
