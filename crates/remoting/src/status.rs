//! Why a request is refused, and the one place where that becomes a `Code`.
//!
//! Business results travel in the body as `Status` with gRPC status OK: to the official clients a gRPC error means a
//! broken transport, and they isolate the endpoint. Every text names the value and the rule it broke. Pure; any thread.

use crate::proto::karman as v1;
use crate::proto::v2::{self, Code, Status};

/// A request that is not carried out, and why. `Display` is the text that the client's user reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is its message")]
pub enum Rejection {
    #[error("the request has no x-mq-client-id header; every client sends its id with every call")]
    ClientIdRequired,
    #[error("topic name {name:?} is refused: {rule}")]
    IllegalTopic { name: String, rule: &'static str },
    #[error("consumer group name {name:?} is refused: {rule}")]
    IllegalGroup { name: String, rule: &'static str },
    #[error("CODE: 17  DESC: No topic route info in name server for the topic: {topic}")]
    TopicNotFound { topic: String },
    #[error(
        "consumer group {group:?} does not exist; create it first (autoCreateSubscriptionGroup does it at the first use)"
    )]
    GroupNotFound { group: String },
    #[error("broker {broker:?} is not in the route table: it left the cluster or never was in it")]
    UnknownBroker { broker: String },
    #[error("message {index} is not a readable Message: {why}")]
    MessageCorrupted { index: usize, why: String },
    #[error("the request holds no message")]
    NoMessage,
    #[error("the request holds {count} messages, the limit is {limit}; send smaller batches")]
    TooManyMessages { count: usize, limit: usize },
    #[error("a batch goes to one topic, this one names {first:?} and {other:?}")]
    MixedTopics { first: String, other: String },
    #[error("the body of message {index} is empty")]
    BodyEmpty { index: usize },
    #[error("the body of message {index} has {size} bytes, the limit is {limit}")]
    BodyTooLarge { index: usize, size: usize, limit: usize },
    #[error("the bodies of the batch have {size} bytes together, the limit is {limit}; send smaller batches")]
    BatchTooLarge { size: usize, limit: usize },
    #[error("message {index} has {count} user properties, the limit is {limit}")]
    TooManyProperties { index: usize, count: usize, limit: usize },
    #[error("the properties, keys and tag of message {index} have {size} bytes, the limit is {limit}")]
    PropertiesTooLarge { index: usize, size: usize, limit: usize },
    #[error("user property {key:?} of message {index} is refused: {rule}")]
    IllegalPropertyKey { index: usize, key: String, rule: &'static str },
    #[error("tag {tag:?} of message {index} is refused: {rule}")]
    IllegalTag { index: usize, tag: String, rule: &'static str },
    #[error("key {key:?} of message {index} is refused: {rule}")]
    IllegalKey { index: usize, key: String, rule: &'static str },
    #[error("the message id of message {index} is refused: {rule}")]
    IllegalMessageId { index: usize, rule: &'static str },
    #[error("the message group of message {index} is refused: {rule}")]
    IllegalMessageGroup { index: usize, rule: &'static str },
    #[error(
        "message {index} is to be delivered {millis_ahead} ms from now, the limit is {limit} ms (maxDelayTimeMills)"
    )]
    IllegalDeliveryTime { index: usize, millis_ahead: u64, limit: u64 },
    #[error("message {index} is a {declared} message, topic {topic:?} takes {accepted}")]
    TypeConflict { index: usize, topic: String, declared: &'static str, accepted: &'static str },
    #[error("message {index} says it is a {declared} message, its properties make it a {derived} message")]
    TypeMismatch { index: usize, declared: &'static str, derived: &'static str },
    #[error("filter expression {expression:?} is refused: {rule}")]
    IllegalFilter { expression: String, rule: String },
    #[error("invisible duration {millis} ms is refused: it must be between {min_millis} and {max_millis} ms")]
    IllegalInvisibleTime { millis: i64, min_millis: i64, max_millis: i64 },
    #[error("a long polling timeout of {seconds} s is refused: it must not be negative")]
    IllegalPollingTime { seconds: i64 },
    #[error("receipt handle is refused: {why}")]
    InvalidReceiptHandle { why: &'static str },
    #[error("transaction id is refused: {why}")]
    InvalidTransactionId { why: &'static str },
    #[error("recall handle is refused: {why}")]
    InvalidRecallHandle { why: &'static str },
    #[error("offset {offset} is refused: it must be between {min} and {max}")]
    IllegalOffset { offset: i64, min: u64, max: u64 },
    #[error("consumer group {group:?} has no offset in queue {queue_id} of topic {topic:?} yet")]
    OffsetNotFound { group: String, topic: String, queue_id: u32 },
    #[error(
        "client {client_id:?} has no telemetry stream to any broker: it is gone, or a moment ago it reconnected"
    )]
    ClientNotConnected { client_id: String },
    #[error("the request did not arrive whole within {seconds} s")]
    BodyTimeout { seconds: u64 },
    #[error("no answer from client {client_id:?}: {why}")]
    ClientSilent { client_id: String, why: String },
    #[error("{what} is not there")]
    MessageNotFound { what: String },
    #[error("lite topic name {name:?} is refused: {rule}")]
    IllegalLiteTopic { name: String, rule: &'static str },
    #[error("topic {topic:?} has {limit} lite topics, the most it may have")]
    LiteTopicQuotaExceeded { topic: String, limit: usize },
    #[error("{subscriber} would subscribe to {count} lite topics, the limit is {limit}")]
    LiteSubscriptionQuotaExceeded { subscriber: String, count: usize, limit: usize },
    #[error("{what} does not exist")]
    UserNotFound { what: String },
    /// It is not known who calls, or who calls may not do this.
    #[error("{0}")]
    Unauthorized(String),
    #[error("{what} is not allowed: {rule}")]
    Forbidden { what: String, rule: &'static str },
    #[error("{0}")]
    BadRequest(String),
    #[error("too many requests: {0}")]
    TooManyRequests(String),
    #[error("{capability} is not implemented by this version")]
    NotImplemented { capability: &'static str },
    #[error("broker {broker:?} did not answer in time: {why}")]
    PeerTimeout { broker: String, why: String },
    #[error("broker {broker:?} cannot be reached from here: {why}")]
    PeerUnavailable { broker: String, why: String },
    #[error("not flushed within {timeout_ms} ms; it is stored when the disk comes back, or lost with it")]
    PersistenceTimeout { timeout_ms: u64 },
    #[error(
        "fewer than {needed} brokers of the set have it within {timeout_ms} ms; it is stored, and seen when they do"
    )]
    ReplicationTimeout { needed: usize, timeout_ms: u64 },
    #[error(
        "{count} brokers of the set are in sync, this one included, and {needed} are needed: start its slaves"
    )]
    TooFewReplicas { count: usize, needed: usize },
    #[error("the store takes no more messages: {0}")]
    StoreFull(String),
    #[error("internal error: {0}")]
    Internal(String),
}

impl Rejection {
    /// The code a client sees, after `StatusCode.md` of the public contract.
    pub fn code(&self) -> Code {
        match self {
            Self::ClientIdRequired => Code::ClientIdRequired,
            Self::IllegalTopic { .. } => Code::IllegalTopic,
            Self::IllegalGroup { .. } => Code::IllegalConsumerGroup,
            Self::TopicNotFound { .. } => Code::TopicNotFound,
            Self::GroupNotFound { .. } => Code::ConsumerGroupNotFound,
            Self::MessageCorrupted { .. } | Self::NoMessage | Self::MixedTopics { .. } => {
                Code::MessageCorrupted
            }
            Self::BodyEmpty { .. } => Code::MessageBodyEmpty,
            Self::BodyTooLarge { .. } | Self::BatchTooLarge { .. } | Self::TooManyMessages { .. } => {
                Code::MessageBodyTooLarge
            }
            Self::TooManyProperties { .. } | Self::PropertiesTooLarge { .. } => {
                Code::MessagePropertiesTooLarge
            }
            Self::IllegalPropertyKey { .. } => Code::IllegalMessagePropertyKey,
            Self::IllegalTag { .. } => Code::IllegalMessageTag,
            Self::IllegalKey { .. } => Code::IllegalMessageKey,
            Self::IllegalMessageId { .. } => Code::IllegalMessageId,
            Self::IllegalMessageGroup { .. } => Code::IllegalMessageGroup,
            Self::IllegalDeliveryTime { .. } => Code::IllegalDeliveryTime,
            Self::TypeConflict { .. } | Self::TypeMismatch { .. } => Code::MessagePropertyConflictWithType,
            Self::IllegalFilter { .. } => Code::IllegalFilterExpression,
            Self::IllegalInvisibleTime { .. } => Code::IllegalInvisibleTime,
            Self::IllegalPollingTime { .. } => Code::IllegalPollingTime,
            Self::InvalidReceiptHandle { .. } => Code::InvalidReceiptHandle,
            Self::InvalidTransactionId { .. } => Code::InvalidTransactionId,
            Self::IllegalOffset { .. } => Code::IllegalOffset,
            Self::OffsetNotFound { .. } => Code::OffsetNotFound,
            Self::MessageNotFound { .. } => Code::MessageNotFound,
            Self::IllegalLiteTopic { .. } => Code::IllegalLiteTopic,
            Self::LiteTopicQuotaExceeded { .. } => Code::LiteTopicQuotaExceeded,
            Self::LiteSubscriptionQuotaExceeded { .. } => Code::LiteSubscriptionQuotaExceeded,
            Self::Forbidden { .. } => Code::Forbidden,
            // The contract has no code of its own for recall handles.
            Self::BadRequest(_) | Self::UnknownBroker { .. } | Self::InvalidRecallHandle { .. } => {
                Code::BadRequest
            }
            Self::TooManyRequests(_) => Code::TooManyRequests,
            Self::NotImplemented { .. } => Code::NotImplemented,
            Self::ClientNotConnected { .. } | Self::UserNotFound { .. } => Code::NotFound,
            Self::Unauthorized(_) => Code::Unauthorized,
            Self::ClientSilent { .. } | Self::BodyTimeout { .. } => Code::RequestTimeout,
            Self::PeerTimeout { .. } => Code::ProxyTimeout,
            Self::PersistenceTimeout { .. } => Code::MasterPersistenceTimeout,
            Self::ReplicationTimeout { .. } => Code::SlavePersistenceTimeout,
            Self::TooFewReplicas { .. } => Code::HaNotAvailable,
            Self::PeerUnavailable { .. } | Self::StoreFull(_) | Self::Internal(_) => {
                Code::InternalServerError
            }
        }
    }
}

impl From<&Rejection> for Status {
    fn from(rejection: &Rejection) -> Self {
        Self { code: rejection.code().into(), message: rejection.to_string() }
    }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        Self::from(&rejection)
    }
}

/// `OK`, the way the reference words it.
pub fn ok() -> Status {
    Status { code: Code::Ok.into(), message: "OK".into() }
}

/// The status over several entries: their common code, or MULTIPLE_RESULTS.
pub fn summary<'a>(entries: impl IntoIterator<Item = &'a Status>) -> Status {
    let mut entries = entries.into_iter();
    let Some(first) = entries.next() else { return ok() };
    if entries.all(|other| other.code == first.code) {
        first.clone()
    } else {
        Status { code: Code::MultipleResults.into(), message: "see the status of each entry".into() }
    }
}

/// An answer of a node that says itself how the call went; every one of these has a `status`.
pub trait Answer: Sized {
    /// The answer that is nothing but a status.
    fn of(status: Status) -> Self;
    /// How the call went, on the whole.
    fn status(&self) -> Option<&Status>;
    /// How it went on each broker, where the answer tells.
    fn brokers(&self) -> &[v1::BrokerResult] {
        &[]
    }
    /// `Err` with the status unless that is OK.
    fn judged(self) -> Result<Self, Status> {
        match self.status() {
            Some(status) if status.code() == Code::Ok => Ok(self),
            Some(status) => Err(status.clone()),
            None => Err(Rejection::Internal("a broker answered without a status".into()).into()),
        }
    }
}

macro_rules! answers {
    ($($response:ty),* $(,)? ; of brokers $($of_brokers:ty),* $(,)?) => {
        $(answers!(@one $response {});)*
        $(answers!(@one $of_brokers {
            fn brokers(&self) -> &[v1::BrokerResult] {
                &self.brokers
            }
        });)*
    };
    (@one $response:ty { $($brokers:item)? }) => {
        impl Answer for $response {
            #[allow(clippy::needless_update, reason = "some have nothing but a status")]
            fn of(status: Status) -> Self {
                Self { status: Some(status), ..Default::default() }
            }

            fn status(&self) -> Option<&Status> {
                self.status.as_ref()
            }

            $($brokers)?
        }

        impl From<Rejection> for $response {
            fn from(rejection: Rejection) -> Self {
                Self::of(rejection.into())
            }
        }
    };
}

answers! {
    v2::QueryRouteResponse, v2::HeartbeatResponse, v2::SendMessageResponse, v2::QueryAssignmentResponse,
    v2::AckMessageResponse, v2::ForwardMessageToDeadLetterQueueResponse, v2::UpdateOffsetResponse,
    v2::GetOffsetResponse, v2::QueryOffsetResponse, v2::EndTransactionResponse, v2::NotifyClientTerminationResponse,
    v2::ChangeInvisibleDurationResponse, v2::RecallMessageResponse, v2::SyncLiteSubscriptionResponse,
    v1::ListTopicsResponse, v1::DescribeTopicResponse, v1::ListGroupsResponse, v1::DescribeClusterResponse,
    v1::QueryMessagesResponse, v1::VerifyStoreResponse, v1::DescribeGroupResponse, v1::ResetOffsetResponse,
    v1::RedriveDeadLettersResponse, v1::ExplainMessageResponse, v1::ListClientsResponse, v1::AskClientResponse,
    v1::ForgetSubscriptionResponse, v1::DescribeControllerResponse, v1::ElectResponse, v1::RemoveMemberResponse,
    v1::ChangeControllersResponse, v1::ListUsersResponse, v1::StoreUserResponse,
    v1::DrainMemberResponse, v1::ListDelayedResponse, v1::RestoreMessagesResponse,
    v1::DescribeConfigResponse;
    of brokers
    v1::CreateTopicResponse, v1::DeleteTopicResponse, v1::UpdateTopicResponse, v1::CreateGroupResponse,
    v1::UpdateGroupResponse, v1::DeleteGroupResponse, v1::ChangeUserResponse,
}

/// What a handler's result says to the client: its answer, or a refusal in the same form.
pub fn answer<T: From<Rejection>>(result: Result<T, Rejection>) -> Result<tonic::Response<T>, tonic::Status> {
    Ok(tonic::Response::new(result.unwrap_or_else(T::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_the_value_and_the_limit() {
        let cases = [
            (
                Rejection::IllegalDeliveryTime { index: 2, millis_ahead: 90_000_000, limit: 86_400_000 },
                Code::IllegalDeliveryTime,
                ["message 2", "90000000", "86400000"],
            ),
            (Rejection::IllegalOffset { offset: -1, min: 3, max: 9 }, Code::IllegalOffset, ["-1", "3", "9"]),
            (
                Rejection::OffsetNotFound { group: "g".into(), topic: "orders".into(), queue_id: 5 },
                Code::OffsetNotFound,
                ["\"g\"", "orders", "5"],
            ),
            (
                Rejection::LiteSubscriptionQuotaExceeded {
                    subscriber: "client \"c\"".into(),
                    count: 2001,
                    limit: 2000,
                },
                Code::LiteSubscriptionQuotaExceeded,
                ["client \"c\"", "2001", "2000"],
            ),
        ];
        for (rejection, code, named) in cases {
            let status = Status::from(&rejection);
            assert_eq!(status.code, code as i32, "{rejection:?}");
            assert!(named.iter().all(|named| status.message.contains(named)), "{}", status.message);
        }
    }
}
