//! Receiving: messages are asked for, and acknowledged one by one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use karman_remoting::proto::v2;

use crate::consuming::{Ask, Consuming};
use crate::error::ClientError;
use crate::retry::backoff;
use crate::view::ReceivedMessage;

/// How long a receive waits for a message unless told otherwise; the servers wait no longer.
const AWAIT_DURATION: Duration = Duration::from_secs(20);
/// Handles in one request.
const ACK_MAX_ENTRIES: usize = 1024;

/// Receives and acknowledges the messages of a group. Its methods may be called by many tasks at once.
#[derive(Debug)]
pub struct SimpleConsumer {
    consuming: Consuming,
    await_duration: Duration,
    turn: AtomicUsize,
}

impl SimpleConsumer {
    pub(crate) fn new(consuming: Consuming) -> Self {
        Self { consuming, await_duration: AWAIT_DURATION, turn: AtomicUsize::new(0) }
    }

    /// How long [`SimpleConsumer::receive`] waits when there is no message; 20 s by default, which is also the most
    /// that servers wait for one broker and topic.
    #[must_use]
    pub fn with_await_duration(mut self, await_duration: Duration) -> Self {
        self.await_duration = await_duration;
        self
    }

    /// Up to `max` messages (a server gives at most 32 at once), which nobody else of the group gets for `invisible`.
    /// Empty when there was none for the await duration.
    ///
    /// Asks the brokers of the subscribed topics one after the other, beginning with another one on each call, and
    /// waits a share of the await duration at each; several calls at once are how to read several brokers at once. The
    /// longest it can take is the await duration and the request timeout of each broker.
    ///
    /// When this future is dropped, messages that were on their way are delivered again after `invisible`.
    pub async fn receive(&self, max: u32, invisible: Duration) -> Result<Vec<ReceivedMessage>, ClientError> {
        let consuming = &self.consuming;
        consuming.client.check_open()?;
        let mut targets = Vec::new();
        for subscription in &*consuming.subscriptions {
            targets.extend(consuming.targets(subscription).await?);
        }
        let wait = self.await_duration / u32::try_from(targets.len()).unwrap_or(u32::MAX);
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut failure = None;
        for step in 0..targets.len() {
            let target = &targets[(start % targets.len() + step) % targets.len()];
            let ask = Ask { max, invisible: Some(invisible), wait, attempt_id: None, whole: false };
            match consuming.receive(target, ask).await {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => return Ok(messages),
                Err(error) => {
                    consuming.session.learn(&target.topic, &error);
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(Vec::new()), Err)
    }

    /// The messages of one [`SimpleConsumer::receive`] after the other, with its arguments; ends when the client is closed.
    /// After an error it goes on, the later the more there were in a row, up to a second.
    ///
    /// What was received and not taken waits in the stream, `max` messages at most, while its invisible duration runs: that
    /// must be long enough for all of them, one after the other. What waits in a stream that is dropped is delivered again
    /// after it.
    ///
    /// ```no_run
    /// use futures_util::StreamExt as _;
    /// # use std::time::Duration;
    /// # use karman_client::{ClientError, SimpleConsumer};
    /// # async fn example(consumer: SimpleConsumer) -> Result<(), ClientError> {
    /// let mut messages = consumer.stream(32, Duration::from_secs(30));
    /// while let Some(message) = messages.next().await {
    ///     let message = message?;
    ///     println!("{:?}", message.body());
    ///     consumer.ack(&message).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(
        &self,
        max: u32,
        invisible: Duration,
    ) -> impl Stream<Item = Result<ReceivedMessage, ClientError>> + Send + Unpin {
        let receive = move |(mut waiting, failures): (VecDeque<ReceivedMessage>, u32)| async move {
            if failures > 0 {
                tokio::time::sleep(backoff(failures)).await;
            }
            loop {
                if let Some(message) = waiting.pop_front() {
                    return Some((Ok(message), (waiting, 0)));
                }
                match self.receive(max, invisible).await {
                    Ok(messages) => waiting = messages.into(),
                    Err(ClientError::Closed) => return None,
                    Err(error) => return Some((Err(error), (waiting, failures.saturating_add(1)))),
                }
            }
        };
        Box::pin(stream::unfold((VecDeque::new(), 0), receive))
    }

    /// The message is done with: nobody of the group gets it again.
    ///
    /// May be repeated, and is, up to three times and through the access point when the broker cannot be reached.
    /// Refused with `INVALID_RECEIPT_HANDLE` when the invisible duration was over and another delivery has begun.
    pub async fn ack(&self, message: &ReceivedMessage) -> Result<(), ClientError> {
        let mut results = self.ack_all(std::slice::from_ref(message)).await;
        results.pop().expect("there is one result for each message")
    }

    /// Acknowledges messages of any topics and brokers, one request for all of a topic and broker. There is one result
    /// for each message, in their order.
    pub async fn ack_all(&self, messages: &[ReceivedMessage]) -> Vec<Result<(), ClientError>> {
        if let Err(error) = self.consuming.client.check_open() {
            return vec![Err(error); messages.len()];
        }
        let mut groups: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (index, message) in messages.iter().enumerate() {
            groups.entry((message.endpoint(), message.topic())).or_default().push(index);
        }
        let chunks = groups.iter().flat_map(|(&(endpoint, topic), indexes)| {
            indexes.chunks(ACK_MAX_ENTRIES).map(move |chunk| (endpoint, topic, chunk))
        });
        let entry = |&index: &usize| v2::AckMessageEntry {
            message_id: messages[index].message_id().to_owned(),
            receipt_handle: messages[index].receipt_handle().to_owned(),
            lite_topic: None,
        };
        let calls = chunks.map(|(endpoint, topic, chunk)| async move {
            (chunk, self.consuming.ack(endpoint, topic, chunk.iter().map(entry).collect()).await)
        });
        let mut results: Vec<Result<(), ClientError>> = messages.iter().map(|_| Ok(())).collect();
        for (chunk, outcomes) in futures_util::future::join_all(calls).await {
            for (&index, outcome) in chunk.iter().zip(outcomes) {
                results[index] = outcome;
            }
        }
        results
    }

    /// From now on the message stays invisible for `invisible`; zero gives it back to the group at once. The handle in
    /// `message` is renewed: a copy of the message made before cannot be acknowledged any more.
    ///
    /// When this future is dropped after the server acted, the handle is lost and the message comes again.
    pub async fn change_invisible_duration(
        &self,
        message: &mut ReceivedMessage,
        invisible: Duration,
    ) -> Result<(), ClientError> {
        self.consuming.client.check_open()?;
        let handle = self.consuming.change_invisible_duration(&message.receipt(), invisible).await?;
        message.set_receipt_handle(handle);
        Ok(())
    }
}
