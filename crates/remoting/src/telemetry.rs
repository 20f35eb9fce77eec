//! One telemetry stream: the client's settings in, complete settings and the server's commands out.
//!
//! Every Settings command is answered, promptly and in order: several SDKs wait for the answer without a deadline. The
//! stream is driven by the connection that reads it; there is no task to lose.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

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
    stopping: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.clients.closed(&self.caller.client_id, &self.sender);
    }
}

/// Serves one stream until the client ends it or `stopping` is cancelled.
pub fn serve(
    caller: Caller,
    request: Request<Streaming<TelemetryCommand>>,
    clients: Arc<ClientRegistry>,
    routes: SharedRoutes,
    stopping: CancellationToken,
) -> CommandStream {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let (address, inbound) = (request.remote_addr(), request.into_inner());
    let session = Session { caller, address, inbound, commands, sender, clients, routes, stopping };
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
