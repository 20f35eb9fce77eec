//! Dead letters: a message that was delivered often enough is copied to `%DLQ%<group>` and done in its own queue.
//!
//! Copy and acknowledgement are one record, so a crash leaves both or neither.

use std::collections::BTreeSet;
use std::sync::Arc;

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_remoting::status::Rejection;
use karman_remoting::validate;
use karman_remoting::validate::message::DEAD_LETTER_PROPERTIES;
use karman_store::{AppendError, Appended, NewRecord, QueueOffset, RecordKind};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::task::JoinHandle;

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
use crate::traffic::Delivered;

/// Why a message is dead.
#[derive(Clone, Copy, Debug)]
pub enum Reason<'a> {
    /// It was delivered as often as its group allows.
    Attempts,
    /// This client does not want it any more.
    GivenUpBy(&'a str),
}

/// Looked at in one round of [`sweep`] for each group on each topic.
const SWEEP_MAX: usize = 4096;

/// Buries what was found dead. What fails stays invisible and is tried again when its time comes. All of it is handed to
/// the log before any of it is waited for: what came late would be found dead once more meanwhile.
pub async fn bury_all(broker: &Broker, row: &GroupTopic, dead: &[Position]) {
    if dead.is_empty() {
        return;
    }
    // Nobody sends a broadcast again: a client that could not take it so often goes on without.
    if row.client.is_some() {
        return dead.iter().for_each(|&position| give_up(broker, row, position));
    }
    let letters = letters_of(broker, row.group).await;
    let begun = |&position| (position, begin(broker, row, position, &letters, Reason::Attempts));
    for (position, begun) in dead.iter().map(begun).collect::<Vec<_>>() {
        if let Err(error) = end(row, position, begun).await {
            tracing::error!(?position, %error, "dead letter was not stored; it is tried again");
        }
    }
}

/// The same for messages of lite topics.
pub async fn bury_all_lite(broker: &Broker, row: &LiteGroup, dead: &[Position]) {
    if dead.is_empty() {
        return;
    }
    let letters = letters_of(broker, row.group).await;
    let begun = |&position| (position, begin_lite(broker, row, position, &letters, Reason::Attempts));
    for (position, begun) in dead.iter().map(begun).collect::<Vec<_>>() {
        if let Err(error) = end_lite(row, position, begun).await {
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

/// A consumer gives a message up: it is copied to the dead letters of the group; that also acknowledges it. Its handles are
/// void already.
pub async fn bury(
    broker: &Broker,
    row: &GroupTopic,
    position: Position,
    reason: Reason<'_>,
) -> Result<(), Rejection> {
    let letters = letters_of(broker, row.group).await;
    end(row, position, begin(broker, row, position, &letters, reason)).await
}

/// The same for a message of a lite topic.
pub async fn bury_lite(
    broker: &Broker,
    row: &LiteGroup,
    position: Position,
    reason: Reason<'_>,
) -> Result<(), Rejection> {
    let letters = letters_of(broker, row.group).await;
    end_lite(row, position, begin_lite(broker, row, position, &letters, reason)).await
}

/// The topic of the dead letters of a group, which is made when it is needed first.
async fn letters_of(broker: &Broker, group: u32) -> Result<Arc<Topic>, Rejection> {
    let group = broker.catalog.group_numbered(group);
    let group = group.ok_or_else(|| Rejection::Internal("the group is not in the catalog".into()))?;
    let name = validate::dead_letter_topic(group.name());
    match broker.catalog.topic(&name) {
        Some(topic) => Ok(topic),
        None => Ok(broker.catalog_writer.topic(topic_named(&name, 1)).await?.0),
    }
}

/// What became of a burial.
enum Burying {
    /// The copy is on its way into the log.
    Begun(JoinHandle<Result<Appended, AppendError>>),
    /// There is nothing left to copy.
    Gone,
    /// The message was given back by a reset, or is done, or its copy is on its way already.
    Over,
}

/// The copies that are on their way into the log: one that takes longer than its message is kept from being delivered is not made
/// a second time. On data threads and the control thread.
#[derive(Debug, Default)]
pub struct Burials(Mutex<BTreeSet<Grave>>);

/// A group, a topic by its number, and a place in it.
type Grave = (u32, u32, Position);

/// A copy on its way, until it is dropped.
struct UnderWay(Arc<Burials>, Grave);

impl Burials {
    fn begin(self: &Arc<Self>, grave: Grave) -> Option<UnderWay> {
        self.0.lock().insert(grave).then(|| UnderWay(self.clone(), grave))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

fn begin(
    broker: &Broker,
    row: &GroupTopic,
    position: Position,
    letters: &Result<Arc<Topic>, Rejection>,
    reason: Reason<'_>,
) -> Result<Burying, Rejection> {
    let attempts = match row.run(|pop| pop.message_state(position)) {
        MessageState::InFlight { attempt, .. } => attempt,
        _ => 0,
    };
    let dead = Dead { group: row.group, topic: &row.topic, position, attempts, reason };
    let Some(letter) = dead.letter(broker, letters)? else { return Ok(Burying::Gone) };
    // Under the lock of the row, or it might come to lie behind the record of a reset and take that back for this message.
    row.run(|pop| match pop.message_state(position) {
        MessageState::Waiting | MessageState::Done => Ok(Burying::Over),
        MessageState::Withheld { .. } | MessageState::InFlight { .. } => {
            append(broker, letter, (row.group, row.topic.number, position))
        }
    })
}

fn append(broker: &Broker, letter: NewRecord, grave: Grave) -> Result<Burying, Rejection> {
    let Some(under_way) = broker.burials.begin(grave) else { return Ok(Burying::Over) };
    let append = broker.store.append(vec![letter], broker.durability).map_err(refuse::append)?;
    // It is on its way whether somebody waits for it or not.
    Ok(Burying::Begun(tokio::spawn(async move {
        let appended = append.await;
        drop(under_way);
        appended
    })))
}

async fn end(
    row: &GroupTopic,
    position: Position,
    begun: Result<Burying, Rejection>,
) -> Result<(), Rejection> {
    if !stored(&row.topic, &row.delivered, position, begun?).await? {
        // Trying again would not bring it back.
        row.run(|pop| pop.finish(position));
        row.arrived.notify_one();
    }
    Ok(())
}

fn begin_lite(
    broker: &Broker,
    row: &LiteGroup,
    position: Position,
    letters: &Result<Arc<Topic>, Rejection>,
    reason: Reason<'_>,
) -> Result<Burying, Rejection> {
    let attempts = row.run(|pop| pop.cursor(position.queue_id).map_or(0, |cursor| cursor.attempt));
    let dead = Dead { group: row.group, topic: &row.topic, position, attempts, reason };
    let Some(letter) = dead.letter(broker, letters)? else { return Ok(Burying::Gone) };
    // As above: a start that reads it behind a reset would take all in front of it for done.
    row.run(|pop| match pop.cursor(position.queue_id) {
        Some(cursor) if cursor.floor == position.offset => {
            append(broker, letter, (row.group, row.topic.number, position))
        }
        _ => Ok(Burying::Over),
    })
}

async fn end_lite(
    row: &LiteGroup,
    position: Position,
    begun: Result<Burying, Rejection>,
) -> Result<(), Rejection> {
    if !stored(&row.topic, &row.delivered, position, begun?).await? {
        row.run(|pop| pop.finish(position, u64::MAX));
    }
    Ok(())
}

/// Waits for the copy. The projection has finished the original then. `false`: there was nothing left to copy.
async fn stored(
    topic: &Topic,
    delivered: &Delivered,
    position: Position,
    burying: Burying,
) -> Result<bool, Rejection> {
    let append = match burying {
        Burying::Begun(append) => append,
        Burying::Over => return Ok(true),
        Burying::Gone => {
            tracing::warn!(
                topic = topic.name(),
                ?position,
                "a dead message was no more before it was copied"
            );
            return Ok(false);
        }
    };
    let appended = append.await.map_err(|error| Rejection::Internal(format!("a dead letter: {error}")))?;
    appended.map_err(refuse::append)?;
    delivered.is_dead();
    tracing::info!(topic = topic.name(), ?position, "message is a dead letter");
    Ok(true)
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
    /// The record that copies it, and ends it where it lay. `None`: it is no more.
    fn letter(
        &self,
        broker: &Broker,
        letters: &Result<Arc<Topic>, Rejection>,
    ) -> Result<Option<NewRecord>, Rejection> {
        let letters = letters.as_ref().map_err(Clone::clone)?;
        let position = self.position;
        let Some(message) = self.copy(broker, letters.name())? else { return Ok(None) };
        let origin = Origin {
            group: self.group,
            topic: self.topic.number,
            queue_id: position.queue_id,
            offset: position.offset,
        };
        Ok(Some(NewRecord {
            kind: RecordKind::DeadLetter,
            queue: Some(letters.next_queue().1),
            tag_hash: Label::of(&message.system_properties).0,
            mark: Mark::of(&message.system_properties_field).0,
            keys: send::keys_of(&message.system_properties, letters.number),
            payload: origin.before(&message.bytes),
        }))
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
        message.user_properties.extend(DEAD_LETTER_PROPERTIES.map(str::to_owned).into_iter().zip(said));
        message.topic =
            Some(v2::Resource { resource_namespace: String::new(), name: dead_letters.to_owned() });
        let encoded = EncodedMessage::read(message.encode_to_vec().into());
        encoded.map(Some).map_err(|error| unreadable(error.to_string()))
    }
}

/// For messages that die while nobody receives: the sweep of [`crate::broker`] calls it every second.
pub async fn sweep(broker: &Broker, row: &GroupTopic) {
    if !row.is_due(broker.clock.now_ms()) {
        return;
    }
    let Some(group) = broker.catalog.group_numbered(row.group) else { return };
    let attempts_max = group.attempts_max();
    let is_alive = |client: &str| broker.clients.is_alive(client);
    let dead = row.run(|pop| pop.dead(broker.clock.now_ms(), attempts_max, SWEEP_MAX, &is_alive));
    bury_all(broker, row, &dead).await;
}
