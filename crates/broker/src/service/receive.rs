//! ReceiveMessage: take what is there, or wait for it; then stream it as stored, completed with the broker's fields.
//!
//! A wait is registered before the queues are looked at, so no message is missed, and ends by an arrival, by a message
//! whose time has come again, by the end of the polling time or by the end of the broker. Whatever has been taken and
//! does not leave with the stream is put back when the stream is dropped.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use karman_remoting::line::Line;
use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::proto::v2::{self, MessageType};
use karman_remoting::settings::{LONG_POLLING_MAX, RECEIVE_BATCH_SIZE_MAX};
use karman_remoting::status::Rejection;
use karman_remoting::validate;
use karman_store::{Entry, Gathered, QueueOffset, ReadError, Record, key_hash};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::pop::take::UNREADABLE_MS;
use crate::pop::{Delivery, NoEntries, Position, Renewal, Surroundings, Take};
use crate::progress::GroupTopic;
use crate::records::GroupRecord;
use crate::service::delivery::Batch;
use crate::service::{dead_letter, lite, lite_receive};
use crate::ttl;
use crate::wanted::Wanted;

/// `invisibleTimeMills` of a client that lets the broker renew it, or does not say.
const INVISIBLE_DEFAULT_MS: u64 = 60_000;
const INVISIBLE_MIN_MS: i64 = 10_000;
/// Longest invisible time a client may ask for.
pub const INVISIBLE_MAX_MS: i64 = 12 * 3_600_000;
/// An answer must arrive before the client gives up, or it counts as an error there.
const ANSWER_AHEAD: Duration = Duration::from_secs(1);
/// Kept back from the deadline of a client that does not say how long to poll.
const ANSWER_AHEAD_UNSAID: Duration = Duration::from_millis(1500);

/// A master without a lease looks again after this.
pub const NO_LEASE_MS: u64 = 100;

pub(super) const NO_MESSAGE: &str = "no new message";
pub(super) const SUSPENDED: &str = "the group is suspended: karman group resume lets it go on";

/// A whole stream that says why there is no message.
pub fn nothing(rejection: Rejection) -> BoxStream<v2::ReceiveMessageResponse> {
    Box::pin(tokio_stream::once(frame(Content::Status(rejection.into()))))
}

/// Also the answer of an empty long poll: C++ takes OK without messages for an error.
pub(super) fn no_message(why: &str) -> BoxStream<v2::ReceiveMessageResponse> {
    Box::pin(tokio_stream::once(says_nothing_is_there(why)))
}

pub(super) fn says_nothing_is_there(why: &str) -> Result<v2::ReceiveMessageResponse, Status> {
    let status = v2::Status { code: v2::Code::MessageNotFound.into(), message: why.to_owned() };
    frame(Content::Status(status))
}

#[expect(clippy::unnecessary_wraps, reason = "an item of a response stream is a Result")]
pub(super) fn frame(content: Content) -> Result<v2::ReceiveMessageResponse, Status> {
    Ok(v2::ReceiveMessageResponse { content: Some(content) })
}

struct Around<'a> {
    broker: &'a Broker,
    row: &'a GroupTopic,
    wanted: &'a Wanted,
    /// One word for all that cannot be read.
    reported: Cell<bool>,
}

impl Surroundings for Around<'_> {
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), NoEntries> {
        let Some(queue) = self.row.topic.queue(queue_id) else { return Ok(()) };
        match self.broker.store.entries(queue, from, max, out) {
            Ok(()) => Ok(()),
            Err(ReadError::BelowMinimum { minimum, .. }) => Err(NoEntries::Gone { minimum }),
            Err(error) => {
                if !self.reported.replace(true) {
                    tracing::warn!(?queue, ?from, %error, "index cannot be read");
                }
                Err(NoEntries::Unreadable)
            }
        }
    }

    fn wants(&self, entry: &Entry) -> bool {
        if !self.wanted.needs_message() {
            return self.wanted.may_want(entry);
        }
        // What cannot be read is dealt with where it is read to be sent.
        let record = self.broker.store.record(entry.physical_offset, entry.size);
        record.map_or(true, |record| self.broker.wants(self.wanted, &record))
    }

    fn is_alive(&self, client_id: &str) -> bool {
        self.broker.clients.is_alive(client_id)
    }
}

/// A checked request.
#[derive(Debug)]
pub struct Polling {
    pub(super) wanted: Wanted,
    pub(super) max: usize,
    pub(super) invisible_ms: u64,
    pub(super) renew_for: Option<(Arc<str>, Line)>,
    pub(super) wait: Duration,
    pub(super) attempt_key: Option<u64>,
}

impl Polling {
    fn of(
        broker: &Broker,
        caller: &Caller,
        line: Line,
        request: &v2::ReceiveMessageRequest,
    ) -> Result<Self, Rejection> {
        let max = usize::try_from(request.batch_size).ok().filter(|&size| size > 0);
        let (invisible_ms, renew_for) = if request.auto_renew {
            (INVISIBLE_DEFAULT_MS, Some((caller.client_id.as_str().into(), line)))
        } else {
            (invisible_ms(request.invisible_duration.as_ref(), INVISIBLE_MIN_MS)?, None)
        };
        Ok(Self {
            wanted: Wanted::of(request.filter_expression.as_ref(), &broker.filters)?,
            max: max.unwrap_or(RECEIVE_BATCH_SIZE_MAX).min(RECEIVE_BATCH_SIZE_MAX),
            invisible_ms,
            renew_for,
            wait: wait(caller.timeout, request.long_polling_timeout.as_ref())?,
            attempt_key: request.attempt_id.as_deref().filter(|id| !id.is_empty()).map(|id| {
                // The same word of another client is another attempt.
                key_hash(0, format!("{}\n{id}", caller.client_id).as_bytes())
            }),
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
pub(super) fn wait(
    timeout: Option<Duration>,
    asked: Option<&prost_types::Duration>,
) -> Result<Duration, Rejection> {
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

/// Runs one receive to its stream, which goes out on `line`.
pub async fn receive(
    broker: &Arc<Broker>,
    caller: &Caller,
    line: Line,
    request: v2::ReceiveMessageRequest,
) -> Result<BoxStream<v2::ReceiveMessageResponse>, Rejection> {
    let group_name = validate::group_of(request.group.as_ref())?;
    let topic = request.message_queue.as_ref().and_then(|queue| queue.topic.as_ref());
    let topic_name = validate::topic_of(topic)?;
    let poll = Polling::of(broker, caller, line, &request)?;
    let topic = broker.topic(topic_name)?;
    if topic.is_lite() {
        return lite_receive::receive(broker, caller, poll, &topic, group_name).await;
    }
    let mut group = broker.group(group_name).await?;
    lite::refuse_bound(&group)?;
    let client = group.config.broadcast.then_some(caller.client_id.as_str());
    let row = broker.progress_of(&group, &topic, client).await?;
    row.seen(broker.clock.now_ms());
    // Each receive goes by its own filter; that the members do not agree is said to each of them.
    let contradiction = broker.clients.contradicts(group_name, topic_name, &caller.client_id);
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
        // Settings may have changed while this call waited.
        let unknown = || Rejection::GroupNotFound { group: group_name.to_owned() };
        group = broker.catalog.group_numbered(group.number).ok_or_else(unknown)?;
        let round = if group.config.suspended {
            Round::default()
        } else if !broker.store.may_answer() {
            // Another master may have given these messages, and been told that they are done.
            Round { next_due_ms: Some(broker.clock.now_ms() + NO_LEASE_MS), ..Round::default() }
        } else {
            take(broker, &row, &poll, &group)
        };
        if !round.dead.is_empty() {
            // That takes as long as replicas do. Nobody waits for it: the invisible time of what was taken beside them runs.
            let (broker, row, dead) = (broker.clone(), row.clone(), round.dead);
            tokio::spawn(async move { dead_letter::bury_all(&broker, &row, &dead).await });
        }
        if !round.messages.is_empty() {
            return Ok(Box::pin(Batch::new(broker.clone(), row.clone(), round.messages, contradiction)));
        }
        if over {
            let why = if group.config.suspended { SUSPENDED } else { NO_MESSAGE };
            return Ok(no_message(contradiction.as_deref().unwrap_or(why)));
        }
        if round.again {
            tokio::task::yield_now().await;
            continue;
        }
        let until = |at_ms| deadline.min(Instant::now() + broker.clock.until(at_ms));
        tokio::select! {
            () = Gathered::new(&mut arrived) => {}
            () = tokio::time::sleep_until(round.next_due_ms.map_or(deadline, until)) => {}
            () = broker.stopping.cancelled() => return Ok(no_message(NO_MESSAGE)),
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

/// What one look at the queues has given.
#[derive(Default)]
struct Round {
    messages: VecDeque<(Delivery, Record)>,
    dead: Vec<Position>,
    /// There may be more at once.
    again: bool,
    next_due_ms: Option<u64>,
}

fn take(broker: &Broker, row: &GroupTopic, poll: &Polling, group: &GroupRecord) -> Round {
    let orderly = group.is_orderly(&row.topic);
    let now_ms = broker.clock.now_ms();
    let ask = Take {
        now_ms,
        max: poll.max,
        invisible_ms: poll.invisible_ms,
        renewal: poll.renew_for.clone().map(|(client, line)| Renewal::of(client, line, now_ms)),
        attempts_max: group.attempts_max(),
        inflight_max: broker.inflight_max,
        revision_base: broker.revision_base,
        scan_max: poll.wanted.scan_max(),
        orderly,
        last_queue_first: row.topic.message_type() == MessageType::Priority,
        attempt_key: poll.attempt_key.filter(|_| orderly),
    };
    let around = Around { broker, row, wanted: &poll.wanted, reported: Cell::new(false) };
    let (taken, next_due_ms) = row.commit_later(&broker.store, |pop| {
        let taken = pop.take(&ask, &around);
        let mut queues = pop.passed_record();
        queues.extend(pop.redelivered(&taken.deliveries));
        ((taken, pop.next_due_ms()), queues)
    });
    let some = !taken.deliveries.is_empty();
    let messages = read(broker, row, &poll.wanted, taken.deliveries);
    // When none of them was wanted after all, others behind them may be.
    let again = taken.more || some && messages.is_empty();
    let again_ms = taken.unreadable.then_some(now_ms + UNREADABLE_MS);
    Round { messages, dead: taken.dead, again, next_due_ms: again_ms.into_iter().chain(next_due_ms).min() }
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
        let position = delivery.position;
        match fetch(broker, &row.topic, delivery) {
            // A filter over messages has been asked already.
            Fetched::Found(found) if wanted.needs_message() || broker.wants(wanted, &found.1) => {
                batch.push_back(*found);
            }
            Fetched::Found(_) | Fetched::Gone => unwanted.push(position),
            Fetched::Unreadable => {}
        }
    }
    if !unwanted.is_empty() {
        row.commit_later(&broker.store, |pop| {
            for &position in &unwanted {
                pop.finish(position);
            }
            ((), pop.done_record(&unwanted))
        });
    }
    batch
}

/// What became of the record of a delivery.
pub(super) enum Fetched {
    Found(Box<(Delivery, Record)>),
    /// It is no more, or not worth being delivered any more.
    Gone,
    /// It cannot be read at the moment, which has been reported.
    Unreadable,
}

/// Reads the record of a delivery.
pub(super) fn fetch(broker: &Broker, topic: &Topic, delivery: Delivery) -> Fetched {
    match broker.store.record(delivery.entry.physical_offset, delivery.entry.size) {
        Ok(record) if ttl::has_expired(&record, topic.ttl_ms(), &broker.clock) => {
            broker.counters.expired.fetch_add(1, Ordering::Relaxed);
            Fetched::Gone
        }
        Ok(record) => Fetched::Found(Box::new((delivery, record))),
        Err(error) if error.is_final() => {
            tracing::warn!(position = ?delivery.position, %error, "message is no more and passed over");
            Fetched::Gone
        }
        Err(error) => {
            tracing::error!(position = ?delivery.position, %error, "message cannot be read");
            Fetched::Unreadable
        }
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
}
