//! EndTransaction: the producer of a half message says what becomes of it.
//!
//! Whoever decides claims the half message first: two that decide at once make one decision, and the other is answered by
//! it. The decision goes on in a task of its own when its caller does not wait: what was begun must not stay claimed. What
//! nobody decides is the matter of `transaction/checks.rs`.

pub mod checks;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use karman_remoting::proto::v2::{self, MessageType, TransactionResolution};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::TransactionId;
use karman_remoting::validate;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::held::Claim;
use crate::held::deliver::settled_record;
use crate::held::halves::Half;
use crate::held::history::Outcome;
use crate::records::Settled;
use crate::refuse;

/// What a producer may decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Commit,
    RollBack,
}

impl Decision {
    /// Whether the transaction has become what was asked for.
    fn is_met_by(self, outcome: &Outcome) -> Result<(), Rejection> {
        let why = match (outcome, self) {
            (Outcome::Committed, Self::Commit) | (Outcome::RolledBack, Self::RollBack) => return Ok(()),
            (Outcome::Committed, Self::RollBack) => "its transaction was committed already",
            (Outcome::RolledBack, Self::Commit) => "its transaction was rolled back already",
            (Outcome::GivenUp, _) => {
                "nobody decided its transaction in time; its message is in TRANS_CHECK_MAX_TIME_TOPIC"
            }
            (Outcome::Dropped, _) => "its message was lost to damage or with its topic",
            (Outcome::Recalled(_), _) => "it is of a delayed message",
        };
        Err(Rejection::InvalidTransactionId { why })
    }
}

impl Broker {
    /// Commits a transaction or rolls it back; doing so again has the same answer.
    pub async fn end_transaction(
        self: &Arc<Self>,
        request: v2::EndTransactionRequest,
    ) -> Result<v2::EndTransactionResponse, Rejection> {
        let (topic, half_id) = self.ended_half(&request)?;
        let decision = match TransactionResolution::try_from(request.resolution) {
            Ok(TransactionResolution::Commit) => Some(Decision::Commit),
            Ok(TransactionResolution::Rollback) => Some(Decision::RollBack),
            // Some clients say so that they do not know yet; they are asked again.
            Ok(TransactionResolution::Unspecified) => None,
            Err(_) => {
                return Err(Rejection::BadRequest(format!(
                    "{} is no resolution of a transaction; it is 1 (COMMIT), 2 (ROLLBACK) or 0 (not decided)",
                    request.resolution
                )));
            }
        };
        if let Some(decision) = decision {
            self.within_flush_timeout(self.decide(&topic, half_id, &request.message_id, decision)).await?;
        }
        Ok(v2::EndTransactionResponse { status: Some(ok()) })
    }

    fn ended_half(&self, request: &v2::EndTransactionRequest) -> Result<(Arc<Topic>, u64), Rejection> {
        let topic = self.topic(validate::topic_of(request.topic.as_ref())?)?;
        let invalid = |why| Rejection::InvalidTransactionId { why };
        if topic.message_type() != MessageType::Transaction {
            return Err(invalid("the topic takes no TRANSACTION messages"));
        }
        if request.transaction_id.trim().is_empty() {
            return Err(invalid("it is blank"));
        }
        let id = TransactionId::decode_verified(&self.token_key, &request.transaction_id)
            .map_err(|_| invalid("it is not an id that this broker made"))?;
        if id.broker != self.name {
            return Err(invalid("it is of another broker"));
        }
        if id.topic_id != topic.number {
            return Err(invalid("it is of a message of another topic"));
        }
        Ok((topic, id.half_id))
    }

    async fn decide(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        half_id: u64,
        message_id: &str,
        decision: Decision,
    ) -> Result<(), Rejection> {
        loop {
            let settled = self.held.settled();
            match self.held.claim_half(half_id) {
                Claim::Yours(half) => {
                    let (broker, topic, message_id) = (self.clone(), topic.clone(), message_id.to_owned());
                    let task = tokio::spawn(async move {
                        let decided = broker.carry_out(&topic, half_id, half, &message_id, decision).await;
                        if decided.is_err() {
                            broker.held.release_half(half_id);
                        }
                        decided
                    });
                    return task.await.unwrap_or_else(|error| Err(Rejection::Internal(error.to_string())));
                }
                Claim::Others => settled.await,
                Claim::Ended(outcome) => return decision.is_met_by(&outcome),
                Claim::Unknown => {
                    let why = "its transaction was ended so long ago that it is not known any more";
                    return Err(Rejection::InvalidTransactionId { why });
                }
            }
        }
    }

    /// Decides a claimed half message. An empty `message_id` is that of every message.
    async fn carry_out(
        self: &Arc<Self>,
        topic: &Topic,
        half_id: u64,
        half: Half,
        message_id: &str,
        decision: Decision,
    ) -> Result<(), Rejection> {
        let held = self.held_message(half.at).await?;
        if !message_id.is_empty() && held.message.system_properties.message_id != message_id {
            let why = "it is of a message with another message id";
            return Err(Rejection::InvalidTransactionId { why });
        }
        let counters = &self.held.counters;
        let (record, counter) = match decision {
            Decision::Commit => (held.released(topic.next_queue().1), &counters.committed),
            Decision::RollBack => {
                let settled = Settled { rolled_back: vec![half_id], ..Default::default() };
                (settled_record(&settled), &counters.rolled_back)
            }
        };
        let append = self.store.append(vec![record], self.durability_of(topic)).map_err(refuse::append)?;
        append.await.map_err(refuse::append)?;
        counter.fetch_add(1, Ordering::Relaxed);
        if decision == Decision::Commit {
            counters.finished.add(self.clock.latest_ms().saturating_sub(half.stored_ms), 1);
        }
        Ok(())
    }
}
