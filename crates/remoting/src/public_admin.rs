//! The operators' side of the public contract: `apache.rocketmq.v2.Admin`, on every node, for tools that know RocketMQ.
//!
//! A thin layer: each call is one or two of `karman.v1.Admin`, asked of the own door and written in the other words. Who
//! may call is decided as there. Runs on the data threads.

use std::time::{Duration, UNIX_EPOCH};

use tonic::{Request, Response, Status};

use crate::admin_front::AdminFront;
use crate::auth::Decided;
use crate::front::Front;
use crate::logging;
use crate::proto::v2;
use crate::proto::v2::admin_server::Admin;
use crate::proto::v2::change_log_level_request::Level;
use crate::status::ok;

/// What the own door says to a call of `karman.v1.Admin`.
macro_rules! ask {
    ($self:expr, $method:ident, $message:expr) => {{
        use crate::proto::karman::admin_server::Admin as _;
        use crate::status::Answer as _;
        match $self.admin.$method($self.own($message)).await {
            Ok(response) => response.into_inner().judged(),
            Err(status) => Err(crate::status::Rejection::Internal(status.message().to_owned()).into()),
        }
    }};
}

mod groups;
mod messages;
mod topology;

/// See the module's comment.
#[derive(Clone, Debug)]
pub struct PublicAdmin {
    admin: AdminFront,
    front: Front,
}

impl PublicAdmin {
    /// A layer over `admin`; `front` takes what operators send.
    pub fn new(admin: AdminFront, front: Front) -> Self {
        Self { admin, front }
    }

    /// `message` as a call of this node, which has decided already who may make it.
    fn own<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.extensions_mut().insert(Decided);
        request
    }
}

fn name_of(resource: Option<v2::Resource>) -> String {
    resource.unwrap_or_default().name
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is optional")]
fn resource(name: impl Into<String>) -> Option<v2::Resource> {
    Some(v2::Resource { resource_namespace: String::new(), name: name.into() })
}

fn timestamp(millis: u64) -> prost_types::Timestamp {
    (UNIX_EPOCH + Duration::from_millis(millis)).into()
}

/// Milliseconds since 1970; a time before that is 0.
fn millis(timestamp: &prost_types::Timestamp) -> u64 {
    let millis =
        timestamp.seconds.saturating_mul(1000).saturating_add(i64::from(timestamp.nanos) / 1_000_000);
    u64::try_from(millis).unwrap_or(0)
}

/// Admits a call, runs it, and gives a refusal in the form of its answer.
macro_rules! serve {
    ($self:ident, $request:ident, $method:ident, $response:ident) => {{
        let (metadata, extensions) = ($request.metadata(), $request.extensions());
        $self.admin.admit(metadata, extensions, $request.get_ref(), stringify!($method))?;
        answered!($self, $request, $method, $response)
    }};
}

/// Runs a call that is admitted, and gives a refusal in the form of its answer.
macro_rules! answered {
    ($self:ident, $request:ident, $method:ident, $response:ident) => {{
        let answer = $self.$method($request.into_inner()).await;
        Ok(Response::new(match answer {
            Ok(mut answer) => {
                answer.status = Some(ok());
                answer
            }
            Err(status) => v2::$response { status: Some(status), ..Default::default() },
        }))
    }};
}

#[tonic::async_trait]
#[allow(clippy::needless_update, reason = "some answers have nothing but a status")]
impl Admin for PublicAdmin {
    /// The level of this node's own log.
    async fn change_log_level(
        &self,
        request: Request<v2::ChangeLogLevelRequest>,
    ) -> Result<Response<v2::ChangeLogLevelResponse>, Status> {
        let (metadata, extensions) = (request.metadata(), request.extensions());
        self.admin.admit(metadata, extensions, request.get_ref(), "change_log_level")?;
        let level = match request.get_ref().level() {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        let remark = match logging::change(level) {
            Ok(()) => format!("this node logs from {level} on"),
            Err(error) => error.to_string(),
        };
        tracing::info!(level, remark, "log level asked for");
        Ok(Response::new(v2::ChangeLogLevelResponse { remark }))
    }

    async fn describe_topic_status(
        &self,
        request: Request<v2::DescribeTopicStatusRequest>,
    ) -> Result<Response<v2::DescribeTopicStatusResponse>, Status> {
        serve!(self, request, topic_status, DescribeTopicStatusResponse)
    }

    async fn list_subscription(
        &self,
        request: Request<v2::ListSubscriptionRequest>,
    ) -> Result<Response<v2::ListSubscriptionResponse>, Status> {
        serve!(self, request, subscriptions, ListSubscriptionResponse)
    }

    async fn describe_subscription(
        &self,
        request: Request<v2::DescribeSubscriptionRequest>,
    ) -> Result<Response<v2::DescribeSubscriptionResponse>, Status> {
        serve!(self, request, subscriptions_by_client, DescribeSubscriptionResponse)
    }

    async fn delete_subscription(
        &self,
        request: Request<v2::DeleteSubscriptionRequest>,
    ) -> Result<Response<v2::DeleteSubscriptionResponse>, Status> {
        serve!(self, request, forget_subscription, DeleteSubscriptionResponse)
    }

    async fn describe_group_accumulation(
        &self,
        request: Request<v2::DescribeGroupAccumulationRequest>,
    ) -> Result<Response<v2::DescribeGroupAccumulationResponse>, Status> {
        serve!(self, request, accumulation, DescribeGroupAccumulationResponse)
    }

    /// Also for whoever may be a member of the group: members that share queues out must know one another.
    async fn list_consumer_connection(
        &self,
        request: Request<v2::ListConsumerConnectionRequest>,
    ) -> Result<Response<v2::ListConsumerConnectionResponse>, Status> {
        let (metadata, extensions) = (request.metadata(), request.extensions());
        let group = request.get_ref().group.clone().unwrap_or_default();
        if !self.admin.admits_member(metadata, extensions, group) {
            self.admin.admit(metadata, extensions, request.get_ref(), "connections")?;
        }
        answered!(self, request, connections, ListConsumerConnectionResponse)
    }

    async fn reset_group_offset(
        &self,
        request: Request<v2::ResetGroupOffsetRequest>,
    ) -> Result<Response<v2::ResetGroupOffsetResponse>, Status> {
        serve!(self, request, reset, ResetGroupOffsetResponse)
    }

    async fn query_message(
        &self,
        request: Request<v2::ListMessageRequest>,
    ) -> Result<Response<v2::ListMessageResponse>, Status> {
        serve!(self, request, list_messages, ListMessageResponse)
    }

    async fn print_thread_stack_trace(
        &self,
        request: Request<v2::PrintThreadStackTraceRequest>,
    ) -> Result<Response<v2::PrintThreadStackTraceResponse>, Status> {
        serve!(self, request, threads, PrintThreadStackTraceResponse)
    }

    async fn verify_message(
        &self,
        request: Request<v2::VerifyMessageRequest>,
    ) -> Result<Response<v2::VerifyMessageResponse>, Status> {
        serve!(self, request, verify, VerifyMessageResponse)
    }

    async fn admin_send_message(
        &self,
        request: Request<v2::AdminSendMessageRequest>,
    ) -> Result<Response<v2::AdminSendMessageResponse>, Status> {
        serve!(self, request, send, AdminSendMessageResponse)
    }

    async fn get_consumer_running_info(
        &self,
        request: Request<v2::GetConsumerRunningInfoRequest>,
    ) -> Result<Response<v2::GetConsumerRunningInfoResponse>, Status> {
        serve!(self, request, running_info, GetConsumerRunningInfoResponse)
    }

    async fn get_topic_route(
        &self,
        request: Request<v2::GetTopicRouteRequest>,
    ) -> Result<Response<v2::GetTopicRouteResponse>, Status> {
        serve!(self, request, route, GetTopicRouteResponse)
    }

    async fn query_time_span(
        &self,
        request: Request<v2::QueryTimeSpanRequest>,
    ) -> Result<Response<v2::QueryTimeSpanResponse>, Status> {
        serve!(self, request, time_span, QueryTimeSpanResponse)
    }

    async fn get_proxy_runtime_stats(
        &self,
        request: Request<v2::GetProxyRuntimeStatsRequest>,
    ) -> Result<Response<v2::GetProxyRuntimeStatsResponse>, Status> {
        serve!(self, request, stats, GetProxyRuntimeStatsResponse)
    }
}
