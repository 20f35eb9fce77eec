//! Servers and channels over real sockets.

mod admission;
mod channel;
mod door;
mod door_start;
mod drain;
mod handshake;
mod http2;
mod nodes;
mod probe;
mod support;
