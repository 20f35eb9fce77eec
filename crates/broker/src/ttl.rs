//! How long a message is worth being delivered: the topic's time to live, or its own. Any thread.
//!
//! A message says its own in the user property [`TTL_PROPERTY`]. That it does is noted in the record's [`Mark`] when it is
//! stored, so that delivery looks for the property in no other message.

use karman_remoting::message::user_property_of;
use karman_remoting::validate::message::{TTL_PROPERTY, time_to_live_ms};
use karman_store::Record;

use crate::clock::Clock;
use crate::mark::Mark;
use crate::records::message_of;

/// Whether it is too late to deliver the message; `topic_ttl_ms` is that of its topic.
pub fn has_expired(record: &Record, topic_ttl_ms: Option<u64>, clock: &Clock) -> bool {
    let own =
        || user_property_of(message_of(record), TTL_PROPERTY).and_then(|text| time_to_live_ms(text).ok());
    let own = if Mark(record.mark).has_ttl() { own() } else { None };
    own.or(topic_ttl_ms)
        .is_some_and(|ttl_ms| record.store_time_ms.saturating_add(ttl_ms) <= clock.latest_ms())
}
