//! A broker that writes: it takes messages in and hands them out, and gives its log to slaves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use karman_remoting::admin_front::AdminFront;
use karman_remoting::auth::{Auth, Gate};
use karman_remoting::between::Between;
use karman_remoting::clients::ClientRegistry;
use karman_remoting::config;
use karman_remoting::front::{Front, Local};
use karman_remoting::line::{RelayService, RelayedLines};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_server::AdminServer;
use karman_remoting::proto::karman::relay_server::RelayServer;
use karman_remoting::proto::karman::repair_server::RepairServer;
use karman_remoting::proto::karman::replication_server::ReplicationServer;
use karman_remoting::proto::karman::route_change::Change as RouteChanged;
use karman_remoting::proto::karman::{BrokerIdentity, BrokerState, RouteChange};
use karman_remoting::proto::v2::admin_server::AdminServer as PublicAdminServer;
use karman_remoting::proto::v2::messaging_service_server::MessagingServiceServer;
use karman_remoting::public_admin::PublicAdmin;
use karman_remoting::relay::Peers;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::{MAX_DECODING_SIZE_BYTES, RefusedConnections, with_health_and_reflection};
use karman_store::{Durability, Store};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Role, Running, SHUTDOWN_GRACE, StartError, address, identity, open_doors, open_probe, register};
use crate::advertise;
use crate::broker::{Broker, Counters};
use crate::catalog::Catalog;
use crate::catalog_writer::{CatalogWriter, token_key};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::control::{self, Control};
use crate::dedupe::Dedupe;
use crate::filter::FilterCache;
use crate::held::deliver::Deliverer;
use crate::lite;
use crate::lite::writer::LiteWriter;
use crate::metrics;
use crate::open::Opened;
use crate::registration::{Own, Registrations};
use crate::replication::Followers;
use crate::replication::attend::Attending;
use crate::replication::master::ReplicationService;
use crate::replication::repair::{RepairService, Repairs};
use crate::service::admin::AdminService;
use crate::service::messaging::Messaging;
use crate::service::transaction::checks;
use crate::traces::Traces;

/// Compiled SQL expressions that are kept.
const FILTERS_MAX: usize = 1024;
/// Changes of the own row that a registration may be behind.
const DELTAS_MAX: usize = 1024;

/// What a master has beside what every node has.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) broker: Arc<Broker>,
    delivery: JoinHandle<()>,
}

/// Starts a master on what it has opened, whose store leads already, by the time of the log since `began_ms`.
pub(super) fn start(
    config: &BrokerConfig,
    between: &Between,
    opened: Opened,
    began_ms: u64,
    attending: Option<Arc<Attending>>,
) -> Result<Running, StartError> {
    let began = Instant::now();
    let Opened { store, catalog, progress, lite_topics, lite, .. } = &opened;
    catalog.reserve_queues(store.queue_count().max(lite_topics.queue_count()));
    progress.go_live();
    lite.go_live();
    let control = Control::start().map_err(StartError::Thread)?;
    let (deltas, _) = broadcast::channel(DELTAS_MAX);
    let dedupe = Arc::new(recent_ids(config, catalog, &opened.store, &Clock::default()));
    let (mut broker, tasks) = assemble(config, opened, began_ms, &deltas, dedupe)?;
    broker.traces = Traces::start(config)?;
    tasks.into_iter().for_each(|task| control.spawn(task));
    let broker = Arc::new(broker);
    // With controllers it was a slave before.
    let (clients, internal) = open_for(config, between, attending.is_some(), &broker, &control)?;
    let delivery = start_delivery(&broker)?;
    let (outside, inside) = (clients.local_addr(), internal.local_addr());
    let epoch = broker.store.epoch();
    announce(&broker, identity(config, 0, (outside, inside), broker.clock.started_ms(), epoch));
    let own = Own::Master { broker_name: config.broker_name.clone(), deltas };
    let users = broker.catalog.users().clone();
    let registrations = Registrations::new(own, broker.routes.clone(), users, config, between.clone());
    let registered = register(config, registrations, &control);
    control.spawn(control::sweep(broker.clone()));
    control.spawn(control::sweep_followers(broker.clone()));
    control.spawn(control::record_users(broker.clone()));
    control.spawn(repair(config, between, &broker));
    if let Some(attending) = attending {
        control.spawn(control::agree(broker.clone(), config.broker_id, attending));
    }
    control.spawn(checks::run(broker.clone()));
    control.spawn(lite::time::keep(broker.clone()));
    let (ready, failed) = (Arc::new(AtomicBool::new(true)), broker.store.poisoned());
    let measured = broker.clone();
    let probe = open_probe(config, &ready, failed.clone(), || None, move || metrics::text(&measured))?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(broker = config.broker_name, address = %outside, took_ms, epoch, "broker started");
    let metrics = probe.local_addr();
    let probe = Mutex::new(Some(probe));
    let role = Role::Master(Master { broker, delivery });
    Ok(Running { role, clients, internal, probe, metrics, control, registered, ready, failed })
}

/// What the writers of the catalog and of lite topics do.
type Tasks = [Pin<Box<dyn Future<Output = ()> + Send>>; 2];

/// The parts, put together, and what is to be run for those that write.
pub(super) fn assemble(
    config: &BrokerConfig,
    opened: Opened,
    began_ms: u64,
    deltas: &broadcast::Sender<karman_remoting::proto::karman::BrokerDelta>,
    dedupe: Arc<Dedupe>,
) -> Result<(Broker, Tasks), StartError> {
    let Opened { store, catalog, progress, held, lite_topics, lite } = opened;
    let clock = Clock::default();
    let token_key = token_key(&catalog, &store).map_err(StartError::TokenKey)?;
    let routes = SharedRoutes::default();
    if !config.namesrv_addr.trim().is_empty() {
        routes.begin_to_learn();
    }
    let (deltas, name) = (deltas.clone(), config.broker_name.clone());
    let (catalog_writer, catalog_task) =
        CatalogWriter::new(catalog.clone(), store.clone(), routes.clone(), deltas, name);
    let lite_topics_max = config.max_lite_topics as usize;
    let (lite_writer, lite_task) =
        LiteWriter::new(catalog.clone(), lite_topics, store.clone(), lite_topics_max);
    let broker = Broker {
        name: config.broker_name.as_str().into(),
        cluster: config.broker_cluster_name.clone(),
        store_host: advertise::advertised(&config.advertised_address, address(&config.grpc_listen_address)),
        durability: config.durability(),
        flush_timeout: Duration::from_millis(config.sync_flush_timeout),
        slave_timeout: Duration::from_millis(config.slave_timeout),
        revision_base: revision_base(began_ms, store.epoch()),
        sends: Semaphore::new(config.send_thread_pool_queue_capacity as usize),
        inflight_max: config.pop_inflight_message_threshold as usize,
        default_queue_nums: config.default_topic_queue_nums,
        dedup_window_minutes: config.dedup_window_minutes,
        dedupe,
        filters: FilterCache::new(FILTERS_MAX),
        auto_create_topics: config.auto_create_topic_enable,
        auto_create_groups: config.auto_create_subscription_group,
        token_key,
        clock,
        followers: Arc::new(Followers::new(store.clone(), config.demands(), config.enable_controller_mode)),
        role: config.broker_role.clone(),
        store,
        catalog,
        catalog_writer,
        progress,
        held,
        limits: config.held_limits(),
        lite,
        lite_writer,
        lite_subscriptions_max: config.max_lite_subscription_count as usize,
        lines: Arc::new(RelayedLines::default()),
        clients: Arc::new(ClientRegistry::default()),
        routes,
        counters: Counters::default(),
        burials: Arc::default(),
        refused_connections: RefusedConnections::default(),
        verifying: AtomicBool::new(false),
        redriving: AtomicBool::new(false),
        restoring: AtomicBool::new(false),
        traces: None,
        stopping: CancellationToken::new(),
    };
    Ok((broker, [Box::pin(catalog_task), Box::pin(lite_task)]))
}

/// Not the wall clock: it may be behind that of another broker, which was the master before, or have been set back. The time of
/// the log never goes back, and within a second the epoch makes the difference.
fn revision_base(began_ms: u64, epoch: u32) -> u32 {
    u32::try_from(began_ms / 1000).unwrap_or(u32::MAX / 2).saturating_add(epoch)
}

/// The ids of what was stored in the longest window that a topic has. The keys of users come along and take places of
/// `dedupMessagesMax`: the index does not tell one from the other.
fn recent_ids(config: &BrokerConfig, catalog: &Catalog, store: &Store, clock: &Clock) -> Dedupe {
    let topics = catalog.topics();
    let windows_ms =
        topics.iter().map(|topic| topic.dedup_window_ms(Durability::Disk, config.dedup_window_minutes));
    let window_ms = windows_ms.max().unwrap_or(0).max(u64::from(config.dedup_window_minutes) * 60_000);
    let dedupe = Dedupe::new(usize::try_from(config.dedup_messages_max).unwrap_or(usize::MAX), window_ms);
    let now_ms = clock.now_ms();
    let remember = &mut |hash, at| dedupe.restore(hash, at, now_ms);
    if let Err(error) = store.keys_since(now_ms.saturating_sub(window_ms), remember) {
        tracing::warn!(%error, "message ids from before the start are not known: a repeated send is stored again");
    }
    dedupe
}

/// The clients' port and the internal one: the same door behind both, and replication behind the internal one.
fn open_for(
    config: &BrokerConfig,
    between: &Between,
    takes_over: bool,
    broker: &Arc<Broker>,
    control: &Control,
) -> Result<(karman_remoting::server::Server, karman_remoting::server::Server), StartError> {
    let peers = Peers::new(between.clone());
    let local =
        Local { broker_name: config.broker_name.clone(), service: Arc::new(Messaging(broker.clone())) };
    let auth = Auth::new(config.auth(), broker.catalog.users().clone());
    let admin = AdminFront::new(
        broker.routes.clone(),
        peers.clone(),
        auth.clone(),
        Some((&local, Arc::new(AdminService(broker.clone())))),
    )
    .with_config(config.broker_name.clone(), config::shown(config));
    let front = Front::new(
        broker.routes.clone(),
        broker.clients.clone(),
        peers,
        auth.clone(),
        Some(local),
        broker.stopping.clone(),
    );
    let public_admin = PublicAdmin::new(admin.clone(), front.clone());
    let messaging = MessagingServiceServer::new(front).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let public_admin =
        PublicAdminServer::new(public_admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let admin = AdminServer::new(admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let (admin, public_admin) = (Gate::new(auth.clone(), admin), Gate::new(auth, public_admin));
    let outside = Routes::new(messaging).add_service(admin).add_service(public_admin);
    let replication = ReplicationServer::new(ReplicationService {
        store: broker.store.clone(),
        followers: broker.followers.clone(),
        traces: broker.traces.clone(),
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        between: between.clone(),
        segment_bytes: config.mapped_file_size_commit_log,
        // Who may be elected counts by what its device has.
        flush: broker.durability == Durability::ReplicatedDisk || config.enable_controller_mode,
        stopping: broker.stopping.clone(),
    });
    let repair = RepairServer::new(RepairService {
        store: Arc::new(Mutex::new(Arc::downgrade(&broker.store))),
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        between: between.clone(),
    });
    let lines = RelayServer::new(RelayService {
        lines: broker.lines.clone(),
        between: between.clone(),
        stopping: broker.stopping.clone(),
    });
    let inside = outside.clone().add_service(replication).add_service(repair).add_service(lines);
    open_doors(
        config,
        between,
        takes_over,
        broker.refused_connections.clone(),
        control,
        with_health_and_reflection(outside),
        with_health_and_reflection(inside),
    )
}

/// Puts this broker into its own route table.
fn announce(broker: &Broker, identity: BrokerIdentity) {
    let state = BrokerState {
        identity: Some(identity),
        topics: broker.catalog.topics().iter().map(|topic| topic.route()).collect(),
        groups: broker.catalog.groups().iter().map(|group| group.config.clone()).collect(),
    };
    broker.routes.apply(RouteChange { change: Some(RouteChanged::Joined(state)) });
}

/// Fetches from its slaves what is damaged of its log.
fn repair(
    config: &BrokerConfig,
    between: &Between,
    broker: &Arc<Broker>,
) -> impl Future<Output = ()> + use<> {
    let own = v1::Replica {
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        ..Default::default()
    };
    let repairs = Repairs::new(broker.store.clone(), own, between.clone());
    let (followers, stopping) = (broker.followers.clone(), broker.stopping.clone());
    async move {
        if stopping.run_until_cancelled(repairs.run(move || followers.in_sync())).await.is_some() {
            tracing::warn!(
                "all that was damaged is repaired; restart this broker, or hand over: topics, groups and progress lack what was"
            );
        }
    }
}

fn start_delivery(broker: &Broker) -> Result<JoinHandle<()>, StartError> {
    let Broker { store, catalog, held, clock, durability, .. } = broker;
    let (store, catalog, held) = (store.clone(), catalog.clone(), held.clone());
    let deliverer = Deliverer { store, catalog, held, clock: *clock, durability: *durability };
    deliverer.start().map_err(StartError::Thread)
}

impl Master {
    /// Nobody calls any more: closes the log. Blocks.
    pub(super) fn close(self, control: Control) -> Result<(), String> {
        let Self { broker, delivery } = self;
        broker.held.stop();
        let (store, traces) = (broker.store.clone(), broker.traces.clone());
        // The last handles of the catalog's writer go with the broker; its task ends then.
        drop(broker);
        control.join(SHUTDOWN_GRACE);
        // It panicked only where the log says why.
        let _ = delivery.join();
        let closed = store.close().map_err(|error| error.to_string());
        // After the log: what it waits for is outside.
        traces.iter().for_each(|traces| traces.close());
        closed
    }
}
