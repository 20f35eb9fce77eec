//! What a namesrv can be told. Keys are RocketMQ's where RocketMQ has one.

use std::net::SocketAddr;

use karman_remoting::config::Unusable;
use karman_remoting::server::TlsMode;
use serde::{Deserialize, Serialize};

/// The configuration of one namesrv.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NamesrvConfig {
    /// Where clients and brokers connect.
    pub grpc_listen_address: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served; empty: nowhere.
    pub metrics_listen_address: String,
    /// Holds the self-signed certificate; nothing else is kept.
    pub store_path_root_dir: String,
    /// Brokers and operators must carry it; empty admits everyone.
    pub cluster_secret: String,
    /// A broker that is silent for longer is dropped from the routes. Milliseconds.
    pub broker_not_active_timeout_millis: u64,
    /// How often silent brokers are looked for. Milliseconds.
    pub scan_not_active_broker_interval: u64,
    /// `disabled` or `permissive` (TLS and plaintext).
    pub tls_server_mode: TlsMode,
    /// Certificate chain as PEM; empty makes a self-signed one.
    pub tls_server_cert_path: String,
    /// Private key as PEM.
    pub tls_server_key_path: String,
}

impl Default for NamesrvConfig {
    fn default() -> Self {
        Self {
            grpc_listen_address: "0.0.0.0:9876".into(),
            metrics_listen_address: "0.0.0.0:5557".into(),
            store_path_root_dir: "./karman-namesrv-data".into(),
            cluster_secret: String::new(),
            broker_not_active_timeout_millis: 10_000,
            scan_not_active_broker_interval: 500,
            tls_server_mode: TlsMode::Permissive,
            tls_server_cert_path: String::new(),
            tls_server_key_path: String::new(),
        }
    }
}

impl NamesrvConfig {
    /// Every value that cannot be used.
    pub fn invalid(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        let mut check = |key, value: &str, allowed, good: bool| {
            if !good {
                found.push(Unusable { key, value: value.to_owned(), allowed });
            }
        };
        let is_address = |text: &str| text.parse::<SocketAddr>().is_ok();
        let address = "IP:PORT is allowed, 0 being any free port";
        check("grpcListenAddress", &self.grpc_listen_address, address, is_address(&self.grpc_listen_address));
        let metrics = &self.metrics_listen_address;
        check("metricsListenAddress", metrics, address, metrics.is_empty() || is_address(metrics));
        for (key, millis) in [
            ("brokerNotActiveTimeoutMillis", self.broker_not_active_timeout_millis),
            ("scanNotActiveBrokerInterval", self.scan_not_active_broker_interval),
        ] {
            let allowed = "10 to 3600000 milliseconds are allowed";
            check(key, &millis.to_string(), allowed, (10..=3_600_000).contains(&millis));
        }
        let plaintext = self.tls_server_mode != TlsMode::Enforcing;
        let allowed = "disabled or permissive is allowed: brokers register in plaintext on the same port";
        check("tlsServerMode", "enforcing", allowed, plaintext);
        let both = self.tls_server_cert_path.is_empty() == self.tls_server_key_path.is_empty();
        let together = "set both tlsServerCertPath and tlsServerKeyPath, or none";
        check("tlsServerKeyPath", &self.tls_server_key_path, together, both);
        found
    }

    pub(crate) fn grpc_address(&self) -> SocketAddr {
        self.grpc_listen_address.parse().expect("a checked configuration holds addresses")
    }

    pub(crate) fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_listen_address.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_used_and_nonsense_is_named() {
        assert_eq!(NamesrvConfig::default().invalid(), []);
        let nonsense = NamesrvConfig { grpc_listen_address: "x".into(), ..NamesrvConfig::default() };
        assert_eq!(nonsense.invalid()[0].key, "grpcListenAddress");
    }
}
