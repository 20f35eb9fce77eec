//! `karman bench report`: the benches in turn, each in a process of its own, against a node started for the round.
//!
//! Machines have moods. What is to be compared is measured side by side, several times, and told as medians; a ratio is
//! the median of the ratios of each round. Each round has a fresh node, so that none inherits what another left.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use karman_remoting::proto::karman as v1;
use karman_remoting::secret::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::dev_node::{DevNode, Memory, directory};
use super::latency::LatencyFigures;
use super::{Figures, columns, disk, micros, rounded};
use crate::node::Node;
use crate::output::{self, Format, grouped};
use crate::signals::stop_on_signals;

const TOPIC: &str = "bench";
const LATENCY_TOPIC: &str = "latency";
const FIFO_TOPIC: &str = "ordered";
const MESSAGE_GROUPS: &str = "100000";
const BATCH: &str = "32";
const LARGE_BATCH: &str = "256";
/// Requests in flight on each connection with those: as many messages as with the others would be 64 MiB.
const LARGE_INFLIGHT: &str = "8";
/// Messages of a receive where batches are small.
const SMALL_BATCH: &str = "8";
/// What 64 requests of 32 messages of 1 KiB bring to the disk while one fdatasync takes its time.
const DISK_CHUNK_BYTES: usize = 64 * 32 * 1024;

#[derive(Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// How often each bench runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// How long each run is
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Where the node keeps its messages meanwhile, on the disk to be measured; a directory is made in it and removed
    #[arg(long, default_value = ".")]
    data: PathBuf,
}

/// All runs of one round.
struct Round {
    ceiling: Figures,
    produce: Figures,
    /// What `produce` sent.
    consume: Figures,
    ceiling_batch: Figures,
    produce_batch: Figures,
    /// What `produce_batch` brought to the disk: messages with their envelopes and record headers.
    log_mb_per_second: f64,
    disk_mb_per_second: f64,
    /// What `produce_batch` sent.
    consume_batch: Figures,
    ceiling_large: Figures,
    produce_large: Figures,
    produce_fifo: Figures,
    /// What `produce_fifo` sent.
    consume_fifo: Figures,
    latency: LatencyFigures,
    /// Of the node, before it did anything.
    idle: Memory,
    /// After all of it.
    used: Memory,
}

/// One row of the report: medians over the rounds.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    messages_per_second: Option<f64>,
    mb_per_second: f64,
    p50_us: Option<u64>,
    p99_us: Option<u64>,
    server_cpu_us_per_message: Option<f64>,
    /// Of a `produce` row: to the ceiling above it. Of the disk: the log's bytes of `produce, batch 32` to it. Of
    /// `consume`: to the `produce` above it. Of a fifo row: to its like without order.
    ratio: Option<f64>,
}

#[derive(Serialize)]
struct ReportJson {
    rounds: usize,
    seconds: u64,
    rows: Vec<Row>,
    send_p50_us: u64,
    send_p99_us: u64,
    send_p999_us: u64,
    receive_p50_us: u64,
    receive_p99_us: u64,
    idle_resident_mb: f64,
    peak_resident_mb: f64,
    used_anonymous_mb: f64,
}

pub(crate) async fn run(args: ReportArgs, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        match round(&args, &stop).await? {
            Some(round) => rounds.push(round),
            None => break,
        }
    }
    anyhow::ensure!(!rounds.is_empty(), "ended before the first round was over");
    let report = summary(&args, &rounds);
    if output::nameless(format, &report)? { Ok(()) } else { print(&report) }
}

/// One round; `None` when it was ended before it was complete.
async fn round(args: &ReportArgs, stop: &CancellationToken) -> anyhow::Result<Option<Round>> {
    let dir = directory(&args.data)?;
    let seconds = args.seconds.to_string();
    let ceiling: Figures = bench(&["ceiling", "--seconds", &seconds], None).await?;
    let topics = [TOPIC.to_owned(), LATENCY_TOPIC.to_owned(), format!("{FIFO_TOPIC}:fifo")];
    let node = DevNode::start(dir.path(), &topics).await?;
    let endpoint = Some(node.endpoint.as_str());
    let idle = node.memory()?;
    let produce: Figures = bench(&["produce", TOPIC, "--seconds", &seconds], endpoint).await?;
    let consume = bench(&["consume", TOPIC, "--batch", SMALL_BATCH, "--seconds", &seconds], endpoint).await?;
    let ceiling_batch: Figures = bench(&["ceiling", "--batch", BATCH, "--seconds", &seconds], None).await?;
    let log_before = log_end(&node.endpoint).await?;
    let produce_batch: Figures =
        bench(&["produce", TOPIC, "--batch", BATCH, "--seconds", &seconds], endpoint).await?;
    let log_bytes = log_end(&node.endpoint).await? - log_before;
    let log_mb_per_second = log_bytes as f64 / 1e6 / produce_batch.seconds;
    // Beside the run it is compared with, and in other files; nothing else has to happen on this thread meanwhile.
    let disk = disk::bytes_per_second(dir.path(), DISK_CHUNK_BYTES, Duration::from_secs(args.seconds));
    let disk_mb_per_second = disk.context("measure the disk")? / 1e6;
    let consume_batch = bench(&["consume", TOPIC, "--batch", BATCH, "--seconds", &seconds], endpoint).await?;
    let large = ["--batch", LARGE_BATCH, "--inflight", LARGE_INFLIGHT, "--seconds", &seconds];
    let ceiling_large: Figures = bench(&[&["ceiling"], &large[..]].concat(), None).await?;
    let produce_large: Figures = bench(&[&["produce", TOPIC], &large[..]].concat(), endpoint).await?;
    let ordered = ["--message-groups", MESSAGE_GROUPS];
    let produce_fifo: Figures = bench(
        &["produce", FIFO_TOPIC, ordered[0], ordered[1], "--batch", BATCH, "--seconds", &seconds],
        endpoint,
    )
    .await?;
    let consume_fifo =
        bench(&["consume", FIFO_TOPIC, "--batch", BATCH, "--seconds", &seconds], endpoint).await?;
    let latency: LatencyFigures =
        bench(&["latency", LATENCY_TOPIC, "--rate", "2000", "--seconds", &seconds], endpoint).await?;
    let used = node.memory()?;
    node.stop().await?;
    if stop.is_cancelled() {
        return Ok(None);
    }
    Ok(Some(Round {
        ceiling,
        produce,
        consume,
        ceiling_batch,
        produce_batch,
        log_mb_per_second,
        disk_mb_per_second,
        consume_batch,
        ceiling_large,
        produce_large,
        produce_fifo,
        consume_fifo,
        latency,
        idle,
        used,
    }))
}

/// Where the log of a node with one broker ends, in bytes.
async fn log_end(endpoint: &str) -> anyhow::Result<u64> {
    let node = Node::new(endpoint.to_owned(), Secret::default());
    let request = node.request(v1::DescribeClusterRequest {});
    let answer = node.answer(node.admin()?.describe_cluster(request)).await?;
    Ok(answer.brokers.first().context("the node has no broker")?.log_end_offset)
}

/// Runs `karman bench ARGUMENTS` in a process of its own; its progress goes to our stderr.
async fn bench<T: DeserializeOwned>(arguments: &[&str], endpoint: Option<&str>) -> anyhow::Result<T> {
    let what = arguments.join(" ");
    eprintln!("  {what}");
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command
        .args(["-o", "json", "bench"])
        .args(arguments)
        // The node is one of its own, which asks nobody: signatures would only cost.
        .env_remove("KARMAN_ACCESS_KEY")
        .kill_on_drop(true)
        .stderr(std::process::Stdio::inherit());
    if let Some(endpoint) = endpoint {
        command.args(["-e", endpoint]);
    }
    let output = command.output().await.with_context(|| format!("run karman bench {what}"))?;
    anyhow::ensure!(output.status.success(), "karman bench {what} failed: {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("read the figures of karman bench {what}"))
}

fn summary(args: &ReportArgs, rounds: &[Round]) -> ReportJson {
    let pick = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
    let row = |name, figures: &dyn Fn(&Round) -> &Figures, ratio: Option<&dyn Fn(&Round) -> f64>| Row {
        name,
        messages_per_second: Some(pick(&|round| figures(round).messages_per_second)),
        mb_per_second: pick(&|round| figures(round).mb_per_second),
        p50_us: Some(pick(&|round| figures(round).p50_us as f64) as u64),
        p99_us: Some(pick(&|round| figures(round).p99_us as f64) as u64),
        server_cpu_us_per_message: rounds
            .iter()
            .map(|round| figures(round).server_cpu_us_per_message)
            .collect::<Option<Vec<f64>>>()
            .map(median),
        ratio: ratio.map(|ratio| pick(ratio)),
    };
    let disk = Row {
        name: "disk, 2 MiB chunks",
        messages_per_second: None,
        mb_per_second: pick(&|round| round.disk_mb_per_second),
        p50_us: None,
        p99_us: None,
        server_cpu_us_per_message: None,
        ratio: Some(pick(&|round| round.log_mb_per_second / round.disk_mb_per_second)),
    };
    let unary = |round: &Round| round.produce.messages_per_second / round.ceiling.messages_per_second;
    let batch =
        |round: &Round| round.produce_batch.messages_per_second / round.ceiling_batch.messages_per_second;
    let large =
        |round: &Round| round.produce_large.messages_per_second / round.ceiling_large.messages_per_second;
    let rate = |figures: &Figures| figures.messages_per_second;
    let consume = |round: &Round| rate(&round.consume) / rate(&round.produce);
    let produce_fifo = |round: &Round| rate(&round.produce_fifo) / rate(&round.produce_batch);
    let consume_fifo = |round: &Round| rate(&round.consume_fifo) / rate(&round.consume_batch);
    let micros = |value: &dyn Fn(&LatencyFigures) -> u64| pick(&|round| value(&round.latency) as f64) as u64;
    let mb = |value: &dyn Fn(&Round) -> u64| rounded(pick(&|round| value(round) as f64 / 1e6));
    ReportJson {
        rounds: rounds.len(),
        seconds: args.seconds,
        rows: vec![
            row("ceiling", &|round| &round.ceiling, None),
            row("produce", &|round| &round.produce, Some(&unary)),
            row("consume, batch 8", &|round| &round.consume, Some(&consume)),
            row("ceiling, batch 32", &|round| &round.ceiling_batch, None),
            row("produce, batch 32", &|round| &round.produce_batch, Some(&batch)),
            disk,
            row("consume, batch 32", &|round| &round.consume_batch, None),
            row("ceiling, batch 256", &|round| &round.ceiling_large, None),
            row("produce, batch 256", &|round| &round.produce_large, Some(&large)),
            row("produce, fifo, batch 32", &|round| &round.produce_fifo, Some(&produce_fifo)),
            row("consume, fifo, batch 32", &|round| &round.consume_fifo, Some(&consume_fifo)),
        ],
        send_p50_us: micros(&|latency| latency.send.p50_us),
        send_p99_us: micros(&|latency| latency.send.p99_us),
        send_p999_us: micros(&|latency| latency.send.p999_us),
        receive_p50_us: micros(&|latency| latency.receive_p50_us),
        receive_p99_us: micros(&|latency| latency.receive_p99_us),
        idle_resident_mb: mb(&|round| round.idle.resident_bytes),
        peak_resident_mb: mb(&|round| round.used.peak_bytes),
        used_anonymous_mb: mb(&|round| round.used.anonymous_bytes),
    }
}

fn print(report: &ReportJson) -> anyhow::Result<()> {
    let none = || "-".to_owned();
    let cells = |row: &Row| {
        vec![
            row.name.to_owned(),
            row.messages_per_second.map_or_else(none, |rate| grouped(rate as u64)),
            format!("{:.1}", row.mb_per_second),
            row.p50_us.map_or_else(none, micros),
            row.p99_us.map_or_else(none, micros),
            row.server_cpu_us_per_message.map_or_else(none, |micros| format!("{micros:.2} us")),
            row.ratio.map_or_else(none, |ratio| format!("{ratio:.2}")),
        ]
    };
    let names = ["MSG/S", "MB/S", "P50", "P99", "CPU/MSG", "RATIO"];
    output::table(&columns("MEDIANS", names), report.rows.iter().map(cells).collect())?;
    output::line("")?;
    output::line(&format!(
        "at 2,000/s: send p50 {}, p99 {}, p99.9 {}; send to receive p50 {}, p99 {}",
        micros(report.send_p50_us),
        micros(report.send_p99_us),
        micros(report.send_p999_us),
        micros(report.receive_p50_us),
        micros(report.receive_p99_us)
    ))?;
    output::line(&format!(
        "memory: {:.0} MB idle, {:.0} MB at most with mapped files, {:.0} MB after it without",
        report.idle_resident_mb, report.peak_resident_mb, report.used_anonymous_mb
    ))?;
    output::line(&format!(
        "{} rounds of {} s; fifo: {MESSAGE_GROUPS} message groups. Ratios: of produce to its",
        report.rounds, report.seconds
    ))?;
    output::line("ceiling; of produce, batch 32, to the disk; of consume, batch 8, to produce; of")?;
    output::line("fifo to its like without order.")?;
    Ok(())
}

/// The middle of `values`, or the mean of the two in the middle; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 0 => rounded((values[half - 1] + values[half]) / 2.0),
        _ => rounded(values[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
    }
}
