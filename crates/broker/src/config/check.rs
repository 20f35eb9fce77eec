//! Which values of a broker's configuration cannot be used, each with what is allowed. Pure.

use std::net::SocketAddr;

use karman_remoting::between::ALL_OR_NONE;
use karman_remoting::config::Unusable;
use karman_remoting::secret::SECRET_ALLOWED;
use karman_remoting::server::connection_rules;
use karman_remoting::validate::is_node_name;
use karman_store::Durability;

use super::{BrokerConfig, DELAY_MAX_DAYS, RESERVED_HOURS_MAX, delete_hours};

/// Takes a key, its value, what is allowed, and whether it is good.
type Check<'a> = &'a mut dyn FnMut(&'static str, String, &'static str, bool);

impl BrokerConfig {
    /// Every value that cannot be used.
    pub fn invalid(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        self.check(&mut |key, value, allowed, good| {
            if !good {
                found.push(Unusable { key, value, allowed });
            }
        });
        found
    }

    /// What is allowed: keys with the words of the errors. A key may have several.
    pub fn rules() -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        Self::default().check(&mut |key, _, allowed, _| all.push((key, allowed)));
        all
    }

    fn check(&self, check: Check<'_>) {
        const NAME: &str = "1 to 127 of a-z A-Z 0-9 - _ . are allowed";
        check(
            "brokerClusterName",
            self.broker_cluster_name.clone(),
            NAME,
            is_node_name(&self.broker_cluster_name),
        );
        check("brokerName", self.broker_name.clone(), NAME, is_node_name(&self.broker_name));
        self.check_replication(check);
        const ADDRESS: &str = "IP:PORT is allowed, 0 being any free port";
        for (key, value) in [
            ("grpcListenAddress", &self.grpc_listen_address),
            ("internalListenAddress", &self.internal_listen_address),
            ("metricsListenAddress", &self.metrics_listen_address),
        ] {
            check(key, value.clone(), ADDRESS, value.parse::<SocketAddr>().is_ok());
        }
        let secret = &self.cluster_secret;
        check("clusterSecret", secret.shown().to_owned(), SECRET_ALLOWED, secret.is_header());
        let known = matches!(self.flush_disk_type.as_str(), "SYNC_FLUSH" | "ASYNC_FLUSH");
        check("flushDiskType", self.flush_disk_type.clone(), "SYNC_FLUSH or ASYNC_FLUSH is allowed", known);
        let size = self.mapped_file_size_commit_log;
        check(
            "mappedFileSizeCommitLog",
            size.to_string(),
            "a multiple of 4096 from 67108864 (64 MiB) to 2147483648 (2 GiB) is allowed",
            (1 << 26..=1 << 31).contains(&size) && size.is_multiple_of(4096),
        );
        self.check_retention(check);
        self.check_held(check);
        self.check_limits(check);
        self.check_traces(check);
        for (rule, good) in self.auth().rules().into_iter().chain(self.tls().rules()) {
            check(rule.key, rule.value, rule.allowed, good);
        }
    }

    fn check_traces(&self, check: Check<'_>) {
        let endpoint = self.otlp_endpoint.as_str();
        let good = endpoint.is_empty()
            || endpoint
                .strip_prefix("http://")
                .is_some_and(|rest| is_host_and_port(rest.strip_suffix('/').unwrap_or(rest)));
        let allowed = "empty (off) or http://host:port of an OTLP/gRPC receiver is allowed";
        check("otlpEndpoint", endpoint.to_owned(), allowed, good);
        let samples = self.otlp_samples_per_ten_thousand;
        check(
            "otlpSamplesPerTenThousand",
            samples.to_string(),
            "0 (only where a context says so) to 10000 (all) are allowed",
            samples <= 10_000,
        );
        let name = &self.otlp_service_name;
        let allowed = "1 to 255 characters are allowed";
        check("otlpServiceName", name.clone(), allowed, (1..=255).contains(&name.chars().count()));
    }

    fn check_limits(&self, check: Check<'_>) {
        let queues = self.default_topic_queue_nums;
        check(
            "defaultTopicQueueNums",
            queues.to_string(),
            "1 to 1024 are allowed",
            (1..=1024).contains(&queues),
        );
        let threads = self.data_threads;
        check("dataThreads", threads.to_string(), "0 (one for each core) to 256 are allowed", threads <= 256);
        for (rule, good) in connection_rules(self.max_connections, self.max_connections_per_address) {
            check(rule.key, rule.value, rule.allowed, good);
        }
        for (key, value) in [
            ("flushIntervalCommitLog", self.flush_interval_commit_log),
            ("syncFlushTimeout", self.sync_flush_timeout),
            ("slaveTimeout", self.slave_timeout),
            ("haMaxTimeSlaveNotCatchup", self.ha_max_time_slave_not_catchup),
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
        let sends = self.send_thread_pool_queue_capacity;
        let allowed = "1 to 1000000 sends are allowed";
        check("sendThreadPoolQueueCapacity", sends.to_string(), allowed, (1..=1_000_000).contains(&sends));
        let inflight = self.pop_inflight_message_threshold;
        check("popInflightMessageThreshold", inflight.to_string(), "at least 32 is allowed", inflight >= 32);
        let window = self.dedup_window_minutes;
        check("dedupWindowMinutes", window.to_string(), "0 (off) to 1440 are allowed", window <= 1440);
        let ids = self.dedup_messages_max;
        check(
            "dedupMessagesMax",
            ids.to_string(),
            "1000 to 1000000000 are allowed",
            (1000..=1_000_000_000).contains(&ids),
        );
        for (key, count) in [
            ("maxLiteTopics", self.max_lite_topics),
            ("maxLiteSubscriptionCount", self.max_lite_subscription_count),
        ] {
            check(key, count.to_string(), "0 to 10000000 are allowed", count <= 10_000_000);
        }
        let internal = self.internal_tls_paths().map(str::is_empty);
        let path = self.internal_tls_ca_path.clone();
        check(
            "internalTlsCaPath",
            path,
            ALL_OR_NONE,
            internal[0] == internal[1] && internal[1] == internal[2],
        );
    }

    fn check_replication(&self, check: Check<'_>) {
        let role = self.broker_role.as_str();
        let known = matches!(role, "ASYNC_MASTER" | "SYNC_MASTER" | "SLAVE");
        check("brokerRole", role.to_owned(), "ASYNC_MASTER, SYNC_MASTER or SLAVE is allowed", known);
        let controlled = self.enable_controller_mode;
        let addresses = self.controllers();
        let all = !controlled
            || (!addresses.is_empty() && addresses.iter().all(|address| is_host_and_port(address)));
        check(
            "controllerAddr",
            self.controller_addr.clone(),
            "host:port;host:port of all controllers is needed",
            all,
        );
        let numbered = self.is_slave() || controlled;
        let allowed = "a SLAVE, and with controllers every broker, has a number from 1 up, its own in the broker set; any other has 0";
        let id = if numbered { self.broker_id > 0 } else { self.broker_id == 0 };
        check("brokerId", self.broker_id.to_string(), allowed, id);
        let nowhere = self.ha_master_address.is_empty() && self.namesrv_addr.trim().is_empty();
        let found = !(self.is_slave() && nowhere);
        let needed = "a SLAVE needs namesrvAddr, or host:port of its master's internal address here";
        check("haMasterAddress", self.ha_master_address.clone(), needed, found);
        let (replicas, least) = (self.in_sync_replicas, self.min_in_sync_replicas);
        let range = "0 to 16 replicas are allowed, the master included";
        check("inSyncReplicas", replicas.to_string(), range, replicas <= 16);
        check(
            "minInSyncReplicas",
            least.to_string(),
            "1 to 16 replicas are allowed",
            (1..=16).contains(&least),
        );
        let word = self.default_durability.as_str();
        let words = ["", "memory", "disk", "replicated", "replicated_disk"];
        let known = words.contains(&word);
        check(
            "defaultDurability",
            word.to_owned(),
            "memory, disk, replicated or replicated_disk is allowed",
            known,
        );
        // RocketMQ takes this and does not wait.
        let promises = !self.is_slave() && self.durability() >= Durability::Replicated;
        let kept = !promises || self.demands().replicas > 1;
        let why = "at least 2 (or 0 with SYNC_MASTER) is needed: sends that ask for replicas would be answered without any";
        check("inSyncReplicas", replicas.to_string(), why, kept);
    }

    fn check_held(&self, check: Check<'_>) {
        let most_sec = self.timer_max_delay_sec;
        check(
            "timerMaxDelaySec",
            most_sec.to_string(),
            "1 to 3456000 seconds (40 days) are allowed",
            (1..=DELAY_MAX_DAYS * 86_400).contains(&most_sec),
        );
        let delay = self.max_delay_time_mills;
        check(
            "maxDelayTimeMills",
            delay.to_string(),
            "1000 milliseconds to timerMaxDelaySec, which is 3456000 seconds (40 days) at most, are allowed",
            (1000..=most_sec.saturating_mul(1000)).contains(&delay),
        );
        for (key, value) in [
            ("transactionTimeOut", self.transaction_time_out),
            ("transactionCheckInterval", self.transaction_check_interval),
        ] {
            const ALLOWED: &str = "100 to 3600000 milliseconds are allowed";
            check(key, value.to_string(), ALLOWED, (100..=3_600_000).contains(&value));
        }
        let checks = self.transaction_check_max;
        check(
            "transactionCheckMax",
            checks.to_string(),
            "1 to 1000 checks are allowed",
            (1..=1000).contains(&checks),
        );
    }

    fn check_retention(&self, check: Check<'_>) {
        let hours = self.file_reserved_time;
        check(
            "fileReservedTime",
            hours.to_string(),
            "1 to 87600 hours (ten years) are allowed",
            (1..=u64::from(RESERVED_HOURS_MAX)).contains(&hours),
        );
        check(
            "deleteWhen",
            self.delete_when.clone(),
            "hours from 00 to 23 are allowed, with ; between them",
            delete_hours(&self.delete_when).is_some(),
        );
        let (limit, least) = (self.commit_log_size_limit_bytes, 3 * self.mapped_file_size_commit_log);
        check(
            "commitLogSizeLimitBytes",
            limit.to_string(),
            "0 (no limit) or at least three times mappedFileSizeCommitLog is allowed",
            limit == 0 || limit >= least,
        );
        let ladder = [
            ("diskMaxUsedSpaceRatio", self.disk_max_used_space_ratio),
            ("diskSpaceCleanForciblyRatio", self.disk_space_clean_forcibly_ratio),
            ("diskSpaceWarningLevelRatio", self.disk_space_warning_level_ratio),
        ];
        let mut lowest = 1;
        for (key, percent) in ladder {
            check(
                key,
                percent.to_string(),
                "percent from 1 to 100 are allowed, diskMaxUsedSpaceRatio <= diskSpaceCleanForciblyRatio <= diskSpaceWarningLevelRatio",
                (lowest..=100).contains(&percent),
            );
            lowest = lowest.max(percent);
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}
