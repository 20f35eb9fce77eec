//! `karman bench produce`: the load, sent to the brokers of a topic.

use super::load::{self, Load};
use super::template::Run;
use super::{Figures, LoadArgs, judge, masters_of, server_cpu_micros, used_since};
use crate::node::Node;
use crate::output::Format;
use crate::signals::stop_on_signals;

pub(crate) async fn run(topic: String, args: LoadArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let targets = masters_of(&topic, node).await?.into_iter().map(|broker| broker.address).collect();
    let stop = stop_on_signals();
    let before = server_cpu_micros(node).await;
    let outcome =
        load::run(Load { targets, topic, args, run: Run::new(), caller: node.caller("load") }, &stop).await?;
    let cpu = used_since(before, server_cpu_micros(node).await);
    judge(&outcome)?;
    Figures::of(&outcome, cpu).print(format)
}
