//! A connection that passed its handshake: plaintext or TLS, with the HTTP/2 preface read once already.
//! Runs on its data thread; tonic owns it from here on.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::DropGuard;
use tonic::transport::server::Connected;

use super::authority::Sieve;
use super::places::Place;
use crate::auth::Peer;
use crate::transport::Transport;

/// What an HTTP/2 client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is answered to who reads nothing is kept; not for longer than this.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// Accepted, of known kind, and heard to speak HTTP/2. Holds its place among the connections until it is closed.
pub(super) struct Connection {
    transport: Transport,
    /// How much of the preface was given again to the HTTP/2 library, which wants to read it too.
    replayed: usize,
    sieve: Sieve,
    /// When it is given up because nothing goes out; made when nothing does.
    stalled: Option<Pin<Box<Sleep>>>,
    peer: Peer,
    /// Says to whoever waits for what went out here that it is over.
    _line: DropGuard,
    _place: Place,
}

impl Connection {
    /// Reads the preface, refusing the first byte that differs.
    pub(super) async fn open(mut transport: Transport, place: Place) -> io::Result<Self> {
        let mut preface = [0; PREFACE.len()];
        let mut filled = 0;
        while filled < preface.len() {
            let read = transport.read(&mut preface[filled..]).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
            if preface[..filled] != PREFACE[..filled] {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not HTTP/2"));
            }
        }
        let (address, name) = (transport.peer_address(), transport.client_name());
        let peer = Peer::new(address, transport.is_of_nodes(), name).holding(place.held_bytes());
        let line = peer.line.open_until_dropped();
        Ok(Self {
            transport,
            replayed: 0,
            sieve: Sieve::default(),
            stalled: None,
            peer,
            _line: line,
            _place: place,
        })
    }
}

impl Connection {
    /// What became of a write, or the end of it when none went out for too long.
    fn unless_stalled(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED_MAX)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &PREFACE[self.replayed..];
        if !left.is_empty() {
            let taken = left.len().min(buffer.remaining());
            buffer.put_slice(&left[..taken]);
            self.replayed += taken;
            return Poll::Ready(Ok(()));
        }
        let filled = buffer.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(context, buffer);
        if !self.sieve.is_over() {
            self.sieve.pass(&mut buffer.filled_mut()[filled..]);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(context, bytes);
        self.unless_stalled(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(context, slices);
        self.unless_stalled(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}
