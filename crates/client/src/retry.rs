//! How long to wait before trying again: of calls, and of messages that a handler could not take. Pure.

use std::time::Duration;

use karman_remoting::proto::v2;
use karman_remoting::proto::v2::retry_policy::Strategy;
use karman_remoting::proto::v2::settings::PubSub;

/// What the servers prescribe for producers: 10 ms, doubling up to 1 s.
const INITIAL: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_secs(1);

/// How often a call is tried in all.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// The wait before the attempt that follows `attempt` (the first is 1).
pub(crate) fn backoff(attempt: u32) -> Duration {
    INITIAL.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(MAX)
}

/// What the settings that a server answers say about a group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupPolicy {
    /// Messages of one message group are handled one after the other.
    pub(crate) fifo: bool,
    /// Deliveries of one message; after the last it is a dead letter.
    pub(crate) attempts_max: i32,
    strategy: Option<Strategy>,
}

impl GroupPolicy {
    /// `None`: these are no settings of a consumer.
    pub(crate) fn of(settings: &v2::Settings) -> Option<Self> {
        let Some(PubSub::Subscription(subscription)) = &settings.pub_sub else { return None };
        let policy = settings.backoff_policy.as_ref()?;
        Some(Self {
            fifo: subscription.fifo(),
            attempts_max: policy.max_attempts.max(1),
            strategy: policy.strategy.clone(),
        })
    }

    /// How long a message that failed at its delivery number `attempt` (the first is 1) waits for the next one.
    pub(crate) fn delay(&self, attempt: i32) -> Duration {
        let step = usize::try_from(attempt).unwrap_or(1).saturating_sub(1);
        let duration = |duration: Option<&prost_types::Duration>| {
            duration.and_then(|&duration| Duration::try_from(duration).ok())
        };
        let delay = match &self.strategy {
            Some(Strategy::CustomizedBackoff(steps)) => {
                duration(steps.next.get(step).or_else(|| steps.next.last()))
            }
            Some(Strategy::ExponentialBackoff(backoff)) => {
                duration(backoff.initial.as_ref()).map(|initial| {
                    let factor = f64::from(backoff.multiplier).powi(i32::try_from(step).unwrap_or(i32::MAX));
                    let seconds = initial.as_secs_f64() * factor;
                    let max = duration(backoff.max.as_ref()).unwrap_or(initial);
                    Duration::try_from_secs_f64(seconds).map_or(max, |delay| delay.min(max))
                })
            }
            None => None,
        };
        delay.unwrap_or(MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_second() {
        assert_eq!([1, 2, 3, 7].map(|attempt| backoff(attempt).as_millis()), [10, 20, 40, 640]);
        assert_eq!([8, 40, u32::MAX].map(backoff), [MAX; 3]);
    }

    fn policy(strategy: Option<Strategy>) -> GroupPolicy {
        let backoff_policy = Some(v2::RetryPolicy { max_attempts: 3, strategy });
        let pub_sub = Some(PubSub::Subscription(v2::Subscription::default()));
        GroupPolicy::of(&v2::Settings { backoff_policy, pub_sub, ..Default::default() }).unwrap()
    }

    fn seconds(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn a_failed_message_waits_as_the_policy_of_its_group_says() {
        let steps = v2::CustomizedBackoff { next: vec![seconds(1), seconds(5)] };
        let steps = policy(Some(Strategy::CustomizedBackoff(steps)));
        assert_eq!([-1, 1, 2, 3, i32::MAX].map(|attempt| steps.delay(attempt).as_secs()), [1, 1, 5, 5, 5]);
        let doubling =
            v2::ExponentialBackoff { initial: Some(seconds(5)), max: Some(seconds(7200)), multiplier: 2.0 };
        let doubling = policy(Some(Strategy::ExponentialBackoff(doubling)));
        assert_eq!([1, 2, 3, i32::MAX].map(|attempt| doubling.delay(attempt).as_secs()), [5, 10, 20, 7200]);
        let empty = v2::CustomizedBackoff::default();
        assert_eq!(policy(Some(Strategy::CustomizedBackoff(empty))).delay(1), MAX);
        assert_eq!(policy(None).delay(1), MAX);
    }
}
