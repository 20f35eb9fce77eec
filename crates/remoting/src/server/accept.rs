//! From the listener to a connection that speaks HTTP/2. One accept loop per data thread, one bounded task per handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, PREFACE, Transport};

/// First byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// After an accept error, usually too many open files, time for connections to close; without it the loop would spin.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Who may enter, and how many; shared by the data threads of a server.
pub(super) struct Gate {
    /// Absent: TLS is not taken.
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) plaintext: bool,
    pub(super) connections: Arc<Semaphore>,
    pub(super) handshakes: Arc<Semaphore>,
    pub(super) handshake_timeout: Duration,
}

/// Accepts until `stop`, and sends what passed its handshake to `opened`.
pub(super) async fn run(
    listener: TcpListener,
    gate: Arc<Gate>,
    opened: mpsc::Sender<Connection>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(accept(listener, gate, opened, &stop)).await;
}

async fn accept(
    listener: TcpListener,
    gate: Arc<Gate>,
    opened: mpsc::Sender<Connection>,
    stop: &CancellationToken,
) {
    loop {
        let handshake_place =
            gate.handshakes.clone().acquire_owned().await.expect("this semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_ERROR_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = gate.connections.clone().try_acquire_owned() else {
            tracing::debug!(%peer, "closed: too many connections");
            continue;
        };
        let (gate, opened, stop) = (gate.clone(), opened.clone(), stop.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(gate.handshake_timeout, gate.open(stream, place));
            match stop.run_until_cancelled(handshake).await {
                Some(Ok(Ok(connection))) => {
                    // Fails only when the server stops.
                    let _ = opened.send(connection).await;
                }
                Some(Ok(Err(error))) => refused(peer, &error),
                Some(Err(_)) => refused(peer, &io::ErrorKind::TimedOut.into()),
                None => {}
            }
            drop(handshake_place);
        });
    }
}

fn refused(peer: SocketAddr, error: &io::Error) {
    tracing::debug!(%peer, %error, "handshake failed");
}

impl Gate {
    async fn open(&self, stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let transport = match &self.tls {
            Some(tls) if first[0] == TLS_HANDSHAKE => Transport::Tls(Box::new(tls.accept(stream).await?)),
            _ if first[0] == PREFACE[0] && self.plaintext => Transport::Plain(stream),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "neither TLS nor HTTP/2, or not allowed",
                ));
            }
        };
        Connection::open(transport, place).await
    }
}
