//! `karman config`: what the configuration of a node may be, whether a file is one, and how one of RocketMQ becomes one. No node is
//! asked; main thread.

mod check;
mod import;
mod reference;
mod rocketmq;

use std::path::Path;

use clap::{Subcommand, ValueEnum};
use karman_broker::BrokerConfig;
use karman_namesrv::NamesrvConfig;
use karman_remoting::config::Unusable;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::output::Format;

/// Kinds of nodes, by their programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// karman-broker
    Broker,
    /// karman-namesrv
    Namesrv,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Namesrv => "namesrv",
        }
    }

    fn env_prefix(self) -> &'static str {
        match self {
            Self::Broker => karman_broker::config::ENV_PREFIX,
            Self::Namesrv => karman_namesrv::config::ENV_PREFIX,
        }
    }

    fn keys(self) -> Vec<reference::Key> {
        match self {
            Self::Broker => reference::keys::<BrokerConfig>(self, &BrokerConfig::rules()),
            Self::Namesrv => reference::keys::<NamesrvConfig>(self, &NamesrvConfig::rules()),
        }
    }

    /// What a start with this file, `--set` and the environment would refuse.
    fn problems(self, file: &Path, sets: &[String]) -> Vec<check::Problem> {
        match self {
            Self::Broker => check::problems(self, file, sets, BrokerConfig::invalid),
            Self::Namesrv => check::problems(self, file, sets, NamesrvConfig::invalid),
        }
    }

    /// What a start would refuse of these values; an error if one of them has not its type.
    fn refused(self, values: Map<String, Value>) -> serde_json::Result<Vec<Unusable>> {
        match self {
            Self::Broker => {
                serde_json::from_value(values.into()).map(|config: BrokerConfig| config.invalid())
            }
            Self::Namesrv => {
                serde_json::from_value(values.into()).map(|config: NamesrvConfig| config.invalid())
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every key: what it does, what it may be, and its default
    #[command(after_help = reference::AFTER_HELP)]
    Reference(reference::ReferenceArgs),
    /// Say whether a node would start with a file
    #[command(after_help = check::AFTER_HELP)]
    Check(check::CheckArgs),
    /// Turn a configuration of RocketMQ into one of ours
    #[command(after_help = import::AFTER_HELP)]
    Import(import::ImportArgs),
}

pub(crate) fn run(command: ConfigCommand, format: Format) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Reference(args) => reference::run(&args, format),
        ConfigCommand::Check(args) => check::run(&args, format),
        ConfigCommand::Import(args) => import::run(&args, format),
    }
}
