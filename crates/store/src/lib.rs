//! Karman's storage engine: one log of records, an index of queues over it, and projections that follow it.
//!
//! A [`Store`] owns a directory. Records are appended from any thread, written by one (the log writer) and answered
//! when they are as durable as was asked. Confirmed records can be found by queue and offset and are read without being
//! copied. What is not a message is also shown to the [`Projection`]s: state that follows from the log, kept
//! in snapshots and brought up to date at every start. `docs/storage-format.md` describes the files.
//!
//! ```
//! use std::sync::Arc;
//! use karman_store::{Durability, NewRecord, QueueNumber, QueueOffset, RecordKind, Silent, Store, StoreConfig, key_hash};
//!
//! let directory = tempfile::tempdir()?;
//! let mut config = StoreConfig::new(directory.path());
//! config.segment_size_bytes = 1 << 20;
//! let store = Store::open(config, Vec::new(), Arc::new(Silent))?;
//!
//! let queue = QueueNumber(7);
//! let message = NewRecord {
//!     kind: RecordKind::Message,
//!     queue: Some(queue),
//!     tag_hash: 0,
//!     mark: 0,
//!     keys: vec![key_hash(0, b"greeting")],
//!     payload: "hello".into(),
//! };
//! let appended = store.append(vec![message], Durability::Disk)?.wait()?; // `.await` in async code
//! assert_eq!(appended.queue_offset, QueueOffset(0));
//!
//! let mut entries = Vec::new();
//! store.entries(queue, QueueOffset(0), 32, &mut entries)?;
//! let record = store.record(entries[0].physical_offset, entries[0].size)?;
//! assert_eq!(record.payload, "hello");
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cleanup;
mod commit_log;
mod config;
mod copy;
mod cursor;
mod damage;
mod directory;
mod disk;
mod epochs;
mod error;
mod fence;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gather;
mod inbox;
mod index;
mod maintenance;
mod mend;
pub mod offline;
mod query;
mod read;
mod record;
mod recovery;
mod replica;
mod report;
mod retention;
mod scrub;
mod segment;
mod snapshot;
mod verify;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::sync::watch;

pub use config::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES, StoreConfig};
pub use copy::{CopiedPiece, CopyTarget, StoreCopy};
pub use damage::Damage;
pub use directory::LogId;
pub use epochs::EpochStart;
pub use error::{AppendError, CloseError, MendError, OpenError, ReadError};
pub use gather::Gathered;
pub use index::Entry;
pub use mend::Mended;
pub use query::SegmentInfo;
pub use record::{
    HEADER_BYTES, Invalid, MAX_KEYS, MAX_PAYLOAD_BYTES, NewRecord, PhysicalOffset, QueueNumber, QueueOffset,
    Record, RecordKind, key_hash,
};
pub use replica::RawRecords;
pub use report::{Finding, IndexState, Progress, Report, SegmentReport, Severity};
pub use retention::Retention;
pub use scrub::ScrubStatus;
pub use watermark::Watermarks;

/// What the simulation of the replication protocol drives: the pure parts of a store. No API.
#[doc(hidden)]
pub mod cores {
    pub use crate::epochs::Epochs;
    pub use crate::fence::Fence;
    pub use crate::watermark::Progress;
}

use commit_log::{CommitLog, CursorState, NextSegment};
use damage::Damages;
use directory::Directory;
use disk::{Disk, SystemDisk};
use inbox::{Answer, Inbox};
use maintenance::{Maintenance, Stop, Wishes};
use writer::LogWriter;

/// What a record survives once its append was answered. Each includes those in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// The end of the process.
    Memory,
    /// The loss of power.
    Disk,
    /// The loss of this machine: the replicas that count have it, see [`Store::replicated`].
    Replicated,
    /// That, and the loss of power everywhere at once: they have flushed it.
    ReplicatedDisk,
}

/// Where records came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Of the first record; the others lie behind it without gaps.
    pub physical_offset: PhysicalOffset,
    /// Of the first record that has a queue; the others follow one by one. 0 if none has.
    pub queue_offset: QueueOffset,
    /// The same for all records of the call, in milliseconds since 1970.
    pub store_time_ms: u64,
}

/// State that follows from the log: the same records in the same order give the same state, whenever they are applied.
///
/// A snapshot may be newer than the offset it carries, so records may be applied a second time, in order: that must
/// lead to the same state. Implementations do their own locking.
pub trait Projection: Send + Sync {
    /// Names its section in snapshots; must never change and be unique in a store.
    fn name(&self) -> &'static str;
    /// Sees every confirmed record that is not a message, in log order: on the log writer's thread, or in recovery on
    /// the thread that opens the store. Must not block.
    fn apply(&self, record: &Record);
    /// Everything [`Projection::restore`] needs. Called on the maintenance thread.
    fn snapshot(&self) -> Vec<u8>;
    /// Replaces the state by that of a snapshot. An error stops the start and should say what cannot be read.
    fn restore(&self, bytes: &[u8]) -> Result<(), String>;
    /// Whether a snapshot without a section of this name is good: it was taken by a version that did not have this
    /// projection, and nothing that it follows was written by such a version. It starts as it was made then, and sees what
    /// was written behind that snapshot. Otherwise such a snapshot is passed over, and the start refused if the log does
    /// not reach back to its beginning. True for every projection that is added to a store together with the kind of
    /// record that it follows.
    fn was_added_later(&self) -> bool {
        false
    }
    /// Places of records below `below` that it will have to read again, at most `max` of them. Before the segment with
    /// them is deleted they are appended once more, as they are (but [`RecordKind::Held`] becomes [`RecordKind::Kept`]),
    /// and shown by [`Projection::apply`]; they must be found at the new place then. Only records without a queue can be moved; while others are named their segment stays.
    /// Called on the maintenance thread.
    fn pinned(&self, below: PhysicalOffset, max: usize) -> Vec<PhysicalOffset> {
        let _ = (below, max);
        Vec::new()
    }
}

/// Whose queues they are: hears of new messages, and says how long they are kept.
pub trait Listener: Send + Sync {
    /// `count` further entries of `queue` are readable. On the log writer's thread; must not block.
    fn confirmed(&self, queue: QueueNumber, count: u32);
    /// How long the entries of `queue` are kept, if not as long as [`Retention::reserved`] says. On the maintenance thread.
    fn reserved(&self, queue: QueueNumber) -> Option<Duration> {
        let _ = queue;
        None
    }
}

/// The listener of those who do not listen.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Listener for Silent {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {}
}

/// An append under way: the future of its answer. Dropping it does not undo the append.
#[derive(Debug)]
#[must_use = "an append is confirmed only when this says so"]
pub struct Append {
    answer: Gathered<oneshot::Receiver<Answer>>,
}

impl Append {
    /// Blocks the thread until the answer is there. Not for async code.
    pub fn wait(self) -> Result<Appended, AppendError> {
        result_of(self.answer.into_inner().blocking_recv())
    }

    /// The answer, if it is there; `None`: it comes later.
    pub fn answered(&mut self) -> Option<Result<Appended, AppendError>> {
        match self.answer.get_mut().try_recv() {
            Err(TryRecvError::Empty) => None,
            answer => Some(result_of(answer)),
        }
    }
}

impl Future for Append {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(result_of(ready!(Pin::new(&mut self.answer).poll(context))))
    }
}

fn result_of<E>(answer: Result<Answer, E>) -> Result<Appended, AppendError> {
    match answer {
        Ok(Answer { result, records }) => {
            drop(records);
            result
        }
        // The log writer answers everyone it took something from, unless it dies.
        Err(_) => Err(AppendError::Poisoned("the log writer panicked".into())),
    }
}

/// An open store. Share it by `Arc`; all methods may be called from any thread.
///
/// Dropping it without [`Store::close`] is like a crash: nothing that was answered is lost beyond what its durability
/// allows, what was not answered may be.
#[derive(Debug)]
pub struct Store {
    log: Arc<CommitLog>,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    writer: JoinHandle<()>,
    maintenance: JoinHandle<Result<(), CloseError>>,
    scrub: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in `config.directory`, making it if there is none, and brings index and projections to the end
    /// of its log. Blocks for as long as that takes.
    pub fn open(
        config: StoreConfig,
        projections: Vec<Arc<dyn Projection>>,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(SystemDisk), config, projections, listener)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        config: StoreConfig,
        projections: Vec<Arc<dyn Projection>>,
        listener: Arc<dyn Listener>,
    ) -> Result<Self, OpenError> {
        config.check()?;
        let directory = Directory::open(&*disk, &config.directory, &config.owner, config.log)?;
        let recovered = recovery::recover(&disk, &directory, &config, &projections)?;
        let log_start = recovered.segments[0].base();
        let log = Arc::new(CommitLog {
            segments: Arc::new(recovered.segments).into(),
            index: recovered.index,
            progress: watermark::Progress::recovered(log_start, recovered.end),
            damages: Damages::recovered(recovered.damage),
            state_lacks_from: recovered.state_lacks_from,
            seal: directory.log.seal(),
            epochs: Mutex::new(recovered.epochs),
            following: config.follows.into(),
            fence: fence::Fence::new(Instant::now()),
            advanced: watch::Sender::new(()),
            limit: recovered.promise.limit.into(),
            cursor: Mutex::new(CursorState { cursor: recovered.cursor, promise: recovered.promise }),
            inbox: Inbox::new(config.inbox_bytes),
            wishes: Wishes::default(),
            scrub: Default::default(),
            projected: Default::default(),
            refusing: Default::default(),
            poisoned: watch::Sender::new(None),
            next: Mutex::new(NextSegment::new(recovered.next)),
            flushing: Mutex::default(),
            config,
            directory,
            disk,
            projections,
            listener,
        });
        recovered.unsealed.into_iter().for_each(|segment| log.wishes.seal(segment));
        let maintenance = Maintenance::new(log.clone(), recovered.snapshots);
        let writer = LogWriter::new(log.clone(), recovered.end, recovered.store_time_ms);
        let threads = start_threads(maintenance, writer, &log)?;
        let store = Self { log, threads: Mutex::new(Some(threads)) };
        store.start_scrub()?;
        Ok(store)
    }

    /// Hands records to the log writer; never blocks. All records of a call that have a queue name the same one; they
    /// come to lie behind one another, in one segment. A crash may keep the first few of them only.
    ///
    /// When the answer comes the records are readable and the projections have seen them. Only an append of nothing but
    /// messages with [`Durability::Memory`] may be answered a little earlier, while others' records are flushed.
    pub fn append(&self, records: Vec<NewRecord>, durability: Durability) -> Result<Append, AppendError> {
        let bytes = check(&records)?;
        self.log.append(records, bytes, durability)
    }

    /// Appends to `out` up to `max` confirmed entries of `queue`, from `from` on; none if there are none. `Err` with the
    /// first offset there is when those in front of it were asked for.
    pub fn entries(
        &self,
        queue: QueueNumber,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), ReadError> {
        self.log.healing(self.log.index.read(queue, from, max, out))
    }

    /// Offset of the first entry of `queue` and the one behind the last confirmed; 0..0 if it never had any.
    pub fn queue_range(&self, queue: QueueNumber) -> Range<u64> {
        self.log.index.range(queue)
    }

    /// The number behind the highest that a queue with records has.
    pub fn queue_count(&self) -> u32 {
        self.log.index.queue_count()
    }

    /// Reads the confirmed record of `size` bytes at `at`. Its own offset, version and checksum are checked; its payload
    /// shares memory with the log.
    pub fn record(&self, at: PhysicalOffset, size: u32) -> Result<Record, ReadError> {
        self.log.record(at.0, size)
    }

    /// How far the log is written, flushed and confirmed.
    pub fn watermarks(&self) -> Watermarks {
        self.log.progress.load()
    }

    /// How much of its disk is used, in percent, as the rules of retention count it; `None` if the system does not say.
    pub fn disk_used_percent(&self) -> Option<u8> {
        self.log.disk.space(&self.log.directory.commit_log).ok().map(retention::Space::used_percent)
    }

    /// How many bytes its disk has left for it; `None` if the system does not say.
    pub fn disk_available_bytes(&self) -> Option<u64> {
        self.log.disk.space(&self.log.directory.commit_log).ok().map(|space| space.available_bytes)
    }

    /// Why the store takes no more records, once that is so. It does not recover: leave the process and start anew.
    pub fn poisoned(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.log.poisoned.subscribe()
    }

    /// Writes and flushes what waits, takes a snapshot and lets go of the directory. Blocks until that is done. Reading
    /// still works afterwards. A second call does nothing.
    pub fn close(&self) -> Result<(), CloseError> {
        self.log.inbox.close();
        self.stop(Stop::InOrder)
    }

    /// [`Store::close`] without a snapshot, for who takes back the end of this log next ([`offline::Offline::cut`]). A snapshot
    /// of the end goes with it, and two are kept: the one that would have to make room may be the last in front of the cut.
    pub fn close_to_cut(&self) -> Result<(), CloseError> {
        self.log.inbox.close();
        self.stop(Stop::ToCut)
    }

    fn stop(&self, how: Stop) -> Result<(), CloseError> {
        let Some(threads) = self.threads.lock().take() else { return Ok(()) };
        self.log.scrub.stop();
        if threads.scrub.is_some_and(|scrub| scrub.join().is_err()) {
            tracing::error!("the scrub panicked");
        }
        // A thread that panicked has poisoned the store; the maintenance thread finds that.
        let _ = threads.writer.join();
        self.log.wishes.stop(how);
        let finished = threads.maintenance.join();
        let unlocked = self.log.directory.lock.unlock();
        unlocked.unwrap_or_else(|error| tracing::warn!(%error, "cannot unlock the store"));
        let panicked = |_| Err(CloseError::Poisoned("the maintenance thread panicked".into()));
        finished.unwrap_or_else(panicked)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.log.inbox.fail(&AppendError::Closed);
        // Nobody is told: a drop without close is a crash.
        let _ = self.stop(Stop::AtOnce);
    }
}

/// What the records of one append take in the log.
fn check(records: &[NewRecord]) -> Result<usize, AppendError> {
    let queue = records.iter().find_map(|record| record.queue);
    if records.is_empty() {
        return Err(AppendError::Invalid("there are none"));
    }
    if queue == Some(QueueNumber(u32::MAX)) {
        return Err(AppendError::Invalid("queue number 4294967295 means no queue"));
    }
    let mut bytes = 0;
    for record in records {
        if record.kind.has_queue() != record.queue.is_some() {
            return Err(AppendError::Invalid("exactly the kinds that have a queue name one"));
        }
        if record.queue.is_some() && record.queue != queue {
            return Err(AppendError::Invalid("records of one call name different queues"));
        }
        if record.payload.len() > MAX_PAYLOAD_BYTES {
            let (bytes, limit_bytes) = (record.payload.len() as u64, MAX_PAYLOAD_BYTES as u64);
            return Err(AppendError::TooLarge { what: "a payload", bytes, limit_bytes });
        }
        if record.keys.len() > MAX_KEYS {
            return Err(AppendError::Invalid("a record has more than 4095 keys"));
        }
        bytes += record.encoded_bytes();
    }
    Ok(bytes)
}

fn start_threads(maintenance: Maintenance, writer: LogWriter, log: &CommitLog) -> Result<Threads, OpenError> {
    let failed = |error| OpenError::io("start a thread for", &log.config.directory)(error);
    let maintenance = thread::Builder::new()
        .name("store-maintenance".into())
        .spawn(|| maintenance.run())
        .map_err(failed)?;
    match thread::Builder::new().name("log-writer".into()).spawn(|| writer.run()) {
        Ok(writer) => Ok(Threads { writer, maintenance, scrub: None }),
        Err(error) => {
            log.wishes.stop(Stop::AtOnce);
            Err(failed(error))
        }
    }
}
