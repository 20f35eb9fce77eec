//! One telemetry stream: the client's settings in, complete settings and the server's commands out.
//!
//! Every Settings command is answered, promptly and in order: several SDKs wait for the answer without a deadline. The
//! stream is driven by the connection that reads it; there is no task to lose.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

use crate::auth::{self, Auth, Who};
use crate::clients::{ClientRegistry, CommandSender};
use crate::metadata::Caller;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::telemetry_command::Command;
use crate::proto::v2::{Resource, Settings, TelemetryCommand};
use crate::route_table::SharedRoutes;
use crate::status::Rejection;
use crate::{settings, validate};

/// Commands that may wait for a client that does not read.
const COMMANDS_MAX: usize = 64;
/// Topics and subscriptions of one client.
const NAMES_MAX: usize = 4096;
/// They are kept as long as the stream is open.
const SETTINGS_MAX_BYTES: usize = 256 * 1024;

/// What a door's response stream of commands is.
pub type CommandStream = tonic::codegen::BoxStream<TelemetryCommand>;

struct Session {
    caller: Caller,
    address: Option<SocketAddr>,
    inbound: Streaming<TelemetryCommand>,
    commands: mpsc::Receiver<Result<TelemetryCommand, Status>>,
    sender: CommandSender,
    clients: Arc<ClientRegistry>,
    routes: SharedRoutes,
    guard: Guard,
    stopping: CancellationToken,
}

/// Who is at the other end, and what it said it wants: users change while a stream is open.
struct Guard {
    auth: Auth,
    who: Who,
    settings: Option<Settings>,
    changes: watch::Receiver<u64>,
}

impl Guard {
    /// Refuses settings of things that the user may not use.
    fn check(&mut self, sent: &Settings, address: Option<SocketAddr>) -> Result<(), Status> {
        self.auth.allow(&self.who, sent, address).map_err(|rejection| refused(&rejection))?;
        if matches!(self.who, Who::User(_)) {
            self.settings = Some(sent.clone());
        }
        Ok(())
    }

    /// Returns when the user may not have this stream any more.
    async fn revoked(&mut self, address: Option<SocketAddr>) -> Status {
        loop {
            if self.changes.changed().await.is_err() {
                // The door and its users live as long as the node.
                std::future::pending::<()>().await;
            }
            let settings = self.settings.clone().unwrap_or_default();
            if let Err(rejection) = self.auth.still_allows(&self.who, &settings, address) {
                return refused(&rejection);
            }
        }
    }
}

/// A stream has no body to refuse in.
pub(crate) fn refused(rejection: &Rejection) -> Status {
    match rejection {
        Rejection::Unauthorized(text) => Status::unauthenticated(text),
        other => Status::invalid_argument(other.to_string()),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.clients.closed(&self.caller.client_id, &self.sender);
    }
}

/// Serves one stream of `who` until the client ends it, or may not have it any more, or `stopping` is cancelled.
pub fn serve(
    caller: Caller,
    (auth, who): (Auth, Who),
    request: Request<Streaming<TelemetryCommand>>,
    clients: Arc<ClientRegistry>,
    routes: SharedRoutes,
    stopping: CancellationToken,
) -> CommandStream {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (address, inbound) = (auth::source_of(request.extensions()), request.into_inner());
    let guard = Guard { changes: auth.users().changes(), auth, who, settings: None };
    let session = Session { caller, address, inbound, commands, sender, clients, routes, guard, stopping };
    Box::pin(futures_util::stream::unfold(Some(session), |session| async {
        let mut session = session?;
        match session.next().await? {
            Ok(command) => Some((Ok(command), Some(session))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Session {
    /// The next command for the client. Safe to drop: all arms of the `select` are.
    async fn next(&mut self) -> Option<Result<TelemetryCommand, Status>> {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                status = self.guard.revoked(self.address) => return Some(Err(status)),
                command = self.commands.recv() => return command,
                received = self.inbound.message() => match received {
                    Ok(Some(command)) => {
                        if let Some(answer) = self.receive(command) {
                            return Some(answer);
                        }
                    }
                    // Ended, or broken off: the client lives on by its heartbeats.
                    Ok(None) | Err(_) => return None,
                },
            }
        }
    }

    fn receive(&mut self, command: TelemetryCommand) -> Option<Result<TelemetryCommand, Status>> {
        self.clients.heard(&self.caller.client_id);
        let Some(Command::Settings(sent)) = command.command else {
            self.clients.answered(&self.caller.client_id, command);
            return None;
        };
        if let Err(rejection) = check(&sent, &self.routes) {
            return Some(Err(Status::invalid_argument(rejection.to_string())));
        }
        if let Err(status) = self.guard.check(&sent, self.address) {
            return Some(Err(status));
        }
        let sender = self.sender.clone();
        Some(Ok(self.clients.opened(&self.caller, self.address, sender, sent, &self.routes)))
    }
}

/// Names must be valid, and the settings must say whether the client produces or consumes, with the group for that.
fn check(sent: &Settings, routes: &SharedRoutes) -> Result<(), Rejection> {
    let size = sent.encoded_len();
    if size > SETTINGS_MAX_BYTES {
        return Err(Rejection::BadRequest(format!(
            "the settings have {size} bytes, the limit is {SETTINGS_MAX_BYTES}"
        )));
    }
    let topics = |topics: &mut dyn Iterator<Item = Option<&Resource>>| {
        for (count, topic) in topics.enumerate() {
            if count == NAMES_MAX {
                return Err(Rejection::BadRequest(format!("the settings name more than {NAMES_MAX} topics")));
            }
            validate::topic_of(topic)?;
        }
        Ok(())
    };
    match &sent.pub_sub {
        Some(PubSub::Publishing(publishing)) => topics(&mut publishing.topics.iter().map(Some)),
        Some(PubSub::Subscription(subscription)) => {
            let group = validate::group_of(subscription.group.as_ref())?;
            topics(&mut subscription.subscriptions.iter().map(|entry| entry.topic.as_ref()))?;
            let names = subscription.subscriptions.iter().flat_map(|entry| &entry.topic);
            let names = names.map(|topic| topic.name.as_str());
            settings::check_lite(sent.client_type(), routes.read().group(group), names)
        }
        None => Err(Rejection::BadRequest("the settings have neither publishing nor subscription".into())),
    }
}
