//! Tests of the store as a value: no socket, no process, no clock.

mod linearizable;
mod model;
mod room_in_slices;
mod scenario;
mod scenarios;
mod simulation;
mod slices;
mod surviving;
mod thin;
mod told;
mod trimming;
