//! The ceiling of rows about appending: what takes records from the same producers, writes as many bytes, flushes if that is
//! asked for, answers, and does nothing else. No log, no checksums, no index. What it reaches no store can pass here; how
//! near a store comes to it says what the store itself costs.

use std::fs::File;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use karman_store::{Durability, NewRecord};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::FallocateFlags;
use tokio::sync::oneshot;

use crate::append::{Load, PAGE_BYTES, SEGMENT_BYTES, Takes};
use crate::{Failure, Outcome};

/// As the log writer: it looks for so long before it sleeps.
const LOOK_AGAIN: Duration = Duration::from_micros(20);
/// Where every write is flushed, or files are used again, a file is written over and over.
const WRITTEN_OVER_BYTES: u64 = 256 << 20;

/// Takes records on one thread, as a store does.
pub(crate) struct HandOver {
    state: Mutex<State>,
    pushed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    stop: bool,
}

type Waiting = (NewRecord, oneshot::Sender<NewRecord>);

/// Ends the thread when it is dropped.
pub(crate) struct Running {
    pub(crate) hand_over: Arc<HandOver>,
    thread: Option<JoinHandle<()>>,
}

impl Takes for HandOver {
    async fn append(&self, record: NewRecord, _durability: Durability) -> Outcome<()> {
        let (reply, answer) = oneshot::channel();
        self.state.lock().waiting.push((record, reply));
        self.pushed.notify_one();
        drop(answer.await?);
        Ok(())
    }
}

impl HandOver {
    /// Starts the thread `hand-over`.
    pub(crate) fn start(load: Load, directory: PathBuf) -> Outcome<Running> {
        let hand_over = Arc::new(Self { state: Mutex::default(), pushed: Condvar::new() });
        let mut target = Target::new(load, directory)?;
        let own = hand_over.clone();
        let run = move || {
            let mut batch = Vec::new();
            while own.take(&mut batch) {
                target.write(batch.len()).expect("the disk of a measurement works");
                batch.drain(..).for_each(|(record, reply)| drop(reply.send(record)));
            }
        };
        let thread = thread::Builder::new().name("hand-over".into()).spawn(run)?;
        Ok(Running { hand_over, thread: Some(thread) })
    }

    fn take(&self, batch: &mut Vec<Waiting>) -> bool {
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            MutexGuard::unlocked(&mut state, || {
                let start = Instant::now();
                while start.elapsed() < LOOK_AGAIN && self.state.lock().waiting.is_empty() {
                    thread::yield_now();
                }
            });
        }
        while state.waiting.is_empty() {
            if state.stop {
                return false;
            }
            self.pushed.wait(&mut state);
        }
        MutexGuard::unlocked(&mut state, thread::yield_now);
        mem::swap(&mut state.waiting, batch);
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.hand_over.state.lock().stop = true;
        self.hand_over.pushed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A file like a segment, written as the log is: whole pages, the last one once more by the next batch.
struct Target {
    load: Load,
    directory: PathBuf,
    file: File,
    former: Vec<File>,
    length: u64,
    position: u64,
    pages: Vec<u8>,
}

impl Target {
    fn new(load: Load, directory: PathBuf) -> Outcome<Self> {
        let is_flushed = load.durability == Durability::Disk;
        let length = if is_flushed || load.recycles { WRITTEN_OVER_BYTES } else { SEGMENT_BYTES };
        let file = file(&directory, length)?;
        if is_flushed {
            let zeros = vec![0; 1 << 20];
            for at in (0..length).step_by(zeros.len()) {
                file.write_all_at(&zeros, at)?;
            }
            file.sync_all()?;
        }
        Ok(Self { load, directory, file, former: Vec::new(), length, position: 0, pages: Vec::new() })
    }

    fn write(&mut self, records: usize) -> Outcome<()> {
        let bytes = (records as f64 * self.load.record_bytes()) as u64;
        let page = PAGE_BYTES as u64;
        if self.position + bytes + page > self.length {
            self.position = 0;
            if self.load.durability == Durability::Memory && !self.load.recycles {
                // The log does not come back to memory that it has, and what a deleted file had would be reused.
                let next = file(&self.directory, self.length)?;
                self.former.push(mem::replace(&mut self.file, next));
            }
        }
        let from = self.position - self.position % page;
        self.position += bytes;
        let length = (self.position.next_multiple_of(page) - from) as usize;
        if self.pages.len() < length {
            self.pages.resize(length, b'm');
        }
        self.file.write_all_at(&self.pages[..length], from)?;
        if self.load.durability == Durability::Disk {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

fn file(directory: &std::path::Path, length: u64) -> Result<File, Failure> {
    let file = tempfile::tempfile_in(directory)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length)?;
    Ok(file)
}
