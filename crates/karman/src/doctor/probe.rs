//! One look at an address, as a client would come: name, connection, TLS, a call. Each step has a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use karman_client::ClientTls;
use karman_remoting::channel::{CONNECT_TIMEOUT, ChannelPool, trusting_all};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::time::now_ms;

const CALLS: u32 = 4;
/// Later than any certificate lasts: the year 9000.
const FAR_SECONDS: u64 = 221_845_000_000;

/// What an address came to.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// `host:port`
    pub(super) address: String,
    /// Why it cannot be reached at all.
    pub(super) unreachable: Option<String>,
    /// TLS is spoken.
    pub(super) tls: Option<Tls>,
    /// Calls without TLS are answered.
    pub(super) plaintext: bool,
    /// How long a call took on a connection that was there.
    pub(super) round_trip: Option<Duration>,
    /// Why no call was answered.
    pub(super) silent: Option<String>,
    /// Its clock less the one here, in milliseconds; half a second more or less.
    pub(super) clock_ahead_ms: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Tls {
    /// When its certificate ends; None if it cannot be read.
    pub(super) ends_ms: Option<u64>,
}

pub(super) async fn run(address: String) -> Probe {
    let mut probe = Probe { address, ..Probe::default() };
    match within(connect(&probe.address)).await {
        Ok(stream) => probe.tls = within(handshake(stream)).await.ok(),
        Err(error) => {
            probe.unreachable = Some(error.to_string());
            return probe;
        }
    }
    let plaintext = ask(ChannelPool::new().get(&probe.address).ok()).await;
    probe.plaintext = plaintext.is_ok();
    let answered = match (plaintext, &probe.tls) {
        (Err(_), Some(_)) => ask(ChannelPool::with_tls(ClientTls::TrustAll).get(&probe.address).ok()).await,
        (answered, _) => answered,
    };
    match answered {
        Ok(answer) => {
            probe.round_trip = Some(answer.round_trip);
            probe.clock_ahead_ms = Some(answer.clock_ahead_ms);
        }
        Err(error) => probe.silent = Some(error),
    }
    probe
}

async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {CONNECT_TIMEOUT:?}"));
    timeout(CONNECT_TIMEOUT, step).await.map_err(|_| late())?
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("its name is not known here: {error}")))?
        .collect();
    TcpStream::connect(&resolved[..]).await
}

/// Whatever it shows is taken: it is looked at, not trusted.
async fn handshake(stream: TcpStream) -> io::Result<Tls> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(trusting_all()).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("karman").map_err(io::Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Ok(Tls { ends_ms: certificates.first().and_then(ends_ms) })
}

/// The library tells when a certificate ended only to whoever comes too late.
fn ends_ms(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let judged = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::since_unix_epoch(Duration::from_secs(FAR_SECONDS)),
        ring::default_provider().signature_verification_algorithms.all,
    );
    match judged {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(not_after.as_secs().saturating_mul(1000))
        }
        _ => None,
    }
}

struct Answer {
    round_trip: Duration,
    clock_ahead_ms: i64,
}

/// Asks for its health: the first call also makes the connection, the fastest of the others tells how far it is.
async fn ask(channel: Option<Channel>) -> Result<Answer, String> {
    let mut client = HealthClient::new(channel.ok_or("it is no address of the form host:port")?);
    let (mut fastest, mut clock_ahead_ms) = (Duration::MAX, 0);
    for call in 0..CALLS {
        let (started, before_ms) = (Instant::now(), now_ms());
        let called = timeout(CONNECT_TIMEOUT, client.check(HealthCheckRequest::default())).await;
        let called = called.map_err(|_| format!("no answer in {CONNECT_TIMEOUT:?}"))?;
        let round_trip = started.elapsed();
        let metadata = match &called {
            Ok(response) => response.metadata(),
            Err(status) => status.metadata(),
        };
        // Who refuses the call has answered it; what has no date did not come from a node.
        let Some(there_ms) = date_ms(metadata) else {
            let why = called.err().map(|status| status.message().to_owned());
            return Err(why.unwrap_or_else(|| "an answer without a date".to_owned()));
        };
        // An answer tells whole seconds: it is half of one more, on the average.
        let here_ms = i64::try_from(before_ms + now_ms()).unwrap_or(i64::MAX) / 2;
        clock_ahead_ms = there_ms + 500 - here_ms;
        if call > 0 {
            fastest = fastest.min(round_trip);
        }
    }
    Ok(Answer { round_trip: fastest, clock_ahead_ms })
}

/// When an answer was given, as HTTP says it: `Fri, 27 Nov 2026 21:16:46 GMT`.
fn date_ms(metadata: &MetadataMap) -> Option<i64> {
    let text = metadata.get("date")?.to_str().ok()?;
    let date = DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", text).ok()?;
    Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let mut params = rcgen::CertificateParams::new(vec!["n".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2027, 3, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(ends_ms(certificate.der()), Some(1_803_859_200_000));
        assert_eq!(ends_ms(&CertificateDer::from(vec![0x30, 3, 1, 2, 3])), None);
    }

    #[tokio::test]
    async fn what_takes_connections_and_is_no_node_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let probe = run(address).await;
        assert!(probe.unreachable.is_none() && probe.tls.is_none() && probe.silent.is_some(), "{probe:?}");
        let unknown = run("no-such-host.invalid:1".to_owned()).await;
        assert!(unknown.unreachable.as_ref().is_some_and(|why| why.contains("name")), "{unknown:?}");
    }
}
