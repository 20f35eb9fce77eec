//! The producer that collects: which messages share a request, in which order, and what becomes of those that cannot be
//! sent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _, stream};
use karman_client::{
    BatchingOptions, BatchingProducer, Client, ClientError, ClientOptions, Code, Delivery, Message,
};
use node::{Cluster, until};

const HOUR: Duration = Duration::from_secs(3600);

fn order(body: impl ToString) -> Message {
    Message::new("orders", body.to_string())
}

fn batching(client: &Client, options: &BatchingOptions) -> BatchingProducer {
    client.producer().batching(options)
}

async fn enqueue_all(producer: &BatchingProducer, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for n in 0..count {
        deliveries.push(producer.enqueue(order(n)).await.unwrap());
    }
    deliveries
}

/// How many messages each request had.
fn sizes(cluster: &Cluster) -> Vec<usize> {
    cluster.node(0).requests.lock().iter().map(|(bodies, _)| bodies.len()).collect()
}

#[tokio::test]
async fn messages_share_a_request_until_it_is_full_or_the_linger_is_over() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let linger = Duration::from_millis(300);
    let producer = batching(&client, &BatchingOptions::default().linger(linger).messages_max(3));
    // The route and the connection are there from here on.
    producer.send(order("first")).await.unwrap();

    let begin = Instant::now();
    let mut deliveries = enqueue_all(&producer, 4).await;
    let alone = deliveries.pop().unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert!(begin.elapsed() < linger, "a full request waits for nothing: {:?}", begin.elapsed());
    assert_eq!(sizes(&cluster), [1, 3]);
    alone.await.unwrap();
    assert!(begin.elapsed() >= linger, "there may have been more: {:?}", begin.elapsed());
    assert_eq!(sizes(&cluster), [1, 3, 1]);
}

#[tokio::test]
async fn a_request_holds_no_more_bytes_than_it_may() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = batching(&client, &BatchingOptions::default().linger(HOUR).bytes_max(10));
    let bodies = ["1234", "1234", "1234", "12345678901", "1"];
    let mut deliveries = Vec::new();
    for body in bodies {
        deliveries.push(producer.enqueue(order(body)).await.unwrap());
    }
    producer.flush().await;
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let mut sent: Vec<Vec<String>> = Vec::new();
    sent.extend(cluster.node(0).requests.lock().iter().map(|(bodies, _)| bodies.clone()));
    assert!(sent.iter().all(|bodies| bodies.len() == 1 || bodies.concat().len() <= 10), "{sent:?}");
    assert_eq!(sent.concat().len(), bodies.len());
}

#[tokio::test]
async fn a_flush_sends_at_once_and_returns_when_all_is_answered() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = batching(&client, &BatchingOptions::default().linger(HOUR));
    let deliveries = enqueue_all(&producer, 5).await;
    producer.flush().await;
    assert_eq!(sizes(&cluster), [5]);
    for (n, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.await.unwrap().offset, n as i64);
    }
    // Nothing is here: there is nothing to wait for.
    producer.flush().await;
}

#[tokio::test]
async fn a_message_that_is_refused_spoils_no_other() {
    let cluster = Cluster::start(1);
    *cluster.node(0).spoiled.lock() = Some("5".into());
    let client = cluster.client().await;
    let producer = batching(&client, &BatchingOptions::default().linger(HOUR));
    let deliveries = enqueue_all(&producer, 9).await;
    producer.flush().await;
    for (n, delivery) in deliveries.into_iter().enumerate() {
        let result = delivery.await;
        if n == 5 {
            assert_eq!(result.unwrap_err().code(), Some(Code::IllegalDeliveryTime));
        } else {
            result.unwrap();
        }
    }
    let requests = cluster.node(0).requests.lock();
    let stored = requests.iter().filter(|(_, code)| *code == Code::Ok).flat_map(|(bodies, _)| bodies.clone());
    let mut stored: Vec<String> = stored.collect();
    stored.sort();
    assert_eq!(stored, ["0", "1", "2", "3", "4", "6", "7", "8"], "each of the others once");
}

#[tokio::test]
async fn what_every_server_refuses_is_refused_in_its_words_and_not_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = batching(&client, &BatchingOptions::default());
    for (message, code, words) in [
        (order(""), Code::MessageBodyEmpty, "the body of message 0 is empty"),
        (order("x").tag("a|b"), Code::IllegalMessageTag, "which separates tags"),
        (order("x").property("KEYS", "1"), Code::IllegalMessagePropertyKey, "reserved for the system"),
        (Message::new("a.b", "x"), Code::IllegalTopic, "only the characters"),
        (order("x").message_group("x".repeat(64)), Code::IllegalMessageGroup, "longer than 63 bytes"),
        (order("x".repeat(4 * 1024 * 1024 + 1)), Code::MessageBodyTooLarge, "4194305"),
    ] {
        let error = producer.send(message.clone()).await.unwrap_err();
        assert_eq!(error.code(), Some(code), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(client.producer().send(message).await, Err(error));
    }
    assert_eq!(cluster.node(0).sent.lock().len(), 0);
}

#[tokio::test]
async fn message_groups_keep_their_order_over_requests_and_attempts() {
    let cluster = Cluster::start(1);
    // Two attempts fail, which no request can meet with all of its three. Whoever does not wait for the next overtakes it.
    let answers = (0..200).map(|n| if n == 5 || n == 25 { Code::InternalServerError } else { Code::Ok });
    cluster.node(0).answers.lock().extend(answers);
    let client = cluster.client().await;
    let options = BatchingOptions::default().linger(Duration::ZERO).messages_max(4);
    let producer = batching(&client, &options);
    let mut deliveries = Vec::new();
    for n in 0..300 {
        let group = format!("customer-{}", n % 7);
        let message = order(format!("{group} {n}")).message_group(group);
        deliveries.push(producer.enqueue(message).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let mut seen = 0;
    let mut last = BTreeMap::<String, u32>::new();
    let requests = cluster.node(0).requests.lock();
    for body in requests.iter().filter(|(_, code)| *code == Code::Ok).flat_map(|(bodies, _)| bodies) {
        let (group, n) = body.split_once(' ').unwrap();
        let n = n.parse().unwrap();
        let before = last.insert(group.to_owned(), n);
        assert!(before.is_none_or(|before| before < n), "{group}: {n} after {before:?}");
        seen += 1;
    }
    assert_eq!(seen, 300);
}

#[tokio::test]
async fn a_full_buffer_takes_no_more_and_says_so() {
    let cluster = Cluster::start(1);
    let options = ClientOptions { request_timeout: Duration::from_millis(300), ..ClientOptions::default() };
    let client = cluster.client_with(options).await;
    let producer = batching(&client, &BatchingOptions::default().buffer_bytes_max(3 * 1024));
    cluster.node(0).held.store(true, Ordering::Relaxed);
    let mut taken = Vec::new();
    let error = loop {
        match producer.enqueue(order("x".repeat(512))).await {
            Ok(delivery) => taken.push(delivery),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, ClientError::Full { limit, .. } if limit.contains("3072 bytes")), "{error}");
    assert_eq!(taken.len(), 2);
    cluster.node(0).held.store(false, Ordering::Relaxed);
    // Whatever becomes of them, it is told.
    for delivery in taken {
        let _ = delivery.await;
    }
    producer.send(order("there is room again")).await.unwrap();
}

#[tokio::test]
async fn a_message_that_waits_too_long_is_given_up_before_it_is_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let options =
        BatchingOptions::default().linger(Duration::ZERO).requests_max(1).wait_max(Duration::from_millis(50));
    let producer = batching(&client, &options);
    producer.send(order("first")).await.unwrap();
    cluster.node(0).held.store(true, Ordering::Relaxed);
    let under_way = producer.enqueue(order("under way")).await.unwrap();
    until("the request is there", || cluster.node(0).sent.lock().len() == 2).await;
    let late = producer.enqueue(order("late")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.node(0).held.store(false, Ordering::Relaxed);
    under_way.await.unwrap();
    assert_eq!(late.await, Err(ClientError::Expired { waited: Duration::from_millis(50) }));
    assert_eq!(cluster.node(0).sent.lock().len(), 2);
}

#[tokio::test]
async fn what_was_collected_is_sent_when_the_producer_is_dropped_and_when_the_client_closes() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = batching(&client, &BatchingOptions::default().linger(HOUR));
    let delivery = producer.enqueue(order("dropped")).await.unwrap();
    drop(producer);
    delivery.await.unwrap();

    let producer = batching(&client, &BatchingOptions::default().linger(HOUR));
    let delivery = producer.enqueue(order("closed")).await.unwrap();
    client.close().await;
    delivery.await.unwrap();
    assert_eq!(producer.send(order("x")).await, Err(ClientError::Closed));
}

#[tokio::test]
async fn a_stream_is_forwarded_and_a_refusal_is_the_sinks_error() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let mut sink = batching(&client, &BatchingOptions::default()).into_sink();
    let mut orders = stream::iter(0..100).map(|n| Ok(order(n)));
    sink.send_all(&mut orders).await.unwrap();
    assert_eq!(sizes(&cluster).iter().sum::<usize>(), 100);

    *cluster.node(0).spoiled.lock() = Some("bad".into());
    let error = sink.send(order("bad")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::IllegalDeliveryTime));
    sink.send(order("good")).await.unwrap();
    sink.close().await.unwrap();
}
