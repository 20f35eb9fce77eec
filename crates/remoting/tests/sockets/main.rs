//! Servers and channels over real sockets.

mod admission;
mod channel;
mod door;
mod drain;
mod handshake;
mod http2;
mod probe;
mod support;
