//! The maintenance thread: what must happen but nobody waits for. It makes the next segment, writes the index files of
//! filled ones, flushes what no one asked to be flushed, and takes snapshots. The log writer tells it by [`Wishes`].

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::cleanup::Cleanup;
use crate::commit_log::{CommitLog, PanicGuard};
use crate::damage::Damage;
use crate::disk;
use crate::epochs;
use crate::error::{AppendError, CloseError};
use crate::index::contents::Contents;
use crate::index::removal;
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::record::{Content, HEADER_BYTES, Header};
use crate::scrub::{Live, now_ms};
use crate::segment::{Segment, file_name};
use crate::snapshot::{self, Kept};
use crate::verify::{self, Halt, Visited};

/// Longest sleep: how late a snapshot or a further attempt to write an index file may be.
const TICK: Duration = Duration::from_millis(500);
/// The cursor moves on when this much more is flushed, or after this time if anything is.
const ADVANCE_BYTES: u64 = 32 << 20;
const ADVANCE_AFTER: Duration = Duration::from_secs(5);

/// What the maintenance thread is asked to do.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    prepare: bool,
    initialise: bool,
    flush: bool,
    /// Filled segments, in order.
    seal: VecDeque<Arc<Segment>>,
    /// Segments of which a part of the index file was found damaged, by where they start.
    rebuild: Vec<u64>,
    stop: Option<Stop>,
}

impl Wanted {
    fn is_something(&self) -> bool {
        let lists = !self.seal.is_empty() || !self.rebuild.is_empty();
        self.prepare || self.initialise || self.flush || lists || self.stop.is_some()
    }
}

/// How the maintenance thread ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// After a last flush and snapshot.
    InOrder,
    /// After a last flush.
    ToCut,
    /// At once, as a crash would.
    AtOnce,
}

impl Wishes {
    pub(crate) fn prepare(&self) {
        self.wish(|wanted| wanted.prepare = true);
    }

    pub(crate) fn initialise(&self) {
        self.wish(|wanted| wanted.initialise = true);
    }

    pub(crate) fn flush(&self) {
        self.wish(|wanted| wanted.flush = true);
    }

    pub(crate) fn seal(&self, segment: Arc<Segment>) {
        self.wish(|wanted| wanted.seal.push_back(segment));
    }

    pub(crate) fn rebuild_index(&self, segment: u64) {
        self.wish(|wanted| {
            if !wanted.rebuild.contains(&segment) {
                wanted.rebuild.push(segment);
            }
        });
    }

    pub(crate) fn stop(&self, how: Stop) {
        self.wish(|wanted| wanted.stop = Some(how));
    }

    fn wish(&self, what: impl FnOnce(&mut Wanted)) {
        what(&mut self.state.lock());
        self.changed.notify_one();
    }

    fn are_there(&self) -> bool {
        self.state.lock().is_something()
    }

    fn wait_until(&self, deadline: Instant) -> Wanted {
        let mut state = self.state.lock();
        while !state.is_something() {
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
    seal: VecDeque<Arc<Segment>>,
    last_flush: Instant,
    last_advance: Instant,
    last_snapshot: Instant,
    snapshots: Kept,
    cleanup: Cleanup,
    /// Value of `projected` that the last snapshot covers.
    snapshot_projected: u64,
}

impl Maintenance {
    /// `snapshots`: those that there are.
    pub(crate) fn new(log: Arc<CommitLog>, snapshots: Kept) -> Self {
        let now = Instant::now();
        Self {
            cleanup: Cleanup::new(log.clone()),
            log,
            seal: VecDeque::new(),
            last_flush: now,
            last_advance: now,
            last_snapshot: now,
            snapshots,
            snapshot_projected: 0,
        }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) -> Result<(), CloseError> {
        let _guard = PanicGuard(self.log.clone());
        let config = &self.log.config;
        let tick = TICK.min(config.flush_interval).min(config.snapshot_interval).min(config.cleanup_interval);
        loop {
            let mut wanted = self.log.wishes.wait_until(Instant::now() + tick);
            self.seal.append(&mut wanted.seal);
            match wanted.stop {
                Some(Stop::AtOnce) => return Ok(()),
                Some(Stop::InOrder) => return self.finish().and_then(|()| self.leave_snapshot()),
                Some(Stop::ToCut) => return self.finish(),
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
            match self.log.prepare_next(self.log.config.segment_size_bytes) {
                // The log writer tries again when it needs the segment.
                Ok(()) | Err(AppendError::DiskFull { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if wanted.flush || self.last_flush.elapsed() >= self.log.config.flush_interval {
            self.log.flush_written()?;
            self.last_flush = Instant::now();
        }
        self.advance_cursor()?;
        self.seal_filled()?;
        wanted.rebuild.iter().try_for_each(|&base| rebuild_index(&self.log, base))?;
        let awaited = self.cleanup.work(self.snapshots.before)?;
        let has_grown = self.log.progress.applied() != self.snapshots.newest;
        if (self.is_snapshot_due() || (awaited && has_grown)) && self.log.state_lacks_from.is_none() {
            self.last_snapshot = Instant::now();
            self.take_snapshot()?.unwrap_or_else(|error| tracing::warn!(%error, "no room for a snapshot"));
        }
        if wanted.initialise {
            while self.log.initialise_next()? {
                if self.log.wishes.are_there() {
                    // The rest comes after them.
                    self.log.wishes.initialise();
                    break;
                }
            }
        }
        Ok(())
    }

    /// The store is closed and the log writer gone: leaves everything as a quick start wants it.
    fn finish(&mut self) -> Result<(), CloseError> {
        self.log.flush_written().map_err(poisoned)?;
        self.seal_filled().map_err(poisoned)
    }

    /// The next start needs to read nothing of the log for its projections.
    fn leave_snapshot(&mut self) -> Result<(), CloseError> {
        if self.log.progress.applied() != self.snapshots.newest && self.log.state_lacks_from.is_none() {
            let taken = self.take_snapshot().map_err(poisoned)?;
            taken.map_err(|error| CloseError::Snapshot(Arc::new(error)))?;
        }
        Ok(())
    }

    /// Where little is written the cursor may stay behind for a while: it costs a flush of its own.
    fn advance_cursor(&mut self) -> Result<(), AppendError> {
        let log = &self.log;
        // In this order: the log writer may move both meanwhile, the cursor last.
        let promised = log.cursor.lock().promise.flushed;
        let behind = log.progress.flushed() - promised;
        if behind >= ADVANCE_BYTES || (behind > 0 && self.last_advance.elapsed() >= ADVANCE_AFTER) {
            self.last_advance = Instant::now();
            log.advance_cursor()?;
        }
        Ok(())
    }

    /// Writes index files in order; on a full disk the entries stay in memory until there is room.
    fn seal_filled(&mut self) -> Result<(), AppendError> {
        while let Some(segment) = self.seal.front() {
            match seal(&self.log, segment) {
                Ok(()) => self.seal.pop_front(),
                Err(error) if disk::is_no_space(&error) => break,
                Err(error) => return Err(self.log.poison("write the index of", segment.path(), &error)),
            };
        }
        Ok(())
    }

    fn is_snapshot_due(&self) -> bool {
        let config = &self.log.config;
        let logged = self.log.progress.applied() - self.snapshots.newest;
        let projected = self.log.projected.load(Ordering::Acquire) != self.snapshot_projected;
        logged >= config.snapshot_interval_bytes
            || (projected && self.last_snapshot.elapsed() >= config.snapshot_interval)
    }

    /// The outer error is the poison; the inner one a full disk.
    fn take_snapshot(&mut self) -> Result<io::Result<()>, AppendError> {
        let log = &self.log;
        // Read before the projections are asked: they may be ahead of it, never behind.
        let (offset, projected) = (log.progress.applied(), log.projected.load(Ordering::Acquire));
        let mut sections: Vec<_> =
            log.projections.iter().map(|part| (part.name(), part.snapshot())).collect();
        sections.push((removal::SECTION, removal::encode(&log.index.all_ends())));
        sections.push((epochs::SECTION, log.epochs.lock().encode()));
        // What a projection is shown next is behind it.
        sections.push(snapshot::reach(log.progress.confirmed()));
        // What the projections know must not be lost to a power cut that the snapshot survives.
        log.flush_written()?;
        let directory = &log.directory;
        let newest = self.snapshots.newest;
        match snapshot::write(&*log.disk, &directory.snapshots, directory.log, offset, &sections, newest) {
            Ok(()) => {
                if offset > newest {
                    self.snapshots = Kept { newest: offset, before: newest };
                }
                self.snapshot_projected = projected;
                Ok(Ok(()))
            }
            Err(error) if disk::is_no_space(&error) => Ok(Err(error)),
            Err(error) => Err(log.poison("write a snapshot to", &directory.snapshots, &error)),
        }
    }
}

fn poisoned(error: AppendError) -> CloseError {
    match error {
        AppendError::Poisoned(reason) => CloseError::Poisoned(reason),
        other => CloseError::Poisoned(other.to_string().into()),
    }
}

fn seal(log: &CommitLog, segment: &Segment) -> io::Result<()> {
    let mut contents = log.index.contents_below(&(segment.base()..segment.end()));
    log.index.adopt(&Arc::new(write_index(log, segment, &mut contents)?));
    Ok(())
}

fn write_index(log: &CommitLog, segment: &Segment, contents: &mut Contents) -> io::Result<SealedIndex> {
    let about = IndexedSegment { log: log.directory.log, base: segment.base(), length: segment.length() };
    let path = log.directory.commit_log.join(file_name(segment.base(), "idx"));
    sealed::write(&*log.disk, &path, about, contents)?;
    SealedIndex::open(path, about).map_err(io::Error::other)
}

/// Replaces the index file of the segment at `base` by one that is built from the log.
fn rebuild_index(log: &CommitLog, base: u64) -> Result<(), AppendError> {
    let Some(segment) = log.segment_of(base).filter(|_| log.index.file_of(base).is_some()) else {
        return Ok(());
    };
    tracing::warn!(segment = %segment.path().display(), "builds its index file anew: a part of it is damaged");
    // Else the store is being closed.
    let Ok(mut contents) = gather(log, &segment) else { return Ok(()) };
    match write_index(log, &segment, &mut contents) {
        Ok(index) => log.index.replace(&Arc::new(index)),
        Err(error) if disk::is_no_space(&error) => tracing::warn!(%error, "no room for an index file"),
        Err(error) => return Err(log.poison("write the index of", segment.path(), &error)),
    }
    Ok(())
}

/// Reads the contents of a sealed segment from its file, stepping over damage. Not through the map: an index file is often
/// found damaged because its device is failing, and that must not end the process.
fn gather(log: &CommitLog, segment: &Segment) -> Result<Contents, Halt> {
    let (mut contents, mut lost_bytes, since_ms) = (Contents::default(), 0, now_ms());
    let (base, range) = (segment.base(), segment.base()..segment.end());
    let mut goes_on = |_| true;
    let mut source = Live::new(log, base, 0, &mut goes_on);
    verify::records(&mut source, range, log.seal, &mut |visited| {
        match visited {
            Visited::Valid(Header { content: Content::Blank, .. }, _) => {}
            Visited::Valid(header @ Header { content: Content::Lost, .. }, _) => {
                lost_bytes += u64::from(header.length);
            }
            Visited::Valid(header, bytes) => {
                let lost_max = lost_bytes / HEADER_BYTES as u64;
                if let Err(reason) = contents.add(base, header, bytes, lost_max) {
                    let (from, to) = (header.physical_offset, header.end());
                    log.damages.add(Damage { from, to, reason });
                }
            }
            Visited::Invalid(stretch) => {
                log.damages.add_read(stretch.damage(), since_ms);
                lost_bytes += stretch.to - stretch.from;
            }
        }
        true
    })?;
    Ok(contents)
}
