//! How long a refused message waits before the next attempt, in the form that a client's SDK understands. Pure.

use super::{DEFAULT_RETRY_MAX_TIMES, seconds};
use crate::metadata::Language;
use crate::proto::karman::GroupConfig;
use crate::proto::v2::retry_policy::Strategy;
use crate::proto::v2::{CustomizedBackoff, ExponentialBackoff, RetryPolicy};

/// RocketMQ's delay levels, in seconds: what a nack waits for before the next attempt.
const STEPS_SECONDS: [i64; 18] =
    [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

/// Steps of a customised back-off.
const BACKOFF_STEPS_MAX: usize = 64;

/// Why clients could not follow the back-off of a group.
pub fn check_backoff(policy: &RetryPolicy) -> Result<(), &'static str> {
    let is_positive = |duration: &prost_types::Duration| {
        duration.seconds >= 0 && duration.nanos >= 0 && (duration.seconds > 0 || duration.nanos > 0)
    };
    match &policy.strategy {
        Some(Strategy::ExponentialBackoff(backoff)) => {
            let (Some(initial), Some(max)) = (&backoff.initial, &backoff.max) else {
                return Err("an exponential back-off has an initial and a longest time");
            };
            if !is_positive(initial) || (max.seconds, max.nanos) < (initial.seconds, initial.nanos) {
                return Err("its times must be positive, the longest at least the initial one");
            }
            if backoff.multiplier < 1.0 || !backoff.multiplier.is_finite() {
                return Err("its multiplier must be at least 1");
            }
            Ok(())
        }
        Some(Strategy::CustomizedBackoff(backoff)) => {
            if backoff.next.is_empty() || backoff.next.len() > BACKOFF_STEPS_MAX {
                return Err("a customised back-off has 1 to 64 steps");
            }
            if !backoff.next.iter().all(is_positive) {
                return Err("its steps must be positive");
            }
            Ok(())
        }
        None => Err("it must be exponential or customised"),
    }
}

/// Each wait is twice the one before.
pub(super) fn exponential(
    max_attempts: i32,
    initial: prost_types::Duration,
    max: prost_types::Duration,
) -> RetryPolicy {
    let backoff = ExponentialBackoff { initial: Some(initial), max: Some(max), multiplier: 2.0 };
    RetryPolicy { max_attempts, strategy: Some(Strategy::ExponentialBackoff(backoff)) }
}

/// The back-off of a consumer. Node understands only an exponential one, Python only customised steps; they get what
/// comes nearest to the group's own.
pub(super) fn of_group(group: Option<&GroupConfig>, language: Language) -> RetryPolicy {
    let retry_max_times = group.and_then(|group| group.retry_max_times).unwrap_or(DEFAULT_RETRY_MAX_TIMES);
    let max_attempts = i32::try_from(retry_max_times).unwrap_or(i32::MAX).saturating_add(1);
    let own = group.and_then(|group| group.retry_policy.as_ref()).and_then(|policy| policy.strategy.clone());
    let strategy = match (own, language) {
        (None, Language::Node) => return exponential(max_attempts, seconds(5), seconds(7200)),
        (None, _) => {
            Strategy::CustomizedBackoff(CustomizedBackoff { next: STEPS_SECONDS.map(seconds).to_vec() })
        }
        (Some(Strategy::ExponentialBackoff(backoff)), Language::Python) => {
            Strategy::CustomizedBackoff(steps_of(&backoff))
        }
        (Some(Strategy::CustomizedBackoff(steps)), Language::Python) => {
            let next = steps.next.iter().map(|step| whole_seconds(millis(step))).collect();
            Strategy::CustomizedBackoff(CustomizedBackoff { next })
        }
        (Some(Strategy::ExponentialBackoff(backoff)), Language::Node) => {
            Strategy::ExponentialBackoff(ExponentialBackoff {
                initial: backoff.initial.as_ref().map(|initial| whole_seconds(millis(initial))),
                max: backoff.max.as_ref().map(|max| whole_seconds(millis(max))),
                ..backoff
            })
        }
        (Some(Strategy::CustomizedBackoff(steps)), Language::Node) => {
            Strategy::ExponentialBackoff(curve_of(&steps))
        }
        (Some(own), _) => own,
    };
    RetryPolicy { max_attempts, strategy: Some(strategy) }
}

/// The steps that an exponential back-off takes until it reaches its longest time.
fn steps_of(backoff: &ExponentialBackoff) -> CustomizedBackoff {
    let max = backoff.max.as_ref().map_or(1000.0, millis);
    let mut step = backoff.initial.as_ref().map_or(1000.0, millis);
    let mut next = Vec::new();
    while step < max && next.len() < BACKOFF_STEPS_MAX - 1 {
        next.push(whole_seconds(step));
        step *= f64::from(backoff.multiplier.max(1.0));
    }
    next.push(whole_seconds(max.min(step)));
    CustomizedBackoff { next }
}

/// The exponential back-off that begins with the first step and needs as many steps to the longest.
fn curve_of(steps: &CustomizedBackoff) -> ExponentialBackoff {
    let initial = steps.next.first().map_or(1000.0, millis);
    let max = steps.next.iter().map(millis).fold(initial, f64::max);
    let growths = steps.next.len().saturating_sub(1).max(1);
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "it is a guide")]
    let multiplier = (max / initial.max(1.0)).powf(1.0 / growths as f64) as f32;
    ExponentialBackoff { initial: Some(whole_seconds(initial)), max: Some(whole_seconds(max)), multiplier }
}

fn millis(duration: &prost_types::Duration) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "it is rounded to seconds")]
    let whole = duration.seconds as f64 * 1000.0;
    whole + f64::from(duration.nanos) / 1_000_000.0
}

/// Python and Node read nothing but seconds, and 0 is no wait.
fn whole_seconds(millis: f64) -> prost_types::Duration {
    #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
    seconds((millis / 1000.0).ceil().max(1.0) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert_eq, proptest};
    use proptest::strategy::Strategy as AnyOf;

    use super::*;

    fn group(strategy: Strategy) -> GroupConfig {
        let retry_policy = Some(RetryPolicy { max_attempts: 99, strategy: Some(strategy) });
        GroupConfig { retry_max_times: Some(2), retry_policy, ..Default::default() }
    }

    fn customised(steps: &[i64]) -> Strategy {
        Strategy::CustomizedBackoff(CustomizedBackoff { next: steps.iter().copied().map(seconds).collect() })
    }

    fn curve(initial: prost_types::Duration, max: i64, multiplier: f32) -> Strategy {
        let (initial, max) = (Some(initial), Some(seconds(max)));
        Strategy::ExponentialBackoff(ExponentialBackoff { initial, max, multiplier })
    }

    fn given(strategy: Strategy, language: Language) -> Strategy {
        let policy = of_group(Some(&group(strategy)), language);
        assert_eq!(policy.max_attempts, 3, "the attempts are the group's, not the policy's");
        policy.strategy.unwrap()
    }

    #[test]
    fn a_groups_own_back_off_is_passed_on() {
        for strategy in [customised(&[1, 2, 40]), curve(seconds(1), 60, 3.0)] {
            assert_eq!(given(strategy.clone(), Language::Java), strategy);
        }
    }

    #[test]
    fn python_gets_steps_and_node_a_curve() {
        let steps = given(curve(seconds(1), 60, 3.0), Language::Python);
        assert_eq!(steps, customised(&[1, 3, 9, 27, 60]));
        let half = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
        assert_eq!(given(curve(half, 2, 2.0), Language::Python), customised(&[1, 1, 2]));
        let Strategy::ExponentialBackoff(backoff) = given(customised(&[1, 2, 4, 100]), Language::Node) else {
            panic!("steps for Node");
        };
        assert_eq!((backoff.initial, backoff.max), (Some(seconds(1)), Some(seconds(100))));
        assert!((backoff.multiplier - 4.64).abs() < 0.01, "{}", backoff.multiplier);
    }

    #[test]
    fn without_a_group_the_defaults_hold() {
        assert_eq!(of_group(None, Language::Java).max_attempts, 17);
        let strategy = of_group(None, Language::Python).strategy;
        assert!(matches!(strategy, Some(Strategy::CustomizedBackoff(steps)) if steps.next.len() == 18));
        let strategy = of_group(None, Language::Node).strategy;
        assert!(matches!(strategy, Some(Strategy::ExponentialBackoff(_))));
    }

    fn duration() -> impl AnyOf<Value = prost_types::Duration> {
        (0..100_000_i64, 1..1_000_000_000_i32)
            .prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos })
    }

    proptest! {
        #[test]
        fn whatever_a_group_may_have_becomes_something_every_sdk_can_follow(
            steps in prop::collection::vec(duration(), 1..=BACKOFF_STEPS_MAX),
            initial in duration(), more in 0..100_000_i64, multiplier in 1.0..100.0_f32,
        ) {
            let max = prost_types::Duration { seconds: initial.seconds + more, nanos: initial.nanos };
            let (initial, max) = (Some(initial), Some(max));
            let own = [
                Strategy::CustomizedBackoff(CustomizedBackoff { next: steps }),
                Strategy::ExponentialBackoff(ExponentialBackoff { initial, max, multiplier }),
            ];
            for (own, language) in own.into_iter().flat_map(|own| {
                [(own.clone(), Language::Java), (own.clone(), Language::Python), (own, Language::Node)]
            }) {
                let given = of_group(Some(&group(own)), language);
                prop_assert_eq!(check_backoff(&given), Ok(()), "{:?} {:?}", language, given);
            }
        }
    }
}
