//! Until when the log writer may answer and show anything: the lease of a master, on the monotonic clock. Any thread moves it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds since `start`; `u64::MAX`: without end.
#[derive(Debug)]
pub(crate) struct Fence {
    start: Instant,
    until: AtomicU64,
}

impl Default for Fence {
    fn default() -> Self {
        Self { start: Instant::now(), until: AtomicU64::new(u64::MAX) }
    }
}

impl Fence {
    /// `None`: without end.
    pub(crate) fn set(&self, until: Option<Instant>) {
        let nanos = |until: Instant| nanos(until.saturating_duration_since(self.start));
        self.until.store(until.map_or(u64::MAX, nanos), Ordering::Release);
    }

    pub(crate) fn is_open(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until == u64::MAX || nanos(self.start.elapsed()) < until
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}
