//! "Where is my message": every record that carries it, and what became of it in each group.
//!
//! From the log and the live state of this broker. What is not known is said so: a group's progress tells that a message
//! is done, not why. Blocks while records come from the device.

use karman_remoting::civil;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate::message::DEAD_LETTER_PROPERTIES;
use karman_remoting::validate::{self, DEAD_LETTER_PREFIX, TRANSACTIONS_GIVEN_UP_TOPIC};
use karman_store::{QueueNumber, Record, RecordKind};
use prost::Message as _;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::id_hash;
use crate::pop::{MessageState, Position};
use crate::records::{HeldHead, Hold, message_of};
use crate::refuse;
use crate::service::fate;
use crate::service::redrive::REDRIVE_GROUP;
use crate::ttl;

/// Records of one topic that carry one message id, at most.
const RECORDS_MAX: usize = 64;

/// A record that carries the message, and what is in it.
pub(super) struct Found<'a> {
    pub(super) topic: &'a Topic,
    pub(super) record: Record,
    pub(super) message: v2::Message,
}

impl Found<'_> {
    pub(super) fn system(&self) -> v2::SystemProperties {
        self.message.system_properties.clone().unwrap_or_default()
    }

    /// Where it lies in its topic; of a message in a lite topic the queue has no number there.
    pub(super) fn position(&self) -> Option<Position> {
        let queue_id =
            self.topic.queues.iter().position(|own| self.record.queue == Some(QueueNumber(*own)))?;
        Some(Position { queue_id: u32::try_from(queue_id).ok()?, offset: self.record.queue_offset.0 })
    }
}

impl Broker {
    /// All that is known of a message on this broker.
    pub fn explain_message(
        &self,
        request: &v1::ExplainMessageRequest,
    ) -> Result<v1::ExplainMessageResponse, Rejection> {
        if request.message_id.is_empty() {
            return Err(Rejection::BadRequest("the question names no message id".to_owned()));
        }
        if !request.topic.is_empty() {
            validate::topic(&request.topic)?;
        }
        if !request.group.is_empty() {
            validate::group(&request.group)?;
        }
        let mut traces = Vec::new();
        let is_asked = |name: &str| {
            request.topic.is_empty()
                || name == request.topic
                || name.starts_with(DEAD_LETTER_PREFIX)
                || name == TRANSACTIONS_GIVEN_UP_TOPIC
        };
        for topic in self.catalog.topics().iter().filter(|topic| is_asked(topic.name())) {
            for found in self.carrying(topic, &request.message_id)? {
                let came_from = found.system().dead_letter_queue.map(|origin| origin.topic);
                if request.topic.is_empty()
                    || topic.name() == request.topic
                    || came_from.is_some_and(|origin| origin == request.topic)
                {
                    traces.push(self.trace(&found, &request.group));
                }
            }
        }
        Ok(v1::ExplainMessageResponse { status: Some(ok()), traces })
    }

    /// The records of a topic with this message id, the first stored first.
    pub(super) fn carrying<'a>(
        &self,
        topic: &'a Topic,
        message_id: &str,
    ) -> Result<Vec<Found<'a>>, Rejection> {
        let mut records = Vec::new();
        let found =
            self.store.find(id_hash(topic.number, message_id), 0..u64::MAX, RECORDS_MAX, &mut records);
        found.map_err(|error| refuse::read(&error))?;
        let read = |record: Record| {
            let message = v2::Message::decode(message_of(&record)).ok()?;
            // Two ids may have one hash.
            let is_it =
                message.system_properties.as_ref().is_some_and(|system| system.message_id == message_id);
            is_it.then_some(Found { topic, record, message })
        };
        Ok(records.into_iter().rev().filter_map(read).collect())
    }

    fn trace(&self, found: &Found<'_>, group: &str) -> v1::MessageTrace {
        let (record, position) = (&found.record, found.position());
        let watermarks = self.store.watermarks();
        let at = record.physical_offset.0;
        let groups = fate::of_groups(self, found, group);
        v1::MessageTrace {
            broker_name: self.name.to_string(),
            kind: kind(found).to_owned(),
            physical_offset: at,
            store_time_ms: record.store_time_ms,
            // What is not confirmed cannot be read.
            confirmed: at < watermarks.confirmed,
            queue_id: position.map(|position| position.queue_id),
            queue_offset: record.queue.map(|_| record.queue_offset.0),
            state: self.state(found, &groups),
            groups,
            topic: found.topic.name().to_owned(),
            durable: at < watermarks.flushed,
        }
    }

    /// What holds for all groups.
    fn state(&self, found: &Found<'_>, groups: &[v1::GroupTrace]) -> String {
        if let Some(held) = self.held_state(&found.record) {
            return held;
        }
        let mut said = Vec::new();
        if let Some(head) = HeldHead::of_record(&found.record) {
            said.push(released(&head));
        }
        if found.topic.name().starts_with(DEAD_LETTER_PREFIX) {
            said.push(self.letter(found));
        } else if groups.is_empty() {
            said.push("no group reads the topic".to_owned());
        }
        if ttl::has_expired(&found.record, found.topic.ttl_ms(), &self.clock) {
            said.push("it is older than its time to live and not delivered any more".to_owned());
        }
        if said.is_empty() { "visible".to_owned() } else { said.join("; ") }
    }

    /// Of a dead letter: why it is one, and whether it went back.
    fn letter(&self, found: &Found<'_>) -> String {
        let property =
            |name: &str| found.message.user_properties.get(name).map_or("not said", String::as_str);
        let [topic, _, reason, _] = DEAD_LETTER_PROPERTIES.map(property);
        let row = self.catalog.group(REDRIVE_GROUP);
        let row = row.and_then(|group| self.progress.get(group.number, found.topic.number, None));
        let went_back = row
            .zip(found.position())
            .is_some_and(|(row, position)| row.run(|pop| pop.message_state(position)) == MessageState::Done);
        let back = if went_back { "; it was sent back" } else { "" };
        format!("dead letter from topic {topic}: {reason}{back}")
    }
}

/// How a held message came to be visible.
fn released(head: &HeldHead) -> String {
    match head.hold {
        Hold::Timer => format!("visible since its time came, {}", civil::format_ms(head.due_ms)),
        Hold::Half => "visible since its transaction was committed".to_owned(),
        Hold::GivenUp => "nobody decided its transaction".to_owned(),
    }
}

fn kind(found: &Found<'_>) -> &'static str {
    let hold = HeldHead::of_record(&found.record).map(|head| head.hold);
    match found.record.kind {
        RecordKind::DeadLetter if found.topic.name().starts_with(DEAD_LETTER_PREFIX) => "dead letter",
        RecordKind::DeadLetter => "message sent back",
        RecordKind::Released => "released",
        _ if hold == Some(Hold::Timer) => "delayed",
        _ if hold.is_some() => "half",
        _ => "message",
    }
}
