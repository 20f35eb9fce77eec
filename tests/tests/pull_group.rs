//! The queues of a topic shared out among pull consumers of the Rust SDK, and read by each of them, on two brokers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use karman_client::{
    AllocateStrategy, Client, ClientError, ClientOptions, Code, Credentials, FilterExpression, Message,
    PullGroup, PullGroupOptions, QueryOffset, QueueName,
};
use karman_remoting::proto::karman::TopicConfig;
use karman_remoting::proto::v2::MessageType;
use karman_tests::Cluster;
use karman_tests::cluster::Node;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;

const DEADLINE: Duration = Duration::from_secs(60);
const QUEUES: usize = 16;

/// Two brokers with 8 queues each of `orders`.
fn prepared(cluster: Cluster) -> Cluster {
    let config = TopicConfig {
        name: "orders".into(),
        message_type: MessageType::Normal.into(),
        queue_nums: 8,
        ..Default::default()
    };
    let status = cluster.raw(&cluster.brokers[0]).make_topic(config);
    assert_eq!(status.code, Code::Ok as i32, "{status:?}");
    cluster.wait_route("orders");
    cluster
}

fn cluster() -> Cluster {
    prepared(Cluster::builder().namesrvs(1).brokers(2).start())
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

async fn connect(node: &Node) -> Client {
    Client::connect(&node.endpoint(), ClientOptions::default()).await.unwrap()
}

fn orders() -> [(&'static str, FilterExpression); 1] {
    [("orders", FilterExpression::all())]
}

fn quick() -> PullGroupOptions {
    PullGroupOptions::default()
        .members_interval(Duration::from_millis(200))
        .commit_interval(Duration::from_millis(200))
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// How often each body came, and where from.
type Book = Arc<Mutex<HashMap<String, usize>>>;

/// A consumer that takes messages on a task of its own until it is told to end, and says how it is.
struct Member {
    assigned: Arc<Mutex<Vec<QueueName>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<PullGroup>,
}

impl Member {
    fn start(mut consumer: PullGroup, book: &Book) -> Self {
        let (assigned, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::<AtomicBool>::default());
        let (writer, said, token) = (book.clone(), assigned.clone(), stop.clone());
        let task = tokio::spawn(async move {
            while !token.load(Ordering::Relaxed) {
                for message in consumer.poll(Duration::from_millis(50)).await.unwrap() {
                    let body = String::from_utf8(message.body().to_vec()).unwrap();
                    *writer.lock().unwrap().entry(body).or_default() += 1;
                    message.done();
                }
                *said.lock().unwrap() = consumer.assigned();
            }
            consumer
        });
        Self { assigned, stop, task }
    }

    fn assigned(&self) -> Vec<QueueName> {
        self.assigned.lock().unwrap().clone()
    }

    async fn end(self) -> PullGroup {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Whether the members together have each queue once, in shares of these sizes.
fn is_shared(members: &[Member], sizes: &[usize]) -> bool {
    let all: Vec<Vec<QueueName>> = members.iter().map(Member::assigned).collect();
    let mut counts: Vec<usize> = all.iter().map(Vec::len).collect();
    counts.sort_unstable();
    let distinct: BTreeSet<&QueueName> = all.iter().flatten().collect();
    counts == sizes && distinct.len() == QUEUES
}

async fn send(client: &Client, bodies: std::ops::Range<usize>) {
    let producer = client.producer();
    for body in bodies {
        producer.send(Message::new("orders", body.to_string())).await.unwrap();
    }
}

#[test]
fn members_share_all_queues_and_when_one_goes_nothing_is_lost() {
    let cluster = cluster();
    run(async {
        let client = connect(&cluster.brokers[0]).await;
        let other = connect(&cluster.brokers[1]).await;
        send(&client, 0..300).await;
        let book = Book::default();
        let mut members: Vec<Member> = [&client, &other, &client]
            .map(|client| Member::start(client.pull_group("shipping", orders(), &quick()).unwrap(), &book))
            .into();
        until("three members share 16 queues", || is_shared(&members, &[5, 5, 6])).await;
        let sending = tokio::spawn({
            let client = client.clone();
            async move { send(&client, 300..1500).await }
        });
        until("they work while others send", || book.lock().unwrap().len() > 400).await;
        // Goes with messages that it has taken and not done, and with others that it has not even taken.
        let mut one = members.remove(1).end().await;
        let begun = one.poll(DEADLINE).await.unwrap();
        one.commit().await.unwrap();
        drop(one);
        until("each queue has an owner again", || is_shared(&members, &[8, 8])).await;
        assert!(!begun.is_empty() && begun.iter().all(|message| !message.done()), "they are others' now");
        sending.await.unwrap();
        until("all messages", || book.lock().unwrap().len() == 1500).await;
        for member in members {
            member.end().await.shutdown().await.unwrap();
        }
        // All of it is recorded: the next one begins where they ended.
        send(&client, 1500..1501).await;
        let mut next = client.pull_group("shipping", orders(), &quick()).unwrap();
        let messages = next.poll(DEADLINE).await.unwrap();
        assert_eq!(messages.iter().map(|message| message.body().as_ref()).collect::<Vec<_>>(), [b"1500"]);
        messages[0].done();
        next.shutdown().await.unwrap();
        other.close().await;
        client.close().await;
    });
}

/// Takes exactly these bodies, in whatever order, and says that they are done.
async fn take(consumer: &mut PullGroup, bodies: std::ops::Range<usize>) {
    let mut missing: BTreeSet<String> = bodies.map(|body| body.to_string()).collect();
    while !missing.is_empty() {
        let message = tokio::time::timeout(DEADLINE, consumer.next()).await.expect("in time");
        let message = message.expect("it is not shut down").unwrap();
        let body = String::from_utf8(message.body().to_vec()).unwrap();
        assert!(missing.remove(&body), "{body} came again, or was not asked for");
        assert!(message.done() && !message.done());
    }
}

#[test]
fn broadcasting_gives_everything_to_each_and_a_restart_goes_on_from_the_file() {
    let cluster = cluster();
    let path = |name: &str| cluster.path().join(name);
    run(async {
        let client = connect(&cluster.brokers[0]).await;
        send(&client, 0..100).await;
        let all = |file: &str| client.pull_broadcast("screens", orders(), path(file), &quick()).unwrap();
        let (mut one, mut other) = (all("one"), all("other"));
        take(&mut one, 0..100).await;
        take(&mut other, 0..100).await;
        assert_eq!(one.assigned().len(), QUEUES);
        one.commit().await.unwrap();
        // Shut down in order, and killed, as it were: what was recorded before holds.
        one.shutdown().await.unwrap();
        other.shutdown().await.unwrap();
        send(&client, 100..150).await;
        let from_the_end = quick().begin(QueryOffset::End);
        let mut late = client.pull_broadcast("screens", orders(), path("late"), &from_the_end).unwrap();
        until("it has its queues", || late.assigned().len() == QUEUES).await;
        let mut one = all("one");
        take(&mut one, 100..150).await;
        one.shutdown().await.unwrap();
        // The file is damaged: the one before is some messages behind, and none ahead.
        std::fs::write(path("other"), "damaged").unwrap();
        let mut other = all("other");
        let mut seen = BTreeSet::new();
        while !(100..150).all(|body| seen.contains(&body.to_string())) {
            for message in other.poll(DEADLINE).await.unwrap() {
                seen.insert(String::from_utf8(message.body().to_vec()).unwrap());
            }
        }
        assert!(late.poll(Duration::from_millis(300)).await.unwrap().is_empty(), "it began at the end");
        client.close().await;
    });
}

#[test]
fn a_member_needs_the_right_to_receive_and_no_other_and_who_has_it_not_is_told_what_to_do() {
    let cluster = prepared(Cluster::builder().namesrvs(1).brokers(2).secured().start());
    let file = cluster.path().join("secret");
    std::fs::write(&file, "secret of the shop").unwrap();
    let file = file.to_str().unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", file]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Topic:orders", "--actions", "Pub,Sub"]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Group:shop-*", "--actions", "Sub"]);
    run(async {
        let credentials = Credentials::new("shop", "secret of the shop");
        let options = ClientOptions { credentials, ..Default::default() };
        let client = Client::connect(&cluster.brokers[0].endpoint(), options).await.unwrap();
        let producer = client.producer();
        let send = async || producer.send(Message::new("orders", "0")).await;
        let mut sent = send().await;
        while sent.as_ref().is_err_and(|error| error.code() == Some(Code::Unauthorized)) {
            sent = send().await;
        }
        sent.unwrap();
        let mut own = client.pull_group("shop-shipping", orders(), &quick()).unwrap();
        take(&mut own, 0..1).await;
        let mut others = client.pull_group("shipping", orders(), &quick()).unwrap();
        let refused = others.poll(DEADLINE).await.unwrap_err();
        assert!(matches!(&refused, ClientError::Members { group, .. } if group == "shipping"), "{refused}");
        client.close().await;
    });
}

#[test]
fn configured_queues_are_read_without_asking_who_is_there() {
    let cluster = cluster();
    run(async {
        let client = connect(&cluster.brokers[0]).await;
        let queues =
            BTreeSet::from([QueueName::new("orders", "broker-a", 3), QueueName::new("orders", "gone", 0)]);
        let options = quick().strategy(AllocateStrategy::ByConfiguration(queues));
        let mut consumer = client.pull_group("shipping", orders(), &options).unwrap();
        send(&client, 0..100).await;
        let message = consumer.poll(DEADLINE).await.unwrap().remove(0);
        assert_eq!(consumer.assigned(), [message.queue().clone()]);
        assert_eq!((message.queue().to_string().as_str(), message.queue_id()), ("orders/broker-a/3", 3));
        client.close().await;
    });
}
