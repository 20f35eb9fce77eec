//! One telemetry stream: the client's settings in, complete settings and the server's commands out.
//!
//! Every Settings command is answered, promptly and in order: several SDKs wait for the answer without a deadline. The
//! stream is driven by the connection that reads it; there is no task to lose.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::clients::{ClientRegistry, CommandSender};
use crate::metadata::Caller;
use crate::proto::v2::settings::PubSub;
use crate::proto::v2::telemetry_command::Command;
use crate::proto::v2::{Resource, Settings, TelemetryCommand};
use crate::route_table::SharedRoutes;
use crate::settings::{self, DEFAULT_RETRY_MAX_TIMES};
use crate::status::{Rejection, ok};
use crate::validate;

/// Commands that may wait for a client that does not read.
const COMMANDS_MAX: usize = 64;
/// Topics and subscriptions of one client.
const NAMES_MAX: usize = 4096;

/// What a door's response stream of commands is.
pub type CommandStream = tonic::codegen::BoxStream<TelemetryCommand>;

struct Session {
    caller: Caller,
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
    inbound: Streaming<TelemetryCommand>,
    clients: Arc<ClientRegistry>,
    routes: SharedRoutes,
    stopping: CancellationToken,
) -> CommandStream {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let session = Session { caller, inbound, commands, sender, clients, routes, stopping };
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
        // The other commands answer questions that nobody asks yet.
        let Some(Command::Settings(sent)) = command.command else { return None };
        if let Err(rejection) = check(&sent) {
            return Some(Err(Status::invalid_argument(rejection.to_string())));
        }
        let retry_max_times = self.retry_max_times(&sent);
        let answer = TelemetryCommand {
            status: Some(ok()),
            command: Some(Command::Settings(settings::answer(&sent, self.caller.language, retry_max_times))),
        };
        self.clients.opened(&self.caller.client_id, self.sender.clone(), answer.clone());
        Some(Ok(answer))
    }

    fn retry_max_times(&self, sent: &Settings) -> u32 {
        let Some(PubSub::Subscription(subscription)) = &sent.pub_sub else { return DEFAULT_RETRY_MAX_TIMES };
        let group = subscription.group.as_ref().map_or("", |group| group.name.as_str());
        let known = self.routes.read().group(group).and_then(|group| group.retry_max_times);
        known.unwrap_or(DEFAULT_RETRY_MAX_TIMES)
    }
}

/// Names must be valid, and the settings must say whether the client produces or consumes.
fn check(sent: &Settings) -> Result<(), Rejection> {
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
            validate::group_of(subscription.group.as_ref())?;
            topics(&mut subscription.subscriptions.iter().map(|entry| entry.topic.as_ref()))
        }
        None => Err(Rejection::BadRequest("the settings have neither publishing nor subscription".into())),
    }
}
