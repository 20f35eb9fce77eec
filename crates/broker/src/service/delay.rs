//! RecallMessage: a delayed message is taken back before its time.
//!
//! The recall claims the message first, so that it cannot be delivered meanwhile. It goes on in a task of its own when the
//! producer does not wait for it: what was begun must not stay claimed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use karman_remoting::proto::v2::{self, MessageType};
use karman_remoting::status::{Rejection, ok};
use karman_remoting::token::RecallHandle;
use karman_remoting::validate;
use karman_store::{Durability, PhysicalOffset};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::held::Claim;
use crate::held::deliver::settled_record;
use crate::held::history::Outcome;
use crate::held::released::HeldMessage;
use crate::held::timers::TimerKey;
use crate::records::{Recalled, Settled};
use crate::refuse;

impl Broker {
    /// Takes a delayed message back; doing so again before its time has the same answer.
    pub async fn recall(
        self: &Arc<Self>,
        request: v2::RecallMessageRequest,
    ) -> Result<v2::RecallMessageResponse, Rejection> {
        let (topic, key) = self.recalled_timer(&request)?;
        let message_id = self.within_flush_timeout(self.recall_timer(&topic, key)).await?;
        Ok(v2::RecallMessageResponse { status: Some(ok()), message_id })
    }

    fn recalled_timer(
        &self,
        request: &v2::RecallMessageRequest,
    ) -> Result<(Arc<Topic>, TimerKey), Rejection> {
        let topic = self.topic(validate::topic_of(request.topic.as_ref())?)?;
        if topic.message_type() != MessageType::Delay {
            return Err(Rejection::BadRequest(format!(
                "messages of topic {:?} cannot be recalled: it takes {} messages, not DELAY",
                topic.name(),
                topic.message_type().as_str_name()
            )));
        }
        let refused = |why| Rejection::InvalidRecallHandle { why };
        let handle = RecallHandle::decode_verified(&self.token_key, &request.recall_handle)
            .map_err(|_| refused("it is not a handle that this broker made"))?;
        if handle.broker != self.name {
            return Err(refused("it is of another broker"));
        }
        if handle.topic_id != topic.number {
            return Err(refused("it is of a message of another topic"));
        }
        Ok((topic, TimerKey { due_ms: handle.deliver_ms, id: handle.timer_id }))
    }

    /// The id of the message.
    async fn recall_timer(self: &Arc<Self>, topic: &Arc<Topic>, key: TimerKey) -> Result<String, Rejection> {
        let gone = |why: &str| {
            let what = format!("a delayed message to recall (due at {} ms since 1970; {why})", key.due_ms);
            Err(Rejection::MessageNotFound { what })
        };
        loop {
            let settled = self.held.settled();
            if key.due_ms <= self.clock.latest_ms() {
                return gone("its delivery time has come");
            }
            match self.held.claim_timer(key) {
                Claim::Yours(at) => {
                    let durability = self.durability_of(topic);
                    let task = tokio::spawn(settle_recall(self.clone(), key, at, durability));
                    return task.await.unwrap_or_else(|error| Err(Rejection::Internal(error.to_string())));
                }
                Claim::Others => settled.await,
                Claim::Ended(Outcome::Recalled(message_id)) => return Ok(message_id.into()),
                Claim::Ended(_) | Claim::Unknown => return gone("it is not held any more"),
            }
        }
    }
}

/// Records that a claimed message is recalled.
async fn settle_recall(
    broker: Arc<Broker>,
    key: TimerKey,
    at: PhysicalOffset,
    durability: Durability,
) -> Result<String, Rejection> {
    let recalled = async {
        let message_id = broker.held_message(at).await?.message.system_properties.message_id;
        let recalled = Recalled { id: key.id, due_ms: key.due_ms, message_id: message_id.clone() };
        let settled = Settled { recalled: vec![recalled], ..Default::default() };
        let append =
            broker.store.append(vec![settled_record(&settled)], durability).map_err(refuse::append)?;
        append.await.map_err(refuse::append)?;
        Ok(message_id)
    };
    let recalled = recalled.await;
    match &recalled {
        Ok(_) => broker.held.counters.recalled.fetch_add(1, Ordering::Relaxed),
        Err(_) => {
            broker.held.release_timer(key);
            0
        }
    };
    recalled
}

impl Broker {
    /// Reads a held message; it may have to come from the device.
    pub async fn held_message(self: &Arc<Self>, at: PhysicalOffset) -> Result<HeldMessage, Rejection> {
        let broker = self.clone();
        let read = tokio::task::spawn_blocking(move || HeldMessage::read(&broker.store, at)).await;
        let read = read.map_err(|error| Rejection::Internal(error.to_string()))?;
        read.map_err(|error| Rejection::Internal(format!("the held message cannot be read: {error}")))
    }

    /// What takes longer is answered with MASTER_PERSISTENCE_TIMEOUT, or that of the slaves, and may happen all the same.
    pub async fn within_flush_timeout<T>(
        &self,
        task: impl Future<Output = Result<T, Rejection>>,
    ) -> Result<T, Rejection> {
        let in_time = tokio::time::timeout(self.timeout_of(self.durability), task).await;
        in_time.unwrap_or_else(|_| Err(self.timed_out(self.durability)))
    }
}
