//! A broker that follows a master: it keeps its log and what follows from it up to date, and is a door to the cluster for
//! clients that know no other.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use karman_remoting::admin_front::AdminFront;
use karman_remoting::auth::users::Users;
use karman_remoting::auth::{Auth, Gate};
use karman_remoting::between::Between;
use karman_remoting::clients::ClientRegistry;
use karman_remoting::config;
use karman_remoting::front::{Front, Standby};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_server::AdminServer;
use karman_remoting::proto::karman::repair_server::RepairServer;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::relay::Peers;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::{MAX_DECODING_SIZE_BYTES, RefusedConnections, with_health_and_reflection};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::slave_reads::SlaveReads;
use super::{Role, Running, SHUTDOWN_GRACE, StartError, identity, open_doors, open_probe, register};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::control::Control;
use crate::metrics;
use crate::open::Opened;
use crate::registration::{Own, Registrations};
use crate::replication::attend::Attending;
use crate::replication::repair::{OpenStore, RepairService};
use crate::replication::slave;

/// What a slave has beside what every node has.
#[derive(Debug)]
pub(super) struct Slave {
    pub(super) stopping: CancellationToken,
    following: JoinHandle<Option<Opened>>,
}

/// Starts a slave; `opened`: what it has opened already; `takes_over`: this broker had another role before. Whose it is say
/// controllers, the configuration or the namesrvs.
pub(super) fn start(
    config: &BrokerConfig,
    between: &Between,
    takes_over: bool,
    attending: Option<Arc<Attending>>,
    opened: Option<Opened>,
) -> Result<Running, StartError> {
    let control = Control::start().map_err(StartError::Thread)?;
    let (routes, clients, stopping) =
        (SharedRoutes::default(), Arc::new(ClientRegistry::default()), CancellationToken::new());
    if !config.namesrv_addr.trim().is_empty() {
        routes.begin_to_learn();
    }
    let (opened_now, store) = (Arc::new(Mutex::new(None)), OpenStore::default());
    let users = Users::default();
    let outside = services(config, between, &routes, clients, &users, &opened_now, &stopping);
    let repair = RepairServer::new(RepairService {
        store: store.clone(),
        cluster: config.broker_cluster_name.clone(),
        broker_name: config.broker_name.clone(),
        between: between.clone(),
    });
    let inside = with_health_and_reflection(outside.clone().add_service(repair));
    let outside = with_health_and_reflection(outside);
    let refused = RefusedConnections::default();
    let (clients, internal) =
        open_doors(config, between, takes_over, refused.clone(), &control, outside, inside)?;
    let started_ms = Clock::default().started_ms();
    let (outside, inside) = (clients.local_addr(), internal.local_addr());
    let identity = identity(config, config.broker_id, (outside, inside), started_ms, 0);
    let replica = v1::Replica {
        cluster: identity.cluster.clone(),
        broker_name: identity.broker_name.clone(),
        broker_id: identity.broker_id,
        incarnation: identity.incarnation,
        version: identity.version.clone(),
        address: identity.internal_address.clone(),
    };
    let state = v1::BrokerState { identity: Some(identity), topics: Vec::new(), groups: Vec::new() };
    let registrations = Registrations::new(Own::Slave(state), routes.clone(), users, config, between.clone());
    let registered = register(config, registrations, &control);
    let status = Arc::new(Mutex::default());
    let failed = watch::Sender::new(None);
    let failing = failed.subscribe();
    let (agreed, broker_id) = (attending.as_ref().map(|own| own.state.subscribe()), config.broker_id);
    let follower = slave::Slave {
        config: config.clone(),
        between: between.clone(),
        replica,
        routes,
        attending,
        status: status.clone(),
        store: store.clone(),
        opened: opened_now,
        failed,
        stopping: stopping.clone(),
    };
    let following = follow(follower, opened).map_err(StartError::Thread)?;
    let ready = Arc::new(AtomicBool::new(true));
    let missing = {
        let status = status.clone();
        move || missing(&status.lock(), agreed.as_ref(), broker_id)
    };
    let text = move || {
        let (status, store) = (status.lock().clone(), store.lock().upgrade());
        metrics::slave_text(&status, store.as_deref(), &refused)
    };
    let probe = open_probe(config, &ready, failing.clone(), missing, text)?;
    tracing::info!(broker = config.broker_name, broker_id = config.broker_id, "slave started");
    let metrics = probe.local_addr();
    let probe = Mutex::new(Some(probe));
    let role = Role::Slave(Slave { stopping, following });
    Ok(Running { role, clients, internal, probe, metrics, control, registered, ready, failed: failing })
}

/// What clients may ask: everything, at whoever owns it; and what a slave may answer itself, if it may.
fn services(
    config: &BrokerConfig,
    between: &Between,
    routes: &SharedRoutes,
    clients: Arc<ClientRegistry>,
    users: &Users,
    opened: &Arc<Mutex<Option<Opened>>>,
    stopping: &CancellationToken,
) -> Routes {
    let peers = Peers::new(between.clone());
    let auth = Auth::new(config.auth(), users.clone());
    let node = format!("{} {}", config.broker_name, config.broker_id);
    let admin = AdminFront::new(routes.clone(), peers.clone(), auth.clone(), None)
        .with_config(node, config::shown(config));
    let reads =
        config.slave_read_enable.then(|| Arc::new(SlaveReads::new(config, opened.clone(), stopping.clone())));
    let admin = match &reads {
        Some(reads) => admin.with_standby(&config.broker_name, reads.clone()),
        None => admin,
    };
    let reads = reads.map(|reads| reads as Arc<dyn MessagingService>);
    let standby = Standby { broker_name: config.broker_name.clone(), reads };
    let front = Front::new(routes.clone(), clients, peers, auth.clone(), None, stopping.clone())
        .with_standby(standby);
    let messaging = MessagingServiceServer::new(front).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let admin = AdminServer::new(admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    Routes::new(messaging).add_service(Gate::new(auth, admin))
}

/// Why it is not ready.
fn missing(
    status: &slave::SlaveStatus,
    agreed: Option<&watch::Receiver<Option<v1::SetState>>>,
    broker_id: i32,
) -> Option<String> {
    if !status.connected {
        return Some(format!("it does not follow its master: {}", status.why));
    }
    // Who restarts brokers one after the other waits for this: nobody else may be left.
    let counts = agreed.is_none_or(|agreed| {
        agreed.borrow().as_ref().is_some_and(|state| state.in_sync.contains(&broker_id))
    });
    (!counts).then(|| "it is not in sync with its master yet".to_owned())
}

/// On a thread that it may block: it opens the store.
fn follow(slave: slave::Slave, opened: Option<Opened>) -> std::io::Result<JoinHandle<Option<Opened>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("broker-slave".into()).spawn(move || runtime.block_on(slave.run(opened)))
}

impl Slave {
    /// Ends to follow; what it has opened. Blocks.
    pub(super) fn end(self) -> Option<Opened> {
        self.stopping.cancel();
        self.following.join().ok().flatten()
    }

    /// Nobody calls any more: closes the log. Blocks.
    pub(super) fn close(self, control: Control) -> Result<(), String> {
        control.join(SHUTDOWN_GRACE);
        // It panicked only where the log says why.
        match self.following.join() {
            Ok(Some(opened)) => opened.store.close().map_err(|error| error.to_string()),
            Ok(None) => Ok(()),
            Err(_) => Err("the thread that follows the master panicked".into()),
        }
    }
}
