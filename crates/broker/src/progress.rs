//! How far every group has come with every topic on this broker.
//!
//! The live state is ahead of the log: acknowledgements change it first and are recorded then, so on a running master
//! progress records are not applied again. In recovery the same records rebuild it. Used from every data thread and by the log
//! writer; a lock is held for one command of one group on one topic, and the log writer does not wait for it.

mod rows;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use karman_remoting::proto::karman::ConsumeFromWhere;
use karman_remoting::status::Rejection;
use karman_store::{
    Append, AppendError, Durability, NewRecord, Projection, QueueNumber, Record, RecordKind, Store,
};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tokio::sync::Notify;

use crate::catalog::{Catalog, Topic};
use crate::pop::{Pop, Position, QueueState};
use crate::records::{Change, GroupRecord, Metadata, Origin, Progress, QueueProgress};
use crate::refuse;
use crate::traffic::Delivered;

use self::rows::{RowKey, Rows};

/// Groups on topics, and clients of broadcasting ones.
const ROWS_MAX: usize = 1_000_000;

/// A group on a topic.
#[derive(Debug)]
pub struct GroupTopic {
    /// Number of the group.
    pub group: u32,
    /// The topic.
    pub topic: Arc<Topic>,
    /// Of a broadcasting group: the client whose progress this is.
    pub client: Option<Arc<str>>,
    /// What it had since the start of the process.
    pub delivered: Delivered,
    /// Who has what.
    pop: Mutex<Pop>,
    /// Of what the log has a dead letter while the core was in use, and whether this broker runs as a master: the log writer
    /// never waits for the core.
    buried: Mutex<Vec<(Position, bool)>>,
    /// When the next message becomes visible again; `u64::MAX` if none waits. Milliseconds since 1970.
    due_ms: AtomicU64,
    /// When somebody received here last. Milliseconds since 1970; 0: not since the start of the process.
    seen_ms: AtomicU64,
    /// The log says where it begins.
    is_recorded: AtomicBool,
    /// Told when a message may have become deliverable. One waiter is woken; it passes the word on if there is more.
    pub arrived: Arc<Notify>,
}

impl GroupTopic {
    fn new(key: RowKey, topic: Arc<Topic>, starts: &[u64]) -> Arc<Self> {
        let arrived = Arc::new(Notify::new());
        topic.add_reader(arrived.clone());
        let RowKey { group, client, .. } = key;
        let pop = Mutex::new(Pop::new(starts));
        let (buried, seen_ms, is_recorded) = (Mutex::default(), AtomicU64::new(0), AtomicBool::new(false));
        let due_ms = AtomicU64::new(u64::MAX);
        let delivered = Delivered::default();
        Arc::new(Self { group, topic, client, delivered, pop, buried, due_ms, seen_ms, is_recorded, arrived })
    }

    /// Somebody receives here.
    pub fn seen(&self, now_ms: u64) {
        self.seen_ms.store(now_ms, Ordering::Relaxed);
    }

    /// When somebody received here last, or `started_ms` if nobody has since the start of the process.
    pub fn last_seen_ms(&self, started_ms: u64) -> u64 {
        self.seen_ms.load(Ordering::Relaxed).max(started_ms)
    }

    /// Runs one command of the core.
    pub fn run<T>(&self, command: impl FnOnce(&mut Pop) -> T) -> T {
        let result = {
            let mut pop = self.pop.lock();
            self.finish_buried(&mut pop);
            let result = command(&mut pop);
            self.due_ms.store(pop.next_due_ms().unwrap_or(u64::MAX), Ordering::Release);
            result
        };
        self.see_buried();
        result
    }

    /// The log has a dead letter of a message, which is done by that. Never waits: whoever uses the core, perhaps while he
    /// reads messages for a filter, sees to it afterwards.
    fn buried(&self, position: Position, is_live: bool) {
        self.buried.lock().push((position, is_live));
        self.see_buried();
    }

    /// Who finds the core in use leaves it to the user, who comes here when he is done.
    fn see_buried(&self) {
        while !self.buried.lock().is_empty() {
            let Some(mut pop) = self.pop.try_lock() else { return };
            self.finish_buried(&mut pop);
            self.due_ms.store(pop.next_due_ms().unwrap_or(u64::MAX), Ordering::Release);
        }
    }

    /// Whether the time of a message has come again. There may be a million rows, and most of them are idle.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms.load(Ordering::Acquire) <= now_ms
    }

    fn finish_buried(&self, pop: &mut Pop) {
        let buried = std::mem::take(&mut *self.buried.lock());
        let mut is_more = false;
        buried.into_iter().for_each(|(position, is_live)| is_more |= pop.buried(position, is_live));
        if is_more {
            self.arrived.notify_one();
        }
    }

    /// Runs one command, and appends what it wants recorded before another can run: a record says how far everything is,
    /// so one that came to lie behind that of a later reset would undo it.
    fn run_recorded<T>(
        &self,
        store: &Store,
        durability: Durability,
        command: impl FnOnce(&mut Pop) -> (T, Vec<QueueProgress>),
    ) -> (T, Result<Option<Append>, AppendError>) {
        self.run(|pop| {
            let (result, queues) = command(pop);
            // It never waits: the log writer has an inbox.
            let append = (!queues.is_empty()).then(|| store.append(vec![self.record(queues)], durability));
            (result, append.transpose())
        })
    }

    /// Runs one command; answered when its record is as durable as `durability`.
    pub async fn commit<T>(
        &self,
        store: &Store,
        durability: Durability,
        command: impl FnOnce(&mut Pop) -> (T, Vec<QueueProgress>),
    ) -> Result<T, Rejection> {
        let (result, append) = self.run_recorded(store, durability, command);
        if let Some(append) = append.map_err(refuse::append)? {
            append.await.map_err(refuse::append)?;
        }
        Ok(result)
    }

    /// How far the group is with a queue, once that is as durable as `durability`: a record of it lies behind all from which it
    /// follows, and the next master cannot know less.
    pub async fn settled(
        &self,
        store: &Store,
        durability: Durability,
        queue_id: u32,
    ) -> Result<Option<QueueState>, Rejection> {
        let (state, append) = self.run_recorded(store, durability, |pop| {
            let state = pop.queue_state(queue_id);
            let floor = |state: &QueueState| QueueProgress {
                queue_id,
                floor: state.floor,
                ..QueueProgress::default()
            };
            let queues = state.as_ref().map(floor).into_iter().collect();
            (state, queues)
        });
        if let Some(append) = append.map_err(refuse::append)? {
            append.await.map_err(refuse::append)?;
        }
        Ok(state)
    }

    /// Runs one command and does not wait for its record: if it gets lost, a message is delivered once more.
    pub fn commit_later<T>(
        &self,
        store: &Store,
        command: impl FnOnce(&mut Pop) -> (T, Vec<QueueProgress>),
    ) -> T {
        let (result, append) = self.run_recorded(store, Durability::Memory, command);
        if let Err(error) = append {
            tracing::debug!(%error, "progress was not recorded");
        }
        result
    }

    fn key(&self) -> RowKey {
        RowKey { group: self.group, topic: self.topic.number, client: self.client.clone() }
    }

    fn progress(&self, queues: Vec<QueueProgress>) -> Progress {
        let client = self.client.as_deref().map(str::to_owned);
        Progress { group: self.group, topic: self.topic.number, queues, client, ended: false }
    }

    fn record(&self, queues: Vec<QueueProgress>) -> NewRecord {
        record_of(&self.progress(queues))
    }
}

fn record_of(progress: &Progress) -> NewRecord {
    NewRecord {
        kind: RecordKind::Progress,
        queue: None,
        tag_hash: 0,
        mark: 0,
        keys: Vec::new(),
        payload: Bytes::from(progress.encode_to_vec()),
    }
}

/// All groups on all topics.
#[derive(Debug)]
pub struct ProgressTable {
    catalog: Arc<Catalog>,
    rows: RwLock<Rows>,
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
        for row in self.rows.read().iter() {
            row.run(Pop::schedule);
            // It follows from a record.
            row.is_recorded.store(true, Ordering::Release);
        }
        self.live.store(true, Ordering::Release);
    }

    /// A group on a topic, if it has read it; of a broadcasting group, one of its clients.
    pub fn get(&self, group: u32, topic: u32, client: Option<&str>) -> Option<Arc<GroupTopic>> {
        let key = RowKey { group, topic, client: client.map(Arc::from) };
        self.rows.read().get(&key).cloned()
    }

    /// Every group on every topic.
    pub fn all(&self) -> Vec<Arc<GroupTopic>> {
        self.rows.read().iter().cloned().collect()
    }

    /// A group on all its topics, with all its clients.
    pub fn of_group(&self, group: u32) -> Vec<Arc<GroupTopic>> {
        self.rows.read().of_group(group).cloned().collect()
    }

    /// A group on a topic; of a broadcasting group, one of its clients. At the first contact its start is fixed by a record
    /// in front of every other of this row, as durable as `durability`: without it a next master would begin elsewhere. Whoever
    /// comes while the log does not have that, or after the store refused it, records it once more.
    pub async fn open(
        &self,
        store: &Store,
        durability: Durability,
        group: &GroupRecord,
        topic: &Arc<Topic>,
        client: Option<&str>,
    ) -> Result<Arc<GroupTopic>, Rejection> {
        let (row, append) = match self.get(group.number, topic.number, client) {
            Some(row) => (row, None),
            None => self.begin(store, durability, group, topic, client)?,
        };
        if row.is_recorded.load(Ordering::Acquire) {
            return Ok(row);
        }
        match append {
            Some(append) => drop(append.await.map_err(refuse::append)?),
            None => row.commit(store, durability, |pop| ((), pop.floors())).await?,
        }
        row.is_recorded.store(true, Ordering::Release);
        Ok(row)
    }

    /// A row that is not there yet, and its first record on its way into the log.
    fn begin(
        &self,
        store: &Store,
        durability: Durability,
        group: &GroupRecord,
        topic: &Arc<Topic>,
        client: Option<&str>,
    ) -> Result<(Arc<GroupTopic>, Option<Append>), Rejection> {
        let starts = starts(store, group, topic)?;
        let key = RowKey { group: group.number, topic: topic.number, client: client.map(Arc::from) };
        let mut rows = self.rows.write();
        if let Some(row) = rows.get(&key) {
            return Ok((row.clone(), None));
        }
        if rows.count() >= ROWS_MAX {
            return Err(Rejection::TooManyRequests(format!(
                "this broker keeps {ROWS_MAX} progresses of groups on topics, the most it can"
            )));
        }
        let row = GroupTopic::new(key.clone(), topic.clone(), &starts);
        let first = row.record(row.run(|pop| pop.floors()));
        let append = store.append(vec![first], durability).map_err(refuse::append)?;
        rows.insert(key, row.clone());
        Ok((row, Some(append)))
    }

    /// Forgets the progress of a client of a broadcasting group.
    pub fn end(&self, store: &Store, row: &GroupTopic) {
        // Where it gets lost the next start knows the client, and forgets it again.
        if let Err(error) = self.remove(store, row) {
            tracing::debug!(%error, "the end of a broadcasting client was not recorded");
        }
    }

    /// A group has not read a topic any more, or a client of a broadcasting one. Answered when the kernel has it.
    pub async fn forget(&self, store: &Store, row: &GroupTopic) -> Result<(), Rejection> {
        self.remove(store, row).map_err(refuse::append)?.await.map(drop).map_err(refuse::append)
    }

    fn remove(&self, store: &Store, row: &GroupTopic) -> Result<Append, AppendError> {
        let progress = Progress { ended: true, ..row.progress(Vec::new()) };
        // Under the lock, so that the record lies in front of that of a new beginning.
        let mut rows = self.rows.write();
        let append = store.append(vec![record_of(&progress)], Durability::Memory)?;
        rows.remove(&row.key());
        row.topic.remove_reader(&row.arrived);
        Ok(append)
    }

    /// The row that is there, or a new one.
    fn insert(&self, key: RowKey, topic: &Arc<Topic>) -> Arc<GroupTopic> {
        let starts = vec![0; topic.queues.len()];
        let mut rows = self.rows.write();
        if let Some(row) = rows.get(&key) {
            return row.clone();
        }
        let row = GroupTopic::new(key.clone(), topic.clone(), &starts);
        rows.insert(key, row.clone());
        row
    }

    /// A group is no more: whoever waits for its messages learns it.
    fn remove_group(&self, group: u32) {
        let removed = self.rows.write().remove_group(group);
        for row in removed {
            row.topic.remove_reader(&row.arrived);
            row.arrived.notify_one();
        }
    }

    fn apply_progress(&self, progress: &Progress) {
        // A topic that was deleted since has no progress.
        let Some(topic) = self.catalog.topic_numbered(progress.topic) else { return };
        // That on lite topics is another projection's.
        if topic.is_lite() {
            return;
        }
        // A receive that was under way may have recorded it behind the end of its group.
        if self.catalog.group_numbered(progress.group).is_none() {
            return;
        }
        let client = progress.client.as_deref().map(Arc::from);
        let key = RowKey { group: progress.group, topic: progress.topic, client };
        if progress.ended {
            if let Some(row) = self.rows.write().remove(&key) {
                topic.remove_reader(&row.arrived);
            }
            return;
        }
        let row = self.insert(key, &topic);
        row.run(|pop| progress.queues.iter().for_each(|queue| pop.apply(queue)));
    }
}

/// Where a group begins with each queue of a topic that it has not read before.
pub fn starts(store: &Store, group: &GroupRecord, topic: &Topic) -> Result<Vec<u64>, Rejection> {
    let start = |&queue: &u32| {
        let range = store.queue_range(QueueNumber(queue));
        match group.config.consume_from() {
            ConsumeFromWhere::ConsumeFromFirstOffset => Ok(range.start),
            ConsumeFromWhere::ConsumeFromLastOffset => Ok(range.end),
            ConsumeFromWhere::ConsumeFromTimestamp => {
                let offset = store.offset_by_time(QueueNumber(queue), group.config.consume_from_ms);
                offset.map(|offset| offset.0).map_err(|error| refuse::read(&error))
            }
        }
    };
    topic.queues.iter().map(start).collect()
}

/// Moves a row: all in front of each new offset counts as done, and nothing else. Answered like [`GroupTopic::commit`].
pub async fn reset(
    store: &Store,
    durability: Durability,
    row: &GroupTopic,
    moves: &[(u32, u64)],
    revision_base: u32,
) -> Result<(), Rejection> {
    let reset = row.commit(store, durability, |pop| {
        let moved = moves.iter().flat_map(|&(queue_id, offset)| pop.reset(queue_id, offset, revision_base));
        ((), moved.collect())
    });
    let result = reset.await;
    row.arrived.notify_one();
    result
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
                match Metadata::decode(&record.payload[..]).ok().and_then(|metadata| metadata.change) {
                    Some(Change::TopicDeleted(topic)) => self.rows.write().remove_topic(topic),
                    Some(Change::GroupDeleted(group)) => self.remove_group(group),
                    _ => {}
                }
            }
            // Also while live: who asked for the copy may be gone before it is stored.
            RecordKind::DeadLetter => {
                if let Some(origin) = Origin::of(&record.payload)
                    && let Some(row) = self.get(origin.group, origin.topic, None)
                {
                    let position = Position { queue_id: origin.queue_id, offset: origin.offset };
                    row.buried(position, self.live.load(Ordering::Acquire));
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
        let rows = self.all().into_iter().map(|row| row.progress(row.run(|pop| pop.snapshot())));
        Snapshot { rows: rows.collect() }.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        *self.rows.write() = Rows::default();
        for progress in &snapshot.rows {
            self.apply_progress(progress);
        }
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
