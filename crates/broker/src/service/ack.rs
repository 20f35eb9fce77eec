//! AckMessage, ChangeInvisibleDuration, ForwardMessageToDeadLetterQueue and the end of a client: all that a consumer
//! says about messages it holds.
//!
//! A handle is checked against its signature, the group and topic of the call, and the live state. What is answered OK
//! has been recorded and survives the end of this process. A hopeless handle gets INVALID_RECEIPT_HANDLE and nothing
//! else: push consumers retry any other code for ever.

use std::sync::Arc;

use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2;
use karman_remoting::status::{Rejection, ok, summary};
use karman_remoting::token::ReceiptHandle;
use karman_remoting::validate;

use karman_store::Durability;
use tokio::sync::Notify;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::lite::LiteGroup;
use crate::pop::{Held, Pop, Position, Void};
use crate::progress::GroupTopic;
use crate::records::{Later, QueueProgress};
use crate::service::{dead_letter, receive};

/// What a client held becomes visible to others this long after it said goodbye: its last acks may be on their way.
const RELEASE_AFTER_MS: u64 = 1000;

/// A group on the topic of a call.
enum Reader {
    Queues(Arc<GroupTopic>),
    Lite(Arc<LiteGroup>),
}

impl Broker {
    /// Acknowledges each entry by itself. Also a refusal of them all is said for each.
    pub async fn ack(
        &self,
        caller: &Caller,
        request: v2::AckMessageRequest,
    ) -> Result<v2::AckMessageResponse, Rejection> {
        let results = match self.finish_and_record(caller, &request).await {
            Ok(results) => results,
            Err(rejection) => vec![Err(rejection); request.entries.len()],
        };
        let entries: Vec<v2::AckMessageResultEntry> = request
            .entries
            .into_iter()
            .zip(results)
            .map(|(entry, result)| v2::AckMessageResultEntry {
                message_id: entry.message_id,
                receipt_handle: entry.receipt_handle,
                status: Some(result.map_or_else(Into::into, |_| ok())),
            })
            .collect();
        let status = summary(entries.iter().filter_map(|entry| entry.status.as_ref()));
        Ok(v2::AckMessageResponse { status: Some(status), entries })
    }

    async fn finish_and_record(
        &self,
        caller: &Caller,
        request: &v2::AckMessageRequest,
    ) -> Result<Vec<Result<Position, Rejection>>, Rejection> {
        let row = match self.reader_of(caller, request.group.as_ref(), request.topic.as_ref())? {
            Reader::Lite(row) => return self.finish_lite(&row, &request.entries).await,
            Reader::Queues(row) => row,
        };
        // Before the lock: each is a signature to verify.
        let held = |entry: &v2::AckMessageEntry| self.held(row.group, &row.topic, &entry.receipt_handle);
        let held: Vec<Result<Held, Rejection>> = request.entries.iter().map(held).collect();
        row.commit(&self.store, self.progress_durability(&row.topic), |pop| {
            self.finish(pop, &row.arrived, held)
        })
        .await
    }

    /// Finishes what the handles speak for; the result of each, and the record of all.
    fn finish(
        &self,
        pop: &mut Pop,
        arrived: &Notify,
        held: Vec<Result<Held, Rejection>>,
    ) -> (Vec<Result<Position, Rejection>>, Vec<QueueProgress>) {
        let now_ms = self.clock.now_ms();
        let mut wake = pop.is_full(self.inflight_max);
        let mut finish = |held: Result<Held, Rejection>| {
            let held = held?;
            match pop.check(now_ms, &held, &|client| self.clients.is_alive(client)) {
                Ok(()) => wake |= pop.finish(held.position),
                // Said twice is said: the answer to the first may have been lost.
                Err(Void::Done) => {}
                Err(void) => return Err(refused(void)),
            }
            Ok(held.position)
        };
        let results: Vec<Result<Position, Rejection>> = held.into_iter().map(&mut finish).collect();
        let done: Vec<Position> = results.iter().flatten().copied().collect();
        let queues = pop.done_record(&done);
        if wake {
            arrived.notify_one();
        }
        (results, queues)
    }

    /// Sets when a held message becomes visible again; 0 gives it back at once. The old handle is void from now on.
    pub async fn change_invisible_duration(
        &self,
        caller: &Caller,
        request: v2::ChangeInvisibleDurationRequest,
    ) -> Result<v2::ChangeInvisibleDurationResponse, Rejection> {
        let invisible_ms = receive::invisible_ms(request.invisible_duration.as_ref(), 0)?;
        let row = match self.reader_of(caller, request.group.as_ref(), request.topic.as_ref())? {
            Reader::Lite(row) => return self.change_lite(&row, &request, invisible_ms).await,
            Reader::Queues(row) => row,
        };
        let held = self.held(row.group, &row.topic, &request.receipt_handle)?;
        let visible_at_ms = self.clock.now_ms() + invisible_ms;
        let later = Later { offset: held.position.offset, visible_at_ms, attempt: held.attempt };
        let changed = row.commit(&self.store, self.progress_durability(&row.topic), |pop| {
            let alive = |client: &str| self.clients.is_alive(client);
            if let Err(void) = pop.check(self.clock.now_ms(), &held, &alive) {
                return (Err(refused(void)), Vec::new());
            }
            let revision = pop.change(&held, visible_at_ms);
            row.arrived.notify_one();
            (Ok(revision), pop.later_record(held.position.queue_id, later))
        });
        let revision = changed.await??;
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
    pub async fn forward_to_dead_letters(
        &self,
        caller: &Caller,
        request: v2::ForwardMessageToDeadLetterQueueRequest,
    ) -> Result<v2::ForwardMessageToDeadLetterQueueResponse, Rejection> {
        let row = match self.reader_of(caller, request.group.as_ref(), request.topic.as_ref())? {
            Reader::Lite(row) => return self.forward_lite(caller, &row, &request).await,
            Reader::Queues(row) => row,
        };
        let held = self.held(row.group, &row.topic, &request.receipt_handle)?;
        let alive = |client: &str| self.clients.is_alive(client);
        let now_ms = self.clock.now_ms();
        let begun = row.run(|pop| {
            pop.check(now_ms, &held, &alive)?;
            Ok(pop.begin_burial(&held, now_ms))
        });
        match begun {
            Ok(_) if row.client.is_some() => dead_letter::give_up(self, &row, held.position),
            Ok(burial) => {
                let reason = dead_letter::Reason::GivenUpBy(&caller.client_id);
                let buried = dead_letter::bury(self, &row, held.position, reason).await;
                if let (Err(_), Some(burial)) = (&buried, burial) {
                    row.run(|pop| pop.undo_burial(held.position, burial));
                }
                buried?;
            }
            Err(Void::Done) => {}
            Err(void) => return Err(refused(void)),
        }
        Ok(v2::ForwardMessageToDeadLetterQueueResponse { status: Some(ok()) })
    }

    /// A client stops: what is renewed for it is given to others.
    #[expect(clippy::unnecessary_wraps, reason = "the shape of every call")]
    pub fn client_terminated(
        &self,
        caller: &Caller,
        request: v2::NotifyClientTerminationRequest,
    ) -> Result<v2::NotifyClientTerminationResponse, Rejection> {
        self.clients.terminated(&caller.client_id);
        let group = request.group.and_then(|group| self.catalog.group(&group.name));
        if let Some(group) = group {
            let visible_at_ms = self.clock.now_ms() + RELEASE_AFTER_MS;
            let mut rows = self.progress.of_group(group.number);
            rows.retain(|row| row.client.as_deref().is_none_or(|own| *own == caller.client_id));
            for row in rows {
                row.run(|pop| pop.release(&caller.client_id, visible_at_ms));
                row.arrived.notify_one();
            }
            for row in self.lite.of_group(group.number) {
                row.run(|pop| {
                    pop.subscriptions.drop_client(&caller.client_id);
                    pop.release(&caller.client_id, visible_at_ms);
                });
            }
        }
        Ok(v2::NotifyClientTerminationResponse { status: Some(ok()) })
    }

    /// The group and topic that a call about handles names.
    fn reader_of(
        &self,
        caller: &Caller,
        group: Option<&v2::Resource>,
        topic: Option<&v2::Resource>,
    ) -> Result<Reader, Rejection> {
        let (group, topic) = (validate::group_of(group)?, validate::topic_of(topic)?);
        let topic = self.catalog.topic(topic);
        let topic = topic.ok_or(Rejection::InvalidReceiptHandle { why: "its topic does not exist" })?;
        let reader = self.catalog.group(group).and_then(|group| {
            if topic.is_lite() {
                return self.lite.get(group.number, topic.number).map(Reader::Lite);
            }
            let client = group.config.broadcast.then_some(caller.client_id.as_str());
            self.progress.get(group.number, topic.number, client).map(Reader::Queues)
        });
        // Without having received, a group has no handle that could be good.
        reader.ok_or(Rejection::InvalidReceiptHandle { why: "this group has not received from this topic" })
    }

    /// Reads a handle, and checks that it belongs to the call.
    pub(super) fn held(&self, group: u32, topic: &Topic, handle: &str) -> Result<Held, Rejection> {
        let invalid = |why| Rejection::InvalidReceiptHandle { why };
        let handle = ReceiptHandle::decode_verified(&self.token_key, handle)
            .map_err(|_| invalid("it was not made by this broker"))?;
        if handle.broker != self.name {
            return Err(invalid("it was not made by this broker"));
        }
        if handle.group_id != group || handle.topic_id != topic.number {
            return Err(invalid("it belongs to another group or topic"));
        }
        let memory = self.durability_of(topic) == Durability::Memory;
        let queue = self.queue_in(topic, handle.queue_id);
        let end = queue.map_or(0, |queue| self.store.queue_range(queue).end);
        // A loss of power may have taken the message, and another may lie in its place.
        if handle.queue_offset >= end || (memory && handle.revision <= self.revision_base) {
            return Err(invalid("its message was lost with the power, or is delivered anew"));
        }
        Ok(Held {
            position: Position { queue_id: handle.queue_id, offset: handle.queue_offset },
            revision: handle.revision,
            attempt: handle.attempt,
            expires_ms: handle.expires_ms,
        })
    }
}

pub(super) fn refused(void: Void) -> Rejection {
    let why = match void {
        Void::Expired => "its invisible time has ended",
        Void::Superseded => "a newer handle of the message exists",
        Void::Done => "its message is acknowledged",
    };
    Rejection::InvalidReceiptHandle { why }
}
