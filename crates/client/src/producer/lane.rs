//! What waits to be sent together, and the task that sends it.
//!
//! A lane holds the messages of a topic that may share a request. Any task puts messages in; the lane's own task takes
//! them out when there are enough, when the first has waited for the linger, or when somebody flushes. Messages without an
//! order share one lane whose requests overlap; those with one are spread over [`ORDERED_LANES`] by what their order is
//! kept within, and such a lane has one request per broker under way, so that none overtakes another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_timer::Delay;
use karman_remoting::proto::v2::Code;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ClientError;
use crate::message::Outgoing;
use crate::producer::{Batch, Inner, SendReceipt};

/// Lanes of a topic whose messages keep an order.
pub(super) const ORDERED_LANES: usize = 16;
/// A lane without a message ends after so long.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A message that waits, with whom to tell what became of it.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) message: Outgoing,
    pub(super) since: Instant,
    pub(super) told: oneshot::Sender<Result<SendReceipt, ClientError>>,
    /// Its part of what the producer may hold.
    pub(super) _room: OwnedSemaphorePermit,
}

/// What all lanes of a producer share.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) linger: Duration,
    /// In one request.
    pub(super) messages_max: usize,
    /// Of bodies in one request.
    pub(super) bytes_max: usize,
    /// How long a message may wait for its turn.
    pub(super) wait_max: Duration,
    /// For one request each.
    pub(super) requests: Arc<Semaphore>,
}

#[derive(Debug)]
pub(super) struct Lane {
    topic: Arc<str>,
    is_ordered: bool,
    queue: Mutex<Queue>,
    /// The lane's task has something to look at.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    pending: VecDeque<Pending>,
    /// Of their bodies.
    bytes: usize,
    /// Nobody waits for the linger until the lane is empty.
    is_flushing: bool,
    /// The lane's task is gone, or about to be: nothing is put in any more.
    is_closed: bool,
}

/// What the lane's task does next.
enum Step {
    /// Nothing is here.
    Idle,
    /// There may be more to come until then.
    LingerUntil(Instant),
    Send,
}

impl Lane {
    pub(super) fn new(topic: Arc<str>, is_ordered: bool) -> Self {
        Self { topic, is_ordered, queue: Mutex::default(), changed: Notify::new() }
    }

    /// Puts a message in; gives it back when the lane has ended.
    #[must_use]
    pub(super) fn push(&self, pending: Pending, limits: &Limits) -> Option<Pending> {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            return Some(pending);
        }
        let was_full = queue.is_full(limits);
        queue.bytes += pending.message.body_size;
        queue.pending.push_back(pending);
        let wake = queue.pending.len() == 1 || (!was_full && queue.is_full(limits));
        drop(queue);
        if wake {
            self.changed.notify_one();
        }
        None
    }

    /// Sends what is here without waiting for more.
    pub(super) fn flush(&self) {
        let mut queue = self.queue.lock();
        queue.is_flushing = !queue.pending.is_empty();
        drop(queue);
        self.changed.notify_one();
    }

    /// The lane's task: until `stop`, when it sends what is left, or until nothing has come for a minute. The lane is
    /// closed then.
    pub(super) async fn run(
        self: Arc<Self>,
        producer: Arc<Inner>,
        limits: Arc<Limits>,
        stop: CancellationToken,
    ) {
        loop {
            match self.step(&limits, stop.is_cancelled()) {
                Step::Idle => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(IDLE_MAX) => {
                            if self.close_if_empty() { return; }
                        }
                    }
                    if stop.is_cancelled() && self.close_if_empty() {
                        return;
                    }
                }
                Step::LingerUntil(end) => {
                    // tokio's own clock has ticks of a millisecond.
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = stop.cancelled() => {}
                        () = Delay::new(end.saturating_duration_since(Instant::now())) => {}
                    }
                }
                Step::Send => {
                    // The semaphore is never closed.
                    let Ok(place) = limits.requests.clone().acquire_owned().await else { return };
                    let pending = self.take(&limits);
                    let sending = send(producer.clone(), self.topic.clone(), self.is_ordered, pending);
                    if self.is_ordered {
                        sending.await;
                        drop(place);
                    } else {
                        producer.client.spawn(async move {
                            sending.await;
                            drop(place);
                        });
                    }
                }
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.lock().is_closed
    }

    fn step(&self, limits: &Limits, is_stopping: bool) -> Step {
        let queue = self.queue.lock();
        let Some(first) = queue.pending.front() else { return Step::Idle };
        if is_stopping || queue.is_flushing || queue.is_full(limits) {
            return Step::Send;
        }
        let end = first.since + limits.linger;
        if end <= Instant::now() { Step::Send } else { Step::LingerUntil(end) }
    }

    fn close_if_empty(&self) -> bool {
        let mut queue = self.queue.lock();
        queue.is_closed = queue.pending.is_empty();
        queue.is_closed
    }

    /// The messages of the next request. Those that have waited too long are told so.
    fn take(&self, limits: &Limits) -> Vec<Pending> {
        let now = Instant::now();
        let (mut taken, mut expired, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut queue = self.queue.lock();
        while taken.len() < limits.messages_max
            && let Some(next) = queue.pending.front()
        {
            let size = next.message.body_size;
            if !taken.is_empty() && bytes + size > limits.bytes_max {
                break;
            }
            let is_late = now.duration_since(next.since) > limits.wait_max;
            let next = queue.pending.pop_front().expect("it was just looked at");
            queue.bytes -= size;
            if is_late {
                expired.push(next);
            } else {
                bytes += size;
                taken.push(next);
            }
        }
        queue.is_flushing &= !queue.pending.is_empty();
        drop(queue);
        tell_all(expired, &ClientError::Expired { waited: limits.wait_max });
        taken
    }
}

impl Queue {
    fn is_full(&self, limits: &Limits) -> bool {
        self.pending.len() >= limits.messages_max || self.bytes >= limits.bytes_max
    }
}

/// Sends what was taken from a lane and tells everybody what became of it.
async fn send(producer: Arc<Inner>, topic: Arc<str>, is_ordered: bool, pending: Vec<Pending>) {
    if pending.is_empty() {
        return;
    }
    if !is_ordered {
        return send_part(&producer, &topic, pending).await;
    }
    // What a request holds must have one home.
    let route = match producer.session.routes.get(&topic).await {
        Ok(route) => route,
        Err(error) => return tell_all(pending, &error),
    };
    let mut parts: Vec<(&str, Vec<Pending>)> = Vec::new();
    for one in pending {
        let key = one.message.order_key.as_deref().unwrap_or_default();
        let home = route.home(key, &[]).map_or("", |broker| broker.name.as_str());
        match parts.iter_mut().find(|(name, _)| *name == home) {
            Some((_, part)) => part.push(one),
            None => parts.push((home, vec![one])),
        }
    }
    let parts = parts.into_iter().map(|(_, part)| send_part(&producer, &topic, part));
    futures_util::future::join_all(parts).await;
}

/// Sends messages that may share a request. A server refuses a request as a whole: when it is for one of the messages,
/// each half is sent for itself, until those that are refused are alone.
async fn send_part(producer: &Inner, topic: &Arc<str>, pending: Vec<Pending>) {
    let mut parts = vec![pending];
    while let Some(part) = parts.pop() {
        let (messages, others): (Vec<_>, Vec<_>) = part
            .into_iter()
            .map(|Pending { message, since, told, _room }| (message, (since, told, _room)))
            .unzip();
        let batch = Batch { topic: topic.clone(), in_transaction: false, messages };
        let result = producer.deliver(&batch).await;
        match result {
            Ok(stored) => {
                for ((_, told, _), result) in others.into_iter().zip(stored) {
                    // Whoever does not listen any more has lost its interest.
                    let _ = told.send(result.map(|stored| stored.receipt));
                }
            }
            Err(error) => {
                let mut part: Vec<Pending> = batch
                    .messages
                    .into_iter()
                    .zip(others)
                    .map(|(message, (since, told, _room))| Pending { message, since, told, _room })
                    .collect();
                if part.len() > 1 && error.code().is_some_and(is_of_one_message) {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                } else {
                    tell_all(part, &error);
                }
            }
        }
    }
}

fn tell_all(pending: Vec<Pending>, error: &ClientError) {
    for one in pending {
        let _ = one.told.send(Err(error.clone()));
    }
}

/// Whether a refusal is for one message of the request and the others may be taken.
fn is_of_one_message(code: Code) -> bool {
    matches!(
        code,
        Code::IllegalMessageTag
            | Code::IllegalMessageKey
            | Code::IllegalMessageGroup
            | Code::IllegalMessagePropertyKey
            | Code::IllegalMessageId
            | Code::IllegalDeliveryTime
            | Code::IllegalLiteTopic
            | Code::InvalidTransactionId
            | Code::MessagePropertyConflictWithType
            | Code::MessageCorrupted
            | Code::MessageBodyEmpty
            | Code::MessageBodyTooLarge
            | Code::MessagePropertiesTooLarge
            | Code::LiteTopicQuotaExceeded
    )
}
