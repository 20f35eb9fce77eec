//! What a run came to, for programs (JSON) and for people (Markdown).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use karman_checker::History;
use karman_checker::report::Report;
use serde::Serialize;

use super::Options;
use super::servers::SETS;

/// L3: after the last fault was undone everything is read within so much.
const DRAIN_LIMIT_MS: u64 = 60_000;
/// L1: sends are answered OK again after the loss of a master.
const AWAY_LIMIT_MS: u64 = 10_000;
/// L2: so many sends are answered OK during any fault.
const PROGRESS_MIN: usize = 100;

/// One fault, and what became of sends meanwhile.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    pub kind: String,
    pub what: String,
    pub took_ms: u64,
    /// Sends that were answered OK while it lasted.
    pub accepted: usize,
}

/// Of one broker set.
#[derive(Clone, Debug, Serialize)]
pub struct OfSet {
    pub name: String,
    pub accepted: usize,
    pub masters: usize,
    /// The longest time without a send that was answered OK, and the fault that was being done then.
    pub longest_gap_ms: u64,
    pub during: String,
}

/// Everything about a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub repeat: String,
    pub faults: u32,
    pub stored: u64,
    pub delivered: u64,
    /// From when the last fault was undone; none: not everything was read.
    pub drained_after_ms: Option<u64>,
    pub sets: Vec<OfSet>,
    pub done: Vec<Done>,
    pub report: Option<Report>,
}

impl Summary {
    /// What follows from the history.
    pub(super) fn of(options: &Options, history: &History) -> Self {
        let number = |name: &str| (0..8).find(|&number| history.broker_name(number) == name);
        let mut all = Vec::new();
        let mut sets = Vec::new();
        for name in SETS {
            let Some(number) = number(name) else { continue };
            let accepted = history.accepted(number);
            let gap = accepted.windows(2).map(|pair| (pair[1].0 - pair[0].0, pair[0].0)).max();
            let (longest_gap_ms, from) = gap.unwrap_or_default();
            let meets = |fault: &&karman_checker::history::Injected| {
                fault.t <= from + longest_gap_ms && from <= fault.healed
            };
            let during = history.faults.iter().find(meets);
            let during = during.map(|fault| format!("{} {}", fault.kind, fault.what)).unwrap_or_default();
            let masters = history.leads.iter().filter(|lead| lead.broker == number).count();
            sets.push(OfSet { name: name.into(), accepted: accepted.len(), masters, longest_gap_ms, during });
            all.extend(accepted.into_iter().map(|(e, _)| e));
        }
        let done = history.faults.iter().map(|fault| Done {
            kind: fault.kind.clone(),
            what: fault.what.clone(),
            took_ms: fault.healed.saturating_sub(fault.t),
            accepted: all.iter().filter(|&&e| fault.t <= e && e <= fault.healed).count(),
        });
        Self {
            repeat: options.repeat(),
            faults: 0,
            stored: 0,
            delivered: 0,
            drained_after_ms: None,
            sets,
            done: done.collect(),
            report: None,
        }
    }

    pub(super) fn finish(&mut self, report: Report, counts: (u32, u64, u64), drained: Option<u64>) {
        (self.faults, self.stored, self.delivered) = counts;
        self.drained_after_ms = drained;
        self.report = Some(report);
    }

    /// Whether no invariant is violated.
    pub fn is_well(&self) -> bool {
        self.report.as_ref().is_some_and(Report::is_well)
    }

    /// `report.json`, `report.md` and `verdicts.txt`.
    pub(super) fn write(&self, out: &Path) -> anyhow::Result<()> {
        std::fs::write(out.join("report.json"), serde_json::to_string_pretty(self)?)?;
        std::fs::write(out.join("report.md"), self.markdown())?;
        let verdicts = self.report.as_ref().map(Report::table).unwrap_or_default();
        std::fs::write(out.join("verdicts.txt"), verdicts)?;
        Ok(())
    }

    /// For people.
    pub fn markdown(&self) -> String {
        let mut text = format!("`{}`\n\n", self.repeat);
        let _ = writeln!(
            text,
            "{} faults; {} sends answered OK, {} deliveries.\n",
            self.faults, self.stored, self.delivered
        );
        let _ = writeln!(text, "| set | accepted | masters | longest time without one | meanwhile |");
        let _ = writeln!(text, "|---|---:|---:|---:|---|");
        for set in &self.sets {
            let OfSet { name, accepted, masters, longest_gap_ms, during } = set;
            let _ = writeln!(text, "| {name} | {accepted} | {masters} | {longest_gap_ms} ms | {during} |");
        }
        let mut kinds: BTreeMap<&str, (u32, u64, usize)> = BTreeMap::new();
        for one in &self.done {
            let kind = kinds.entry(&one.kind).or_insert((0, 0, usize::MAX));
            *kind = (kind.0 + 1, kind.1.max(one.took_ms), kind.2.min(one.accepted));
        }
        let _ =
            writeln!(text, "\n| fault | times | longest, until all is well | fewest accepted meanwhile |");
        let _ = writeln!(text, "|---|---:|---:|---:|");
        for (kind, (times, longest, fewest)) in kinds {
            let _ = writeln!(text, "| {kind} | {times} | {longest} ms | {fewest} |");
        }
        let _ = writeln!(text, "\n| limit | |");
        let _ = writeln!(text, "|---|---|");
        let away = self.sets.iter().map(|set| set.longest_gap_ms).max().unwrap_or_default();
        let _ = writeln!(text, "| L1, {AWAY_LIMIT_MS} ms without an accepted send, at most | {away} ms |");
        let few = self.done.iter().filter(|one| one.accepted < PROGRESS_MIN).count();
        let _ =
            writeln!(text, "| L2, {PROGRESS_MIN} accepted sends in each fault | {few} faults with fewer |");
        let drained = self.drained_after_ms.map_or("never".to_owned(), |ms| format!("{ms} ms"));
        let _ = writeln!(text, "| L3, all read {DRAIN_LIMIT_MS} ms after the last fault | {drained} |");
        let verdicts = self.report.iter().flat_map(|report| &report.verdicts);
        let _ = writeln!(text, "\n| invariant | checked | violations |\n|---|---:|---:|");
        for one in verdicts {
            let _ = writeln!(text, "| {} {} | {} | {} |", one.id, one.says, one.checked, one.violations);
        }
        text
    }
}
