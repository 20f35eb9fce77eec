use tonic::metadata::{MetadataMap, MetadataValue};

use super::*;
use crate::proto::karman::route_change::Change;
use crate::proto::karman::{BrokerDelta, BrokerIdentity, BrokerState, GroupConfig, RouteChange};
use crate::proto::v2::telemetry_command::Command;
use crate::proto::v2::{
    FilterType, PrintThreadStackTraceCommand, Publishing, Resource, Subscription, SubscriptionEntry,
    ThreadStackTrace, Ua, VerifyMessageCommand,
};

type Commands = mpsc::Receiver<Result<TelemetryCommand, Status>>;

fn caller(client_id: &'static str) -> Caller {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-mq-client-id", MetadataValue::from_static(client_id));
    metadata.insert("x-mq-language", MetadataValue::from_static("JAVA"));
    Caller::of(&metadata).unwrap()
}

fn resource(name: &str) -> Option<Resource> {
    Some(Resource { resource_namespace: String::new(), name: name.into() })
}

fn tag(expression: &str) -> FilterExpression {
    FilterExpression { r#type: FilterType::Tag.into(), expression: expression.into() }
}

fn consumer(group: &str, topics: &[(&str, &str)]) -> Settings {
    let entry = |(topic, tags): &(&str, &str)| SubscriptionEntry {
        topic: resource(topic),
        expression: Some(tag(tags)),
    };
    let subscriptions = topics.iter().map(entry).collect();
    let subscription = Subscription { group: resource(group), subscriptions, ..Default::default() };
    Settings {
        client_type: Some(ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        user_agent: Some(Ua { version: "5.2.0".into(), hostname: "host-1".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn producer(topics: &[&str]) -> Settings {
    let topics = topics.iter().filter_map(|topic| resource(topic)).collect();
    let publishing = Publishing { topics, ..Default::default() };
    Settings { pub_sub: Some(PubSub::Publishing(publishing)), ..Default::default() }
}

fn open(registry: &ClientRegistry, client_id: &'static str, sent: Settings) -> (CommandSender, Commands) {
    open_with(registry, client_id, sent, &SharedRoutes::default())
}

fn open_with(
    registry: &ClientRegistry,
    client_id: &'static str,
    sent: Settings,
    routes: &SharedRoutes,
) -> (CommandSender, Commands) {
    let (commands, received) = mpsc::channel(8);
    registry.opened(&caller(client_id), None, commands.clone(), sent, routes);
    (commands, received)
}

#[test]
fn settings_are_repeated_once_at_the_first_heartbeat() {
    let registry = ClientRegistry::default();
    let (_sender, mut received) = open(&registry, "c", producer(&[]));
    registry.heartbeat("c", ClientType::Producer, "");
    registry.heartbeat("c", ClientType::Producer, "");
    assert!(received.try_recv().is_ok());
    assert!(received.try_recv().is_err(), "repeated more than once");
}

#[test]
fn a_client_outlives_its_stream_but_not_its_termination() {
    let registry = ClientRegistry::default();
    let (commands, _received) = open(&registry, "c", consumer("g", &[("orders", "*")]));
    registry.closed("c", &commands);
    assert!(registry.is_alive("c"));
    assert_eq!(registry.members("g").len(), 1);
    registry.terminated("c");
    assert!(!registry.is_alive("c"));
    assert!(registry.members("g").is_empty() && registry.index.read().groups.is_empty());
}

#[test]
fn the_end_of_an_old_stream_does_not_close_the_new_one() {
    let registry = ClientRegistry::default();
    let (old, _old_received) = open(&registry, "c", producer(&[]));
    let (_new, mut received) = open(&registry, "c", producer(&[]));
    registry.closed("c", &old);
    registry.heartbeat("c", ClientType::Producer, "");
    assert!(received.try_recv().is_ok());
}

#[test]
fn what_a_client_says_and_does_is_remembered() {
    let registry = ClientRegistry::default();
    let (_sender, _received) = open(&registry, "c", consumer("g", &[("orders", "b||a")]));
    registry.subscribed("c", "g", "pay", None);
    let state = registry.of("c").unwrap();
    assert_eq!(
        (state.language.as_str(), state.version.as_str(), state.address.as_str()),
        ("Java", "5.2.0", "host-1")
    );
    assert_eq!((state.client_type(), state.group.as_str()), (ClientType::PushConsumer, "g"));
    let subscriptions: Vec<_> =
        state.subscriptions.iter().map(|s| (s.topic.as_str(), s.filter.clone())).collect();
    assert_eq!(subscriptions, [("orders", Some(tag("a || b"))), ("pay", Some(tag("*")))]);
    assert!(state.heard_ms > 1_600_000_000_000, "milliseconds since 1970");
    // What it listed last is all there is.
    let (_sender, _received) = open(&registry, "c", consumer("other", &[]));
    assert!(registry.of("c").unwrap().subscriptions.is_empty());
    assert_eq!((registry.members("g").len(), registry.members("other").len()), (0, 1));
    assert_eq!(registry.clients(), registry.members("other"));
}

#[test]
fn a_client_without_a_stream_is_known_by_its_heartbeats_and_calls() {
    let registry = ClientRegistry::default();
    registry.heartbeat("c", ClientType::PushConsumer, "g");
    registry.subscribed("c", "g", "orders", Some(&tag("a")));
    assert_eq!(registry.client_type("c"), Some(ClientType::PushConsumer));
    assert_eq!(registry.members("g")[0].subscriptions.len(), 1);
    assert_eq!(registry.contradicts("g", "orders", "c"), None);
    registry.subscribed("d", "g", "orders", Some(&tag("b")));
    let words = registry.contradicts("g", "orders", "c").unwrap();
    assert_eq!(words, r#"this client subscribes "orders" with TAG "a", client "d" with TAG "b""#);
    assert_eq!(registry.contradictions("g").len(), 1);
    registry.subscribed("d", "g", "orders", Some(&tag("a")));
    assert_eq!(registry.contradicts("g", "orders", "c"), None);
}

#[test]
fn a_contradiction_is_reported_once_when_it_comes_and_once_when_it_ends() {
    let registry = ClientRegistry::default();
    let is_reported = || {
        registry.expire();
        registry.index.read().groups["g"].is_reported
    };
    registry.subscribed("a", "g", "orders", Some(&tag("x")));
    assert!(!is_reported());
    registry.subscribed("b", "g", "orders", Some(&tag("y")));
    assert!(is_reported() && is_reported());
    registry.terminated("b");
    assert!(!is_reported());
}

#[test]
fn checks_go_to_each_connected_producer_of_the_topic_in_turns() {
    let registry = ClientRegistry::default();
    let (_a, _a_received) = open(&registry, "a", producer(&["orders"]));
    let (b, b_received) = open(&registry, "b", producer(&[]));
    registry.publishes("b", "orders");
    registry.publishes("b", "orders");
    registry.publishes("no stream", "orders");
    let (_consumer, _consumer_received) = open(&registry, "consumer", consumer("g", &[]));
    registry.publishes("consumer", "orders");
    let mut asked: Vec<_> = (0..4).map(|turn| registry.producer_of("orders", turn).unwrap().0).collect();
    asked.dedup();
    assert_eq!(asked, ["a", "b", "a"], "who cannot answer is passed over");
    assert!(registry.producer_of("other", 0).is_none());
    drop(b_received);
    assert_eq!(registry.producer_of("orders", 1).unwrap().0, "a", "the stream of b is gone");
    registry.closed("b", &b);
    registry.terminated("a");
    assert!(registry.producer_of("orders", usize::MAX).is_none());
    assert_eq!(registry.index.read().producers["orders"].client_ids.len(), 3);
}

#[test]
fn clients_that_fall_silent_are_forgotten_with_all_they_did() {
    let registry = ClientRegistry::default();
    let (_sender, _received) = open(&registry, "c", consumer("g", &[("orders", "*")]));
    registry.publishes("p", "orders");
    let expiry_ms = u64::try_from(CLIENT_EXPIRY.as_millis()).unwrap();
    registry.expire_at(expiry_ms);
    assert_eq!(registry.count(), 2);
    registry.clients.get("c").unwrap().heard_ms.store(expiry_ms, Ordering::Relaxed);
    registry.expire_at(expiry_ms + registry.now_ms() + 1);
    assert_eq!((registry.count(), registry.members("g").len()), (1, 1));
    assert!(registry.index.read().producers.is_empty());
    registry.expire_at(expiry_ms * 3);
    assert!(registry.count() == 0 && registry.index.read().groups.is_empty());
}

fn stack_trace(nonce: &str) -> TelemetryCommand {
    let trace = ThreadStackTrace { nonce: nonce.into(), thread_stack_trace: Some("main".into()) };
    TelemetryCommand { status: None, command: Some(Command::ThreadStackTrace(trace)) }
}

fn print_threads(nonce: String) -> Command {
    Command::PrintThreadStackTraceCommand(PrintThreadStackTraceCommand { nonce })
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_answer_finds_who_asked_by_its_nonce() {
    let registry = ClientRegistry::default();
    let (_sender, mut received) = open(&registry, "c", producer(&[]));
    let answering = async {
        let asked = received.recv().await.unwrap().unwrap();
        let Some(Command::PrintThreadStackTraceCommand(PrintThreadStackTraceCommand { nonce })) =
            asked.command
        else {
            panic!("another command");
        };
        let mut forged = stack_trace(&nonce);
        forged.status = Some(crate::status::ok());
        registry.answered("another", forged);
        registry.answered("c", stack_trace("unknown"));
        registry.answered("c", stack_trace(&nonce));
        registry.answered("c", stack_trace(&nonce));
        nonce
    };
    let (answer, nonce) = tokio::join!(registry.ask("c", LONG, print_threads), answering);
    assert_eq!(answer, Ok(stack_trace(&nonce)));
}

#[tokio::test]
async fn node_refuses_to_verify_in_the_form_of_the_question() {
    let registry = ClientRegistry::default();
    let (_sender, mut received) = open(&registry, "c", consumer("g", &[]));
    let question = |nonce| Command::VerifyMessageCommand(VerifyMessageCommand { nonce, message: None });
    let answering = async {
        let asked = received.recv().await.unwrap().unwrap();
        registry.answered("c", asked.clone());
        asked
    };
    let (answer, asked) = tokio::join!(registry.ask("c", LONG, question), answering);
    assert_eq!(answer, Ok(asked));
}

#[tokio::test]
async fn a_question_ends_with_the_stream_or_with_the_time() {
    let registry = ClientRegistry::default();
    let refused = registry.ask("c", LONG, print_threads).await;
    assert_eq!(refused, Err(CommandError::NotConnected("c".into()).into()));
    let (sender, _received) = open(&registry, "c", producer(&[]));
    let timeout = Duration::from_millis(1);
    let late = registry.ask("c", timeout, print_threads).await;
    assert_eq!(late, Err(AskError::NoAnswer { client_id: "c".into(), timeout }));
    let closing = async { registry.closed("c", &sender) };
    let (closed, ()) = tokio::join!(registry.ask("c", LONG, print_threads), closing);
    assert_eq!(closed, Err(AskError::Closed("c".into())));
    let (_sender, _received) = open(&registry, "c", producer(&[]));
    for _ in 0..8 {
        let _ = registry.ask("c", Duration::ZERO, print_threads).await;
    }
    let refused = registry.ask("c", LONG, print_threads).await;
    assert_eq!(refused, Err(CommandError::NotReading("c".into()).into()));
}

#[test]
fn only_lite_consumers_are_told_that_they_lost_a_lite_topic() {
    let registry = ClientRegistry::default();
    let (_push, mut push_received) = open(&registry, "push", consumer("g", &[]));
    let lite = Settings { client_type: Some(ClientType::LitePushConsumer.into()), ..consumer("g", &[]) };
    let (_lite, mut lite_received) = open(&registry, "lite", lite);
    assert_eq!(registry.notify_unsubscribe("lite", "session-1"), Ok(()));
    let told = lite_received.try_recv().unwrap().unwrap().command;
    assert!(matches!(
        told,
        Some(Command::NotifyUnsubscribeLiteCommand(command)) if command.lite_topic == "session-1"
    ));
    let refused = registry.notify_unsubscribe("push", "session-1");
    assert!(matches!(refused, Err(CommandError::WrongType { .. })));
    assert!(push_received.try_recv().is_err());
}

fn attempts(command: Option<Command>) -> i32 {
    match command {
        Some(Command::Settings(settings)) => settings.backoff_policy.unwrap().max_attempts,
        other => panic!("no settings: {other:?}"),
    }
}

#[test]
fn changed_settings_of_a_group_go_to_its_members_at_once() {
    let (registry, routes) = (std::sync::Arc::new(ClientRegistry::default()), SharedRoutes::default());
    let told = registry.clone();
    routes.listen(move |routes, changed| told.groups_changed(routes, changed));
    let (_member, mut member_received) = open_with(&registry, "member", consumer("g", &[]), &routes);
    let (_other, mut other_received) = open_with(&registry, "other", consumer("h", &[]), &routes);
    let group = |times| GroupConfig { name: "g".into(), retry_max_times: Some(times), ..Default::default() };
    let identity = BrokerIdentity { broker_name: "a".into(), ..Default::default() };
    let state = BrokerState { identity: Some(identity), topics: vec![], groups: vec![group(4)] };
    routes.apply(RouteChange { change: Some(Change::Joined(state)) });
    assert_eq!(attempts(member_received.try_recv().unwrap().unwrap().command), 5);
    let changed = |times| {
        let delta = BrokerDelta { broker_name: "a".into(), groups: vec![group(times)], ..Default::default() };
        RouteChange { change: Some(Change::Changed(delta)) }
    };
    routes.apply(changed(7));
    assert_eq!(attempts(member_received.try_recv().unwrap().unwrap().command), 8);
    routes.apply(changed(7));
    assert!(member_received.try_recv().is_err(), "nothing has changed");
    registry.heartbeat("member", ClientType::PushConsumer, "g");
    assert_eq!(
        attempts(member_received.try_recv().unwrap().unwrap().command),
        8,
        "the repeated answer is the last"
    );
    assert!(other_received.try_recv().is_err());
}

/// Whatever clients do at the same time, the index says the same as the clients.
#[test]
fn the_index_agrees_with_the_clients_after_any_concurrent_use() {
    let registry = ClientRegistry::default();
    let ids = ["a", "b", "c", "d"];
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let registry = &registry;
            scope.spawn(move || {
                let mut streams = Vec::new();
                for step in 0..2000_usize {
                    let turn = step.wrapping_mul(7) + thread;
                    let (id, topic) = (ids[turn % 4], ["t", "u", "v"][turn / 4 % 3]);
                    let group = ["g", "h"][turn / 3 % 2];
                    match step % 11 {
                        0 => streams.push(open(registry, id, consumer(group, &[(topic, "*")]))),
                        1 => streams.push(open(registry, id, producer(&[topic]))),
                        2 => registry.terminated(id),
                        3 => registry.heartbeat(id, ClientType::PushConsumer, group),
                        4 => registry.expire_at(u64::MAX * u64::from(step % 5 == 0)),
                        5 => drop(registry.producer_of(topic, step)),
                        6 => drop((registry.members(group), registry.clients())),
                        7 => drop(registry.contradicts(group, topic, id)),
                        8 => registry.groups_changed(&SharedRoutes::default(), &GroupsChanged::Any),
                        9 => registry.subscribed(id, group, topic, Some(&tag(topic))),
                        _ => registry.publishes(id, topic),
                    }
                    streams.truncate(8);
                }
            });
        }
    });
    let index = registry.index.read();
    let said_by_index = |group: &str| index.groups.get(group).map_or(0, |group| group.members().count());
    let in_group =
        |group| registry.clients.iter().filter(|client| client.group.as_deref() == Some(group)).count();
    for group in ["g", "h"] {
        assert_eq!(said_by_index(group), in_group(group), "{group}");
    }
    for topic in ["t", "u", "v"] {
        let publishing = registry.clients.iter().filter(|client| client.publishing.contains(topic)).count();
        let said = index.producers.get(topic).map_or(0, |producers| producers.client_ids.len());
        assert_eq!(said, publishing, "{topic}");
    }
}
