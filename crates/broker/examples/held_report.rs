//! What delayed messages cost, and how late they are: memory for each, then so many due within so short a time, delivered by
//! the broker's own thread from a store on this disk.
//!
//! `cargo run --release -p karman-broker --example held_report -- [--timers N] [--seconds S] [--size BYTES]
//! [--class disk|memory] [--dir DIR]`
//!
//! Beside it a small file is flushed now and then: what the disk takes for that when others use it too.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_broker::catalog::{Catalog, Topic};
use karman_broker::catalog_writer::topic_named;
use karman_broker::clock::Clock;
use karman_broker::held::HeldTable;
use karman_broker::held::deliver::Deliverer;
use karman_broker::process;
use karman_broker::records::{Change, HeldHead, Hold, Metadata};
use karman_broker::service::send;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_store::{
    Append, Durability, NewRecord, PhysicalOffset, Projection, QueueNumber, QueueOffset, Record, RecordKind,
    Silent, Store, StoreConfig,
};
use prost::Message as _;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const QUEUES: u32 = 8;
/// Held messages of one append call while the store is filled.
const FILL: u64 = 256;
/// Lateness is counted in steps of a millisecond up to this.
const LATENESS_MAX_MS: usize = 60_000;

struct Options {
    timers: u64,
    seconds: u64,
    size_bytes: usize,
    class: Durability,
    directory: std::path::PathBuf,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self {
            timers: 1_000_000,
            seconds: 60,
            size_bytes: 256,
            class: Durability::Disk,
            directory: std::env::temp_dir(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            match name.as_str() {
                "--timers" => options.timers = value.parse::<u64>()?.max(1),
                "--seconds" => options.seconds = value.parse::<u64>()?.max(1),
                "--size" => options.size_bytes = value.parse::<usize>()?.max(1),
                "--class" if value == "memory" => options.class = Durability::Memory,
                "--class" if value == "disk" => options.class = Durability::Disk,
                "--dir" => options.directory = value.into(),
                _ => return Err(format!("unknown option {name} {value}").into()),
            }
        }
        Ok(options)
    }
}

/// How late each message became visible: what consumers could have seen, not what the thread believes.
struct Seen {
    clock: Clock,
    late_ms: Vec<AtomicU64>,
    early: AtomicU64,
}

impl Seen {
    fn new(clock: Clock) -> Self {
        let late_ms = (0..=LATENESS_MAX_MS).map(|_| AtomicU64::new(0)).collect();
        Self { clock, late_ms, early: AtomicU64::new(0) }
    }

    fn count(&self) -> u64 {
        self.late_ms.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn percentile(&self, part: f64) -> usize {
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let mut count = 0;
        let reached = |late: &AtomicU64| {
            count += late.load(Ordering::Relaxed);
            count >= wanted
        };
        self.late_ms.iter().position(reached).unwrap_or(LATENESS_MAX_MS)
    }
}

impl Projection for Seen {
    fn name(&self) -> &'static str {
        "seen"
    }

    fn apply(&self, record: &Record) {
        if record.kind != RecordKind::Released {
            return;
        }
        let (Some(head), now_ms) = (HeldHead::of(&record.payload), self.clock.now_ms()) else { return };
        if now_ms < head.due_ms {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        let late_ms = now_ms.saturating_sub(head.due_ms).min(LATENESS_MAX_MS as u64);
        self.late_ms[late_ms as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&self, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let options = Options::parse()?;
    // Both are kept until they are measured: what one gives back the other would take.
    let ascending = memory("ascending", options.timers, |number| number);
    let random = memory("random", options.timers, |_| rand::random_range(0..86_400_000));
    drop((ascending, random));
    let scratch = tempfile::tempdir_in(&options.directory)?;
    deliver(&options, scratch.path())
}

/// Resident memory for each of so many timers, made in an order of their times.
fn memory(order: &str, timers: u64, due_ms: impl Fn(u64) -> u64) -> HeldTable {
    let table = HeldTable::default();
    let before = process::used().resident_bytes;
    for number in 0..timers {
        let head = HeldHead { id: rand::random(), due_ms: due_ms(number), topic: 1, hold: Hold::Timer };
        table.apply(&Record {
            kind: RecordKind::Held,
            epoch: 0,
            physical_offset: PhysicalOffset(number * 512),
            store_time_ms: 0,
            queue: None,
            queue_offset: QueueOffset(0),
            tag_hash: 0,
            mark: 0,
            payload: head.before(b""),
        });
    }
    let used = process::used().resident_bytes.saturating_sub(before);
    println!("memory, {order} times: {:.1} bytes for each of {timers} timers", used as f64 / timers as f64);
    table
}

struct Node {
    store: Arc<Store>,
    catalog: Arc<Catalog>,
    held: Arc<HeldTable>,
    seen: Arc<Seen>,
    clock: Clock,
}

fn open(directory: &Path) -> Outcome<Node> {
    let (clock, catalog, held) =
        (Clock::default(), Arc::new(Catalog::default()), Arc::new(HeldTable::default()));
    let seen = Arc::new(Seen::new(clock));
    let projections: Vec<Arc<dyn Projection>> = vec![catalog.clone(), held.clone(), seen.clone()];
    let store = Arc::new(Store::open(StoreConfig::new(directory), projections, Arc::new(Silent))?);
    Ok(Node { store, catalog, held, seen, clock })
}

impl Node {
    fn topic(&self) -> Outcome<Arc<Topic>> {
        let change = Change::Topic(self.catalog.next_topic(topic_named("delayed", QUEUES))?);
        let payload = Metadata { change: Some(change) }.encode_to_vec().into();
        let (kind, keys) = (RecordKind::Metadata, vec![]);
        let record = NewRecord { kind, queue: None, tag_hash: 0, mark: 0, keys, payload };
        self.store.append(vec![record], Durability::Disk)?.wait()?;
        Ok(self.catalog.topic("delayed").ok_or("the topic was not made")?)
    }

    /// Stores the timers, evenly due over the time from `start_ms` on.
    fn fill(&self, options: &Options, topic: &Topic, start_ms: u64) -> Outcome<()> {
        let mut last: Option<Append> = None;
        for first in (0..options.timers).step_by(FILL as usize) {
            let numbers = first..options.timers.min(first + FILL);
            let due_ms = |number: u64| start_ms + number * options.seconds * 1000 / options.timers;
            let records = numbers.map(|number| held(topic, number, due_ms(number), options.size_bytes));
            let append = self.store.append(records.collect(), Durability::Memory)?;
            // One call under way, so that the inbox never overflows.
            if let Some(before) = last.replace(append) {
                before.wait()?;
            }
        }
        last.map(Append::wait).transpose()?;
        Ok(())
    }
}

fn held(topic: &Topic, number: u64, due_ms: u64, size_bytes: usize) -> NewRecord {
    let message = v2::Message {
        topic: Some(v2::Resource { name: topic.name().into(), ..Default::default() }),
        system_properties: Some(v2::SystemProperties {
            message_id: format!("01{number:032X}"),
            ..Default::default()
        }),
        body: Bytes::from(vec![7; size_bytes]),
        ..Default::default()
    };
    let message = EncodedMessage::read(message.encode_to_vec().into()).expect("it is well formed");
    let head = HeldHead { id: rand::random(), due_ms, topic: topic.number, hold: Hold::Timer };
    let payload = head.before(&message.bytes);
    let visible = send::record(&message, QueueNumber(0), topic.number);
    NewRecord { kind: RecordKind::Held, queue: None, payload, ..visible }
}

fn deliver(options: &Options, directory: &Path) -> Outcome<()> {
    let node = open(directory)?;
    let topic = node.topic()?;
    // Time enough to store them, and to start anew.
    let start_ms = node.clock.now_ms() + 10_000 + options.timers / 25;
    let began = Instant::now();
    node.fill(options, &topic, start_ms)?;
    println!("stored {} timers in {:.1} s", options.timers, began.elapsed().as_secs_f64());
    // As after a crash: without a last snapshot.
    drop((topic, node));
    let began = Instant::now();
    let node = open(directory)?;
    println!(
        "started with {} pending timers in {:.2} s",
        node.held.counts().0,
        began.elapsed().as_secs_f64()
    );
    let left_ms = start_ms.saturating_sub(node.clock.now_ms());
    if left_ms == 0 {
        println!("the first ones were due before the start: the machine is too slow for these figures");
    }
    let (store, catalog, held) = (node.store.clone(), node.catalog.clone(), node.held.clone());
    let deliverer = Deliverer { store, catalog, held, clock: node.clock, durability: options.class };
    let thread = deliverer.start()?;
    let flushes = Flushes::start(directory)?;
    let cpu = process::used().cpu_micros;
    let deadline =
        Instant::now() + Duration::from_millis(left_ms) + Duration::from_secs(10 * options.seconds + 60);
    while node.seen.count() < options.timers {
        if Instant::now() > deadline {
            return Err(format!("only {} were delivered", node.seen.count()).into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let cpu = process::used().cpu_micros - cpu;
    node.held.stop();
    thread.join().map_err(|_| "the delivery thread panicked")?;
    let late = |part| node.seen.percentile(part);
    println!(
        "delivered {} within {} s; lateness p50 {} ms, p99 {} ms, p99.9 {} ms, worst {} ms; early {}; {:.1} us of processor each",
        node.seen.count(),
        options.seconds,
        late(0.5),
        late(0.99),
        late(0.999),
        late(1.0),
        node.seen.early.load(Ordering::Relaxed),
        cpu as f64 / options.timers as f64,
    );
    println!("a flush of 4 KiB beside it took {}", flushes.stop()?);
    node.store.close()?;
    Ok(())
}

/// Flushes a small file every 20 ms, on a thread of its own.
struct Flushes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<u64>>>,
}

impl Flushes {
    fn start(directory: &Path) -> Outcome<Self> {
        let file = std::fs::File::create(directory.join("flushed"))?;
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_all()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let run = move || {
            let mut took_ms = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                file.write_all_at(&[2; 4096], 0)?;
                let began = Instant::now();
                file.sync_data()?;
                took_ms.push(began.elapsed().as_millis() as u64);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(took_ms)
        };
        Ok(Self { stop, thread: std::thread::spawn(run) })
    }

    fn stop(self) -> Outcome<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took_ms = self.thread.join().map_err(|_| "the flushing thread panicked")??;
        took_ms.sort_unstable();
        let at = |part: f64| took_ms[((took_ms.len() - 1) as f64 * part) as usize];
        Ok(format!("p50 {} ms, p99 {} ms, worst {} ms", at(0.5), at(0.99), at(1.0)))
    }
}
