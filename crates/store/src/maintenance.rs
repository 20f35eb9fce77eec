//! The maintenance thread: what must happen but nobody waits for. It makes the next segment, writes the index files of
//! filled ones, flushes what no one asked to be flushed, and takes snapshots. The log writer tells it by [`Wishes`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::commit_log::{CommitLog, PanicGuard};
use crate::disk;
use crate::error::{AppendError, CloseError};
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::segment::{Segment, file_name};
use crate::snapshot;

/// Longest sleep: how late a snapshot or a further attempt to write an index file may be.
const TICK: Duration = Duration::from_millis(500);

/// What the maintenance thread is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    prepare: bool,
    flush: bool,
    /// Filled segments, in order, with the store time of their last record.
    seal: VecDeque<(Arc<Segment>, u64)>,
    stop: Option<Stop>,
}

/// How the maintenance thread ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// After a last flush and snapshot.
    InOrder,
    /// At once, as a crash would.
    AtOnce,
}

impl Wishes {
    pub(crate) fn prepare(&self) {
        self.wish(|wanted| wanted.prepare = true);
    }

    pub(crate) fn flush(&self) {
        self.wish(|wanted| wanted.flush = true);
    }

    pub(crate) fn seal(&self, segment: Arc<Segment>, last_store_time_ms: u64) {
        self.wish(|wanted| wanted.seal.push_back((segment, last_store_time_ms)));
    }

    pub(crate) fn stop(&self, how: Stop) {
        self.wish(|wanted| wanted.stop = Some(how));
    }

    fn wish(&self, what: impl FnOnce(&mut Wanted)) {
        what(&mut self.state.lock());
        self.changed.notify_one();
    }

    fn wait_until(&self, deadline: Instant) -> Wanted {
        let mut state = self.state.lock();
        while !(state.prepare || state.flush || !state.seal.is_empty() || state.stop.is_some()) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        std::mem::take(&mut *state)
    }
}

#[derive(Debug)]
pub(crate) struct Maintenance {
    log: Arc<CommitLog>,
    seal: VecDeque<(Arc<Segment>, u64)>,
    last_flush: Instant,
    last_snapshot: Instant,
    snapshot_offset: u64,
    /// Value of `projected` that the last snapshot covers.
    snapshot_projected: u64,
}

impl Maintenance {
    /// `snapshot_offset`: that of the newest snapshot there is.
    pub(crate) fn new(log: Arc<CommitLog>, snapshot_offset: u64) -> Self {
        let now = Instant::now();
        let (last_flush, last_snapshot) = (now, now);
        Self { log, seal: VecDeque::new(), last_flush, last_snapshot, snapshot_offset, snapshot_projected: 0 }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) -> Result<(), CloseError> {
        let _guard = PanicGuard(self.log.clone());
        let tick = TICK.min(self.log.config.flush_interval).min(self.log.config.snapshot_interval);
        loop {
            let mut wanted = self.log.wishes.wait_until(Instant::now() + tick);
            self.seal.append(&mut wanted.seal);
            match wanted.stop {
                Some(Stop::AtOnce) => return Ok(()),
                Some(Stop::InOrder) => return self.finish(),
                None => {}
            }
            // An error has poisoned the store by now; what is left is to wait for the end.
            if self.log.check_poison().is_ok() {
                let _ = self.work(&wanted);
            }
        }
    }

    fn work(&mut self, wanted: &Wanted) -> Result<(), AppendError> {
        if wanted.prepare {
            match self.log.prepare_next() {
                // The log writer tries again when it needs the segment.
                Ok(()) | Err(AppendError::DiskFull { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if wanted.flush || self.last_flush.elapsed() >= self.log.config.flush_interval {
            self.log.flush_written()?;
            self.last_flush = Instant::now();
        }
        self.seal_filled()?;
        if self.is_snapshot_due() {
            self.last_snapshot = Instant::now();
            self.take_snapshot()?.unwrap_or_else(|error| tracing::warn!(%error, "no room for a snapshot"));
        }
        Ok(())
    }

    /// The store is closed and the log writer gone: leaves everything as a quick start wants it.
    fn finish(&mut self) -> Result<(), CloseError> {
        let poisoned = |error: AppendError| match error {
            AppendError::Poisoned(reason) => CloseError::Poisoned(reason),
            other => CloseError::Poisoned(other.to_string().into()),
        };
        self.log.flush_written().map_err(poisoned)?;
        self.seal_filled().map_err(poisoned)?;
        if self.log.progress.applied() != self.snapshot_offset {
            let taken = self.take_snapshot().map_err(poisoned)?;
            taken.map_err(|error| CloseError::Snapshot(Arc::new(error)))?;
        }
        Ok(())
    }

    /// Writes index files in order; on a full disk the entries stay in memory until there is room.
    fn seal_filled(&mut self) -> Result<(), AppendError> {
        while let Some((segment, last_store_time_ms)) = self.seal.front() {
            match seal(&self.log, segment, *last_store_time_ms) {
                Ok(()) => self.seal.pop_front(),
                Err(error) if disk::is_no_space(&error) => break,
                Err(error) => return Err(self.log.poison("write the index of", segment.path(), &error)),
            };
        }
        Ok(())
    }

    fn is_snapshot_due(&self) -> bool {
        let config = &self.log.config;
        let logged = self.log.progress.applied() - self.snapshot_offset;
        let projected = self.log.projected.load(Ordering::Acquire) != self.snapshot_projected;
        logged >= config.snapshot_interval_bytes
            || (projected && self.last_snapshot.elapsed() >= config.snapshot_interval)
    }

    /// The outer error is the poison; the inner one a full disk.
    fn take_snapshot(&mut self) -> Result<io::Result<()>, AppendError> {
        let log = &self.log;
        // Read before the projections are asked: they may be ahead of it, never behind.
        let (offset, projected) = (log.progress.applied(), log.projected.load(Ordering::Acquire));
        let sections: Vec<_> = log.projections.iter().map(|part| (part.name(), part.snapshot())).collect();
        // What the projections know must not be lost to a power cut that the snapshot survives.
        log.flush_written()?;
        let directory = &log.directory;
        match snapshot::write(&*log.disk, &directory.snapshots, directory.store, offset, &sections) {
            Ok(()) => {
                (self.snapshot_offset, self.snapshot_projected) = (offset, projected);
                Ok(Ok(()))
            }
            Err(error) if disk::is_no_space(&error) => Ok(Err(error)),
            Err(error) => Err(log.poison("write a snapshot to", &directory.snapshots, &error)),
        }
    }
}

fn seal(log: &CommitLog, segment: &Segment, last_store_time_ms: u64) -> io::Result<()> {
    let runs = log.index.recent_below(segment.end());
    let about = IndexedSegment { store: log.directory.store, base: segment.base(), length: segment.length() };
    let path = log.directory.commit_log.join(file_name(segment.base(), "idx"));
    sealed::write(&*log.disk, &path, about, last_store_time_ms, &runs)?;
    log.index.adopt(&Arc::new(SealedIndex::open(path, about).map_err(io::Error::other)?));
    Ok(())
}
