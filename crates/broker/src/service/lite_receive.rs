//! ReceiveMessage of a lite consumer: what is there in the lite topics that this client subscribed to, one message of each
//! at most, or what comes within the polling time.
//!
//! As with other receives the wait is registered before anything is looked at, and what does not leave with the stream is
//! put back. What is taken is only a place; the record is read behind the lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2;
use karman_remoting::status::Rejection;
use karman_store::{Gathered, QueueNumber, QueueOffset, ReadError, Record};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::codegen::BoxStream;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::lite::LiteGroup;
use crate::lite::pop::{Ask, Handed};
use crate::pop::{Delivery, Renewal};
use crate::records::GroupRecord;
use crate::service::delivery::{Batch, Holder};
use crate::service::receive::{self, Fetched, Polling};
use crate::traffic::Delivered;

impl Holder for LiteGroup {
    fn parts(&self) -> (u32, &Topic, &Delivered) {
        (self.group, &self.topic, &self.delivered)
    }

    fn put_back(&self, undelivered: &VecDeque<(Delivery, Record)>) {
        self.run(|pop| {
            undelivered.iter().for_each(|(delivery, _)| pop.put_back(delivery.position, delivery.revision));
        });
    }
}

/// Runs one receive to its stream.
pub async fn receive(
    broker: &Arc<Broker>,
    caller: &Caller,
    poll: Polling,
    topic: &Arc<Topic>,
    group_name: &str,
) -> Result<BoxStream<v2::ReceiveMessageResponse>, Rejection> {
    let mut group = broker.lite_group(group_name, topic).await?;
    let row = broker.lite.open(group.number, topic);
    let client: Arc<str> = caller.client_id.as_str().into();
    let deadline = Instant::now() + poll.wait;
    // Whoever leaves, with messages or without, wakes another call of the same client.
    let mut baton = Baton(None);
    loop {
        // Asked for each time: a client that was forgotten meanwhile is another one.
        let wake = row.run(|pop| {
            let subscriber = pop.subscriptions.subscriber(&client, broker.clock.now_ms())?;
            Some(subscriber.arrived())
        });
        let wake = wake.ok_or_else(|| {
            Rejection::TooManyRequests(format!("group {group_name:?} has too many clients"))
        })?;
        baton.0 = Some(wake.clone());
        let arrived = wake.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        // Looked at once more after the deadline: the wake-up that ended the wait may have been the only one.
        let over = Instant::now() >= deadline;
        // Settings may have changed while this call waited.
        let unknown = || Rejection::GroupNotFound { group: group_name.to_owned() };
        group = broker.catalog.group_numbered(group.number).ok_or_else(unknown)?;
        let suspended = group.config.suspended;
        // Without its lease another master may have given them, and been told that they are done.
        let has_lease = broker.store.may_answer();
        let (messages, again) = if suspended || !has_lease {
            (VecDeque::new(), false)
        } else {
            take(broker, &row, &poll, &client, &group)
        };
        if !messages.is_empty() {
            return Ok(Box::pin(Batch::new(broker.clone(), row, messages, None)));
        }
        if over {
            return Ok(receive::no_message(if suspended { receive::SUSPENDED } else { receive::NO_MESSAGE }));
        }
        if again {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = Gathered::new(&mut arrived) => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = tokio::time::sleep(Duration::from_millis(receive::NO_LEASE_MS)), if !has_lease => {}
            () = broker.stopping.cancelled() => return Ok(receive::no_message(receive::NO_MESSAGE)),
        }
    }
}

/// Wakes another waiter when it is dropped.
struct Baton(Option<Arc<Notify>>);

impl Drop for Baton {
    fn drop(&mut self) {
        self.0.iter().for_each(|wake| wake.notify_one());
    }
}

/// What there is; and whether there may be more at once.
fn take(
    broker: &Broker,
    row: &LiteGroup,
    poll: &Polling,
    client: &Arc<str>,
    group: &GroupRecord,
) -> (VecDeque<(Delivery, Record)>, bool) {
    let now_ms = broker.clock.now_ms();
    let ask = Ask {
        now_ms,
        client: client.clone(),
        max: poll.max,
        invisible_ms: poll.invisible_ms,
        renewal: poll.renew_for.clone().map(|(client, line)| Renewal::of(client, line, now_ms)),
        attempts_max: group.attempts_max(),
        revision_base: broker.revision_base,
        attempt_key: poll.attempt_key,
    };
    let range = |queue| broker.store.queue_range(QueueNumber(queue));
    let (handed, more) = row.commit_later(&broker.store, |pop| {
        let (handed, more) = pop.take(&ask, &range);
        // First deliveries are not recorded: after a restart nobody knows whether they arrived.
        let again = handed.iter().filter(|message| message.attempt > 1);
        let records = again.filter_map(|message| pop.record(message.position.queue_id)).collect();
        ((handed, more), records)
    });
    let (mut messages, mut unwanted) = (VecDeque::with_capacity(handed.len()), Vec::new());
    for message in handed {
        match fetch(broker, row, &message) {
            Fetched::Found(found) if broker.wants(&poll.wanted, &found.1) => messages.push_back(*found),
            Fetched::Found(_) | Fetched::Gone => unwanted.push(message.position),
            Fetched::Unreadable => {}
        }
    }
    let again = more || !unwanted.is_empty();
    if !unwanted.is_empty() {
        row.commit_later(&broker.store, |pop| {
            unwanted.iter().for_each(|position| pop.finish(*position, range(position.queue_id).end));
            let records = unwanted.iter().filter_map(|position| pop.record(position.queue_id));
            ((), records.collect())
        });
    }
    (messages, again)
}

fn fetch(broker: &Broker, row: &LiteGroup, message: &Handed) -> Fetched {
    let (queue, offset) = (QueueNumber(message.position.queue_id), QueueOffset(message.position.offset));
    let mut entries = Vec::with_capacity(1);
    match broker.store.entries(queue, offset, 1, &mut entries) {
        Ok(()) => {}
        Err(ReadError::BelowMinimum { .. }) => return Fetched::Gone,
        Err(error) => {
            tracing::warn!(?queue, ?offset, %error, "index cannot be read");
            return Fetched::Unreadable;
        }
    }
    let Some(entry) = entries.pop() else { return Fetched::Unreadable };
    let delivery = Delivery {
        position: message.position,
        entry,
        attempt: message.attempt,
        revision: message.revision,
        visible_at_ms: message.visible_at_ms,
    };
    receive::fetch(broker, &row.topic, delivery)
}
