//! The Rust SDK against a real server: every kind of message, every consumer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use karman_client::{
    Client, ClientOptions, Code, FilterExpression, Message, MessageView, PushConsumer, PushOptions,
    QueryOffset, Resolution, SimpleConsumer, TransactionProducer,
};
use karman_remoting::proto::karman::{GroupConfig, TopicConfig};
use karman_remoting::proto::v2::retry_policy::Strategy;
use karman_remoting::proto::v2::{CustomizedBackoff, MessageType, RetryPolicy};
use karman_tests::{Cluster, Raw};
use tokio_stream::StreamExt as _;

const GROUP: &str = "shipping";
const DEADLINE: Duration = Duration::from_secs(30);
const RETRY_MS: i32 = 100;

/// A server with one topic of this kind, named `orders`.
fn server(kind: MessageType) -> Cluster {
    let cluster = Cluster::builder().namesrvs(1).brokers(1).start();
    let config =
        TopicConfig { name: "orders".into(), message_type: kind.into(), queue_nums: 4, ..Default::default() };
    let status = Raw::connect(&cluster.brokers[0].endpoint()).make_topic(config);
    assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    cluster.wait_route("orders");
    cluster
}

/// A failed message comes again after [`RETRY_MS`], so many times.
fn group(cluster: &Cluster, retry_max_times: u32) {
    let next = vec![prost_types::Duration { seconds: 0, nanos: RETRY_MS * 1_000_000 }];
    let strategy = Some(Strategy::CustomizedBackoff(CustomizedBackoff { next }));
    let group = GroupConfig {
        name: GROUP.into(),
        retry_max_times: Some(retry_max_times),
        retry_policy: Some(RetryPolicy { max_attempts: 0, strategy }),
        ..Default::default()
    };
    let status = Raw::connect(&cluster.brokers[0].endpoint()).make_group(group);
    assert_eq!(status.code, Code::Ok as i32, "{status:?}");
}

/// Runs `test` with a client of the server, and closes the client.
fn with_client<T>(cluster: &Cluster, test: impl AsyncFnOnce(Client) -> T) -> T {
    let endpoint = cluster.brokers[0].endpoint();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&endpoint, ClientOptions::default()).await.unwrap();
        let result = test(client.clone()).await;
        client.close().await;
        result
    })
}

fn orders() -> [(&'static str, FilterExpression); 1] {
    [("orders", FilterExpression::all())]
}

fn order(body: impl Into<String>) -> Message {
    Message::new("orders", body.into())
}

fn text(message: &MessageView) -> String {
    String::from_utf8(message.body().to_vec()).unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A consumer that says within a second that there is nothing.
fn impatient(client: &Client) -> SimpleConsumer {
    client.simple_consumer(GROUP, orders()).unwrap().with_await_duration(Duration::from_secs(1))
}

async fn take(consumer: &SimpleConsumer) -> Vec<String> {
    let messages = consumer.receive(32, Duration::from_secs(30)).await.unwrap();
    for result in consumer.ack_all(&messages).await {
        result.unwrap();
    }
    messages.iter().map(|message| text(message)).collect()
}

/// What came, in its order, with its attempt.
type Log = Arc<Mutex<Vec<(String, i32)>>>;

/// Keeps a log; fails as often as `fails` says for a message and its attempt.
fn logging(
    client: &Client,
    concurrency: usize,
    fails: impl Fn(&str, i32) -> bool + Send + Sync + 'static,
) -> (PushConsumer, Log) {
    let log = Log::default();
    let writer = log.clone();
    let handle = move |message: MessageView| {
        let (text, attempt) = (text(&message), message.delivery_attempt());
        let fails = fails(&text, attempt);
        writer.lock().unwrap().push((text, attempt));
        async move { if fails { Err("as the test wants") } else { Ok(()) } }
    };
    let options = PushOptions::default().concurrency(concurrency);
    (client.push_consumer(GROUP, orders(), &options, handle).unwrap(), log)
}

#[test]
fn a_message_group_keeps_its_order_and_waits_for_a_message_that_fails() {
    let cluster = server(MessageType::Fifo);
    group(&cluster, 16);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        for number in 0..10 {
            for message_group in ["a", "b", "c"] {
                let message = order(format!("{message_group}{number}")).message_group(message_group);
                producer.send(message).await.unwrap();
            }
        }
        // The first attempts of a4, a8, b4, ... fail.
        let (consumer, log) = logging(&client, 8, |text, attempt| attempt == 1 && text.ends_with(['4', '8']));
        until("all", || log.lock().unwrap().len() == 36).await;
        assert!(consumer.shutdown(DEADLINE).await);
        let log = log.lock().unwrap();
        for message_group in ["a", "b", "c"] {
            let seen: Vec<_> = log.iter().filter(|(text, _)| text.starts_with(message_group)).collect();
            let expected =
                [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9].map(|number| format!("{message_group}{number}"));
            assert!(seen.iter().map(|(text, _)| text).eq(&expected), "{seen:?}");
        }
    });
}

#[test]
fn a_message_that_fails_too_often_is_a_dead_letter_that_says_where_it_died() {
    let cluster = server(MessageType::Normal);
    group(&cluster, 1);
    with_client(&cluster, async |client| {
        let (_consumer, log) = logging(&client, 1, |text, _| text == "bad");
        let letters = Arc::new(Mutex::new(Vec::new()));
        let writer = letters.clone();
        let read = move |letter: MessageView| {
            writer.lock().unwrap().push(letter);
            async { Ok::<(), String>(()) }
        };
        // It begins before there is a dead letter.
        let topic = [(format!("%DLQ%{GROUP}"), FilterExpression::all())];
        let _reader = client.push_consumer("undertaker", topic, &PushOptions::default(), read).unwrap();

        let producer = client.producer();
        let bad = producer.send(order("bad").tag("t").key("17")).await.unwrap();
        producer.send(order("good")).await.unwrap();
        until("a dead letter", || !letters.lock().unwrap().is_empty()).await;
        let letter = letters.lock().unwrap()[0].clone();
        assert_eq!((letter.message_id(), letter.dead_letter_topic()), (&*bad.message_id, Some("orders")));
        assert_eq!((letter.tag(), letter.keys()), (Some("t"), &["17".to_owned()][..]));
        let attempts = |wanted: &str| log.lock().unwrap().iter().filter(|(text, _)| text == wanted).count();
        until("the good one", || attempts("good") == 1).await;
        assert_eq!(attempts("bad"), 2);
    });
}

#[test]
fn a_shutdown_hands_over_to_the_others_and_nothing_is_handled_twice() {
    let cluster = server(MessageType::Normal);
    with_client(&cluster, async |client| {
        let (first, seen_first) = logging(&client, 4, |_, _| false);
        let producer = client.producer();
        let messages = |range: std::ops::Range<u32>| range.map(|number| order(number.to_string())).collect();
        producer.send_batch(messages(0..200)).await.unwrap();
        until("some", || seen_first.lock().unwrap().len() > 20).await;
        let (_second, seen_second) = logging(&client, 4, |_, _| false);
        producer.send_batch(messages(200..400)).await.unwrap();
        assert!(first.shutdown(DEADLINE).await);
        let all = || seen_first.lock().unwrap().len() + seen_second.lock().unwrap().len();
        until("the rest", || all() >= 400).await;
        let mut counts: HashMap<String, u32> = HashMap::new();
        for (text, _) in seen_first.lock().unwrap().iter().chain(seen_second.lock().unwrap().iter()) {
            *counts.entry(text.clone()).or_default() += 1;
        }
        let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        assert!(counts.len() == 400 && twice.is_empty(), "{} different, twice: {twice:?}", counts.len());
    });
}

#[test]
fn a_higher_priority_is_delivered_first() {
    let cluster = server(MessageType::Priority);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        for priority in [0, 2, 1, 3] {
            producer.send(order(priority.to_string()).priority(priority)).await.unwrap();
        }
        assert_eq!(take(&impatient(&client)).await, ["3", "2", "1", "0"]);
    });
}

#[test]
fn a_message_is_not_delivered_when_its_time_to_live_is_over() {
    let cluster = server(MessageType::Normal);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        producer.send(order("short").time_to_live(Duration::from_millis(1))).await.unwrap();
        let stored = Instant::now();
        producer.send(order("long").time_to_live(Duration::from_secs(3600))).await.unwrap();
        until("the short time is over", || stored.elapsed() > Duration::from_millis(2)).await;
        assert_eq!(take(&impatient(&client)).await, ["long"]);
    });
}

#[test]
fn queues_are_pulled_from_any_place_and_the_group_keeps_its_own() {
    let cluster = server(MessageType::Normal);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        let first = producer.send(order("first")).await.unwrap();
        let consumer = client.pull_consumer(GROUP).unwrap();
        let queues = consumer.queues("orders").await.unwrap();
        assert_eq!(queues.len(), 4);
        let mut found = None;
        for queue in &queues {
            assert_eq!(consumer.query_offset(queue, QueryOffset::Beginning).await.unwrap(), 0);
            if consumer.query_offset(queue, QueryOffset::End).await.unwrap() == 1 {
                found = Some(queue);
            }
        }
        let queue = found.unwrap();
        let (all, none) = (FilterExpression::all(), FilterExpression::tag("other"));
        let wait = Duration::from_secs(1);

        let pulled = consumer.pull(queue, 0, 32, &all, wait).await.unwrap();
        assert_eq!(pulled.messages[0].message_id(), first.message_id);
        assert_eq!((pulled.messages.len(), pulled.next_offset), (1, 1));
        let unwanted = consumer.pull(queue, 0, 32, &none, Duration::ZERO).await.unwrap();
        assert_eq!((unwanted.messages.len(), unwanted.next_offset), (0, 1));
        let at_end = consumer.pull(queue, 1, 32, &all, wait).await.unwrap();
        assert_eq!((at_end.messages.len(), at_end.next_offset), (0, 1));
        let beyond = consumer.pull(queue, 2, 32, &all, wait).await.unwrap_err();
        assert_eq!(beyond.code(), Some(Code::IllegalOffset), "{beyond}");

        assert_eq!(consumer.get_offset(queue).await.unwrap(), None);
        consumer.update_offset(queue, 1).await.unwrap();
        assert_eq!(consumer.get_offset(queue).await.unwrap(), Some(1));
        let later = QueryOffset::Time(SystemTime::now() + Duration::from_secs(60));
        assert_eq!(consumer.query_offset(queue, later).await.unwrap(), 1);
        assert_eq!(take(&impatient(&client)).await, [""; 0], "the group is behind it");
    });
}

#[test]
fn a_delayed_message_comes_at_its_time_and_a_recalled_one_never() {
    let cluster = server(MessageType::Delay);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        let delay = Duration::from_secs(2);
        let due = Instant::now() + delay;
        let recalled = producer.send(order("recalled").deliver_after(delay)).await.unwrap();
        producer.send(order("delayed").deliver_after(delay)).await.unwrap();
        let handle = recalled.recall_handle.unwrap();
        assert_eq!(producer.recall("orders", &handle).await.unwrap(), recalled.message_id);
        assert_eq!(producer.recall("orders", &handle).await.unwrap(), recalled.message_id, "once more");

        let consumer = client.simple_consumer(GROUP, orders()).unwrap();
        assert_eq!(take(&consumer).await, ["delayed"]);
        assert!(Instant::now() >= due, "it was early");
        let gone = producer.send(order("gone").deliver_after(Duration::ZERO)).await.unwrap();
        assert_eq!(take(&consumer).await, ["gone"]);
        if let Some(handle) = gone.recall_handle {
            assert!(producer.recall("orders", &handle).await.is_err());
        }
        assert_eq!(take(&impatient(&client)).await, [""; 0]);
    });
}

/// Finds every transaction to be what its message says: `commit ...`, `rollback ...`, or under way.
fn transactions(client: &Client) -> (TransactionProducer, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let check = move |message: MessageView| {
        let text = text(&message);
        let found = match text.split_once(' ') {
            Some(("commit", _)) => Resolution::Commit,
            Some(("rollback", _)) => Resolution::Rollback,
            _ => Resolution::Unknown,
        };
        log.lock().unwrap().push(text);
        async move { found }
    };
    (client.transaction_producer(["orders"], check), asked)
}

#[test]
fn the_message_of_a_transaction_is_seen_when_it_is_committed_and_not_before() {
    let cluster = server(MessageType::Transaction);
    with_client(&cluster, async |client| {
        let (producer, _) = transactions(&client);
        let consumer = impatient(&client);
        for (text, resolution) in [("never", Resolution::Rollback), ("now", Resolution::Commit)] {
            let decide = |_| async {
                assert_eq!(take(&consumer).await, [""; 0], "it is seen before it is decided");
                resolution
            };
            let transaction = producer.transaction(order(text), decide).await.unwrap();
            assert_eq!(transaction.untold, None);
        }
        assert_eq!(take(&consumer).await, ["now"]);
        assert_eq!(take(&consumer).await, [""; 0]);
    });
}

#[test]
fn a_transaction_without_a_decision_becomes_what_a_checker_finds_it_to_be() {
    let cluster = server(MessageType::Transaction);
    with_client(&cluster, async |client| {
        let soon = |text: &str| order(text).check_after(Duration::from_secs(1));
        let (first, _) = transactions(&client);
        for text in ["commit by a checker", "rollback by a checker"] {
            first.transaction(soon(text), |_| async { Resolution::Unknown }).await.unwrap();
        }
        // A producer that ends in the middle of it, and another one that is asked.
        let (begun, is_begun) = tokio::sync::oneshot::channel();
        let decide = |_| {
            begun.send(()).unwrap();
            std::future::pending()
        };
        let forever = first.transaction(soon("commit of who is gone"), decide);
        tokio::select! {
            result = forever => panic!("it has ended: {result:?}"),
            begun = is_begun => begun.unwrap(),
        }
        drop(first);

        let (_second, asked) = transactions(&client);
        let consumer = client.simple_consumer(GROUP, orders()).unwrap();
        let mut seen = Vec::new();
        let deadline = Instant::now() + 2 * DEADLINE;
        while seen.len() < 2 && Instant::now() < deadline {
            seen.extend(take(&consumer).await);
        }
        seen.sort();
        assert_eq!(seen, ["commit by a checker", "commit of who is gone"]);
        let is_asked = || asked.lock().unwrap().iter().any(|text| text == "commit of who is gone");
        assert!(is_asked(), "the second producer was not asked");
        assert_eq!(take(&impatient(&client)).await, [""; 0]);
    });
}

#[test]
fn a_stream_gives_all_messages_goes_on_after_an_error_and_ends_with_the_client() {
    let cluster = server(MessageType::Normal);
    with_client(&cluster, async |client| {
        let producer = client.producer();
        for number in 0..50 {
            producer.send(order(number.to_string())).await.unwrap();
        }
        // Refused until somebody makes the second topic; the stream says so, and goes on.
        let topics = ["bills", "orders"].map(|topic| (topic, FilterExpression::all()));
        let consumer = client.simple_consumer(GROUP, topics).unwrap();
        let consumer = consumer.with_await_duration(Duration::from_millis(200));
        let mut messages = consumer.stream(7, Duration::from_secs(30));
        let error = messages.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(Code::TopicNotFound), "{error}");
        tokio::task::block_in_place(|| cluster.create_topic("bills"));
        let mut seen = HashMap::new();
        while seen.len() < 50 {
            let Ok(message) = messages.next().await.unwrap() else { continue };
            consumer.ack(&message).await.unwrap();
            *seen.entry(text(&message)).or_insert(0) += 1;
        }
        assert!(seen.values().all(|&times| times == 1), "{seen:?}");
        client.clone().close().await;
        assert!(messages.next().await.is_none());
    });
}
