//! The operators' door: `karman.v1.Admin` on every node.
//!
//! A call that comes from outside is run on every broker of the route table and the answers are put together; a call
//! with the hop mark is run on the own broker. Who may call is decided by [`crate::auth`]: whoever knows the cluster
//! secret, users who have the right, and everyone where nothing is set, as with RocketMQ. Runs on the data threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::select_all;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Response, Status};

use crate::auth::{Administers, Auth, source_of};
use crate::front::Local;
use crate::proto::karman::admin_server::Admin;
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::{self, Code};
use crate::refused::Refusals;
use crate::relay::{Peers, failure};
use crate::route_table::SharedRoutes;
use crate::status::{Rejection, ok};
use crate::validate;

use merge::no_broker;

/// How long one broker may take before its row says so.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that one QueryMessages of it, or of the public service, gives at most: RocketMQ's limit for a query.
pub const QUERY_MAX: u32 = 64;

/// How often, and for how long, the routes of a new topic are waited for.
const ROUTES_POLL: Duration = Duration::from_millis(2);
const ROUTES_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module's comment.
#[derive(Clone)]
pub struct AdminFront {
    routes: SharedRoutes,
    peers: Peers,
    auth: Auth,
    /// The admin service of the own broker, with its name.
    local: Option<(String, Arc<dyn Admin>)>,
    /// The reads of the own slave, with its `brokerName`.
    standby: Option<(String, Arc<dyn Admin>)>,
    /// What the node is configured with.
    config: Arc<v1::NodeConfig>,
    /// Which brokers may not register here.
    refusals: Arc<Refusals>,
}

impl fmt::Debug for AdminFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminFront").finish_non_exhaustive()
    }
}

/// Runs `method` on `brokers`, all at once. What a broker refuses in the body is as good as no answer.
macro_rules! on_brokers {
    ($front:expr, $brokers:expr, $method:ident, $metadata:expr, $message:expr) => {{
        let calls = $brokers.into_iter().map(|broker: BrokerIdentity| {
            let request = $front.peers.request($metadata, $message.clone());
            async move {
                let call = async {
                    match &$front.local {
                        Some((name, service)) if *name == broker.broker_name => {
                            service.$method(request).await
                        }
                        _ => match $front.peers.admin(&broker) {
                            Ok(mut client) => client.$method(request).await,
                            Err(rejection) => Err(Status::unavailable(rejection.to_string())),
                        },
                    }
                };
                let answer = tokio::time::timeout(BROKER_TIMEOUT, call).await;
                let answer =
                    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 5 s")));
                let answer = match answer {
                    Ok(response) => response.into_inner().judged(),
                    Err(status) => Err(failure(&broker, &status).into()),
                };
                (broker, answer)
            }
        });
        join_all(calls).await
    }};
}

/// Lets in whoever may call; what is to be run on the own broker is run and answered.
macro_rules! enter {
    ($front:expr, $method:ident, $request:expr) => {{
        $front.admit($request.metadata(), $request.extensions(), $request.get_ref(), stringify!($method))?;
        if metadata::is_relayed($request.metadata()) {
            return match &$front.local {
                Some((_, service)) => service.$method($request).await,
                None => {
                    Err(Status::failed_precondition("a relayed admin call reached a node without a broker"))
                }
            };
        }
        let (metadata, _, message) = $request.into_parts();
        (metadata, message)
    }};
}

/// [`enter!`], then what all brokers answer.
macro_rules! door {
    ($front:expr, $method:ident, $request:expr) => {{
        let (metadata, message) = enter!($front, $method, $request);
        on_brokers!($front, $front.brokers(), $method, &metadata, message)
    }};
}

/// [`door!`] for what a slave can answer as well, and why it did, if it did.
macro_rules! door_or_standby {
    ($front:expr, $method:ident, $request:expr) => {{
        let (metadata, message) = enter!($front, $method, $request);
        let mut answers = on_brokers!($front, $front.brokers(), $method, &metadata, message);
        let mut why = None;
        if let Some((name, reads)) = &$front.standby {
            let master = answers.iter().position(|(broker, _)| broker.broker_name == *name);
            let failed = match master.map(|at| &answers[at].1) {
                Some(Ok(_)) => None,
                Some(Err(status)) => Some(status.message.clone()),
                None => Some("it is not registered at the moment".to_owned()),
            };
            if let Some(failed) = failed
                && let Ok(answer) = reads.$method($front.peers.request(&metadata, message)).await
                && let Ok(answer) = answer.into_inner().judged()
            {
                let identity = BrokerIdentity { broker_name: name.clone(), ..Default::default() };
                master.map(|at| answers.remove(at));
                answers.push((identity, Ok(answer)));
                why = Some((name.clone(), failed));
            }
        }
        (answers, why)
    }};
}

mod calls;
mod change;
mod merge;
mod users;

pub use self::change::refuse_connected;

impl AdminFront {
    /// A door over `routes`; `auth` says who may enter; `admin` executes on the own broker.
    pub fn new(
        routes: SharedRoutes,
        peers: Peers,
        auth: Auth,
        local: Option<(&Local, Arc<dyn Admin>)>,
    ) -> Self {
        let local = local.map(|(local, admin)| (local.broker_name.clone(), admin));
        Self { routes, peers, auth, local, standby: None, config: Arc::default(), refusals: Arc::default() }
    }

    /// The door of a slave that looks for messages in its own copy when its master does not.
    #[must_use]
    pub fn with_standby(mut self, broker_name: &str, reads: Arc<dyn Admin>) -> Self {
        self.standby = Some((broker_name.to_owned(), reads));
        self
    }

    /// What operators are told of the node's configuration: `node` is what it is called, `values` come without secrets.
    #[must_use]
    pub fn with_config(mut self, node: String, values: Vec<(String, String)>) -> Self {
        let value = |(key, value)| v1::ConfigValue { key, value };
        let values = values.into_iter().map(value).collect();
        self.config = Arc::new(v1::NodeConfig { node, status: Some(ok()), values });
        self
    }

    /// The door of a namesrv, which knows whom it refuses.
    #[must_use]
    pub fn with_refusals(mut self, refusals: Arc<Refusals>) -> Self {
        self.refusals = refusals;
        self
    }

    /// Refuses who may not make this call.
    pub(crate) fn admit<T: Administers>(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        message: &T,
        call: &'static str,
    ) -> Result<(), Status> {
        let cluster = if self.auth.is_on() { self.cluster() } else { String::new() };
        let admitted = self.auth.admit_operator(metadata, extensions, message, call, &cluster);
        admitted.map_err(|rejection| Status::permission_denied(rejection.to_string()))
    }

    /// Whether the caller may be a member of `group`, as far as it goes by rights: it may then know who the others are.
    pub(crate) fn admits_member(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        group: v2::Resource,
    ) -> bool {
        let is_named = !group.name.is_empty();
        let heartbeat =
            v2::HeartbeatRequest { group: Some(group), client_type: v2::ClientType::PullConsumer.into() };
        let allowed = self
            .auth
            .who(metadata, extensions)
            .and_then(|who| self.auth.allow(&who, &heartbeat, source_of(extensions)));
        is_named && allowed.is_ok()
    }

    /// What the cluster is called; nothing while no broker is known.
    fn cluster(&self) -> String {
        self.routes.read().brokers().next().map(|broker| broker.cluster.clone()).unwrap_or_default()
    }

    pub(crate) fn routes(&self) -> &SharedRoutes {
        &self.routes
    }

    /// The own broker's name; a namesrv has none.
    pub(crate) fn node_name(&self) -> &str {
        self.local.as_ref().map_or("namesrv", |(name, _)| name)
    }

    /// Every broker of the cluster.
    fn brokers(&self) -> Vec<BrokerIdentity> {
        self.routes.read().brokers().cloned().collect()
    }

    /// The broker of this name, or every one when there is none.
    fn brokers_asked(&self, name: &str) -> Result<Vec<BrokerIdentity>, Rejection> {
        let mut brokers = self.brokers();
        brokers.retain(|broker| name.is_empty() || broker.broker_name == name);
        match (brokers.is_empty(), name.is_empty()) {
            (false, _) => Ok(brokers),
            (true, true) => Err(no_broker()),
            (true, false) => Err(Rejection::UnknownBroker { broker: validate::shortened(name) }),
        }
    }

    /// The one broker that a call must name.
    fn broker_named(&self, name: &str) -> Result<Vec<BrokerIdentity>, Rejection> {
        if name.is_empty() {
            return Err(Rejection::BadRequest("the request names no broker".to_owned()));
        }
        self.brokers_asked(name)
    }

    /// Refuses a topic that nobody has and a broker that is not there.
    fn check_place(&self, topic: &str, broker: &str) -> Result<(), Rejection> {
        validate::topic(topic)?;
        let routes = self.routes.read();
        if !broker.is_empty() && routes.broker(broker).is_none() {
            return Err(Rejection::UnknownBroker { broker: validate::shortened(broker) });
        }
        match routes.masters_of(topic).next() {
            Some(_) => Ok(()),
            None => Err(Rejection::TopicNotFound { topic: topic.to_owned() }),
        }
    }

    /// What all that are asked say while they verify, one after the other or mixed.
    async fn verify_all(
        &self,
        came_with: &MetadataMap,
        message: v1::VerifyStoreRequest,
    ) -> BoxStream<v1::VerifyStoreResponse> {
        let brokers = match self.brokers_asked(&message.broker_name) {
            Ok(brokers) => brokers,
            Err(rejection) => return Box::pin(tokio_stream::once(Ok(rejection.into()))),
        };
        let streams = brokers.into_iter().map(|broker| self.verify_one(broker, came_with, message.clone()));
        Box::pin(select_all(join_all(streams).await))
    }

    /// What one broker says while it verifies; how it failed becomes the last answer.
    async fn verify_one(
        &self,
        broker: BrokerIdentity,
        came_with: &MetadataMap,
        message: v1::VerifyStoreRequest,
    ) -> BoxStream<v1::VerifyStoreResponse> {
        let request = self.peers.request(came_with, message);
        let call = async {
            match &self.local {
                Some((name, service)) if *name == broker.broker_name => {
                    service.verify_store(request).await.map(Response::into_inner)
                }
                _ => match self.peers.admin(&broker) {
                    Ok(mut client) => {
                        let stream = client.verify_store(request).await?.into_inner();
                        Ok(Box::pin(stream) as BoxStream<v1::VerifyStoreResponse>)
                    }
                    Err(rejection) => Err(Status::unavailable(rejection.to_string())),
                },
            }
        };
        let opened = tokio::time::timeout(BROKER_TIMEOUT, call).await;
        let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within 5 s")));
        let stream = opened.unwrap_or_else(|status| Box::pin(tokio_stream::once(Err(status))));
        Box::pin(stream.map(move |answer| {
            Ok(answer.unwrap_or_else(|status| v1::VerifyStoreResponse {
                broker_name: broker.broker_name.clone(),
                ..failure(&broker, &status).into()
            }))
        }))
    }

    /// A topic that was made can be used at this door when the answer comes: the routes of the other brokers arrive by
    /// their registration, a moment later. Gives up after a while; the topic is there all the same.
    async fn wait_for_routes(&self, topic: &str, brokers: &[v1::BrokerResult]) {
        let made = || {
            brokers.iter().filter(|row| row.status.as_ref().is_some_and(|status| status.code() == Code::Ok))
        };
        let known = || {
            let routes = self.routes.read();
            made().all(|row| routes.has(&row.broker_name, topic))
        };
        let wait = async {
            while !known() {
                tokio::time::sleep(ROUTES_POLL).await;
            }
        };
        if tokio::time::timeout(ROUTES_TIMEOUT, wait).await.is_err() {
            tracing::warn!(topic, "the route of a new topic has not arrived");
        }
    }
}
