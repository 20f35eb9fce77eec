//! What a message must be to be stored: checked here before anything is, in the reference's order. Pure; data threads.

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::MessageType;
use karman_remoting::settings::MAX_BODY_SIZE_BYTES;
use karman_remoting::status::Rejection;
use karman_remoting::validate::{self, label_rule};

use crate::catalog::Topic;
use crate::lite::topics::name_rule;
use crate::service::dead_letter;
use crate::ttl;

/// Messages in one request.
const BATCH_MAX: usize = 4096;
const _: () =
    assert!(BATCH_MAX < karman_remoting::wire::MESSAGES_DECODED_MAX, "what is not decoded is refused");
/// `userPropertyMaxNum`
const USER_PROPERTIES_MAX: usize = 128;
/// `maxUserPropertySize`: keys and values of the user properties, tag and keys together.
const PROPERTIES_SIZE_MAX: usize = 16 * 1024;
/// All of a message but its body. What is checked one by one takes 17 KiB of it; beyond, consumers could not read it.
const ENVELOPE_SIZE_MAX: usize = 64 * 1024;
/// Each is found by the key index; RocketMQ has no limit but that of the properties.
const KEYS_MAX: usize = 1024;
/// Every record of a message id carries it; clients make 34 characters.
const MESSAGE_ID_MAX: usize = 255;

/// `maxMessageGroupSize` is 64, and a message group must have fewer bytes.
const MESSAGE_GROUP_MAX: usize = 63;

/// Names that mean something in RocketMQ and cannot be used for a property of one's own.
const RESERVED: [&str; 48] = [
    "KEYS",
    "TAGS",
    "WAIT",
    "DELAY",
    "RETRY_TOPIC",
    "REAL_TOPIC",
    "REAL_QID",
    "TRAN_MSG",
    "PGROUP",
    "MIN_OFFSET",
    "MAX_OFFSET",
    "BUYER_ID",
    "ORIGIN_MESSAGE_ID",
    "TRANSFER_FLAG",
    "CORRECTION_FLAG",
    "MQ2_FLAG",
    "RECONSUME_TIME",
    "MSG_REGION",
    "TRACE_ON",
    "UNIQ_KEY",
    "EXTEND_UNIQ_INFO",
    "MAX_RECONSUME_TIMES",
    "CONSUME_START_TIME",
    "TRAN_PREPARED_QUEUE_OFFSET",
    "DUP_INFO",
    "INSTANCE_ID",
    "CORRELATION_ID",
    "REPLY_TO_CLIENT",
    "TTL",
    "ARRIVE_TIME",
    "PUSH_REPLY_TIME",
    "CLUSTER",
    "MSG_TYPE",
    "POP_CK",
    "POP_CK_OFFSET",
    "1ST_POP_TIME",
    "INNER_MULTI_QUEUE_OFFSET",
    "TIMER_DELAY_MS",
    "TIMER_DELAY_SEC",
    "TIMER_DELIVER_MS",
    "TIMER_ENQUEUE_MS",
    "TIMER_DEQUEUE_MS",
    "TIMER_ROLL_TIMES",
    "TIMER_OUT_MS",
    "TIMER_DEL_UNIQKEY",
    "TIMER_DELAY_LEVEL",
    "__BORNHOST",
    "__CRC32#",
];
const RESERVED_TOO: [&str; 1] = ["BORN_TIMESTAMP"];

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

/// The checks that need nothing but the message, in the reference's order.
fn check(index: usize, message: &EncodedMessage) -> Result<(), Rejection> {
    let system = &message.system_properties;
    let (size, limit) = (message.body_size, MAX_BODY_SIZE_BYTES);
    if size == 0 {
        return Err(Rejection::BodyEmpty { index });
    }
    if size > limit {
        return Err(Rejection::BodyTooLarge { index, size, limit });
    }
    let envelope = message.bytes.len() - size;
    if envelope > ENVELOPE_SIZE_MAX {
        return Err(Rejection::PropertiesTooLarge { index, size: envelope, limit: ENVELOPE_SIZE_MAX });
    }
    check_properties(index, message)?;
    if let Some(tag) = &system.tag {
        let rule =
            label_rule(tag).or_else(|| tag.contains('|').then_some("it holds |, which separates tags"));
        if let Some(rule) = rule {
            return Err(Rejection::IllegalTag { index, tag: validate::shortened(tag), rule });
        }
    }
    if let Some(key) = system.keys.get(KEYS_MAX) {
        let (key, rule) = (validate::shortened(key), "at most 1024 keys are possible, and this is one more");
        return Err(Rejection::IllegalKey { index, key, rule });
    }
    for key in &system.keys {
        if let Some(rule) = label_rule(key) {
            return Err(Rejection::IllegalKey { index, key: validate::shortened(key), rule });
        }
    }
    if let Some(group) = &system.message_group {
        let rule =
            label_rule(group).or((group.len() > MESSAGE_GROUP_MAX).then_some("it is longer than 63 bytes"));
        if let Some(rule) = rule {
            return Err(Rejection::IllegalMessageGroup { index, rule });
        }
    }
    if let Some(rule) = system.lite_topic.as_deref().and_then(name_rule) {
        let name = validate::shortened(system.lite_topic());
        return Err(Rejection::IllegalLiteTopic { name, rule });
    }
    if system.priority.is_some_and(|priority| priority < 0) {
        return Err(Rejection::BadRequest(format!(
            "the priority of message {index} is {}, it must not be negative",
            system.priority()
        )));
    }
    match system.message_id.len() {
        0 => Err(Rejection::IllegalMessageId { index, rule: "it is blank" }),
        1..=MESSAGE_ID_MAX if !system.message_id.trim().is_empty() => Ok(()),
        1..=MESSAGE_ID_MAX => Err(Rejection::IllegalMessageId { index, rule: "it is blank" }),
        _ => Err(Rejection::IllegalMessageId { index, rule: "it is longer than 255 bytes" }),
    }
}

fn check_properties(index: usize, message: &EncodedMessage) -> Result<(), Rejection> {
    let system = &message.system_properties;
    let count = message.user_properties.len();
    if count > USER_PROPERTIES_MAX {
        return Err(Rejection::TooManyProperties { index, count, limit: USER_PROPERTIES_MAX });
    }
    let labels = system.tag.iter().chain(&system.keys).map(String::len);
    let properties = message.user_properties.iter().map(|(key, value)| key.len() + value.len());
    let size: usize = labels.chain(properties).sum();
    if size > PROPERTIES_SIZE_MAX {
        return Err(Rejection::PropertiesTooLarge { index, size, limit: PROPERTIES_SIZE_MAX });
    }
    for (key, value) in &message.user_properties {
        // Reading the message has checked that both are UTF-8.
        let (key, value) = (std::str::from_utf8(key).unwrap_or(""), std::str::from_utf8(value).unwrap_or(""));
        let rule = if RESERVED.contains(&key)
            || RESERVED_TOO.contains(&key)
            || dead_letter::PROPERTIES.contains(&key)
        {
            Some("this name is reserved for the system")
        } else if key == ttl::PROPERTY {
            ttl::parse(value).err()
        } else if key.trim().is_empty() {
            Some("the key is blank")
        } else if key.chars().any(char::is_control) || value.chars().any(char::is_control) {
            Some("key or value hold a control character")
        } else {
            None
        };
        if let Some(rule) = rule {
            return Err(Rejection::IllegalPropertyKey { index, key: validate::shortened(key), rule });
        }
    }
    Ok(())
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
