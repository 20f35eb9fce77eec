//! Rows about appending: how many appends a second the store takes from producers that each wait for their answer,
//! next to a bare loop that writes and flushes batches of the same size, and to a hand-over that does nothing else either
//! but has the same producers wait for it.
//!
//! They take turns of a fraction of a second: the disk's speed changes while one looks, and a ratio
//! of figures from different seconds would say nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_store::{Durability, HEADER_BYTES, Listener, NewRecord, QueueNumber, Store, StoreConfig};
use tokio::runtime::Runtime;

use crate::allocations::{self, Allocations};
use crate::hand_over::HandOver;
use crate::options::Options;
use crate::process::{self, CpuTime};
use crate::{Outcome, config, message, open};

pub(crate) const PAGE_BYTES: usize = 4096;
const BARE_FILE_BYTES: usize = 256 << 20;
/// Writes of this size measure what the device takes in sequence.
const SEQUENTIAL_WRITE_BYTES: usize = 2 << 20;
/// Turns that store and bare loop take in one round.
const TURNS: u32 = 4;
/// So small that a round sees the log roll, and what is done for that.
const SMALL_SEGMENT_BYTES: u64 = 128 << 20;
/// The product's.
pub(crate) const SEGMENT_BYTES: u64 = 1 << 30;
const LONGEST_WARM_UP: Duration = Duration::from_secs(10);
/// Queues the producers share.
const QUEUES: u32 = 8;

/// Counts batches and lets allocations of the log writer's thread be counted. Of the batch's announcements the first
/// sees a confirmed watermark that no earlier one saw.
#[derive(Default)]
pub(crate) struct BatchCounter {
    pub(crate) store: std::sync::OnceLock<std::sync::Weak<Store>>,
    confirmed: AtomicU64,
    batches: AtomicU64,
}

impl Listener for BatchCounter {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {
        allocations::count_here();
        // Only the log writer comes here, so plain loads and stores do.
        let Some(store) = self.store.get().and_then(std::sync::Weak::upgrade) else { return };
        let confirmed = store.watermarks().confirmed;
        if self.confirmed.load(Ordering::Relaxed) != confirmed {
            self.confirmed.store(confirmed, Ordering::Relaxed);
            self.batches.store(self.batches.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

/// Who appends what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) durability: Durability,
    pub(crate) producers: u32,
    pub(crate) size_bytes: usize,
    /// The oldest segment is deleted, and its file used again, while its pages are in memory.
    pub(crate) recycles: bool,
}

impl Load {
    /// What a message takes in the log: header, payload, padding, two keys.
    pub(crate) fn record_bytes(&self) -> f64 {
        ((HEADER_BYTES + self.size_bytes).next_multiple_of(8) + 16) as f64
    }
}

/// What producers append to.
pub(crate) trait Takes: Send + Sync + 'static {
    /// Comes back when the answer is there.
    fn append(&self, record: NewRecord, durability: Durability) -> impl Future<Output = Outcome<()>> + Send;
}

impl Takes for Store {
    async fn append(&self, record: NewRecord, durability: Durability) -> Outcome<()> {
        Store::append(self, vec![record], durability)?.await?;
        Ok(())
    }
}

/// What came of some turns of a load.
#[derive(Debug, Default)]
pub(crate) struct Produced {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// Processor time of the producers' thread.
    pub(crate) producers_ns: u64,
    pub(crate) latencies_us: Vec<u32>,
}

impl Produced {
    fn per_second(&self) -> f64 {
        self.messages as f64 / self.seconds
    }
}

/// The producers are tasks of one thread: many that wait are not many threads, and the log writer has the other core.
pub(crate) fn runtime() -> Result<Runtime, std::io::Error> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()
}

/// Lets the producers append for `duration`.
pub(crate) fn produce<T: Takes>(
    runtime: &Runtime,
    store: &Arc<T>,
    load: Load,
    duration: Duration,
    into: &mut Produced,
) -> Outcome<()> {
    let (start, cpu) = (Instant::now(), CpuTime::of_this_thread()?);
    let end = start + duration;
    runtime.block_on(async {
        let tasks: Vec<_> = (0..load.producers)
            .map(|producer| tokio::spawn(produce_until(store.clone(), load, producer, end)))
            .collect();
        for task in tasks {
            let mut latencies_us = task.await??;
            into.messages += latencies_us.len() as u64;
            into.latencies_us.append(&mut latencies_us);
        }
        Ok::<_, crate::Failure>(())
    })?;
    into.seconds += start.elapsed().as_secs_f64();
    into.producers_ns += cpu.elapsed_ns()?;
    Ok(())
}

async fn produce_until<T: Takes>(
    store: Arc<T>,
    load: Load,
    producer: u32,
    end: Instant,
) -> Outcome<Vec<u32>> {
    let payload = Bytes::from(vec![b'm'; load.size_bytes]);
    let mut latencies_us = Vec::with_capacity(1 << 12);
    let (mut number, mut before) = (u64::from(producer), Instant::now());
    while before < end {
        let message = message(QueueNumber(producer % QUEUES), number, payload.clone());
        number += u64::from(load.producers);
        store.append(message, load.durability).await?;
        let now = Instant::now();
        latencies_us.push(process::microseconds(now - before));
        before = now;
    }
    Ok(latencies_us)
}

/// One round of a load. Flushed: [appends/s, of the bare loop, of the hand-over, appends a batch, log writer's ns an append,
/// producers' ns, p50 us, p99 us, the log's bytes to the device's in sequence]. Of class memory: [appends/s, of the
/// hand-over, what that reaches, appends a batch, log writer's ns an append, producers' ns, p50 us, p99 us].
pub(crate) fn round(options: &Options, load: Load) -> Outcome<Vec<f64>> {
    let is_flushed = load.durability == Durability::Disk;
    let is_small = is_flushed || load.recycles;
    let segment_size_bytes = if is_small { SMALL_SEGMENT_BYTES } else { SEGMENT_BYTES };
    let (directory, runtime) = (options.scratch()?, runtime()?);
    let counter = Arc::new(BatchCounter::default());
    let mut config = StoreConfig { segment_size_bytes, ..config(directory.path()) };
    if load.recycles {
        config.retention.size_limit_bytes = Some(4 * segment_size_bytes);
        config.cleanup_interval = Duration::from_millis(10);
        config.snapshot_interval_bytes = segment_size_bytes / 2;
    }
    let store = Arc::new(Store::open(config, Vec::new(), counter.clone())?);
    counter.store.get_or_init(|| Arc::downgrade(&store));
    let bare = BareLoop::new(options)?;
    let hand_over = HandOver::start(load, options.directory.clone())?;
    let turn = options.duration / TURNS;
    // The first segment of a store is not like the others, and the first appends find everything cold.
    let warm = Instant::now();
    let warm_bytes = if load.recycles { 6 * segment_size_bytes } else { SMALL_SEGMENT_BYTES };
    while store.watermarks().written < warm_bytes && warm.elapsed() < LONGEST_WARM_UP {
        produce(&runtime, &store, load, turn / 2, &mut Produced::default())?;
    }
    produce(&runtime, &hand_over.hand_over, load, turn / 4, &mut Produced::default())?;

    let (mut produced, mut handed_over, mut in_bare_loop) = (Produced::default(), Produced::default(), 0.0);
    let (mut batches, mut writer_ns) = (0, 0);
    for _ in 0..TURNS {
        let (cpu, batches_before) =
            (CpuTime::of_thread("log-writer")?, counter.batches.load(Ordering::Relaxed));
        let messages_before = produced.messages;
        produce(&runtime, &store, load, turn, &mut produced)?;
        writer_ns += cpu.elapsed_ns()?;
        let own_batches = counter.batches.load(Ordering::Relaxed) - batches_before;
        batches += own_batches;
        produce(&runtime, &hand_over.hand_over, load, turn, &mut handed_over)?;
        if is_flushed {
            let per_batch = (produced.messages - messages_before) as f64 / own_batches as f64;
            let (bare_batches, seconds) = bare.run(load, per_batch, turn)?;
            in_bare_loop += bare_batches as f64 * per_batch / seconds / f64::from(TURNS);
        }
    }
    let sequential = if is_flushed { sequential_mb_per_second(options)? } else { f64::NAN };
    store.close()?;
    produced.latencies_us.sort_unstable();
    let (per_second, ceiling) = (produced.per_second(), handed_over.per_second());
    let messages = produced.messages as f64;
    let own = [
        messages / batches as f64,
        writer_ns as f64 / messages,
        produced.producers_ns as f64 / messages,
        process::quantile(&produced.latencies_us, 0.50),
        process::quantile(&produced.latencies_us, 0.99),
    ];
    let mut values = vec![per_second];
    match is_flushed {
        true => values.extend([per_second / in_bare_loop, per_second / ceiling]),
        false => values.extend([per_second / ceiling, ceiling]),
    }
    values.extend(own);
    values.extend(is_flushed.then(|| per_second * load.record_bytes() / 1e6 / sequential));
    Ok(values)
}

/// One round of allocations: [allocations an append, releases an append] on the log writer's thread.
pub(crate) fn allocations_round(options: &Options) -> Outcome<Vec<f64>> {
    let (directory, runtime) = (options.scratch()?, runtime()?);
    let counter = Arc::new(BatchCounter::default());
    let store = Arc::new(open(directory.path(), counter)?);
    let load =
        Load { durability: Durability::Disk, producers: 64, size_bytes: options.size_bytes, recycles: false };
    produce(&runtime, &store, load, options.duration / 2, &mut Produced::default())?;
    let (before, mut produced) = (Allocations::now(), Produced::default());
    produce(&runtime, &store, load, options.duration, &mut produced)?;
    let during = Allocations::now() - before;
    store.close()?;
    let messages = produced.messages as f64;
    Ok(vec![during.made as f64 / messages, during.released as f64 / messages])
}

/// A thread that does nothing but write whole pages to a file whose blocks were all written before, and flush them.
struct BareLoop {
    file: File,
}

impl BareLoop {
    fn new(options: &Options) -> Outcome<Self> {
        let file = tempfile::tempfile_in(&options.directory)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..BARE_FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file })
    }

    /// Batches written, and the seconds that took.
    fn run(&self, load: Load, per_batch: f64, duration: Duration) -> Outcome<(u64, f64)> {
        let record_bytes = load.record_bytes();
        let batch_bytes = (per_batch * record_bytes) as usize;
        let pages = vec![b'm'; batch_bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES];
        let (start, mut position, mut batches) = (Instant::now(), 0, 0_u64);
        while start.elapsed() < duration {
            // As in the log, the page in which the last batch ended is written again.
            let page = position - position % PAGE_BYTES;
            let length = (position % PAGE_BYTES + batch_bytes).next_multiple_of(PAGE_BYTES).min(pages.len());
            self.file.write_all_at(&pages[..length], page as u64)?;
            if load.durability == Durability::Disk {
                self.file.sync_data()?;
            }
            batches += 1;
            position = (position + batch_bytes) % (BARE_FILE_BYTES - pages.len());
        }
        Ok((batches, start.elapsed().as_secs_f64()))
    }
}

/// What a new file takes in large writes that are each flushed: as the log does when it is busy.
fn sequential_mb_per_second(options: &Options) -> Outcome<f64> {
    let file = tempfile::tempfile_in(&options.directory)?;
    let bytes = vec![b's'; SEQUENTIAL_WRITE_BYTES];
    let (start, mut written) = (Instant::now(), 0_u64);
    while start.elapsed() < options.duration / 2 {
        file.write_all_at(&bytes, written)?;
        file.sync_data()?;
        written += bytes.len() as u64;
    }
    Ok(written as f64 / 1e6 / start.elapsed().as_secs_f64())
}
