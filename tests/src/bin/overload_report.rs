//! `overload_report`: what a broker does with more than it can take. Sends at a fifth of its rate, then from thousands of connections as much
//! as they can, then at once as before; everything is on this machine, so the clients take half of it. The binaries are those
//! beside it, or in `KARMAN_BIN_DIR`. A release build should be used, and `ulimit -n` above three times the connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use karman_tests::Cluster;
use serde_json::Value;

/// After the overload has ended, before the rate is measured again.
const REST: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Overloads a broker and tells how it fares
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  overload_report --seconds 60 --connections 5000")]
struct Arguments {
    /// How long it is overloaded
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Connections that do it
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=15_000))]
    connections: u64,
    /// Requests that wait on each of them
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    inflight: u64,
    /// When a send is answered: memory or disk
    #[arg(long, default_value = "disk")]
    durability: String,
}

fn figure(figures: &Value, key: &str) -> anyhow::Result<f64> {
    figures[key].as_f64().with_context(|| format!("no {key} in {figures}"))
}

/// The resident memory of the broker, and the most there was while `work` ran.
fn most_memory<T>(cluster: &Cluster, work: impl FnOnce() -> T) -> (T, u64) {
    let (is_over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                most.fetch_max(cluster.brokers[0].resident_bytes(), Ordering::Relaxed);
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        (result, most.load(Ordering::Relaxed))
    })
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    cluster.karman(&["topic", "create", "t", "--durability", &arguments.durability]);
    let full = figure(&cluster.produce("t", 5, &[]), "messages_per_second")?;
    let fifth = format!("{:.0}", full / 5.0);
    let (normal, normal_bytes) = most_memory(&cluster, || cluster.produce("t", 10, &["--rate", &fifth]));
    let (connections, inflight) = (arguments.connections.to_string(), arguments.inflight.to_string());
    let load = ["--connections", &connections, "--inflight", &inflight];
    let (over, over_bytes) = most_memory(&cluster, || cluster.produce("t", arguments.seconds, &load));
    std::thread::sleep(REST);
    let after = cluster.produce("t", 5, &[]);
    println!("| | messages/s | of the rate before | refused | p99 | of that at a fifth | memory |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let p99 = figure(&normal, "p99_us")?;
    let rows = [
        ("a fifth of the rate", &normal, normal_bytes),
        ("overload", &over, over_bytes),
        ("2 s after it", &after, 0),
    ];
    for (name, figures, bytes) in rows {
        let (rate, own) = (figure(figures, "messages_per_second")?, figure(figures, "p99_us")?);
        let memory = if bytes == 0 { String::new() } else { format!("{} MB", bytes / 1_000_000) };
        println!(
            "| {name} | {rate:.0} | {:.2} | {} | {:.1} ms | {:.1} | {memory} |",
            rate / full,
            figure(figures, "errors")?,
            own / 1e3,
            own / p99,
        );
    }
    Ok(())
}
