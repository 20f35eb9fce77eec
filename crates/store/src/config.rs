//! What a store can be told: [`StoreConfig`] and the ranges its values must lie in. Plain data, used by every thread.

use std::path::PathBuf;
use std::time::Duration;

use crate::directory::{LogId, MAX_OWNER_BYTES};
use crate::error::OpenError;
use crate::retention::Retention;
use crate::segment::PAGE_BYTES;

/// Smallest segment: small enough for tests that roll often.
pub const MIN_SEGMENT_BYTES: u64 = 1 << 20;
/// Largest segment: a record's length, and so a blank's, is a `u32`.
pub const MAX_SEGMENT_BYTES: u64 = 2 << 30;

/// Settings of one store. Start from [`StoreConfig::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The directory of the store; created when it does not exist.
    pub directory: PathBuf,
    /// Whose store it is, at most 1,024 bytes: a directory of another owner is not opened. Default: nobody's.
    pub owner: String,
    /// The store is a replica: it begins as one that follows a master, see [`crate::Store::append_raw`]. Default: no.
    pub follows: bool,
    /// Which log a new store is a replica of. Default: a log of its own.
    pub log: Option<LogId>,
    /// What is missing or damaged can be fetched from another broker, see [`crate::Store::mend`]: a start goes on without a
    /// segment file whose records a snapshot stands for, and takes no snapshot that lacks what may come back. Default: no.
    pub mends: bool,
    /// Size of a segment made from now on, in bytes; older ones keep theirs. A multiple of 4096,
    /// [`MIN_SEGMENT_BYTES`] to [`MAX_SEGMENT_BYTES`]. Default: 1 GiB.
    pub segment_size_bytes: u64,
    /// Bytes that may wait for the log writer before appends are refused with `Overloaded`. Default: 64 MiB.
    pub inbox_bytes: usize,
    /// How long an append may wait for the log writer before it is refused with `Expired`. Default: 10 s.
    pub append_deadline: Duration,
    /// Bytes the log writer takes at once, so that nobody waits for more than this. Default: 4 MiB.
    pub batch_bytes: usize,
    /// How long records that nobody waits for may stay unflushed. Default: 500 ms.
    pub flush_interval: Duration,
    /// Free space the store leaves on its file system: no segment is made that would eat into it. Default: 256 MiB.
    pub disk_reserve_bytes: u64,
    /// Bytes of log after which a snapshot is taken. Default: 256 MiB.
    pub snapshot_interval_bytes: u64,
    /// Time after which a snapshot is taken if a projection has seen a record since the last. Default: 60 s.
    pub snapshot_interval: Duration,
    /// How fast what is stored is verified in the background; 0: not at all. Default: 8 MB/s.
    pub scrub_bytes_per_second: u64,
    /// From the beginning of one such pass to that of the next, unless a pass takes longer. Default: 24 h.
    pub scrub_interval: Duration,
    /// How long and how much is kept.
    pub retention: Retention,
    /// How often that is looked at. RocketMQ's `cleanResourceInterval`. Default: 10 s.
    pub cleanup_interval: Duration,
}

impl StoreConfig {
    /// The defaults, for a store in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            owner: String::new(),
            follows: false,
            log: None,
            mends: false,
            segment_size_bytes: 1 << 30,
            inbox_bytes: 64 << 20,
            append_deadline: Duration::from_secs(10),
            batch_bytes: 4 << 20,
            flush_interval: Duration::from_millis(500),
            disk_reserve_bytes: 256 << 20,
            snapshot_interval_bytes: 256 << 20,
            snapshot_interval: Duration::from_secs(60),
            scrub_bytes_per_second: 8_000_000,
            scrub_interval: Duration::from_secs(24 * 3600),
            retention: Retention::default(),
            cleanup_interval: Duration::from_secs(10),
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let refuse = |key, value: String, allowed| Err(OpenError::Config { key, value, allowed });
        let size = self.segment_size_bytes;
        if !(MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&size) || !size.is_multiple_of(PAGE_BYTES) {
            return refuse("segment_size_bytes", size.to_string(), "1 MiB to 2 GiB, a multiple of 4096");
        }
        if self.owner.len() > MAX_OWNER_BYTES {
            return refuse("owner", format!("{} bytes long", self.owner.len()), "up to 1024 bytes");
        }
        if self.append_deadline.is_zero() {
            return refuse("append_deadline", "0 s".into(), "more than 0");
        }
        if self.inbox_bytes == 0 || self.batch_bytes == 0 {
            let value = format!("{} and {}", self.inbox_bytes, self.batch_bytes);
            return refuse("inbox_bytes and batch_bytes", value, "more than 0");
        }
        self.retention.check(self.segment_size_bytes)?;
        if self.flush_interval.is_zero() || self.snapshot_interval.is_zero() {
            let value = format!("{:?} and {:?}", self.flush_interval, self.snapshot_interval);
            return refuse("flush_interval and snapshot_interval", value, "more than 0");
        }
        Ok(())
    }

    /// The most one append call may take in the log: it must fit a segment and the inbox.
    pub(crate) fn max_append_bytes(&self) -> u64 {
        self.segment_size_bytes.min(self.inbox_bytes as u64)
    }
}
