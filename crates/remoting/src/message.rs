//! An encoded `Message`: read at the edge without decoding its body, and completed for delivery by slices.
//!
//! A broker stores the bytes that the producer sent and remembers where `system_properties` lies in them. A delivered
//! message is what lies before, a new `system_properties` (the producer's fields, then the broker's), and what lies
//! behind. No embedded field occurs twice: the official Node client keeps the last occurrence instead of merging, so a
//! message that arrives with a repeated field is written anew once, here. Pure; any thread.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{self, DecodeContext, WireType};

use crate::proto::v2;

mod fields {
    pub(super) const TOPIC: u32 = 1;
    pub(super) const USER_PROPERTIES: u32 = 2;
    pub(super) const SYSTEM_PROPERTIES: u32 = 3;
    pub(super) const BODY: u32 = 4;

    /// In `system_properties`.
    pub(super) const TAG: u32 = 1;
    pub(super) const MESSAGE_GROUP: u32 = 17;
    pub(super) const LITE_TOPIC: u32 = 21;
}

/// Fields of `SystemProperties` that are written on delivery; what is stored in them is left out: `body_digest`,
/// `store_timestamp`, `store_host`, `receipt_handle`, `queue_id`, `queue_offset`, `invisible_duration` and
/// `delivery_attempt` (C++ sends garbage in it).
const BROKER_FIELDS: u32 = 1 << 4 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15 | 1 << 16;

/// Why bytes are not a usable `Message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not protobuf, or text that is not UTF-8.
    #[error("{0}")]
    Malformed(String),
}

impl From<prost::DecodeError> for MessageError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A message as it travels, with what a broker must know of it.
#[derive(Clone, Debug)]
pub struct EncodedMessage {
    /// The whole message.
    pub bytes: Bytes,
    /// `topic.name`; empty when there is none.
    pub topic: String,
    /// Decoded; without the fields that only a broker writes.
    pub system_properties: v2::SystemProperties,
    /// Where the field `system_properties` lies, key and length included; empty when it is absent.
    pub system_properties_field: Range<usize>,
    /// Size of the body in bytes.
    pub body_size: usize,
    /// User properties, in the order sent.
    pub user_properties: Vec<(Bytes, Bytes)>,
}

/// A field of an encoded message: its number, and where its key and its content lie.
struct Field {
    number: u32,
    start: usize,
    content: Range<usize>,
    delimited: bool,
}

/// Walks over the fields of `bytes`.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, prost::DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = next_field(self.bytes, self.at);
        self.at = field.as_ref().map_or(self.bytes.len(), |field| field.content.end);
        Some(field)
    }
}

fn next_field(bytes: &[u8], start: usize) -> Result<Field, prost::DecodeError> {
    let mut rest = &bytes[start..];
    let (number, wire_type) = encoding::decode_key(&mut rest)?;
    if wire_type == WireType::LengthDelimited {
        let size = encoding::decode_varint(&mut rest)?;
        let content_start = bytes.len() - rest.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > rest.len() {
            return Err(prost::DecodeError::new_unexpected_end());
        }
        return Ok(Field { number, start, content: content_start..content_start + size, delimited: true });
    }
    let content_start = bytes.len() - rest.len();
    encoding::skip_field(wire_type, number, &mut rest, DecodeContext::default())?;
    Ok(Field { number, start, content: content_start..bytes.len() - rest.len(), delimited: false })
}

/// `DecodeError` has no public constructor for "too short"; decoding a too short varint makes one.
trait UnexpectedEnd {
    fn new_unexpected_end() -> Self;
}

impl UnexpectedEnd for prost::DecodeError {
    fn new_unexpected_end() -> Self {
        encoding::decode_varint(&mut &b""[..]).expect_err("no bytes are no varint")
    }
}

impl EncodedMessage {
    /// Reads a message that a producer sent. A message with a repeated embedded field is written anew first.
    pub fn read(bytes: Bytes) -> Result<Self, MessageError> {
        match Self::read_once(&bytes)? {
            Some(message) => Ok(message),
            None => {
                let merged = Bytes::from(v2::Message::decode(bytes)?.encode_to_vec());
                Self::read_once(&merged)?
                    .ok_or_else(|| MessageError::Malformed("a field occurs twice".into()))
            }
        }
    }

    /// `None` when an embedded field occurs twice.
    fn read_once(bytes: &Bytes) -> Result<Option<Self>, MessageError> {
        let mut topic: Option<v2::Resource> = None;
        let mut system_properties: Option<(v2::SystemProperties, Range<usize>)> = None;
        let mut body: Option<Range<usize>> = None;
        let mut user_properties = Vec::new();
        for field in (Fields { bytes, at: 0 }) {
            let field = field?;
            if !field.delimited && field.number <= fields::BODY {
                return Err(wrong_type(field.number));
            }
            let content = || bytes.slice(field.content.clone());
            match field.number {
                fields::TOPIC if topic.is_some() => return Ok(None),
                fields::SYSTEM_PROPERTIES if system_properties.is_some() => return Ok(None),
                fields::BODY if body.is_some() => return Ok(None),
                fields::TOPIC => topic = Some(v2::Resource::decode(content())?),
                fields::USER_PROPERTIES => {
                    let content = content();
                    let (key, value) = user_property(&content)?;
                    user_properties
                        .push((content.slice_ref(key.as_bytes()), content.slice_ref(value.as_bytes())));
                }
                fields::SYSTEM_PROPERTIES => {
                    let mut decoded = v2::SystemProperties::decode(content())?;
                    decoded.delivery_attempt = None;
                    system_properties = Some((decoded, field.start..field.content.end));
                }
                fields::BODY => body = Some(field.content),
                _ => {}
            }
        }
        let topic = topic.unwrap_or_default().name;
        let (system_properties, system_properties_field) = system_properties.unwrap_or_default();
        Ok(Some(Self {
            bytes: bytes.clone(),
            topic,
            system_properties,
            system_properties_field,
            body_size: body.map_or(0, |body| body.len()),
            user_properties,
        }))
    }

    /// Writes the message anew with other system properties; for the rare producer that left out what must be there.
    pub fn with_system_properties(
        &self,
        system_properties: &v2::SystemProperties,
    ) -> Result<Self, MessageError> {
        let mut bytes = BytesMut::with_capacity(self.bytes.len() + 64);
        bytes.put_slice(&self.bytes[..self.system_properties_field.start]);
        encoding::message::encode(fields::SYSTEM_PROPERTIES, system_properties, &mut bytes);
        bytes.put_slice(&self.bytes[self.system_properties_field.end..]);
        Self::read(bytes.freeze())
    }
}

/// A decoder of the consumer's side would give up the whole stream.
fn wrong_type(number: u32) -> MessageError {
    MessageError::Malformed(format!("field {number} has another type than the contract says"))
}

/// One entry of the map field `user_properties`: key = 1, value = 2, either may be absent.
fn user_property(entry: &[u8]) -> Result<(&str, &str), MessageError> {
    let (mut key, mut value) = (&b""[..], &b""[..]);
    for field in (Fields { bytes: entry, at: 0 }) {
        let field = field?;
        if !field.delimited && field.number <= 2 {
            return Err(wrong_type(field.number));
        }
        match field.number {
            1 => key = &entry[field.content],
            2 => value = &entry[field.content],
            _ => {}
        }
    }
    let text = |bytes| {
        std::str::from_utf8(bytes).map_err(|_| MessageError::Malformed("a user property is not UTF-8".into()))
    };
    Ok((text(key)?, text(value)?))
}

/// The topic of an encoded message, for a door that only has to find its owner. Empty when there is none to read.
pub fn topic_of(message: &[u8]) -> String {
    let topic =
        (Fields { bytes: message, at: 0 }).map_while(Result::ok).find(|field| field.number == fields::TOPIC);
    topic.and_then(|field| v2::Resource::decode(&message[field.content]).ok()).unwrap_or_default().name
}

/// The topic that a broker will find in an encoded message, for who decides whether it may be sent: of a field that occurs
/// several times the last counts, as when the message is written anew. Empty when there is none to read.
pub(crate) fn topic_to_send_to(message: &[u8]) -> &str {
    const NAME: u32 = 2;
    let mut topic = "";
    for field in (Fields { bytes: message, at: 0 }).map_while(Result::ok) {
        if field.number == fields::TOPIC {
            let resource = &message[field.content];
            for field in (Fields { bytes: resource, at: 0 }).map_while(Result::ok) {
                if field.number == NAME {
                    topic = std::str::from_utf8(&resource[field.content]).unwrap_or_default();
                }
            }
        }
    }
    topic
}

/// Where the body of a stored message lies. Encoders write it behind `system_properties`, so that is looked at first.
pub fn body_of(message: &[u8], system_properties_field: &Range<usize>) -> Range<usize> {
    let find = |from: usize| {
        (Fields { bytes: message, at: from }).map_while(Result::ok).find(|field| field.number == fields::BODY)
    };
    find(system_properties_field.end).or_else(|| find(0)).map_or(0..0, |field| field.content)
}

/// The tag in a stored message's `system_properties`.
pub fn tag_of<'a>(message: &'a [u8], system_properties_field: &Range<usize>) -> &'a str {
    text_of(content_of(message, system_properties_field), fields::TAG).unwrap_or_default()
}

/// The message group of an encoded message, for a door that only has to find its owner.
pub fn message_group_of(message: &[u8]) -> Option<&str> {
    text_in_system_properties(message, fields::MESSAGE_GROUP)
}

/// The lite topic of an encoded message, for a door that only has to find its owner.
pub fn lite_topic_of(message: &[u8]) -> Option<&str> {
    text_in_system_properties(message, fields::LITE_TOPIC)
}

/// A text in `system_properties`; where that occurs several times, the last text counts, as if they were merged.
fn text_in_system_properties(message: &[u8], number: u32) -> Option<&str> {
    (Fields { bytes: message, at: 0 })
        .map_while(Result::ok)
        .filter(|field| field.number == fields::SYSTEM_PROPERTIES && field.delimited)
        .filter_map(|field| text_of(&message[field.content], number))
        .last()
}

/// The last text with this number in an embedded message.
fn text_of(content: &[u8], number: u32) -> Option<&str> {
    let texts =
        (Fields { bytes: content, at: 0 }).map_while(Result::ok).filter(|field| field.number == number);
    std::str::from_utf8(&content[texts.last()?.content]).ok()
}

/// The user properties of an encoded message, in the order sent. Of a key that occurs twice the last value counts.
pub fn user_properties_of(message: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    (Fields { bytes: message, at: 0 })
        .map_while(Result::ok)
        .filter(|field| field.number == fields::USER_PROPERTIES)
        .filter_map(|field| user_property(&message[field.content]).ok())
}

/// One user property of an encoded message. For several, [`user_properties_of`] walks over the message only once.
pub fn user_property_of<'a>(message: &'a [u8], name: &str) -> Option<&'a str> {
    user_properties_of(message).filter(|(key, _)| *key == name).last().map(|(_, value)| value)
}

/// What the producer set in a message's `system_properties` and RocketMQ keeps among the user's, by RocketMQ's names:
/// `TAGS`, `KEYS` (once for each key), `UNIQ_KEY` (the message id) and `__SHARDINGKEY` (the message group).
pub fn system_texts_of<'a>(
    message: &'a [u8],
    system_properties_field: &Range<usize>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let content = content_of(message, system_properties_field);
    (Fields { bytes: content, at: 0 }).map_while(Result::ok).filter_map(|field| {
        let name = match field.number {
            1 => "TAGS",
            2 => KEYS,
            3 => "UNIQ_KEY",
            17 => "__SHARDINGKEY",
            _ => return None,
        };
        Some((name, std::str::from_utf8(&content[field.content]).ok()?))
    })
}

const KEYS: &str = "KEYS";

/// The keys of an encoded message, joined by a space as RocketMQ keeps them. `None` when there are none.
pub fn keys_of<'a>(message: &'a [u8], system_properties_field: &Range<usize>) -> Option<Cow<'a, str>> {
    system_texts_of(message, system_properties_field)
        .filter(|(name, _)| *name == KEYS)
        .map(|(_, key)| Cow::Borrowed(key))
        .reduce(|keys, key| keys + " " + key)
}

/// The content of the field that lies at `field`.
fn content_of<'a>(message: &'a [u8], field: &Range<usize>) -> &'a [u8] {
    if field.is_empty() {
        return &[];
    }
    next_field(message, field.start).map_or(&[], |found| &message[found.content])
}

/// The message as a consumer gets it: the stored bytes with `added` (the broker's fields) in its system properties.
///
/// `room` is where it is built; what is split off it shares its allocation, so that a batch costs one.
pub fn delivered(
    stored: &[u8],
    system_properties_field: Range<usize>,
    added: &v2::SystemProperties,
    room: &mut BytesMut,
) -> Bytes {
    let sent = content_of(stored, &system_properties_field);
    let kept = (Fields { bytes: sent, at: 0 })
        .map_while(Result::ok)
        .filter(|field| field.number >= 32 || BROKER_FIELDS & 1 << field.number == 0);
    let kept_size: usize = kept.map(|field| field.content.end - field.start).sum();
    let size = kept_size + added.encoded_len();
    room.reserve(stored.len() + size + 16);
    room.put_slice(&stored[..system_properties_field.start]);
    encoding::encode_key(fields::SYSTEM_PROPERTIES, WireType::LengthDelimited, room);
    encoding::encode_varint(size as u64, room);
    for field in (Fields { bytes: sent, at: 0 }).map_while(Result::ok) {
        if field.number >= 32 || BROKER_FIELDS & 1 << field.number == 0 {
            room.put_slice(&sent[field.start..field.content.end]);
        }
    }
    added.encode_raw(room);
    room.put_slice(&stored[system_properties_field.end..]);
    room.split().freeze()
}

#[cfg(test)]
mod tests;
