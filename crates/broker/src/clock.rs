//! The time of this process: wall-clock milliseconds that never jump. Any thread.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Read once from the wall clock, then carried on by the monotonic one: a clock that is set does not make invisible
/// messages visible, or keep them so for hours. The wall clock itself counts too where times of others are compared: see
/// [`Clock::latest_ms`].
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started_ms: u64,
    started: Instant,
    wall_ms: fn() -> u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { started_ms: wall_ms(), started: Instant::now(), wall_ms }
    }
}

fn wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

impl Clock {
    /// Milliseconds since 1970: for how long something lasts that begins and ends in this process.
    pub fn now_ms(&self) -> u64 {
        self.started_ms + millis(self.started.elapsed())
    }

    /// The later of this process's time and the wall clock's: for times that do not come from this clock, which are those
    /// of producers and those at which the log stored something. A wall clock that was set ahead, or went on while this
    /// machine was suspended, is right about them; one that was set back is not, since the log's times never go back.
    pub fn latest_ms(&self) -> u64 {
        self.now_ms().max((self.wall_ms)())
    }

    /// A clock that is so much ahead of all others.
    #[cfg(test)]
    pub fn ahead(time: Duration) -> Self {
        let clock = Self::default();
        Self { started_ms: clock.started_ms + millis(time), ..clock }
    }

    /// A clock beside which this is the wall clock.
    #[cfg(test)]
    pub fn beside(wall_ms: fn() -> u64) -> Self {
        Self { wall_ms, ..Self::default() }
    }

    /// When this process started. Milliseconds since 1970.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// How long from now until `at_ms`; zero when it has passed.
    pub fn until(&self, at_ms: u64) -> Duration {
        Duration::from_millis(at_ms.saturating_sub(self.now_ms()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time of the log as the wire has it.
pub fn timestamp(at_ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(at_ms % 1000 * 1_000_000).expect("less than a second");
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_others_are_compared_with_the_later_clock() {
        let ahead = Clock::beside(|| wall_ms() + 3_600_000);
        assert!(ahead.latest_ms() >= ahead.now_ms() + 3_590_000);
        let behind = Clock::beside(|| wall_ms() - 3_600_000);
        assert!(behind.latest_ms() + 10_000 >= behind.now_ms());
    }
}
