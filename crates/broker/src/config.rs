//! What a broker can be told. Keys are RocketMQ's where RocketMQ has one; units are in the key or in its comment.

use std::net::SocketAddr;

use karman_remoting::config::Unusable;
use karman_remoting::server::TlsMode;
use karman_remoting::validate::is_node_name;
use serde::{Deserialize, Serialize};

/// The configuration of one broker.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// The cluster this broker belongs to.
    pub broker_cluster_name: String,
    /// Unique in the cluster; part of every receipt handle.
    pub broker_name: String,
    /// 0 is the master of its set.
    pub broker_id: i32,
    /// Where the namesrvs are: `host:port;host:port`. Empty runs alone.
    pub namesrv_addr: String,
    /// Where everything is kept.
    pub store_path_root_dir: String,
    /// Where clients connect.
    pub grpc_listen_address: String,
    /// Where other nodes of the cluster connect.
    pub internal_listen_address: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub metrics_listen_address: String,
    /// What clients are told to connect to, `host` or `host:port`; empty: the listening address.
    pub advertised_address: String,
    /// What other nodes are told to connect to, `host` or `host:port`; empty: the listening address.
    pub internal_advertised_address: String,
    /// Brokers, namesrvs and operators must carry it; empty admits everyone.
    pub cluster_secret: String,
    /// `SYNC_FLUSH`: a send is answered when it is on disk. `ASYNC_FLUSH`: when the kernel has it.
    pub flush_disk_type: String,
    /// Milliseconds between flushes with `ASYNC_FLUSH`.
    pub flush_interval_commit_log: u64,
    /// Milliseconds after which a send that is not as durable as its topic demands is answered with
    /// `MASTER_PERSISTENCE_TIMEOUT`. It may be stored all the same.
    pub sync_flush_timeout: u64,
    /// Size of a segment of the log. Bytes.
    pub mapped_file_size_commit_log: u64,
    /// An unknown topic is made when it is asked for. Off: a typo must not make a topic.
    pub auto_create_topic_enable: bool,
    /// A consumer group is made when it is first used.
    pub auto_create_subscription_group: bool,
    /// Queues of a topic that does not say how many.
    pub default_topic_queue_nums: u32,
    /// Messages of one queue that one group may hold at once; beyond, it gets no new ones from it.
    pub pop_inflight_message_threshold: u32,
    /// Milliseconds between heartbeats to the namesrvs.
    pub broker_heartbeat_interval: u64,
    /// A namesrv that is silent for longer is connected anew. Milliseconds.
    pub broker_not_active_timeout_millis: u64,
    /// Threads that serve clients; 0: one for each core.
    pub data_threads: u32,
    /// `disabled`, `permissive` (TLS and plaintext) or `enforcing` (TLS only).
    pub tls_server_mode: TlsMode,
    /// Certificate chain as PEM; empty makes a self-signed one.
    pub tls_server_cert_path: String,
    /// Private key as PEM.
    pub tls_server_key_path: String,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            broker_cluster_name: "DefaultCluster".into(),
            broker_name: "broker-a".into(),
            broker_id: 0,
            namesrv_addr: String::new(),
            store_path_root_dir: "./karman-data".into(),
            grpc_listen_address: "0.0.0.0:8081".into(),
            internal_listen_address: "0.0.0.0:10911".into(),
            metrics_listen_address: "0.0.0.0:5557".into(),
            advertised_address: String::new(),
            internal_advertised_address: String::new(),
            cluster_secret: String::new(),
            flush_disk_type: "SYNC_FLUSH".into(),
            flush_interval_commit_log: 500,
            sync_flush_timeout: 5000,
            mapped_file_size_commit_log: 1 << 30,
            auto_create_topic_enable: false,
            auto_create_subscription_group: true,
            default_topic_queue_nums: 8,
            pop_inflight_message_threshold: 100_000,
            broker_heartbeat_interval: 1000,
            broker_not_active_timeout_millis: 10_000,
            data_threads: 0,
            tls_server_mode: TlsMode::Permissive,
            tls_server_cert_path: String::new(),
            tls_server_key_path: String::new(),
        }
    }
}

impl BrokerConfig {
    /// Every value that cannot be used.
    pub fn invalid(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        let mut check = |key, value: String, allowed, good: bool| {
            if !good {
                found.push(Unusable { key, value, allowed });
            }
        };
        const NAME: &str = "1 to 127 of a-z A-Z 0-9 - _ . are allowed";
        check(
            "brokerClusterName",
            self.broker_cluster_name.clone(),
            NAME,
            is_node_name(&self.broker_cluster_name),
        );
        check("brokerName", self.broker_name.clone(), NAME, is_node_name(&self.broker_name));
        let only_master = "0 (the master) is allowed: this version has no slaves";
        check("brokerId", self.broker_id.to_string(), only_master, self.broker_id == 0);
        const ADDRESS: &str = "IP:PORT is allowed, 0 being any free port";
        for (key, value) in [
            ("grpcListenAddress", &self.grpc_listen_address),
            ("internalListenAddress", &self.internal_listen_address),
            ("metricsListenAddress", &self.metrics_listen_address),
        ] {
            check(key, value.clone(), ADDRESS, value.parse::<SocketAddr>().is_ok());
        }
        let known = matches!(self.flush_disk_type.as_str(), "SYNC_FLUSH" | "ASYNC_FLUSH");
        check("flushDiskType", self.flush_disk_type.clone(), "SYNC_FLUSH or ASYNC_FLUSH is allowed", known);
        let size = self.mapped_file_size_commit_log;
        check(
            "mappedFileSizeCommitLog",
            size.to_string(),
            "a multiple of 4096 from 67108864 (64 MiB) to 2147483648 (2 GiB) is allowed",
            (1 << 26..=1 << 31).contains(&size) && size.is_multiple_of(4096),
        );
        let queues = self.default_topic_queue_nums;
        check(
            "defaultTopicQueueNums",
            queues.to_string(),
            "1 to 1024 are allowed",
            (1..=1024).contains(&queues),
        );
        let threads = self.data_threads;
        check("dataThreads", threads.to_string(), "0 (one for each core) to 256 are allowed", threads <= 256);
        for (key, value) in [
            ("flushIntervalCommitLog", self.flush_interval_commit_log),
            ("syncFlushTimeout", self.sync_flush_timeout),
            ("brokerHeartbeatInterval", self.broker_heartbeat_interval),
            ("brokerNotActiveTimeoutMillis", self.broker_not_active_timeout_millis),
        ] {
            check(
                key,
                value.to_string(),
                "10 to 3600000 milliseconds are allowed",
                (10..=3_600_000).contains(&value),
            );
        }
        let inflight = self.pop_inflight_message_threshold;
        check("popInflightMessageThreshold", inflight.to_string(), "at least 32 is allowed", inflight >= 32);
        let both = self.tls_server_cert_path.is_empty() == self.tls_server_key_path.is_empty();
        check(
            "tlsServerKeyPath",
            self.tls_server_key_path.clone(),
            "set both tlsServerCertPath and tlsServerKeyPath, or none",
            both,
        );
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_used() {
        assert_eq!(BrokerConfig::default().invalid(), []);
    }

    #[test]
    fn every_unusable_value_is_named() {
        let config = BrokerConfig {
            broker_name: "a/b".into(),
            flush_disk_type: "MAYBE".into(),
            grpc_listen_address: "localhost".into(),
            mapped_file_size_commit_log: 5,
            ..BrokerConfig::default()
        };
        let keys: Vec<_> = config.invalid().iter().map(|invalid| invalid.key).collect();
        assert_eq!(keys, ["brokerName", "grpcListenAddress", "flushDiskType", "mappedFileSizeCommitLog"]);
    }
}
