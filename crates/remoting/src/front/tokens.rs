//! Calls about one message: the token that the client was given says which broker has it.

use tonic::{Request, Response};

use super::{Front, Owner, call, failure_here};
use crate::proto::v2;
use crate::relay::failure;
use crate::status::Rejection;
use crate::token;

/// What is said of a token that names no broker.
pub(super) const NOT_A_HANDLE: &str = "it is not a handle of this cluster";

impl Front {
    pub(super) async fn change_invisible(
        &self,
        request: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_handle(&request.get_ref().receipt_handle, relayed).await?;
        call!(self, owner, change_invisible_duration, request)
    }

    pub(super) async fn forward_dead_letter(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_handle(&request.get_ref().receipt_handle, relayed).await?;
        call!(self, owner, forward_message_to_dead_letter_queue, request)
    }

    async fn owner_of_handle(&self, handle: &str, relayed: bool) -> Result<Owner<'_>, Rejection> {
        let broker =
            token::broker_name_of(handle).ok_or(Rejection::InvalidReceiptHandle { why: NOT_A_HANDLE })?;
        self.owner_named(&broker, relayed).await
    }

    pub(super) async fn end(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let id = &request.get_ref().transaction_id;
        if id.trim().is_empty() {
            return Err(Rejection::InvalidTransactionId { why: "it is blank" });
        }
        let broker = token::broker_name_of(id)
            .ok_or(Rejection::InvalidTransactionId { why: "it is not an id of this cluster" })?;
        let owner = self.owner_named(&broker, relayed).await?;
        call!(self, owner, end_transaction, request)
    }

    pub(super) async fn recall(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let broker = token::broker_name_of(&request.get_ref().recall_handle)
            .ok_or(Rejection::InvalidRecallHandle { why: NOT_A_HANDLE })?;
        let owner = self.owner_named(&broker, relayed).await?;
        call!(self, owner, recall_message, request)
    }
}
