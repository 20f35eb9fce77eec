//! `karman`: the one command for people. Runs a development node, and operates and measures any cluster through one of
//! its nodes.
#![forbid(unsafe_code)]

mod bench;
mod cli;
mod client;
mod cluster;
mod confirm;
mod controller;
mod dev;
mod dlq;
mod group;
mod message;
mod node;
mod offset;
mod output;
mod ready;
mod signals;
mod store;
mod time;
mod topic;

/// Buffers are made on a data thread and freed on the log writer; glibc's arenas contend for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
