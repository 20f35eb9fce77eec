//! The clients of this node, by the id in `x-mq-client-id`.
//!
//! A client lives as long as it is heard from, by any call: telemetry streams break and some SDKs never open them again,
//! so nothing may depend on a stream. What it subscribes to and publishes is taken from its settings and from what it
//! does. Called from every data thread; no lock is held longer than one look-up, except while clients come and go.
//! Locks are taken in this order: the route table's, the index', one of the clients'.

mod client;
mod commands;
mod groups;
mod index;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;
use dashmap::mapref::one::RefMut;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tonic::Status;

use self::client::{Client, Stream};
use self::commands::Pending;
pub use self::commands::{AskError, CommandError};
use self::index::Index;
use crate::metadata::Caller;
use crate::proto::karman as v1;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::{ClientType, FilterExpression, Settings, TelemetryCommand};
use crate::route_table::{GroupsChanged, SharedRoutes};

/// A client that was silent this long is gone. The Rust SDK's heartbeats come every 30 s; three may get lost.
pub const CLIENT_EXPIRY: Duration = Duration::from_secs(120);
/// More clients than this are served but not remembered: their messages are not renewed for them.
const CLIENTS_MAX: usize = 200_000;
/// Topics that are remembered of one client.
const TOPICS_MAX: usize = 4096;
/// Longest name that is remembered: no group and no topic has a longer one.
const NAME_MAX_BYTES: usize = 255;
/// Longest filter that is remembered, in bytes.
const FILTER_MAX_BYTES: usize = 16 * 1024;

/// Kinds of clients that are told apart.
const KINDS_MAX: usize = 10_000;

/// What clients are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Producer, or which consumer; unspecified until it says so.
    pub client_type: ClientType,
    /// The language of its SDK, as people call it.
    pub language: &'static str,
    /// That of its SDK, as it says itself.
    pub version: String,
    /// Of a consumer: its group.
    pub group: Option<String>,
}

/// Where commands to a client are written; the telemetry stream of the client reads them.
pub type CommandSender = mpsc::Sender<Result<TelemetryCommand, Status>>;

/// All clients that were heard from lately.
#[derive(Debug)]
pub struct ClientRegistry {
    clients: DashMap<String, Client>,
    /// Who is in which group, and who publishes what; changes only when a client does.
    index: RwLock<Index>,
    pending: Pending,
    started: Instant,
}

impl Default for ClientRegistry {
    fn default() -> Self {
        Self {
            clients: DashMap::new(),
            index: RwLock::default(),
            pending: Pending::default(),
            started: Instant::now(),
        }
    }
}

/// What clients do.
impl ClientRegistry {
    /// A client was heard from.
    pub fn heard(&self, client_id: &str) {
        let now_ms = self.now_ms();
        if let Some(client) = self.clients.get(client_id) {
            client.heard_ms.store(now_ms, Ordering::Relaxed);
        } else {
            self.client(client_id);
        }
    }

    /// A client opened a stream, or sent its settings anew on it. Gives the answer, which is repeated and corrected down
    /// the stream where that is needed.
    pub(crate) fn opened(
        &self,
        caller: &Caller,
        address: Option<SocketAddr>,
        commands: CommandSender,
        sent: Settings,
        routes: &SharedRoutes,
    ) -> TelemetryCommand {
        // A group that changes from here on finds the stream registered.
        let routes = routes.read();
        let mut index = self.index.write();
        let Some(mut client) = self.client(&caller.client_id) else {
            return client::answer(&sent, caller.language, &routes);
        };
        client.introduce(&sent, caller.language, address);
        match &sent.pub_sub {
            Some(PubSub::Publishing(publishing)) => {
                for topic in &publishing.topics {
                    index.publishes(&caller.client_id, &mut client, &topic.name);
                }
            }
            Some(PubSub::Subscription(said)) => index.announced(&caller.client_id, &mut client, said),
            None => {}
        }
        let is_repeated = client.stream.as_ref().is_some_and(|stream| stream.is_repeated);
        let stream = Stream::new(commands, caller.language, sent, is_repeated, &routes);
        let answer = stream.answer.clone();
        client.stream = Some(stream);
        answer
    }

    /// A client's heartbeat, with what it says of itself.
    pub fn heartbeat(&self, client_id: &str, client_type: ClientType, group: &str) {
        self.heard(client_id);
        let Some(client) = self.clients.get(client_id) else { return };
        let is_introduced =
            client.client_type != ClientType::Unspecified || client_type == ClientType::Unspecified;
        let is_member = client.group.is_some() || group.is_empty();
        let is_answered = client.stream.as_ref().is_none_or(|stream| stream.is_repeated);
        drop(client);
        if is_introduced && is_member && is_answered {
            return;
        }
        let mut index = self.index.write();
        let Some(mut client) = self.client(client_id) else { return };
        if !is_introduced {
            client.client_type = client_type;
        }
        if client.group.is_none() && !group.is_empty() {
            index.joins(client_id, &mut client, group);
        }
        if let Some(stream) = client.stream.as_mut().filter(|stream| !stream.is_repeated) {
            stream.is_repeated = true;
            // A full channel means the client is not reading; its next settings come from its own re-sync.
            let _ = stream.commands.try_send(Ok(stream.answer.clone()));
        }
    }

    /// A client sends to `topic`, which exists.
    pub fn publishes(&self, client_id: &str, topic: &str) {
        let is_settled = self
            .clients
            .get(client_id)
            .is_some_and(|client| client.publishing.contains(topic) || client.publishing.len() >= TOPICS_MAX);
        if is_settled || topic.len() > NAME_MAX_BYTES || self.is_full_for(client_id) {
            return;
        }
        let mut index = self.index.write();
        if let Some(mut client) = self.client(client_id) {
            index.publishes(client_id, &mut client, topic);
        }
    }

    /// A client receives from `topic`, which exists, for `group`.
    pub fn subscribed(&self, client_id: &str, group: &str, topic: &str, filter: Option<&FilterExpression>) {
        let is_known =
            self.clients.get(client_id).is_some_and(|client| client.subscribes(group, topic, filter));
        let filter_bytes = filter.map_or(0, |filter| filter.expression.len());
        if is_known
            || group.len().max(topic.len()) > NAME_MAX_BYTES
            || filter_bytes > FILTER_MAX_BYTES
            || self.is_full_for(client_id)
        {
            return;
        }
        let mut index = self.index.write();
        if let Some(mut client) = self.client(client_id) {
            index.subscribed(client_id, &mut client, group, topic, filter);
        }
    }

    /// A client said that it stops.
    pub fn terminated(&self, client_id: &str) {
        let mut index = self.index.write();
        if let Some((_, client)) = self.clients.remove(client_id) {
            index.left(client_id, &client);
        }
        self.pending.closed(client_id);
    }

    /// A stream ended; the client itself may live on.
    pub(crate) fn closed(&self, client_id: &str, commands: &CommandSender) {
        if let Some(mut client) = self.clients.get_mut(client_id)
            && client.stream.as_ref().is_some_and(|stream| stream.commands.same_channel(commands))
        {
            client.stream = None;
            self.pending.closed(client_id);
        }
    }

    /// Forgets the clients that are gone, and logs which groups have come to contradict themselves or to agree again;
    /// called every few seconds.
    pub fn expire(&self) {
        self.expire_at(self.now_ms());
    }

    fn expire_at(&self, now_ms: u64) {
        let expired = self.clients.iter().filter(|client| client.is_expired(now_ms));
        let expired: Vec<String> = expired.map(|client| client.key().clone()).collect();
        let mut index = self.index.write();
        for client_id in expired {
            // It may have been heard from just now.
            let gone = self.clients.remove_if(&client_id, |_, client| client.is_expired(now_ms));
            if let Some((_, client)) = gone {
                index.left(&client_id, &client);
            }
        }
        index.report();
    }

    /// Answers the settings of the members of changed groups anew.
    pub(crate) fn groups_changed(&self, routes: &SharedRoutes, changed: &GroupsChanged) {
        let members: Vec<String> = match changed {
            GroupsChanged::Some(groups) => {
                let index = self.index.read();
                let members = groups.iter().filter_map(|group| index.groups.get(group.as_str()));
                members.flat_map(|group| group.members()).map(|id| id.to_string()).collect()
            }
            GroupsChanged::Any => {
                let consumers = self.clients.iter().filter(|client| client.group.is_some());
                consumers.map(|client| client.key().clone()).collect()
            }
        };
        for client_id in members {
            // Locked for each anew: a data thread that needs the routes does not wait for thousands of answers.
            let routes = routes.read();
            let Some(mut client) = self.clients.get_mut(&client_id) else { continue };
            let language = client.language;
            if let Some(stream) = &mut client.stream {
                stream.settle(language, &routes);
            }
        }
    }

    /// The entry of a client, made if there is room. The index' lock comes before it.
    fn client(&self, client_id: &str) -> Option<RefMut<'_, String, Client>> {
        if let Some(client) = self.clients.get_mut(client_id) {
            return Some(client);
        }
        if self.is_full_for(client_id) {
            return None;
        }
        Some(self.clients.entry(client_id.to_owned()).or_insert_with(|| Client::new(self.now_ms())))
    }

    /// A client that is not remembered costs no lock of the index.
    fn is_full_for(&self, client_id: &str) -> bool {
        !self.clients.contains_key(client_id) && self.clients.len() >= CLIENTS_MAX
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What is known of them.
impl ClientRegistry {
    /// Whether the client was heard from within [`CLIENT_EXPIRY`].
    pub fn is_alive(&self, client_id: &str) -> bool {
        self.clients.get(client_id).is_some_and(|client| !client.is_expired(self.now_ms()))
    }

    /// How many clients there are of each kind. Of kinds there are at most 10,000; what is beyond has the version "other".
    pub fn kinds(&self) -> HashMap<Kind, i64> {
        let mut kinds = HashMap::new();
        for client in &self.clients {
            let mut kind = client.kind();
            if kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind) {
                (kind.version, kind.group) = ("other".to_owned(), None);
            }
            *kinds.entry(kind).or_insert(0) += 1;
        }
        kinds
    }

    /// How many clients are remembered.
    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// What a client is; unspecified until it says so.
    pub fn client_type(&self, client_id: &str) -> Option<ClientType> {
        self.clients.get(client_id).map(|client| client.client_type)
    }

    /// One client, as operators see it; the node's name is left out.
    pub fn of(&self, client_id: &str) -> Option<v1::ClientState> {
        let client = self.clients.get(client_id)?;
        let silent = Duration::from_millis(self.now_ms().saturating_sub(client.heard_ms()));
        let heard = SystemTime::now().checked_sub(silent)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(client.state(client_id, u64::try_from(heard.as_millis()).unwrap_or(u64::MAX)))
    }

    /// All clients, by id.
    pub fn clients(&self) -> Vec<v1::ClientState> {
        self.states(self.clients.iter().map(|client| client.key().clone()).collect())
    }

    /// The members of a consumer group, by client id.
    pub fn members(&self, group: &str) -> Vec<v1::ClientState> {
        let members = {
            let index = self.index.read();
            let group = index.groups.get(group);
            group.into_iter().flat_map(|group| group.members()).map(|id| id.to_string()).collect()
        };
        self.states(members)
    }

    fn states(&self, mut client_ids: Vec<String>) -> Vec<v1::ClientState> {
        client_ids.sort_unstable();
        client_ids.iter().filter_map(|client_id| self.of(client_id)).collect()
    }

    /// What the members of a group disagree about, one sentence for each topic.
    pub fn contradictions(&self, group: &str) -> Vec<String> {
        self.index.read().groups.get(group).map_or_else(Vec::new, |group| group.judgement().words())
    }

    /// In what a member of `group` is contradicted about `topic` by another. Cheap: worked out again only after a member
    /// has changed.
    pub fn contradicts(&self, group: &str, topic: &str, client_id: &str) -> Option<String> {
        self.index.read().groups.get(group)?.contradiction(topic, client_id)
    }
}

#[cfg(test)]
mod tests;
