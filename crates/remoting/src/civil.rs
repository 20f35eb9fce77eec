//! Points in time as people read them, in UTC. Pure; any thread.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// `2026-11-21 13:12:34` of milliseconds since 1970; the number itself where no calendar reaches.
pub fn format_ms(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    match time {
        Some(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => format!("{millis} ms after 1970"),
    }
}

/// Milliseconds since 1970 of what [`format_ms`] wrote; `None` of anything else, also of a time before 1970.
pub fn parse_ms(text: &str) -> Option<u64> {
    let time = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).ok()?;
    let time = TimeZone::UTC.to_timestamp(time).ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_nothing_else() {
        for millis in [0, 951_782_401_000, 4_107_542_400_000] {
            assert_eq!(parse_ms(&format_ms(millis)), Some(millis));
        }
        for other in ["", "20261127T170000Z", "2026-11-27T17:00:00Z", "2026-11-27", "1969-12-31 23:59:59"] {
            assert_eq!(parse_ms(other), None, "{other}");
        }
    }

    #[test]
    fn times_are_written_in_utc_to_the_second() {
        assert_eq!(format_ms(0), "1970-01-01 00:00:00");
        assert_eq!(format_ms(951_782_401_999), "2000-02-29 00:00:01");
        assert_eq!(format_ms(4_107_542_400_000), "2100-03-01 00:00:00");
        assert_eq!(format_ms(u64::MAX), "18446744073709551615 ms after 1970");
    }
}
