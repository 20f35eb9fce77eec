//! `karman topic`.

mod show;

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use karman_client::Code;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use serde::Serialize;

use crate::cli::NotFound;
use crate::confirm::confirm;
use crate::node::{Node, code_of, print_changed};
use crate::output::{self, Format, grouped, number, text};
use crate::quota::QuotaArgs;
use crate::time;

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic on all brokers
    #[command(after_help = "\
Example:
  karman topic create orders --queues 16 --durability disk --if-not-exists
  karman topic create invoices --type fifo --dedup-window-minutes 30
  karman topic create offers --type delay --ttl 1h
  karman topic create clicks --max-messages-per-second 5000 --max-bytes-per-second 10000000")]
    Create(CreateArgs),
    /// Change settings of a topic; its type and its queues stay
    #[command(after_help = "\
What is not named stays as it is.

Example:
  karman topic update orders --ttl 1h --dedup-window-minutes 10
  karman topic update orders --reserved-hours 0", group = changes(SETTINGS))]
    Update {
        /// The topic
        name: String,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// List the topics of all brokers
    #[command(after_help = "Example:\n  karman topic list")]
    List,
    /// Show a topic and its queues
    #[command(after_help = "\
LAST: how long ago the last message was stored. With --at, OFFSET AT is that of the first message stored then or later:
milliseconds since 1970, 90s, 15m, 2h or 3d ago, or 2026-11-21T13:12:34 in UTC.

Example:
  karman topic show orders
  karman topic show orders --at 2h")]
    Show {
        /// The topic
        name: String,
        /// Also show which offset each queue had at this time
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        at: Option<u64>,
    },
    /// Delete a topic and all its messages on all brokers
    #[command(after_help = "\
Nothing brings the messages back. Without --yes it is asked first; a script gives --yes or --dry-run.

Example:
  karman topic delete orders --dry-run
  karman topic delete orders --yes")]
    Delete {
        /// The topic
        name: String,
        /// Only show what would go
        #[arg(long, conflicts_with = "yes")]
        dry_run: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// 1 to 127 of the characters a-z A-Z 0-9 % | - _
    name: String,
    /// What kind of messages it takes
    #[arg(long = "type", value_enum, default_value_t = TypeWord::Normal)]
    message_type: TypeWord,
    /// Queues on each broker
    #[arg(long, default_value_t = 8)]
    queues: u32,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Leave a topic of this name as it is
    #[arg(long)]
    if_not_exists: bool,
}

/// The names of [`SettingsArgs`]: an update has at least one.
const SETTINGS: &[&str] = &[
    "durability",
    "reserved_hours",
    "dedup_window_minutes",
    "ttl",
    "lite_expiration",
    "max_messages_per_second",
    "max_bytes_per_second",
];

/// What can be changed later.
#[derive(Args, Debug)]
pub(crate) struct SettingsArgs {
    /// What a send that was answered OK survives; the broker's default when never given
    #[arg(long, value_enum)]
    durability: Option<DurabilityWord>,
    /// Hours its messages are kept; 0: as long as the brokers' fileReservedTime says
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=87_600))]
    reserved_hours: Option<u32>,
    /// A message id that was stored so lately is not stored again; 0 switches it off
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(0..=1440))]
    dedup_window_minutes: Option<u32>,
    /// A message older than this is not delivered any more, for example 1h; 0s: it never grows too old
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    ttl: Option<Duration>,
    /// A lite topic without messages for this long goes, for example 3d; 0m: never
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    lite_expiration: Option<Duration>,
    #[command(flatten)]
    quota: QuotaArgs,
}

impl SettingsArgs {
    /// What was typed takes the place of what was.
    fn set(&self, topic: &mut v1::TopicConfig) -> anyhow::Result<()> {
        if let Some(durability) = self.durability {
            topic.set_durability(durability.to_proto());
        }
        self.quota.set(&mut topic.messages_per_second, &mut topic.bytes_per_second);
        topic.reserved_hours = self.reserved_hours.unwrap_or(topic.reserved_hours);
        topic.dedup_window_minutes = self.dedup_window_minutes.or(topic.dedup_window_minutes);
        if let Some(ttl) = self.ttl {
            anyhow::ensure!(
                ttl.subsec_millis() == 0,
                "--ttl {ttl:?} is refused: it is kept in whole seconds"
            );
            topic.ttl_seconds = ttl.as_secs();
        }
        if let Some(expiration) = self.lite_expiration {
            let is_whole = expiration.as_millis().is_multiple_of(60_000);
            anyhow::ensure!(
                is_whole,
                "--lite-expiration {expiration:?} is refused: it is kept in whole minutes"
            );
            topic.lite_expiration_minutes = u32::try_from(expiration.as_secs() / 60)?;
        }
        Ok(())
    }
}

impl TopicJson {
    pub(crate) fn name(&self) -> &str {
        &self.topic
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TypeWord {
    Normal,
    /// In order of their sends within a message group
    Fifo,
    /// Not before a time that each message names
    Delay,
    /// Visible once their producer commits
    Transaction,
    /// In many light queues under one name
    Lite,
    /// The most important first
    Priority,
}

impl TypeWord {
    pub(crate) fn to_proto(self) -> v2::MessageType {
        match self {
            Self::Normal => v2::MessageType::Normal,
            Self::Fifo => v2::MessageType::Fifo,
            Self::Delay => v2::MessageType::Delay,
            Self::Transaction => v2::MessageType::Transaction,
            Self::Lite => v2::MessageType::Lite,
            Self::Priority => v2::MessageType::Priority,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DurabilityWord {
    /// The end of the process: the kernel has the message
    Memory,
    /// The loss of power: the disk has the message
    Disk,
    /// The loss of the machine: the slaves in sync have it too
    Replicated,
    /// That, and the loss of power everywhere: the slaves' disks have it
    #[value(name = "replicated_disk", alias = "replicated-disk")]
    ReplicatedDisk,
}

impl DurabilityWord {
    fn to_proto(self) -> v1::Durability {
        match self {
            Self::Memory => v1::Durability::Memory,
            Self::Disk => v1::Durability::Disk,
            Self::Replicated => v1::Durability::Replicated,
            Self::ReplicatedDisk => v1::Durability::ReplicatedDisk,
        }
    }
}

pub(crate) fn durability_word(durability: v1::Durability) -> &'static str {
    match durability {
        v1::Durability::Unspecified => "default",
        v1::Durability::Memory => "memory",
        v1::Durability::Disk => "disk",
        v1::Durability::Replicated => "replicated",
        v1::Durability::ReplicatedDisk => "replicated_disk",
    }
}

fn type_word(message_type: v2::MessageType) -> String {
    message_type.as_str_name().to_ascii_lowercase()
}

/// One of these arguments is there, or several.
pub(crate) fn changes(names: &'static [&'static str]) -> ArgGroup {
    ArgGroup::new("changes").args(names).required(true).multiple(true)
}

pub(crate) async fn run(command: TopicCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        TopicCommand::Create(args) => create(args, node, format).await,
        TopicCommand::Update { name, settings } => update(name, &settings, node, format).await,
        TopicCommand::List => list(node, format).await,
        TopicCommand::Show { name, at } => show::show(name, at, node, format).await,
        TopicCommand::Delete { name, dry_run, yes } => {
            if (yes || may_go(&name, dry_run, node, format).await?) && !dry_run {
                let request = node.request(v1::DeleteTopicRequest { name: name.clone() });
                let response = node.answer(node.admin()?.delete_topic(request)).await?;
                print_changed(&name, &response.brokers, format)?;
            }
            Ok(())
        }
    }
}

/// A topic on each broker that has it.
async fn on_each_broker(name: &str, node: &Node) -> anyhow::Result<Vec<v1::TopicSummary>> {
    let request = node.request(v1::ListTopicsRequest {});
    let mut rows = node.answer(node.admin()?.list_topics(request)).await?.topics;
    rows.retain(|row| row.topic.as_ref().is_some_and(|topic| topic.name == name));
    if rows.is_empty() {
        return Err(NotFound(format!("no broker has topic {name:?}")).into());
    }
    Ok(rows)
}

#[derive(Serialize)]
struct DoomedJson {
    topic: String,
    /// False: it is only what would go.
    done: bool,
    brokers: Vec<DoomedBrokerJson>,
}

#[derive(Serialize)]
struct DoomedBrokerJson {
    broker: String,
    messages: u64,
}

/// Shows what a deletion would take or asks whether it may.
async fn may_go(name: &str, dry_run: bool, node: &Node, format: Format) -> anyhow::Result<bool> {
    let rows = on_each_broker(name, node).await?;
    let messages: u64 = rows.iter().map(|row| row.message_count).sum();
    if !dry_run {
        let (messages, brokers) = (grouped(messages), rows.len());
        return confirm(
            &format!("Delete topic {name} with {messages} messages on {brokers} brokers?"),
            false,
        );
    }
    let row =
        |row: v1::TopicSummary| DoomedBrokerJson { broker: row.broker_name, messages: row.message_count };
    let brokers = rows.into_iter().map(row).collect();
    let doomed = DoomedJson { topic: name.to_owned(), done: false, brokers };
    if !output::programs(format, &doomed, |doomed| [doomed.topic.as_str()])? {
        let cells = |row: DoomedBrokerJson| vec![row.broker, grouped(row.messages)];
        let rows = doomed.brokers.into_iter().map(cells).collect();
        output::table(&[text("BROKER"), number("MESSAGES")], rows)?;
        output::line("nothing was deleted yet")?;
    }
    Ok(false)
}

async fn create(args: CreateArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let mut topic = v1::TopicConfig {
        name: args.name.clone(),
        message_type: args.message_type.to_proto().into(),
        queue_nums: args.queues,
        ..Default::default()
    };
    args.settings.set(&mut topic)?;
    let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: args.if_not_exists };
    let response = node.answer(node.admin()?.create_topic(node.request(request))).await?;
    print_changed(&args.name, &response.brokers, format)
}

async fn update(name: String, settings: &SettingsArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let (mut brokers, mut result) = (Vec::new(), Ok(()));
    for request in updates(on_each_broker(&name, node).await?, settings)? {
        let answered = node.answer_in_part(node.admin()?.update_topic(node.request(request))).await;
        let (rows, updated) = answered
            .map_or_else(|error| (vec![], Err(error)), |(response, result)| (response.brokers, result));
        brokers.extend(rows);
        result = result.and(updated);
    }
    if result.is_ok() || brokers.iter().any(|broker| code_of(broker.status.as_ref()) == Code::Ok) {
        print_changed(&name, &brokers, format)?;
    }
    result
}

/// What is told to which broker: what was not named stays there as it is there. A topic that came into being by use may
/// have other settings on each.
fn updates(
    rows: Vec<v1::TopicSummary>,
    settings: &SettingsArgs,
) -> anyhow::Result<Vec<v1::UpdateTopicRequest>> {
    let update = |row: v1::TopicSummary| {
        let mut topic = row.topic.unwrap_or_default();
        settings.set(&mut topic)?;
        Ok(v1::UpdateTopicRequest { topic: Some(topic), broker_name: row.broker_name })
    };
    rows.into_iter().map(update).collect()
}

#[derive(Serialize)]
pub(crate) struct TopicJson {
    topic: String,
    r#type: String,
    queues: u32,
    durability: &'static str,
    broker: String,
    messages: u64,
}

/// The topics on each broker, as programs read them.
pub(crate) async fn rows(node: &Node) -> anyhow::Result<Vec<TopicJson>> {
    let request = node.request(v1::ListTopicsRequest {});
    let response = node.answer(node.admin()?.list_topics(request)).await?;
    let rows = response.topics.into_iter().map(|summary| {
        let topic = summary.topic.unwrap_or_default();
        TopicJson {
            r#type: type_word(topic.message_type()),
            queues: topic.queue_nums,
            durability: durability_word(topic.durability()),
            topic: topic.name,
            broker: summary.broker_name,
            messages: summary.message_count,
        }
    });
    Ok(rows.collect())
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let rows = rows(node).await?;
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.topic.as_str()))? {
        return Ok(());
    }
    let cells = |row: TopicJson| {
        let (queues, messages) = (row.queues.to_string(), grouped(row.messages));
        vec![row.topic, row.r#type, queues, row.durability.to_owned(), row.broker, messages]
    };
    let columns = [
        text("TOPIC"),
        text("TYPE"),
        number("QUEUES"),
        text("DURABILITY"),
        text("BROKER"),
        number("MESSAGES"),
    ];
    Ok(output::table(&columns, rows.into_iter().map(cells).collect())?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: TopicCommand,
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name_as_each_broker_has_it() {
        let row = |broker: &str, reserved_hours, queue_nums| v1::TopicSummary {
            topic: Some(v1::TopicConfig { reserved_hours, queue_nums, ..Default::default() }),
            broker_name: broker.into(),
            ..Default::default()
        };
        let line = Line::try_parse_from(["test", "update", "orders", "--ttl", "1h"]).map(|line| line.command);
        let Ok(TopicCommand::Update { settings, .. }) = line else { panic!("not read") };
        let updates = updates(vec![row("a", 5, 8), row("b", 0, 4)], &settings).unwrap();
        let told = updates.into_iter().map(|update| {
            let topic = update.topic.unwrap();
            (update.broker_name, topic.ttl_seconds, topic.reserved_hours, topic.queue_nums)
        });
        assert_eq!(told.collect::<Vec<_>>(), [("a".into(), 3600, 5, 8), ("b".into(), 3600, 0, 4)]);
    }
}
