//! The command line.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::Outcome;

pub(crate) const USAGE: &str = "\
usage: store_report [ROW]... [OPTION VALUE]... [--json]

Measures the rows of the store's speed table; without a ROW all of them.

  --rounds N      figures are medians of so many rounds (5)
  --seconds N     how long a round of appending or reading takes (2)
  --size BYTES    payload of a message (1024)
  --size-gib N    how much log the rows about restarts and queries fill (10)
  --queues N      queues of the row `queues` (100000)
  --messages N    messages of the row `queues` (5000000)
  --dir DIR       where the stores are made (the directory for temporary files);
                  must be on the disk that is to be measured
  --json          one object instead of a table";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rows: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) duration: Duration,
    pub(crate) size_bytes: usize,
    pub(crate) log_bytes: u64,
    pub(crate) queues: u32,
    pub(crate) messages: u64,
    pub(crate) directory: PathBuf,
    pub(crate) json: bool,
    /// The log that rows about restarts and queries share.
    pub(crate) large_log: OnceCell<TempDir>,
}

impl Options {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut options = Self {
            rows: Vec::new(),
            rounds: 5,
            duration: Duration::from_secs(2),
            size_bytes: 1024,
            log_bytes: 10 << 30,
            queues: 100_000,
            messages: 5_000_000,
            directory: std::env::temp_dir(),
            json: false,
            large_log: OnceCell::new(),
        };
        while let Some(argument) = arguments.next() {
            if argument == "--json" {
                options.json = true;
                continue;
            }
            if !argument.starts_with('-') {
                options.rows.push(argument);
                continue;
            }
            let value = arguments.next().ok_or(format!("{argument} needs a value\n\n{USAGE}"))?;
            match argument.as_str() {
                "--rounds" => options.rounds = value.parse::<usize>()?.max(1),
                "--seconds" => options.duration = Duration::try_from_secs_f64(value.parse()?)?,
                "--size" => options.size_bytes = value.parse()?,
                "--size-gib" => options.log_bytes = (value.parse::<f64>()? * (1_u64 << 30) as f64) as u64,
                "--queues" => options.queues = value.parse()?,
                "--messages" => options.messages = value.parse()?,
                "--dir" => options.directory = std::path::absolute(value)?,
                _ => return Err(format!("unknown option {argument}\n\n{USAGE}").into()),
            }
        }
        Ok(options)
    }

    /// A new directory that is removed when the value is dropped.
    pub(crate) fn scratch(&self) -> Outcome<TempDir> {
        Ok(tempfile::tempdir_in(&self.directory)?)
    }
}
