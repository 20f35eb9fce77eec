//! Opaque tokens that clients carry back: receipt handles, recall handles, transaction ids.
//!
//! One codec for all: URL-safe base64, without padding, of
//! `version u8 | kind u8 | broker length u8 | broker | fixed fields, little-endian | tag 12 bytes`.
//! The tag is HMAC-SHA256 over all before it, cut to 12 bytes, under a key only the broker knows: a client can neither
//! make a token nor change one. A door reads the broker's name without the key, to find the owner. Pure; any thread.

mod codec;

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use self::codec::{Reader, Writer};

/// Longest broker name a token can carry, in bytes.
pub const MAX_BROKER_NAME_BYTES: usize = 127;

/// Why a text is not a token of this broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not base64, or too short, or too long.
    #[error("it is not a token")]
    Malformed,
    /// A token, but of another kind: a recall handle given for a receipt handle, say.
    #[error("it is a token of another kind")]
    WrongKind,
    /// Made by a version of Karman that this one does not know.
    #[error("its format version {0} is not known here")]
    UnsupportedVersion(u8),
    /// Changed on its way, or made by another broker or under another key.
    #[error("its signature is not this broker's")]
    Forged,
}

/// The key under which a broker signs its tokens; kept for as long as its messages are. `Debug` hides it.
#[derive(Clone)]
pub struct TokenKey {
    /// With the key worked in: saves two of the four hash blocks of each tag.
    keyed: Hmac<Sha256>,
}

impl TokenKey {
    /// `bytes` must be random and secret.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self { keyed: Hmac::new_from_slice(&bytes).expect("HMAC takes keys of any length") }
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenKey(..)")
    }
}

/// What a consumer acknowledges a delivery with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptHandle {
    /// Name of the broker that keeps the message; at most [`MAX_BROKER_NAME_BYTES`].
    pub broker: Arc<str>,
    /// The consumer group, as the broker numbers them.
    pub group_id: u32,
    /// The topic, as the broker numbers them.
    pub topic_id: u32,
    /// The queue's number inside the topic.
    pub queue_id: u32,
    /// The message's offset in the queue.
    pub queue_offset: u64,
    /// Which of the in-flight entry's lives this handle belongs to.
    pub revision: u32,
    /// Which delivery it was, from 1.
    pub attempt: u32,
    /// When the delivery becomes visible again, in ms since 1970.
    pub expires_ms: u64,
}

/// What a producer recalls a delayed message with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecallHandle {
    /// Name of the broker that keeps the message; at most [`MAX_BROKER_NAME_BYTES`].
    pub broker: Arc<str>,
    /// The topic, as the broker numbers them.
    pub topic_id: u32,
    /// The timer, as the broker numbers them.
    pub timer_id: u64,
    /// When the message is due, in ms since 1970.
    pub deliver_ms: u64,
}

/// What a producer ends a transaction with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionId {
    /// Name of the broker that keeps the half message; at most [`MAX_BROKER_NAME_BYTES`].
    pub broker: Arc<str>,
    /// The topic, as the broker numbers them.
    pub topic_id: u32,
    /// The half message, as the broker numbers them.
    pub half_id: u64,
    /// When the broker first asks a producer what became of the transaction, in ms since 1970.
    pub check_ms: u64,
}

/// Name of the broker that made the token, of whatever kind. Nothing is verified: for finding the owner only.
pub fn broker_name_of(token: &str) -> Option<String> {
    codec::broker_name_of(token)
}

impl ReceiptHandle {
    const KIND: u8 = 1;

    /// The text to give to the consumer.
    ///
    /// # Panics
    /// When the broker's name is longer than [`MAX_BROKER_NAME_BYTES`]; as with the other kinds of token.
    pub fn encode(&self, key: &TokenKey) -> String {
        let mut writer = Writer::new(Self::KIND, &self.broker);
        writer.put_u32(self.group_id);
        writer.put_u32(self.topic_id);
        writer.put_u32(self.queue_id);
        writer.put_u64(self.queue_offset);
        writer.put_u32(self.revision);
        writer.put_u32(self.attempt);
        writer.put_u64(self.expires_ms);
        writer.finish(key)
    }

    /// Reads a handle made under `key`.
    pub fn decode_verified(key: &TokenKey, token: &str) -> Result<Self, TokenError> {
        let mut reader = Reader::new(Self::KIND, key, token)?;
        let handle = Self {
            broker: reader.broker()?,
            group_id: reader.take_u32()?,
            topic_id: reader.take_u32()?,
            queue_id: reader.take_u32()?,
            queue_offset: reader.take_u64()?,
            revision: reader.take_u32()?,
            attempt: reader.take_u32()?,
            expires_ms: reader.take_u64()?,
        };
        reader.finish()?;
        Ok(handle)
    }
}

impl RecallHandle {
    const KIND: u8 = 2;

    /// The text to give to the producer.
    pub fn encode(&self, key: &TokenKey) -> String {
        let mut writer = Writer::new(Self::KIND, &self.broker);
        writer.put_u32(self.topic_id);
        writer.put_u64(self.timer_id);
        writer.put_u64(self.deliver_ms);
        writer.finish(key)
    }

    /// Reads a handle made under `key`.
    pub fn decode_verified(key: &TokenKey, token: &str) -> Result<Self, TokenError> {
        let mut reader = Reader::new(Self::KIND, key, token)?;
        let handle = Self {
            broker: reader.broker()?,
            topic_id: reader.take_u32()?,
            timer_id: reader.take_u64()?,
            deliver_ms: reader.take_u64()?,
        };
        reader.finish()?;
        Ok(handle)
    }
}

impl TransactionId {
    const KIND: u8 = 3;

    /// The text to give to the producer.
    pub fn encode(&self, key: &TokenKey) -> String {
        let mut writer = Writer::new(Self::KIND, &self.broker);
        writer.put_u32(self.topic_id);
        writer.put_u64(self.half_id);
        writer.put_u64(self.check_ms);
        writer.finish(key)
    }

    /// Reads an id made under `key`.
    pub fn decode_verified(key: &TokenKey, token: &str) -> Result<Self, TokenError> {
        let mut reader = Reader::new(Self::KIND, key, token)?;
        let id = Self {
            broker: reader.broker()?,
            topic_id: reader.take_u32()?,
            half_id: reader.take_u64()?,
            check_ms: reader.take_u64()?,
        };
        reader.finish()?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests;
