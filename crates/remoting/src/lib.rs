//! Everything of Karman that crosses a socket: the generated contract, servers and channels, the door that every node
//! is, and the one place where a refusal becomes a code. No rule about messages or groups lives here.
#![forbid(unsafe_code)]

pub mod admin_front;
pub mod auth;
pub mod between;
pub mod channel;
pub mod civil;
pub mod clients;
pub mod codec;
pub mod config;
pub mod front;
pub mod headers_first;
pub mod line;
mod listening_thread;
pub mod logging;
pub mod message;
pub mod metadata;
pub mod probe;
pub mod proto;
pub mod public_admin;
pub mod quota;
pub mod refused;
pub mod relay;
pub mod route_table;
pub mod secret;
pub mod server;
pub mod settings;
pub mod signals;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod token;
mod transport;
pub mod validate;
pub mod wire;
