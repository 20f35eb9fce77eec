//! What the examples have in common: the topics and groups they need are made as an operator would make them, who has
//! `karman topic create` and `karman group create` for it.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use karman_client::{Client, Code};
use karman_remoting::channel::ChannelPool;
use karman_remoting::proto::karman::admin_client::AdminClient;
use karman_remoting::proto::karman::{
    CreateGroupRequest, CreateTopicRequest, GroupConfig, RedriveDeadLettersRequest, TopicConfig,
};
use karman_remoting::proto::v2::retry_policy::Strategy;
use karman_remoting::proto::v2::{CustomizedBackoff, MessageType, RetryPolicy, Status};
use tonic::Request;
use tonic::transport::Channel;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For all nodes of a cluster to hear of a new topic.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// The operator's side of a cluster.
#[derive(Clone, Debug)]
pub struct Operator(AdminClient<Channel>);

impl Operator {
    /// Of the cluster that has a node at `endpoint`, `host:port`.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        let channel = ChannelPool::new().get(endpoint).with_context(|| format!("endpoint {endpoint:?}"))?;
        Ok(Self(AdminClient::new(channel)))
    }

    /// Makes a topic, if it is not there, and waits until it can be used.
    pub async fn topic(&self, client: &Client, name: &str, kind: MessageType) -> anyhow::Result<()> {
        let topic = TopicConfig { name: name.to_owned(), message_type: kind.into(), ..Default::default() };
        let request = CreateTopicRequest { topic: Some(topic), if_not_exists: true };
        let response = self.0.clone().create_topic(timed(request)).await?.into_inner();
        check(response.status).with_context(|| format!("create topic {name}"))?;
        let reader = client.pull_consumer("examples")?;
        let known = async {
            while reader.queues(name).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(ROUTE_TIMEOUT, known)
            .await
            .with_context(|| format!("topic {name} is in no route"))
    }

    /// Makes a group whose failed messages come again `retry_max_times` times, each time after `retry_after`.
    pub async fn group(&self, name: &str, retry_max_times: u32, retry_after: Duration) -> anyhow::Result<()> {
        let next = vec![retry_after.try_into()?];
        let strategy = Some(Strategy::CustomizedBackoff(CustomizedBackoff { next }));
        let group = GroupConfig {
            name: name.to_owned(),
            retry_max_times: Some(retry_max_times),
            retry_policy: Some(RetryPolicy { max_attempts: 0, strategy }),
            ..Default::default()
        };
        let request = CreateGroupRequest { group: Some(group) };
        let response = self.0.clone().create_group(timed(request)).await?.into_inner();
        check(response.status).with_context(|| format!("create group {name}"))
    }

    /// Sends the dead letters of a group back to where they died; how many. With `dry_run`, how many there are.
    pub async fn redrive(&self, group: &str, dry_run: bool) -> anyhow::Result<u32> {
        let request = RedriveDeadLettersRequest { group: group.to_owned(), dry_run, ..Default::default() };
        let response = self.0.clone().redrive_dead_letters(timed(request)).await?.into_inner();
        check(response.status).with_context(|| format!("redrive the dead letters of {group}"))?;
        Ok(response.count)
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn check(status: Option<Status>) -> anyhow::Result<()> {
    let Some(status) = status else { bail!("the answer has no status") };
    ensure!(status.code == Code::Ok as i32, "{}", status.message);
    Ok(())
}

/// `HOST:PORT` of the only argument.
pub fn endpoint_argument() -> anyhow::Result<String> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(endpoint), None) => Ok(endpoint),
        _ => bail!("give the endpoint of a node as the only argument, for example 127.0.0.1:8081"),
    }
}
