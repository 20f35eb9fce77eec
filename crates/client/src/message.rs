//! What is sent, and what a consumer wants of a topic. Pure.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use karman_remoting::proto::v2::{self, MessageType};
use prost::Message as _;

use crate::error::ClientError;

/// The user property in which a message says how long it is worth being delivered, in milliseconds.
pub(crate) const TTL_PROPERTY: &str = "KARMAN_TTL_MS";

/// A message to be sent.
///
/// A message is of one kind, and its topic takes that kind: one with a message group goes to a FIFO topic, one with a
/// delivery time to a DELAY topic, one with a priority to a PRIORITY topic, one with a lite topic to a LITE topic, one of
/// a transaction to a TRANSACTION topic, and one with none of them to a NORMAL topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    topic: String,
    body: Bytes,
    tag: Option<String>,
    keys: Vec<String>,
    properties: HashMap<String, String>,
    message_group: Option<String>,
    delivery_time: Option<SystemTime>,
    priority: Option<u32>,
    lite_topic: Option<String>,
    check_after: Option<Duration>,
}

/// What one send gives to all its messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Birth<'a> {
    pub(crate) time: SystemTime,
    pub(crate) host: &'a str,
    pub(crate) in_transaction: bool,
}

impl Message {
    /// A message for `topic`. The server takes bodies of 1 byte to 4 MiB.
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            body: body.into(),
            tag: None,
            keys: Vec::new(),
            properties: HashMap::new(),
            message_group: None,
            delivery_time: None,
            priority: None,
            lite_topic: None,
            check_after: None,
        }
    }

    /// What consumers filter by. One per message, without `|`; a second call replaces the first.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// A name the message can be found by later, such as an order number. A message may have several.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// A property of the application's own. A second value for the same name replaces the first.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Messages of one message group are delivered in the order in which they were sent, one at a time; those of different
    /// groups do not wait for one another. At most 63 bytes. For FIFO topics.
    ///
    /// The order is that of the sends: a second message is sent when the first was answered.
    #[must_use]
    pub fn message_group(mut self, message_group: impl Into<String>) -> Self {
        self.message_group = Some(message_group.into());
        self
    }

    /// Not delivered before `time`, to the millisecond; at once when that has passed. A server takes times of up to 24 h
    /// ahead, unless it is set up for more. For DELAY topics.
    #[must_use]
    pub fn deliver_at(mut self, time: SystemTime) -> Self {
        self.delivery_time = Some(time);
        self
    }

    /// [`Message::deliver_at`] `delay` from now.
    #[must_use]
    pub fn deliver_after(self, delay: Duration) -> Self {
        let now = SystemTime::now();
        // What no clock can say is further ahead than any server takes.
        let far = Duration::from_secs(1000 * 365 * 86_400);
        self.deliver_at(now + delay.min(far))
    }

    /// Messages of a higher priority are delivered before those of a lower one, 0 being the lowest. A topic tells apart as
    /// many as it has queues on a broker; higher ones count as the highest. For PRIORITY topics.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// The light queue of the topic that the message goes to: 1 to 64 of `a-z A-Z 0-9 - _`. For LITE topics.
    #[must_use]
    pub fn lite_topic(mut self, lite_topic: impl Into<String>) -> Self {
        self.lite_topic = Some(lite_topic.into());
        self
    }

    /// Not delivered any more when it has been stored for so long, 1 ms to 10 years; it takes the place of the topic's
    /// own time to live. Servers other than Karman do not know it.
    #[must_use]
    pub fn time_to_live(self, time_to_live: Duration) -> Self {
        self.property(TTL_PROPERTY, time_to_live.as_millis().max(1).to_string())
    }

    /// For a message of a transaction: how long after the send the checker is asked when no decision has come, at most
    /// 1 h. Without, the server's own time: 6 s.
    #[must_use]
    pub fn check_after(mut self, duration: Duration) -> Self {
        self.check_after = Some(duration);
        self
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn body_size(&self) -> usize {
        self.body.len()
    }

    /// What the order of the message is kept within: its sends meet at one broker.
    pub(crate) fn order_key(&self) -> Option<&str> {
        self.message_group.as_deref().or(self.lite_topic.as_deref())
    }

    fn kind(&self, in_transaction: bool) -> Result<MessageType, ClientError> {
        let kinds = [
            (self.message_group.is_some(), "a message group", MessageType::Fifo),
            (self.delivery_time.is_some(), "a delivery time", MessageType::Delay),
            (self.priority.is_some(), "a priority", MessageType::Priority),
            (self.lite_topic.is_some(), "a lite topic", MessageType::Lite),
            (in_transaction, "a transaction", MessageType::Transaction),
        ];
        let mut those = kinds.into_iter().filter(|(is_set, ..)| *is_set);
        match (those.next(), those.next()) {
            (None, _) => Ok(MessageType::Normal),
            (Some((.., kind)), None) => Ok(kind),
            (Some((_, one, _)), Some((_, other, _))) => Err(ClientError::InvalidArgument(format!(
                "a message for {:?} has {one} and {other}; it can have one of them",
                self.topic
            ))),
        }
    }

    /// The bytes that travel and are stored; encoded once, whatever the number of attempts.
    pub(crate) fn encode(self, message_id: &str, birth: &Birth<'_>) -> Result<Bytes, ClientError> {
        let kind = self.kind(birth.in_transaction)?;
        let check_after = self.check_after.filter(|_| birth.in_transaction);
        let system_properties = v2::SystemProperties {
            tag: self.tag,
            keys: self.keys,
            message_id: message_id.to_owned(),
            body_encoding: v2::Encoding::Identity.into(),
            message_type: kind.into(),
            born_timestamp: Some(birth.time.into()),
            born_host: birth.host.to_owned(),
            message_group: self.message_group,
            delivery_timestamp: self.delivery_time.map(Into::into),
            priority: self.priority.map(|priority| i32::try_from(priority).unwrap_or(i32::MAX)),
            lite_topic: self.lite_topic,
            orphaned_transaction_recovery_duration: check_after.map(duration),
            ..Default::default()
        };
        let message = v2::Message {
            topic: Some(v2::Resource { resource_namespace: String::new(), name: self.topic }),
            user_properties: self.properties,
            system_properties: Some(system_properties),
            body: self.body,
        };
        Ok(message.encode_to_vec().into())
    }
}

/// Which messages of a topic a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterExpression {
    kind: v2::FilterType,
    expression: String,
}

impl FilterExpression {
    /// All of them.
    pub fn all() -> Self {
        Self::tag("*")
    }

    /// Those with one of the tags: `a`, or `a || b`; `*` means all.
    pub fn tag(expression: impl Into<String>) -> Self {
        Self { kind: v2::FilterType::Tag, expression: expression.into() }
    }

    /// Those whose properties fulfil a condition in RocketMQ's SQL92: `region = 'north' AND price > 10`.
    pub fn sql(expression: impl Into<String>) -> Self {
        Self { kind: v2::FilterType::Sql, expression: expression.into() }
    }

    pub(crate) fn to_proto(&self) -> v2::FilterExpression {
        v2::FilterExpression { r#type: self.kind.into(), expression: self.expression.clone() }
    }
}

/// A duration as the contract writes it; what does not fit is the longest that does.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: Message, in_transaction: bool) -> Result<v2::Message, ClientError> {
        let birth = Birth { time: SystemTime::UNIX_EPOCH, host: "here", in_transaction };
        message.encode("01AB", &birth).map(|bytes| v2::Message::decode(bytes).unwrap())
    }

    fn kind_of(message: Message, in_transaction: bool) -> MessageType {
        encoded(message, in_transaction).unwrap().system_properties.unwrap().message_type()
    }

    #[test]
    fn a_message_is_of_the_kind_that_its_properties_make_it() {
        let message = || Message::new("t", "body");
        assert_eq!(kind_of(message(), false), MessageType::Normal);
        assert_eq!(kind_of(message(), true), MessageType::Transaction);
        assert_eq!(kind_of(message().message_group("g"), false), MessageType::Fifo);
        assert_eq!(kind_of(message().deliver_after(Duration::MAX), false), MessageType::Delay);
        assert_eq!(kind_of(message().priority(u32::MAX), false), MessageType::Priority);
        assert_eq!(kind_of(message().lite_topic("l"), false), MessageType::Lite);
    }

    #[test]
    fn two_kinds_at_once_are_refused_by_name() {
        let both = Message::new("t", "body").message_group("g").priority(1);
        let error = encoded(both, false).unwrap_err().to_string();
        assert!(error.contains("a message group") && error.contains("a priority"), "{error}");
        let both = Message::new("t", "body").deliver_after(Duration::ZERO);
        assert!(matches!(encoded(both, true), Err(ClientError::InvalidArgument(_))));
    }

    #[test]
    fn a_time_to_live_is_a_property_of_at_least_a_millisecond() {
        let ttl = |duration| {
            let message = encoded(Message::new("t", "body").time_to_live(duration), false).unwrap();
            message.user_properties[TTL_PROPERTY].clone()
        };
        assert_eq!((ttl(Duration::ZERO), ttl(Duration::from_secs(2))), ("1".into(), "2000".into()));
    }
}
