//! Starting a broker and stopping it, in the order that keeps every promise.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use karman_remoting::admin_front::AdminFront;
use karman_remoting::channel::ChannelPool;
use karman_remoting::clients::ClientRegistry;
use karman_remoting::config::Unusable;
use karman_remoting::front::{Front, Local};
use karman_remoting::probe::{Probe, ProbeError};
use karman_remoting::proto::karman::admin_server::AdminServer;
use karman_remoting::proto::karman::route_change::Change as RouteChanged;
use karman_remoting::proto::karman::{self as v1, BrokerIdentity, BrokerState, RouteChange};
use karman_remoting::proto::v2::admin_server::AdminServer as PublicAdminServer;
use karman_remoting::proto::v2::messaging_service_server::MessagingServiceServer;
use karman_remoting::public_admin::PublicAdmin;
use karman_remoting::relay::Peers;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::{
    Limits, MAX_DECODING_SIZE_BYTES, Server, ServerError, ServerOptions, TlsMode, with_health_and_reflection,
};
use karman_remoting::status::Rejection;
use karman_remoting::tls::{Tls, TlsError};
use karman_store::{Durability, Listener, OpenError, Projection, QueueNumber, Store, StoreConfig};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::advertise;
use crate::broker::{Broker, Counters};
use crate::catalog::Catalog;
use crate::catalog_writer::{CatalogWriter, token_key};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::control::{self, Control};
use crate::dedupe::Dedupe;
use crate::filter::FilterCache;
use crate::held::HeldTable;
use crate::held::deliver::Deliverer;
use crate::lite::topics::LiteTopics;
use crate::lite::writer::LiteWriter;
use crate::lite::{self, LiteTable};
use crate::metrics;
use crate::progress::ProgressTable;
use crate::registration::Registrations;
use crate::service::admin::AdminService;
use crate::service::messaging::Messaging;
use crate::service::transaction::checks;

/// Compiled SQL expressions that are kept.
const FILTERS_MAX: usize = 1024;
/// Requests in flight may take this long to finish at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Changes of the own row that a registration may be behind.
const DELTAS_MAX: usize = 1024;

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Values that cannot be used, all of them.
    #[error("the configuration is refused:{}", .0.iter().map(|invalid| format!("\n  {invalid}")).collect::<String>())]
    Config(Vec<Unusable>),
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] OpenError),
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
    /// The control thread or the delivery thread could not be made.
    #[error("start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A running broker.
#[derive(Debug)]
pub struct Running {
    broker: Arc<Broker>,
    clients: Server,
    internal: Server,
    probe: Probe,
    control: Control,
    delivery: JoinHandle<()>,
    registered: CancellationToken,
    ready: Arc<AtomicBool>,
}

/// Wakes the readers of a topic or lite topic when the log says that a message is there, and says how long its messages are kept.
struct Arrivals(Arc<Catalog>, Arc<LiteTable>);

impl Listener for Arrivals {
    fn confirmed(&self, queue: QueueNumber, _count: u32) {
        match self.0.owner_of(queue) {
            Some(topic) => topic.arrived(),
            None => self.1.arrived(queue),
        }
    }

    fn reserved(&self, queue: QueueNumber) -> Option<Duration> {
        let parent = || Some(self.1.topics.owner_of(queue)?.topic.clone());
        self.0.owner_of(queue).or_else(parent)?.reserved()
    }
}

/// Starts a broker; it takes requests when this returns. Blocks while the log is recovered.
pub fn start(config: &BrokerConfig) -> Result<Running, StartError> {
    let invalid = config.invalid();
    if !invalid.is_empty() {
        return Err(StartError::Config(invalid));
    }
    let began = Instant::now();
    let catalog = Arc::new(Catalog::default());
    let progress = Arc::new(ProgressTable::new(catalog.clone()));
    let held = Arc::new(HeldTable::default());
    let lite_topics = Arc::new(LiteTopics::new(catalog.clone()));
    let lite = Arc::new(LiteTable::new(catalog.clone(), lite_topics.clone()));
    let store = Arc::new(open_store(config, &catalog, &progress, &held, &lite)?);
    catalog.reserve_queues(store.queue_count().max(lite_topics.queue_count()));
    progress.go_live();
    lite.go_live();
    let clock = Clock::default();
    let dedupe = Arc::new(recent_ids(config, &store, &clock));
    let key = token_key(&catalog, &store).map_err(StartError::TokenKey)?;
    let control = Control::start().map_err(StartError::Thread)?;
    let (routes, clients) = (SharedRoutes::default(), Arc::new(ClientRegistry::default()));
    if !config.namesrv_addr.trim().is_empty() {
        routes.begin_to_learn();
    }
    let (deltas, _) = broadcast::channel(DELTAS_MAX);
    let (catalog_writer, catalog_task) = CatalogWriter::new(
        catalog.clone(),
        store.clone(),
        routes.clone(),
        deltas.clone(),
        config.broker_name.clone(),
    );
    control.spawn(catalog_task);
    let (lite_writer, lite_task) =
        LiteWriter::new(catalog.clone(), lite_topics, store.clone(), config.max_lite_topics as usize);
    control.spawn(lite_task);
    let broker = Arc::new(Broker {
        name: config.broker_name.as_str().into(),
        store_host: advertise::advertised(&config.advertised_address, address(&config.grpc_listen_address)),
        durability: if config.flush_disk_type == "SYNC_FLUSH" {
            Durability::Disk
        } else {
            Durability::Memory
        },
        flush_timeout: Duration::from_millis(config.sync_flush_timeout),
        revision_base: u32::try_from(clock.started_ms() / 1000).unwrap_or(u32::MAX / 2),
        inflight_max: config.pop_inflight_message_threshold as usize,
        default_queue_nums: config.default_topic_queue_nums,
        dedup_window_minutes: config.dedup_window_minutes,
        dedupe,
        filters: FilterCache::new(FILTERS_MAX),
        auto_create_topics: config.auto_create_topic_enable,
        auto_create_groups: config.auto_create_subscription_group,
        token_key: key,
        clock,
        store,
        catalog,
        catalog_writer,
        progress,
        held,
        limits: config.held_limits(),
        lite,
        lite_writer,
        lite_subscriptions_max: config.max_lite_subscription_count as usize,
        clients,
        routes,
        counters: Counters::default(),
        verifying: AtomicBool::new(false),
        redriving: AtomicBool::new(false),
        stopping: CancellationToken::new(),
    });
    let (clients, internal) = open_doors(config, &broker, &control)?;
    let delivery = start_delivery(&broker)?;
    announce(config, &broker, clients.local_addr(), internal.local_addr());
    let registered = register(config, &broker, deltas, &control);
    control.spawn(control::sweep(broker.clone()));
    control.spawn(checks::run(broker.clone()));
    control.spawn(lite::time::keep(broker.clone()));
    let ready = Arc::new(AtomicBool::new(true));
    let probe = open_probe(config, &broker, &ready)?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(broker = config.broker_name, address = %clients.local_addr(), took_ms, "broker started");
    Ok(Running { broker, clients, internal, probe, control, delivery, registered, ready })
}

/// The ids of what was stored in the last window; topics with a longer one begin with less.
fn recent_ids(config: &BrokerConfig, store: &Store, clock: &Clock) -> Dedupe {
    let dedupe = Dedupe::new(usize::try_from(config.dedup_messages_max).unwrap_or(usize::MAX));
    let (now_ms, window_ms) = (clock.now_ms(), u64::from(config.dedup_window_minutes) * 60_000);
    let remember = &mut |hash, at| dedupe.restore(hash, at, now_ms);
    if let Err(error) = store.keys_since(now_ms.saturating_sub(window_ms), remember) {
        tracing::warn!(%error, "message ids from before the start are not known: a repeated send is stored again");
    }
    dedupe
}

fn open_store(
    config: &BrokerConfig,
    catalog: &Arc<Catalog>,
    progress: &Arc<ProgressTable>,
    held: &Arc<HeldTable>,
    lite: &Arc<LiteTable>,
) -> Result<Store, OpenError> {
    let store = StoreConfig {
        owner: format!("{}/{}", config.broker_cluster_name, config.broker_name),
        segment_size_bytes: config.mapped_file_size_commit_log,
        flush_interval: Duration::from_millis(config.flush_interval_commit_log),
        retention: config.retention(),
        scrub_bytes_per_second: config.scrub_rate_bytes_per_second,
        ..StoreConfig::new(Path::new(&config.store_path_root_dir).join("store"))
    };
    // The catalog first: progress is about its topics and groups.
    let projections: Vec<Arc<dyn Projection>> =
        vec![catalog.clone(), progress.clone(), held.clone(), lite.topics.clone(), lite.clone()];
    Store::open(store, projections, Arc::new(Arrivals(catalog.clone(), lite.clone())))
}

/// The configuration has been checked.
fn address(text: &str) -> SocketAddr {
    text.parse().expect("a checked configuration holds addresses")
}

/// The clients' port and the internal one: the same door behind both.
fn open_doors(
    config: &BrokerConfig,
    broker: &Arc<Broker>,
    control: &Control,
) -> Result<(Server, Server), StartError> {
    let peers = Peers::new(ChannelPool::new(), config.cluster_secret.clone());
    let local =
        Local { broker_name: config.broker_name.clone(), service: Arc::new(Messaging(broker.clone())) };
    let admin = AdminFront::new(
        broker.routes.clone(),
        peers.clone(),
        config.cluster_secret.clone(),
        Some((&local, Arc::new(AdminService(broker.clone())))),
    );
    let front = Front::new(
        broker.routes.clone(),
        broker.clients.clone(),
        peers,
        Some(local),
        broker.stopping.clone(),
    );
    let public_admin = PublicAdmin::new(admin.clone(), front.clone(), config.cluster_secret.clone());
    let messaging = MessagingServiceServer::new(front).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let public_admin =
        PublicAdminServer::new(public_admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let routes = Routes::new(messaging).add_service(AdminServer::new(admin)).add_service(public_admin);
    let routes = with_health_and_reflection(routes);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.data_threads == 0 { cores } else { config.data_threads as usize };
    let limits = Limits::default();
    // Making a server needs a runtime in reach, though each thread of it has its own.
    let _runtime = control.runtime.enter();
    let clients = Server::start(
        ServerOptions {
            name: "broker",
            listen: address(&config.grpc_listen_address),
            threads,
            tls: certificate(config)?,
            tls_mode: config.tls_server_mode,
            shutdown_grace: SHUTDOWN_GRACE,
            limits: limits.clone(),
        },
        routes.clone(),
    )?;
    let internal = Server::start(
        ServerOptions {
            name: "internal",
            listen: address(&config.internal_listen_address),
            threads: 1,
            tls: None,
            tls_mode: TlsMode::Disabled,
            shutdown_grace: SHUTDOWN_GRACE,
            limits,
        },
        routes,
    )?;
    Ok((clients, internal))
}

fn certificate(config: &BrokerConfig) -> Result<Option<Tls>, TlsError> {
    let listening = address(&config.grpc_listen_address);
    let advertised = advertise::advertised(&config.advertised_address, listening);
    let host = advertised.rsplit_once(':').map_or("localhost", |(host, _)| host).to_owned();
    let directory = Path::new(&config.store_path_root_dir).join("tls");
    let (cert, key) = (&config.tls_server_cert_path, &config.tls_server_key_path);
    Tls::of_node(config.tls_server_mode, cert, key, &directory, &[host])
}

/// Puts this broker into its own route table.
fn announce(config: &BrokerConfig, broker: &Broker, clients: SocketAddr, internal: SocketAddr) {
    let identity = BrokerIdentity {
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        broker_id: config.broker_id,
        endpoints: Some(advertise::endpoints(&advertise::advertised(&config.advertised_address, clients))),
        internal_address: advertise::advertised(&config.internal_advertised_address, internal),
        incarnation: broker.clock.started_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        auto_create_topics: config.auto_create_topic_enable,
    };
    let state = BrokerState {
        identity: Some(identity),
        topics: broker.catalog.topics().iter().map(|topic| topic.route()).collect(),
        groups: broker.catalog.groups().iter().map(|group| group.config.clone()).collect(),
    };
    broker.routes.apply(RouteChange { change: Some(RouteChanged::Joined(state)) });
}

fn start_delivery(broker: &Broker) -> Result<JoinHandle<()>, StartError> {
    let Broker { store, catalog, held, clock, durability, .. } = broker;
    let (store, catalog, held) = (store.clone(), catalog.clone(), held.clone());
    let deliverer = Deliverer { store, catalog, held, clock: *clock, durability: *durability };
    deliverer.start().map_err(StartError::Thread)
}

/// Begins to register with every namesrv; cancelling what comes back ends it.
fn register(
    config: &BrokerConfig,
    broker: &Broker,
    deltas: broadcast::Sender<v1::BrokerDelta>,
    control: &Control,
) -> CancellationToken {
    let registered = CancellationToken::new();
    let registrations = Arc::new(Registrations::new(
        config.broker_name.clone(),
        broker.routes.clone(),
        deltas,
        config.cluster_secret.clone(),
        Duration::from_millis(config.broker_heartbeat_interval),
        Duration::from_millis(config.broker_not_active_timeout_millis),
    ));
    let addresses = config.namesrv_addr.split(';').map(str::trim).filter(|address| !address.is_empty());
    for (index, address) in addresses.map(str::to_owned).enumerate() {
        let (registrations, stop) = (registrations.clone(), registered.clone());
        control.spawn(async move { registrations.keep(index, address, stop).await });
    }
    registered
}

fn open_probe(
    config: &BrokerConfig,
    broker: &Arc<Broker>,
    ready: &Arc<AtomicBool>,
) -> Result<Probe, ProbeError> {
    let (ready, poisoned) = (ready.clone(), broker.store.poisoned());
    let missing = move || {
        let stopping = (!ready.load(Ordering::Relaxed)).then(|| "the broker is stopping".to_owned());
        let failed = poisoned.borrow().as_ref().map(|reason| format!("the store has failed: {reason}"));
        stopping.into_iter().chain(failed).collect()
    };
    let measured = broker.clone();
    Probe::start(address(&config.metrics_listen_address), missing, move || metrics::text(&measured))
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
        self.probe.local_addr()
    }

    /// Why the store has failed, once it has; the process is then to end at once, with an error.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.broker.store.poisoned()
    }

    #[cfg(test)]
    pub(crate) fn broker(&self) -> Arc<Broker> {
        self.broker.clone()
    }

    /// Makes a topic if it is not there, with the broker's defaults where `queue_nums` is 0.
    pub async fn make_topic(&self, topic: v1::TopicConfig) -> Result<(), Rejection> {
        let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: true };
        self.broker.create_topic(request).await.map(drop)
    }

    /// Leaves the routes, ends the long polls, lets requests in flight finish, and closes the log. `Err` when the log
    /// could not be closed in order; what was answered is safe all the same.
    pub async fn shutdown(self) -> Result<(), String> {
        tracing::info!("broker stops");
        self.ready.store(false, Ordering::Relaxed);
        self.registered.cancel();
        self.broker.stopping.cancel();
        self.clients.shutdown().await;
        self.internal.shutdown().await;
        self.broker.held.stop();
        let (store, delivery) = (self.broker.store.clone(), self.delivery);
        // The last handles of the catalog's writer go with the broker; its task ends then.
        drop(self.probe);
        drop(self.broker);
        let control = self.control;
        let close = move || {
            control.join(SHUTDOWN_GRACE);
            // It panicked only where the log says why.
            let _ = delivery.join();
            store.close()
        };
        let closed = tokio::task::spawn_blocking(close).await;
        closed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}
