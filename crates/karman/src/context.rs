//! `karman context`: clusters by a name, so that nobody types an endpoint and a user with each command. No node is asked; main
//! thread.

pub(crate) mod file;

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use crate::cli::{Incomplete, Said};
use crate::output::{self, Format, text};

use file::{Context, Contexts};

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Keep an endpoint, and who calls there, under a name
    #[command(after_help = "\
It keeps what is typed: -e, --access-key, --secret-key-file (where the file is, not what it holds) and --cluster-secret;
nothing of the environment. The file is $XDG_CONFIG_HOME/karman/contexts.toml (~/.config/karman/contexts.toml), for its
owner alone.

Example:
  karman context add local -e 127.0.0.1:8081 --use
  karman context add prod -e https://broker-a:8081 --access-key ops --secret-key-file ~/.karman-ops")]
    Add {
        /// What it is called: 1 to 64 of a-z A-Z 0-9 - _ .
        #[arg(value_parser = file::parse_name)]
        name: String,
        /// Use it from now on
        #[arg(long = "use")]
        use_it: bool,
        /// Take the place of the context of this name
        #[arg(long)]
        replace: bool,
    },
    /// Say which context commands use from now on
    #[command(after_help = "\
What is typed goes first: -e and the like, then --context NAME. Then comes the environment: KARMAN_ENDPOINT and the like,
then KARMAN_CONTEXT. Then the context in use. Where -e or KARMAN_ENDPOINT says where, a context counts only if --context
names it.

Example:
  karman context use prod
  karman context use --none")]
    Use {
        /// The context
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// None: commands go to 127.0.0.1:8081 again
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// List the contexts
    #[command(after_help = "Example:\n  karman context list\n  karman context list -o name")]
    List,
    /// Show a context, without its secrets
    #[command(after_help = "Example:\n  karman context show\n  karman context show prod")]
    Show {
        /// The context; the one in use when not given
        name: Option<String>,
    },
    /// Forget a context
    #[command(after_help = "Example:\n  karman context remove staging")]
    Remove {
        /// The context
        name: String,
    },
}

#[derive(Serialize)]
struct ContextJson {
    context: String,
    /// Commands without -e and --context go there.
    in_use: bool,
    endpoint: String,
    access_key: Option<String>,
    secret_key_file: Option<PathBuf>,
    /// Whether it has one.
    cluster_secret: bool,
}

impl ContextJson {
    fn of(name: &str, context: &Context, in_use: Option<&str>) -> Self {
        Self {
            context: name.to_owned(),
            in_use: in_use == Some(name),
            endpoint: context.endpoint.clone(),
            access_key: context.access_key.clone(),
            secret_key_file: context.secret_key_file.clone(),
            cluster_secret: context.cluster_secret.is_some(),
        }
    }
}

/// `typed` is what the command line says of a target; `named` the context that it or the environment names.
pub(crate) fn run(
    command: ContextCommand,
    typed: Said,
    named: Option<String>,
    format: Format,
) -> anyhow::Result<()> {
    let path = file::path()?;
    let mut contexts = file::load(&path)?;
    match command {
        ContextCommand::Add { name, use_it, replace } => {
            add(&mut contexts, &name, typed, replace)?;
            if use_it {
                contexts.current = Some(name.clone());
            }
            file::store(&path, &contexts)?;
            if contexts.current.as_ref() != Some(&name) {
                eprintln!("karman: `karman context use {name}`, or --context {name}, uses it");
            }
            Ok(())
        }
        ContextCommand::Use { name, .. } => {
            name.as_deref().map(|name| contexts.get(name)).transpose()?;
            contexts.current = name;
            file::store(&path, &contexts)
        }
        ContextCommand::List => list(&contexts, named, format),
        ContextCommand::Show { name } => {
            let in_use = named.or_else(|| contexts.current.clone());
            let name = name.or_else(|| in_use.clone()).ok_or_else(|| {
                Incomplete("no context is in use; `karman context list` shows what there is".to_owned())
            })?;
            show(ContextJson::of(&name, contexts.get(&name)?, in_use.as_deref()), format)
        }
        ContextCommand::Remove { name } => {
            contexts.get(&name)?;
            contexts.contexts.remove(&name);
            if contexts.current.as_ref() == Some(&name) {
                contexts.current = None;
                eprintln!("karman: it was in use; no context is now");
            }
            file::store(&path, &contexts)
        }
    }
}

fn add(contexts: &mut Contexts, name: &str, typed: Said, replace: bool) -> anyhow::Result<()> {
    if contexts.contexts.contains_key(name) && !replace {
        anyhow::bail!("there is a context {name:?} already; --replace puts this one in its place");
    }
    let endpoint = typed
        .endpoint
        .ok_or_else(|| Incomplete(format!("say where it is: karman context add {name} -e HOST:PORT")))?;
    file::check_endpoint(&endpoint)?;
    // It is used from other directories, too.
    let secret_key_file = typed.secret_key_file.map(std::path::absolute).transpose()?;
    let context = Context {
        endpoint,
        access_key: typed.access_key,
        secret_key_file,
        cluster_secret: typed.cluster_secret,
    };
    contexts.contexts.insert(name.to_owned(), context);
    Ok(())
}

fn list(contexts: &Contexts, named: Option<String>, format: Format) -> anyhow::Result<()> {
    let in_use = named.or_else(|| contexts.current.clone());
    let row = |(name, context): (&String, &Context)| ContextJson::of(name, context, in_use.as_deref());
    let rows: Vec<ContextJson> = contexts.contexts.iter().map(row).collect();
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.context.as_str()))? {
        return Ok(());
    }
    let cells = |row: ContextJson| {
        let user = row.access_key.unwrap_or_else(|| "-".to_owned());
        vec![if row.in_use { "*" } else { "" }.to_owned(), row.context, row.endpoint, user]
    };
    let columns = [text(""), text("CONTEXT"), text("ENDPOINT"), text("USER")];
    Ok(output::table(&columns, rows.into_iter().map(cells).collect())?)
}

fn show(row: ContextJson, format: Format) -> anyhow::Result<()> {
    if output::programs(format, &row, |row| [row.context.as_str()])? {
        return Ok(());
    }
    let state = if row.in_use { ", in use" } else { "" };
    output::line(&format!("{}{state}", row.context))?;
    output::line(&format!("  endpoint: {}", row.endpoint))?;
    if let Some(access_key) = &row.access_key {
        output::line(&format!("  user: {access_key}"))?;
    }
    if let Some(file) = &row.secret_key_file {
        output::line(&format!("  its secret: in {}", file.display()))?;
    }
    if row.cluster_secret {
        output::line("  cluster secret: kept, not shown")?;
    }
    Ok(())
}
