//! A held message read back, and the record that makes it visible. Any thread; blocks for as long as the pages take to
//! come from the device.

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_remoting::status::Rejection;
use karman_store::{NewRecord, PhysicalOffset, QueueNumber, ReadError, Record, RecordKind, Store};
use prost::Message as _;

use crate::catalog::Topic;
use crate::records::{HeldHead, Hold};
use crate::service::send::{keys_of, record};

/// A message as it was held.
#[derive(Debug)]
pub struct HeldMessage {
    /// What is known of it besides the message.
    pub head: HeldHead,
    /// The producer's message.
    pub message: EncodedMessage,
    record: Record,
}

/// Why a held message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The log does not give it.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// What lies there is something else.
    #[error("what lies at {0} is no held message")]
    NotHeld(u64),
    /// Whoever was to read it did not end.
    #[error("{0}")]
    Task(String),
}

impl Unreadable {
    /// Asking again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Log(ReadError::Corrupt { .. }) | Self::NotHeld(_) => true,
            Self::Log(error) => error.is_final(),
            Self::Task(_) => false,
        }
    }
}

impl HeldMessage {
    /// Reads the one that lies at `at`.
    pub fn read(store: &Store, at: PhysicalOffset) -> Result<Self, Unreadable> {
        let record = store.record_at(at)?;
        let is_held = matches!(record.kind, RecordKind::Held | RecordKind::Kept);
        let head = HeldHead::of(&record.payload).filter(|_| is_held).ok_or(Unreadable::NotHeld(at.0))?;
        let message = EncodedMessage::read(record.payload.slice(HeldHead::SIZE..));
        let message = message.map_err(|_| Unreadable::NotHeld(at.0))?;
        Ok(Self { head, message, record })
    }

    /// The record that shows it in a queue of its topic and ends its being held: the same bytes.
    pub fn released(self, queue: QueueNumber) -> NewRecord {
        NewRecord {
            kind: RecordKind::Released,
            queue: Some(queue),
            tag_hash: self.record.tag_hash,
            mark: self.record.mark,
            keys: keys_of(&self.message.system_properties, self.head.topic),
            payload: self.record.payload,
        }
    }

    /// The record that shows it in `into`, the topic for what nobody decided, and ends its being held. It says there which
    /// topic it was sent to.
    pub fn given_up(self, topic: &str, into: &Topic) -> Result<NewRecord, Rejection> {
        let unreadable = |error: String| Rejection::Internal(format!("a half message: {error}"));
        let mut message =
            v2::Message::decode(&self.message.bytes[..]).map_err(|error| unreadable(error.to_string()))?;
        let system = message.system_properties.get_or_insert_default();
        system.dead_letter_queue =
            Some(v2::DeadLetterQueue { topic: topic.to_owned(), message_id: system.message_id.clone() });
        message.topic =
            Some(v2::Resource { resource_namespace: String::new(), name: into.name().to_owned() });
        let message = EncodedMessage::read(message.encode_to_vec().into());
        let message = message.map_err(|error| unreadable(error.to_string()))?;
        let (_, queue) = into.next_queue();
        let payload = HeldHead { hold: Hold::GivenUp, ..self.head }.before(&message.bytes);
        Ok(NewRecord { kind: RecordKind::Released, payload, ..record(&message, queue, into.number) })
    }

    /// The record it was read from.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Bytes of its record's payload.
    pub fn size_bytes(&self) -> usize {
        self.record.payload.len()
    }
}
