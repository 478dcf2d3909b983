//! Shared memory and descriptors: the only unsafe code of the crate.
//!
//! [`segment`] makes the files behind the memory, [`mapping`] puts them into the address space and
//! hands out bounds-checked bytes, [`filling`] copies bytes into memory that may not be there,
//! [`window`] maps one object for code in other languages, [`words`] are atomics that processes
//! share (`pages` maps and unmaps for these), [`fd_passing`] moves bytes and descriptors through a
//! socket, [`fork`] tells a process from its parent, [`life_mark`] a thread of another one that
//! lives from one that has ended, and [`life_lock`] whether anybody is left who has what a client
//! was given; [`peer_groups`] asks who a peer is. Client and server use the same code. None of it
//! knows what an object, a frame or a message is.
//!
//! # Policy for unsafe code
//!
//! It is here and nowhere else, and nothing of it shows: no pointer and no bare descriptor number
//! crosses the surface of this folder. A block does one operation, and its `SAFETY` note names the
//! fact that makes it right and who sees to that fact.
//!
//! Within this folder everything is checked but one thing, which no process can check alone: that
//! nobody changes bytes while somebody else has a slice of them. It rests on four facts.
//!
//! 1. The store gives an extent to one creator at a time, and to readers only once it is sealed.
//!    Whoever calls [`Mapping::view_mut`] or [`Filler::write`] must have an extent that the store
//!    gave it for writing and has not taken back by seal, abort or the end of the connection.
//!    Whoever calls [`Mapping::view`] must hold the object.
//! 2. Readers get a descriptor that was *opened* read-only. Their mapping is read-only in the
//!    kernel's eyes and cannot be made writable: a stray write faults in the process that made it.
//! 3. A mapping is never longer than its file. Memory from a memfd is sealed, so the file cannot
//!    become shorter; a file in a directory has no name by which another user could find it.
//! 4. Memory that was promised is there: see [`segment`] for what each kind promises, and when.
//!
//! What remains is a process of the same user, or of another one that the store let in, that
//! breaks these rules on purpose: it writes through its writable descriptor what it does not own,
//! cuts a file (not a memfd) short, or punches a hole where no other pages are to be had (a
//! file in a directory, huge pages). Then readers see bytes change, or fault. The store keeps
//! nothing of its own in this memory and never reads it, so it cannot be led astray; and what it
//! writes there goes through a [`Filler`], which turns a fault into an error. A creator that faults
//! in an object that it writes in place ends itself.

#![allow(unsafe_code, reason = "this is the folder for it; the policy is above")]

pub mod fd_passing;
pub mod filling;
pub mod fork;
pub mod life_lock;
pub mod life_mark;
pub mod mapping;
mod pages;
mod peer_groups;
pub mod segment;
pub mod window;
pub mod words;

pub use filling::Filler;
pub use mapping::{Access, Mapping, Readiness, View, ViewMut};
pub use peer_groups::peer_groups;
pub use segment::{Backing, Segment, SegmentError};
pub use window::Window;
