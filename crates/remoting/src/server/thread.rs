//! What a data thread does: tonic serves what the accept loop lets through, until the server stops.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::Admission;
use super::accept::{Accepted, Entrance, Gate};

/// Each long poll holds a stream, and some clients put all of a process on one connection.
const MAX_CONCURRENT_STREAMS: u32 = 10_000;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Clients send about one KiB. A call holds its headers for as long as it takes.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// A dead client must not hold its long polls: pinged when nothing was heard for this long,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// and closed when it does not answer for this long.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// tokio tells a runtime's driver of a timer that is due before all others, by a system call, even if the driver is not asleep;
/// a call with a deadline makes one or two. There is always one that is due sooner.
const SOONEST_TIMER: Duration = Duration::from_secs(1);
/// Connections that passed the handshake and wait for the next turn of the serving task.
const OPENED_QUEUE: usize = 16;

/// What one data thread serves.
pub(super) struct DataThread {
    pub(super) number: usize,
    pub(super) gate: Arc<Gate>,
    /// What others have accepted for this one.
    pub(super) handed: mpsc::Receiver<Accepted>,
    pub(super) routes: Routes,
    pub(super) admission: Admission,
    pub(super) stop: CancellationToken,
    pub(super) shutdown_grace: Duration,
}

impl DataThread {
    /// Serves until `stop`, then for as long as requests are in flight and the grace allows. What it leaves is cut off
    /// when its runtime ends.
    pub(super) async fn serve(self, listener: TcpListener) {
        let Self { number, gate, handed, routes, admission, stop, shutdown_grace } = self;
        let (opened, incoming) = mpsc::channel(OPENED_QUEUE);
        let entrance = Entrance { thread: number, gate, opened, stop: stop.clone() };
        tokio::spawn(entrance.run(listener, handed));
        tokio::spawn(async {
            let mut sooner = tokio::time::interval(SOONEST_TIMER);
            loop {
                sooner.tick().await;
            }
        });
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(admission)
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming).map(Ok::<_, Infallible>),
                stop.clone().cancelled_owned(),
            );
        let mut serving = pin!(serving);
        tokio::select! {
            served = &mut serving => {
                if let Err(error) = served {
                    tracing::error!(%error, "serving failed");
                }
            }
            () = async { stop.cancelled().await; tokio::time::sleep(shutdown_grace).await } => {
                tracing::info!(grace_seconds = shutdown_grace.as_secs_f64(), "cut off the requests still in flight");
            }
        }
    }
}
