//! `karman bench`: load, and what came of it.
//!
//! The load runs on threads of its own ([`load`]); the main thread counts, prints and waits for signals.

mod ceiling;
mod collect;
mod consume;
mod dev_node;
mod disk;
mod idle;
mod latency;
mod load;
mod produce;
mod queues;
mod report;
mod scale;
mod template;

use std::time::Duration;

use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use karman_remoting::proto::karman as v1;
use serde::{Deserialize, Serialize};

use crate::node::{Node, TopicBroker};
use crate::output::{self, Format, grouped, number, text};

const KEYS: &str = "\
With -o json: one object with messages, seconds, messages_per_second, mb_per_second (1,000,000 bytes of bodies),
p50_us, p99_us, p999_us, max_us, errors, server_cpu_us_per_message (null when the brokers do not say).
Ctrl-C ends early, with the figures so far.

Example:";

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Send as fast as the answers come, or at a fixed rate
    #[command(after_help = format!("{KEYS}\n  karman bench produce orders --inflight 64 --batch 32 --seconds 30"))]
    Produce {
        /// An existing topic
        topic: String,
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Send through the Rust SDK's collecting producer, each message made anew
    #[command(after_help = format!("{KEYS}\n  karman bench collect orders --linger-us 500 --seconds 30"))]
    Collect(collect::CollectArgs),
    /// Receive and acknowledge; the rate counts until the last message, the latency is that of receives that brought some
    #[command(after_help = format!("{KEYS}\n  karman bench consume orders --group bench"))]
    Consume(consume::ConsumeArgs),
    /// The same load against a server that stores nothing: what the RPC layer alone can do here
    #[command(after_help = format!("{KEYS}\n  karman bench ceiling --batch 32"))]
    Ceiling {
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Latency of sends, and from the send to the consumer, at a fixed rate
    #[command(after_help = format!("\
With -o json the usual keys tell of sends; received, receive_p50_us, receive_p99_us, receive_p999_us and receive_max_us
of the time from a send to its arrival at a consumer, on one clock.\n{KEYS}\n  karman bench latency orders --rate 2000"))]
    Latency(latency::LatencyArgs),
    /// Everything in turn, several times, against a node of its own: medians and ratios
    #[command(after_help = "Example:\n  karman bench report --rounds 5 --seconds 5")]
    Report(report::ReportArgs),
    /// What a delivered message costs the server with few and many queues, with little and much in flight
    #[command(after_help = "\
With -o json: one object with rounds, messages, and rows of name, server_cpu_us_per_message, ratio.\n\n\
Example:\n  karman bench scale --rounds 5")]
    Scale(scale::ScaleArgs),
    /// What consumers cost that wait and have nothing to receive
    #[command(after_help = "\
With -o json: consumers, seconds, cpu_percent (of one processor), bytes_per_consumer, errors. Each consumer has a
connection: ulimit -n must allow them.\n\n\
Example:\n  karman bench idle --consumers 5000 --seconds 60")]
    Idle(idle::IdleArgs),
    /// Very many queues on one broker: making them, their memory, a start after kill -9
    #[command(after_help = "\
With -o json: queues, create_seconds, resident_mb, anonymous_mb, restart_ms, restarted_resident_mb.\n\n\
Example:\n  karman bench queues --topics 1000")]
    Queues(queues::QueuesArgs),
    /// The server of `ceiling`: prints its address, ends with its stdin
    #[command(hide = true)]
    Echo,
}

/// The load, whatever it is sent to.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Bytes in a body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    size: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Requests waiting for their answers, on each connection
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    inflight: u32,
    /// Messages in a request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    batch: u32,
    /// Ordered messages of so many message groups in turn, for a topic of type fifo; 0: normal messages
    #[arg(long, default_value_t = 0)]
    message_groups: u32,
    /// Messages per second, sent on schedule whether or not answers come; latency then counts from the schedule.
    /// 0 sends as fast as answers come
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

/// What a run came to. These keys are a contract.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figures {
    messages: u64,
    seconds: f64,
    messages_per_second: f64,
    mb_per_second: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    errors: u64,
    server_cpu_us_per_message: Option<f64>,
}

/// What a run counted.
pub(crate) struct Outcome {
    pub(crate) messages: u64,
    pub(crate) body_bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Microseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Figures {
    pub(crate) fn of(outcome: &Outcome, server_cpu_micros: Option<u64>) -> Self {
        let seconds = outcome.elapsed.as_secs_f64();
        let quantile = |q| outcome.latency.value_at_quantile(q);
        let cpu = |micros| rounded(micros as f64 / outcome.messages as f64);
        Self {
            messages: outcome.messages,
            seconds: rounded(seconds),
            messages_per_second: rounded(outcome.messages as f64 / seconds),
            mb_per_second: rounded(outcome.body_bytes as f64 / 1e6 / seconds),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: outcome.latency.max(),
            errors: outcome.errors,
            server_cpu_us_per_message: server_cpu_micros.filter(|_| outcome.messages > 0).map(cpu),
        }
    }

    fn print(&self, format: Format) -> anyhow::Result<()> {
        if output::nameless(format, self)? {
            return Ok(());
        }
        output::line(&format!(
            "{} messages in {:.1} s, {} errors",
            grouped(self.messages),
            self.seconds,
            grouped(self.errors)
        ))?;
        let cpu =
            self.server_cpu_us_per_message.map_or("unknown".to_owned(), |micros| format!("{micros:.2} us"));
        let cells = vec![
            grouped(self.messages_per_second as u64),
            format!("{:.1}", self.mb_per_second),
            micros(self.p50_us),
            micros(self.p99_us),
            micros(self.p999_us),
            micros(self.max_us),
            cpu,
        ];
        let columns = ["MSG/S", "MB/S", "P50", "P99", "P99.9", "MAX", "SERVER CPU/MSG"].map(number);
        Ok(output::table(&columns, vec![cells])?)
    }
}

/// Three places are more than the figures are good for.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A latency for people.
fn micros(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} us"),
        10_000..10_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// The masters of a topic; the load connects to them without TLS.
async fn masters_of(topic: &str, node: &Node) -> anyhow::Result<Vec<TopicBroker>> {
    anyhow::ensure!(!node.is_tls(), "bench speaks plaintext only; give -e HOST:PORT without https://");
    node.masters_of(topic).await
}

/// One microsecond to one minute, three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid")
}

/// The CPU time all brokers have used, user and system; `None` when one of them does not say.
async fn server_cpu_micros(node: &Node) -> Option<u64> {
    let mut admin = node.admin().ok()?;
    let answer =
        node.answer(admin.describe_cluster(node.request(v1::DescribeClusterRequest {}))).await.ok()?;
    let micros: Vec<u64> = answer.brokers.iter().map(|broker| broker.cpu_micros).collect();
    (!micros.is_empty() && !micros.contains(&0)).then(|| micros.iter().sum())
}

fn used_since(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    after?.checked_sub(before?)
}

/// Says on stderr why there were errors, and fails when there was nothing else.
fn judge(outcome: &Outcome) -> anyhow::Result<()> {
    if let Some(error) = &outcome.first_error {
        anyhow::ensure!(outcome.messages > 0, "all {} requests failed; the first: {error}", outcome.errors);
        eprintln!("karman: {} requests failed; the first: {error}", outcome.errors);
    }
    Ok(())
}

pub(crate) async fn run(command: BenchCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        BenchCommand::Produce { topic, load } => produce::run(topic, load, node, format).await,
        BenchCommand::Collect(args) => collect::run(args, node, format).await,
        BenchCommand::Consume(args) => consume::run(args, node, format).await,
        BenchCommand::Ceiling { load } => ceiling::run(load, format).await,
        BenchCommand::Latency(args) => latency::run(args, node, format).await,
        BenchCommand::Report(args) => report::run(args, format).await,
        BenchCommand::Scale(args) => scale::run(args, format).await,
        BenchCommand::Idle(args) => idle::run(args, format).await,
        BenchCommand::Queues(args) => queues::run(args, format).await,
        BenchCommand::Echo => ceiling::echo().await,
    }
}

/// Columns of a table whose first says what the row is.
fn columns<const N: usize>(first: &'static str, numbers: [&'static str; N]) -> Vec<output::Column> {
    std::iter::once(text(first)).chain(numbers.map(number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_what_was_counted() {
        let mut latency = new_histogram();
        (1..=1000).for_each(|micros| latency.saturating_record(micros));
        let outcome = Outcome {
            messages: 1000,
            body_bytes: 1_000_000,
            elapsed: Duration::from_secs(2),
            errors: 0,
            first_error: None,
            latency,
        };
        let figures = Figures::of(&outcome, Some(25_000));
        assert_eq!((figures.messages_per_second, figures.mb_per_second), (500.0, 0.5));
        assert_eq!((figures.p50_us, figures.p99_us, figures.p999_us), (500, 990, 999));
        assert_eq!(figures.server_cpu_us_per_message, Some(25.0));
        let json = serde_json::to_value(figures).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        let contract = [
            "errors",
            "max_us",
            "mb_per_second",
            "messages",
            "messages_per_second",
            "p50_us",
            "p999_us",
            "p99_us",
            "seconds",
            "server_cpu_us_per_message",
        ];
        assert_eq!(keys, contract);
    }

    #[test]
    fn a_run_that_only_failed_is_a_failure() {
        let outcome = Outcome {
            messages: 0,
            body_bytes: 0,
            elapsed: Duration::from_secs(1),
            errors: 3,
            first_error: Some("no".into()),
            latency: new_histogram(),
        };
        assert!(judge(&outcome).unwrap_err().to_string().contains("no"));
    }
}
