//! What lies in the directory of a store: identity, cursor, segment files, snapshots. Reads small files only.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::SeekFrom;

use super::{Offline, SegmentStat, SnapshotStat, Stat};
use crate::cursor::{self, Known};
use crate::directory::{IDENTITY, Identity, LogId};
use crate::error::OpenError;
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::record::{self, HEADER_BYTES};
use crate::recovery::segment_files;
use crate::report::IndexState;
use crate::segment::PAGE_BYTES;
use crate::snapshot::{self, Snapshot};
use crate::verify::{Halt, Source};

/// A file of the log.
#[derive(Debug, Clone)]
pub(super) struct SegmentFile {
    pub(super) base: u64,
    pub(super) path: PathBuf,
    /// As the file has it.
    pub(super) length: u64,
}

impl SegmentFile {
    /// The length that it should have: segments consist of whole pages.
    pub(super) fn padded(&self) -> u64 {
        self.length.next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn end(&self) -> u64 {
        self.base + self.padded()
    }

    pub(super) fn about(&self, log: LogId) -> IndexedSegment {
        IndexedSegment { log, base: self.base, length: self.padded() }
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.path.with_extension("idx")
    }

    pub(super) fn index(&self, log: LogId) -> (IndexState, Option<Arc<SealedIndex>>) {
        let path = self.index_path();
        if !path.exists() {
            return (IndexState::None, None);
        }
        match SealedIndex::open(path, self.about(log)) {
            Ok(index) => (IndexState::Sound, Some(Arc::new(index))),
            Err(reason) => (IndexState::Damaged(reason), None),
        }
    }
}

/// A snapshot file and what was read of it.
#[derive(Debug)]
pub(super) struct SnapshotFile {
    pub(super) log_offset: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// `Err`: what is wrong.
    pub(super) content: Result<Snapshot, String>,
}

#[derive(Debug)]
pub(super) struct Survey {
    /// `Err`: why it cannot be used.
    pub(super) identity: Result<Identity, String>,
    /// The file is intact, but another version of karman wrote it.
    pub(super) is_of_other_version: bool,
    pub(super) log: Option<LogId>,
    pub(super) known: Known,
    /// In order.
    pub(super) files: Vec<SegmentFile>,
    /// The newest first.
    pub(super) snapshots: Vec<SnapshotFile>,
}

impl Survey {
    pub(super) fn of(offline: &Offline) -> Result<Self, OpenError> {
        let commit_log = offline.commit_log();
        let mut files = Vec::new();
        for (base, path) in segment_files(&commit_log).map_err(OpenError::io("list", &commit_log))? {
            let length = fs::metadata(&path).map_err(OpenError::io("look at", &path))?.len();
            files.push(SegmentFile { base, path, length });
        }
        let path = offline.root.join(IDENTITY);
        let mut is_of_other_version = false;
        let identity = match fs::read(&path) {
            Ok(bytes) => {
                is_of_other_version = Identity::is_of_other_version(&bytes);
                Identity::read(&bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err("the file identity is missing".to_owned())
            }
            Err(error) => Err(format!("the file identity cannot be read: {error}")),
        };
        let cursor = fs::read(offline.root.join(cursor::FILE_NAME)).unwrap_or_default();
        let snapshots = offline.root.join("snapshot");
        let listed = if snapshots.is_dir() { snapshot::list(&snapshots) } else { Ok(Vec::new()) };
        let listed = listed.map_err(OpenError::io("list", &snapshots))?;
        let log = match &identity {
            Ok(identity) => Some(identity.log),
            Err(_) => log_named_by_others(&cursor, &listed, &files),
        };
        let known = log.map_or(Known::NOTHING, |log| cursor::parse(&cursor, log).1);
        let snapshots = listed.into_iter().map(|(log_offset, path)| {
            let read = fs::read(&path).map_err(|error| format!("it cannot be read: {error}"));
            let bytes = read.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let content = read.and_then(|bytes| {
                let parsed = log.and_then(|log| snapshot::parse(&path, &bytes, log, log_offset));
                parsed.ok_or_else(|| "it is not as it was written".to_owned())
            });
            SnapshotFile { log_offset, path, bytes, content }
        });
        Ok(Self { identity, is_of_other_version, log, known, files, snapshots: snapshots.collect() })
    }

    /// Where the log starts, as a start would see it.
    pub(super) fn log_start(&self) -> u64 {
        self.known.log_start.or(self.files.first().map(|file| file.base)).unwrap_or(0)
    }

    /// What lies behind an interrupted deletion is no part of the log.
    pub(super) fn log_files(&self) -> impl Iterator<Item = &SegmentFile> {
        let log_start = self.log_start();
        self.files.iter().filter(move |file| file.end() > log_start)
    }

    pub(super) fn newest_snapshot(&self) -> Option<u64> {
        self.snapshots.iter().find(|snapshot| snapshot.content.is_ok()).map(|snapshot| snapshot.log_offset)
    }
}

/// The log's id from the files that carry it as well, if they agree with a record of the log, or at least with one another.
fn log_named_by_others(cursor: &[u8], snapshots: &[(u64, PathBuf)], files: &[SegmentFile]) -> Option<LogId> {
    let mut named: BTreeSet<[u8; 16]> = cursor::log_ids(cursor).map(|log| log.0).collect();
    let snapshots = snapshots.iter().filter_map(|(_, path)| snapshot::log_id(&fs::read(path).ok()?));
    named.extend(snapshots.map(|log| log.0));
    named.extend(files.iter().filter_map(|file| sealed::about(&file.index_path())).map(|about| about.log.0));
    let proven = |id: &&[u8; 16]| files.iter().any(|file| starts_with_record_of(file, LogId(**id)));
    let proof = named.iter().find(proven).copied();
    proof.or(if named.len() == 1 { named.pop_first() } else { None }).map(LogId)
}

fn starts_with_record_of(segment: &SegmentFile, log: LogId) -> bool {
    let read = || {
        let file = File::open(&segment.path).ok()?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0).ok()?;
        let covered = record::checked_bytes(&head, segment.base, segment.length).ok()?;
        let mut bytes = vec![0; covered.min(record::MAX_RECORD_BYTES)];
        file.read_exact_at(&mut bytes, 0).ok()?;
        record::decode_checked(&bytes, log.seal()).ok()
    };
    read().is_some()
}

pub(super) fn stat(offline: &Offline) -> Result<Stat, OpenError> {
    let survey = Survey::of(offline)?;
    let mut queues = BTreeSet::new();
    let mut segments = Vec::with_capacity(survey.files.len());
    for file in &survey.files {
        let metadata = fs::metadata(&file.path).map_err(OpenError::io("look at", &file.path))?;
        let (state, index) = match survey.log {
            Some(log) => file.index(log),
            None => (IndexState::None, None),
        };
        if let Some(index) = &index {
            queues.extend(index.runs().map(|run| run.queue));
        }
        segments.push(SegmentStat {
            base: file.base,
            length_bytes: file.length,
            allocated_bytes: metadata.blocks() * 512,
            entries: index.as_ref().map(|index| index.runs().map(|run| u64::from(run.count)).sum()),
            store_times_ms: index.as_ref().map(|index| index.store_times_ms()),
            index: state,
        });
    }
    let snapshots = survey.snapshots.iter().map(|file| SnapshotStat {
        log_offset: file.log_offset,
        bytes: file.bytes,
        intact: file.content.is_ok(),
    });
    let quarantined = fs::read_dir(offline.quarantine()).map_or(0, |files| files.count() as u64);
    Ok(Stat {
        owner: survey.identity.as_ref().ok().map(|identity| identity.owner.clone()),
        log_id: survey.log.map(|log| log.0.iter().map(|byte| format!("{byte:02x}")).collect()),
        log_start: survey.log_start(),
        flushed: survey.known.log_start.map(|_| survey.known.flushed),
        segments,
        snapshots: snapshots.collect(),
        queues: queues.len() as u64,
        quarantined,
    })
}

/// The files of a segment of a stopped store. What the file lacks of whole pages reads as zeros.
pub(super) struct Files<'a> {
    file: File,
    segment: &'a SegmentFile,
    log: LogId,
    index: OnceCell<Option<Arc<SealedIndex>>>,
    /// Hears of what is going to be read; `false` ends it.
    read: &'a mut dyn FnMut(u64) -> bool,
}

impl<'a> Files<'a> {
    pub(super) fn open(
        segment: &'a SegmentFile,
        log: LogId,
        read: &'a mut dyn FnMut(u64) -> bool,
    ) -> Result<Self, OpenError> {
        let file = File::open(&segment.path).map_err(OpenError::io("open", &segment.path))?;
        Ok(Self { file, segment, log, index: OnceCell::new(), read })
    }
}

impl Source for Files<'_> {
    fn pace(&mut self, bytes: u64) -> Result<(), Halt> {
        if (self.read)(bytes) { Ok(()) } else { Err(Halt::Told) }
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<io::Result<()>, Halt> {
        let from = at - self.segment.base;
        let there = self.segment.length.saturating_sub(from).min(into.len() as u64) as usize;
        into[there..].fill(0);
        Ok(self.file.read_exact_at(&mut into[..there], from))
    }

    fn data_from(&self, at: u64) -> u64 {
        match rustix::fs::seek(&self.file, SeekFrom::Data(at - self.segment.base)) {
            Ok(data) => self.segment.base + data,
            Err(rustix::io::Errno::NXIO) => self.segment.end(),
            Err(_) => at,
        }
    }

    fn index_file(&self) -> io::Result<Option<File>> {
        match File::open(self.segment.index_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn index(&self) -> Option<Arc<SealedIndex>> {
        self.index.get_or_init(|| self.segment.index(self.log).1).clone()
    }
}

/// Whether a place lies in one of some stretches, and then in which.
pub(super) fn stretch_of(at: u64, stretches: &[Range<u64>]) -> Option<&Range<u64>> {
    stretches.iter().find(|stretch| stretch.contains(&at))
}
