//! What the broker writes into the log besides messages: metadata, consumer progress, and what becomes of held messages.
//!
//! Payloads of [`RecordKind::Metadata`], [`RecordKind::Progress`] and [`RecordKind::Settled`] records are protobuf, declared
//! here because nobody else reads them, around the settings of topics and groups as operators give them. Field numbers are never reused.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use karman_remoting::proto::karman as v1;
use karman_store::{Record, RecordKind};

/// One change of the catalog.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    #[prost(oneof = "Change", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub change: Option<Change>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Change {
    #[prost(message, tag = "1")]
    Topic(TopicRecord),
    /// The number of a topic that is no more.
    #[prost(uint32, tag = "2")]
    TopicDeleted(u32),
    #[prost(message, tag = "3")]
    Group(GroupRecord),
    /// The key that signs handles: in the log, so that whoever serves this log later accepts them.
    #[prost(bytes = "vec", tag = "4")]
    TokenKey(Vec<u8>),
    /// New lite topics.
    #[prost(message, tag = "5")]
    LiteTopics(LiteTopicsRecord),
    /// Lite topics that are no more.
    #[prost(message, tag = "6")]
    LiteTopicsGone(LiteTopicsGone),
    /// A user as it is from now on, with its secret: without it no signature could be verified.
    #[prost(message, tag = "7")]
    User(v1::User),
    /// The number of a group that is no more, and with it how far it was.
    #[prost(uint32, tag = "8")]
    GroupDeleted(u32),
}

/// A topic with the numbers that stand for it in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TopicRecord {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// Log queue number of each queue of the topic, in order.
    #[prost(uint32, repeated, tag = "5")]
    pub queues: Vec<u32>,
    /// What operators set.
    #[prost(message, required, tag = "7")]
    pub config: v1::TopicConfig,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct GroupRecord {
    #[prost(uint32, tag = "1")]
    pub number: u32,
    /// What operators set.
    #[prost(message, required, tag = "4")]
    pub config: v1::GroupConfig,
}

/// Lite topics that were made together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LiteTopicsRecord {
    #[prost(message, repeated, tag = "1")]
    pub made: Vec<LiteTopicRecord>,
}

/// A lite topic with the numbers that stand for it in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LiteTopicRecord {
    /// Number of the topic it belongs to.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Log queue number; also what its progress and its handles call it.
    #[prost(uint32, tag = "3")]
    pub queue: u32,
}

/// Log queue numbers of lite topics that went together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LiteTopicsGone {
    #[prost(uint32, repeated, tag = "1")]
    pub queues: Vec<u32>,
}

/// How far a group has come with a topic. It says what changed, or, in a snapshot, all there is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Progress {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(uint32, tag = "2")]
    pub topic: u32,
    #[prost(message, repeated, tag = "3")]
    pub queues: Vec<QueueProgress>,
    /// Of a broadcasting group: the client whose progress this is.
    #[prost(string, optional, tag = "4")]
    pub client: Option<String>,
    /// The client is gone, and its progress with it.
    #[prost(bool, tag = "5")]
    pub ended: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct QueueProgress {
    /// Position in the topic; of a lite topic, its log queue number.
    #[prost(uint32, tag = "1")]
    pub queue_id: u32,
    /// Everything below is done.
    #[prost(uint64, tag = "2")]
    pub floor: u64,
    /// What is done above: start and count, alternating.
    #[prost(uint64, repeated, tag = "3")]
    pub done: Vec<u64>,
    /// What waits for another delivery.
    #[prost(message, repeated, tag = "4")]
    pub later: Vec<Later>,
    /// The floor was set: what was done or delivered above it is not any more, and it may lie lower than before.
    #[prost(bool, tag = "5")]
    pub reset: bool,
    /// Handles with revisions up to this one were given out before a reset.
    #[prost(uint32, tag = "6")]
    pub void_to: u32,
}

/// A message that was delivered and waits for another delivery.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Later {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// Milliseconds since 1970; 0 when it may be delivered at once.
    #[prost(uint64, tag = "2")]
    pub visible_at_ms: u64,
    /// Deliveries so far.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
}

/// Where a dead letter came from: its record acknowledges the original, so that the copy and the ack are one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub group: u32,
    pub topic: u32,
    pub queue_id: u32,
    pub offset: u64,
}

impl Origin {
    /// Bytes in front of the message in the payload of a `DeadLetter` record.
    pub const SIZE: usize = 20;

    /// The payload of a `DeadLetter` record.
    pub fn before(self, message: &[u8]) -> Bytes {
        let mut payload = BytesMut::with_capacity(Self::SIZE + message.len());
        payload.put_u32_le(self.group);
        payload.put_u32_le(self.topic);
        payload.put_u32_le(self.queue_id);
        payload.put_u64_le(self.offset);
        payload.put_slice(message);
        payload.freeze()
    }

    /// Reads it from a payload; `None` when that is too short.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        let offset = u64::from_le_bytes(payload.get(12..20)?.try_into().ok()?);
        Some(Self { group: number(0)?, topic: number(4)?, queue_id: number(8)?, offset })
    }
}

/// Why a message is held, or was until it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hold {
    /// Its delivery time has not come.
    Timer = 1,
    /// Its transaction is not decided; released: committed.
    Half = 2,
    /// Of a released half message: nobody decided, and it went to the topic for those.
    GivenUp = 3,
}

/// In front of the message in the payload of a `Held`, `Kept` or `Released` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldHead {
    /// Random: stands for the held message in handles and in the log.
    pub id: u64,
    /// The delivery time, or when a half message is checked first. Milliseconds since 1970.
    pub due_ms: u64,
    /// Number of the topic it was sent to.
    pub topic: u32,
    pub hold: Hold,
}

impl HeldHead {
    /// Bytes it takes: three of them are padding.
    pub const SIZE: usize = 24;

    /// The payload of a record with the message.
    pub fn before(self, message: &[u8]) -> Bytes {
        let mut payload = BytesMut::with_capacity(Self::SIZE + message.len());
        payload.put_u64_le(self.id);
        payload.put_u64_le(self.due_ms);
        payload.put_u32_le(self.topic);
        payload.put_u8(self.hold as u8);
        payload.put_bytes(0, 3);
        payload.put_slice(message);
        payload.freeze()
    }

    /// Reads it from a record; `None` when no message is or was held by it.
    pub fn of_record(record: &Record) -> Option<Self> {
        let has_one = matches!(record.kind, RecordKind::Held | RecordKind::Kept | RecordKind::Released);
        Self::of(&record.payload).filter(|_| has_one)
    }

    /// Reads it from a payload; `None` when that is too short, or holds for a reason that is not known.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let mut head = payload.get(..Self::SIZE)?;
        let (id, due_ms, topic) = (head.get_u64_le(), head.get_u64_le(), head.get_u32_le());
        let hold = match head.get_u8() {
            1 => Hold::Timer,
            2 => Hold::Half,
            3 => Hold::GivenUp,
            _ => return None,
        };
        Some(Self { id, due_ms, topic, hold })
    }
}

/// What became of held messages other than being released.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Settled {
    /// Delayed messages that their producers took back.
    #[prost(message, repeated, tag = "1")]
    pub recalled: Vec<Recalled>,
    /// Ids of half messages that are not to be seen.
    #[prost(fixed64, repeated, tag = "2")]
    pub rolled_back: Vec<u64>,
    /// Half messages that producers were asked about.
    #[prost(message, repeated, tag = "3")]
    pub checked: Vec<Checked>,
    /// Held messages that cannot be released any more: damaged, or their topic was deleted.
    #[prost(message, repeated, tag = "4")]
    pub dropped: Vec<Dropped>,
}

/// A delayed message that will not be delivered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Recalled {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub due_ms: u64,
    /// For the answer to a second recall.
    #[prost(string, tag = "3")]
    pub message_id: String,
}

/// A half message that a producer was asked about, or would have been if there had been one.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Checked {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    /// How often so far.
    #[prost(uint32, tag = "2")]
    pub checks: u32,
    #[prost(uint64, tag = "3")]
    pub next_check_ms: u64,
}

/// A held message that is no more.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Dropped {
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    /// Of a delayed message; 0: it was a half message.
    #[prost(uint64, tag = "2")]
    pub due_ms: u64,
}

/// The encoded message in a record that has one.
pub fn message_of(record: &Record) -> &[u8] {
    match record.kind {
        RecordKind::DeadLetter => record.payload.get(Origin::SIZE..).unwrap_or_default(),
        RecordKind::Held | RecordKind::Kept | RecordKind::Released => {
            record.payload.get(HeldHead::SIZE..).unwrap_or_default()
        }
        _ => &record.payload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_back_and_a_short_payload_has_none() {
        let origin = Origin { group: 1, topic: 2, queue_id: 3, offset: u64::MAX - 1 };
        let payload = origin.before(b"message");
        assert_eq!(Origin::of(&payload), Some(origin));
        assert_eq!(&payload[Origin::SIZE..], b"message");
        assert_eq!(Origin::of(&payload[..Origin::SIZE - 1]), None);
    }

    #[test]
    fn the_head_of_a_held_message_is_read_back_and_unknown_reasons_are_not() {
        for hold in [Hold::Timer, Hold::Half, Hold::GivenUp] {
            let head = HeldHead { id: u64::MAX - 7, due_ms: 1 << 41, topic: 3, hold };
            let payload = head.before(b"message");
            assert_eq!(HeldHead::of(&payload), Some(head));
            assert_eq!(&payload[HeldHead::SIZE..], b"message");
            assert_eq!(HeldHead::of(&payload[..HeldHead::SIZE - 1]), None);
            let mut unknown = payload.to_vec();
            unknown[20] = 9;
            assert_eq!(HeldHead::of(&unknown), None);
        }
    }
}
