//! `karman topic show`.

use std::time::Duration;

use karman_remoting::proto::karman as v1;
use serde::Serialize;

use super::{durability_word, type_word};
use crate::node::Node;
use crate::output::{self, Format, grouped, number, text};
use crate::quota;
use crate::time;

#[derive(Serialize)]
struct ShownJson {
    topic: String,
    r#type: String,
    durability: &'static str,
    /// None: as long as the broker's `fileReservedTime` says.
    reserved_hours: Option<u32>,
    /// None: as the brokers' durability says.
    dedup_window_minutes: Option<u32>,
    /// None: messages never grow too old.
    ttl_seconds: Option<u64>,
    /// None: a lite topic stays.
    lite_expiration_minutes: Option<u32>,
    /// On each broker. None: as many as come.
    max_messages_per_second: Option<u64>,
    max_bytes_per_second: Option<u64>,
    queues: Vec<QueueJson>,
}

#[derive(Serialize)]
struct QueueJson {
    broker: String,
    queue: u32,
    min_offset: u64,
    max_offset: u64,
    messages: u64,
    /// None: it holds no message.
    first_stored_ms: Option<u64>,
    last_stored_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_at: Option<u64>,
}

pub(super) async fn show(
    name: String,
    at_ms: Option<u64>,
    node: &Node,
    format: Format,
) -> anyhow::Result<()> {
    let request = node.request(v1::DescribeTopicRequest { name: name.clone(), at_ms });
    let response = node.answer(node.admin()?.describe_topic(request)).await?;
    let config = response.topics.into_iter().next().unwrap_or_default();
    let queues = response.queues.into_iter().map(|queue| QueueJson {
        messages: queue.max_offset.saturating_sub(queue.min_offset),
        broker: queue.broker_name,
        queue: queue.queue_id,
        min_offset: queue.min_offset,
        max_offset: queue.max_offset,
        first_stored_ms: Some(queue.first_stored_ms).filter(|at_ms| *at_ms > 0),
        last_stored_ms: Some(queue.last_stored_ms).filter(|at_ms| *at_ms > 0),
        offset_at: queue.offset_at,
    });
    let shown = ShownJson {
        topic: name,
        r#type: type_word(config.message_type()),
        durability: durability_word(config.durability()),
        reserved_hours: Some(config.reserved_hours).filter(|hours| *hours > 0),
        dedup_window_minutes: config.dedup_window_minutes,
        ttl_seconds: Some(config.ttl_seconds).filter(|seconds| *seconds > 0),
        lite_expiration_minutes: Some(config.lite_expiration_minutes).filter(|minutes| *minutes > 0),
        max_messages_per_second: quota::shown(config.messages_per_second),
        max_bytes_per_second: quota::shown(config.bytes_per_second),
        queues: queues.collect(),
    };
    if output::programs(format, &shown, |shown| [shown.topic.as_str()])? {
        return Ok(());
    }
    output::line(&headline(&shown))?;
    output::line("")?;
    let now_ms = time::now_ms();
    let cells = |row: QueueJson| {
        let numbers = [row.min_offset, row.max_offset, row.messages].map(grouped);
        let last = row.last_stored_ms.map(|at_ms| time::format_age(now_ms.saturating_sub(at_ms)));
        let last = last.unwrap_or_else(|| "-".to_owned());
        let offset_at = row.offset_at.map(grouped);
        [row.broker, row.queue.to_string()]
            .into_iter()
            .chain(numbers)
            .chain([last])
            .chain(offset_at)
            .collect()
    };
    let mut columns = vec![
        text("BROKER"),
        number("QUEUE"),
        number("MIN OFFSET"),
        number("MAX OFFSET"),
        number("MESSAGES"),
        number("LAST"),
    ];
    columns.extend(at_ms.map(|_| number("OFFSET AT")));
    Ok(output::table(&columns, shown.queues.into_iter().map(cells).collect())?)
}

/// The settings of a topic, in lines.
fn headline(topic: &ShownJson) -> String {
    let kept = match topic.reserved_hours {
        Some(hours) => format!("{hours} h"),
        None => "as long as the broker's fileReservedTime says".to_owned(),
    };
    let mut text = format!("{}: {}, durability {}, kept {kept}", topic.topic, topic.r#type, topic.durability);
    match topic.dedup_window_minutes {
        Some(0) => text += "\na message id is stored as often as it is sent",
        Some(minutes) => text += &format!("\na message id is stored once in {minutes} minutes"),
        None => {}
    }
    if let Some(seconds) = topic.ttl_seconds {
        text += &format!("\nnot delivered after {}", time::format_duration(Duration::from_secs(seconds)));
    }
    if let Some(minutes) = topic.lite_expiration_minutes {
        let expiration = Duration::from_secs(u64::from(minutes) * 60);
        text += &format!("\na lite topic without messages goes after {}", time::format_duration(expiration));
    }
    if let Some(rates) = quota::rates_in_words(topic.max_messages_per_second, topic.max_bytes_per_second) {
        text += &format!("\ntakes at most {rates} on each broker");
    }
    text
}
