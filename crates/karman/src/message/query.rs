//! `karman message query`: messages that are stored, whatever consumers did with them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::v2;
use prost::Message as _;
use serde::Serialize;

use crate::cli::NotFound;
use crate::node::Node;
use crate::output::{self, Format};
use crate::time;

pub(super) const AFTER_HELP: &str = "\
By id and key the last stored message comes first, by time the first. With -o json each message is one line: an object
with body, or body_base64 when the body is not text. Times are milliseconds since 1970, 90s, 15m, 2h or 3d ago, or
2026-11-21T13:12:34 in UTC. Without a message the command says so on stderr and exits 3.

Example:
  karman message query orders --id 017793EEDC8B32653E0B12EE3DEF2D8AA0
  karman message query orders --key 4711 --begin 2h --max 5
  karman message query orders --time --begin 2026-11-21T13:00 --end 2026-11-21T13:05
  karman message query orders --queue 3 --offset 1207 --broker broker-a";

#[derive(Args, Debug)]
pub(crate) struct QueryArgs {
    /// The topic
    topic: String,
    #[command(flatten)]
    by: ByArgs,
    /// The place in that queue; with --max also what follows
    #[arg(long, requires = "queue")]
    offset: Option<u64>,
    /// Only on this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,
    /// By id, key or time: stored then or later
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    begin: Option<u64>,
    /// By id, key or time: stored before
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<u64>,
    /// At most so many; 32 when not given, and 1 at an offset
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(QUERY_MAX)))]
    max: Option<u32>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct ByArgs {
    /// The message with this id
    #[arg(long)]
    id: Option<String>,
    /// Messages with this key
    #[arg(long)]
    key: Option<String>,
    /// The message at --offset of this queue
    #[arg(long, requires = "offset")]
    queue: Option<u32>,
    /// Messages of a time: from --begin until --end
    #[arg(long)]
    time: bool,
    /// The message whose record starts at this physical offset
    #[arg(long, value_name = "OFFSET")]
    position: Option<u64>,
}

impl QueryArgs {
    fn by(&self) -> By {
        let ByArgs { id, key, queue, time, position } = &self.by;
        match (id, key, queue, position) {
            (Some(id), ..) => By::MessageId(id.clone()),
            (_, Some(key), ..) => By::Key(key.clone()),
            (_, _, Some(queue_id), _) => {
                By::Queue(v1::QueuePosition { queue_id: *queue_id, offset: self.offset.unwrap_or(0) })
            }
            _ if *time => By::Time(true),
            _ => By::PhysicalOffset(position.unwrap_or(0)),
        }
    }
}

/// A stored message as programs read it.
#[derive(Serialize)]
pub(crate) struct StoredJson {
    pub(crate) message_id: String,
    topic: String,
    broker: String,
    queue: u32,
    offset: u64,
    position: u64,
    pub(crate) store_ms: u64,
    born_ms: Option<i64>,
    born_host: String,
    tag: Option<String>,
    keys: Vec<String>,
    pub(crate) properties: BTreeMap<String, String>,
    body: Option<String>,
    body_base64: Option<String>,
}

impl StoredJson {
    pub(crate) fn of(stored: v1::StoredMessage) -> anyhow::Result<Self> {
        let message = v2::Message::decode(&stored.message[..])?;
        let system = message.system_properties.unwrap_or_default();
        let body = std::str::from_utf8(&message.body).ok().map(str::to_owned);
        let born = system.born_timestamp.as_ref();
        Ok(Self {
            topic: message.topic.unwrap_or_default().name,
            broker: stored.broker_name,
            queue: stored.queue_id,
            offset: stored.queue_offset,
            position: stored.physical_offset,
            store_ms: stored.store_time_ms,
            born_ms: born.map(|born| born.seconds * 1000 + i64::from(born.nanos) / 1_000_000),
            born_host: system.born_host,
            message_id: system.message_id,
            tag: system.tag,
            keys: system.keys,
            properties: message.user_properties.into_iter().collect(),
            body_base64: body.is_none().then(|| BASE64_STANDARD.encode(&message.body)),
            body,
        })
    }

    pub(crate) fn print(&self, format: Format) -> anyhow::Result<()> {
        if output::one_of_many(format, self, &self.message_id)? {
            return Ok(());
        }
        Ok(self.print_text()?)
    }

    fn print_text(&self) -> std::io::Result<()> {
        let Self { message_id, broker, queue, offset, position, .. } = self;
        let stored = time::format_ms(self.store_ms);
        output::line(&format!("{message_id} {broker} queue {queue} offset {offset} position {position}"))?;
        let mut line = format!("  stored {stored}");
        if let Some(tag) = &self.tag {
            line += &format!(" tag {tag}");
        }
        if !self.keys.is_empty() {
            line += &format!(" keys {}", self.keys.join(","));
        }
        output::line(&line)?;
        for (name, value) in &self.properties {
            output::line(&format!("  {name}={value}"))?;
        }
        output::line(self.body.as_deref().unwrap_or("(a body that is not text; -o json shows it)"))
    }
}

pub(super) async fn run(args: QueryArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let request = v1::QueryMessagesRequest {
        topic: args.topic.clone(),
        by: Some(args.by()),
        broker_name: args.broker.unwrap_or_default(),
        begin_ms: args.begin.unwrap_or(0),
        end_ms: args.end.unwrap_or(0),
        max: args.max.unwrap_or(0),
    };
    let response = node.answer(node.admin()?.query_messages(node.request(request))).await?;
    if response.messages.is_empty() {
        return Err(NotFound(format!("topic {} has no such message", args.topic)).into());
    }
    for stored in response.messages {
        StoredJson::of(stored)?.print(format)?;
    }
    if response.truncated {
        eprintln!("karman: there are more; give a narrower time with --begin or --end, or a higher --max");
    }
    Ok(())
}
