//! How long a message is worth being delivered: the topic's time to live, or its own. Any thread.
//!
//! A message says its own in the user property [`PROPERTY`]. That it does is noted in the record's [`Mark`] when it is
//! stored, so that delivery looks for the property in no other message.

use karman_remoting::message::user_property_of;
use karman_store::Record;

use crate::clock::Clock;
use crate::mark::Mark;
use crate::records::message_of;

/// The user property with a message's own time to live: milliseconds from when it was stored.
pub const PROPERTY: &str = "KARMAN_TTL_MS";
/// Ten years.
const TTL_MAX_MS: u64 = 10 * 365 * 86_400_000;

/// Reads a time to live; `Err` with the rule that the text breaks.
pub fn parse(text: &str) -> Result<u64, &'static str> {
    let millis = text.parse().ok().filter(|millis| (1..=TTL_MAX_MS).contains(millis));
    millis.ok_or("it is milliseconds, a whole number from 1 to 315360000000")
}

/// Whether it is too late to deliver the message; `topic_ttl_ms` is that of its topic.
pub fn has_expired(record: &Record, topic_ttl_ms: Option<u64>, clock: &Clock) -> bool {
    let own = || user_property_of(message_of(record), PROPERTY).and_then(|text| parse(text).ok());
    let own = if Mark(record.mark).has_ttl() { own() } else { None };
    own.or(topic_ttl_ms)
        .is_some_and(|ttl_ms| record.store_time_ms.saturating_add(ttl_ms) <= clock.latest_ms())
}
