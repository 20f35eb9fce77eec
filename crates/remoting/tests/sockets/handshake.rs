use std::path::Path;
use std::time::Duration;

use karman_remoting::proto::v2::QueryRouteRequest;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::server::{Limits, Server, ServerError, ServerOptions, TlsMode};
use karman_remoting::tls::Tls;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::support::*;

const CLIENT_HELLO_BEGINNING: &[u8] = &[0x16, 0x03, 0x01];
const PREFACE_AND_SETTINGS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn short_handshake() -> Limits {
    Limits { handshake_timeout: Duration::from_millis(200), ..Limits::default() }
}

#[tokio::test]
async fn tls_and_plaintext_share_a_port_whatever_the_authority_says() {
    // The Java client names every IP endpoint `IPAuthority`, as SNI and as authority.
    let (tls, pem) = certificate(&["IPAuthority"]);
    let (server, _) = start(ServerOptions { tls: Some(tls), ..options() });
    let address = server.local_addr();
    for scheme in ["http", "https"] {
        let config =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&pem)).domain_name("IPAuthority");
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .expect("address")
            .origin(format!("{scheme}://IPAuthority").parse().expect("origin"));
        if scheme == "https" {
            endpoint = endpoint.tls_config(config).expect("config");
        }
        let mut client = MessagingServiceClient::new(endpoint.connect_lazy());
        soon(client.query_route(QueryRouteRequest::default())).await.expect(scheme);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn the_mode_decides_what_is_taken() {
    let (tls, _) = certificate(&[]);
    for (mode, refused) in
        [(TlsMode::Disabled, CLIENT_HELLO_BEGINNING), (TlsMode::Enforcing, PREFACE_AND_SETTINGS)]
    {
        let options = ServerOptions { tls: Some(tls.clone()), tls_mode: mode, ..options() };
        let (server, _) = start(options);
        let mut stream = connect_and_send(server.local_addr(), refused).await;
        assert_eq!(read_until_closed(&mut stream).await, b"", "{mode:?}");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_who_comes_next_and_disturbs_nobody_else() {
    let (one, other) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let name = ["karman.example".to_owned()];
    let tls = Tls::self_signed(one.path(), &name).expect("made");
    Tls::self_signed(other.path(), &name).expect("made");
    let options = ServerOptions { tls: Some(tls), tls_mode: TlsMode::Enforcing, ..options() };
    let (server, _) = start(options);
    let address = server.local_addr();
    // One that trusts the certificate that is in that directory now.
    let client = |dir: &Path| {
        let pem = std::fs::read(dir.join("cert.pem")).expect("read");
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)).domain_name(&name[0]);
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("address");
        MessagingServiceClient::new(endpoint.tls_config(config).expect("config").connect_lazy())
    };
    let (mut before, mut after) = (client(one.path()), client(other.path()));
    soon(before.query_route(QueryRouteRequest::default())).await.expect("it is trusted");
    soon(after.query_route(QueryRouteRequest::default())).await.expect_err("it is not there yet");
    for file in ["key.pem", "cert.pem"] {
        std::fs::copy(other.path().join(file), one.path().join(file)).expect("copied");
    }
    // It is looked at once a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut another = client(other.path());
    soon(another.query_route(QueryRouteRequest::default())).await.expect("the new one is shown");
    soon(before.query_route(QueryRouteRequest::default())).await.expect("the connection is still there");
    server.shutdown().await;
}

#[tokio::test]
async fn requiring_tls_without_a_certificate_is_refused() {
    let options = ServerOptions { tls_mode: TlsMode::Enforcing, ..options() };
    assert!(matches!(Server::start(options, Default::default()), Err(ServerError::NoCertificate)));
}

#[tokio::test]
async fn what_is_not_http2_is_closed_at_once() {
    let (tls, _) = certificate(&[]);
    // With a timeout that the test would not survive: it is the bytes that close these.
    let limits = Limits { handshake_timeout: SOON * 10, ..Limits::default() };
    let (server, _) = start(ServerOptions { tls: Some(tls), limits, ..options() });
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PUT /", b"\0\0\0\0", b"\x16\x03\x01\x00\x05hello"] {
        let mut stream = connect_and_send(server.local_addr(), bytes).await;
        let answer = read_until_closed(&mut stream).await;
        // A TLS alert may come before the end.
        assert!(answer.len() <= 7, "{bytes:?}: {answer:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn half_a_handshake_is_closed_after_the_timeout() {
    let (tls, _) = certificate(&[]);
    let limits = short_handshake();
    let (server, _) = start(ServerOptions { tls: Some(tls), limits, ..options() });
    for bytes in [b"", CLIENT_HELLO_BEGINNING, b"PRI * HT"] {
        let mut stream = connect_and_send(server.local_addr(), bytes).await;
        assert_eq!(read_until_closed(&mut stream).await, b"", "{bytes:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_a_free_place_is_taken_again() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let (server, _) = start(ServerOptions { limits, ..options() });
    let mut first = plaintext(&server);
    soon(first.query_route(QueryRouteRequest::default())).await.expect("the first");
    let mut second = connect_and_send(server.local_addr(), b"").await;
    assert_eq!(read_until_closed(&mut second).await, b"");
    drop(first);
    let retried = async {
        while plaintext(&server).query_route(QueryRouteRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(retried).await;
    server.shutdown().await;
}

#[tokio::test]
async fn handshakes_that_stall_do_not_keep_others_out_for_ever() {
    let limits = Limits { max_handshakes: 2, ..short_handshake() };
    let (server, _) = start(ServerOptions { limits, ..options() });
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(connect_and_send(server.local_addr(), b"").await);
    }
    soon(plaintext(&server).query_route(QueryRouteRequest::default())).await.expect("served");
    server.shutdown().await;
}

#[tokio::test]
async fn the_threads_share_one_port_and_a_second_server_is_refused() {
    let (server, _) = start(ServerOptions { threads: 2, ..options() });
    let both = async {
        let mut threads = std::collections::BTreeSet::new();
        while threads.len() < 2 {
            let answer = plaintext(&server).query_route(QueryRouteRequest::default()).await.expect("served");
            threads.insert(answer.into_inner().status.expect("status").message);
        }
        threads
    };
    assert_eq!(soon(both).await.into_iter().collect::<Vec<_>>(), ["test-0", "test-1"]);
    let taken = ServerOptions { listen: server.local_addr(), ..options() };
    let refused = Server::start(taken, Default::default()).expect_err("the port is taken");
    assert!(refused.to_string().contains(&server.local_addr().to_string()), "{refused}");
    server.shutdown().await;
}
