//! `karman bench queues`: very many queues on one broker. How long they take to be made, what they hold of memory, and how
//! long a start after `kill -9` takes until a message is accepted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::secret::Secret;
use serde::Serialize;

use super::dev_node::{DevNode, directory};
use super::rounded;
use super::scale::fill;
use crate::node::Node;
use crate::output::{self, Format, grouped, number};
use crate::signals::stop_on_signals;

/// Of each topic.
const QUEUES: u32 = 1_000;
const PROGRESS_EVERY: u32 = 100;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_EVERY: Duration = Duration::from_millis(1);

#[derive(Args, Clone, Debug)]
pub(crate) struct QueuesArgs {
    /// Topics of 1,000 queues
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    topics: u32,
    /// Messages in each queue; 0: the queues are only made
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=100))]
    messages: u64,
    /// Where the node keeps its messages meanwhile; a directory is made in it and removed
    #[arg(long, default_value = ".")]
    data: PathBuf,
}

#[derive(Serialize)]
struct QueuesFigures {
    queues: u64,
    create_seconds: f64,
    /// With messages in them.
    resident_mb: f64,
    anonymous_mb: f64,
    /// From the start of the process after `kill -9` to the answer to a send.
    restart_ms: u64,
    /// Right after that.
    restarted_resident_mb: f64,
}

pub(crate) async fn run(args: QueuesArgs, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    tokio::select! {
        () = stop.cancelled() => anyhow::bail!("ended before it was over"),
        figures = measure(&args) => print(&figures?, format),
    }
}

async fn measure(args: &QueuesArgs) -> anyhow::Result<QueuesFigures> {
    let dir = directory(&args.data)?;
    let dev = DevNode::start(dir.path(), &[]).await?;
    let node = Node::new(dev.endpoint.clone(), Secret::default());
    let topics: Vec<String> = (0..args.topics).map(|number| format!("bench-{number}")).collect();
    let queues = u64::from(args.topics) * u64::from(QUEUES);
    let began = Instant::now();
    for (made, topic) in (0u32..).zip(&topics) {
        if made % PROGRESS_EVERY == 0 {
            eprintln!("  {} of {} queues", grouped(u64::from(made * QUEUES)), grouped(queues));
        }
        create(&node, topic).await?;
    }
    let create_seconds = rounded(began.elapsed().as_secs_f64());
    if args.messages > 0 {
        eprintln!("  {} messages", grouped(queues * args.messages));
        fill(node.address(), &topics, queues * args.messages).await?;
    }
    let memory = dev.memory()?;
    dev.kill().await?;
    let began = Instant::now();
    let dev = DevNode::start(dir.path(), &[]).await?;
    accepted(dev.endpoint.clone(), &topics[..1]).await?;
    let restart_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let restarted = dev.memory()?;
    dev.stop().await?;
    let mb = |bytes: u64| rounded(bytes as f64 / 1e6);
    Ok(QueuesFigures {
        queues,
        create_seconds,
        resident_mb: mb(memory.resident_bytes),
        anonymous_mb: mb(memory.anonymous_bytes),
        restart_ms,
        restarted_resident_mb: mb(restarted.resident_bytes),
    })
}

async fn create(node: &Node, topic: &str) -> anyhow::Result<()> {
    let topic = v1::TopicConfig {
        name: topic.to_owned(),
        message_type: v2::MessageType::Normal.into(),
        queue_nums: QUEUES,
        ..Default::default()
    };
    let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: false };
    node.answer(node.admin()?.create_topic(node.request(request))).await.map(drop)
}

/// Until a message is.
async fn accepted(endpoint: String, topics: &[String]) -> anyhow::Result<()> {
    let sent = async {
        while fill(&endpoint, topics, 1).await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    tokio::time::timeout(START_TIMEOUT, sent).await.context("the node took no message after its start")
}

fn print(figures: &QueuesFigures, format: Format) -> anyhow::Result<()> {
    if output::nameless(format, figures)? {
        return Ok(());
    }
    let row = vec![
        grouped(figures.queues),
        format!("{:.1} s", figures.create_seconds),
        format!("{:.0} MB", figures.resident_mb),
        format!("{:.0} MB", figures.anonymous_mb),
        format!("{} ms", grouped(figures.restart_ms)),
        format!("{:.0} MB", figures.restarted_resident_mb),
    ];
    let names = ["QUEUES", "CREATE", "RSS", "ANONYMOUS", "RESTART", "RSS AFTER"];
    Ok(output::table(&names.map(number), vec![row])?)
}
