//! One queue that a member reads: a task pulls ahead of the application, for as long as there is room.

use std::sync::Arc;
use std::time::Duration;

use karman_remoting::proto::v2;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::progress::Progress;
use super::{Delivered, GroupMessage};
use crate::allocate::QueueName;
use crate::error::ClientError;
use crate::message::FilterExpression;
use crate::pull_consumer::{MessageQueue, PullConsumer, Pulled, QueryOffset};

/// What one pull brings; the servers give no more.
const BATCH_MAX: u32 = 32;
/// How long one pull waits for a message; the servers wait no longer.
const WAIT: Duration = Duration::from_secs(20);
/// Between an attempt that failed and the next one.
const PAUSE: Duration = Duration::from_secs(1);

/// A queue that is, or was, this member's.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: QueueName,
    /// Its broker may come back at another address.
    queue: Mutex<MessageQueue>,
    filter: FilterExpression,
    /// `None` while its place is not known yet, and again when it is another member's.
    progress: Mutex<Option<Progress>>,
    /// Something is done.
    room: Notify,
    released: CancellationToken,
}

impl Held {
    pub(super) fn new(queue: MessageQueue, filter: FilterExpression, released: CancellationToken) -> Self {
        Self {
            name: queue.name(),
            queue: Mutex::new(queue),
            filter,
            progress: Mutex::default(),
            room: Notify::new(),
            released,
        }
    }

    /// Nothing of it is given to the application any more.
    pub(super) fn is_released(&self) -> bool {
        self.released.is_cancelled()
    }

    pub(super) fn release(&self) {
        self.released.cancel();
    }

    /// From now on nothing of it can be done.
    pub(super) fn forget(&self) -> Option<i64> {
        self.progress.lock().take()?.to_commit()
    }

    pub(super) fn queue(&self) -> MessageQueue {
        self.queue.lock().clone()
    }

    pub(super) fn set_queue(&self, queue: MessageQueue) {
        *self.queue.lock() = queue;
    }

    pub(super) fn done(&self, offset: i64) -> bool {
        let is_done = self.progress.lock().as_mut().is_some_and(|progress| progress.done(offset));
        self.room.notify_one();
        is_done
    }

    pub(super) fn to_commit(&self) -> Option<i64> {
        self.progress.lock().as_ref()?.to_commit()
    }

    pub(super) fn committed(&self, offset: i64) {
        if let Some(progress) = self.progress.lock().as_mut() {
            progress.committed(offset);
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Progress) -> T) -> T {
        look(self.progress.lock().as_mut().expect("only who has ended the reader forgets the place"))
    }
}

/// Reads a queue for an application.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) consumer: Arc<PullConsumer>,
    pub(super) held: Arc<Held>,
    pub(super) place: Arc<Place>,
    pub(super) begin: QueryOffset,
    pub(super) unfinished_max: usize,
    pub(super) deliver: mpsc::Sender<Delivered>,
}

impl Reader {
    /// Until the queue is released.
    pub(super) async fn run(self) {
        self.held.released.run_until_cancelled(self.read()).await;
    }

    async fn read(&self) {
        let mut told = None;
        loop {
            let result = match self.begin().await {
                Ok(()) => self.pull_on(&mut told).await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { return };
            tracing::warn!(queue = %self.held.name, %error, "a queue cannot be read at the moment");
            // What lasts is told once; what passes is not told.
            let is_new = !error.is_retryable() && told.as_ref() != Some(&error);
            if is_new && self.deliver.try_send(Err(error.clone())).is_ok() {
                told = Some(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Finds where to begin in the queue. One that has none gets one, and that is recorded before anything is
    /// read: whoever has the queue next begins there as well.
    async fn begin(&self) -> Result<(), ClientError> {
        if self.held.progress.lock().is_some() {
            return Ok(());
        }
        let queue = self.held.queue();
        let begin = match self.place.get(&self.consumer, &queue).await? {
            Some(offset) => offset,
            None => {
                let begin = self.consumer.query_offset(&queue, self.begin).await?;
                self.place
                    .record(&self.consumer, vec![(queue, begin)])
                    .await
                    .into_iter()
                    .collect::<Result<(), _>>()?;
                begin
            }
        };
        *self.held.progress.lock() = Some(Progress::new(begin));
        Ok(())
    }

    /// Until a pull fails. `Ok`: nobody takes messages any more.
    async fn pull_on(&self, told: &mut Option<ClientError>) -> Result<(), ClientError> {
        loop {
            while self.held.with(|progress| progress.unfinished()) >= self.unfinished_max {
                self.held.room.notified().await;
            }
            let (queue, offset) = (self.held.queue(), self.held.with(|progress| progress.position()));
            let pulled = self.consumer.pull(&queue, offset, BATCH_MAX, &self.held.filter, WAIT).await;
            let pulled = match pulled {
                Err(error) if error.code() == Some(v2::Code::IllegalOffset) => {
                    self.find_end(&queue, offset).await?;
                    continue;
                }
                pulled => pulled?,
            };
            *told = None;
            if !self.give(pulled).await {
                return Ok(());
            }
        }
    }

    /// The queue does not reach to `offset`: what was there is deleted, or the queue has lost its end.
    async fn find_end(&self, queue: &MessageQueue, offset: i64) -> Result<(), ClientError> {
        let beginning = self.consumer.query_offset(queue, QueryOffset::Beginning).await?;
        let end = self.consumer.query_offset(queue, QueryOffset::End).await?;
        let nearest = offset.clamp(beginning, end.max(beginning));
        tracing::warn!(queue = %self.held.name, offset, nearest, "the queue does not reach there; read from the nearest offset on");
        self.held.with(|progress| progress.moved(nearest));
        Ok(())
    }

    /// Whether anybody takes messages.
    async fn give(&self, pulled: Pulled) -> bool {
        let offsets = pulled.messages.iter().map(|message| message.queue_offset());
        self.held.with(|progress| progress.pulled(offsets, pulled.next_offset));
        for view in pulled.messages {
            let message = GroupMessage { view, held: self.held.clone() };
            if self.deliver.send(Ok(message)).await.is_err() {
                return false;
            }
        }
        true
    }
}
