//! What a message must be to be stored: checked here before anything is, in the reference's order. Pure; data threads.

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::MessageType;
use karman_remoting::settings::MAX_BODY_SIZE_BYTES;
use karman_remoting::status::Rejection;
use karman_remoting::validate;
use karman_remoting::validate::message::{BATCH_MAX, Outline};

use crate::catalog::Topic;

/// Reads and checks all messages before any is stored: a request is taken as a whole or leaves no trace.
pub fn read(encoded: Vec<Bytes>) -> Result<Vec<EncodedMessage>, Rejection> {
    if encoded.is_empty() {
        return Err(Rejection::NoMessage);
    }
    if encoded.len() > BATCH_MAX {
        return Err(Rejection::TooManyMessages { count: encoded.len(), limit: BATCH_MAX });
    }
    let mut messages: Vec<EncodedMessage> = Vec::with_capacity(encoded.len());
    let mut size = 0;
    for (index, bytes) in encoded.into_iter().enumerate() {
        let message = EncodedMessage::read(bytes)
            .map_err(|error| Rejection::MessageCorrupted { index, why: error.to_string() })?;
        match messages.first() {
            None => validate::topic(&message.topic)?,
            Some(first) if first.topic != message.topic => {
                return Err(Rejection::MixedTopics {
                    first: validate::shortened(&first.topic),
                    other: validate::shortened(&message.topic),
                });
            }
            Some(_) => {}
        }
        check(index, &message)?;
        size += message.body_size;
        messages.push(message);
    }
    if size > MAX_BODY_SIZE_BYTES {
        return Err(Rejection::BatchTooLarge { size, limit: MAX_BODY_SIZE_BYTES });
    }
    Ok(messages)
}

fn check(index: usize, message: &EncodedMessage) -> Result<(), Rejection> {
    let outline = Outline {
        body_size: message.body_size,
        envelope_size: message.bytes.len() - message.body_size,
        system: &message.system_properties,
    };
    // Reading the message has checked that both are UTF-8.
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or("");
    let properties = message.user_properties.iter().map(|(key, value)| (text(key), text(value)));
    validate::message::check(index, outline, properties)
}

/// The type a message declares must be the one its properties make it, and the one the topic takes.
pub fn message_type(index: usize, system: &v2::SystemProperties, topic: &Topic) -> Result<(), Rejection> {
    let has = [
        (system.message_group.is_some(), MessageType::Fifo),
        (system.delivery_timestamp.is_some(), MessageType::Delay),
        (system.priority.is_some(), MessageType::Priority),
        (system.lite_topic.is_some(), MessageType::Lite),
    ];
    let mut types = has.into_iter().filter_map(|(has, own)| has.then_some(own));
    let derived = types.next().unwrap_or(MessageType::Normal);
    if let Some(other) = types.next() {
        // One of them would be passed over in silence.
        let (declared, derived) = (derived.as_str_name(), other.as_str_name());
        return Err(Rejection::TypeMismatch { index, declared, derived });
    }
    let declared = match system.message_type() {
        MessageType::Unspecified => derived,
        declared => declared,
    };
    // A transactional message has no property that makes it one.
    if declared != derived && !(declared == MessageType::Transaction && derived == MessageType::Normal) {
        return Err(Rejection::TypeMismatch {
            index,
            declared: declared.as_str_name(),
            derived: derived.as_str_name(),
        });
    }
    if declared != topic.message_type() {
        return Err(Rejection::TypeConflict {
            index,
            topic: topic.name().to_owned(),
            declared: declared.as_str_name(),
            accepted: topic.message_type().as_str_name(),
        });
    }
    Ok(())
}

/// Official clients send all that consumers need; for others the missing fields are written in, once.
pub fn complete(index: usize, message: EncodedMessage, topic: &Topic) -> Result<EncodedMessage, Rejection> {
    let system = &message.system_properties;
    let whole = system.body_encoding() != v2::Encoding::Unspecified
        && system.message_type() != MessageType::Unspecified
        && system.born_timestamp.is_some()
        && system.dead_letter_queue.is_none();
    if whole {
        return Ok(message);
    }
    let mut system = system.clone();
    system.dead_letter_queue = None;
    if system.body_encoding() == v2::Encoding::Unspecified {
        system.set_body_encoding(v2::Encoding::Identity);
    }
    system.set_message_type(topic.message_type());
    system.born_timestamp.get_or_insert_with(|| std::time::SystemTime::now().into());
    let corrupted = |error: karman_remoting::message::MessageError| Rejection::MessageCorrupted {
        index,
        why: error.to_string(),
    };
    message.with_system_properties(&system).map_err(corrupted)
}
