//! What the table of the clients (`tests/src/matrix.rs`) does not show of the ways to send and consume, end to end: the official
//! clients on two brokers, with a namesrv as their access point.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod group;
mod lite;
mod retry;
mod transactions;
