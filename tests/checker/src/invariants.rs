//! What must be true of a history. Each invariant is a function of its own that says what it has looked at and what it has
//! found; the numbers are those that the invariants have in the test plan.

use serde::Serialize;

use crate::History;

mod cluster;
mod dead;
mod delivery;
mod holding;
mod order;
mod transaction;

#[cfg(test)]
mod tests;

/// Violations that are kept of each invariant; all are counted.
const KEPT_MAX: usize = 100;

/// One violation.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// The id of the message; none where it is about a queue.
    pub message: Option<String>,
    /// What is wrong.
    pub what: String,
}

/// What an invariant has found.
#[derive(Debug, Default)]
pub struct Found {
    checked: u64,
    violations: u64,
    kept: Vec<Violation>,
}

impl Found {
    fn checked(&mut self) {
        self.checked += 1;
    }

    fn violation(&mut self, history: &History, message: u32, what: impl FnOnce() -> String) {
        self.violations += 1;
        if self.kept.len() < KEPT_MAX {
            self.kept.push(Violation { message: Some(history.id(message).to_owned()), what: what() });
        }
    }

    fn violation_elsewhere(&mut self, what: String) {
        self.violations += 1;
        if self.kept.len() < KEPT_MAX {
            self.kept.push(Violation { message: None, what });
        }
    }
}

/// An invariant, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub id: &'static str,
    pub says: &'static str,
    /// Messages, deliveries or readings that were looked at.
    pub checked: u64,
    pub violations: u64,
    /// The first of them.
    pub first: Vec<Violation>,
}

type Invariant = (&'static str, &'static str, fn(&History, &mut Found));

const INVARIANTS: [Invariant; 18] = [
    ("whole", "the history ends where its writer ended, and every group was read to its end", whole),
    (
        "S1",
        "what was answered OK comes to every group that wants it, or is a dead letter",
        delivery::not_lost,
    ),
    ("S2", "what comes was sent, to that topic, just so, and passes the filter", delivery::as_it_was_sent),
    ("S3", "a place in a queue holds one message for ever", delivery::one_message_in_a_place),
    ("S3b", "a broker stores a message once, however often it is sent", delivery::one_place_of_a_message),
    ("S4", "a message of a message group comes when all before it are done", order::in_order),
    ("S5", "what was acknowledged does not come again", holding::acknowledged_for_good),
    ("S6", "what one consumer holds comes to no other", holding::held_by_one),
    ("S7", "the progress of a group does not go back", holding::progress_grows),
    ("S8", "a delayed message does not come before its time", delivery::not_early),
    ("S9", "only what was committed is seen", transaction::only_commits_seen),
    ("S9b", "a transaction does not stay undecided", transaction::all_decided),
    ("S10", "a dead letter was delivered often enough, or given up, and lives no more", dead::explained),
    ("S10b", "what was delivered is acknowledged or a dead letter in the end", dead::nothing_disappears),
    ("S11", "in an epoch of a broker set no more than one broker is its master", cluster::one_master),
    ("S12", "the logs of the brokers of a set are equal", cluster::one_log),
    ("S13", "a master whose disk has failed answers no send with OK", cluster::fail_stop),
    ("S14", "no thread of a server panics", cluster::no_panic),
];

/// All verdicts.
pub fn judge(history: &History) -> Vec<Verdict> {
    let judged = INVARIANTS.iter().map(|&(id, says, invariant)| {
        let mut found = Found::default();
        invariant(history, &mut found);
        let Found { checked, violations, kept } = found;
        Verdict { id, says, checked, violations, first: kept }
    });
    judged.collect()
}

/// Without its end a history proves no loss, and without a drained group nothing that must have come.
fn whole(history: &History, found: &mut Found) {
    found.checked();
    if !history.done {
        found.violation_elsewhere("there is no last line: the writer was cut off".to_owned());
    }
    for (number, group) in (0u32..).zip(&history.groups) {
        found.checked();
        if !group.drained {
            let name = history.group_name(number);
            found.violation_elsewhere(format!("group {name} was not read to its end"));
        }
    }
}
