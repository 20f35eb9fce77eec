//! What the index says of a message beside its place: 64 bits that a consumer's choice is made by without reading it.

use karman_remoting::proto::v2;
use karman_store::{Entry, key_hash};

/// The hash of the tag in the low half, of the message group in the high half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(pub u64);

impl Label {
    /// The label of a message.
    pub fn of(system: &v2::SystemProperties) -> Self {
        let group = system.message_group.as_deref().map_or(0, group_hash);
        Self(u64::from(group) << 32 | u64::from(system.tag.as_deref().map_or(0, tag_hash)))
    }

    /// The label in an index entry.
    pub fn in_entry(entry: &Entry) -> Self {
        Self(entry.tag_hash)
    }

    /// Java's `String.hashCode` of the tag; 0 stands for no tag.
    pub fn tag(self) -> u32 {
        self.0 as u32
    }

    /// Hash of the message group; 0 stands for none, and nothing else.
    pub fn message_group(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Java's `String.hashCode`, as in RocketMQ's ConsumeQueue entries.
pub fn tag_hash(tag: &str) -> u32 {
    tag.encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
        .cast_unsigned()
}

/// Tells message groups apart; never 0.
pub fn group_hash(message_group: &str) -> u32 {
    (key_hash(0, message_group.as_bytes()) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_hash_as_in_java() {
        assert_eq!(tag_hash(""), 0);
        assert_eq!(tag_hash("TagA"), 2_598_919);
        assert_eq!(tag_hash("polygenelubricants"), i32::MIN.cast_unsigned());
    }

    #[test]
    fn tag_and_message_group_are_both_in_a_label() {
        let system = v2::SystemProperties {
            tag: Some("polygenelubricants".into()),
            message_group: Some("order-7".into()),
            ..Default::default()
        };
        let label = Label::of(&system);
        assert_eq!(label.tag(), tag_hash("polygenelubricants"));
        assert_eq!(label.message_group(), group_hash("order-7"));
        assert_eq!(Label::of(&v2::SystemProperties::default()), Label(0));
    }
}
