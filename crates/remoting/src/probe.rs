//! The HTTP port for machines that watch a node: `/livez`, `/readyz`, `/startupz`, `/metrics`.
//!
//! Owns one thread with its own runtime, so that it answers while the data threads are drowning. Started by whoever
//! assembles the node; what it asks for readiness and metrics runs on its thread.

mod bounded;

use std::io;
use std::net::{SocketAddr, TcpListener};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::bounded::BoundedListener;
use crate::listening_thread::ListeningThread;

/// What prometheus-client writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the probe did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The address is taken, not ours, or not permitted.
    #[error("listen on {address} for probes: {source}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("start the probe thread: {0}")]
    Thread(#[source] io::Error),
}

/// A running probe server. Dropping it stops it.
#[derive(Debug)]
pub struct Probe {
    local_addr: SocketAddr,
    stop: DropGuard,
    thread: ListeningThread,
}

impl Probe {
    /// Listens on `listen` (port 0 takes any free one).
    ///
    /// `missing` says what keeps the node from being ready, one line each: `/readyz` answers 200 when it is empty, else
    /// 503 and the lines. `metrics` is the text of `/metrics`, in the OpenMetrics format. `/livez` answers 200, and so does
    /// `/startupz`: whoever starts a probe has started the rest.
    pub fn start(
        listen: SocketAddr,
        missing: impl Fn() -> Vec<String> + Clone + Send + Sync + 'static,
        metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
    ) -> Result<Self, ProbeError> {
        let unbound = |source| ProbeError::Bind { address: listen, source };
        let listener = TcpListener::bind(listen).map_err(unbound)?;
        let local_addr = listener.local_addr().map_err(unbound)?;
        let router = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/startupz", get(|| async { "started\n" }))
            .route("/readyz", get(move || async move { readiness(&missing()) }))
            .route(
                "/metrics",
                get(move || async move { ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics()) }),
            );
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = ListeningThread::start("probe".to_owned(), listener, |listener| async move {
            let serving = async { axum::serve(BoundedListener::new(listener), router).await };
            // Serving never ends by itself: the listener waits out accept errors.
            stopped.run_until_cancelled(serving).await;
        })
        .map_err(ProbeError::Thread)?;
        Ok(Self { local_addr, stop: stop.drop_guard(), thread })
    }

    /// Stops it; its port is free when this returns. Blocks for an instant.
    pub fn stop(self) {
        drop(self.stop);
        self.thread.join_blocking();
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

fn readiness(missing: &[String]) -> (StatusCode, String) {
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.iter().map(|line| format!("{line}\n")).collect())
    }
}
