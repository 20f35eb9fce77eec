//! `karman-namesrv`: one name server, from its configuration to its end. On the main thread of that program, or of `karman`
//! where it is called by that name.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use karman_remoting::{config, logging, signals};

use crate::config::ENV_PREFIX;
use crate::{NamesrvConfig, start};

/// A Karman name server: it knows which broker has which topic.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  karman-namesrv --set grpcListenAddress=0.0.0.0:9876")]
struct Arguments {
    /// Configuration file, TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One value, over file and environment (KARMAN_NAMESRV__CLUSTER_SECRET=...).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print what is in force and where it comes from, and end.
    #[arg(long)]
    print_config: bool,
}

/// Runs a namesrv as the arguments say, the name of the program in front of them, until it is told to stop.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let arguments = Arguments::parse_from(arguments);
    let loaded = config::load::<NamesrvConfig>(ENV_PREFIX, arguments.config.as_deref(), &arguments.sets)?;
    if arguments.print_config {
        print!("{}", loaded.to_text());
        return Ok(());
    }
    logging::init()?;
    let namesrv = start(&loaded.config)?;
    let address = namesrv.address();
    let metrics = namesrv.metrics_address().map_or_else(|| "-".to_owned(), |address| address.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = signals::stop().context("take signals")?;
        println!("karman ready endpoint={address} namesrv={address} metrics={metrics}");
        stop.await;
        namesrv.shutdown().await;
        Ok(())
    })
}
