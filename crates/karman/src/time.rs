//! Points in time and durations as people type and read them; points are in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
pub(crate) use karman_remoting::civil::format_ms;

const DAY_MS: u64 = 86_400_000;

/// The units of a duration, the largest first.
const UNITS_MS: [(&str, u64); 5] = [("d", DAY_MS), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A date, alone or with a time of day; none may name a zone.
const DATE_FORMS: [&str; 5] =
    ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"];

/// RocketMQ's delay levels, 1 to 18.
const DELAY_LEVELS: [&str; 18] = [
    "1s", "5s", "10s", "30s", "1m", "2m", "3m", "4m", "5m", "6m", "7m", "8m", "9m", "10m", "20m", "30m",
    "1h", "2h",
];

/// `90s` in the largest unit that leaves no rest: `1500ms`, `90s`, `2m`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let whole = |(_, unit): &&(&str, u64)| millis > 0 && millis.is_multiple_of(u128::from(*unit));
    let (name, unit) = UNITS_MS.iter().find(whole).unwrap_or(&("s", 1000));
    format!("{}{name}", millis / u128::from(*unit))
}

/// How long ago something was, in the two largest units.
pub(crate) fn format_age(millis: u64) -> String {
    match millis {
        DAY_MS.. => format!("{}d {}h", millis / DAY_MS, millis % DAY_MS / 3_600_000),
        3_600_000.. => format!("{}h {}m", millis / 3_600_000, millis % 3_600_000 / 60_000),
        60_000.. => format!("{}m {}s", millis / 60_000, millis % 60_000 / 1000),
        _ => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
    }
}

/// A duration: a number with one of the units ms, s, m, h and d.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no duration: 500ms, 90s, 15m, 2h and 3d are");
    let digits = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(refused)?;
    let (count, unit) = text.split_at(digits);
    let (_, unit_ms) = UNITS_MS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
    let count: u64 = count.parse().map_err(|_| refused())?;
    Ok(Duration::from_millis(count.checked_mul(*unit_ms).ok_or_else(refused)?))
}

/// A delay: a duration, or one of RocketMQ's 18 levels by its name.
pub(crate) fn parse_delay(text: &str) -> Result<Duration, String> {
    let Some(level) = text.strip_prefix("level-") else { return parse_duration(text) };
    let known = level.parse::<usize>().ok().and_then(|level| DELAY_LEVELS.get(level.checked_sub(1)?));
    let known = known.ok_or_else(|| {
        format!("{text:?} is no delay level: level-1 to level-18 are {}", DELAY_LEVELS.join(" "))
    })?;
    parse_duration(known)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 of what was typed: that number itself, `90s`, `15m`, `2h` or `3d` ago, or a date in UTC with or
/// without a time.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    parse_at(text, now_ms())
}

fn parse_at(text: &str, now_ms: u64) -> Result<u64, String> {
    let refused = || {
        format!(
            "{text:?} is no time: milliseconds since 1970, 90s, 15m, 2h or 3d ago, or 2026-11-21T13:12:34 in UTC are"
        )
    };
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    let unit_ms = match text.chars().last() {
        Some('s') => 1000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => DAY_MS,
        _ => 0,
    };
    if unit_ms > 0 {
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| refused())?;
        return Ok(now_ms.saturating_sub(count.saturating_mul(unit_ms)));
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let read = |form| DateTime::strptime(form, text).ok();
    let read = DATE_FORMS.into_iter().find_map(read).and_then(|time| time.to_zoned(TimeZone::UTC).ok());
    // Before 1970 there is no message.
    read.and_then(|time| u64::try_from(time.timestamp().as_millisecond()).ok()).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (text, millis) in [
            ("1970-01-01", 0),
            ("2000-02-29T00:00:01Z", 951_782_401_000),
            ("2026-11-21 13:12:34", 1_795_266_754_000),
            ("2100-03-01T00:00", 4_107_542_400_000),
        ] {
            assert_eq!(parse_at(text, 0), Ok(millis), "{text}");
        }
        for day in (0..200_000).step_by(13) {
            let text = format_ms(day * DAY_MS + 3_723_000);
            assert_eq!(parse_at(&text, 0), Ok(day * DAY_MS + 3_723_000), "{text}");
        }
    }

    #[test]
    fn times_may_be_relative_or_millis() {
        assert_eq!(parse_at("1795266754000", 0), Ok(1_795_266_754_000));
        assert_eq!(parse_at("2h", 10_000_000), Ok(2_800_000));
        assert_eq!(parse_at("3d", 10), Ok(0));
    }

    #[test]
    fn durations_are_written_in_one_unit_and_read_again() {
        for text in ["1ms", "1500ms", "90s", "2m", "36h", "3d"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(format_duration(Duration::ZERO), "0s");
        for text in ["", "5", "s", "-1s", "1.5h", "1w", "99999999999999999d"] {
            assert!(parse_duration(text).unwrap_err().contains("is no duration"), "{text}");
        }
        assert_eq!([900, 61_000, 3_660_000, 90_000_000].map(format_age), ["0.9s", "1m 1s", "1h 1m", "1d 1h"]);
    }

    #[test]
    fn a_delay_may_be_one_of_the_classic_levels() {
        let seconds = |text| parse_delay(text).map(|delay| delay.as_secs());
        assert_eq!((seconds("level-1"), seconds("level-18"), seconds("5s")), (Ok(1), Ok(7200), Ok(5)));
        for text in ["level-0", "level-19", "level-x", "level-"] {
            assert!(seconds(text).unwrap_err().contains("level-1 to level-18"), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "2026-11-21T13:12:34+02:00",
            "2026-11-21T13",
            "",
            "h",
            "yesterday",
            "2026-02-30",
            "2026-13-01",
            "2026-11-21T24:00",
            "1969-01-01",
            "-5",
            "1:2",
        ] {
            assert!(parse_at(text, 0).unwrap_err().contains("is no time"), "{text}");
        }
    }
}
