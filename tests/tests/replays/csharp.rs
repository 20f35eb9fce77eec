//! The C# client. It opens streams to brokers alone, never opens one anew, and looks at several fields without asking whether they
//! are there.

use karman_remoting::proto::v2::{self, Code};
use karman_tests::raw::{is_ok, now_ms, resource, seconds, system};

use super::*;

struct CSharp;

const VERSION: &str = "5.2.1+4f1c2a9e7d3b5a6c8e0f1d2b3c4a5e6f7a8b9c0d";

impl Client for CSharp {
    const ID: &'static str = "host-1@4711@1@mub8zxc0";

    fn headers(user: Option<(&str, &str)>) -> Headers {
        // The time of the place, whatever that is, called UTC.
        const TIME: &str = "20260921T161320Z";
        let mut metadata = vec![
            ("user-agent", "grpc-dotnet/2.43.0 (.NET 8.0.8; CLR 8.0.8; net6.0; linux; x64)".to_owned()),
            ("grpc-accept-encoding", "identity,gzip,deflate".to_owned()),
            ("x-mq-language", "DOTNET".to_owned()),
            ("x-mq-client-version", VERSION.to_owned()),
            ("x-mq-request-id", "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned()),
            ("x-mq-client-id", Self::ID.to_owned()),
            ("x-mq-namespace", String::new()),
            ("x-mq-date-time", TIME.to_owned()),
        ];
        if let Some((key, secret)) = user {
            let signature = signature(secret, TIME);
            let credential = format!("Credential={key}");
            let signed = "SignedHeaders=x-mq-date-time";
            let authorization = format!("MQv2-HMAC-SHA1 {credential}, {signed}, Signature={signature}");
            metadata.push(("authorization", authorization));
        }
        Headers { metadata, of_stream: Some("87600H") }
    }

    fn settings(access_point: v2::Endpoints, kind: v2::ClientType) -> v2::Settings {
        use v2::settings::PubSub;
        let none = || Some(prost_types::Duration::default());
        let (pub_sub, policy) = if kind == v2::ClientType::Producer {
            let topics = vec![resource(TOPIC).unwrap()];
            let publishing = v2::Publishing { topics, max_body_size: 0, validate_message_type: true };
            let backoff = v2::ExponentialBackoff { initial: none(), max: none(), multiplier: 1.0 };
            let strategy = Some(v2::retry_policy::Strategy::ExponentialBackoff(backoff));
            (PubSub::Publishing(publishing), Some(v2::RetryPolicy { max_attempts: 3, strategy }))
        } else {
            let entry = v2::SubscriptionEntry { topic: resource(TOPIC), expression: Some(everything()) };
            let group = resource(GROUP);
            let subscription = v2::Subscription { group, subscriptions: vec![entry], ..Default::default() };
            (PubSub::Subscription(subscription), None)
        };
        v2::Settings {
            client_type: Some(kind.into()),
            access_point: Some(access_point),
            backoff_policy: policy,
            request_timeout: Some(seconds(3)),
            pub_sub: Some(pub_sub),
            // It does not say its language.
            user_agent: Some(v2::Ua {
                version: VERSION.to_owned(),
                platform: "Unix 6.1.0.18".to_owned(),
                hostname: "host-1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn message(id: &str, kind: v2::MessageType) -> v2::Message {
        v2::Message {
            topic: resource(TOPIC),
            user_properties: [("origin".to_owned(), "größe 漢字".to_owned())].into(),
            system_properties: Some(v2::SystemProperties {
                tag: Some("red".to_owned()),
                keys: vec!["key-1".to_owned()],
                message_id: id.to_owned(),
                body_encoding: v2::Encoding::Identity.into(),
                message_type: kind.into(),
                born_timestamp: Some(BORN),
                born_host: "host-1".to_owned(),
                queue_id: 1,
                ..Default::default()
            }),
            body: "body".into(),
        }
    }
}

fn everything() -> v2::FilterExpression {
    v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: "*".to_owned() }
}

/// Of a push consumer, which copies the whole queue of its assignment.
fn receive(queue: &v2::MessageQueue) -> v2::ReceiveMessageRequest {
    v2::ReceiveMessageRequest {
        group: resource(GROUP),
        message_queue: Some(queue.clone()),
        filter_expression: Some(everything()),
        batch_size: 32,
        auto_renew: true,
        long_polling_timeout: Some(seconds(20)),
        attempt_id: Some("7c9e6679-7425-40de-944b-e07fc1f90ae7".to_owned()),
        ..Default::default()
    }
}

/// Opens the stream to a broker, whose answer has what the client dereferences.
fn started(address: &str, access_point: &str, kind: v2::ClientType) -> (Raw, karman_tests::raw::Telemetry) {
    let raw = CSharp::connect(address);
    let stream = raw.telemetry(CSharp::settings(endpoints(access_point), kind));
    let policy = stream.settings.backoff_policy.as_ref().unwrap();
    assert!(policy.max_attempts > 0);
    match stream.settings.pub_sub.as_ref().unwrap() {
        v2::settings::PubSub::Publishing(publishing) => {
            assert!(publishing.max_body_size > 0, "0 would refuse every message");
            let strategy = policy.strategy.as_ref().unwrap();
            assert!(
                matches!(strategy, v2::retry_policy::Strategy::ExponentialBackoff(_)),
                "it throws otherwise"
            );
        }
        v2::settings::PubSub::Subscription(subscription) => {
            assert!(policy.strategy.is_some(), "it throws otherwise");
            assert!(subscription.receive_batch_size() > 0);
            assert!(subscription.long_polling_timeout.as_ref().unwrap().seconds > 0);
        }
    }
    (raw, stream)
}

/// A producer, and a consumer at each broker.
type Started = (Raw, BTreeMap<String, (Raw, v2::ReceiveMessageRequest)>, Vec<karman_tests::raw::Telemetry>);

fn all_started(access_point: &str) -> Started {
    let queues = route(&CSharp::connect(access_point), access_point);
    let (mut raws, mut streams) = (BTreeMap::new(), Vec::new());
    for address in by_broker(queues).into_keys() {
        let (raw, stream) = started(&address, access_point, v2::ClientType::PushConsumer);
        let client_type = v2::ClientType::PushConsumer.into();
        is_ok(raw.heartbeat(v2::HeartbeatRequest { group: resource(GROUP), client_type }).status);
        streams.push(stream);
        raws.insert(address, raw);
    }
    let answer = raws.values().next().unwrap().query_assignment(v2::QueryAssignmentRequest {
        topic: resource(TOPIC),
        group: resource(GROUP),
        endpoints: Some(endpoints(access_point)),
    });
    is_ok(answer.status);
    let assigned: Vec<v2::MessageQueue> =
        answer.assignments.into_iter().map(|assignment| assignment.message_queue.unwrap()).collect();
    assert!(
        assigned.iter().all(|queue| queue.permission() == v2::Permission::ReadWrite),
        "it throws otherwise"
    );
    let queues = by_broker(assigned);
    let (producer, stream) = started(raws.keys().next().unwrap(), access_point, v2::ClientType::Producer);
    is_ok(producer.heartbeat(producers_heartbeat()).status);
    streams.push(stream);
    let raws = raws.into_iter().map(|(address, raw)| {
        let request = receive(&queues[&address]);
        (address, (raw, request))
    });
    (producer, raws.collect(), streams)
}

#[test]
fn a_csharp_push_consumer_gets_what_a_csharp_producer_sends() {
    let cluster = cluster("normal");
    let (producer, raws, streams) = all_started(&cluster.namesrvs[0].endpoint());
    sent(producer.send(&[CSharp::message("first", v2::MessageType::Normal)]), "first");
    let (raw, message) = received(&raws);
    assert_eq!((&*message.body, system(&message).delivery_attempt()), (&b"body"[..], 1));
    assert_eq!(complete(&message).keys, ["key-1"]);
    // It goes on with heartbeats when its streams are gone, and opens none anew.
    drop(streams);
    let again = refused(&raws, raw, &message, seconds(1));
    let heartbeat =
        v2::HeartbeatRequest { group: resource(GROUP), client_type: v2::ClientType::PushConsumer.into() };
    is_ok(raw.heartbeat(heartbeat).status);
    acked(raw, &again);
    is_ok(
        raw.notify_client_termination(v2::NotifyClientTerminationRequest { group: resource(GROUP) }).status,
    );
}

#[test]
fn csharp_gives_a_fifo_message_up() {
    let cluster = cluster("fifo");
    let (producer, raws, _streams) = all_started(&cluster.namesrvs[0].endpoint());
    for id in ["first", "second"] {
        let mut message = CSharp::message(id, v2::MessageType::Fifo);
        message.system_properties.as_mut().unwrap().message_group = Some("g".to_owned());
        sent(producer.send(&[message]), id);
    }
    let (raw, first) = received(&raws);
    assert_eq!(complete(&first).message_id, "first");
    let answer = raw.forward_message_to_dead_letter_queue(v2::ForwardMessageToDeadLetterQueueRequest {
        group: resource(GROUP),
        topic: resource(TOPIC),
        receipt_handle: system(&first).receipt_handle().to_owned(),
        message_id: "first".to_owned(),
        delivery_attempt: 1,
        max_delivery_attempts: 17,
        ..Default::default()
    });
    is_ok(answer.status);
    cluster.wait_dead_letters(GROUP);
    let (raw, second) = received(&raws);
    assert_eq!(complete(&second).message_id, "second");
    acked(raw, &second);
}

/// It asks its access point.
#[test]
fn csharp_recalls_a_delayed_message_through_its_access_point() {
    let cluster = cluster("delay");
    let access_point = cluster.namesrvs[0].endpoint();
    let (producer, raws, _streams) = all_started(&access_point);
    let delayed = |id: &str, after_ms: i64| {
        let due_ms = now_ms() + after_ms;
        let nanos = i32::try_from(due_ms % 1000).unwrap() * 1_000_000;
        let mut message = CSharp::message(id, v2::MessageType::Delay);
        let due = Some(prost_types::Timestamp { seconds: due_ms / 1000, nanos });
        message.system_properties.as_mut().unwrap().delivery_timestamp = due;
        message
    };
    let handle = sent(producer.send(&[delayed("recalled", 3000)]), "recalled").recall_handle;
    let recall = v2::RecallMessageRequest { topic: resource(TOPIC), recall_handle: handle };
    let answer = CSharp::connect(&access_point).recall_message(recall);
    is_ok(answer.status);
    assert_eq!(answer.message_id, "recalled");
    sent(producer.send(&[delayed("later", 3500)]), "later");
    let (raw, message) = received(&raws);
    assert_eq!(complete(&message).message_id, "later");
    acked(raw, &message);
}

/// It never says which lite topic a message is of, and announces what it wants at its access point alone.
#[test]
fn csharp_acknowledges_lite_messages_without_their_lite_topic() {
    let cluster = cluster("lite");
    cluster.karman(&["group", "create", GROUP, "--lite-topic", TOPIC]);
    let access_point = cluster.namesrvs[0].endpoint();
    let queues = by_broker(route(&CSharp::connect(&access_point), &access_point));
    let mut raws = BTreeMap::new();
    for (address, queue) in queues {
        let raw = CSharp::connect(&address);
        raw.telemetry(CSharp::settings(endpoints(&access_point), v2::ClientType::LitePushConsumer));
        let client_type = v2::ClientType::LitePushConsumer.into();
        is_ok(raw.heartbeat(v2::HeartbeatRequest { group: resource(GROUP), client_type }).status);
        raws.insert(address, (raw, receive(&queue)));
    }
    let answer = CSharp::connect(&access_point).sync_lite_subscription(v2::SyncLiteSubscriptionRequest {
        action: v2::LiteSubscriptionAction::PartialAdd.into(),
        topic: resource(TOPIC),
        group: resource(GROUP),
        lite_topic_set: vec!["session-1".to_owned()],
        ..Default::default()
    });
    is_ok(answer.status);
    let mut message = CSharp::message("lite", v2::MessageType::Lite);
    message.system_properties.as_mut().unwrap().lite_topic = Some("session-1".to_owned());
    sent(raws.values().next().unwrap().0.send(&[message]), "lite");
    let (raw, message) = received(&raws);
    assert_eq!(complete(&message).lite_topic(), "session-1");
    acked(raw, &message);
    let (status, messages) = {
        let (raw, request) = raws.values().next().unwrap();
        raw.receive(v2::ReceiveMessageRequest { long_polling_timeout: Some(NOT_LONG), ..request.clone() })
    };
    assert_eq!((status.code(), messages.len()), (Code::MessageNotFound, 0));
}

#[test]
fn csharp_producers_are_asked_about_transactions() {
    asked_back::<CSharp>();
}

#[test]
fn calls_signed_by_csharp_are_known() {
    signed::<CSharp>();
}

/// As Google's protobuf writes it.
#[test]
fn the_bytes_are_those_of_csharp() {
    let settings = CSharp::settings(endpoints("127.0.0.1:8081"), v2::ClientType::Producer);
    assert_eq!(hex(&settings), SETTINGS);
    let message = CSharp::message("first", v2::MessageType::Normal);
    assert_eq!(hex(&v2::Message { user_properties: Default::default(), ..message }), MESSAGE);
    assert_eq!(hex(&receive(&v2::MessageQueue { topic: resource(TOPIC), ..Default::default() })), RECEIVE);
}

const SETTINGS: &str = "\
    080112120801120e0a093132372e302e302e3110913f1a0d080312090a0012001d0000803f220208032a0c0a0812066f7264\
    65727318013a47122e352e322e312b3466316332613965376433623561366338653066316432623363346135653666376138\
    62396330641a0d556e697820362e312e302e31382206686f73742d31";
const MESSAGE: &str = "\
    0a0812066f72646572731a2e0a0372656412056b65792d311a056669727374280130013a0b0880f7c4d50610959aef3a4206\
    686f73742d3168012204626f6479";
const RECEIVE: &str = "\
    0a0a12087368697070696e67120a0a0812066f72646572731a05080112012a202030013a020814422437633965363637392d\
    373432352d343064652d393434622d653037666331663930616537";
