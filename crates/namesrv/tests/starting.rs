//! A namesrv from its start: when it is ready, what it takes, what is left of a start that failed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use karman_namesrv::{Namesrv, NamesrvConfig, StartError, start};
use karman_remoting::channel::ChannelPool;
use karman_remoting::proto::karman::TopicConfig;
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::karman::{CreateTopicRequest, CreateTopicResponse};
use karman_remoting::server::TlsMode;
use parking_lot::Mutex;

/// The tests look at the threads of their process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SOON: Duration = Duration::from_secs(20);

fn config() -> NamesrvConfig {
    NamesrvConfig {
        grpc_listen_address: "127.0.0.1:0".into(),
        metrics_listen_address: "127.0.0.1:0".into(),
        tls_server_mode: TlsMode::Disabled,
        ..NamesrvConfig::default()
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stop(namesrv: Namesrv) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(namesrv.shutdown());
}

fn readyz(probe: SocketAddr) -> String {
    let mut stream = TcpStream::connect(probe).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_is_ready_when_the_brokers_had_time_to_register() {
    let _alone = ALONE.lock();
    let namesrv = start(&config()).unwrap();
    let probe = namesrv.metrics_address().unwrap();
    let first = readyz(probe);
    assert!(first.starts_with("HTTP/1.1 503") && first.contains("register"), "{first}");
    until("ready", || readyz(probe).starts_with("HTTP/1.1 200"));
    stop(namesrv);
}

fn sweeps() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "namesrv-sweep").count()
}

#[test]
fn nothing_is_left_of_a_start_that_failed() {
    let _alone = ALONE.lock();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics_listen_address = taken.local_addr().unwrap().to_string();
    let failed = start(&NamesrvConfig { metrics_listen_address, ..config() });
    assert!(matches!(failed, Err(StartError::Probe(_))), "{failed:?}");
    until("the sweep's thread is gone", || sweeps() == 0);
}

/// What the operators' service says to a request that is as large as a message may be.
async fn create_topic(address: SocketAddr, name: String) -> CreateTopicResponse {
    let channel = ChannelPool::new().get(&address.to_string()).unwrap();
    let topic = TopicConfig { name, ..TopicConfig::default() };
    let request = CreateTopicRequest { topic: Some(topic), if_not_exists: false };
    let answer = tokio::time::timeout(SOON, AdminClient::new(channel).create_topic(request)).await.unwrap();
    answer.unwrap().into_inner()
}

#[test]
fn a_request_of_an_operator_may_be_as_large_as_a_client_s() {
    let _alone = ALONE.lock();
    let namesrv = start(&config()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(create_topic(namesrv.address(), "t".repeat(5 << 20)));
    assert!(answer.status.unwrap().message.contains("no broker"));
    // With its connection, which the namesrv would give time to end.
    drop(runtime);
    stop(namesrv);
}
