//! `karman message peek`: what a group gets next, or the last messages of a topic. Nothing changes.

use clap::Args;
use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;

use super::query::StoredJson;
use crate::node::Node;
use crate::output::Format;

pub(super) const AFTER_HELP: &str = "\
With --group: the messages that no client of the group has had yet, the first stored first. Its clients may see fewer of
them, by their filters. Without: the last stored messages. With -o json each message is one line, as of karman message
query. Without a message the command says so on stderr and exits 0.

Example:
  karman message peek orders
  karman message peek orders --group shipping --max 5";

#[derive(Args, Debug)]
pub(crate) struct PeekArgs {
    /// The topic
    topic: String,
    /// What this group gets next
    #[arg(long)]
    group: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(QUERY_MAX)))]
    max: u32,
}

/// Where to look: a queue of a broker, from an offset on.
struct Place {
    broker: String,
    queue_id: u32,
    offset: u64,
    count: u64,
}

pub(super) async fn run(args: PeekArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let max = u64::from(args.max);
    let places = match &args.group {
        Some(group) => next_of_group(&args.topic, group, node).await?,
        None => ends_of_topic(&args.topic, max, node).await?,
    };
    let mut messages: Vec<v1::StoredMessage> = Vec::new();
    for place in places.into_iter().filter(|place| place.count > 0) {
        let request = v1::QueryMessagesRequest {
            topic: args.topic.clone(),
            by: Some(By::Queue(v1::QueuePosition { queue_id: place.queue_id, offset: place.offset })),
            broker_name: place.broker,
            max: u32::try_from(place.count.min(max))?,
            ..Default::default()
        };
        messages.extend(node.answer(node.admin()?.query_messages(node.request(request))).await?.messages);
    }
    messages
        .sort_by_key(|message| (message.store_time_ms, message.broker_name.clone(), message.physical_offset));
    let count = messages.len().min(args.max as usize);
    let shown = if args.group.is_some() { 0..count } else { messages.len() - count..messages.len() };
    if shown.is_empty() {
        eprintln!("karman: no message waits there");
    }
    for message in messages.drain(shown) {
        StoredJson::of(message)?.print(format)?;
    }
    Ok(())
}

/// The first message of each queue that the group has not had.
async fn next_of_group(topic: &str, group: &str, node: &Node) -> anyhow::Result<Vec<Place>> {
    let request = v1::DescribeGroupRequest { name: group.to_owned(), topic: topic.to_owned() };
    let response = node.answer(node.admin()?.describe_group(node.request(request))).await?;
    let place = |queue: v1::QueueProgressState| Place {
        broker: queue.broker_name,
        queue_id: queue.queue_id,
        offset: queue.max_offset.saturating_sub(queue.ready_count),
        count: queue.ready_count,
    };
    Ok(response.queues.into_iter().map(place).collect())
}

/// The last messages of each queue.
async fn ends_of_topic(topic: &str, max: u64, node: &Node) -> anyhow::Result<Vec<Place>> {
    let request = v1::DescribeTopicRequest { name: topic.to_owned(), at_ms: None };
    let response = node.answer(node.admin()?.describe_topic(node.request(request))).await?;
    let place = |queue: v1::QueueState| {
        let offset = queue.max_offset.saturating_sub(max).max(queue.min_offset);
        let count = queue.max_offset - offset;
        Place { broker: queue.broker_name, queue_id: queue.queue_id, offset, count }
    };
    Ok(response.queues.into_iter().map(place).collect())
}
