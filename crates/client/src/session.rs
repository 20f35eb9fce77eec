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
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::ClientError;
use crate::message::{FilterExpression, duration};
use crate::retry::GroupPolicy;
use crate::route::{Routes, resource};
use crate::transaction::Checker;
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
/// Questions about transactions of one server that are being answered.
const CHECKS_MAX: usize = 64;

/// In which capacity a client calls.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Producer { topics: Vec<String>, checker: Option<Checker> },
    Consumer { client_type: v2::ClientType, group: String, subscriptions: Subscriptions },
}

/// What a consumer wants of which topics.
pub(crate) type Subscriptions = Arc<[(String, FilterExpression)]>;

impl Role {
    fn client_type(&self) -> v2::ClientType {
        match self {
            Self::Producer { .. } => v2::ClientType::Producer,
            Self::Consumer { client_type, .. } => *client_type,
        }
    }

    /// Servers ask it about transactions: it must be known to them though it sends nothing.
    fn is_asked(&self) -> bool {
        matches!(self, Self::Producer { checker: Some(_), .. })
    }

    fn group(&self) -> Option<v2::Resource> {
        match self {
            Self::Producer { .. } => None,
            Self::Consumer { group, .. } => Some(resource(group)),
        }
    }

    /// Known from the beginning.
    fn topics(&self) -> BTreeSet<String> {
        match self {
            Self::Producer { topics, .. } => topics.iter().cloned().collect(),
            Self::Consumer { subscriptions, .. } => {
                subscriptions.iter().map(|(topic, _)| topic.clone()).collect()
            }
        }
    }

    fn settings(&self, topics: &BTreeSet<String>, transport: &Transport) -> v2::Settings {
        let pub_sub = match self {
            Self::Producer { .. } => PubSub::Publishing(v2::Publishing {
                topics: topics.iter().map(|topic| resource(topic)).collect(),
                ..Default::default()
            }),
            Self::Consumer { subscriptions, .. } => {
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
    /// What the servers say of the group; `None` until one has answered.
    policy: watch::Sender<Option<GroupPolicy>>,
}

impl Session {
    pub(crate) fn new(transport: Transport, routes: Arc<Routes>, role: Role) -> Self {
        let topics = watch::Sender::new(role.topics());
        Self { transport, routes, role, topics, policy: watch::Sender::new(None) }
    }

    /// What the servers say of the group, as soon as one has.
    pub(crate) async fn policy(&self) -> GroupPolicy {
        let mut policy = self.policy.subscribe();
        let known = policy.wait_for(Option::is_some).await.expect("the sender lives as long as the session");
        known.clone().expect("that was waited for")
    }

    /// What a failure says about the route of `topic`.
    pub(crate) fn learn(&self, topic: &str, error: &ClientError) {
        if error.code() == Some(v2::Code::TopicNotFound) {
            self.routes.denied(topic);
        } else if error.is_retryable() {
            self.routes.suspect();
        }
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
        let mut is_first = true;
        loop {
            // Consumers and senders look up the rest themselves.
            if (is_first || self.role.is_asked()) && stop.run_until_cancelled(self.look_up()).await.is_none()
            {
                break;
            }
            is_first = false;
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

    /// Makes the routes known of what was named from the beginning.
    async fn look_up(&self) {
        for topic in self.role.topics() {
            if let Err(error) = self.routes.get(&topic).await {
                tracing::debug!(topic, %error, "no route");
            }
        }
    }

    /// Where the links of this session lead.
    pub(crate) fn endpoints(&self) -> BTreeSet<String> {
        let topics = self.topics.borrow();
        // A pull consumer asks for a route once. A producer may have done with a topic, a consumer has not.
        let route = |topic: &String| match self.role {
            Role::Consumer { .. } => self.routes.in_use(topic),
            Role::Producer { .. } => self.routes.known(topic),
        };
        let routes = topics.iter().filter_map(route);
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
        // They outlive a stream that breaks, and end with the link.
        let mut checks = JoinSet::new();
        let mut refused = None;
        loop {
            let error = self.telemetry_stream(endpoint, &mut checks).await.err();
            let refusal = error.clone().filter(|error| error.code().is_some());
            match (error, &refusal) {
                // Nothing comes to a consumer whose settings are refused, and no other call tells the reason.
                (_, Some(error)) if refused != refusal => {
                    tracing::error!(%error, "a server refuses the settings of this client");
                }
                (Some(error), _) => tracing::debug!(%error, "telemetry stream ended"),
                (None, _) => {}
            }
            refused = refusal;
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
    }

    async fn telemetry_stream(&self, endpoint: &str, checks: &mut JoinSet<()>) -> Result<(), ClientError> {
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
                    Ok(Some(received)) => self.obey(endpoint, received, checks)?,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(ClientError::transport(endpoint, timeout, &status)),
                },
                Some(ended) = checks.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "the checker of transactions failed; the server asks again");
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

    /// What a server wants. The commands that are not here ask for what a client may leave undone.
    fn obey(
        &self,
        endpoint: &str,
        received: v2::TelemetryCommand,
        checks: &mut JoinSet<()>,
    ) -> Result<(), ClientError> {
        match received.command {
            Some(Command::Settings(settings)) => {
                if received.status.is_some() {
                    ClientError::of_status(endpoint, received.status)?;
                }
                if let Some(policy) = GroupPolicy::of(&settings) {
                    self.policy.send_replace(Some(policy));
                }
            }
            Some(Command::RecoverOrphanedTransactionCommand(command)) => {
                let Role::Producer { checker: Some(checker), .. } = &self.role else { return Ok(()) };
                if checks.len() == CHECKS_MAX {
                    tracing::warn!("the checker of transactions is slow; the server asks again");
                    return Ok(());
                }
                checks.spawn(checker.clone().answer(self.transport.clone(), endpoint.to_owned(), command));
            }
            _ => {}
        }
        Ok(())
    }

    fn settings(&self, topics: &BTreeSet<String>) -> v2::TelemetryCommand {
        let settings = self.role.settings(topics, &self.transport);
        v2::TelemetryCommand { status: None, command: Some(Command::Settings(settings)) }
    }
}
