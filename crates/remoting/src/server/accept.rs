//! From the listener to a connection that speaks HTTP/2. One accept loop per data thread, one bounded task per handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, PREFACE};
use super::pending::Pending;
use super::places::{Place, Places};
use crate::between::{Between, NODE_NAME};
use crate::refused::{Came, Refusals};
use crate::tls::Tls;
use crate::transport::{Transport, explained};

/// First byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Frames of HTTP/2, and what is in them. Source: RFC 9113, 6.5, 6.8 and 7.
const SETTINGS: u8 = 0x4;
const GOAWAY: u8 = 0x7;
const NO_STREAM: [u8; 4] = [0; 4];
const INADEQUATE_SECURITY: [u8; 4] = [0, 0, 0, 0xc];
/// After an accept error, usually too many open files, time for connections to close; without it the loop would spin.
const ACCEPT_ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Who may enter, and how many; shared by the data threads of a server.
pub(super) struct Gate {
    /// Absent: TLS is not taken of clients.
    pub(super) tls: Option<Tls>,
    pub(super) nodes: Between,
    /// Of whom the log has told.
    pub(super) refusals: Refusals,
    pub(super) plaintext: bool,
    pub(super) places: Arc<Places>,
    /// To each data thread: what another has accepted for it.
    pub(super) threads: Vec<mpsc::Sender<Accepted>>,
    pub(super) handshakes: Arc<Pending>,
    pub(super) handshake_timeout: Duration,
}

/// A connection of which nothing was read yet, with its place.
pub(super) type Accepted = (std::net::TcpStream, Place);

/// What one data thread lets in.
pub(super) struct Entrance {
    /// Number of the thread.
    pub(super) thread: usize,
    pub(super) gate: Arc<Gate>,
    /// What passed its handshake.
    pub(super) opened: mpsc::Sender<Connection>,
    pub(super) stop: CancellationToken,
}

impl Entrance {
    /// Accepts until `stop`, also what others have accepted for this thread, and sends on what passed its handshake.
    pub(super) async fn run(self, listener: TcpListener, mut handed: mpsc::Receiver<Accepted>) {
        let accept = async {
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, peer)) => self.place(stream, peer),
                        Err(error) => {
                            tracing::warn!(%error, "accept failed");
                            tokio::time::sleep(ACCEPT_ERROR_PAUSE).await;
                        }
                    },
                    // The gate keeps the other end.
                    Some((stream, place)) = handed.recv() => self.begin(TcpStream::from_std(stream), place),
                }
            }
        };
        self.stop.run_until_cancelled(accept).await;
    }

    /// Gives a connection to the thread that has the fewest.
    fn place(&self, stream: TcpStream, peer: SocketAddr) {
        let place = match self.gate.places.take(peer.ip(), self.thread) {
            Ok(place) => place,
            Err(why) => return tracing::debug!(%peer, why, "closed"),
        };
        if place.thread() == self.thread {
            return self.begin(Ok(stream), place);
        }
        let other = &self.gate.threads[place.thread()];
        match stream.into_std() {
            Ok(stream) => {
                // One that is so far behind would not serve it either.
                if other.try_send((stream, place)).is_err() {
                    tracing::debug!(%peer, "closed: its data thread takes no more at the moment");
                }
            }
            Err(error) => refused(Some(peer), &error),
        }
    }

    /// The handshake, in a task of its own.
    fn begin(&self, stream: io::Result<TcpStream>, place: Place) {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => return refused(None, &error),
        };
        let peer = stream.peer_addr().ok();
        let (gate, opened) = (self.gate.clone(), self.opened.clone());
        let pending = gate.handshakes.begin(&self.stop);
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(gate.handshake_timeout, gate.open(stream, place));
            let opening = pending.run(handshake).await;
            drop(pending);
            match opening {
                Some(Ok(Ok(connection))) => {
                    // Fails only when the server stops.
                    let _ = opened.send(connection).await;
                }
                Some(Ok(Err(error))) => refused(peer, &error),
                Some(Err(_)) => refused(peer, &io::ErrorKind::TimedOut.into()),
                None => {}
            }
        });
    }
}

fn refused(peer: Option<SocketAddr>, error: &io::Error) {
    tracing::debug!(?peer, %error, "handshake failed");
}

impl Gate {
    async fn open(&self, stream: TcpStream, place: Place) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let takes_tls = self.tls.is_some() || self.nodes.has_tls();
        let transport = match first[0] {
            TLS_HANDSHAKE if takes_tls => self.secure(stream).await?,
            byte if byte == PREFACE[0] && self.plaintext => Transport::Plain(stream),
            byte if byte == PREFACE[0] && self.is_for_nodes() => {
                return Err(self.refuse_plaintext(stream).await);
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "neither TLS nor HTTP/2, or not allowed",
                ));
            }
        };
        Connection::open(transport, place).await
    }

    /// Whether nobody but nodes with certificates can enter.
    fn is_for_nodes(&self) -> bool {
        self.tls.is_none() && !self.plaintext && self.nodes.has_tls()
    }

    /// As a node whoever asks for one, and everybody where there is no TLS for clients.
    async fn secure(&self, stream: TcpStream) -> io::Result<Transport> {
        let peer = stream.peer_addr()?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let as_node = self.tls.is_none() || hello.client_hello().server_name() == Some(NODE_NAME);
        if let Some(config) = self.nodes.server_config().filter(|_| as_node) {
            let stream = hello.into_stream(config).await.map_err(explained);
            let stream = stream.inspect_err(|error| self.tell(peer, &error.to_string()))?;
            return Ok(Transport::Nodes(Box::new(stream.into())));
        }
        let tls = self.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(Transport::Tls(Box::new(hello.into_stream(tls.server_config()).await?.into())))
    }

    /// Says why, so that the other side can tell: in HTTP/2, as it has begun to speak.
    async fn refuse_plaintext(&self, mut stream: TcpStream) -> io::Error {
        const WHY: &str = "plaintext is not taken here, only TLS with a certificate of the cluster's nodes: set \
                           internalTlsCaPath, internalTlsCertPath and internalTlsKeyPath as on the other nodes";
        if let Ok(peer) = stream.peer_addr() {
            self.tell(peer, WHY);
        }
        let farewell =
            [&frame(SETTINGS, &[]), &frame(GOAWAY, &[&NO_STREAM, &INADEQUATE_SECURITY, WHY.as_bytes()])];
        let said = async {
            for frame in farewell {
                stream.write_all(frame).await?;
            }
            stream.shutdown().await?;
            // What it has sent is read, or the end would be a reset, and overtake the reason.
            let mut sent = [0; 1024];
            while stream.read(&mut sent).await? > 0 {}
            Ok(())
        };
        match said.await {
            Ok(()) => io::Error::new(io::ErrorKind::PermissionDenied, "plaintext"),
            Err(error) => error,
        }
    }

    /// Once a minute, as it tries again and again.
    fn tell(&self, peer: SocketAddr, why: &str) {
        let who = peer.ip().to_string();
        if self.refusals.is_news(Came::AsStranger, &who, why, why) {
            tracing::warn!(who, why, "one that may be a node is refused");
        }
    }
}

/// Of the connection as a whole. Source: RFC 9113, 4.1.
fn frame(kind: u8, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    let length = u32::try_from(payload.len()).expect("a few words").to_be_bytes();
    [&length[1..], &[kind, 0], &NO_STREAM, &payload].concat()
}
