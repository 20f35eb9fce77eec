//! The one task that makes topics and groups: it takes requests one by one, writes the record, and tells the cluster.
//!
//! One owner, so two requests for the same name cannot both find it free. Runs on the control thread.

use std::sync::Arc;

use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::route_change::Change as RouteChanged;
use karman_remoting::proto::v2::MessageType;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::status::Rejection;
use karman_remoting::token::TokenKey;
use karman_remoting::validate;
use karman_store::{Append, Durability, NewRecord, RecordKind, Store};
use prost::Message as _;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::catalog::{Catalog, Topic};
use crate::records::{Change, GroupRecord, Metadata, TopicRecord};
use crate::refuse;

/// Requests that may wait.
const REQUESTS_MAX: usize = 1024;
/// Topics of one broker.
const TOPICS_MAX: usize = 200_000;
/// Queues of one topic on one broker.
pub const QUEUE_NUMS_MAX: u32 = 1024;
/// Consumer groups of one broker.
const GROUPS_MAX: usize = 200_000;

/// A topic for normal messages, with the broker's defaults for everything else.
pub fn topic_named(name: &str, queue_nums: u32) -> v1::TopicConfig {
    v1::TopicConfig {
        name: name.to_owned(),
        message_type: MessageType::Normal.into(),
        queue_nums,
        ..Default::default()
    }
}

type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

#[derive(Debug)]
enum Request {
    /// `true` when the topic was there already.
    Topic(v1::TopicConfig, Reply<(Arc<Topic>, bool)>),
    UpdateTopic(v1::TopicConfig, Reply<Arc<Topic>>),
    DeleteTopic(String, Reply<()>),
    /// `true` when the group was there already.
    Group(v1::GroupConfig, Reply<(Arc<GroupRecord>, bool)>),
    UpdateGroup(v1::GroupConfig, Reply<Arc<GroupRecord>>),
    DeleteGroup(String, Reply<()>),
    /// With the version that it was made from.
    User(v1::User, u64, Reply<()>),
}

/// Asks the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CatalogWriter {
    requests: mpsc::Sender<Request>,
}

impl CatalogWriter {
    /// The handle, and the task to spawn; the task ends when the last handle is dropped.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<Store>,
        routes: SharedRoutes,
        deltas: broadcast::Sender<v1::BrokerDelta>,
        broker_name: String,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let task = Task { catalog, store, routes, deltas, broker_name };
        (Self { requests }, task.run(received))
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Rejection> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Rejection::Internal("the broker is stopping".into());
        self.requests.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Makes a topic. `true` when it was there already; it is then left as it is.
    pub async fn topic(&self, topic: v1::TopicConfig) -> Result<(Arc<Topic>, bool), Rejection> {
        self.ask(|reply| Request::Topic(topic, reply)).await
    }

    /// Replaces the settings of a topic that is there; its type and queues stay.
    pub async fn update_topic(&self, topic: v1::TopicConfig) -> Result<Arc<Topic>, Rejection> {
        self.ask(|reply| Request::UpdateTopic(topic, reply)).await
    }

    /// Deletes a topic; its messages go when the log they lie in goes.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Rejection> {
        self.ask(|reply| Request::DeleteTopic(name.to_owned(), reply)).await
    }

    /// Makes a consumer group. `true` when it was there already; it is then left as it is.
    pub async fn group(&self, group: v1::GroupConfig) -> Result<(Arc<GroupRecord>, bool), Rejection> {
        self.ask(|reply| Request::Group(group, reply)).await
    }

    /// Records a user as it is from now on, unless a later record is there already, which was not known to who made this
    /// one if it is later than `based_on`: that is refused.
    pub async fn user(&self, user: v1::User, based_on: u64) -> Result<(), Rejection> {
        self.ask(|reply| Request::User(user, based_on, reply)).await
    }

    /// Replaces the settings of a group that is there.
    pub async fn update_group(&self, group: v1::GroupConfig) -> Result<Arc<GroupRecord>, Rejection> {
        self.ask(|reply| Request::UpdateGroup(group, reply)).await
    }

    /// Deletes a group: its settings, how far it is, and its dead letters.
    pub async fn delete_group(&self, name: &str) -> Result<(), Rejection> {
        self.ask(|reply| Request::DeleteGroup(name.to_owned(), reply)).await
    }
}

struct Task {
    catalog: Arc<Catalog>,
    store: Arc<Store>,
    routes: SharedRoutes,
    deltas: broadcast::Sender<v1::BrokerDelta>,
    broker_name: String,
}

impl Task {
    async fn run(self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            // A requester that has gone away does not undo what it asked for.
            match request {
                Request::Topic(topic, reply) => drop(reply.send(self.make_topic(topic).await)),
                Request::DeleteTopic(name, reply) => drop(reply.send(self.delete_topic(&name).await)),
                Request::UpdateTopic(topic, reply) => drop(reply.send(self.update_topic(topic).await)),
                Request::Group(group, reply) => drop(reply.send(self.make_group(group).await)),
                Request::UpdateGroup(group, reply) => drop(reply.send(self.update_group(group).await)),
                Request::DeleteGroup(name, reply) => drop(reply.send(self.delete_group(&name).await)),
                Request::User(user, based_on, reply) => {
                    drop(reply.send(self.record_user(user, based_on).await));
                }
            }
        }
    }

    async fn make_topic(&self, new: v1::TopicConfig) -> Result<(Arc<Topic>, bool), Rejection> {
        if let Some(topic) = self.catalog.topic(&new.name) {
            return Ok((topic, true));
        }
        if self.catalog.topics().len() >= TOPICS_MAX {
            return Err(Rejection::BadRequest(format!(
                "this broker has {TOPICS_MAX} topics, the most it takes"
            )));
        }
        let name = new.name.clone();
        append(&self.store, Change::Topic(self.catalog.next_topic(new)?)).await?;
        let topic = self.catalog.topic(&name).expect("the record is applied before its append is answered");
        tracing::info!(topic = name, queue_nums = topic.queue_nums(), "topic made");
        self.tell(v1::BrokerDelta { topics: vec![topic.route()], ..Default::default() });
        Ok((topic, false))
    }

    async fn update_topic(&self, new: v1::TopicConfig) -> Result<Arc<Topic>, Rejection> {
        let unknown = || Rejection::TopicNotFound { topic: new.name.clone() };
        let topic = self.catalog.topic(&new.name).ok_or_else(unknown)?;
        let known = topic.config();
        let config =
            v1::TopicConfig { message_type: known.message_type, queue_nums: known.queue_nums, ..new };
        let record = TopicRecord { number: topic.number, queues: topic.queues.clone(), config };
        append(&self.store, Change::Topic(record)).await?;
        tracing::info!(topic = topic.name(), "topic has new settings");
        Ok(topic)
    }

    async fn delete_topic(&self, name: &str) -> Result<(), Rejection> {
        let topic =
            self.catalog.topic(name).ok_or_else(|| Rejection::TopicNotFound { topic: name.to_owned() })?;
        append(&self.store, Change::TopicDeleted(topic.number)).await?;
        tracing::info!(topic = name, "topic deleted");
        self.tell(v1::BrokerDelta { removed_topics: vec![name.to_owned()], ..Default::default() });
        Ok(())
    }

    async fn make_group(&self, new: v1::GroupConfig) -> Result<(Arc<GroupRecord>, bool), Rejection> {
        if let Some(group) = self.catalog.group(&new.name) {
            return Ok((group, true));
        }
        if self.catalog.groups().len() >= GROUPS_MAX {
            return Err(Rejection::BadRequest(format!(
                "this broker has {GROUPS_MAX} groups, the most it takes"
            )));
        }
        let group = self.write_group(self.catalog.next_group(new)).await?;
        tracing::info!(group = group.name(), "consumer group made");
        Ok((group, false))
    }

    async fn update_group(&self, new: v1::GroupConfig) -> Result<Arc<GroupRecord>, Rejection> {
        let unknown = || Rejection::GroupNotFound { group: new.name.clone() };
        let number = self.catalog.group(&new.name).ok_or_else(unknown)?.number;
        let group = self.write_group(GroupRecord { number, config: new }).await?;
        tracing::info!(group = group.name(), "consumer group has new settings");
        Ok(group)
    }

    async fn write_group(&self, record: GroupRecord) -> Result<Arc<GroupRecord>, Rejection> {
        let name = record.name().to_owned();
        append(&self.store, Change::Group(record)).await?;
        let group = self.catalog.group(&name).expect("the record is applied before its append is answered");
        self.tell(v1::BrokerDelta { groups: vec![group.config.clone()], ..Default::default() });
        Ok(group)
    }

    /// With the topic of its dead letters, at once: a group of that name that is made later starts anew.
    async fn delete_group(&self, name: &str) -> Result<(), Rejection> {
        let unknown = || Rejection::GroupNotFound { group: name.to_owned() };
        let group = self.catalog.group(name).ok_or_else(unknown)?;
        let letters = self.catalog.topic(&validate::dead_letter_topic(name));
        let gone = letters.iter().map(|letters| Change::TopicDeleted(letters.number));
        let changes =
            std::iter::once(Change::GroupDeleted(group.number)).chain(gone).map(record_of).collect();
        let append = self.store.append(changes, Durability::Disk).map_err(refuse::append)?;
        append.await.map_err(refuse::append)?;
        tracing::info!(group = name, dead_letters = letters.is_some(), "consumer group deleted");
        self.tell(v1::BrokerDelta {
            removed_groups: vec![name.to_owned()],
            removed_topics: letters.iter().map(|letters| letters.name().to_owned()).collect(),
            ..Default::default()
        });
        Ok(())
    }

    async fn record_user(&self, user: v1::User, based_on: u64) -> Result<(), Rejection> {
        let known = self.catalog.user_version(&user.name);
        if known > based_on && known != user.version {
            return Err(Rejection::BadRequest(format!(
                "user {:?} was changed by somebody else at the same time; look at it and try again",
                user.name
            )));
        }
        if known >= user.version {
            return Ok(());
        }
        let name = user.name.clone();
        append(&self.store, Change::User(user)).await?;
        tracing::info!(user = name, "user recorded");
        Ok(())
    }

    /// Changes the own row of the route table, then everyone else's.
    fn tell(&self, delta: v1::BrokerDelta) {
        let delta = v1::BrokerDelta { broker_name: self.broker_name.clone(), ..delta };
        self.routes.apply(v1::RouteChange { change: Some(RouteChanged::Changed(delta.clone())) });
        // No receiver means no namesrv is connected; the next connection begins with the whole state.
        let _ = self.deltas.send(delta);
    }
}

fn record_of(change: Change) -> NewRecord {
    let payload = Metadata { change: Some(change) }.encode_to_vec().into();
    let (kind, keys) = (RecordKind::Metadata, Vec::new());
    NewRecord { kind, queue: None, tag_hash: 0, mark: 0, keys, payload }
}

fn begin(store: &Store, change: Change) -> Result<Append, Rejection> {
    // Metadata is always durable: a topic whose messages are on disk must be there too.
    store.append(vec![record_of(change)], Durability::Disk).map_err(refuse::append)
}

async fn append(store: &Store, change: Change) -> Result<(), Rejection> {
    begin(store, change)?.await.map(drop).map_err(refuse::append)
}

/// The key that signs this log's handles; made and recorded at the first start. Blocks while it is recorded.
pub fn token_key(catalog: &Catalog, store: &Store) -> Result<TokenKey, Rejection> {
    if catalog.token_key().is_none() {
        let change = Change::TokenKey(rand::random::<[u8; 32]>().to_vec());
        begin(store, change)?.wait().map_err(refuse::append)?;
    }
    catalog.token_key().ok_or_else(|| Rejection::Internal("the token key of the log is damaged".into()))
}
