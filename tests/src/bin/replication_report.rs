//! `replication_report`: what replicas cost. Sends of the classes `replicated` and `replicated_disk` to a master with one slave beside
//! `disk` on a broker alone, in turns; and how fast a new slave catches up, and what that costs its master. Everything is on this
//! machine; the binaries are those beside it, or in `KARMAN_BIN_DIR`. A release build should be used.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use karman_tests::files::segments;
use karman_tests::replicas::{listed, wait_whole};
use karman_tests::{Cluster, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(600);
/// The product's.
const SEGMENT: (&str, &str) = ("mappedFileSizeCommitLog", "1073741824");
const DISK: &str = "disk, one broker";

/// Compares sends with and without a slave, and measures how fast a new slave catches up
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  replication_report --rounds 5 --seconds 4")]
struct Arguments {
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// How long each is loaded
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How much a new slave has to copy
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    gib: u64,
}

/// One kind of sends: who is asked, and the figures of each round.
struct Row<'a> {
    name: &'static str,
    cluster: &'a Cluster,
    topic: &'static str,
    load: &'static [&'static str],
    rounds: Vec<Value>,
}

impl Row<'_> {
    /// The median of one figure.
    fn median(&self, key: &str) -> f64 {
        median(self.rounds.iter().map(|figures| figures[key].as_f64().unwrap_or(f64::NAN)))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Sends 1 KiB bodies, 4 connections with 64 requests under way unless `load` says otherwise.
fn produce(cluster: &Cluster, topic: &str, seconds: u64, load: &[&str]) -> anyhow::Result<Value> {
    let figures = cluster.produce(topic, seconds, load);
    anyhow::ensure!(figures["errors"] == 0, "sends to {topic} failed: {figures}");
    Ok(figures)
}

fn create(cluster: &Cluster, topic: &str, durability: &str) {
    cluster.karman(&["topic", "create", topic, "--durability", durability]);
}

fn sends(arguments: &Arguments) -> anyhow::Result<()> {
    let start = || Cluster::builder().namesrvs(1).brokers(1).set(SEGMENT.0, SEGMENT.1);
    let alone = start().start();
    let set = start().set("brokerRole", "SYNC_MASTER").start();
    // A slave has segments of its master's size, or does not follow.
    let mut slave = set.slave(1, &[&format!("{}={}", SEGMENT.0, SEGMENT.1)]);
    slave.start();
    wait_whole(&set, 1, DEADLINE);
    create(&alone, "disk", "disk");
    create(&set, "replicated", "replicated");
    create(&set, "replicated_disk", "replicated_disk");
    let loads: [(&str, &[&str]); 3] = [
        ("one message a request", &[]),
        ("batches of 32", &["--batch", "32"]),
        ("2,000 messages/s", &["--rate", "2000"]),
    ];
    println!("| 1 KiB | messages/s | to `disk` | p50 | p99 | p99 to `disk` | server CPU each |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (kind, load) in loads {
        let row = |name, cluster, topic| Row { name, cluster, topic, load, rounds: Vec::new() };
        let mut rows = [
            row(DISK, &alone, "disk"),
            row("`replicated`, one slave", &set, "replicated"),
            row("`replicated_disk`, one slave", &set, "replicated_disk"),
        ];
        for round in 0..arguments.rounds {
            for row in &mut rows {
                eprintln!("{kind}, {}: round {} of {}", row.name, round + 1, arguments.rounds);
                row.rounds.push(produce(row.cluster, row.topic, arguments.seconds, row.load)?);
                // What it has sent is not to be copied in the next one's time.
                wait_whole(&set, 1, DEADLINE);
            }
        }
        for row in &rows {
            let to_disk = |key| row.median(key) / rows[0].median(key);
            println!(
                "| {kind}: {} | {:.0} | {:.2} | {:.2} ms | {:.2} ms | {:.2} | {:.1} µs |",
                row.name,
                row.median("messages_per_second"),
                to_disk("messages_per_second"),
                row.median("p50_us") / 1e3,
                row.median("p99_us") / 1e3,
                to_disk("p99_us"),
                row.median("server_cpu_us_per_message"),
            );
        }
    }
    slave.stop();
    Ok(())
}

fn log_bytes(cluster: &Cluster) -> anyhow::Result<u64> {
    let logs = segments(&cluster.path().join("broker-a/store/commitlog"))?;
    // The last one is allocated ahead, and the one before is being written.
    Ok(logs.len().saturating_sub(2) as u64 * SEGMENT.1.parse::<u64>()?)
}

/// Bytes a second that the disk takes in writes of 2 MiB, each flushed, into a new file.
fn disk_rate(directory: &Path, bytes: u64) -> anyhow::Result<f64> {
    let block = vec![7; 2 << 20];
    let path = directory.join("rate");
    let (mut file, began) = (File::create(&path)?, Instant::now());
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(&block)?;
        file.sync_data()?;
    }
    let rate = bytes as f64 / began.elapsed().as_secs_f64();
    std::fs::remove_file(path).context("remove the file of the disk's rate")?;
    Ok(rate)
}

fn catch_up(arguments: &Arguments) -> anyhow::Result<()> {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).set(SEGMENT.0, SEGMENT.1).start();
    create(&cluster, "t", "disk");
    while log_bytes(&cluster)? < arguments.gib << 30 {
        eprintln!("filling: {} GiB of {}", log_bytes(&cluster)? >> 30, arguments.gib);
        produce(&cluster, "t", 5, &["--batch", "32"])?;
    }
    let bytes = log_bytes(&cluster)?;
    println!(
        "\n| a new slave copies {} GiB | MB/s | to the disk's rate | master's sends/s meanwhile |",
        bytes >> 30
    );
    println!("|---|---:|---:|---:|");
    // One after the other, with nothing else to do, and while the master takes all that it can, half of it, or little.
    let undisturbed = produce(&cluster, "t", 10, &[])?["messages_per_second"].as_f64().context("no rate")?;
    let half = format!("{:.0}", undisturbed / 2.0);
    let loads: [(&str, Option<&[&str]>); 4] = [
        ("nobody sends", None),
        ("2,000 messages/s are sent", Some(&["--rate", "2000"])),
        ("half of what the master can take is sent", Some(&["--rate", &half])),
        ("as much as it can take is sent", Some(&[])),
    ];
    for (id, (name, load)) in loads.into_iter().enumerate() {
        let rate = disk_rate(cluster.path(), 2 << 30)?;
        let mut slave = cluster.slave(id + 1, &[&format!("{}={}", SEGMENT.0, SEGMENT.1)]);
        let began = Instant::now();
        slave.start();
        let (took, sent) = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                // It counts once it has had all; with sends under way it is never without lag.
                until("the slave counts", DEADLINE, || (listed(&cluster)["in_sync"] == 2).then_some(()));
                began.elapsed()
            });
            let mut sent = Vec::new();
            while let Some(load) = load.filter(|_| !waiting.is_finished()) {
                sent.push(
                    produce(&cluster, "t", 5, load)?["messages_per_second"].as_f64().context("no rate")?,
                );
            }
            let took = waiting.join().map_err(|_| anyhow::anyhow!("the slave did not catch up"))?;
            anyhow::Ok((took, sent))
        })?;
        let copied = bytes as f64 / took.as_secs_f64();
        let meanwhile = match load {
            None => String::new(),
            Some(_) => format!("{:.0}, alone {undisturbed:.0}", median(sent.into_iter())),
        };
        println!("| {name} | {:.0} | {:.2} | {meanwhile} |", copied / 1e6, copied / rate);
        slave.stop();
        // Five of them would need as many times the space.
        std::fs::remove_dir_all(cluster.path().join(format!("broker-a-{}", id + 1)))?;
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    sends(&arguments)?;
    catch_up(&arguments)
}
