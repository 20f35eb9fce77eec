//! `karman group`.

mod delete;
mod settings;
mod show;

use clap::Subcommand;
use karman_remoting::proto::karman as v1;
use serde::Serialize;

use crate::node::{Node, print_changed};
use crate::output::{self, Format, grouped, number, text};
use crate::topic::changes;

use settings::{SETTINGS, SettingsArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a consumer group on all brokers
    #[command(after_help = "\
Example:
  karman group create shipping --retry-max-times 3 --retry-steps 1s,10s,1m
  karman group create audit --consume-from last --no-orderly")]
    Create {
        /// 1 to 120 of the characters a-z A-Z 0-9 % | - _
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Change settings of a group on all brokers
    #[command(after_help = "\
What is not named stays as it is. Where the group begins counts for topics that it has not read yet; karman offset
moves it on the others.

Example:
  karman group update shipping --retry-exponential 1s,2h,2
  karman group update shipping --retry-max-times 5 --orderly", group = changes(SETTINGS))]
    Update {
        /// The group
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Show a group: its settings, how far it is with each queue, its clients, and where they contradict each other
    #[command(after_help = "\
COMMITTED: everything below is done. READY: stored and never delivered. IN FLIGHT: with a client, or waiting for the
next attempt. WITHHELD: waiting for an earlier message of the same message group. AGE: how long the first of the ready
ones has been stored.

Example:
  karman group show shipping
  karman group show shipping --topic orders")]
    Show {
        /// The group
        name: String,
        /// Only its progress with this topic
        #[arg(long)]
        topic: Option<String>,
    },
    /// Show what waits for a group, topic by topic
    #[command(after_help = "Example:\n  karman group lag shipping\n  karman -o json group lag shipping")]
    Lag {
        /// The group
        name: String,
        /// Only of this topic
        #[arg(long)]
        topic: Option<String>,
    },
    /// Deliver nothing to a group until it is resumed
    #[command(after_help = "\
What its clients hold stays with them and can be acknowledged.

Example:
  karman group suspend shipping")]
    Suspend {
        /// The group
        name: String,
    },
    /// Deliver to a group again
    #[command(after_help = "Example:\n  karman group resume shipping")]
    Resume {
        /// The group
        name: String,
    },
    /// Delete a group on all brokers: its settings, how far it is with each topic, and its dead letters
    #[command(after_help = "\
Messages of the topics that it reads stay. A group of the same name that is made later begins anew. While members are connected
it is refused; with --force it goes all the same, and comes into being again as soon as one of them receives, where brokers make
groups by use (autoCreateSubscriptionGroup). Without --yes it is asked first; a script gives --yes or --dry-run.

Example:
  karman group delete shipping --dry-run
  karman group delete shipping --yes")]
    Delete {
        /// The group
        name: String,
        #[command(flatten)]
        how: delete::DeleteArgs,
    },
    /// List the groups, and what waits for them
    #[command(after_help = "Example:\n  karman group list")]
    List,
}

pub(crate) async fn run(command: GroupCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create { name, settings } => {
            let mut group = v1::GroupConfig { name: name.clone(), ..Default::default() };
            settings.set(&mut group);
            let request = node.request(v1::CreateGroupRequest { group: Some(group) });
            let response = node.answer(node.admin()?.create_group(request)).await?;
            print_changed(&name, &response.brokers, format)
        }
        GroupCommand::Update { name, settings } => {
            update(name, node, format, |group| settings.set(group)).await
        }
        GroupCommand::Suspend { name } => update(name, node, format, |group| group.suspended = true).await,
        GroupCommand::Resume { name } => update(name, node, format, |group| group.suspended = false).await,
        GroupCommand::Show { name, topic } => show::show(name, topic, node, format).await,
        GroupCommand::Lag { name, topic } => show::lag(name, topic, node, format).await,
        GroupCommand::Delete { name, how } => delete::delete(name, &how, node, format).await,
        GroupCommand::List => list(node, format).await,
    }
}

/// Gives a group settings that differ from those it has by what `change` does.
async fn update(
    name: String,
    node: &Node,
    format: Format,
    change: impl FnOnce(&mut v1::GroupConfig),
) -> anyhow::Result<()> {
    let mut group = show::describe(&name, None, node).await?.groups.into_iter().next().unwrap_or_default();
    change(&mut group);
    let request = node.request(v1::UpdateGroupRequest { group: Some(group) });
    let response = node.answer(node.admin()?.update_group(request)).await?;
    print_changed(&name, &response.brokers, format)
}

#[derive(Serialize)]
pub(crate) struct GroupJson {
    group: String,
    retry_max_times: u32,
    suspended: bool,
    broker: String,
    /// Empty when the group has not read yet.
    topic: String,
    ready: u64,
    inflight: u64,
}

/// The groups on each broker with what waits for them, as programs read them.
pub(crate) async fn rows(node: &Node) -> anyhow::Result<Vec<GroupJson>> {
    let response = node.answer(node.admin()?.list_groups(node.request(v1::ListGroupsRequest {}))).await?;
    let rows = response.groups.into_iter().map(|summary| {
        let group = summary.group.unwrap_or_default();
        GroupJson {
            retry_max_times: settings::retry_max_times(&group),
            suspended: group.suspended,
            group: group.name,
            broker: summary.broker_name,
            topic: summary.topic,
            ready: summary.ready_count,
            inflight: summary.inflight_count,
        }
    });
    Ok(rows.collect())
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let rows = rows(node).await?;
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.group.as_str()))? {
        return Ok(());
    }
    let cells = |row: GroupJson| {
        let topic = if row.topic.is_empty() { "-".to_owned() } else { row.topic };
        let (ready, inflight) = (grouped(row.ready), grouped(row.inflight));
        let retries = row.retry_max_times.to_string();
        let state = if row.suspended { "suspended" } else { "on" }.to_owned();
        vec![row.group, topic, row.broker, ready, inflight, retries, state]
    };
    let columns = [
        text("GROUP"),
        text("TOPIC"),
        text("BROKER"),
        number("READY"),
        number("IN FLIGHT"),
        number("RETRIES"),
        text("STATE"),
    ];
    Ok(output::table(&columns, rows.into_iter().map(cells).collect())?)
}
