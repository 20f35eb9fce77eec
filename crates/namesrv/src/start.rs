//! Starting a namesrv and stopping it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use karman_remoting::admin_front::AdminFront;
use karman_remoting::auth::users::Users;
use karman_remoting::auth::{Auth, Gate};
use karman_remoting::clients::ClientRegistry;
use karman_remoting::config;
use karman_remoting::config::Unusable;
use karman_remoting::front::Front;
use karman_remoting::probe::{Probe, ProbeError};
use karman_remoting::proto::karman::admin_server::AdminServer;
use karman_remoting::proto::karman::registration_server::RegistrationServer;
use karman_remoting::proto::v2::admin_server::AdminServer as PublicAdminServer;
use karman_remoting::proto::v2::messaging_service_server::MessagingServiceServer;
use karman_remoting::public_admin::PublicAdmin;
use karman_remoting::refused::Refusals;
use karman_remoting::relay::Peers;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::{
    MAX_DECODING_SIZE_BYTES, RefusedConnections, Server, ServerError, ServerOptions,
    with_health_and_reflection,
};
use karman_remoting::tls::{Tls, TlsError};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::NamesrvConfig;
use crate::controller::{Controller, ControllerError, ControllerStatus};
use crate::registration::{RegistrationService, Registrations};
use crate::route_info::RouteInfo;

/// Requests in flight may take this long to finish at the end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Why a namesrv did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Values that cannot be used, all of them.
    #[error("the configuration is refused:{}", .0.iter().map(|invalid| format!("\n  {invalid}")).collect::<String>())]
    Config(Vec<Unusable>),
    /// A certificate could not be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port could not be opened.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The probe's port could not be opened.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The controller cannot take part.
    #[error("start the controller: {0}")]
    Controller(#[from] ControllerError),
    /// The sweep's thread could not be made.
    #[error("start the sweep thread: {0}")]
    Sweep(#[source] std::io::Error),
}

/// A running namesrv.
#[derive(Debug)]
pub struct Namesrv {
    server: Server,
    probe: Option<Probe>,
    stopping: CancellationToken,
    ready: Arc<AtomicBool>,
    sweep: JoinHandle<()>,
    controller: Option<Controller>,
}

/// Starts a namesrv; it takes requests when this returns.
pub fn start(config: &NamesrvConfig) -> Result<Namesrv, StartError> {
    let invalid = config.invalid();
    if !invalid.is_empty() {
        return Err(StartError::Config(invalid));
    }
    let (routes, clients) = (SharedRoutes::default(), Arc::new(ClientRegistry::default()));
    let stopping = CancellationToken::new();
    let silence_max = Duration::from_millis(config.broker_not_active_timeout_millis);
    let between = config.between()?;
    let users = Users::default();
    let auth = Auth::new(config.auth(), users.clone());
    let limits = config.limits();
    let refusals = (users.clone(), limits.refused.clone());
    let info = RouteInfo::new(silence_max, config.broker_cluster_name.clone());
    let refused = Arc::new(Refusals::default());
    let registrations =
        Registrations::new(routes.clone(), users, info, between.clone(), refused.clone(), stopping.clone());
    let peers = Peers::new(between.clone());
    let front =
        Front::new(routes.clone(), clients.clone(), peers.clone(), auth.clone(), None, stopping.clone());
    let admin = AdminFront::new(routes.clone(), peers, auth.clone(), None)
        .with_config("namesrv".to_owned(), config::shown(config))
        .with_refusals(refused);
    let public_admin = PublicAdmin::new(admin.clone(), front.clone());
    let admin = AdminServer::new(admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let public_admin =
        PublicAdminServer::new(public_admin).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let (admin, public_admin) = (Gate::new(auth.clone(), admin), Gate::new(auth, public_admin));
    let messaging = MessagingServiceServer::new(front).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let registration = RegistrationServer::new(RegistrationService(registrations.clone()))
        .max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let services =
        Routes::new(messaging).add_service(registration).add_service(admin).add_service(public_admin);
    let controller = config.controller(&between).map(|options| Controller::start(options, stopping.clone()));
    let controller = controller.transpose()?;
    let services = match &controller {
        Some(controller) => services.add_service(controller.service().guarded()),
        None => services,
    };
    let server = Server::start(
        ServerOptions {
            name: "namesrv",
            listen: config.grpc_address(),
            threads: 1,
            tls: certificate(config)?,
            tls_mode: config.tls_server_mode,
            nodes: between,
            shutdown_grace: SHUTDOWN_GRACE,
            takes_over: false,
            limits,
        },
        with_health_and_reflection(services),
    )?;
    let ready = Arc::new(AtomicBool::new(true));
    let controlled = controller.as_ref().map(Controller::status);
    let probe = open_probe(config, &ready, routes, controlled, refusals)?;
    // Last: what was started before ends by being dropped when something behind it fails, a thread does not.
    let sweep = start_sweep(config, registrations, clients, stopping.clone())?;
    tracing::info!(address = %server.local_addr(), "namesrv started");
    Ok(Namesrv { server, probe, stopping, ready, sweep, controller })
}

/// A thread of its own: it drops silent brokers while the data thread is busy, which is when they fall silent.
fn start_sweep(
    config: &NamesrvConfig,
    registrations: Arc<Registrations>,
    clients: Arc<ClientRegistry>,
    stopping: CancellationToken,
) -> Result<JoinHandle<()>, StartError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Sweep)?;
    let interval = Duration::from_millis(config.scan_not_active_broker_interval);
    let sweep = async move {
        let mut tick = tokio::time::interval(interval);
        while stopping.run_until_cancelled(tick.tick()).await.is_some() {
            registrations.expire();
            clients.expire();
        }
    };
    let thread = std::thread::Builder::new().name("namesrv-sweep".into());
    thread.spawn(move || runtime.block_on(sweep)).map_err(StartError::Sweep)
}

fn certificate(config: &NamesrvConfig) -> Result<Option<Tls>, TlsError> {
    let directory = Path::new(&config.store_path_root_dir).join("tls");
    Tls::of_node(config.tls(), &directory, &[])
}

fn open_probe(
    config: &NamesrvConfig,
    ready: &Arc<AtomicBool>,
    routes: SharedRoutes,
    controller: Option<ControllerStatus>,
    (users, connections): (Users, RefusedConnections),
) -> Result<Option<Probe>, ProbeError> {
    let Some(address) = config.metrics_address() else { return Ok(None) };
    let (ready, learning) = (ready.clone(), routes.clone());
    let told = controller.clone();
    let missing = move || {
        let is_stopping = (!ready.load(Ordering::Relaxed)).then_some("the namesrv is stopping");
        let is_learning = learning.is_learning().then_some("the brokers have had no time to register yet");
        let failed = told.as_ref().and_then(ControllerStatus::failure);
        let failed = failed.map(|why| format!("the controller has stopped: {why}"));
        is_stopping.into_iter().chain(is_learning).map(str::to_owned).chain(failed).collect()
    };
    let metrics = move || {
        let brokers = routes.read().brokers().count();
        let controller = controller.as_ref().map(ControllerStatus::metrics).unwrap_or_default();
        let refused = refused(&users, &connections);
        format!(
            "# TYPE karman_brokers gauge\n# HELP karman_brokers Brokers in the route table.\nkarman_brokers {brokers}\n{refused}{controller}# EOF\n"
        )
    };
    Probe::start(address, missing, metrics).map(Some)
}

/// What users and connections were refused; a user's name has nothing that would have to be quoted.
fn refused(users: &Users, connections: &RefusedConnections) -> String {
    let mut text = String::from(
        "# TYPE karman_quota_refusals counter\n# HELP karman_quota_refusals Calls refused because a quota was used up.\n",
    );
    for (name, refusals) in users.refusals() {
        for (quota, count) in refusals.counts().into_iter().filter(|(_, count)| *count > 0) {
            let labels = format!("of=\"user\",name=\"{name}\",quota=\"{quota}\"");
            text.push_str(&format!("karman_quota_refusals_total{{{labels}}} {count}\n"));
        }
    }
    text.push_str("# TYPE karman_connections_refused counter\n");
    text.push_str(
        "# HELP karman_connections_refused Connections closed at once because a limit was reached.\n",
    );
    for (limit, count) in connections.counts() {
        text.push_str(&format!("karman_connections_refused_total{{limit=\"{limit}\"}} {count}\n"));
    }
    text
}

impl Namesrv {
    /// Where clients and brokers connect.
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Where metrics are, if they are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.probe.as_ref().map(Probe::local_addr)
    }

    /// Ends the streams of brokers and clients, lets requests in flight finish, and joins the threads.
    pub async fn shutdown(self) {
        tracing::info!("namesrv stops");
        self.ready.store(false, Ordering::Relaxed);
        self.stopping.cancel();
        self.server.shutdown().await;
        if let Some(controller) = self.controller {
            controller.shutdown().await;
        }
        // The sweep wakes by its token; it panics no more than the locks it takes.
        let _ = tokio::task::spawn_blocking(move || self.sweep.join()).await;
    }
}
