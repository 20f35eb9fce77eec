//! What is known of one client.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::groups::{Filter, Subscriptions};
use super::{CLIENT_EXPIRY, CommandSender, Kind};
use crate::metadata::Language;
use crate::proto::karman as v1;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::telemetry_command::Command;
use crate::proto::v2::{ClientType, FilterExpression, Settings, TelemetryCommand};
use crate::route_table::RouteTable;
use crate::settings;
use crate::status::ok;
use crate::validate::shortened;

/// A client that was heard from lately. What has a name is bounded by who writes it: the registry.
#[derive(Debug, Default)]
pub(super) struct Client {
    /// Milliseconds since the registry was made; an atomic, so that a call only reads the map.
    pub(super) heard_ms: AtomicU64,
    pub(super) client_type: ClientType,
    pub(super) language: Language,
    version: String,
    host: String,
    address: Option<SocketAddr>,
    pub(super) group: Option<Arc<str>>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) publishing: BTreeSet<Arc<str>>,
    pub(super) stream: Option<Stream>,
}

/// The telemetry stream of a client, as long as it is open.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) commands: CommandSender,
    /// What the client sent last; answered anew when its group changes.
    sent: Settings,
    pub(super) answer: TelemetryCommand,
    /// Settings go out once more at the first heartbeat: the Node SDK may have missed the first answer.
    pub(super) is_repeated: bool,
}

impl Stream {
    pub(super) fn new(
        commands: CommandSender,
        language: Language,
        sent: Settings,
        is_repeated: bool,
        routes: &RouteTable,
    ) -> Self {
        let answer = answer(&sent, language, routes);
        Self { commands, sent, answer, is_repeated }
    }

    /// Answers the client's settings anew if the answer has changed.
    pub(super) fn settle(&mut self, language: Language, routes: &RouteTable) {
        let answer = answer(&self.sent, language, routes);
        // One that does not read is answered when it sends its settings again.
        if answer != self.answer && self.commands.try_send(Ok(answer.clone())).is_ok() {
            self.answer = answer;
        }
    }
}

/// The whole answer to a client's Settings.
pub(super) fn answer(sent: &Settings, language: Language, routes: &RouteTable) -> TelemetryCommand {
    let settings = settings::answer(sent, language, routes);
    TelemetryCommand { status: Some(ok()), command: Some(Command::Settings(settings)) }
}

impl Client {
    /// One that was heard from just now, for the first time.
    pub(super) fn new(now_ms: u64) -> Self {
        Self { heard_ms: AtomicU64::new(now_ms), ..Self::default() }
    }

    /// Notes who the client says it is.
    pub(super) fn introduce(&mut self, sent: &Settings, language: Language, address: Option<SocketAddr>) {
        // Not all say it; what they publish or subscribe to does.
        self.client_type = match (sent.client_type(), &sent.pub_sub) {
            (ClientType::Unspecified, Some(PubSub::Publishing(_))) => ClientType::Producer,
            (said, _) => said,
        };
        self.language = language;
        let agent = sent.user_agent.as_ref();
        self.version = agent.map(|agent| shortened(&agent.version)).unwrap_or_default();
        self.host = agent.map(|agent| shortened(&agent.hostname)).unwrap_or_default();
        self.address = address;
    }

    /// Whether it is known that the client subscribes so.
    pub(super) fn subscribes(&self, group: &str, topic: &str, filter: Option<&FilterExpression>) -> bool {
        self.group.as_deref() == Some(group)
            && self.subscriptions.topics.get(topic).is_some_and(|known| known.is(filter))
    }

    pub(super) fn is_open(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| !stream.commands.is_closed())
    }

    /// As operators see it. `heard_ms` counts from 1970.
    pub(super) fn state(&self, client_id: &str, heard_ms: u64) -> v1::ClientState {
        let address = match (self.address, self.host.as_str()) {
            (Some(address), "") => address.to_string(),
            (Some(address), host) => format!("{address} ({host})"),
            (None, host) => host.to_owned(),
        };
        let subscription = |(topic, filter): (&Arc<str>, &Filter)| v1::Subscription {
            topic: topic.to_string(),
            filter: Some(filter.expression()),
        };
        v1::ClientState {
            client_id: client_id.to_owned(),
            broker_name: String::new(),
            client_type: self.client_type.into(),
            language: self.language.as_str().to_owned(),
            version: self.version.clone(),
            address,
            heard_ms,
            group: self.group.as_deref().unwrap_or_default().to_owned(),
            subscriptions: self.subscriptions.topics.iter().map(subscription).collect(),
            publishing: self.publishing.iter().map(|topic| topic.to_string()).collect(),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        Kind {
            client_type: self.client_type,
            language: self.language.as_str(),
            version: self.version.clone(),
            group: self.group.as_deref().map(str::to_owned),
        }
    }

    /// Whether it was silent for too long at `now_ms`, which counts like [`Self::heard_ms`].
    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        u128::from(now_ms.saturating_sub(self.heard_ms())) > CLIENT_EXPIRY.as_millis()
    }

    pub(super) fn heard_ms(&self) -> u64 {
        self.heard_ms.load(Ordering::Relaxed)
    }
}
