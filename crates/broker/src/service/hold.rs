//! What becomes of a message that a producer sends: it is visible at once, or held until its time comes or its transaction
//! is decided. Pure but for the clock and the ids it draws.

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2::MessageType;
use karman_remoting::status::Rejection;
use karman_remoting::token::{RecallHandle, TransactionId};
use karman_store::{NewRecord, QueueNumber, RecordKind};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::records::{HeldHead, Hold};
use crate::service::send;

/// Held messages of one broker: each costs memory.
const HELD_MAX: usize = 20_000_000;
/// A producer may ask for at most one hour before it is asked about a transaction.
const RECOVERY_MAX_MS: u64 = 3_600_000;

/// What a producer gets back for a message besides its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Its place in the queue: it is visible.
    Queued,
    /// A delayed message can be recalled with this.
    RecallHandle(String),
    /// A transaction is ended with this.
    TransactionId(String),
}

impl Broker {
    /// The record of a message, for `queue` if it is visible at once. `index` is its number in the request.
    pub fn record_of(
        &self,
        index: usize,
        message: &EncodedMessage,
        queue: QueueNumber,
        topic: &Topic,
    ) -> Result<(NewRecord, Receipt), Rejection> {
        let record = send::record(message, queue, topic.number);
        let (hold, due_ms) = match topic.message_type() {
            MessageType::Delay => match self.delivery_ms(index, message)? {
                Some(due_ms) => (Hold::Timer, due_ms),
                None => return Ok((record, Receipt::Queued)),
            },
            MessageType::Transaction => (Hold::Half, self.first_check_ms(index, message)?),
            _ => return Ok((record, Receipt::Queued)),
        };
        let (timers, halves) = self.held.counts();
        if timers + halves >= HELD_MAX {
            return Err(Rejection::TooManyRequests(format!(
                "this broker holds {HELD_MAX} messages back, the most it takes"
            )));
        }
        let head = HeldHead { id: rand::random(), due_ms, topic: topic.number, hold };
        let payload = head.before(&message.bytes);
        Ok((NewRecord { kind: RecordKind::Held, queue: None, payload, ..record }, self.receipt(&head)))
    }

    /// When a message is to be delivered; `None`: now.
    fn delivery_ms(&self, index: usize, message: &EncodedMessage) -> Result<Option<u64>, Rejection> {
        let Some(at) = &message.system_properties.delivery_timestamp else { return Ok(None) };
        // Rounded up: it must not appear early.
        let millis = (i64::from(at.nanos) + 999_999) / 1_000_000;
        let at_ms = at.seconds.saturating_mul(1000).saturating_add(millis);
        let (due_ms, now_ms) = (u64::try_from(at_ms).unwrap_or(0), self.clock.now_ms());
        let millis_ahead = due_ms.saturating_sub(now_ms);
        if millis_ahead > self.limits.delay_max_ms {
            let limit = self.limits.delay_max_ms;
            return Err(Rejection::IllegalDeliveryTime { index, millis_ahead, limit });
        }
        Ok((millis_ahead > 0).then_some(due_ms))
    }

    /// When a producer is asked about a half message for the first time.
    fn first_check_ms(&self, index: usize, message: &EncodedMessage) -> Result<u64, Rejection> {
        let asked = message.system_properties.orphaned_transaction_recovery_duration.as_ref();
        let patience_ms = match asked.map(|asked| {
            asked.seconds.saturating_mul(1000).saturating_add(i64::from(asked.nanos) / 1_000_000)
        }) {
            None | Some(0) => self.limits.transaction_timeout_ms,
            Some(ms) => u64::try_from(ms).ok().filter(|ms| *ms <= RECOVERY_MAX_MS).ok_or_else(|| {
                Rejection::BadRequest(format!(
                    "the orphaned transaction recovery duration of message {index} is {ms} ms, allowed are 0 to {RECOVERY_MAX_MS}"
                ))
            })?,
        };
        Ok(self.clock.now_ms() + patience_ms)
    }

    fn receipt(&self, head: &HeldHead) -> Receipt {
        let (broker, topic_id) = (self.name.clone(), head.topic);
        match head.hold {
            Hold::Timer => {
                let handle = RecallHandle { broker, topic_id, timer_id: head.id, deliver_ms: head.due_ms };
                Receipt::RecallHandle(handle.encode(&self.token_key))
            }
            Hold::Half | Hold::GivenUp => {
                Receipt::TransactionId(self.transaction_id(head).encode(&self.token_key))
            }
        }
    }

    /// What stands for a transaction towards producers.
    pub fn transaction_id(&self, head: &HeldHead) -> TransactionId {
        let (broker, topic_id) = (self.name.clone(), head.topic);
        TransactionId { broker, topic_id, half_id: head.id, check_ms: head.due_ms }
    }
}
