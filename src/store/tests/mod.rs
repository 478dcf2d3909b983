//! Tests of the store as a value: no socket, no process, no clock.

mod scenario;
mod scenarios;
