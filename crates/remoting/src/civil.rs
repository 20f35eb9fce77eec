//! Points in time as people read them: the Gregorian calendar, in UTC. Pure; any thread.

const DAY_MS: u64 = 86_400_000;

/// `2026-11-21 13:12:34` of milliseconds since 1970.
pub fn format_ms(millis: u64) -> String {
    let (days, seconds) = (millis / DAY_MS, millis % DAY_MS / 1000);
    let (year, month, day) = date_of(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Days since 1970 of a date. Years begin in March here, so that a leap day is the last of one.
pub fn days_of(year: u64, month: u64, day: u64) -> u64 {
    let year = if month < 3 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between the first of March of the year 0 and 1970.
    year * 365 + leap_days + (153 * months + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a number of days since 1970.
pub fn date_of(days_since_1970: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days_since_1970 / 366;
    while days_of(year + 1, 1, 1) <= days_since_1970 {
        year += 1;
    }
    let month = (1..=12).rev().find(|month| days_of(year, *month, 1) <= days_since_1970).unwrap_or(1);
    (year, month, days_since_1970 - days_of(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_each_others_inverse() {
        assert_eq!(format_ms(0), "1970-01-01 00:00:00");
        assert_eq!(format_ms(951_782_401_999), "2000-02-29 00:00:01");
        for days in 0..200_000 {
            let (year, month, day) = date_of(days);
            assert_eq!(days_of(year, month, day), days);
        }
    }
}
