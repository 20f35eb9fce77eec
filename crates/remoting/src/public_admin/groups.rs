//! Groups: who is in them, what they read and how far they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{PublicAdmin, millis, name_of, resource, timestamp};
use crate::proto::karman as v1;
use crate::proto::karman::reset_offset_request::To;
use crate::proto::v2::describe_group_accumulation_response::GroupAccumulation;
use crate::proto::v2::describe_subscription_response::ClientSubscriptionInfo;
use crate::proto::v2::query_time_span_response::QueueTimeSpan;
use crate::proto::v2::{self, MessageModel, Status};
use crate::status::Rejection;

impl PublicAdmin {
    async fn group(&self, name: String, topic: String) -> Result<v1::DescribeGroupResponse, Status> {
        ask!(self, describe_group, v1::DescribeGroupRequest { name, topic })
    }

    async fn clients(&self, group: String, topic: String) -> Result<Vec<v1::ClientState>, Status> {
        let mut clients = ask!(self, list_clients, v1::ListClientsRequest { group, topic })?.clients;
        // One client talks to several brokers.
        clients.dedup_by(|a, b| a.client_id == b.client_id);
        Ok(clients)
    }

    /// What groups read: with clients that say so, or by their progress alone.
    pub(super) async fn subscriptions(
        &self,
        request: v2::ListSubscriptionRequest,
    ) -> Result<v2::ListSubscriptionResponse, Status> {
        let (topic, group) = (name_of(request.topic), name_of(request.group));
        let (mut rows, mut online) = (Vec::new(), BTreeSet::new());
        let models = self.models().await?;
        for client in self.clients(group.clone(), topic.clone()).await? {
            for subscription in subscriptions_of(&client, &topic, &models) {
                let names = (client.group.clone(), name_of(subscription.topic.clone()));
                if online.insert(names) {
                    rows.push(subscription);
                }
            }
        }
        for summary in ask!(self, list_groups, v1::ListGroupsRequest {})?.groups {
            let name = summary.group.unwrap_or_default().name;
            let is_asked =
                (group.is_empty() || name == group) && (topic.is_empty() || summary.topic == topic);
            if is_asked && !summary.topic.is_empty() && online.insert((name.clone(), summary.topic.clone())) {
                rows.push(v2::SubscriptionInfo {
                    message_model: model_of(&models, &name).into(),
                    group: resource(name),
                    topic: resource(summary.topic),
                    subscription_consistency: true,
                    ..Default::default()
                });
            }
        }
        let groups: BTreeSet<String> =
            rows.iter().filter(|row| row.online).map(|row| name_of(row.group.clone())).collect();
        for name in groups {
            if !self.group(name.clone(), topic.clone()).await?.contradictions.is_empty() {
                let own = rows.iter_mut().filter(|row| name_of(row.group.clone()) == name);
                own.for_each(|row| row.subscription_consistency = false);
            }
        }
        Ok(v2::ListSubscriptionResponse { subscription_info: rows, ..Default::default() })
    }

    pub(super) async fn subscriptions_by_client(
        &self,
        request: v2::DescribeSubscriptionRequest,
    ) -> Result<v2::DescribeSubscriptionResponse, Status> {
        let (topic, group) = (name_of(request.topic), name_of(request.group));
        let models = self.models().await?;
        let mut rows = Vec::new();
        for client in self.clients(group, topic.clone()).await? {
            let of_client = |subscription| ClientSubscriptionInfo {
                client_info: Some(client_info(&client, model_of(&models, &client.group))),
                subscription_info: Some(subscription),
            };
            rows.extend(subscriptions_of(&client, &topic, &models).into_iter().map(of_client));
        }
        Ok(v2::DescribeSubscriptionResponse { client_subscription_info: rows, ..Default::default() })
    }

    pub(super) async fn forget_subscription(
        &self,
        request: v2::DeleteSubscriptionRequest,
    ) -> Result<v2::DeleteSubscriptionResponse, Status> {
        let forget =
            v1::ForgetSubscriptionRequest { group: name_of(request.group), topic: name_of(request.topic) };
        ask!(self, forget_subscription, forget).map(|_| v2::DeleteSubscriptionResponse::default())
    }

    pub(super) async fn accumulation(
        &self,
        request: v2::DescribeGroupAccumulationRequest,
    ) -> Result<v2::DescribeGroupAccumulationResponse, Status> {
        let topics: BTreeSet<String> = request.topics.into_iter().map(|topic| topic.name).collect();
        let queues = self.group(name_of(request.group), String::new()).await?.queues;
        let (mut whole, mut by_topic, mut by_lite_topic) =
            (GroupAccumulation::default(), BTreeMap::new(), BTreeMap::new());
        let now_ms = now_ms();
        for queue in queues.iter().filter(|queue| topics.is_empty() || topics.contains(&queue.topic)) {
            if request.lite_topic.as_ref().is_some_and(|name| *name != queue.lite_topic) {
                continue;
            }
            add(&mut whole, queue, now_ms);
            add(by_topic.entry(queue.topic.clone()).or_default(), queue, now_ms);
            if !queue.lite_topic.is_empty() {
                add(by_lite_topic.entry(queue.lite_topic.clone()).or_default(), queue, now_ms);
            }
        }
        Ok(v2::DescribeGroupAccumulationResponse {
            accumulation: Some(whole),
            topic_accumulation: by_topic.into_iter().collect(),
            lite_topic_accumulation: by_lite_topic.into_iter().collect(),
            ..Default::default()
        })
    }

    pub(super) async fn connections(
        &self,
        request: v2::ListConsumerConnectionRequest,
    ) -> Result<v2::ListConsumerConnectionResponse, Status> {
        let (group, topic) = (name_of(request.group), name_of(request.topic));
        // Members ask every few seconds: nothing is asked of brokers that the routes know.
        let model = self.admin.routes().read().group(&group).map_or(MessageModel::Clustering, message_model);
        let clients = self.clients(group.clone(), topic).await?;
        let clients = clients.iter().filter(|client| client.group == group);
        let client_info = clients.map(|client| client_info(client, model)).collect();
        Ok(v2::ListConsumerConnectionResponse { client_info, ..Default::default() })
    }

    pub(super) async fn reset(
        &self,
        request: v2::ResetGroupOffsetRequest,
    ) -> Result<v2::ResetGroupOffsetResponse, Status> {
        let at = request.reset_timestamp.as_ref();
        let at = at.ok_or_else(|| Rejection::BadRequest("a reset names a time".to_owned()))?;
        let reset = v1::ResetOffsetRequest {
            group: name_of(request.group),
            topic: name_of(request.topic),
            to: Some(To::AtMs(millis(at))),
            ..Default::default()
        };
        ask!(self, reset_offset, reset).map(|_| v2::ResetGroupOffsetResponse::default())
    }

    pub(super) async fn time_span(
        &self,
        request: v2::QueryTimeSpanRequest,
    ) -> Result<v2::QueryTimeSpanResponse, Status> {
        let group = name_of(request.group);
        let progress =
            if group.is_empty() { Vec::new() } else { self.group(group, String::new()).await?.queues };
        let mut topics: BTreeSet<String> = request.topics.into_iter().map(|topic| topic.name).collect();
        if topics.is_empty() {
            topics = progress.iter().map(|queue| queue.topic.clone()).collect();
        }
        let (mut spans, now_ms) = (Vec::new(), now_ms());
        for topic in topics {
            let described = v1::DescribeTopicRequest { name: topic.clone(), at_ms: None };
            for queue in ask!(self, describe_topic, described)?.queues {
                let own = progress.iter().find(|row| {
                    row.topic == topic
                        && row.broker_name == queue.broker_name
                        && row.queue_id == queue.queue_id
                });
                let waits_since = own.map_or(0, |row| row.oldest_ready_ms);
                spans.push(QueueTimeSpan {
                    message_queue: Some(v2::MessageQueue {
                        topic: resource(topic.clone()),
                        id: queue.queue_id.cast_signed(),
                        broker: Some(v2::Broker { name: queue.broker_name, ..Default::default() }),
                        ..Default::default()
                    }),
                    min_timestamp: queue.first_stored_ms.cast_signed(),
                    max_timestamp: queue.last_stored_ms.cast_signed(),
                    consume_timestamp: own.map_or(0, |row| row.committed_stored_ms).cast_signed(),
                    delay_time_ms: if waits_since == 0 {
                        0
                    } else {
                        now_ms.saturating_sub(waits_since).cast_signed()
                    },
                });
            }
        }
        Ok(v2::QueryTimeSpanResponse { queue_time_span_list: spans, ..Default::default() })
    }

    /// What this node knows of a consumer; what only the client itself counts is not known.
    pub(super) async fn running_info(
        &self,
        request: v2::GetConsumerRunningInfoRequest,
    ) -> Result<v2::GetConsumerRunningInfoResponse, Status> {
        let group = name_of(request.group);
        let described = self.group(group.clone(), String::new()).await?;
        let client = described.clients.iter().find(|client| client.client_id == request.client_id);
        let client = client.ok_or_else(|| Rejection::MessageNotFound {
            what: format!("client {:?} of group {group:?}", request.client_id),
        })?;
        let read = |topic: &str| client.subscriptions.iter().any(|subscription| subscription.topic == topic);
        let queues =
            described.queues.iter().filter(|queue| read(&queue.topic)).map(|queue| v2::MessageQueueItem {
                message_queue: Some(v2::MessageQueue {
                    topic: resource(queue.topic.clone()),
                    id: queue.queue_id.cast_signed(),
                    broker: Some(v2::Broker { name: queue.broker_name.clone(), ..Default::default() }),
                    ..Default::default()
                }),
                process_queue_info: Some(v2::ProcessQueueInfo {
                    commit_offset: queue.committed_offset.cast_signed(),
                    cached_msg_count: i32::try_from(queue.inflight_count).unwrap_or(i32::MAX),
                    ..Default::default()
                }),
            });
        let properties = [
            ("clientType", client.client_type().as_str_name().to_owned()),
            ("language", client.language.clone()),
            ("version", client.version.clone()),
            ("address", client.address.clone()),
            ("lastHeardMs", client.heard_ms.to_string()),
        ];
        let subscription =
            |entry: &v1::Subscription| (entry.topic.clone(), entry.filter.clone().unwrap_or_default());
        let info = v2::ConsumerRunningInfo {
            properties: properties.map(|(name, value)| (name.to_owned(), value)).into(),
            subscriptions: client.subscriptions.iter().map(subscription).collect(),
            message_queue_table: queues.collect(),
            ..Default::default()
        };
        Ok(v2::GetConsumerRunningInfoResponse { consumer_running_info: Some(info), ..Default::default() })
    }

    /// How each group shares its messages out.
    async fn models(&self) -> Result<BTreeMap<String, MessageModel>, Status> {
        let groups = ask!(self, list_groups, v1::ListGroupsRequest {})?.groups;
        let model = |summary: v1::GroupSummary| {
            let group = summary.group.unwrap_or_default();
            let model = message_model(&group);
            (group.name, model)
        };
        Ok(groups.into_iter().map(model).collect())
    }
}

fn message_model(group: &v1::GroupConfig) -> MessageModel {
    if group.broadcast {
        MessageModel::Broadcasting
    } else if group.lite_bind_topic.is_empty() {
        MessageModel::Clustering
    } else {
        MessageModel::LiteSelective
    }
}

fn model_of(models: &BTreeMap<String, MessageModel>, group: &str) -> MessageModel {
    models.get(group).copied().unwrap_or(MessageModel::Clustering)
}

fn subscriptions_of(
    client: &v1::ClientState,
    topic: &str,
    models: &BTreeMap<String, MessageModel>,
) -> Vec<v2::SubscriptionInfo> {
    let is_asked = |subscription: &&v1::Subscription| topic.is_empty() || subscription.topic == topic;
    let info = |subscription: &v1::Subscription| v2::SubscriptionInfo {
        group: resource(client.group.clone()),
        topic: resource(subscription.topic.clone()),
        expression: subscription.filter.clone(),
        online: true,
        last_update_timestamp: Some(timestamp(client.heard_ms)),
        message_model: model_of(models, &client.group).into(),
        subscription_consistency: true,
    };
    client.subscriptions.iter().filter(is_asked).map(info).collect()
}

fn client_info(client: &v1::ClientState, model: MessageModel) -> v2::ClientInfo {
    // HOST:PORT (NAME), as far as it is known.
    let (address, name) = client.address.split_once(' ').unwrap_or((&client.address, ""));
    let address: Option<SocketAddr> = address.parse().ok();
    let hostname = match name.trim_matches(['(', ')']) {
        // The official clients begin their ids with it.
        "" => client.client_id.split('@').next().unwrap_or_default(),
        name => name,
    };
    v2::ClientInfo {
        client_id: client.client_id.clone(),
        version: client.version.clone(),
        language: client.language.clone(),
        hostname: hostname.to_owned(),
        egress_ip: address.map(|address| address.ip().to_string()).unwrap_or_default(),
        message_model: model.into(),
    }
}

fn add(sum: &mut GroupAccumulation, queue: &v1::QueueProgressState, now_ms: u64) {
    let [ready, inflight] =
        [queue.ready_count, queue.inflight_count + queue.withheld_count].map(u64::cast_signed);
    sum.ready_messages += ready;
    sum.inflight_messages += inflight;
    sum.accumulation += ready + inflight;
    sum.last_consume_timestamp = sum.last_consume_timestamp.max(queue.committed_stored_ms.cast_signed());
    if queue.oldest_ready_ms > 0 {
        let delay = Duration::from_millis(now_ms.saturating_sub(queue.oldest_ready_ms));
        let longest =
            sum.deliver_delay_time.and_then(|known| Duration::try_from(known).ok()).unwrap_or_default();
        sum.deliver_delay_time = delay.max(longest).try_into().ok();
    }
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_says_its_host_or_its_id_does() {
        let client = |id: &str, address: &str| v1::ClientState {
            client_id: id.into(),
            address: address.into(),
            ..Default::default()
        };
        let info = |id, address| {
            let info = client_info(&client(id, address), MessageModel::Clustering);
            (info.hostname, info.egress_ip)
        };
        assert_eq!(info("box@1@2", "10.0.0.7:4711 (laptop)"), ("laptop".into(), "10.0.0.7".into()));
        assert_eq!(info("box@1@2", "[::1]:4711"), ("box".into(), "::1".into()));
        assert_eq!(info("box@1@2", ""), ("box".into(), String::new()));
    }

    #[test]
    fn what_waits_in_several_queues_adds_up_and_the_longest_wait_counts() {
        let queue = |ready, oldest_ready_ms| v1::QueueProgressState {
            ready_count: ready,
            inflight_count: 1,
            withheld_count: 2,
            oldest_ready_ms,
            ..Default::default()
        };
        let mut sum = GroupAccumulation::default();
        [queue(5, 900), queue(7, 400), queue(0, 0)].iter().for_each(|one| add(&mut sum, one, 1000));
        assert_eq!((sum.ready_messages, sum.inflight_messages, sum.accumulation), (12, 9, 21));
        assert_eq!(sum.deliver_delay_time.unwrap().nanos, 600_000_000);
    }
}
