//! What the SDK says to servers about transactions.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karman_client::{Client, Code, Message, Resolution, TransactionProducer};
use karman_remoting::proto::v2;
use node::{Cluster, until};
use prost::Message as _;

fn producer(client: &Client, found: Resolution) -> (TransactionProducer, Arc<AtomicUsize>) {
    let checks = Arc::new(AtomicUsize::new(0));
    let counter = checks.clone();
    let check = move |message: karman_client::MessageView| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(message.topic(), "orders");
            found
        }
    };
    (client.transaction_producer(["orders"], check), checks)
}

fn order() -> Message {
    Message::new("orders", "a book").check_after(Duration::from_secs(2))
}

#[tokio::test]
async fn a_decision_is_told_to_the_broker_of_the_half_message() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let (producer, _) = producer(&client, Resolution::Unknown);
    for (resolution, told) in [
        (Resolution::Commit, Some(v2::TransactionResolution::Commit)),
        (Resolution::Rollback, Some(v2::TransactionResolution::Rollback)),
        (Resolution::Unknown, None),
    ] {
        let transaction = producer.transaction(order(), |_| async move { resolution }).await.unwrap();
        assert_eq!((transaction.resolution, &transaction.untold), (resolution, &None));
        let index = usize::from(transaction.receipt.broker == "broker-1");
        let sent = v2::Message::decode(cluster.node(index).sent.lock().pop().unwrap()).unwrap();
        let system = sent.system_properties.unwrap();
        assert_eq!(system.message_type(), v2::MessageType::Transaction);
        assert_eq!(system.orphaned_transaction_recovery_duration.unwrap().seconds, 2);
        let end = cluster.node(index).ended.lock().pop();
        assert_eq!(end.as_ref().map(v2::EndTransactionRequest::resolution), told);
        if let Some(end) = end {
            assert_eq!(
                (end.message_id, end.transaction_id),
                (transaction.receipt.message_id, "transaction".into())
            );
            assert_eq!(end.source, v2::TransactionSource::SourceClient as i32);
        }
    }
}

#[tokio::test]
async fn a_decision_that_no_attempt_can_tell_is_returned_as_untold() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let (producer, _) = producer(&client, Resolution::Unknown);
    let node = cluster.node(0);
    let decide = |_| async {
        node.answers.lock().extend([Code::InternalServerError; 3]);
        Resolution::Commit
    };
    let transaction = producer.transaction(order(), decide).await.unwrap();
    assert_eq!(transaction.untold.unwrap().code(), Some(Code::InternalServerError));
    assert_eq!(node.ended.lock().len(), 3);
}

#[tokio::test]
async fn nothing_is_decided_about_a_message_that_was_not_stored() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let (producer, _) = producer(&client, Resolution::Unknown);
    cluster.node(0).answers.lock().push_back(Code::TopicNotFound);
    let result = producer.transaction(order(), |_| async { panic!("it was not stored") }).await;
    assert_eq!(result.unwrap_err().code(), Some(Code::TopicNotFound));
    let both =
        producer.transaction(order().message_group("g"), |_| async { panic!("it was not sent") }).await;
    assert!(both.unwrap_err().to_string().contains("a message group and a transaction"));
}

#[tokio::test]
async fn a_half_message_that_may_be_stored_is_not_sent_to_another_broker() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    let (producer, _) = producer(&client, Resolution::Unknown);
    for index in 0..2 {
        cluster.node(index).answers.lock().extend([Code::MasterPersistenceTimeout; 2]);
    }
    producer.transaction(order(), |_| async { Resolution::Commit }).await.unwrap();
    let mut sent = [0, 1].map(|index| cluster.node(index).sent.lock().len());
    sent.sort_unstable();
    assert_eq!(sent, [0, 3]);
}

#[tokio::test]
async fn the_checker_answers_for_topics_that_nothing_was_sent_to() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let node = cluster.node(0);
    for (found, told) in [
        (Resolution::Commit, Some(v2::TransactionResolution::Commit)),
        (Resolution::Rollback, Some(v2::TransactionResolution::Rollback)),
        (Resolution::Unknown, None),
    ] {
        let streams = node.settings.lock().len();
        let (_producer, checks) = producer(&client, found);
        until("stream", || node.settings.lock().len() > streams && node.has_stream()).await;
        node.check("orphan").await;
        until("check", || checks.load(Ordering::Relaxed) == 1).await;
        let Some(told) = told else { continue };
        until("answer", || !node.ended.lock().is_empty()).await;
        let end = node.ended.lock().pop().unwrap();
        assert_eq!((end.resolution(), end.transaction_id.as_str()), (told, "orphan"));
        assert_eq!(end.source, v2::TransactionSource::SourceServerCheck as i32);
    }
    assert!(node.ended.lock().is_empty());
}
