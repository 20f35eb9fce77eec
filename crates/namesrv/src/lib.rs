//! The name server: it knows which broker has which topic, and is a door to all of them.
//!
//! Namesrvs share nothing with one another; brokers register with each. Nothing is kept on disk but a certificate: after
//! a restart the brokers register again within a second. Threads: one data thread, the probe's, and one for the sweep.
#![forbid(unsafe_code)]

pub mod command;
pub mod config;
pub mod controller;
pub mod registration;
pub mod route_info;
mod start;

pub use config::NamesrvConfig;
pub use start::{Namesrv, StartError, start};
