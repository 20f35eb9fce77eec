//! The broker's parts, as its services share them. Put together in [`crate::start`]; any data thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use karman_remoting::clients::ClientRegistry;
use karman_remoting::line::RelayedLines;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::RefusedConnections;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::TokenKey;
use karman_remoting::validate;
use karman_store::{Durability, QueueNumber, Record, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Topic};
use crate::catalog_writer::{CatalogWriter, topic_named};
use crate::clock::Clock;
use crate::dedupe::Dedupe;
use crate::filter::FilterCache;
use crate::held::HeldTable;
use crate::latency::Latencies;
use crate::lite::LiteTable;
use crate::lite::writer::LiteWriter;
use crate::mark::Mark;
use crate::progress::{GroupTopic, ProgressTable};
use crate::records::{GroupRecord, message_of};
use crate::replication::Followers;
use crate::service::dead_letter::Burials;
use crate::traces::Traces;
use crate::wanted::Wanted;

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages stored for producers.
    pub messages_in: AtomicU64,
    /// Messages handed to consumers.
    pub messages_out: AtomicU64,
    /// How long calls took.
    pub latencies: Latencies,
    /// Messages not delivered because their time to live was over.
    pub expired: AtomicU64,
    /// Messages that a filter could not be put to: taken as not wanted.
    pub filter_errors: AtomicU64,
}

/// How long messages may be held.
#[derive(Clone, Copy, Debug)]
pub struct HeldLimits {
    /// `maxDelayTimeMills`
    pub delay_max_ms: u64,
    /// `transactionTimeOut`
    pub transaction_timeout_ms: u64,
    /// `transactionCheckInterval`
    pub check_interval_ms: u64,
    /// `transactionCheckMax`
    pub checks_max: u32,
    /// `fileReservedTime`: an undecided transaction is not kept for longer.
    pub half_age_max_ms: u64,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Broker {
    /// `brokerName`; part of every handle.
    pub name: Arc<str>,
    /// `brokerClusterName`
    pub cluster: String,
    /// What messages say they were stored at.
    pub store_host: String,
    /// When a send to a topic without a class of its own is answered.
    pub durability: Durability,
    /// `syncFlushTimeout`
    pub flush_timeout: Duration,
    /// `slaveTimeout`
    pub slave_timeout: Duration,
    /// `brokerRole`
    pub role: String,
    /// Its slaves.
    pub followers: Arc<Followers>,
    /// Handles of this process have higher revisions; it is higher than that of every process that wrote this log before.
    pub revision_base: u32,
    /// Places for sends that wait for their answers: `sendThreadPoolQueueCapacity`
    pub sends: Semaphore,
    /// `popInflightMessageThreshold`
    pub inflight_max: usize,
    /// `defaultTopicQueueNums`
    pub default_queue_nums: u32,
    /// `dedupWindowMinutes`
    pub dedup_window_minutes: u32,
    /// `autoCreateTopicEnable`
    pub auto_create_topics: bool,
    /// `autoCreateSubscriptionGroup`
    pub auto_create_groups: bool,
    /// Signs handles.
    pub token_key: TokenKey,
    /// Milliseconds that never jump.
    pub clock: Clock,
    /// The log.
    pub store: Arc<Store>,
    /// Topics and groups.
    pub catalog: Arc<Catalog>,
    /// Makes topics and groups.
    pub catalog_writer: CatalogWriter,
    /// How far groups have come.
    pub progress: Arc<ProgressTable>,
    /// Delayed messages and undecided transactions.
    pub held: Arc<HeldTable>,
    /// How long messages may be held.
    pub limits: HeldLimits,
    /// SQL expressions of consumers, compiled.
    pub filters: FilterCache,
    /// Lite topics, and how far groups have come with them.
    pub lite: Arc<LiteTable>,
    /// Makes lite topics.
    pub lite_writer: LiteWriter,
    /// `maxLiteSubscriptionCount`
    pub lite_subscriptions_max: usize,
    /// Which message ids were stored lately.
    pub dedupe: Arc<Dedupe>,
    /// Through which connections other nodes relay receives.
    pub lines: Arc<RelayedLines>,
    /// Who is alive.
    pub clients: Arc<ClientRegistry>,
    /// The cluster, this broker included.
    pub routes: SharedRoutes,
    /// What happened so far.
    pub counters: Counters,
    /// Connections that found no place, at both doors.
    pub refused_connections: RefusedConnections,
    /// Dead letters on their way into the log.
    pub burials: Arc<Burials>,
    /// An operator has the store verified.
    pub verifying: AtomicBool,
    /// An operator sends dead letters back.
    pub redriving: AtomicBool,
    /// An operator puts messages of a backup into queues.
    pub restoring: AtomicBool,
    /// Makes spans; `None`: `otlpEndpoint` is empty.
    pub traces: Option<Arc<Traces>>,
    /// Cancelled when long polls are to end.
    pub stopping: CancellationToken,
}

impl Broker {
    /// Whether a consumer wants the message in a record; a filter that cannot be put to it does not.
    pub fn wants(&self, wanted: &Wanted, record: &Record) -> bool {
        wanted.really_wants(message_of(record), Mark(record.mark)).unwrap_or_else(|error| {
            self.counters.filter_errors.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, at = record.physical_offset.0, "a filter cannot be put to a message");
            false
        })
    }

    /// A topic that must be here.
    pub fn topic(&self, name: &str) -> Result<Arc<Topic>, Rejection> {
        self.catalog.topic(name).ok_or_else(|| Rejection::TopicNotFound { topic: name.to_owned() })
    }

    /// The log queue of one of a topic's queues, or of one of its lite topics, which handles call by that number.
    pub fn queue_in(&self, topic: &Topic, queue_id: u32) -> Option<QueueNumber> {
        if !topic.is_lite() {
            return topic.queue(queue_id);
        }
        let lite = self.lite.topics.owner_of(QueueNumber(queue_id));
        lite.filter(|lite| lite.topic.number == topic.number).map(|lite| lite.queue)
    }

    /// What becomes of a topic that is not here: it is made if that is switched on.
    pub async fn unknown_topic(&self, name: &str) -> Result<Arc<Topic>, Rejection> {
        if !self.auto_create_topics || name.starts_with(validate::DEAD_LETTER_PREFIX) {
            return Err(Rejection::TopicNotFound { topic: name.to_owned() });
        }
        Ok(self.catalog_writer.topic(topic_named(name, self.default_queue_nums)).await?.0)
    }

    /// The door asks for the route of a topic that nobody has.
    pub async fn make_unknown_topic(
        &self,
        request: v2::QueryRouteRequest,
    ) -> Result<v2::QueryRouteResponse, Rejection> {
        let topic = request.topic.unwrap_or_default();
        self.unknown_topic(&topic.name).await?;
        let mut message_queues = self.routes.read().queues_of(&topic);
        // The door asks every broker that makes topics; each answers for itself.
        message_queues.retain(|queue| queue.broker.as_ref().is_some_and(|broker| broker.name == *self.name));
        Ok(v2::QueryRouteResponse { status: Some(ok()), message_queues })
    }

    /// A group; made at its first use if that is switched on.
    pub async fn group(&self, name: &str) -> Result<Arc<GroupRecord>, Rejection> {
        if let Some(group) = self.catalog.group(name) {
            return Ok(group);
        }
        if !self.auto_create_groups {
            return Err(Rejection::GroupNotFound { group: name.to_owned() });
        }
        let group = v1::GroupConfig { name: name.to_owned(), ..Default::default() };
        Ok(self.catalog_writer.group(group).await?.0)
    }

    /// A group on a topic, of a broadcasting one a client of it; where it begins is fixed if it is its first time.
    pub async fn progress_of(
        &self,
        group: &GroupRecord,
        topic: &Arc<Topic>,
        client: Option<&str>,
    ) -> Result<Arc<GroupTopic>, Rejection> {
        self.progress.open(&self.store, self.progress_durability(topic), group, topic, client).await
    }
}
