//! `mixed_load --out FILE`: the mixed load against brokers that are killed; see `docs/testing.md`. The binaries of the
//! brokers are those beside it, or in `KARMAN_BIN_DIR`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use karman_tests::mixed_load::{Options, run};

/// Loads two brokers with all kinds of messages, kills them in turn, and writes down what happened
#[derive(Debug, Parser)]
struct Arguments {
    /// The history is written here
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    messages: u64,
    /// How long messages are sent
    #[arg(long, default_value_t = 360, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Seconds from one kill to the next
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    kill_every: u64,
    /// Repeats a run; by default a new one
    #[arg(long)]
    seed: Option<u64>,
    /// Of a hundred messages: normal, FIFO, delayed, transactional, filtered, large
    #[arg(long, default_value = "40,20,15,10,10,5", value_parser = numbers::<6>)]
    shares: [u64; 6],
    /// Size of large bodies: from, to
    #[arg(long, default_value = "262144,1048576", value_parser = numbers::<2>)]
    large_bytes: [u64; 2],
    /// How far ahead the time of delayed messages lies: from, to
    #[arg(long, default_value = "1000,60000", value_parser = numbers::<2>)]
    delay_ms: [u64; 2],
    /// So many times one bit of the log of a killed broker is flipped
    #[arg(long, default_value_t = 0)]
    flips: u64,
}

/// So many whole numbers with commas between them.
fn numbers<const COUNT: usize>(text: &str) -> Result<[u64; COUNT], String> {
    let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    let numbers = numbers.map_err(|error| format!("{text:?} is no list of whole numbers: {error}"))?;
    numbers.try_into().map_err(|_| format!("{text:?} is not {COUNT} numbers with commas between them"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let pair = |[from, to]: [u64; 2]| (from, to.max(from));
    let options = Options {
        messages: arguments.messages,
        seconds: arguments.seconds,
        kill_every_seconds: arguments.kill_every,
        seed: arguments.seed.unwrap_or_else(karman_tests::seed),
        shares: arguments.shares,
        large_bytes: pair(arguments.large_bytes),
        delay_ms: pair(arguments.delay_ms),
        flips: arguments.flips,
    };
    let summary = run(options, &arguments.out);
    println!("{summary:?}");
    if summary.drained { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
