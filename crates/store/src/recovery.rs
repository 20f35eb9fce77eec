//! Opening a log that may have ended anyhow: finds its end, brings index and projections to it, cuts a torn tail and goes
//! on behind damage (`scan.rs` tells the two apart). Runs on the opening thread, before anyone else sees the store.

pub(crate) mod scan;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::Projection;
use crate::config::StoreConfig;
use crate::cursor::{Cursor, Known, Promise, REACH_BYTES};
use crate::damage::Damage;
use crate::directory::Directory;
use crate::disk::{self, Disk};
use crate::epochs::{self, EpochStart, Epochs};
use crate::error::OpenError;
use crate::index::QueueIndex;
use crate::index::contents::Contents;
use crate::index::removal::{self, Ends};
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::record::{Content, HEADER_BYTES, Header, RecordKind, Seal};
use crate::segment::{Segment, file_name};
use crate::snapshot::{self, Kept, Snapshot, offset_of};
use scan::{Bounds, Stopped, Verdict, judge, walk};

/// A log that is ready to be written and read.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) next: Option<Arc<Segment>>,
    pub(crate) index: QueueIndex,
    pub(crate) cursor: Cursor,
    pub(crate) promise: Promise,
    pub(crate) damage: Vec<Damage>,
    /// See [`crate::commit_log::CommitLog`].
    pub(crate) state_lacks_from: Option<u64>,
    pub(crate) end: u64,
    pub(crate) epochs: Epochs,
    pub(crate) store_time_ms: u64,
    pub(crate) snapshots: Kept,
    /// Filled segments without index file: there was no room for one.
    pub(crate) unsealed: Vec<Arc<Segment>>,
}

/// Brings everything to the end of the log.
pub(crate) fn recover(
    disk: &Arc<dyn Disk>,
    directory: &Directory,
    config: &StoreConfig,
    projections: &[Arc<dyn Projection>],
) -> Result<Recovered, OpenError> {
    let root = &directory.root;
    let cursor =
        Cursor::open(disk, root, directory.log).map_err(OpenError::io("open the cursor of", root))?;
    let (cursor, known) = cursor;
    let snapshot = restore_snapshot(directory, projections)?;
    let snapshot_offset = snapshot.as_ref().map(|snapshot| snapshot.log_offset);
    let (segments, missing) = open_segments(disk, directory, config, snapshot_offset.unwrap_or(0), known)?;
    let log_start = segments[0].base();
    // What the deleted part of the log said: the state of the projections, and where queues ended.
    if snapshot_offset.is_none_or(|offset| offset < log_start) && log_start > 0 {
        return Err(OpenError::NoSnapshot { directory: root.clone(), log_start });
    }
    let snapshot_offset = snapshot_offset.unwrap_or(0);
    let durable_below = snapshot_offset.max(known.flushed);
    let bounds = Bounds { durable_below, limit: known.limit, follows: config.follows };
    let newest = snapshot_offset;
    let older = snapshot::list(&directory.snapshots).map_err(OpenError::io("list", &directory.snapshots))?;
    let before = older.into_iter().map(|(offset, _)| offset).find(|offset| *offset < newest).unwrap_or(0);
    let mut replay = Replay {
        disk,
        directory,
        projections,
        snapshot_offset,
        no_progress_below: snapshot.as_ref().and_then(Snapshot::given_up_below).unwrap_or(0),
        epochs: snapshot.as_ref().map(epochs_of).transpose()?.unwrap_or_default(),
        ends: snapshot.map(|snapshot| queue_ends(&snapshot)).transpose()?.unwrap_or_default(),
        snapshots: Kept { newest, before },
        bounds,
        log: directory.log.seal(),
        index: QueueIndex::new(),
        store_time_ms: 0,
        unsealed: Vec::new(),
        damage: Vec::new(),
        state_lacks_from: None,
        given_up_bytes: 0,
    };
    missing.into_iter().for_each(|damage| replay.lost(damage));
    let mut recovered = replay.run(segments, cursor)?;
    recovered.state_lacks_from = recovered.state_lacks_from.filter(|_| config.mends);
    Ok(recovered)
}

/// The newest usable snapshot, whose content the projections have then.
fn restore_snapshot(
    directory: &Directory,
    projections: &[Arc<dyn Projection>],
) -> Result<Option<Snapshot>, OpenError> {
    let snapshots = &directory.snapshots;
    let newest = snapshot::newest(snapshots, directory.log, projections);
    let Some(snapshot) = newest.map_err(OpenError::io("read a snapshot in", snapshots))? else {
        return Ok(None);
    };
    for projection in projections.iter().filter(|_| snapshot.given_up_below().is_none()) {
        let Some(section) = snapshot.section(projection.name()) else {
            // Nothing of what it follows had been written: it is empty, and so it stays.
            tracing::info!(snapshot = %snapshot.path.display(), projection = projection.name(), "begins empty");
            continue;
        };
        projection.restore(section).map_err(|reason| OpenError::Restore {
            projection: projection.name(),
            snapshot: snapshot.path.clone(),
            reason,
        })?;
    }
    if snapshot.given_up_below().is_some() {
        tracing::warn!(snapshot = %snapshot.path.display(), "the state in front of it was given up by a repair");
    }
    Ok(Some(snapshot))
}

/// Where the queues ended at the time of a snapshot.
fn queue_ends(snapshot: &Snapshot) -> Result<Vec<Ends>, OpenError> {
    let section = snapshot.section(removal::SECTION).unwrap_or_default();
    removal::decode(section).ok_or_else(|| OpenError::Restore {
        projection: removal::SECTION,
        snapshot: snapshot.path.clone(),
        reason: "it is no list of queues".into(),
    })
}

/// The masters whose records a snapshot contains.
fn epochs_of(snapshot: &Snapshot) -> Result<Epochs, OpenError> {
    let Some(section) = snapshot.section(epochs::SECTION) else { return Ok(Epochs::default()) };
    let epochs = Epochs::decode(section).ok_or_else(|| OpenError::Restore {
        projection: epochs::SECTION,
        snapshot: snapshot.path.clone(),
        reason: "it is no list of masters".into(),
    })?;
    Ok(epochs.below(snapshot.log_offset))
}

/// Opens the segment files, in order and without gaps; makes the first one of a new store, and those that are missing if
/// their content may come from elsewhere.
fn open_segments(
    disk: &Arc<dyn Disk>,
    directory: &Directory,
    config: &StoreConfig,
    snapshot_offset: u64,
    known: Known,
) -> Result<(VecDeque<Arc<Segment>>, Vec<Damage>), OpenError> {
    let directory = &directory.commit_log;
    let (mut segments, mut gaps) = (VecDeque::new(), Vec::new());
    let missing = |offset, found| OpenError::MissingSegment { directory: directory.clone(), offset, found };
    let files = segment_files(directory).map_err(OpenError::io("list", directory))?;
    // When that is not known, what lies in front of the first file was deleted: nobody can say otherwise.
    let mut end = known.log_start.or(files.first().map(|(base, _)| *base)).unwrap_or(0);
    for (base, path) in files {
        let segment =
            Segment::open(disk.clone(), path.clone(), base).map_err(OpenError::io("open", &path))?;
        if segment.end() <= end && segments.is_empty() {
            finish_deletion(&**disk, directory, &path).map_err(OpenError::io("remove", &path))?;
            continue;
        }
        if base != end {
            let length = config.segment_size_bytes;
            let whole = base > end && (base - end).is_multiple_of(length);
            if !whole || !config.mends || snapshot_offset < base {
                return Err(missing(end, format!("the next one starts at {base}")));
            }
            for at in (end..base).step_by(length as usize) {
                let made = Segment::create(disk.clone(), directory, at, length);
                segments.push_back(Arc::new(made.map_err(OpenError::io("make a segment in", directory))?));
                gaps.push(Damage {
                    from: at,
                    to: at + length,
                    reason: "its segment file was missing".into(),
                });
            }
        }
        end = segment.end();
        segments.push_back(Arc::new(segment));
    }
    for (who, reaches_to) in [("a snapshot", snapshot_offset), ("the cursor", known.flushed)] {
        if reaches_to > end {
            return Err(missing(end, format!("{who} says that the log reaches to {reaches_to}")));
        }
    }
    if segments.is_empty() {
        let first = Segment::create(disk.clone(), directory, end, config.segment_size_bytes);
        segments.push_back(Arc::new(first.map_err(OpenError::io("make the first segment in", directory))?));
    }
    Ok((segments, gaps))
}

/// Removes a file that lies in front of the log: a crash came between the new start of the log and this.
fn finish_deletion(disk: &dyn Disk, directory: &Path, path: &Path) -> std::io::Result<()> {
    tracing::info!(segment = %path.display(), "removes what an interrupted deletion has left");
    let index = path.with_extension("idx");
    if index.try_exists()? {
        disk.remove_file(&index)?;
    }
    disk.remove_file(path)?;
    disk.sync_directory(directory)
}

/// The segment files in `directory` with their offsets, in order.
pub(crate) fn segment_files(directory: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
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
    /// Projections have seen everything in front of it.
    snapshot_offset: u64,
    /// Projections do not see consumer progress in front of it, and nothing of dead letters.
    no_progress_below: u64,
    snapshots: Kept,
    /// Where queues ended at the snapshot.
    ends: Vec<Ends>,
    bounds: Bounds,
    log: Seal,
    index: QueueIndex,
    epochs: Epochs,
    store_time_ms: u64,
    unsealed: Vec<Arc<Segment>>,
    damage: Vec<Damage>,
    state_lacks_from: Option<u64>,
    /// By repairs: no news, but records are missing there.
    given_up_bytes: u64,
}

impl Replay<'_> {
    fn run(mut self, mut later: VecDeque<Arc<Segment>>, cursor: Cursor) -> Result<Recovered, OpenError> {
        let mut segments = Vec::new();
        while let Some(segment) = later.pop_front() {
            segments.push(segment.clone());
            let io = |action| OpenError::io(action, segment.path());
            if let Some(index) = self.usable_index(&segment) {
                self.replay_sealed(&segment, &index, &later)?;
                continue;
            }
            let from = self.bounds.durable_below.clamp(segment.base(), segment.end());
            segment.forget_cache(from).map_err(io("flush"))?;
            let mut contents = Contents::default();
            let torn = self.scan(&segment, segment.base(), &later, self.bounds, Some(&mut contents))?;
            if torn.is_none() && !later.is_empty() {
                self.seal(&segment, contents).map_err(io("write the index of"))?;
                continue;
            }
            self.keep(segment.base(), &contents);
            let end = torn.as_ref().map_or(segment.end(), |torn| torn.start);
            let used = torn.map_or(end, |torn| torn.end);
            cut(&segment, end, used).map_err(io("cut"))?;
            return self.finish(segments, later, end, cursor);
        }
        // A segment is sealed only when the next one exists, so the loop ends in one that is not, or one is gone.
        let offset = segments.last().map_or(0, |segment| segment.end());
        let directory = self.directory.commit_log.clone();
        let found = "the log goes on behind its last file".into();
        Err(OpenError::MissingSegment { directory, offset, found })
    }

    /// Everything is as it should be: says so in the cursor.
    fn finish(
        mut self,
        segments: Vec<Arc<Segment>>,
        mut later: VecDeque<Arc<Segment>>,
        end: u64,
        mut cursor: Cursor,
    ) -> Result<Recovered, OpenError> {
        let next = later.pop_front();
        if let Some(surplus) = later.pop_front() {
            let directory = self.directory.commit_log.clone();
            let found =
                format!("{} lies too far behind the end of the log at {end}", surplus.path().display());
            return Err(OpenError::MissingSegment { directory, offset: end, found });
        }
        for ends in std::mem::take(&mut self.ends) {
            if let Err(reason) = self.index.restore(&ends, end) {
                self.lost(Damage { from: end, to: end, reason });
            }
        }
        let mut promise = Promise { log_start: segments[0].base(), flushed: end, limit: end + REACH_BYTES };
        match cursor.write(promise) {
            Err(error) if disk::is_no_space(&error) => promise.limit = self.bounds.limit,
            written => written.map_err(OpenError::io("write", cursor.path()))?,
        }
        let Self { index, epochs, store_time_ms, unsealed, damage, snapshots, state_lacks_from, .. } = self;
        Ok(Recovered {
            segments,
            next,
            index,
            cursor,
            promise,
            damage,
            state_lacks_from,
            end,
            epochs,
            store_time_ms,
            snapshots,
            unsealed,
        })
    }

    fn about(&self, segment: &Segment) -> IndexedSegment {
        IndexedSegment { log: self.directory.log, base: segment.base(), length: segment.length() }
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
        later: &VecDeque<Arc<Segment>>,
    ) -> Result<(), OpenError> {
        self.index.adopt(index);
        self.store_time_ms = self.store_time_ms.max(index.store_times_ms().1);
        if self.snapshot_offset < segment.end() && !self.projections.is_empty() {
            // A segment is flushed before its index is written: nothing in it can be torn.
            let bounds = Bounds { durable_below: segment.end(), ..self.bounds };
            self.scan(segment, self.snapshot_offset.max(segment.base()), later, bounds, None)?;
        }
        Ok(())
    }

    /// Shows the records from `from` on to the projections and adds them to `contents`, stepping over damage. `Some`:
    /// the log ends at the start of the range, and valid records lie up to its end that are not part of it.
    fn scan(
        &mut self,
        segment: &Segment,
        from: u64,
        later: &VecDeque<Arc<Segment>>,
        bounds: Bounds,
        mut contents: Option<&mut Contents>,
    ) -> Result<Option<std::ops::Range<u64>>, OpenError> {
        let mut at = from;
        loop {
            let walked = walk(segment, at, self.log, |header, bytes| {
                self.see(segment.base(), header, bytes, contents.as_deref_mut());
            });
            let Err(stopped) = walked else { return Ok(None) };
            let verdict = judge(segment, stopped, later, self.log, bounds);
            match verdict.map_err(OpenError::io("search", segment.path()))? {
                Verdict::Torn { used } => return Ok(Some(stopped.at..used)),
                Verdict::Damaged { to } => {
                    if to > self.snapshot_offset {
                        self.state_lacks_from = Some(self.snapshot_offset);
                    }
                    self.lost(Damage { from: stopped.at, to, reason: stopped.why.to_string() });
                    at = to;
                }
                Verdict::Unsupported => {
                    let Stopped { at: offset, why: reason } = stopped;
                    let segment = segment.path().to_owned();
                    return Err(OpenError::Unsupported { segment, offset, reason });
                }
            }
        }
    }

    fn see(&mut self, base: u64, header: &Header, bytes: &Bytes, contents: Option<&mut Contents>) {
        let lost = |reason: String| Damage { from: header.physical_offset, to: header.end(), reason };
        self.store_time_ms = self.store_time_ms.max(header.store_time_ms);
        match header.content {
            Content::Blank => return,
            Content::Lost => {
                self.given_up_bytes += u64::from(header.length);
                return;
            }
            Content::Record(kind) => {
                let mark = if kind == RecordKind::Epoch { header.mark } else { 0 };
                self.epochs.note(EpochStart { epoch: header.epoch, start: header.physical_offset, mark });
            }
        }
        if let Some(contents) = contents
            && let Err(reason) = contents.add(base, header, bytes, self.lost_max())
        {
            self.lost(lost(reason));
        }
        let is_shown = match header.content {
            Content::Record(RecordKind::Message) => false,
            // Who has not seen a message being held could not release it; a release of what is not known does nothing.
            Content::Record(
                RecordKind::Metadata
                | RecordKind::Held
                | RecordKind::Kept
                | RecordKind::Released
                | RecordKind::Settled
                | RecordKind::Epoch,
            ) => true,
            _ => header.physical_offset >= self.no_progress_below,
        };
        if header.physical_offset < self.snapshot_offset || !is_shown {
            return;
        }
        if let Ok(record) = header.record(bytes) {
            self.projections.iter().for_each(|projection| projection.apply(&record));
        }
    }

    fn lost(&mut self, damage: Damage) {
        damage.report();
        self.damage.push(damage);
    }

    /// So many records can have been where something was lost.
    fn lost_max(&self) -> u64 {
        let damaged: u64 = self.damage.iter().map(|damage| damage.to - damage.from).sum();
        (damaged + self.given_up_bytes) / HEADER_BYTES as u64
    }

    fn seal(&mut self, segment: &Arc<Segment>, mut contents: Contents) -> std::io::Result<()> {
        if !self.unsealed.is_empty() {
            self.keep(segment.base(), &contents);
            self.unsealed.push(segment.clone());
            return Ok(());
        }
        let (path, about) = (self.index_path(segment), self.about(segment));
        match sealed::write(&**self.disk, &path, about, &mut contents) {
            Ok(()) => {
                self.index.adopt(&Arc::new(SealedIndex::open(path, about).map_err(std::io::Error::other)?));
            }
            Err(error) if disk::is_no_space(&error) => {
                self.keep(segment.base(), &contents);
                self.unsealed.push(segment.clone());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn keep(&mut self, base: u64, contents: &Contents) {
        if let Err(reason) = self.index.keep(base, contents) {
            self.lost(Damage { from: base, to: base, reason });
        }
    }
}

/// Removes the valid records behind the end, so that none can be taken for the continuation of what is written later.
fn cut(segment: &Segment, end: u64, used: u64) -> std::io::Result<()> {
    if used > end {
        let bytes = used - end;
        tracing::warn!(segment = %segment.path().display(), offset = end, bytes, "cuts a torn tail");
        segment.erase(end..used)?;
    }
    Ok(())
}
