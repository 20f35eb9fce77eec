//! Verdicts for people and for programs, and the lines of the history about a message.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::BufRead;

use serde::Serialize;

use crate::event::Event;
use crate::history::History;
use crate::invariants::Verdict;

/// Lines that are shown of one message.
const LINES_MAX: usize = 40;

/// What the history is made of.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub messages: usize,
    /// Answered OK, half messages committed.
    pub promised: usize,
    pub deliveries: usize,
    /// Deliveries of what the same group had been given before.
    pub again: usize,
    pub dead_letters: usize,
    pub kills: usize,
    /// How late delayed messages came first: median, 99th percentile, latest. Milliseconds.
    pub late_ms: [u64; 3],
}

impl Figures {
    /// Counts.
    pub fn of(history: &History) -> Self {
        let mut late = Vec::new();
        let mut first = 0;
        for case in history.cases() {
            first += 1;
            let delivery = &case.deliveries[0];
            let message = &history.messages[delivery.message as usize];
            late.extend(
                message.due.map(|due| delivery.t.saturating_sub(due.max(message.stored.min(delivery.t)))),
            );
        }
        late.sort_unstable();
        let at = |percent: usize| late.get((late.len() * percent / 100).min(late.len().saturating_sub(1)));
        Self {
            messages: history.messages.len(),
            promised: history.messages.iter().filter(|message| message.is_promised()).count(),
            deliveries: history.deliveries.len(),
            again: history.deliveries.len() - first,
            dead_letters: history.letters.len(),
            kills: history.kills.len(),
            late_ms: [50, 99, 100].map(|percent| at(percent).copied().unwrap_or_default()),
        }
    }
}

/// Everything that is said about a history.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub repeat: String,
    pub figures: Figures,
    pub verdicts: Vec<Verdict>,
    /// The lines of the history about each message that is named.
    pub lines: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Judges; `lines` is filled by [`Self::explain`].
    pub fn of(history: &History) -> Self {
        Self {
            repeat: history.repeat.clone(),
            figures: Figures::of(history),
            verdicts: crate::judge(history),
            lines: BTreeMap::new(),
        }
    }

    /// Whether every invariant holds.
    pub fn is_well(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.violations == 0)
    }

    /// Keeps `max` violations of each invariant and reads the lines about their messages from the history once more.
    pub fn explain(&mut self, max: usize, mut from: impl BufRead) -> anyhow::Result<()> {
        for verdict in &mut self.verdicts {
            verdict.first.truncate(max);
            let ids = verdict.first.iter().filter_map(|violation| violation.message.clone());
            self.lines.extend(ids.map(|id| (id, Vec::new())));
        }
        if self.lines.is_empty() {
            return Ok(());
        }
        let mut line = String::new();
        while from.read_line(&mut line)? > 0 {
            let event: Option<Event<'_>> = serde_json::from_str(&line).ok();
            let lines = event.as_ref().and_then(Event::message).and_then(|id| self.lines.get_mut(id));
            if let Some(lines) = lines
                && lines.len() < LINES_MAX
            {
                lines.push(line.trim_end().to_owned());
            }
            line.clear();
        }
        Ok(())
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let figures = &self.figures;
        let [p50, p99, max] = figures.late_ms;
        let _ = writeln!(
            text,
            "{} messages, {} promised, {} deliveries ({} again), {} dead letters, {} kills",
            figures.messages,
            figures.promised,
            figures.deliveries,
            figures.again,
            figures.dead_letters,
            figures.kills
        );
        let _ = writeln!(text, "delayed messages were late by p50 {p50} ms, p99 {p99} ms, max {max} ms\n");
        let _ = writeln!(text, "{:<5}  {:>9}  {:>10}  INVARIANT", "", "CHECKED", "VIOLATIONS");
        for verdict in &self.verdicts {
            let Verdict { id, says, checked, violations, .. } = verdict;
            let _ = writeln!(text, "{id:<5}  {checked:>9}  {violations:>10}  {says}");
        }
        for verdict in self.verdicts.iter().filter(|verdict| verdict.violations > 0) {
            let _ = writeln!(text, "\n{}: {} violations", verdict.id, verdict.violations);
            for violation in &verdict.first {
                let id = violation.message.as_deref().unwrap_or("-");
                let _ = writeln!(text, "  {id}  {}", violation.what);
                for line in self.lines.get(id).into_iter().flatten() {
                    let _ = writeln!(text, "      {line}");
                }
            }
        }
        let word = if self.is_well() { "every invariant holds" } else { "VIOLATED" };
        let _ = writeln!(text, "\n{word}; the run again: {}", self.repeat);
        text
    }
}
