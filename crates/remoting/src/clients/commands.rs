//! What a node says to a client, and the answers it waits for.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{ClientRegistry, CommandSender};
use crate::metadata::Language;
use crate::proto::v2::telemetry_command::Command;
use crate::proto::v2::{ClientType, NotifyUnsubscribeLiteCommand, TelemetryCommand};

/// Questions that may wait for an answer at the same time.
const PENDING_MAX: usize = 1024;

/// Why a client is not told something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It has no telemetry stream to this node.
    #[error("client {0:?} has no telemetry stream to this node")]
    NotConnected(String),
    /// Commands for it pile up.
    #[error("client {0:?} does not read its commands")]
    NotReading(String),
    /// The command is for clients of another type.
    #[error("client {client_id:?} is a {client_type}, which does not understand this command")]
    WrongType {
        /// Who would be told.
        client_id: String,
        /// What it is.
        client_type: &'static str,
    },
}

/// Why a client's answer did not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It was not asked.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Many others are asked already.
    #[error("{PENDING_MAX} clients are being asked, the most at a time; try again later")]
    TooMany,
    /// Some SDKs ignore what they do not know.
    #[error("client {client_id:?} did not answer within {} ms", timeout.as_millis())]
    NoAnswer {
        /// Who was asked.
        client_id: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The stream ended before the answer.
    #[error("client {0:?} closed its telemetry stream before it answered")]
    Closed(String),
}

/// Questions to clients, by nonce.
#[derive(Debug, Default)]
pub(super) struct Pending {
    asked: Mutex<HashMap<String, Question>>,
}

#[derive(Debug)]
struct Question {
    client_id: String,
    answer: oneshot::Sender<TelemetryCommand>,
}

impl Pending {
    /// The stream of a client ended: nobody answers any more.
    pub(super) fn closed(&self, client_id: &str) {
        self.asked.lock().retain(|_, question| question.client_id != client_id);
    }
}

/// Takes its question back when it is dropped, answered or not.
struct Asked<'a> {
    pending: &'a Pending,
    nonce: String,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.pending.asked.lock().remove(&self.nonce);
    }
}

impl ClientRegistry {
    /// Sends a command down a client's stream. Never waits.
    pub fn command(&self, client_id: &str, command: TelemetryCommand) -> Result<(), CommandError> {
        let not_connected = || CommandError::NotConnected(client_id.to_owned());
        let client = self.clients.get(client_id).ok_or_else(not_connected)?;
        let stream = client.stream.as_ref().ok_or_else(not_connected)?;
        stream.commands.try_send(Ok(command)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::NotReading(client_id.to_owned()),
            mpsc::error::TrySendError::Closed(_) => not_connected(),
        })
    }

    /// Asks a client something that it answers with the same nonce: its threads, or how it consumes a message. `make`
    /// is given the nonce. What comes back carries the client's `status`.
    pub async fn ask(
        &self,
        client_id: &str,
        timeout: Duration,
        make: impl FnOnce(String) -> Command,
    ) -> Result<TelemetryCommand, AskError> {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let (reply, answer) = oneshot::channel();
        let _asked = {
            let mut asked = self.pending.asked.lock();
            if asked.len() >= PENDING_MAX {
                return Err(AskError::TooMany);
            }
            asked.insert(nonce.clone(), Question { client_id: client_id.to_owned(), answer: reply });
            Asked { pending: &self.pending, nonce: nonce.clone() }
        };
        self.command(client_id, TelemetryCommand { status: None, command: Some(make(nonce)) })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AskError::Closed(client_id.to_owned())),
            Err(_) => Err(AskError::NoAnswer { client_id: client_id.to_owned(), timeout }),
        }
    }

    /// A client answered, perhaps too late or somebody else's question: then nothing happens.
    pub(crate) fn answered(&self, client_id: &str, answer: TelemetryCommand) {
        let nonce = match &answer.command {
            Some(Command::ThreadStackTrace(trace)) => &trace.nonce,
            Some(Command::VerifyMessageResult(result)) => &result.nonce,
            // Node says in the question's form that it cannot.
            Some(Command::VerifyMessageCommand(refusal)) => &refusal.nonce,
            _ => return,
        };
        let question = {
            let mut asked = self.pending.asked.lock();
            let is_own = asked.get(nonce).is_some_and(|question| question.client_id == client_id);
            if is_own { asked.remove(nonce) } else { None }
        };
        if let Some(question) = question {
            // Whoever asked may have stopped waiting.
            let _ = question.answer.send(answer);
        }
    }

    /// Tells a lite consumer that it lost a lite topic to another. Go panics when an ordinary consumer is told.
    pub fn notify_unsubscribe(&self, client_id: &str, lite_topic: &str) -> Result<(), CommandError> {
        match self.client_type(client_id) {
            Some(ClientType::LitePushConsumer | ClientType::LiteSimpleConsumer) => {}
            None => return Err(CommandError::NotConnected(client_id.to_owned())),
            Some(other) => {
                return Err(CommandError::WrongType {
                    client_id: client_id.to_owned(),
                    client_type: other.as_str_name(),
                });
            }
        }
        let command = NotifyUnsubscribeLiteCommand { lite_topic: lite_topic.to_owned() };
        let command = Some(Command::NotifyUnsubscribeLiteCommand(command));
        self.command(client_id, TelemetryCommand { status: None, command })
    }

    /// A live producer of `topic` with an open stream, for asking what became of a transaction: another one at each
    /// `turn`, as some cannot answer.
    pub fn producer_of(&self, topic: &str, turn: usize) -> Option<(String, CommandSender, Language)> {
        let index = self.index.read();
        let producers = &index.producers.get(topic)?.client_ids;
        (0..producers.len()).find_map(|step| {
            let client_id = &producers[turn.wrapping_add(step) % producers.len()];
            let client = self.clients.get(&**client_id)?;
            let stream = client.stream.as_ref()?;
            let can_answer = client.client_type == ClientType::Producer
                && client.is_open()
                && !client.is_expired(self.now_ms());
            can_answer.then(|| (client_id.to_string(), stream.commands.clone(), client.language))
        })
    }
}
