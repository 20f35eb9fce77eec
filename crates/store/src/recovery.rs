//! Opening a log that may have ended anyhow: finds its end, brings index and projections to it, and decides between a
//! torn tail, which is cut, and damage, which is refused. Runs on the opening thread, before anyone else sees the store.
//!
//! How the two are told apart: a flush makes everything in front of it durable, so a crash can tear only what was
//! written after the last one. Hence an invalid record is damage if a snapshot covers it, if a record behind it was
//! written after a flush (its header says so), or if a later segment holds records. Otherwise all behind it is of the
//! same unflushed stretch, of which a power cut may keep any page and lose any other; nobody was promised it.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::Projection;
use crate::config::StoreConfig;
use crate::directory::Directory;
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::index::{Entry, QueueIndex, Run, SegmentRuns};
use crate::record::{self, HEADER_BYTES, Header, Invalid, PhysicalOffset, RecordKind};
use crate::segment::{Segment, file_name};
use crate::snapshot::{self, offset_of};

/// A log that is ready to be written and read.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) next: Option<Arc<Segment>>,
    pub(crate) index: QueueIndex,
    pub(crate) end: u64,
    pub(crate) store_time_ms: u64,
    pub(crate) snapshot_offset: u64,
    /// Filled segments without index file: there was no room for one.
    pub(crate) unsealed: Vec<(Arc<Segment>, u64)>,
}

/// Brings everything to the end of the log.
pub(crate) fn recover(
    disk: &Arc<dyn Disk>,
    directory: &Directory,
    config: &StoreConfig,
    projections: &[Arc<dyn Projection>],
) -> Result<Recovered, OpenError> {
    let snapshots = &directory.snapshots;
    let snapshot = snapshot::newest(snapshots, directory.store, projections);
    let snapshot = snapshot.map_err(OpenError::io("read a snapshot in", snapshots))?;
    for projection in projections {
        let Some(snapshot) = &snapshot else { break };
        let section =
            snapshot.section(projection.name()).expect("only snapshots with all sections are taken");
        projection.restore(section).map_err(|reason| OpenError::Restore {
            projection: projection.name(),
            snapshot: snapshot.path.clone(),
            reason,
        })?;
    }
    let snapshot_offset = snapshot.map_or(0, |snapshot| snapshot.log_offset);
    let segments = open_segments(disk, directory, config, snapshot_offset)?;
    let replay = Replay {
        disk,
        directory,
        projections,
        durable_below: snapshot_offset,
        index: QueueIndex::new(),
        store_time_ms: 0,
        unsealed: Vec::new(),
    };
    replay.run(segments)
}

/// Opens the segment files, in order and without gaps; makes the first one of a new store.
fn open_segments(
    disk: &Arc<dyn Disk>,
    directory: &Directory,
    config: &StoreConfig,
    snapshot_offset: u64,
) -> Result<VecDeque<Arc<Segment>>, OpenError> {
    let directory = &directory.commit_log;
    let mut segments = VecDeque::new();
    let mut end = 0;
    let missing = |offset, found| OpenError::MissingSegment { directory: directory.clone(), offset, found };
    for (base, path) in segment_files(directory).map_err(OpenError::io("list", directory))? {
        if base != end {
            return Err(missing(end, format!("the next one starts at {base}")));
        }
        let segment =
            Segment::open(disk.clone(), path.clone(), base).map_err(OpenError::io("open", &path))?;
        end = segment.end();
        segments.push_back(Arc::new(segment));
    }
    if snapshot_offset > end {
        return Err(missing(end, format!("a snapshot says that the log reaches to {snapshot_offset}")));
    }
    if segments.is_empty() {
        let first = Segment::create(disk.clone(), directory, 0, config.segment_size_bytes);
        segments.push_back(Arc::new(first.map_err(OpenError::io("make the first segment in", directory))?));
    }
    Ok(segments)
}

fn segment_files(directory: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if let Some(base) = offset_of(&path, "log") {
            found.push((base, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

struct Replay<'a> {
    disk: &'a Arc<dyn Disk>,
    directory: &'a Directory,
    projections: &'a [Arc<dyn Projection>],
    /// The snapshot's offset: projections have seen, and the device has had, everything in front of it.
    durable_below: u64,
    index: QueueIndex,
    store_time_ms: u64,
    unsealed: Vec<(Arc<Segment>, u64)>,
}

impl Replay<'_> {
    fn run(mut self, mut rest: VecDeque<Arc<Segment>>) -> Result<Recovered, OpenError> {
        let mut segments = Vec::new();
        while let Some(segment) = rest.pop_front() {
            segments.push(segment.clone());
            let io = |action| OpenError::io(action, segment.path());
            if let Some(index) = self.usable_index(&segment) {
                self.replay_sealed(&segment, &index, &rest)?;
                continue;
            }
            segment.forget_cache(self.durable_below.max(segment.base())).map_err(io("flush"))?;
            let mut runs = SegmentRuns::new();
            let scanned = scan(&segment, segment.base(), |header, bytes| {
                index_record(&mut runs, header);
                self.apply(header, bytes);
            });
            match scanned {
                Err(stopped) => {
                    judge(&segment, stopped, &rest, self.durable_below)?;
                    self.cut(&segment, &rest, stopped.at)?;
                    self.keep_in_memory(&runs);
                    return self.finish(segments, rest, stopped.at);
                }
                Ok(()) if rest.is_empty() => {
                    self.keep_in_memory(&runs);
                    return self.finish(segments, rest, segment.end());
                }
                Ok(()) => self.seal(&segment, &runs).map_err(io("write the index of"))?,
            }
        }
        // A segment is sealed only when the next one exists, so the loop ends in one that is not, or one is gone.
        let offset = segments.last().map_or(0, |segment| segment.end());
        let directory = self.directory.commit_log.clone();
        Err(OpenError::MissingSegment {
            directory,
            offset,
            found: "the log goes on behind its last file".into(),
        })
    }

    fn finish(
        self,
        segments: Vec<Arc<Segment>>,
        mut rest: VecDeque<Arc<Segment>>,
        end: u64,
    ) -> Result<Recovered, OpenError> {
        let next = rest.pop_front();
        if let Some(surplus) = rest.pop_front() {
            let directory = self.directory.commit_log.clone();
            let found =
                format!("{} lies too far behind the end of the log at {end}", surplus.path().display());
            return Err(OpenError::MissingSegment { directory, offset: end, found });
        }
        let (index, store_time_ms, unsealed) = (self.index, self.store_time_ms, self.unsealed);
        Ok(Recovered {
            segments,
            next,
            index,
            end,
            store_time_ms,
            snapshot_offset: self.durable_below,
            unsealed,
        })
    }

    fn about(&self, segment: &Segment) -> IndexedSegment {
        IndexedSegment { store: self.directory.store, base: segment.base(), length: segment.length() }
    }

    fn index_path(&self, segment: &Segment) -> PathBuf {
        self.directory.commit_log.join(file_name(segment.base(), "idx"))
    }

    /// Index files are used in order: behind a segment whose entries are in memory, the next one's have to be as well.
    fn usable_index(&self, segment: &Segment) -> Option<Arc<SealedIndex>> {
        let path = self.index_path(segment);
        if !self.unsealed.is_empty() || !path.exists() {
            return None;
        }
        let index = SealedIndex::open(path.clone(), self.about(segment)).and_then(|index| {
            let fits = self.index.continues_with(&index);
            fits.then_some(index).ok_or_else(|| "its queues do not go on where they ended".into())
        });
        index
            .inspect_err(
                |reason| tracing::warn!(index = %path.display(), reason, "builds an index file anew"),
            )
            .map(Arc::new)
            .ok()
    }

    fn replay_sealed(
        &mut self,
        segment: &Segment,
        index: &Arc<SealedIndex>,
        rest: &VecDeque<Arc<Segment>>,
    ) -> Result<(), OpenError> {
        self.index.adopt(index);
        self.store_time_ms = self.store_time_ms.max(index.last_store_time_ms());
        let from = self.durable_below.max(segment.base());
        if from >= segment.end() {
            return Ok(());
        }
        let scanned = scan(segment, from, |header, bytes| self.apply(header, bytes));
        // A segment is flushed before its index is written: nothing in it can be torn.
        scanned.or_else(|stopped| judge(segment, stopped, rest, segment.end()))
    }

    fn apply(&mut self, header: &Header, bytes: &Bytes) {
        self.store_time_ms = self.store_time_ms.max(header.store_time_ms);
        if header.physical_offset < self.durable_below || header.kind == Some(RecordKind::Message) {
            return;
        }
        if let Some(record) = header.record(bytes) {
            self.projections.iter().for_each(|projection| projection.apply(&record));
        }
    }

    fn seal(&mut self, segment: &Arc<Segment>, runs: &SegmentRuns) -> std::io::Result<()> {
        let (path, about) = (self.index_path(segment), self.about(segment));
        let written = match self.unsealed.is_empty() {
            true => sealed::write(&**self.disk, &path, about, self.store_time_ms, runs),
            false => Err(std::io::ErrorKind::StorageFull.into()),
        };
        match written {
            Ok(()) => {
                self.index.adopt(&Arc::new(SealedIndex::open(path, about).map_err(std::io::Error::other)?));
            }
            Err(error) if disk::is_no_space(&error) => {
                self.keep_in_memory(runs);
                self.unsealed.push((segment.clone(), self.store_time_ms));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn keep_in_memory(&self, runs: &SegmentRuns) {
        for (queue, run) in runs {
            self.index.push(record::QueueNumber(*queue), run.first_queue_offset, run.entries.iter().copied());
        }
    }

    /// Removes what lies behind the end, so that it can never be taken for records that are written there later.
    fn cut(&self, segment: &Segment, rest: &VecDeque<Arc<Segment>>, end: u64) -> Result<(), OpenError> {
        let mut bytes = 0;
        for (segment, from) in
            std::iter::once((segment, end)).chain(rest.iter().map(|segment| (&**segment, segment.base())))
        {
            bytes += segment.erase(from).map_err(OpenError::io("cut", segment.path()))?;
        }
        if bytes > 0 {
            tracing::warn!(segment = %segment.path().display(), offset = end, bytes, "cut a torn tail");
        }
        Ok(())
    }
}

fn index_record(runs: &mut SegmentRuns, header: &Header) {
    let Some(queue) = header.queue else { return };
    let run = runs
        .entry(queue.0)
        .or_insert_with(|| Run { first_queue_offset: header.queue_offset, entries: Vec::new() });
    run.entries.push(Entry {
        physical_offset: PhysicalOffset(header.physical_offset),
        size: header.length,
        tag_hash: header.tag_hash,
    });
}

/// Where a scan ended and why.
#[derive(Debug, Clone, Copy)]
struct Stopped {
    at: u64,
    why: Invalid,
}

/// Visits the records from `from` to the end of the segment or to the first invalid one.
fn scan(segment: &Segment, from: u64, mut visit: impl FnMut(&Header, &Bytes)) -> Result<(), Stopped> {
    let mut at = from;
    while at + HEADER_BYTES as u64 <= segment.end() {
        let bytes = segment.slice(at..segment.end());
        let header = record::decode(&bytes, at).map_err(|why| Stopped { at, why })?;
        if header.kind.is_some() {
            visit(&header, &bytes);
        }
        at += u64::from(header.length);
    }
    Ok(())
}

/// Fails unless what follows `stopped` may be cut; see the head of this module.
fn judge(
    segment: &Segment,
    stopped: Stopped,
    rest: &VecDeque<Arc<Segment>>,
    durable_below: u64,
) -> Result<(), OpenError> {
    let Stopped { at, why } = stopped;
    let path = segment.path();
    if why.is_unsupported() {
        return Err(OpenError::Unsupported { segment: path.to_owned(), offset: at, reason: why });
    }
    let unreadable = |error| OpenError::io("search", path)(error);
    let mut behind = valid_behind(segment, at).map_err(unreadable)?;
    for later in rest {
        if let Some(found) = valid_behind(later, later.base()).map_err(unreadable)? {
            behind =
                Some(Behind { first: behind.map_or(found.first, |own| own.first), flushed_before: true });
        }
    }
    if at < durable_below || behind.is_some_and(|behind| behind.flushed_before) {
        return Err(OpenError::Damaged {
            segment: path.to_owned(),
            offset: at,
            found: why.to_string(),
            next_valid: behind.map(|behind| behind.first),
        });
    }
    if let Some(Behind { first, .. }) = behind {
        tracing::warn!(offset = at, first, "records behind the tear were never flushed and are cut with it");
    }
    Ok(())
}

/// Valid records in a stretch that should hold none.
#[derive(Debug, Clone, Copy)]
struct Behind {
    first: u64,
    /// One of them was written after a flush.
    flushed_before: bool,
}

/// Looks at every place where a record may start, from `from` on.
fn valid_behind(segment: &Segment, from: u64) -> std::io::Result<Option<Behind>> {
    let mut behind: Option<Behind> = None;
    let mut next = from;
    for data in segment.data_from(from)? {
        let mut at = data.start.max(next).next_multiple_of(record::ALIGN as u64);
        while at < data.end && at + HEADER_BYTES as u64 <= segment.end() {
            match record::decode(&segment.slice(at..segment.end()), at) {
                Err(why) if !why.is_unsupported() => at += record::ALIGN as u64,
                found => {
                    let flushed_before = found.is_ok_and(|header| header.flushed_before);
                    let known = behind.get_or_insert(Behind { first: at, flushed_before });
                    known.flushed_before |= flushed_before;
                    at += found.map_or(record::ALIGN as u64, |header| u64::from(header.length));
                }
            }
        }
        next = at;
    }
    Ok(behind)
}
