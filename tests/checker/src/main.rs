//! `karman-checker FILE`: judges a saved history. Exit code 0: every invariant holds; 1: one does not; 2: it cannot be
//! read.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, BufReader, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use karman_checker::History;
use karman_checker::report::Report;

/// Judges what a load did to a cluster and saw of it
#[derive(Debug, Parser)]
struct Arguments {
    /// The history, as a load has written it
    file: PathBuf,
    /// How the result is written
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Violations of each invariant that are named, with all that the history says of their messages
    #[arg(long, default_value_t = 3)]
    show: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("karman-checker: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let open = || {
        let file = File::open(&arguments.file);
        let file = file.with_context(|| format!("open {}", arguments.file.display()))?;
        anyhow::Ok(BufReader::with_capacity(1 << 20, file))
    };
    let history = History::read(open()?)?;
    let mut report = Report::of(&history);
    drop(history);
    report.explain(arguments.show, open()?)?;
    let text = match arguments.output {
        Format::Table => report.table(),
        Format::Json => serde_json::to_string(&report)? + "\n",
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(report.is_well())
}
