//! `karman`: the one command for people. Runs a development node, and operates and measures any cluster through one of
//! its nodes. Called by the name `karman-namesrv` or `karman-broker` it is that program: an image holds one file for all.
#![forbid(unsafe_code)]

mod acl;
mod backup;
mod bench;
mod bundle;
mod cli;
mod client;
mod cluster;
mod config;
mod confirm;
mod context;
mod controller;
mod dev;
mod dlq;
mod doctor;
mod generate;
mod group;
mod message;
mod node;
mod offset;
mod output;
mod progress;
mod quota;
mod ready;
mod shell;
mod signals;
mod store;
mod time;
mod top;
mod topic;
mod user;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

/// Buffers are made on a data thread and freed on the log writer; glibc's arenas contend for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(OsStr::to_str) {
        Some("karman-namesrv") => karman_namesrv::command::run(std::env::args_os())?,
        Some("karman-broker") => karman_broker::command::run(std::env::args_os())?,
        _ => return Ok(cli::run()),
    }
    Ok(ExitCode::SUCCESS)
}
