//! What becomes of a message that a producer sends: it is visible at once, or held until its time comes or its transaction
//! is decided. Pure but for the clock and the ids it draws.

use karman_remoting::civil;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2::{self, MessageType};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::{RecallHandle, TransactionId};
use karman_remoting::validate::TRANSACTIONS_GIVEN_UP_TOPIC;
use karman_store::{NewRecord, Record, RecordKind};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::held::history::Outcome;
use crate::records::{HeldHead, Hold};

/// Held messages of one broker: each costs memory.
const HELD_MAX: usize = 20_000_000;
/// A producer may ask for at most one hour before it is asked about a transaction.
const RECOVERY_MAX_MS: u64 = 3_600_000;

impl Broker {
    /// Whether a message is held, and until when. `index` is its number in the request.
    pub fn hold_of(
        &self,
        index: usize,
        message: &EncodedMessage,
        topic: &Topic,
    ) -> Result<Option<HeldHead>, Rejection> {
        let (hold, due_ms) = match topic.message_type() {
            MessageType::Delay => match self.delivery_ms(index, message)? {
                Some(due_ms) => (Hold::Timer, due_ms),
                None => return Ok(None),
            },
            MessageType::Transaction => (Hold::Half, self.first_check_ms(index, message)?),
            _ => return Ok(None),
        };
        self.check_room_to_hold()?;
        Ok(Some(HeldHead { id: rand::random(), due_ms, topic: topic.number, hold }))
    }

    /// Refuses what would be held beside as many messages as may be.
    pub fn check_room_to_hold(&self) -> Result<(), Rejection> {
        let (timers, halves) = self.held.counts();
        if timers + halves < HELD_MAX {
            return Ok(());
        }
        Err(Rejection::TooManyRequests(format!(
            "this broker holds {HELD_MAX} messages back, the most it takes"
        )))
    }

    /// When a message is to be delivered; `None`: now.
    fn delivery_ms(&self, index: usize, message: &EncodedMessage) -> Result<Option<u64>, Rejection> {
        let Some(due_ms) = due_ms(&message.system_properties) else { return Ok(None) };
        let now_ms = self.clock.latest_ms();
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

    /// What the producer of a held message gets back for it: with this it can be taken back, or its transaction ended.
    pub fn held_result(&self, message_id: String, head: &HeldHead) -> v2::SendResultEntry {
        let mut entry = v2::SendResultEntry { status: Some(ok()), message_id, ..Default::default() };
        match head.hold {
            Hold::Timer => {
                let (broker, topic_id) = (self.name.clone(), head.topic);
                let handle = RecallHandle { broker, topic_id, timer_id: head.id, deliver_ms: head.due_ms };
                entry.recall_handle = handle.encode(&self.token_key);
            }
            Hold::Half | Hold::GivenUp => {
                entry.transaction_id = self.transaction_id(head).encode(&self.token_key);
            }
        }
        entry
    }

    /// What stands for a transaction towards producers.
    pub fn transaction_id(&self, head: &HeldHead) -> TransactionId {
        let (broker, topic_id) = (self.name.clone(), head.topic);
        TransactionId { broker, topic_id, half_id: head.id, check_ms: head.due_ms }
    }
}

/// The time that a message names for its delivery, rounded up: it must not appear early. Milliseconds since 1970.
pub fn due_ms(system: &v2::SystemProperties) -> Option<u64> {
    let at = system.delivery_timestamp.as_ref()?;
    let millis = (i64::from(at.nanos) + 999_999) / 1_000_000;
    Some(u64::try_from(at.seconds.saturating_mul(1000).saturating_add(millis)).unwrap_or(0))
}

/// The record of a message that is held, from the one that it would have if it were visible at once.
pub fn held(visible: NewRecord, head: HeldHead) -> NewRecord {
    let payload = head.before(&visible.payload);
    NewRecord { kind: RecordKind::Held, queue: None, payload, ..visible }
}

impl Broker {
    /// What an operator is told of a message that is or was held; `None`: the record is another.
    pub fn held_state(&self, record: &Record) -> Option<String> {
        let head = HeldHead::of_record(record).filter(|_| record.queue.is_none())?;
        let (timer, half) = (self.held.timer(head.timer_key()), self.held.half(head.id));
        let said = match (timer.or(half.map(|half| half.at)), half) {
            (Some(at), _) if at != record.physical_offset => format!("held; it lies at {} by now", at.0),
            (Some(_), None) => format!("delayed until {}", civil::format_ms(head.due_ms)),
            (Some(_), Some(half)) => format!(
                "its transaction is undecided since {}; producers were asked {} times, next at {}",
                civil::format_ms(half.stored_ms),
                half.checks,
                civil::format_ms(half.next_check_ms)
            ),
            (None, _) => match self.held.outcome(head.id) {
                Some(Outcome::Committed) => "its transaction was committed".to_owned(),
                Some(Outcome::RolledBack) => "its transaction was rolled back".to_owned(),
                Some(Outcome::GivenUp) => {
                    format!("nobody decided its transaction; it is in {TRANSACTIONS_GIVEN_UP_TOPIC}")
                }
                Some(Outcome::Dropped) => "lost to damage or with its topic".to_owned(),
                Some(Outcome::Recalled(_)) => "its producer recalled it".to_owned(),
                None => "not held any more".to_owned(),
            },
        };
        Some(said)
    }
}
