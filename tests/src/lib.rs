//! The cluster harness: real binaries, real sockets, real files, and the official clients.
//!
//! A test starts a [`Cluster`], drives it with [`Driver`]s (the official clients) or [`Raw`] (requests no client would
//! make), or a [`Load`] of several, and judges what was reported with a [`Ledger`]. A [`LoopDevice`] is a disk that fails
//! when it is told. Everything here blocks and waits for conditions with a
//! deadline; nothing sleeps for a while and hopes. `ci/test` builds what is started here.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a harness fails by panicking")]

pub mod attack;
pub mod authority;
pub mod cluster;
pub mod driver;
pub mod failover;
pub mod faults;
pub mod files;
pub mod ledger;
pub mod load;
pub mod loop_device;
pub mod matrix;
pub mod mixed_load;
pub mod process;
pub mod raw;
pub mod redis;
pub mod replicas;
pub mod stage;
pub mod wait;

pub use cluster::Cluster;
pub use driver::{Driver, Event, Language};
pub use ledger::Ledger;
pub use load::Load;
pub use loop_device::LoopDevice;
pub use raw::Raw;
pub use redis::Redis;
pub use stage::Stage;
pub use wait::{let_run, until};

/// A seed for a test that does things at random: `KARMAN_TEST_SEED`, or a new one. Printed, so that a failure repeats.
pub fn seed() -> u64 {
    let seed = std::env::var("KARMAN_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
    eprintln!("KARMAN_TEST_SEED={seed}");
    seed
}
