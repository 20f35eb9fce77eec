//! Pulling together: the members of a group share the queues of its topics, or each reads all of them.
//!
//! One task of a consumer decides what it reads, records how far it is, and keeps a task for each queue that it has; those
//! pull ahead of the application, which takes messages on any task.

mod file;
mod place;
mod progress;
mod queue;
mod share;

use std::ops::Deref;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use self::file::OffsetFile;
use self::place::Place;
use self::queue::Held;
use self::share::Share;
use crate::allocate::{AllocateStrategy, QueueName};
use crate::consuming::Consuming;
use crate::error::ClientError;
use crate::pull_consumer::{PullConsumer, QueryOffset};
use crate::view::MessageView;

/// How a [`PullGroup`] works.
///
/// ```no_run
/// # use std::time::Duration;
/// # use karman_client::{AllocateStrategy, PullGroupOptions, QueryOffset};
/// let options = PullGroupOptions::default()
///     .strategy(AllocateStrategy::consistent_hash())
///     .begin(QueryOffset::End)
///     .commit_interval(Duration::from_secs(1));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullGroupOptions {
    /// How the queues are shared out; averagely by default. All members must have the same.
    pub strategy: AllocateStrategy,
    /// Where a queue begins that the group has not read before: with what is stored, by default.
    pub begin: QueryOffset,
    /// Messages that wait for the application, of all queues together, at least 1; 256 by default. Each queue holds the
    /// messages of one more pull, 32 at most.
    pub prefetch: usize,
    /// Messages of one queue that were pulled and are not done: so many, at least 1, and it is not pulled any more; 1000
    /// by default.
    pub unfinished_max: usize,
    /// How often what is done is recorded; every 5 s by default, at least 10 ms.
    pub commit_interval: Duration,
    /// How often the members of the group are asked for; every 5 s by default, at least 100 ms. When others are there, or
    /// other queues, they are shared out anew.
    pub members_interval: Duration,
}

impl Default for PullGroupOptions {
    fn default() -> Self {
        Self {
            strategy: AllocateStrategy::default(),
            begin: QueryOffset::Beginning,
            prefetch: 256,
            unfinished_max: 1000,
            commit_interval: Duration::from_secs(5),
            members_interval: Duration::from_secs(5),
        }
    }
}

impl PullGroupOptions {
    /// Shares the queues out so.
    #[must_use]
    pub fn strategy(mut self, strategy: AllocateStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Begins here in queues that were not read before.
    #[must_use]
    pub fn begin(mut self, begin: QueryOffset) -> Self {
        self.begin = begin;
        self
    }

    /// So many messages wait for the application.
    #[must_use]
    pub fn prefetch(mut self, prefetch: usize) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// So many messages of a queue may be under way.
    #[must_use]
    pub fn unfinished_max(mut self, unfinished_max: usize) -> Self {
        self.unfinished_max = unfinished_max;
        self
    }

    /// Records so often what is done.
    #[must_use]
    pub fn commit_interval(mut self, commit_interval: Duration) -> Self {
        self.commit_interval = commit_interval;
        self
    }

    /// Asks so often who is in the group.
    #[must_use]
    pub fn members_interval(mut self, members_interval: Duration) -> Self {
        self.members_interval = members_interval;
        self
    }
}

/// A message of a [`PullGroup`]; all that a [`MessageView`] says can be asked of it.
#[derive(Clone, Debug)]
pub struct GroupMessage {
    view: MessageView,
    held: Arc<Held>,
}

impl Deref for GroupMessage {
    type Target = MessageView;

    fn deref(&self) -> &MessageView {
        &self.view
    }
}

impl GroupMessage {
    /// The message is done with, and is recorded so with the next commit, once all in front of it in its queue are done
    /// too. May be called on any task, in any order.
    ///
    /// `false`: it was said before, or the queue went to another member, who gets the message again.
    ///
    /// ```no_run
    /// # use karman_client::GroupMessage;
    /// # fn handle(message: &GroupMessage) {
    /// if !message.done() {
    ///     println!("{} comes again", message.message_id());
    /// }
    /// # }
    /// ```
    pub fn done(&self) -> bool {
        self.held.done(self.view.queue_offset())
    }

    /// The queue that it lies in.
    pub fn queue(&self) -> &QueueName {
        &self.held.name
    }
}

type Delivered = Result<GroupMessage, ClientError>;
/// Answers whoever wants to know what became of a commit.
type Reply = oneshot::Sender<Result<(), ClientError>>;

/// Pulls the messages of a group, in the queues that are its own, until it is shut down or dropped. Take messages with
/// [`PullGroup::poll`], or as a `Stream` of results, which ends when the consumer does; say [`GroupMessage::done`] of each.
///
/// Delivery is at least once. What was not said to be done comes again, here after a restart or at the member that has the
/// queue by then. While queues are shared out anew, members may differ for a moment about whose a queue is: two may read
/// it at the same time, and messages are then delivered twice; none is lost, for each records only what it has done without a gap.
/// One exception: where a queue is new to the group and begins at its end, two members that meet it in the same moment may each
/// see another end, and what was sent in between is passed over. Record the offsets before the first members start
/// (`karman offset reset`), or begin at the beginning, where that counts.
/// A member that ends in order is gone at once, one that crashed after 120 s.
///
/// All members of a group have the same subscriptions and the same strategy. Consumers of other kinds in the group are
/// taken for members, and read queues as they like: give them a group of their own.
///
/// ```no_run
/// use futures_util::StreamExt as _;
/// # use karman_client::{Client, ClientError, FilterExpression, PullGroupOptions};
/// # async fn example(client: Client) -> Result<(), ClientError> {
/// let orders = [("orders", FilterExpression::all())];
/// let mut consumer = client.pull_group("shipping", orders, &PullGroupOptions::default())?;
/// while let Some(message) = consumer.next().await {
///     let message = message?;
///     println!("{}: {:?}", message.queue(), message.body());
///     message.done();
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PullGroup {
    messages: mpsc::Receiver<Delivered>,
    /// An error that came between messages: the next thing to be told.
    failed: Option<ClientError>,
    commits: mpsc::Sender<Reply>,
    assigned: Arc<Mutex<Vec<QueueName>>>,
    ended: oneshot::Receiver<Result<(), ClientError>>,
    _running: JoinHandle<()>,
    stop: DropGuard,
}

impl PullGroup {
    /// Shares the queues out.
    pub(crate) fn shared(consuming: Consuming, options: &PullGroupOptions) -> Self {
        Self::start(consuming, Place::Group, options)
    }

    /// Reads all queues.
    pub(crate) fn broadcasting(
        consuming: Consuming,
        file: PathBuf,
        options: &PullGroupOptions,
    ) -> Result<Self, ClientError> {
        let file = OffsetFile::open(file, &consuming.group)?;
        Ok(Self::start(consuming, Place::File(Arc::new(file)), options))
    }

    fn start(consuming: Consuming, place: Place, options: &PullGroupOptions) -> Self {
        let stop = consuming.client.stop_token();
        let client = consuming.client.clone();
        let (deliver, messages) = mpsc::channel(options.prefetch.clamp(1, PREFETCH_MAX));
        let (commits, wanted) = mpsc::channel(1);
        let (end, ended) = oneshot::channel();
        let assigned = Arc::default();
        let consumer = PullConsumer::new(consuming);
        let share = Share::new(consumer, place, options.clone(), deliver, Arc::clone(&assigned));
        let running = share.run(stop.clone(), wanted);
        let running = client.spawn(async move {
            // Nobody may be waiting for it any more.
            let _ = end.send(running.await);
        });
        Self { messages, failed: None, commits, assigned, ended, _running: running, stop: stop.drop_guard() }
    }

    /// The messages that are there, 32 at most; waits for the first of them, and gives none when there was none for
    /// `timeout`. Dropping this future loses nothing.
    ///
    /// An error is of reading a queue or of learning who is in the group. It is told when it does not pass by itself, and once
    /// as long as it stays the same; the attempts go on.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use karman_client::{ClientError, PullGroup};
    /// # async fn example(mut consumer: PullGroup) -> Result<(), ClientError> {
    /// for message in consumer.poll(Duration::from_secs(1)).await? {
    ///     println!("{:?}", message.body());
    ///     message.done();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<GroupMessage>, ClientError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        // Far enough away to be never, and near enough to be a time.
        let deadline = Instant::now() + timeout.min(TIMEOUT_MAX);
        let first = loop {
            match tokio::time::timeout_at(deadline, self.messages.recv()).await {
                Err(_) => return Ok(Vec::new()),
                Ok(None) => return Err(ClientError::Closed),
                Ok(Some(Ok(message))) if message.held.is_released() => {}
                Ok(Some(message)) => break message?,
            }
        };
        let mut messages = vec![first];
        while messages.len() < POLL_MAX {
            match self.messages.try_recv() {
                Ok(Ok(message)) if message.held.is_released() => {}
                Ok(Ok(message)) => messages.push(message),
                Ok(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(messages)
    }

    /// Records now what is done.
    ///
    /// ```no_run
    /// # use karman_client::{ClientError, PullGroup};
    /// # async fn example(consumer: PullGroup) -> Result<(), ClientError> {
    /// consumer.commit().await
    /// # }
    /// ```
    pub async fn commit(&self) -> Result<(), ClientError> {
        let (reply, answer) = oneshot::channel();
        self.commits.send(reply).await.map_err(|_| ClientError::Closed)?;
        answer.await.map_err(|_| ClientError::Closed)?
    }

    /// The queues that are read at the moment, in order.
    ///
    /// ```no_run
    /// # use karman_client::PullGroup;
    /// # fn example(consumer: &PullGroup) {
    /// for queue in consumer.assigned() {
    ///     println!("{queue}");
    /// }
    /// # }
    /// ```
    pub fn assigned(&self) -> Vec<QueueName> {
        self.assigned.lock().clone()
    }

    /// Reads nothing more, records what is done, and leaves the group. An error says what could not be recorded: it comes
    /// again. Takes no longer than a few request timeouts.
    ///
    /// A consumer that is dropped without it does the same with nobody waiting for it.
    ///
    /// ```no_run
    /// # use karman_client::{ClientError, PullGroup};
    /// # async fn example(consumer: PullGroup) -> Result<(), ClientError> {
    /// consumer.shutdown().await
    /// # }
    /// ```
    pub async fn shutdown(self) -> Result<(), ClientError> {
        drop(self.stop);
        // Whoever waits to deliver is not waited for.
        drop(self.messages);
        self.ended.await.unwrap_or(Err(ClientError::Closed))
    }
}

impl Stream for PullGroup {
    type Item = Delivered;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivered>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.messages.poll_recv(cx) {
                Poll::Ready(Some(Ok(message))) if message.held.is_released() => {}
                other => return other,
            }
        }
    }
}

/// Messages of one poll.
const POLL_MAX: usize = 32;
/// More messages than this do not wait, whatever an application says.
const PREFETCH_MAX: usize = 65_536;
/// The longest a poll waits.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
