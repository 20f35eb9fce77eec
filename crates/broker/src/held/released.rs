//! A held message read back, and the record that makes it visible. Any thread; blocks for as long as the pages take to
//! come from the device.

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_store::{NewRecord, PhysicalOffset, QueueNumber, ReadError, Record, RecordKind, Store};

use crate::records::HeldHead;
use crate::service::send::keys_of;

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
}

impl Unreadable {
    /// Asking again cannot help.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Log(ReadError::Corrupt { .. }) | Self::NotHeld(_) => true,
            Self::Log(error) => error.is_final(),
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
        let keys = keys_of(&self.message.system_properties, self.head.topic);
        self.shown(queue, keys, self.record.mark, self.record.payload.clone())
    }

    fn shown(&self, queue: QueueNumber, keys: Vec<u64>, mark: u64, payload: Bytes) -> NewRecord {
        let (kind, tag_hash) = (RecordKind::Released, self.record.tag_hash);
        NewRecord { kind, queue: Some(queue), tag_hash, mark, keys, payload }
    }

    /// Bytes of its record's payload.
    pub fn size_bytes(&self) -> usize {
        self.record.payload.len()
    }
}
