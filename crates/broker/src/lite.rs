//! Lite topics: very many small ordered topics inside one parent, consumed by clients that each name theirs.
//!
//! A lite topic is a name with a log queue ([`topics`]); it comes into being with its first message or subscription
//! ([`writer`]). A consumer group on a parent is a [`LiteGroup`]: a pure core ([`pop`]) behind a lock. The core changes
//! first and is recorded then, under the same lock, so that records lie in the log in the order of what happened; on a
//! running master records are not applied again. Used from every data thread, the log writer's and the control thread;
//! the lock is held for one command.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use karman_remoting::status::Rejection;
use karman_store::{Append, Durability, NewRecord, Projection, QueueNumber, Record, RecordKind, Store};
use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tokio::sync::Notify;

use crate::catalog::{Catalog, Topic};
use crate::pop::Position;
use crate::records::{Change, Metadata, Origin, Progress, QueueProgress};
use crate::refuse;
use crate::traffic::Delivered;

mod cursor;
pub mod pop;
pub mod subscriptions;
pub mod time;
pub mod topics;
pub mod writer;

#[cfg(test)]
mod tests;

use pop::LitePop;
use topics::LiteTopics;

/// A consumer group on the lite topics of one parent.
#[derive(Debug)]
pub struct LiteGroup {
    /// Number of the group.
    pub group: u32,
    /// The parent.
    pub topic: Arc<Topic>,
    /// What it had since the start of the process.
    pub delivered: Delivered,
    pop: Mutex<LitePop>,
    /// Lite topics in which something has arrived while the core was in use: the log writer never waits for it.
    arrivals: Mutex<Vec<u32>>,
    shared: Arc<Shared>,
}

/// What all groups have in common.
#[derive(Debug, Default)]
struct Shared {
    /// When the next message of any of them is due, as far as [`time`] knows. Milliseconds since 1970.
    alarm_ms: AtomicU64,
    /// Told when something is due earlier.
    alarm: Notify,
    subscriptions: AtomicUsize,
}

impl LiteGroup {
    /// Runs one command of the core.
    pub fn run<T>(&self, command: impl FnOnce(&mut LitePop) -> T) -> T {
        let result = self.run_one(command);
        self.see_arrivals();
        result
    }

    /// Something has arrived in a lite topic. Never waits: whoever uses the core sees to it afterwards.
    fn arrived(&self, queue: u32) {
        self.arrivals.lock().push(queue);
        self.see_arrivals();
    }

    /// Who finds the core in use leaves it to the user, who comes here when he is done.
    fn see_arrivals(&self) {
        while !self.arrivals.lock().is_empty() {
            let Some(mut pop) = self.pop.try_lock() else { return };
            let arrived = std::mem::take(&mut *self.arrivals.lock());
            arrived.into_iter().for_each(|queue| pop.arrived(queue));
        }
    }

    fn run_one<T>(&self, command: impl FnOnce(&mut LitePop) -> T) -> T {
        let mut pop = self.pop.lock();
        let before = pop.subscriptions.count();
        let result = command(&mut pop);
        let after = pop.subscriptions.count();
        if after > before {
            self.shared.subscriptions.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.shared.subscriptions.fetch_sub(before - after, Ordering::Relaxed);
        }
        if let Some(at_ms) = pop.next_due_ms()
            && at_ms < self.shared.alarm_ms.fetch_min(at_ms, Ordering::AcqRel)
        {
            self.shared.alarm.notify_one();
        }
        result
    }

    /// Runs one command, and appends what it wants recorded before another can run.
    fn run_recorded<T>(
        &self,
        store: &Store,
        durability: Durability,
        command: impl FnOnce(&mut LitePop) -> (T, Vec<QueueProgress>),
    ) -> (T, Result<Option<Append>, Rejection>) {
        self.run(|pop| {
            let (result, queues) = command(pop);
            let append = (!queues.is_empty()).then(|| {
                // It never waits: the log writer has an inbox.
                store.append(vec![self.new_record(queues)], durability).map_err(refuse::append)
            });
            (result, append.transpose())
        })
    }

    /// Runs one command; answered when its record is as durable as `durability`.
    pub async fn commit<T>(
        &self,
        store: &Store,
        durability: Durability,
        command: impl FnOnce(&mut LitePop) -> (T, Vec<QueueProgress>),
    ) -> Result<T, Rejection> {
        let (result, append) = self.run_recorded(store, durability, command);
        if let Some(append) = append? {
            append.await.map_err(refuse::append)?;
        }
        Ok(result)
    }

    /// Runs one command and does not wait for its record: if it gets lost, a message is delivered once more.
    pub fn commit_later<T>(
        &self,
        store: &Store,
        command: impl FnOnce(&mut LitePop) -> (T, Vec<QueueProgress>),
    ) -> T {
        let (result, append) = self.run_recorded(store, Durability::Memory, command);
        if let Err(error) = append {
            tracing::debug!(%error, "progress was not recorded");
        }
        result
    }

    fn new_record(&self, queues: Vec<QueueProgress>) -> NewRecord {
        let progress =
            Progress { group: self.group, topic: self.topic.number, queues, ..Progress::default() };
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

impl Drop for LiteGroup {
    fn drop(&mut self) {
        self.shared.subscriptions.fetch_sub(self.pop.get_mut().subscriptions.count(), Ordering::Relaxed);
    }
}

/// Groups by the number of the parent, then of the group.
type Rows = HashMap<u32, HashMap<u32, Arc<LiteGroup>>>;

/// All groups on all parents.
#[derive(Debug)]
pub struct LiteTable {
    /// The lite topics of this broker.
    pub topics: Arc<LiteTopics>,
    catalog: Arc<Catalog>,
    rows: RwLock<Rows>,
    shared: Arc<Shared>,
    /// Set once recovery is over.
    live: AtomicBool,
}

impl LiteTable {
    /// Nothing read yet.
    pub fn new(catalog: Arc<Catalog>, topics: Arc<LiteTopics>) -> Self {
        Self {
            topics,
            catalog,
            rows: RwLock::default(),
            shared: Arc::default(),
            live: AtomicBool::new(false),
        }
    }

    /// Recovery is over: records are no longer applied.
    pub fn go_live(&self) {
        self.live.store(true, Ordering::Release);
    }

    /// A group on a parent, if it ever subscribed or received.
    pub fn get(&self, group: u32, topic: u32) -> Option<Arc<LiteGroup>> {
        self.rows.read().get(&topic)?.get(&group).cloned()
    }

    /// A group on a parent.
    pub fn open(&self, group: u32, topic: &Arc<Topic>) -> Arc<LiteGroup> {
        if let Some(row) = self.get(group, topic.number) {
            return row;
        }
        let new = || {
            let (topic, shared) = (topic.clone(), self.shared.clone());
            let delivered = Delivered::default();
            Arc::new(LiteGroup {
                group,
                topic,
                delivered,
                pop: Mutex::default(),
                arrivals: Mutex::default(),
                shared,
            })
        };
        self.rows.write().entry(topic.number).or_default().entry(group).or_insert_with(new).clone()
    }

    /// Every group on every parent.
    pub fn all(&self) -> Vec<Arc<LiteGroup>> {
        self.rows.read().values().flat_map(HashMap::values).cloned().collect()
    }

    /// What a group has on all parents.
    pub fn of_group(&self, group: u32) -> Vec<Arc<LiteGroup>> {
        self.rows.read().values().filter_map(|groups| groups.get(&group)).cloned().collect()
    }

    /// Subscriptions of all clients together.
    pub fn subscriptions(&self) -> usize {
        self.shared.subscriptions.load(Ordering::Relaxed)
    }

    /// Whether some client of some group wants the lite topic.
    pub fn is_wanted(&self, topic: u32, queue: u32) -> bool {
        let groups: Vec<_> =
            self.rows.read().get(&topic).into_iter().flat_map(HashMap::values).cloned().collect();
        groups.iter().any(|row| row.run(|pop| !pop.subscriptions.subscribers(queue).is_empty()))
    }

    /// Messages have come into a log queue. On the log writer's thread.
    pub fn arrived(&self, queue: QueueNumber) {
        let Some(lite) = self.topics.owner_of(queue) else { return };
        let rows = self.rows.read();
        for row in rows.get(&lite.topic.number).into_iter().flat_map(HashMap::values) {
            row.arrived(queue.0);
        }
    }

    fn apply_progress(&self, progress: &Progress) {
        // Progress on other topics is another projection's.
        let Some(topic) = self.catalog.topic_numbered(progress.topic).filter(|topic| topic.is_lite()) else {
            return;
        };
        if self.catalog.group_numbered(progress.group).is_none() {
            return;
        }
        let row = self.open(progress.group, &topic);
        row.run(|pop| {
            let is_there = |queue: &&QueueProgress| {
                let lite = self.topics.owner_of(QueueNumber(queue.queue_id));
                lite.is_some_and(|lite| lite.topic.number == topic.number)
            };
            // A lite topic that is gone since has no progress.
            progress.queues.iter().filter(is_there).for_each(|queue| pop.apply(queue));
        });
    }

    fn apply_change(&self, change: &Change) {
        match change {
            Change::TopicDeleted(topic) => drop(self.rows.write().remove(topic)),
            Change::GroupDeleted(group) => {
                self.rows.write().values_mut().for_each(|groups| drop(groups.remove(group)));
            }
            Change::LiteTopicsGone(gone) => {
                for row in self.all() {
                    row.run(|pop| gone.queues.iter().for_each(|queue| pop.forget(*queue)));
                }
            }
            _ => {}
        }
    }

    fn apply_dead_letter(&self, origin: &Origin) {
        if let Some(row) = self.get(origin.group, origin.topic) {
            let position = Position { queue_id: origin.queue_id, offset: origin.offset };
            let is_live = self.live.load(Ordering::Acquire);
            row.run(|pop| pop.buried(position, is_live));
        }
    }
}

/// A snapshot is the records that would say it all.
#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, repeated, tag = "1")]
    rows: Vec<Progress>,
}

impl Projection for LiteTable {
    fn name(&self) -> &'static str {
        "lite-progress"
    }

    fn apply(&self, record: &Record) {
        match record.kind {
            RecordKind::Metadata => {
                if let Ok(Metadata { change: Some(change) }) = Metadata::decode(&record.payload[..]) {
                    self.apply_change(&change);
                }
            }
            // Also while live: who asked for the copy may be gone before it is stored.
            RecordKind::DeadLetter => {
                if let Some(origin) = Origin::of(&record.payload) {
                    self.apply_dead_letter(&origin);
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
        let progress = |row: &Arc<LiteGroup>| Progress {
            group: row.group,
            topic: row.topic.number,
            queues: row.run(|pop| pop.snapshot()),
            ..Progress::default()
        };
        Snapshot { rows: self.all().iter().map(progress).collect() }.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        self.rows.write().clear();
        snapshot.rows.iter().for_each(|progress| self.apply_progress(progress));
        Ok(())
    }

    fn was_added_later(&self) -> bool {
        true
    }
}
