//! What the log writer, the maintenance thread and the callers share: segments, index, watermarks, and the rules that
//! hold for all of them: how a flush is done, how the next segment comes to be, how the store stops after an error.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::config::StoreConfig;
use crate::cursor::{Cursor, Promise, REACH_BYTES};
use crate::damage::Damages;
use crate::directory::Directory;
use crate::disk::{self, Disk};
use crate::epochs::Epochs;
use crate::error::AppendError;
use crate::fence::Fence;
use crate::gather::Gathered;
use crate::inbox::{Inbox, Request, Work};
use crate::index::QueueIndex;
use crate::maintenance::Wishes;
use crate::record::{NewRecord, Seal};
use crate::scrub::Scrub;
use crate::segment::{Discarded, Segment};
use crate::watermark::Progress;
use crate::{Append, Durability, Listener, Projection};

/// The next segment is made when the active one is so full. Its blocks are initialised while the rest is filled.
pub(crate) const PREPARE_AT: u64 = 2;
/// What is initialised at once. The log writer cannot roll meanwhile.
pub(crate) const INITIALISE_BYTES: u64 = 2 << 20;

/// How long a failed attempt to make the next segment answers for further ones.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(crate) struct CommitLog {
    pub(crate) config: StoreConfig,
    pub(crate) directory: Directory,
    pub(crate) disk: Arc<dyn Disk>,
    /// All that hold records, in order; the last is being written. Replaced by the log writer when it rolls.
    pub(crate) segments: ArcSwap<Vec<Arc<Segment>>>,
    pub(crate) index: QueueIndex,
    pub(crate) progress: Progress,
    pub(crate) damages: Damages,
    /// The projections lack something of what lies behind it, which may be mended.
    pub(crate) state_lacks_from: Option<u64>,
    /// What the checksums of this log's records start from.
    pub(crate) seal: Seal,
    /// Who wrote what. Noted by the log writer.
    pub(crate) epochs: Mutex<Epochs>,
    /// This is a replica: what is appended comes from a master. Ends for good when it begins to lead.
    pub(crate) following: AtomicBool,
    /// Until when anything may be answered and shown.
    pub(crate) fence: Fence,
    /// Something was written, or can be seen.
    pub(crate) advanced: watch::Sender<()>,
    pub(crate) cursor: Mutex<CursorState>,
    /// The log writer writes only in front of it; see `cursor.rs`.
    pub(crate) limit: AtomicU64,
    pub(crate) inbox: Inbox,
    pub(crate) wishes: Wishes,
    pub(crate) scrub: Scrub,
    pub(crate) projections: Vec<Arc<dyn Projection>>,
    pub(crate) listener: Arc<dyn Listener>,
    /// Records shown to the projections since the start.
    pub(crate) projected: AtomicU64,
    /// Why no messages are taken in at the moment.
    pub(crate) refusing: ArcSwapOption<AppendError>,
    pub(crate) poisoned: watch::Sender<Option<Arc<str>>>,
    pub(crate) next: Mutex<NextSegment>,
    /// One flush at a time: the kernel reports a write-back error to one caller only, and whoever flushes after that
    /// must learn of it from the poison that was set before this lock was released.
    pub(crate) flushing: Mutex<()>,
}

impl std::fmt::Debug for CommitLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitLog")
            .field("directory", &self.directory)
            .field("progress", &self.progress)
            .finish()
    }
}

/// The segment behind the active one.
#[derive(Debug, Default)]
pub(crate) struct NextSegment {
    pub(crate) ready: Option<Arc<Segment>>,
    failed: Option<(Instant, AppendError)>,
}

impl NextSegment {
    pub(crate) fn new(ready: Option<Arc<Segment>>) -> Self {
        Self { ready, failed: None }
    }
}

/// The cursor and what it says.
#[derive(Debug)]
pub(crate) struct CursorState {
    pub(crate) cursor: Cursor,
    pub(crate) promise: Promise,
}

impl CommitLog {
    /// Hands records that were checked, of `bytes` in all, to the log writer.
    pub(crate) fn append(
        &self,
        records: Vec<NewRecord>,
        bytes: usize,
        durability: Durability,
    ) -> Result<Append, AppendError> {
        let (what, limit_bytes) = ("an append with its headers", self.config.max_append_bytes());
        if bytes as u64 > limit_bytes {
            return Err(AppendError::TooLarge { what, bytes: bytes as u64, limit_bytes });
        }
        if let Some(refusal) = &*self.refusing.load()
            && !records.iter().all(|record| record.kind.may_use_reserve())
        {
            return Err(AppendError::clone(refusal));
        }
        self.ask(Work::Records(records), bytes, durability)
    }

    /// Hands other work to the log writer.
    pub(crate) fn ask(
        &self,
        work: Work,
        bytes: usize,
        durability: Durability,
    ) -> Result<Append, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.push(Request { work, bytes, durability, arrived: Instant::now(), reply })?;
        Ok(Append { answer: Gathered::new(answer) })
    }

    pub(crate) fn follows(&self) -> bool {
        self.following.load(Ordering::Acquire)
    }

    pub(crate) fn tell_followers(&self) {
        // Most have none.
        if self.advanced.receiver_count() > 0 {
            self.advanced.send_replace(());
        }
    }

    /// The segment that is being written.
    pub(crate) fn active(&self) -> Arc<Segment> {
        let segments = self.segments.load();
        segments.last().expect("a log has at least one segment").clone()
    }

    /// The segment that `physical_offset` lies in.
    pub(crate) fn segment_of(&self, physical_offset: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.load();
        let behind = segments.partition_point(|segment| segment.base() <= physical_offset);
        segments.get(behind.checked_sub(1)?).cloned()
    }

    /// Makes the log durable up to `upto`, which was written to `segment` (or lies in front of it: a segment is
    /// flushed before the next one is written).
    pub(crate) fn flush(&self, segment: &Segment, upto: u64) -> Result<(), AppendError> {
        let _one_at_a_time = self.flushing.lock();
        self.check_poison()?;
        segment.flush().map_err(|error| self.poison("flush", segment.path(), &error))?;
        self.progress.advance_flushed(upto);
        Ok(())
    }

    /// Makes durable what is written by now.
    pub(crate) fn flush_written(&self) -> Result<(), AppendError> {
        // In this order: an offset read first cannot lie behind a segment read later.
        let upto = self.progress.written();
        if self.progress.flushed() >= upto {
            return self.check_poison();
        }
        self.flush(&self.active(), upto)
    }

    /// Lets the cursor say what is flushed by now, so that the log may be written further.
    pub(crate) fn advance_cursor(&self) -> Result<(), AppendError> {
        self.move_cursor(|promise| promise)
    }

    /// Changes what the cursor says, durably, and brings its `flushed` and `limit` up to date.
    pub(crate) fn move_cursor(&self, change: impl FnOnce(Promise) -> Promise) -> Result<(), AppendError> {
        let mut state = self.cursor.lock();
        self.check_poison()?;
        let flushed = self.progress.flushed();
        let promise = Promise { flushed, limit: flushed + REACH_BYTES, ..change(state.promise) };
        if promise == state.promise {
            return Ok(());
        }
        match state.cursor.write(promise) {
            // Its blocks are there; where a file system needs new ones all the same, there may be some later.
            Err(error) if disk::is_no_space(&error) => tracing::warn!(%error, "the cursor stays behind"),
            Err(error) => return Err(self.poison("write", state.cursor.path(), &error)),
            Ok(()) => {
                state.promise = promise;
                self.limit.store(promise.limit, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Makes sure that there is a segment of `length` bytes behind the active one.
    pub(crate) fn prepare_next(&self, length: u64) -> Result<(), AppendError> {
        let mut next = self.next.lock();
        match next.ready.take() {
            Some(ready) if ready.length() == length => {
                next.ready = Some(ready);
                return Ok(());
            }
            Some(other) => {
                let removed = self.disk.remove_file(other.path());
                removed.map_err(|error| self.poison("remove", other.path(), &error))?;
            }
            None => {}
        }
        if let Some((_, error)) = next.failed.as_ref().filter(|(when, _)| when.elapsed() < RETRY_AFTER) {
            return Err(error.clone());
        }
        match self.create_next(length) {
            Ok(segment) => {
                *next = NextSegment::new(Some(Arc::new(segment)));
                Ok(())
            }
            Err(error) => {
                if next.failed.is_none() {
                    tracing::warn!(%error, "cannot make the next segment");
                }
                next.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Initialises some more of the next segment's blocks, unless the log has that much time yet: all are to be done when
    /// the active one is full. `false`: there is nothing to do for now.
    ///
    /// A flush into blocks that were never written waits for the file system's journal, and on the log writer's thread
    /// zeros would cost as much time as records.
    pub(crate) fn initialise_next(&self) -> Result<bool, AppendError> {
        // Keeps the log writer from writing records to it.
        let next = self.next.lock();
        let Some(segment) = &next.ready else { return Ok(false) };
        let active = self.active();
        let start = active.base() + active.length() / PREPARE_AT;
        let behind_start = self.progress.written().saturating_sub(start) + INITIALISE_BYTES;
        let wanted =
            u128::from(segment.length()) * u128::from(behind_start) / u128::from(active.end() - start);
        if u128::from(segment.initialised() - segment.base()) >= wanted.min(segment.length().into()) {
            return Ok(false);
        }
        match segment.initialise(INITIALISE_BYTES) {
            // It can be written all the same, a little slower.
            Err(error) if disk::is_no_space(&error) => Ok(false),
            initialised => {
                initialised.map_err(|error| self.poison("write zeros to", segment.path(), &error))?;
                Ok(true)
            }
        }
    }

    /// Makes the segment behind the active one, which was prepared, the active one. Only the log writer does that.
    pub(crate) fn activate_next(&self) -> Arc<Segment> {
        // Both under one lock: were the segment taken first, a second one could be made in its place meanwhile.
        let mut next = self.next.lock();
        let ready = next.ready.take().expect("it was prepared, and nobody else takes it");
        let mut segments = Vec::clone(&self.segments.load());
        segments.push(ready.clone());
        self.segments.store(Arc::new(segments));
        ready
    }

    /// The segment in front leaves the log; only the maintenance thread does that.
    pub(crate) fn drop_oldest(&self) {
        // Not while another one is added at the end.
        let _next = self.next.lock();
        let segments = self.segments.load();
        self.segments.store(Arc::new(segments[1..].to_vec()));
    }

    /// Lets a file become the next segment, if there is none and if it has the right length; else gives it back.
    pub(crate) fn recycle(&self, file: Discarded) -> Result<Option<Discarded>, AppendError> {
        let mut next = self.next.lock();
        if next.ready.is_some() || file.length() != self.config.segment_size_bytes {
            return Ok(Some(file));
        }
        let directory = &self.directory.commit_log;
        let segment = file.recycle(self.active().end());
        let segment = segment.map_err(|error| self.poison("recycle a segment in", directory, &error))?;
        *next = NextSegment::new(Some(Arc::new(segment)));
        Ok(None)
    }

    fn create_next(&self, length: u64) -> Result<Segment, AppendError> {
        let directory = &self.directory.commit_log;
        let needed_bytes = length + self.config.disk_reserve_bytes;
        let space = self.disk.space(directory);
        let available_bytes =
            space.map_err(|error| self.poison("look at", directory, &error))?.available_bytes;
        if available_bytes < needed_bytes {
            return Err(AppendError::DiskFull { needed_bytes, available_bytes });
        }
        let base = self.active().end();
        Segment::create(self.disk.clone(), directory, base, length).map_err(|error| {
            if disk::is_no_space(&error) {
                return AppendError::DiskFull { needed_bytes, available_bytes };
            }
            self.poison("make a segment in", directory, &error)
        })
    }

    /// Stops the store: nothing is written any more, everyone who waits or comes is told the first reason.
    pub(crate) fn poison(&self, action: &str, path: &std::path::Path, error: &io::Error) -> AppendError {
        self.poison_because(format!("cannot {action} {}: {error}", path.display()).into())
    }

    pub(crate) fn poison_because(&self, reason: Arc<str>) -> AppendError {
        let first = self.poisoned.send_if_modified(|poisoned| {
            let first = poisoned.is_none();
            poisoned.get_or_insert_with(|| reason.clone());
            first
        });
        if first {
            tracing::error!(%reason, "the store stopped taking records");
        }
        let error = self.check_poison().expect_err("it was set above");
        self.inbox.fail(&error);
        error
    }

    pub(crate) fn check_poison(&self) -> Result<(), AppendError> {
        match &*self.poisoned.borrow() {
            Some(reason) => Err(AppendError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }
}

/// Poisons the store when the thread that holds it panics: its half-done work must not be built upon.
#[derive(Debug)]
pub(crate) struct PanicGuard(pub(crate) Arc<CommitLog>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or("a thread of the store").to_owned();
            self.0.poison_because(format!("{name} panicked").into());
        }
    }
}
