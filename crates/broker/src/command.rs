//! `karman-broker`: one broker, from its configuration to its last flush. On the main thread of that program, or of `karman`
//! where it is called by that name.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use karman_remoting::{config, logging, signals};

use crate::config::ENV_PREFIX;
use crate::{BrokerConfig, Member, Running, start};

/// A Karman broker: stores messages and hands them out.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  karman-broker --set brokerName=broker-a --set namesrvAddr=127.0.0.1:9876"
)]
struct Arguments {
    /// Configuration file, TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One value, over file and environment (KARMAN_BROKER__FLUSH_DISK_TYPE=...).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print what is in force and where it comes from, and end.
    #[arg(long)]
    print_config: bool,
}

/// Runs a broker as the arguments say, the name of the program in front of them, until it is told to stop.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let arguments = Arguments::parse_from(arguments);
    let loaded = config::load::<BrokerConfig>(ENV_PREFIX, arguments.config.as_deref(), &arguments.sets)?;
    if arguments.print_config {
        print!("{}", loaded.to_text());
        return Ok(());
    }
    logging::init()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Not before it is started: while a log is recovered a signal ends the process at once.
    let take_signals = || {
        let _runtime = runtime.enter();
        signals::stop().context("take signals")
    };
    if loaded.config.enable_controller_mode {
        let member = Member::start(&loaded.config)?;
        let stop = take_signals()?;
        print_ready(&loaded.config, member.running());
        return runtime.block_on(member.run(stop)).map_err(anyhow::Error::msg);
    }
    let broker = start(&loaded.config)?;
    let stop = take_signals()?;
    print_ready(&loaded.config, &broker);
    runtime.block_on(async {
        let mut failed = broker.failed();
        tokio::select! {
            () = stop => {}
            Ok(reason) = failed.wait_for(Option::is_some) => {
                // Nothing is flushed or closed any more: what was not answered may be lost, what was is safe.
                anyhow::bail!("the store has failed: {}", reason.as_deref().unwrap_or_default());
            }
        }
        broker.shutdown().await.map_err(anyhow::Error::msg)
    })
}

fn print_ready(config: &BrokerConfig, broker: &Running) {
    let namesrv = if config.namesrv_addr.is_empty() { "-" } else { &config.namesrv_addr };
    let (endpoint, metrics, internal) =
        (broker.clients_address(), broker.metrics_address(), broker.internal_address());
    println!("karman ready endpoint={endpoint} namesrv={namesrv} metrics={metrics} internal={internal}");
}
