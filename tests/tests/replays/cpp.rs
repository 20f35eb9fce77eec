//! The C++ client. It opens a telemetry stream to its access point before all else, and does not start without an answer.

use karman_remoting::proto::v2::{self, Code};
use karman_tests::raw::{is_ok, resource, seconds, system};

use super::*;

struct Cpp;

impl Client for Cpp {
    const ID: &'static str = "host-1@4711#0_1790000000123";

    fn headers(user: Option<(&str, &str)>) -> Headers {
        const TIME: &str = "20260921T141320Z";
        let mut metadata = vec![
            ("user-agent", "grpc-c++/1.46.3 grpc-c/24.0.0 (linux; chttp2)".to_owned()),
            ("grpc-accept-encoding", "identity, deflate, gzip".to_owned()),
            ("x-mq-language", "CPP".to_owned()),
            ("x-mq-client-id", Self::ID.to_owned()),
            ("x-mq-namespace", String::new()),
            ("x-mq-client-version", "5.0.0".to_owned()),
            ("x-mq-protocol-version", "v2".to_owned()),
            ("x-mq-date-time", TIME.to_owned()),
        ];
        if let Some((key, secret)) = user {
            let signature = signature(secret, TIME);
            let credential = format!("Credential={key}/cn-hangzhou/RocketMQ");
            let signed = "SignedHeaders=x-mq-date-time";
            let authorization = format!("MQv2-HMAC-SHA1 {credential}, {signed}, Signature={signature}");
            metadata.push(("authorization", authorization));
        }
        Headers { metadata, of_stream: Some("1H") }
    }

    fn settings(access_point: v2::Endpoints, kind: v2::ClientType) -> v2::Settings {
        use v2::settings::PubSub;
        let pub_sub = match kind {
            v2::ClientType::Producer => PubSub::Publishing(v2::Publishing {
                topics: vec![resource(TOPIC).unwrap()],
                max_body_size: 4 << 20,
                validate_message_type: false,
            }),
            v2::ClientType::PushConsumer => PubSub::Subscription(v2::Subscription {
                receive_batch_size: Some(32),
                long_polling_timeout: Some(seconds(30)),
                ..subscription()
            }),
            _ => PubSub::Subscription(subscription()),
        };
        v2::Settings {
            client_type: Some(kind.into()),
            access_point: Some(access_point),
            request_timeout: Some(seconds(3)),
            pub_sub: Some(pub_sub),
            user_agent: Some(v2::Ua {
                language: v2::Language::Cpp.into(),
                version: "5.0.0".to_owned(),
                platform: "Linux".to_owned(),
                hostname: "host-1".to_owned(),
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

fn subscription() -> v2::Subscription {
    let expression = v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: "*".to_owned() };
    let entry = v2::SubscriptionEntry { topic: resource(TOPIC), expression: Some(expression) };
    v2::Subscription { group: resource(GROUP), subscriptions: vec![entry], ..Default::default() }
}

/// Of a push consumer: it says how long the message is hidden, not how long it waits.
fn receive(queue: &v2::MessageQueue) -> v2::ReceiveMessageRequest {
    v2::ReceiveMessageRequest {
        group: resource(GROUP),
        message_queue: Some(queue.clone()),
        filter_expression: subscription().subscriptions[0].expression.clone(),
        batch_size: 32,
        invisible_duration: Some(seconds(30)),
        auto_renew: true,
        attempt_id: Some("0f8fad5b-d9cb-469f-a165-70867728950e".to_owned()),
        ..Default::default()
    }
}

/// What an access point answers, which is all that the client waits for, and each broker after it.
fn started(endpoint: &str, access_point: &str, kind: v2::ClientType) -> (Raw, karman_tests::raw::Telemetry) {
    let raw = Cpp::connect(endpoint);
    let stream = raw.telemetry(Cpp::settings(endpoints(access_point), kind));
    let said = &stream.settings;
    assert!(said.metric.as_ref().is_none_or(|metric| metric.endpoints.is_none()), "it must stay unset");
    match said.pub_sub.as_ref().unwrap() {
        v2::settings::PubSub::Publishing(publishing) => {
            assert!(publishing.max_body_size > 0, "0 would refuse every message");
            assert!(said.backoff_policy.as_ref().unwrap().max_attempts > 0);
        }
        v2::settings::PubSub::Subscription(subscription) => {
            assert!(subscription.receive_batch_size() > 0);
            assert!(subscription.long_polling_timeout.as_ref().unwrap().seconds > 0);
            let group = subscription.group.as_ref().unwrap();
            assert_eq!((&*group.resource_namespace, &*group.name), ("", GROUP), "it takes what it is told");
        }
    }
    (raw, stream)
}

#[test]
fn a_cpp_push_consumer_gets_what_a_cpp_producer_sends() {
    let cluster = cluster("normal");
    let access_point = cluster.namesrvs[0].endpoint();
    let (door, _stream) = started(&access_point, &access_point, v2::ClientType::PushConsumer);
    let queues = route(&door, &access_point);
    let mut raws = BTreeMap::new();
    let mut streams = Vec::new();
    for (address, queue) in by_broker(queues.clone()) {
        let (raw, stream) = started(&address, &access_point, v2::ClientType::PushConsumer);
        let client_type = v2::ClientType::PushConsumer.into();
        is_ok(raw.heartbeat(v2::HeartbeatRequest { group: resource(GROUP), client_type }).status);
        streams.push(stream);
        raws.insert(address, (raw, receive(&queue)));
    }
    // A broker is asked who has which queue, and names all brokers.
    let assignment = v2::QueryAssignmentRequest {
        topic: resource(TOPIC),
        group: resource(GROUP),
        endpoints: Some(endpoints(&access_point)),
    };
    let answer = raws.values().next().unwrap().0.query_assignment(assignment);
    is_ok(answer.status);
    let assigned: Vec<v2::MessageQueue> =
        answer.assignments.into_iter().map(|assignment| assignment.message_queue.unwrap()).collect();
    for (address, queue) in by_broker(assigned) {
        raws.get_mut(&address).unwrap().1.message_queue = Some(queue);
    }
    // Nothing there: that must not be said with OK, which the client takes for a broken broker.
    let (raw, request) = raws.values().next().unwrap();
    let (status, messages) = raw.receive(request.clone());
    assert_eq!((status.code(), messages.len()), (Code::MessageNotFound, 0));

    let (producer, _stream) = started(raws.keys().next().unwrap(), &access_point, v2::ClientType::Producer);
    is_ok(producer.heartbeat(producers_heartbeat()).status);
    sent(producer.send(&[Cpp::message("first", v2::MessageType::Normal)]), "first");
    let (raw, message) = received(&raws);
    assert_eq!((&*message.body, system(&message).delivery_attempt()), (&b"body"[..], 1));
    assert_eq!(complete(&message).tag(), "red");
    let wait = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
    let again = refused(&raws, raw, &message, wait);
    acked(raw, &again);
}

/// A body of 4 MiB or more goes out as a zlib stream that is called GZIP, and must come back as it is.
#[test]
fn what_cpp_calls_gzip_is_left_alone() {
    /// `body`, as zlib writes it.
    const ZLIB: [u8; 12] = [0x78, 0x9c, 0x4b, 0xca, 0x4f, 0xa9, 0x04, 0x00, 0x04, 0x1a, 0x01, 0xaf];
    let cluster = cluster("normal");
    let access_point = cluster.namesrvs[0].endpoint();
    let queues = by_broker(route(&Cpp::connect(&access_point), &access_point));
    let raws: BTreeMap<_, _> = queues
        .iter()
        .map(|(address, queue)| (address.clone(), (Cpp::connect(address), receive(queue))))
        .collect();
    let mut message = Cpp::message("packed", v2::MessageType::Normal);
    message.body = ZLIB.to_vec().into();
    message.system_properties.as_mut().unwrap().set_body_encoding(v2::Encoding::Gzip);
    sent(raws.values().next().unwrap().0.send(&[message]), "packed");
    let (raw, message) = received(&raws);
    assert_eq!(&*message.body, ZLIB);
    assert_eq!(complete(&message).body_encoding(), v2::Encoding::Gzip);
    acked(raw, &message);
}

/// The client writes the time, in milliseconds and cut to 32 bits, where the attempt belongs; and it asks any broker to recall.
#[test]
fn a_delayed_message_of_cpp_comes_as_its_first_attempt_or_is_recalled_anywhere() {
    let cluster = cluster("delay");
    let access_point = cluster.namesrvs[0].endpoint();
    let queues = by_broker(route(&Cpp::connect(&access_point), &access_point));
    let raws: BTreeMap<_, _> = queues
        .iter()
        .map(|(address, queue)| (address.clone(), (Cpp::connect(address), receive(queue))))
        .collect();
    let delayed = |id: &str, after_ms: i64| {
        let due_ms = karman_tests::raw::now_ms() + after_ms;
        let mut message = Cpp::message(id, v2::MessageType::Delay);
        let properties = message.system_properties.as_mut().unwrap();
        properties.delivery_attempt = Some(due_ms as i32); // cut, as there
        let nanos = i32::try_from(due_ms % 1000).unwrap() * 1_000_000;
        properties.delivery_timestamp = Some(prost_types::Timestamp { seconds: due_ms / 1000, nanos });
        message
    };
    let (first, last) = (raws.values().next().unwrap(), raws.values().last().unwrap());
    let handle = sent(first.0.send(&[delayed("recalled", 3000)]), "recalled").recall_handle;
    let recall = v2::RecallMessageRequest { topic: resource(TOPIC), recall_handle: handle };
    let answer = last.0.recall_message(recall);
    is_ok(answer.status);
    assert_eq!(answer.message_id, "recalled");
    sent(first.0.send(&[delayed("later", 3500)]), "later");
    let (raw, message) = received(&raws);
    assert_eq!((&*complete(&message).message_id, system(&message).delivery_attempt()), ("later", 1));
    acked(raw, &message);
}

/// The client forgets the handle: there is nothing to find the message by, which it is told.
#[test]
fn a_dead_letter_of_cpp_without_a_handle_is_refused_clearly() {
    let cluster = cluster("normal");
    let raw = Cpp::connect(&cluster.brokers[0].endpoint());
    let status = raw
        .forward_message_to_dead_letter_queue(v2::ForwardMessageToDeadLetterQueueRequest {
            group: resource(GROUP),
            topic: resource(TOPIC),
            message_id: "first".to_owned(),
            delivery_attempt: 1,
            max_delivery_attempts: 17,
            ..Default::default()
        })
        .status
        .unwrap();
    assert_eq!(status.code(), Code::InvalidReceiptHandle, "{status:?}");
    assert!(!status.message.is_empty());
}

/// One after another, without a place for each group: the broker keeps the order.
#[test]
fn a_cpp_simple_consumer_asks_for_assignments_and_gets_fifo_messages_in_order() {
    let cluster = cluster("fifo");
    let access_point = cluster.brokers[1].endpoint();
    let (door, _stream) = started(&access_point, &access_point, v2::ClientType::SimpleConsumer);
    let assignment = v2::QueryAssignmentRequest {
        topic: resource(TOPIC),
        group: resource(GROUP),
        endpoints: Some(endpoints(&access_point)),
    };
    let answer = door.query_assignment(assignment);
    is_ok(answer.status);
    let mut raws = BTreeMap::new();
    for assignment in answer.assignments {
        let queue = assignment.message_queue.unwrap();
        let request = v2::ReceiveMessageRequest {
            auto_renew: false,
            attempt_id: None,
            batch_size: 1,
            ..receive(&queue)
        };
        raws.insert(address_of(&queue), (Cpp::connect(&address_of(&queue)), request));
    }
    // Synchronous sends take the brokers in turn, whatever the group.
    for (index, (raw, _)) in raws.values().cycle().take(6).enumerate() {
        let mut message = Cpp::message(&format!("{index}"), v2::MessageType::Fifo);
        message.system_properties.as_mut().unwrap().message_group = Some("g".to_owned());
        sent(raw.send(&[message]), &format!("{index}"));
    }
    for index in 0..6 {
        let (raw, message) = received(&raws);
        assert_eq!(complete(&message).message_id, format!("{index}"));
        acked(raw, &message);
    }
}

#[test]
fn cpp_producers_are_asked_about_transactions() {
    asked_back::<Cpp>();
}

#[test]
fn calls_signed_by_cpp_are_known() {
    signed::<Cpp>();
}

/// As Google's protobuf writes it.
#[test]
fn the_bytes_are_those_of_cpp() {
    let settings = Cpp::settings(endpoints("127.0.0.1:8081"), v2::ClientType::PushConsumer);
    assert_eq!(hex(&settings), SETTINGS);
    let mut message = Cpp::message("first", v2::MessageType::Fifo);
    message.system_properties.as_mut().unwrap().message_group = Some("g".to_owned());
    assert_eq!(hex(&v2::Message { user_properties: Default::default(), ..message }), MESSAGE);
    assert_eq!(hex(&receive(&v2::MessageQueue { topic: resource(TOPIC), ..Default::default() })), RECEIVE);
}

const SETTINGS: &str = "\
    080212120801120e0a093132372e302e302e3110913f2202080332250a0a12087368697070696e6712110a0812066f726465\
    72731205080112012a20202a02081e3a1808021205352e302e301a054c696e75782206686f73742d31";
const MESSAGE: &str = "\
    0a0812066f72646572731a320a0372656412056b65792d311a056669727374280130023a0b0880f7c4d50610959aef3a4206\
    686f73742d3168018a0101672204626f6479";
const RECEIVE: &str = "\
    0a0a12087368697070696e67120a0a0812066f72646572731a05080112012a20202a02081e3001422430663866616435622d\
    643963622d343639662d613136352d373038363737323839353065";
