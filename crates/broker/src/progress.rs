//! How far every group has come with every topic on this broker.
//!
//! The live state is ahead of the log: acknowledgements change it first and are recorded then, so on a running master
//! progress records are not applied again. In recovery the same records rebuild it. Used from every data thread; a lock is held
//! for one command of one group on one topic.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use karman_remoting::status::Rejection;
use karman_store::{Durability, NewRecord, Projection, Record, RecordKind, Store};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tokio::sync::Notify;

use crate::catalog::{Catalog, Topic};
use crate::pop::{Pop, Position};
use crate::records::{Change, GroupRecord, Metadata, Origin, Progress, QueueProgress};
use crate::refuse;

/// A group on a topic.
#[derive(Debug)]
pub struct GroupTopic {
    /// Number of the group.
    pub group: u32,
    /// The topic.
    pub topic: Arc<Topic>,
    /// Who has what.
    pub pop: Mutex<Pop>,
    /// Told when a message may have become deliverable. One waiter is woken; it passes the word on if there is more.
    pub arrived: Arc<Notify>,
}

impl GroupTopic {
    fn new(group: u32, topic: Arc<Topic>, starts: &[u64]) -> Arc<Self> {
        let arrived = Arc::new(Notify::new());
        topic.add_reader(arrived.clone());
        Arc::new(Self { group, topic, pop: Mutex::new(Pop::new(starts)), arrived })
    }

    fn record(&self, queues: Vec<QueueProgress>) -> NewRecord {
        let progress = Progress { group: self.group, topic: self.topic.number, queues };
        NewRecord {
            kind: RecordKind::Progress,
            queue: None,
            tag_hash: 0,
            mark: 0,
            keys: Vec::new(),
            payload: Bytes::from(progress.encode_to_vec()),
        }
    }
}

/// All groups on all topics.
#[derive(Debug)]
pub struct ProgressTable {
    catalog: Arc<Catalog>,
    /// By numbers: group, topic.
    rows: RwLock<HashMap<(u32, u32), Arc<GroupTopic>>>,
    /// Set once recovery is over.
    live: AtomicBool,
}

impl ProgressTable {
    /// Nothing read yet.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, rows: RwLock::default(), live: AtomicBool::new(false) }
    }

    /// Recovery is over: what waits is put on its time, and records are no longer applied.
    pub fn go_live(&self) {
        for row in self.rows.read().values() {
            row.pop.lock().schedule();
        }
        self.live.store(true, Ordering::Release);
    }

    /// A group on a topic, if it has read it.
    pub fn get(&self, group: u32, topic: u32) -> Option<Arc<GroupTopic>> {
        self.rows.read().get(&(group, topic)).cloned()
    }

    /// Every group on every topic.
    pub fn all(&self) -> Vec<Arc<GroupTopic>> {
        self.rows.read().values().cloned().collect()
    }

    /// A group on a topic. At the first contact its start is fixed by a record: the beginning of what is stored.
    pub async fn open(
        &self,
        store: &Store,
        group: &GroupRecord,
        topic: &Arc<Topic>,
    ) -> Result<Arc<GroupTopic>, Rejection> {
        if let Some(row) = self.get(group.number, topic.number) {
            return Ok(row);
        }
        let starts: Vec<u64> = topic
            .queues
            .iter()
            .map(|&queue| store.queue_range(karman_store::QueueNumber(queue)).start)
            .collect();
        let row = self.insert(group.number, topic, &starts);
        let start = |(queue_id, &floor): (usize, &u64)| QueueProgress {
            queue_id: u32::try_from(queue_id).expect("queue numbers are u32"),
            floor,
            ..Default::default()
        };
        let record = row.record(starts.iter().enumerate().map(start).collect());
        write(store, record).await?;
        Ok(row)
    }

    /// The row that is there, or a new one; two that come at once get the same.
    fn insert(&self, group: u32, topic: &Arc<Topic>, starts: &[u64]) -> Arc<GroupTopic> {
        let mut rows = self.rows.write();
        let row = rows.entry((group, topic.number));
        row.or_insert_with(|| GroupTopic::new(group, topic.clone(), starts)).clone()
    }

    fn apply_progress(&self, progress: &Progress) {
        // A topic that was deleted since has no progress.
        let Some(topic) = self.catalog.topic_numbered(progress.topic) else { return };
        let row = self.insert(progress.group, &topic, &vec![0; topic.queues.len()]);
        let mut pop = row.pop.lock();
        for queue in &progress.queues {
            pop.apply(queue);
        }
    }
}

/// Records `queues`; answered when the kernel has it, so that it survives the end of this process.
pub async fn record(store: &Store, row: &GroupTopic, queues: Vec<QueueProgress>) -> Result<(), Rejection> {
    if queues.is_empty() { Ok(()) } else { write(store, row.record(queues)).await }
}

/// Records `queues` and does not wait: if it gets lost, a message is delivered once more with a lower attempt.
pub fn record_later(store: &Store, row: &GroupTopic, queues: Vec<QueueProgress>) {
    if !queues.is_empty()
        && let Err(error) = store.append(vec![row.record(queues)], Durability::Memory)
    {
        tracing::debug!(%error, "progress was not recorded");
    }
}

async fn write(store: &Store, record: NewRecord) -> Result<(), Rejection> {
    let append = store.append(vec![record], Durability::Memory).map_err(refuse::append)?;
    append.await.map(drop).map_err(refuse::append)
}

/// A snapshot is the records that would say it all.
#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, repeated, tag = "1")]
    rows: Vec<Progress>,
}

impl Projection for ProgressTable {
    fn name(&self) -> &'static str {
        "progress"
    }

    fn apply(&self, record: &Record) {
        match record.kind {
            RecordKind::Metadata => {
                let metadata = Metadata::decode(&record.payload[..]);
                if let Ok(Metadata { change: Some(Change::TopicDeleted(topic)) }) = metadata {
                    self.rows.write().retain(|&(_, of), _| of != topic);
                }
            }
            // Also while live: who asked for the copy may be gone before it is stored.
            RecordKind::DeadLetter => {
                if let Some(origin) = Origin::of(&record.payload)
                    && let Some(row) = self.get(origin.group, origin.topic)
                {
                    row.pop.lock().finish(Position { queue_id: origin.queue_id, offset: origin.offset });
                }
            }
            RecordKind::Progress if !self.live.load(Ordering::Acquire) => {
                if let Ok(progress) = Progress::decode(&record.payload[..]) {
                    self.apply_progress(&progress);
                }
            }
            _ => {}
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let rows = self.all().into_iter().map(|row| Progress {
            group: row.group,
            topic: row.topic.number,
            queues: row.pop.lock().snapshot(),
        });
        Snapshot { rows: rows.collect() }.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        self.rows.write().clear();
        for progress in &snapshot.rows {
            self.apply_progress(progress);
        }
        Ok(())
    }
}
