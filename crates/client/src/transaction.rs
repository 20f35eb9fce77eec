//! Transactions: a message that is seen when a decision of the application says so, and not at all otherwise.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use karman_remoting::proto::v2;

use crate::error::ClientError;
use crate::message::Message;
use crate::producer::{Producer, SendReceipt};
use crate::route::resource;
use crate::transport::{Transport, answer};
use crate::view::MessageView;

/// What became of the application's part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is done: consumers may see the message.
    Commit,
    /// It is not done and will not be: nobody ever sees the message.
    Rollback,
    /// It cannot be said yet: the checker is asked later.
    Unknown,
}

/// Says what became of the transaction of a message that the server has no decision for.
#[derive(Clone)]
pub(crate) struct Checker(Arc<dyn Fn(MessageView) -> BoxFuture<'static, Resolution> + Send + Sync>);

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checker").finish_non_exhaustive()
    }
}

impl Checker {
    pub(crate) fn new<F, D>(check: F) -> Self
    where
        F: Fn(MessageView) -> D + Send + Sync + 'static,
        D: Future<Output = Resolution> + Send + 'static,
    {
        Self(Arc::new(move |message| Box::pin(check(message))))
    }

    /// Answers a server's question, to the node that asked.
    pub(crate) async fn answer(
        self,
        transport: Transport,
        endpoint: String,
        command: v2::RecoverOrphanedTransactionCommand,
    ) {
        let view = command.message.map(|message| MessageView::of(message, &endpoint));
        let view = match view {
            Some(Ok(view)) => view,
            Some(Err(error)) => return tracing::warn!(%error, "a check of a transaction cannot be read"),
            None => return tracing::warn!(endpoint, "a check of a transaction has no message"),
        };
        let (topic, message_id) = (view.topic().to_owned(), view.message_id().to_owned());
        let resolution = (self.0)(view).await;
        tracing::debug!(message_id, ?resolution, "transaction checked");
        let Some(resolution) = to_proto(resolution) else { return };
        let end = v2::EndTransactionRequest {
            topic: Some(resource(&topic)),
            message_id: message_id.clone(),
            transaction_id: command.transaction_id,
            resolution: resolution.into(),
            source: v2::TransactionSource::SourceServerCheck.into(),
            trace_context: String::new(),
        };
        if let Err(error) = end_transaction(&transport, &endpoint, end).await {
            tracing::warn!(message_id, %error, "the answer to a check was not taken; the server asks again");
        }
    }
}

fn to_proto(resolution: Resolution) -> Option<v2::TransactionResolution> {
    match resolution {
        Resolution::Commit => Some(v2::TransactionResolution::Commit),
        Resolution::Rollback => Some(v2::TransactionResolution::Rollback),
        Resolution::Unknown => None,
    }
}

/// Tells a decision; saying it twice is saying it once.
async fn end_transaction(
    transport: &Transport,
    endpoint: &str,
    request: v2::EndTransactionRequest,
) -> Result<(), ClientError> {
    let timeout = transport.request_timeout;
    let end = |endpoint: Arc<str>| {
        let request = transport.request(request.clone(), timeout);
        async move {
            let mut service = transport.service(&endpoint)?;
            let response = answer(&endpoint, timeout, service.end_transaction(request)).await?;
            ClientError::of_status(&endpoint, response.status)
        }
    };
    transport.repeated(endpoint, end).await
}

/// A half message and its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// What the message is known by.
    pub receipt: SendReceipt,
    /// What the application decided.
    pub resolution: Resolution,
    /// Why the server could not be told the decision: it will ask the checker. `None`: it knows.
    pub untold: Option<ClientError>,
}

/// Sends messages that are part of transactions. A clone is a handle to the same producer.
///
/// The checker that [`Client::transaction_producer`](crate::Client::transaction_producer) was given is asked about every
/// message of its topics that was left without a decision, by whichever producer: one that crashed, one whose decision
/// was [`Resolution::Unknown`] or got lost on its way.
#[derive(Clone, Debug)]
pub struct TransactionProducer(Producer);

impl TransactionProducer {
    pub(crate) fn new(producer: Producer) -> Self {
        Self(producer)
    }

    /// For messages that are part of no transaction.
    pub fn producer(&self) -> &Producer {
        &self.0
    }

    /// Stores `message` where no consumer sees it, then runs `decide`, then tells the server the decision: consumers see
    /// the message if, and only if, that is [`Resolution::Commit`].
    ///
    /// `decide` is where the application does its own part and writes down that it did, so that the checker can tell.
    /// Fails when the message could not be stored; `decide` does not run then. When this future is dropped before the
    /// decision, and when `decide` panics, the checker is asked.
    ///
    /// When `decide` takes longer than [`Message::check_after`], the checker is asked meanwhile, and the server goes by the
    /// first decision that it hears. So a checker that finds nothing says [`Resolution::Unknown`] as long as the transaction
    /// may be under way, or writes down that it can no more be done before it says [`Resolution::Rollback`].
    ///
    /// ```no_run
    /// # use karman_client::{Client, ClientError, Message, Resolution};
    /// # async fn is_in_database(order: &str) -> bool { true }
    /// # async fn insert_into_database(order: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let producer = client.transaction_producer(["orders"], |message| async move {
    ///     match message.keys().first() {
    ///         Some(order) if is_in_database(order).await => Resolution::Commit,
    ///         _ => Resolution::Rollback,
    ///     }
    /// });
    /// let message = Message::new("orders", "a book").key("17");
    /// let transaction = producer.transaction(message, |_| async {
    ///     match insert_into_database("17").await {
    ///         Ok(()) => Resolution::Commit,
    ///         Err(_) => Resolution::Rollback,
    ///     }
    /// });
    /// println!("{:?}", transaction.await?.resolution);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// An attempt whose outcome is not known is repeated at the same broker, which tells by the message id whether it has
    /// the message: there is one message for each transaction, at most.
    pub async fn transaction<F, D>(&self, message: Message, decide: F) -> Result<Transaction, ClientError>
    where
        F: FnOnce(SendReceipt) -> D,
        D: Future<Output = Resolution>,
    {
        let topic = message.topic().to_owned();
        let half = self.0.send_half(message).await?;
        let resolution = decide(half.receipt.clone()).await;
        let untold = match to_proto(resolution) {
            None => None,
            Some(resolution) => {
                let end = v2::EndTransactionRequest {
                    topic: Some(resource(&topic)),
                    message_id: half.receipt.message_id.clone(),
                    transaction_id: half.transaction_id,
                    resolution: resolution.into(),
                    source: v2::TransactionSource::SourceClient.into(),
                    trace_context: String::new(),
                };
                end_transaction(self.0.transport(), &half.endpoint, end).await.err()
            }
        };
        Ok(Transaction { receipt: half.receipt, resolution, untold })
    }
}
