//! `karman cluster`.

pub(crate) mod node_config;

use std::fmt;

use clap::Subcommand;
use karman_remoting::proto::karman as v1;
use serde::Serialize;

use crate::controller;
use crate::node::{Node, code_of, message_of};
use crate::output::{self, Format, bytes, grouped, number, text};
use crate::time;
use crate::topic::durability_word;

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// List the brokers and what they have done
    #[command(after_help = "Example:\n  karman cluster list -o json")]
    List,
    /// Show the controllers, and who is master of each broker set and why
    #[command(after_help = "Example:\n  karman -e namesrv-1:9876 cluster show")]
    Show,
    /// Show the configuration of nodes, secrets hidden
    #[command(after_help = "\
The asked node, if it is a namesrv or a slave, and every master. Where a value came from is known to the node alone:
karman-broker --config FILE --print-config.

Example:
  karman cluster config
  karman -e namesrv-1:9876 cluster config --key fileReservedTime
  karman -o json cluster config --broker broker-a")]
    Config(node_config::ConfigArgs),
    /// Have another broker of a set be its master; the one that is hands over in order
    #[command(after_help = "Example:\n  karman -e namesrv-1:9876 cluster elect broker-a --to 2")]
    Elect(controller::ElectArgs),
    /// Have a broker hand over and stay a slave, before it is stopped for a while
    #[command(after_help = "\
What is in sync beside it must be as many as inSyncReplicas asks for, or sends are refused while it is away.

Example:
  karman -e namesrv-1:9876 cluster drain broker-a 1
  karman -e namesrv-1:9876 cluster drain broker-a 1 --undo")]
    Drain(controller::DrainArgs),
    /// Change the brokers of a set
    #[command(subcommand)]
    Replicas(controller::ReplicasCommand),
    /// Change the controllers
    #[command(subcommand)]
    Controllers(controller::ControllersCommand),
}

#[derive(Serialize)]
pub(crate) struct BrokerJson {
    cluster: String,
    broker: String,
    broker_id: i32,
    endpoint: String,
    internal_address: String,
    version: String,
    started_ms: u64,
    topics: u32,
    groups: u32,
    messages_in: u64,
    messages_out: u64,
    log_start_offset: u64,
    log_end_offset: u64,
    cpu_micros: u64,
    resident_bytes: u64,
    damaged_bytes: u64,
    repaired_bytes: u64,
    scrub_completed_ms: u64,
    disk_used_percent: Option<u32>,
    disk_available_bytes: Option<u64>,
    open_files: u32,
    open_files_limit: u32,
    durability: &'static str,
    role: String,
    epoch: u32,
    in_sync: u32,
    in_sync_needed: u32,
    replicas: Vec<ReplicaJson>,
    refused: Vec<RefusedJson>,
    code: &'static str,
    message: String,
}

/// A broker that is not who it says, may not be there, or cannot take what it is sent.
#[derive(Serialize)]
pub(crate) struct RefusedJson {
    by: String,
    who: String,
    why: String,
}

impl RefusedJson {
    pub(crate) fn new(by: impl Into<String>, v1::RefusedBroker { who, why }: v1::RefusedBroker) -> Self {
        Self { by: by.into(), who, why }
    }
}

impl fmt::Display for RefusedJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, who, why } = self;
        write!(f, "Refused by {by}: {who}: {why}")
    }
}

/// The slaves that a master refuses.
pub(crate) fn refused_by(master: &mut v1::BrokerStatus) -> Vec<RefusedJson> {
    let by = format!("broker {}", master.broker_name);
    std::mem::take(&mut master.refused)
        .into_iter()
        .map(|refused| RefusedJson::new(by.clone(), refused))
        .collect()
}

/// The brokers that may not register with the namesrv that was asked.
pub(crate) fn refused_by_namesrv(response: &mut v1::DescribeClusterResponse) -> Vec<RefusedJson> {
    std::mem::take(&mut response.refused)
        .into_iter()
        .map(|refused| RefusedJson::new("the namesrv", refused))
        .collect()
}

#[derive(Serialize)]
struct ReplicaJson {
    broker_id: i32,
    internal_address: String,
    in_sync: bool,
    lag_bytes: u64,
    lag_ms: u64,
    flushed_lag_bytes: u64,
}

impl From<v1::ReplicaStatus> for ReplicaJson {
    fn from(replica: v1::ReplicaStatus) -> Self {
        let v1::ReplicaStatus { broker_id, address, in_sync, lag_bytes, lag_ms, flushed_lag_bytes } = replica;
        Self { broker_id, internal_address: address, in_sync, lag_bytes, lag_ms, flushed_lag_bytes }
    }
}

impl From<v1::BrokerStatus> for BrokerJson {
    fn from(mut broker: v1::BrokerStatus) -> Self {
        let refused = refused_by(&mut broker);
        Self {
            durability: durability_word(broker.durability()),
            code: code_of(broker.status.as_ref()).as_str_name(),
            message: message_of(broker.status.as_ref()).to_owned(),
            cluster: broker.cluster,
            broker: broker.broker_name,
            broker_id: broker.broker_id,
            endpoint: broker.endpoint,
            internal_address: broker.internal_address,
            version: broker.version,
            started_ms: broker.started_ms,
            topics: broker.topic_count,
            groups: broker.group_count,
            messages_in: broker.messages_in,
            messages_out: broker.messages_out,
            log_start_offset: broker.log_start_offset,
            log_end_offset: broker.log_end_offset,
            cpu_micros: broker.cpu_micros,
            resident_bytes: broker.resident_bytes,
            damaged_bytes: broker.damaged_bytes,
            repaired_bytes: broker.repaired_bytes,
            scrub_completed_ms: broker.scrub_completed_ms,
            disk_used_percent: broker.disk_used_percent,
            disk_available_bytes: broker.disk_available_bytes,
            open_files: broker.open_files,
            open_files_limit: broker.open_files_limit,
            role: broker.role,
            epoch: broker.epoch,
            in_sync: broker.in_sync_count,
            in_sync_needed: broker.in_sync_needed,
            replicas: broker.replicas.into_iter().map(ReplicaJson::from).collect(),
            refused,
        }
    }
}

pub(crate) async fn run(command: ClusterCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        ClusterCommand::List => list(node, format).await,
        ClusterCommand::Show => controller::show(node, format).await,
        ClusterCommand::Config(args) => node_config::run(args, node, format).await,
        ClusterCommand::Elect(args) => controller::elect(args, node).await,
        ClusterCommand::Drain(args) => controller::drain(args, node).await,
        ClusterCommand::Replicas(command) => controller::replicas(command, node).await,
        ClusterCommand::Controllers(command) => controller::controllers(command, node).await,
    }
}

/// The brokers, as programs read them. Whom the namesrv refuses has no row and is told with the first; on stderr if there is none.
pub(crate) async fn rows(node: &Node) -> anyhow::Result<Vec<BrokerJson>> {
    let request = node.request(v1::DescribeClusterRequest {});
    let mut response = node.answer(node.admin()?.describe_cluster(request)).await?;
    let refused = refused_by_namesrv(&mut response);
    let mut rows: Vec<_> = response.brokers.into_iter().map(BrokerJson::from).collect();
    match rows.first_mut() {
        Some(first) => first.refused.extend(refused),
        None => refused.iter().for_each(|refused| eprintln!("karman: {refused}")),
    }
    Ok(rows)
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let rows = rows(node).await?;
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.broker.as_str()))? {
        return Ok(());
    }
    for row in rows.iter().filter(|row| row.code != "OK" && row.code != "CODE_UNSPECIFIED") {
        eprintln!("karman: broker {}: {} ({})", row.broker, row.message, row.code);
    }
    for row in rows.iter().filter(|row| row.damaged_bytes > 0) {
        let (broker, bytes) = (&row.broker, grouped(row.damaged_bytes));
        eprintln!(
            "karman: broker {broker}: {bytes} bytes of its log are damaged; `karman store verify --live` lists them"
        );
    }
    for row in rows.iter().filter(|row| row.repaired_bytes > 0) {
        let (broker, bytes) = (&row.broker, grouped(row.repaired_bytes));
        eprintln!(
            "karman: broker {broker}: {bytes} bytes of its log were damaged and repaired; `karman store verify --live` lists them"
        );
    }
    for row in rows.iter().filter(|row| row.in_sync < row.in_sync_needed) {
        let BrokerJson { broker, in_sync, in_sync_needed, .. } = row;
        eprintln!(
            "karman: broker {broker}: {in_sync} of {in_sync_needed} replicas are in sync; it takes nothing that asks for replicas"
        );
    }
    rows.iter().flat_map(|row| &row.refused).for_each(|refused| eprintln!("karman: {refused}"));
    let now_ms = time::now_ms();
    let cells = |row: BrokerJson| {
        let up = match row.started_ms {
            0 => "-".to_owned(),
            started_ms => time::format_age(now_ms.saturating_sub(started_ms)),
        };
        let log = bytes(row.log_end_offset.saturating_sub(row.log_start_offset));
        let own = vec![
            row.broker,
            row.endpoint,
            row.version,
            up,
            row.topics.to_string(),
            grouped(row.messages_in),
            grouped(row.messages_out),
            log,
        ];
        let slaves = row.replicas.into_iter().map(|replica| {
            let state = if replica.in_sync { "in sync" } else { "behind" };
            let lag = format!("-{}", bytes(replica.lag_bytes));
            let mut cells =
                vec![format!("  slave {}", replica.broker_id), replica.internal_address, state.into()];
            cells.extend(["", "", "", ""].map(str::to_owned));
            cells.push(lag);
            cells
        });
        std::iter::once(own).chain(slaves).collect::<Vec<_>>()
    };
    let columns = [
        text("BROKER"),
        text("ENDPOINT"),
        text("VERSION"),
        number("UP"),
        number("TOPICS"),
        number("IN"),
        number("OUT"),
        number("LOG"),
    ];
    Ok(output::table(&columns, rows.into_iter().flat_map(cells).collect())?)
}
