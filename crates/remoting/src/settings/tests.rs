use super::*;
use crate::proto::karman::route_change::Change;
use crate::proto::karman::{BrokerIdentity, BrokerState, RouteChange, TopicRoute};
use crate::proto::v2::{Resource, retry_policy};

fn resource(name: &str) -> Option<Resource> {
    Some(Resource { resource_namespace: "ns".into(), name: name.into() })
}

fn routes(groups: Vec<GroupConfig>) -> RouteTable {
    let topic = |name: &str, kind: MessageType| TopicRoute {
        name: name.into(),
        message_type: kind.into(),
        ..Default::default()
    };
    let identity = BrokerIdentity { broker_name: "a".into(), ..Default::default() };
    let topics = vec![topic("normal", MessageType::Normal), topic("fifo", MessageType::Fifo)];
    let state = BrokerState { identity: Some(identity), topics, groups };
    let mut routes = RouteTable::default();
    routes.apply(RouteChange { change: Some(Change::Joined(state)) });
    routes
}

fn group(name: &str) -> GroupConfig {
    GroupConfig { name: name.into(), ..Default::default() }
}

fn sent(group: &str, topics: &[&str], client_type: ClientType) -> Settings {
    let entries = topics.iter().map(|name| SubscriptionEntry { topic: resource(name), expression: None });
    let subscription =
        Subscription { group: resource(group), subscriptions: entries.collect(), ..Default::default() };
    Settings {
        client_type: Some(client_type.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Default::default()
    }
}

fn consumer_of(group: &str, topics: &[&str], client_type: ClientType, routes: &RouteTable) -> Subscription {
    let answer = answer(&sent(group, topics, client_type), Language::Other, routes);
    assert_eq!(answer.metric, Some(Metric::default()), "metrics endpoints are never set");
    match answer.pub_sub {
        Some(PubSub::Subscription(subscription)) => subscription,
        other => panic!("another case was answered: {other:?}"),
    }
}

#[test]
fn producers_get_an_exponential_backoff_and_a_body_size() {
    let sent = Settings { pub_sub: Some(PubSub::Publishing(Publishing::default())), ..Default::default() };
    let answer = answer(&sent, Language::Other, &RouteTable::default());
    let strategy = answer.backoff_policy.unwrap().strategy;
    assert!(matches!(strategy, Some(retry_policy::Strategy::ExponentialBackoff(_))));
    let Some(PubSub::Publishing(publishing)) = answer.pub_sub else { panic!("another case was answered") };
    assert_eq!(publishing.max_body_size, 4_194_304);
}

#[test]
fn fifo_is_what_the_group_says_else_what_its_topics_are() {
    let orderly = |orderly| GroupConfig { orderly: Some(orderly), ..group("said") };
    let fifo = |group, topics: &[&str], routes: &RouteTable| {
        consumer_of(group, topics, ClientType::PushConsumer, routes).fifo()
    };
    assert!(fifo("said", &["normal"], &routes(vec![orderly(true)])));
    assert!(!fifo("said", &["fifo"], &routes(vec![orderly(false)])));
    for known in [routes(vec![]), routes(vec![group("unsaid")])] {
        assert!(!fifo("unsaid", &["normal", "unknown"], &known));
        assert!(fifo("unsaid", &["normal", "fifo"], &known));
    }
}

#[test]
fn only_lite_consumers_get_a_quota() {
    let bound =
        |quota| GroupConfig { lite_bind_topic: "parent".into(), lite_client_quota: quota, ..group("lite") };
    let quota = |client_type, routes: &RouteTable| {
        let consumer = consumer_of("lite", &["parent"], client_type, routes);
        (consumer.lite_subscription_quota, consumer.max_lite_topic_size)
    };
    assert_eq!(quota(ClientType::LitePushConsumer, &routes(vec![bound(7)])), (Some(7), Some(64)));
    assert_eq!(quota(ClientType::LiteSimpleConsumer, &routes(vec![bound(0)])), (Some(2000), Some(64)));
    assert_eq!(quota(ClientType::LitePushConsumer, &routes(vec![])), (Some(2000), Some(64)));
    assert_eq!(quota(ClientType::PushConsumer, &routes(vec![])), (None, None));
}

#[test]
fn a_bound_group_is_for_lite_consumers_of_its_topic_and_for_nothing_else() {
    let bound = GroupConfig { lite_bind_topic: "parent".into(), ..group("lite") };
    let plain = group("plain");
    let check = |client_type, group, topic| check_lite(client_type, group, [topic]);
    let (lite, push) = (ClientType::LitePushConsumer, ClientType::PushConsumer);
    assert_eq!(check(lite, Some(&bound), "parent"), Ok(()));
    assert_eq!(check(push, Some(&plain), "parent"), Ok(()));
    assert_eq!(check(lite, None, "parent"), Ok(()), "the group is not known here yet");
    assert_eq!(check(ClientType::Unspecified, Some(&bound), "parent"), Ok(()), "nor is the client");
    assert!(matches!(check(push, Some(&bound), "parent"), Err(Rejection::IllegalGroup { .. })));
    assert!(matches!(check(lite, Some(&plain), "parent"), Err(Rejection::IllegalGroup { .. })));
    assert!(matches!(check(lite, Some(&bound), "other"), Err(Rejection::IllegalTopic { .. })));
}
