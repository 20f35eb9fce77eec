//! What a message must be, whatever the topic: the checks that need nothing but the message. Pure; data threads of a
//! broker, and any task of a client, which so refuses in the same words what a broker would refuse.

use crate::proto::v2::SystemProperties;
use crate::settings::MAX_BODY_SIZE_BYTES;
use crate::status::Rejection;
use crate::validate::{label_rule, shortened};

/// Messages in one request.
pub const BATCH_MAX: usize = 4096;
const _: () = assert!(BATCH_MAX < crate::wire::MESSAGES_DECODED_MAX, "what is not decoded is refused");
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
/// `maxLiteTopicSize`: bytes of a name.
const LITE_TOPIC_MAX: usize = 64;

/// The user property with a message's own time to live: milliseconds from when it was stored.
pub const TTL_PROPERTY: &str = "KARMAN_TTL_MS";
/// Ten years.
const TTL_MAX_MS: u64 = 10 * 365 * 86_400_000;

/// User properties of a dead letter that say where it came from and why it is dead: topic, message id, reason, attempts.
/// Producers may not use these names.
pub const DEAD_LETTER_PROPERTIES: [&str; 4] =
    ["DLQ_ORIGIN_TOPIC", "DLQ_ORIGIN_MESSAGE_ID", "DLQ_REASON", "DLQ_ATTEMPTS"];

/// Names that mean something in RocketMQ and cannot be used for a property of one's own.
const RESERVED: [&str; 49] = [
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
    "BORN_TIMESTAMP",
];

/// Why a name is no lite topic; `None` when it is one.
pub fn lite_topic_rule(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > LITE_TOPIC_MAX {
        Some("it must have 1 to 64 bytes")
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        Some("only the characters a-z A-Z 0-9 - _ may be used")
    } else {
        None
    }
}

/// Reads a time to live in milliseconds; `Err` with the rule that the text breaks.
pub fn time_to_live_ms(text: &str) -> Result<u64, &'static str> {
    let millis = text.parse().ok().filter(|millis| (1..=TTL_MAX_MS).contains(millis));
    millis.ok_or("it is milliseconds, a whole number from 1 to 315360000000")
}

/// What is to be known of a message, as it came or before it goes.
#[derive(Clone, Copy, Debug)]
pub struct Outline<'a> {
    /// Bytes.
    pub body_size: usize,
    /// Bytes of the encoded message without its body.
    pub envelope_size: usize,
    /// Without the fields that only a broker writes.
    pub system: &'a SystemProperties,
}

/// Checks the message at `index` of its request, in the reference's order. `properties` are its user properties.
pub fn check<'a>(
    index: usize,
    message: Outline<'a>,
    properties: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Rejection> {
    let (system, size, limit) = (message.system, message.body_size, MAX_BODY_SIZE_BYTES);
    if size == 0 {
        return Err(Rejection::BodyEmpty { index });
    }
    if size > limit {
        return Err(Rejection::BodyTooLarge { index, size, limit });
    }
    if message.envelope_size > ENVELOPE_SIZE_MAX {
        let (size, limit) = (message.envelope_size, ENVELOPE_SIZE_MAX);
        return Err(Rejection::PropertiesTooLarge { index, size, limit });
    }
    check_properties(index, system, properties)?;
    check_labels(index, system)?;
    match system.message_id.len() {
        0 => Err(Rejection::IllegalMessageId { index, rule: "it is blank" }),
        1..=MESSAGE_ID_MAX if !system.message_id.trim().is_empty() => Ok(()),
        1..=MESSAGE_ID_MAX => Err(Rejection::IllegalMessageId { index, rule: "it is blank" }),
        _ => Err(Rejection::IllegalMessageId { index, rule: "it is longer than 255 bytes" }),
    }
}

/// Tag, keys, message group, lite topic and priority.
fn check_labels(index: usize, system: &SystemProperties) -> Result<(), Rejection> {
    if let Some(tag) = &system.tag {
        let rule =
            label_rule(tag).or_else(|| tag.contains('|').then_some("it holds |, which separates tags"));
        if let Some(rule) = rule {
            return Err(Rejection::IllegalTag { index, tag: shortened(tag), rule });
        }
    }
    if let Some(key) = system.keys.get(KEYS_MAX) {
        let (key, rule) = (shortened(key), "at most 1024 keys are possible, and this is one more");
        return Err(Rejection::IllegalKey { index, key, rule });
    }
    for key in &system.keys {
        if let Some(rule) = label_rule(key) {
            return Err(Rejection::IllegalKey { index, key: shortened(key), rule });
        }
    }
    if let Some(group) = &system.message_group {
        let rule =
            label_rule(group).or((group.len() > MESSAGE_GROUP_MAX).then_some("it is longer than 63 bytes"));
        if let Some(rule) = rule {
            return Err(Rejection::IllegalMessageGroup { index, rule });
        }
    }
    if let Some(rule) = system.lite_topic.as_deref().and_then(lite_topic_rule) {
        let name = shortened(system.lite_topic());
        return Err(Rejection::IllegalLiteTopic { name, rule });
    }
    if system.priority.is_some_and(|priority| priority < 0) {
        return Err(Rejection::BadRequest(format!(
            "the priority of message {index} is {}, it must not be negative",
            system.priority()
        )));
    }
    Ok(())
}

fn check_properties<'a>(
    index: usize,
    system: &SystemProperties,
    properties: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Rejection> {
    let count = properties.len();
    if count > USER_PROPERTIES_MAX {
        return Err(Rejection::TooManyProperties { index, count, limit: USER_PROPERTIES_MAX });
    }
    let mut size: usize = system.tag.iter().chain(&system.keys).map(String::len).sum();
    let mut broken = None;
    for (key, value) in properties {
        size += key.len() + value.len();
        broken = broken.or_else(|| property_rule(key, value).map(|rule| (key, rule)));
    }
    if size > PROPERTIES_SIZE_MAX {
        return Err(Rejection::PropertiesTooLarge { index, size, limit: PROPERTIES_SIZE_MAX });
    }
    match broken {
        Some((key, rule)) => Err(Rejection::IllegalPropertyKey { index, key: shortened(key), rule }),
        None => Ok(()),
    }
}

/// Why a message may not have this user property.
fn property_rule(key: &str, value: &str) -> Option<&'static str> {
    if RESERVED.contains(&key) || DEAD_LETTER_PROPERTIES.contains(&key) {
        Some("this name is reserved for the system")
    } else if key == TTL_PROPERTY {
        time_to_live_ms(value).err()
    } else if key.trim().is_empty() {
        Some("the key is blank")
    } else if key.chars().any(char::is_control) || value.chars().any(char::is_control) {
        Some("key or value hold a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lite_topics_have_64_bytes_of_few_characters() {
        for good in ["a", "A-Z_09", &"x".repeat(64)] {
            assert_eq!(lite_topic_rule(good), None, "{good}");
        }
        for bad in ["", " ", "a.b", "a/b", "ä", "a%b", "a\u{7}", &"x".repeat(65)] {
            assert!(lite_topic_rule(bad).is_some(), "{bad:?}");
        }
    }
}
