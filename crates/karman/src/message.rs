//! `karman message`: what a producer and a consumer do, by hand.

mod peek;
pub(crate) mod query;
mod why;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use karman_client::{FilterExpression, Message, ReceivedMessage};
use serde::Serialize;

use crate::node::Node;
use crate::output::{self, Format, grouped, number, text};
use crate::time;

/// How long a message that was received and not acknowledged stays away from the group.
const INVISIBLE: Duration = Duration::from_secs(30);
/// One more than a server takes: a longer body is refused there, with the reason.
const BODY_READ_MAX_BYTES: u64 = 4 * 1024 * 1024 + 1;
/// What one receive can bring.
const BATCH_MAX: u32 = 32;

#[derive(Debug, Subcommand)]
pub(crate) enum MessageCommand {
    /// Send one message
    #[command(after_help = "\
A delay is 500ms, 90s, 15m, 2h or 3d, or one of the 18 classic levels: level-1 to level-18 are 1s 5s 10s 30s 1m 2m 3m
4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h.

Example:
  karman message send orders --body @order.json --tag new --key 4711
  karman message send invoices --body 'a bill' --message-group customer-7
  karman message send reminders --body 'pay now' --delay level-5")]
    Send(SendArgs),
    /// Receive messages for a group, print and acknowledge them
    #[command(
        after_help = "Example:\n  karman message receive orders --group shipping --count 10 --tag 'new || urgent'

With -o json each message is one line: an object with body, or body_base64 when the body is not text.
Without a message the command says so on stderr and exits 0."
    )]
    Receive(ReceiveArgs),
    /// Look at stored messages, by id, key, time or place
    #[command(alias = "get", after_help = query::AFTER_HELP)]
    Query(query::QueryArgs),
    /// Look at what a group gets next, or at the last messages of a topic; nothing changes
    #[command(after_help = peek::AFTER_HELP)]
    Peek(peek::PeekArgs),
    /// Where a message is, who has it, and why it is not delivered
    #[command(after_help = why::AFTER_HELP)]
    Why(why::WhyArgs),
}

#[derive(Args, Debug)]
pub(crate) struct SendArgs {
    /// The topic
    topic: String,
    /// The text itself, @FILE for the content of a file, - for stdin
    #[arg(long, value_name = "TEXT|@FILE|-")]
    body: String,
    /// What consumers filter by
    #[arg(long)]
    tag: Option<String>,
    /// A name to find the message by; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A property of the application; may be repeated
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = name_and_value)]
    properties: Vec<(String, String)>,
    /// For FIFO topics: messages of one group come in the order of their sends
    #[arg(long, value_name = "GROUP")]
    message_group: Option<String>,
    /// For DELAY topics: how long it is kept back
    #[arg(long, value_name = "DURATION|LEVEL", value_parser = time::parse_delay)]
    delay: Option<Duration>,
    /// For PRIORITY topics: the highest is delivered first
    #[arg(long)]
    priority: Option<u32>,
    /// For LITE topics: the light queue it goes to
    #[arg(long, value_name = "NAME")]
    lite_topic: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ReceiveArgs {
    /// The topic
    topic: String,
    /// The consumer group; a new one begins with the oldest message
    #[arg(long)]
    group: String,
    /// Stop after so many messages
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Only messages with one of these tags: a, or 'a || b'
    #[arg(long, value_name = "EXPRESSION", default_value = "*")]
    tag: String,
    /// Leave the messages to the group; it gets them again after 30 s
    #[arg(long)]
    no_ack: bool,
    /// How long to wait for messages, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a property is written NAME=VALUE".to_owned()),
    }
}

pub(crate) async fn run(command: MessageCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        MessageCommand::Send(args) => send(args, node, format).await,
        MessageCommand::Receive(args) => receive(args, node, format).await,
        MessageCommand::Query(args) => query::run(args, node, format).await,
        MessageCommand::Peek(args) => peek::run(args, node, format).await,
        MessageCommand::Why(args) => why::run(args, node, format).await,
    }
}

#[derive(Serialize)]
struct SentJson {
    message_id: String,
    broker: String,
    offset: i64,
}

async fn send(args: SendArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let mut message = Message::new(args.topic, read_body(&args.body)?);
    if let Some(tag) = args.tag {
        message = message.tag(tag);
    }
    if let Some(group) = args.message_group {
        message = message.message_group(group);
    }
    if let Some(delay) = args.delay {
        message = message.deliver_after(delay);
    }
    if let Some(priority) = args.priority {
        message = message.priority(priority);
    }
    if let Some(name) = args.lite_topic {
        message = message.lite_topic(name);
    }
    message = args.keys.into_iter().fold(message, Message::key);
    message =
        args.properties.into_iter().fold(message, |message, (name, value)| message.property(name, value));

    let client = node.client().await?;
    let result = client.producer().send(message).await;
    client.close().await;
    let receipt = result?;
    let row = SentJson { message_id: receipt.message_id, broker: receipt.broker, offset: receipt.offset };
    if output::programs(format, &row, |row| [row.message_id.as_str()])? {
        return Ok(());
    }
    let cells = vec![row.message_id, row.broker, grouped(row.offset.unsigned_abs())];
    Ok(output::table(&[text("MESSAGE ID"), text("BROKER"), number("OFFSET")], vec![cells])?)
}

fn read_body(argument: &str) -> anyhow::Result<Vec<u8>> {
    if argument == "-" {
        let mut body = Vec::new();
        std::io::stdin()
            .lock()
            .take(BODY_READ_MAX_BYTES)
            .read_to_end(&mut body)
            .context("read the body from stdin")?;
        return Ok(body);
    }
    match argument.strip_prefix('@') {
        Some(file) => std::fs::read(file).with_context(|| format!("read the body from {file:?}")),
        None => Ok(argument.as_bytes().to_vec()),
    }
}

async fn receive(args: ReceiveArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let client = node.client().await?;
    let result = receive_with(&client, &args, format).await;
    client.close().await;
    if result? == 0 {
        eprintln!("karman: no message for group {} within {} s", args.group, args.wait);
    }
    Ok(())
}

/// Prints and acknowledges until there is enough or the time is up; the number of messages.
async fn receive_with(
    client: &karman_client::Client,
    args: &ReceiveArgs,
    format: Format,
) -> anyhow::Result<u32> {
    let subscription = (args.topic.as_str(), FilterExpression::tag(&args.tag));
    let mut consumer = client.simple_consumer(&args.group, [subscription])?;
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    let mut received = 0;
    while received < args.count {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        consumer = consumer.with_await_duration(left.min(Duration::from_secs(20)));
        let messages = consumer.receive((args.count - received).min(BATCH_MAX), INVISIBLE).await?;
        for message in &messages {
            print(message, format)?;
        }
        if !args.no_ack {
            // Printed first: what was shown twice can be told by its id, what was lost cannot.
            for result in consumer.ack_all(&messages).await {
                result?;
            }
        }
        received += u32::try_from(messages.len()).unwrap_or(u32::MAX);
    }
    Ok(received)
}

#[derive(Serialize)]
struct ReceivedJson<'a> {
    message_id: &'a str,
    topic: &'a str,
    broker: &'a str,
    queue: i32,
    offset: i64,
    attempt: i32,
    born_ms: Option<u128>,
    store_ms: Option<u128>,
    tag: Option<&'a str>,
    keys: &'a [String],
    properties: BTreeMap<&'a String, &'a String>,
    body: Option<&'a str>,
    body_base64: Option<String>,
}

fn print(message: &ReceivedMessage, format: Format) -> anyhow::Result<()> {
    let body = std::str::from_utf8(message.body()).ok();
    if format == Format::Table {
        output::line(&headline(message))?;
        let binary = || format!("({} bytes that are not text; -o json shows them)", message.body().len());
        return Ok(output::line(&body.map_or_else(binary, str::to_owned))?);
    }
    let millis = |time: Option<SystemTime>| Some(time?.duration_since(UNIX_EPOCH).ok()?.as_millis());
    let received = ReceivedJson {
        message_id: message.message_id(),
        topic: message.topic(),
        broker: message.broker(),
        queue: message.queue_id(),
        offset: message.queue_offset(),
        attempt: message.delivery_attempt(),
        born_ms: millis(message.born_time()),
        store_ms: millis(message.store_time()),
        tag: message.tag(),
        keys: message.keys(),
        properties: message.properties().iter().collect(),
        body,
        body_base64: body.is_none().then(|| BASE64_STANDARD.encode(message.body())),
    };
    output::one_of_many(format, &received, received.message_id).map(drop)
}

fn headline(message: &ReceivedMessage) -> String {
    let (broker, queue, offset) = (message.broker(), message.queue_id(), message.queue_offset());
    let mut line = format!("{} {broker} queue {queue} offset {offset}", message.message_id());
    if message.delivery_attempt() > 1 {
        line += &format!(" attempt {}", message.delivery_attempt());
    }
    if let Some(tag) = message.tag() {
        line += &format!(" tag {tag}");
    }
    if !message.keys().is_empty() {
        line += &format!(" keys {}", message.keys().join(","));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_have_a_name_and_may_hold_equals_signs() {
        assert_eq!(name_and_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(name_and_value("a="), Ok(("a".into(), String::new())));
        assert!(name_and_value("=b").is_err() && name_and_value("a").is_err());
    }

    #[test]
    fn a_body_is_text_or_the_content_of_a_file() {
        assert_eq!(read_body("a book").unwrap(), b"a book");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("body");
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(read_body(&format!("@{}", file.display())).unwrap(), b"\xff");
        assert!(format!("{:#}", read_body("@/does/not/exist").unwrap_err()).contains("/does/not/exist"));
    }
}
