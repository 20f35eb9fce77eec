//! Finding stored messages and offsets for operators and clients: by id, key, place and time.
//!
//! The store finds by hashes; here it is checked that a message really has the id or key that was asked for.

use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::v2::{self, QueryOffsetPolicy};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{Entry, PhysicalOffset, QueueNumber, QueueOffset, ReadError, Record, key_hash};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::id_hash;
use crate::records::message_of;
use crate::refuse;

/// Messages of one answer when it is not said how many.
const MAX_DEFAULT: usize = 32;
/// Bytes of messages in one answer, if they are more than one.
const ANSWER_MAX_BYTES: usize = 4 << 20;
/// So many messages with the same hash are looked at when some turn out to have another key.
const LOOKED_AT_MAX: usize = 1024;

impl Broker {
    /// Messages of a topic. None when the topic or the message is not on this broker.
    pub fn query_messages(
        &self,
        request: &v1::QueryMessagesRequest,
    ) -> Result<v1::QueryMessagesResponse, Rejection> {
        validate::topic(&request.topic)?;
        let mut response = v1::QueryMessagesResponse { status: Some(ok()), ..Default::default() };
        let is_asked = request.broker_name.is_empty() || *self.name == request.broker_name;
        let Some(topic) = self.catalog.topic(&request.topic).filter(|_| is_asked) else {
            return Ok(response);
        };
        let records = match &request.by {
            Some(By::MessageId(id)) => self.find(
                request,
                id_hash(topic.number, id),
                |system| system.message_id == *id,
                &mut response.truncated,
            )?,
            Some(By::Key(key)) => {
                let has_key = |system: &v2::SystemProperties| system.keys.iter().any(|own| own == key);
                self.find(request, key_hash(topic.number, key.as_bytes()), has_key, &mut response.truncated)?
            }
            Some(By::Queue(place)) => {
                let max = if request.max == 0 { 1 } else { max_of(request)? };
                let queue = self.queue_in(&topic, place.queue_id);
                let queue = queue.ok_or_else(|| no_queue(&topic, place.queue_id.into()))?;
                self.messages_from(queue, place.offset, max, &mut response.truncated)?
            }
            Some(By::PhysicalOffset(at)) => self.at_physical_offset(*at)?.into_iter().collect(),
            Some(By::Time(_)) => self.stored_between(&topic, request, &mut response.truncated)?,
            None => {
                let what =
                    "a query names a message id, a key, a queue with an offset, a physical offset, or a time";
                return Err(Rejection::BadRequest(what.to_owned()));
            }
        };
        let mut bytes = 0;
        for record in records {
            let Some(queue_id) = queue_id_of(self, &topic, &record) else { continue };
            let message = message_of(&record).to_vec();
            bytes += message.len();
            if bytes > ANSWER_MAX_BYTES && !response.messages.is_empty() {
                response.truncated = true;
                break;
            }
            response.messages.push(v1::StoredMessage {
                broker_name: self.name.to_string(),
                queue_id,
                queue_offset: record.queue_offset.0,
                physical_offset: record.physical_offset.0,
                store_time_ms: record.store_time_ms,
                message,
            });
        }
        Ok(response)
    }

    /// The last stored records under `hash` that are what was asked for.
    fn find(
        &self,
        request: &v1::QueryMessagesRequest,
        hash: u64,
        is_it: impl Fn(&v2::SystemProperties) -> bool,
        truncated: &mut bool,
    ) -> Result<Vec<Record>, Rejection> {
        let max = max_of(request)?;
        let end_ms = if request.end_ms == 0 { u64::MAX } else { request.end_ms };
        let is_it = |record: &Record| {
            let message = EncodedMessage::read(bytes::Bytes::copy_from_slice(message_of(record)));
            // What is held has no place in a queue, and is no message yet.
            record.queue.is_some() && message.is_ok_and(|message| is_it(&message.system_properties))
        };
        // One more, to know whether there are more.
        let (wanted, mut looked_at) = (max + 1, max + 1);
        loop {
            let mut found = Vec::new();
            let times = request.begin_ms..end_ms;
            self.store.find(hash, times, looked_at, &mut found).map_err(|error| refuse::read(&error))?;
            let all = found.len() < looked_at;
            found.retain(is_it);
            if found.len() >= wanted || all || looked_at >= LOOKED_AT_MAX {
                *truncated = found.len() >= wanted || !all;
                found.truncate(max);
                return Ok(found);
            }
            looked_at *= 2;
        }
    }

    /// The messages of a queue from an offset on. What is lost or was deleted is passed over.
    fn messages_from(
        &self,
        queue: QueueNumber,
        from: u64,
        max: usize,
        truncated: &mut bool,
    ) -> Result<Vec<Record>, Rejection> {
        let range = self.store.queue_range(queue);
        // A single one is asked for by its place: another one would be the wrong answer.
        let from = if max == 1 { from } else { from.max(range.start) };
        let mut entries = Vec::with_capacity(max);
        match self.store.entries(queue, QueueOffset(from), max, &mut entries) {
            Err(ReadError::BelowMinimum { .. }) => return Ok(Vec::new()),
            result => result.map_err(|error| refuse::read(&error))?,
        }
        *truncated |= max > 1 && from + (entries.len() as u64) < range.end;
        self.records(&entries)
    }

    /// The messages of all queues that were stored in a time, the first stored first.
    fn stored_between(
        &self,
        topic: &Topic,
        request: &v1::QueryMessagesRequest,
        truncated: &mut bool,
    ) -> Result<Vec<Record>, Rejection> {
        let max = max_of(request)?;
        let mut entries: Vec<Entry> = Vec::new();
        for &queue in &topic.queues {
            let queue = QueueNumber(queue);
            let at =
                |time_ms| self.store.offset_by_time(queue, time_ms).map_err(|error| refuse::read(&error));
            let from = at(request.begin_ms)?.0;
            let to =
                if request.end_ms == 0 { self.store.queue_range(queue).end } else { at(request.end_ms)?.0 };
            // Each queue may have all of the answer, and one more says that there are more.
            let count = to.saturating_sub(from).min(max as u64 + 1) as usize;
            match self.store.entries(queue, QueueOffset(from), count, &mut entries) {
                // Deleted meanwhile.
                Err(error) if error.is_final() => {}
                result => result.map_err(|error| refuse::read(&error))?,
            }
        }
        entries.retain(|entry| !entry.is_lost());
        // Store times never go back in the log.
        entries.sort_unstable_by_key(|entry| entry.physical_offset);
        *truncated |= entries.len() > max;
        entries.truncate(max);
        self.records(&entries)
    }

    /// The records of entries; those that are lost or have become unreadable are left out.
    fn records(&self, entries: &[Entry]) -> Result<Vec<Record>, Rejection> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries.iter().filter(|entry| !entry.is_lost()) {
            match self.store.record(entry.physical_offset, entry.size) {
                Ok(record) => records.push(record),
                Err(error) if error.is_final() => {}
                Err(error) => return Err(refuse::read(&error)),
            }
        }
        Ok(records)
    }

    fn at_physical_offset(&self, at: u64) -> Result<Option<Record>, Rejection> {
        match self.store.record_at(PhysicalOffset(at)) {
            Ok(record) => Ok(Some(record)),
            // Another broker may have one there.
            Err(ReadError::OutOfRange { .. } | ReadError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(refuse::read(&error)),
        }
    }

    /// The offset of a queue's beginning, its end, or its first message that was stored at a time or later.
    pub async fn query_offset(
        &self,
        request: v2::QueryOffsetRequest,
    ) -> Result<v2::QueryOffsetResponse, Rejection> {
        let policy = QueryOffsetPolicy::try_from(request.query_offset_policy).map_err(|_| {
            Rejection::BadRequest(format!("query offset policy {} is not known", request.query_offset_policy))
        })?;
        let queue = request.message_queue.unwrap_or_default();
        let topic = self.topic(validate::topic_of(queue.topic.as_ref())?)?;
        let number = u32::try_from(queue.id).ok().and_then(|id| topic.queue(id));
        let number = number.ok_or_else(|| no_queue(&topic, queue.id.into()))?;
        let range = self.store.queue_range(number);
        let offset = match policy {
            QueryOffsetPolicy::Beginning => range.start,
            QueryOffsetPolicy::End => range.end,
            QueryOffsetPolicy::Timestamp => {
                let Some(time) = request.timestamp else {
                    return Err(Rejection::BadRequest(
                        "the policy is TIMESTAMP and there is none".to_owned(),
                    ));
                };
                let millis =
                    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000);
                let millis = u64::try_from(millis).unwrap_or(0);
                self.store.offset_by_time(number, millis).map_err(|error| refuse::read(&error))?.0
            }
        };
        Ok(v2::QueryOffsetResponse { status: Some(ok()), offset: offset.cast_signed() })
    }
}

/// How many messages a request wants.
fn max_of(request: &v1::QueryMessagesRequest) -> Result<usize, Rejection> {
    match request.max {
        0 => Ok(MAX_DEFAULT),
        max if max <= QUERY_MAX => Ok(max as usize),
        max => Err(Rejection::BadRequest(format!("{max} messages are asked for, the limit is {QUERY_MAX}"))),
    }
}

pub(super) fn no_queue(topic: &Topic, id: i64) -> Rejection {
    let (name, count) = (&topic.name(), topic.queues.len());
    Rejection::BadRequest(format!("topic {name:?} has {count} queues, counted from 0, and no queue {id}"))
}

/// `None`: it is not of this topic.
fn queue_id_of(broker: &Broker, topic: &Topic, record: &Record) -> Option<u32> {
    let queue = record.queue?.0;
    if topic.is_lite() {
        return broker.queue_in(topic, queue).map(|queue| queue.0);
    }
    let position = topic.queues.iter().position(|own| *own == queue)?;
    u32::try_from(position).ok()
}
