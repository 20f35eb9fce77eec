//! `karman topic`.

use clap::{Args, Subcommand, ValueEnum};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use serde::Serialize;

use crate::node::{Node, print_changed};
use crate::output::{self, Format, grouped, number, text};
use crate::time;

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic on all brokers
    #[command(
        after_help = "Example:\n  karman topic create orders --queues 16 --durability disk --if-not-exists"
    )]
    Create(CreateArgs),
    /// List the topics of all brokers
    #[command(after_help = "Example:\n  karman topic list")]
    List,
    /// Show a topic and its queues
    #[command(after_help = "\
With --at, OFFSET AT is that of the first message stored then or later: milliseconds since 1970, 90s, 15m, 2h or 3d
ago, or 2026-11-21T13:12:34 in UTC.

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
    #[command(after_help = "Example:\n  karman topic delete orders --yes")]
    Delete {
        /// The topic
        name: String,
        /// Confirms that the messages may go; nothing brings them back
        #[arg(long, required = true)]
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
    /// What a send that was answered OK survives; the broker's default when not given
    #[arg(long, value_enum)]
    durability: Option<DurabilityWord>,
    /// Hours its messages are kept; as long as the brokers' fileReservedTime says when not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=87_600))]
    reserved_hours: Option<u32>,
    /// Leave a topic of this name as it is
    #[arg(long)]
    if_not_exists: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TypeWord {
    Normal,
    Fifo,
    Delay,
    Transaction,
}

impl TypeWord {
    pub(crate) fn to_proto(self) -> v2::MessageType {
        match self {
            Self::Normal => v2::MessageType::Normal,
            Self::Fifo => v2::MessageType::Fifo,
            Self::Delay => v2::MessageType::Delay,
            Self::Transaction => v2::MessageType::Transaction,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DurabilityWord {
    /// The end of the process: the kernel has the message
    Memory,
    /// The loss of power: the disk has the message
    Disk,
}

impl DurabilityWord {
    fn to_proto(self) -> v1::Durability {
        match self {
            Self::Memory => v1::Durability::Memory,
            Self::Disk => v1::Durability::Disk,
        }
    }
}

pub(crate) fn durability_word(durability: v1::Durability) -> &'static str {
    match durability {
        v1::Durability::Unspecified => "default",
        v1::Durability::Memory => "memory",
        v1::Durability::Disk => "disk",
    }
}

fn type_word(message_type: v2::MessageType) -> String {
    message_type.as_str_name().to_ascii_lowercase()
}

pub(crate) async fn run(command: TopicCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        TopicCommand::Create(args) => create(args, node, format).await,
        TopicCommand::List => list(node, format).await,
        TopicCommand::Show { name, at } => show(name, at, node, format).await,
        TopicCommand::Delete { name, yes: _ } => {
            let request = node.request(v1::DeleteTopicRequest { name: name.clone() });
            let response = node.answer(node.admin()?.delete_topic(request)).await?;
            print_changed(&name, &response.brokers, format)
        }
    }
}

async fn create(args: CreateArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let topic = v1::TopicConfig {
        name: args.name.clone(),
        message_type: args.message_type.to_proto().into(),
        queue_nums: args.queues,
        durability: args.durability.map_or(v1::Durability::Unspecified, DurabilityWord::to_proto).into(),
        reserved_hours: args.reserved_hours.unwrap_or(0),
        ..Default::default()
    };
    let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: args.if_not_exists };
    let response = node.answer(node.admin()?.create_topic(node.request(request))).await?;
    print_changed(&args.name, &response.brokers, format)
}

#[derive(Serialize)]
struct TopicJson {
    topic: String,
    r#type: String,
    queues: u32,
    durability: &'static str,
    broker: String,
    messages: u64,
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
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
    match format {
        Format::Json => output::json(&rows.collect::<Vec<_>>()),
        Format::Table => {
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
            Ok(output::table(&columns, rows.map(cells).collect())?)
        }
    }
}

#[derive(Serialize)]
struct ShownJson {
    topic: String,
    r#type: String,
    durability: &'static str,
    /// None: as long as the broker's `fileReservedTime` says.
    reserved_hours: Option<u32>,
    queues: Vec<QueueJson>,
}

#[derive(Serialize)]
struct QueueJson {
    broker: String,
    queue: u32,
    min_offset: u64,
    max_offset: u64,
    messages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_at: Option<u64>,
}

async fn show(name: String, at_ms: Option<u64>, node: &Node, format: Format) -> anyhow::Result<()> {
    let request = node.request(v1::DescribeTopicRequest { name: name.clone(), at_ms });
    let response = node.answer(node.admin()?.describe_topic(request)).await?;
    let config = response.topics.into_iter().next().unwrap_or_default();
    let queues = response.queues.into_iter().map(|queue| QueueJson {
        messages: queue.max_offset.saturating_sub(queue.min_offset),
        broker: queue.broker_name,
        queue: queue.queue_id,
        min_offset: queue.min_offset,
        max_offset: queue.max_offset,
        offset_at: queue.offset_at,
    });
    let shown = ShownJson {
        topic: name,
        r#type: type_word(config.message_type()),
        durability: durability_word(config.durability()),
        reserved_hours: Some(config.reserved_hours).filter(|hours| *hours > 0),
        queues: queues.collect(),
    };
    if format == Format::Json {
        return output::json(&shown);
    }
    let kept = match shown.reserved_hours {
        Some(hours) => format!("{hours} h"),
        None => "as long as the broker's fileReservedTime says".to_owned(),
    };
    output::line(&format!(
        "{}: {}, durability {}, kept {kept}\n",
        shown.topic, shown.r#type, shown.durability
    ))?;
    let cells = |row: QueueJson| {
        let numbers = [row.min_offset, row.max_offset, row.messages].map(grouped);
        let offset_at = row.offset_at.map(grouped);
        [row.broker, row.queue.to_string()].into_iter().chain(numbers).chain(offset_at).collect()
    };
    let mut columns =
        vec![text("BROKER"), number("QUEUE"), number("MIN OFFSET"), number("MAX OFFSET"), number("MESSAGES")];
    columns.extend(at_ms.map(|_| number("OFFSET AT")));
    Ok(output::table(&columns, shown.queues.into_iter().map(cells).collect())?)
}
