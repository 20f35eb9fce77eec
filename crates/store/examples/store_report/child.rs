//! A process of its own that opens a store: a restart starts in a fresh process, `kill -9` needs somebody to kill, and
//! the memory of an empty process can be subtracted.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use karman_store::{Durability, QueueNumber, QueueOffset, Silent, Store};

use crate::append::{Load, Produced, produce, runtime};
use crate::fill::Filler;
use crate::{Outcome, message, open, process};

/// First argument of the process.
pub(crate) const ARGUMENT: &str = "--child";
/// What is appended before a load is reported as running, so that the killed process leaves a tail.
const TAIL_BYTES: u64 = 100 << 20;

/// What a child found out about opening its store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened {
    /// Milliseconds until the store had accepted a durable append, and until it had given back
    /// that and the first message of a queue.
    pub(crate) accepted_ms: f64,
    pub(crate) served_ms: f64,
    /// Memory that is no mapped file.
    pub(crate) anonymous_bytes: f64,
}

/// An open store in another process.
pub(crate) struct OpenStore {
    pub(crate) opened: Opened,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl OpenStore {
    pub(crate) fn start(directory: &Path) -> Outcome<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = process.stdin.take().ok_or("the child has no input")?;
        let mut answers = BufReader::new(process.stdout.take().ok_or("the child has no output")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let figures: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        let Ok([accepted_ms, served_ms, anonymous_bytes]) = figures.as_deref() else {
            return Err(format!("the child answered {line:?}").into());
        };
        let opened =
            Opened { accepted_ms: *accepted_ms, served_ms: *served_ms, anonymous_bytes: *anonymous_bytes };
        Ok(Self { opened, process, requests, answers })
    }

    /// Closes the store in order.
    pub(crate) fn close(mut self) -> Outcome<Opened> {
        writeln!(self.requests, "close")?;
        match self.process.wait()? {
            status if status.success() => Ok(self.opened),
            status => Err(format!("the child ended with {status}").into()),
        }
    }

    /// Kills the process while producers append.
    pub(crate) fn kill_under_load(mut self) -> Outcome<Opened> {
        writeln!(self.requests, "load")?;
        self.answers.read_line(&mut String::new())?;
        self.process.kill()?;
        self.process.wait()?;
        Ok(self.opened)
    }
}

/// The child's side.
pub(crate) fn run(directory: &Path) -> Outcome<()> {
    let start = Instant::now();
    let elapsed_ms = || start.elapsed().as_secs_f64() * 1e3;
    let store = Arc::new(open(directory, Arc::new(Silent))?);
    let queue = QueueNumber(0);
    let own =
        store.append(vec![message(queue, 0, Bytes::from_static(b"first"))], Durability::Disk)?.wait()?;
    let accepted_ms = elapsed_ms();
    let first = QueueOffset(store.queue_range(queue).start);
    let mut entries = Vec::new();
    for offset in [first, own.queue_offset] {
        store.entries(queue, offset, 1, &mut entries)?;
    }
    for entry in &entries {
        store.record(entry.physical_offset, entry.size)?;
    }
    if entries.len() != 2 {
        return Err("the store does not give back the first and the last message".into());
    }
    let served_ms = elapsed_ms();
    println!("{accepted_ms} {served_ms} {}", process::memory_bytes("RssAnon")?);
    let mut request = String::new();
    std::io::stdin().read_line(&mut request)?;
    if request.trim() == "load" {
        return load(&store);
    }
    Ok(store.close()?)
}

/// Appends until the process is killed.
fn load(store: &Arc<Store>) -> Outcome<()> {
    let (start, mut filler) = (store.watermarks().written, Filler::new(store, 1024));
    while store.watermarks().written < start + TAIL_BYTES {
        filler.batch(QueueNumber(1))?;
    }
    filler.end()?;
    let load = Load { durability: Durability::Disk, producers: 64, size_bytes: 1024, recycles: false };
    let (runtime, mut announced) = (runtime()?, false);
    loop {
        produce(&runtime, store, load, std::time::Duration::from_millis(50), &mut Produced::default())?;
        if !announced {
            println!("loaded");
            announced = true;
        }
    }
}
