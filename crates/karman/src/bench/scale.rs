//! `karman bench scale`: whether a delivered message costs the server the same with one queue and with 100,000, with
//! nothing in flight and with 100,000 messages.
//!
//! Each row has a node of its own, filled with messages one a request, so that they lie in all queues in turns; then as
//! many readers, wherever the messages lie, receive and acknowledge them. Processor time is that of the whole node while
//! they do.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use karman_remoting::proto::v2;
use karman_remoting::secret::Secret;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::consume::{Reader, Reads, Shared};
use super::dev_node::{DevNode, directory};
use super::load::{connect, refusal};
use super::report::median;
use super::template::{Run, Template};
use super::{columns, server_cpu_micros, used_since};
use crate::node::{Caller, Node, TopicBroker};
use crate::output::{self, Format, grouped};
use crate::signals::stop_on_signals;

const GROUP: &str = "bench";
const BODY_BYTES: usize = 1024;
const SENDERS: usize = 256;
/// One for each topic where there are most.
const READERS: usize = 100;
const CONNECTIONS: usize = 4;
const BATCH: u32 = 32;
/// Longer than any row takes.
const HELD_FOR: Duration = Duration::from_secs(3600);
const ROW_TIMEOUT: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct ScaleArgs {
    /// How often each row is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Messages received and acknowledged for each row
    #[arg(long, default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    messages: u64,
    /// Where the nodes keep their messages meanwhile; a directory is made in it and removed
    #[arg(long, default_value = ".")]
    data: PathBuf,
}

/// What is measured: so many topics of so many queues each, with so many messages in flight all the time.
struct Case {
    name: &'static str,
    topics: usize,
    queues: u32,
    held: u64,
}

/// The first is what the others are compared with.
const CASES: [Case; 7] = [
    Case { name: "1 queue", topics: 1, queues: 1, held: 0 },
    Case { name: "8 queues", topics: 1, queues: 8, held: 0 },
    Case { name: "8 queues, 1,000 in flight", topics: 1, queues: 8, held: 1_000 },
    Case { name: "8 queues, 100,000 in flight", topics: 1, queues: 8, held: 100_000 },
    Case { name: "1,000 queues", topics: 1, queues: 1_000, held: 0 },
    Case { name: "100 queues of 100 topics", topics: 100, queues: 1, held: 0 },
    Case { name: "100,000 queues of 100 topics", topics: 100, queues: 1_000, held: 0 },
];

#[derive(Serialize)]
struct Row {
    name: &'static str,
    server_cpu_us_per_message: f64,
    /// To the first row of the same round.
    ratio: f64,
}

#[derive(Serialize)]
struct ScaleJson {
    rounds: usize,
    messages: u64,
    rows: Vec<Row>,
}

pub(crate) async fn run(args: ScaleArgs, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        let mut round = Vec::new();
        for case in &CASES {
            let cost = tokio::select! {
                cost = measure(case, &args) => cost.with_context(|| case.name)?,
                () = stop.cancelled() => break,
            };
            eprintln!("  {:<30} {cost:.2} us", case.name);
            round.push(cost);
        }
        if round.len() < CASES.len() {
            break;
        }
        rounds.push(round);
    }
    anyhow::ensure!(!rounds.is_empty(), "ended before the first round was over");
    let row = |(index, case): (usize, &Case)| Row {
        name: case.name,
        server_cpu_us_per_message: median(rounds.iter().map(|round| round[index]).collect()),
        ratio: median(rounds.iter().map(|round| round[index] / round[0]).collect()),
    };
    let rows = CASES.iter().enumerate().map(row).collect();
    let report = ScaleJson { rounds: rounds.len(), messages: args.messages, rows };
    if output::nameless(format, &report)? { Ok(()) } else { print(&report) }
}

fn print(report: &ScaleJson) -> anyhow::Result<()> {
    let cells = |row: &Row| {
        vec![
            row.name.to_owned(),
            format!("{:.2} us", row.server_cpu_us_per_message),
            format!("{:.2}", row.ratio),
        ]
    };
    output::table(&columns("MEDIANS", ["CPU/MSG", "RATIO"]), report.rows.iter().map(cells).collect())?;
    output::line(&format!("{} rounds of {} messages each", report.rounds, grouped(report.messages)))?;
    Ok(())
}

/// Microseconds of the server's processors for each message that is received and acknowledged.
async fn measure(case: &Case, args: &ScaleArgs) -> anyhow::Result<f64> {
    // At least one of each topic: what the first receive of a group costs once is no message's.
    let held = case.held.max(1);
    let dir = directory(&args.data)?;
    let topics: Vec<String> = (0..case.topics).map(|number| format!("bench-{number}")).collect();
    let made: Vec<String> = topics.iter().map(|topic| format!("{topic}:normal:{}", case.queues)).collect();
    let dev = DevNode::start(dir.path(), &made).await?;
    let node = Node::new(dev.endpoint.clone(), Secret::default());
    let mut places = Vec::new();
    for topic in &topics {
        places.push(node.masters_of(topic).await?.swap_remove(0));
    }
    fill(&places[0].address, &topics, args.messages + held * case.topics as u64).await?;
    let (shared, caller) = (Arc::new(Shared::new()), Caller::nobody("consumer"));
    for (place, topic) in places.iter().zip(&topics) {
        let service = connect(&place.address).await?;
        let reads = Reads { caller: &caller, topic, group: GROUP, batch: BATCH };
        let holder = Reader::new(service, place, &reads, &shared);
        holder.hold(held, HELD_FOR).await.map_err(anyhow::Error::msg)?;
    }
    let before = server_cpu_micros(&node).await;
    let reading = read(&places, &topics, args.messages, &shared);
    tokio::time::timeout(ROW_TIMEOUT, reading).await.context("not all messages came in time")??;
    let used = used_since(before, server_cpu_micros(&node).await);
    dev.stop().await?;
    Ok(used.context("the node does not say what it uses")? as f64 / args.messages as f64)
}

/// Sends `count` messages, one a request, to the topics in turns.
pub(super) async fn fill(address: &str, topics: &[String], count: u64) -> anyhow::Result<()> {
    let template = |topic: &String| Template::new(topic, BODY_BYTES, 0, Run::new());
    let templates: Arc<Vec<Template>> = Arc::new(topics.iter().map(template).collect());
    let (next, caller) = (Arc::new(AtomicU64::new(0)), Caller::nobody("producer"));
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let service = connect(address).await?;
        for _ in 0..SENDERS / CONNECTIONS {
            let (mut service, caller) = (service.clone(), caller.clone());
            let (templates, next) = (templates.clone(), next.clone());
            senders.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return anyhow::Ok(());
                    }
                    let template = &templates[index as usize % templates.len()];
                    let messages = template.messages(index, 1, Instant::now());
                    let request = caller.request(v2::SendMessageRequest { messages });
                    let answer = service.send_message(request).await?;
                    refusal(answer.get_ref()).map_or(Ok(()), |why| Err(anyhow::Error::msg(why)))?;
                }
            });
        }
    }
    while let Some(ended) = senders.join_next().await {
        ended.context("a sender panicked")??;
    }
    Ok(())
}

/// Receives and acknowledges `count` messages; each reader has one topic.
async fn read(
    places: &[TopicBroker],
    topics: &[String],
    count: u64,
    shared: &Arc<Shared>,
) -> anyhow::Result<()> {
    let (mut services, caller) = (Vec::new(), Caller::nobody("consumer"));
    for _ in 0..CONNECTIONS {
        services.push(connect(&places[0].address).await?);
    }
    let (stop, readers) = (CancellationToken::new(), TaskTracker::new());
    let _stopped = stop.clone().drop_guard();
    for index in 0..READERS {
        let (place, topic) = (&places[index % places.len()], &topics[index % topics.len()]);
        let service = services[index % CONNECTIONS].clone();
        let reads = Reads { caller: &caller, topic, group: GROUP, batch: BATCH };
        let reader = Reader::new(service, place, &reads, shared);
        readers.spawn(reader.read(stop.clone(), |_, _| {}));
    }
    while shared.acknowledged() < count {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
