//! The node that commands talk to: its services, and its answers as results.

use std::time::Duration;

use anyhow::Context as _;
use karman_client::{Client, ClientError, ClientOptions, ClientTls, Code, Credentials};
use karman_remoting::auth::SignedChannel;
use karman_remoting::channel::{ChannelPool, address_of};
use karman_remoting::metadata;
use karman_remoting::proto::karman::BrokerResult;
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::secret::Secret;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_remoting::status::Answer;
use serde::Serialize;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::output::{self, Format, text};

/// A node asks each broker for up to 5 s; this leaves it time to say which of them was silent.
const TIMEOUT: Duration = Duration::from_secs(8);

/// One node of a cluster, by its address.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) endpoint: String,
    pub(crate) cluster_secret: Secret,
    credentials: Option<Credentials>,
}

impl Node {
    pub(crate) fn new(endpoint: String, cluster_secret: Secret) -> Self {
        Self { endpoint, cluster_secret, credentials: None }
    }

    /// The same in the name of a user.
    pub(crate) fn signed_by(self, credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..self }
    }

    /// For sending and receiving.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions { credentials: self.credentials.clone(), ..ClientOptions::default() };
        Ok(Client::connect(&self.endpoint, options).await?)
    }

    /// `host:port`
    pub(crate) fn address(&self) -> &str {
        let endpoint = self.endpoint.as_str();
        endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")).unwrap_or(endpoint)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https://")
    }

    pub(crate) fn channel(&self) -> anyhow::Result<Channel> {
        let pool =
            if self.is_tls() { ChannelPool::with_tls(ClientTls::TrustAll) } else { ChannelPool::new() };
        pool.get(self.address()).with_context(|| format!("endpoint {:?}", self.endpoint))
    }

    /// The operators' service; each call is signed there, if somebody signs.
    pub(crate) fn admin(&self) -> anyhow::Result<AdminClient<SignedChannel>> {
        let channel = SignedChannel::new(self.channel()?, self.credentials.clone());
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
    }

    /// The masters of a topic, each once.
    pub(crate) async fn masters_of(&self, topic: &str) -> anyhow::Result<Vec<TopicBroker>> {
        let topic_resource = v2::Resource { resource_namespace: String::new(), name: topic.to_owned() };
        let request = v2::QueryRouteRequest { topic: Some(topic_resource), endpoints: None };
        let mut request = self.caller("route").request(request);
        metadata::add_secret(request.metadata_mut(), &self.cluster_secret);
        let service = MessagingServiceClient::new(self.channel()?);
        let mut service = service.max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
        let response = self.answer(service.query_route(request)).await?;
        let mut brokers: Vec<TopicBroker> = Vec::new();
        for queue in response.message_queues {
            let Some(broker) = queue.broker.as_ref().filter(|broker| broker.id == 0) else { continue };
            let Some(address) = broker.endpoints.as_ref().and_then(address_of) else { continue };
            if brokers.iter().all(|known| known.address != address) {
                brokers.push(TopicBroker { address, queue });
            }
        }
        anyhow::ensure!(!brokers.is_empty(), "topic {topic:?} has no broker with an address");
        Ok(brokers)
    }

    /// Whoever calls clients' services without the SDK.
    pub(crate) fn caller(&self, name: &str) -> Caller {
        Caller { headers: headers(name), credentials: self.credentials.clone() }
    }

    /// With the deadline, and the cluster's secret if it is given.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(TIMEOUT);
        metadata::add_secret(request.metadata_mut(), &self.cluster_secret);
        request
    }

    /// Waits for an answer; what the node refused is an error.
    pub(crate) async fn answer<T: Answer>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        let (response, result) = self.answer_in_part(call).await?;
        result.map(|()| response)
    }

    /// Waits for an answer that may tell of what was done beside what was refused.
    pub(crate) async fn answer_in_part<T: Answer>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<(T, anyhow::Result<()>)> {
        let endpoint = || self.endpoint.clone();
        let response = tokio::time::timeout(TIMEOUT, call)
            .await
            .map_err(|_| ClientError::Timeout { endpoint: endpoint(), timeout: TIMEOUT })?
            .map_err(|status| self.failure(&status))?
            .into_inner();
        let result = self.check(response.status(), response.brokers());
        Ok((response, result))
    }

    pub(crate) fn failure(&self, status: &Status) -> ClientError {
        if status.code() == tonic::Code::PermissionDenied {
            let how = "give --cluster-secret, or --access-key and --secret-key-file";
            let message = format!("{}; {how}", status.message());
            return ClientError::Refused { endpoint: self.endpoint.clone(), code: Code::Forbidden, message };
        }
        ClientError::transport(&self.endpoint, TIMEOUT, status)
    }

    pub(crate) fn check(&self, status: Option<&v2::Status>, brokers: &[BrokerResult]) -> anyhow::Result<()> {
        let endpoint = self.endpoint.clone();
        let Some(status) = status else {
            return Err(ClientError::Protocol { endpoint, why: "the answer has no status".into() }.into());
        };
        let code = Code::try_from(status.code).unwrap_or(Code::Unspecified);
        if code == Code::Ok {
            return Ok(());
        }
        // The brokers differ: what each of them said is more than "multiple results".
        let failed = brokers.iter().filter(|broker| code_of(broker.status.as_ref()) != Code::Ok);
        let said =
            failed.map(|broker| format!("{}: {}", broker.broker_name, message_of(broker.status.as_ref())));
        let said: Vec<String> = said.collect();
        let message = if code == Code::MultipleResults { said.join("; ") } else { status.message.clone() };
        Err(ClientError::Refused { endpoint, code, message }.into())
    }
}

/// A master of a topic.
pub(crate) struct TopicBroker {
    /// `host:port`
    pub(crate) address: String,
    /// One of its queues, as the route has it.
    pub(crate) queue: v2::MessageQueue,
}

/// A client of its own, for calls that the SDK does not make: its headers, and in whose name it calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    headers: MetadataMap,
    credentials: Option<Credentials>,
}

impl Caller {
    /// In nobody's name: of a service that asks for none.
    pub(crate) fn nobody(name: &str) -> Self {
        Self { headers: headers(name), credentials: None }
    }

    /// The same as another client.
    pub(crate) fn called(&self, name: &str) -> Self {
        Self { headers: headers(name), credentials: self.credentials.clone() }
    }

    /// Signed anew each time, as clients do.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        if let Some(credentials) = &self.credentials {
            credentials.sign(request.metadata_mut());
        }
        request
    }
}

fn headers(name: &str) -> MetadataMap {
    let id = format!("karman@{}@{name}", std::process::id());
    let id = MetadataValue::try_from(id).expect("digits and ASCII letters");
    metadata::of_client(id, env!("CARGO_PKG_VERSION"))
}

pub(crate) fn code_of(status: Option<&v2::Status>) -> Code {
    status.and_then(|status| Code::try_from(status.code).ok()).unwrap_or(Code::Unspecified)
}

pub(crate) fn message_of(status: Option<&v2::Status>) -> &str {
    status.map_or("no status", |status| &status.message)
}

#[derive(Serialize)]
struct ChangedJson<'a> {
    name: &'a str,
    brokers: Vec<BrokerJson<'a>>,
}

#[derive(Serialize)]
struct BrokerJson<'a> {
    broker: &'a str,
    code: &'static str,
    message: &'a str,
}

/// Says on which brokers something was done.
pub(crate) fn print_changed(name: &str, brokers: &[BrokerResult], format: Format) -> anyhow::Result<()> {
    let rows = brokers.iter().map(|broker| BrokerJson {
        broker: &broker.broker_name,
        code: code_of(broker.status.as_ref()).as_str_name(),
        message: message_of(broker.status.as_ref()),
    });
    let changed = ChangedJson { name, brokers: rows.collect() };
    if output::programs(format, &changed, |changed| [changed.name])? {
        return Ok(());
    }
    let cells = |row: BrokerJson<'_>| vec![row.broker.to_owned(), row.message.to_owned()];
    Ok(output::table(&[text("BROKER"), text("RESULT")], changed.brokers.into_iter().map(cells).collect())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, message: &str) -> v2::Status {
        v2::Status { code: code.into(), message: message.into() }
    }

    #[test]
    fn brokers_that_disagree_are_named() {
        let node = Node::new("n:1".into(), Secret::default());
        let row = |name: &str, status| BrokerResult { broker_name: name.into(), status: Some(status) };
        let rows = [row("a", status(Code::Ok, "OK")), row("b", status(Code::TopicNotFound, "no such topic"))];
        let error = node.check(Some(&status(Code::MultipleResults, "see below")), &rows).unwrap_err();
        assert!(error.to_string().contains("b: no such topic"), "{error}");
        assert!(node.check(Some(&status(Code::Ok, "")), &rows).is_ok());
        assert!(node.check(None, &[]).is_err());
    }

    #[test]
    fn a_deadline_that_passed_is_told_as_one() {
        let node = Node::new("n:1".into(), Secret::default());
        let expired = Status::from_error(Box::new(tonic::TimeoutExpired(())));
        assert!(matches!(node.failure(&expired), ClientError::Timeout { .. }));
        let secret = node.failure(&Status::permission_denied("a secret"));
        assert!(secret.to_string().contains("--cluster-secret"), "{secret}");
    }

    #[test]
    fn the_scheme_is_not_part_of_the_address() {
        let node = |endpoint: &str| Node::new(endpoint.into(), Secret::default());
        assert_eq!((node("https://n:1").address(), node("https://n:1").is_tls()), ("n:1", true));
        assert_eq!((node("n:1").address(), node("n:1").is_tls()), ("n:1", false));
    }
}
