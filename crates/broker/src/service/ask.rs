//! Questions to a client that is connected to this broker: its threads, and how it consumes a message.

use std::time::Duration;

use karman_remoting::clients::{AskError, CommandError};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::ask_client_request::Question;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, Code};
use karman_remoting::status::{Rejection, ok};
use prost::Message as _;

use crate::broker::Broker;
use crate::service::delivery;

/// How long a client may think. The door that asks waits a little longer.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);

impl Broker {
    /// What a client answers; its own refusal is passed on as it is.
    pub async fn ask_client(
        &self,
        request: v1::AskClientRequest,
    ) -> Result<v1::AskClientResponse, Rejection> {
        let client_id = request.client_id;
        let asked = match request.question {
            Some(Question::Threads(_)) => {
                let question =
                    |nonce| Command::PrintThreadStackTraceCommand(v2::PrintThreadStackTraceCommand { nonce });
                self.clients.ask(&client_id, ASK_TIMEOUT, question).await
            }
            Some(Question::Consume(message)) => {
                let message = Some(consumable(&message)?);
                let question =
                    |nonce| Command::VerifyMessageCommand(v2::VerifyMessageCommand { nonce, message });
                self.clients.ask(&client_id, ASK_TIMEOUT, question).await
            }
            None => return Err(Rejection::BadRequest("it is not said what the client is asked".to_owned())),
        };
        let answer = asked.map_err(|error| refused(client_id, error))?;
        let text = match answer.command {
            Some(Command::ThreadStackTrace(trace)) => trace.thread_stack_trace.unwrap_or_default(),
            _ => String::new(),
        };
        // Some clients leave it out when all is well.
        let status = answer.status.filter(|status| status.code() != Code::Unspecified).unwrap_or_else(ok);
        Ok(v1::AskClientResponse { status: Some(status), text })
    }
}

/// A stored message with what every client reads of a delivered one.
fn consumable(message: &[u8]) -> Result<v2::Message, Rejection> {
    let corrupted =
        |error: prost::DecodeError| Rejection::MessageCorrupted { index: 0, why: error.to_string() };
    let mut message = v2::Message::decode(message).map_err(corrupted)?;
    let digest = delivery::digest(&message.body);
    let system = message.system_properties.get_or_insert_default();
    system.body_digest = Some(digest);
    system.delivery_attempt = Some(1);
    Ok(message)
}

fn refused(client_id: String, error: AskError) -> Rejection {
    match error {
        AskError::Command(CommandError::NotConnected(_)) | AskError::Closed(_) => {
            Rejection::ClientNotConnected { client_id }
        }
        AskError::TooMany => Rejection::TooManyRequests(error.to_string()),
        AskError::Command(_) | AskError::NoAnswer { .. } => {
            Rejection::ClientSilent { client_id, why: error.to_string() }
        }
    }
}
