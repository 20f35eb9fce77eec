//! The answer to a client's Settings: complete for every official client, chosen by its language. Pure; any thread.
//!
//! Which field breaks which client when it is missing or zero is told in the wire contract (`docs/protocol.md`).

use std::time::Duration;

use crate::metadata::Language;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::{
    CustomizedBackoff, ExponentialBackoff, Metric, Publishing, RetryPolicy, Settings, Subscription,
    retry_policy,
};

/// Largest body of one message, in bytes (`maxMessageSize`).
pub const MAX_BODY_SIZE_BYTES: usize = 4 * 1024 * 1024;
/// Most messages in one receive, as RocketMQ's pop.
pub const RECEIVE_BATCH_SIZE_MAX: usize = 32;
/// Longest wait of a long poll.
pub const LONG_POLLING_MAX: Duration = Duration::from_secs(20);
/// Deliveries are one more than this (`retryMaxTimes`).
pub const DEFAULT_RETRY_MAX_TIMES: u32 = 16;

const PRODUCER_MAX_ATTEMPTS: i32 = 3;
/// RocketMQ's delay levels, in seconds: what a nack waits for before the next attempt.
const RETRY_STEPS_SECONDS: [i64; 18] =
    [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn exponential(max_attempts: i32, initial: prost_types::Duration, max: prost_types::Duration) -> RetryPolicy {
    let backoff = ExponentialBackoff { initial: Some(initial), max: Some(max), multiplier: 2.0 };
    RetryPolicy { max_attempts, strategy: Some(retry_policy::Strategy::ExponentialBackoff(backoff)) }
}

/// The settings a client must follow. `sent` has one of the two cases of `pub_sub` set (the caller has checked it).
pub fn answer(sent: &Settings, language: Language, retry_max_times: u32) -> Settings {
    let (backoff_policy, pub_sub) = match &sent.pub_sub {
        // Producers in Java, Node and C# fail on any back-off but an exponential one.
        Some(PubSub::Publishing(publishing)) => (
            exponential(
                PRODUCER_MAX_ATTEMPTS,
                prost_types::Duration { seconds: 0, nanos: 10_000_000 },
                seconds(1),
            ),
            Some(PubSub::Publishing(Publishing {
                topics: publishing.topics.clone(),
                max_body_size: i32::try_from(MAX_BODY_SIZE_BYTES).expect("4 MiB fit an i32"),
                validate_message_type: true,
            })),
        ),
        Some(PubSub::Subscription(subscription)) => {
            (consumer_backoff(language, retry_max_times), Some(PubSub::Subscription(consumer(subscription))))
        }
        None => (exponential(PRODUCER_MAX_ATTEMPTS, seconds(1), seconds(1)), None),
    };
    Settings {
        client_type: sent.client_type,
        access_point: sent.access_point.clone(),
        backoff_policy: Some(backoff_policy),
        request_timeout: sent.request_timeout,
        pub_sub,
        user_agent: sent.user_agent.clone(),
        // C++ starts an exporter as soon as there are endpoints, whatever `on` says.
        metric: Some(Metric { on: false, endpoints: None }),
        client_properties: Default::default(),
    }
}

/// Steps of a customised back-off.
const BACKOFF_STEPS_MAX: usize = 64;

/// Why clients could not follow the back-off of a group.
pub fn check_backoff(policy: &RetryPolicy) -> Result<(), &'static str> {
    let is_positive = |duration: &prost_types::Duration| {
        duration.seconds >= 0 && duration.nanos >= 0 && (duration.seconds > 0 || duration.nanos > 0)
    };
    match &policy.strategy {
        Some(retry_policy::Strategy::ExponentialBackoff(backoff)) => {
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
        Some(retry_policy::Strategy::CustomizedBackoff(backoff)) => {
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

/// Node understands only exponential back-off, Python only the customised steps; the others know both.
fn consumer_backoff(language: Language, retry_max_times: u32) -> RetryPolicy {
    let max_attempts = i32::try_from(retry_max_times).unwrap_or(i32::MAX).saturating_add(1);
    if language == Language::Node {
        return exponential(max_attempts, seconds(5), seconds(7200));
    }
    let next = RETRY_STEPS_SECONDS.map(seconds).to_vec();
    RetryPolicy {
        max_attempts,
        strategy: Some(retry_policy::Strategy::CustomizedBackoff(CustomizedBackoff { next })),
    }
}

fn consumer(sent: &Subscription) -> Subscription {
    Subscription {
        // Echoed unchanged: C++ adopts a namespace that differs from its own.
        group: sent.group.clone(),
        subscriptions: sent.subscriptions.clone(),
        fifo: Some(false),
        receive_batch_size: Some(RECEIVE_BATCH_SIZE_MAX as i32),
        long_polling_timeout: Some(seconds(LONG_POLLING_MAX.as_secs().cast_signed())),
        lite_subscription_quota: None,
        max_lite_topic_size: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer_settings() -> Settings {
        Settings { pub_sub: Some(PubSub::Subscription(Subscription::default())), ..Default::default() }
    }

    #[test]
    fn producers_get_an_exponential_backoff_and_a_body_size() {
        let sent =
            Settings { pub_sub: Some(PubSub::Publishing(Publishing::default())), ..Default::default() };
        let answer = answer(&sent, Language::Other, 16);
        let strategy = answer.backoff_policy.unwrap().strategy;
        assert!(matches!(strategy, Some(retry_policy::Strategy::ExponentialBackoff(_))));
        let Some(PubSub::Publishing(publishing)) = answer.pub_sub else {
            panic!("another case was answered")
        };
        assert_eq!(publishing.max_body_size, 4_194_304);
    }

    #[test]
    fn consumers_get_the_backoff_their_language_understands() {
        let strategy = |language| answer(&consumer_settings(), language, 2).backoff_policy.unwrap();
        assert_eq!(strategy(Language::Other).max_attempts, 3);
        assert!(matches!(
            strategy(Language::Other).strategy,
            Some(retry_policy::Strategy::CustomizedBackoff(steps)) if steps.next.len() == 18
        ));
        assert!(matches!(
            strategy(Language::Node).strategy,
            Some(retry_policy::Strategy::ExponentialBackoff(_))
        ));
    }

    #[test]
    fn metrics_endpoints_are_never_set() {
        assert_eq!(answer(&consumer_settings(), Language::Other, 16).metric, Some(Metric::default()));
    }
}
