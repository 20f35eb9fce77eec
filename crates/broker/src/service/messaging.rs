//! The generated service over [`Broker`]: one line for each call that the door hands to the own broker.

use std::sync::Arc;
use std::time::Instant;

use karman_remoting::metadata::Caller;
use karman_remoting::proto::v2::messaging_service_server::MessagingService;
use karman_remoting::proto::v2::{self, Code};
use karman_remoting::status::{Answer, Rejection, answer};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::latency::Call;
use crate::service::{pull, receive};

/// What the door calls.
#[derive(Debug)]
pub struct Messaging(pub Arc<Broker>);

impl Messaging {
    /// Who calls; the client is noted as alive.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Rejection> {
        let caller = Caller::of(request.metadata())?;
        self.0.clients.heard(&caller.client_id);
        Ok(caller)
    }

    /// A stream that begins went well, with or without messages.
    fn note<T>(&self, call: Call, begun: &Result<T, Rejection>, began: Instant) {
        let code = begun.as_ref().err().map_or(Code::Ok, Rejection::code);
        self.0.counters.latencies.add(call, code, began);
    }
}

/// Checks the caller, then runs a method of [`Broker`] with the message; `as` adds the caller. How long it took is noted for `call`.
macro_rules! run {
    ($self:ident, $call:ident, $request:ident, $method:ident) => {
        run!(@noted $self, $call, match $self.caller(&$request) {
            Ok(_) => $self.0.$method($request.into_inner()).await,
            Err(rejection) => Err(rejection),
        })
    };
    ($self:ident, $call:ident, $request:ident, as $method:ident) => {
        run!(@noted $self, $call, match $self.caller(&$request) {
            Ok(caller) => $self.0.$method(&caller, $request.into_inner()).await,
            Err(rejection) => Err(rejection),
        })
    };
    (@noted $self:ident, $call:ident, $result:expr) => {{
        let began = Instant::now();
        let result = $result;
        let code = match &result {
            Ok(response) => Answer::status(response).map_or(Code::Unspecified, v2::Status::code),
            Err(rejection) => rejection.code(),
        };
        $self.0.counters.latencies.add(Call::$call, code, began);
        answer(result)
    }};
}

#[tonic::async_trait]
impl MessagingService for Messaging {
    async fn query_route(
        &self,
        request: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        run!(self, QueryRoute, request, make_unknown_topic)
    }

    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        run!(self, SendMessage, request, send)
    }

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Status> {
        let began = Instant::now();
        let received = match self.caller(&request) {
            Ok(caller) => {
                let line = self.0.lines.of(&request);
                receive::receive(&self.0, &caller, line, request.into_inner()).await
            }
            Err(rejection) => Err(rejection),
        };
        self.note(Call::ReceiveMessage, &received, began);
        Ok(Response::new(received.unwrap_or_else(receive::nothing)))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        run!(self, AckMessage, request, as ack)
    }

    async fn change_invisible_duration(
        &self,
        request: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        run!(self, ChangeInvisibleDuration, request, as change_invisible_duration)
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        run!(self, ForwardMessageToDeadLetterQueue, request, as forward_to_dead_letters)
    }

    async fn pull_message(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Status> {
        let began = Instant::now();
        let pulled = match self.caller(&request) {
            Ok(caller) => pull::pull(&self.0, &caller, request.into_inner()).await,
            Err(rejection) => Err(rejection),
        };
        self.note(Call::PullMessage, &pulled, began);
        Ok(Response::new(pulled.unwrap_or_else(pull::nothing)))
    }

    async fn update_offset(
        &self,
        request: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        run!(self, UpdateOffset, request, as update_offset)
    }

    async fn get_offset(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        run!(self, GetOffset, request, as get_offset)
    }

    async fn query_offset(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        run!(self, QueryOffset, request, query_offset)
    }

    async fn end_transaction(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        run!(self, EndTransaction, request, end_transaction)
    }

    async fn recall_message(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        run!(self, RecallMessage, request, recall)
    }

    async fn sync_lite_subscription(
        &self,
        request: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        run!(self, SyncLiteSubscription, request, as sync_lite_subscription)
    }

    async fn notify_client_termination(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        answer(match Caller::of(request.metadata()) {
            Ok(caller) => self.0.client_terminated(&caller, request.into_inner()),
            Err(rejection) => Err(rejection),
        })
    }
}
