//! Calls to one node, in the name of one client id, each with a deadline. Any task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use karman_remoting::auth::credentials::Credentials;
use karman_remoting::channel::ChannelPool;
use karman_remoting::metadata;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::admin_client::AdminClient;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::error::ClientError;
use crate::retry::{MAX_ATTEMPTS, backoff};

/// One client id: the servers keep one set of settings for each, so a producer and a consumer never share one.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pool: ChannelPool,
    /// `host:port`
    pub(crate) access_point: Arc<str>,
    /// For one attempt of one call.
    pub(crate) request_timeout: Duration,
    pub(crate) host: Arc<str>,
    headers: MetadataMap,
    credentials: Option<Credentials>,
}

impl Transport {
    pub(crate) fn new(
        pool: ChannelPool,
        access_point: String,
        request_timeout: Duration,
        credentials: Option<Credentials>,
    ) -> Self {
        let host = host_name();
        let headers = own_headers(&host);
        let access_point = access_point.into();
        Self { pool, access_point, request_timeout, host: host.into(), headers, credentials }
    }

    /// The same connections, under a client id of its own.
    pub(crate) fn renamed(&self) -> Self {
        Self { headers: own_headers(&self.host), ..self.clone() }
    }

    pub(crate) fn service(&self, endpoint: &str) -> Result<MessagingServiceClient<Channel>, ClientError> {
        let channel = self.pool.get(endpoint).map_err(|error| ClientError::channel(endpoint, &error))?;
        Ok(MessagingServiceClient::new(channel).max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
    }

    pub(crate) fn admin(&self, endpoint: &str) -> Result<AdminClient<Channel>, ClientError> {
        let channel = self.pool.get(endpoint).map_err(|error| ClientError::channel(endpoint, &error))?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
    }

    /// What the servers know this client by.
    pub(crate) fn client_id(&self) -> &str {
        metadata::client_id_of(&self.headers).expect("it was made with one")
    }

    /// Without a deadline: for the telemetry stream.
    pub(crate) fn open_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        if let Some(credentials) = &self.credentials {
            credentials.sign(request.metadata_mut());
        }
        request
    }

    /// Tells the server too how long its answer is waited for.
    pub(crate) fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = self.open_request(message);
        request.set_timeout(timeout);
        request
    }

    /// Calls `endpoint`, up to three times in all while another attempt may help. Any node passes a call on: the access
    /// point is called instead of a node that cannot be reached.
    pub(crate) async fn repeated<T, C>(
        &self,
        endpoint: &str,
        call: impl Fn(Arc<str>) -> C,
    ) -> Result<T, ClientError>
    where
        C: Future<Output = Result<T, ClientError>>,
    {
        let mut endpoint: Arc<str> = endpoint.into();
        let mut attempt = 1;
        loop {
            match call(endpoint.clone()).await {
                Err(error) if error.is_retryable() && attempt < MAX_ATTEMPTS => {
                    if error.is_of_connection() {
                        endpoint = self.access_point.clone();
                    }
                }
                result => return result,
            }
            tokio::time::sleep(backoff(attempt)).await;
            attempt += 1;
        }
    }

    /// The access point, as the contract writes endpoints.
    pub(crate) fn access_point_endpoints(&self) -> Option<v2::Endpoints> {
        endpoints_of(&self.access_point)
    }
}

/// Waits for an answer, at most `timeout`: a connection that is still being made counts too, which tonic's own
/// deadline does not.
pub(crate) async fn answer<T>(
    endpoint: &str,
    timeout: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(ClientError::transport(endpoint, timeout, &status)),
        Err(_) => Err(ClientError::Timeout { endpoint: endpoint.to_owned(), timeout }),
    }
}

fn endpoints_of(address: &str) -> Option<v2::Endpoints> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let scheme = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => v2::AddressScheme::IPv4,
        Ok(std::net::IpAddr::V6(_)) => v2::AddressScheme::IPv6,
        Err(_) => v2::AddressScheme::DomainName,
    };
    let address = v2::Address { host: host.to_owned(), port: port.parse().ok()? };
    Some(v2::Endpoints { scheme: scheme.into(), addresses: vec![address] })
}

/// `host@pid@number@start`, unique among all clients of a group, as the official clients make theirs.
fn next_client_id(host: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{host}@{}@{number}@{nanos:x}", std::process::id())
}

/// The headers of a client id of its own.
fn own_headers(host: &str) -> MetadataMap {
    let id = MetadataValue::try_from(next_client_id(host)).expect("a client id is made of visible ASCII");
    metadata::of_client(id, env!("CARGO_PKG_VERSION"))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // Goes into a header: nothing but what a host name may hold.
    let name: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        .take(64)
        .collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use karman_remoting::channel::address_of;

    use super::*;

    #[test]
    fn every_transport_has_a_client_id_of_its_own() {
        let id = |transport: &Transport| transport.headers.get("x-mq-client-id").cloned();
        let first = Transport::new(ChannelPool::new(), "n:1".into(), Duration::ZERO, None);
        assert_ne!(id(&first), id(&first.renamed()));
        assert_eq!(first.headers.get("x-mq-language").unwrap(), "RUST");
    }

    #[test]
    fn addresses_survive_the_way_through_endpoints() {
        for (address, scheme) in [
            ("10.0.0.1:8081", v2::AddressScheme::IPv4),
            ("[::1]:8081", v2::AddressScheme::IPv6),
            ("broker.example:8081", v2::AddressScheme::DomainName),
        ] {
            let endpoints = endpoints_of(address).unwrap();
            assert_eq!(endpoints.scheme(), scheme);
            assert_eq!(address_of(&endpoints).unwrap(), address);
        }
        assert_eq!(address_of(&v2::Endpoints::default()), None);
    }
}
