//! Starting a broker and stopping it, in the order that keeps every promise. What master ([`master`]) and slave ([`slave`])
//! have in common is here.

mod master;
mod member;
mod slave;
mod slave_reads;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karman_remoting::between::Between;
use karman_remoting::config::Unusable;
use karman_remoting::probe::{Probe, ProbeError};
use karman_remoting::proto::karman::{self as v1, BrokerIdentity};
use karman_remoting::server::{Limits, RefusedConnections, Server, ServerError, ServerOptions, TlsMode};
use karman_remoting::status::Rejection;
use karman_remoting::tls::{Tls, TlsError};
use karman_store::{Append, Durability, OpenError};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::advertise;
use crate::config::BrokerConfig;
use crate::control::Control;
use crate::open::open;
use crate::registration::Registrations;
use crate::traces::TracesError;

pub use member::Member;

/// Requests in flight may take this long to finish at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Values that cannot be used, all of them.
    #[error("the configuration is refused:{}", .0.iter().map(|invalid| format!("\n  {invalid}")).collect::<String>())]
    Config(Vec<Unusable>),
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The beginning of an epoch could not be recorded.
    #[error("the beginning of an epoch cannot be recorded: {0}")]
    Epoch(#[source] karman_store::AppendError),
    /// The key of the handles could not be recorded.
    #[error("the token key cannot be recorded: {0}")]
    TokenKey(#[source] Rejection),
    /// A certificate could not be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port could not be opened.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The probe's port could not be opened.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Traces could not begin.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The control thread or the delivery thread could not be made.
    #[error("start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running broker.
#[derive(Debug)]
pub struct Running {
    role: Role,
    clients: Server,
    internal: Server,
    /// Taken when another role of this broker needs its port.
    probe: Mutex<Option<Probe>>,
    metrics: SocketAddr,
    control: Control,
    registered: CancellationToken,
    ready: Arc<AtomicBool>,
    failed: watch::Receiver<Option<Arc<str>>>,
}

#[derive(Debug)]
enum Role {
    Master(master::Master),
    Slave(slave::Slave),
    /// It goes on as another.
    Over,
}

/// Starts a broker; it takes requests when this returns. Blocks while the log is recovered; a slave opens its log later,
/// when its master has told it which one that is.
pub fn start(config: &BrokerConfig) -> Result<Running, StartError> {
    let invalid = config.invalid();
    if !invalid.is_empty() {
        return Err(StartError::Config(invalid));
    }
    let between = config.between()?;
    if config.is_slave() {
        return slave::start(config, &between, false, None, None);
    }
    let opened = open(config, false, None)?;
    // Durable before anybody follows: no two masters write under one number.
    let beginning = opened.store.lead(opened.store.epoch() + 1, Durability::Disk).and_then(Append::wait);
    let began_ms = beginning.map_err(StartError::Epoch)?.store_time_ms;
    master::start(config, &between, opened, began_ms, None)
}

/// The configuration has been checked.
fn address(text: &str) -> SocketAddr {
    text.parse().expect("a checked configuration holds addresses")
}

/// The clients' port and the internal one, which has the services of `inside` as well. `takes_over`: from another role of
/// this broker.
fn open_doors(
    config: &BrokerConfig,
    between: &Between,
    takes_over: bool,
    refused: RefusedConnections,
    control: &Control,
    outside: Routes,
    inside: Routes,
) -> Result<(Server, Server), StartError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.data_threads == 0 { cores } else { config.data_threads as usize };
    let (max, max_per_address) = (config.max_connections, config.max_connections_per_address);
    // Each door has two fifths of the descriptors at most: the next segment of the store must find one left.
    let limits = Limits { refused, ..Limits::configured(max, max_per_address, 2) };
    // Making a server needs a runtime in reach, though each thread of it has its own.
    let _runtime = control.runtime.enter();
    let clients = Server::start(
        ServerOptions {
            name: "broker",
            listen: address(&config.grpc_listen_address),
            threads,
            tls: certificate(config)?,
            tls_mode: config.tls_server_mode,
            nodes: Between::default(),
            shutdown_grace: SHUTDOWN_GRACE,
            takes_over,
            limits: limits.clone(),
        },
        outside,
    )?;
    let internal = Server::start(
        ServerOptions {
            name: "internal",
            listen: address(&config.internal_listen_address),
            threads: 1,
            tls: None,
            // Nobody else has to come here.
            tls_mode: if between.has_tls() { TlsMode::Enforcing } else { TlsMode::Disabled },
            nodes: between.clone(),
            shutdown_grace: SHUTDOWN_GRACE,
            takes_over,
            limits,
        },
        inside,
    )?;
    Ok((clients, internal))
}

fn certificate(config: &BrokerConfig) -> Result<Option<Tls>, TlsError> {
    let listening = address(&config.grpc_listen_address);
    let advertised = advertise::advertised(&config.advertised_address, listening);
    let host = advertised.rsplit_once(':').map_or("localhost", |(host, _)| host).to_owned();
    let directory = Path::new(&config.store_path_root_dir).join("tls");
    Tls::of_node(config.tls(), &directory, &[host])
}

/// Who this broker is to others.
fn identity(
    config: &BrokerConfig,
    broker_id: i32,
    (clients, internal): (SocketAddr, SocketAddr),
    started_ms: u64,
    epoch: u32,
) -> BrokerIdentity {
    BrokerIdentity {
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        broker_id,
        endpoints: Some(advertise::endpoints(&advertise::advertised(&config.advertised_address, clients))),
        internal_address: advertise::advertised(&config.internal_advertised_address, internal),
        incarnation: started_ms,
        epoch,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        auto_create_topics: config.auto_create_topic_enable,
    }
}

/// Begins to register with every namesrv; cancelling what comes back ends it.
fn register(config: &BrokerConfig, registrations: Registrations, control: &Control) -> CancellationToken {
    let (registered, registrations) = (CancellationToken::new(), Arc::new(registrations));
    let addresses = config.namesrv_addr.split(';').map(str::trim).filter(|address| !address.is_empty());
    for (index, address) in addresses.map(str::to_owned).enumerate() {
        let (registrations, stop) = (registrations.clone(), registered.clone());
        control.spawn(async move { registrations.keep(index, address, stop).await });
    }
    registered
}

fn open_probe(
    config: &BrokerConfig,
    ready: &Arc<AtomicBool>,
    failed: watch::Receiver<Option<Arc<str>>>,
    missing: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> Result<Probe, ProbeError> {
    let ready = ready.clone();
    let all_missing = move || {
        let stopping = (!ready.load(Ordering::Relaxed)).then(|| "the broker is stopping".to_owned());
        let failed = failed.borrow().as_ref().map(|reason| format!("the store has failed: {reason}"));
        stopping.into_iter().chain(failed).chain(missing()).collect()
    };
    Probe::start(address(&config.metrics_listen_address), all_missing, metrics)
}

impl Running {
    /// Where clients connect.
    pub fn clients_address(&self) -> SocketAddr {
        self.clients.local_addr()
    }

    /// Where other nodes connect.
    pub fn internal_address(&self) -> SocketAddr {
        self.internal.local_addr()
    }

    /// Where metrics are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Why the store has failed, once it has; the process is then to end at once, with an error.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failed.clone()
    }

    #[cfg(test)]
    pub(crate) fn broker(&self) -> Arc<crate::broker::Broker> {
        match &self.role {
            Role::Master(master) => master.broker.clone(),
            Role::Slave(_) | Role::Over => panic!("a slave has no such parts"),
        }
    }

    /// Makes a topic if it is not there, with the broker's defaults where `queue_nums` is 0.
    pub async fn make_topic(&self, topic: v1::TopicConfig) -> Result<(), Rejection> {
        let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: true };
        match &self.role {
            Role::Master(master) => master.broker.create_topic(request).await.map(drop),
            Role::Slave(_) | Role::Over => Err(Rejection::BadRequest("topics are made at the master".into())),
        }
    }

    /// Leaves the routes, ends the long polls, lets requests in flight finish, and closes the log. `Err` when the log
    /// could not be closed in order; what was answered is safe all the same.
    pub async fn shutdown(self) -> Result<(), String> {
        tracing::info!("broker stops");
        self.ready.store(false, Ordering::Relaxed);
        self.registered.cancel();
        self.role.stop();
        self.clients.shutdown().await;
        self.internal.shutdown().await;
        self.probe.lock().take();
        let (role, control) = (self.role, self.control);
        let closed = tokio::task::spawn_blocking(move || match role {
            Role::Master(master) => master.close(control),
            Role::Slave(slave) => slave.close(control),
            Role::Over => {
                control.join(SHUTDOWN_GRACE);
                Ok(())
            }
        });
        closed.await.map_err(|error| error.to_string())?
    }
}

impl Role {
    /// What takes long for clients ends.
    fn stop(&self) {
        match self {
            Self::Master(master) => master.broker.stopping.cancel(),
            Self::Slave(slave) => slave.stopping.cancel(),
            Self::Over => {}
        }
    }
}
