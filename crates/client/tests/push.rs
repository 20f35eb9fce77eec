//! What a push consumer does with messages and says to brokers about them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod node;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use karman_client::{FilterExpression, MessageView, PushOptions};
use node::{Cluster, Node, delivery, delivery_of, until};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

fn orders() -> [(&'static str, FilterExpression); 1] {
    [("orders", FilterExpression::all())]
}

fn sorted(list: &Mutex<Vec<String>>) -> Vec<String> {
    let mut list = list.lock().clone();
    list.sort_unstable();
    list
}

#[tokio::test]
async fn a_message_is_done_when_its_handler_says_so_and_comes_again_when_it_fails() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    cluster.node(0).deliveries.lock().extend([delivery("good"), delivery("bad")]);
    cluster.node(1).deliveries.lock().extend([delivery("panic"), delivery_of("last", None, 2)]);
    let handle = |message: MessageView| async move {
        match message.message_id() {
            "good" => Ok(()),
            "panic" => panic!("as the test wants"),
            _ => Err("as the test wants"),
        }
    };
    let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
    let (a, b) = (cluster.node(0), cluster.node(1));
    until("all told", || {
        !a.acknowledged.lock().is_empty()
            && !a.changed.lock().is_empty()
            && !b.changed.lock().is_empty()
            && !b.dead.lock().is_empty()
    })
    .await;
    assert_eq!(*a.acknowledged.lock(), ["good"]);
    assert_eq!(*a.changed.lock(), [("bad".to_owned(), 100)]);
    assert_eq!(*b.changed.lock(), [("panic".to_owned(), 100)]);
    assert_eq!(*b.dead.lock(), ["last"]);
    let asked = a.asked.lock();
    assert!(asked.iter().all(|ask| ask.auto_renew && ask.invisible_duration.is_none()));
    assert_ne!(asked[0].attempt_id, asked[1].attempt_id);
}

#[tokio::test]
async fn a_handler_that_panics_before_it_has_anything_to_await_has_failed_like_any_other() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    cluster.node(0).deliveries.lock().extend([delivery("bad"), delivery("good")]);
    let handle = |message: MessageView| {
        assert_ne!(message.message_id(), "bad", "as the test wants");
        async { Ok::<(), String>(()) }
    };
    let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
    until("it is told to come again", || !cluster.node(0).changed.lock().is_empty()).await;
    assert_eq!(*cluster.node(0).changed.lock(), [("bad".to_owned(), 100)]);
    until("the other is done", || *cluster.node(0).acknowledged.lock() == ["good"]).await;
}

#[tokio::test]
async fn an_ordered_batch_that_breaks_off_is_asked_for_once_more_by_the_same_attempt() {
    let cluster = Cluster::start(1);
    let node = cluster.node(0);
    node.fifo.store(true, Ordering::Relaxed);
    node.torn.store(true, Ordering::Relaxed);
    node.deliveries.lock().extend([delivery_of("a1", Some("a"), 1), delivery_of("b1", Some("b"), 1)]);
    let client = cluster.client().await;
    let handle = |_| async { Ok::<(), String>(()) };
    let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
    until("all done", || node.acknowledged.lock().len() >= 2).await;
    assert_eq!(sorted(&node.acknowledged), ["a1", "b1"]);
    let asked = node.asked.lock();
    assert_eq!(asked[0].attempt_id, asked[1].attempt_id);
}

#[tokio::test]
async fn settings_that_a_broker_refuses_are_logged_with_its_reason() {
    let log = Log::default();
    let _logging = tracing::subscriber::set_default(log.clone());
    let cluster = Cluster::start(1);
    *cluster.node(0).refuses.lock() = Some("the group is bound to lite topics".to_owned());
    let client = cluster.client().await;
    cluster.node(0).deliveries.lock().push_back(delivery("good"));
    let handle = |_| async { Ok::<(), String>(()) };
    let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
    let said = || log.0.lock().iter().filter(|line| line.contains("bound to lite topics")).count();
    until("it is said", || said() > 0).await;
    *cluster.node(0).refuses.lock() = None;
    until("the message is done", || !cluster.node(0).acknowledged.lock().is_empty()).await;
    assert_eq!(said(), 1, "what does not change is said once: {:?}", log.0.lock());
}

/// Keeps what is logged as an error, on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().push(fields.0);
    }
}

/// Counts who is in it, and lets nobody out without a permit.
struct Gate {
    inside: Mutex<Vec<String>>,
    out: Semaphore,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { inside: Mutex::default(), out: Semaphore::new(0) })
    }

    async fn pass(self: Arc<Self>, message: MessageView) -> Result<(), String> {
        self.inside.lock().push(message.message_id().to_owned());
        self.out.acquire().await.unwrap().forget();
        Ok(())
    }
}

#[tokio::test]
async fn no_more_handlers_run_than_there_is_room_for() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    cluster.node(0).deliveries.lock().extend(["a", "b", "c", "d", "e"].map(delivery));
    let gate = Gate::new();
    let handler = gate.clone();
    let options = PushOptions::default().concurrency(2);
    let _consumer =
        client.push_consumer("shipping", orders(), &options, move |m| handler.clone().pass(m)).unwrap();
    for done in 0..5 {
        let begun = (done + 2).min(5);
        until("as many as there is room for", || gate.inside.lock().len() == begun).await;
        gate.out.add_permits(1);
        until("ack", || cluster.node(0).acknowledged.lock().len() == done + 1).await;
    }
}

#[tokio::test]
async fn messages_of_one_group_are_handled_in_order_and_wait_for_one_that_fails() {
    let cluster = Cluster::start(1);
    let node = cluster.node(0);
    node.fifo.store(true, Ordering::Relaxed);
    let client = cluster.client().await;
    let lines = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"), ("a3", "a")];
    node.deliveries.lock().extend(lines.map(|(id, group)| delivery_of(id, Some(group), 1)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handle = move |message: MessageView| {
        log.lock().push(message.message_id().to_owned());
        async move { if message.message_id() == "a2" { Err("as the test wants") } else { Ok(()) } }
    };
    let _consumer = client.push_consumer("shipping", orders(), &PushOptions::default(), handle).unwrap();
    until("all told", || node.acknowledged.lock().len() == 3 && node.changed.lock().len() == 2).await;
    assert_eq!(sorted(&node.acknowledged), ["a1", "b1", "b2"]);
    assert_eq!(*node.changed.lock(), [("a2".to_owned(), 100), ("a3".to_owned(), 100)]);
    let seen = seen.lock();
    let of = |group: char| seen.iter().filter(|id| id.starts_with(group)).cloned().collect::<Vec<_>>();
    assert_eq!((of('a'), of('b')), (vec!["a1".into(), "a2".into()], vec!["b1".into(), "b2".into()]));
}

/// A consumer with one handler that waits and one message behind it.
async fn one_handled_one_waiting(cluster: &Cluster, gate: &Arc<Gate>) -> karman_client::PushConsumer {
    let client = cluster.client().await;
    let options = PushOptions::default().concurrency(2);
    let handler = gate.clone();
    let consumer =
        client.push_consumer("shipping", orders(), &options, move |m| handler.clone().pass(m)).unwrap();
    cluster.node(0).deliveries.lock().extend(["a", "b"].map(delivery));
    until("two handled", || gate.inside.lock().len() == 2).await;
    cluster.node(0).deliveries.lock().push_back(delivery("c"));
    until("the third is received", || cluster.node(0).deliveries.lock().is_empty()).await;
    consumer
}

#[tokio::test]
async fn a_shutdown_lets_handlers_end_and_gives_back_what_was_not_begun() {
    let cluster = Cluster::start(1);
    let gate = Gate::new();
    let consumer = one_handled_one_waiting(&cluster, &gate).await;
    let node: &Node = cluster.node(0);
    let ending = tokio::spawn(consumer.shutdown(Duration::from_secs(10)));
    until("given back", || !node.changed.lock().is_empty()).await;
    assert_eq!(*node.changed.lock(), [("c".to_owned(), 0)]);
    assert!(node.acknowledged.lock().is_empty());
    gate.out.add_permits(2);
    assert!(ending.await.unwrap(), "the handlers have ended");
    assert_eq!(sorted(&node.acknowledged), ["a", "b"]);
    until("farewell", || !node.farewells.lock().is_empty()).await;
}

#[tokio::test]
async fn a_shutdown_out_of_patience_drops_handlers_and_their_messages_are_not_done() {
    let cluster = Cluster::start(1);
    let gate = Gate::new();
    let consumer = one_handled_one_waiting(&cluster, &gate).await;
    assert!(!consumer.shutdown(Duration::from_millis(50)).await);
    assert!(cluster.node(0).acknowledged.lock().is_empty());
    until("farewell", || !cluster.node(0).farewells.lock().is_empty()).await;
}
