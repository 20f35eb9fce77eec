//! Judges a history: what a load did to a cluster and saw of it, by the invariants of a message queue.
//!
//! [`event`] is the format, [`History`] a whole one in memory, [`judge`] the verdicts. Pure: nothing is known of the servers
//! or the load, and a saved history is judged again with the same result. Used by the program of this crate and by the
//! tests that make histories; on one thread.
//!
//! Memory: see [`History`]; it grows with the number of operations, of which [`history::OPERATIONS_MAX`] are read.
#![forbid(unsafe_code)]

pub mod event;
pub mod history;
pub mod invariants;
mod names;
pub mod report;

#[cfg(test)]
mod book;

pub use history::History;
pub use invariants::{Verdict, judge};
