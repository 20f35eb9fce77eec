//! What a namesrv can be told. Keys are RocketMQ's where RocketMQ has one.

use std::net::SocketAddr;
use std::time::Duration;

use karman_remoting::auth::AuthConfig;
use karman_remoting::between::{ALL_OR_NONE, Between};
use karman_remoting::config::Unusable;
use karman_remoting::secret::{SECRET_ALLOWED, Secret};
use karman_remoting::server::{
    Limits, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, TlsMode, connection_rules,
};
use karman_remoting::tls::{ClientAuth, TlsError, TlsKeys};
use karman_remoting::validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::controller::{ControllerOptions, parse_peers};

/// What the keys begin with in the environment.
pub const ENV_PREFIX: &str = "KARMAN_NAMESRV__";

/// The configuration of one namesrv. Its comments are the reference (`docs/configuration.md`): a number's says its unit.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NamesrvConfig {
    /// Where clients and brokers connect.
    pub grpc_listen_address: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served; empty: nowhere.
    pub metrics_listen_address: String,
    /// Holds the self-signed certificate; nothing else is kept.
    pub store_path_root_dir: String,
    /// Brokers of another cluster are refused; empty: of whichever cluster they are.
    pub broker_cluster_name: String,
    /// Brokers and operators must carry it; empty admits everyone.
    pub cluster_secret: Secret,
    /// Clients must prove with every call who they are; it needs `clusterSecret`.
    pub authentication_enabled: bool,
    /// They may do what the policies of their user allow (`karman acl`), and nothing else.
    pub authorization_enabled: bool,
    /// A super user that is made when there is none of its name: `{"username":"NAME","password":"SECRET"}` or `NAME:SECRET`.
    /// The same on all nodes.
    pub init_authentication_user: Secret,
    /// A broker that is silent for longer is dropped from the routes. Milliseconds.
    pub broker_not_active_timeout_millis: u64,
    /// How often silent brokers are looked for. Milliseconds.
    pub scan_not_active_broker_interval: u64,
    /// Connections that it may have; a further one is closed at once.
    pub max_connections: u32,
    /// Of those, from one address (of IPv6: from one network /64); 0: as many as there are.
    pub max_connections_per_address: u32,
    /// `disabled`, `permissive` (TLS and plaintext) or, with `internalTlsCaPath`, `enforcing` (TLS only). It is about clients.
    pub tls_server_mode: TlsMode,
    /// Certificate chain as PEM; empty makes a self-signed one. Clients that verify it look for the host they were given to connect
    /// to among its subject alternative names. Read anew when it or the key has changed.
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
    /// Whether this namesrv is one of the controllers.
    #[serde(rename = "enableControllerInNamesrv")]
    pub enable_controller_in_namesrv: bool,
    /// The controllers that form a group, by their namesrvs' addresses: `1-host:9876;2-host:9876;3-host:9876`. Later it is changed by
    /// `karman cluster controllers set`.
    pub controller_peers: String,
    /// Which of `controllerPeers` this one is.
    pub controller_self_id: u64,
    /// Names the group of controllers; those of another are refused.
    #[serde(rename = "controllerDLegerGroup")]
    pub controller_dleger_group: String,
    /// Where what the controllers agree on is kept.
    pub controller_store_path: String,
    /// A master that cannot renew for so long has no say any more. Milliseconds.
    pub controller_lease_millis: u64,
    /// Whether a broker that lacks acknowledged messages may become master when no other is left.
    pub enable_elect_unclean_master: bool,
}

impl Default for NamesrvConfig {
    fn default() -> Self {
        Self {
            grpc_listen_address: "0.0.0.0:9876".into(),
            metrics_listen_address: "0.0.0.0:5557".into(),
            store_path_root_dir: "./karman-namesrv-data".into(),
            broker_cluster_name: String::new(),
            cluster_secret: Secret::default(),
            authentication_enabled: false,
            authorization_enabled: false,
            init_authentication_user: Secret::default(),
            broker_not_active_timeout_millis: 10_000,
            scan_not_active_broker_interval: 500,
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
            enable_controller_in_namesrv: false,
            controller_peers: String::new(),
            controller_self_id: 1,
            controller_dleger_group: "karman".into(),
            controller_store_path: "./karman-controller-data".into(),
            controller_lease_millis: 1500,
            enable_elect_unclean_master: false,
        }
    }
}

/// Takes a key, its value, what is allowed, and whether it is good.
type Check<'a> = &'a mut dyn FnMut(&'static str, &str, &'static str, bool);

impl NamesrvConfig {
    /// Every value that cannot be used.
    pub fn invalid(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        self.check(&mut |key, value, allowed, good| {
            if !good {
                found.push(Unusable { key, value: value.to_owned(), allowed });
            }
        });
        found
    }

    /// What is allowed: keys with the words of the errors. A key may have several.
    pub fn rules() -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        let controller = Self { enable_controller_in_namesrv: true, ..Self::default() };
        controller.check(&mut |key, _, allowed, _| all.push((key, allowed)));
        all
    }

    fn check(&self, check: Check<'_>) {
        let is_address = |text: &str| text.parse::<SocketAddr>().is_ok();
        let address = "IP:PORT is allowed, 0 being any free port";
        check("grpcListenAddress", &self.grpc_listen_address, address, is_address(&self.grpc_listen_address));
        let metrics = &self.metrics_listen_address;
        check("metricsListenAddress", metrics, address, metrics.is_empty() || is_address(metrics));
        let cluster = &self.broker_cluster_name;
        let allowed = "1 to 127 of a-z A-Z 0-9 - _ . are allowed, or none";
        let is_name = cluster.is_empty() || validate::is_node_name(cluster);
        check("brokerClusterName", cluster, allowed, is_name);
        for (key, millis) in [
            ("brokerNotActiveTimeoutMillis", self.broker_not_active_timeout_millis),
            ("scanNotActiveBrokerInterval", self.scan_not_active_broker_interval),
        ] {
            let allowed = "10 to 3600000 milliseconds are allowed";
            check(key, &millis.to_string(), allowed, (10..=3_600_000).contains(&millis));
        }
        for (rule, good) in connection_rules(self.max_connections, self.max_connections_per_address) {
            check(rule.key, &rule.value, rule.allowed, good);
        }
        let internal = self.internal_tls_paths().map(str::is_empty);
        let whole = internal[0] == internal[1] && internal[1] == internal[2];
        check("internalTlsCaPath", &self.internal_tls_ca_path, ALL_OR_NONE, whole);
        let registered = self.tls_server_mode != TlsMode::Enforcing || !internal[0];
        let allowed = "without internalTlsCaPath brokers register in plaintext on the same port: disabled or permissive is allowed";
        check("tlsServerMode", "enforcing", allowed, registered);
        let secret = &self.cluster_secret;
        check("clusterSecret", secret.shown(), SECRET_ALLOWED, secret.is_header());
        if self.enable_controller_in_namesrv {
            self.check_controller(check);
        }
        for (rule, good) in self.auth().rules().into_iter().chain(self.tls().rules()) {
            check(rule.key, &rule.value, rule.allowed, good);
        }
    }

    fn check_controller(&self, check: Check<'_>) {
        let peers = parse_peers(&self.controller_peers);
        let allowed = "1, 3, 5 or 7 controllers are allowed, each as ID-HOST:PORT, separated by ';': \
                       1-host:9876;2-host:9876;3-host:9876";
        check("controllerPeers", &self.controller_peers, allowed, peers.is_ok());
        let id = self.controller_self_id;
        let known = peers.map_or(id > 0, |peers| peers.contains_key(&id));
        check("controllerSelfId", &id.to_string(), "it is an id out of controllerPeers", known);
        let group = &self.controller_dleger_group;
        let named = "1 to 127 of a-z A-Z 0-9 - _ . are allowed";
        check("controllerDLegerGroup", group, named, validate::is_node_name(group));
        let path = &self.controller_store_path;
        check("controllerStorePath", path, "a directory is needed", !path.is_empty());
        let millis = self.controller_lease_millis;
        let allowed = "500 to 60000 milliseconds are allowed";
        check("controllerLeaseMillis", &millis.to_string(), allowed, (500..=60_000).contains(&millis));
    }

    /// What is asked of callers.
    pub(crate) fn auth(&self) -> AuthConfig {
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

    /// How to run the controller, if there is to be one.
    pub(crate) fn controller(&self, between: &Between) -> Option<ControllerOptions> {
        self.enable_controller_in_namesrv.then(|| ControllerOptions {
            group: self.controller_dleger_group.clone(),
            self_id: self.controller_self_id,
            peers: parse_peers(&self.controller_peers).expect("a checked configuration names controllers"),
            store_path: self.controller_store_path.clone().into(),
            between: between.clone(),
            lease: Duration::from_millis(self.controller_lease_millis),
            unclean: self.enable_elect_unclean_master,
        })
    }

    /// How many may connect.
    pub(crate) fn limits(&self) -> Limits {
        Limits::configured(self.max_connections, self.max_connections_per_address, 4)
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
