//! Finding stored messages and offsets for operators and clients: by id, key, place and time.
//!
//! The store finds by hashes; here it is checked that a message really has the id or key that was asked for.

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::v2::{self, QueryOffsetPolicy};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{PhysicalOffset, QueueOffset, ReadError, Record, key_hash};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::id_hash;
use crate::records::message_of;
use crate::refuse;

/// Messages of one answer when it is not said how many.
const MAX_DEFAULT: u32 = 32;
/// RocketMQ's limit for a query.
const MAX_MAX: u32 = 64;
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
            Some(By::Queue(place)) => self.at_queue_offset(&topic, place)?.into_iter().collect(),
            Some(By::PhysicalOffset(at)) => self.at_physical_offset(*at)?.into_iter().collect(),
            Some(By::Time(_)) => return Err(Rejection::NotImplemented { capability: "listing by time" }),
            None => {
                let what = "a query names a message id, a key, a queue with an offset, or a physical offset";
                return Err(Rejection::BadRequest(what.to_owned()));
            }
        };
        let mut bytes = 0;
        for record in records {
            let Some(queue_id) = queue_id_of(&topic, &record) else { continue };
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
        let max = if request.max == 0 { MAX_DEFAULT } else { request.max };
        if max > MAX_MAX {
            return Err(Rejection::BadRequest(format!(
                "{max} messages are asked for, the limit is {MAX_MAX}"
            )));
        }
        let end_ms = if request.end_ms == 0 { u64::MAX } else { request.end_ms };
        let is_it = |record: &Record| {
            let message = EncodedMessage::read(bytes::Bytes::copy_from_slice(message_of(record)));
            message.is_ok_and(|message| is_it(&message.system_properties))
        };
        // One more, to know whether there are more.
        let (wanted, mut looked_at) = (max as usize + 1, max as usize + 1);
        loop {
            let mut found = Vec::new();
            let times = request.begin_ms..end_ms;
            self.store.find(hash, times, looked_at, &mut found).map_err(|error| refuse::read(&error))?;
            let all = found.len() < looked_at;
            found.retain(is_it);
            if found.len() >= wanted || all || looked_at >= LOOKED_AT_MAX {
                *truncated = found.len() >= wanted || !all;
                found.truncate(max as usize);
                return Ok(found);
            }
            looked_at *= 2;
        }
    }

    fn at_queue_offset(&self, topic: &Topic, place: &v1::QueuePosition) -> Result<Option<Record>, Rejection> {
        let queue = topic.queue(place.queue_id).ok_or_else(|| no_queue(topic, place.queue_id.into()))?;
        let mut entries = Vec::new();
        self.store
            .entries(queue, QueueOffset(place.offset), 1, &mut entries)
            .map_err(|error| refuse::read(&error))?;
        let Some(entry) = entries.first() else { return Ok(None) };
        self.store.record(entry.physical_offset, entry.size).map(Some).map_err(|error| refuse::read(&error))
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
        let policy = request.query_offset_policy();
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

pub(super) fn no_queue(topic: &Topic, id: i64) -> Rejection {
    let (name, count) = (&topic.name(), topic.queues.len());
    Rejection::BadRequest(format!("topic {name:?} has {count} queues, counted from 0, and no queue {id}"))
}

/// `None`: it is not of this topic.
fn queue_id_of(topic: &Topic, record: &Record) -> Option<u32> {
    let queue = record.queue?.0;
    let position = topic.queues.iter().position(|own| *own == queue)?;
    u32::try_from(position).ok()
}
