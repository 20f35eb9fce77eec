//! The operators' door: `karman.v1.Admin` on every node.
//!
//! A call that comes from outside is run on every broker of the route table and the answers are put together; a call
//! with the hop mark is run on the own broker. Who may call is decided here: whoever knows the cluster secret, and
//! everyone where none is set, as with RocketMQ. Runs on the data threads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::select_all;
use tonic::codegen::BoxStream;
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
use crate::validate;

/// How long one broker may take before its row says so.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages of a query that does not say how many it wants, and bytes of those of one answer.
const QUERY_MAX_DEFAULT: usize = 32;
const QUERY_MAX_BYTES: usize = 4 << 20;

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

/// The answers of several brokers as one: the last stored first, no more than were asked for or fit an answer.
fn merged(parts: Vec<v1::QueryMessagesResponse>, max: u32) -> v1::QueryMessagesResponse {
    let max = if max == 0 { QUERY_MAX_DEFAULT } else { max as usize };
    let mut truncated = parts.iter().any(|part| part.truncated);
    let mut messages: Vec<_> = parts.into_iter().flat_map(|part| part.messages).collect();
    messages.sort_by_key(|message| std::cmp::Reverse((message.store_time_ms, message.physical_offset)));
    let (mut bytes, mut kept) = (0, 0);
    for message in messages.iter().take(max) {
        bytes += message.message.len();
        // A single one may be larger.
        if kept > 0 && bytes > QUERY_MAX_BYTES {
            break;
        }
        kept += 1;
    }
    truncated |= kept < messages.len();
    messages.truncate(kept);
    v1::QueryMessagesResponse { status: Some(ok()), messages, truncated }
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

    async fn query_messages(
        &self,
        request: Request<v1::QueryMessagesRequest>,
    ) -> Result<Response<v1::QueryMessagesResponse>, Status> {
        let (topic, broker) = (request.get_ref().topic.clone(), request.get_ref().broker_name.clone());
        let max = request.get_ref().max;
        let answers: Vec<Answered<v1::QueryMessagesResponse>> = door!(self, query_messages, request);
        let whole = self.check_place(&topic, &broker).and_then(|()| {
            // Here a broker may refuse in the body.
            collected(answers, |answer| match answer.status {
                Some(status) if status.code() != Code::Ok => Err(Rejection::BadRequest(status.message)),
                _ => Ok(vec![answer]),
            })
        });
        crate::status::answer(whole.map(|parts| merged(parts, max)))
    }

    async fn verify_store(
        &self,
        request: Request<v1::VerifyStoreRequest>,
    ) -> Result<Response<BoxStream<v1::VerifyStoreResponse>>, Status> {
        self.admit(request.metadata())?;
        if metadata::is_relayed(request.metadata()) {
            return match &self.local {
                Some((_, service)) => service.verify_store(request).await,
                None => {
                    Err(Status::failed_precondition("a relayed admin call reached a node without a broker"))
                }
            };
        }
        let (metadata, _, message) = request.into_parts();
        let is_asked = |name: &str| message.broker_name.is_empty() || message.broker_name == name;
        let all: Vec<BrokerIdentity> = self.routes.read().brokers().cloned().collect();
        let brokers: Vec<_> = all.into_iter().filter(|broker| is_asked(&broker.broker_name)).collect();
        if brokers.is_empty() {
            let rejection = match message.broker_name.is_empty() {
                true => no_broker(),
                false => Rejection::UnknownBroker { broker: validate::shortened(&message.broker_name) },
            };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(rejection.into())))));
        }
        let streams = brokers.into_iter().map(|broker| self.verify_one(broker, &metadata, message.clone()));
        Ok(Response::new(Box::pin(select_all(join_all(streams).await))))
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
