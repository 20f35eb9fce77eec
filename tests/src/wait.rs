//! Waiting for a condition.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Asks `condition` until it answers, and panics with `what` when it has not within `deadline`.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Lets `time` pass, which is work for the clients: the moment of a fault must not hang on any condition.
pub fn let_run(time: Duration) {
    let began = Instant::now();
    until("the moment of the fault", 2 * time + PAUSE, || (began.elapsed() >= time).then_some(()));
}
