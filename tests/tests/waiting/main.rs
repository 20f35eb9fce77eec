//! Scenarios that mostly wait, for clients that ask every 30 s or for the next kill: in one program they wait beside one another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crash;
mod loris;
mod mixed;
mod namesrv_loss;
