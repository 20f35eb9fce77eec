//! `karman message why`: one answer to "where is my message".

use clap::Args;
use karman_remoting::proto::karman as v1;
use serde::Serialize;

use crate::cli::NotFound;
use crate::node::Node;
use crate::output::{self, Format};
use crate::time;

pub(super) const AFTER_HELP: &str = "\
Everything that brokers know of a message: each record that carries it, when it was stored, whether it is confirmed, and
what became of it in each group that reads the topic. It is told from the log and the live state. Without a message the
command says so on stderr and exits 3.

Example:
  karman message why 017793EEDC8B32653E0B12EE3DEF2D8AA0
  karman message why 017793EEDC8B32653E0B12EE3DEF2D8AA0 orders --group shipping";

#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// The message's id
    id: String,
    /// Its topic; all are searched when not given
    topic: Option<String>,
    /// Only what this group did with it
    #[arg(long)]
    group: Option<String>,
}

#[derive(Serialize)]
struct TraceJson {
    topic: String,
    broker: String,
    /// message, delayed, half, released, dead letter
    kind: String,
    position: u64,
    store_ms: u64,
    confirmed: bool,
    /// It survives the loss of power.
    durable: bool,
    /// None: it has no queue.
    queue: Option<u32>,
    offset: Option<u64>,
    state: String,
    groups: Vec<GroupJson>,
}

#[derive(Serialize)]
struct GroupJson {
    group: String,
    /// waiting, delivered, withheld, retrying, done, dead
    state: String,
    reason: String,
    attempt: u32,
    visible_at_ms: Option<u64>,
    client: Option<String>,
}

impl TraceJson {
    fn of(trace: v1::MessageTrace) -> Self {
        let group = |group: v1::GroupTrace| GroupJson {
            group: group.group,
            state: group.state,
            reason: group.reason,
            attempt: group.attempt,
            visible_at_ms: Some(group.visible_at_ms).filter(|at_ms| *at_ms > 0),
            client: Some(group.client_id).filter(|id| !id.is_empty()),
        };
        Self {
            topic: trace.topic,
            broker: trace.broker_name,
            kind: trace.kind,
            position: trace.physical_offset,
            store_ms: trace.store_time_ms,
            confirmed: trace.confirmed,
            durable: trace.durable,
            queue: trace.queue_id,
            offset: trace.queue_offset,
            state: trace.state,
            groups: trace.groups.into_iter().map(group).collect(),
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let mut line = format!("{} in {} on {}", self.kind, self.topic, self.broker);
        if let (Some(queue), Some(offset)) = (self.queue, self.offset) {
            line += &format!(", queue {queue} offset {offset}");
        }
        output::paragraph(0, &line)?;
        let confirmed = if self.confirmed { "confirmed" } else { "not confirmed yet" };
        let durable = if self.durable { "on disk" } else { "not on disk yet" };
        output::line(&format!("  stored {}, {confirmed}, {durable}", time::format_ms(self.store_ms)))?;
        output::paragraph(2, &self.state)?;
        for group in &self.groups {
            output::paragraph(2, &format!("group {}: {}, {}", group.group, group.state, group.reason))?;
        }
        Ok(())
    }
}

pub(super) async fn run(args: WhyArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let request = v1::ExplainMessageRequest {
        topic: args.topic.clone().unwrap_or_default(),
        message_id: args.id.clone(),
        group: args.group.unwrap_or_default(),
    };
    let response = node.answer(node.admin()?.explain_message(node.request(request))).await?;
    if response.traces.is_empty() {
        let place =
            args.topic.map_or_else(|| "no topic".to_owned(), |topic| format!("no queue of topic {topic}"));
        let what = format!("{place} holds message {}: it was never stored, or is deleted", args.id);
        return Err(NotFound(what).into());
    }
    let traces: Vec<TraceJson> = response.traces.into_iter().map(TraceJson::of).collect();
    if output::programs(format, &traces, |traces| traces.iter().map(|trace| trace.topic.as_str()))? {
        return Ok(());
    }
    for (index, trace) in traces.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        trace.print()?;
    }
    Ok(())
}
