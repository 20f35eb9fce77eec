//! What the servers know of one producer or consumer: a telemetry stream with its settings and a heartbeat to each
//! broker of its topics, and a farewell at the end.
//!
//! One task per session keeps one link (a task) per endpoint; all end with the session's token.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::proto::v2;
use karman_remoting::proto::v2::settings::PubSub;
use karman_remoting::proto::v2::telemetry_command::Command;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::ClientError;
use crate::message::{FilterExpression, duration};
use crate::route::{Routes, resource};
use crate::transport::{Transport, answer};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How often links are compared with the routes.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
/// Between the end of a telemetry stream and the next one.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// For the farewell of one link.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Topics a server takes in one Settings command; a producer to more of them does not declare the rest.
const TOPICS_MAX: usize = 4096;

/// In which capacity a client calls.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Producer,
    SimpleConsumer { group: String, subscriptions: Arc<[(String, FilterExpression)]> },
}

impl Role {
    fn client_type(&self) -> v2::ClientType {
        match self {
            Self::Producer => v2::ClientType::Producer,
            Self::SimpleConsumer { .. } => v2::ClientType::SimpleConsumer,
        }
    }

    fn group(&self) -> Option<v2::Resource> {
        match self {
            Self::Producer => None,
            Self::SimpleConsumer { group, .. } => Some(resource(group)),
        }
    }

    fn settings(&self, topics: &BTreeSet<String>, transport: &Transport) -> v2::Settings {
        let pub_sub = match self {
            Self::Producer => PubSub::Publishing(v2::Publishing {
                topics: topics.iter().map(|topic| resource(topic)).collect(),
                ..Default::default()
            }),
            Self::SimpleConsumer { subscriptions, .. } => {
                let entry = |(topic, filter): &(String, FilterExpression)| v2::SubscriptionEntry {
                    topic: Some(resource(topic)),
                    expression: Some(filter.to_proto()),
                };
                PubSub::Subscription(v2::Subscription {
                    group: self.group(),
                    subscriptions: subscriptions.iter().map(entry).collect(),
                    ..Default::default()
                })
            }
        };
        v2::Settings {
            client_type: Some(self.client_type().into()),
            access_point: transport.access_point_endpoints(),
            request_timeout: Some(duration(transport.request_timeout)),
            user_agent: Some(v2::Ua {
                language: v2::Language::Rust.into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                platform: std::env::consts::OS.to_owned(),
                hostname: transport.host.to_string(),
            }),
            pub_sub: Some(pub_sub),
            ..Default::default()
        }
    }
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) transport: Transport,
    pub(crate) routes: Arc<Routes>,
    role: Role,
    topics: watch::Sender<BTreeSet<String>>,
}

impl Session {
    pub(crate) fn new(transport: Transport, routes: Arc<Routes>, role: Role) -> Self {
        let topics = match &role {
            Role::Producer => BTreeSet::new(),
            Role::SimpleConsumer { subscriptions, .. } => {
                subscriptions.iter().map(|(topic, _)| topic.clone()).collect()
            }
        };
        Self { transport, routes, role, topics: watch::Sender::new(topics) }
    }

    /// From now on the brokers of `topic` hear of this client.
    pub(crate) fn declare(&self, topic: &str) {
        if !self.topics.borrow().contains(topic) {
            self.topics
                .send_if_modified(|topics| topics.len() < TOPICS_MAX && topics.insert(topic.to_owned()));
        }
    }

    /// Keeps the links until `stop`, then waits for their farewells.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let mut links: HashMap<String, CancellationToken> = HashMap::new();
        let mut topics = self.topics.subscribe();
        loop {
            let wanted = self.endpoints();
            links.retain(|endpoint, link| {
                let keep = wanted.contains(endpoint);
                if !keep {
                    link.cancel();
                }
                keep
            });
            for endpoint in wanted {
                links.entry(endpoint).or_insert_with_key(|endpoint| {
                    let link = stop.child_token();
                    tasks.spawn(self.clone().link(endpoint.clone(), link.clone()));
                    link
                });
            }
            tokio::select! {
                () = stop.cancelled() => break,
                // The sender lives as long as the session.
                _ = topics.changed() => {}
                () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    fn endpoints(&self) -> BTreeSet<String> {
        let topics = self.topics.borrow();
        let routes = topics.iter().filter_map(|topic| self.routes.known(topic));
        routes.flat_map(|route| route.endpoints().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// One endpoint, until `stop`.
    async fn link(self: Arc<Self>, endpoint: String, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.heartbeats(&endpoint) => {}
            () = self.telemetry(&endpoint) => {}
        }
        let request = v2::NotifyClientTerminationRequest { group: self.role.group() };
        let Ok(mut service) = self.transport.service(&endpoint) else { return };
        let call = service.notify_client_termination(self.transport.request(request, FAREWELL_TIMEOUT));
        if let Err(error) = answer(&endpoint, FAREWELL_TIMEOUT, call).await {
            tracing::debug!(%error, "the server will find out by itself that this client is gone");
        }
    }

    /// Never ends: the server forgets a client whose heartbeats stop.
    async fn heartbeats(&self, endpoint: &str) {
        loop {
            if let Err(error) = self.heartbeat(endpoint).await {
                tracing::debug!(%error, "heartbeat failed");
                self.routes.suspect();
            }
            tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        }
    }

    async fn heartbeat(&self, endpoint: &str) -> Result<(), ClientError> {
        let request =
            v2::HeartbeatRequest { group: self.role.group(), client_type: self.role.client_type().into() };
        let timeout = self.transport.request_timeout;
        let mut service = self.transport.service(endpoint)?;
        let call = service.heartbeat(self.transport.request(request, timeout));
        ClientError::of_status(endpoint, answer(endpoint, timeout, call).await?.status)
    }

    /// Never ends: a stream that broke is opened again.
    async fn telemetry(&self, endpoint: &str) {
        loop {
            if let Err(error) = self.telemetry_stream(endpoint).await {
                tracing::debug!(%error, "telemetry stream ended");
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    async fn telemetry_stream(&self, endpoint: &str) -> Result<(), ClientError> {
        let timeout = self.transport.request_timeout;
        let mut topics = self.topics.subscribe();
        let (commands, outbound) = mpsc::channel(1);
        // The first command is there before the call: a server may answer the headers only when it has read it.
        let first = self.settings(&topics.borrow_and_update());
        commands.try_send(first).expect("the channel is empty and its receiver is at hand");
        let mut service = self.transport.service(endpoint)?;
        let call = service.telemetry(self.transport.open_request(ReceiverStream::new(outbound)));
        let mut inbound = answer(endpoint, timeout, call).await?;
        loop {
            tokio::select! {
                received = inbound.message() => match received {
                    // The answer to our settings, or a command that a simple client has nothing to do about.
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(ClientError::transport(endpoint, timeout, &status)),
                },
                _ = topics.changed() => {
                    let settings = self.settings(&topics.borrow_and_update());
                    if commands.send(settings).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn settings(&self, topics: &BTreeSet<String>) -> v2::TelemetryCommand {
        let settings = self.role.settings(topics, &self.transport);
        v2::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) }
    }
}
