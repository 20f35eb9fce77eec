//! TLS between nodes: who is taken for one, what the others are told, and that certificates change without a connection less.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use karman_remoting::between::{Between, NODE_NAME, why};
use karman_remoting::channel::{ChannelPool, ClientTls};
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::{QueryRouteRequest, TelemetryCommand};
use karman_remoting::secret::Secret;
use karman_remoting::server::{Server, ServerOptions, TlsMode};
use karman_remoting::tls::{ClientAuth, Tls, TlsKeys};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::*;

/// Makes nodes of one cluster.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("signed"))
    }

    /// Puts `ca.pem`, `cert.pem` and `key.pem` of a node into `directory`.
    fn write(&self, directory: &Path, usages: &[ExtendedKeyUsagePurpose]) {
        let mut params = CertificateParams::new(vec!["any.name".to_owned()]).expect("a name");
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        let write = |name: &str, pem: String| std::fs::write(directory.join(name), pem).expect("written");
        write("ca.pem", self.0.as_ref().pem());
        write("key.pem", key.serialize_pem());
        write("cert.pem", certificate.pem());
    }

    fn node(&self) -> (TempDir, Between) {
        let directory = tempfile::tempdir().expect("directory");
        self.write(directory.path(), &[]);
        let between = of_node(directory.path()).expect("usable");
        (directory, between)
    }
}

fn of_node(directory: &Path) -> Result<Between, String> {
    let paths = ["ca.pem", "cert.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
    let paths = paths.each_ref().map(String::as_str);
    Between::of_node(Secret::default(), paths).map_err(|error| error.to_string())
}

/// One port for nodes and clients, as a namesrv has it.
fn shared(nodes: &Between) -> Server {
    let (tls, _) = certificate(&["localhost"]);
    start(ServerOptions { tls: Some(tls), nodes: nodes.clone(), shutdown_grace: Duration::ZERO, ..options() })
        .0
}

/// A port for nodes alone.
fn internal(nodes: &Between) -> Server {
    start(ServerOptions {
        tls_mode: TlsMode::Enforcing,
        nodes: nodes.clone(),
        shutdown_grace: Duration::ZERO,
        ..options()
    })
    .0
}

async fn call(channel: Channel) -> Result<(), Status> {
    soon(MessagingServiceClient::new(channel).query_route(QueryRouteRequest::default())).await.map(drop)
}

/// Why one node does not reach another, from connecting to the answer.
async fn refused(between: &Between, server: &Server) -> String {
    match soon(between.connect(&server.local_addr().to_string(), |endpoint| endpoint)).await {
        Ok(channel) => why(&call(channel).await.expect_err("it is no node of this cluster")),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn nodes_of_one_authority_reach_one_another_by_any_address_and_clients_come_as_ever() {
    let authority = Authority::new();
    let ((_one, one), (_other, other)) = (authority.node(), authority.node());
    let (shared, internal) = (shared(&one), internal(&one));
    for server in [&shared, &internal] {
        let address = server.local_addr().to_string();
        let channel = other.connect(&address, |endpoint| endpoint).await.expect("a node");
        call(channel).await.expect("served");
        call(ChannelPool::of_nodes(other.clone()).get(&address).expect("an address")).await.expect("served");
    }
    let address = shared.local_addr().to_string();
    for client in [ChannelPool::new(), ChannelPool::with_tls(ClientTls::TrustAll)] {
        call(client.get(&address).expect("an address")).await.expect("a client shows no certificate");
    }
    shared.shutdown().await;
    internal.shutdown().await;
}

#[tokio::test]
async fn a_node_of_another_authority_or_without_tls_is_refused_and_hears_why() {
    let ((_one, one), (_other, other)) = (Authority::new().node(), Authority::new().node());
    let plaintext = Between::plaintext(Secret::default());
    let (shared, internal) = (shared(&one), internal(&one));
    for server in [&shared, &internal] {
        let why = refused(&other, server).await;
        assert!(why.contains("internalTlsCaPath") && why.contains("UnknownIssuer"), "{why}");
    }
    let why = refused(&plaintext, &internal).await;
    assert!(why.contains("plaintext is not taken here") && why.contains("internalTlsCaPath"), "{why}");
    // A node with certificates finds one without: its port for clients, and its internal one.
    let (tls, _) = certificate(&["localhost"]);
    let (public, _) = start(ServerOptions { tls: Some(tls), ..options() });
    let why = refused(&one, &public).await;
    assert!(why.contains("internalTlsCaPath"), "{why}");
    let (plain, _) = start(ServerOptions { tls_mode: TlsMode::Disabled, ..options() });
    let why = refused(&one, &plain).await;
    assert!(why.contains("internalTlsCaPath has to be set there as well"), "{why}");
    for server in [shared, internal, public, plain] {
        server.shutdown().await;
    }
}

#[tokio::test]
async fn one_that_is_trusted_by_nobody_hears_it_though_it_trusts_the_others() {
    let (authority, strange) = (Authority::new(), Authority::new());
    let (_one, one) = authority.node();
    // It trusts both, as in the middle of a change of authorities, and shows what only it takes.
    let directory = tempfile::tempdir().expect("directory");
    strange.write(directory.path(), &[]);
    let both = authority.0.as_ref().pem() + &strange.0.as_ref().pem();
    std::fs::write(directory.path().join("ca.pem"), both).expect("written");
    let (shared, internal) = (shared(&one), internal(&one));
    for server in [&shared, &internal] {
        let why = refused(&of_node(directory.path()).expect("usable"), server).await;
        assert!(why.contains("refuses this node's certificate") && why.contains("UnknownCA"), "{why}");
    }
    shared.shutdown().await;
    internal.shutdown().await;
}

/// The answer to a handshake of the standard library's own making, without a certificate: the alert, or nothing.
async fn handshake(server: &Server, name: &'static str) -> std::io::Result<Vec<u8>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(karman_remoting::channel::trusting_all())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(server.local_addr()).await?;
    let name = ServerName::try_from(name).expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().expect("shown")[0].to_vec();
    let mut nothing = [0];
    // What is taken waits for the preface.
    match tokio::time::timeout(Duration::from_millis(300), stream.read(&mut nothing)).await {
        Err(_) => Ok(shown),
        Ok(read) => read.map(|_| Vec::new()),
    }
}

#[tokio::test]
async fn whoever_asks_for_a_node_has_to_show_a_certificate_and_nobody_else_has_to() {
    let (directory, one) = Authority::new().node();
    let (shared, internal) = (shared(&one), internal(&one));
    let mut pem = &std::fs::read(directory.path().join("cert.pem")).expect("read")[..];
    let own = rustls::pki_types::pem::PemObject::from_pem_reader(&mut pem).expect("a certificate");
    let own: rustls::pki_types::CertificateDer<'_> = own;
    for (server, name) in [(&shared, NODE_NAME), (&internal, NODE_NAME), (&internal, "localhost")] {
        let error = soon(handshake(server, name)).await.expect_err("it shows none").to_string();
        assert!(error.contains("CertificateRequired"), "{name}: {error}");
    }
    for name in ["localhost", "IPAuthority", "karman.internal"] {
        let shown = soon(handshake(&shared, name)).await.expect("a client is taken");
        assert!(!shown.is_empty() && shown != own.as_ref(), "{name} is shown the certificate for clients");
    }
    shared.shutdown().await;
    internal.shutdown().await;
}

#[tokio::test]
async fn certificates_and_authorities_change_without_a_connection_less() {
    let (before, after) = (Authority::new(), Authority::new());
    let ((one_files, one), (other_files, other)) = (before.node(), before.node());
    let server = internal(&one);
    let address = server.local_addr().to_string();
    let channel = other.connect(&address, |endpoint| endpoint).await.expect("a node");
    let (says, said) = tokio::sync::mpsc::channel(8);
    let words = tokio_stream::wrappers::ReceiverStream::new(said);
    let mut echo = MessagingServiceClient::new(channel).telemetry(words).await.expect("open").into_inner();
    let mut is_alive = async || {
        says.send(TelemetryCommand::default()).await.expect("sent");
        soon(echo.next()).await.expect("not ended").expect("an echo");
    };
    is_alive().await;
    // One side at a time: they do not know one another meanwhile, and the stream goes on.
    after.write(one_files.path(), &[]);
    // It is looked at once a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let why = refused(&other, &server).await;
    assert!(why.contains("UnknownIssuer"), "the new certificate is shown: {why}");
    after.write(other_files.path(), &[]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let channel = other.connect(&address, |endpoint| endpoint).await.expect("both have changed");
    call(channel).await.expect("served");
    is_alive().await;
    server.shutdown().await;
}

#[tokio::test]
async fn where_clients_have_to_show_a_certificate_nobody_comes_in_without() {
    let (authority, strange) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let read = |name: &str| std::fs::read(directory.path().join(name)).expect("read");
    let keys = TlsKeys {
        mode: TlsMode::Enforcing,
        cert_path: "",
        key_path: "",
        trust_cert_path: &path("ca.pem"),
        need_client_auth: ClientAuth::Require,
        internal_ca_path: "",
    };
    authority.write(directory.path(), &[]);
    let tls = Tls::of_node(keys, &directory.path().join("own"), &[]).expect("usable");
    let options =
        ServerOptions { tls, tls_mode: TlsMode::Enforcing, shutdown_grace: Duration::ZERO, ..options() };
    let (server, _) = start(options);
    let address = server.local_addr().to_string();
    let roots = read("own/cert.pem");
    let mutual = || ClientTls::Mutual { roots: roots.clone(), cert: read("cert.pem"), key: read("key.pem") };
    let reach = async |tls| call(ChannelPool::with_tls(tls).get(&address).expect("an address")).await;
    reach(mutual()).await.expect("it shows one");
    reach(ClientTls::Roots(roots.clone())).await.expect_err("it shows none");
    // The authority of clients changes too.
    let former = mutual();
    strange.write(directory.path(), &[]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    reach(mutual()).await.expect("of the new one");
    reach(former).await.expect_err("of the one before");
    server.shutdown().await;
}

#[test]
fn what_is_told_of_clients_certificates_must_fit_together() {
    let told = |mode, need_client_auth, trust_cert_path, internal_ca_path| {
        let keys = TlsKeys {
            mode,
            cert_path: "",
            key_path: "",
            trust_cert_path,
            need_client_auth,
            internal_ca_path,
        };
        let refused = keys.rules().into_iter().filter(|(_, good)| !good);
        refused.map(|(rule, _)| rule.key).collect::<Vec<_>>()
    };
    use ClientAuth::{None, Optional, Require};
    use TlsMode::{Disabled, Enforcing, Permissive};
    assert!(told(Permissive, None, "", "").is_empty() && told(Permissive, Optional, "c", "n").is_empty());
    assert!(told(Enforcing, Require, "c", "").is_empty());
    for (mode, need, trust) in [
        (Permissive, Optional, ""),
        (Disabled, Optional, "c"),
        (Enforcing, Require, ""),
        (Permissive, Require, "c"),
    ] {
        assert_eq!(told(mode, need, trust, ""), ["tlsServerNeedClientAuth"], "{mode:?} {need:?} {trust}");
    }
    assert_eq!(told(Permissive, Optional, "one", "one"), ["tlsServerTrustCertPath"]);
}

#[test]
fn files_that_others_would_refuse_are_refused_at_once_by_the_key_that_names_them() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("directory");
    let (path, other) = (directory.path(), tempfile::tempdir().expect("directory"));
    authority.write(other.path(), &[]);
    let with = |change: &dyn Fn()| {
        authority.write(path, &[]);
        change();
        of_node(path).expect_err("refused")
    };
    let put = |file: &str, text: &str| std::fs::write(path.join(file), text).expect("written");
    for (file, key) in [
        ("ca.pem", "internalTlsCaPath"),
        ("cert.pem", "internalTlsCertPath"),
        ("key.pem", "internalTlsKeyPath"),
    ] {
        for error in
            [with(&|| put(file, "not PEM")), with(&|| std::fs::remove_file(path.join(file)).expect("there"))]
        {
            assert!(error.starts_with(key) && error.contains(file), "{error}");
        }
    }
    let foreign = std::fs::read_to_string(other.path().join("key.pem")).expect("read");
    let strange = with(&|| put("key.pem", &foreign));
    assert!(strange.starts_with("internalTlsKeyPath"), "a key of another certificate: {strange}");
    let strange = with(&|| put("ca.pem", &Authority::new().0.as_ref().pem()));
    assert!(strange.starts_with("internalTlsCertPath"), "of another authority: {strange}");
    // For one direction only.
    for usage in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        let half = with(&|| authority.write(path, std::slice::from_ref(&usage)));
        assert!(half.starts_with("internalTlsCertPath"), "{usage:?}: {half}");
    }
    authority.write(path, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
    of_node(path).expect("both");
}
