//! Messages as brokers show them. Pure.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use karman_remoting::proto::v2;
use prost::Message as _;

use crate::error::ClientError;
use crate::route::BrokerRoute;

/// A stored message.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageView {
    topic: String,
    body: Bytes,
    user_properties: HashMap<String, String>,
    system_properties: v2::SystemProperties,
}

impl MessageView {
    /// What `endpoint` sent as `bytes`.
    pub(crate) fn decode(bytes: Bytes, endpoint: &str) -> Result<Self, ClientError> {
        let message = v2::Message::decode(bytes)
            .map_err(|error| ClientError::protocol(endpoint, format!("an unreadable message: {error}")))?;
        Self::of(message, endpoint)
    }

    pub(crate) fn of(message: v2::Message, endpoint: &str) -> Result<Self, ClientError> {
        let bad = |why: &str| ClientError::protocol(endpoint, why);
        let topic = message.topic.ok_or_else(|| bad("a message without topic"))?.name;
        let system_properties =
            message.system_properties.ok_or_else(|| bad("a message without system properties"))?;
        let (user_properties, body) = (message.user_properties, message.body);
        Ok(Self { topic, body, user_properties, system_properties })
    }

    /// The topic it was sent to; of a dead letter the topic of the dead letters.
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

    /// One of [`MessageView::properties`].
    pub fn property(&self, name: &str) -> Option<&str> {
        self.user_properties.get(name).map(String::as_str)
    }

    /// What its order is kept within.
    pub fn message_group(&self) -> Option<&str> {
        self.system_properties.message_group.as_deref()
    }

    /// Before this time it was not to be delivered.
    pub fn delivery_time(&self) -> Option<SystemTime> {
        self.system_properties.delivery_timestamp.and_then(|time| time.try_into().ok())
    }

    /// Of a message that has one.
    pub fn priority(&self) -> Option<u32> {
        self.system_properties.priority.and_then(|priority| u32::try_from(priority).ok())
    }

    /// The light queue of its topic that it was sent to.
    pub fn lite_topic(&self) -> Option<&str> {
        self.system_properties.lite_topic.as_deref()
    }

    /// Of a dead letter: the topic in which it died.
    pub fn dead_letter_topic(&self) -> Option<&str> {
        Some(&self.system_properties.dead_letter_queue.as_ref()?.topic)
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

    /// Its queue on its broker.
    pub fn queue_id(&self) -> i32 {
        self.system_properties.queue_id
    }

    /// Its place in the queue.
    pub fn queue_offset(&self) -> i64 {
        self.system_properties.queue_offset()
    }
}

/// A message as a broker delivered it; all that a [`MessageView`] says can be asked of it.
///
/// It stays invisible to the other consumers of the group until it is acknowledged or its invisible duration is over.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedMessage {
    view: MessageView,
    broker: Arc<BrokerRoute>,
}

impl Deref for ReceivedMessage {
    type Target = MessageView;

    fn deref(&self) -> &MessageView {
        &self.view
    }
}

/// What is said to a broker about a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) endpoint: String,
    pub(crate) topic: String,
    pub(crate) message_id: String,
    pub(crate) handle: String,
    pub(crate) delivery_attempt: i32,
}

impl ReceivedMessage {
    pub(crate) fn decode(bytes: Bytes, broker: &Arc<BrokerRoute>) -> Result<Self, ClientError> {
        let view = MessageView::decode(bytes, &broker.endpoint)?;
        if view.system_properties.receipt_handle().is_empty() {
            return Err(ClientError::protocol(&broker.endpoint, "a message without receipt handle"));
        }
        Ok(Self { view, broker: broker.clone() })
    }

    /// The broker that holds it.
    pub fn broker(&self) -> &str {
        &self.broker.name
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.broker.endpoint
    }

    pub(crate) fn receipt_handle(&self) -> &str {
        self.view.system_properties.receipt_handle()
    }

    pub(crate) fn set_receipt_handle(&mut self, handle: String) {
        self.view.system_properties.receipt_handle = Some(handle);
    }

    pub(crate) fn receipt(&self) -> Receipt {
        Receipt {
            endpoint: self.endpoint().to_owned(),
            topic: self.view.topic.clone(),
            message_id: self.message_id().to_owned(),
            handle: self.receipt_handle().to_owned(),
            delivery_attempt: self.delivery_attempt(),
        }
    }

    pub(crate) fn into_view(self) -> MessageView {
        self.view
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Birth, Message};

    fn broker() -> Arc<BrokerRoute> {
        Arc::new(BrokerRoute::new("broker-a", "n:1", v2::Endpoints::default()))
    }

    #[test]
    fn what_is_sent_is_what_is_received() {
        let message = Message::new("orders", "a book").tag("new").key("k1").key("k2").property("a", "1");
        let born = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let birth = Birth { time: born, host: "here", in_transaction: false };
        let sent = message.message_group("17").encode(0, "01AB".into(), &birth).unwrap().bytes;

        let mut delivered = v2::Message::decode(sent).unwrap();
        let without_handle = ReceivedMessage::decode(delivered.encode_to_vec().into(), &broker());
        assert!(matches!(without_handle, Err(ClientError::Protocol { .. })));

        delivered.system_properties.as_mut().unwrap().receipt_handle = Some("handle".into());
        let received = ReceivedMessage::decode(delivered.encode_to_vec().into(), &broker()).unwrap();
        assert_eq!((received.topic(), received.body().as_ref()), ("orders", &b"a book"[..]));
        assert_eq!((received.tag(), received.message_id()), (Some("new"), "01AB"));
        assert_eq!(received.keys(), ["k1", "k2"]);
        assert_eq!((received.property("a"), received.message_group()), (Some("1"), Some("17")));
        assert_eq!(received.born_time(), Some(born));
        assert_eq!(received.broker(), "broker-a");
    }

    #[test]
    fn a_delivery_that_cannot_be_read_is_an_error() {
        assert!(ReceivedMessage::decode(Bytes::from_static(b"\xff"), &broker()).is_err());
        assert!(ReceivedMessage::decode(Bytes::new(), &broker()).is_err());
    }
}
