//! `karman cluster config`: what nodes are configured with, as they say it.

use std::collections::BTreeMap;

use clap::Args;
use karman_remoting::proto::karman as v1;
use serde::Serialize;

use crate::cli::NotFound;
use crate::node::{Node, code_of, message_of};
use crate::output::{self, Format, text};

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Only of this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,
    /// Only this key
    #[arg(long)]
    key: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct NodeConfigJson {
    /// A broker's name, with its brokerId if it is no master; or namesrv.
    pub(crate) node: String,
    code: &'static str,
    /// Why there are no values.
    message: String,
    /// Of a secret only whether it is set.
    pub(crate) config: BTreeMap<String, String>,
}

impl NodeConfigJson {
    fn of(node: v1::NodeConfig) -> Self {
        Self {
            code: code_of(node.status.as_ref()).as_str_name(),
            message: message_of(node.status.as_ref()).to_owned(),
            node: node.node,
            config: node.values.into_iter().map(|value| (value.key, value.value)).collect(),
        }
    }

    pub(crate) fn is_known(&self) -> bool {
        self.code == "OK"
    }
}

/// The asked node and every master.
pub(crate) async fn rows(node: &Node) -> anyhow::Result<Vec<NodeConfigJson>> {
    let request = node.request(v1::DescribeConfigRequest {});
    let response = node.answer(node.admin()?.describe_config(request)).await?;
    Ok(response.nodes.into_iter().map(NodeConfigJson::of).collect())
}

pub(super) async fn run(args: ConfigArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let mut rows = rows(node).await?;
    if let Some(broker) = &args.broker {
        rows.retain(|row| row.node == *broker);
        if rows.is_empty() {
            return Err(NotFound(format!("there is no broker {broker:?}")).into());
        }
    }
    if let Some(key) = &args.key {
        rows.iter_mut().for_each(|row| row.config.retain(|own, _| own == key));
        if rows.iter().all(|row| row.config.is_empty()) {
            return Err(
                NotFound(format!("no node has a key {key:?}; karman config reference lists them")).into()
            );
        }
    }
    for row in rows.iter().filter(|row| !row.is_known()) {
        eprintln!("karman: {}: {} ({})", row.node, row.message, row.code);
    }
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.node.as_str()))? {
        return Ok(());
    }
    let cells = |row: NodeConfigJson| {
        let node = row.node;
        row.config.into_iter().map(move |(key, value)| vec![node.clone(), key, value])
    };
    let columns = [text("NODE"), text("KEY"), text("VALUE")];
    Ok(output::table(&columns, rows.into_iter().flat_map(cells).collect())?)
}
