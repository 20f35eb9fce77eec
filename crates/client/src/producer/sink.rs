//! Messages from a stream: the batching producer as a `Sink`. On the task that polls it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, Sink, Stream as _};

use crate::error::ClientError;
use crate::message::Message;
use crate::producer::{BatchingProducer, Delivery};

/// Takes messages like a [`BatchingProducer`]; made by [`BatchingProducer::into_sink`].
///
/// It is ready while the buffer has room. The first message that is not stored is the error of the next call; flushing
/// returns when all are stored. Messages that were taken are sent even when the sink is dropped.
///
/// ```no_run
/// # use futures_util::{SinkExt as _, StreamExt as _, stream};
/// # use karman_client::{BatchingOptions, Client, ClientError, Message};
/// # async fn example(client: Client) -> Result<(), ClientError> {
/// let orders = stream::iter(0..1000).map(|n| Ok(Message::new("orders", format!("order {n}"))));
/// let mut sink = client.producer().batching(&BatchingOptions::default()).into_sink();
/// sink.send_all(&mut orders.boxed()).await?;
/// # Ok(())
/// # }
/// ```
pub struct BatchingSink {
    producer: BatchingProducer,
    /// The message that waits for room.
    entering: Option<BoxFuture<'static, Result<Delivery, ClientError>>>,
    deliveries: FuturesUnordered<Delivery>,
}

impl fmt::Debug for BatchingSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchingSink").field("unanswered", &self.deliveries.len()).finish_non_exhaustive()
    }
}

impl BatchingSink {
    pub(super) fn new(producer: BatchingProducer) -> Self {
        Self { producer, entering: None, deliveries: FuturesUnordered::new() }
    }

    fn poll_entering(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        if let Some(entering) = &mut self.entering {
            let entered = ready!(entering.poll_unpin(context));
            self.entering = None;
            self.deliveries.push(entered?);
        }
        Poll::Ready(Ok(()))
    }
}

impl Sink<Message> for BatchingSink {
    type Error = ClientError;

    fn poll_ready(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        ready!(self.poll_entering(context))?;
        while let Poll::Ready(Some(result)) = Pin::new(&mut self.deliveries).poll_next(context) {
            result?;
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), ClientError> {
        let producer = self.producer.clone();
        self.entering = Some(async move { producer.enqueue(message).await }.boxed());
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        ready!(self.poll_entering(context))?;
        self.producer.hurry();
        while let Some(result) = ready!(Pin::new(&mut self.deliveries).poll_next(context)) {
            result?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.poll_flush(context)
    }
}
