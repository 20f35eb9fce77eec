//! `karman store repair` and `karman store rebuild-index`.

use karman_store::offline::{Offline, Plan, RepairOptions};
use serde::Serialize;

use super::RepairArgs;
use crate::cli::Damaged;
use crate::output::{self, Format};
use crate::progress::ProgressBar;

#[derive(Serialize)]
struct RepairJson {
    done: bool,
    steps: Vec<String>,
    /// What it does nothing about.
    remaining: Vec<String>,
}

#[derive(Serialize)]
struct RebuiltJson {
    segments: Vec<u64>,
}

pub(super) fn run(offline: &Offline, args: &RepairArgs, format: Format) -> anyhow::Result<()> {
    let options = RepairOptions {
        owner: args.owner.clone(),
        forget_state: args.forget_state,
        set_aside_snapshot: args.set_aside_snapshot,
    };
    let plan = plan(offline, &options)?;
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    let will_do = args.yes && !steps.is_empty() && !plan.stays_closed();
    let remaining: Vec<String> = plan.remaining.iter().map(ToString::to_string).collect();
    if format == Format::Table {
        let verb = if will_do { "" } else { "would " };
        for step in steps.iter().flat_map(|step| step.lines()) {
            output::line(&format!("{verb}{step}"))?;
        }
        for finding in &remaining {
            output::line(&format!("remains: {finding}"))?;
        }
        if steps.is_empty() && remaining.is_empty() {
            output::line("nothing to repair")?;
        }
    }
    if will_do {
        offline.repair(&plan, &mut |_| {})?;
    }
    output::nameless(format, &RepairJson { done: will_do, steps, remaining })?;
    outcome(&plan, will_do, args.yes)
}

fn plan(offline: &Offline, options: &RepairOptions) -> anyhow::Result<Plan> {
    let mut bar = ProgressBar::new(output::bytes);
    Ok(offline.plan(options, &mut |progress| bar.show(progress.verified_bytes, progress.total_bytes))?)
}

fn outcome(plan: &Plan, done: bool, asked: bool) -> anyhow::Result<()> {
    let left = |what: &str| Err(Damaged(what.to_owned()).into());
    if plan.stays_closed() {
        return left(match asked {
            true => "nothing was changed: the store would not open afterwards; see what remains",
            false => "a repair would not be enough; see what remains",
        });
    }
    match plan.steps.is_empty() || done {
        true => Ok(()),
        false => left("nothing was changed; --yes does it"),
    }
}

pub(super) fn rebuild_index(offline: &Offline, segment: Option<u64>, format: Format) -> anyhow::Result<()> {
    let segments = {
        let mut bar = ProgressBar::new(output::bytes);
        let mut show =
            |progress: karman_store::Progress| bar.show(progress.verified_bytes, progress.total_bytes);
        offline.rebuild_index(segment, &mut show)?
    };
    let rebuilt = RebuiltJson { segments };
    if output::nameless(format, &rebuilt)? {
        return Ok(());
    }
    for segment in &rebuilt.segments {
        output::line(&format!("built the index file of segment {segment}"))?;
    }
    if rebuilt.segments.is_empty() {
        output::line("no segment is full: there is no index file to build")?;
    }
    Ok(())
}
