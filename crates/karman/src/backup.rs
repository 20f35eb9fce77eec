//! `karman backup` and `karman restore`: topics, groups, how far they are, users and messages, in files of a directory and back.
//!
//! Everything goes through the cluster, which goes on working meanwhile (`docs/backup.md`, `docs/adr/0028-backup.md`).

mod check;
mod compare;
mod directory;
mod format;
mod plan;
mod report;
mod restore;
mod take;

use std::path::PathBuf;

use clap::Args;

use crate::node::Node;
use crate::output::Format;

use directory::{COMPLETE, Directory};
use report::{BackupJson, RestoreJson};
use restore::{Restored, Restoring};
use take::{Taking, Wanted};

pub(crate) const BACKUP_HELP: &str = "\
The cluster goes on working meanwhile. The same command again goes on with a backup that was interrupted. What is in
flight, undecided transactions and lite topics are not in a backup; what is left out is said.

Example:
  karman backup /backup/2026-11-28
  karman backup /backup/orders --topic orders --topic invoices
  karman backup /backup/settings --settings-only
  karman backup /backup/2026-11-28 --dry-run";

pub(crate) const RESTORE_HELP: &str = "\
Nothing that is there is overwritten: a topic must be missing or empty, a group missing or suspended. The backup is read
through first, and one that is damaged changes nothing. Groups are suspended until all is done. The same command again goes on
with a restore that was interrupted.

Example:
  karman restore /backup/2026-11-28 --dry-run
  karman restore /backup/2026-11-28
  karman restore /backup/2026-11-28 --broker broker-a=broker-c --new-secrets secrets.txt";

#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    /// A directory that is empty or missing, or holds a backup that was interrupted
    directory: PathBuf,
    /// Only this topic, and how far groups are with it; may be given several times
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Topics, groups and users without messages and without how far groups are
    #[arg(long)]
    settings_only: bool,
    /// Only show what it would hold
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The directory of a complete backup
    directory: PathBuf,
    /// What was on broker FROM goes to broker TO; may be given several times. Else to the broker of the same name
    #[arg(long, value_name = "FROM=TO", value_parser = from_and_to)]
    broker: Vec<(String, String)>,
    /// Users that are missing are made with new secrets, which are written to this file
    #[arg(long, value_name = "FILE")]
    new_secrets: Option<PathBuf>,
    /// Only check the backup and show what would be done
    #[arg(long)]
    dry_run: bool,
}

fn from_and_to(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("it is FROM=TO, for example broker-a=broker-c".to_owned()),
    }
}

/// Makes a backup, or goes on with one.
pub(crate) async fn backup(args: BackupArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let wanted = Wanted { topics: args.topic.into_iter().collect(), settings_only: args.settings_only };
    if args.dry_run {
        let mut notes = Vec::new();
        let topics = take::topics(&wanted, &mut notes, node).await?;
        return BackupJson::planned(&args.directory, topics, notes).print(format);
    }
    let directory = Directory::make(&args.directory)?;
    let mut taking = match directory.begun()? {
        Some(begun) if directory.has(COMPLETE) => {
            let at = crate::time::format_ms(begun.manifest.begun_ms);
            anyhow::bail!(
                "{} holds the complete backup of {at}; name another directory",
                args.directory.display()
            );
        }
        Some(_) if !wanted.topics.is_empty() || wanted.settings_only => anyhow::bail!(
            "{} holds a backup that was interrupted, and what that is to hold is decided: leave --topic and --settings-only out",
            args.directory.display()
        ),
        Some(begun) => {
            eprintln!(
                "karman: goes on with the backup of {}",
                crate::time::format_ms(begun.manifest.begun_ms)
            );
            Taking::again(begun.id, begun.manifest, &directory, node)
        }
        None => Taking::begin(&wanted, &directory, node).await?,
    };
    let complete = taking.messages().await?;
    BackupJson::made(&args.directory, &taking, &complete).print(format)
}

/// Restores a backup, or goes on with that.
pub(crate) async fn restore(args: RestoreArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let directory = Directory::open(&args.directory)?;
    let plan = plan::plan(&directory, &args.broker, node).await?;
    if args.dry_run || !plan.conflicts.is_empty() {
        if args.dry_run {
            RestoreJson::planned(&args.directory, &plan).print(format)?;
        }
        plan.conflicts.iter().for_each(|conflict| eprintln!("karman: {conflict}"));
        let count = plan.conflicts.len();
        anyhow::ensure!(count == 0, "nothing was changed: {count} things are in the way");
        return Ok(());
    }
    let new_secrets = args.new_secrets.as_deref();
    let restoring = Restoring { node, directory: &directory, plan: &plan, new_secrets };
    let restored: Restored = restoring.run().await?;
    RestoreJson::done(&args.directory, &plan, restored).print(format)
}
