//! `karman store`: the files of a broker, stopped or running.

mod dump;
mod repair;
mod stat;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use karman_store::offline::Offline;

use crate::node::Node;
use crate::output::Format;

const VERIFY_HELP: &str = "\
Exit codes: 0 all is sound, 1 it could not be verified, 2 the command line is wrong, 4 something is damaged
or keeps the broker from starting

Example:
  karman store verify /var/lib/karman
  karman store verify --live --broker broker-a --rate 50";

const REPAIR_HELP: &str = "\
Without --yes it says what it would do and changes nothing. What it takes out of the store lies in the directory
`quarantine` of the store afterwards. Damage is given up for good by it: where another copy of a file exists,
put that back instead.

Exit codes: 0 nothing is left to do, 1 it failed, 2 the command line is wrong, 4 there is something to do that was
not done

Example:
  karman store repair /var/lib/karman
  karman store repair /var/lib/karman --yes
  karman store repair /var/lib/karman --owner DefaultCluster/broker-a --yes";

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Read all that is stored and say what is damaged; changes nothing
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Show the records of a stopped broker's log
    #[command(after_help = "\
Example:
  karman store dump /var/lib/karman --queue 3 --max 10 --payload
  karman -o json store dump /var/lib/karman --from 1048576 | head")]
    Dump(DumpArgs),
    /// Show segments, snapshots and the state of a stopped broker's store
    #[command(after_help = "Example:\n  karman store stat /var/lib/karman")]
    Stat {
        #[command(flatten)]
        place: Place,
    },
    /// Build index files of a stopped broker anew from its log
    #[command(after_help = "Example:\n  karman store rebuild-index /var/lib/karman --segment 1073741824")]
    RebuildIndex {
        #[command(flatten)]
        place: Place,
        /// Only that of the segment that starts at this offset; else those of all full segments
        #[arg(long, value_name = "OFFSET")]
        segment: Option<u64>,
    },
    /// Make a stopped broker's store usable again
    #[command(after_help = REPAIR_HELP)]
    Repair(RepairArgs),
}

/// Where the files are.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The broker's storePathRootDir (of `karman dev`: --data), or the directory `store` in it
    directory: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// Of a stopped broker: its storePathRootDir (of `karman dev`: --data), or the directory `store` in it
    #[arg(required_unless_present = "live", conflicts_with = "live")]
    directory: Option<PathBuf>,
    /// Of running brokers, through the node at --endpoint
    #[arg(long)]
    live: bool,
    /// Only this broker
    #[arg(long, value_name = "NAME", conflicts_with = "directory")]
    broker: Option<String>,
    /// At most so many MB per second; else as fast as the device is
    #[arg(long, value_name = "MB", conflicts_with = "directory", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    place: Place,
    /// Begin with the record that starts at this offset, or the next
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// End in front of this offset
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Only records of this queue, by its number in the log
    #[arg(long, value_name = "NUMBER")]
    queue: Option<u32>,
    /// End after so many
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
    /// Show what is in them as well
    #[arg(long)]
    payload: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    place: Place,
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Whose store it shall be
    #[arg(long, value_name = "CLUSTER/BROKER")]
    owner: Option<String>,
    /// Where no snapshot is left: give up topics, groups and consumer progress that the rest of the log does not hold
    #[arg(long)]
    forget_state: bool,
    /// Do without the snapshot with this number in its name
    #[arg(long, value_name = "OFFSET")]
    set_aside_snapshot: Option<u64>,
}

/// Runs a command. Files are read on this thread; only `verify --live` needs a runtime.
pub(crate) fn run(
    command: StoreCommand,
    node: impl FnOnce() -> anyhow::Result<Node>,
    format: Format,
) -> anyhow::Result<()> {
    match command {
        StoreCommand::Verify(VerifyArgs { directory: Some(directory), .. }) => {
            verify::stopped(&open(&directory)?, format)
        }
        StoreCommand::Verify(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(verify::live(&node()?, args.broker, args.rate, format))
        }
        StoreCommand::Dump(args) => dump::run(&open(&args.place.directory)?, &args, format),
        StoreCommand::Stat { place } => stat::run(&open(&place.directory)?, format),
        StoreCommand::RebuildIndex { place, segment } => {
            repair::rebuild_index(&open(&place.directory)?, segment, format)
        }
        StoreCommand::Repair(args) => repair::run(&open(&args.place.directory)?, &args, format),
    }
}

/// A broker keeps its store in a directory of its own.
fn open(directory: &Path) -> anyhow::Result<Offline> {
    let inner = directory.join("store");
    let directory = if inner.join("commitlog").is_dir() { &inner } else { directory };
    Ok(Offline::open(directory)?)
}
