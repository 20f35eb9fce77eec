//! Pulling: queues are read from an offset on, and the place in them is the caller's own affair.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use karman_remoting::proto::v2;
use karman_remoting::proto::v2::pull_message_response::Content;
use tokio::time::Instant;
use tonic::Streaming;

use crate::allocate::QueueName;
use crate::consuming::Consuming;
use crate::error::ClientError;
use crate::message::{FilterExpression, duration};
use crate::route::{BrokerRoute, resource};
use crate::transport::answer;
use crate::view::MessageView;

/// A queue of a topic.
#[derive(Clone, PartialEq)]
pub struct MessageQueue {
    topic: Arc<str>,
    broker: Arc<BrokerRoute>,
    id: i32,
}

impl fmt::Debug for MessageQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.broker.name, self.id)
    }
}

impl MessageQueue {
    /// The topic it belongs to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The name of its broker.
    pub fn broker(&self) -> &str {
        &self.broker.name
    }

    /// Its number on that broker.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// What tells it from all others.
    ///
    /// ```no_run
    /// # use karman_client::{ClientError, PullConsumer};
    /// # async fn example(consumer: PullConsumer) -> Result<(), ClientError> {
    /// for queue in consumer.queues("orders").await? {
    ///     println!("{}", queue.name());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn name(&self) -> QueueName {
        QueueName::new(&*self.topic, &*self.broker.name, self.id)
    }

    fn to_proto(&self) -> v2::MessageQueue {
        self.broker.queue(&self.topic, self.id)
    }
}

/// A place in a queue, to be found by [`PullConsumer::query_offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryOffset {
    /// Of the first message that is still stored.
    Beginning,
    /// Behind the last message: the next one gets it.
    End,
    /// Of the first message that was stored at this time or later.
    Time(SystemTime),
}

/// What a pull has brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Pulled {
    /// In the order of the queue.
    pub messages: Vec<MessageView>,
    /// Where to pull next. It may have moved without a message: what the filter does not want is passed over.
    pub next_offset: i64,
}

/// Reads queues. Pulling changes nothing at the broker: several consumers may read the same queue, each its own way.
/// Its methods may be called by many tasks at once.
#[derive(Debug)]
pub struct PullConsumer(Consuming);

impl PullConsumer {
    pub(crate) fn new(consuming: Consuming) -> Self {
        Self(consuming)
    }

    pub(crate) fn consuming(&self) -> &Consuming {
        &self.0
    }

    /// The readable queues of `topic`, on all brokers.
    pub async fn queues(&self, topic: &str) -> Result<Vec<MessageQueue>, ClientError> {
        self.0.client.check_open()?;
        let route = self.0.session.routes.get(topic).await?;
        self.0.session.declare(topic);
        let name: Arc<str> = topic.into();
        let queue = |(broker, id): &(Arc<BrokerRoute>, i32)| MessageQueue {
            topic: name.clone(),
            broker: broker.clone(),
            id: *id,
        };
        Ok(route.queues().iter().map(queue).collect())
    }

    /// Up to `max` messages (a server gives at most 32 at once) from `offset` on that `filter` wants; none when there was
    /// none for `wait`, of which servers take at most 20 s.
    ///
    /// Refused with `ILLEGAL_OFFSET` when the queue does not reach from its beginning to `offset`; the text says from where
    /// to where it does.
    pub async fn pull(
        &self,
        queue: &MessageQueue,
        offset: i64,
        max: u32,
        filter: &FilterExpression,
        wait: Duration,
    ) -> Result<Pulled, ClientError> {
        self.0.client.check_open()?;
        let transport = &self.0.session.transport;
        let endpoint = &queue.broker.endpoint;
        let timeout = wait.saturating_add(transport.request_timeout);
        let deadline = Instant::now() + timeout;
        let request = v2::PullMessageRequest {
            group: Some(resource(&self.0.group)),
            message_queue: Some(queue.to_proto()),
            offset,
            batch_size: i32::try_from(max).unwrap_or(i32::MAX),
            filter_expression: Some(filter.to_proto()),
            long_polling_timeout: Some(duration(wait)),
        };
        let mut service = transport.service(endpoint)?;
        let call = service.pull_message(transport.request(request, timeout));
        let pulled = match answer(endpoint, timeout, call).await {
            Ok(frames) => tokio::time::timeout_at(deadline, collect(frames, endpoint, timeout, offset))
                .await
                .unwrap_or_else(|_| Err(ClientError::Timeout { endpoint: endpoint.clone(), timeout })),
            Err(error) => Err(error),
        };
        if let Err(error) = &pulled {
            self.0.session.learn(&queue.topic, error);
        }
        pulled
    }

    /// Where the group is in a queue: everything in front of the offset is done. `None`: it has not read there.
    pub async fn get_offset(&self, queue: &MessageQueue) -> Result<Option<i64>, ClientError> {
        self.0.client.check_open()?;
        let transport = &self.0.session.transport;
        let (endpoint, timeout) = (&queue.broker.endpoint, transport.request_timeout);
        let request = v2::GetOffsetRequest {
            group: Some(resource(&self.0.group)),
            message_queue: Some(queue.to_proto()),
        };
        let mut service = transport.service(endpoint)?;
        let response =
            answer(endpoint, timeout, service.get_offset(transport.request(request, timeout))).await?;
        match ClientError::of_status(endpoint, response.status) {
            Err(error) if error.code() == Some(v2::Code::OffsetNotFound) => Ok(None),
            result => result.map(|()| Some(response.offset)),
        }
    }

    /// Says where the group is in a queue from now on, also backwards. It is the same progress that the group's receiving
    /// consumers move by their acknowledgements.
    pub async fn update_offset(&self, queue: &MessageQueue, offset: i64) -> Result<(), ClientError> {
        self.0.client.check_open()?;
        let transport = &self.0.session.transport;
        let (endpoint, timeout) = (&queue.broker.endpoint, transport.request_timeout);
        let request = v2::UpdateOffsetRequest {
            group: Some(resource(&self.0.group)),
            message_queue: Some(queue.to_proto()),
            offset,
        };
        let mut service = transport.service(endpoint)?;
        let call = service.update_offset(transport.request(request, timeout));
        ClientError::of_status(endpoint, answer(endpoint, timeout, call).await?.status)
    }

    /// Finds a place in a queue.
    pub async fn query_offset(&self, queue: &MessageQueue, place: QueryOffset) -> Result<i64, ClientError> {
        self.0.client.check_open()?;
        let transport = &self.0.session.transport;
        let (endpoint, timeout) = (&queue.broker.endpoint, transport.request_timeout);
        let (policy, timestamp) = match place {
            QueryOffset::Beginning => (v2::QueryOffsetPolicy::Beginning, None),
            QueryOffset::End => (v2::QueryOffsetPolicy::End, None),
            QueryOffset::Time(time) => (v2::QueryOffsetPolicy::Timestamp, Some(time.into())),
        };
        let request = v2::QueryOffsetRequest {
            message_queue: Some(queue.to_proto()),
            query_offset_policy: policy.into(),
            timestamp,
        };
        let mut service = transport.service(endpoint)?;
        let call = service.query_offset(transport.request(request, timeout));
        let response = answer(endpoint, timeout, call).await?;
        ClientError::of_status(endpoint, response.status).map(|()| response.offset)
    }
}

/// Reads a stream to its end.
async fn collect(
    mut frames: Streaming<v2::PullMessageResponse>,
    endpoint: &str,
    timeout: Duration,
    offset: i64,
) -> Result<Pulled, ClientError> {
    let mut status = None;
    let mut pulled = Pulled { messages: Vec::new(), next_offset: offset };
    while let Some(frame) =
        frames.message().await.map_err(|error| ClientError::transport(endpoint, timeout, &error))?
    {
        match frame.content {
            Some(Content::Status(said)) => status = Some(said),
            Some(Content::Message(bytes)) => pulled.messages.push(MessageView::decode(bytes, endpoint)?),
            Some(Content::NextOffset(next)) => pulled.next_offset = next,
            None => {}
        }
    }
    match ClientError::of_status(endpoint, status) {
        Err(error) if error.code() == Some(v2::Code::MessageNotFound) => Ok(pulled),
        result => result.map(|()| pulled),
    }
}
