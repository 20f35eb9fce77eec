//! The clients of this node, by the id in `x-mq-client-id`.
//!
//! A client lives as long as it is heard from, by any call: telemetry streams break and some SDKs never open them again,
//! so nothing may depend on a stream. Called from every data thread; no lock is held longer than one look-up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::mpsc;
use tonic::Status;

use crate::proto::v2::TelemetryCommand;

/// A client that was silent this long is gone. The Rust SDK's heartbeats come every 30 s; three may get lost.
pub const CLIENT_EXPIRY: Duration = Duration::from_secs(120);
/// More clients than this are served but not remembered: their messages are not renewed for them.
const CLIENTS_MAX: usize = 200_000;

/// Where commands to a client are written; the telemetry stream of the client reads them.
pub type CommandSender = mpsc::Sender<Result<TelemetryCommand, Status>>;

#[derive(Debug)]
struct Client {
    /// Milliseconds since the registry was made; an atomic, so that a call only reads the map.
    heard_ms: AtomicU64,
    stream: Option<Stream>,
}

#[derive(Debug)]
struct Stream {
    commands: CommandSender,
    settings: TelemetryCommand,
    /// Settings go out once more at the first heartbeat: the Node SDK may have missed the first answer.
    repeated: bool,
}

/// All clients that were heard from lately.
#[derive(Debug)]
pub struct ClientRegistry {
    clients: DashMap<String, Client>,
    started: Instant,
}

impl Default for ClientRegistry {
    fn default() -> Self {
        Self { clients: DashMap::new(), started: Instant::now() }
    }
}

impl ClientRegistry {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A client was heard from.
    pub fn heard(&self, client_id: &str) {
        let now_ms = self.now_ms();
        if let Some(client) = self.clients.get(client_id) {
            client.heard_ms.store(now_ms, Ordering::Relaxed);
        } else if self.clients.len() < CLIENTS_MAX {
            let client = Client { heard_ms: AtomicU64::new(now_ms), stream: None };
            self.clients.entry(client_id.to_owned()).or_insert(client);
        }
    }

    /// A client opened a stream, or sent its settings anew on it; `settings` is what it was answered.
    pub fn opened(&self, client_id: &str, commands: CommandSender, settings: TelemetryCommand) {
        self.heard(client_id);
        if let Some(mut client) = self.clients.get_mut(client_id) {
            let repeated = client.stream.as_ref().is_some_and(|stream| stream.repeated);
            client.stream = Some(Stream { commands, settings, repeated });
        }
    }

    /// A client's heartbeat.
    pub fn heartbeat(&self, client_id: &str) {
        self.heard(client_id);
        if let Some(mut client) = self.clients.get_mut(client_id)
            && let Some(stream) = &mut client.stream
            && !stream.repeated
        {
            stream.repeated = true;
            // A full channel means the client is not reading; its next settings come from its own re-sync.
            let _ = stream.commands.try_send(Ok(stream.settings.clone()));
        }
    }

    /// A client said that it stops.
    pub fn terminated(&self, client_id: &str) {
        self.clients.remove(client_id);
    }

    /// A stream ended; the client itself may live on.
    pub fn closed(&self, client_id: &str, commands: &CommandSender) {
        if let Entry::Occupied(mut entry) = self.clients.entry(client_id.to_owned())
            && entry.get().stream.as_ref().is_some_and(|stream| stream.commands.same_channel(commands))
        {
            entry.get_mut().stream = None;
        }
    }

    /// Whether the client was heard from within [`CLIENT_EXPIRY`].
    pub fn is_alive(&self, client_id: &str) -> bool {
        self.clients.get(client_id).is_some_and(|client| !self.is_expired(&client))
    }

    fn is_expired(&self, client: &Client) -> bool {
        let silent_ms = self.now_ms().saturating_sub(client.heard_ms.load(Ordering::Relaxed));
        u128::from(silent_ms) > CLIENT_EXPIRY.as_millis()
    }

    /// Forgets the clients that are gone; called every few seconds.
    pub fn expire(&self) {
        self.clients.retain(|_, client| !self.is_expired(client));
    }

    /// How many clients are remembered.
    pub fn count(&self) -> usize {
        self.clients.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_repeated_once_at_the_first_heartbeat() {
        let registry = ClientRegistry::default();
        let (commands, mut received) = mpsc::channel(8);
        registry.opened("c", commands, TelemetryCommand::default());
        registry.heartbeat("c");
        registry.heartbeat("c");
        assert!(received.try_recv().is_ok());
        assert!(received.try_recv().is_err(), "repeated more than once");
    }

    #[test]
    fn a_client_outlives_its_stream_but_not_its_termination() {
        let registry = ClientRegistry::default();
        let (commands, _received) = mpsc::channel(8);
        registry.opened("c", commands.clone(), TelemetryCommand::default());
        registry.closed("c", &commands);
        assert!(registry.is_alive("c"));
        registry.terminated("c");
        assert!(!registry.is_alive("c"));
    }

    #[test]
    fn the_end_of_an_old_stream_does_not_close_the_new_one() {
        let registry = ClientRegistry::default();
        let (old, _old_received) = mpsc::channel(8);
        let (new, mut received) = mpsc::channel(8);
        registry.opened("c", old.clone(), TelemetryCommand::default());
        registry.opened("c", new, TelemetryCommand::default());
        registry.closed("c", &old);
        registry.heartbeat("c");
        assert!(received.try_recv().is_ok());
    }
}
