//! Giving space back: asks the rules of `retention.rs` about the oldest segment, appends once more what is still needed of
//! it, and removes it. Also shortens the queues that are kept for a shorter time than the rest, and says when the disk is
//! too full for messages. On the maintenance thread, which has more to do: one segment at a time.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::Durability;
use crate::commit_log::CommitLog;
use crate::cursor::Promise;
use crate::error::{AppendError, ReadError};
use crate::index::sealed::SealedIndex;
use crate::record::{NewRecord, PhysicalOffset, QueueNumber};
use crate::retention::{self, Oldest, Reason, Situation, Space, Verdict};
use crate::segment::{Discarded, Segment};

/// Records that are asked for at once when something of a segment is still needed.
const PINNED_MAX: usize = 1024;
/// About so much of them is appended at once.
const PINNED_BYTES: usize = 1 << 20;
/// The other work of the thread waits for this long at most while they are appended.
const PINNED_TIME: Duration = Duration::from_millis(100);

/// How often a segment that somebody has in hand is looked at once more before it counts as held for longer.
const LET_GO_TRIES: usize = 100;

#[derive(Debug)]
pub(crate) struct Cleanup {
    log: Arc<CommitLog>,
    /// When the oldest segment is looked at again.
    due: Instant,
    /// Removed segments that are still read. They are kept until they are not, so that it is this thread which gives
    /// the blocks of a large file back, and so that their space counts as free: it will be.
    leaving: Vec<Leaving>,
    /// Where the last segment ends that could not go because of what it holds.
    stuck: u64,
    /// What projections need and nothing is left of: no segment stays for that.
    given_up: BTreeSet<PhysicalOffset>,
}

#[derive(Debug)]
enum Leaving {
    /// Somebody is about to read it.
    Held(Arc<Segment>),
    Discarded(Discarded),
}

impl Leaving {
    /// `None`: nobody reads it any more, and it is gone.
    fn settle(self) -> Option<Self> {
        let discarded = match self {
            Self::Held(segment) => match Arc::try_unwrap(segment) {
                Ok(segment) => segment.discard(),
                Err(segment) => return Some(Self::Held(segment)),
            },
            Self::Discarded(discarded) => discarded,
        };
        discarded.is_read().then_some(Self::Discarded(discarded))
    }

    fn length(&self) -> u64 {
        match self {
            Self::Held(segment) => segment.length(),
            Self::Discarded(discarded) => discarded.length(),
        }
    }
}

/// What has become of the records in a segment that are still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pinned {
    Nothing,
    /// There are more.
    Moving,
    /// Another store moves them.
    Awaited,
    /// They cannot be moved.
    Stuck,
}

impl Cleanup {
    pub(crate) fn new(log: Arc<CommitLog>) -> Self {
        Self { log, due: Instant::now(), leaving: Vec::new(), stuck: 0, given_up: BTreeSet::new() }
    }

    /// Does what is due. `covered`: what lies below is contained in both kept snapshots. `true`: a segment waits for
    /// another snapshot.
    pub(crate) fn work(&mut self, covered: u64) -> Result<bool, AppendError> {
        self.leaving = std::mem::take(&mut self.leaving).into_iter().filter_map(Leaving::settle).collect();
        let space = self.space()?;
        self.admit(space);
        if Instant::now() < self.due {
            return Ok(false);
        }
        self.due = Instant::now() + self.log.config.cleanup_interval;
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.shorten_queues(now_ms);
        match self.judge_oldest(now_ms, space, covered) {
            Verdict::Stays => Ok(false),
            Verdict::AwaitsSnapshot(_) => Ok(true),
            Verdict::Goes(reason) => {
                if self.remove_oldest(reason)? {
                    // The next one soon, but not before everything else had its turn.
                    self.due = Instant::now();
                }
                Ok(false)
            }
        }
    }

    fn space(&self) -> Result<Space, AppendError> {
        let directory = &self.log.directory.commit_log;
        let space = self.log.disk.space(directory);
        let freed = self.leaving.iter().map(Leaving::length).sum();
        space
            .map(|space| space.with_freed(freed))
            .map_err(|error| self.log.poison("look at", directory, &error))
    }

    /// Lets messages in, or not.
    fn admit(&self, space: Space) {
        let refusal = retention::refusal(&self.log.config.retention, space);
        let before = self.log.refusing.load();
        match (&refusal, before.is_some()) {
            (Some(error), false) => tracing::error!(%error, "refuses messages"),
            (None, true) => tracing::info!("there is room for messages again"),
            (None, false) => return,
            (Some(_), true) => {}
        }
        self.log.refusing.store(refusal.map(Arc::new));
    }

    /// Readers of a queue that is kept for a shorter time do not see what is older, though its segment is still there.
    fn shorten_queues(&self, now_ms: u64) {
        let log = &self.log;
        let reserved = log.config.retention.reserved;
        for ends in log.index.all_ends().into_iter().filter(|ends| ends.start < ends.end) {
            let Some(own) = log.listener.reserved(ends.queue).filter(|own| *own < reserved) else { continue };
            // As a segment: what is as old as its reserve time has expired.
            let first_kept_ms = now_ms.saturating_sub(own.as_millis() as u64) + 1;
            match log.offset_by_time(ends.queue, first_kept_ms) {
                Ok(offset) => log.index.trim(ends.queue, offset.0),
                Err(error) => tracing::warn!(queue = ends.queue.0, %error, "cannot shorten a queue"),
            }
        }
    }

    fn judge_oldest(&self, now_ms: u64, space: Space, covered: u64) -> Verdict {
        let segments = self.log.segments.load();
        let [oldest, _, ..] = &segments[..] else { return Verdict::Stays };
        let Some(index) = self.log.index.file_of(oldest.base()) else { return Verdict::Stays };
        let config = &self.log.config;
        let lengths: u64 = segments.iter().map(|segment| segment.length()).sum();
        let situation = Situation {
            now_ms,
            hour: local_hour(now_ms),
            log_bytes: lengths + config.segment_size_bytes,
            space,
            covered,
        };
        let oldest = Oldest {
            end: oldest.end(),
            last_store_time_ms: self.last_store_time_ms(&index, &segments[1]),
            reserved: self.longest_reserve(&index),
        };
        retention::judge(&config.retention, &situation, &oldest)
    }

    /// Of a segment of which nothing was left, and nothing mended yet, that of the next one.
    fn last_store_time_ms(&self, index: &SealedIndex, next: &Segment) -> u64 {
        match index.store_times_ms().1 {
            0 => self.log.index.file_of(next.base()).map_or(0, |next| next.store_times_ms().1),
            own => own,
        }
    }

    /// For how long the queues of a segment are kept; those of which nothing is left there do not count.
    fn longest_reserve(&self, index: &SealedIndex) -> Duration {
        let usual = self.log.config.retention.reserved;
        let own = index.runs().filter_map(|run| {
            let queue = QueueNumber(run.queue);
            let end = run.first_queue_offset + u64::from(run.count);
            let has_some = self.log.index.range(queue).start < end;
            has_some.then(|| self.log.listener.reserved(queue).unwrap_or(usual))
        });
        own.max().unwrap_or(usual)
    }

    /// `false`: it could not go, or not yet.
    fn remove_oldest(&mut self, reason: Reason) -> Result<bool, AppendError> {
        let Some(oldest) = self.log.segments.load().first().cloned() else { return Ok(false) };
        let end = oldest.end();
        match self.move_pinned(&oldest)? {
            Pinned::Nothing => {}
            Pinned::Moving => {
                self.due = Instant::now();
                return Ok(false);
            }
            Pinned::Awaited => return Ok(false),
            Pinned::Stuck => {
                if self.stuck < end {
                    self.stuck = end;
                    tracing::warn!(segment = %oldest.path().display(), ?reason, "stays: a projection needs records of it that cannot be moved");
                }
                return Ok(false);
            }
        }
        let log = &self.log;
        // First of all this is made durable: a crash from here on leaves files in front of the log, which the next start
        // removes.
        log.move_cursor(|promise| Promise { log_start: end, ..promise })?;
        if log.cursor.lock().promise.log_start < end {
            return Ok(false);
        }
        // Entries first: whoever finds one is to find its record.
        log.index.forget(oldest.base());
        log.progress.advance_log_start(end);
        log.damages.forget_below(end);
        log.epochs.lock().forget_below(end);
        log.drop_oldest();
        tracing::info!(segment = %oldest.path().display(), ?reason, log_start = end, "removes a segment");
        let disk_is_short = matches!(reason, Reason::ExpiredDiskUsed | Reason::DiskUsed);
        self.remove_files(oldest, !disk_is_short)?;
        Ok(true)
    }

    fn remove_files(&mut self, oldest: Arc<Segment>, may_recycle: bool) -> Result<(), AppendError> {
        let log = self.log.clone();
        let (path, directory) = (oldest.path().to_owned(), &log.directory.commit_log);
        let index = path.with_extension("idx");
        match log.disk.remove_file(&index) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(log.poison("remove", &index, &error));
            }
            _ => {}
        }
        let leaving = match let_go(oldest).map(Segment::discard) {
            Ok(discarded) if !discarded.is_read() && may_recycle => match log.recycle(discarded)? {
                None => return Ok(()),
                Some(discarded) => Leaving::Discarded(discarded),
            },
            Ok(discarded) => Leaving::Discarded(discarded),
            Err(held) => Leaving::Held(held),
        };
        // Readers of the map do not notice.
        log.disk.remove_file(&path).map_err(|error| log.poison("remove", &path, &error))?;
        log.disk.sync_directory(directory).map_err(|error| log.poison("flush", directory, &error))?;
        self.leaving.extend(leaving.settle());
        Ok(())
    }

    /// Appends what the projections need of a segment once more, at the end of the log.
    fn move_pinned(&mut self, segment: &Segment) -> Result<Pinned, AppendError> {
        let started = Instant::now();
        let mut before = Vec::new();
        loop {
            let below = PhysicalOffset(segment.end());
            let projections = self.log.projections.iter();
            // So many that those which cannot be moved do not hide the others.
            let max = PINNED_MAX + self.given_up.len();
            let mut pinned: Vec<_> = projections.flat_map(|part| part.pinned(below, max)).collect();
            pinned.retain(|at| !self.given_up.contains(at));
            pinned.sort_unstable();
            pinned.dedup();
            if pinned.is_empty() {
                return Ok(Pinned::Nothing);
            }
            if self.log.follows() {
                // The master moves them, and sends what it moved.
                return Ok(Pinned::Awaited);
            }
            // What was appended once more is known to lie elsewhere.
            if pinned.iter().any(|at| before.contains(at)) {
                return Ok(Pinned::Stuck);
            }
            if started.elapsed() >= PINNED_TIME {
                return Ok(Pinned::Moving);
            }
            match self.append_again(&pinned) {
                Ok(()) => before = pinned,
                Err(error @ AppendError::Poisoned(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "cannot move what is still needed of the oldest segment");
                    return Ok(Pinned::Stuck);
                }
            }
        }
    }

    /// Durable when this returns, and shown to the projections; but for what is damaged for good.
    fn append_again(&mut self, pinned: &[PhysicalOffset]) -> Result<(), AppendError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let limit_bytes = PINNED_BYTES.min(self.log.config.max_append_bytes() as usize);
        for at in pinned {
            let copy = match self.log.copy_of(at.0) {
                Ok(copy) if copy.queue.is_none() => NewRecord { kind: copy.kind.again(), ..copy },
                Ok(_) => return Err(AppendError::Invalid("a record of a queue keeps its place in it")),
                Err(error) if error.is_final() || matches!(error, ReadError::Corrupt { .. }) => {
                    tracing::error!(at = at.0, %error, "what a projection needs is lost");
                    self.given_up.insert(*at);
                    continue;
                }
                Err(error) => {
                    tracing::error!(at = at.0, %error, "what a projection needs cannot be read");
                    return Err(AppendError::Invalid("it cannot be read"));
                }
            };
            if bytes > 0 && bytes + copy.encoded_bytes() > limit_bytes {
                self.append(std::mem::take(&mut batch), std::mem::take(&mut bytes))?;
            }
            bytes += copy.encoded_bytes();
            batch.push(copy);
        }
        if batch.is_empty() { Ok(()) } else { self.append(batch, bytes) }
    }

    fn append(&self, records: Vec<NewRecord>, bytes: usize) -> Result<(), AppendError> {
        self.log.append(records, bytes, Durability::Disk)?.wait().map(drop)
    }
}

/// Who looks for a place in the log has all its segments in hand, but only for an instant.
fn let_go(mut segment: Arc<Segment>) -> Result<Segment, Arc<Segment>> {
    for _ in 0..LET_GO_TRIES {
        match Arc::try_unwrap(segment) {
            Ok(segment) => return Ok(segment),
            Err(held) => segment = held,
        }
        thread::yield_now();
    }
    Err(segment)
}

/// Hour of the day where this process runs.
fn local_hour(now_ms: u64) -> u8 {
    let now = i64::try_from(now_ms).ok().and_then(|now_ms| Timestamp::from_millisecond(now_ms).ok());
    now.map_or(0, |now| now.to_zoned(TimeZone::system()).hour().unsigned_abs())
}
