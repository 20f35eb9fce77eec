//! The broker: it stores messages and hands them out.
//!
//! [`start`] puts the parts together and is the only place that knows all of them. Threads: the data threads of the
//! client and internal servers, which run the services; the log writer and the maintenance thread of the store; one
//! control thread for registration, the catalog and the sweeps; and, where it is traced, one that sends spans.
#![forbid(unsafe_code)]

pub mod advertise;
pub mod broker;
pub mod catalog;
pub mod catalog_writer;
pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod dedupe;
pub mod filter;
pub mod held;
pub mod label;
pub mod latency;
pub mod lite;
pub mod mark;
pub mod metrics;
pub mod open;
pub mod pop;
pub mod process;
pub mod progress;
pub mod records;
pub mod refuse;
pub mod registration;
pub mod replication;
pub mod service;
mod spread;
mod start;
pub mod traces;
mod traffic;
pub mod ttl;
pub mod wanted;

pub use config::BrokerConfig;
pub use start::{Member, Running, StartError, start};
