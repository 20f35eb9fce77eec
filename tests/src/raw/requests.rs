//! Messages and requests that are in order, for tests to change.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use karman_remoting::proto::v2;
use prost_types::Timestamp;

/// The name as the protocol carries it.
#[allow(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
pub fn resource(name: &str) -> Option<v2::Resource> {
    Some(v2::Resource { resource_namespace: String::new(), name: name.to_owned() })
}

/// A message that is in order.
pub fn message(topic: &str, id: &str) -> v2::Message {
    v2::Message {
        topic: resource(topic),
        body: Bytes::from_static(b"body"),
        system_properties: Some(v2::SystemProperties {
            message_id: id.to_owned(),
            message_type: v2::MessageType::Normal.into(),
            body_encoding: v2::Encoding::Identity.into(),
            born_host: "test".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// One that is to be delivered at `due_ms`, milliseconds since 1970.
pub fn delayed(topic: &str, id: &str, due_ms: i64) -> v2::Message {
    let mut message = message(topic, id);
    let system = message.system_properties.as_mut().unwrap();
    system.set_message_type(v2::MessageType::Delay);
    let nanos = i32::try_from(due_ms.rem_euclid(1000)).unwrap() * 1_000_000;
    system.delivery_timestamp = Some(Timestamp { seconds: due_ms.div_euclid(1000), nanos });
    message
}

/// The time of this machine, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A time of the protocol, in milliseconds since 1970.
pub fn millis(time: &Timestamp) -> i64 {
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

/// A request for messages that is in order: all queues of all brokers, 30 s of invisibility, 5 s of patience.
pub fn receive_request(topic: &str, group: &str, broker: &str) -> v2::ReceiveMessageRequest {
    v2::ReceiveMessageRequest {
        group: resource(group),
        message_queue: Some(v2::MessageQueue {
            topic: resource(topic),
            broker: Some(v2::Broker { name: broker.to_owned(), ..Default::default() }),
            ..Default::default()
        }),
        batch_size: 32,
        invisible_duration: Some(seconds(30)),
        long_polling_timeout: Some(seconds(5)),
        ..Default::default()
    }
}

/// A duration of whole seconds.
pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}
