//! Which queues a member reads, and how far it is. One task owns it, and is the only one that records offsets: what is
//! recorded of a queue never goes back by a race of two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use karman_remoting::proto::v2;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::place::Place;
use super::queue::{Held, Reader};
use super::{Delivered, PullGroupOptions, Reply};
use crate::allocate::{AllocateStrategy, QueueName};
use crate::error::ClientError;
use crate::members::members;
use crate::message::FilterExpression;
use crate::pull_consumer::{MessageQueue, PullConsumer};

/// Until it is known whose the queues are, they are asked for as often.
const SOON: Duration = Duration::from_millis(200);
/// After an attempt that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A queue that is read, and its task.
#[derive(Debug)]
struct Reading {
    held: Arc<Held>,
    /// Closed, and empty once the task has ended.
    task: TaskTracker,
}

/// What is this member's.
type Found = Vec<(MessageQueue, FilterExpression)>;

#[derive(Debug)]
pub(super) struct Share {
    consumer: Arc<PullConsumer>,
    place: Arc<Place>,
    options: PullGroupOptions,
    deliver: mpsc::Sender<Delivered>,
    assigned: Arc<Mutex<Vec<QueueName>>>,
    reading: BTreeMap<QueueName, Reading>,
    /// What the application was told last.
    told: Option<ClientError>,
}

impl Share {
    pub(super) fn new(
        consumer: PullConsumer,
        place: Place,
        mut options: PullGroupOptions,
        deliver: mpsc::Sender<Delivered>,
        assigned: Arc<Mutex<Vec<QueueName>>>,
    ) -> Self {
        options.unfinished_max = options.unfinished_max.max(1);
        options.commit_interval = options.commit_interval.max(Duration::from_millis(10));
        options.members_interval = options.members_interval.max(Duration::from_millis(100));
        let (consumer, place) = (Arc::new(consumer), Arc::new(place));
        Self { consumer, place, options, deliver, assigned, reading: BTreeMap::new(), told: None }
    }

    /// Until `stop`. The error is that of the last commit.
    pub(super) async fn run(
        mut self,
        stop: CancellationToken,
        mut commits: mpsc::Receiver<Reply>,
    ) -> Result<(), ClientError> {
        let mut commit = tokio::time::interval(self.options.commit_interval);
        commit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(reply) = commits.recv() => {
                    // Whoever asked may have gone.
                    let _ = reply.send(self.commit().await);
                }
                _ = commit.tick() => if let Err(error) = self.commit().await {
                    tracing::warn!(%error, "what is done could not be recorded; tried again");
                },
                () = tokio::time::sleep_until(look_at) => {
                    let Some(found) = stop.run_until_cancelled(self.find()).await else { break };
                    look_at = Instant::now() + self.look(found).await;
                }
            }
        }
        let all = std::mem::take(&mut self.reading).into_values().collect();
        self.assigned.lock().clear();
        self.release(all).await
    }

    /// Takes what was found to be this member's, and gives up the rest. How long until the next time.
    async fn look(&mut self, found: Result<Option<Found>, ClientError>) -> Duration {
        match found {
            Ok(Some(found)) => {
                self.told = None;
                self.take(found).await;
                self.options.members_interval
            }
            Ok(None) => SOON,
            Err(error) => {
                tracing::warn!(%error, "the queues of the group cannot be shared out at the moment");
                // What lasts is told once; what passes is not told. What is read goes on meanwhile.
                let is_new = !error.is_retryable() && self.told.as_ref() != Some(&error);
                if is_new && self.deliver.try_send(Err(error.clone())).is_ok() {
                    self.told = Some(error);
                }
                PAUSE
            }
        }
    }

    /// The queues that are this member's. `None`: the servers do not know it yet as a member.
    async fn find(&self) -> Result<Option<Found>, ClientError> {
        let subscriptions = self.consumer.consuming().subscriptions.clone();
        let of_topics = join_all(subscriptions.iter().map(|subscription| self.find_in(subscription))).await;
        let mut found = Vec::new();
        for of_topic in of_topics {
            let Some(of_topic) = of_topic? else { return Ok(None) };
            found.extend(of_topic);
        }
        Ok(Some(found))
    }

    async fn find_in(
        &self,
        (topic, filter): &(String, FilterExpression),
    ) -> Result<Option<Found>, ClientError> {
        let queues = match self.consumer.queues(topic).await {
            // It is waited for.
            Err(error) if error.code() == Some(v2::Code::TopicNotFound) => return Ok(Some(Vec::new())),
            queues => queues?,
        };
        if !self.place.is_shared() {
            return Ok(Some(queues.into_iter().map(|queue| (queue, filter.clone())).collect()));
        }
        let consuming = self.consumer.consuming();
        let own = consuming.session.transport.client_id();
        let members = match self.options.strategy {
            AllocateStrategy::ByConfiguration(_) => vec![own.to_owned()],
            _ => members(&consuming.session, &consuming.group, topic).await?,
        };
        if !members.iter().any(|member| member == own) {
            return Ok(None);
        }
        let names: Vec<QueueName> = queues.iter().map(MessageQueue::name).collect();
        let own = self.options.strategy.allocate(own, &members, &names);
        let is_own = |queue: &MessageQueue| own.binary_search(&queue.name()).is_ok();
        Ok(Some(queues.into_iter().filter(is_own).map(|queue| (queue, filter.clone())).collect()))
    }

    async fn take(&mut self, found: Found) {
        let found: BTreeMap<QueueName, _> =
            found.into_iter().map(|(queue, filter)| (queue.name(), (queue, filter))).collect();
        let lost = self.reading.extract_if(.., |name, _| !found.contains_key(name));
        let lost: Vec<Reading> = lost.map(|(_, reading)| reading).collect();
        *self.assigned.lock() = found.keys().cloned().collect();
        for (name, (queue, filter)) in found {
            match self.reading.get(&name) {
                Some(reading) => reading.held.set_queue(queue),
                None => {
                    let reading = self.start(queue, filter);
                    self.reading.insert(name, reading);
                }
            }
        }
        if let Err(error) = self.release(lost).await {
            tracing::warn!(%error, "what was done in a queue that went to another member could not be recorded: it comes again");
        }
    }

    fn start(&self, queue: MessageQueue, filter: FilterExpression) -> Reading {
        let client = &self.consumer.consuming().client;
        let held = Arc::new(Held::new(queue, filter, client.stop_token()));
        let reader = Reader {
            consumer: self.consumer.clone(),
            held: held.clone(),
            place: self.place.clone(),
            begin: self.options.begin,
            unfinished_max: self.options.unfinished_max,
            deliver: self.deliver.clone(),
        };
        let task = TaskTracker::new();
        client.spawn(task.track_future(reader.run()));
        task.close();
        Reading { held, task }
    }

    /// Ends reading, then records how far it came.
    async fn release(&self, lost: Vec<Reading>) -> Result<(), ClientError> {
        lost.iter().for_each(|reading| reading.held.release());
        join_all(lost.iter().map(|reading| reading.task.wait())).await;
        let done = lost.iter().filter_map(|Reading { held, .. }| Some((held.queue(), held.forget()?)));
        self.place.record(&self.consumer, done.collect()).await.into_iter().collect()
    }

    async fn commit(&self) -> Result<(), ClientError> {
        let done = |Reading { held, .. }: &Reading| Some((held.clone(), held.to_commit()?));
        let done: Vec<(Arc<Held>, i64)> = self.reading.values().filter_map(done).collect();
        let places = done.iter().map(|(held, offset)| (held.queue(), *offset)).collect();
        let recorded = self.place.record(&self.consumer, places).await;
        for ((held, offset), result) in done.iter().zip(&recorded) {
            if result.is_ok() {
                held.committed(*offset);
            }
        }
        recorded.into_iter().collect()
    }
}
