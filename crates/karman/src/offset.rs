//! `karman offset`: where a group is on a topic, moved by hand.

use std::cmp::Ordering;

use clap::{Args, Subcommand};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::reset_offset_request::To;
use serde::Serialize;

use crate::confirm::confirm;
use crate::node::Node;
use crate::output::{self, Format, grouped, number, text};
use crate::time;

const TIMES: &str = "\
A time is milliseconds since 1970, 90s, 15m, 2h or 3d ago, or 2026-11-21T13:12:34 in UTC. Without --yes it is shown what
would change and asked; a script gives --yes or --dry-run. What is in flight is void: an acknowledgement that comes later
is refused. A group that has not read the topic yet will begin at the given place.";

#[derive(Debug, Subcommand)]
pub(crate) enum OffsetCommand {
    /// Move a group to the beginning, the end, a time or an offset of a topic
    #[command(after_help = format!("{TIMES}

Example:
  karman offset reset shipping orders --at 2h --dry-run
  karman offset reset shipping orders --earliest --yes
  karman offset reset shipping orders --offset 1207 --broker broker-a --queue 3"))]
    Reset {
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        to: ToArgs,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Skip all that waits for a group
    #[command(after_help = "\
The same as karman offset reset --latest.

Example:
  karman offset skip shipping orders --dry-run
  karman offset skip shipping orders --yes")]
    Skip {
        #[command(flatten)]
        place: PlaceArgs,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Move a group to where another group is
    #[command(after_help = "\
What the other group has done ahead of its first message that is not done comes to this group again.

Example:
  karman offset clone shipping-new orders --from shipping --dry-run")]
    Clone {
        #[command(flatten)]
        place: PlaceArgs,
        /// The other group
        #[arg(long, value_name = "GROUP")]
        from: String,
        #[command(flatten)]
        how: HowArgs,
    },
}

#[derive(Args, Debug)]
pub(crate) struct PlaceArgs {
    /// The group to move
    group: String,
    /// On this topic
    topic: String,
    /// Only on this broker
    #[arg(long, value_name = "NAME")]
    broker: Option<String>,
    /// Only this queue
    #[arg(long)]
    queue: Option<u32>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ToArgs {
    /// To the oldest message
    #[arg(long)]
    earliest: bool,
    /// To the end: only what is sent from now on
    #[arg(long)]
    latest: bool,
    /// To the first message that was stored at this time or later
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    at: Option<u64>,
    /// To this offset of each queue that is moved
    #[arg(long)]
    offset: Option<u64>,
}

impl ToArgs {
    fn to_proto(&self) -> To {
        match (self.at, self.offset) {
            (Some(at_ms), _) => To::AtMs(at_ms),
            (_, Some(offset)) => To::Offset(offset),
            _ if self.latest => To::Latest(true),
            _ => To::Earliest(self.earliest),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct HowArgs {
    /// Only show what would change
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(command: OffsetCommand, node: &Node, format: Format) -> anyhow::Result<()> {
    match command {
        OffsetCommand::Reset { place, to, how } => shift(place, to.to_proto(), &how, node, format).await,
        OffsetCommand::Skip { place, how } => shift(place, To::Latest(true), &how, node, format).await,
        OffsetCommand::Clone { place, from, how } => {
            shift(place, To::LikeGroup(from), &how, node, format).await
        }
    }
}

#[derive(Serialize)]
struct ShiftJson {
    group: String,
    topic: String,
    /// False: it is only what would change.
    done: bool,
    moves: Vec<MoveJson>,
}

#[derive(Serialize)]
struct MoveJson {
    broker: String,
    queue: u32,
    from: u64,
    to: u64,
    /// Deliveries whose handles become void.
    inflight: u64,
    /// None: the group has one progress for all its clients.
    client: Option<String>,
}

async fn shift(place: PlaceArgs, to: To, how: &HowArgs, node: &Node, format: Format) -> anyhow::Result<()> {
    let request = v1::ResetOffsetRequest {
        group: place.group.clone(),
        topic: place.topic.clone(),
        to: Some(to),
        broker_name: place.broker.unwrap_or_default(),
        queue_id: place.queue,
        dry_run: true,
    };
    let print = |response: v1::ResetOffsetResponse, done: bool| {
        let moves = response.moves.into_iter().map(|row| MoveJson {
            broker: row.broker_name,
            queue: row.queue_id,
            from: row.from,
            to: row.to,
            inflight: row.inflight_count,
            client: Some(row.client_id).filter(|id| !id.is_empty()),
        });
        let (group, topic) = (place.group.clone(), place.topic.clone());
        print_moves(ShiftJson { group, topic, done, moves: moves.collect() }, format)
    };
    if !how.yes {
        let planned = node.answer(node.admin()?.reset_offset(node.request(request.clone()))).await?;
        if how.dry_run {
            return print(planned, false);
        }
        // A program gets one result: what was done.
        if format == Format::Table {
            print(planned, false)?;
        }
        if !confirm(&format!("Move group {} on topic {}?", place.group, place.topic), false)? {
            return Ok(());
        }
    }
    let request = v1::ResetOffsetRequest { dry_run: false, ..request };
    let (done, result) = node.answer_in_part(node.admin()?.reset_offset(node.request(request))).await?;
    // Where one broker failed the others have moved the group.
    if result.is_ok() || !done.moves.is_empty() {
        print(done, true)?;
    }
    result
}

fn print_moves(shift: ShiftJson, format: Format) -> anyhow::Result<()> {
    if output::programs(format, &shift, |shift| [shift.group.as_str()])? {
        return Ok(());
    }
    let cells = |row: MoveJson| {
        let change = match row.to.cmp(&row.from) {
            Ordering::Greater => format!("{} skipped", grouped(row.to - row.from)),
            Ordering::Less => format!("{} again", grouped(row.from - row.to)),
            Ordering::Equal => "-".to_owned(),
        };
        let numbers = [row.from, row.to].map(grouped);
        let place = [row.broker, row.queue.to_string()];
        let cells = place.into_iter().chain(numbers).chain([change, grouped(row.inflight)]);
        cells.chain(row.client).collect()
    };
    let mut columns = vec![
        text("BROKER"),
        number("QUEUE"),
        number("FROM"),
        number("TO"),
        number("MESSAGES"),
        number("IN FLIGHT"),
    ];
    columns.extend(shift.moves.iter().any(|row| row.client.is_some()).then_some(text("CLIENT")));
    output::table(&columns, shift.moves.into_iter().map(cells).collect())?;
    Ok(output::line(if shift.done { "moved" } else { "nothing was changed yet" })?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: OffsetCommand,
    }

    #[test]
    fn exactly_one_place_is_named() {
        let parse = |arguments: &[&str]| {
            Line::try_parse_from([&["test", "reset", "g", "t"], arguments].concat()).map(|line| line.command)
        };
        for (arguments, expected) in [
            (&["--earliest"][..], To::Earliest(true)),
            (&["--latest"], To::Latest(true)),
            (&["--at", "5"], To::AtMs(5)),
            (&["--offset", "0", "--queue", "1"], To::Offset(0)),
        ] {
            let Ok(OffsetCommand::Reset { to, .. }) = parse(arguments) else { panic!("{arguments:?}") };
            assert_eq!(to.to_proto(), expected);
        }
        for wrong in [&[][..], &["--earliest", "--latest"], &["--earliest", "--dry-run", "--yes"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
