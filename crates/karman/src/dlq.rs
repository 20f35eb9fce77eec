//! `karman dlq`: dead letters, the messages that a group was given often enough.

use clap::{Args, Subcommand};
use karman_client::{ClientError, Code};
use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::validate::{DEAD_LETTER_PREFIX, dead_letter_topic};
use serde::Serialize;

use crate::cli::NotFound;
use crate::confirm::confirm;
use crate::message::query::StoredJson;
use crate::node::Node;
use crate::output::{self, Format, grouped, number, text};
use crate::time;

/// Letters of one call on each broker.
const REDRIVE_MAX: u32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List the groups that have dead letters
    #[command(after_help = "Example:\n  karman dlq list")]
    List,
    /// Show dead letters of a group: where each came from, and why it is dead
    #[command(after_help = "\
The first stored letter comes first. With --id the whole letter is shown, as by karman message query.

Example:
  karman dlq show shipping --begin 2h
  karman dlq show shipping --id 017793EEDC8B32653E0B12EE3DEF2D8AA0")]
    Show(ShowArgs),
    /// Send dead letters back to the topics they came from
    #[command(after_help = "\
Each letter goes back once and keeps its message id; every group of its topic gets it. What cannot go back is named with
the reason and stays. Without --yes it is asked first; a script gives --yes or --dry-run.

Example:
  karman dlq redrive shipping --dry-run
  karman dlq redrive shipping --id 017793EEDC8B32653E0B12EE3DEF2D8AA0 --yes")]
    Redrive(RedriveArgs),
    /// Write all dead letters of a group as lines of JSON
    #[command(after_help = "\
Each line is an object as of karman -o json message query, whatever -o says. They stay where they are.

Example:
  karman dlq export shipping > letters.jsonl")]
    Export {
        /// The group
        group: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// The group
    group: String,
    /// The letter with this message id
    #[arg(long, conflicts_with_all = ["begin", "end"])]
    id: Option<String>,
    /// Dead then or later
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    begin: Option<u64>,
    /// Dead before
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=i64::from(QUERY_MAX)))]
    max: u32,
}

#[derive(Args, Debug)]
pub(crate) struct RedriveArgs {
    /// The group
    group: String,
    /// Only the letter with this message id
    #[arg(long)]
    id: Option<String>,
    /// At most so many on each broker; all when not given
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    /// Only count them
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(command: DlqCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        DlqCommand::List => list(node, format).await,
        DlqCommand::Show(args) => show(args, node, format).await,
        DlqCommand::Redrive(args) => redrive(args, node, format).await,
        DlqCommand::Export { group } => export(&group, node).await,
    }
}

#[derive(Serialize)]
struct ListedJson {
    group: String,
    broker: String,
    letters: u64,
}

async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let response = node.answer(node.admin()?.list_topics(node.request(v1::ListTopicsRequest {}))).await?;
    let rows = response.topics.into_iter().filter_map(|summary| {
        let group = summary.topic?.name.strip_prefix(DEAD_LETTER_PREFIX)?.to_owned();
        Some(ListedJson { group, broker: summary.broker_name, letters: summary.message_count })
    });
    let rows: Vec<ListedJson> = rows.collect();
    if output::programs(format, &rows, |rows| rows.iter().map(|row| row.group.as_str()))? {
        return Ok(());
    }
    let cells = |row: ListedJson| vec![row.group, row.broker, grouped(row.letters)];
    let columns = [text("GROUP"), text("BROKER"), number("LETTERS")];
    Ok(output::table(&columns, rows.into_iter().map(cells).collect())?)
}

/// The topic comes into being with the first letter.
fn no_letters(error: anyhow::Error, group: &str) -> anyhow::Error {
    match error.downcast_ref::<ClientError>().and_then(ClientError::code) {
        Some(Code::TopicNotFound) => NotFound(format!("group {group} has no dead letters")).into(),
        _ => error,
    }
}

/// A letter that ends up here without saying why is still one.
fn property<'a>(letter: &'a StoredJson, name: &str) -> &'a str {
    letter.properties.get(name).map_or("-", String::as_str)
}

async fn show(args: ShowArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let whole = args.id.is_some();
    let request = v1::QueryMessagesRequest {
        topic: dead_letter_topic(&args.group),
        by: Some(args.id.map_or(By::Time(true), By::MessageId)),
        begin_ms: args.begin.unwrap_or(0),
        end_ms: args.end.unwrap_or(0),
        max: args.max,
        ..Default::default()
    };
    let response = node.answer(node.admin()?.query_messages(node.request(request))).await;
    let response = response.map_err(|error| no_letters(error, &args.group))?;
    let letters = response.messages.into_iter().map(StoredJson::of).collect::<anyhow::Result<Vec<_>>>()?;
    if whole || format != Format::Table {
        letters.iter().try_for_each(|letter| letter.print(format))?;
    } else {
        let cells = |letter: &StoredJson| {
            let [topic, attempts, reason] = ["DLQ_ORIGIN_TOPIC", "DLQ_ATTEMPTS", "DLQ_REASON"]
                .map(|name| property(letter, name).to_owned());
            vec![letter.message_id.clone(), time::format_ms(letter.store_ms), topic, attempts, reason]
        };
        let columns =
            [text("MESSAGE ID"), text("DEAD SINCE"), text("FROM TOPIC"), number("ATTEMPTS"), text("REASON")];
        output::table(&columns, letters.iter().map(cells).collect())?;
    }
    if response.truncated {
        eprintln!("karman: there are more; go on with --begin, or write them all with karman dlq export");
    }
    Ok(())
}

#[derive(Serialize)]
struct RedrivenJson {
    group: String,
    /// False: it is only what would be sent back.
    done: bool,
    count: u32,
    /// Letters that stay, and why; the first 32.
    skipped: Vec<String>,
    /// There are more than were looked at.
    more: bool,
}

async fn redrive(args: RedriveArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    if !args.yes {
        let (planned, result) = call(&args, args.max.unwrap_or(0), true, node).await?;
        result?;
        if args.dry_run {
            return print_redriven(&args.group, false, planned, format);
        }
        let more = if planned.more { "or more " } else { "" };
        let question = format!("Send {} {more}dead letters of group {} back?", planned.count, args.group);
        if !confirm(&question, false)? {
            return Ok(());
        }
    }
    let (whole, result) = in_parts(args.max, |max| call(&args, max, false, node)).await;
    if result.is_ok() || whole.count > 0 || !whole.skipped.is_empty() {
        print_redriven(&args.group, true, whole, format)?;
    }
    result
}

/// What was done, and what of it failed.
type Redriven = (v1::RedriveDeadLettersResponse, anyhow::Result<()>);

/// Calls until no letter is left, `max` of them were sent back or something fails.
async fn in_parts<C>(max: Option<u32>, call: impl Fn(u32) -> C) -> Redriven
where
    C: Future<Output = anyhow::Result<Redriven>>,
{
    let mut whole = v1::RedriveDeadLettersResponse::default();
    let mut left = max.unwrap_or(u32::MAX);
    loop {
        let wanted = left.min(REDRIVE_MAX);
        let (part, result) = match call(wanted).await {
            Ok(answered) => answered,
            Err(error) => return (whole, Err(error)),
        };
        whole.count += part.count;
        whole.skipped = part.skipped;
        left -= wanted;
        whole.more = part.more;
        if result.is_err() || !part.more || left == 0 || part.count == 0 {
            return (whole, result);
        }
    }
}

async fn call(args: &RedriveArgs, max: u32, dry_run: bool, node: &Node) -> anyhow::Result<Redriven> {
    let request = v1::RedriveDeadLettersRequest {
        group: args.group.clone(),
        message_id: args.id.clone().unwrap_or_default(),
        max,
        dry_run,
    };
    node.answer_in_part(node.admin()?.redrive_dead_letters(node.request(request))).await
}

fn print_redriven(
    group: &str,
    done: bool,
    whole: v1::RedriveDeadLettersResponse,
    format: Format,
) -> anyhow::Result<()> {
    let v1::RedriveDeadLettersResponse { count, more, skipped, .. } = whole;
    let redriven = RedrivenJson { group: group.to_owned(), done, count, skipped, more };
    if output::programs(format, &redriven, |redriven| [redriven.group.as_str()])? {
        return Ok(());
    }
    let what = if done { "went back" } else { "would go back" };
    let more = if more { "; there are more" } else { "" };
    output::line(&format!("{} dead letters of group {group} {what}{more}", grouped(count.into())))?;
    for letter in redriven.skipped {
        output::paragraph(0, &format!("left: {letter}"))?;
    }
    Ok(())
}

async fn export(group: &str, node: &Node) -> anyhow::Result<()> {
    let topic = dead_letter_topic(group);
    let request = v1::DescribeTopicRequest { name: topic.clone(), at_ms: None };
    let described = node.answer(node.admin()?.describe_topic(node.request(request))).await;
    for queue in described.map_err(|error| no_letters(error, group))?.queues {
        let mut offset = queue.min_offset;
        while offset < queue.max_offset {
            let request = v1::QueryMessagesRequest {
                topic: topic.clone(),
                by: Some(By::Queue(v1::QueuePosition { queue_id: queue.queue_id, offset })),
                broker_name: queue.broker_name.clone(),
                max: QUERY_MAX,
                ..Default::default()
            };
            let response = node.answer(node.admin()?.query_messages(node.request(request))).await?;
            let last = response.messages.last().map(|message| message.queue_offset);
            for letter in response.messages {
                StoredJson::of(letter)?.print(Format::Json)?;
            }
            // Where a whole page is lost to damage it is passed over.
            offset = last.map_or(offset + u64::from(QUERY_MAX), |last| last + 1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn what_went_back_is_known_when_a_later_part_fails() {
        let part = |count, more| v1::RedriveDeadLettersResponse { count, more, ..Default::default() };
        let refused = || Err(anyhow::anyhow!("broker \"b\": no room"));
        let run = |max, parts: Vec<anyhow::Result<Redriven>>| async move {
            let (parts, wanted) = (RefCell::new(parts.into_iter()), RefCell::new(Vec::new()));
            let (whole, result) = in_parts(max, |max| {
                wanted.borrow_mut().push(max);
                std::future::ready(parts.borrow_mut().next().unwrap())
            })
            .await;
            (whole.count, result.is_ok(), wanted.into_inner())
        };
        let all = vec![Ok((part(1000, true), Ok(()))), Ok((part(7, false), Ok(())))];
        assert_eq!(run(None, all).await, (1007, true, vec![1000, 1000]));
        let some = vec![Ok((part(1000, true), Ok(()))), Ok((part(500, true), Ok(())))];
        assert_eq!(run(Some(1500), some).await, (1500, true, vec![1000, 500]));
        let refused_in_part = vec![Ok((part(1000, true), Ok(()))), Ok((part(3, true), refused()))];
        assert_eq!(run(None, refused_in_part).await, (1003, false, vec![1000, 1000]));
        let silent = vec![Ok((part(1000, true), Ok(()))), Err(anyhow::anyhow!("no answer"))];
        assert_eq!(run(None, silent).await, (1000, false, vec![1000, 1000]));
    }
}
