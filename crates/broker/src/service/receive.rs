//! ReceiveMessage: take what is there, or wait for it; then stream it as stored, completed with the broker's fields.
//!
//! A wait is registered before the queues are looked at, so no message is missed, and ends by an arrival, by a message
//! whose time has come again, by the end of the polling time or by the end of the broker. Whatever has been taken and
//! does not leave with the stream is put back when the stream is dropped.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::Stream;
use karman_remoting::message::{body_of, delivered, tag_of};
use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::settings::{LONG_POLLING_MAX, RECEIVE_BATCH_SIZE_MAX};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::ReceiptHandle;
use karman_remoting::validate::{self, TagFilter};
use karman_store::{Entry, QueueOffset, ReadError, Record};
use sha1::{Digest as _, Sha1};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::broker::Broker;
use crate::clock::timestamp;
use crate::mark::Mark;
use crate::pop::{Delivery, Gone, Surroundings, Take, Taken};
use crate::progress::{self, GroupTopic};
use crate::records::message_of;
use crate::service::{dead_letter, send};

/// `invisibleTimeMills` of a client that lets the broker renew it, or does not say.
const INVISIBLE_DEFAULT_MS: u64 = 60_000;
const INVISIBLE_MIN_MS: i64 = 10_000;
/// Longest invisible time a client may ask for.
pub const INVISIBLE_MAX_MS: i64 = 12 * 3_600_000;
/// An answer must arrive before the client gives up, or it counts as an error there.
const ANSWER_AHEAD: Duration = Duration::from_secs(1);
/// Kept back from the deadline of a client that does not say how long to poll.
const ANSWER_AHEAD_UNSAID: Duration = Duration::from_millis(1500);

/// A whole stream that says why there is no message.
pub fn nothing(rejection: Rejection) -> BoxStream<v2::ReceiveMessageResponse> {
    Box::pin(tokio_stream::once(frame(Content::Status(rejection.into()))))
}

/// Also the answer of an empty long poll: C++ takes OK without messages for an error.
fn no_message() -> BoxStream<v2::ReceiveMessageResponse> {
    let message = "no new message".to_owned();
    let status = v2::Status { code: v2::Code::MessageNotFound.into(), message };
    Box::pin(tokio_stream::once(frame(Content::Status(status))))
}

#[expect(clippy::unnecessary_wraps, reason = "an item of a response stream is a Result")]
fn frame(content: Content) -> Result<v2::ReceiveMessageResponse, Status> {
    Ok(v2::ReceiveMessageResponse { content: Some(content) })
}

/// What a consumer wants.
enum Wanted {
    All,
    AnyOf { tags: Vec<String>, hashes: Vec<u64> },
}

impl Wanted {
    fn of(filter: TagFilter) -> Self {
        match filter {
            TagFilter::All => Self::All,
            TagFilter::AnyOf(tags) => {
                let hashes = tags.iter().map(|tag| send::tag_hash(tag)).collect();
                Self::AnyOf { tags, hashes }
            }
        }
    }

    /// By the tag itself: two tags may have one hash.
    fn really_wants(&self, message: &[u8], mark: Mark) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf { tags, .. } => {
                let tag = tag_of(message, &mark.field(message.len()));
                tags.iter().any(|wanted| wanted == tag)
            }
        }
    }
}

struct Around<'a> {
    broker: &'a Broker,
    row: &'a GroupTopic,
    wanted: &'a Wanted,
}

impl Surroundings for Around<'_> {
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), Gone> {
        let Some(queue) = self.row.topic.queue(queue_id) else { return Ok(()) };
        match self.broker.store.entries(queue, from, max, out) {
            Ok(()) => {}
            Err(ReadError::BelowMinimum { minimum, .. }) => return Err(Gone { minimum }),
            Err(error) => tracing::warn!(?queue, ?from, %error, "index cannot be read"),
        }
        Ok(())
    }

    fn wants(&self, tag_hash: u64) -> bool {
        match self.wanted {
            Wanted::All => true,
            Wanted::AnyOf { hashes, .. } => hashes.contains(&tag_hash),
        }
    }

    fn is_alive(&self, client_id: &str) -> bool {
        self.broker.clients.is_alive(client_id)
    }
}

/// A checked request.
struct Polling {
    wanted: Wanted,
    max: usize,
    invisible_ms: u64,
    renew_for: Option<Arc<str>>,
    wait: Duration,
}

impl Polling {
    fn of(caller: &Caller, request: &v2::ReceiveMessageRequest) -> Result<Self, Rejection> {
        let max = usize::try_from(request.batch_size).ok().filter(|&size| size > 0);
        let (invisible_ms, renew_for) = if request.auto_renew {
            (INVISIBLE_DEFAULT_MS, Some(caller.client_id.as_str().into()))
        } else {
            (invisible_ms(request.invisible_duration.as_ref(), INVISIBLE_MIN_MS)?, None)
        };
        Ok(Self {
            wanted: Wanted::of(validate::tag_filter(request.filter_expression.as_ref())?),
            max: max.unwrap_or(RECEIVE_BATCH_SIZE_MAX).min(RECEIVE_BATCH_SIZE_MAX),
            invisible_ms,
            renew_for,
            wait: wait(caller.timeout, request.long_polling_timeout.as_ref())?,
        })
    }
}

/// An invisible duration in milliseconds, from `min_ms` to 12 h.
pub fn invisible_ms(duration: Option<&prost_types::Duration>, min_ms: i64) -> Result<u64, Rejection> {
    let Some(duration) = duration else { return Ok(INVISIBLE_DEFAULT_MS) };
    let millis = duration.seconds.saturating_mul(1000).saturating_add(i64::from(duration.nanos) / 1_000_000);
    if (min_ms..=INVISIBLE_MAX_MS).contains(&millis) {
        return Ok(millis.unsigned_abs());
    }
    Err(Rejection::IllegalInvisibleTime { millis, min_millis: min_ms, max_millis: INVISIBLE_MAX_MS })
}

/// How long to wait for a message: what the client asks for, but so that the answer comes before its deadline.
fn wait(timeout: Option<Duration>, asked: Option<&prost_types::Duration>) -> Result<Duration, Rejection> {
    let asked = match asked {
        Some(asked) if asked.seconds < 0 || asked.nanos < 0 => {
            return Err(Rejection::IllegalPollingTime { seconds: asked.seconds });
        }
        Some(asked) => Some(Duration::new(asked.seconds.unsigned_abs(), asked.nanos.unsigned_abs())),
        None => None,
    };
    let ahead = if asked.is_some() { ANSWER_AHEAD } else { ANSWER_AHEAD_UNSAID };
    // A short deadline is not eaten up by what is kept back.
    let left = timeout.map_or(LONG_POLLING_MAX, |timeout| timeout.saturating_sub(ahead).max(timeout / 2));
    Ok(asked.unwrap_or(left).min(left).min(LONG_POLLING_MAX))
}

/// Runs one receive to its stream.
pub async fn receive(
    broker: &Arc<Broker>,
    caller: &Caller,
    request: v2::ReceiveMessageRequest,
) -> Result<BoxStream<v2::ReceiveMessageResponse>, Rejection> {
    let group_name = validate::group_of(request.group.as_ref())?;
    let topic = request.message_queue.as_ref().and_then(|queue| queue.topic.as_ref());
    let topic_name = validate::topic_of(topic)?;
    let poll = Polling::of(caller, &request)?;
    let topic = broker.topic(topic_name)?;
    let group = broker.group(group_name).await?;
    let row = broker.progress.open(&broker.store, &group, &topic).await?;
    let attempts_max = group.attempts_max();
    let deadline = Instant::now() + poll.wait;
    // Whoever leaves, with messages or without, wakes another: there may be more than this consumer takes, and when
    // the next message comes back has changed.
    let _baton = Baton(&row);
    loop {
        let arrived = row.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        // Looked at once more after the deadline: the wake-up that ended the wait may have been the only one.
        let over = Instant::now() >= deadline;
        let (taken, next_due_ms) = take(broker, &row, &poll, attempts_max);
        // Made before anything is awaited: what it holds is put back if this call is dropped.
        let batch =
            Batch::new(broker.clone(), row.clone(), read(broker, &row, &poll.wanted, taken.deliveries));
        dead_letter::bury_all(broker, &row, &taken.dead).await;
        if !batch.waiting.is_empty() {
            return Ok(Box::pin(batch));
        }
        if over {
            return Ok(no_message());
        }
        let wake =
            next_due_ms.map_or(deadline, |at_ms| deadline.min(Instant::now() + broker.clock.until(at_ms)));
        if !taken.more {
            tokio::select! {
                () = &mut arrived => {}
                () = tokio::time::sleep_until(wake) => {}
                () = broker.stopping.cancelled() => return Ok(no_message()),
            }
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// Wakes another receiver of the same group and topic when it is dropped.
struct Baton<'a>(&'a GroupTopic);

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        self.0.arrived.notify_one();
    }
}

fn take(broker: &Broker, row: &GroupTopic, poll: &Polling, attempts_max: u32) -> (Taken, Option<u64>) {
    let ask = Take {
        now_ms: broker.clock.now_ms(),
        max: poll.max,
        invisible_ms: poll.invisible_ms,
        renew_for: poll.renew_for.clone(),
        attempts_max,
        inflight_max: broker.inflight_max,
        revision_base: broker.revision_base,
    };
    let around = Around { broker, row, wanted: &poll.wanted };
    let (taken, next_due_ms, records) = {
        let mut pop = row.pop.lock();
        let taken = pop.take(&ask, &around);
        let records = [pop.passed_record(), pop.redelivered(&taken.deliveries)];
        (taken, pop.next_due_ms(), records)
    };
    records.into_iter().for_each(|record| progress::record_later(&broker.store, row, record));
    (taken, next_due_ms)
}

/// Reads the records of what was taken. What turns out not to be wanted, or to be no more, is finished; what cannot be
/// read at the moment stays invisible for its time and is reported.
fn read(
    broker: &Broker,
    row: &GroupTopic,
    wanted: &Wanted,
    deliveries: Vec<Delivery>,
) -> VecDeque<(Delivery, Record)> {
    let mut unwanted = Vec::new();
    let mut batch = VecDeque::with_capacity(deliveries.len());
    for delivery in deliveries {
        match broker.store.record(delivery.entry.physical_offset, delivery.entry.size) {
            Ok(record) if wanted.really_wants(message_of(&record), Mark(record.mark)) => {
                batch.push_back((delivery, record));
            }
            Ok(_) => unwanted.push(delivery.position),
            Err(error) if error.is_final() => {
                tracing::warn!(position = ?delivery.position, %error, "message is no more and passed over");
                unwanted.push(delivery.position);
            }
            Err(error) => tracing::error!(position = ?delivery.position, %error, "message cannot be read"),
        }
    }
    if !unwanted.is_empty() {
        let queues = {
            let mut pop = row.pop.lock();
            unwanted.iter().for_each(|&position| pop.finish(position));
            pop.done_record(&unwanted)
        };
        progress::record_later(&broker.store, row, queues);
    }
    batch
}

/// The response stream: a status, the messages, the time of delivery.
struct Batch {
    broker: Arc<Broker>,
    row: Arc<GroupTopic>,
    waiting: VecDeque<(Delivery, Record)>,
    stage: Stage,
    /// Where messages are built; one allocation serves several.
    room: BytesMut,
}

enum Stage {
    Status,
    Messages,
    End,
}

impl Batch {
    fn new(broker: Arc<Broker>, row: Arc<GroupTopic>, waiting: VecDeque<(Delivery, Record)>) -> Self {
        broker.counters.messages_out.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        Self { broker, row, waiting, stage: Stage::Status, room: BytesMut::new() }
    }

    fn message(&mut self, delivery: &Delivery, record: &Record) -> Content {
        let stored = message_of(record);
        let field = Mark(record.mark).field(stored.len());
        let handle = ReceiptHandle {
            broker: self.broker.name.clone(),
            group_id: self.row.group,
            topic_id: self.row.topic.number,
            queue_id: delivery.position.queue_id,
            queue_offset: delivery.position.offset,
            revision: delivery.revision,
            attempt: delivery.attempt,
            expires_ms: delivery.visible_at_ms,
        };
        let invisible_ms = delivery.visible_at_ms.saturating_sub(self.broker.clock.now_ms());
        let added = v2::SystemProperties {
            body_digest: Some(digest(&stored[body_of(stored, &field)])),
            store_timestamp: Some(timestamp(record.store_time_ms)),
            store_host: self.broker.store_host.clone(),
            receipt_handle: Some(handle.encode(&self.broker.token_key)),
            queue_id: delivery.position.queue_id.cast_signed(),
            queue_offset: Some(delivery.position.offset.cast_signed()),
            invisible_duration: Duration::from_millis(invisible_ms).try_into().ok(),
            delivery_attempt: Some(delivery.attempt.cast_signed()),
            ..Default::default()
        };
        Content::Message(delivered(stored, field, &added, &mut self.room))
    }
}

/// SHA-1 in upper-case hex: understood by every client, and half the work of MD5 on processors that have it in hardware.
fn digest(body: &[u8]) -> v2::Digest {
    let mut checksum = String::with_capacity(40);
    for byte in Sha1::digest(body) {
        let _ = write!(checksum, "{byte:02X}");
    }
    v2::Digest { r#type: v2::DigestType::Sha1.into(), checksum }
}

impl Stream for Batch {
    type Item = Result<v2::ReceiveMessageResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let content = match self.stage {
            Stage::Status => {
                self.stage = Stage::Messages;
                Content::Status(ok())
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
        if self.waiting.is_empty() {
            return;
        }
        let mut pop = self.row.pop.lock();
        self.waiting.iter().for_each(|(delivery, _)| pop.put_back(delivery));
        drop(pop);
        self.row.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn a_poll_ends_before_its_clients_deadline() {
        let within = |timeout, asked: Option<prost_types::Duration>| {
            wait(Some(Duration::from_secs(timeout)), asked.as_ref()).unwrap()
        };
        assert_eq!(within(40, seconds(40)), Duration::from_secs(20));
        assert_eq!(within(10, seconds(10)), Duration::from_secs(9));
        assert_eq!(within(23, seconds(5)), Duration::from_secs(5));
        assert_eq!(within(13, None), Duration::from_millis(11_500));
        assert_eq!(within(1, seconds(30)), Duration::from_millis(500));
        assert_eq!(within(3, seconds(0)), Duration::ZERO);
        assert!(wait(None, seconds(-1).as_ref()).is_err());
    }

    #[test]
    fn invisible_times_out_of_range_are_refused() {
        assert_eq!(invisible_ms(seconds(10).as_ref(), 10_000), Ok(10_000));
        for bad in [9, -1, 12 * 3600 + 1, i64::MAX] {
            assert!(invisible_ms(seconds(bad).as_ref(), 10_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_digest_is_sha1_in_upper_case() {
        assert_eq!(digest(b"abc").checksum, "A9993E364706816ABA3E25717850C26C9CD0D89D");
    }
}
