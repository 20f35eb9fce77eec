//! `karman group`.

use clap::Subcommand;
use karman_remoting::proto::karman as v1;
use serde::Serialize;

use crate::node::{Node, print_changed};
use crate::output::{self, Format, grouped, number, text};

/// What a group has that was created without saying.
const RETRY_MAX_TIMES: u32 = 16;

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a consumer group on all brokers, or change it
    #[command(after_help = "Example:\n  karman group create shipping --retry-max-times 3")]
    Create {
        /// 1 to 120 of the characters a-z A-Z 0-9 % | - _
        name: String,
        /// Deliveries after the first, before a message becomes a dead letter
        #[arg(long, default_value_t = RETRY_MAX_TIMES)]
        retry_max_times: u32,
    },
    /// List the groups, and what waits for them
    #[command(after_help = "Example:\n  karman group list")]
    List,
}

#[derive(Serialize)]
struct GroupJson {
    group: String,
    retry_max_times: u32,
    broker: String,
    /// Empty when the group has not read yet.
    topic: String,
    ready: u64,
    inflight: u64,
}

pub(crate) async fn run(command: GroupCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        GroupCommand::Create { name, retry_max_times } => {
            let group = v1::GroupConfig {
                name: name.clone(),
                retry_max_times: Some(retry_max_times),
                ..Default::default()
            };
            let request = node.request(v1::CreateGroupRequest { group: Some(group) });
            let response = node.answer(node.admin()?.create_group(request)).await?;
            print_changed(&name, &response.brokers, format)
        }
        GroupCommand::List => list(node, format).await,
    }
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let response = node.answer(node.admin()?.list_groups(node.request(v1::ListGroupsRequest {}))).await?;
    let rows = response.groups.into_iter().map(|summary| {
        let group = summary.group.unwrap_or_default();
        GroupJson {
            group: group.name,
            retry_max_times: group.retry_max_times.unwrap_or(RETRY_MAX_TIMES),
            broker: summary.broker_name,
            topic: summary.topic,
            ready: summary.ready_count,
            inflight: summary.inflight_count,
        }
    });
    match format {
        Format::Json => output::json(&rows.collect::<Vec<_>>()),
        Format::Table => {
            let cells = |row: GroupJson| {
                let topic = if row.topic.is_empty() { "-".to_owned() } else { row.topic };
                let (ready, inflight) = (grouped(row.ready), grouped(row.inflight));
                vec![row.group, topic, row.broker, ready, inflight, row.retry_max_times.to_string()]
            };
            let columns = [
                text("GROUP"),
                text("TOPIC"),
                text("BROKER"),
                number("READY"),
                number("IN FLIGHT"),
                number("RETRIES"),
            ];
            Ok(output::table(&columns, rows.map(cells).collect())?)
        }
    }
}
