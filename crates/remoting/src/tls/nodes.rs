//! Mutual TLS between nodes, under an authority that is for nodes alone: both sides show a certificate, and verify that the other's
//! leads to it. Names are not looked at, for nodes are reached by addresses that change; a certificate of that authority is
//! what makes a node.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, NamedGroup, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::any_name::AnyName;
use super::renewed::Renewed;
use super::{ALPN_H2, TlsError, authority, certificates, certified, private_key, verifier};
use crate::between::NODE_NAME;

/// One node's files: `internalTlsCaPath`, `internalTlsCertPath`, `internalTlsKeyPath`.
pub(crate) type NodeTls = Renewed<NodeConfigs, 3>;

/// What is made of them.
#[derive(Debug)]
pub(crate) struct NodeConfigs {
    /// For whoever comes: a certificate is asked for.
    pub(crate) server: Arc<ServerConfig>,
    /// To go to another: the own certificate is shown.
    pub(crate) client: Arc<ClientConfig>,
}

impl NodeTls {
    /// Reads the files, and refuses what another node with the same authority would refuse.
    pub(crate) fn of_node(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        Self::open([ca, cert, key].map(PathBuf::from), configs)
    }

    /// Goes to another node as one; ends when that has taken this one's certificate too.
    ///
    /// The handshake of TLS 1.3 ends here before the other side has looked at it, and what went wrong would be a connection that
    /// breaks for no reason. The first that a server says when it is content are tickets for later sessions.
    pub(crate) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let taken = Arc::new(Taken::default());
        let mut config = ClientConfig::clone(&self.current().client);
        config.resumption = Resumption::store(taken.clone());
        let name = ServerName::try_from(NODE_NAME).expect("it is a name");
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let mut nothing = [0];
        tokio::select! {
            () = taken.0.notified() => Ok(stream),
            // HTTP/2 begins with the client.
            read = stream.read(&mut nothing) => Err(match read {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2"),
                Err(error) => error,
            }),
        }
    }
}

/// Hears of tickets and keeps none: each connection is verified anew.
#[derive(Debug, Default)]
struct Taken(Notify);

impl ClientSessionStore for Taken {
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.notify_one();
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }

    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
}

fn configs([ca, cert, key]: &[PathBuf; 3]) -> Result<NodeConfigs, TlsError> {
    let of_key = |key| move |source| TlsError::OfKey { key, source: Box::new(source) };
    let (of_ca, of_cert, of_private) =
        (of_key("internalTlsCaPath"), of_key("internalTlsCertPath"), of_key("internalTlsKeyPath"));
    let roots = Arc::new(authority(ca).map_err(of_ca)?);
    let chain = certificates(cert).map_err(of_cert)?;
    let clients = verifier(ca, roots.clone(), true).map_err(of_ca)?;
    let provider = Arc::new(ring::default_provider());
    let servers = AnyName::under(roots);
    check_own(&chain, &servers, &*clients)
        .map_err(|source| of_cert(TlsError::Strange { cert: cert.clone(), ca: ca.clone(), source }))?;
    // By itself first: what is wrong with the one file is not said of the other.
    private_key(key).map_err(of_private)?;
    let own = Arc::new(SingleCertAndKey::from(certified(cert, key).map_err(of_private)?));
    let versions = |source| of_cert(TlsError::Unusable { cert: cert.clone(), key: key.clone(), source });
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(versions)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own.clone());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(versions)?
        .dangerous()
        .with_custom_certificate_verifier(servers)
        .with_client_cert_resolver(own);
    // See `connect`: one is enough, and a second one of the same kind tells nothing more.
    server.send_tls13_tickets = 1;
    (server.alpn_protocols, client.alpn_protocols) = (vec![ALPN_H2.to_vec()], vec![ALPN_H2.to_vec()]);
    Ok(NodeConfigs { server: Arc::new(server), client: Arc::new(client) })
}

/// Both ways, for a node is both.
fn check_own(
    chain: &[CertificateDer<'_>],
    servers: &AnyName,
    clients: &dyn ClientCertVerifier,
) -> Result<(), Error> {
    let (now, [leaf, rest @ ..]) = (UnixTime::now(), chain) else {
        return Err(Error::NoCertificatesPresented);
    };
    servers.verify(leaf, rest, now)?;
    clients.verify_client_cert(leaf, rest, now).map(drop)
}
