//! Transactions: S9.

use super::Found;
use crate::History;

/// S9. A half message is seen after a commit was begun that was not refused; rolled back or undecided it is never seen.
pub(super) fn only_commits_seen(history: &History, found: &mut Found) {
    let deliveries = history.deliveries.iter().map(|one| (one.message, one.group, one.t));
    let letters = history.letters.iter().map(|one| (one.message, one.group, one.t));
    for (number, group, t) in deliveries.chain(letters) {
        let message = &history.messages[number as usize];
        if !message.half {
            continue;
        }
        found.checked();
        if t < message.commit.0 {
            let decision = if message.rolled_back { "it was rolled back" } else { "nobody had committed it" };
            let group = history.group_name(group);
            found.violation(history, number, || format!("came to {group} at {t}: {decision}"));
        }
    }
}

/// S9b. Of each half message that was answered OK; its producer was there to be asked until the end.
pub(super) fn all_decided(history: &History, found: &mut Found) {
    let half =
        history.numbered().filter(|(_, message)| message.half && message.stored != crate::history::NEVER);
    for (number, message) in half {
        found.checked();
        if !message.commit.1 && !message.rolled_back && !message.flipped {
            found.violation(history, number, || "no commit and no rollback was answered OK".to_owned());
        }
    }
}
