//! The scenarios that send.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rocketmq::conf::ProducerOption;
use rocketmq::model::message::MessageView;
use rocketmq::model::transaction::{Transaction as _, TransactionResolution};
use rocketmq::Producer;
use serde_json::{json, Value};
use tokio::task::JoinSet;

use crate::events::{emit, failure, guarded, is_stopped, now, pause, wait_stopped, with};
use crate::messages::{half_message_of, message_of};
use crate::options::Options;
use crate::Fatal;

const RETRY_PAUSE: Duration = Duration::from_millis(50);

fn producer_option(options: &Options) -> Result<ProducerOption, Fatal> {
    let mut option = ProducerOption::default();
    option.set_topics(vec![options.text("topic")?]);
    Ok(option)
}

pub async fn produce(options: Options) -> Result<(), Fatal> {
    let mut producer = Producer::new(producer_option(&options)?, options.client()?)?;
    producer.start().await?;
    emit("ready", json!({}));
    send_all(Arc::new(producer), options, Work::Send).await
}

/// The messages in batches, one after the other, each tried once.
pub async fn produce_batch(options: Options) -> Result<(), Fatal> {
    let mut producer = Producer::new(producer_option(&options)?, options.client()?)?;
    producer.start().await?;
    emit("ready", json!({}));
    let producer = Arc::new(producer);
    let (count, batch) = (options.number("count", 0)?, options.number("batch", 32)?);
    let mut first = 0;
    while first < count && !is_stopped() {
        let indices = first..count.min(first + batch);
        let began = now();
        let messages: Result<Vec<_>, Fatal> =
            indices.clone().map(|index| Ok(message_of(&options, index)?.0)).collect();
        let (sender, messages) = (producer.clone(), messages?);
        match guarded(async move { sender.batch_send(messages).await }).await {
            Ok(receipts) => {
                for (index, receipt) in indices.clone().zip(&receipts) {
                    emit("sent", json!({"index": index, "began": began, "id": receipt.message_id()}));
                }
            }
            Err(error) => emit("failed", with(json!({"index": first, "began": began}), failure(&error))),
        }
        first = indices.end;
    }
    Ok(())
}

/// What is done with each index.
#[derive(Clone, Copy)]
enum Work {
    Send,
    SendHalf,
}

/// Does the work of each index, in several tasks. A message group belongs to one task.
async fn send_all(producer: Arc<Producer>, options: Options, work: Work) -> Result<(), Fatal> {
    let limit = match options.number("count", 0)? {
        0 => u64::MAX,
        count => count,
    };
    let lanes = options.number("group-count", 0)?;
    let threads = options.number("threads", 4)?;
    let shared = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for thread in 0..if lanes > 0 { threads.min(lanes) } else { threads } {
        let (producer, options, shared) = (producer.clone(), options.clone(), shared.clone());
        tasks.spawn(async move {
            let mut own = (0..).filter(move |index| index % lanes % threads == thread);
            while !is_stopped() {
                let next = if lanes > 0 { own.next() } else { Some(shared.fetch_add(1, Ordering::Relaxed)) };
                let Some(index) = next.filter(|&index| index < limit) else { break };
                match work {
                    Work::Send => send_one(&producer, &options, index).await?,
                    Work::SendHalf => send_half(&producer, &options, index).await?,
                }
                pause(options.milliseconds("pause")?).await;
            }
            Ok::<(), Fatal>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Sends the message of `index` until it is acknowledged. The client itself never tries again, and a message is made, with
/// its id, for one send.
async fn send_one(producer: &Arc<Producer>, options: &Options, index: u64) -> Result<(), Fatal> {
    loop {
        let (message, kind) = message_of(options, index)?;
        let fields = with(json!({"index": index, "began": now()}), kind);
        let sender = producer.clone();
        match guarded(async move { sender.send(message).await }).await {
            Ok(receipt) => {
                emit("sent", with(fields, json!({"id": receipt.message_id()})));
                return Ok(());
            }
            Err(error) => emit("failed", with(fields, failure(&error))),
        }
        if pause(RETRY_PAUSE).await {
            return Ok(());
        }
    }
}

fn decision_of(options: &Options, index: u64) -> String {
    let pattern: Vec<&str> = options.get("decide").unwrap_or("commit").split(',').collect();
    let at = usize::try_from(index).unwrap_or_default() % pattern.len();
    pattern[at].to_owned()
}

fn check(options: &Options, view: &MessageView) -> TransactionResolution {
    let index: u64 = view.properties().get("index").and_then(|index| index.parse().ok()).unwrap_or_default();
    let mut decision = decision_of(options, index);
    if decision == "unknown" {
        decision = options.get("check-decide").unwrap_or("commit").to_owned();
    }
    emit("checked", json!({"index": index, "id": view.message_id(), "decision": decision}));
    match decision.as_str() {
        "commit" => TransactionResolution::COMMIT,
        "rollback" => TransactionResolution::ROLLBACK,
        _ => TransactionResolution::UNKNOWN,
    }
}

pub async fn transaction(options: Options) -> Result<(), Fatal> {
    let of_checker = options.clone();
    let mut producer = Producer::new_transaction_producer(
        producer_option(&options)?,
        options.client()?,
        Box::new(move |_, view| check(&of_checker, &view)),
    )?;
    producer.start().await?;
    emit("ready", json!({}));
    let producer = Arc::new(producer);
    send_all(producer.clone(), options.clone(), Work::SendHalf).await?;
    match options.get("linger") {
        Some(_) => drop(pause(Duration::from_secs(options.number("linger", 0)?)).await),
        None => wait_stopped().await,
    }
    Ok(())
}

/// Sends the half message of `index` until it is acknowledged, and ends its transaction, once.
async fn send_half(producer: &Arc<Producer>, options: &Options, index: u64) -> Result<(), Fatal> {
    let decision = decision_of(options, index);
    loop {
        let began = now();
        let (sender, message) = (producer.clone(), half_message_of(options, index)?);
        let begun = match guarded(async move { sender.send_transaction_message(message).await }).await {
            Ok(begun) => begun,
            Err(error) => {
                let fields = json!({"index": index, "began": began});
                emit("failed", with(fields, failure(&error)));
                if pause(RETRY_PAUSE).await {
                    return Ok(());
                }
                continue;
            }
        };
        let facts = |began: u64| -> Value {
            json!({"index": index, "id": begun.message_id(), "decision": decision, "began": began})
        };
        emit("sent", facts(began));
        let fields = facts(now());
        let ended = match decision.as_str() {
            "commit" => guarded(begun.commit()).await,
            "rollback" => guarded(begun.rollback()).await,
            _ => return Ok(()),
        };
        match ended {
            Ok(()) => emit("ended", fields),
            Err(error) => emit("end-failed", with(fields, failure(&error))),
        }
        return Ok(());
    }
}
