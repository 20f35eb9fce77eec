use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karman_remoting::probe::Probe;
use tokio::net::TcpStream;

use crate::support::*;

async fn get(probe: &Probe, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n");
    let mut stream = connect_and_send(probe.local_addr(), request.as_bytes()).await;
    String::from_utf8(read_until_closed(&mut stream).await).expect("text")
}

#[tokio::test]
async fn a_probe_tells_whether_a_node_lives_and_is_ready_and_its_metrics() {
    let ready = Arc::new(AtomicBool::new(false));
    let asked = ready.clone();
    let missing = move || match asked.load(Ordering::SeqCst) {
        true => Vec::new(),
        false => vec!["no namesrv".to_owned(), "recovering".to_owned()],
    };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let probe = Probe::start(any_port, missing, || "messages_total 3\n# EOF\n".to_owned()).expect("start");

    assert!(get(&probe, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(&probe, "/startupz").await.starts_with("HTTP/1.1 200"));
    let unready = get(&probe, "/readyz").await;
    assert!(
        unready.starts_with("HTTP/1.1 503") && unready.ends_with("no namesrv\nrecovering\n"),
        "{unready}"
    );
    ready.store(true, Ordering::SeqCst);
    assert!(get(&probe, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get(&probe, "/metrics").await;
    assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(get(&probe, "/other").await.starts_with("HTTP/1.1 404"));

    let taken = Probe::start(probe.local_addr(), Vec::new, String::new).expect_err("the port is taken");
    assert!(taken.to_string().contains(&probe.local_addr().to_string()), "{taken}");
    let address = probe.local_addr();
    drop(probe);
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(closed).await;
}
