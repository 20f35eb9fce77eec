//! What is sent, what is received, and what a consumer wants of a topic. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use karman_remoting::proto::v2;
use prost::Message as _;

use crate::error::ClientError;
use crate::route::BrokerRoute;

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    topic: String,
    body: Bytes,
    tag: Option<String>,
    keys: Vec<String>,
    properties: HashMap<String, String>,
    message_group: Option<String>,
    delivery_time: Option<SystemTime>,
    priority: Option<i32>,
    lite_topic: Option<String>,
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

    /// Messages of one group are delivered in the order of their sends, one after the other; for topics of type FIFO.
    #[must_use]
    pub fn message_group(mut self, group: impl Into<String>) -> Self {
        self.message_group = Some(group.into());
        self
    }

    /// It is not delivered before this time; for topics of type DELAY.
    #[must_use]
    pub fn delivery_time(mut self, at: SystemTime) -> Self {
        self.delivery_time = Some(at);
        self
    }

    /// Of what waits, the highest priority is delivered first; for topics of type PRIORITY.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// The light queue it goes to; for topics of type LITE.
    #[must_use]
    pub fn lite_topic(mut self, name: impl Into<String>) -> Self {
        self.lite_topic = Some(name.into());
        self
    }

    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn group(&self) -> Option<&str> {
        self.message_group.as_deref()
    }

    fn message_type(&self) -> v2::MessageType {
        if self.message_group.is_some() {
            v2::MessageType::Fifo
        } else if self.delivery_time.is_some() {
            v2::MessageType::Delay
        } else if self.priority.is_some() {
            v2::MessageType::Priority
        } else if self.lite_topic.is_some() {
            v2::MessageType::Lite
        } else {
            v2::MessageType::Normal
        }
    }

    pub(crate) fn body_size(&self) -> usize {
        self.body.len()
    }

    /// The bytes that travel and are stored; encoded once, whatever the number of attempts.
    pub(crate) fn encode(self, message_id: &str, born: SystemTime, born_host: &str) -> Bytes {
        let message_type = self.message_type();
        let system_properties = v2::SystemProperties {
            tag: self.tag,
            keys: self.keys,
            message_id: message_id.to_owned(),
            body_encoding: v2::Encoding::Identity.into(),
            message_type: message_type.into(),
            born_timestamp: Some(born.into()),
            born_host: born_host.to_owned(),
            message_group: self.message_group,
            delivery_timestamp: self.delivery_time.map(Into::into),
            priority: self.priority,
            lite_topic: self.lite_topic,
            ..Default::default()
        };
        let message = v2::Message {
            topic: Some(v2::Resource { resource_namespace: String::new(), name: self.topic }),
            user_properties: self.properties,
            system_properties: Some(system_properties),
            body: self.body,
        };
        message.encode_to_vec().into()
    }
}

/// Which messages of a topic a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterExpression(String);

impl FilterExpression {
    /// All of them.
    pub fn all() -> Self {
        Self("*".into())
    }

    /// Those with one of the tags: `a`, or `a || b`; `*` means all.
    pub fn tag(expression: impl Into<String>) -> Self {
        Self(expression.into())
    }

    pub(crate) fn to_proto(&self) -> v2::FilterExpression {
        v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: self.0.clone() }
    }
}

/// A message as a broker delivered it. It stays invisible to the other consumers of the group until it is
/// acknowledged or its invisible duration is over.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedMessage {
    topic: String,
    body: Bytes,
    user_properties: HashMap<String, String>,
    system_properties: v2::SystemProperties,
    broker: Arc<BrokerRoute>,
}

impl ReceivedMessage {
    pub(crate) fn decode(bytes: Bytes, broker: &Arc<BrokerRoute>) -> Result<Self, ClientError> {
        let bad = |why: &str| ClientError::protocol(&broker.endpoint, why);
        let message =
            v2::Message::decode(bytes).map_err(|error| bad(&format!("an unreadable message: {error}")))?;
        let topic = message.topic.ok_or_else(|| bad("a message without topic"))?.name;
        let system_properties =
            message.system_properties.ok_or_else(|| bad("a message without system properties"))?;
        if system_properties.receipt_handle().is_empty() {
            return Err(bad("a message without receipt handle"));
        }
        let (user_properties, body) = (message.user_properties, message.body);
        Ok(Self { topic, body, user_properties, system_properties, broker: broker.clone() })
    }

    /// The topic it was sent to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What the producer sent, as it sent it.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Made by the producer's client; the same on every delivery, and on every attempt of a send.
    pub fn message_id(&self) -> &str {
        &self.system_properties.message_id
    }

    /// The producer's tag.
    pub fn tag(&self) -> Option<&str> {
        self.system_properties.tag.as_deref()
    }

    /// The producer's keys, in its order.
    pub fn keys(&self) -> &[String] {
        &self.system_properties.keys
    }

    /// The producer's own properties.
    pub fn properties(&self) -> &HashMap<String, String> {
        &self.user_properties
    }

    /// 1 on the first delivery.
    pub fn delivery_attempt(&self) -> i32 {
        self.system_properties.delivery_attempt()
    }

    /// When the producer made it, by the producer's clock.
    pub fn born_time(&self) -> Option<SystemTime> {
        self.system_properties.born_timestamp.and_then(|time| time.try_into().ok())
    }

    /// When the broker stored it, by the broker's clock.
    pub fn store_time(&self) -> Option<SystemTime> {
        self.system_properties.store_timestamp.and_then(|time| time.try_into().ok())
    }

    /// The broker that holds it.
    pub fn broker(&self) -> &str {
        &self.broker.name
    }

    /// Its queue on that broker.
    pub fn queue_id(&self) -> i32 {
        self.system_properties.queue_id
    }

    /// Its place in the queue.
    pub fn queue_offset(&self) -> i64 {
        self.system_properties.queue_offset()
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.broker.endpoint
    }

    pub(crate) fn receipt_handle(&self) -> &str {
        self.system_properties.receipt_handle()
    }

    pub(crate) fn set_receipt_handle(&mut self, handle: String) {
        self.system_properties.receipt_handle = Some(handle);
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

    #[test]
    fn what_is_sent_is_what_is_received() {
        let message = Message::new("orders", "a book").tag("new").key("k1").key("k2").property("a", "1");
        let born = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let sent = message.encode("01AB", born, "here");

        let mut delivered = v2::Message::decode(sent).unwrap();
        let broker = Arc::new(BrokerRoute::new("broker-a", "n:1", v2::Endpoints::default()));
        let without_handle = ReceivedMessage::decode(delivered.encode_to_vec().into(), &broker);
        assert!(matches!(without_handle, Err(ClientError::Protocol { .. })));

        delivered.system_properties.as_mut().unwrap().receipt_handle = Some("handle".into());
        let received = ReceivedMessage::decode(delivered.encode_to_vec().into(), &broker).unwrap();
        assert_eq!((received.topic(), received.body().as_ref()), ("orders", &b"a book"[..]));
        assert_eq!((received.tag(), received.message_id()), (Some("new"), "01AB"));
        assert_eq!(received.keys(), ["k1", "k2"]);
        assert_eq!(received.properties()["a"], "1");
        assert_eq!(received.born_time(), Some(born));
        assert_eq!(received.broker(), "broker-a");
    }

    #[test]
    fn what_a_message_has_makes_its_type() {
        let message = || Message::new("orders", "a book");
        let type_of = |message: Message| {
            let sent = message.encode("01AB", SystemTime::UNIX_EPOCH, "here");
            v2::Message::decode(sent).unwrap().system_properties.unwrap().message_type()
        };
        assert_eq!(type_of(message()), v2::MessageType::Normal);
        assert_eq!(type_of(message().message_group("g")), v2::MessageType::Fifo);
        assert_eq!(type_of(message().delivery_time(SystemTime::UNIX_EPOCH)), v2::MessageType::Delay);
        assert_eq!(type_of(message().priority(1)), v2::MessageType::Priority);
        assert_eq!(type_of(message().lite_topic("l")), v2::MessageType::Lite);
    }

    #[test]
    fn a_delivery_that_cannot_be_read_is_an_error() {
        let broker = Arc::new(BrokerRoute::new("broker-a", "n:1", v2::Endpoints::default()));
        assert!(ReceivedMessage::decode(Bytes::from_static(b"\xff"), &broker).is_err());
        assert!(ReceivedMessage::decode(Bytes::new(), &broker).is_err());
    }
}
