//! What a broker can be told. Keys are RocketMQ's where RocketMQ has one; units are in the key or in its comment.

mod check;

use std::time::Duration;

use karman_remoting::auth::AuthConfig;
use karman_remoting::between::Between;
use karman_remoting::secret::Secret;
use karman_remoting::server::{MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, TlsMode};
use karman_remoting::tls::{ClientAuth, TlsError, TlsKeys};
use karman_store::{Durability, Retention};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::broker::HeldLimits;
use crate::dedupe::WINDOW_DEFAULT_MINUTES;
use crate::replication::in_sync::Demands;

/// What the keys begin with in the environment.
pub const ENV_PREFIX: &str = "KARMAN_BROKER__";

/// The configuration of one broker. Its comments are the reference (`docs/configuration.md`): a number's says its unit.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BrokerConfig {
    /// The cluster this broker belongs to.
    pub broker_cluster_name: String,
    /// Unique in the cluster; part of every receipt handle.
    pub broker_name: String,
    /// 0 is the master of its set; each of its slaves has a number of its own.
    pub broker_id: i32,
    /// `ASYNC_MASTER`: a send is answered when this broker has it. `SYNC_MASTER`: when as many as `inSyncReplicas` have it
    /// too. `SLAVE`: follows the master of the same `brokerName`.
    pub broker_role: String,
    /// Where a slave's master is, `host:port` of its internal address; empty: where the namesrvs say.
    pub ha_master_address: String,
    /// A slave answers pulls and questions for offsets from its own copy when its master does not answer.
    pub slave_read_enable: bool,
    /// Controllers say which broker of the set is its master; `brokerRole` says nothing then, and sends ask for replicas.
    pub enable_controller_mode: bool,
    /// Where the controllers are: `host:port;host:port;host:port`, all of them.
    pub controller_addr: String,
    /// Of two brokers whose logs are as long the one with the lower number becomes master.
    pub broker_election_priority: i32,
    /// So many must have a send before it is answered that asks for replicas, the master included. 0: 2 for a
    /// `SYNC_MASTER`, else 1.
    pub in_sync_replicas: u32,
    /// A send that asks for replicas is refused while fewer are in sync, the master included.
    pub min_in_sync_replicas: u32,
    /// A send that asks for replicas is answered only when all that are in sync have it.
    pub all_ack_in_sync_state_set: bool,
    /// A slave that was behind for longer is not in sync. Milliseconds.
    pub ha_max_time_slave_not_catchup: u64,
    /// Milliseconds after which a send that too few slaves have is answered with `SLAVE_PERSISTENCE_TIMEOUT`. It may be
    /// stored all the same.
    pub slave_timeout: u64,
    /// What a send survives that was answered, of topics that do not say it themselves: `memory`, `disk`, `replicated` or
    /// `replicated_disk`. Empty: as `flushDiskType` and `brokerRole` say.
    pub default_durability: String,
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
    /// Where traces go, `http://host:port` of an OTLP/gRPC receiver. Empty: nowhere, there are none.
    pub otlp_endpoint: String,
    /// Of 10000 calls whose messages carry no trace context, so many are traced. Where a context says that it is sampled, all are.
    pub otlp_samples_per_ten_thousand: u32,
    /// What traces call this service.
    pub otlp_service_name: String,
    /// What clients are told to connect to, `host` or `host:port`. Empty: `grpcListenAddress`, or the address from which this machine
    /// would send where that is all addresses.
    pub advertised_address: String,
    /// What other nodes are told to connect to, `host` or `host:port`. Empty: `internalListenAddress`, or the address from which this
    /// machine would send where that is all addresses.
    pub internal_advertised_address: String,
    /// Brokers, namesrvs and operators must carry it; empty admits everyone.
    pub cluster_secret: Secret,
    /// Clients must prove with every call who they are; it needs `clusterSecret`.
    pub authentication_enabled: bool,
    /// They may do what the policies of their user allow (`karman acl`), and nothing else.
    pub authorization_enabled: bool,
    /// A super user that is made when there is none of its name: `{"username":"NAME","password":"SECRET"}` or `NAME:SECRET`.
    /// The same on all nodes.
    pub init_authentication_user: Secret,
    /// `SYNC_FLUSH`: a send is answered when it is on disk. `ASYNC_FLUSH`: when the kernel has it.
    pub flush_disk_type: String,
    /// Milliseconds between flushes with `ASYNC_FLUSH`.
    pub flush_interval_commit_log: u64,
    /// Milliseconds after which a send that is not as durable as its topic demands is answered with
    /// `MASTER_PERSISTENCE_TIMEOUT`. It may be stored all the same.
    pub sync_flush_timeout: u64,
    /// Size of a segment of the log. Bytes.
    pub mapped_file_size_commit_log: u64,
    /// How long messages are kept that no topic keeps for longer or shorter. Hours.
    pub file_reserved_time: u64,
    /// At which hours of the day, local time, segments of the log go whose time is over: `04` or `04;16`. The images hold no time
    /// zones: local time is UTC there, unless `TZ` of the environment is a rule such as `CET-1CEST,M3.5.0,M10.5.0/3`.
    pub delete_when: String,
    /// Percent of the disk; beyond, segments whose time is over go at any hour.
    pub disk_max_used_space_ratio: u8,
    /// Percent of the disk; beyond, the oldest segments go although their time is not over.
    pub disk_space_clean_forcibly_ratio: u8,
    /// Percent of the disk; beyond, no messages are taken in.
    pub disk_space_warning_level_ratio: u8,
    /// The oldest segments go when the log takes more. Bytes; 0: no limit.
    pub commit_log_size_limit_bytes: u64,
    /// How fast what is stored is verified in the background, once a day; 0: not at all. Bytes per second.
    pub scrub_rate_bytes_per_second: u64,
    /// A message id that was stored in the last so many minutes is not stored again; of topics that do not say it
    /// themselves and whose sends are answered when they are on disk. 0: it is.
    pub dedup_window_minutes: u32,
    /// So many message ids are remembered for `dedupWindowMinutes`; under a high load they do not last for the whole window.
    pub dedup_messages_max: u64,
    /// An unknown topic is made when it is asked for. Off: a typo must not make a topic.
    pub auto_create_topic_enable: bool,
    /// A consumer group is made when it is first used.
    pub auto_create_subscription_group: bool,
    /// Queues of a topic that does not say how many.
    pub default_topic_queue_nums: u32,
    /// Sends that may wait for their answers at once; whoever comes then is told at once to send later. In each waits what it costs to
    /// answer it, so this bounds how late an answer can be.
    pub send_thread_pool_queue_capacity: u32,
    /// Messages of one queue that one group may hold at once; beyond, it gets no new ones from it.
    pub pop_inflight_message_threshold: u32,
    /// How far ahead the delivery time of a message may lie. Milliseconds.
    pub max_delay_time_mills: u64,
    /// `maxDelayTimeMills` may not be more. It sets no limit by itself, but keeps configurations of RocketMQ, where broker
    /// and proxy have one each. Seconds.
    pub timer_max_delay_sec: u64,
    /// A producer that has not ended a transaction is asked about it after so long, if the message does not say
    /// otherwise. Milliseconds.
    pub transaction_time_out: u64,
    /// A producer is asked again about a transaction after so long. Milliseconds.
    pub transaction_check_interval: u64,
    /// A producer is asked about a transaction so often; then the message goes to `TRANS_CHECK_MAX_TIME_TOPIC`.
    pub transaction_check_max: u32,
    /// Lite topics of one parent; what would be more is refused with `LITE_TOPIC_QUOTA_EXCEEDED`.
    pub max_lite_topics: u32,
    /// Lite topics that all clients of this broker together may be subscribed to.
    pub max_lite_subscription_count: u32,
    /// Milliseconds between heartbeats to the namesrvs.
    pub broker_heartbeat_interval: u64,
    /// A namesrv that is silent for longer is connected anew. Milliseconds.
    pub broker_not_active_timeout_millis: u64,
    /// Threads that serve clients; 0: one for each core.
    pub data_threads: u32,
    /// Connections that each of the two ports may have; a further one is closed at once. Fewer where the process may not have so many open
    /// files: two of five are for the connections of a port, the rest for what is stored.
    pub max_connections: u32,
    /// Of those, from one address (of IPv6: from one network /64); 0: as many as there are.
    pub max_connections_per_address: u32,
    /// `disabled`, `permissive` (TLS and plaintext) or `enforcing` (TLS only).
    pub tls_server_mode: TlsMode,
    /// Certificate chain as PEM; empty makes a self-signed one. Clients that verify it look for the host of `advertisedAddress`, and for
    /// the one they were given to connect to, among its subject alternative names. Read anew when it or the key has changed.
    pub tls_server_cert_path: String,
    /// Private key of `tlsServerCertPath`, as PEM.
    pub tls_server_key_path: String,
    /// `none`: clients are not asked for a certificate. `optional`: one that is shown says who calls where a call is not signed: the name of
    /// its subject (CN) is the user's. `require`: who shows none is refused.
    pub tls_server_need_client_auth: ClientAuth,
    /// Certificates of the authority of clients' certificates, as PEM; not that of `internalTlsCaPath`. Read anew when it has changed.
    pub tls_server_trust_cert_path: String,
    /// Certificates of the authority that makes nodes, as PEM: with it all traffic between nodes is TLS, and both sides must show a
    /// certificate of it. It must be for nodes alone: whoever has one is a node. Empty: plaintext. Read anew, like the next two,
    /// when one of the three has changed.
    pub internal_tls_ca_path: String,
    /// This node's certificate chain for other nodes, as PEM: usable as a server's and as a client's. Names in it are not looked at.
    pub internal_tls_cert_path: String,
    /// Private key of `internalTlsCertPath`, as PEM.
    pub internal_tls_key_path: String,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            broker_cluster_name: "DefaultCluster".into(),
            broker_name: "broker-a".into(),
            broker_id: 0,
            broker_role: "ASYNC_MASTER".into(),
            ha_master_address: String::new(),
            slave_read_enable: false,
            enable_controller_mode: false,
            controller_addr: String::new(),
            broker_election_priority: i32::MAX,
            in_sync_replicas: 0,
            min_in_sync_replicas: 1,
            all_ack_in_sync_state_set: false,
            ha_max_time_slave_not_catchup: 15_000,
            slave_timeout: 3000,
            default_durability: String::new(),
            namesrv_addr: String::new(),
            store_path_root_dir: "./karman-data".into(),
            grpc_listen_address: "0.0.0.0:8081".into(),
            internal_listen_address: "0.0.0.0:10911".into(),
            metrics_listen_address: "0.0.0.0:5557".into(),
            otlp_endpoint: String::new(),
            otlp_samples_per_ten_thousand: 100,
            otlp_service_name: "karman-broker".into(),
            advertised_address: String::new(),
            internal_advertised_address: String::new(),
            cluster_secret: Secret::default(),
            authentication_enabled: false,
            authorization_enabled: false,
            init_authentication_user: Secret::default(),
            flush_disk_type: "SYNC_FLUSH".into(),
            flush_interval_commit_log: 500,
            sync_flush_timeout: 5000,
            mapped_file_size_commit_log: 1 << 30,
            file_reserved_time: 72,
            delete_when: "04".into(),
            disk_max_used_space_ratio: 75,
            disk_space_clean_forcibly_ratio: 85,
            disk_space_warning_level_ratio: 90,
            commit_log_size_limit_bytes: 0,
            scrub_rate_bytes_per_second: 8_000_000,
            dedup_window_minutes: WINDOW_DEFAULT_MINUTES,
            dedup_messages_max: 2_000_000,
            auto_create_topic_enable: false,
            auto_create_subscription_group: true,
            default_topic_queue_nums: 8,
            send_thread_pool_queue_capacity: 10_000,
            pop_inflight_message_threshold: 100_000,
            max_delay_time_mills: 24 * 3_600_000,
            timer_max_delay_sec: DELAY_MAX_DAYS * 86_400,
            transaction_time_out: 6000,
            transaction_check_interval: 30_000,
            transaction_check_max: 15,
            max_lite_topics: 1_000_000,
            max_lite_subscription_count: 1_000_000,
            broker_heartbeat_interval: 1000,
            broker_not_active_timeout_millis: 10_000,
            data_threads: 0,
            max_connections: MAX_CONNECTIONS,
            max_connections_per_address: MAX_CONNECTIONS_PER_ADDRESS,
            tls_server_mode: TlsMode::Permissive,
            tls_server_cert_path: String::new(),
            tls_server_key_path: String::new(),
            tls_server_need_client_auth: ClientAuth::None,
            tls_server_trust_cert_path: String::new(),
            internal_tls_ca_path: String::new(),
            internal_tls_cert_path: String::new(),
            internal_tls_key_path: String::new(),
        }
    }
}

/// A message is delayed for at most this long.
const DELAY_MAX_DAYS: u64 = 40;
/// A topic's messages are kept for at most this long.
pub const RESERVED_HOURS_MAX: u32 = 87_600;

fn delete_hours(text: &str) -> Option<Vec<u8>> {
    let hour = |hour: &str| hour.trim().parse().ok().filter(|hour| *hour < 24);
    text.split(';').map(hour).collect()
}

impl BrokerConfig {
    /// What the store is told of it. The configuration has been checked.
    pub fn retention(&self) -> Retention {
        Retention {
            reserved: Duration::from_secs(self.file_reserved_time * 3600),
            delete_hours: delete_hours(&self.delete_when).unwrap_or_default(),
            size_limit_bytes: Some(self.commit_log_size_limit_bytes).filter(|limit| *limit > 0),
            max_used_percent: self.disk_max_used_space_ratio,
            clean_forcibly_percent: self.disk_space_clean_forcibly_ratio,
            warning_percent: self.disk_space_warning_level_ratio,
        }
    }

    /// What is asked of callers.
    pub fn auth(&self) -> AuthConfig {
        AuthConfig {
            authentication: self.authentication_enabled,
            authorization: self.authorization_enabled,
            initial_user: self.init_authentication_user.clone(),
            cluster_secret: self.cluster_secret.clone(),
            nodes_have_tls: !self.internal_tls_ca_path.is_empty(),
        }
    }

    /// What it is told of TLS with clients.
    pub(crate) fn tls(&self) -> TlsKeys<'_> {
        TlsKeys {
            mode: self.tls_server_mode,
            cert_path: &self.tls_server_cert_path,
            key_path: &self.tls_server_key_path,
            trust_cert_path: &self.tls_server_trust_cert_path,
            need_client_auth: self.tls_server_need_client_auth,
            internal_ca_path: &self.internal_tls_ca_path,
        }
    }

    /// What this node shows others, and wants to see.
    pub(crate) fn between(&self) -> Result<Between, TlsError> {
        Between::of_node(self.cluster_secret.clone(), self.internal_tls_paths())
    }

    fn internal_tls_paths(&self) -> [&str; 3] {
        [&self.internal_tls_ca_path, &self.internal_tls_cert_path, &self.internal_tls_key_path]
    }

    /// It follows a master.
    pub fn is_slave(&self) -> bool {
        self.broker_role == "SLAVE"
    }

    /// By its role there is another broker with the same log.
    pub fn has_replicas(&self) -> bool {
        self.broker_role != "ASYNC_MASTER" || self.enable_controller_mode
    }

    /// Where the controllers are.
    pub fn controllers(&self) -> Vec<String> {
        let addresses = self.controller_addr.split(';').map(str::trim);
        addresses.filter(|address| !address.is_empty()).map(str::to_owned).collect()
    }

    /// When a send is answered to a topic that does not say it itself.
    pub fn durability(&self) -> Durability {
        match (self.default_durability.as_str(), self.broker_role.as_str(), self.flush_disk_type.as_str()) {
            ("memory", ..) => Durability::Memory,
            ("replicated", ..) | ("", "SYNC_MASTER", _) => Durability::Replicated,
            ("", ..) if self.enable_controller_mode => Durability::Replicated,
            ("replicated_disk", ..) => Durability::ReplicatedDisk,
            ("", _, "ASYNC_FLUSH") => Durability::Memory,
            _ => Durability::Disk,
        }
    }

    /// What is asked of slaves.
    pub fn demands(&self) -> Demands {
        let asked = match (self.in_sync_replicas, self.broker_role.as_str()) {
            (0, "SYNC_MASTER") => 2,
            (0, _) if self.enable_controller_mode => 2,
            (asked, _) => asked.max(1),
        };
        Demands {
            replicas: asked.max(self.min_in_sync_replicas) as usize,
            all: self.all_ack_in_sync_state_set,
            behind_max: Duration::from_millis(self.ha_max_time_slave_not_catchup),
        }
    }

    /// What the broker is told of it about held messages.
    pub fn held_limits(&self) -> HeldLimits {
        HeldLimits {
            delay_max_ms: self.max_delay_time_mills,
            transaction_timeout_ms: self.transaction_time_out,
            check_interval_ms: self.transaction_check_interval,
            checks_max: self.transaction_check_max,
            half_age_max_ms: self.file_reserved_time * 3_600_000,
        }
    }
}

#[cfg(test)]
mod tests;
