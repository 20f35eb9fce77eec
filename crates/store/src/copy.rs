//! A copy of a store for a new replica, or for one that is behind the beginning of its master's log: the newest snapshot
//! and the log up to what can be seen. What lies behind it comes as raw records. The giving side reads a running store, on
//! any thread; the taking side makes a store that nobody has open, on the caller's.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::commit_log::CommitLog;
use crate::config::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES};
use crate::cursor::{self, Cursor, Promise, REACH_BYTES};
use crate::directory::{self, IDENTITY, Identity, LogId};
use crate::disk::{self, Disk, SystemDisk};
use crate::error::OpenError;
use crate::segment::{PAGE_BYTES, Segment, file_name};
use crate::snapshot;
use crate::{Store, StoreConfig};

/// In the directory as long as it holds half of a copy.
pub(crate) const MARKER: &str = "copying";

/// What a store held when it was asked for. Segments that are deleted meanwhile are read all the same.
#[derive(Debug)]
pub struct StoreCopy {
    segments: Vec<Arc<Segment>>,
    snapshot: Option<(u64, Vec<u8>)>,
    end: u64,
}

/// A part of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedPiece {
    /// Physical offset of the first byte of its segment.
    pub segment: u64,
    /// Length of its segment.
    pub segment_bytes: u64,
    /// Where it lies in the log.
    pub at: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Store {
    /// What a new replica needs.
    pub fn copy(&self) -> io::Result<StoreCopy> {
        copy_of(&self.log)
    }
}

fn copy_of(log: &CommitLog) -> io::Result<StoreCopy> {
    // Snapshots and segments come and go meanwhile.
    for _ in 0..10 {
        // In this order: what a snapshot contains can be seen, and its file may be gone.
        let newest = snapshot::list(&log.directory.snapshots)?.into_iter().next();
        let snapshot =
            match newest.map(|(offset, path)| fs::read(path).map(|bytes| (offset, bytes))).transpose() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
        let end = log.progress.confirmed();
        let segments: Vec<_> = log.segments.load().iter().filter(|s| s.base() < end).cloned().collect();
        let log_start = segments.first().map_or(0, |segment| segment.base());
        if snapshot.as_ref().map_or(0, |(offset, _)| *offset) >= log_start {
            return Ok(StoreCopy { segments, snapshot, end });
        }
    }
    Err(io::Error::other("no snapshot reaches to the beginning of the log"))
}

impl StoreCopy {
    /// Physical offset of its first byte.
    pub fn log_start(&self) -> u64 {
        self.segments.first().map_or(0, |segment| segment.base())
    }

    /// Physical offset behind its last byte: a record ends there.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The snapshot with the physical offset that it stands for.
    pub fn snapshot(&self) -> Option<(u64, &[u8])> {
        self.snapshot.as_ref().map(|(offset, bytes)| (*offset, bytes.as_slice()))
    }

    /// What lies at `at`, at most `max_bytes` of it; `None` at the end. Blocks for as long as the device takes.
    pub fn piece(&self, at: u64, max_bytes: usize) -> io::Result<Option<CopiedPiece>> {
        let behind = self.segments.partition_point(|segment| segment.base() <= at);
        let Some(segment) = behind.checked_sub(1).map(|index| &self.segments[index]) else { return Ok(None) };
        let end = self.end.min(segment.end()).min(at.saturating_add(max_bytes as u64));
        if at >= end {
            return Ok(None);
        }
        let mut bytes = vec![0; (end - at) as usize];
        segment.read_at(at, &mut bytes)?;
        Ok(Some(CopiedPiece { segment: segment.base(), segment_bytes: segment.length(), at, bytes }))
    }
}

/// A store that is being made of a copy. Half of one is no store, and is begun anew.
#[derive(Debug)]
pub struct CopyTarget {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    owner: String,
    log: LogId,
    log_start: u64,
    at: u64,
    file: Option<(u64, File)>,
    /// Locked while this lives.
    _lock: File,
}

impl CopyTarget {
    /// Begins a store of `log` in the directory of `config`, in place of whatever store is there: that one is gone then.
    pub fn begin(config: &StoreConfig, log: LogId, log_start: u64) -> Result<Self, OpenError> {
        config.check()?;
        let (disk, root) = (Arc::new(SystemDisk), config.directory.clone());
        let failed = || OpenError::io("begin a copy in", &config.directory);
        let directories = DirBuilder::new().recursive(true).mode(disk::PRIVATE).create(&root);
        directories.map_err(failed())?;
        let lock = directory::lock(&*disk, &root)?;
        let owner = config.owner.clone();
        let target = Self { disk, root, owner, log, log_start, at: log_start, file: None, _lock: lock };
        target.clear().map_err(failed())?;
        Ok(target)
    }

    fn clear(&self) -> io::Result<()> {
        let disk = &*self.disk;
        disk::replace_file(disk, &self.root.join(MARKER), b"")?;
        for file in [IDENTITY, cursor::FILE_NAME].map(|name| self.root.join(name)) {
            remove_if_there(disk, &file)?;
        }
        for part in [self.commit_log(), self.snapshots()] {
            if !part.is_dir() {
                disk.create_directory(&part)?;
            }
            for file in fs::read_dir(&part)? {
                disk.remove_file(&file?.path())?;
            }
            disk.sync_directory(&part)?;
        }
        disk.sync_directory(&self.root)
    }

    fn commit_log(&self) -> PathBuf {
        self.root.join("commitlog")
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshot")
    }

    /// The snapshot that stands for `offset`.
    pub fn snapshot(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.snapshots().join(file_name(offset, "snap"));
        if snapshot::parse(&path, bytes, self.log, offset).is_none() {
            return Err(invalid(format!("the snapshot at {offset} is not one of this log")));
        }
        disk::replace_file(&*self.disk, &path, bytes)
    }

    /// The next piece of the log.
    pub fn piece(&mut self, piece: &CopiedPiece) -> io::Result<()> {
        let CopiedPiece { segment, segment_bytes, at, bytes } = piece;
        let end = segment.saturating_add(*segment_bytes);
        let size = MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES;
        let is_next = *at == self.at && *segment <= *at && at.saturating_add(bytes.len() as u64) <= end;
        if !is_next || !size.contains(segment_bytes) || !segment_bytes.is_multiple_of(PAGE_BYTES) {
            let what = format!("{} bytes at {at} of a segment {segment}..{end}", bytes.len());
            return Err(invalid(format!("{what} do not continue a copy that ends at {}", self.at)));
        }
        if self.file.as_ref().is_none_or(|(base, _)| base != segment) {
            self.sync()?;
            let file = self.disk.create_file(&self.commit_log().join(file_name(*segment, "log")))?;
            self.disk.allocate(&file, *segment_bytes)?;
            self.file = Some((*segment, file));
        }
        if let Some((base, file)) = &self.file {
            self.disk.write_at(file, bytes, at - base)?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |(_, file)| self.disk.sync_data(file))
    }

    /// Makes a store of it, durably, which ends at `end`. Its records are looked at when it is opened.
    pub fn finish(self, end: u64) -> Result<(), OpenError> {
        self.put_together(end).map_err(OpenError::io("finish a copy in", &self.root))
    }

    fn put_together(&self, end: u64) -> io::Result<()> {
        if self.at != end {
            return Err(invalid(format!("it ends at {}, not at {end}", self.at)));
        }
        self.sync()?;
        self.disk.sync_directory(&self.commit_log())?;
        let (mut cursor, _) = Cursor::open(&self.disk, &self.root, self.log)?;
        cursor.write(Promise { log_start: self.log_start, flushed: end, limit: end + REACH_BYTES })?;
        Identity { log: self.log, owner: self.owner.clone() }.write(&*self.disk, &self.root)?;
        self.disk.remove_file(&self.root.join(MARKER))?;
        self.disk.sync_directory(&self.root)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
