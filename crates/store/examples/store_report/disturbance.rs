//! The row about what else happens: how long appends take while segments roll, snapshots are taken and segments are
//! deleted, next to a run in which nothing of the kind happens.
//!
//! Appends come at a fixed rate, whether the ones before were answered or not, and their time runs from when they were
//! due: a stall is seen by all who would have come during it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_store::{
    Append, Durability, NewRecord, Projection, QueueNumber, Record, RecordKind, Silent, Store, StoreConfig,
};

use crate::options::Options;
use crate::rows::Rounds;
use crate::{Outcome, config, message, process};

const APPENDS_PER_SECOND: u32 = 20_000;
/// So small that one is filled, and another deleted, more than once a second.
const SEGMENT_BYTES: u64 = 16 << 20;
const CLEANUP_INTERVAL: Duration = Duration::from_millis(100);
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);
/// About the progress of 100,000 groups and queues.
const SNAPSHOT_BYTES: usize = 8 << 20;
/// Of so many appends one is seen by the projection, so that a snapshot is due.
const PROGRESS_EVERY: u32 = 1000;
/// A phase takes so many times as long as a round of appending.
const PHASE: u32 = 3;
const STEP: Duration = Duration::from_micros(50);

/// Each round: [p99.9 in us of an undisturbed run; how many times that while segments roll, while snapshots are taken,
/// while segments roll and the oldest are deleted].
pub(crate) fn measure(options: &Options, round: Rounds<'_>) -> Outcome<()> {
    for _ in 0..options.rounds {
        let calm = p999_us(options, |_| {})?;
        let rolling = p999_us(options, |config| config.segment_size_bytes = SEGMENT_BYTES)?;
        let snapshots = p999_us(options, |config| config.snapshot_interval = SNAPSHOT_INTERVAL)?;
        let deleting = p999_us(options, |config| {
            config.segment_size_bytes = SEGMENT_BYTES;
            config.retention.size_limit_bytes = Some(3 * SEGMENT_BYTES);
            config.cleanup_interval = CLEANUP_INTERVAL;
        })?;
        round(vec![calm, rolling / calm, snapshots / calm, deleting / calm]);
    }
    Ok(())
}

fn p999_us(options: &Options, change: impl Fn(&mut StoreConfig)) -> Outcome<f64> {
    let directory = options.scratch()?;
    let mut config = config(directory.path());
    config.snapshot_interval_bytes = u64::MAX;
    change(&mut config);
    let is_deleting = config.retention.size_limit_bytes.is_some();
    let store = Store::open(config, vec![Arc::new(State)], Arc::new(Silent))?;
    // The first appends find everything cold.
    append_at_rate(&store, options, options.duration / 2)?;
    let mut latencies_us = append_at_rate(&store, options, options.duration * PHASE)?;
    let log_start = store.watermarks().log_start;
    store.close()?;
    if is_deleting && log_start == 0 {
        return Err("nothing was deleted: the phase is too short".into());
    }
    latencies_us.sort_unstable();
    Ok(process::quantile(&latencies_us, 0.999))
}

/// Appends at the fixed rate; the times to the answers.
fn append_at_rate(store: &Store, options: &Options, duration: Duration) -> Outcome<Vec<u32>> {
    let payload = Bytes::from(vec![b'm'; options.size_bytes]);
    thread::scope(|scope| {
        let (under_way, appends) = channel();
        let answered = scope.spawn(|| wait_for_all(appends));
        let (start, interval) = (Instant::now(), Duration::from_secs(1) / APPENDS_PER_SECOND);
        let mut number = 0;
        while start.elapsed() < duration {
            let due = start + interval * number;
            if due > Instant::now() {
                thread::sleep(STEP);
                continue;
            }
            let record = match number % PROGRESS_EVERY {
                0 => progress(),
                _ => message(QueueNumber(number % 8), u64::from(number), payload.clone()),
            };
            under_way.send((store.append(vec![record], Durability::Disk)?, due))?;
            number += 1;
        }
        drop(under_way);
        answered.join().map_err(|_| "the thread that waits for answers panicked")?
    })
}

/// Answers come in the order of the log, so whoever waits for the oldest misses none.
fn wait_for_all(appends: Receiver<(Append, Instant)>) -> Outcome<Vec<u32>> {
    let mut latencies_us = Vec::new();
    for (append, due) in appends {
        append.wait()?;
        latencies_us.push(process::microseconds(due.elapsed()));
    }
    Ok(latencies_us)
}

fn progress() -> NewRecord {
    NewRecord {
        kind: RecordKind::Progress,
        queue: None,
        keys: Vec::new(),
        ..message(QueueNumber(0), 0, Bytes::new())
    }
}

/// A projection with something to write down.
struct State;

impl Projection for State {
    fn name(&self) -> &'static str {
        "state"
    }

    fn apply(&self, _record: &Record) {}

    fn snapshot(&self) -> Vec<u8> {
        vec![b's'; SNAPSHOT_BYTES]
    }

    fn restore(&self, _bytes: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
