//! The settings of a consumer group: as they are typed, as brokers keep them, and as they are shown.

use std::time::Duration;

use clap::Args;
use karman_remoting::proto::karman::{self as v1, ConsumeFromWhere};
use karman_remoting::proto::v2::{self, retry_policy::Strategy};
use karman_remoting::settings::DEFAULT_RETRY_MAX_TIMES;
use serde::Serialize;

use crate::time;

/// How often messages of a group are delivered again.
pub(super) fn retry_max_times(group: &v1::GroupConfig) -> u32 {
    group.retry_max_times.unwrap_or(DEFAULT_RETRY_MAX_TIMES)
}

#[derive(Args, Debug)]
pub(crate) struct SettingsArgs {
    /// Deliveries after the first, before a message becomes a dead letter; 16 when never given
    #[arg(long, value_name = "COUNT")]
    retry_max_times: Option<u32>,
    /// Messages of one message group come one by one, in their order
    #[arg(long, overrides_with = "no_orderly")]
    orderly: bool,
    /// Messages come as they are there; when neither is given a FIFO topic makes the group orderly
    #[arg(long)]
    no_orderly: bool,
    /// How long a refused message waits before each next attempt, or `default`: 18 steps from 1s to 2h
    #[arg(long, value_name = "DURATION,DURATION,...", value_parser = steps, conflicts_with = "retry_exponential")]
    retry_steps: Option<Steps>,
    /// The same as the first wait, the longest, and the factor between: 1s,2h,2
    #[arg(long, value_name = "FIRST,LONGEST,FACTOR", value_parser = exponential)]
    retry_exponential: Option<v2::RetryPolicy>,
    /// Where it begins with a topic that it has not read before: first, last or a time
    #[arg(long, value_name = "WHERE", value_parser = consume_from)]
    consume_from: Option<ConsumeFrom>,
    /// Each client gets every message
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    broadcast: Option<bool>,
    /// A group for lite topics of this topic of type LITE, and for nothing else; '' for none
    #[arg(long, value_name = "TOPIC")]
    lite_topic: Option<String>,
    /// One client for each lite topic
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    lite_exclusive: Option<bool>,
    /// Lite topics of one client; 0: 2000
    #[arg(long, value_name = "COUNT")]
    lite_client_quota: Option<u32>,
}

impl SettingsArgs {
    /// What was typed takes the place of what was.
    pub(super) fn set(&self, group: &mut v1::GroupConfig) {
        group.retry_max_times = self.retry_max_times.or(group.retry_max_times);
        if self.orderly || self.no_orderly {
            group.orderly = Some(self.orderly);
        }
        match (&self.retry_steps, &self.retry_exponential) {
            (Some(steps), _) => group.retry_policy.clone_from(&steps.0),
            (None, Some(policy)) => group.retry_policy = Some(policy.clone()),
            (None, None) => {}
        }
        if let Some(from) = &self.consume_from {
            group.set_consume_from(from.whence);
            group.consume_from_ms = from.at_ms;
        }
        group.broadcast = self.broadcast.unwrap_or(group.broadcast);
        if let Some(topic) = &self.lite_topic {
            group.lite_bind_topic.clone_from(topic);
        }
        group.lite_exclusive = self.lite_exclusive.unwrap_or(group.lite_exclusive);
        group.lite_client_quota = self.lite_client_quota.unwrap_or(group.lite_client_quota);
    }
}

/// The names of [`SettingsArgs`]: an update has at least one.
pub(super) const SETTINGS: &[&str] = &[
    "retry_max_times",
    "orderly",
    "no_orderly",
    "retry_steps",
    "retry_exponential",
    "consume_from",
    "broadcast",
    "lite_topic",
    "lite_exclusive",
    "lite_client_quota",
];

/// A back-off by its steps; `None` is the broker's own.
#[derive(Clone, Debug)]
struct Steps(Option<v2::RetryPolicy>);

#[derive(Clone, Debug)]
struct ConsumeFrom {
    whence: ConsumeFromWhere,
    at_ms: u64,
}

fn steps(text: &str) -> Result<Steps, String> {
    if text == "default" {
        return Ok(Steps(None));
    }
    let next = text.split(',').map(duration).collect::<Result<Vec<_>, _>>()?;
    let strategy = Strategy::CustomizedBackoff(v2::CustomizedBackoff { next });
    Ok(Steps(Some(v2::RetryPolicy { max_attempts: 0, strategy: Some(strategy) })))
}

fn exponential(text: &str) -> Result<v2::RetryPolicy, String> {
    let refused = || format!("{text:?} is no exponential back-off: 1s,2h,2 is one");
    let parts: Vec<&str> = text.split(',').collect();
    let [initial, max, multiplier] = parts[..] else { return Err(refused()) };
    let multiplier: f32 = multiplier.parse().map_err(|_| refused())?;
    let (initial, max) = (Some(duration(initial)?), Some(duration(max)?));
    let strategy = Strategy::ExponentialBackoff(v2::ExponentialBackoff { initial, max, multiplier });
    Ok(v2::RetryPolicy { max_attempts: 0, strategy: Some(strategy) })
}

fn duration(text: &str) -> Result<prost_types::Duration, String> {
    let duration = time::parse_duration(text.trim())?;
    duration.try_into().map_err(|_| format!("{text:?} is too long"))
}

fn consume_from(text: &str) -> Result<ConsumeFrom, String> {
    match text {
        "first" => Ok(ConsumeFrom { whence: ConsumeFromWhere::ConsumeFromFirstOffset, at_ms: 0 }),
        "last" => Ok(ConsumeFrom { whence: ConsumeFromWhere::ConsumeFromLastOffset, at_ms: 0 }),
        _ => Ok(ConsumeFrom { whence: ConsumeFromWhere::ConsumeFromTimestamp, at_ms: time::parse(text)? }),
    }
}

/// A group's settings as programs read them.
#[derive(Serialize)]
pub(super) struct SettingsJson {
    retry_max_times: u32,
    /// None: as the first topic it reads from says.
    orderly: Option<bool>,
    /// None: not customised.
    retry_steps_ms: Option<Vec<u128>>,
    /// None: not exponential.
    retry_exponential: Option<ExponentialJson>,
    suspended: bool,
    /// `first`, `last`, or milliseconds since 1970.
    consume_from: String,
    broadcast: bool,
    /// None: not a group for lite topics.
    lite_topic: Option<String>,
    lite_exclusive: bool,
    lite_client_quota: u32,
}

#[derive(Serialize)]
struct ExponentialJson {
    initial_ms: u128,
    max_ms: u128,
    multiplier: f32,
}

impl SettingsJson {
    pub(super) fn of(group: &v1::GroupConfig) -> Self {
        let strategy = group.retry_policy.as_ref().and_then(|policy| policy.strategy.as_ref());
        let (mut retry_steps_ms, mut retry_exponential) = (None, None);
        match strategy {
            Some(Strategy::CustomizedBackoff(backoff)) => {
                retry_steps_ms = Some(backoff.next.iter().map(|step| span(Some(step)).as_millis()).collect());
            }
            Some(Strategy::ExponentialBackoff(backoff)) => {
                retry_exponential = Some(ExponentialJson {
                    initial_ms: span(backoff.initial.as_ref()).as_millis(),
                    max_ms: span(backoff.max.as_ref()).as_millis(),
                    multiplier: backoff.multiplier,
                });
            }
            None => {}
        }
        Self {
            retry_max_times: retry_max_times(group),
            orderly: group.orderly,
            retry_steps_ms,
            retry_exponential,
            suspended: group.suspended,
            consume_from: match group.consume_from() {
                ConsumeFromWhere::ConsumeFromFirstOffset => "first".to_owned(),
                ConsumeFromWhere::ConsumeFromLastOffset => "last".to_owned(),
                ConsumeFromWhere::ConsumeFromTimestamp => group.consume_from_ms.to_string(),
            },
            broadcast: group.broadcast,
            lite_topic: Some(group.lite_bind_topic.clone()).filter(|topic| !topic.is_empty()),
            lite_exclusive: group.lite_exclusive,
            lite_client_quota: group.lite_client_quota,
        }
    }
}

fn span(duration: Option<&prost_types::Duration>) -> Duration {
    duration.and_then(|&duration| duration.try_into().ok()).unwrap_or_default()
}

/// A group's settings in lines: what each means.
pub(super) fn described(group: &v1::GroupConfig) -> Vec<(&'static str, String)> {
    let strategy = group.retry_policy.as_ref().and_then(|policy| policy.strategy.as_ref());
    let after = match strategy {
        None => "18 steps from 1s to 2h".to_owned(),
        Some(Strategy::CustomizedBackoff(backoff)) => {
            let steps = backoff.next.iter().map(|step| time::format_duration(span(Some(step))));
            steps.collect::<Vec<_>>().join(" ")
        }
        Some(Strategy::ExponentialBackoff(backoff)) => {
            let [first, longest] =
                [&backoff.initial, &backoff.max].map(|wait| time::format_duration(span(wait.as_ref())));
            format!("{first}, each time {} times as long, at most {longest}", backoff.multiplier)
        }
    };
    let retries = retry_max_times(group);
    let mut lines = vec![
        (
            "deliveries",
            if group.suspended { "suspended: karman group resume goes on" } else { "on" }.to_owned(),
        ),
        ("retries", format!("{retries}, after {after}")),
        (
            "order",
            match group.orderly {
                None => "as the first topic it reads from says",
                Some(true) => "one by one within a message group",
                Some(false) => "none",
            }
            .to_owned(),
        ),
        (
            "begins",
            match group.consume_from() {
                ConsumeFromWhere::ConsumeFromFirstOffset => "with the oldest message".to_owned(),
                ConsumeFromWhere::ConsumeFromLastOffset => "with what is sent from then on".to_owned(),
                ConsumeFromWhere::ConsumeFromTimestamp => {
                    format!("with what was stored from {} on", time::format_ms(group.consume_from_ms))
                }
            },
        ),
    ];
    if group.broadcast {
        lines.push(("broadcast", "each client gets every message".to_owned()));
    }
    if !group.lite_bind_topic.is_empty() {
        let exclusive = if group.lite_exclusive { ", one client for each" } else { "" };
        lines.push(("lite topics", format!("of {}{exclusive}", group.lite_bind_topic)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    fn set(group: &mut v1::GroupConfig, arguments: &[&str]) {
        let line = Line::try_parse_from(["test"].iter().chain(arguments)).unwrap();
        line.settings.set(group);
    }

    #[test]
    fn what_is_not_typed_stays() {
        let mut group = v1::GroupConfig { suspended: true, ..Default::default() };
        set(&mut group, &["--retry-steps", "1s,5s", "--orderly", "--consume-from", "last", "--broadcast"]);
        let before = group.clone();
        set(&mut group, &[]);
        assert_eq!(group, before);
        set(&mut group, &["--no-orderly", "--broadcast=false", "--retry-steps", "default"]);
        assert_eq!((group.orderly, group.broadcast, group.suspended), (Some(false), false, true));
        assert!(group.retry_policy.is_none());
        assert_eq!(group.consume_from(), ConsumeFromWhere::ConsumeFromLastOffset);
    }

    #[test]
    fn back_offs_are_shown_as_they_are_typed() {
        let mut group = v1::GroupConfig::default();
        set(&mut group, &["--retry-exponential", "500ms,2h,1.5"]);
        let json = serde_json::to_value(SettingsJson::of(&group)).unwrap();
        assert_eq!(json["retry_exponential"]["initial_ms"], 500);
        set(&mut group, &["--retry-steps", "1s, 2m"]);
        let json = serde_json::to_value(SettingsJson::of(&group)).unwrap();
        assert_eq!(json["retry_steps_ms"], serde_json::json!([1000, 120_000]));
        assert!(described(&group)[1].1.contains("after 1s 2m"));
        for bad in
            [&["--retry-steps", "1s,"][..], &["--retry-exponential", "1s,2"], &["--consume-from", "soon"]]
        {
            assert!(Line::try_parse_from(["test"].iter().chain(bad)).is_err(), "{bad:?}");
        }
    }
}
