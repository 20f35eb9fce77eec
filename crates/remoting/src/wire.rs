//! The envelopes that carry messages, with each message left as the bytes that travelled.
//!
//! On the wire an embedded message and a bytes field are the same thing: a tag, a length, the bytes. Declaring the field
//! as bytes means that a door relays a body without looking at it, that a broker stores what the producer sent, and that
//! nothing is decoded which nobody reads. The protos stay the public ones; only the Rust types of these differ.

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

use crate::proto::v2::Status;

/// Messages of one request that are decoded; the others are passed over, for a broker takes fewer and refuses it all. Without it, 32 MiB
/// of messages without a byte would become half a GiB of slices, on a thread that others wait for.
pub const MESSAGES_DECODED_MAX: usize = 16_384;

/// `apache.rocketmq.v2.SendMessageRequest`; each element is one encoded `Message`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SendMessageRequest {
    /// Encoded `Message`s, all of one topic.
    pub messages: Vec<Bytes>,
}

impl prost::Message for SendMessageRequest {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        encoding::bytes::encode_repeated(1, &self.messages, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if self.messages.len() >= MESSAGES_DECODED_MAX {
            // Not one by one: there may be millions.
            buffer.advance(buffer.remaining());
            return Ok(());
        }
        if tag != 1 {
            return encoding::skip_field(wire_type, tag, buffer, context);
        }
        encoding::bytes::merge_repeated(wire_type, &mut self.messages, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        encoding::bytes::encoded_len_repeated(1, &self.messages)
    }

    fn clear(&mut self) {
        self.messages.clear();
    }
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

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn messages_that_no_broker_would_take_are_not_decoded() {
        let bytes =
            SendMessageRequest { messages: vec![Bytes::new(); 3 * MESSAGES_DECODED_MAX] }.encode_to_vec();
        let decoded = SendMessageRequest::decode(&bytes[..]).expect("it can be read");
        assert_eq!(decoded.messages.len(), MESSAGES_DECODED_MAX);
    }

    #[test]
    fn it_is_what_the_contract_says_and_other_fields_are_passed_over() {
        let messages = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")];
        let request = SendMessageRequest { messages };
        let bytes = request.encode_to_vec();
        assert_eq!(bytes, b"\x0a\x03one\x0a\x00\x0a\x05three");
        let more = [&b"\x10\x07"[..], &bytes, b"\x1a\x02xx"].concat();
        assert_eq!(SendMessageRequest::decode(&more[..]), Ok(request));
        assert!(SendMessageRequest::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
