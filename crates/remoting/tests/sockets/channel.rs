use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use karman_remoting::channel::{ChannelError, ChannelPool, ClientTls};
use karman_remoting::proto::v2::QueryRouteRequest;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::server::{ServerOptions, TlsMode};
use tokio::net::{TcpListener, TcpSocket};
use tonic::{Code, Status};

use crate::support::*;

async fn call(pool: &ChannelPool, address: &str) -> Result<(), Status> {
    let channel = pool.get(address).expect("an address");
    soon(MessagingServiceClient::new(channel).query_route(QueryRouteRequest::default())).await.map(drop)
}

/// A loopback address where nobody listens.
fn dead_address() -> SocketAddr {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    socket.local_addr().expect("address")
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_again() {
    let (server, _) = start(ServerOptions { shutdown_grace: Duration::ZERO, ..options() });
    let address = server.local_addr();
    let pool = ChannelPool::new();
    call(&pool, &address.to_string()).await.expect("served");
    server.shutdown().await;
    let gone = async { while call(&pool, &address.to_string()).await.is_ok() {} };
    soon(gone).await;
    let (server, _) = start(ServerOptions { listen: address, ..options() });
    let back = async {
        while call(&pool, &address.to_string()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(back).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_dead_peer_fails_fast_with_unavailable() {
    let pool = ChannelPool::new();
    let address = dead_address().to_string();
    let started = Instant::now();
    let mut not_tried = 0;
    for _ in 0..200 {
        let error = call(&pool, &address).await.expect_err("nobody listens");
        assert_eq!(error.code(), Code::Unavailable, "{error:?}");
        not_tried += usize::from(format!("{error:?}").contains("not tried again"));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(not_tried > 150, "most calls fail without an attempt, {not_tried} did");
}

#[tokio::test]
async fn a_peer_that_was_started_anew_is_tried_at_once() {
    let address = dead_address();
    let tried = async |pool: &ChannelPool| {
        // The next attempt is a second away.
        loop {
            let error = call(pool, &address.to_string()).await.expect_err("nobody listens");
            if format!("{error:?}").contains("not tried again for 1") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let started_anew = async || {
        let pool = ChannelPool::new();
        tried(&pool).await;
        let (server, _) = start(ServerOptions { listen: address, ..options() });
        // On a slow machine that second may be over by now; then this has shown nothing.
        let former = call(&pool, &address.to_string()).await;
        let channel = pool.get_of(&address.to_string(), 7).expect("an address");
        let route = MessagingServiceClient::new(channel).query_route(QueryRouteRequest::default()).await;
        route.expect("served");
        server.shutdown().await;
        former.is_err()
    };
    for _ in 0..10 {
        if soon(started_anew()).await {
            return;
        }
    }
    panic!("the second was over each time");
}

#[tokio::test]
async fn a_peer_that_accepts_and_closes_is_not_hammered() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = accepted.clone();
    let closing = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let pool = ChannelPool::new();
    let end = Instant::now() + Duration::from_millis(700);
    while Instant::now() < end {
        call(&pool, &address).await.expect_err("closed");
        tokio::task::yield_now().await;
    }
    let accepted = accepted.load(Ordering::SeqCst);
    assert!((2..=8).contains(&accepted), "{accepted} connections in 0.7 s");
    closing.abort();
}

#[tokio::test]
async fn a_peer_that_does_not_answer_a_connect_costs_its_timeout_once() {
    // A listener whose backlog is full drops what comes.
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("bind");
    let listener = socket.listen(1).expect("listen");
    let address = listener.local_addr().expect("address");
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        filling.push(stream);
    }
    let pool = ChannelPool::new();
    let started = Instant::now();
    let calls =
        (0..20).map(|_| async { call(&pool, &address.to_string()).await.expect_err("no answer").code() });
    for code in futures_util::future::join_all(calls).await {
        assert_eq!(code, Code::Unavailable);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?} for 20 calls", started.elapsed());
}

#[tokio::test]
async fn certificates_are_checked_or_not_as_told() {
    let (tls, pem) = certificate(&[]);
    let (_, other_pem) = certificate(&[]);
    let (server, _) = start(ServerOptions { tls: Some(tls), tls_mode: TlsMode::Enforcing, ..options() });
    let address = server.local_addr().to_string();
    call(&ChannelPool::with_tls(ClientTls::TrustAll), &address).await.expect("trusts all");
    call(&ChannelPool::with_tls(ClientTls::Roots(pem)), &address).await.expect("knows it");
    let stranger =
        call(&ChannelPool::with_tls(ClientTls::Roots(other_pem)), &address).await.expect_err("unknown");
    assert_eq!(stranger.code(), Code::Unavailable, "{stranger:?}");
    let refused = call(&ChannelPool::new(), &address).await.expect_err("plaintext is closed");
    assert_ne!(refused.code(), Code::Ok);
    server.shutdown().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

#[test]
fn a_channel_does_not_outlive_its_runtime() {
    let (server, _) = start(options());
    let address = server.local_addr().to_string();
    let pool = ChannelPool::new();
    for _ in 0..3 {
        runtime().block_on(call(&pool, &address)).expect("a new runtime gets a new channel");
    }
    assert!(matches!(pool.get(&address), Err(ChannelError::NoRuntime)));
    runtime().block_on(server.shutdown());
}

#[tokio::test]
async fn what_is_no_address_is_refused() {
    let pool = ChannelPool::new();
    for bad in ["", "host", "host:", ":80", "http://host:80", "host:80/path", "user@host:80", "host:99999"] {
        assert!(matches!(pool.get(bad), Err(ChannelError::Address { .. })), "{bad:?}");
    }
    pool.get("[::1]:80").expect("IPv6");
    pool.get("broker-a.example:10911").expect("a name");
}
