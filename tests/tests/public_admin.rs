//! `apache.rocketmq.v2.Admin`, as a tool calls it on any node of two brokers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use karman_remoting::proto::v2::admin_client::AdminClient;
use karman_remoting::proto::v2::list_message_request::SearchKey;
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, Code, MessageModel, MessageType};
use karman_tests::cluster::Node;
use karman_tests::raw::{message, receive_request, resource, seconds};
use karman_tests::{Cluster, Raw, until};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const DEADLINE: Duration = Duration::from_secs(20);

/// A blocking client of one node.
struct Tool {
    runtime: Runtime,
    client: AdminClient<Channel>,
}

impl Tool {
    fn connect(endpoint: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = Endpoint::from_shared(format!("http://{endpoint}")).unwrap();
        let client = AdminClient::new(runtime.block_on(async { address.connect_lazy() }));
        Self { runtime, client }
    }
}

/// Calls a method and gives its answer, which must be OK.
macro_rules! call {
    ($tool:expr, $method:ident, $request:expr) => {{
        let answer = said!($tool, $method, $request);
        let status = answer.status.clone().unwrap();
        assert_eq!(status.code, Code::Ok as i32, "{}: {status:?}", stringify!($method));
        answer
    }};
}

macro_rules! said {
    ($tool:expr, $method:ident, $request:expr) => {{
        let mut client = $tool.client.clone();
        $tool.runtime.block_on(client.$method($request)).unwrap().into_inner()
    }};
}

fn nodes(cluster: &Cluster) -> impl Iterator<Item = Tool> {
    cluster.namesrvs.iter().chain(&cluster.brokers).map(|node: &Node| Tool::connect(&node.endpoint()))
}

fn take(raw: &Raw, broker: &str) -> Vec<v2::Message> {
    raw.receive(v2::ReceiveMessageRequest {
        long_polling_timeout: Some(seconds(0)),
        ..receive_request("orders", "reading", broker)
    })
    .1
}

fn filled() -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    cluster.create_topic("orders");
    for (node, prefix) in cluster.brokers.iter().zip(["a", "b"]) {
        let raw = Raw::connect(&node.endpoint()).named("reader");
        for number in 0..3 {
            let mut sent = message("orders", &format!("{prefix}-{number}"));
            sent.system_properties.as_mut().unwrap().keys = vec!["shared".to_owned()];
            assert_eq!(raw.send(&[sent]).status.unwrap().code, Code::Ok as i32);
        }
    }
    cluster
}

#[test]
fn topics_routes_and_messages_are_told_in_rocketmqs_words() {
    let cluster = filled();
    for tool in nodes(&cluster) {
        let topic = || resource("orders");
        let status = v2::DescribeTopicStatusRequest { topic: topic(), ..Default::default() };
        let status = call!(tool, describe_topic_status, status);
        assert_eq!(status.topic_message_type(), MessageType::Normal);
        assert_eq!((&*status.tags["brokers"], &*status.tags["messages"]), ("2", "6"));

        let route = v2::GetTopicRouteRequest { topic: topic(), network_type: 1, ..Default::default() };
        let route = call!(tool, get_topic_route, route).topic_route_data;
        let route: serde_json::Value = serde_json::from_str(&route).unwrap();
        assert_eq!(route["brokerDatas"].as_array().unwrap().len(), 2, "{route}");
        assert_eq!(route["brokerDatas"][1]["brokerAddrs"]["0"], cluster.brokers[1].endpoint());
        assert_eq!(
            (&route["queueDatas"][0]["perm"], &route["queueDatas"][0]["readQueueNums"]),
            (&6.into(), &4.into())
        );

        let query = |key: Option<SearchKey>| v2::ListMessageRequest {
            topic: resource("orders"),
            search_key: key,
            ..Default::default()
        };
        assert_eq!(call!(tool, query_message, query(None)).messages.len(), 6);
        let by_key = call!(tool, query_message, query(Some(SearchKey::MessageKey("shared".into()))));
        assert_eq!(by_key.messages.len(), 6);
        let page = v2::ListMessageRequest {
            page_num: Some(2),
            page_size: Some(4),
            ..query(Some(SearchKey::MessageKey("shared".into())))
        };
        assert_eq!(call!(tool, query_message, page).messages[..], by_key.messages[4..]);
        let one =
            call!(tool, query_message, query(Some(SearchKey::MessageId("b-1".into())))).messages.remove(0);
        let system = one.system_properties.unwrap();
        assert!(system.store_timestamp.is_some() && system.store_host == "broker-b", "{system:?}");

        let span = v2::QueryTimeSpanRequest { topics: vec![topic().unwrap()], ..Default::default() };
        let spans = call!(tool, query_time_span, span).queue_time_span_list;
        assert_eq!(spans.len(), 8);
        assert_eq!(spans.iter().filter(|span| span.min_timestamp > 0).count(), 6, "{spans:?}");
        assert!(spans.iter().all(|span| span.min_timestamp <= span.max_timestamp));
        let stats = said!(tool, get_proxy_runtime_stats, v2::GetProxyRuntimeStatsRequest {});
        assert!(stats.in_tps > 0.0 && stats.producers >= 1, "{stats:?}");

        let unknown = v2::DescribeTopicStatusRequest { topic: resource("bills"), ..Default::default() };
        let unknown = said!(tool, describe_topic_status, unknown).status.unwrap();
        assert_eq!(unknown.code, Code::TopicNotFound as i32);
    }
    let tool = nodes(&cluster).next().unwrap();
    let sent = v2::AdminSendMessageRequest {
        topic: resource("orders"),
        tag: Some("new".to_owned()),
        key: Some("by-hand".to_owned()),
        body: Bytes::from_static(b"a book"),
        ..Default::default()
    };
    let id = call!(tool, admin_send_message, sent).message_id;
    let query = v2::ListMessageRequest {
        topic: resource("orders"),
        search_key: Some(SearchKey::MessageKey("by-hand".into())),
        ..Default::default()
    };
    let found = call!(tool, query_message, query).messages.remove(0);
    assert_eq!((found.system_properties.unwrap().message_id, &found.body[..]), (id, &b"a book"[..]));
    let empty = v2::AdminSendMessageRequest { topic: resource("orders"), ..Default::default() };
    let refused = said!(tool, admin_send_message, empty).status.unwrap();
    assert_eq!(refused.code, Code::MessageBodyEmpty as i32);
}

#[test]
fn groups_are_described_moved_and_forgotten() {
    let cluster = filled();
    let reader = Raw::connect(&cluster.brokers[0].endpoint()).named("reader");
    assert_eq!(take(&reader, "broker-a").len(), 3);
    let (group, topic) = (|| resource("reading"), || resource("orders"));
    for tool in nodes(&cluster) {
        let accumulation = v2::DescribeGroupAccumulationRequest { group: group(), ..Default::default() };
        let whole = call!(tool, describe_group_accumulation, accumulation);
        let sum = whole.accumulation.unwrap();
        assert_eq!((sum.inflight_messages, sum.ready_messages, sum.accumulation), (3, 0, 3));
        assert_eq!(whole.topic_accumulation["orders"].inflight_messages, 3);

        let subscriptions = v2::ListSubscriptionRequest { topic: topic(), ..Default::default() };
        let subscriptions = call!(tool, list_subscription, subscriptions).subscription_info;
        assert_eq!(subscriptions.len(), 1, "{subscriptions:?}");
        assert!(subscriptions[0].online && subscriptions[0].subscription_consistency);
        assert_eq!(subscriptions[0].message_model(), MessageModel::Clustering);
        let by_client = v2::DescribeSubscriptionRequest { group: group(), ..Default::default() };
        let by_client = call!(tool, describe_subscription, by_client).client_subscription_info;
        assert_eq!(by_client[0].client_info.as_ref().unwrap().client_id, "reader");
        let connections = v2::ListConsumerConnectionRequest { group: group(), ..Default::default() };
        assert_eq!(call!(tool, list_consumer_connection, connections).client_info.len(), 1);
        let info = v2::GetConsumerRunningInfoRequest {
            group: group(),
            client_id: "reader".to_owned(),
            ..Default::default()
        };
        let info = call!(tool, get_consumer_running_info, info).consumer_running_info.unwrap();
        assert!(info.subscriptions.contains_key("orders"), "{info:?}");
        let forget = v2::DeleteSubscriptionRequest { group: group(), topic: topic(), ..Default::default() };
        let refused = said!(tool, delete_subscription, forget).status.unwrap();
        assert!(refused.code == Code::Forbidden as i32 && refused.message.contains("reader"), "{refused:?}");
    }
    let tool = nodes(&cluster).next().unwrap();
    let reset = |at: SystemTime| v2::ResetGroupOffsetRequest {
        group: resource("reading"),
        topic: resource("orders"),
        reset_timestamp: Some(at.into()),
        ..Default::default()
    };
    call!(tool, reset_group_offset, reset(SystemTime::UNIX_EPOCH));
    assert_eq!(take(&reader, "broker-a").len(), 3, "again");
    call!(tool, reset_group_offset, reset(SystemTime::now() + Duration::from_secs(60)));
    assert!(take(&reader, "broker-a").is_empty() && take(&reader, "broker-b").is_empty());

    let stop = || v2::NotifyClientTerminationRequest { group: resource("reading") };
    for node in &cluster.brokers {
        let status = Raw::connect(&node.endpoint()).named("reader").notify_client_termination(stop()).status;
        assert_eq!(status.unwrap().code, Code::Ok as i32);
    }
    let forget = || v2::DeleteSubscriptionRequest {
        group: resource("reading"),
        topic: resource("orders"),
        ..Default::default()
    };
    call!(tool, delete_subscription, forget());
    let subscriptions = v2::ListSubscriptionRequest { group: group(), ..Default::default() };
    assert!(call!(tool, list_subscription, subscriptions).subscription_info.is_empty());
    assert_eq!(take(&reader, "broker-b").len(), 3, "it begins anew");
}

#[test]
fn a_client_is_asked_through_any_node() {
    let cluster = filled();
    let reader = Raw::connect(&cluster.brokers[1].endpoint()).named("reader");
    let subscription = v2::Subscription {
        group: resource("reading"),
        subscriptions: vec![v2::SubscriptionEntry { topic: resource("orders"), ..Default::default() }],
        ..Default::default()
    };
    let telemetry = reader.telemetry(v2::Settings {
        client_type: Some(v2::ClientType::PushConsumer.into()),
        pub_sub: Some(PubSub::Subscription(subscription)),
        ..Default::default()
    });
    let threads = |client: &str| v2::PrintThreadStackTraceRequest {
        client_id: client.to_owned(),
        group: resource("reading"),
        ..Default::default()
    };
    for node in cluster.namesrvs.iter().chain(&cluster.brokers) {
        let tool = Tool::connect(&node.endpoint());
        let asked = std::thread::spawn(move || call!(tool, print_thread_stack_trace, threads("reader")));
        let Command::PrintThreadStackTraceCommand(question) = telemetry.next(DEADLINE) else { panic!() };
        let thread_stack_trace = Some("main: idle".to_owned());
        telemetry.say(Command::ThreadStackTrace(v2::ThreadStackTrace {
            nonce: question.nonce,
            thread_stack_trace,
        }));
        assert_eq!(asked.join().unwrap().thread_stack_trace(), "main: idle");
    }
    let tool = Tool::connect(&cluster.namesrvs[0].endpoint());
    let verify = v2::VerifyMessageRequest {
        client_id: "reader".to_owned(),
        group: resource("reading"),
        topic: resource("orders"),
        message_id: "a-1".to_owned(),
        ..Default::default()
    };
    let asked = std::thread::spawn(move || call!(tool, verify_message, verify));
    let Command::VerifyMessageCommand(question) = telemetry.next(DEADLINE) else { panic!() };
    let system = question.message.unwrap().system_properties.unwrap();
    assert!(system.message_id == "a-1" && system.body_digest.is_some(), "{system:?}");
    telemetry.say(Command::VerifyMessageResult(v2::VerifyMessageResult { nonce: question.nonce }));
    asked.join().unwrap();

    let tool = Tool::connect(&cluster.brokers[0].endpoint());
    let gone = said!(tool, print_thread_stack_trace, threads("nobody")).status.unwrap();
    assert!(gone.code == Code::NotFound as i32 && gone.message.contains("nobody"), "{gone:?}");
    let level =
        |level: v2::change_log_level_request::Level| v2::ChangeLogLevelRequest { level: level.into() };
    let remark = said!(tool, change_log_level, level(v2::change_log_level_request::Level::Debug)).remark;
    assert!(remark.contains("debug"), "{remark}");
    until("the node goes on", DEADLINE, || (take(&reader, "broker-b").len() == 3).then_some(()));
}
