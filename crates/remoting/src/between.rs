//! What nodes show one another: the cluster's secret, and, where `internalTls*` is configured, certificates of an authority
//! that is for nodes alone. Each channel to another node is made here, and each call that only nodes may make is checked
//! here.
//!
//! A namesrv has one port for clients and nodes. The name that a node asks for in its handshake tells it from a client
//! ([`NODE_NAME`]); who asks for it has to show a certificate.
//!
//! Any thread that runs a runtime; the channels live on it.

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::Service;

use crate::auth::Peer;
use crate::channel::{ChannelError, endpoint};
use crate::metadata;
use crate::secret::Secret;
use crate::tls::{NodeTls, TlsError};
use crate::transport::{Transport, explained};

/// The server name (SNI) in handshakes between nodes, whatever the address. No client has it as its access point: the domain
/// `internal` is never in the public DNS.
pub const NODE_NAME: &str = "node.karman.internal";

/// What is allowed of `internalTlsCaPath`, `internalTlsCertPath` and `internalTlsKeyPath`, in the words of an error.
pub const ALL_OR_NONE: &str =
    "set all of internalTlsCaPath, internalTlsCertPath and internalTlsKeyPath, or none";

/// See the module's comment. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Between {
    secret: Secret,
    tls: Option<Arc<NodeTls>>,
}

/// Why there is no channel to another node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `host:port`.
    #[error(transparent)]
    Address(#[from] ChannelError),
    /// Nobody is there, or one of the two does not take the other for a node.
    #[error("connect to {address}: {why}")]
    Failed {
        /// Where to.
        address: String,
        /// All that is known of the reason.
        why: String,
    },
}

impl Between {
    /// With the secret alone (`clusterSecret`), which may be empty: nodes believe whoever has it, in plaintext.
    pub fn plaintext(secret: Secret) -> Self {
        Self { secret, tls: None }
    }

    /// With the secret and the three files of this node, PEM, which are read now, and again when they have changed; without
    /// TLS where none is named.
    pub fn of_node(secret: Secret, [ca, cert, key]: [&str; 3]) -> Result<Self, TlsError> {
        match [ca, cert, key].iter().all(|path| path.is_empty()) {
            true => Ok(Self::plaintext(secret)),
            false => Ok(Self { secret, tls: Some(Arc::new(NodeTls::of_node(ca, cert, key)?)) }),
        }
    }

    /// Whether nodes know one another by certificates.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// For the handshake of one that comes as a node.
    pub(crate) fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(|tls| tls.current().server.clone())
    }

    /// Opens the connection of a channel.
    pub(crate) async fn dial(&self, address: &str) -> io::Result<Transport> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Transport::Plain(stream)) };
        let stream = tls.connect(stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                let why = "it ends the TLS handshake: internalTlsCaPath has to be set there as well";
                io::Error::new(error.kind(), why)
            }
            _ => explained(error),
        })?;
        Ok(Transport::Nodes(Box::new(stream.into())))
    }

    /// Connects to the node at `address` (`host:port`). `tune`: what the endpoint is told before.
    pub async fn connect(
        &self,
        address: &str,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, ConnectError> {
        let endpoint = tune(endpoint("http", address)?);
        let connected = endpoint.connect_with_connector(self.connector(address)).await;
        connected.map_err(|error| ConnectError::Failed { address: address.to_owned(), why: reasons(&error) })
    }

    /// The same at the first call, and at a later one when the connection is gone.
    pub fn connect_lazily(
        &self,
        address: &str,
        tune: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, ChannelError> {
        Ok(tune(endpoint("http", address)?).connect_with_connector_lazy(self.connector(address)))
    }

    fn connector(
        &self,
        address: &str,
    ) -> impl Service<Uri, Response = TokioIo<Transport>, Error = io::Error, Future: Send> + Send + use<>
    {
        let (between, address): (_, Arc<str>) = (self.clone(), address.into());
        tower::service_fn(move |_| {
            let (between, address) = (between.clone(), address.clone());
            async move { between.dial(&address).await.map(TokioIo::new) }
        })
    }

    /// A call of this node in its own name.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.sign(&mut request);
        request
    }

    /// Makes a call one of this node.
    pub fn sign<T>(&self, request: &mut Request<T>) {
        metadata::add_secret(request.metadata_mut(), &self.secret);
    }

    /// Refuses a call that only nodes may make; `who`: what a node is called that makes it.
    pub fn check<T>(&self, request: &Request<T>, who: &str) -> Result<(), Status> {
        let is_of_node = request.extensions().get::<Peer>().is_some_and(Peer::is_node);
        // First: who has no certificate does not learn whether the secret was right.
        if self.has_tls() && !is_of_node {
            return Err(Status::permission_denied(format!(
                "the {who} has not come with a certificate of this cluster's nodes, which is asked for here: on every \
                 node {ALL_OR_NONE}"
            )));
        }
        metadata::check_secret(request.metadata(), &self.secret, who)
    }

    /// Refuses a call that operators make, who have the secret and no certificate, and nodes that relay it.
    pub fn check_operator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match metadata::is_relayed(request.metadata()) {
            true => self.check(request, "node"),
            false => metadata::check_secret(request.metadata(), &self.secret, "caller"),
        }
    }
}

/// Why a call to another node failed: what the node says, or what is known of the connection.
pub fn why(status: &Status) -> String {
    with_sources(status.message().to_owned(), status.source())
}

/// What an error says, and what those behind it add.
fn reasons(error: &(dyn Error + 'static)) -> String {
    with_sources(error.to_string(), error.source())
}

fn with_sources(mut said: String, mut next: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = next {
        let more = error.to_string();
        if !said.contains(&more) {
            let _ = write!(said, ": {more}");
        }
        next = error.source();
    }
    said
}
