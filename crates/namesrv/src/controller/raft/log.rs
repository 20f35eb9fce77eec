//! The consensus's log and vote, as it asks for them: in memory as a whole, for snapshots keep it short, and on disk before
//! anything is said to be done. Owned by the consensus; its tasks share the entries in memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};
use parking_lot::Mutex;

use super::files::{Directory, OpenError};
use super::log_file::LogFile;
use super::{Entry, Types};

const VOTE: &str = "vote";

type Entries = Arc<Mutex<BTreeMap<u64, Entry>>>;

#[derive(Debug)]
pub(super) struct Log {
    directory: Arc<Directory>,
    /// `None`: a write has failed, and nothing is written any more.
    file: Option<LogFile>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
    entries: Entries,
}

#[derive(Clone, Debug)]
pub(super) struct Reader(Entries);

impl Log {
    /// `snapshot`: the last entry that the snapshot has.
    pub(super) fn open(directory: Arc<Directory>, snapshot: Option<LogId<u64>>) -> Result<Self, OpenError> {
        let (file, contents) = LogFile::open(&directory)?;
        if contents.cut_bytes > 0 {
            let bytes = contents.cut_bytes;
            tracing::warn!(bytes, "the controller's log ended in what a crash had torn; it was cut");
        }
        if contents.purged > snapshot {
            let why = format!("it has nothing up to {:?}, and the log begins behind that", contents.purged);
            return Err(OpenError::Damaged { path: directory.path("snapshot"), offset: 0, why });
        }
        let vote = directory.read(VOTE)?;
        let entries = contents.entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        let entries = Arc::new(Mutex::new(entries));
        Ok(Self { directory, file: Some(file), purged: contents.purged, vote, entries })
    }

    /// Writes the file anew with the entries that stay. Whatever fails, nothing is written afterwards.
    fn rewrite(&mut self, purged: Option<LogId<u64>>, stays: impl Fn(u64) -> bool) -> io::Result<()> {
        let kept: Vec<Entry> = {
            let entries = self.entries.lock();
            entries.values().filter(|entry| stays(entry.log_id.index)).cloned().collect()
        };
        self.file.take().ok_or_else(stopped)?;
        let file = blocking(|| LogFile::create(&self.directory, purged, &kept))?;
        (self.file, self.purged) = (Some(file), purged);
        self.entries.lock().retain(|index, _| stays(*index));
        Ok(())
    }

    fn write(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let mut file = self.file.take().ok_or_else(stopped)?;
        blocking(|| file.append(&entries))?;
        self.file = Some(file);
        self.entries.lock().extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        Ok(())
    }
}

fn stopped() -> io::Error {
    io::Error::other("an earlier write has failed")
}

/// Lets the other tasks of the consensus go on meanwhile.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

fn between(entries: &Entries, range: impl RangeBounds<u64>) -> Vec<Entry> {
    let bounds: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
    entries.lock().range(bounds).map(|(_, entry)| entry.clone()).collect()
}

impl RaftLogReader<Types> for Reader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        Ok(between(&self.0, range))
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError<u64>> {
        Ok(between(&self.entries, range))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let last = self.entries.lock().values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: self.purged, last_log_id: last.or(self.purged) })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader(self.entries.clone())
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let written = match self.file {
            Some(_) => blocking(|| self.directory.write(VOTE, vote)),
            None => Err(stopped()),
        };
        if let Err(error) = written {
            self.file = None;
            return Err(StorageIOError::write_vote(&error).into());
        }
        self.vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        match self.write(entries.into_iter().collect()) {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => Err(StorageIOError::write_logs(&error).into()),
        }
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), StorageError<u64>> {
        let done = self.rewrite(self.purged, |index| index < from.index);
        done.map_err(|error| StorageIOError::write_logs(&error).into())
    }

    async fn purge(&mut self, up_to: LogId<u64>) -> Result<(), StorageError<u64>> {
        let done = self.rewrite(Some(up_to), |index| index > up_to.index);
        done.map_err(|error| StorageIOError::write_logs(&error).into())
    }
}
