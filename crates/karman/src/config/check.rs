//! `karman config check`: what a start would say of a file, without one.

use std::path::{Path, PathBuf};

use clap::Args;
use karman_remoting::config::{self, ConfigError, Unusable};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Role;
use super::rocketmq::{Fate, RocketMq};
use crate::output::{self, Format};

pub(super) const AFTER_HELP: &str = "\
The environment counts, as it does for a start: KARMAN_BROKER__..., KARMAN_NAMESRV__...

Exit codes: 0 a node starts with it, 1 it does not, 2 the command line is wrong

Examples:
  karman config check /etc/karman/broker.toml --role broker
  karman config check namesrv.toml --role namesrv --set controllerSelfId=2 -o json";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The configuration, TOML
    file: PathBuf,
    /// The kind of node it is for
    #[arg(long)]
    role: Role,
    /// One value, over file and environment, as the node takes it
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// Something for which a start would be refused.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    key: Option<String>,
    value: Option<String>,
    /// `file PATH`, `env NAME`, `--set` or `default`.
    origin: Option<String>,
    /// All of it in words.
    message: String,
    /// The known key most like an unknown one.
    nearest: Option<String>,
    /// What became of a key of RocketMQ that we do not have.
    rocketmq: Option<String>,
}

#[derive(Serialize)]
struct Checked<'a> {
    file: &'a Path,
    role: Role,
    good: bool,
    problems: &'a [Problem],
}

pub(super) fn run(args: &CheckArgs, format: Format) -> anyhow::Result<()> {
    let (file, role) = (args.file.as_path(), args.role);
    let problems = role.problems(file, &args.sets);
    let good = problems.is_empty();
    let checked = Checked { file, role, good, problems: &problems };
    let is_written = output::programs(format, &checked, |checked| {
        checked.problems.iter().filter_map(|problem| problem.key.as_deref())
    })?;
    if !is_written && good {
        output::line(&format!("{}: a {} starts with it", file.display(), role.name()))?;
    }
    if good {
        return Ok(());
    }
    let lines = problems.iter().map(|problem| format!("\n  {}{}", problem.message, problem.hint()));
    anyhow::bail!("a {} does not start with {}:{}", role.name(), file.display(), lines.collect::<String>())
}

/// Loads and checks as a start does; `invalid` names the values that cannot be used.
pub(super) fn problems<T: DeserializeOwned + Serialize + Default>(
    role: Role,
    file: &Path,
    sets: &[String],
    invalid: impl Fn(&T) -> Vec<Unusable>,
) -> Vec<Problem> {
    let loaded = match config::load::<T>(role.env_prefix(), Some(file), sets) {
        Ok(loaded) => loaded,
        Err(error) => return vec![Problem::of_error(role, error)],
    };
    let problem = |unusable: Unusable| {
        let origin =
            loaded.origins.iter().find(|(key, ..)| key == unusable.key).map(|(.., origin)| origin.clone());
        let from = origin.as_deref().unwrap_or("default");
        Problem {
            message: format!("{} = {:?} ({from}): {}", unusable.key, unusable.value, unusable.allowed),
            key: Some(unusable.key.to_owned()),
            value: Some(unusable.value),
            origin,
            ..Problem::default()
        }
    };
    invalid(&loaded.config).into_iter().map(problem).collect()
}

impl Problem {
    fn of_error(role: Role, error: ConfigError) -> Self {
        let message = error.to_string();
        match error {
            ConfigError::UnknownKey { key, origin, nearest } => Self {
                rocketmq: RocketMq::of(role).fate(&key).and_then(|fate| match fate {
                    Fate::NotNeeded(why) => Some(format!("not needed: {why}")),
                    Fate::NotSupported(what) => Some(format!("not supported: {what}")),
                    Fate::Same | Fate::Renamed(_) => None,
                }),
                key: Some(key),
                origin: Some(origin),
                nearest: Some(nearest),
                message,
                ..Self::default()
            },
            ConfigError::InvalidValue { key, value, origin, .. } => {
                Self { key: Some(key), value: Some(value), origin: Some(origin), message, ..Self::default() }
            }
            _ => Self { message, ..Self::default() },
        }
    }

    fn hint(&self) -> String {
        let hint = self.rocketmq.as_ref();
        hint.map(|fate| format!("\n    It is a key of RocketMQ, {fate}")).unwrap_or_default()
    }
}
