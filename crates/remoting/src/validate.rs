//! The rules for names and expressions, checked at the edge before anything else. Pure; any thread.
//!
//! The rules are RocketMQ's (`grpc-protocol.md` 4.1 and 4.5 name the reference's limits).

pub mod message;

use crate::proto::v2::{FilterExpression, Resource};
use crate::status::Rejection;

/// Longest topic name a user may give, in characters; `%RETRY%` and `%DLQ%` names may reach 255.
const TOPIC_MAX_CHARS: usize = 127;
const DERIVED_TOPIC_MAX_CHARS: usize = 255;
const GROUP_MAX_CHARS: usize = 120;
/// More alternatives than this in `a || b || ...` are refused: each is compared with each message.
const TAGS_MAX: usize = 256;

/// What the dead letters of `group` are kept in.
pub fn dead_letter_topic(group: &str) -> String {
    format!("{DEAD_LETTER_PREFIX}{group}")
}

/// Prefix of dead-letter topics.
pub const DEAD_LETTER_PREFIX: &str = "%DLQ%";
const RETRY_PREFIX: &str = "%RETRY%";

/// What transactions that nobody decided end in. Consumers read it as they read dead letters, so it is not reserved.
pub const TRANSACTIONS_GIVEN_UP_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";

const SYSTEM_TOPICS: [&str; 10] = [
    "TBW102",
    "SCHEDULE_TOPIC_XXXX",
    "BenchmarkTest",
    "RMQ_SYS_TRANS_HALF_TOPIC",
    "RMQ_SYS_TRANS_OP_HALF_TOPIC",
    "RMQ_SYS_TRACE_TOPIC",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CHECKPOINT_TOPIC",
    "DefaultHeartBeatSyncerTopic",
];

fn name_rule(name: &str, max_chars: usize) -> Result<(), &'static str> {
    if name.trim().is_empty() {
        return Err("it is empty");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'%' | b'|' | b'-' | b'_')) {
        return Err("only the characters a-z A-Z 0-9 % | - _ may be used");
    }
    if name.len() > max_chars {
        return Err(if max_chars == GROUP_MAX_CHARS {
            "it is longer than 120 characters"
        } else if max_chars == TOPIC_MAX_CHARS {
            "it is longer than 127 characters"
        } else {
            "it is longer than 255 characters"
        });
    }
    Ok(())
}

/// Whether a broker or a cluster may be called so: 1 to 127 of `a-z A-Z 0-9 - _ .`; a token has room for no more.
pub fn is_node_name(name: &str) -> bool {
    (1..=127).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Checks a topic name that a client or an operator gave.
pub fn topic(name: &str) -> Result<(), Rejection> {
    let derived = name.starts_with(DEAD_LETTER_PREFIX) || name.starts_with(RETRY_PREFIX);
    let max_chars = if derived { DERIVED_TOPIC_MAX_CHARS } else { TOPIC_MAX_CHARS };
    let rule = name_rule(name, max_chars).err().or_else(|| {
        (SYSTEM_TOPICS.contains(&name) || name.starts_with("rmq_sys_"))
            .then_some("this name is reserved for the system")
    });
    rule.map_or(Ok(()), |rule| Err(Rejection::IllegalTopic { name: shortened(name), rule }))
}

/// Checks a consumer group name.
pub fn group(name: &str) -> Result<(), Rejection> {
    let rule = name_rule(name, GROUP_MAX_CHARS)
        .err()
        .or_else(|| name.starts_with("CID_RMQ_SYS_").then_some("this name is reserved for the system"));
    rule.map_or(Ok(()), |rule| Err(Rejection::IllegalGroup { name: shortened(name), rule }))
}

/// The name in an optional `Resource`, as it is.
pub(crate) fn name_of(resource: Option<&Resource>) -> &str {
    resource.map_or("", |resource| resource.name.as_str())
}

/// The name in an optional `Resource`, checked as a topic. The namespace is not part of the name, as in the reference.
pub fn topic_of(resource: Option<&Resource>) -> Result<&str, Rejection> {
    let name = name_of(resource);
    topic(name).map(|()| name)
}

/// The name in an optional `Resource`, checked as a consumer group.
pub fn group_of(resource: Option<&Resource>) -> Result<&str, Rejection> {
    let name = name_of(resource);
    group(name).map(|()| name)
}

/// Why a tag or key is refused.
pub fn label_rule(text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        Some("it is blank")
    } else if text.chars().any(char::is_control) {
        Some("it holds a control character")
    } else {
        None
    }
}

/// A tag subscription: everything, or any of these tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagFilter {
    /// `*`
    All,
    /// `a || b`, without duplicates.
    AnyOf(Vec<String>),
}

/// Reads the filter of a subscription; an absent one is `*`.
pub fn tag_filter(expression: Option<&FilterExpression>) -> Result<TagFilter, Rejection> {
    let Some(filter) = expression else { return Ok(TagFilter::All) };
    let text = filter.expression.trim();
    if text.is_empty() || text == "*" {
        return Ok(TagFilter::All);
    }
    let refused =
        |rule: &str| Rejection::IllegalFilter { expression: shortened(text), rule: rule.to_owned() };
    let mut tags: Vec<String> = Vec::new();
    for tag in text.split("||").map(str::trim) {
        if let Some(rule) = label_rule(tag) {
            return Err(refused(rule));
        }
        if tag.contains('|') {
            return Err(refused("alternatives are separated by ||"));
        }
        if tags.len() == TAGS_MAX {
            return Err(refused("it has more than 256 alternatives"));
        }
        if !tags.iter().any(|known| known == tag) {
            tags.push(tag.to_owned());
        }
    }
    Ok(TagFilter::AnyOf(tags))
}

/// Enough of a refused value to recognise it in an error text.
pub fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 64;
    if text.chars().count() <= SHOWN_CHARS {
        return text.to_owned();
    }
    let mut start: String = text.chars().take(SHOWN_CHARS).collect();
    start.push('…');
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v2::FilterType;

    fn tags(expression: &str) -> Result<TagFilter, Rejection> {
        tag_filter(Some(&FilterExpression { r#type: FilterType::Tag.into(), expression: expression.into() }))
    }

    #[test]
    fn names_follow_rocketmqs_rules() {
        for name in ["orders", "a-b_C9", "%DLQ%group", &"x".repeat(127)] {
            assert_eq!(topic(name), Ok(()), "{name}");
        }
        for name in ["", "  ", "a.b", "a/b", "ä", "TBW102", "rmq_sys_x", &"x".repeat(128)] {
            assert!(matches!(topic(name), Err(Rejection::IllegalTopic { .. })), "{name}");
        }
        assert_eq!(topic(&dead_letter_topic(&"g".repeat(120))), Ok(()));
        assert!(group(&"g".repeat(121)).is_err() && group("CID_RMQ_SYS_x").is_err());
    }

    #[test]
    fn tag_filters_are_split_and_trimmed() {
        assert_eq!(tags("*"), Ok(TagFilter::All));
        assert_eq!(tags(""), Ok(TagFilter::All));
        assert_eq!(tags(" a || b||a "), Ok(TagFilter::AnyOf(vec!["a".into(), "b".into()])));
        for bad in ["a||", "a|b", "||", "a || \u{7}"] {
            assert!(matches!(tags(bad), Err(Rejection::IllegalFilter { .. })), "{bad}");
        }
    }
}
