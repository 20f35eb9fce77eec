//! `karman dev`: a namesrv and a broker in one process, for development and tests.
//!
//! The main thread starts both, says when clients can send, waits for a signal, and stops the broker before the namesrv.
//! Both have threads of their own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use karman_broker::BrokerConfig;
use karman_namesrv::NamesrvConfig;
use karman_remoting::proto::karman::{DescribeClusterRequest, TopicConfig};
use karman_remoting::secret::Secret;
use karman_remoting::{logging, signals};

use crate::node::Node;
use crate::output;
use crate::topic::{DurabilityWord, TypeWord};

/// The broker registers as soon as it runs; if it has not by then, something is in its way.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
const REGISTER_POLL: Duration = Duration::from_millis(10);

#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// Where messages are kept
    #[arg(long, value_name = "DIR", default_value = "./karman-data")]
    data: PathBuf,
    /// Where clients connect; port 0 takes any free one, here and below
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    grpc: String,
    /// Where the namesrv listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9876")]
    namesrv: String,
    /// Where nodes speak with each other
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10911")]
    internal: String,
    /// Where /metrics, /livez and /readyz are
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5557")]
    metrics: String,
    /// A topic to create if it is not there; may be repeated
    #[arg(long = "topic", value_name = "NAME[:TYPE[:QUEUES]]", value_parser = topic)]
    topics: Vec<TopicConfig>,
    /// What a send that was answered OK survives
    #[arg(long, value_enum, default_value_t = DurabilityWord::Disk)]
    durability: DurabilityWord,
    /// Create topics when they are first used
    #[arg(long)]
    auto_create_topic: bool,
}

pub(crate) const AFTER_HELP: &str = "\
When clients can send, one line is printed on stdout:
  karman ready endpoint=HOST:PORT namesrv=HOST:PORT metrics=HOST:PORT
SIGINT and SIGTERM stop it in order, a second one at once.

Example:
  karman dev --data /tmp/karman --topic orders --topic bills:normal:4";

/// `NAME[:TYPE[:QUEUES]]`
fn topic(text: &str) -> Result<TopicConfig, String> {
    let mut parts = text.splitn(3, ':');
    let name = parts.next().unwrap_or_default();
    let message_type: TypeWord = match parts.next() {
        None => TypeWord::Normal,
        Some(word) => clap::ValueEnum::from_str(word, false).map_err(|_| {
            format!("{word:?} is no type: normal, fifo, delay, transaction, lite and priority are")
        })?,
    };
    let queue_nums = match parts.next() {
        None => 0,
        Some(count) => count.parse().map_err(|_| format!("{count:?} is no number of queues"))?,
    };
    let message_type = message_type.to_proto().into();
    Ok(TopicConfig { name: name.to_owned(), message_type, queue_nums, ..Default::default() })
}

/// Runs until a signal. Not to be called on a runtime: starting blocks while the log is recovered.
pub(crate) fn run(args: DevArgs, cluster_secret: Secret) -> anyhow::Result<()> {
    logging::init()?;
    let flush_disk_type = match args.durability {
        DurabilityWord::Disk => "SYNC_FLUSH",
        DurabilityWord::Memory => "ASYNC_FLUSH",
        DurabilityWord::Replicated | DurabilityWord::ReplicatedDisk => {
            anyhow::bail!("karman dev runs one broker, which has no replicas: --durability is disk or memory")
        }
    };
    let namesrv = karman_namesrv::start(&NamesrvConfig {
        grpc_listen_address: args.namesrv,
        // One port is enough for a process, and the broker has more to say.
        metrics_listen_address: String::new(),
        store_path_root_dir: path(args.data.join("namesrv"))?,
        cluster_secret: cluster_secret.clone(),
        ..NamesrvConfig::default()
    })
    .context("start the namesrv")?;
    let broker = karman_broker::start(&BrokerConfig {
        namesrv_addr: namesrv.address().to_string(),
        store_path_root_dir: path(args.data)?,
        grpc_listen_address: args.grpc,
        internal_listen_address: args.internal,
        metrics_listen_address: args.metrics,
        cluster_secret: cluster_secret.clone(),
        flush_disk_type: flush_disk_type.to_owned(),
        auto_create_topic_enable: args.auto_create_topic,
        ..BrokerConfig::default()
    })
    .context("start the broker")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = signals::stop().context("take signals")?;
        let mut failed = broker.failed();
        let work = async {
            for topic in &args.topics {
                let made = broker.make_topic(topic.clone()).await;
                made.with_context(|| format!("create topic {:?}", topic.name))?;
            }
            let node = Node::new(namesrv.address().to_string(), cluster_secret);
            let known = tokio::time::timeout(REGISTER_TIMEOUT, until_known(&node, &args.topics)).await;
            known.context("the broker could not register with the namesrv")?;
            let (endpoint, metrics) = (broker.clients_address(), broker.metrics_address());
            output::line(&format!(
                "karman ready endpoint={endpoint} namesrv={} metrics={metrics}",
                namesrv.address()
            ))?;
            std::future::pending::<anyhow::Result<()>>().await
        };
        tokio::select! {
            result = work => result?,
            () = stop => {}
            Ok(reason) = failed.wait_for(Option::is_some) => {
                // Nothing is flushed or closed any more: what was not answered may be lost, what was is safe.
                anyhow::bail!("the store has failed: {}", reason.as_deref().unwrap_or_default());
            }
        }
        broker.shutdown().await.map_err(anyhow::Error::msg)?;
        namesrv.shutdown().await;
        Ok(())
    })
}

fn path(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|name| anyhow::anyhow!("--data {name:?} is not UTF-8"))
}

/// Until the namesrv knows the broker and its topics: clients may come to either.
async fn until_known(namesrv: &Node, topics: &[TopicConfig]) {
    while !knows_a_broker(namesrv).await {
        tokio::time::sleep(REGISTER_POLL).await;
    }
    for topic in topics {
        while namesrv.masters_of(&topic.name).await.is_err() {
            tokio::time::sleep(REGISTER_POLL).await;
        }
    }
}

async fn knows_a_broker(namesrv: &Node) -> bool {
    let Ok(mut admin) = namesrv.admin() else { return false };
    let answer = namesrv.answer(admin.describe_cluster(namesrv.request(DescribeClusterRequest {}))).await;
    answer.is_ok_and(|cluster| !cluster.brokers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_a_name_with_or_without_type_and_queues() {
        assert_eq!(topic("orders").unwrap(), topic("orders:normal:0").unwrap());
        assert_eq!(topic("bills:fifo:4").unwrap().queue_nums, 4);
        assert_eq!(topic("bills:fifo").unwrap().message_type, TypeWord::Fifo.to_proto() as i32);
        assert!(topic("orders:odd").unwrap_err().contains("transaction"));
        assert!(topic("orders:normal:many").unwrap_err().contains("many"));
    }
}
