//! Each kind of message and each way to consume it, end to end: the official clients on two brokers, with a namesrv as
//! their access point.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod group;
mod lite;
mod order;
mod retry;
mod time;
mod transactions;
