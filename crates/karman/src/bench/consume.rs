//! `karman bench consume`: receive and acknowledge, over and over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::receive_message_response::Content;
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::load::{connect, print_progress};
use super::{Figures, Outcome, judge, masters_of, new_histogram, server_cpu_micros, used_since};
use crate::node::{Caller, Node, TopicBroker};
use crate::output::Format;
use crate::signals::stop_on_signals;

const INVISIBLE_SECONDS: i64 = 60;
/// Short, so that a reader without messages sees the end of the run.
const POLL: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Args, Clone, Debug)]
pub(crate) struct ConsumeArgs {
    /// An existing topic
    topic: String,
    /// The consumer group; a new one begins with the oldest message
    #[arg(long, default_value = "bench")]
    group: String,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Receives under way, on each connection
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    inflight: u32,
    /// Messages in a receive
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=32))]
    batch: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
}

pub(crate) async fn run(args: ConsumeArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let brokers = masters_of(&args.topic, node).await?;
    let stop = stop_on_signals();
    let before = server_cpu_micros(node).await;
    let shared = Arc::new(Shared::new());
    let plan = Arc::new(Plan { args, brokers, caller: node.caller("consumer"), shared: shared.clone() });
    // Ends the threads when this function ends, however it does.
    let ended = stop.child_token();
    let _ended_on_drop = ended.clone().drop_guard();
    let start = Instant::now();
    let mut threads = Vec::new();
    for number in 0..plan.threads() {
        let (done, result) = oneshot::channel();
        let (plan, ended) = (plan.clone(), ended.clone());
        let body = move || {
            // Nobody waits for it any more when the command was ended.
            let _ = done.send(plan.run(number, &ended));
        };
        thread::Builder::new().name(format!("load-{number}")).spawn(body).context("start a load thread")?;
        threads.push(result);
    }
    watch(&shared, Duration::from_secs(plan.args.seconds), &stop).await;
    ended.cancel();
    for thread in threads {
        thread.await.context("a load thread panicked")??;
    }
    let cpu = used_since(before, server_cpu_micros(node).await);
    // Waiting when there was nothing left is no part of the rate.
    let last = shared.last.lock().unwrap_or_else(Instant::now);
    let outcome = shared.outcome(last.saturating_duration_since(start));
    judge(&outcome)?;
    Figures::of(&outcome, cpu).print(format)
}

/// What the threads do together.
struct Plan {
    args: ConsumeArgs,
    brokers: Vec<TopicBroker>,
    caller: Caller,
    shared: Arc<Shared>,
}

impl Plan {
    fn threads(&self) -> usize {
        thread::available_parallelism().map_or(1, usize::from).min(self.args.connections as usize)
    }

    /// The share of one thread, on a runtime of its own, until `stop`.
    fn run(&self, number: usize, stop: &CancellationToken) -> anyhow::Result<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let connections = self.args.connections as usize;
            let tasks = TaskTracker::new();
            let mut introduced = Vec::new();
            for index in (number..connections).step_by(self.threads()) {
                let broker = &self.brokers[index % self.brokers.len()];
                let mut service = connect(&broker.address).await?;
                introduced.push(introduce(&mut service, &self.caller, &self.args.group).await?);
                for _ in 0..self.args.inflight {
                    let (topic, group) = (&self.args.topic, &self.args.group);
                    let reads = Reads { caller: &self.caller, topic, group, batch: self.args.batch };
                    let reader = Reader::new(service.clone(), broker, &reads, &self.shared);
                    tasks.spawn(reader.read(stop.clone(), |_, _| {}));
                }
            }
            tasks.close();
            tasks.wait().await;
            Ok(())
        })
    }
}

/// Says who reads, as every client does: Apache RocketMQ answers no receive before. Holds while both ends are kept.
pub(crate) async fn introduce(
    service: &mut MessagingServiceClient<Channel>,
    caller: &Caller,
    group: &str,
) -> anyhow::Result<(mpsc::Sender<v2::TelemetryCommand>, Streaming<v2::TelemetryCommand>)> {
    let group = v2::Resource { resource_namespace: String::new(), name: group.to_owned() };
    let settings = v2::Settings {
        client_type: Some(v2::ClientType::SimpleConsumer.into()),
        pub_sub: Some(PubSub::Subscription(v2::Subscription { group: Some(group), ..Default::default() })),
        user_agent: Some(v2::Ua { language: v2::Language::Rust.into(), ..Default::default() }),
        ..Default::default()
    };
    let (says, said) = mpsc::channel(1);
    let command = Some(Command::Settings(settings));
    says.send(v2::TelemetryCommand { status: None, command }).await.context("say who reads")?;
    let answered = async {
        let request = caller.request(ReceiverStream::new(said));
        let mut hears = service.telemetry(request).await?.into_inner();
        hears.message().await.map(|_| hears)
    };
    let hears = tokio::time::timeout(CALL_TIMEOUT, answered).await.context("no answer to who reads")?;
    Ok((says, hears.map_err(|status| anyhow::anyhow!(told(&status))).context("say who reads")?))
}

/// Prints a line each second until the time is over or `stop`.
async fn watch(shared: &Shared, time: Duration, stop: &CancellationToken) {
    let progress = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.tick().await;
        let (mut messages_before, mut bytes_before) = (0, 0);
        for second in 1u64.. {
            ticks.tick().await;
            let (messages, bytes) =
                (shared.messages.load(Ordering::Relaxed), shared.bytes.load(Ordering::Relaxed));
            let errors = shared.errors.load(Ordering::Relaxed);
            print_progress(second, messages - messages_before, bytes - bytes_before, errors);
            (messages_before, bytes_before) = (messages, bytes);
        }
    };
    tokio::select! {
        () = progress => {}
        () = tokio::time::sleep(time) => {}
        () = stop.cancelled() => {}
    }
}

/// What all readers count.
pub(crate) struct Shared {
    /// Acknowledged.
    messages: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    /// When a message was acknowledged last.
    last: Mutex<Option<Instant>>,
    /// Of receives that brought something. Microseconds.
    latency: Mutex<Histogram<u64>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: Mutex::default(),
            last: Mutex::default(),
            latency: Mutex::new(new_histogram()),
        }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn outcome(&self, elapsed: Duration) -> Outcome {
        Outcome {
            messages: self.acknowledged(),
            body_bytes: self.bytes.load(Ordering::Relaxed),
            elapsed,
            errors: self.errors.load(Ordering::Relaxed),
            first_error: self.first_error.lock().take(),
            latency: self.latency.lock().clone(),
        }
    }
}

/// What a reader needs of a delivered message: the rest is never decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Delivered {
    #[prost(message, optional, tag = "3")]
    system_properties: Option<Receipt>,
    #[prost(bytes = "bytes", tag = "4")]
    body: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Receipt {
    #[prost(string, tag = "3")]
    message_id: String,
    #[prost(string, tag = "12")]
    receipt_handle: String,
}

/// What a reader asks for, and in whose name.
pub(crate) struct Reads<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) topic: &'a str,
    pub(crate) group: &'a str,
    /// Messages in a receive.
    pub(crate) batch: u32,
}

/// One receive after the other, each acknowledged before the next.
pub(crate) struct Reader {
    service: MessagingServiceClient<Channel>,
    receive: v2::ReceiveMessageRequest,
    caller: Caller,
    shared: Arc<Shared>,
}

impl Reader {
    pub(crate) fn new(
        service: MessagingServiceClient<Channel>,
        broker: &TopicBroker,
        reads: &Reads<'_>,
        shared: &Arc<Shared>,
    ) -> Self {
        let Reads { caller, topic, group, batch } = *reads;
        let resource = |name: &str| v2::Resource { resource_namespace: String::new(), name: name.to_owned() };
        let receive = v2::ReceiveMessageRequest {
            group: Some(resource(group)),
            message_queue: Some(v2::MessageQueue { topic: Some(resource(topic)), ..broker.queue.clone() }),
            filter_expression: Some(v2::FilterExpression {
                r#type: v2::FilterType::Tag.into(),
                expression: "*".into(),
            }),
            batch_size: i32::try_from(batch).unwrap_or(i32::MAX),
            invisible_duration: Some(prost_types::Duration { seconds: INVISIBLE_SECONDS, nanos: 0 }),
            auto_renew: false,
            long_polling_timeout: Some(prost_types::Duration {
                seconds: POLL.as_secs().cast_signed(),
                nanos: 0,
            }),
            attempt_id: None,
        };
        Self { service, receive, caller: caller.clone(), shared: shared.clone() }
    }

    /// Reads until `stop`; `arrived` sees each body, with the time of its arrival.
    pub(crate) async fn read(mut self, stop: CancellationToken, mut arrived: impl FnMut(&[u8], Instant)) {
        while !stop.is_cancelled() {
            let round = tokio::time::timeout(CALL_TIMEOUT, self.round(&mut arrived));
            let result =
                round.await.unwrap_or_else(|_| Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())));
            if let Err(error) = result {
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                self.shared.first_error.lock().get_or_insert(error);
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }

    /// Takes `count` messages and keeps them for `time`.
    pub(crate) async fn hold(mut self, count: u64, time: Duration) -> Result<(), String> {
        self.receive.invisible_duration = prost_types::Duration::try_from(time).ok();
        let mut held = 0;
        while held < count {
            let left = i32::try_from(count - held).unwrap_or(i32::MAX);
            self.receive.batch_size = left.min(self.receive.batch_size);
            let (entries, _) = self.receive(&mut |_, _| {}).await?;
            if entries.is_empty() {
                return Err(format!("there were only {held} of {count} messages to hold"));
            }
            held += entries.len() as u64;
        }
        Ok(())
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = self.caller.request(message);
        request.set_timeout(timeout);
        request
    }

    async fn round(&mut self, arrived: &mut impl FnMut(&[u8], Instant)) -> Result<(), String> {
        let start = Instant::now();
        let (entries, bytes) = self.receive(arrived).await?;
        if entries.is_empty() {
            return Ok(());
        }
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.latency.lock().saturating_record(micros);
        self.acknowledge(entries, bytes).await
    }

    /// What one receive brings, for its acknowledgement, and the bytes of the bodies.
    async fn receive(
        &mut self,
        arrived: &mut impl FnMut(&[u8], Instant),
    ) -> Result<(Vec<v2::AckMessageEntry>, u64), String> {
        let request = self.request(self.receive.clone(), CALL_TIMEOUT);
        let mut frames =
            self.service.receive_message(request).await.map_err(|status| told(&status))?.into_inner();
        let (mut entries, mut bytes) =
            (Vec::with_capacity(self.receive.batch_size.unsigned_abs() as usize), 0);
        while let Some(frame) = frames.message().await.map_err(|status| told(&status))? {
            match frame.content {
                Some(Content::Message(message)) => {
                    let message = Delivered::decode(message).map_err(|error| error.to_string())?;
                    arrived(&message.body, Instant::now());
                    bytes += message.body.len() as u64;
                    let receipt = message.system_properties.unwrap_or_default();
                    entries.push(v2::AckMessageEntry {
                        message_id: receipt.message_id,
                        receipt_handle: receipt.receipt_handle,
                        lite_topic: None,
                    });
                }
                Some(Content::Status(status)) => check(&status, v2::Code::MessageNotFound)?,
                Some(Content::DeliveryTimestamp(_)) | None => {}
            }
        }
        Ok((entries, bytes))
    }

    async fn acknowledge(&mut self, entries: Vec<v2::AckMessageEntry>, bytes: u64) -> Result<(), String> {
        let count = entries.len() as u64;
        let topic = self.receive.message_queue.as_ref().and_then(|queue| queue.topic.clone());
        let ack = v2::AckMessageRequest { group: self.receive.group.clone(), topic, entries };
        let request = self.request(ack, CALL_TIMEOUT);
        let answer = self.service.ack_message(request).await.map_err(|status| told(&status))?.into_inner();
        check(&answer.status.unwrap_or_default(), v2::Code::Ok)?;
        self.shared.messages.fetch_add(count, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        *self.shared.last.lock() = Some(Instant::now());
        Ok(())
    }
}

fn told(status: &tonic::Status) -> String {
    format!("gRPC {:?}: {}", status.code(), status.message())
}

/// OK and `also` are well.
fn check(status: &v2::Status, also: v2::Code) -> Result<(), String> {
    let well = status.code == v2::Code::Ok as i32 || status.code == also as i32;
    if well { Ok(()) } else { Err(format!("{} ({})", status.message, status.code().as_str_name())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_of_a_message_reads_the_long_one() {
        let message = v2::Message {
            topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
            system_properties: Some(v2::SystemProperties {
                tag: Some("new".into()),
                message_id: "01AB".into(),
                receipt_handle: Some("handle".into()),
                queue_offset: Some(7),
                ..Default::default()
            }),
            body: "a book".into(),
            ..Default::default()
        };
        let read = Delivered::decode(Bytes::from(message.encode_to_vec())).unwrap();
        let receipt = read.system_properties.unwrap();
        assert_eq!((receipt.message_id.as_str(), receipt.receipt_handle.as_str()), ("01AB", "handle"));
        assert_eq!(read.body, "a book");
    }
}
