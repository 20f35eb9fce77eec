//! SendMessage: check, choose a queue, hand the producer's bytes to the log, answer when its class is met.
//!
//! A message whose id was stored lately is not stored again: it is answered with the first result ([`crate::dedupe`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2::{self, MessageType};
use karman_remoting::status::{Rejection, ok, summary};
use karman_remoting::validate::message::TTL_PROPERTY;
use karman_store::{Durability, NewRecord, PhysicalOffset, QueueNumber, RecordKind, key_hash};
use opentelemetry::Context;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::{Known, Sending, id_hash};
use crate::label::{Label, group_hash};
use crate::mark::Mark;
use crate::records::{HeldHead, message_of};
use crate::refuse;
use crate::service::{check, hold};
use crate::traces;

/// How often it is looked whether what was stored can be read by now; that takes one flush.
const CONFIRMED_LOOK: Duration = Duration::from_millis(1);

/// Messages on their way into the log, and what each was answered.
struct Batch {
    messages: Vec<EncodedMessage>,
    /// Of each message id.
    hashes: Vec<u64>,
    /// Of each message, until it is handed to the log.
    keys: Vec<Vec<u64>>,
    /// What is held back.
    holds: Vec<Option<HeldHead>>,
    entries: Vec<Option<v2::SendResultEntry>>,
    /// Of each message, where the topic is a parent of lite topics.
    lite_queues: Vec<QueueNumber>,
    /// Of the send.
    span: Option<Context>,
}

impl Batch {
    /// How far it has come: with the log, and as durable as the topic demands.
    fn note(&self, what: &'static str, durability: Durability) {
        if let Some(span) = &self.span {
            traces::note(span, what, durability);
        }
    }
}

impl Broker {
    /// Stores the messages of one request and answers when they are as durable as their topic demands.
    pub async fn send(&self, request: v2::SendMessageRequest) -> Result<v2::SendMessageResponse, Rejection> {
        // Early: more would only wait longer, and each that waits takes memory.
        let _place = self.sends.try_acquire().map_err(|_| {
            let what =
                "as many sends wait for their answers as may (sendThreadPoolQueueCapacity); send again later";
            Rejection::TooManyRequests(format!("broker {:?}: {what}", self.name))
        })?;
        let messages = check::read(request.messages)?;
        let Some(traces) = &self.traces else { return self.send_read(messages, None).await };
        let span = traces.send(&messages);
        let answered = self.send_read(messages, Some(&span)).await;
        traces::end_send(&span, &answered);
        answered
    }

    /// Stores what has been read; `span` is the send's, where it is traced.
    async fn send_read(
        &self,
        messages: Vec<EncodedMessage>,
        span: Option<&Context>,
    ) -> Result<v2::SendMessageResponse, Rejection> {
        let topic = self.topic_for_send(&messages[0].topic).await?;
        // Before any id is claimed.
        self.followers.check(self.durability_of(&topic))?;
        let mut batch = self.batch(messages, &topic)?;
        batch.span = span.cloned();
        self.within_quota(&topic, &batch)?;
        if topic.is_lite() {
            batch.lite_queues = self.lite_queues(&topic, &batch.messages).await?;
        }
        let window_ms = topic.dedup_window_ms(self.durability_of(&topic), self.dedup_window_minutes);
        if window_ms == 0 {
            let all = (0..batch.messages.len()).collect();
            self.store_all(&topic, &mut batch, all, false).await?;
        } else {
            self.store_once(&topic, &mut batch, window_ms).await?;
        }
        let entries: Vec<_> = batch.entries.into_iter().flatten().collect();
        let status = summary(entries.iter().filter_map(|entry| entry.status.as_ref()));
        Ok(v2::SendMessageResponse { status: Some(status), entries })
    }

    /// Counts a send in the quotas of its topic; refuses what is too much. What could not have been stored is not counted.
    fn within_quota(&self, topic: &Topic, batch: &Batch) -> Result<(), Rejection> {
        let rates = topic.rates();
        if rates.is_unlimited() {
            return Ok(());
        }
        let bytes = batch.messages.iter().map(|message| message.bytes.len() as u64).sum();
        let (name, broker) = (topic.name(), &self.name);
        let whose = format_args!("topic {name:?} on broker {broker:?}");
        let remedy = format_args!("karman topic update {name}");
        topic.quota.take(rates, (batch.messages.len() as u64, bytes), Instant::now(), whose, remedy)
    }

    /// Stores what was not stored lately; what is being stored by another request is waited for.
    async fn store_once(
        &self,
        topic: &Arc<Topic>,
        batch: &mut Batch,
        window_ms: u64,
    ) -> Result<(), Rejection> {
        let mut undecided: Vec<usize> = (0..batch.messages.len()).collect();
        while !undecided.is_empty() {
            let hashes: Vec<u64> = undecided.iter().map(|&index| batch.hashes[index]).collect();
            let (mut new, mut pending, mut again) = (Vec::new(), Vec::new(), Vec::new());
            let mut unconfirmed = PhysicalOffset(0);
            for (index, known) in undecided.iter().copied().zip(self.dedupe.claim(&hashes, window_ms)) {
                match known {
                    Known::Unknown => new.push(index),
                    Known::Pending(waiting) => pending.push((index, waiting)),
                    Known::Stored(at) if !self.is_confirmed(at) => {
                        unconfirmed = unconfirmed.max(at);
                        again.push(index);
                    }
                    Known::Stored(at) => match self.earlier_result(&batch.messages[index], at, window_ms) {
                        Some(entry) => batch.entries[index] = Some(entry),
                        None if self.dedupe.claim_anyway(batch.hashes[index], at) => new.push(index),
                        None => again.push(index),
                    },
                }
            }
            // The own ones first: two requests that wait for each other's would wait for ever.
            self.store_all(topic, batch, new, true).await?;
            let durability = self.durability_of(topic);
            for (index, mut waiting) in pending {
                // It ends with an error, when the claim is gone.
                let decided = tokio::time::timeout(self.timeout_of(durability), waiting.changed()).await;
                decided.map(drop).map_err(|_| self.timed_out(durability))?;
                again.push(index);
            }
            let confirmed = async {
                while !self.is_confirmed(unconfirmed) {
                    tokio::time::sleep(CONFIRMED_LOOK).await;
                }
            };
            if !again.is_empty() {
                let in_time = tokio::time::timeout(self.timeout_of(durability), confirmed).await;
                in_time.map_err(|_| self.timed_out(durability))?;
            }
            undecided = again;
        }
        Ok(())
    }

    /// Whether what was stored at `at` can be read: class `memory` is answered a little earlier.
    fn is_confirmed(&self, at: PhysicalOffset) -> bool {
        at.0 < self.store.watermarks().confirmed
    }

    /// What the message was answered with when it was stored at `at`; `None` when something else lies there, or too old.
    fn earlier_result(
        &self,
        message: &EncodedMessage,
        at: PhysicalOffset,
        window_ms: u64,
    ) -> Option<v2::SendResultEntry> {
        let record = self.store.record_at(at).ok()?;
        let is_recent = record.store_time_ms.saturating_add(window_ms) > self.clock.latest_ms();
        let stored = EncodedMessage::read(record.payload.slice_ref(message_of(&record))).ok()?;
        let message_id = &message.system_properties.message_id;
        if !is_recent || stored.system_properties.message_id != *message_id || stored.topic != message.topic {
            return None;
        }
        self.dedupe.repeated.fetch_add(1, Ordering::Relaxed);
        if let Some(head) = HeldHead::of_record(&record) {
            return Some(self.held_result(message_id.clone(), &head));
        }
        Some(v2::SendResultEntry {
            status: Some(ok()),
            message_id: message_id.clone(),
            offset: record.queue_offset.0.cast_signed(),
            ..Default::default()
        })
    }

    /// Stores the messages at `indexes`; `claimed` says whether their ids are.
    async fn store_all(
        &self,
        topic: &Arc<Topic>,
        batch: &mut Batch,
        indexes: Vec<usize>,
        claimed: bool,
    ) -> Result<(), Rejection> {
        let durability = self.durability_of(topic);
        let mut appends = Vec::with_capacity(1);
        let mut queues = queues_of(topic, batch, indexes).into_iter();
        while let Some((queue, indexes)) = queues.next() {
            let mut records = Vec::with_capacity(indexes.len());
            let mut places = Vec::with_capacity(if claimed { indexes.len() } else { 0 });
            let mut bytes = 0;
            for &index in &indexes {
                let keys = std::mem::take(&mut batch.keys[index]);
                let record = record_with(&batch.messages[index], queue, keys);
                let record = match batch.holds[index] {
                    Some(head) => hold::held(record, head),
                    None => record,
                };
                if claimed {
                    places.push((batch.hashes[index], bytes));
                }
                bytes += record.encoded_bytes() as u64;
                records.push(record);
            }
            match self.store.append(records, durability) {
                Ok(append) => {
                    appends.push((indexes, bytes, Sending::new(append, self.dedupe.clone(), places)));
                }
                Err(error) => {
                    if claimed {
                        let rest = queues.flat_map(|(_, indexes)| indexes);
                        let unused = indexes.into_iter().chain(rest).map(|index| batch.hashes[index]);
                        self.dedupe.release(unused);
                    }
                    return Err(refuse::append(error));
                }
            }
        }
        if !appends.is_empty() {
            batch.note("stored", durability);
        }
        for (indexes, bytes, sending) in appends {
            let appended = match tokio::time::timeout(self.timeout_of(durability), sending).await {
                Ok(appended) => appended.map_err(refuse::append)?,
                Err(_) => return Err(self.timed_out(durability)),
            };
            self.counters.messages_in.fetch_add(indexes.len() as u64, Ordering::Relaxed);
            topic.stored.add(indexes.len() as u64, bytes);
            batch.note("confirmed", durability);
            let mut offsets = appended.queue_offset.0..;
            for index in indexes {
                let message_id = batch.messages[index].system_properties.message_id.clone();
                batch.entries[index] = match batch.holds[index] {
                    Some(head) => Some(self.held_result(message_id, &head)),
                    None => Some(v2::SendResultEntry {
                        status: Some(ok()),
                        message_id,
                        offset: offsets.next().unwrap_or_default().cast_signed(),
                        ..Default::default()
                    }),
                };
            }
        }
        Ok(())
    }

    /// When a send to the topic is answered.
    pub fn durability_of(&self, topic: &Topic) -> Durability {
        topic.durability().unwrap_or(self.durability)
    }

    /// When an acknowledgement, or what else a consumer says of messages of the topic, is answered: with the replicas where sends are,
    /// so that no failover takes it back; else when the kernel has it, so that it survives the end of this process.
    pub fn progress_durability(&self, topic: &Topic) -> Durability {
        match self.durability_of(topic) {
            replicated if replicated >= Durability::Replicated => replicated,
            _ => Durability::Memory,
        }
    }

    /// How long a send may take to be so durable.
    pub fn timeout_of(&self, durability: Durability) -> Duration {
        if durability < Durability::Replicated { self.flush_timeout } else { self.slave_timeout }
    }

    /// It took longer.
    pub fn timed_out(&self, durability: Durability) -> Rejection {
        let timeout_ms = self.timeout_of(durability).as_millis() as u64;
        match durability < Durability::Replicated {
            true => Rejection::PersistenceTimeout { timeout_ms },
            false => Rejection::ReplicationTimeout { needed: self.followers.needed(), timeout_ms },
        }
    }

    async fn topic_for_send(&self, name: &str) -> Result<Arc<Topic>, Rejection> {
        match self.catalog.topic(name) {
            Some(topic) => Ok(topic),
            None => self.unknown_topic(name).await,
        }
    }
}

impl Broker {
    fn batch(&self, messages: Vec<EncodedMessage>, topic: &Topic) -> Result<Batch, Rejection> {
        let (count, mut whole) = (messages.len(), Vec::with_capacity(messages.len()));
        let mut holds = Vec::with_capacity(count);
        for (index, message) in messages.into_iter().enumerate() {
            check::message_type(index, &message.system_properties, topic)?;
            holds.push(self.hold_of(index, &message, topic)?);
            whole.push(check::complete(index, message, topic)?);
        }
        let keys = |message: &EncodedMessage| keys_of(&message.system_properties, topic.number);
        let keys: Vec<Vec<u64>> = whole.iter().map(keys).collect();
        let hashes: Vec<u64> = keys.iter().map(|keys| keys[0]).collect();
        if count > 1 {
            let mut seen = std::collections::HashSet::with_capacity(count);
            if let Some(index) = hashes.iter().position(|hash| !seen.insert(hash)) {
                let rule = "another message of the request has the same";
                return Err(Rejection::IllegalMessageId { index, rule });
            }
        }
        let (entries, lite_queues) = (vec![None; count], Vec::new());
        Ok(Batch { messages: whole, hashes, keys, holds, entries, lite_queues, span: None })
    }
}

/// The queue of each message: by lite topic, message group or priority where the topic has them, else the next one for all.
fn queues_of(topic: &Topic, batch: &Batch, indexes: Vec<usize>) -> Vec<(QueueNumber, Vec<usize>)> {
    if indexes.is_empty() {
        return Vec::new();
    }
    let has_own =
        topic.is_lite() || matches!(topic.message_type(), MessageType::Fifo | MessageType::Priority);
    if !has_own {
        return vec![(topic.next_queue().1, indexes)];
    }
    let mut queues: BTreeMap<QueueNumber, Vec<usize>> = BTreeMap::new();
    for index in indexes {
        let queue = match batch.lite_queues.get(index) {
            Some(queue) => *queue,
            None => queue_of(topic, &batch.messages[index].system_properties),
        };
        queues.entry(queue).or_default().push(index);
    }
    queues.into_iter().collect()
}

/// The queue of one message.
pub fn queue_of(topic: &Topic, system: &v2::SystemProperties) -> QueueNumber {
    let count = topic.queue_nums().max(1);
    let queue_id = match topic.message_type() {
        MessageType::Fifo => system.message_group.as_deref().map_or(0, group_hash) % count,
        // The last queue is the first to be read.
        MessageType::Priority => system.priority().unsigned_abs().min(count - 1),
        _ => return topic.next_queue().1,
    };
    topic.queue(queue_id).expect("it is one of the queues")
}

/// The record of a message that is visible at once.
pub fn record(message: &EncodedMessage, queue: QueueNumber, topic: u32) -> NewRecord {
    record_with(message, queue, keys_of(&message.system_properties, topic))
}

fn record_with(message: &EncodedMessage, queue: QueueNumber, keys: Vec<u64>) -> NewRecord {
    NewRecord {
        kind: RecordKind::Message,
        queue: Some(queue),
        tag_hash: Label::of(&message.system_properties).0,
        mark: mark_of(message).0,
        keys,
        payload: message.bytes.clone(),
    }
}

/// Where the system properties of a message lie, and whether it has a time to live of its own.
pub fn mark_of(message: &EncodedMessage) -> Mark {
    let has_ttl = message.user_properties.iter().any(|(key, _)| key == TTL_PROPERTY);
    Mark::of(&message.system_properties_field).with_ttl(has_ttl)
}

/// What a message of a topic is found by: its id, which comes first, and its keys.
pub fn keys_of(system: &v2::SystemProperties, topic: u32) -> Vec<u64> {
    let mut keys = Vec::with_capacity(1 + system.keys.len());
    keys.push(id_hash(topic, &system.message_id));
    keys.extend(system.keys.iter().map(|key| key_hash(topic, key.as_bytes())));
    keys
}
