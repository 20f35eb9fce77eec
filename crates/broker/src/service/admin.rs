//! `karman.v1.Admin` as this broker executes it. The door has checked who calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_server::Admin;
use karman_remoting::proto::v2::MessageType;
use karman_remoting::quota::Rates;
use karman_remoting::settings;
use karman_remoting::status::{Rejection, answer, ok};
use karman_remoting::validate;
use karman_store::{Durability, QueueNumber};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::catalog_writer::QUEUE_NUMS_MAX;
use crate::config::RESERVED_HOURS_MAX;
use crate::process;
use crate::refuse;
use crate::replication::repair::repaired_bytes;
use crate::service::{lite, verify};

/// What the door calls.
#[derive(Debug)]
pub struct AdminService(pub Arc<Broker>);

/// A message id is remembered for at most a day.
const DEDUP_WINDOW_MAX_MINUTES: u32 = 1440;
/// More redeliveries than this are a mistake in the unit.
const RETRY_MAX_TIMES_MAX: u32 = 10_000;

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        answer(self.0.create_topic(request.into_inner()).await)
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let deleted = self.0.catalog_writer.delete_topic(&request.get_ref().name).await;
        answer(deleted.map(|()| v1::DeleteTopicResponse { status: Some(ok()), brokers: vec![] }))
    }

    async fn list_topics(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let broker = &self.0;
        let summary = |topic: &Arc<Topic>| v1::TopicSummary {
            topic: Some(topic.config()),
            broker_name: broker.name.to_string(),
            message_count: broker.message_count(topic),
            messages_in: topic.stored.traffic.counts().0,
        };
        let topics = broker.catalog.topics().iter().map(summary).collect();
        Ok(Response::new(v1::ListTopicsResponse { status: Some(ok()), topics }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let (broker, request) = (self.0.clone(), request.into_inner());
        blocking(move || broker.describe_topic(&request)).await
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        answer(self.0.create_group(request.into_inner()).await)
    }

    async fn update_topic(
        &self,
        request: Request<v1::UpdateTopicRequest>,
    ) -> Result<Response<v1::UpdateTopicResponse>, Status> {
        answer(self.0.update_topic(request.into_inner()).await)
    }

    async fn update_group(
        &self,
        request: Request<v1::UpdateGroupRequest>,
    ) -> Result<Response<v1::UpdateGroupResponse>, Status> {
        answer(self.0.update_group(request.into_inner()).await)
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        let deleted = self.0.delete_group(&request.into_inner()).await;
        answer(deleted.map(|()| v1::DeleteGroupResponse { status: Some(ok()), brokers: vec![] }))
    }

    async fn list_groups(
        &self,
        _: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        Ok(Response::new(v1::ListGroupsResponse { status: Some(ok()), groups: self.0.group_summaries() }))
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        let (broker, request) = (self.0.clone(), request.into_inner());
        blocking(move || broker.describe_group(&request)).await
    }

    async fn reset_offset(
        &self,
        request: Request<v1::ResetOffsetRequest>,
    ) -> Result<Response<v1::ResetOffsetResponse>, Status> {
        answer(self.0.reset_offset(request.into_inner()).await)
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<v1::RedriveDeadLettersResponse>, Status> {
        answer(self.0.redrive_dead_letters(request.into_inner()).await)
    }

    async fn explain_message(
        &self,
        request: Request<v1::ExplainMessageRequest>,
    ) -> Result<Response<v1::ExplainMessageResponse>, Status> {
        let (broker, request) = (self.0.clone(), request.into_inner());
        blocking(move || broker.explain_message(&request)).await
    }

    async fn list_clients(
        &self,
        request: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        answer(self.0.list_clients(request.get_ref()))
    }

    async fn ask_client(
        &self,
        request: Request<v1::AskClientRequest>,
    ) -> Result<Response<v1::AskClientResponse>, Status> {
        answer(self.0.ask_client(request.into_inner()).await)
    }

    async fn forget_subscription(
        &self,
        request: Request<v1::ForgetSubscriptionRequest>,
    ) -> Result<Response<v1::ForgetSubscriptionResponse>, Status> {
        answer(self.0.forget_subscription(request.get_ref()).await)
    }

    async fn query_messages(
        &self,
        request: Request<v1::QueryMessagesRequest>,
    ) -> Result<Response<v1::QueryMessagesResponse>, Status> {
        let (broker, request) = (self.0.clone(), request.into_inner());
        blocking(move || broker.query_messages(&request)).await
    }

    async fn list_delayed(
        &self,
        request: Request<v1::ListDelayedRequest>,
    ) -> Result<Response<v1::ListDelayedResponse>, Status> {
        let (broker, request) = (self.0.clone(), request.into_inner());
        blocking(move || broker.list_delayed(&request)).await
    }

    async fn restore_messages(
        &self,
        request: Request<v1::RestoreMessagesRequest>,
    ) -> Result<Response<v1::RestoreMessagesResponse>, Status> {
        answer(self.0.restore_messages(request.into_inner()).await)
    }

    async fn store_user(
        &self,
        request: Request<v1::StoreUserRequest>,
    ) -> Result<Response<v1::StoreUserResponse>, Status> {
        let v1::StoreUserRequest { user, based_on } = request.into_inner();
        let stored = self.0.catalog_writer.user(user.unwrap_or_default(), based_on).await;
        answer(stored.map(|()| v1::StoreUserResponse { status: Some(ok()) }))
    }

    async fn verify_store(
        &self,
        request: Request<v1::VerifyStoreRequest>,
    ) -> Result<Response<BoxStream<v1::VerifyStoreResponse>>, Status> {
        Ok(Response::new(verify::verify(&self.0, &request.into_inner())))
    }

    async fn describe_cluster(
        &self,
        _: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        Ok(Response::new(v1::DescribeClusterResponse {
            status: Some(ok()),
            brokers: vec![self.0.describe()],
            refused: Vec::new(),
        }))
    }
}

/// Runs what may have to wait for the device beside the data threads.
async fn blocking<T: From<Rejection> + Send + 'static>(
    work: impl FnOnce() -> Result<T, Rejection> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    answer(done.unwrap_or_else(|error| Err(Rejection::Internal(error.to_string()))))
}

impl Broker {
    fn describe_topic(
        &self,
        request: &v1::DescribeTopicRequest,
    ) -> Result<v1::DescribeTopicResponse, Rejection> {
        let mut response = v1::DescribeTopicResponse { status: Some(ok()), ..Default::default() };
        let Some(topic) = self.catalog.topic(&request.name) else { return Ok(response) };
        response.topics.push(topic.config());
        for (queue_id, &queue) in (0..).zip(&topic.queues) {
            let queue = QueueNumber(queue);
            let range = self.store.queue_range(queue);
            let offset_at = request.at_ms.map(|at_ms| self.store.offset_by_time(queue, at_ms)).transpose();
            let offset_at = offset_at.map_err(|error| refuse::read(&error))?.map(|offset| offset.0);
            response.queues.push(v1::QueueState {
                broker_name: self.name.to_string(),
                queue_id,
                min_offset: range.start,
                max_offset: range.end,
                offset_at,
                first_stored_ms: self.first_stored_ms(queue, range.start),
                last_stored_ms: self.last_stored_ms(queue, range),
            });
        }
        Ok(response)
    }

    /// Makes a topic on this broker.
    pub async fn create_topic(
        &self,
        request: v1::CreateTopicRequest,
    ) -> Result<v1::CreateTopicResponse, Rejection> {
        let config = request.topic.unwrap_or_default();
        validate::topic(&config.name)?;
        check_topic(&config)?;
        let name = config.name.clone();
        let topic = v1::TopicConfig {
            message_type: match config.message_type() {
                MessageType::Unspecified => MessageType::Normal.into(),
                known => known.into(),
            },
            queue_nums: if config.queue_nums == 0 { self.default_queue_nums } else { config.queue_nums },
            ..config
        };
        let (_, existed) = self.catalog_writer.topic(topic).await?;
        if existed && !request.if_not_exists {
            return Err(Rejection::BadRequest(format!("topic {name:?} exists already")));
        }
        Ok(v1::CreateTopicResponse { status: Some(ok()), brokers: vec![] })
    }

    async fn create_group(
        &self,
        request: v1::CreateGroupRequest,
    ) -> Result<v1::CreateGroupResponse, Rejection> {
        let mut config = request.group.unwrap_or_default();
        check_group(&config)?;
        config.retry_max_times.get_or_insert(settings::DEFAULT_RETRY_MAX_TIMES);
        let (group, existed) = self.catalog_writer.group(config.clone()).await?;
        if existed && group.config != config {
            return Err(Rejection::BadRequest(format!(
                "group {:?} exists already with other settings; change them with an update",
                config.name
            )));
        }
        Ok(v1::CreateGroupResponse { status: Some(ok()), brokers: vec![] })
    }

    async fn update_topic(
        &self,
        request: v1::UpdateTopicRequest,
    ) -> Result<v1::UpdateTopicResponse, Rejection> {
        let config = request.topic.unwrap_or_default();
        check_topic(&config)?;
        let known = self.topic(&config.name)?.config();
        let same_type = matches!(config.message_type(), MessageType::Unspecified)
            || config.message_type == known.message_type;
        if !same_type || ![0, known.queue_nums].contains(&config.queue_nums) {
            return Err(Rejection::BadRequest(format!(
                "topic {:?} is {} with {} queues on each broker; neither can be changed",
                config.name,
                known.message_type().as_str_name(),
                known.queue_nums
            )));
        }
        self.catalog_writer.update_topic(config).await?;
        Ok(v1::UpdateTopicResponse { status: Some(ok()), brokers: vec![] })
    }

    async fn update_group(
        &self,
        request: v1::UpdateGroupRequest,
    ) -> Result<v1::UpdateGroupResponse, Rejection> {
        let config = request.group.unwrap_or_default();
        check_group(&config)?;
        let group = self.catalog_writer.update_group(config).await?;
        // Who waits looks at the new settings.
        for row in self.progress.of_group(group.number) {
            row.arrived.notify_one();
        }
        self.lite.of_group(group.number).iter().for_each(|row| row.settings_changed());
        Ok(v1::UpdateGroupResponse { status: Some(ok()), brokers: vec![] })
    }

    /// Messages stored in all queues of a topic, those of its lite topics too.
    fn message_count(&self, topic: &Topic) -> u64 {
        let lite = self.lite.topics.of_topic(topic.number);
        let queues = topic.queues.iter().copied().chain(lite.iter().map(|lite| lite.queue.0));
        queues.map(|queue| self.queue_len(queue)).sum()
    }

    fn queue_len(&self, queue: u32) -> u64 {
        let range = self.store.queue_range(QueueNumber(queue));
        range.end - range.start
    }

    fn describe(&self) -> v1::BrokerStatus {
        let watermarks = self.store.watermarks();
        let (delayed, half) = self.held.counts();
        let (used, files) = (process::used(), process::open_files());
        let durability = match self.durability {
            Durability::Memory => v1::Durability::Memory,
            Durability::Disk => v1::Durability::Disk,
            Durability::Replicated => v1::Durability::Replicated,
            Durability::ReplicatedDisk => v1::Durability::ReplicatedDisk,
        };
        let (replicas, in_sync, needed) = self.followers.status();
        let routes = self.routes.read();
        let identity = routes.broker(&self.name).cloned().unwrap_or_default();
        let endpoint = identity.endpoints.as_ref().and_then(|endpoints| endpoints.addresses.first());
        v1::BrokerStatus {
            cluster: identity.cluster.clone(),
            broker_name: self.name.to_string(),
            broker_id: identity.broker_id,
            endpoint: endpoint
                .map(|address| format!("{}:{}", address.host, address.port))
                .unwrap_or_default(),
            internal_address: identity.internal_address.clone(),
            version: identity.version.clone(),
            started_ms: self.clock.started_ms(),
            topic_count: u32::try_from(self.catalog.topics().len()).unwrap_or(u32::MAX),
            group_count: u32::try_from(self.catalog.groups().len()).unwrap_or(u32::MAX),
            messages_in: self.counters.messages_in.load(Ordering::Relaxed),
            messages_out: self.counters.messages_out.load(Ordering::Relaxed),
            log_start_offset: watermarks.log_start,
            log_end_offset: watermarks.confirmed,
            cpu_micros: used.cpu_micros,
            resident_bytes: used.resident_bytes,
            durability: durability.into(),
            status: Some(ok()),
            damaged_bytes: self.damaged_bytes(),
            delayed_count: delayed as u64,
            half_count: half as u64,
            scrub_completed_ms: self.store.scrub_status().last_completed_ms.unwrap_or(0),
            role: self.role.clone(),
            epoch: self.store.epoch(),
            replicas,
            in_sync_count: u32::try_from(in_sync).unwrap_or(u32::MAX),
            in_sync_needed: u32::try_from(needed).unwrap_or(u32::MAX),
            repaired_bytes: repaired_bytes(&self.store),
            disk_used_percent: self.store.disk_used_percent().map(u32::from),
            disk_available_bytes: self.store.disk_available_bytes(),
            open_files: files.count,
            open_files_limit: files.limit,
            refused: self.followers.refused(),
        }
    }
}

fn within(what: &str, name: &str, value: u64, unit: &str, limit: u64) -> Result<(), Rejection> {
    if value <= limit {
        return Ok(());
    }
    Err(Rejection::BadRequest(format!("{what} of {name:?} would be {value} {unit}, the limit is {limit}")))
}

fn check_topic(config: &v1::TopicConfig) -> Result<(), Rejection> {
    validate::topic(&config.name)?;
    let name = &config.name;
    within("the number of queues", name, config.queue_nums.into(), "on each broker", QUEUE_NUMS_MAX.into())?;
    within("the reserve time", name, config.reserved_hours.into(), "hours", RESERVED_HOURS_MAX.into())?;
    let window = config.dedup_window_minutes.unwrap_or(0);
    within("the dedup window", name, window.into(), "minutes", DEDUP_WINDOW_MAX_MINUTES.into())?;
    lite::check_expiration(config)?;
    let rates = Rates { messages: config.messages_per_second, bytes: config.bytes_per_second };
    rates.check(&format!("topic {name:?}"))?;
    within("the time to live", name, config.ttl_seconds, "seconds", u64::from(RESERVED_HOURS_MAX) * 3600)
}

fn check_group(config: &v1::GroupConfig) -> Result<(), Rejection> {
    validate::group(&config.name)?;
    let retries = config.retry_max_times.unwrap_or(0);
    within("the number of retries", &config.name, retries.into(), "times", RETRY_MAX_TIMES_MAX.into())?;
    lite::check_group(config)?;
    match config.retry_policy.as_ref().map(settings::check_backoff) {
        Some(Err(rule)) => Err(Rejection::BadRequest(format!(
            "the retry policy of group {:?} is refused: {rule}",
            config.name
        ))),
        Some(Ok(())) | None => Ok(()),
    }
}
