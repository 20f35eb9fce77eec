//! Push: a handler is called for each message, and its result is told to the broker.
//!
//! One task keeps a loop for each broker of each subscription; a loop receives, and hands each message to a task of its
//! own as soon as there is room among the handlers. What waits in a loop is one batch.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use karman_remoting::proto::v2;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::consuming::{Ask, Consuming, Target};
use crate::error::ClientError;
use crate::retry::{GroupPolicy, backoff};
use crate::view::{MessageView, Receipt, ReceivedMessage};

/// How long one receive waits for a message; the servers wait no longer.
const AWAIT_DURATION: Duration = Duration::from_secs(20);
/// What one receive can bring.
const BATCH_MAX: u32 = 32;
/// How often the loops are compared with the routes.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts to tell a broker what became of a message.
const TELL_PAUSE: Duration = Duration::from_secs(1);

/// How a [`PushConsumer`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PushOptions {
    /// Handlers that run at the same time, at least 1; 16 by default.
    pub concurrency: usize,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self { concurrency: 16 }
    }
}

impl PushOptions {
    /// So many handlers at the same time.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }
}

/// What is called for a message; the error is its text.
#[derive(Clone)]
pub(crate) struct Handler(Arc<dyn Fn(MessageView) -> BoxFuture<'static, Result<(), String>> + Send + Sync>);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handler").finish_non_exhaustive()
    }
}

impl Handler {
    pub(crate) fn new<F, H, E>(handle: F) -> Self
    where
        F: Fn(MessageView) -> H + Send + Sync + 'static,
        H: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let handle = Arc::new(handle);
        Self(Arc::new(move |message| {
            let handle = handle.clone();
            // Called inside: it may panic before it has made its future.
            Box::pin(async move { handle(message).await.map_err(|error| error.to_string()) })
        }))
    }
}

/// Calls a handler for each message of a group, until it is shut down or dropped.
///
/// When the handler returns `Ok`, the message is done with. When it returns an error or panics, the message comes again
/// after the back-off that the group prescribes, and becomes a dead letter when it has been delivered as often as the
/// group allows. A message stays with this consumer as long as its handler takes, up to 3 h. Delivery is at least once:
/// a handler must bear to see a message again.
///
/// In an orderly group a message is handled only when the one before it of its message group is done.
#[derive(Debug)]
pub struct PushConsumer {
    running: JoinHandle<()>,
    /// Handlers are dropped where they are.
    abort: CancellationToken,
    stop: DropGuard,
}

impl PushConsumer {
    pub(crate) fn start(consuming: Consuming, options: &PushOptions, handler: Handler) -> Self {
        let concurrency = options.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        let stop = consuming.client.stop_token();
        let abort = CancellationToken::new();
        let client = consuming.client.clone();
        let pump = Pump {
            consuming,
            handler,
            batch: u32::try_from(concurrency).unwrap_or(u32::MAX).min(BATCH_MAX),
            room: Arc::new(Semaphore::new(concurrency)),
            stop: stop.clone(),
            abort: abort.clone(),
            tasks: TaskTracker::new(),
        };
        let running = client.spawn(Arc::new(pump).run());
        Self { running, abort, stop: stop.drop_guard() }
    }

    /// Receives nothing more, lets the handlers that run come to their end for at most `patience`, and gives back what was
    /// received and not begun. `false`: some handlers took longer and were dropped; their messages come again.
    ///
    /// A consumer that is dropped without it does the same with nobody waiting for it, and without a limit of time.
    pub async fn shutdown(mut self, patience: Duration) -> bool {
        drop(self.stop);
        if tokio::time::timeout(patience, &mut self.running).await.is_ok() {
            return true;
        }
        self.abort.cancel();
        // Whoever is in a call to a broker ends with it: each has a deadline.
        if let Err(error) = self.running.await {
            tracing::error!(%error, "push consumer failed");
        }
        false
    }
}

struct Pump {
    consuming: Consuming,
    handler: Handler,
    /// Messages asked for at once.
    batch: u32,
    /// For one running handler each.
    room: Arc<Semaphore>,
    stop: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Pump {
    async fn run(self: Arc<Self>) {
        let mut loops: HashMap<(String, String), CancellationToken> = HashMap::new();
        loop {
            let targets = self.stop.run_until_cancelled(self.targets()).await;
            let Some(targets) = targets else { break };
            let wanted = |key: &(String, String)| targets.iter().any(|target| key_of(target) == *key);
            loops.retain(|key, running| {
                let keep = wanted(key);
                if !keep {
                    running.cancel();
                }
                keep
            });
            for target in targets {
                loops.entry(key_of(&target)).or_insert_with(|| {
                    let stop = self.stop.child_token();
                    self.tasks.spawn(self.clone().receive(target, stop.clone()));
                    stop
                });
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(RECONCILE_INTERVAL) => {}
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The brokers to ask. A topic that is not there, or not yet, has none.
    async fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for subscription in &*self.consuming.subscriptions {
            match self.consuming.targets(subscription).await {
                Ok(some) => targets.extend(some),
                Err(error) => tracing::debug!(topic = subscription.0, %error, "nothing to receive from"),
            }
        }
        targets
    }

    /// One broker of one subscription, until `stop`.
    async fn receive(self: Arc<Self>, target: Target, stop: CancellationToken) {
        let mut attempt_id = attempt_id();
        let mut failures = 0;
        loop {
            let received = stop.run_until_cancelled(async {
                let policy = self.consuming.session.policy().await;
                let ask = Ask {
                    max: self.batch,
                    invisible: None,
                    wait: AWAIT_DURATION,
                    attempt_id: Some(attempt_id.clone()),
                    whole: policy.fifo,
                };
                (policy, self.consuming.receive(&target, ask).await)
            });
            match received.await {
                None => return,
                Some((policy, Ok(messages))) => {
                    failures = 0;
                    attempt_id = self::attempt_id();
                    self.hand_out(&policy, messages, &stop).await;
                }
                Some((_, Err(error))) => {
                    tracing::debug!(topic = target.topic, %error, "receive failed");
                    self.consuming.session.learn(&target.topic, &error);
                    // What was refused was not given; else what was given may have been lost on its way.
                    if !error.is_uncertain() {
                        attempt_id = self::attempt_id();
                    }
                    failures += 1;
                    let pause = tokio::time::sleep(backoff(failures));
                    if stop.run_until_cancelled(pause).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Gives each line of messages to a task as soon as there is room.
    async fn hand_out(
        self: &Arc<Self>,
        policy: &GroupPolicy,
        messages: Vec<ReceivedMessage>,
        stop: &CancellationToken,
    ) {
        let mut lines = lines(messages, policy.fifo).into_iter();
        while let Some(line) = lines.next() {
            match stop.run_until_cancelled(self.room.clone().acquire_owned()).await {
                Some(Ok(place)) => {
                    self.tasks.spawn(self.clone().handle(policy.clone(), line, place));
                }
                // The room is never closed.
                Some(Err(_)) | None => {
                    let rest = std::iter::once(line).chain(lines).flatten();
                    let rest = rest.map(|message| self.give_back(message.receipt(), Duration::ZERO));
                    futures_util::future::join_all(rest).await;
                    return;
                }
            }
        }
    }

    /// Messages one after the other. When one fails, those behind it wait as long as it does.
    async fn handle(
        self: Arc<Self>,
        policy: GroupPolicy,
        line: Vec<ReceivedMessage>,
        _place: OwnedSemaphorePermit,
    ) {
        let mut line = line.into_iter();
        while let Some(message) = line.next() {
            let receipt = message.receipt();
            let handling = AssertUnwindSafe((self.handler.0)(message.into_view())).catch_unwind();
            let result = match self.abort.run_until_cancelled(handling).await {
                None => return,
                Some(Ok(result)) => result,
                Some(Err(_)) => Err("the handler panicked".to_owned()),
            };
            let Err(error) = result else {
                self.done(&receipt).await;
                continue;
            };
            let (message_id, attempt) = (&receipt.message_id, receipt.delivery_attempt);
            if attempt >= policy.attempts_max {
                tracing::warn!(message_id, attempt, error, "message failed and becomes a dead letter");
                self.give_up(&receipt, policy.attempts_max).await;
                continue;
            }
            let delay = policy.delay(attempt);
            tracing::warn!(message_id, attempt, error, ?delay, "message failed and comes again");
            self.give_back(receipt, delay).await;
            for behind in line.by_ref() {
                self.give_back(behind.receipt(), delay).await;
            }
        }
    }

    async fn done(&self, receipt: &Receipt) {
        let entry = || v2::AckMessageEntry {
            message_id: receipt.message_id.clone(),
            receipt_handle: receipt.handle.clone(),
            lite_topic: None,
        };
        self.tell(receipt, "done", || async {
            let mut results = self.consuming.ack(&receipt.endpoint, &receipt.topic, vec![entry()]).await;
            results.pop().expect("there is one result for each message")
        })
        .await;
    }

    async fn give_back(&self, receipt: Receipt, delay: Duration) {
        self.tell(&receipt, "to come again", || async {
            self.consuming.change_invisible_duration(&receipt, delay).await.map(drop)
        })
        .await;
    }

    async fn give_up(&self, receipt: &Receipt, attempts_max: i32) {
        self.tell(receipt, "a dead letter", || self.consuming.forward_to_dead_letters(receipt, attempts_max))
            .await;
    }

    /// Repeats `call` until the broker has heard it or the consumer is at its end: meanwhile the message is renewed, and
    /// nobody else would get it.
    async fn tell<C>(&self, receipt: &Receipt, what: &str, mut call: impl FnMut() -> C)
    where
        C: Future<Output = Result<(), ClientError>>,
    {
        loop {
            let Err(error) = call().await else { return };
            if !error.is_retryable()
                || self.abort.is_cancelled()
                || self.consuming.client.check_open().is_err()
            {
                let message_id = &receipt.message_id;
                tracing::warn!(message_id, %error, "a broker was not told that a message is {what}");
                return;
            }
            tracing::debug!(%error, "a broker is told once more that a message is {what}");
            if self.abort.run_until_cancelled(tokio::time::sleep(TELL_PAUSE)).await.is_none() {
                return;
            }
        }
    }
}

fn key_of(target: &Target) -> (String, String) {
    (target.topic.clone(), target.broker.endpoint.clone())
}

fn attempt_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What must be handled one after the other: in an orderly group the messages of one message group.
fn lines(messages: Vec<ReceivedMessage>, fifo: bool) -> Vec<Vec<ReceivedMessage>> {
    let mut lines: Vec<Vec<ReceivedMessage>> = Vec::with_capacity(messages.len());
    for message in messages {
        let same = |line: &&mut Vec<ReceivedMessage>| line[0].message_group() == message.message_group();
        let ordered = fifo && message.message_group().is_some();
        match lines.iter_mut().find(|line| ordered && same(line)) {
            Some(line) => line.push(message),
            None => lines.push(vec![message]),
        }
    }
    lines
}
