//! `karman bench latency`: sends at a fixed rate, and consumers that say how long each message took to arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::consume::{Reader, Reads, Shared, introduce};
use super::load::{self, Load, connect};
use super::template::Run;
use super::{
    Figures, LoadArgs, columns, judge, masters_of, micros, new_histogram, server_cpu_micros, used_since,
};
use crate::node::{Caller, Node, TopicBroker};
use crate::output::{self, Format, grouped};
use crate::signals::stop_on_signals;

/// Readers of each broker: enough that one is always waiting.
const READERS: usize = 4;
/// For messages of the run that have not arrived when the last was sent.
const STRAGGLERS: Duration = Duration::from_secs(5);
/// Older messages of the topic are read away first; this long without one means that there is none.
const DRAINED: Duration = Duration::from_millis(1500);
const DRAIN_MAX: Duration = Duration::from_secs(60);

#[derive(Args, Clone, Debug)]
pub(crate) struct LatencyArgs {
    /// An existing topic, best one of its own: what other groups send to it is read away before the run
    topic: String,
    /// Messages per second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// The consumer group
    #[arg(long, default_value = "bench-latency")]
    group: String,
    /// Bytes in a body; the first 16 tell the run and the time
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    size: u32,
    /// Connections that send
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Sends waiting for their answers, on each connection; when so many do, the schedule goes on without them
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    inflight: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

/// The figures of the sends, and of the way to the consumer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct LatencyFigures {
    #[serde(flatten)]
    pub(crate) send: Figures,
    pub(crate) received: u64,
    pub(crate) receive_p50_us: u64,
    pub(crate) receive_p99_us: u64,
    pub(crate) receive_p999_us: u64,
    pub(crate) receive_max_us: u64,
}

pub(crate) async fn run(args: LatencyArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let brokers = masters_of(&args.topic, node).await?;
    let targets = brokers.iter().map(|broker| broker.address.clone()).collect();
    let stop = stop_on_signals();
    let run = Run::new();
    let arrivals = Arrivals::start(&args, brokers, node.caller("consumer"), run)?;
    arrivals.drain(&stop).await;

    let before = server_cpu_micros(node).await;
    let load_args = LoadArgs {
        size: args.size,
        connections: args.connections,
        inflight: args.inflight,
        batch: 1,
        message_groups: 0,
        rate: args.rate,
        seconds: args.seconds,
    };
    let load = Load { targets, topic: args.topic, args: load_args, run, caller: node.caller("load") };
    let outcome = load::run(load, &stop).await?;
    arrivals.wait_for(outcome.messages, STRAGGLERS).await;
    let cpu = used_since(before, server_cpu_micros(node).await);
    let latency = arrivals.finish().await?;
    judge(&outcome)?;
    let quantile = |q| latency.value_at_quantile(q);
    let figures = LatencyFigures {
        send: Figures::of(&outcome, cpu),
        received: latency.len(),
        receive_p50_us: quantile(0.5),
        receive_p99_us: quantile(0.99),
        receive_p999_us: quantile(0.999),
        receive_max_us: latency.max(),
    };
    print(&figures, format)
}

fn print(figures: &LatencyFigures, format: Format) -> anyhow::Result<()> {
    if output::nameless(format, figures)? {
        return Ok(());
    }
    let send = &figures.send;
    let row = |name: &str, count, latencies: [u64; 4]| {
        [name.to_owned(), grouped(count)].into_iter().chain(latencies.map(micros)).collect()
    };
    let rows = vec![
        row("send", send.messages, [send.p50_us, send.p99_us, send.p999_us, send.max_us]),
        row(
            "send to receive",
            figures.received,
            [figures.receive_p50_us, figures.receive_p99_us, figures.receive_p999_us, figures.receive_max_us],
        ),
    ];
    output::table(&columns("", ["MESSAGES", "P50", "P99", "P99.9", "MAX"]), rows)?;
    let cpu = send.server_cpu_us_per_message.map_or("unknown".to_owned(), |micros| format!("{micros:.2} us"));
    output::line(&format!("server CPU {cpu} per message, {} errors", grouped(send.errors)))?;
    Ok(())
}

/// Consumers on a thread of their own.
struct Arrivals {
    stop: CancellationToken,
    counted: Arc<Counted>,
    ended: oneshot::Receiver<anyhow::Result<()>>,
}

struct Counted {
    shared: Arc<Shared>,
    run: Run,
    /// From the schedule to the arrival, of messages of this run. Microseconds.
    latency: Mutex<Histogram<u64>>,
}

impl Arrivals {
    fn start(
        args: &LatencyArgs,
        brokers: Vec<TopicBroker>,
        caller: Caller,
        run: Run,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let counted =
            Arc::new(Counted { shared: Arc::new(Shared::new()), run, latency: Mutex::new(new_histogram()) });
        let (done, ended) = oneshot::channel();
        let (args, ending, counting) = (args.clone(), stop.clone(), counted.clone());
        let body = move || {
            // Nobody waits for it any more when the command was ended.
            let _ = done.send(consume(&args, &brokers, &caller, &ending, &counting));
        };
        std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(body)
            .context("start the consumers' thread")?;
        Ok(Self { stop, counted, ended })
    }

    /// Until nothing arrives any more: what lay in the topic before would delay the first messages of the run.
    async fn drain(&self, stop: &CancellationToken) {
        let deadline = Instant::now() + DRAIN_MAX;
        loop {
            let before = self.counted.shared.acknowledged();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(DRAINED) => {}
            }
            let drained = self.counted.shared.acknowledged() - before;
            if drained == 0 || Instant::now() >= deadline {
                return;
            }
            eprintln!("      {} older messages read away", grouped(drained));
        }
    }

    async fn wait_for(&self, messages: u64, time: Duration) {
        let deadline = Instant::now() + time;
        while self.counted.latency.lock().len() < messages && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn finish(self) -> anyhow::Result<Histogram<u64>> {
        self.stop.cancel();
        self.ended.await.context("the consumers' thread panicked")??;
        let outcome = self.counted.shared.outcome(Duration::ZERO);
        if let Some(error) = outcome.first_error {
            eprintln!("karman: {} receives failed; the first: {error}", outcome.errors);
        }
        Ok(self.counted.latency.lock().clone())
    }
}

fn consume(
    args: &LatencyArgs,
    brokers: &[TopicBroker],
    caller: &Caller,
    stop: &CancellationToken,
    counted: &Arc<Counted>,
) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let tasks = TaskTracker::new();
        let mut introduced = Vec::new();
        for broker in brokers {
            let mut service = connect(&broker.address).await?;
            introduced.push(introduce(&mut service, caller, &args.group).await?);
            for _ in 0..READERS {
                let reads = Reads { caller, topic: &args.topic, group: &args.group, batch: 32 };
                let reader = Reader::new(service.clone(), broker, &reads, &counted.shared);
                let counted = counted.clone();
                tasks.spawn(reader.read(stop.clone(), move |body, now| counted.arrived(body, now)));
            }
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    })
}

impl Counted {
    fn arrived(&self, body: &[u8], now: Instant) {
        if let Some(sent) = self.run.sent_at(body) {
            let micros = u64::try_from(now.saturating_duration_since(sent).as_micros()).unwrap_or(u64::MAX);
            self.latency.lock().saturating_record(micros);
        }
    }
}
