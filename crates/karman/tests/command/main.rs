//! The command as people and scripts use it: what it prints where, and how it exits.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that cannot go on fails")]

mod backup;
mod basics;
mod bundle;
mod config;
mod context;
mod doctor;
mod formats;
mod get;
mod groups;
mod shell;
mod startup;
mod store;
mod support;
mod top;
mod transcript;
