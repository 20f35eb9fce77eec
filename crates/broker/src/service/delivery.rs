//! Messages on their way out: a stored one as a consumer gets it, the producer's bytes with the broker's fields in its system
//! properties; and the stream that carries those of one receive, and puts back what does not leave with it. On a data thread.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use karman_remoting::message::{body_of, delivered};
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::status::ok;
use karman_remoting::token::ReceiptHandle;
use karman_store::Record;
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use sha1::{Digest as _, Sha1};
use tonic::Status;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::clock::timestamp;
use crate::mark::Mark;
use crate::pop::Delivery;
use crate::progress::GroupTopic;
use crate::records::message_of;
use crate::service::receive::{NO_MESSAGE, frame, says_nothing_is_there};
use crate::traces;
use crate::traffic::Delivered;

/// The message in `record`, built in `room`. `added`: the fields of this delivery; what is the same for all of them is
/// filled in here.
pub fn message(broker: &Broker, record: &Record, added: v2::SystemProperties, room: &mut BytesMut) -> Bytes {
    let stored = message_of(record);
    let field = Mark(record.mark).field(stored.len());
    let added = v2::SystemProperties {
        body_digest: Some(digest(&stored[body_of(stored, &field)])),
        store_timestamp: Some(timestamp(record.store_time_ms)),
        store_host: broker.store_host.clone(),
        queue_offset: Some(record.queue_offset.0.cast_signed()),
        ..added
    };
    delivered(stored, field, &added, room)
}

/// SHA-1 in upper-case hex: understood by every client, and half the work of MD5 on processors that have it in hardware.
pub fn digest(body: &[u8]) -> v2::Digest {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    let mut checksum = String::with_capacity(40);
    for byte in Sha1::digest(body) {
        checksum.push(digit(byte >> 4));
        checksum.push(digit(byte & 15));
    }
    v2::Digest { r#type: v2::DigestType::Sha1.into(), checksum }
}

/// Whose messages a stream carries: a group on a topic.
pub(super) trait Holder: Send + Sync {
    /// The number of the group, the topic, and where it is counted what goes out.
    fn parts(&self) -> (u32, &Topic, &Delivered);
    /// These did not leave this process: they are as if they had not been taken.
    fn put_back(&self, undelivered: &VecDeque<(Delivery, Record)>);
}

impl Holder for GroupTopic {
    fn parts(&self) -> (u32, &Topic, &Delivered) {
        (self.group, &self.topic, &self.delivered)
    }

    fn put_back(&self, undelivered: &VecDeque<(Delivery, Record)>) {
        self.run(|pop| undelivered.iter().for_each(|(delivery, _)| pop.put_back(delivery)));
        self.arrived.notify_one();
    }
}

/// The response stream: a status, the messages, the time of delivery. Nothing leaves when it is too late at its first
/// word: a process that stood still, or a connection that took nothing, may have let another become the master, or the time
/// pass for which the messages are this consumer's.
pub(super) struct Batch {
    broker: Arc<Broker>,
    row: Arc<dyn Holder>,
    waiting: VecDeque<(Delivery, Record)>,
    /// In what another member of the group contradicts the receiver.
    contradiction: Option<String>,
    stage: Stage,
    /// Where messages are built; one allocation serves several.
    room: BytesMut,
    /// Of the receive, where it is traced.
    span: Option<Context>,
}

enum Stage {
    Status,
    Messages,
    End,
}

impl Batch {
    pub(super) fn new(
        broker: Arc<Broker>,
        row: Arc<dyn Holder>,
        waiting: VecDeque<(Delivery, Record)>,
        contradiction: Option<String>,
    ) -> Self {
        broker.counters.messages_out.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        let bytes = waiting.iter().map(|(delivery, _)| u64::from(delivery.entry.size)).sum();
        row.parts().2.traffic.add(waiting.len() as u64, bytes);
        let span = broker.traces.as_ref().filter(|_| !waiting.is_empty()).map(|traces| {
            let (group, topic, _) = row.parts();
            let group = broker.catalog.group_numbered(group);
            traces.receive(topic.name(), group.as_ref().map(|group| &*group.config.name), &waiting)
        });
        let (stage, room) = (Stage::Status, BytesMut::new());
        Self { broker, row, waiting, contradiction, stage, room, span }
    }

    fn is_late(&self) -> bool {
        let now_ms = self.broker.clock.now_ms();
        let has_ended = |(delivery, _): &(Delivery, Record)| delivery.visible_at_ms <= now_ms;
        !self.broker.store.may_answer() || self.waiting.iter().any(has_ended)
    }

    fn message(&mut self, delivery: &Delivery, record: &Record) -> Content {
        let (group_id, topic, _) = self.row.parts();
        let handle = ReceiptHandle {
            broker: self.broker.name.clone(),
            group_id,
            topic_id: topic.number,
            queue_id: delivery.position.queue_id,
            queue_offset: delivery.position.offset,
            revision: delivery.revision,
            attempt: delivery.attempt,
            expires_ms: delivery.visible_at_ms,
        };
        let invisible_ms = delivery.visible_at_ms.saturating_sub(self.broker.clock.now_ms());
        let added = v2::SystemProperties {
            receipt_handle: Some(handle.encode(&self.broker.token_key)),
            queue_id: delivery.position.queue_id.cast_signed(),
            invisible_duration: Duration::from_millis(invisible_ms).try_into().ok(),
            delivery_attempt: Some(delivery.attempt.cast_signed()),
            ..Default::default()
        };
        Content::Message(message(&self.broker, record, added, &mut self.room))
    }
}

impl Stream for Batch {
    type Item = Result<v2::ReceiveMessageResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let content = match self.stage {
            Stage::Status if self.is_late() => {
                self.stage = Stage::End;
                return Poll::Ready(Some(says_nothing_is_there(NO_MESSAGE)));
            }
            Stage::Status => {
                self.stage = Stage::Messages;
                let message = self.contradiction.take();
                Content::Status(message.map_or_else(ok, |message| v2::Status { message, ..ok() }))
            }
            Stage::Messages => match self.waiting.pop_front() {
                Some((delivery, record)) => self.message(&delivery, &record),
                None => {
                    self.stage = Stage::End;
                    Content::DeliveryTimestamp(timestamp(self.broker.clock.now_ms()))
                }
            },
            Stage::End => return Poll::Ready(None),
        };
        Poll::Ready(Some(frame(content)))
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(span) = &self.span {
            if !self.waiting.is_empty() {
                traces::failed_with(span, "put back");
            }
            span.span().end();
        }
        if self.waiting.is_empty() {
            return;
        }
        self.row.put_back(&self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_sha1_in_upper_case() {
        assert_eq!(digest(b"abc").checksum, "A9993E364706816ABA3E25717850C26C9CD0D89D");
    }
}
