//! Calls against a whole broker in this process, where what happens between two of them matters.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use karman_remoting::line::Line;
use karman_remoting::metadata::{Caller, Language};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::status::Rejection;
use prost::Message as _;
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::codegen::BoxStream;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::catalog_writer::topic_named;
use crate::config::BrokerConfig;
use crate::pop::Position;
use crate::service::{dead_letter, pull, receive};
use crate::start::{Running, start};

/// A broker with a directory of its own.
struct Node {
    broker: Arc<Broker>,
    running: Running,
    _directory: Arc<TempDir>,
}

impl Node {
    async fn start() -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn start_in(directory: Arc<TempDir>) -> Self {
        Self::start_with(directory, BrokerConfig::default()).await
    }

    async fn start_with(directory: Arc<TempDir>, config: BrokerConfig) -> Self {
        let any_port = || "127.0.0.1:0".to_owned();
        let config = BrokerConfig {
            store_path_root_dir: directory.path().to_str().unwrap().to_owned(),
            grpc_listen_address: any_port(),
            internal_listen_address: any_port(),
            metrics_listen_address: any_port(),
            mapped_file_size_commit_log: 64 << 20,
            disk_max_used_space_ratio: 100,
            disk_space_clean_forcibly_ratio: 100,
            disk_space_warning_level_ratio: 100,
            data_threads: 1,
            ..config
        };
        let running = tokio::task::spawn_blocking(move || start(&config)).await.unwrap().unwrap();
        Self { broker: running.broker(), running, _directory: directory }
    }

    async fn topic(&self, config: v1::TopicConfig) -> Arc<Topic> {
        self.broker.catalog_writer.topic(config).await.unwrap().0
    }

    async fn send(&self, topic: &Topic, message_id: &str) -> v2::SendResultEntry {
        let messages = vec![message(topic, message_id).encode_to_vec().into()];
        let mut response = self.broker.send(v2::SendMessageRequest { messages }).await.unwrap();
        response.entries.remove(0)
    }

    /// A message that is there.
    async fn receive(&self, topic: &Topic, group: &str, lite: bool) -> v2::Message {
        let request = v2::ReceiveMessageRequest {
            group: Some(resource(group)),
            message_queue: Some(v2::MessageQueue {
                topic: Some(resource(topic.name())),
                ..Default::default()
            }),
            batch_size: 1,
            auto_renew: !lite,
            ..Default::default()
        };
        let mut stream = receive::receive(&self.broker, &caller(), Line::default(), request).await.unwrap();
        while let Some(response) = stream.next().await {
            if let Some(Content::Message(message)) = response.unwrap().content {
                return v2::Message::decode(message).unwrap();
            }
        }
        panic!("there is no message");
    }

    /// Pulls what has a tag that no message has, from an offset on; where to go on.
    async fn pull_nothing(&self, topic: &Topic, offset: i64, wait: Duration) -> i64 {
        let filter =
            v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: "none".to_owned() };
        let request = v2::PullMessageRequest {
            group: Some(resource("g")),
            message_queue: Some(v2::MessageQueue {
                topic: Some(resource(topic.name())),
                ..Default::default()
            }),
            offset,
            batch_size: 32,
            filter_expression: Some(filter),
            long_polling_timeout: Some(wait.try_into().unwrap()),
        };
        let mut stream = pull::pull(&self.broker, &caller(), request).await.unwrap();
        while let Some(response) = stream.next().await {
            if let Some(v2::pull_message_response::Content::NextOffset(next)) = response.unwrap().content {
                return next;
            }
        }
        panic!("it does not say where to go on");
    }

    async fn give_up(&self, message: &v2::Message, group: &str) -> Result<(), Rejection> {
        let system = message.system_properties.clone().unwrap();
        let request = v2::ForwardMessageToDeadLetterQueueRequest {
            group: Some(resource(group)),
            topic: message.topic.clone(),
            receipt_handle: system.receipt_handle.unwrap(),
            message_id: system.message_id,
            ..Default::default()
        };
        self.broker.forward_to_dead_letters(&caller(), request).await.map(drop)
    }

    fn count(&self, topic: &Topic) -> u64 {
        let ranges =
            topic.queues.iter().map(|queue| self.broker.store.queue_range(karman_store::QueueNumber(*queue)));
        ranges.map(|range| range.end - range.start).sum()
    }

    /// Waits until a topic has so many messages, and no more.
    async fn until_count(&self, topic: &Topic, count: u64) {
        let all = async {
            while self.count(topic) < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("all are there");
        assert_eq!(self.count(topic), count);
    }

    async fn stop(self) {
        drop(self.broker);
        self.running.shutdown().await.unwrap();
    }
}

fn message(topic: &Topic, message_id: &str) -> v2::Message {
    v2::Message {
        topic: Some(resource(topic.name())),
        system_properties: Some(v2::SystemProperties {
            message_id: message_id.to_owned(),
            ..Default::default()
        }),
        body: b"body".as_slice().into(),
        ..Default::default()
    }
}

fn resource(name: &str) -> v2::Resource {
    v2::Resource { name: name.to_owned(), ..Default::default() }
}

fn caller() -> Caller {
    Caller { client_id: "me".to_owned(), language: Language::Rust, relayed: false, timeout: None }
}

#[tokio::test]
async fn handles_have_higher_revisions_from_start_to_start_however_soon_that_is() {
    let (directory, mut former) = (Arc::new(tempfile::tempdir().unwrap()), 0);
    for _ in 0..4 {
        let node = Node::start_in(directory.clone()).await;
        let base = node.broker.revision_base;
        assert!(base > former, "{base} is not above {former}");
        former = base;
        node.stop().await;
    }
}

#[tokio::test]
async fn a_message_that_is_answered_early_is_known_when_it_is_sent_again() {
    const COUNT: u64 = 1000;
    let node = Node::start().await;
    let durability = v1::Durability::Memory.into();
    let dedup = v1::TopicConfig { durability, dedup_window_minutes: Some(10), ..topic_named("memory", 1) };
    let (memory, disk) = (node.topic(dedup).await, node.topic(topic_named("disk", 1)).await);
    // Their flushes let those be answered that wait for none.
    let flushing = async {
        for n in 0.. {
            node.send(&disk, &format!("disk-{n}")).await;
        }
    };
    let sending = async {
        for n in 0..COUNT {
            let id = format!("memory-{n}");
            let first = node.send(&memory, &id).await;
            assert_eq!(node.send(&memory, &id).await, first);
        }
    };
    tokio::select! {
        () = flushing => unreachable!("it does not end"),
        () = sending => {}
    }
    // The last one was answered before it can be seen.
    node.until_count(&memory, COUNT).await;
    assert_eq!(node.broker.dedupe.repeated.load(Ordering::Relaxed), COUNT);
    node.stop().await;
}

#[tokio::test]
async fn a_send_that_finds_too_many_waiting_is_refused_at_once_and_the_others_are_answered() {
    let config = BrokerConfig { send_thread_pool_queue_capacity: 2, ..BrokerConfig::default() };
    let node = Node::start_with(Arc::new(tempfile::tempdir().unwrap()), config).await;
    let topic = node.topic(topic_named("a", 1)).await;
    let send = |id: &str| {
        let messages = vec![message(&topic, id).encode_to_vec().into()];
        node.broker.send(v2::SendMessageRequest { messages })
    };
    let (first, second, third) = tokio::join!(send("1"), send("2"), send("3"));
    assert!(first.is_ok() && second.is_ok());
    let refused = third.unwrap_err();
    assert!(matches!(refused, Rejection::TooManyRequests(_)), "{refused}");
    assert!(send("3").await.is_ok(), "there is room again");
    node.until_count(&topic, 3).await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_that_is_given_up_twice_at_once_is_one_dead_letter() {
    let node = Node::start().await;
    let topic = node.topic(topic_named("a", 1)).await;
    node.send(&topic, "1").await;
    let message = node.receive(&topic, "g", false).await;
    let (first, second) = tokio::join!(node.give_up(&message, "g"), node.give_up(&message, "g"));
    assert!(first.is_ok());
    assert!(matches!(second, Err(Rejection::InvalidReceiptHandle { .. })), "{second:?}");
    assert!(node.give_up(&message, "g").await.is_ok(), "said twice is said");
    let letters = node.broker.topic("%DLQ%g").unwrap();
    assert_eq!(node.count(&letters), 1);
    node.stop().await;
}

#[tokio::test]
async fn a_lite_message_that_is_given_up_twice_at_once_is_one_dead_letter() {
    let node = Node::start().await;
    let lite = v2::MessageType::Lite.into();
    let topic = node.topic(v1::TopicConfig { message_type: lite, ..topic_named("parent", 1) }).await;
    let sync = v2::SyncLiteSubscriptionRequest {
        action: v2::LiteSubscriptionAction::PartialAdd.into(),
        topic: Some(resource("parent")),
        group: Some(resource("g")),
        lite_topic_set: vec!["x".to_owned()],
        ..Default::default()
    };
    node.broker.sync_lite_subscription(&caller(), sync).await.unwrap();
    let mut message = message(&topic, "1");
    message.system_properties.as_mut().unwrap().lite_topic = Some("x".to_owned());
    let messages = vec![message.encode_to_vec().into()];
    node.broker.send(v2::SendMessageRequest { messages }).await.unwrap();
    let message = node.receive(&topic, "g", true).await;
    let (first, second) = tokio::join!(node.give_up(&message, "g"), node.give_up(&message, "g"));
    assert!(first.is_ok());
    assert!(matches!(second, Err(Rejection::InvalidReceiptHandle { .. })), "{second:?}");
    let letters = node.broker.topic("%DLQ%g").unwrap();
    assert_eq!(node.count(&letters), 1);
    node.stop().await;
}

#[tokio::test]
async fn dead_messages_do_not_wait_for_one_another() {
    const COUNT: u64 = 20;
    let node = Node::start().await;
    let (topic, letters) =
        (node.topic(topic_named("a", 1)).await, node.topic(topic_named("%DLQ%g", 1)).await);
    for n in 0..COUNT {
        node.send(&topic, &n.to_string()).await;
        node.receive(&topic, "g", true).await;
    }
    let group = node.broker.catalog.group("g").unwrap().number;
    let row = node.broker.progress.get(group, topic.number, None).unwrap();
    let later_ms = node.broker.clock.now_ms() + 3_600_000;
    let dead = row.run(|pop| pop.dead(later_ms, 1, COUNT as usize, &|_| false));
    assert_eq!(dead.len() as u64, COUNT);
    // Looked at once, and then left alone: all of them are in the hands of the log writer.
    tokio::select! {
        biased;
        () = dead_letter::bury_all(&node.broker, &row, &dead) => {}
        () = std::future::ready(()) => {}
    }
    node.until_count(&letters, COUNT).await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_that_is_found_dead_again_while_its_copy_is_on_its_way_is_copied_once() {
    let node = Node::start().await;
    let (topic, letters) =
        (node.topic(topic_named("a", 1)).await, node.topic(topic_named("%DLQ%g", 1)).await);
    node.send(&topic, "1").await;
    node.receive(&topic, "g", false).await;
    let group = node.broker.catalog.group("g").unwrap().number;
    let row = node.broker.progress.get(group, topic.number, None).unwrap();
    let dead = [Position { queue_id: 0, offset: 0 }];
    // The second begins before the first has waited for anything.
    let bury = || dead_letter::bury_all(&node.broker, &row, &dead);
    tokio::join!(bury(), bury());
    bury().await;
    assert_eq!(node.count(&letters), 1);
    node.stop().await;
}

/// One message of the topic `a` for the group `g`, as a stream that nobody has read yet.
async fn begin_to_receive(broker: &Arc<Broker>) -> BoxStream<v2::ReceiveMessageResponse> {
    let request = v2::ReceiveMessageRequest {
        group: Some(resource("g")),
        message_queue: Some(v2::MessageQueue { topic: Some(resource("a")), ..Default::default() }),
        batch_size: 2,
        invisible_duration: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        ..Default::default()
    };
    let caller = caller();
    let receiving = receive::receive(broker, &caller, Line::default(), request);
    tokio::time::timeout(Duration::from_secs(10), receiving).await.expect("there is one").unwrap()
}

/// The ids and attempts of what comes, and the code that is said first.
async fn read_on(mut stream: BoxStream<v2::ReceiveMessageResponse>) -> (v2::Code, Vec<(String, i32)>) {
    let (mut code, mut got) = (v2::Code::Unspecified, Vec::new());
    while let Some(response) = stream.next().await {
        match response.unwrap().content {
            Some(Content::Status(status)) => code = status.code(),
            Some(Content::Message(message)) => {
                let system = v2::Message::decode(message).unwrap().system_properties.unwrap();
                got.push((system.message_id.clone(), system.delivery_attempt()));
            }
            _ => {}
        }
    }
    (code, got)
}

/// As when the process stood still between taking and giving.
#[tokio::test]
async fn what_was_taken_before_a_master_lost_its_lease_is_not_given_after_it() {
    let node = Node::start().await;
    let topic = node.topic(topic_named("a", 1)).await;
    node.send(&topic, "1").await;
    let stream = begin_to_receive(&node.broker).await;
    node.broker.store.answer_until(Some(std::time::Instant::now()));
    assert_eq!(read_on(stream).await, (v2::Code::MessageNotFound, vec![]));
    // Nobody has had it.
    node.broker.store.answer_until(None);
    let again = read_on(begin_to_receive(&node.broker).await).await;
    assert_eq!(again, (v2::Code::Ok, vec![("1".to_owned(), 1)]));
    node.stop().await;
}

#[tokio::test]
async fn what_is_taken_beside_a_dead_message_does_not_wait_for_its_copy() {
    let node = Node::start().await;
    let topic = node.topic(topic_named("a", 1)).await;
    let letters = node.topic(topic_named("%DLQ%g", 1)).await;
    let group = v1::GroupConfig { name: "g".to_owned(), retry_max_times: Some(0), ..Default::default() };
    node.broker.catalog_writer.group(group).await.unwrap();
    node.send(&topic, "1").await;
    let handle = node.receive(&topic, "g", false).await.system_properties.unwrap().receipt_handle.unwrap();
    let back = v2::ChangeInvisibleDurationRequest {
        group: Some(resource("g")),
        topic: Some(resource("a")),
        receipt_handle: handle,
        invisible_duration: Some(prost_types::Duration::default()),
        message_id: "1".to_owned(),
        ..Default::default()
    };
    node.broker.change_invisible_duration(&caller(), back).await.unwrap();
    node.send(&topic, "2").await;
    let stream = begin_to_receive(&node.broker).await;
    // This test has one thread: what was not waited for has not begun.
    assert_eq!(node.count(&letters), 0);
    assert_eq!(read_on(stream).await, (v2::Code::Ok, vec![("2".to_owned(), 1)]));
    node.until_count(&letters, 1).await;
    node.stop().await;
}

#[tokio::test]
async fn what_went_back_before_a_redrive_failed_is_told() {
    let node = Node::start().await;
    let topic = node.topic(topic_named("a", 1)).await;
    let letters = node.topic(topic_named("%DLQ%g", 1)).await;
    let origin = v2::DeadLetterQueue { topic: "a".to_owned(), ..Default::default() };
    // The third has more keys than the store takes, which no send lets through.
    for (id, keys) in [("1", 0), ("2", 0), ("3", 5000), ("4", 0)] {
        let mut letter = message(&letters, id);
        let system = letter.system_properties.as_mut().unwrap();
        system.dead_letter_queue = Some(origin.clone());
        system.keys = (0..keys).map(|key| key.to_string()).collect();
        let record = karman_store::NewRecord {
            kind: karman_store::RecordKind::Message,
            queue: Some(karman_store::QueueNumber(letters.queues[0])),
            tag_hash: 0,
            mark: 0,
            keys: vec![],
            payload: letter.encode_to_vec().into(),
        };
        node.broker.store.append(vec![record], karman_store::Durability::Disk).unwrap().await.unwrap();
    }
    let request = v1::RedriveDeadLettersRequest { group: "g".to_owned(), ..Default::default() };
    for went_back in [2, 0] {
        let answer = node.broker.redrive_dead_letters(request.clone()).await.unwrap();
        let failure = answer.failure.expect("the third does not go");
        assert!(failure.message.contains("keys"), "{}", failure.message);
        assert_eq!((answer.count, answer.more), (went_back, true));
        assert_eq!(node.count(&topic), 2);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_pull_that_finds_nothing_ends_in_time() {
    const COUNT: i64 = 5000;
    let node = Node::start().await;
    let topic = node.topic(topic_named("a", 1)).await;
    for first in (0..COUNT).step_by(100) {
        let one = |n: i64| message(&topic, &n.to_string()).encode_to_vec().into();
        let messages = (first..first + 100).map(one).collect();
        node.broker.send(v2::SendMessageRequest { messages }).await.unwrap();
    }
    let next = node.pull_nothing(&topic, 0, Duration::ZERO).await;
    assert!((1..COUNT).contains(&next), "{next}: the time is over, and it has come somewhere");
    assert_eq!(node.pull_nothing(&topic, next, Duration::ZERO).await, COUNT);
    node.broker.stopping.cancel();
    let next = node.pull_nothing(&topic, 0, Duration::from_secs(20)).await;
    assert!((1..COUNT).contains(&next), "{next}: the broker stops");
    node.stop().await;
}
