//! Lite topics: names inside a parent topic, and the log queues that stand for them.
//!
//! A projection of its own beside the catalog, because there may be a million of them. Readers are the data threads and
//! the log writer's listener; the only source of new records is [`crate::lite::writer`]. No lock is held longer than one
//! look-up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use karman_store::{Projection, QueueNumber, Record, RecordKind};
use parking_lot::RwLock;
use prost::Message as _;

use crate::catalog::{Catalog, Topic};
use crate::records::{Change, LiteTopicRecord, LiteTopicsRecord, Metadata};

/// The time of use of a lite topic that is about to go.
const CLOSED: u64 = u64::MAX;

/// A lite topic on this broker.
#[derive(Debug)]
pub struct LiteTopic {
    /// The log queue of its messages; also what handles and progress call it.
    pub queue: QueueNumber,
    /// Its name in the parent.
    pub name: Arc<str>,
    /// The parent.
    pub topic: Arc<Topic>,
    /// When it was last sent or subscribed to. Milliseconds since 1970; 0: not since the start of the process.
    used_ms: AtomicU64,
}

impl LiteTopic {
    /// It is in use, so that it stays for the next while. False when it is about to go: it has to be made anew.
    pub fn touch(&self, now_ms: u64) -> bool {
        let used = self.used_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used_ms| {
            (used_ms != CLOSED).then_some(used_ms.max(now_ms))
        });
        used.is_ok()
    }

    /// Whether it is not about to go.
    pub fn is_open(&self) -> bool {
        self.used_ms.load(Ordering::Acquire) != CLOSED
    }

    /// Whether it was not used since `since_ms`; `started_ms` stands for all that was before this process.
    pub fn is_idle(&self, since_ms: u64, started_ms: u64) -> bool {
        self.used_ms.load(Ordering::Acquire).max(started_ms) < since_ms
    }

    /// Closes it if it is idle: nobody can use it from then on. Whoever was faster keeps it.
    pub fn close(&self, since_ms: u64, started_ms: u64) -> bool {
        let closed = self.used_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used_ms| {
            (used_ms.max(started_ms) < since_ms).then_some(CLOSED)
        });
        closed.is_ok()
    }

    /// It does not go after all: the record of its end could not be written.
    pub fn reopen(&self, now_ms: u64) {
        self.used_ms.store(now_ms, Ordering::Release);
    }
}

#[derive(Debug, Default)]
struct State {
    /// By number of the parent, and name.
    by_name: HashMap<u32, HashMap<Arc<str>, Arc<LiteTopic>>>,
    by_queue: HashMap<u32, Arc<LiteTopic>>,
    /// Numbers are not used twice, also not those of lite topics that are gone.
    next_queue: u32,
}

/// See the module's comment.
#[derive(Debug)]
pub struct LiteTopics {
    catalog: Arc<Catalog>,
    state: RwLock<State>,
}

impl LiteTopics {
    /// None yet.
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, state: RwLock::default() }
    }

    /// A lite topic by the number of its parent and its name.
    pub fn named(&self, topic: u32, name: &str) -> Option<Arc<LiteTopic>> {
        self.state.read().by_name.get(&topic)?.get(name).cloned()
    }

    /// The lite topic whose messages lie in a log queue.
    pub fn owner_of(&self, queue: QueueNumber) -> Option<Arc<LiteTopic>> {
        self.state.read().by_queue.get(&queue.0).cloned()
    }

    /// How many a parent has.
    pub fn count_of(&self, topic: u32) -> usize {
        self.state.read().by_name.get(&topic).map_or(0, HashMap::len)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.state.read().by_queue.len()
    }

    /// All of a parent; for operators.
    pub fn of_topic(&self, topic: u32) -> Vec<Arc<LiteTopic>> {
        self.state.read().by_name.get(&topic).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    /// All there are.
    pub fn all(&self) -> Vec<Arc<LiteTopic>> {
        self.state.read().by_queue.values().cloned().collect()
    }

    /// The number behind the highest that one of them has or had.
    pub fn queue_count(&self) -> u32 {
        self.state.read().next_queue
    }

    pub(super) fn change(&self, change: Change) {
        match change {
            Change::LiteTopics(record) => {
                let mut state = self.state.write();
                record.made.into_iter().for_each(|made| self.add(&mut state, made));
            }
            Change::LiteTopicsGone(gone) => {
                let mut state = self.state.write();
                gone.queues.into_iter().for_each(|queue| state.remove(queue));
            }
            Change::TopicDeleted(number) => {
                let mut state = self.state.write();
                for lite in state.by_name.remove(&number).unwrap_or_default().into_values() {
                    state.by_queue.remove(&lite.queue.0);
                }
            }
            Change::Topic(_)
            | Change::Group(_)
            | Change::GroupDeleted(_)
            | Change::TokenKey(_)
            | Change::User(_) => {}
        }
    }

    fn add(&self, state: &mut State, made: LiteTopicRecord) {
        state.next_queue = state.next_queue.max(made.queue.saturating_add(1));
        // Its parent was deleted since.
        let Some(topic) = self.catalog.topic_numbered(made.topic) else { return };
        let queue = QueueNumber(made.queue);
        let lite = state.by_queue.entry(made.queue).or_insert_with(|| {
            Arc::new(LiteTopic { queue, name: made.name.into(), topic, used_ms: AtomicU64::new(0) })
        });
        // Also one that is known: an earlier one of its name may have been applied again in front of it.
        let lite = lite.clone();
        state.by_name.entry(made.topic).or_default().insert(lite.name.clone(), lite);
    }
}

impl State {
    fn remove(&mut self, queue: u32) {
        let Some(lite) = self.by_queue.remove(&queue) else { return };
        if let Some(named) = self.by_name.get_mut(&lite.topic.number)
            && named.get(&lite.name).is_some_and(|own| own.queue.0 == queue)
        {
            named.remove(&lite.name);
        }
    }
}

/// A snapshot is the record that would make them all.
#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, optional, tag = "1")]
    all: Option<LiteTopicsRecord>,
    #[prost(uint32, tag = "2")]
    next_queue: u32,
}

impl Projection for LiteTopics {
    fn name(&self) -> &'static str {
        "lite-topics"
    }

    fn apply(&self, record: &Record) {
        if record.kind == RecordKind::Metadata
            && let Ok(Metadata { change: Some(change) }) = Metadata::decode(&record.payload[..])
        {
            self.change(change);
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let state = self.state.read();
        let record = |lite: &Arc<LiteTopic>| LiteTopicRecord {
            topic: lite.topic.number,
            name: lite.name.to_string(),
            queue: lite.queue.0,
        };
        let made = state.by_queue.values().map(record).collect();
        let all = Some(LiteTopicsRecord { made });
        Snapshot { all, next_queue: state.next_queue }.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        let mut state = State { next_queue: snapshot.next_queue, ..State::default() };
        snapshot.all.unwrap_or_default().made.into_iter().for_each(|made| self.add(&mut state, made));
        *self.state.write() = state;
        Ok(())
    }

    fn was_added_later(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use karman_remoting::proto::karman as v1;
    use karman_remoting::proto::v2::MessageType;

    use super::*;
    use crate::catalog_writer::topic_named;

    /// A parent in a catalog of its own.
    pub(in crate::lite) fn parent() -> (Arc<Catalog>, Arc<Topic>) {
        let catalog = Arc::new(Catalog::default());
        let config = v1::TopicConfig { message_type: MessageType::Lite.into(), ..topic_named("sessions", 8) };
        let record = catalog.next_topic(config).unwrap();
        catalog.change(Change::Topic(record));
        let topic = catalog.topic("sessions").unwrap();
        (catalog, topic)
    }

    pub(in crate::lite) fn made(topic: u32, name: &str, queue: u32) -> Change {
        let made = vec![LiteTopicRecord { topic, name: name.into(), queue }];
        Change::LiteTopics(LiteTopicsRecord { made })
    }

    #[test]
    fn a_snapshot_keeps_what_there_is_and_the_numbers_of_what_was() {
        let (catalog, topic) = parent();
        let lites = LiteTopics::new(catalog.clone());
        lites.change(made(topic.number, "a", 8));
        lites.change(made(topic.number, "b", 9));
        lites.change(Change::LiteTopicsGone(crate::records::LiteTopicsGone { queues: vec![9] }));
        let restored = LiteTopics::new(catalog);
        restored.restore(&lites.snapshot()).unwrap();
        assert_eq!(restored.named(topic.number, "a").unwrap().queue, QueueNumber(8));
        assert!(restored.named(topic.number, "b").is_none() && restored.owner_of(QueueNumber(9)).is_none());
        assert_eq!((restored.queue_count(), restored.count_of(topic.number)), (10, 1));
    }

    #[test]
    fn a_name_that_was_made_again_outlives_the_end_of_the_first() {
        let (catalog, topic) = parent();
        let lites = LiteTopics::new(catalog);
        lites.change(made(topic.number, "a", 8));
        lites.change(made(topic.number, "a", 9));
        lites.change(Change::LiteTopicsGone(crate::records::LiteTopicsGone { queues: vec![8] }));
        assert_eq!(lites.named(topic.number, "a").unwrap().queue, QueueNumber(9));
        lites.change(Change::TopicDeleted(topic.number));
        assert_eq!((lites.count(), lites.queue_count()), (0, 10));
    }

    #[test]
    fn a_lite_topic_goes_or_is_used_but_not_both() {
        let (catalog, topic) = parent();
        let lites = LiteTopics::new(catalog);
        lites.change(made(topic.number, "a", 8));
        let lite = lites.named(topic.number, "a").unwrap();
        assert!(!lite.is_idle(500, 500), "the start of the process counts as a use");
        assert!(lite.touch(1000));
        assert!(!lite.close(1000, 500), "it was used since");
        assert!(lite.close(1001, 500));
        assert!(!lite.touch(2000), "it has to be made anew");
    }
}
