//! Topics, routes and nodes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{PublicAdmin, name_of};
use crate::proto::karman::{self as v1, BrokerIdentity, TopicRoute};
use crate::proto::v2::get_topic_route_request::NetworkType;
use crate::proto::v2::{self, ClientType, Permission, Status};
use crate::status::Rejection;
use crate::validate;

impl PublicAdmin {
    pub(super) async fn topic_status(
        &self,
        request: v2::DescribeTopicStatusRequest,
    ) -> Result<v2::DescribeTopicStatusResponse, Status> {
        let described = v1::DescribeTopicRequest { name: name_of(request.topic), at_ms: None };
        let topic = ask!(self, describe_topic, described)?;
        let config = topic.topics.first().cloned().unwrap_or_default();
        let brokers = topic.topics.len();
        let messages: u64 = topic.queues.iter().map(|queue| queue.max_offset - queue.min_offset).sum();
        let tags = [
            ("queueNums", config.queue_nums.to_string()),
            ("brokers", brokers.to_string()),
            ("messages", messages.to_string()),
            ("durability", config.durability().as_str_name().to_owned()),
            ("ttlSeconds", config.ttl_seconds.to_string()),
        ];
        Ok(v2::DescribeTopicStatusResponse {
            topic_message_type: config.message_type,
            description: Some(format!("{} queues on each of {brokers} brokers", config.queue_nums)),
            tags: tags.map(|(name, value)| (name.to_owned(), value)).into(),
            ..Default::default()
        })
    }

    /// The route as RocketMQ's name server would answer it.
    #[expect(clippy::unused_async, reason = "the shape of every call")]
    pub(super) async fn route(
        &self,
        request: v2::GetTopicRouteRequest,
    ) -> Result<v2::GetTopicRouteResponse, Status> {
        let is_internal = request.network_type() == NetworkType::Internal;
        let topic = name_of(request.topic);
        validate::topic(&topic)?;
        let routes = self.admin.routes();
        let routes = routes.read();
        let owners: Vec<_> = routes.masters_of(&topic).collect();
        if owners.is_empty() {
            return Err(Rejection::TopicNotFound { topic }.into());
        }
        let topic_route_data = route_data(&owners, is_internal)
            .map_err(|error| Rejection::Internal(format!("the route cannot be written: {error}")))?;
        Ok(v2::GetTopicRouteResponse { topic_route_data, ..Default::default() })
    }

    /// Averages since the brokers started, and the clients that are alive.
    pub(super) async fn stats(
        &self,
        _: v2::GetProxyRuntimeStatsRequest,
    ) -> Result<v2::GetProxyRuntimeStatsResponse, Status> {
        let brokers = ask!(self, describe_cluster, v1::DescribeClusterRequest {})?.brokers;
        let mut clients = ask!(self, list_clients, v1::ListClientsRequest::default())?.clients;
        clients.dedup_by(|a, b| a.client_id == b.client_id);
        let is_consumer = |client: &&v1::ClientState| !client.group.is_empty();
        let is_producer = |client: &&v1::ClientState| {
            client.client_type() == ClientType::Producer || !client.publishing.is_empty()
        };
        let now_ms = std::time::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64() * 1000.0);
        let rate = |count: fn(&v1::BrokerStatus) -> u64| -> f64 {
            let of = |broker| count(broker) as f64 * 1000.0 / (now_ms - broker.started_ms as f64).max(1.0);
            brokers.iter().map(of).sum()
        };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(v2::GetProxyRuntimeStatsResponse {
            proxy_name: self.admin.node_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            in_tps: rate(|broker| broker.messages_in),
            out_tps: rate(|broker| broker.messages_out),
            connections: count(clients.len()),
            producers: count(clients.iter().filter(is_producer).count()),
            consumers: count(clients.iter().filter(is_consumer).count()),
            ..Default::default()
        })
    }
}

/// RocketMQ's `TopicRouteData`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteData<'a> {
    broker_datas: Vec<BrokerData<'a>>,
    filter_server_table: BTreeMap<String, Vec<String>>,
    order_topic_conf: Option<String>,
    queue_datas: Vec<QueueData<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BrokerData<'a> {
    /// Broker id, 0 for the master, to HOST:PORT.
    broker_addrs: BTreeMap<i32, String>,
    broker_name: &'a str,
    cluster: &'a str,
    enable_acting_master: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueData<'a> {
    broker_name: &'a str,
    /// 4 to read, 2 to write.
    perm: u32,
    read_queue_nums: u32,
    write_queue_nums: u32,
    topic_sys_flag: u32,
}

fn route_data(
    owners: &[(&BrokerIdentity, &TopicRoute)],
    is_internal: bool,
) -> Result<String, serde_json::Error> {
    let address = |broker: &BrokerIdentity| {
        let advertised = broker.endpoints.as_ref().and_then(|endpoints| endpoints.addresses.first());
        match advertised.filter(|_| !is_internal) {
            Some(address) => format!("{}:{}", address.host, address.port),
            None => broker.internal_address.clone(),
        }
    };
    let broker = |(broker, _): &(&'_ BrokerIdentity, &TopicRoute)| (broker.broker_id, address(broker));
    let broker_datas = owners.iter().map(|owner| BrokerData {
        broker_addrs: [broker(owner)].into(),
        broker_name: &owner.0.broker_name,
        cluster: &owner.0.cluster,
        enable_acting_master: false,
    });
    let queue_datas = owners.iter().map(|(broker, route)| QueueData {
        broker_name: &broker.broker_name,
        perm: match route.permission() {
            Permission::Read => 4,
            Permission::Write => 2,
            Permission::ReadWrite => 6,
            Permission::None | Permission::Unspecified => 0,
        },
        read_queue_nums: route.read_queue_nums,
        write_queue_nums: route.write_queue_nums,
        topic_sys_flag: 0,
    });
    serde_json::to_string(&RouteData {
        broker_datas: broker_datas.collect(),
        filter_server_table: BTreeMap::new(),
        order_topic_conf: None,
        queue_datas: queue_datas.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_written_as_rocketmq_writes_it() {
        let address = v2::Address { host: "10.0.0.7".into(), port: 8081 };
        let endpoints = v2::Endpoints { addresses: vec![address], ..Default::default() };
        let broker = BrokerIdentity {
            cluster: "shop".into(),
            broker_name: "broker-a".into(),
            endpoints: Some(endpoints),
            internal_address: "inside:10911".into(),
            ..Default::default()
        };
        let route = TopicRoute {
            read_queue_nums: 4,
            write_queue_nums: 3,
            permission: Permission::ReadWrite.into(),
            ..Default::default()
        };
        let data = |is_internal| {
            let text = route_data(&[(&broker, &route)], is_internal).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let outside = data(false);
        assert_eq!(outside["brokerDatas"][0]["brokerAddrs"]["0"], "10.0.0.7:8081");
        assert_eq!(outside["brokerDatas"][0]["cluster"], "shop");
        assert_eq!(data(true)["brokerDatas"][0]["brokerAddrs"]["0"], "inside:10911");
        let queue = &outside["queueDatas"][0];
        assert_eq!(
            (&queue["perm"], &queue["readQueueNums"], &queue["writeQueueNums"]),
            (&6.into(), &4.into(), &3.into())
        );
    }
}
