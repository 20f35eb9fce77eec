//! `karman group show` and `karman group lag`.

use std::collections::BTreeMap;

use karman_remoting::proto::karman as v1;
use serde::Serialize;

use super::settings::{SettingsJson, described};
use crate::client::ClientJson;
use crate::node::Node;
use crate::output::{self, Format, grouped, number, text};
use crate::time;

/// Asks for a group, with its progress on one topic or on all.
pub(super) async fn describe(
    name: &str,
    topic: Option<String>,
    node: &Node,
) -> anyhow::Result<v1::DescribeGroupResponse> {
    let request = v1::DescribeGroupRequest { name: name.to_owned(), topic: topic.unwrap_or_default() };
    node.answer(node.admin()?.describe_group(node.request(request))).await
}

#[derive(Serialize)]
struct ShownJson {
    group: String,
    #[serde(flatten)]
    settings: SettingsJson,
    /// Whether the brokers have different settings; those of the first are shown.
    differing: bool,
    queues: Vec<QueueJson>,
    clients: Vec<ClientJson>,
    contradictions: Vec<String>,
}

#[derive(Serialize)]
struct QueueJson {
    topic: String,
    broker: String,
    queue: u32,
    /// None: not a queue of a lite topic.
    lite_topic: Option<String>,
    /// None: not the progress of one client.
    client: Option<String>,
    min_offset: u64,
    max_offset: u64,
    committed_offset: u64,
    ready: u64,
    inflight: u64,
    withheld: u64,
    /// None: nothing is ready.
    oldest_ready_ms: Option<u64>,
}

impl QueueJson {
    fn of(queue: v1::QueueProgressState) -> Self {
        Self {
            topic: queue.topic,
            broker: queue.broker_name,
            queue: queue.queue_id,
            lite_topic: Some(queue.lite_topic).filter(|name| !name.is_empty()),
            client: Some(queue.client_id).filter(|id| !id.is_empty()),
            min_offset: queue.min_offset,
            max_offset: queue.max_offset,
            committed_offset: queue.committed_offset,
            ready: queue.ready_count,
            inflight: queue.inflight_count,
            withheld: queue.withheld_count,
            oldest_ready_ms: Some(queue.oldest_ready_ms).filter(|at| *at > 0),
        }
    }

    /// The topic, and what else tells the queue from others of its number.
    fn title(&self) -> String {
        let more = self.lite_topic.iter().chain(&self.client);
        std::iter::once(&self.topic).chain(more).cloned().collect::<Vec<_>>().join(" ")
    }
}

pub(super) async fn show(
    name: String,
    topic: Option<String>,
    node: &Node,
    format: Format,
) -> anyhow::Result<()> {
    let response = describe(&name, topic, node).await?;
    if response.truncated {
        eprintln!("karman: a broker has more queues or clients of it than 10000 of each; name a --topic");
    }
    let mut configs = response.groups.into_iter();
    let config = configs.next().unwrap_or_default();
    let shown = ShownJson {
        group: name,
        settings: SettingsJson::of(&config),
        differing: configs.any(|other| other != config),
        queues: response.queues.into_iter().map(QueueJson::of).collect(),
        clients: response.clients.into_iter().map(ClientJson::of).collect(),
        contradictions: response.contradictions,
    };
    if output::programs(format, &shown, |shown| [shown.group.as_str()])? {
        return Ok(());
    }
    output::line(&shown.group)?;
    for (name, meaning) in described(&config) {
        output::paragraph(2, &format!("{name}: {meaning}"))?;
    }
    if shown.differing {
        eprintln!("karman: its settings differ between brokers; karman group update makes them one");
    }
    print_queues(&shown.queues)?;
    if !shown.clients.is_empty() {
        output::line("")?;
        ClientJson::table(shown.clients)?;
    }
    for contradiction in &shown.contradictions {
        output::line("")?;
        output::paragraph(0, &format!("contradiction: {contradiction}"))?;
    }
    Ok(())
}

fn print_queues(queues: &[QueueJson]) -> std::io::Result<()> {
    output::line("")?;
    if queues.is_empty() {
        return output::line("It has not read from any topic yet.");
    }
    let now_ms = time::now_ms();
    let cells = |row: &QueueJson| {
        let numbers =
            [row.committed_offset, row.max_offset, row.ready, row.inflight, row.withheld].map(grouped);
        let age = age(row.oldest_ready_ms, now_ms);
        let place = [row.title(), row.broker.clone(), row.queue.to_string()];
        place.into_iter().chain(numbers).chain([age]).collect()
    };
    let columns = [
        text("TOPIC"),
        text("BROKER"),
        number("QUEUE"),
        number("COMMITTED"),
        number("MAX"),
        number("READY"),
        number("IN FLIGHT"),
        number("WITHHELD"),
        number("AGE"),
    ];
    output::table(&columns, queues.iter().map(cells).collect())
}

fn age(oldest_ready_ms: Option<u64>, now_ms: u64) -> String {
    oldest_ready_ms.map_or_else(|| "-".to_owned(), |at_ms| time::format_age(now_ms.saturating_sub(at_ms)))
}

/// What waits for a group on a topic.
#[derive(Default, Serialize)]
struct LagJson {
    topic: String,
    ready: u64,
    inflight: u64,
    withheld: u64,
    /// None: nothing is ready.
    oldest_ready_ms: Option<u64>,
    queues: usize,
}

pub(super) async fn lag(
    name: String,
    topic: Option<String>,
    node: &Node,
    format: Format,
) -> anyhow::Result<()> {
    let response = describe(&name, topic, node).await?;
    let mut topics: BTreeMap<String, LagJson> = BTreeMap::new();
    for queue in response.queues.into_iter().map(QueueJson::of) {
        let row = topics.entry(queue.topic.clone()).or_default();
        row.topic = queue.topic;
        row.ready += queue.ready;
        row.inflight += queue.inflight;
        row.withheld += queue.withheld;
        row.oldest_ready_ms = row.oldest_ready_ms.into_iter().chain(queue.oldest_ready_ms).min();
        row.queues += 1;
    }
    let rows: Vec<LagJson> = topics.into_values().collect();
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.topic.as_str()))? {
        return Ok(());
    }
    if rows.is_empty() {
        eprintln!("karman: group {name} has not read from any topic yet");
    }
    let now_ms = time::now_ms();
    let cells = |row: LagJson| {
        let numbers = [row.ready, row.inflight, row.withheld].map(grouped);
        let queues = row.queues.to_string();
        let age = age(row.oldest_ready_ms, now_ms);
        [row.topic, queues].into_iter().chain(numbers).chain([age]).collect()
    };
    let columns = [
        text("TOPIC"),
        number("QUEUES"),
        number("READY"),
        number("IN FLIGHT"),
        number("WITHHELD"),
        number("AGE"),
    ];
    Ok(output::table(&columns, rows.into_iter().map(cells).collect())?)
}
