//! The store of one machine. A plain thread, the writer, owns the file: what has queued up while it flushed is written
//! and flushed at once. It ends with the last handle, which waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::log::{BATCH_MAX, Log};
use super::table::{Key, Table};
use super::{Claim, ClaimToken, DedupeError, DedupeLimits, DedupeStore};

/// Messages that wait for the writer.
const QUEUE_MAX: usize = 1024;
/// The file is written anew when it has more than twice the records that are wanted, and so many.
const SLACK_RECORDS: u64 = 4096;

/// Remembers in a directory what is done, and after a crash too: it is on disk when it is answered. What somebody has begun
/// with it keeps in memory alone: when the process dies, all its claims are over. A clone is a handle to the same.
///
/// For one process at a time; a second one is refused. It takes 140 bytes of memory and 28 to 56 bytes of disk for each id.
/// When the disk fails once, the store says so for ever, until it is opened again. Its times are those of the system's
/// clock: one that is set forward ends windows sooner.
///
/// ```
/// use karman_client::{Claim, DedupeError, DedupeLimits, DedupeStore, FileStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), DedupeError> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let directory = temporary.path().join("done");
/// let store = FileStore::open(&directory, DedupeLimits::default())?;
/// store.done("shipping", "01AB").await?;
/// drop(store);
///
/// let store = FileStore::open(&directory, DedupeLimits::default())?;
/// assert_eq!(store.claim("shipping", "01AB").await?, Claim::Done);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    table: Arc<Mutex<Table>>,
    /// Dropped before the writer, which then ends. Closed: the writer has failed.
    jobs: mpsc::Sender<Job>,
    _writer: Writer,
}

/// A message that is done.
#[derive(Debug)]
struct Job {
    key: Key,
    at: u64,
    /// Dropped without an answer when the disk fails.
    answer: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Writer(Option<JoinHandle<()>>);

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(Err(_)) = self.0.take().map(JoinHandle::join) {
            tracing::error!("the writer of a store of message ids panicked");
        }
    }
}

impl FileStore {
    /// The store in `directory`, whose parent must be there. Reads what is done, and so blocks for a moment: 28 MB for each
    /// million ids.
    pub fn open(directory: impl AsRef<Path>, limits: DedupeLimits) -> Result<Self, DedupeError> {
        let directory = directory.as_ref().to_owned();
        let mut table = Table::new(limits);
        let mut log = Log::open(&directory, |key, at| table.done(key, at))?;
        let io = |error| DedupeError::Io { path: directory.clone(), error };
        let table = Arc::new(Mutex::new(table));
        tidy(&mut log, &table).map_err(io)?;
        let (jobs, inbox) = mpsc::channel(QUEUE_MAX);
        let of_writer = table.clone();
        let writer = std::thread::Builder::new().name("karman-once".into());
        let writer = writer.spawn(move || write(log, inbox, &of_writer)).map_err(io)?;
        Ok(Self(Arc::new(Inner { directory, table, jobs, _writer: Writer(Some(writer)) })))
    }

    fn failed(&self) -> DedupeError {
        DedupeError::Failed { directory: self.0.directory.clone() }
    }
}

impl DedupeStore for FileStore {
    async fn claim(&self, group: &str, message_id: &str) -> Result<Claim, DedupeError> {
        // An effect that could not be noted is not begun.
        if self.0.jobs.is_closed() {
            return Err(self.failed());
        }
        self.0.table.lock().claim(Key::new(group, message_id), ClaimToken::random(), now())
    }

    async fn done(&self, group: &str, message_id: &str) -> Result<(), DedupeError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { key: Key::new(group, message_id), at: now(), answer };
        self.0.jobs.send(job).await.map_err(|_| self.failed())?;
        answered.await.map_err(|_| self.failed())
    }

    async fn release(&self, group: &str, message_id: &str, token: ClaimToken) -> Result<(), DedupeError> {
        self.0.table.lock().release(Key::new(group, message_id), token);
        Ok(())
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The writer: until the last handle is gone, or the disk fails.
fn write(mut log: Log, mut inbox: mpsc::Receiver<Job>, table: &Mutex<Table>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
        let records: Vec<(Key, u64)> = batch.iter().map(|job: &Job| (job.key, job.at)).collect();
        if let Err(error) = log.append(&records) {
            tracing::error!(%error, "the store of message ids cannot write; it must be opened again");
            // Before the batch is dropped: who is told so must not be given a claim.
            return inbox.close();
        }
        // What the table calls done is on disk.
        {
            let mut table = table.lock();
            records.iter().for_each(|&(key, at)| table.done(key, at));
        }
        for job in batch.drain(..) {
            // Who does not wait any more may ask again.
            let _ = job.answer.send(());
        }
        if let Err(error) = tidy(&mut log, table) {
            tracing::error!(%error, "the store of message ids cannot be compacted; it must be opened again");
            return inbox.close();
        }
    }
}

/// Writes the file anew when most of it is forgotten.
fn tidy(log: &mut Log, table: &Mutex<Table>) -> std::io::Result<()> {
    let wanted: Vec<(Key, u64)> = {
        let mut table = table.lock();
        table.forget_old(now());
        if log.records() <= 2 * table.len() as u64 + SLACK_RECORDS {
            return Ok(());
        }
        table.dones().collect()
    };
    log.rewrite(&wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn after_an_error_of_the_disk_nothing_is_answered_as_done_and_nothing_is_begun() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path(), |_, _| {}).unwrap();
        log.break_disk();
        let table = Arc::new(Mutex::new(Table::new(DedupeLimits::default())));
        let (jobs, inbox) = mpsc::channel(QUEUE_MAX);
        let of_writer = table.clone();
        let writer = Writer(Some(std::thread::spawn(move || write(log, inbox, &of_writer))));
        let directory = directory.path().to_owned();
        let store = FileStore(Arc::new(Inner { directory, table, jobs, _writer: writer }));
        assert!(matches!(store.claim("g", "1").await, Ok(Claim::New(_))));
        assert!(matches!(store.done("g", "1").await, Err(DedupeError::Failed { .. })));
        assert!(matches!(store.claim("g", "2").await, Err(DedupeError::Failed { .. })));
        assert!(matches!(store.done("g", "2").await, Err(DedupeError::Failed { .. })));
    }
}
