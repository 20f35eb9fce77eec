//! Half messages that nobody decides: producers are asked about them, so often, then they are given up.
//!
//! One task on the control thread, which sleeps until the next one is due. Any live producer of the topic with a stream to
//! this node is asked; where there is none nothing is counted. What was done in a round is recorded by one record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use karman_remoting::proto::v2::telemetry_command::Command;
use karman_remoting::proto::v2::{self, RecoverOrphanedTransactionCommand, TelemetryCommand};
use karman_remoting::status::Rejection;
use karman_remoting::validate::TRANSACTIONS_GIVEN_UP_TOPIC;
use karman_store::{Durability, PhysicalOffset};
use prost::Message as _;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::catalog_writer::topic_named;
use crate::held::Claim;
use crate::held::deliver::settled_record;
use crate::held::halves::Half;
use crate::held::released::{HeldMessage, Unreadable};
use crate::records::{Checked, Dropped, Settled};
use crate::refuse;
use crate::service::delivery;

/// Looked at in one round.
const ROUND_MAX: usize = 256;
/// The pause after something went wrong.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A sleep that ends only when something comes.
const FOREVER: Duration = Duration::from_secs(86_400);

/// Runs until the broker stops.
pub async fn run(broker: Arc<Broker>) {
    loop {
        match broker.held.due_checks(broker.clock.now_ms(), ROUND_MAX) {
            Ok(due) => {
                if let Err(error) = round(&broker, due).await {
                    tracing::warn!(%error, "transactions were not checked; it is tried again");
                    if broker.stopping.run_until_cancelled(tokio::time::sleep(RETRY_PAUSE)).await.is_none() {
                        return;
                    }
                }
            }
            Err(next_ms) => {
                let time = next_ms.map_or(FOREVER, |at_ms| broker.clock.until(at_ms));
                tokio::select! {
                    () = broker.stopping.cancelled() => return,
                    () = broker.held.check_added() => {}
                    () = tokio::time::sleep(time) => {}
                }
            }
        }
    }
}

/// What became of a half message in a round.
enum Looked {
    Asked,
    /// There was no producer to ask, or something else was not as it should be; it is looked at again later.
    NotAsked,
    /// It is no half message any more, or somebody else is about to end it.
    Ended,
}

async fn round(broker: &Arc<Broker>, due: Vec<(u64, Half)>) -> Result<(), Rejection> {
    let mut settled = Settled::default();
    for (id, half) in due {
        let Some(topic) = broker.catalog.topic_numbered(half.topic) else {
            tracing::error!(id, topic = half.topic, "a half message is dropped: its topic was deleted");
            settled.dropped.push(Dropped { id, due_ms: 0 });
            continue;
        };
        let asked = match look_at(broker, &topic, id, half).await {
            Ok(Looked::Ended) => continue,
            Ok(Looked::Asked) => 1,
            Ok(Looked::NotAsked) => 0,
            Err(error) if error.is_final() => {
                tracing::error!(id, topic = topic.name(), %error, "a half message is dropped");
                settled.dropped.push(Dropped { id, due_ms: 0 });
                continue;
            }
            Err(error) => {
                tracing::warn!(id, topic = topic.name(), %error, "a half message cannot be read now");
                0
            }
        };
        let next_check_ms = broker.clock.now_ms() + broker.limits.check_interval_ms;
        settled.checked.push(Checked { id, checks: half.checks + asked, next_check_ms });
    }
    if settled != Settled::default() {
        // What is lost of it with the power is asked once more.
        let append = broker.store.append(vec![settled_record(&settled)], Durability::Memory);
        append.map_err(refuse::append)?.await.map_err(refuse::append)?;
        broker.held.counters.dropped.fetch_add(settled.dropped.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

async fn look_at(broker: &Arc<Broker>, topic: &Topic, id: u64, half: Half) -> Result<Looked, Unreadable> {
    let age_ms = broker.clock.latest_ms().saturating_sub(half.stored_ms);
    if half.checks >= broker.limits.checks_max || age_ms > broker.limits.half_age_max_ms {
        give_up(broker, topic, id, half).await
    } else {
        ask(broker, topic, id, half).await
    }
}

/// Asks a producer what became of a transaction.
async fn ask(broker: &Arc<Broker>, topic: &Topic, id: u64, half: Half) -> Result<Looked, Unreadable> {
    // Another one each time, as some cannot answer.
    let turn = (id as usize).wrapping_add(half.checks as usize);
    let Some((client_id, commands, _)) = broker.clients.producer_of(topic.name(), turn) else {
        return Ok(Looked::NotAsked);
    };
    let held = read(broker, id, half).await?;
    let command = TelemetryCommand {
        command: Some(Command::RecoverOrphanedTransactionCommand(RecoverOrphanedTransactionCommand {
            message: Some(as_delivered(broker, half.at, &held)?),
            transaction_id: broker.transaction_id(&held.head).encode(&broker.token_key),
        })),
        ..Default::default()
    };
    // A client that does not read is not waited for.
    if commands.try_send(Ok(command)).is_err() {
        return Ok(Looked::NotAsked);
    }
    broker.held.counters.checks.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(client_id, topic = topic.name(), id, checks = half.checks + 1, "transaction is checked");
    Ok(Looked::Asked)
}

/// The message with all fields that a delivered one has: clients take some of them for granted.
fn as_delivered(broker: &Broker, at: PhysicalOffset, held: &HeldMessage) -> Result<v2::Message, Unreadable> {
    let bytes =
        delivery::message(broker, held.record(), v2::SystemProperties::default(), &mut BytesMut::new());
    v2::Message::decode(bytes).map_err(|_| Unreadable::NotHeld(at.0))
}

async fn read(broker: &Arc<Broker>, id: u64, half: Half) -> Result<HeldMessage, Unreadable> {
    let broker = broker.clone();
    let read = move || {
        HeldMessage::read(&broker.store, half.at).or_else(|error| {
            // Its segment may have gone since it was looked up; it lies elsewhere then.
            match broker.held.half(id).filter(|now| now.at != half.at) {
                Some(now) => HeldMessage::read(&broker.store, now.at),
                None => Err(error),
            }
        })
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(Unreadable::Task(error.to_string())))
}

/// Makes a half message visible in the topic for those that nobody decided; that ends its transaction.
async fn give_up(broker: &Arc<Broker>, topic: &Topic, id: u64, half: Half) -> Result<Looked, Unreadable> {
    let held = read(broker, id, half).await?;
    let Claim::Yours(half) = broker.held.claim_half(id) else { return Ok(Looked::Ended) };
    let given_up = async {
        let (into, _) = broker.catalog_writer.topic(topic_named(TRANSACTIONS_GIVEN_UP_TOPIC, 1)).await?;
        let record = held.given_up(topic.name(), &into)?;
        let append =
            broker.store.append(vec![record], broker.durability_of(&into)).map_err(refuse::append)?;
        append.await.map_err(refuse::append)
    };
    if let Err(error) = given_up.await {
        tracing::warn!(topic = topic.name(), id, %error, "an undecided transaction cannot be given up now");
        broker.held.release_half(id);
        return Ok(Looked::NotAsked);
    }
    broker.held.counters.given_up.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(
        topic = topic.name(),
        id,
        checks = half.checks,
        "nobody decided a transaction; it is given up"
    );
    Ok(Looked::Ended)
}
