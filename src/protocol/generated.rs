//! The types that `build.rs` makes from `proto/plasma.proto`; [`super::codec`] alone uses them.

#![allow(missing_docs, clippy::all, reason = "generated code; the schema has the comments")]

include!(concat!(env!("OUT_DIR"), "/plasma.v1.rs"));
