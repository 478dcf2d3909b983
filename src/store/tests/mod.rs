//! Tests of the store as a value: no socket, no process, no clock.

mod model;
mod scenario;
mod scenarios;
mod simulation;
mod slices;
mod trimming;
