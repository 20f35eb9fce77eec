//! One error type per operation. All of [`AppendError`] and [`ReadError`] is `Clone`: one failure answers many waiters.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::record::{Invalid, QueueNumber};

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is out of range.
    #[error("setting {key} is {value}; allowed: {allowed}")]
    Config {
        /// The field of [`crate::StoreConfig`].
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
    /// Another process, or another handle in this one, has the store open.
    #[error("the store in {} is in use by another process", directory.display())]
    Locked {
        /// The directory of the store.
        directory: PathBuf,
    },
    /// The directory holds something else, or a store this version does not read.
    #[error("{} is not a store this version can open: {reason}", directory.display())]
    NotAStore {
        /// The directory of the store.
        directory: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A segment file of the log is not there.
    #[error(
        "the log in {} has no segment that starts at {offset}; {found}. Put the file back, or give up what it \
         held: `karman store repair` on the directory above it",
        directory.display()
    )]
    MissingSegment {
        /// The `commitlog` directory.
        directory: PathBuf,
        /// The physical offset at which a segment must start.
        offset: u64,
        /// What is there instead.
        found: String,
    },
    /// The directory is that of another broker.
    #[error(
        "{} is the store of {found:?}, not of {expected:?}; if it is to become that, run \
         `karman store repair {} --owner {expected}`",
        directory.display(),
        directory.display()
    )]
    ForeignOwner {
        /// The directory of the store.
        directory: PathBuf,
        /// Whose it is.
        found: String,
        /// [`crate::StoreConfig::owner`].
        expected: String,
    },
    /// The directory holds another log than the one that it should be a replica of.
    #[error(
        "{} holds another log than the one of its master; a replica begins with an empty directory: move this one away \
         if nothing in it is needed",
        directory.display()
    )]
    ForeignLog {
        /// The directory of the store.
        directory: PathBuf,
    },
    /// The directory holds half of a copy.
    #[error(
        "{} holds half of a copy of its master's store; start it as a slave, which begins the copy anew, or empty the \
         directory",
        directory.display()
    )]
    HalfCopied {
        /// The directory of the store.
        directory: PathBuf,
    },
    /// The log does not reach back to its beginning, and what was in front of it cannot be read either.
    #[error(
        "the log in {} begins at {log_start} and no snapshot in there is usable; restore one from a backup, or \
         give up topics, groups and consumer progress: `karman store repair {} --forget-state`",
        directory.display(),
        directory.display()
    )]
    NoSnapshot {
        /// The directory of the store.
        directory: PathBuf,
        /// Where its first segment starts.
        log_start: u64,
    },
    /// A record is intact but was written by a version this one does not know.
    #[error("segment {} holds at offset {offset} a record this version cannot read: {reason}", segment.display())]
    Unsupported {
        /// The segment file.
        segment: PathBuf,
        /// Physical offset of the record.
        offset: u64,
        /// Which field has which value.
        reason: Invalid,
    },
    /// A projection did not accept its part of an intact snapshot.
    #[error(
        "projection {projection} cannot be restored from {}: {reason}. Use the version that wrote it, or do without: \
         `karman store repair --set-aside-snapshot` with the number in its name",
        snapshot.display()
    )]
    Restore {
        /// The projection's name.
        projection: &'static str,
        /// The snapshot file.
        snapshot: PathBuf,
        /// What the projection said.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Why records were not appended. Unless it is `Poisoned` or `Unconfirmed`, nothing of the call is in the log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The inbox of the log writer is full; try again later.
    #[error("{waiting_bytes} of {limit_bytes} bytes wait to be written; {bytes} more do not fit")]
    Overloaded {
        /// Bytes of this call.
        bytes: usize,
        /// Bytes that wait already.
        waiting_bytes: usize,
        /// The inbox's capacity.
        limit_bytes: usize,
    },
    /// A payload, or all records of the call together, exceed a limit; trying again cannot help.
    #[error("{what} has {bytes} bytes; at most {limit_bytes} are possible")]
    TooLarge {
        /// Which of the two.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The call contradicts itself; trying again cannot help.
    #[error("records cannot be appended: {0}")]
    Invalid(&'static str),
    /// It waited longer than the store allows; nothing of it is in the log.
    #[error("not written within {waited_ms} ms; the device or the store is too slow for what is asked of it")]
    Expired {
        /// How long it waited.
        waited_ms: u64,
    },
    /// There is no room for the next segment; appends succeed again when there is.
    #[error("no room for the next segment: {needed_bytes} bytes needed, {available_bytes} available")]
    DiskFull {
        /// A segment and the reserve.
        needed_bytes: u64,
        /// What the file system has for us.
        available_bytes: u64,
    },
    /// So much of the file system is used that no more messages are taken in; appends succeed again when there is room.
    /// What consumers and operators record is still taken.
    #[error("no room for messages: {used_percent} % of the disk is used, at most {limit_percent} % may be")]
    DiskUsed {
        /// Of the file system, rounded up.
        used_percent: u8,
        /// [`crate::Retention::warning_percent`].
        limit_percent: u8,
    },
    /// The store met an I/O error and takes no more records. Whether those of this call survive is not known.
    #[error("the store stopped taking records: {0}")]
    Poisoned(Arc<str>),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// This store follows the log of a master, and takes nothing but what comes from there.
    #[error("this replica follows a master; records are appended there")]
    Follows,
    /// What came from a master cannot be the next part of this log; nothing of it was written.
    #[error("what the master sent for {at} does not continue this log: {reason}")]
    NotNext {
        /// Physical offset of the part that is wrong.
        at: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// It is in the log, but the store was closed before as many replicas had it as were asked for.
    #[error("written, but the store was closed before enough replicas had it")]
    Unconfirmed,
}

/// Why something could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The range does not lie inside the confirmed log.
    #[error("{offset}+{size} lies outside of the log, which is {log_start}..{confirmed}")]
    OutOfRange {
        /// Physical offset asked for.
        offset: u64,
        /// Bytes asked for.
        size: u32,
        /// Where the log starts.
        log_start: u64,
        /// Where its confirmed part ends.
        confirmed: u64,
    },
    /// The entries asked for were deleted when their time had come; the queue goes on at `minimum`.
    #[error("queue {} begins at {minimum}; what lay at {offset} has been deleted", queue.0)]
    BelowMinimum {
        /// The queue asked for.
        queue: QueueNumber,
        /// Queue offset asked for.
        offset: u64,
        /// The first queue offset there is; the end of the queue when it is empty.
        minimum: u64,
    },
    /// The bytes there are not the record they should be.
    #[error("no intact record of {size} bytes at {offset}: {reason}")]
    Corrupt {
        /// Physical offset asked for.
        offset: u64,
        /// Bytes asked for.
        size: u32,
        /// What is wrong.
        reason: Invalid,
    },
    /// The device does not give what lies there.
    #[error("{size} bytes at {offset} cannot be read: {error}")]
    Device {
        /// Physical offset asked for.
        offset: u64,
        /// Bytes asked for.
        size: u32,
        /// What the device says.
        error: Arc<io::Error>,
    },
    /// What should be there was lost to damage of the log; what lies behind it is not.
    #[error("what lay at {from}..{to} was lost to damage of the log")]
    Lost {
        /// Physical offset at which the damage starts.
        from: u64,
        /// Physical offset of what is intact again.
        to: u64,
    },
    /// A part of an index file is damaged. It is being built anew from the log: try again.
    #[error("index file {} is damaged and being built anew from the log", path.display())]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// Physical offset of its segment.
        segment: u64,
    },
}

impl ReadError {
    /// Whether what was asked for is no more, because its time was over or by damage: asking again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::BelowMinimum { .. } | Self::Lost { .. } => true,
            Self::OutOfRange { offset, log_start, .. } => offset < log_start,
            _ => false,
        }
    }
}

/// Why damage was not mended with what another broker gave.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MendError {
    /// It was mended, or deleted, meanwhile; or it is in a segment that is not filled yet.
    #[error("no damage that can be mended starts at {from}")]
    NotDamaged {
        /// Physical offset.
        from: u64,
    },
    /// Nothing was given.
    #[error("there are no records for {from}")]
    Nothing {
        /// Physical offset at which the damage starts.
        from: u64,
    },
    /// What was given is no record of this log for this place.
    #[error("what was given for {at} is no intact record: {reason}")]
    Invalid {
        /// Physical offset.
        at: u64,
        /// What is wrong.
        reason: Invalid,
    },
    /// Another master's: it is not what was here.
    #[error("what was given for {at} is of epoch {epoch}; what lies around it is of {oldest} to {newest}")]
    Epoch {
        /// Physical offset.
        at: u64,
        /// Its epoch.
        epoch: u32,
        /// Epoch of what lies in front of the damage.
        oldest: u32,
        /// Epoch of what lies behind it.
        newest: u32,
    },
    /// It does not fit in between: it is not what was here.
    #[error("what was given for {at} ends at {end}, behind the start of the next intact record at {next}")]
    Beyond {
        /// Physical offset.
        at: u64,
        /// Physical offset behind it.
        end: u64,
        /// Physical offset of what is intact here.
        next: u64,
    },
    /// The device does not take it.
    #[error("cannot write to {}: {error}", path.display())]
    Device {
        /// The segment file.
        path: PathBuf,
        /// What the device says.
        error: Arc<io::Error>,
    },
}

/// Why a store did not close in order. What was answered with OK is safe all the same.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The store was or became poisoned.
    #[error("the store stopped before it was closed: {0}")]
    Poisoned(Arc<str>),
    /// The last snapshot could not be written; the next start replays more of the log.
    #[error("the last snapshot was not written: {0}")]
    Snapshot(Arc<io::Error>),
}
