//! The row about reading: one queue from its first entry to its last, from memory.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use karman_store::{Durability, Entry, QueueNumber, QueueOffset, Silent, Store};

use crate::allocations::{self, Allocations};
use crate::options::Options;
use crate::rows::Rounds;
use crate::{Outcome, message, open};

/// Fits in memory beside whatever else runs.
const LOG_BYTES: usize = 512 << 20;
/// Queues whose records lie between one another.
const QUEUES: u32 = 4;
const BATCH: usize = 64;

/// Each round: [entries/s, GB/s of payload, bytes copied, allocations a record].
pub(crate) fn measure(options: &Options, round: Rounds<'_>) -> Outcome<()> {
    let directory = options.scratch()?;
    let store = open(directory.path(), Arc::new(Silent))?;
    let payload = Bytes::from(vec![b'm'; options.size_bytes]);
    for batch in 0..(LOG_BYTES / (options.size_bytes + 128) / BATCH) as u32 {
        let queue = QueueNumber(batch % QUEUES);
        let messages = (0..BATCH).map(|_| message(queue, 0, payload.clone())).collect();
        store.append(messages, Durability::Memory)?.wait()?;
    }
    // The first pass brings the pages in.
    read_all(&store)?;
    allocations::count_everything_here();
    for _ in 0..options.rounds {
        let (start, before) = (Instant::now(), Allocations::now());
        let mut read = Read::default();
        while start.elapsed() < options.duration {
            read.add(&read_all(&store)?);
        }
        let seconds = start.elapsed().as_secs_f64();
        let made = (Allocations::now() - before).made;
        let entries = read.entries as f64;
        let gigabytes = read.payload_bytes as f64 / 1e9;
        round(vec![entries / seconds, gigabytes / seconds, read.copied_bytes as f64, made as f64 / entries]);
    }
    Ok(store.close()?)
}

#[derive(Debug, Default)]
struct Read {
    entries: u64,
    payload_bytes: u64,
    copied_bytes: u64,
}

impl Read {
    fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.payload_bytes += other.payload_bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

fn read_all(store: &Store) -> Outcome<Read> {
    let (mut read, mut entries) = (Read::default(), Vec::<Entry>::with_capacity(BATCH));
    for queue in (0..QUEUES).map(QueueNumber) {
        let (mut next, end) = (0, store.queue_range(queue).end);
        let mut neighbour: Option<(u64, usize)> = None;
        while next < end {
            entries.clear();
            store.entries(queue, QueueOffset(next), BATCH, &mut entries)?;
            next += entries.len() as u64;
            for entry in &entries {
                let record = store.record(entry.physical_offset, entry.size)?;
                let (at, address) = (record.physical_offset.0, record.payload.as_ptr() as usize);
                // Payloads that are slices of one map lie as far from each other as their records do in the log.
                let is_slice =
                    neighbour.is_none_or(|(other, its)| address.wrapping_sub(its) == (at - other) as usize);
                neighbour = Some((at, address));
                read.entries += 1;
                read.payload_bytes += record.payload.len() as u64;
                read.copied_bytes += if is_slice { 0 } else { record.payload.len() as u64 };
            }
        }
    }
    Ok(read)
}
