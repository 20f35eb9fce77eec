use std::time::{Duration, Instant};

use futures_util::stream;
use karman_remoting::proto::v2::{
    AckMessageRequest, QueryRouteRequest, ReceiveMessageRequest, TelemetryCommand,
};
use karman_remoting::server::ServerOptions;
use tokio::net::TcpStream;

use crate::support::*;

const GRACE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn idle_connections_do_not_hold_a_shutdown_up() {
    let (server, _) = start(ServerOptions { threads: 2, ..options() });
    let mut client = plaintext(&server);
    soon(client.query_route(QueryRouteRequest::default())).await.expect("served");
    let mut silent = connect_and_send(server.local_addr(), b"").await;
    let address = server.local_addr();
    soon(server.shutdown()).await;
    read_until_closed(&mut silent).await;
    TcpStream::connect(address).await.expect_err("nobody listens");
}

#[tokio::test]
async fn requests_in_flight_are_finished() {
    let (server, calls) = start(options());
    let mut client = plaintext(&server);
    let poll = tokio::spawn(async move {
        let answer = client.receive_message(ReceiveMessageRequest::default()).await.expect("begins");
        answer.into_inner().message().await
    });
    calls.until_waiting(1).await;
    let shutdown = tokio::spawn(server.shutdown());
    tokio::task::yield_now().await;
    assert!(!shutdown.is_finished());
    calls.go_on.add_permits(1);
    assert!(soon(poll).await.expect("no panic").expect("answered").is_some());
    soon(shutdown).await.expect("no panic");
}

#[tokio::test]
async fn streams_that_never_end_are_cut_off_after_the_grace() {
    let (server, calls) = start(ServerOptions { shutdown_grace: GRACE, ..options() });
    let client = plaintext(&server);
    let commands = stream::once(async { TelemetryCommand::default() });
    let mut telemetry = {
        use futures_util::StreamExt as _;
        let open_end = commands.chain(stream::pending());
        soon(client.clone().telemetry(open_end)).await.expect("begins").into_inner()
    };
    soon(telemetry.message()).await.expect("echoed").expect("a command");
    let mut poll = soon(client.clone().receive_message(ReceiveMessageRequest::default()))
        .await
        .expect("begins")
        .into_inner();
    calls.until_waiting(1).await;

    let started = Instant::now();
    soon(server.shutdown()).await;
    assert!(started.elapsed() >= GRACE);
    assert!(started.elapsed() < GRACE + Duration::from_secs(3), "{:?}", started.elapsed());
    soon(telemetry.message()).await.expect_err("cut off");
    soon(poll.message()).await.expect_err("cut off");
}

#[tokio::test]
async fn a_service_that_blocks_its_thread_does_not_hold_a_shutdown_up_for_ever() {
    let (server, calls) = start(ServerOptions { shutdown_grace: GRACE, ..options() });
    let (release, blocked) = std::sync::mpsc::channel();
    *calls.block_on.lock() = Some(blocked);
    let mut client = plaintext(&server);
    let call = tokio::spawn(async move { client.ack_message(AckMessageRequest::default()).await });
    calls.until_waiting(1).await;
    let started = Instant::now();
    soon(server.shutdown()).await;
    assert!(started.elapsed() < GRACE + Duration::from_secs(3), "{:?}", started.elapsed());
    drop(release);
    soon(call).await.expect("no panic").expect_err("unimplemented, or cut off");
}

#[tokio::test]
async fn a_dropped_server_stops_too() {
    let (server, _) = start(ServerOptions { shutdown_grace: GRACE, ..options() });
    let address = server.local_addr();
    drop(server);
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(refused).await;
}
