//! What is kept on disk while no broker takes it, and what becomes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use std::path::Path;
use std::time::Duration;

use karman_client::{Client, ClientError, ClientOptions, Code, Message, Sent, SpoolingProducer};
use node::{Cluster, until};

const MAX: u64 = 1 << 20;

fn order(body: impl ToString) -> Message {
    Message::new("orders", body.to_string())
}

/// Nothing is taken until [`end_outage`].
fn begin_outage(cluster: &Cluster) {
    cluster.node(0).answers.lock().extend([Code::InternalServerError; 10_000]);
}

fn end_outage(cluster: &Cluster) {
    cluster.node(0).answers.lock().clear();
}

/// The bodies that were stored, in their order.
fn stored(cluster: &Cluster) -> Vec<String> {
    let requests = cluster.node(0).requests.lock();
    requests.iter().filter(|(_, code)| *code == Code::Ok).flat_map(|(bodies, _)| bodies.clone()).collect()
}

async fn spooling(client: &Client, directory: &Path) -> SpoolingProducer {
    client.producer().spooling(directory, MAX).await.unwrap()
}

fn is_spooled(sent: &Sent) -> bool {
    matches!(sent, Sent::Spooled { .. })
}

#[tokio::test]
async fn what_cannot_be_sent_is_kept_and_sent_later_under_its_id() {
    let (cluster, directory) = (Cluster::start(1), tempfile::tempdir().unwrap());
    let client = cluster.client().await;
    let producer = spooling(&client, directory.path()).await;
    assert!(matches!(producer.send(order("before")).await.unwrap(), Sent::Stored(_)));
    begin_outage(&cluster);
    let Sent::Spooled { message_id } = producer.send(order("meanwhile")).await.unwrap() else {
        panic!("who has stored it?");
    };
    assert!(producer.kept_bytes() > 0);
    end_outage(&cluster);
    until("it is sent", || stored(&cluster) == ["before", "meanwhile"]).await;
    until("nothing is kept", || producer.kept_bytes() == 0).await;
    let ids = cluster.node(0).sent.lock().iter().map(node::id_of).filter(|id| *id == message_id).count();
    assert!(ids > 3, "each attempt has the id: {ids}");
    assert!(matches!(producer.send(order("after")).await.unwrap(), Sent::Stored(_)));
}

#[tokio::test]
async fn a_message_group_keeps_its_order_over_an_outage() {
    let (cluster, directory) = (Cluster::start(1), tempfile::tempdir().unwrap());
    let client = cluster.client().await;
    let producer = spooling(&client, directory.path()).await;
    for n in 0..60 {
        match n {
            20 => begin_outage(&cluster),
            40 => end_outage(&cluster),
            _ => {}
        }
        let message = order(n).message_group("17");
        let sent = producer.send(message).await.unwrap();
        assert!(!(20..40).contains(&n) || is_spooled(&sent), "{n}: {sent:?}");
    }
    until("all are sent", || stored(&cluster).len() == 60).await;
    let expected: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(stored(&cluster), expected);
}

#[tokio::test]
async fn what_is_kept_outlives_the_client() {
    let (cluster, directory) = (Cluster::start(1), tempfile::tempdir().unwrap());
    begin_outage(&cluster);
    let client = cluster.client().await;
    let producer = spooling(&client, directory.path()).await;
    for n in 0..5 {
        assert!(is_spooled(&producer.send(order(n)).await.unwrap()));
    }
    client.close().await;
    assert_eq!(producer.send(order("x")).await, Err(ClientError::Closed));
    drop(producer);
    end_outage(&cluster);
    let client = cluster.client().await;
    let producer = spooling(&client, directory.path()).await;
    until("they are sent", || producer.kept_bytes() == 0).await;
    assert_eq!(stored(&cluster), ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_kept_message_that_is_refused_is_put_aside_and_holds_up_no_other() {
    let (cluster, directory) = (Cluster::start(1), tempfile::tempdir().unwrap());
    *cluster.node(0).spoiled.lock() = Some("2".into());
    let client = cluster.client().await;
    let producer = spooling(&client, directory.path()).await;
    // At once, it is the caller's.
    let error = producer.send(order(2)).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::IllegalDeliveryTime));
    *cluster.node(0).spoiled.lock() = None;
    begin_outage(&cluster);
    for n in 0..5 {
        assert!(is_spooled(&producer.send(order(n)).await.unwrap()));
    }
    *cluster.node(0).spoiled.lock() = Some("2".into());
    end_outage(&cluster);
    until("the others are sent", || producer.kept_bytes() == 0).await;
    assert_eq!(stored(&cluster), ["0", "1", "3", "4"]);
    assert_eq!(producer.refused(), 1);
    let aside = std::fs::read(directory.path().join("refused.spool")).unwrap();
    assert!(aside.windows(6).any(|bytes| bytes == b"orders"), "it is there to be looked at");
}

#[tokio::test]
async fn a_full_or_unusable_spool_takes_nothing_and_says_so() {
    let (cluster, directory) = (Cluster::start(1), tempfile::tempdir().unwrap());
    begin_outage(&cluster);
    let options = ClientOptions { request_timeout: Duration::from_millis(500), ..ClientOptions::default() };
    let client = cluster.client_with(options).await;
    let producer = client.producer().spooling(directory.path(), 2000).await.unwrap();
    let error = loop {
        match producer.send(order("x".repeat(500))).await {
            Ok(sent) => assert!(is_spooled(&sent)),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the spool holds 2000 bytes"), "{error}");
    assert!(producer.kept_bytes() <= 2000);

    let error = client.producer().spooling(directory.path(), MAX).await.unwrap_err();
    assert!(error.to_string().contains("another process has it open"), "{error}");
    let file = directory.path().join("lock");
    let error = client.producer().spooling(&file, MAX).await.unwrap_err();
    assert!(matches!(&error, ClientError::Spool { directory, .. } if *directory == file), "{error}");
}
