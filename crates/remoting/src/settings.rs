//! The answer to a client's Settings: complete for every official client, chosen by its language. Pure; any thread.
//!
//! Which field breaks which client when it is missing or zero is told in the wire contract (`docs/protocol.md`).

mod backoff;

use std::time::Duration;

pub use self::backoff::check_backoff;
use self::backoff::exponential;
use crate::metadata::Language;
use crate::proto::karman::GroupConfig;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::{
    ClientType, MessageType, Metric, Publishing, Settings, Subscription, SubscriptionEntry,
};
use crate::route_table::RouteTable;
use crate::status::Rejection;
use crate::validate;

/// Largest body of one message, in bytes (`maxMessageSize`).
pub const MAX_BODY_SIZE_BYTES: usize = 4 * 1024 * 1024;
/// Most messages in one receive, as RocketMQ's pop.
pub const RECEIVE_BATCH_SIZE_MAX: usize = 32;
/// Longest wait of a long poll.
pub const LONG_POLLING_MAX: Duration = Duration::from_secs(20);
/// Deliveries are one more than this (`retryMaxTimes`).
pub const DEFAULT_RETRY_MAX_TIMES: u32 = 16;

const PRODUCER_MAX_ATTEMPTS: i32 = 3;
/// Lite topics of one client, where its group says nothing (`lite.sub.client.quota`).
pub const DEFAULT_LITE_CLIENT_QUOTA: u32 = 2000;
/// Longest name of a lite topic, in characters.
pub const MAX_LITE_TOPIC_SIZE: i32 = 64;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// The settings a client must follow. `sent` has one of the two cases of `pub_sub` set (the caller has checked it); what
/// a consumer must follow is what `routes` say of its group.
pub fn answer(sent: &Settings, language: Language, routes: &RouteTable) -> Settings {
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
            let group = subscription.group.as_ref().and_then(|group| routes.group(&group.name));
            let consumer = consumer(subscription, sent.client_type(), group, routes);
            (backoff::of_group(group, language), Some(PubSub::Subscription(consumer)))
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

fn consumer(
    sent: &Subscription,
    client_type: ClientType,
    group: Option<&GroupConfig>,
    routes: &RouteTable,
) -> Subscription {
    let is_ordered = |entry: &SubscriptionEntry| {
        let topic = validate::name_of(entry.topic.as_ref());
        matches!(routes.message_type(topic), Some(MessageType::Fifo | MessageType::Lite))
    };
    let orderly = group.and_then(|group| group.orderly);
    let quota = group.map_or(0, |group| group.lite_client_quota);
    let is_lite = is_lite(client_type);
    Subscription {
        // Echoed unchanged: C++ adopts a namespace that differs from its own.
        group: sent.group.clone(),
        subscriptions: sent.subscriptions.clone(),
        fifo: Some(orderly.unwrap_or_else(|| sent.subscriptions.iter().any(is_ordered))),
        receive_batch_size: Some(RECEIVE_BATCH_SIZE_MAX as i32),
        long_polling_timeout: Some(seconds(LONG_POLLING_MAX.as_secs().cast_signed())),
        // Lite consumers in Java, C# and Python cannot subscribe, or wait for ever, without these.
        lite_subscription_quota: is_lite.then(|| lite_subscription_quota(quota)),
        max_lite_topic_size: is_lite.then_some(MAX_LITE_TOPIC_SIZE),
    }
}

/// How many lite topics one client may subscribe to, from what its group says.
fn lite_subscription_quota(lite_client_quota: u32) -> i32 {
    let quota = if lite_client_quota == 0 { DEFAULT_LITE_CLIENT_QUOTA } else { lite_client_quota };
    i32::try_from(quota).unwrap_or(i32::MAX)
}

fn is_lite(client_type: ClientType) -> bool {
    matches!(client_type, ClientType::LitePushConsumer | ClientType::LiteSimpleConsumer)
}

/// A group that is bound to a parent of lite topics is for lite consumers of that topic, and for nothing else. A client
/// whose type or whose group is not known yet passes.
pub fn check_lite<'a>(
    client_type: ClientType,
    group: Option<&GroupConfig>,
    topics: impl IntoIterator<Item = &'a str>,
) -> Result<(), Rejection> {
    let Some(group) = group else { return Ok(()) };
    let is_lite = is_lite(client_type);
    let refused = |rule| Rejection::IllegalGroup { name: group.name.clone(), rule };
    if group.lite_bind_topic.is_empty() {
        return if is_lite {
            Err(refused("a lite consumer needs a group that is bound to a parent topic (lite_bind_topic)"))
        } else {
            Ok(())
        };
    }
    if !is_lite && client_type != ClientType::Unspecified {
        return Err(refused(
            "it is bound to a parent topic (lite_bind_topic): only lite consumers may use it",
        ));
    }
    match topics.into_iter().find(|topic| *topic != group.lite_bind_topic) {
        Some(topic) => Err(Rejection::IllegalTopic {
            name: validate::shortened(topic),
            rule: "the group is bound to another parent topic (lite_bind_topic)",
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
