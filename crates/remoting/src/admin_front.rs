//! The operators' door: `karman.v1.Admin` on every node.
//!
//! A call that comes from outside is run on every broker of the route table and the answers are put together; a call
//! with the hop mark is run on the own broker. Who may call is decided here: whoever knows the cluster secret, and
//! everyone where none is set, as with RocketMQ. Runs on the data threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::front::Local;
use crate::metadata;
use crate::proto::karman::admin_server::Admin;
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::Code;
use crate::relay::{Peers, failure};
use crate::route_table::SharedRoutes;
use crate::status::{Rejection, ok, summary};

/// How long one broker may take before its row says so.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and for how long, the routes of a new topic are waited for.
const ROUTES_POLL: Duration = Duration::from_millis(2);
const ROUTES_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module's comment.
#[derive(Clone)]
pub struct AdminFront {
    routes: SharedRoutes,
    peers: Peers,
    secret: String,
    /// The admin service of the own broker, with its name.
    local: Option<(String, Arc<dyn Admin>)>,
}

impl fmt::Debug for AdminFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminFront").finish_non_exhaustive()
    }
}

/// What one broker answered.
type Answered<T> = (BrokerIdentity, Result<T, Rejection>);

/// Runs `method` on every broker, all at once.
macro_rules! on_every_broker {
    ($front:expr, $method:ident, $request:expr) => {{
        let (metadata, _, message) = $request.into_parts();
        let brokers: Vec<BrokerIdentity> = $front.routes.read().brokers().cloned().collect();
        let calls = brokers.into_iter().map(|broker| {
            let request = $front.peers.request(&metadata, message.clone());
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
                let result = answer.map(Response::into_inner).map_err(|status| failure(&broker, &status));
                (broker, result)
            }
        });
        join_all(calls).await
    }};
}

/// `None` when the call is to be run here and now on the own broker.
macro_rules! door {
    ($front:expr, $method:ident, $request:expr) => {{
        $front.admit($request.metadata())?;
        if metadata::is_relayed($request.metadata()) {
            return match &$front.local {
                Some((_, service)) => service.$method($request).await,
                None => {
                    Err(Status::failed_precondition("a relayed admin call reached a node without a broker"))
                }
            };
        }
        on_every_broker!($front, $method, $request)
    }};
}

impl AdminFront {
    /// A door over `routes`; `admin` executes on the own broker.
    pub fn new(
        routes: SharedRoutes,
        peers: Peers,
        secret: String,
        local: Option<(&Local, Arc<dyn Admin>)>,
    ) -> Self {
        let local = local.map(|(local, admin)| (local.broker_name.clone(), admin));
        Self { routes, peers, secret, local }
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if metadata::has_secret(metadata, &self.secret) {
            return Ok(());
        }
        Err(Status::permission_denied(
            "this cluster has a secret (clusterSecret) and the call does not carry it",
        ))
    }
}

impl AdminFront {
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

/// The rows of a call that changes something, and the status over them.
fn results<T>(
    answers: Vec<Answered<T>>,
    status_of: impl Fn(&T) -> Option<crate::proto::v2::Status>,
) -> (Option<crate::proto::v2::Status>, Vec<v1::BrokerResult>) {
    if answers.is_empty() {
        return (Some(no_broker().into()), vec![]);
    }
    let row = |(broker, answer): Answered<T>| v1::BrokerResult {
        broker_name: broker.broker_name,
        status: answer.map_or_else(|rejection| Some(rejection.into()), |answer| status_of(&answer)),
    };
    let rows: Vec<_> = answers.into_iter().map(row).collect();
    let status = summary(rows.iter().filter_map(|row| row.status.as_ref()));
    (Some(status), rows)
}

fn no_broker() -> Rejection {
    Rejection::Internal("no broker is registered; start one, or wait a second after its start".into())
}

/// Puts lists together; a broker that failed fails the whole, since a list with a hole would look complete.
fn collected<T, R>(
    answers: Vec<Answered<T>>,
    rows_of: impl Fn(T) -> Result<Vec<R>, Rejection>,
) -> Result<Vec<R>, Rejection> {
    let mut rows = Vec::new();
    for (_, answer) in answers {
        rows.extend(rows_of(answer?)?);
    }
    Ok(rows)
}

#[tonic::async_trait]
impl Admin for AdminFront {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let name = request.get_ref().topic.clone().unwrap_or_default().name;
        let answers: Vec<Answered<v1::CreateTopicResponse>> = door!(self, create_topic, request);
        let (status, brokers) = results(answers, |answer| answer.status.clone());
        self.wait_for_routes(&name, &brokers).await;
        Ok(Response::new(v1::CreateTopicResponse { status, brokers }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let answers: Vec<Answered<v1::DeleteTopicResponse>> = door!(self, delete_topic, request);
        let (status, brokers) = results(answers, |answer| answer.status.clone());
        Ok(Response::new(v1::DeleteTopicResponse { status, brokers }))
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        let answers: Vec<Answered<v1::CreateGroupResponse>> = door!(self, create_group, request);
        let (status, brokers) = results(answers, |answer| answer.status.clone());
        Ok(Response::new(v1::CreateGroupResponse { status, brokers }))
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let answers: Vec<Answered<v1::ListTopicsResponse>> = door!(self, list_topics, request);
        crate::status::answer(collected(answers, |answer| Ok(answer.topics)).map(|mut topics| {
            let name = |row: &v1::TopicSummary| row.topic.as_ref().map(|topic| topic.name.clone());
            topics.sort_by_key(|row| (name(row), row.broker_name.clone()));
            v1::ListTopicsResponse { status: Some(ok()), topics }
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.get_ref().name.clone();
        let answers: Vec<Answered<v1::DescribeTopicResponse>> = door!(self, describe_topic, request);
        let parts = collected(answers, |answer| Ok(vec![answer]));
        crate::status::answer(parts.and_then(|parts| {
            let mut whole = v1::DescribeTopicResponse { status: Some(ok()), ..Default::default() };
            for part in parts {
                whole.topics.extend(part.topics);
                whole.queues.extend(part.queues);
            }
            // A broker without the topic has no rows; nobody having it is an error.
            if whole.topics.is_empty() { Err(Rejection::TopicNotFound { topic: name }) } else { Ok(whole) }
        }))
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let answers: Vec<Answered<v1::ListGroupsResponse>> = door!(self, list_groups, request);
        crate::status::answer(collected(answers, |answer| Ok(answer.groups)).map(|mut groups| {
            let name = |row: &v1::GroupSummary| row.group.as_ref().map(|group| group.name.clone());
            groups.sort_by_key(|row| (name(row), row.broker_name.clone(), row.topic.clone()));
            v1::ListGroupsResponse { status: Some(ok()), groups }
        }))
    }

    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let answers: Vec<Answered<v1::DescribeClusterResponse>> = door!(self, describe_cluster, request);
        let mut brokers = Vec::new();
        for (identity, answer) in answers {
            match answer {
                Ok(answer) => brokers.extend(answer.brokers),
                // Here the hole is the news: the row says why it is empty.
                Err(rejection) => brokers.push(v1::BrokerStatus {
                    cluster: identity.cluster,
                    broker_name: identity.broker_name,
                    broker_id: identity.broker_id,
                    internal_address: identity.internal_address,
                    version: identity.version,
                    status: Some(rejection.into()),
                    ..Default::default()
                }),
            }
        }
        brokers.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
        Ok(Response::new(v1::DescribeClusterResponse { status: Some(ok()), brokers }))
    }
}
