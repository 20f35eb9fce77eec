//! Channels to other nodes: connected when first used, one per peer address and runtime, never hammering a dead peer.
//!
//! A tonic channel lives on the runtime that made it and dies with it, and a call from another runtime costs two
//! wake-ups between threads. So a pool keeps the channels of each runtime apart: each data thread has its own connection
//! to a peer, and its relays never leave the thread. The pool itself may be used from any thread that runs a runtime.

mod connector;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::client::danger::ServerCertVerifier;
use tokio::runtime::{self, Handle};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use self::connector::Connector;
use crate::between::Between;
use crate::proto::v2::Endpoints;
use crate::tls::AnyName;

/// For calls made without a deadline: how long the answer may take to begin.
///
/// It is also the longest deadline a call can have, for tonic takes the shorter of both; the longest long poll is a
/// third of it. Streams are not cut: only the beginning of the answer is awaited. Waiting for a connection comes on
/// top, at most [`CONNECT_TIMEOUT`]; who needs an exact deadline puts `tokio::time::timeout` around the call.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long connecting may take; the TLS handshake may take as long again.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// A peer that is silent so long is asked whether it lives, calls in flight or not,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// and is given up when it does not answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Channels kept per runtime; a further one takes the place of the one longest unused.
const MAX_CHANNELS: usize = 1024;

/// How the certificates of servers are judged.
#[derive(Clone)]
pub enum ClientTls {
    /// Not at all, as the Java, Go, C++ and C# clients do: encrypted, but to whom is not known.
    TrustAll,
    /// They must lead to one of these certificates (PEM) and name the host of the address.
    Roots(Vec<u8>),
    /// The same, and a certificate is shown, which says who calls where a call is not signed.
    Mutual {
        /// As in [`ClientTls::Roots`].
        roots: Vec<u8>,
        /// The client's certificate and those it leads to, PEM.
        cert: Vec<u8>,
        /// The private key of it, PEM.
        key: Vec<u8>,
    },
}

/// The verifier of [`ClientTls::TrustAll`], for a look at what a server shows.
pub fn trusting_all() -> Arc<dyn ServerCertVerifier> {
    AnyName::all()
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not `host:port`.
    #[error("{address:?} is not an address of the form host:port")]
    Address {
        /// What was given.
        address: String,
    },
    /// What [`ClientTls`] holds is no PEM, or does not fit together.
    #[error("use the certificates: {0}")]
    Roots(#[source] tonic::transport::Error),
    /// Called from a thread that runs no tokio runtime.
    #[error("a channel can be made on a tokio runtime only")]
    NoRuntime,
}

/// A pool of channels. A clone is a handle to the same pool.
#[derive(Clone, Debug)]
pub struct ChannelPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    /// Of a client; nodes have their own.
    tls: Option<ClientTls>,
    between: Between,
    runtimes: Mutex<HashMap<runtime::Id, RuntimeChannels>>,
}

#[derive(Debug)]
struct RuntimeChannels {
    /// A task that never ends by itself: when it has ended, so has the runtime, and these channels are dead. Ids alone
    /// do not tell, a new runtime may get the id of one that is gone.
    alive: AbortOnDropHandle<()>,
    channels: HashMap<Box<str>, Kept>,
}

#[derive(Debug)]
struct Kept {
    channel: Channel,
    /// Of the peer when it was opened.
    incarnation: u64,
    last_used: Instant,
}

impl ChannelPool {
    /// A pool that speaks plaintext.
    #[expect(clippy::new_without_default, reason = "there is no neutral choice between plaintext and TLS")]
    pub fn new() -> Self {
        Self::of_nodes(Between::default())
    }

    /// A pool for the way from a node to others.
    pub fn of_nodes(between: Between) -> Self {
        Self::with(None, between)
    }

    /// A pool that speaks TLS.
    pub fn with_tls(tls: ClientTls) -> Self {
        Self::with(Some(tls), Between::default())
    }

    fn with(tls: Option<ClientTls>, between: Between) -> Self {
        Self(Arc::new(Pool { tls, between, runtimes: Mutex::default() }))
    }

    /// The channel to `address` (`host:port`) of the current runtime. Does not wait: it connects at the first call.
    ///
    /// While the peer cannot be reached calls fail with UNAVAILABLE, at once as long as the next attempt is not due.
    /// The time between attempts grows from 0.1 s to 5 s.
    pub fn get(&self, address: &str) -> Result<Channel, ChannelError> {
        self.get_of(address, 0)
    }

    /// The same to a peer that says that it is another than before when it was started anew: what was learnt of the former one, that
    /// it could not be reached above all, says nothing of this one.
    pub fn get_of(&self, address: &str, incarnation: u64) -> Result<Channel, ChannelError> {
        let runtime = Handle::try_current().map_err(|_| ChannelError::NoRuntime)?;
        let mut runtimes = self.0.runtimes.lock();
        if runtimes.get(&runtime.id()).is_none_or(|known| known.alive.is_finished()) {
            runtimes.retain(|_, known| !known.alive.is_finished());
            let alive = AbortOnDropHandle::new(runtime.spawn(std::future::pending()));
            runtimes.insert(runtime.id(), RuntimeChannels { alive, channels: HashMap::new() });
        }
        let channels = &mut runtimes.get_mut(&runtime.id()).expect("inserted above").channels;
        let now = Instant::now();
        if let Some(kept) = channels.get_mut(address).filter(|kept| kept.incarnation == incarnation) {
            kept.last_used = now;
            return Ok(kept.channel.clone());
        }
        let channel = self.0.open(address)?;
        if channels.len() >= MAX_CHANNELS && !channels.contains_key(address) {
            make_room(channels);
        }
        channels.insert(address.into(), Kept { channel: channel.clone(), incarnation, last_used: now });
        Ok(channel)
    }
}

/// `host:port` of the first address of an endpoint, which is the one used.
pub fn address_of(endpoints: &Endpoints) -> Option<String> {
    let first = endpoints.addresses.first()?;
    let bare_v6 = first.host.contains(':') && !first.host.starts_with('[');
    Some(if bare_v6 {
        format!("[{}]:{}", first.host, first.port)
    } else {
        format!("{}:{}", first.host, first.port)
    })
}

/// Of `host:port`.
pub(crate) fn endpoint(scheme: &str, address: &str) -> Result<Endpoint, ChannelError> {
    let invalid = || ChannelError::Address { address: address.to_owned() };
    let authority: http::uri::Authority = address.parse().map_err(|_| invalid())?;
    if authority.port_u16().is_none() || authority.host().is_empty() || address.contains('@') {
        return Err(invalid());
    }
    Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| invalid())
}

fn make_room(channels: &mut HashMap<Box<str>, Kept>) {
    let longest_unused =
        channels.iter().min_by_key(|(_, kept)| kept.last_used).map(|(address, _)| address.clone());
    if let Some(address) = longest_unused {
        channels.remove(&address);
    }
}

impl Pool {
    fn open(&self, address: &str) -> Result<Channel, ChannelError> {
        let endpoint = endpoint(if self.tls.is_some() { "https" } else { "http" }, address)?
            .timeout(DEFAULT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let config = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
        let endpoint = match &self.tls {
            None => Ok(endpoint),
            Some(ClientTls::TrustAll) => endpoint.tls_config_with_verifier(config, AnyName::all()),
            Some(ClientTls::Roots(pem)) => {
                endpoint.tls_config(config.ca_certificate(Certificate::from_pem(pem)))
            }
            Some(ClientTls::Mutual { roots, cert, key }) => {
                let config = config.ca_certificate(Certificate::from_pem(roots));
                endpoint.tls_config(config.identity(Identity::from_pem(cert, key)))
            }
        }
        .map_err(ChannelError::Roots)?;
        Ok(endpoint.connect_with_connector_lazy(Connector::new(address, self.between.clone())))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TrustAll => "TrustAll",
            Self::Roots(_) => "Roots(..)",
            Self::Mutual { .. } => "Mutual(..)",
        })
    }
}
