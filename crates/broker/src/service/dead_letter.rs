//! Dead letters: a message that was delivered often enough is copied to `%DLQ%<group>` and done in its own queue.
//!
//! Copy and acknowledgement are one record, so a crash leaves both or neither.

use std::sync::atomic::Ordering;

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_remoting::status::Rejection;
use karman_remoting::validate;
use karman_store::{NewRecord, QueueOffset, RecordKind};
use prost::Message as _;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::catalog_writer::topic_named;
use crate::label::Label;
use crate::lite::LiteGroup;
use crate::mark::Mark;
use crate::pop::{MessageState, Position};
use crate::progress::GroupTopic;
use crate::records::{Origin, message_of};
use crate::refuse;
use crate::service::send;

/// User properties of a letter that say where it came from and why it is dead. Producers may not use these names.
pub const PROPERTIES: [&str; 4] = [ORIGIN_TOPIC, ORIGIN_MESSAGE_ID, REASON, ATTEMPTS];
const ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
const ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
const REASON: &str = "DLQ_REASON";
const ATTEMPTS: &str = "DLQ_ATTEMPTS";

/// Why a message is dead.
#[derive(Clone, Copy, Debug)]
pub enum Reason<'a> {
    /// It was delivered as often as its group allows.
    Attempts,
    /// This client does not want it any more.
    GivenUpBy(&'a str),
}

/// Looked at in one round of [`sweep`] for each group on each topic.
const SWEEP_MAX: usize = 256;

/// Buries what was found dead. What fails stays invisible and is tried again when its time comes.
pub async fn bury_all(broker: &Broker, row: &GroupTopic, dead: &[Position]) {
    for &position in dead {
        // Nobody sends a broadcast again: a client that could not take it so often goes on without.
        if row.client.is_some() {
            give_up(broker, row, position);
        } else if let Err(error) = bury(broker, row, position, Reason::Attempts).await {
            tracing::error!(?position, %error, "dead letter was not stored; it is tried again");
        }
    }
}

/// The message is done without a copy.
pub fn give_up(broker: &Broker, row: &GroupTopic, position: Position) {
    tracing::warn!(
        client = row.client.as_deref(),
        topic = row.topic.name(),
        ?position,
        "broadcast message is given up"
    );
    row.commit_later(&broker.store, |pop| {
        pop.finish(position);
        ((), pop.done_record(&[position]))
    });
    row.arrived.notify_one();
}

/// Copies one message to the dead letters of the group; that also acknowledges it.
pub async fn bury(
    broker: &Broker,
    row: &GroupTopic,
    position: Position,
    reason: Reason<'_>,
) -> Result<(), Rejection> {
    let attempts = match row.run(|pop| pop.message_state(position)) {
        MessageState::InFlight { attempt, .. } => attempt,
        _ => 0,
    };
    let dead = Dead { group: row.group, topic: &row.topic, position, attempts, reason };
    if !dead.store(broker).await? {
        // Trying again would not bring it back.
        row.run(|pop| pop.finish(position));
        row.arrived.notify_one();
    }
    Ok(())
}

/// The same for a message of a lite topic.
pub async fn bury_lite(
    broker: &Broker,
    row: &LiteGroup,
    position: Position,
    reason: Reason<'_>,
) -> Result<(), Rejection> {
    let attempts = row.run(|pop| pop.cursor(position.queue_id).map_or(0, |cursor| cursor.attempt));
    let dead = Dead { group: row.group, topic: &row.topic, position, attempts, reason };
    if !dead.store(broker).await? {
        row.run(|pop| pop.finish(position, u64::MAX));
    }
    Ok(())
}

/// A message on its way to the dead letters of its group.
struct Dead<'a> {
    group: u32,
    topic: &'a Topic,
    position: Position,
    attempts: u32,
    reason: Reason<'a>,
}

impl Dead<'_> {
    /// Stores the copy. `false`: there is nothing left to copy.
    async fn store(&self, broker: &Broker) -> Result<bool, Rejection> {
        let position = self.position;
        let group = broker.catalog.group_numbered(self.group);
        let group = group.ok_or_else(|| Rejection::Internal("the group is not in the catalog".into()))?;
        let dead_letters = topic_named(&validate::dead_letter_topic(group.name()), 1);
        let (topic, _) = broker.catalog_writer.topic(dead_letters).await?;
        let Some(message) = self.copy(broker, topic.name())? else {
            tracing::warn!(
                group = group.name(),
                ?position,
                "a dead message was no more before it was copied"
            );
            return Ok(false);
        };
        let origin = Origin {
            group: self.group,
            topic: self.topic.number,
            queue_id: position.queue_id,
            offset: position.offset,
        };
        let record = NewRecord {
            kind: RecordKind::DeadLetter,
            queue: Some(topic.next_queue().1),
            tag_hash: Label::of(&message.system_properties).0,
            mark: Mark::of(&message.system_properties_field).0,
            keys: send::keys_of(&message.system_properties, topic.number),
            payload: origin.before(&message.bytes),
        };
        let append = broker.store.append(vec![record], broker.durability).map_err(refuse::append)?;
        // The projection has finished the original when this is answered.
        append.await.map_err(refuse::append)?;
        broker.counters.dead_letters.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            group = group.name(),
            topic = self.topic.name(),
            ?position,
            "message is a dead letter"
        );
        Ok(true)
    }

    /// The message as it goes to the dead letters: it says where it came from. `None`: it is no more.
    fn copy(&self, broker: &Broker, dead_letters: &str) -> Result<Option<EncodedMessage>, Rejection> {
        let position = self.position;
        let unreadable =
            |why: String| Rejection::Internal(format!("the message at {position:?} cannot be read: {why}"));
        let queue = broker.queue_in(self.topic, position.queue_id);
        let queue = queue.ok_or_else(|| unreadable("no such queue".into()))?;
        let mut entries = Vec::with_capacity(1);
        let found =
            broker.store.entries(queue, QueueOffset(position.offset), 1, &mut entries).and_then(|()| {
                let entry = entries.first();
                entry.map(|entry| broker.store.record(entry.physical_offset, entry.size)).transpose()
            });
        let record = match found {
            Ok(record) => record.ok_or_else(|| unreadable("it is not in the log".into()))?,
            Err(error) if error.is_final() => return Ok(None),
            Err(error) => return Err(refuse::read(&error)),
        };
        let mut message =
            v2::Message::decode(message_of(&record)).map_err(|error| unreadable(error.to_string()))?;
        let system = message.system_properties.get_or_insert_default();
        // A letter that dies again keeps its first origin.
        let origin = system.dead_letter_queue.get_or_insert_with(|| v2::DeadLetterQueue {
            topic: self.topic.name().to_owned(),
            message_id: system.message_id.clone(),
        });
        let attempts = self.attempts;
        let reason = match self.reason {
            Reason::Attempts => format!("delivered {attempts} times"),
            Reason::GivenUpBy(client) => format!("given up by client {client}"),
        };
        let said = [origin.topic.clone(), origin.message_id.clone(), reason, attempts.to_string()];
        message.user_properties.extend(PROPERTIES.map(str::to_owned).into_iter().zip(said));
        message.topic =
            Some(v2::Resource { resource_namespace: String::new(), name: dead_letters.to_owned() });
        let encoded = EncodedMessage::read(message.encode_to_vec().into());
        encoded.map(Some).map_err(|error| unreadable(error.to_string()))
    }
}

/// For messages that die while nobody receives: the sweep of [`crate::broker`] calls it every second.
pub async fn sweep(broker: &Broker, row: &GroupTopic) {
    let Some(group) = broker.catalog.group_numbered(row.group) else { return };
    let attempts_max = group.attempts_max();
    let is_alive = |client: &str| broker.clients.is_alive(client);
    let dead = row.run(|pop| pop.dead(broker.clock.now_ms(), attempts_max, SWEEP_MAX, &is_alive));
    bury_all(broker, row, &dead).await;
}
