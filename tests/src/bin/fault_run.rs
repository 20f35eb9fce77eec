//! `fault_run --out DIRECTORY`: the fault run; see `docs/reliability.md`. The binaries of the servers, and `karman`, are those
//! beside it, or in `KARMAN_BIN_DIR`. Needs root.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use karman_tests::faults::{Kind, Options, run};

/// Does one fault after the other to a cluster under load, and judges what came of it
#[derive(Debug, Parser)]
struct Arguments {
    /// History, logs and report are written to this directory
    #[arg(long)]
    out: PathBuf,
    /// How long messages are sent and faults are done
    #[arg(long, default_value_t = 2700, value_parser = clap::value_parser!(u64).range(20..=86_400))]
    seconds: u64,
    /// Messages a second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    rate: u64,
    /// Seconds from one fault to the next
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Repeats the schedule of a run; by default a new one
    #[arg(long)]
    seed: Option<u64>,
    /// Only these kinds, as F1,F2; by default all
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { out, seconds, rate, every, seed, kinds } = Arguments::parse();
    let seed = seed.unwrap_or_else(karman_tests::seed);
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let asked = stop.clone();
    runtime.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        eprintln!("stops: everything is healed and removed first");
        asked.store(true, Ordering::Relaxed);
    });
    let summary = run(&Options { seconds, rate, every_seconds: every, seed, kinds }, &out, &stop, |_| ())?;
    print!("{}", summary.markdown());
    if !summary.is_well() {
        eprintln!("VIOLATED: see {}", out.join("verdicts.txt").display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
