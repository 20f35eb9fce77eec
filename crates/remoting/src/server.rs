//! The gRPC server of every node: one port for TLS and plaintext, one `current_thread` runtime per data thread.
//!
//! Owns the data threads `<name>-0`, `<name>-1`, ...; each has its own SO_REUSEPORT listener, gives what it accepts to the
//! thread with the fewest connections, and serves its own on its own runtime: no request ever changes threads. Started and stopped by whoever
//! assembles the node; the services behind the routes run on the data threads and must not block them.

mod accept;
mod admission;
mod authority;
mod connection;
mod framing;
mod listener;
mod pending;
mod places;
mod thread;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use self::admission::Admission;
pub use self::places::RefusedConnections;
use crate::between::Between;
use crate::config::Unusable;
use crate::listening_thread::ListeningThread;
use crate::proto::DESCRIPTORS;
use crate::refused::Refusals;
use crate::tls::Tls;

/// What services decode at most: give it to `max_decoding_message_size` of every generated server.
///
/// tonic's default of 4 MiB refuses what RocketMQ allows: a body of 4 MiB plus its envelope, and a batch of up to 32
/// messages in one request. 32 MiB is also the C++ client's sending limit (16 MiB) with room. How much all requests
/// together may hold is bounded by [`Admission`].
pub const MAX_DECODING_SIZE_BYTES: usize = 32 * 1024 * 1024;

/// Connections that one data thread has accepted for another, and that this one has not seen yet.
const HANDED_QUEUE: usize = 1024;

/// How much longer than the grace [`Server::shutdown`] waits for a thread before it gives it up.
const JOIN_SLACK: Duration = Duration::from_secs(2);

/// Which kinds of connection the port takes: RocketMQ's `tls.server.mode`, in its words (`permissive`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum TlsMode {
    /// Plaintext only; a TLS handshake is closed.
    Disabled,
    /// Both; plaintext only when the server has no certificate.
    #[default]
    Permissive,
    /// TLS only; plaintext is closed.
    Enforcing,
}

/// `maxConnections`, where nothing else is said.
pub const MAX_CONNECTIONS: u32 = 16_384;
/// `maxConnectionsPerAddress`, where nothing else is said: no address alone keeps all others out.
pub const MAX_CONNECTIONS_PER_ADDRESS: u32 = MAX_CONNECTIONS / 4 * 3;

/// Bounds of one server. A clone shares its [`Admission`]: give clones to all servers of a process.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections, those in their handshake included; a further one is closed at once.
    pub max_connections: usize,
    /// Of those, from one address (IPv6: one /64); 0: as many as there are.
    pub max_connections_per_address: usize,
    /// Counts those that were closed at once.
    pub refused: RefusedConnections,
    /// Connections that have not yet shown they speak HTTP/2; when another comes, the oldest of them is closed.
    pub max_handshakes: usize,
    /// From accept to the end of the HTTP/2 preface, TLS handshake included.
    pub handshake_timeout: Duration,
    /// Bytes of request bodies that may be held at once.
    pub admission: Admission,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: MAX_CONNECTIONS as usize,
            max_connections_per_address: MAX_CONNECTIONS_PER_ADDRESS as usize,
            refused: RefusedConnections::default(),
            max_handshakes: 1_024,
            handshake_timeout: Duration::from_secs(10),
            admission: Admission::new(512 * 1024 * 1024),
        }
    }
}

impl Limits {
    /// As a configuration says. At most so many fifths of the files that this process may open are connections of the server: more
    /// would leave none for its own files, and every accept would fail.
    pub fn configured(max_connections: u32, max_connections_per_address: u32, fifths: u64) -> Self {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let asked = u64::from(max_connections);
        let possible = files.map_or(asked, |files| asked.min(files / 5 * fifths));
        if possible < asked {
            tracing::warn!(
                open_files = files,
                max_connections = possible,
                "maxConnections = {asked} is more than this process may have: raise its limit of open files (ulimit -n, LimitNOFILE)"
            );
        }
        let max_connections = usize::try_from(possible).unwrap_or(usize::MAX);
        let mut max_connections_per_address = max_connections_per_address as usize;
        if possible < asked && max_connections_per_address > 0 {
            max_connections_per_address = max_connections_per_address.min(max_connections / 4 * 3);
        }
        Self { max_connections, max_connections_per_address, ..Self::default() }
    }
}

/// What is asked of `maxConnections` and `maxConnectionsPerAddress`, and whether it is so.
pub fn connection_rules(max: u32, max_per_address: u32) -> [(Unusable, bool); 2] {
    let rule = |key, value: u32, allowed| Unusable { key, value: value.to_string(), allowed };
    [
        (
            rule("maxConnections", max, "16 to 1000000 connections are allowed"),
            (16..=1_000_000).contains(&max),
        ),
        (
            rule(
                "maxConnectionsPerAddress",
                max_per_address,
                "0 (no limit) to 1000000 connections are allowed",
            ),
            max_per_address <= 1_000_000,
        ),
    ]
}

/// How to run a [`Server`].
#[derive(Debug)]
pub struct ServerOptions {
    /// Prefix of the thread names; at most 12 bytes are of use, the kernel cuts names at 15.
    pub name: &'static str,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Data threads, at least 1.
    pub threads: usize,
    /// The certificate; `None` leaves plaintext only.
    pub tls: Option<Tls>,
    /// Which kinds of connection are taken of clients.
    pub tls_mode: TlsMode,
    /// Nodes come here too; with certificates where they have some, whatever the mode says.
    pub nodes: Between,
    /// How long [`Server::shutdown`] lets requests in flight finish.
    pub shutdown_grace: Duration,
    /// Another server of this process listens there, and is about to be shut down.
    pub takes_over: bool,
    /// Bounds of connections and memory.
    pub limits: Limits,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken, not ours, or not permitted.
    #[error("listen on {address}: {source}")]
    Bind {
        /// What [`ServerOptions::listen`] said.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("start the data thread {thread}: {source}")]
    Thread {
        /// Its name.
        thread: String,
        /// What the system said.
        source: io::Error,
    },
    /// [`TlsMode::Enforcing`] without a certificate would refuse every client.
    #[error("TLS is required, but the server has no certificate")]
    NoCertificate,
    /// [`ServerOptions::threads`] is 0.
    #[error("a server needs at least one data thread")]
    NoThreads,
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    shutdown_grace: Duration,
    stop: CancellationToken,
    threads: Vec<(String, ListeningThread)>,
}

impl Server {
    /// Binds, starts the threads and serves `routes` (cloned per thread) until [`Server::shutdown`].
    ///
    /// The port takes connections when this returns.
    pub fn start(options: ServerOptions, routes: Routes) -> Result<Self, ServerError> {
        if options.threads == 0 {
            return Err(ServerError::NoThreads);
        }
        if options.tls_mode == TlsMode::Enforcing && options.tls.is_none() && !options.nodes.has_tls() {
            return Err(ServerError::NoCertificate);
        }
        let listeners = listener::bind(options.listen, options.threads, options.takes_over)
            .map_err(|source| ServerError::Bind { address: options.listen, source })?;
        let local_addr = listeners[0]
            .local_addr()
            .map_err(|source| ServerError::Bind { address: options.listen, source })?;
        let tls = options.tls.filter(|_| options.tls_mode != TlsMode::Disabled);
        let (threads, handed): (Vec<_>, Vec<_>) =
            listeners.iter().map(|_| mpsc::channel(HANDED_QUEUE)).unzip();
        let gate = Arc::new(accept::Gate {
            tls,
            nodes: options.nodes,
            refusals: Refusals::default(),
            plaintext: options.tls_mode != TlsMode::Enforcing,
            places: places(&options.limits, threads.len()),
            threads,
            handshakes: pending::Pending::new(options.limits.max_handshakes),
            handshake_timeout: options.limits.handshake_timeout,
        });
        // Made before the threads: when one of them fails to start, dropping it stops the others.
        let mut server = Self {
            local_addr,
            shutdown_grace: options.shutdown_grace,
            stop: CancellationToken::new(),
            threads: Vec::with_capacity(options.threads),
        };
        for (number, (listener, handed)) in listeners.into_iter().zip(handed).enumerate() {
            let name = format!("{}-{number}", options.name);
            let thread = thread::DataThread {
                number,
                gate: gate.clone(),
                handed,
                routes: routes.clone(),
                admission: options.limits.admission.clone(),
                stop: server.stop.clone(),
                shutdown_grace: options.shutdown_grace,
            };
            let started = ListeningThread::start(name.clone(), listener, |listener| thread.serve(listener));
            let running = started.map_err(|source| ServerError::Thread { thread: name.clone(), source })?;
            server.threads.push((name, running));
        }
        Ok(server)
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, sends GOAWAY, lets the requests in flight finish within the grace, cuts off the rest and joins
    /// the threads. Returns at most two seconds after the grace, whatever the services do: a thread that is stuck in
    /// one is reported and left behind.
    ///
    /// Response streams that never end by themselves (telemetry) are in flight too: end them first, or the grace is
    /// always used up.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let deadline = Instant::now() + self.shutdown_grace + JOIN_SLACK;
        for (thread, running) in std::mem::take(&mut self.threads) {
            match running.join(deadline).await {
                Some(Ok(())) => {}
                Some(Err(_)) => tracing::error!(thread, "data thread panicked"),
                None => tracing::error!(thread, "data thread is stuck in a request; left behind"),
            }
        }
    }
}

fn places(limits: &Limits, threads: usize) -> Arc<places::Places> {
    let Limits { max_connections, max_connections_per_address, refused, .. } = limits;
    places::Places::new(*max_connections, *max_connections_per_address, threads, refused.clone())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Adds what every node offers: `grpc.health.v1` (the node as a whole, service name "") and reflection, v1 and v1alpha.
pub fn with_health_and_reflection(routes: Routes) -> Routes {
    let (_, health) = tonic_health::server::health_reporter();
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    routes
        .add_service(health)
        .add_service(reflection().build_v1().expect("the build script made the descriptors"))
        .add_service(reflection().build_v1alpha().expect("the build script made the descriptors"))
}
