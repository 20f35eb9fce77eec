//! The door: the whole `MessagingService`, the same on every node.
//!
//! A client may talk to any node about anything. The door answers by itself what every node knows (routes, assignments,
//! settings, heartbeats), hands what its own broker owns to that broker, and relays the rest to the owner, found from
//! the request: its queue, handle, transaction id or topic. On a namesrv there is no own broker and everything else is
//! relayed. Runs on the data threads; holds no state but handles.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::auth::Auth;
use crate::clients::ClientRegistry;
use crate::metadata::Caller;
use crate::proto::karman::BrokerIdentity;
use crate::proto::v2;
use crate::proto::v2::messaging_service_server::MessagingService;
use crate::relay::Peers;
use crate::route_table::{RouteTable, SharedRoutes};
use crate::status::{Rejection, answer, ok};
use crate::{telemetry, validate};

mod ack;
mod everywhere;
mod guard;
mod lite;
mod queues;
mod send;
pub(crate) mod standby;
mod tokens;

pub use self::send::home_weight;
pub use self::standby::{ANSWERED_BY_SLAVE, Standby};

/// Less than clients wait for an answer, and more than brokers need to come back to a namesrv.
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);

/// The broker in the same process.
#[derive(Clone)]
pub struct Local {
    /// `brokerName`
    pub broker_name: String,
    /// What it executes: everything about messages, handles and groups. The door never asks it for more.
    pub service: Arc<dyn MessagingService>,
}

/// See the module's comment.
#[derive(Clone)]
pub struct Front {
    routes: SharedRoutes,
    clients: Arc<ClientRegistry>,
    peers: Peers,
    auth: Auth,
    local: Option<Local>,
    standby: Option<Standby>,
    stopping: CancellationToken,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("broker_name", &self.broker_name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("local", &self.local).finish_non_exhaustive()
    }
}

/// Who executes a request.
enum Owner<'a> {
    Here(&'a dyn MessagingService),
    There(BrokerIdentity),
}

impl Front {
    /// A door over `routes`; `auth` says who may enter; `local` is the broker of this process, if it is one. Telemetry
    /// streams end with `stopping`.
    pub fn new(
        routes: SharedRoutes,
        clients: Arc<ClientRegistry>,
        peers: Peers,
        auth: Auth,
        local: Option<Local>,
        stopping: CancellationToken,
    ) -> Self {
        let members = Arc::downgrade(&clients);
        routes.listen(move |routes, changed| {
            if let Some(clients) = members.upgrade() {
                clients.groups_changed(routes, changed);
            }
        });
        Self { routes, clients, peers, auth, local, standby: None, stopping }
    }

    fn is_local(&self, broker: &str) -> bool {
        self.local.as_ref().is_some_and(|local| local.broker_name == broker)
    }

    /// The owner of what names its broker.
    async fn owner_named(&self, broker: &str, relayed: bool) -> Result<Owner<'_>, Rejection> {
        if let Some(local) = self.local.as_ref().filter(|local| relayed || local.broker_name == broker) {
            return Ok(Owner::Here(&*local.service));
        }
        self.until_known(relayed, |routes| routes.broker(broker).is_some()).await;
        let routes = self.routes.read();
        match routes.broker(broker) {
            Some(identity) if !relayed => Ok(Owner::There(identity.clone())),
            Some(_) => Err(self.not_here()),
            // Clients repeat a call that did not reach its broker, and give up one whose broker nobody knows.
            None if self.routes.is_learning()
                || routes.is_expected_back(broker)
                || self.stands_by_for(broker) =>
            {
                Err(Rejection::PeerUnavailable {
                    broker: validate::shortened(broker),
                    why: "it is not registered at the moment; send again later".to_owned(),
                })
            }
            _ => Err(Rejection::UnknownBroker { broker: validate::shortened(broker) }),
        }
    }

    /// What a door is told that takes this node for a master: it was one, and is not any more. Not that there is no such broker,
    /// or topic: then the client would give up what it has to repeat.
    fn not_here(&self) -> Rejection {
        let broker = self.standby.as_ref().map(|standby| standby.broker_name.clone()).unwrap_or_default();
        Rejection::PeerUnavailable { broker, why: "another is its master now; send again".to_owned() }
    }

    /// Before it is said that nobody has `topic`: see [`Self::until_known`].
    async fn until_topic_known(&self, topic: &str, relayed: bool) {
        self.until_known(relayed, |routes| routes.message_type(topic).is_some()).await;
    }

    /// A node that has just started waits a while for what it does not know yet.
    async fn until_known(&self, relayed: bool, is_known: impl FnOnce(&RouteTable) -> bool) {
        let is_known = is_known(&self.routes.read());
        if !is_known && !relayed {
            // Where it is not known by then, that is the answer.
            let _ = tokio::time::timeout(UNKNOWN_WAIT, self.routes.learnt()).await;
        }
    }

    /// An owner of a topic: this broker if it has the topic, else the masters that have it, beginning at a random one.
    fn owners_of_topic(&self, topic: &str, relayed: bool) -> Vec<Owner<'_>> {
        self.owners_by(&self.routes.read(), topic, relayed)
    }

    /// [`Self::owners_of_topic`] for a caller that looks at `routes` anyway.
    fn owners_by(&self, routes: &RouteTable, topic: &str, relayed: bool) -> Vec<Owner<'_>> {
        if relayed && self.local.is_none() {
            return vec![];
        }
        if let Some(local) = &self.local
            && (relayed || routes.has(&local.broker_name, topic))
        {
            return vec![Owner::Here(&*local.service)];
        }
        let mut owners: Vec<_> =
            routes.masters_of(topic).map(|(identity, _)| Owner::There(identity.clone())).collect();
        if owners.is_empty() {
            // Nobody has it: this broker says so, or creates it where that is switched on.
            owners.extend(self.local.as_ref().map(|local| Owner::Here(&*local.service)));
        } else {
            let start = rand::random_range(0..owners.len());
            owners.rotate_left(start);
        }
        owners
    }

    /// A broker of the route table: the own one, or another.
    fn owner_of(&self, identity: &BrokerIdentity) -> Owner<'_> {
        match self.local.as_ref().filter(|local| local.broker_name == identity.broker_name) {
            Some(local) => Owner::Here(&*local.service),
            None => Owner::There(identity.clone()),
        }
    }
}

/// Calls `method` at `owner` and gives its response, or the rejection when the owner cannot be reached.
macro_rules! call {
    ($front:expr, $owner:expr, $method:ident, $request:expr) => {{
        let request = $request;
        match $owner {
            // An own broker refuses in the body; a gRPC error of its own is passed on as it is.
            Owner::Here(service) => service.$method(request).await.map_err(|status| failure_here(&status)),
            Owner::There(peer) => {
                let relayed = $front.peers.relayed(request);
                match $front.peers.messaging(&peer) {
                    Ok(mut client) => client.$method(relayed).await.map_err(|status| failure(&peer, &status)),
                    Err(rejection) => Err(rejection),
                }
            }
        }
    }};
}
use call;

/// The own broker has no method for what it does not serve; a gRPC error would make clients give up this node.
fn failure_here(status: &Status) -> Rejection {
    match status.code() {
        Code::Unimplemented => Rejection::NotImplemented { capability: "this call" },
        _ => Rejection::Internal(status.message().to_owned()),
    }
}

/// What every node answers by itself.
impl Front {
    async fn route(
        &self,
        request: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let topic = request.get_ref().topic.clone().unwrap_or_default();
        validate::topic(&topic.name)?;
        self.until_topic_known(&topic.name, relayed).await;
        let mut message_queues = self.routes.read().queues_of(&topic);
        if message_queues.is_empty() {
            message_queues = self.create_topic_by_asking(request).await;
        }
        if message_queues.is_empty() {
            return Err(Rejection::TopicNotFound { topic: topic.name });
        }
        Ok(Response::new(v2::QueryRouteResponse { status: Some(ok()), message_queues }))
    }

    async fn assignment(
        &self,
        request: Request<v2::QueryAssignmentRequest>,
    ) -> Result<v2::QueryAssignmentResponse, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let request = request.into_inner();
        validate::group_of(request.group.as_ref())?;
        let topic = request.topic.unwrap_or_default();
        validate::topic(&topic.name)?;
        self.until_topic_known(&topic.name, relayed).await;
        let routes = self.routes.read();
        let assignments = routes.assignments_of(&topic);
        if assignments.is_empty() {
            if routes.queues_of(&topic).is_empty() {
                return Err(Rejection::TopicNotFound { topic: topic.name });
            }
            return Err(Rejection::Forbidden {
                what: format!("consuming topic {:?}", topic.name),
                rule: "none of its queues is readable",
            });
        }
        Ok(v2::QueryAssignmentResponse { status: Some(ok()), assignments })
    }

    /// Notes that the client is alive, and refuses those without an id.
    fn heard<T>(&self, request: &Request<T>) -> Result<Caller, Rejection> {
        let caller = Caller::of(request.metadata())?;
        self.clients.heard(&caller.client_id);
        Ok(caller)
    }
}

/// Goes on with a request that its caller may make; else its refusal is the answer.
macro_rules! admitted {
    ($front:expr, $request:expr) => {
        if let Err(rejection) = $front.admit(&$request).await {
            return Ok(Response::new(rejection.into()));
        }
    };
}

/// A stream of one frame: a refusal.
fn one_frame<T: Send + 'static>(frame: T) -> BoxStream<T> {
    Box::pin(tokio_stream::once(Ok(frame)))
}

/// What became of a call that gives a `Response` or a refusal in the same form.
fn respond<T: From<Rejection>>(result: Result<Response<T>, Rejection>) -> Result<Response<T>, Status> {
    Ok(result.unwrap_or_else(|rejection| Response::new(T::from(rejection))))
}

#[tonic::async_trait]
impl MessagingService for Front {
    async fn query_route(
        &self,
        request: Request<v2::QueryRouteRequest>,
    ) -> Result<Response<v2::QueryRouteResponse>, Status> {
        admitted!(self, request);
        respond(self.route(request).await)
    }

    async fn heartbeat(
        &self,
        request: Request<v2::HeartbeatRequest>,
    ) -> Result<Response<v2::HeartbeatResponse>, Status> {
        admitted!(self, request);
        answer(self.beat(request).await)
    }

    async fn send_message(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Status> {
        if let Err(rejection) = self.admit_send(&request).await {
            return Ok(Response::new(rejection.into()));
        }
        respond(self.send(request).await)
    }

    async fn query_assignment(
        &self,
        request: Request<v2::QueryAssignmentRequest>,
    ) -> Result<Response<v2::QueryAssignmentResponse>, Status> {
        admitted!(self, request);
        answer(self.assignment(request).await)
    }

    async fn receive_message(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Status> {
        Ok(self.receive_while_allowed(request).await.unwrap_or_else(|rejection| {
            let content = Some(v2::receive_message_response::Content::Status(rejection.into()));
            Response::new(one_frame(v2::ReceiveMessageResponse { content }))
        }))
    }

    async fn ack_message(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Status> {
        admitted!(self, request);
        respond(self.ack(request).await)
    }

    async fn forward_message_to_dead_letter_queue(
        &self,
        request: Request<v2::ForwardMessageToDeadLetterQueueRequest>,
    ) -> Result<Response<v2::ForwardMessageToDeadLetterQueueResponse>, Status> {
        admitted!(self, request);
        respond(self.forward_dead_letter(request).await)
    }

    async fn change_invisible_duration(
        &self,
        request: Request<v2::ChangeInvisibleDurationRequest>,
    ) -> Result<Response<v2::ChangeInvisibleDurationResponse>, Status> {
        admitted!(self, request);
        respond(self.change_invisible(request).await)
    }

    async fn telemetry(
        &self,
        request: Request<Streaming<v2::TelemetryCommand>>,
    ) -> Result<Response<BoxStream<v2::TelemetryCommand>>, Status> {
        // A stream has no body to refuse in; INVALID_ARGUMENT ends it, as the reference does.
        let caller = self.heard(&request).map_err(|rejection| telemetry::refused(&rejection))?;
        let who = self.who(&request).await.map_err(|rejection| telemetry::refused(&rejection))?;
        let who = (self.auth.clone(), who);
        let (clients, routes, stopping) = (self.clients.clone(), self.routes.clone(), self.stopping.clone());
        Ok(Response::new(telemetry::serve(caller, who, request, clients, routes, stopping)))
    }

    async fn notify_client_termination(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<Response<v2::NotifyClientTerminationResponse>, Status> {
        admitted!(self, request);
        answer(self.terminate(request).await)
    }

    async fn pull_message(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Status> {
        Ok(self.pull_while_allowed(request).await.unwrap_or_else(|rejection| {
            let content = Some(v2::pull_message_response::Content::Status(rejection.into()));
            Response::new(one_frame(v2::PullMessageResponse { content }))
        }))
    }

    async fn update_offset(
        &self,
        request: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Status> {
        admitted!(self, request);
        respond(self.update_offset_of_queue(request).await)
    }

    async fn get_offset(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        admitted!(self, request);
        respond(self.stored_offset_of_queue(request).await)
    }

    async fn query_offset(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        admitted!(self, request);
        respond(self.offset_of_queue(request).await)
    }

    async fn end_transaction(
        &self,
        request: Request<v2::EndTransactionRequest>,
    ) -> Result<Response<v2::EndTransactionResponse>, Status> {
        admitted!(self, request);
        respond(self.end(request).await)
    }

    async fn recall_message(
        &self,
        request: Request<v2::RecallMessageRequest>,
    ) -> Result<Response<v2::RecallMessageResponse>, Status> {
        admitted!(self, request);
        respond(self.recall(request).await)
    }

    async fn sync_lite_subscription(
        &self,
        request: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<Response<v2::SyncLiteSubscriptionResponse>, Status> {
        admitted!(self, request);
        answer(self.sync_lite(request).await)
    }
}
