//! What the SDK says to servers and makes of their answers: sending, receiving, farewells.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use karman_client::{ClientError, ClientOptions, Code, FilterExpression, Message};
use karman_remoting::proto::v2;
use node::{Cluster, delivery, until};
use prost::Message as _;

#[tokio::test]
async fn a_send_that_fails_goes_to_another_broker_with_the_same_id() {
    let cluster = Cluster::start(2);
    for index in 0..2 {
        cluster.node(index).answers.lock().push_back(Code::InternalServerError);
    }
    let client = cluster.client().await;
    let receipt = client.producer().send(Message::new("orders", "a book")).await.unwrap();

    let sent: Vec<Bytes> = (0..2).flat_map(|index| cluster.node(index).sent.lock().clone()).collect();
    assert_eq!(sent.len(), 3, "two refusals and a success");
    assert!(sent.iter().all(|bytes| *bytes == sent[0]), "the attempts differ");
    let id = v2::Message::decode(sent[0].clone()).unwrap().system_properties.unwrap().message_id;
    assert_eq!(receipt.message_id, id);
}

#[tokio::test]
async fn a_broker_that_is_gone_costs_an_attempt_and_not_the_message() {
    let mut cluster = Cluster::start(2);
    let client = cluster.client().await;
    let (_, gone) = cluster.nodes.pop().unwrap();
    gone.shutdown().await;
    let producer = client.producer();
    for _ in 0..4 {
        assert_eq!(producer.send(Message::new("orders", "a book")).await.unwrap().broker, "broker-0");
    }
}

#[tokio::test]
async fn a_refusal_that_another_attempt_cannot_mend_is_told_at_once() {
    let cluster = Cluster::start(2);
    for index in 0..2 {
        cluster.node(index).answers.lock().push_back(Code::MessagePropertiesTooLarge);
    }
    let client = cluster.client().await;
    let error = client.producer().send(Message::new("orders", "a book")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::MessagePropertiesTooLarge));
    assert_eq!(cluster.node(0).sent.lock().len() + cluster.node(1).sent.lock().len(), 1);
}

#[tokio::test]
async fn too_many_requests_is_tried_three_times() {
    let cluster = Cluster::start(1);
    cluster.node(0).answers.lock().extend([Code::TooManyRequests; 3]);
    let client = cluster.client().await;
    let producer = client.producer();
    let error = producer.send(Message::new("orders", "a book")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::TooManyRequests));
    assert_eq!(cluster.node(0).sent.lock().len(), 3);
    assert!(producer.send(Message::new("orders", "a book")).await.is_ok());
}

#[tokio::test]
async fn a_batch_is_one_request_of_one_topic_within_the_limit() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = client.producer();
    let receipts =
        producer.send_batch(vec![Message::new("orders", "1"), Message::new("orders", "2")]).await.unwrap();
    assert_eq!(receipts[1].as_ref().unwrap().offset, 1);

    let body = vec![0; 3 * 1024 * 1024];
    for wrong in [vec![], vec![Message::new("orders", "1"), Message::new("bills", "2")]] {
        assert!(matches!(producer.send_batch(wrong).await, Err(ClientError::InvalidArgument(_))));
    }
    let large = vec![Message::new("orders", body.clone()), Message::new("orders", body)];
    let error = producer.send_batch(large).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::MessageBodyTooLarge), "{error}");
    assert_eq!(cluster.node(0).sent.lock().len(), 2);
}

#[tokio::test]
async fn receiving_asks_every_broker_and_results_of_acks_are_each_messages_own() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let consumer = client.simple_consumer("shipping", [("orders", FilterExpression::all())]).unwrap();
    assert_eq!(consumer.receive(32, Duration::from_secs(30)).await.unwrap(), []);

    cluster.node(1).deliveries.lock().extend([delivery("good"), delivery("late")]);
    let mut messages = Vec::new();
    while messages.len() < 2 {
        messages.extend(consumer.receive(32, Duration::from_secs(30)).await.unwrap());
    }
    let results = consumer.ack_all(&messages).await;
    assert_eq!(results[0], Ok(()));
    assert_eq!(results[1].as_ref().unwrap_err().code(), Some(Code::InvalidReceiptHandle));
    assert_eq!(*cluster.node(1).acknowledged.lock(), ["good", "late"]);
}

#[tokio::test]
async fn an_ack_takes_the_way_through_the_access_point_when_the_broker_cannot_be_reached() {
    let mut cluster = Cluster::start(2);
    let client = cluster.client().await;
    let consumer = client.simple_consumer("shipping", [("orders", FilterExpression::all())]).unwrap();
    cluster.node(1).deliveries.lock().push_back(delivery("good"));
    let messages = consumer.receive(32, Duration::from_secs(30)).await.unwrap();
    let (_, gone) = cluster.nodes.pop().unwrap();
    gone.shutdown().await;
    consumer.ack(&messages[0]).await.unwrap();
    assert_eq!(*cluster.node(0).acknowledged.lock(), ["good"]);
}

#[tokio::test]
async fn brokers_hear_the_settings_and_a_farewell() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let producer = client.producer();
    producer.send(Message::new("orders", "a book")).await.unwrap();
    for index in 0..2 {
        until("settings", || !cluster.node(index).settings.lock().is_empty()).await;
        let settings = cluster.node(index).settings.lock()[0].clone();
        let Some(v2::settings::PubSub::Publishing(publishing)) = settings.pub_sub else {
            panic!("no publishing")
        };
        assert_eq!(publishing.topics[0].name, "orders");
    }
    client.close().await;
    assert_eq!(cluster.node(0).farewells.lock().len(), 1);
    assert_eq!(*cluster.node(0).farewells.lock(), *cluster.node(1).farewells.lock());
    assert_eq!(producer.send(Message::new("orders", "a book")).await, Err(ClientError::Closed));
}

#[tokio::test]
async fn a_producer_that_is_dropped_says_farewell() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = client.producer();
    producer.send(Message::new("orders", "a book")).await.unwrap();
    until("settings", || !cluster.node(0).settings.lock().is_empty()).await;
    drop(producer);
    until("farewell", || !cluster.node(0).farewells.lock().is_empty()).await;
}

#[tokio::test]
async fn what_is_kept_in_order_goes_to_one_broker_and_the_others_when_that_is_gone() {
    let mut cluster = Cluster::start(2);
    let client = cluster.client().await;
    let producer = client.producer();
    let send = |group: &'static str| producer.send(Message::new("orders", "a book").message_group(group));
    let mut at_1 = 0;
    for group in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let first = send(group).await.unwrap().broker;
        assert_eq!(send(group).await.unwrap().broker, first);
        at_1 += usize::from(first == "broker-1");
    }
    assert!((1..8).contains(&at_1), "{at_1} of 8 groups live at broker-1");
    let (_, gone) = cluster.nodes.pop().unwrap();
    gone.shutdown().await;
    for group in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        assert_eq!(send(group).await.unwrap().broker, "broker-0");
    }
}

#[tokio::test]
async fn a_delayed_message_is_recalled_by_its_handle_which_may_take_attempts() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let producer = client.producer();
    let message = Message::new("orders", "a book").deliver_after(Duration::from_secs(60));
    let handle = producer.send(message).await.unwrap().recall_handle.unwrap();
    cluster.node(0).answers.lock().push_back(Code::InternalServerError);
    assert_eq!(producer.recall("orders", &handle).await.unwrap(), "of handle");
    cluster.node(0).answers.lock().push_back(Code::MessageNotFound);
    let late = producer.recall("orders", &handle).await.unwrap_err();
    assert_eq!(late.code(), Some(Code::MessageNotFound));
}

#[tokio::test]
async fn calls_that_wait_for_the_same_route_give_up_together() {
    let cluster = Cluster::start(1);
    let request_timeout = Duration::from_millis(400);
    let client = cluster.client_with(ClientOptions { request_timeout, ..ClientOptions::default() }).await;
    cluster.node(0).silent.store(true, Ordering::Relaxed);
    let producer = client.producer();
    let began = Instant::now();
    let sends = (0..8).map(|_| producer.send(Message::new("orders", "a book")));
    for result in futures_util::future::join_all(sends).await {
        assert!(matches!(result, Err(ClientError::Timeout { .. })), "{result:?}");
    }
    assert!(began.elapsed() < request_timeout * 4, "{:?}", began.elapsed());
}
