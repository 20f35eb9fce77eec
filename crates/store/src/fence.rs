//! Until when the log writer may answer and show anything: the lease of a master, on the monotonic clock. Any thread moves it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// See the module's comment.
#[derive(Debug)]
pub struct Fence {
    start: Instant,
    /// Nanoseconds since `start`; `u64::MAX`: without end.
    until: AtomicU64,
}

impl Fence {
    /// Open without end. No time that it is told is before `start`.
    pub fn new(start: Instant) -> Self {
        Self { start, until: AtomicU64::new(u64::MAX) }
    }

    /// `None`: without end.
    pub fn set(&self, until: Option<Instant>) {
        let nanos = |until: Instant| nanos(until.saturating_duration_since(self.start));
        self.until.store(until.map_or(u64::MAX, nanos), Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open_at(Instant::now())
    }

    /// Whether its end has not come by `now`.
    pub fn is_open_at(&self, now: Instant) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until == u64::MAX || nanos(now.saturating_duration_since(self.start)) < until
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}
