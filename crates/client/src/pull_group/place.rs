//! Where it is kept how far a consumer is. Any task.

use std::sync::Arc;

use futures_util::future::join_all;

use super::file::OffsetFile;
use crate::allocate::QueueName;
use crate::error::ClientError;
use crate::pull_consumer::{MessageQueue, PullConsumer};

#[derive(Debug)]
pub(super) enum Place {
    /// At the brokers, in the name of the group: its members share the queues.
    Group,
    /// Here: this consumer reads all queues.
    File(Arc<OffsetFile>),
}

impl Place {
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Group)
    }

    /// `None`: nothing is known of the queue.
    pub(super) async fn get(
        &self,
        consumer: &PullConsumer,
        queue: &MessageQueue,
    ) -> Result<Option<i64>, ClientError> {
        match self {
            Self::Group => consumer.get_offset(queue).await,
            Self::File(file) => Ok(file.get(&queue.name())),
        }
    }

    /// The result for each queue.
    pub(super) async fn record(
        &self,
        consumer: &PullConsumer,
        offsets: Vec<(MessageQueue, i64)>,
    ) -> Vec<Result<(), ClientError>> {
        match self {
            _ if offsets.is_empty() => Vec::new(),
            Self::Group => {
                let update = |(queue, offset)| async move { consumer.update_offset(&queue, offset).await };
                join_all(offsets.into_iter().map(update)).await
            }
            Self::File(file) => {
                let count = offsets.len();
                let offsets: Vec<(QueueName, i64)> =
                    offsets.into_iter().map(|(queue, offset)| (queue.name(), offset)).collect();
                let file = file.clone();
                let stored = tokio::task::spawn_blocking(move || file.store(offsets)).await;
                // It does not panic; a runtime that ends may not run it any more.
                vec![stored.unwrap_or(Err(ClientError::Closed)); count]
            }
        }
    }
}
