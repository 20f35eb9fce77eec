//! Lite topics as clients see them: SyncLiteSubscription, the queues of lite messages that are sent, and what consumers
//! say about lite messages they hold.
//!
//! A subscription makes its lite topics and records where the group begins with each before it is answered: what is sent
//! to them from then on is not missed, whatever ends meanwhile.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use karman_remoting::message::EncodedMessage;
use karman_remoting::metadata::Caller;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2::offset_option::{OffsetType, Policy};
use karman_remoting::proto::v2::{self, LiteSubscriptionAction};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::ReceiptHandle;
use karman_remoting::validate;
use karman_remoting::validate::message::lite_topic_rule;
use karman_store::QueueNumber;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::lite::LiteGroup;
use crate::lite::pop::Start;
use crate::lite::subscriptions::Claim;
use crate::lite::topics::LiteTopic;
use crate::pop::{Held, Position, Void};
use crate::records::GroupRecord;
use crate::refuse;
use crate::service::ack;
use crate::service::dead_letter::{self, Reason};

/// A client may be this far above its quota: what it gave up is not heard of at once. As in the reference.
const QUOTA_SLACK: usize = 300;
/// `minLiteTTl`
const EXPIRATION_MIN_MINUTES: u32 = 15;
/// Lite topics that go while they are asked for are made anew; more often than this it does not happen.
const MAKES_MAX: usize = 4;

/// What a lite parent may not be told about its lite topics.
pub fn check_expiration(config: &v1::TopicConfig) -> Result<(), Rejection> {
    match config.lite_expiration_minutes {
        0 | EXPIRATION_MIN_MINUTES.. => Ok(()),
        minutes => Err(Rejection::BadRequest(format!(
            "lite topics of {:?} would expire after {minutes} minutes; 0 (never) or at least \
             {EXPIRATION_MIN_MINUTES} are allowed",
            config.name
        ))),
    }
}

/// What a group may not be told about lite topics.
pub fn check_group(config: &v1::GroupConfig) -> Result<(), Rejection> {
    if config.lite_bind_topic.is_empty() {
        return Ok(());
    }
    if config.broadcast {
        return Err(Rejection::BadRequest(format!(
            "group {:?} cannot broadcast: a message of a lite topic goes to one client",
            config.name
        )));
    }
    validate::topic(&config.lite_bind_topic)
}

/// Refuses a group that is for lite topics where others are consumed.
pub fn refuse_bound(group: &GroupRecord) -> Result<(), Rejection> {
    if group.config.lite_bind_topic.is_empty() {
        return Ok(());
    }
    let rule = "it is bound to a parent of lite topics and consumes nothing else";
    Err(Rejection::IllegalGroup { name: group.name().to_owned(), rule })
}

/// A checked SyncLiteSubscription.
struct Sync {
    client: Arc<str>,
    group: Arc<GroupRecord>,
    row: Arc<LiteGroup>,
    names: HashSet<String>,
}

impl Broker {
    /// A client says which lite topics it wants: some more, some less, these and no others, or none.
    pub async fn sync_lite_subscription(
        &self,
        caller: &Caller,
        request: v2::SyncLiteSubscriptionRequest,
    ) -> Result<v2::SyncLiteSubscriptionResponse, Rejection> {
        let action = LiteSubscriptionAction::try_from(request.action).map_err(|_| {
            Rejection::BadRequest(format!("lite subscription action {} is not known", request.action))
        })?;
        let topic = self.topic(validate::topic_of(request.topic.as_ref())?)?;
        let group = self.lite_group(validate::group_of(request.group.as_ref())?, &topic).await?;
        let row = self.lite.open(group.number, &topic);
        let client = caller.client_id.as_str().into();
        let sync = Sync { client, group, row, names: request.lite_topic_set.into_iter().collect() };
        match action {
            LiteSubscriptionAction::PartialAdd => self.subscribe(&sync, request.offset_option, false).await?,
            LiteSubscriptionAction::CompleteAdd => self.subscribe(&sync, None, true).await?,
            LiteSubscriptionAction::PartialRemove => self.unsubscribe(&sync),
            LiteSubscriptionAction::CompleteRemove => {
                sync.row.run(|pop| pop.subscriptions.drop_client(&sync.client));
            }
        }
        Ok(v2::SyncLiteSubscriptionResponse { status: Some(ok()) })
    }

    /// `complete`: the client wants these and no others.
    async fn subscribe(
        &self,
        sync: &Sync,
        option: Option<v2::OffsetOption>,
        complete: bool,
    ) -> Result<(), Rejection> {
        for name in &sync.names {
            if let Some(rule) = lite_topic_rule(name) {
                return Err(Rejection::IllegalLiteTopic { name: validate::shortened(name), rule });
            }
        }
        self.check_quotas(sync, complete)?;
        let lites = self.lite_topics(&sync.row.topic, &sync.names).await?;
        let start = |lite: &Arc<LiteTopic>| Ok((lite.queue.0, self.start(option, lite)?));
        let starts = lites.iter().map(start).collect::<Result<Vec<_>, Rejection>>()?;
        let claim = match (sync.group.config.lite_exclusive, complete) {
            (false, _) => Claim::Share,
            (true, false) => Claim::Evict,
            // It is no new subscriber: who lost a lite topic and did not hear of it must not take it back.
            (true, true) => Claim::Yield,
        };
        let (now_ms, base) = (self.clock.now_ms(), self.revision_base);
        let commit = sync.row.commit(&self.store, self.progress_durability(&sync.row.topic), |pop| {
            if !pop.subscriptions.synced(&sync.client, now_ms) {
                let why = format!("group {:?} has too many clients", sync.group.name());
                return (Err(Rejection::TooManyRequests(why)), Vec::new());
            }
            if complete {
                pop.keep(&sync.client, &lites.iter().map(|lite| lite.queue.0).collect());
            }
            let range = |queue| self.store.queue_range(QueueNumber(queue));
            let done = pop.subscribe(&sync.client, &starts, claim, base, &range);
            let recorded: Vec<u32> = done.records.iter().map(|record| record.queue_id).collect();
            (Ok((done.lost, recorded)), done.records)
        });
        let (lost, recorded) = commit.await??;
        if !recorded.is_empty() {
            sync.row.run(|pop| pop.recorded(&recorded));
        }
        for (client, queue) in lost {
            self.notify_unsubscribe_lite(&client, QueueNumber(queue));
        }
        Ok(())
    }

    fn unsubscribe(&self, sync: &Sync) {
        let topic = sync.row.topic.number;
        let named = sync.names.iter().filter_map(|name| self.lite.topics.named(topic, name));
        let gone: HashSet<u32> = named.map(|lite| lite.queue.0).collect();
        sync.row.run(|pop| {
            if pop.subscriptions.synced(&sync.client, self.clock.now_ms()) {
                pop.subscriptions.remove(&sync.client, |queue| gone.contains(&queue));
            }
        });
    }

    /// Before anything is made: a client and a broker have so many subscriptions and no more.
    fn check_quotas(&self, sync: &Sync, complete: bool) -> Result<(), Rejection> {
        let quota = sync.group.lite_client_quota();
        let topic = sync.row.topic.number;
        let named = sync.names.iter().map(|name| self.lite.topics.named(topic, name));
        let (new, count) = sync.row.run(|pop| {
            let subscriptions = &pop.subscriptions;
            let has = |lite: &Arc<LiteTopic>| subscriptions.has(&sync.client, lite.queue.0);
            let new = named.filter(|lite| !lite.as_ref().is_some_and(has)).count();
            let count = if complete { sync.names.len() } else { subscriptions.count_of(&sync.client) + new };
            (new, count)
        });
        if count > quota.saturating_add(QUOTA_SLACK) {
            let subscriber = format!("client {:?}", sync.client);
            return Err(Rejection::LiteSubscriptionQuotaExceeded { subscriber, count, limit: quota });
        }
        let (all, limit) = (self.lite.subscriptions() + new, self.lite_subscriptions_max);
        if new > 0 && all > limit {
            let subscriber = format!("the clients of broker {:?} together", self.name);
            return Err(Rejection::LiteSubscriptionQuotaExceeded { subscriber, count: all, limit });
        }
        Ok(())
    }

    /// Where a subscriber wants the group to go on with a lite topic.
    fn start(&self, option: Option<v2::OffsetOption>, lite: &LiteTopic) -> Result<Start, Rejection> {
        let Some(kind) = option.and_then(|option| option.offset_type) else { return Ok(Start::Last) };
        let positive = |what: &str, value: i64| {
            let negative = || Rejection::BadRequest(format!("offset option {what} {value} is negative"));
            u64::try_from(value).map_err(|_| negative())
        };
        Ok(match kind {
            OffsetType::Policy(policy) => match Policy::try_from(policy) {
                Ok(Policy::Last) => Start::Last,
                Ok(Policy::Min) => Start::Min,
                Ok(Policy::Max) => Start::Max,
                Err(_) => {
                    return Err(Rejection::BadRequest(format!("offset policy {policy} is not known")));
                }
            },
            OffsetType::Offset(offset) => Start::At(positive("offset", offset)?),
            OffsetType::TailN(count) => Start::Tail(positive("tail_n", count)?),
            OffsetType::Timestamp(at_ms) => {
                let at_ms = positive("timestamp", at_ms)?;
                let offset = self.store.offset_by_time(lite.queue, at_ms);
                Start::At(offset.map_err(|error| refuse::read(&error))?.0)
            }
        })
    }

    /// The lite topics of these names, in use from now on; those that are not there are made.
    async fn lite_topics(
        &self,
        topic: &Arc<Topic>,
        names: &HashSet<String>,
    ) -> Result<Vec<Arc<LiteTopic>>, Rejection> {
        for _ in 0..MAKES_MAX {
            let (mut found, mut missing) = (Vec::with_capacity(names.len()), Vec::new());
            for name in names {
                match self.lite_topic(topic, name) {
                    Some(lite) => found.push(lite),
                    None => missing.push(name.clone()),
                }
            }
            if missing.is_empty() {
                return Ok(found);
            }
            self.lite_writer.make(topic, missing).await?;
        }
        Err(Rejection::TooManyRequests("lite topics go as fast as they are made; try again".to_owned()))
    }

    fn lite_topic(&self, topic: &Topic, name: &str) -> Option<Arc<LiteTopic>> {
        self.lite.topics.named(topic.number, name).filter(|lite| lite.touch(self.clock.now_ms()))
    }

    /// The queue of each message's lite topic, which is made if it is not there.
    pub(super) async fn lite_queues(
        &self,
        topic: &Arc<Topic>,
        messages: &[EncodedMessage],
    ) -> Result<Vec<QueueNumber>, Rejection> {
        let queue = |message: &EncodedMessage| {
            Some(self.lite_topic(topic, message.system_properties.lite_topic())?.queue)
        };
        let known: Option<Vec<QueueNumber>> = messages.iter().map(queue).collect();
        if let Some(queues) = known {
            return Ok(queues);
        }
        let name = |message: &EncodedMessage| message.system_properties.lite_topic().to_owned();
        self.lite_topics(topic, &messages.iter().map(name).collect()).await?;
        let gone = || Rejection::TopicNotFound { topic: topic.name().to_owned() };
        messages.iter().map(|message| queue(message).ok_or_else(gone)).collect()
    }

    /// A group that consumes the lite topics of `topic`. At its first use it is made, bound to the parent, if groups are.
    pub(super) async fn lite_group(&self, name: &str, topic: &Topic) -> Result<Arc<GroupRecord>, Rejection> {
        if !topic.is_lite() {
            let rule = "it has no lite topics: its type is not LITE";
            return Err(Rejection::IllegalTopic { name: topic.name().to_owned(), rule });
        }
        let group = match self.catalog.group(name) {
            Some(group) => group,
            None if !self.auto_create_groups => {
                return Err(Rejection::GroupNotFound { group: name.to_owned() });
            }
            None => {
                let lite_bind_topic = topic.name().to_owned();
                let group = v1::GroupConfig { name: name.to_owned(), lite_bind_topic, ..Default::default() };
                self.catalog_writer.group(group).await?.0
            }
        };
        match group.config.lite_bind_topic.as_str() {
            bound if bound == topic.name() => Ok(group),
            "" => {
                let rule = "it is not for lite topics: its lite_bind_topic is not set";
                Err(Rejection::IllegalGroup { name: name.to_owned(), rule })
            }
            _ => {
                let rule = "the group is bound to the lite topics of another parent";
                Err(Rejection::IllegalTopic { name: topic.name().to_owned(), rule })
            }
        }
    }

    /// Tells a client that it lost a lite topic. If it does not hear it, it hears it again when it says what it wants.
    fn notify_unsubscribe_lite(&self, client: &str, queue: QueueNumber) {
        let Some(lite) = self.lite.topics.owner_of(queue) else { return };
        if let Err(error) = self.clients.notify_unsubscribe(client, &lite.name) {
            tracing::debug!(client, lite_topic = &*lite.name, %error, "client was not told that it lost a lite topic");
        }
    }
}

/// What consumers say about lite messages they hold.
impl Broker {
    /// Acknowledges; the result of each entry.
    pub(super) async fn finish_lite(
        &self,
        row: &LiteGroup,
        entries: &[v2::AckMessageEntry],
    ) -> Result<Vec<Result<Position, Rejection>>, Rejection> {
        let held = |entry: &v2::AckMessageEntry| self.held(row.group, &row.topic, &entry.receipt_handle);
        let held: Vec<Result<Held, Rejection>> = entries.iter().map(held).collect();
        let now_ms = self.clock.now_ms();
        let commit = row.commit(&self.store, self.progress_durability(&row.topic), |pop| {
            let mut touched = BTreeSet::new();
            let finish = |held: Result<Held, Rejection>| {
                let held = held?;
                match pop.check(now_ms, &held, &|client| self.clients.is_alive(client)) {
                    Ok(()) => {
                        let end = self.store.queue_range(QueueNumber(held.position.queue_id)).end;
                        pop.finish(held.position, end);
                    }
                    // Said twice is said: the answer to the first may have been lost.
                    Err(Void::Done) => {}
                    Err(void) => return Err(ack::refused(void)),
                }
                touched.insert(held.position.queue_id);
                Ok(held.position)
            };
            let results = held.into_iter().map(finish).collect();
            (results, touched.into_iter().filter_map(|queue| pop.record(queue)).collect())
        });
        commit.await
    }

    /// Sets when a held message becomes visible again. A lite topic that is suspended for so long counts no attempt.
    pub(super) async fn change_lite(
        &self,
        row: &LiteGroup,
        request: &v2::ChangeInvisibleDurationRequest,
        invisible_ms: u64,
    ) -> Result<v2::ChangeInvisibleDurationResponse, Rejection> {
        let held = self.held(row.group, &row.topic, &request.receipt_handle)?;
        let (now_ms, counts) = (self.clock.now_ms(), !request.suspend());
        let visible_at_ms = now_ms + invisible_ms;
        let commit = row.commit(&self.store, self.progress_durability(&row.topic), |pop| {
            match pop.check(now_ms, &held, &|client| self.clients.is_alive(client)) {
                Ok(()) => {
                    let revision = pop.change(&held, visible_at_ms, counts);
                    (Ok(revision), pop.record(held.position.queue_id).into_iter().collect())
                }
                Err(void) => (Err(ack::refused(void)), Vec::new()),
            }
        });
        let revision = commit.await??;
        let handle = ReceiptHandle {
            broker: self.name.clone(),
            group_id: row.group,
            topic_id: row.topic.number,
            queue_id: held.position.queue_id,
            queue_offset: held.position.offset,
            revision,
            attempt: held.attempt,
            expires_ms: visible_at_ms,
        };
        let receipt_handle = handle.encode(&self.token_key);
        Ok(v2::ChangeInvisibleDurationResponse { status: Some(ok()), receipt_handle })
    }

    /// A consumer gives a message up.
    pub(super) async fn forward_lite(
        &self,
        caller: &Caller,
        row: &LiteGroup,
        request: &v2::ForwardMessageToDeadLetterQueueRequest,
    ) -> Result<v2::ForwardMessageToDeadLetterQueueResponse, Rejection> {
        let held = self.held(row.group, &row.topic, &request.receipt_handle)?;
        let now_ms = self.clock.now_ms();
        let begun = row.run(|pop| {
            pop.check(now_ms, &held, &|client| self.clients.is_alive(client))?;
            Ok(pop.begin_burial(&held, now_ms))
        });
        match begun {
            Ok(burial) => {
                let reason = Reason::GivenUpBy(&caller.client_id);
                let buried = dead_letter::bury_lite(self, row, held.position, reason).await;
                if let (Err(_), Some(burial)) = (&buried, burial) {
                    row.run(|pop| pop.undo_burial(held.position.queue_id, burial));
                }
                buried?;
            }
            Err(Void::Done) => {}
            Err(void) => return Err(ack::refused(void)),
        }
        Ok(v2::ForwardMessageToDeadLetterQueueResponse { status: Some(ok()) })
    }
}
