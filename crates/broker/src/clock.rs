//! The time of this process: wall-clock milliseconds that never jump. Any thread.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Read once from the wall clock, then carried on by the monotonic one: a clock that is set does not make invisible
/// messages visible, or keep them so for hours.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started_ms: u64,
    started: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_ms: millis(since_1970), started: Instant::now() }
    }
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.started_ms + millis(self.started.elapsed())
    }

    /// A clock that is so much ahead of all others.
    #[cfg(test)]
    pub fn ahead(time: Duration) -> Self {
        let clock = Self::default();
        Self { started_ms: clock.started_ms + millis(time), ..clock }
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
