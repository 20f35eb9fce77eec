//! How long to wait before trying again. Pure.

use std::time::Duration;

/// What the servers prescribe for producers: 10 ms, doubling up to 1 s.
const INITIAL: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_secs(1);

/// How often a call is tried in all.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// The wait before the attempt that follows `attempt` (the first is 1).
pub(crate) fn backoff(attempt: u32) -> Duration {
    INITIAL.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        assert_eq!([1, 2, 3, 7].map(|attempt| backoff(attempt).as_millis()), [10, 20, 40, 640]);
        assert_eq!([8, 40, u32::MAX].map(backoff), [MAX; 3]);
    }
}
