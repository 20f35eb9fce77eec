//! Dead letters, and that nothing is lost between queue, retry and dead letters: S10.

use super::Found;
use super::holding::TOLERANCE_MS;
use crate::History;
use crate::event::Outcome;
use crate::history::{Case, Letter, Word};

/// S10. Each letter says that it was delivered often enough, and the deliveries were seen, but for those that were on their
/// way in calls that failed; or a consumer gave it up. It was not acknowledged, is there once, and is not delivered any
/// more.
pub(super) fn explained(history: &History, found: &mut Found) {
    let same = |a: &Letter, b: &Letter| (a.message, a.group) == (b.message, b.group);
    for letters in history.letters.chunk_by(same) {
        found.checked();
        let (first, number) = (&letters[0], letters[0].message);
        let case = history.case(number, first.group);
        let group = history.group_name(first.group);
        if let Some(why) = unexplained(history, &case, first) {
            found.violation(history, number, || format!("is a dead letter of {group}: {why}"));
        }
        // The copy of another broker is a message of its own; its letters lie with it.
        let mut here = case.deliveries.iter().filter(|one| one.place.broker == first.place.broker);
        if let Some(lives) = here.find(|one| one.given > first.t) {
            let t = lives.t;
            found.violation(history, number, || format!("came to {group} at {t}, after its letter"));
        }
    }
}

fn unexplained(history: &History, case: &Case<'_>, letter: &Letter) -> Option<String> {
    let message = &history.messages[letter.message as usize];
    let group = &history.groups[letter.group as usize];
    let given_up = |word: Word, out: Outcome| word == Word::Bury && out != Outcome::Refused;
    if case.releases.iter().any(|one| given_up(one.word, one.out) && one.b <= letter.t) {
        return None;
    }
    if letter.attempts < group.attempts_max {
        return Some(format!(
            "{} deliveries, of {}, and nobody gave it up",
            letter.attempts, group.attempts_max
        ));
    }
    let failed = group.failed_receives.iter().filter(|&&(b, e, _)| e >= message.began && b <= letter.t);
    let seen = case.deliveries.iter().filter(|one| one.t <= letter.t).count() + failed.count();
    if seen < group.attempts_max as usize {
        return Some(format!("{seen} deliveries were seen or may have been, of {}", group.attempts_max));
    }
    acknowledged_in_time(case).then(|| "it was acknowledged in time, which was answered OK".to_owned())
}

/// Whether the last consumer had it when its acknowledgement was answered OK; later, OK says that it is done already.
fn acknowledged_in_time(case: &Case<'_>) -> bool {
    let Some(last) = case.deliveries.last() else { return false };
    case.releases.iter().any(|one| {
        let ok = one.word == Word::Ack && one.out == Outcome::Ok && one.broker == last.place.broker;
        ok && one.b >= last.t && one.e + TOLERANCE_MS < last.until
    })
}

/// S10b. Also what may have been stored without an answer, if it was delivered.
pub(super) fn nothing_disappears(history: &History, found: &mut Found) {
    for case in history.cases() {
        let (number, group) = (case.deliveries[0].message, case.deliveries[0].group);
        let message = &history.messages[number as usize];
        if message.flipped || !history.groups[group as usize].drained {
            continue;
        }
        found.checked();
        let done = |word| matches!(word, Word::Ack | Word::Bury);
        let acked = case.releases.iter().any(|one| done(one.word) && one.out != Outcome::Refused);
        if !acked && case.letters.is_empty() {
            let (group, times) = (history.group_name(group), case.deliveries.len());
            found.violation(history, number, || {
                format!("came to {group} {times} times, was not acknowledged, is no dead letter, and is gone")
            });
        }
    }
}
