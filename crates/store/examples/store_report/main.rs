//! How fast the store is: every row of its speed table, each a median of rounds, ratios from the same round.
//!
//! `cargo run --release -p karman-store --example store_report -- [ROW]... [--dir DIR] [--json]`; `--help` says more.

mod allocations;
mod append;
mod child;
mod disturbance;
mod fill;
mod hand_over;
mod options;
mod process;
mod query;
mod read;
mod report;
mod restart;
mod rows;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use karman_store::{Listener, NewRecord, OpenError, QueueNumber, RecordKind, Store, StoreConfig, key_hash};

use options::{Options, USAGE};
use process::Processors;
use report::Measured;
use rows::ROWS;

/// Different keys that producers choose: in the log that is queried, messages of each lie far from one another.
pub(crate) const KEYS: u64 = 1_000_000;
const ID_SCOPE: u32 = 0;
const KEY_SCOPE: u32 = 1;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Outcome<T> = Result<T, Failure>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let done = match arguments.peek().map(String::as_str) {
        Some("--help" | "-h") => {
            println!("{USAGE}\n\nrows:");
            ROWS.iter().for_each(|row| println!("  {:<14} {}", row.name, row.about));
            Ok(())
        }
        Some(child::ARGUMENT) => child::run(Path::new(&arguments.nth(1).unwrap_or_default())),
        _ => Options::parse(arguments).and_then(|options| run(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("store_report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    if let Some(unknown) = options.rows.iter().find(|name| ROWS.iter().all(|row| row.name != name.as_str())) {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("there is no row {unknown}; there are: {}", known.join(" ")).into());
    }
    let mut measured = Vec::new();
    for row in
        ROWS.iter().filter(|row| options.rows.is_empty() || options.rows.iter().any(|name| name == row.name))
    {
        let (mut rounds, processors) = (Vec::new(), Processors::now()?);
        (row.measure)(options, &mut |values| {
            eprintln!("{} round {} of {}: {values:.2?}", row.name, rounds.len() + 1, options.rounds);
            rounds.push(values);
        })?;
        measured.push(Measured { row, rounds, others: processors.used_by_others()? });
    }
    if options.json {
        println!("{:#}", report::json(&measured));
    } else {
        print!("{}", report::table(&measured));
    }
    Ok(())
}

/// A store with the product's settings.
pub(crate) fn open(directory: &Path, listener: Arc<dyn Listener>) -> Result<Store, OpenError> {
    Store::open(config(directory), Vec::new(), listener)
}

pub(crate) fn config(directory: &Path) -> StoreConfig {
    StoreConfig::new(directory)
}

/// Message `number`, with the keys that the broker gives it: its id, and one of [`KEYS`] that its producer chose.
pub(crate) fn message(queue: QueueNumber, number: u64, payload: Bytes) -> NewRecord {
    let keys = vec![key_hash(ID_SCOPE, &number.to_le_bytes()), order_key(number % KEYS)];
    NewRecord { kind: RecordKind::Message, queue: Some(queue), tag_hash: 0, mark: 0, keys, payload }
}

pub(crate) fn order_key(order: u64) -> u64 {
    key_hash(KEY_SCOPE, &order.to_le_bytes())
}
