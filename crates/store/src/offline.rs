//! A store that is not running: looking at it, verifying it and repairing it. For commands; everything runs on the caller's
//! thread. [`Offline::open`] takes the lock, so nobody opens the store meanwhile.
//!
//! Nothing is changed but by [`Offline::rebuild_index`] and [`Offline::repair`]; each step of those leaves a store that is
//! as it was or one step better, whenever it is interrupted.

mod cut;
mod dump;
mod examine;
mod index;
mod repair;
mod survey;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::directory;
use crate::disk::{Disk, SystemDisk};
use crate::error::OpenError;
use crate::report::{IndexState, Progress, Report};

pub use dump::{Dumped, What};
pub use repair::{Plan, RepairOptions, Step};

/// The directory of a store that is not running, locked.
#[derive(Debug)]
pub struct Offline {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Locked while this lives.
    _lock: File,
}

/// What a store consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Whose it is, if the file `identity` can be read.
    pub owner: Option<String>,
    /// In hexadecimal digits, if it can be told.
    pub log_id: Option<String>,
    /// Where the log starts.
    pub log_start: u64,
    /// What the cursor says is durable; `None` if it cannot be read.
    pub flushed: Option<u64>,
    /// In order.
    pub segments: Vec<SegmentStat>,
    /// The newest first.
    pub snapshots: Vec<SnapshotStat>,
    /// Queues with records in segments that have an index file.
    pub queues: u64,
    /// Stretches that were given up by a repair lie in `quarantine`: so many files.
    pub quarantined: u64,
}

/// A segment, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentStat {
    /// Physical offset of its first byte.
    pub base: u64,
    /// Its size.
    pub length_bytes: u64,
    /// What of it takes space on the device.
    pub allocated_bytes: u64,
    /// Entries of queues, from its index file.
    pub entries: Option<u64>,
    /// Of its first and last record in milliseconds since 1970, from its index file.
    pub store_times_ms: Option<(u64, u64)>,
    /// Its index file; only the parts that a start checks were checked.
    pub index: IndexState,
}

/// A snapshot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStat {
    /// Everything below this physical offset is in it.
    pub log_offset: u64,
    /// Its size.
    pub bytes: u64,
    /// It is as it was written.
    pub intact: bool,
}

impl Offline {
    /// Locks the directory of a store, whoever it belongs to.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(SystemDisk), directory)
    }

    pub(crate) fn open_on(disk: Arc<dyn Disk>, directory: &Path) -> Result<Self, OpenError> {
        let root = directory.to_owned();
        if !root.join("commitlog").is_dir() {
            let reason = "it has no directory commitlog".into();
            return Err(OpenError::NotAStore { directory: root, reason });
        }
        let lock = directory::lock(&*disk, &root)?;
        Ok(Self { disk, root, _lock: lock })
    }

    /// What there is, without reading the log.
    pub fn stat(&self) -> Result<Stat, OpenError> {
        survey::stat(self)
    }

    /// Reads everything and says what is not as it should be. Changes nothing.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress)) -> Result<Report, OpenError> {
        Ok(examine::examine(self, progress)?.report)
    }

    /// Shows the records of a range of the log, and what is none. `visit` ends it by `false`.
    pub fn dump(&self, what: &What, visit: &mut dyn FnMut(Dumped) -> bool) -> Result<(), OpenError> {
        dump::dump(self, what, visit)
    }

    /// Builds the index file of the segment that starts at `segment` from the log, or those of all full segments. Says
    /// which.
    pub fn rebuild_index(
        &self,
        segment: Option<u64>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<u64>, OpenError> {
        index::rebuild(self, segment, progress)
    }

    /// What a repair would do.
    pub fn plan(
        &self,
        options: &RepairOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Plan, OpenError> {
        repair::plan(self, options, progress)
    }

    /// Does what was planned; `done` hears of each step that is durable.
    pub fn repair(&self, plan: &Plan, done: &mut dyn FnMut(&Step)) -> Result<(), OpenError> {
        repair::apply(self, plan, done)
    }

    fn commit_log(&self) -> PathBuf {
        self.root.join("commitlog")
    }

    fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }
}
