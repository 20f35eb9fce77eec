//! The envelopes that carry messages, with each message left as the bytes that travelled.
//!
//! On the wire an embedded message and a bytes field are the same thing: a tag, a length, the bytes. Declaring the field
//! as bytes means that a door relays a body without looking at it, that a broker stores what the producer sent, and that
//! nothing is decoded which nobody reads. The protos stay the public ones; only the Rust types of these differ.

use bytes::Bytes;

use crate::proto::v2::Status;

/// `apache.rocketmq.v2.SendMessageRequest`; each element is one encoded `Message`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SendMessageRequest {
    /// Encoded `Message`s, all of one topic.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub messages: Vec<Bytes>,
}

/// `apache.rocketmq.v2.ReceiveMessageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReceiveMessageResponse {
    /// One of: the status of the whole call, a message, the time of delivery.
    #[prost(oneof = "receive_message_response::Content", tags = "1, 2, 3")]
    pub content: Option<receive_message_response::Content>,
}

/// The parts of [`ReceiveMessageResponse`].
pub mod receive_message_response {
    use super::{Bytes, Status};

    /// What one frame of the stream holds.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Content {
        /// The result of the call; exactly one frame of a stream.
        #[prost(message, tag = "1")]
        Status(Status),
        /// One encoded `Message`.
        #[prost(bytes = "bytes", tag = "2")]
        Message(Bytes),
        /// When the broker handed the messages out.
        #[prost(message, tag = "3")]
        DeliveryTimestamp(prost_types::Timestamp),
    }
}

/// `apache.rocketmq.v2.PullMessageResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PullMessageResponse {
    /// One of: the status of the whole call, a message, where to pull from next.
    #[prost(oneof = "pull_message_response::Content", tags = "1, 2, 3")]
    pub content: Option<pull_message_response::Content>,
}

/// The parts of [`PullMessageResponse`].
pub mod pull_message_response {
    use super::{Bytes, Status};

    /// What one frame of the stream holds.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Content {
        /// The result of the call; exactly one frame of a stream.
        #[prost(message, tag = "1")]
        Status(Status),
        /// One encoded `Message`.
        #[prost(bytes = "bytes", tag = "2")]
        Message(Bytes),
        /// The offset of the next pull.
        #[prost(int64, tag = "3")]
        NextOffset(i64),
    }
}
