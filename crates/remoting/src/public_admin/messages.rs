//! Messages: finding, sending, and what clients do with one.

use bytes::Bytes;
use prost::Message as _;
use tonic::metadata::MetadataValue;

use super::{PublicAdmin, millis, name_of, resource, timestamp};
use crate::admin_front::QUERY_MAX;
use crate::proto::karman as v1;
use crate::proto::karman::ask_client_request::Question;
use crate::proto::karman::query_messages_request::By;
use crate::proto::v2::list_message_request::SearchKey;
use crate::proto::v2::messaging_service_server::MessagingService as _;
use crate::proto::v2::{self, Status};
use crate::status::Rejection;

/// Who sends what an operator sends.
const CLIENT_ID: &str = "karman-admin";

impl PublicAdmin {
    /// The last stored first; by time the first stored first, as there are no more than are asked for.
    pub(super) async fn list_messages(
        &self,
        request: v2::ListMessageRequest,
    ) -> Result<v2::ListMessageResponse, Status> {
        let by = match request.search_key {
            Some(SearchKey::MessageId(id)) => By::MessageId(id),
            Some(SearchKey::MessageKey(key)) => By::Key(key),
            Some(SearchKey::Subscription(_)) => {
                return Err(
                    Rejection::NotImplemented { capability: "finding messages by subscription" }.into()
                );
            }
            Some(SearchKey::LiteTopic(_)) => {
                return Err(Rejection::NotImplemented { capability: "finding messages by lite topic" }.into());
            }
            None => By::Time(true),
        };
        let count = |asked: i32| u32::try_from(asked).ok().filter(|&count| count > 0);
        let max = count(request.max_message_nums).unwrap_or(QUERY_MAX).min(QUERY_MAX);
        let query = v1::QueryMessagesRequest {
            topic: name_of(request.topic.clone()),
            by: Some(by),
            broker_name: request.broker_name.unwrap_or_default(),
            begin_ms: request.begin_timestamp.as_ref().map_or(0, millis),
            end_ms: request.end_timestamp.as_ref().map_or(0, millis),
            max,
        };
        let mut found = ask!(self, query_messages, query)?.messages;
        if let Some(queue_id) = request.queue_id {
            found.retain(|stored| i64::from(stored.queue_id) == i64::from(queue_id));
        }
        let size = request.page_size.and_then(count).unwrap_or(QUERY_MAX) as usize;
        let skipped =
            request.page_num.and_then(count).map_or(0, |page| (page as usize - 1).saturating_mul(size));
        let page = found.into_iter().skip(skipped).take(size);
        let messages = page.map(message_of).collect::<Result<Vec<_>, _>>()?;
        Ok(v2::ListMessageResponse { messages, ..Default::default() })
    }

    pub(super) async fn send(
        &self,
        request: v2::AdminSendMessageRequest,
    ) -> Result<v2::AdminSendMessageResponse, Status> {
        let mut system = request.system_properties.unwrap_or_default();
        system.tag = request.tag.or(system.tag);
        system.keys.extend(request.key);
        if system.message_id.is_empty() {
            system.message_id = format!("01{:032X}", rand::random::<u128>());
        }
        let message = v2::Message {
            topic: request.topic,
            user_properties: request.user_properties,
            system_properties: Some(system),
            body: request.body,
        };
        let messages = vec![Bytes::from(message.encode_to_vec())];
        let mut request = self.own(v2::SendMessageRequest { messages });
        request.metadata_mut().insert("x-mq-client-id", MetadataValue::from_static(CLIENT_ID));
        let answered = self.front.send_message(request).await;
        let answer =
            answered.map_err(|status| Rejection::Internal(status.message().to_owned()))?.into_inner();
        match (answer.status, answer.entries.into_iter().next()) {
            (_, Some(v2::SendResultEntry { status: Some(status), message_id, .. }))
                if status.code() == v2::Code::Ok =>
            {
                Ok(v2::AdminSendMessageResponse { message_id, ..Default::default() })
            }
            (_, Some(v2::SendResultEntry { status: Some(status), .. })) | (Some(status), _) => Err(status),
            (None, _) => Err(Rejection::Internal("a send was answered without a status".into()).into()),
        }
    }

    pub(super) async fn threads(
        &self,
        request: v2::PrintThreadStackTraceRequest,
    ) -> Result<v2::PrintThreadStackTraceResponse, Status> {
        let question = Some(Question::Threads(true));
        let answer = ask!(self, ask_client, v1::AskClientRequest { client_id: request.client_id, question })?;
        let thread_stack_trace = Some(answer.text);
        Ok(v2::PrintThreadStackTraceResponse { thread_stack_trace, ..Default::default() })
    }

    /// A client consumes a stored message once more, for a test; no progress moves.
    pub(super) async fn verify(
        &self,
        request: v2::VerifyMessageRequest,
    ) -> Result<v2::VerifyMessageResponse, Status> {
        let topic = name_of(request.topic);
        let query = v1::QueryMessagesRequest {
            topic: topic.clone(),
            by: Some(By::MessageId(request.message_id.clone())),
            max: 1,
            ..Default::default()
        };
        let found = ask!(self, query_messages, query)?.messages.into_iter().next();
        let missing = || Rejection::MessageNotFound {
            what: format!("message {:?} of topic {topic:?}", request.message_id),
        };
        let message = message_of(found.ok_or_else(missing)?)?;
        let question = Some(Question::Consume(message.encode_to_vec()));
        let ask = v1::AskClientRequest { client_id: request.client_id, question };
        ask!(self, ask_client, ask).map(|_| v2::VerifyMessageResponse::default())
    }
}

/// A stored message with its place and time.
fn message_of(stored: v1::StoredMessage) -> Result<v2::Message, Status> {
    let message = v2::Message::decode(&stored.message[..]);
    let mut message =
        message.map_err(|error| Rejection::Internal(format!("a stored message cannot be read: {error}")))?;
    let system = message.system_properties.get_or_insert_default();
    system.store_timestamp = Some(timestamp(stored.store_time_ms));
    system.store_host = stored.broker_name;
    system.queue_id = stored.queue_id.cast_signed();
    system.queue_offset = Some(stored.queue_offset.cast_signed());
    if message.topic.is_none() {
        message.topic = resource("");
    }
    Ok(message)
}
