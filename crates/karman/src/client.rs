//! `karman client`.

use clap::Subcommand;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use serde::Serialize;

use crate::node::Node;
use crate::output::{self, Format, text};
use crate::time;

#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// List producers and consumers that brokers have heard from lately
    #[command(after_help = "\
Example:
  karman client list
  karman client list --group shipping
  karman client list --topic orders")]
    List {
        /// Only members of this group
        #[arg(long)]
        group: Option<String>,
        /// Only those that send to this topic or read it
        #[arg(long)]
        topic: Option<String>,
    },
}

/// A client as programs read it.
#[derive(Serialize)]
pub(crate) struct ClientJson {
    client: String,
    /// producer, push-consumer, simple-consumer, pull-consumer, lite-push-consumer, lite-simple-consumer; of one that did not
    /// say: consumer, producer or unknown
    kind: String,
    /// None: a producer.
    group: Option<String>,
    language: String,
    version: String,
    address: String,
    heard_ms: u64,
    /// The nodes that have heard from it.
    nodes: Vec<String>,
    subscriptions: Vec<SubscriptionJson>,
    /// Topics it sends to.
    publishing: Vec<String>,
}

#[derive(Serialize)]
struct SubscriptionJson {
    topic: String,
    /// tag or sql
    filter: &'static str,
    expression: String,
}

impl ClientJson {
    pub(crate) fn of(client: v1::ClientState) -> Self {
        let subscription = |entry: v1::Subscription| {
            let filter = entry.filter.unwrap_or_default();
            SubscriptionJson {
                topic: entry.topic,
                filter: if filter.r#type() == v2::FilterType::Sql { "sql" } else { "tag" },
                expression: filter.expression,
            }
        };
        Self {
            kind: kind(&client),
            client: client.client_id,
            group: Some(client.group).filter(|group| !group.is_empty()),
            language: client.language,
            version: client.version,
            address: client.address,
            heard_ms: client.heard_ms,
            nodes: vec![client.broker_name],
            subscriptions: client.subscriptions.into_iter().map(subscription).collect(),
            publishing: client.publishing,
        }
    }

    pub(crate) fn table(clients: Vec<Self>) -> std::io::Result<()> {
        let now_ms = time::now_ms();
        let cells = |client: Self| {
            let reads = client.subscriptions.iter().map(|entry| match entry.expression.as_str() {
                "" | "*" => entry.topic.clone(),
                expression => format!("{} ({expression})", entry.topic),
            });
            let topics = reads.chain(client.publishing).collect::<Vec<_>>().join(", ");
            let group = client.group.unwrap_or_else(|| "-".to_owned());
            let sdk = format!("{} {}", client.language, client.version);
            let heard = time::format_age(now_ms.saturating_sub(client.heard_ms));
            vec![client.client, client.kind, group, topics, sdk, heard]
        };
        let columns =
            [text("CLIENT"), text("KIND"), text("GROUP"), text("TOPICS"), text("SDK"), text("HEARD")];
        output::table(&columns, clients.into_iter().map(cells).collect())
    }
}

/// What a client is, or does.
fn kind(client: &v1::ClientState) -> String {
    match client.client_type() {
        v2::ClientType::Unspecified if !client.group.is_empty() => "consumer".to_owned(),
        v2::ClientType::Unspecified if !client.publishing.is_empty() => "producer".to_owned(),
        v2::ClientType::Unspecified => "unknown".to_owned(),
        known => known.as_str_name().to_ascii_lowercase().replace('_', "-"),
    }
}

pub(crate) async fn run(command: ClientCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    let ClientCommand::List { group, topic } = command;
    let clients = rows(group.unwrap_or_default(), topic.unwrap_or_default(), node).await?;
    if output::programs(format, &clients, |clients| clients.iter().map(|client| client.client.as_str()))? {
        return Ok(());
    }
    Ok(ClientJson::table(clients)?)
}

/// The clients of a group and a topic, or of all where a name is empty, as programs read them.
pub(crate) async fn rows(group: String, topic: String, node: &Node) -> anyhow::Result<Vec<ClientJson>> {
    let request = v1::ListClientsRequest { group, topic };
    let response = node.answer(node.admin()?.list_clients(node.request(request))).await?;
    if response.truncated {
        eprintln!("karman: there are more than 10000; name a --group or a --topic");
    }
    let mut clients: Vec<ClientJson> = Vec::new();
    // They come by their ids: what several nodes say of one client is one row.
    for client in response.clients.into_iter().map(ClientJson::of) {
        match clients.last_mut().filter(|last| last.client == client.client) {
            Some(last) if last.heard_ms < client.heard_ms => {
                let nodes = std::mem::take(&mut last.nodes);
                *last = ClientJson { nodes: nodes.into_iter().chain(client.nodes).collect(), ..client };
            }
            Some(last) => last.nodes.extend(client.nodes),
            None => clients.push(client),
        }
    }
    Ok(clients)
}
