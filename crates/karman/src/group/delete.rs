//! `karman group delete`: what would go, and its end.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use karman_remoting::proto::karman as v1;
use karman_remoting::validate;
use serde::Serialize;

use super::show::describe;
use crate::confirm::confirm;
use crate::node::{Node, print_changed};
use crate::output::{self, Format, grouped, number, text};

#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// Only show what would go
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Also while members are connected
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct DoomedJson {
    group: String,
    /// False: it is only what would go.
    done: bool,
    progress: Vec<DoomedProgressJson>,
    /// Those that are connected, by client id: while there are some it is refused without --force.
    members: Vec<String>,
    /// Of each broker that has some.
    dead_letters: Vec<DoomedLettersJson>,
}

/// How far the group is with a topic on a broker.
#[derive(Serialize)]
struct DoomedProgressJson {
    topic: String,
    broker: String,
    queues: u64,
    ready: u64,
    inflight: u64,
}

#[derive(Serialize)]
struct DoomedLettersJson {
    topic: String,
    broker: String,
    messages: u64,
}

pub(super) async fn delete(
    name: String,
    how: &DeleteArgs,
    node: &Node,
    format: Format,
) -> anyhow::Result<()> {
    if !how.yes {
        let doomed = doomed(&name, node).await?;
        if how.dry_run {
            return print(doomed, format);
        }
        if !confirm(&question(&doomed), false)? {
            return Ok(());
        }
    }
    let request = node.request(v1::DeleteGroupRequest { name: name.clone(), force: how.force });
    let response = node.answer(node.admin()?.delete_group(request)).await?;
    print_changed(&name, &response.brokers, format)
}

async fn doomed(name: &str, node: &Node) -> anyhow::Result<DoomedJson> {
    let described = describe(name, None, node).await?;
    if described.truncated {
        eprintln!(
            "karman: a broker has more queues or clients of it than 10000 of each; the others go as well"
        );
    }
    let topics = node.answer(node.admin()?.list_topics(node.request(v1::ListTopicsRequest {}))).await?.topics;
    Ok(DoomedJson {
        group: name.to_owned(),
        done: false,
        progress: progress(described.queues),
        members: members(described.clients),
        dead_letters: dead_letters(&validate::dead_letter_topic(name), topics),
    })
}

/// By topic and broker. Clients of a broadcasting group have progress of their own in the same queues.
fn progress(queues: Vec<v1::QueueProgressState>) -> Vec<DoomedProgressJson> {
    let mut rows: BTreeMap<(String, String), DoomedProgressJson> = BTreeMap::new();
    for queue in queues {
        let v1::QueueProgressState { topic, broker_name: broker, ready_count, inflight_count, .. } = queue;
        let row = rows.entry((topic.clone(), broker.clone()));
        let row = row.or_insert(DoomedProgressJson { topic, broker, queues: 0, ready: 0, inflight: 0 });
        row.queues += 1;
        row.ready += ready_count;
        row.inflight += inflight_count;
    }
    rows.into_values().collect()
}

/// Each once: a client is connected to several nodes.
fn members(clients: Vec<v1::ClientState>) -> Vec<String> {
    let ids: BTreeSet<String> = clients.into_iter().map(|client| client.client_id).collect();
    ids.into_iter().collect()
}

fn dead_letters(topic: &str, topics: Vec<v1::TopicSummary>) -> Vec<DoomedLettersJson> {
    let is_theirs = |row: &v1::TopicSummary| row.topic.as_ref().is_some_and(|config| config.name == topic);
    let letters = |row: v1::TopicSummary| DoomedLettersJson {
        topic: topic.to_owned(),
        broker: row.broker_name,
        messages: row.message_count,
    };
    topics.into_iter().filter(is_theirs).map(letters).collect()
}

fn question(doomed: &DoomedJson) -> String {
    let topics: BTreeSet<&str> = doomed.progress.iter().map(|row| row.topic.as_str()).collect();
    let letters: u64 = doomed.dead_letters.iter().map(|row| row.messages).sum();
    format!(
        "Delete group {} with its progress on {} topics and {} dead letters, while {} members are connected?",
        doomed.group,
        topics.len(),
        grouped(letters),
        doomed.members.len()
    )
}

fn print(doomed: DoomedJson, format: Format) -> anyhow::Result<()> {
    if output::programs(format, &doomed, |doomed| [doomed.group.as_str()])? {
        return Ok(());
    }
    let cells = |what: &str, topic, broker, queues: String, messages: u64| {
        vec![what.to_owned(), topic, broker, queues, grouped(messages)]
    };
    let progress = doomed.progress.into_iter().map(|row| {
        cells("progress", row.topic, row.broker, row.queues.to_string(), row.ready + row.inflight)
    });
    let letters = doomed.dead_letters.into_iter();
    let letters =
        letters.map(|row| cells("dead letters", row.topic, row.broker, "-".to_owned(), row.messages));
    let columns = [text("WHAT"), text("TOPIC"), text("BROKER"), number("QUEUES"), number("MESSAGES")];
    output::table(&columns, progress.chain(letters).collect())?;
    for member in &doomed.members {
        output::line(&format!("connected: {member}"))?;
    }
    if !doomed.members.is_empty() {
        output::line("it is refused while members are connected, without --force")?;
    }
    Ok(output::line("nothing was deleted yet")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_go_is_summed_up_by_topic_and_broker() {
        let queue = |topic: &str, broker: &str, ready_count| v1::QueueProgressState {
            topic: topic.into(),
            broker_name: broker.into(),
            ready_count,
            inflight_count: 1,
            ..Default::default()
        };
        let rows =
            progress(vec![queue("b", "x", 1), queue("a", "x", 2), queue("a", "x", 3), queue("a", "y", 4)]);
        let rows = rows.iter().map(|row| (&*row.topic, &*row.broker, row.queues, row.ready, row.inflight));
        let expected = [("a", "x", 2, 5, 2), ("a", "y", 1, 4, 1), ("b", "x", 1, 1, 1)];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }
}
