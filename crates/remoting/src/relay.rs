//! Calls from a node to another: the same request, to the broker that owns it.
//!
//! A relayed request keeps the client's `x-mq-*` headers and what is left of its deadline, and carries the hop mark. It
//! goes to the broker's internal address: what is advertised to clients may not be reachable from inside.

use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::between::{self, Between};
use crate::channel::ChannelPool;
use crate::metadata;
use crate::proto::karman::BrokerIdentity;
use crate::proto::karman::admin_client::AdminClient;
use crate::proto::karman::relay_client::RelayClient;
use crate::proto::v2::messaging_service_client::MessagingServiceClient;
use crate::server::MAX_DECODING_SIZE_BYTES;
use crate::status::Rejection;

/// For a request whose client set no deadline.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The other nodes of the cluster.
#[derive(Clone, Debug)]
pub struct Peers {
    pool: ChannelPool,
    between: Between,
}

impl Peers {
    /// Those that show what `between` has.
    pub fn new(between: Between) -> Self {
        Self { pool: ChannelPool::of_nodes(between.clone()), between }
    }

    fn channel(&self, peer: &BrokerIdentity) -> Result<Channel, Rejection> {
        let channel = self.pool.get_of(&peer.internal_address, peer.incarnation);
        channel.map_err(|error| Rejection::PeerUnavailable {
            broker: peer.broker_name.clone(),
            why: error.to_string(),
        })
    }

    /// The clients' service of a broker.
    pub fn messaging(&self, peer: &BrokerIdentity) -> Result<MessagingServiceClient<Channel>, Rejection> {
        let client = MessagingServiceClient::new(self.channel(peer)?);
        Ok(client.max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
    }

    /// The operators' service of a broker.
    pub fn admin(&self, peer: &BrokerIdentity) -> Result<AdminClient<Channel>, Rejection> {
        Ok(AdminClient::new(self.channel(peer)?).max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
    }

    /// Where a broker is told of the connections that calls are relayed from.
    pub(crate) fn lines(&self, peer: &BrokerIdentity) -> Result<RelayClient<Channel>, Rejection> {
        Ok(RelayClient::new(self.channel(peer)?))
    }

    /// A request that this node makes in its own name.
    pub(crate) fn request_of_node<T>(&self, message: T) -> Request<T> {
        self.between.request(message)
    }

    /// The request itself, to be relayed.
    pub fn relayed<T>(&self, request: Request<T>) -> Request<T> {
        let (metadata, _, message) = request.into_parts();
        self.request(&metadata, message)
    }

    /// `message` as a relayed request: with the headers and the deadline of the request that came in.
    pub fn request<T>(&self, came_with: &MetadataMap, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = metadata::for_relay(came_with);
        self.between.sign(&mut request);
        request.set_timeout(metadata::timeout_of(came_with).unwrap_or(DEFAULT_TIMEOUT));
        request
    }
}

/// What a failed call to a peer means for the client: always a `Status` in the body, since a gRPC error would make the
/// client give up this node, which is well.
pub fn failure(peer: &BrokerIdentity, status: &Status) -> Rejection {
    let (broker, why) = (peer.broker_name.clone(), between::why(status));
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => Rejection::PeerTimeout { broker, why },
        Code::ResourceExhausted => Rejection::TooManyRequests(format!("broker {broker:?}: {why}")),
        _ => Rejection::PeerUnavailable { broker, why },
    }
}
