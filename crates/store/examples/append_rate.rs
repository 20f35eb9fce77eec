//! How fast the store takes messages, and how near that is to the device.
//!
//! For 1, 8, 64 and 512 producers that each wait for their answer, with both durabilities: messages per second, time to
//! the answer, messages per batch, and how many messages per second a bare loop manages that writes (and, for the disk
//! class, flushes) batches of that size in the same run to a file whose blocks have all been written before.
//!
//! `cargo run --release -p karman-store --example append_rate -- [--seconds N] [--size BYTES] [--dir DIR]`

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_store::{
    Durability, HEADER_BYTES, Listener, NewRecord, QueueNumber, RecordKind, Store, StoreConfig,
};

const PAGE_BYTES: usize = 4096;
const BARE_FILE_BYTES: usize = 256 << 20;

struct Options {
    duration: Duration,
    size_bytes: usize,
    directory: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let options = parse(temporary.path())?;
    println!("{} byte messages, {:?} each", options.size_bytes, options.duration);
    println!("class    producers  messages/s  p50 us  p99 us  per batch   bare loop  ratio");
    for durability in [Durability::Disk, Durability::Memory] {
        for producers in [1, 8, 64, 512] {
            measure(&options, durability, producers)?;
        }
    }
    Ok(())
}

fn parse(default_directory: &Path) -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        duration: Duration::from_secs(3),
        size_bytes: 1024,
        directory: default_directory.to_owned(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--seconds" => options.duration = Duration::try_from_secs_f64(value.parse()?)?,
            "--size" => options.size_bytes = value.parse()?,
            "--dir" => options.directory = value.into(),
            _ => return Err(format!("unknown option {name}; known: --seconds --size --dir").into()),
        }
    }
    Ok(options)
}

/// Counts batches: when the first message of one is announced, the confirmed watermark is already that of the batch.
#[derive(Default)]
struct BatchCounter {
    store: OnceLock<Weak<Store>>,
    confirmed: AtomicU64,
    batches: AtomicU64,
}

impl Listener for BatchCounter {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {
        let Some(store) = self.store.get().and_then(Weak::upgrade) else { return };
        let confirmed = store.watermarks().confirmed;
        if self.confirmed.swap(confirmed, Ordering::Relaxed) != confirmed {
            self.batches.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn measure(options: &Options, durability: Durability, producers: usize) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir_in(&options.directory)?;
    let counter = Arc::new(BatchCounter::default());
    let store = Arc::new(Store::open(StoreConfig::new(directory.path()), Vec::new(), counter.clone())?);
    counter.store.get_or_init(|| Arc::downgrade(&store));

    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut latencies_us = runtime.block_on(produce(&store, options, durability, producers))?;
    let messages = latencies_us.len();
    let per_second = messages as f64 / options.duration.as_secs_f64();
    let per_batch = messages as f64 / counter.batches.load(Ordering::Relaxed) as f64;
    store.close()?;
    drop(store);
    drop(directory);

    let bare = bare_loop(options, durability, per_batch)?;
    latencies_us.sort_unstable();
    let quantile = |part: f64| latencies_us[((messages - 1) as f64 * part) as usize];
    println!(
        "{:<8} {producers:>9} {per_second:>11.0} {:>7} {:>7} {per_batch:>10.1} {bare:>11.0} {:>6.2}",
        format!("{durability:?}"),
        quantile(0.50),
        quantile(0.99),
        per_second / bare,
    );
    Ok(())
}

async fn produce(
    store: &Arc<Store>,
    options: &Options,
    durability: Durability,
    producers: usize,
) -> Result<Vec<u32>, Box<dyn Error>> {
    let payload = Bytes::from(vec![b'm'; options.size_bytes]);
    let end = Instant::now() + options.duration;
    let tasks: Vec<_> = (0..producers)
        .map(|producer| {
            let (store, payload) = (store.clone(), payload.clone());
            tokio::spawn(async move {
                let mut latencies_us = Vec::new();
                loop {
                    let start = Instant::now();
                    if start >= end {
                        return Ok(latencies_us);
                    }
                    let message = NewRecord {
                        kind: RecordKind::Message,
                        queue: Some(QueueNumber(producer as u32 % 8)),
                        tag_hash: 0,
                        mark: 0,
                        keys: Vec::new(),
                        payload: payload.clone(),
                    };
                    store.append(vec![message], durability)?.await?;
                    latencies_us.push(start.elapsed().as_micros() as u32);
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        let latencies_us: Result<Vec<u32>, karman_store::AppendError> = task.await?;
        all.append(&mut latencies_us?);
    }
    Ok(all)
}

/// Messages per second of one thread that does nothing but write whole pages, and flush them.
fn bare_loop(options: &Options, durability: Durability, per_batch: f64) -> Result<f64, Box<dyn Error>> {
    let file = tempfile::tempfile_in(&options.directory)?;
    let record_bytes = (HEADER_BYTES + options.size_bytes).next_multiple_of(8) as f64;
    let batch_bytes = (per_batch * record_bytes) as usize;
    initialise(&file)?;
    let pages = vec![b'm'; batch_bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES];
    let (start, mut position, mut batches) = (Instant::now(), 0, 0_u64);
    while start.elapsed() < options.duration.min(Duration::from_secs(2)) {
        // As in the log, the page in which the last batch ended is written again.
        let page = position - position % PAGE_BYTES;
        let length = (position % PAGE_BYTES + batch_bytes).next_multiple_of(PAGE_BYTES).min(pages.len());
        file.write_all_at(&pages[..length], page as u64)?;
        if durability == Durability::Disk {
            file.sync_data()?;
        }
        batches += 1;
        position = (position + batch_bytes) % (BARE_FILE_BYTES - pages.len());
    }
    Ok(batches as f64 * per_batch / start.elapsed().as_secs_f64())
}

fn initialise(file: &File) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    for at in (0..BARE_FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at as u64)?;
    }
    file.sync_all()
}
