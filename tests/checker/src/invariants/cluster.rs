//! What is true of brokers, not of messages: S11, S12, S13, S14. Histories of a load without faults say nothing of it.

use super::Found;
use crate::History;
use crate::history::NEVER;

/// S11. Nobody sees which broker of a set gave an answer, but masters say when they begin, and each record says in which epoch it was
/// written. So: an epoch has one master, each begins after the ones before it, and nothing lies in the log of an epoch that
/// nobody began. What two masters had answered at a time would be missing from the one log that is left, which is S1.
pub(super) fn one_master(history: &History, found: &mut Found) {
    for sets in history.leads.chunk_by(|a, b| a.broker == b.broker) {
        let name = history.broker_name(sets[0].broker);
        for pair in sets.windows(2) {
            found.checked();
            let (one, other) = (pair[0], pair[1]);
            if one.epoch == other.epoch {
                found.violation_elsewhere(format!(
                    "in epoch {} of {name} broker {} was master at {}, and broker {} at {}",
                    one.epoch, one.id, one.t, other.id, other.t
                ));
            }
        }
        let last = sets[sets.len() - 1].epoch;
        for stretch in history.stretches.iter().filter(|one| one.broker == sets[0].broker) {
            found.checked();
            if stretch.epochs.1 > last {
                let (id, epoch) = (stretch.id, stretch.epochs.1);
                found.violation_elsewhere(format!(
                    "the log of {name}/{id} has epoch {epoch}, which nobody began"
                ));
            }
        }
    }
}

/// S12. Stretch by stretch. The writer of the history says how far the logs go that are compared.
pub(super) fn one_log(history: &History, found: &mut Found) {
    for same in history.stretches.chunk_by(|a, b| (a.broker, a.at) == (b.broker, b.at)) {
        found.checked();
        let first = same[0];
        for other in &same[1..] {
            if (first.bytes, first.sum) != (other.bytes, other.sum) {
                let name = history.broker_name(first.broker);
                found.violation_elsewhere(format!(
                    "{name}/{} and {name}/{} differ between {} and {}",
                    first.id,
                    other.id,
                    first.at,
                    first.at + first.bytes.max(other.bytes)
                ));
            }
        }
    }
}

/// S13. What was sent after the error, and answered OK before another broker led, was answered by that master.
pub(super) fn fail_stop(history: &History, found: &mut Found) {
    for &(t, broker, id) in &history.failed {
        found.checked();
        let next =
            history.leads.iter().filter(|lead| lead.broker == broker && lead.t > t).map(|lead| lead.t).min();
        let next = next.unwrap_or(NEVER);
        let answered = history.accepted(broker).into_iter().filter(|&(e, b)| b > t && e < next);
        let count = answered.count();
        if count > 0 {
            let name = history.broker_name(broker);
            found.violation_elsewhere(format!(
                "{count} sends to {name} were answered OK after the disk of broker {id} had failed at {t}, before {next}"
            ));
        }
    }
}

/// S14. As far as the process could still say it.
pub(super) fn no_panic(history: &History, found: &mut Found) {
    for (node, panic) in &history.words {
        found.checked();
        if let Some(line) = panic {
            found.violation_elsewhere(format!("{node}: {line}"));
        }
    }
}
