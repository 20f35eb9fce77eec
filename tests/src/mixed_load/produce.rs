//! Producers: a pacer says when each message is due, workers send it until it is stored, under one id.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karman_checker::event::{self, Event, Outcome};
use karman_remoting::proto::v2;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::broker::{Broker, PAUSE};
use super::plan::{KINDS, Kind, LANES, Places, Planned, id_of, lane_name, now_ms};
use super::record::outcome;
use super::{Shared, transaction};

/// Workers of each kind but FIFO, where each message group has one.
const WORKERS: usize = 16;
/// Messages that wait for a worker while a broker is away, so that the others get theirs; fewer where they are large.
const WAITING_MAX: usize = 256;
const LARGE_WAITING_MAX: usize = 8;
/// Messages of one request, when so many wait.
const BATCH_MAX: usize = 8;
/// A message that could not be stored for so long is given up: it may be stored all the same.
const GIVE_UP: Duration = Duration::from_secs(90);

/// Sends everything; returns when the last message is stored or given up.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut workers = JoinSet::new();
    let mut start = |kind: Kind, number: usize, waiting: usize| {
        let (queue, messages) = mpsc::channel(waiting);
        let brokers = shared.brokers(&format!("producer-{kind:?}-{number}"));
        workers.spawn(Worker { shared: shared.clone(), kind, number, brokers }.run(messages));
        queue
    };
    let lanes: Vec<_> = (0..LANES).map(|lane| start(Kind::Fifo, lane as usize, WAITING_MAX)).collect();
    let others: Vec<Vec<_>> = KINDS
        .map(|kind| {
            let waiting = if kind == Kind::Large { LARGE_WAITING_MAX } else { WAITING_MAX };
            (0..WORKERS).map(|number| start(kind, number, waiting)).collect()
        })
        .into_iter()
        .collect();
    let began = Instant::now();
    let mut places = Places::default();
    for index in 0..shared.options.messages {
        let due = Duration::from_secs(shared.options.seconds)
            .mul_f64(index as f64 / shared.options.messages as f64);
        tokio::time::sleep_until(began + due).await;
        let planned = shared.plan.message(index, &mut places);
        let queue = match planned.lane {
            Some((lane, _)) => &lanes[lane as usize],
            None => &others[planned.kind as usize][index as usize % WORKERS],
        };
        // A worker goes on as long as there are queues.
        let _ = queue.send(planned).await;
    }
    drop((lanes, others));
    while let Some(ended) = workers.join_next().await {
        ended.expect("a producer does not panic");
    }
}

struct Worker {
    shared: Arc<Shared>,
    kind: Kind,
    number: usize,
    brokers: Vec<Broker>,
}

impl Worker {
    async fn run(self, mut messages: mpsc::Receiver<Planned>) {
        let batch_max = if matches!(self.kind, Kind::Normal | Kind::Filter) { BATCH_MAX } else { 1 };
        let mut turn = self.number;
        while let Some(first) = messages.recv().await {
            let mut batch = vec![first];
            while batch.len() < batch_max
                && let Ok(next) = messages.try_recv()
            {
                batch.push(next);
            }
            self.store(batch, turn).await;
            // A message group stays where it is.
            turn += usize::from(self.kind != Kind::Fifo);
        }
    }

    /// Sends until all are stored. Messages without a message group go to another broker when one does not answer.
    async fn store(&self, mut batch: Vec<Planned>, mut turn: usize) {
        let give_up = Instant::now() + GIVE_UP;
        while !batch.is_empty() && Instant::now() < give_up {
            let broker = &self.brokers[turn % self.brokers.len()];
            let messages = batch.iter().map(|planned| Bytes::from(planned.message.encode_to_vec())).collect();
            let b = now_ms();
            let entries = broker.send(messages).await.map(|answer| answer.entries).unwrap_or_default();
            let e = now_ms();
            let mut left = Vec::new();
            for (index, planned) in batch.into_iter().enumerate() {
                let entry = entries.get(index);
                let out = outcome(entry.and_then(|entry| entry.status.as_ref()));
                self.shared.recorder.line(&Event::Send(line(&planned, broker, (b, e), out)));
                match entry {
                    Some(entry) if out == Outcome::Ok => self.stored(planned, broker, entry),
                    _ => left.push(planned),
                }
            }
            batch = left;
            if !batch.is_empty() {
                turn += usize::from(self.kind != Kind::Fifo);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn stored(&self, planned: Planned, broker: &Broker, entry: &v2::SendResultEntry) {
        if let Some(due_ms) = planned.due_ms {
            self.shared.delayed(&broker.name, planned.id(), due_ms);
        }
        if self.kind != Kind::Transaction {
            return;
        }
        let decision = self.shared.plan.decision(planned.id());
        if !decision.when_asked {
            let (shared, broker) = (self.shared.clone(), broker.clone());
            let transaction = entry.transaction_id.clone();
            // The producer goes on while it is not answered.
            tokio::spawn(async move {
                let id = id_of(&planned.message);
                transaction::end(&shared, &broker, id, &transaction, decision.commit, false).await;
            });
        }
    }
}

fn line<'a>(planned: &'a Planned, broker: &'a Broker, (b, e): (u64, u64), out: Outcome) -> event::Send<'a> {
    event::Send {
        b,
        e,
        m: planned.id().into(),
        topic: planned.kind.topic().into(),
        to: broker.name.as_str().into(),
        out,
        digest: planned.digest,
        lane: planned.lane.map(|(lane, _)| lane_name(lane).into()),
        seq: planned.lane.map(|(_, place)| place),
        due: planned.due_ms,
        half: planned.kind == Kind::Transaction,
        label: planned.label.as_deref().map(Into::into),
    }
}
