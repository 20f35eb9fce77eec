//! Who is on the other side of a connection, as far as the connection shows it. On the data threads; made by the server when the connection
//! is opened, and found by calls among their extensions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tonic::metadata::AsciiMetadataValue;

use super::users::User;
use crate::line::Line;
use crate::quota::Place;
use crate::status::Rejection;

/// What a connection keeps for its calls: who is on the other side, and the signature that was verified last.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address, as the socket says it.
    pub address: Option<SocketAddr>,
    /// Whether it still exists.
    pub line: Line,
    /// It has shown the certificate of a node.
    is_node: bool,
    /// What requests hold that came from the same address.
    pub(crate) held_bytes: Arc<AtomicUsize>,
    /// The user that its certificate names, which was verified.
    pub(super) certified: Option<Arc<str>>,
    pub(super) verified: Arc<ArcSwapOption<Verified>>,
    /// Among the connections of the user who called last.
    place: Arc<Mutex<Option<Place>>>,
}

impl Peer {
    /// A connection that was just opened.
    pub fn new(address: Option<SocketAddr>, is_node: bool, certified: Option<String>) -> Self {
        Self {
            address,
            line: Line::default(),
            is_node,
            held_bytes: Arc::default(),
            certified: certified.map(Arc::from),
            verified: Arc::default(),
            place: Arc::default(),
        }
    }

    /// Whether the other side has shown a certificate that only nodes have.
    pub fn is_node(&self) -> bool {
        self.is_node
    }

    /// What its requests hold is counted there.
    pub(crate) fn holding(self, held_bytes: Arc<AtomicUsize>) -> Self {
        Self { held_bytes, ..self }
    }

    /// Counts the connection among those of `user`, if it is not yet.
    pub(super) fn belongs_to(&self, user: &User) -> Result<(), Rejection> {
        let (mut place, places) = (self.place.lock(), &user.used.connections);
        if place.as_ref().is_some_and(|place| place.is_of(places)) {
            return Ok(());
        }
        let taken = places.take(user.connections_max).ok_or_else(|| {
            let (name, max) = (&user.name, user.connections_max);
            Rejection::TooManyRequests(format!(
                "user {name:?} has {max} connections to this node, its quota; close one, or raise it: karman user update {name} --max-connections N"
            ))
        })?;
        *place = Some(taken);
        Ok(())
    }
}

/// A signature that was right.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) authorization: AsciiMetadataValue,
    pub(super) date_time: Option<AsciiMetadataValue>,
    /// Of which user, as it was known then.
    pub(super) user: Arc<User>,
}
