//! `karman bench collect`: what the Rust SDK's collecting producer sends.
//!
//! Unlike the other loads it makes each message anew, as an application does: what is measured is the SDK with the server.
//! Each thread has a client of its own on a runtime of its own; the main thread counts and prints.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use karman_client::{BatchingOptions, Delivery, Message};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::load::{Counters, progress};
use super::{Figures, judge, new_histogram, server_cpu_micros, used_since};
use crate::node::Node;
use crate::output::Format;
use crate::signals::stop_on_signals;

#[derive(Args, Clone, Debug)]
pub(crate) struct CollectArgs {
    /// An existing topic of type normal
    topic: String,
    /// Bytes in a body
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    size: u32,
    /// How long a message waits for others, in microseconds
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(0..=60_000_000))]
    linger_us: u64,
    /// Messages in a request
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    batch: u32,
    /// Requests waiting for their answers, of each thread
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    requests: u32,
    /// Messages without an answer, of each thread
    #[arg(long, default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    inflight: u32,
    /// Threads, each with a client
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

pub(crate) async fn run(args: CollectArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    let ended = stop.child_token();
    let _ended_on_drop = ended.clone().drop_guard();
    let before = server_cpu_micros(node).await;
    let counters = Arc::new(Counters::default());
    let mut results = Vec::new();
    let begin = Instant::now();
    for number in 0..args.threads {
        let (done, result) = oneshot::channel();
        let (node, args, counters, ended) = (node.clone(), args.clone(), counters.clone(), ended.clone());
        let body = move || {
            // Nobody waits for it any more when the command was ended.
            let _ = done.send(on_a_runtime(send(node, args, counters, ended)));
        };
        thread::Builder::new().name(format!("collect-{number}")).spawn(body).context("start a thread")?;
        results.push(result);
    }
    let mut latency = new_histogram();
    let threads = async {
        for result in results {
            latency.add(result.await.context("a thread panicked")??)?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = threads => result?,
        () = progress(&counters, args.size.into()) => {}
    }
    let outcome = counters.outcome(args.size.into(), begin.elapsed(), latency);
    let cpu = used_since(before, server_cpu_micros(node).await);
    judge(&outcome)?;
    Figures::of(&outcome, cpu).print(format)
}

fn on_a_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// One thread's part; how long each message took from being enqueued to its receipt.
async fn send(
    node: Node,
    args: CollectArgs,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> anyhow::Result<Histogram<u64>> {
    let client = node.client().await?;
    let options = BatchingOptions::default()
        .linger(Duration::from_micros(args.linger_us))
        .messages_max(args.batch as usize)
        .requests_max(args.requests as usize);
    let producer = client.producer().batching(&options);
    let body = Bytes::from(vec![b'x'; args.size as usize]);
    let mut latency = new_histogram();
    let mut under_way: VecDeque<(Instant, Delivery)> = VecDeque::with_capacity(args.inflight as usize);
    let end = Instant::now() + Duration::from_secs(args.seconds);
    while !stop.is_cancelled() && Instant::now() < end {
        if under_way.len() == args.inflight as usize
            && let Some(first) = under_way.pop_front()
        {
            settle(first, &counters, &mut latency).await;
        }
        let enqueued = producer.enqueue(Message::new(args.topic.as_str(), body.clone())).await;
        match enqueued {
            Ok(delivery) => under_way.push_back((Instant::now(), delivery)),
            Err(error) => failed(&counters, &error.to_string()),
        }
    }
    producer.flush().await;
    for one in under_way {
        settle(one, &counters, &mut latency).await;
    }
    client.close().await;
    Ok(latency)
}

async fn settle((since, delivery): (Instant, Delivery), counters: &Counters, latency: &mut Histogram<u64>) {
    match delivery.await {
        Ok(_) => {
            counters.messages.fetch_add(1, Ordering::Relaxed);
            latency.saturating_record(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        Err(error) => failed(counters, &error.to_string()),
    }
}

fn failed(counters: &Counters, error: &str) {
    counters.errors.fetch_add(1, Ordering::Relaxed);
    counters.first_error.lock().get_or_insert_with(|| error.to_owned());
}
