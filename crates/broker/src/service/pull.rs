//! PullMessage, UpdateOffset and GetOffset: consumers that own queues and keep their place themselves.
//!
//! Pulling changes nothing: it reads a queue from an offset on. A stored offset is the group's progress on that queue, the
//! same that receiving consumers move by their acknowledgements.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::pull_message_response::Content;
use karman_remoting::settings::RECEIVE_BATCH_SIZE_MAX;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{Durability, QueueNumber, QueueOffset, ReadError, Record};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::progress;
use crate::refuse;
use crate::service::{delivery, query, receive};
use crate::ttl;
use crate::wanted::Wanted;

/// Bodies of one answer, unless the first message alone has more.
const ANSWER_MAX_BYTES: usize = 4 << 20;

/// Entries read from the index at once.
const SCAN_STEP: usize = 64;

/// What a pull has come to.
struct Pulled {
    records: Vec<Record>,
    /// In the log.
    bytes: u64,
    /// Everything in front of it was given, or is not wanted.
    next: u64,
    /// There may be more.
    more: bool,
}

/// A whole stream that says why there is no message; `next` is where the client may go on.
pub fn nothing(rejection: Rejection) -> BoxStream<v2::PullMessageResponse> {
    // Who asks for what is gone, or is not there yet, is told where the queue is.
    let next = match rejection {
        Rejection::IllegalOffset { offset, min, max } => {
            Some((offset.max(0).cast_unsigned()).clamp(min, max))
        }
        _ => None,
    };
    stream(rejection.into(), Vec::new(), next)
}

fn stream(
    status: v2::Status,
    messages: Vec<Content>,
    next: Option<u64>,
) -> BoxStream<v2::PullMessageResponse> {
    let next = next.map(|next| Content::NextOffset(next.cast_signed()));
    let contents = std::iter::once(Content::Status(status)).chain(messages).chain(next);
    let frames: Vec<Result<_, Status>> =
        contents.map(|content| Ok(v2::PullMessageResponse { content: Some(content) })).collect();
    Box::pin(tokio_stream::iter(frames))
}

/// Runs one pull to its stream: what is there, or what comes within the polling time.
pub async fn pull(
    broker: &Arc<Broker>,
    caller: &Caller,
    request: v2::PullMessageRequest,
) -> Result<BoxStream<v2::PullMessageResponse>, Rejection> {
    validate::group_of(request.group.as_ref())?;
    let (topic, queue_id, queue) = broker.queue_of(request.message_queue.as_ref())?;
    let wanted = Wanted::of(request.filter_expression.as_ref(), &broker.filters)?;
    let max = usize::try_from(request.batch_size).ok().filter(|&size| size > 0);
    let max = max.unwrap_or(RECEIVE_BATCH_SIZE_MAX).min(RECEIVE_BATCH_SIZE_MAX);
    let deadline = Instant::now() + receive::wait(caller.timeout, request.long_polling_timeout.as_ref())?;
    let mut from = broker.checked_offset(queue, request.offset)?;
    loop {
        // Registered before the queue is looked at, so that no message is missed.
        let arrival = topic.arrival();
        tokio::pin!(arrival);
        arrival.as_mut().enable();
        let pulled = read(broker, &topic, queue, from, max, &wanted)?;
        from = pulled.next;
        if !pulled.records.is_empty() {
            broker.counters.messages_out.fetch_add(pulled.records.len() as u64, Ordering::Relaxed);
            topic.pulled.add(pulled.records.len() as u64, pulled.bytes);
            let mut room = BytesMut::new();
            let added = || v2::SystemProperties {
                queue_id: queue_id.cast_signed(),
                delivery_attempt: Some(1),
                ..Default::default()
            };
            let message = |record| Content::Message(delivery::message(broker, record, added(), &mut room));
            let messages = pulled.records.iter().map(message).collect();
            return Ok(stream(ok(), messages, Some(from)));
        }
        if pulled.more {
            // The client goes on from where this call has come to.
            if Instant::now() >= deadline || broker.stopping.is_cancelled() {
                break;
            }
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = &mut arrival => {}
            () = tokio::time::sleep_until(deadline) => break,
            () = broker.stopping.cancelled() => break,
        }
    }
    let status = v2::Status { code: v2::Code::MessageNotFound.into(), message: "no new message".to_owned() };
    Ok(stream(status, Vec::new(), Some(from)))
}

fn read(
    broker: &Broker,
    topic: &Topic,
    queue: QueueNumber,
    from: u64,
    max: usize,
    wanted: &Wanted,
) -> Result<Pulled, Rejection> {
    let mut pulled = Pulled { records: Vec::new(), bytes: 0, next: from, more: true };
    let (end, mut bytes) = (from + wanted.scan_max() as u64, 0);
    let mut entries = Vec::with_capacity(SCAN_STEP);
    while pulled.next < end {
        entries.clear();
        let step = SCAN_STEP.min((end - pulled.next) as usize);
        match broker.store.entries(queue, QueueOffset(pulled.next), step, &mut entries) {
            Ok(()) => {}
            Err(ReadError::BelowMinimum { minimum, .. }) => {
                // Deleted since it was checked: what there is begins there.
                return Ok(Pulled { next: minimum, ..pulled });
            }
            Err(error) => return Err(refuse::read(&error)),
        }
        if entries.is_empty() {
            pulled.more = false;
            break;
        }
        for entry in &entries {
            if pulled.records.len() == max || bytes >= ANSWER_MAX_BYTES {
                return Ok(pulled);
            }
            if entry.size > 0 && wanted.may_want(entry) {
                match broker.store.record(entry.physical_offset, entry.size) {
                    Ok(record) if ttl::has_expired(&record, topic.ttl_ms(), &broker.clock) => {}
                    Ok(record) if broker.wants(wanted, &record) => {
                        bytes += record.payload.len();
                        pulled.bytes += u64::from(entry.size);
                        pulled.records.push(record);
                    }
                    Ok(_) => {}
                    Err(error) if error.is_final() => {
                        tracing::warn!(?queue, offset = pulled.next, %error, "message is no more and passed over");
                    }
                    Err(error) => return Err(refuse::read(&error)),
                }
            }
            pulled.next += 1;
        }
    }
    Ok(pulled)
}

impl Broker {
    /// The topic, and the queue of it, that a request names.
    fn queue_of(
        &self,
        queue: Option<&v2::MessageQueue>,
    ) -> Result<(Arc<Topic>, u32, QueueNumber), Rejection> {
        let topic = self.topic(validate::topic_of(queue.and_then(|queue| queue.topic.as_ref()))?)?;
        let id = queue.map_or(0, |queue| queue.id);
        let found = u32::try_from(id).ok().and_then(|id| Some((id, topic.queue(id)?)));
        let (queue_id, number) = found.ok_or_else(|| query::no_queue(&topic, id.into()))?;
        Ok((topic, queue_id, number))
    }

    /// An offset that the queue has, or the one behind its end.
    fn checked_offset(&self, queue: QueueNumber, offset: i64) -> Result<u64, Rejection> {
        let range = self.store.queue_range(queue);
        let within = u64::try_from(offset).ok().filter(|at| (range.start..=range.end).contains(at));
        within.ok_or(Rejection::IllegalOffset { offset, min: range.start, max: range.end })
    }

    /// Sets how far a group is with a queue; also backwards.
    pub async fn update_offset(
        &self,
        caller: &Caller,
        request: v2::UpdateOffsetRequest,
    ) -> Result<v2::UpdateOffsetResponse, Rejection> {
        let name = validate::group_of(request.group.as_ref())?;
        let (topic, queue_id, queue) = self.queue_of(request.message_queue.as_ref())?;
        let offset = self.checked_offset(queue, request.offset)?;
        let group = self.group(name).await?;
        let client = group.config.broadcast.then_some(caller.client_id.as_str());
        let row = self.progress_of(&group, &topic, client).await?;
        let durability = self.progress_durability(&row.topic);
        progress::reset(&self.store, durability, &row, &[(queue_id, offset)], self.revision_base).await?;
        Ok(v2::UpdateOffsetResponse { status: Some(ok()) })
    }

    /// How far a group is with a queue: everything in front of the offset is done.
    pub async fn get_offset(
        &self,
        caller: &Caller,
        request: v2::GetOffsetRequest,
    ) -> Result<v2::GetOffsetResponse, Rejection> {
        let name = validate::group_of(request.group.as_ref())?;
        let (topic, queue_id, _) = self.queue_of(request.message_queue.as_ref())?;
        let row = self.catalog.group(name).and_then(|group| {
            let client = group.config.broadcast.then_some(caller.client_id.as_str());
            self.progress.get(group.number, topic.number, client)
        });
        let has_replicas =
            self.durability >= Durability::Replicated && self.followers.check(self.durability).is_ok();
        let state = match row {
            // What is acknowledged shows in the core before it is in the log of another; the next master may not have it.
            Some(row) if has_replicas => {
                let settled = row.settled(&self.store, self.durability, queue_id);
                let in_time = tokio::time::timeout(self.timeout_of(self.durability), settled).await;
                in_time.unwrap_or_else(|_| Err(self.timed_out(self.durability)))?
            }
            Some(row) => row.run(|pop| pop.queue_state(queue_id)),
            None => None,
        };
        if !self.store.may_answer() {
            // Another master may be further, or have never heard of the last acknowledgements.
            let why = "has no lease as the master of its set at the moment: ask again".to_owned();
            return Err(Rejection::PeerUnavailable { broker: self.name.to_string(), why });
        }
        let state = state.ok_or_else(|| Rejection::OffsetNotFound {
            group: name.to_owned(),
            topic: topic.name().to_owned(),
            queue_id,
        })?;
        Ok(v2::GetOffsetResponse { status: Some(ok()), offset: state.floor.cast_signed() })
    }
}
