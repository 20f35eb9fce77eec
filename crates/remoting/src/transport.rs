//! The bytes of one connection, to another node or from whoever has come: plaintext or TLS. Runs on the runtime of its connection.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::tls::common_name;

/// See the module's comment.
pub(crate) enum Transport {
    Plain(TcpStream),
    /// Of a client, who looked at this node's certificate or did not.
    Tls(Box<TlsStream<TcpStream>>),
    /// Between two nodes, each of which has verified the other.
    Nodes(Box<TlsStream<TcpStream>>),
}

impl Transport {
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_addr().ok(),
            Self::Tls(stream) | Self::Nodes(stream) => stream.get_ref().0.peer_addr().ok(),
        }
    }

    /// Who the client is by the certificate it has shown, which was verified.
    pub(crate) fn client_name(&self) -> Option<String> {
        let Self::Tls(stream) = self else { return None };
        common_name(stream.get_ref().1.peer_certificates()?.first()?)
    }

    pub(crate) fn is_of_nodes(&self) -> bool {
        matches!(self, Self::Nodes(_))
    }
}

/// What went wrong with TLS between nodes, in words that say where to look.
pub(crate) fn explained(error: io::Error) -> io::Error {
    let known = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let why = match known {
        Some(Error::AlertReceived(alert)) => {
            format!("the other side refuses this node's certificate, or TLS with it (alert {alert:?})")
        }
        Some(Error::InvalidCertificate(_)) => {
            format!("the other side's certificate is refused, it is not one of internalTlsCaPath: {error}")
        }
        Some(Error::NoCertificatesPresented) => {
            "the other side shows no certificate: only nodes are taken here (internalTlsCertPath)".to_owned()
        }
        _ => return error,
    };
    io::Error::new(error.kind(), why)
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Nodes(stream) => Pin::new(stream).poll_read(context, buffer).map_err(|error| {
                // The library tells at length what a protocol without frames would have to fear.
                let is_end = error.kind() == io::ErrorKind::UnexpectedEof;
                if is_end { io::Error::new(error.kind(), "the connection was closed") } else { error }
            }),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) | Self::Nodes(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) | Self::Nodes(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) | Self::Nodes(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) | Self::Nodes(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) | Self::Nodes(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
