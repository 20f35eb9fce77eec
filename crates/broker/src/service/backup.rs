//! Messages on their way into a backup and back: delayed ones in the order of delivery, and whatever a backup holds as it is,
//! with its id, its properties and its place in the order of its queue (`docs/adr/0028-backup.md`). On the data threads;
//! what may have to wait for the device, beside them.
//!
//! What is put back is not sent again: it is asked only whether the queue ends where the caller says. So a restore that
//! was interrupted goes on where it was, and a queue that somebody else writes to is left alone. One call at a time; it
//! goes on when the caller has gone away, so that the next one sees what it has done.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::karman as v1;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{Appended, NewRecord, PhysicalOffset, QueueNumber, QueueOffset, Record};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::id_hash;
use crate::held::timers::TimerKey;
use crate::records::{HeldHead, Hold, message_of};
use crate::refuse;
use crate::service::hold;
use crate::service::query::no_queue;
use crate::service::send::record;

/// Bytes of messages in one answer, if they are more than one.
const ANSWER_MAX_BYTES: usize = 4 << 20;
/// Messages of one call.
const RESTORE_MAX: usize = 4096;
/// Records under the hash of one message id that are looked at.
const SAME_HASH_MAX: usize = 64;

/// The one call that may put messages back.
struct Turn(Arc<Broker>);

impl Turn {
    fn take(broker: &Arc<Broker>) -> Result<Self, Rejection> {
        if broker.restoring.swap(true, Ordering::AcqRel) {
            let what = "messages are being restored already; wait for that to end".to_owned();
            return Err(Rejection::TooManyRequests(what));
        }
        Ok(Self(broker.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.restoring.store(false, Ordering::Release);
    }
}

impl Broker {
    /// Delayed messages that wait, from a place on. May block.
    pub fn list_delayed(
        &self,
        request: &v1::ListDelayedRequest,
    ) -> Result<v1::ListDelayedResponse, Rejection> {
        let v1::DelayedPlace { due_ms, id } = request.from.unwrap_or_default();
        let (timers, mut next) = self.held.timers_from(TimerKey { due_ms, id }, QUERY_MAX as usize);
        let mut response = v1::ListDelayedResponse { status: Some(ok()), ..Default::default() };
        let mut bytes = 0;
        for (key, at) in timers {
            let Some(record) = self.delayed_record(key, at, &mut response.lost)? else { continue };
            let topic = HeldHead::of_record(&record).and_then(|head| self.catalog.topic_numbered(head.topic));
            // It goes as its topic did, a moment later.
            let Some(topic) = topic else { continue };
            let message = message_of(&record).to_vec();
            bytes += message.len();
            if bytes > ANSWER_MAX_BYTES && !response.messages.is_empty() {
                next = Some(key);
                break;
            }
            response.messages.push(v1::DelayedMessage { topic: topic.name().to_owned(), message });
        }
        response.next = next.map(|key| v1::DelayedPlace { due_ms: key.due_ms, id: key.id });
        Ok(response)
    }

    /// The record of a delayed message that lay at `at`; `None` when it is held no more, or lost.
    fn delayed_record(
        &self,
        key: TimerKey,
        mut at: PhysicalOffset,
        lost: &mut u64,
    ) -> Result<Option<Record>, Rejection> {
        loop {
            match self.store.record_at(at) {
                Ok(record) => return Ok(Some(record)),
                Err(error) if !error.is_final() => return Err(refuse::read(&error)),
                // It was delivered meanwhile, or copied to the end of the log so that its segment could go.
                Err(_) => match self.held.timer(key) {
                    None => return Ok(None),
                    Some(moved) if moved != at => at = moved,
                    Some(_) => {
                        *lost += 1;
                        return Ok(None);
                    }
                },
            }
        }
    }

    /// Puts messages into a queue at its end, or has them wait for their time.
    pub async fn restore_messages(
        self: &Arc<Self>,
        request: v1::RestoreMessagesRequest,
    ) -> Result<v1::RestoreMessagesResponse, Rejection> {
        validate::topic(&request.topic)?;
        let topic = self.topic(&request.topic)?;
        if topic.is_lite() {
            let what = "holds lite topics, whose messages are in no backup";
            return Err(Rejection::BadRequest(format!("topic {:?} {what}", topic.name())));
        }
        let messages = read(request.messages)?;
        let durability = self.durability_of(&topic);
        self.followers.check(durability)?;
        let turn = Turn::take(self)?;
        let restored = tokio::spawn(async move {
            match request.offset {
                Some(offset) => turn.0.put_back(&topic, request.queue_id, offset, &messages).await,
                None => turn.0.hold_again(&topic, messages).await,
            }
        });
        match tokio::time::timeout(self.timeout_of(durability), restored).await {
            Ok(restored) => {
                let passed_over = restored.map_err(|error| Rejection::Internal(error.to_string()))??;
                Ok(v1::RestoreMessagesResponse { status: Some(ok()), passed_over })
            }
            Err(_) => Err(self.timed_out(durability)),
        }
    }

    async fn put_back(
        &self,
        topic: &Topic,
        queue_id: u32,
        offset: u64,
        messages: &[EncodedMessage],
    ) -> Result<u32, Rejection> {
        let queue = topic.queue(queue_id).ok_or_else(|| no_queue(topic, queue_id.into()))?;
        let elsewhere = |end: u64| Rejection::Forbidden {
            what: format!(
                "putting messages into queue {queue_id} of topic {:?} at offset {offset}, when it ends at {end},",
                topic.name()
            ),
            rule: "nobody else may write to a topic that is being restored",
        };
        let end = self.store.queue_range(queue).end;
        if end != offset {
            return Err(elsewhere(end));
        }
        let records = messages.iter().map(|message| record(message, queue, topic.number)).collect();
        match self.append_all(topic, records).await?.queue_offset {
            QueueOffset(appended) if appended == offset => Ok(0),
            // What somebody sent at this moment lies in front.
            QueueOffset(appended) => Err(elsewhere(appended)),
        }
    }

    /// How many were passed over: the topic has their ids.
    async fn hold_again(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        messages: Vec<EncodedMessage>,
    ) -> Result<u32, Rejection> {
        self.check_room_to_hold()?;
        let count = messages.len();
        let (broker, searched) = (self.clone(), topic.clone());
        let missing = tokio::task::spawn_blocking(move || broker.without_known(&searched, messages)).await;
        let missing = missing.map_err(|error| Rejection::Internal(error.to_string()))??;
        let held = |message: &EncodedMessage| {
            let due_ms = hold::due_ms(&message.system_properties).ok_or_else(|| {
                let id = validate::shortened(&message.system_properties.message_id);
                Rejection::BadRequest(format!("message {id:?} is to wait for its time and names none"))
            })?;
            let head = HeldHead { id: rand::random(), due_ms, topic: topic.number, hold: Hold::Timer };
            // It has no queue before its time.
            Ok(hold::held(record(message, QueueNumber(0), topic.number), head))
        };
        let records = missing.iter().map(held).collect::<Result<Vec<_>, Rejection>>()?;
        if !records.is_empty() {
            self.append_all(topic, records).await?;
        }
        Ok(u32::try_from(count - missing.len()).unwrap_or(u32::MAX))
    }

    /// Those whose ids the topic neither has nor holds. May block.
    fn without_known(
        &self,
        topic: &Topic,
        mut messages: Vec<EncodedMessage>,
    ) -> Result<Vec<EncodedMessage>, Rejection> {
        let (mut found, mut failed) = (Vec::new(), None);
        messages.retain(|message| {
            let id = &message.system_properties.message_id;
            found.clear();
            let looked = self.store.find(id_hash(topic.number, id), 0..u64::MAX, SAME_HASH_MAX, &mut found);
            failed = failed.take().or(looked.err());
            let has_id = |record: &Record| {
                EncodedMessage::read(Bytes::copy_from_slice(message_of(record)))
                    .is_ok_and(|known| known.system_properties.message_id == *id)
            };
            !found.iter().any(has_id)
        });
        failed.map_or(Ok(messages), |error| Err(refuse::read(&error)))
    }

    async fn append_all(&self, topic: &Topic, records: Vec<NewRecord>) -> Result<Appended, Rejection> {
        let append = self.store.append(records, self.durability_of(topic)).map_err(refuse::append)?;
        append.await.map_err(refuse::append)
    }
}

/// Nothing is asked but that they are messages: a broker has taken them once, and dead letters say what no producer may.
fn read(encoded: Vec<Bytes>) -> Result<Vec<EncodedMessage>, Rejection> {
    if encoded.is_empty() {
        return Err(Rejection::NoMessage);
    }
    if encoded.len() > RESTORE_MAX {
        return Err(Rejection::TooManyMessages { count: encoded.len(), limit: RESTORE_MAX });
    }
    let read = |(index, bytes)| {
        EncodedMessage::read(bytes)
            .map_err(|error| Rejection::MessageCorrupted { index, why: error.to_string() })
    };
    encoded.into_iter().enumerate().map(read).collect()
}
