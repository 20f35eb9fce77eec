//! Topics, consumer groups and users: what there is, and the numbers that stand for it in the log.
//!
//! A projection of the Metadata records. Readers are the data threads and the log writer's listener; the only source of
//! new records is [`crate::catalog_writer`]. No lock is held longer than one look-up.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use karman_remoting::auth::users::{Users, merge_into};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2::{MessageType, Permission};
use karman_remoting::quota::{Rates, Sends};
use karman_remoting::settings::{DEFAULT_LITE_CLIENT_QUOTA, DEFAULT_RETRY_MAX_TIMES};
use karman_remoting::status::Rejection;
use karman_remoting::token::TokenKey;
use karman_store::{Durability, Projection, QueueNumber, Record, RecordKind};
use parking_lot::RwLock;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::records::{Change, GroupRecord, Metadata, TopicRecord};
use crate::traffic::{Stored, Traffic};

/// A topic on this broker.
#[derive(Debug)]
pub struct Topic {
    /// Stands for it in the log and in handles.
    pub number: u32,
    /// Log queue number of each of its queues, in order.
    pub queues: Vec<u32>,
    name: String,
    message_type: MessageType,
    /// Name and type in it never change.
    config: ArcSwap<v1::TopicConfig>,
    /// Where the next send begins to look for a queue.
    turn: AtomicU32,
    /// For producers.
    pub stored: Stored,
    /// To pull consumers, which keep their place themselves.
    pub pulled: Traffic,
    /// What it has of its quotas.
    pub quota: Sends,
    /// One for each group that reads the topic: told whenever a message arrives.
    readers: RwLock<Vec<Arc<Notify>>>,
    /// Told of the same; who waits here takes part for one wait only.
    arrivals: Notify,
}

impl Topic {
    fn new(record: TopicRecord) -> Arc<Self> {
        let message_type = match record.config.message_type() {
            MessageType::Unspecified => MessageType::Normal,
            known => known,
        };
        Arc::new(Self {
            number: record.number,
            queues: record.queues,
            name: record.config.name.clone(),
            message_type,
            config: ArcSwap::from_pointee(record.config),
            turn: AtomicU32::new(0),
            stored: Stored::default(),
            pulled: Traffic::default(),
            quota: Sends::default(),
            readers: RwLock::default(),
            arrivals: Notify::new(),
        })
    }

    /// What the log says of it.
    fn record(&self) -> TopicRecord {
        TopicRecord { number: self.number, queues: self.queues.clone(), config: self.config() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of message it takes.
    pub fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// Whether its messages belong to lite topics; its own queues stay empty then.
    pub fn is_lite(&self) -> bool {
        self.message_type == MessageType::Lite
    }

    /// How many queues it has here.
    pub fn queue_nums(&self) -> u32 {
        u32::try_from(self.queues.len()).expect("the number of queues is limited")
    }

    /// The log queue of one of its queues.
    pub fn queue(&self, queue_id: u32) -> Option<QueueNumber> {
        self.queues.get(queue_id as usize).copied().map(QueueNumber)
    }

    /// The queue for the next send, in turns. What the client picked does not matter: every SDK picks differently.
    pub fn next_queue(&self) -> (u32, QueueNumber) {
        let queue_id = self.turn.fetch_add(1, Ordering::Relaxed) % self.queue_nums().max(1);
        (queue_id, QueueNumber(self.queues[queue_id as usize]))
    }

    /// When a send to it is answered, if it has a class of its own.
    pub fn durability(&self) -> Option<Durability> {
        match self.config.load().durability() {
            v1::Durability::Memory => Some(Durability::Memory),
            v1::Durability::Disk => Some(Durability::Disk),
            v1::Durability::Replicated => Some(Durability::Replicated),
            v1::Durability::ReplicatedDisk => Some(Durability::ReplicatedDisk),
            v1::Durability::Unspecified => None,
        }
    }

    /// How long its messages are kept, if it says so itself.
    pub fn reserved(&self) -> Option<Duration> {
        let hours = self.config.load().reserved_hours;
        (hours > 0).then(|| Duration::from_secs(u64::from(hours) * 3600))
    }

    /// After so long its messages are not delivered any more, if it says so. Milliseconds.
    pub fn ttl_ms(&self) -> Option<u64> {
        let seconds = self.config.load().ttl_seconds;
        (seconds > 0).then(|| seconds.saturating_mul(1000))
    }

    /// A message id is not stored again that was stored in this time; 0: it is. `default_minutes`: where the topic says
    /// nothing and its sends are answered when they are on disk. Milliseconds.
    pub fn dedup_window_ms(&self, durability: Durability, default_minutes: u32) -> u64 {
        let unsaid = if durability >= Durability::Disk { default_minutes } else { 0 };
        u64::from(self.config.load().dedup_window_minutes.unwrap_or(unsaid)) * 60_000
    }

    /// What may be sent to it in a second, here.
    pub fn rates(&self) -> Rates {
        let config = self.config.load();
        Rates { messages: config.messages_per_second, bytes: config.bytes_per_second }
    }

    /// LITE: a lite topic goes that had no message for so long, if it says so. Milliseconds.
    pub fn lite_expiration_ms(&self) -> Option<u64> {
        let minutes = self.config.load().lite_expiration_minutes;
        (minutes > 0).then(|| u64::from(minutes) * 60_000)
    }

    /// Tells `reader` of every message from now on.
    pub fn add_reader(&self, reader: Arc<Notify>) {
        self.readers.write().push(reader);
    }

    /// `reader` is told no more.
    pub fn remove_reader(&self, reader: &Arc<Notify>) {
        self.readers.write().retain(|own| !Arc::ptr_eq(own, reader));
    }

    /// Resolves when a message arrives after it was enabled, for those who come and go.
    pub fn arrival(&self) -> Notified<'_> {
        self.arrivals.notified()
    }

    /// A message has arrived.
    pub fn arrived(&self) {
        self.arrivals.notify_waiters();
        for reader in self.readers.read().iter() {
            reader.notify_one();
        }
    }

    /// As the route table has it.
    pub fn route(&self) -> v1::TopicRoute {
        v1::TopicRoute {
            name: self.name.clone(),
            message_type: self.message_type.into(),
            read_queue_nums: self.queue_nums(),
            write_queue_nums: self.queue_nums(),
            permission: Permission::ReadWrite.into(),
        }
    }

    /// As operators see it.
    pub fn config(&self) -> v1::TopicConfig {
        (**self.config.load()).clone()
    }
}

impl GroupRecord {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// After this many deliveries a message is dead.
    pub fn attempts_max(&self) -> u32 {
        self.config.retry_max_times.unwrap_or(DEFAULT_RETRY_MAX_TIMES).saturating_add(1)
    }

    /// Lite topics that one client may subscribe to.
    pub fn lite_client_quota(&self) -> usize {
        match self.config.lite_client_quota {
            0 => DEFAULT_LITE_CLIENT_QUOTA as usize,
            quota => quota as usize,
        }
    }

    /// Whether it gets the messages of one message group of `topic` one by one.
    pub fn is_orderly(&self, topic: &Topic) -> bool {
        self.config.orderly.unwrap_or(topic.message_type() == MessageType::Fifo)
    }
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<String, Arc<Topic>>,
    topics_by_number: BTreeMap<u32, Arc<Topic>>,
    /// By log queue number.
    queue_owners: HashMap<u32, Arc<Topic>>,
    groups: HashMap<String, Arc<GroupRecord>>,
    groups_by_number: BTreeMap<u32, Arc<GroupRecord>>,
    /// Those that this log knows, deleted ones too.
    users: BTreeMap<String, v1::User>,
    token_key: Option<Vec<u8>>,
    /// Numbers are not used twice, also not those of deleted topics and groups.
    next_topic: u32,
    next_group: u32,
    next_queue: u32,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct Catalog {
    state: RwLock<State>,
    users: Users,
}

impl Catalog {
    /// A topic by its name.
    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.state.read().topics.get(name).cloned()
    }

    /// A topic by its number.
    pub fn topic_numbered(&self, number: u32) -> Option<Arc<Topic>> {
        self.state.read().topics_by_number.get(&number).cloned()
    }

    /// All topics, in the order they were made.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.state.read().topics_by_number.values().cloned().collect()
    }

    /// A group by its name.
    pub fn group(&self, name: &str) -> Option<Arc<GroupRecord>> {
        self.state.read().groups.get(name).cloned()
    }

    /// A group by its number.
    pub fn group_numbered(&self, number: u32) -> Option<Arc<GroupRecord>> {
        self.state.read().groups_by_number.get(&number).cloned()
    }

    /// All groups, in the order they were made.
    pub fn groups(&self) -> Vec<Arc<GroupRecord>> {
        self.state.read().groups_by_number.values().cloned().collect()
    }

    /// The topic that owns a log queue.
    pub fn owner_of(&self, queue: QueueNumber) -> Option<Arc<Topic>> {
        self.state.read().queue_owners.get(&queue.0).cloned()
    }

    /// The users of the cluster as this node knows them: those of the log, and what it has heard from other nodes.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// The version of a user in this log; 0: it knows none of that name.
    pub fn user_version(&self, name: &str) -> u64 {
        self.state.read().users.get(name).map_or(0, |user| user.version)
    }

    /// The key of this log's handles, once there is one.
    pub fn token_key(&self) -> Option<TokenKey> {
        let bytes: [u8; 32] = self.state.read().token_key.as_deref()?.try_into().ok()?;
        Some(TokenKey::new(bytes))
    }

    /// Queue numbers below `count` are not given out any more: the log holds messages under them, also when the record
    /// of their topic was lost to damage.
    pub fn reserve_queues(&self, count: u32) {
        let mut state = self.state.write();
        state.next_queue = state.next_queue.max(count);
    }

    /// Free queue numbers, which nobody else is given from now on, nor ever was.
    pub fn take_queues(&self, count: usize) -> Result<Range<u32>, Rejection> {
        let mut state = self.state.write();
        let first = state.next_queue;
        let none_left = || Rejection::Internal("this log has given out all of its queue numbers".to_owned());
        let next = u32::try_from(count).ok().and_then(|count| first.checked_add(count));
        state.next_queue = next.ok_or_else(none_left)?;
        Ok(first..state.next_queue)
    }

    /// The record of a new topic with the next free numbers.
    pub fn next_topic(&self, config: v1::TopicConfig) -> Result<TopicRecord, Rejection> {
        let queues = self.take_queues(config.queue_nums as usize)?.collect();
        Ok(TopicRecord { number: self.state.read().next_topic, queues, config })
    }

    /// The record of a new group with the next free number.
    pub fn next_group(&self, mut config: v1::GroupConfig) -> GroupRecord {
        config.retry_max_times.get_or_insert(DEFAULT_RETRY_MAX_TIMES);
        GroupRecord { number: self.state.read().next_group, config }
    }

    pub(crate) fn change(&self, change: Change) {
        let mut state = self.state.write();
        match change {
            Change::Topic(record) => state.add_topic(record),
            Change::TopicDeleted(number) => state.delete_topic(number),
            Change::Group(record) => state.add_group(record),
            Change::GroupDeleted(number) => state.delete_group(number),
            Change::TokenKey(key) => state.token_key = Some(key),
            Change::User(user) => {
                merge_into(&mut state.users, user.clone());
                drop(state);
                self.users.merge([user]);
            }
            // Theirs is a projection of its own: there are very many.
            Change::LiteTopics(_) | Change::LiteTopicsGone(_) => {}
        }
    }
}

impl State {
    fn add_topic(&mut self, record: TopicRecord) {
        // New settings, or applied again after a snapshot that has it already: the readers of the first stay.
        if let Some(known) = self.topics_by_number.get(&record.number) {
            known.config.store(Arc::new(record.config));
            // An earlier one of that name, deleted since, may have been applied again as well.
            self.topics.insert(known.name.clone(), known.clone());
            return;
        }
        self.next_topic = self.next_topic.max(record.number + 1);
        let topic = Topic::new(record);
        for &queue in &topic.queues {
            self.next_queue = self.next_queue.max(queue + 1);
            self.queue_owners.insert(queue, topic.clone());
        }
        self.topics_by_number.insert(topic.number, topic.clone());
        self.topics.insert(topic.name.clone(), topic);
    }

    fn delete_topic(&mut self, number: u32) {
        let Some(topic) = self.topics_by_number.remove(&number) else { return };
        for &queue in &topic.queues {
            self.queue_owners.remove(&queue);
        }
        if self.topics.get(&topic.name).is_some_and(|named| named.number == number) {
            self.topics.remove(&topic.name);
        }
    }

    fn add_group(&mut self, record: GroupRecord) {
        self.next_group = self.next_group.max(record.number + 1);
        let group = Arc::new(record);
        self.groups_by_number.insert(group.number, group.clone());
        self.groups.insert(group.name().to_owned(), group);
    }

    fn delete_group(&mut self, number: u32) {
        let Some(group) = self.groups_by_number.remove(&number) else { return };
        if self.groups.get(group.name()).is_some_and(|named| named.number == number) {
            self.groups.remove(group.name());
        }
    }
}

/// All there is, with the numbers that must not be used again.
#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, repeated, tag = "1")]
    topics: Vec<TopicRecord>,
    #[prost(message, repeated, tag = "2")]
    groups: Vec<GroupRecord>,
    #[prost(bytes = "vec", optional, tag = "3")]
    token_key: Option<Vec<u8>>,
    #[prost(uint32, tag = "4")]
    next_topic: u32,
    #[prost(uint32, tag = "5")]
    next_group: u32,
    #[prost(uint32, tag = "6")]
    next_queue: u32,
    #[prost(message, repeated, tag = "7")]
    users: Vec<v1::User>,
}

impl Projection for Catalog {
    fn name(&self) -> &'static str {
        "catalog"
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
        let snapshot = Snapshot {
            topics: state.topics_by_number.values().map(|topic| topic.record()).collect(),
            groups: state.groups_by_number.values().map(|group| (**group).clone()).collect(),
            token_key: state.token_key.clone(),
            next_topic: state.next_topic,
            next_group: state.next_group,
            next_queue: state.next_queue,
            users: state.users.values().cloned().collect(),
        };
        snapshot.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        let mut state = State {
            token_key: snapshot.token_key,
            next_topic: snapshot.next_topic,
            next_group: snapshot.next_group,
            next_queue: snapshot.next_queue,
            ..State::default()
        };
        snapshot.topics.into_iter().for_each(|topic| state.add_topic(topic));
        snapshot.groups.into_iter().for_each(|group| state.add_group(group));
        self.users.merge(snapshot.users.iter().cloned());
        state.users = snapshot.users.into_iter().map(|user| (user.name.clone(), user)).collect();
        *self.state.write() = state;
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
