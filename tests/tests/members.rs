//! A group whose members come and go under load: nobody is idle who has something to do, nothing is with
//! two members at once, and all are told the same assignment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::proto::v2::{self, Code};
use karman_tests::raw::{is_ok, message, receive_request, resource, seconds, system};
use karman_tests::{Cluster, Raw, let_run, seed, until};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

const TOPIC: &str = "work";
const GROUP: &str = "crew";
const MEMBERS: usize = 30;
/// So many leave, one after the other, and others join in their place.
const CHANGES: usize = 150;
/// Between two changes, at most.
const PAUSE_MS: u64 = 100;
/// What a member does with some messages takes so long. A third of them is busy then.
const WORK: Duration = Duration::from_millis(60);
/// Messages sent between two changes, one batch to each broker.
const BATCH: usize = 40;
const INVISIBLE_SECONDS: i64 = 10;
/// From when a broker gives a message until it is seen here.
const ON_THE_WAY: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Delivery {
    member: usize,
    at: Instant,
    acked: bool,
}

/// What all members have seen.
#[derive(Debug, Default)]
struct Book {
    deliveries: HashMap<String, Vec<Delivery>>,
    killed: HashSet<usize>,
}

impl Book {
    fn deliveries_of(&self, member: usize) -> usize {
        self.deliveries.values().flatten().filter(|delivery| delivery.member == member).count()
    }

    /// A message comes again only when who had it was killed before he acknowledged it, and its invisible time is over. Says
    /// how often that was.
    fn check(&self) -> usize {
        let mut again = 0;
        for (id, deliveries) in &self.deliveries {
            for pair in deliveries.windows(2) {
                let had = pair[0];
                let apart = pair[1].at - had.at + ON_THE_WAY;
                let was_free = !had.acked && self.killed.contains(&had.member);
                assert!(was_free, "{id} is another's, or done: {deliveries:?}");
                let invisible = Duration::from_secs(INVISIBLE_SECONDS.unsigned_abs());
                assert!(apart >= invisible, "{id} came again too early: {deliveries:?}");
                again += 1;
            }
        }
        again
    }
}

/// What a task of a member needs.
#[derive(Clone)]
struct Seat {
    member: usize,
    client: MessagingServiceClient<Channel>,
    book: Arc<Mutex<Book>>,
}

impl Seat {
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(Duration::from_secs(15));
        let id = format!("member-{}", self.member);
        request.metadata_mut().insert("x-mq-client-id", id.parse().unwrap());
        request
    }

    async fn assignment(&mut self) -> v2::QueryAssignmentResponse {
        let request =
            v2::QueryAssignmentRequest { topic: resource(TOPIC), group: resource(GROUP), endpoints: None };
        let request = self.request(request);
        self.client.query_assignment(request).await.unwrap().into_inner()
    }

    /// Receives from one broker and acknowledges, until it is told to leave; what it has by then it acknowledges first.
    async fn work(mut self, broker: String, mut leaves: watch::Receiver<bool>) {
        while !*leaves.borrow_and_update() {
            let messages = self.receive(&broker).await;
            if messages.is_empty() {
                continue;
            }
            tokio::time::sleep(WORK).await;
            self.ack(&messages).await;
        }
    }

    async fn receive(&mut self, broker: &str) -> Vec<v2::Message> {
        let request = v2::ReceiveMessageRequest {
            batch_size: 4,
            invisible_duration: Some(seconds(INVISIBLE_SECONDS)),
            long_polling_timeout: Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 }),
            ..receive_request(TOPIC, GROUP, broker)
        };
        let request = self.request(request);
        let mut frames = self.client.receive_message(request).await.unwrap().into_inner();
        let mut messages = Vec::new();
        while let Some(frame) = frames.message().await.unwrap() {
            match frame.content {
                Some(Content::Message(bytes)) => {
                    let message = v2::Message::decode(bytes).unwrap();
                    let delivery = Delivery { member: self.member, at: Instant::now(), acked: false };
                    let id = system(&message).message_id.clone();
                    self.book.lock().unwrap().deliveries.entry(id).or_default().push(delivery);
                    messages.push(message);
                }
                Some(Content::Status(status)) => {
                    assert!(matches!(status.code(), Code::Ok | Code::MessageNotFound), "{status:?}");
                }
                _ => {}
            }
        }
        messages
    }

    async fn ack(&mut self, messages: &[v2::Message]) {
        let entry = |message: &v2::Message| v2::AckMessageEntry {
            message_id: system(message).message_id.clone(),
            receipt_handle: system(message).receipt_handle.clone().unwrap(),
            ..Default::default()
        };
        let request = v2::AckMessageRequest {
            group: resource(GROUP),
            topic: resource(TOPIC),
            entries: messages.iter().map(entry).collect(),
        };
        let request = self.request(request);
        let answer = self.client.ack_message(request).await.unwrap().into_inner();
        is_ok(answer.status);
        let mut book = self.book.lock().unwrap();
        for message in messages {
            let deliveries = book.deliveries.get_mut(&system(message).message_id).unwrap();
            deliveries.iter_mut().rfind(|one| one.member == self.member).unwrap().acked = true;
        }
    }
}

/// One consumer with a connection of its own.
struct Member {
    seat: Seat,
    /// It receives from each queue of its assignment.
    tasks: Vec<JoinHandle<()>>,
    leave: watch::Sender<bool>,
    assignment: Vec<u8>,
}

impl Member {
    fn join(runtime: &Runtime, number: usize, door: &str, book: &Arc<Mutex<Book>>) -> Self {
        let _runtime = runtime.enter();
        let channel = Endpoint::from_shared(format!("http://{door}")).unwrap().connect_lazy();
        let client = MessagingServiceClient::new(channel);
        let mut seat = Seat { member: number, client, book: book.clone() };
        let assignment = runtime.block_on(seat.assignment());
        let (leave, leaves) = watch::channel(false);
        let work = |one: &v2::Assignment| {
            let broker = one.message_queue.as_ref().unwrap().broker.as_ref().unwrap();
            runtime.spawn(seat.clone().work(broker.name.clone(), leaves.clone()))
        };
        let tasks = assignment.assignments.iter().map(work).collect();
        Self { seat, tasks, leave, assignment: assignment.encode_to_vec() }
    }

    /// Finishes what it has, says goodbye, and is gone.
    fn leave(mut self, runtime: &Runtime) {
        let _ = self.leave.send(true);
        self.tasks.into_iter().for_each(|task| runtime.block_on(task).unwrap());
        let goodbye = v2::NotifyClientTerminationRequest { group: resource(GROUP) };
        let goodbye = self.seat.request(goodbye);
        let answer = runtime.block_on(self.seat.client.notify_client_termination(goodbye)).unwrap();
        is_ok(answer.into_inner().status);
    }

    /// Ends in the middle of whatever it does, with all it has.
    fn kill(self, runtime: &Runtime) {
        self.seat.book.lock().unwrap().killed.insert(self.seat.member);
        self.tasks.iter().for_each(JoinHandle::abort);
        self.tasks.into_iter().for_each(|task| drop(runtime.block_on(task)));
    }
}

/// Messages that are sent, with their numbers.
struct Producer {
    doors: Vec<Raw>,
    sent: usize,
}

impl Producer {
    fn send(&mut self, count: usize) {
        for door in &self.doors {
            let numbers = self.sent..self.sent + count;
            let messages: Vec<_> = numbers.map(|number| message(TOPIC, &format!("m-{number}"))).collect();
            is_ok(door.send(&messages).status);
            self.sent += count;
        }
    }
}

fn doors(cluster: &Cluster) -> Vec<String> {
    cluster.namesrvs.iter().chain(&cluster.brokers).map(karman_tests::cluster::Node::endpoint).collect()
}

fn wait_all_delivered(book: &Mutex<Book>, sent: usize) {
    until("everything is delivered", DEADLINE, || {
        (book.lock().unwrap().deliveries.len() == sent).then_some(())
    });
}

fn wait_nothing_left(cluster: &Cluster) {
    until("the group has nothing left", DEADLINE, || {
        let lag: serde_json::Value =
            serde_json::from_str(&cluster.karman(&["-o", "json", "group", "lag", GROUP])).unwrap();
        let left = |of: &str| lag[0][of].as_u64().unwrap();
        (left("ready") + left("inflight") + left("withheld") == 0).then_some(())
    });
}

#[test]
fn members_come_and_go_and_each_message_is_with_one_of_them() {
    let mut chance = StdRng::seed_from_u64(seed());
    let cluster = Cluster::builder().namesrvs(1).brokers(2).start();
    cluster.create_topic(TOPIC);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let book = Arc::new(Mutex::new(Book::default()));
    let doors = doors(&cluster);
    let join = |number: usize| Member::join(&runtime, number, &doors[number % doors.len()], &book);
    let brokers = cluster.brokers.iter().map(|node| Raw::connect(&node.endpoint()));
    let mut producer = Producer { doors: brokers.collect(), sent: 0 };
    let mut members: Vec<Member> = (0..MEMBERS).map(join).collect();
    let assignment = members[0].assignment.clone();
    assert!(members[0].tasks.len() == 2, "one for each broker");
    for number in MEMBERS..MEMBERS + CHANGES {
        producer.send(BATCH);
        let_run(Duration::from_millis(chance.random_range(0..PAUSE_MS)));
        let gone = members.swap_remove(chance.random_range(0..members.len()));
        if chance.random() {
            gone.kill(&runtime)
        } else {
            gone.leave(&runtime)
        }
        members.push(join(number));
        assert_eq!(members.last().unwrap().assignment, assignment, "the same for all");
    }
    wait_all_delivered(&book, producer.sent);
    wait_nothing_left(&cluster);
    let again = book.lock().unwrap().check();
    let killed = book.lock().unwrap().killed.len();
    let left = CHANGES - killed;
    println!(
        "{} messages, {killed} members killed, {left} left in order, {again} deliveries again",
        producer.sent
    );
    assert!(again > 0, "nobody was killed with a message in his hands");

    // None of those who stay is idle, also none who was there before.
    let before: Vec<usize> =
        members.iter().map(|member| book.lock().unwrap().deliveries_of(member.seat.member)).collect();
    until("everybody has something to do", DEADLINE, || {
        producer.send(MEMBERS);
        let book = book.lock().unwrap();
        let has_more = |(member, before): (&Member, &usize)| book.deliveries_of(member.seat.member) > *before;
        members.iter().zip(&before).all(has_more).then_some(())
    });
    // And one alone does everything.
    let last = members.pop().unwrap();
    for member in &members {
        let _ = member.leave.send(true);
    }
    members.into_iter().for_each(|member| member.leave(&runtime));
    let before = book.lock().unwrap().deliveries_of(last.seat.member);
    wait_all_delivered(&book, producer.sent);
    producer.send(100);
    wait_all_delivered(&book, producer.sent);
    assert!(book.lock().unwrap().deliveries_of(last.seat.member) >= before + 200);
    wait_nothing_left(&cluster);
    last.leave(&runtime);
    book.lock().unwrap().check();
}
