//! `karman bench idle`: what consumers cost that have nothing to receive.
//!
//! Each is a client of its own, as the official ones are: a connection, a telemetry stream, a heartbeat every ten seconds,
//! one long poll after the other. All run on the main thread; the node is a process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::secret::Secret;
use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use super::consume::introduce;
use super::dev_node::{DevNode, directory};
use super::load::connect;
use super::rounded;
use crate::node::{Caller, Node, TopicBroker};
use crate::output::{self, Format, grouped, number};
use crate::signals::stop_on_signals;

const TOPIC: &str = "idle";
/// What official clients ask for.
const POLL: prost_types::Duration = prost_types::Duration { seconds: 30, nanos: 0 };
const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// As official clients do.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// How many connect at once: a burst of all would be refused as a flood of handshakes.
const CONNECTING: usize = 64;
/// Until all wait.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Args, Clone, Debug)]
pub(crate) struct IdleArgs {
    /// Consumers, each with a connection of its own
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=12_000))]
    consumers: u32,
    /// How long they wait
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Where the node keeps its messages meanwhile; a directory is made in it and removed
    #[arg(long, default_value = ".")]
    data: PathBuf,
}

#[derive(Serialize)]
struct IdleFigures {
    consumers: u32,
    seconds: u64,
    /// Of one processor.
    cpu_percent: f64,
    bytes_per_consumer: u64,
    errors: u64,
}

pub(crate) async fn run(args: IdleArgs, format: Format) -> anyhow::Result<()> {
    let stop = stop_on_signals();
    let ended = stop.child_token();
    let _ended_on_drop = ended.clone().drop_guard();
    let dir = directory(&args.data)?;
    let dev = DevNode::start(dir.path(), &[TOPIC.to_owned()]).await?;
    let node = Node::new(dev.endpoint.clone(), Secret::default());
    let place = Arc::new(node.masters_of(TOPIC).await?.swap_remove(0));
    let before = dev.memory()?;
    let (tasks, failures) = (TaskTracker::new(), Arc::new(Failures::default()));
    let mut connected = tokio::task::JoinSet::<anyhow::Result<()>>::new();
    for number in 0..args.consumers {
        if connected.len() >= CONNECTING {
            connected.join_next().await.context("none connects")??.context("connect a consumer")?;
        }
        let (place, tasks) = (place.clone(), tasks.clone());
        let (failures, ended) = (failures.clone(), ended.clone());
        connected.spawn(async move {
            let consumer = Consumer::connect(number, place).await?;
            tasks.spawn(consumer.wait(failures, ended));
            Ok(())
        });
    }
    while let Some(one) = connected.join_next().await {
        one?.context("connect a consumer")?;
    }
    tokio::time::sleep(SETTLED).await;
    let cpu_before = dev.cpu_micros()?;
    tokio::select! {
        () = stop.cancelled() => anyhow::bail!("ended before the time was over"),
        () = tokio::time::sleep(Duration::from_secs(args.seconds)) => {}
    }
    let used_micros = dev.cpu_micros()? - cpu_before;
    let grown = dev.memory()?.resident_bytes.saturating_sub(before.resident_bytes);
    ended.cancel();
    tasks.close();
    tasks.wait().await;
    dev.stop().await?;
    if let Some(first) = failures.first.lock().take() {
        eprintln!("karman: calls failed; the first: {first}");
    }
    let figures = IdleFigures {
        consumers: args.consumers,
        seconds: args.seconds,
        cpu_percent: rounded(used_micros as f64 / args.seconds as f64 / 1e4),
        bytes_per_consumer: grown / u64::from(args.consumers),
        errors: failures.count.load(Ordering::Relaxed),
    };
    print(&figures, format)
}

fn print(figures: &IdleFigures, format: Format) -> anyhow::Result<()> {
    if output::nameless(format, figures)? {
        return Ok(());
    }
    let row = vec![
        grouped(figures.consumers.into()),
        format!("{:.1} %", figures.cpu_percent),
        format!("{:.1} KB", figures.bytes_per_consumer as f64 / 1e3),
        grouped(figures.errors),
    ];
    Ok(output::table(&["CONSUMERS", "CPU", "MEMORY EACH", "ERRORS"].map(number), vec![row])?)
}

#[derive(Default)]
struct Failures {
    count: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Failures {
    fn note(&self, why: impl ToString) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.first.lock().get_or_insert_with(|| why.to_string());
    }
}

/// One client.
struct Consumer {
    service: MessagingServiceClient<Channel>,
    caller: Caller,
    place: Arc<TopicBroker>,
    group: v2::Resource,
}

impl Consumer {
    async fn connect(number: u32, place: Arc<TopicBroker>) -> anyhow::Result<Self> {
        let service = connect(&place.address).await?;
        let caller = Caller::nobody(&format!("idle-{number}"));
        // Groups of a hundred.
        let name = format!("idle-{}", number / 100);
        let group = v2::Resource { resource_namespace: String::new(), name };
        Ok(Self { service, caller, place, group })
    }

    /// Until `ended`: what fails is noted, and tried again with the next heartbeat.
    async fn wait(self, failures: Arc<Failures>, ended: CancellationToken) {
        while !ended.is_cancelled() {
            let failed = tokio::select! {
                () = ended.cancelled() => return,
                failed = self.listen() => failed,
                failed = self.beat() => failed,
                failed = self.poll() => failed,
            };
            failures.note(failed);
            tokio::time::sleep(HEARTBEAT_EVERY).await;
        }
    }

    /// The telemetry stream, which never ends by itself.
    async fn listen(&self) -> anyhow::Error {
        let listened = async {
            let mut service = self.service.clone();
            let (_says, mut hears) = introduce(&mut service, &self.caller, &self.group.name).await?;
            while hears.message().await?.is_some() {}
            anyhow::Ok(())
        };
        listened.await.err().unwrap_or_else(|| anyhow::anyhow!("the telemetry stream ended"))
    }

    async fn beat(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
            let request = v2::HeartbeatRequest {
                group: Some(self.group.clone()),
                client_type: v2::ClientType::SimpleConsumer.into(),
            };
            let mut service = self.service.clone();
            if let Err(status) = service.heartbeat(self.caller.request(request)).await {
                return status.into();
            }
        }
    }

    async fn poll(&self) -> anyhow::Error {
        loop {
            if let Err(error) = self.receive().await {
                return error;
            }
        }
    }

    async fn receive(&self) -> anyhow::Result<()> {
        let filter = v2::FilterExpression { r#type: v2::FilterType::Tag.into(), expression: "*".into() };
        let request = v2::ReceiveMessageRequest {
            group: Some(self.group.clone()),
            message_queue: Some(self.place.queue.clone()),
            filter_expression: Some(filter),
            batch_size: 32,
            auto_renew: true,
            long_polling_timeout: Some(POLL),
            ..Default::default()
        };
        let mut request = self.caller.request(request);
        request.set_timeout(CALL_TIMEOUT);
        let mut frames = self.service.clone().receive_message(request).await?.into_inner();
        while frames.message().await?.is_some() {}
        Ok(())
    }
}
