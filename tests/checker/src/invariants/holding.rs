//! What a consumer holds, and what it is done with: S5, S6, S7.

use super::Found;
use crate::History;
use crate::event::Outcome;
use crate::history::{Case, Delivery, Word};

/// A consumer knows the end of an invisible time by what is left of it when the message leaves the broker, so it believes it
/// to be later by the way of the message; on a busy machine that is some hundred milliseconds.
pub(super) const TOLERANCE_MS: u64 = 1000;
/// A delivery that was on its way when its broker was killed may be seen so much later.
const ON_ITS_WAY_MS: u64 = 2000;

/// S5. An acknowledgement that was answered OK is on the disk: no kill excuses another delivery.
pub(super) fn acknowledged_for_good(history: &History, found: &mut Found) {
    for case in history.cases() {
        let done = |word| matches!(word, Word::Ack | Word::Bury);
        let mut acks = case.releases.iter().filter(|one| done(one.word) && one.out == Outcome::Ok);
        // Sorted by their begin; the copy of each broker is a message of its own.
        let mut seen = Vec::new();
        for ack in &mut acks {
            if seen.contains(&ack.broker) {
                continue;
            }
            seen.push(ack.broker);
            found.checked();
            let mut copy = case.deliveries.iter().filter(|one| one.place.broker == ack.broker);
            if let Some(again) = copy.rfind(|one| one.given > ack.e) {
                let (group, t, e) = (history.group_name(again.group), again.t, ack.e);
                found.violation(history, again.message, || {
                    format!("came to {group} at {t}, {} ms after its acknowledgement was answered OK", t - e)
                });
            }
        }
    }
}

/// S6. Until its invisible time is over or its consumer gives it back. A broker that was killed does not know who held it.
pub(super) fn held_by_one(history: &History, found: &mut Found) {
    for case in history.cases() {
        for (index, one) in case.deliveries.iter().enumerate() {
            let next = case.deliveries[index + 1..].iter().find(|next| next.place == one.place);
            let Some(next) = next else { continue };
            found.checked();
            let visible = visible_at(&case, one, next.t);
            // One that was long on its way counts from when the broker gave it.
            let from = one.given.min(one.t.saturating_sub(ON_ITS_WAY_MS));
            let tolerance = TOLERANCE_MS + history.skew(one.place.broker, next.t);
            if next.t + tolerance < visible && !history.killed(one.place.broker, from, next.t) {
                found.violation(history, one.message, || {
                    format!("came at {} and at {}, held until {visible}", one.t, next.t)
                });
            }
        }
    }
}

/// When a held message may come to others at the earliest. Of several words of its consumer, and of one without answer,
/// the one that gives it back first counts.
fn visible_at(case: &Case<'_>, one: &Delivery, before: u64) -> u64 {
    let of_this = |b: u64| one.t <= b && b <= before;
    let nacks = case.releases.iter().filter(|word| {
        let same = word.broker == one.place.broker && word.word == Word::Nack;
        same && word.out != Outcome::Refused && of_this(word.b)
    });
    let mut answered = false;
    let given_back = nacks.inspect(|word| answered |= word.out == Outcome::Ok).map(|word| word.until).min();
    match given_back {
        Some(until) if answered => until,
        Some(until) => until.min(one.until),
        None => one.until,
    }
}

/// S7. As the group itself says it, queue by queue.
pub(super) fn progress_grows(history: &History, found: &mut Found) {
    let queue = |one: &crate::history::Progress| (one.group, one.broker, one.queue);
    for readings in history.progress.chunk_by(|a, b| queue(a) == queue(b)) {
        for pair in readings.windows(2) {
            found.checked();
            if pair[1].offset < pair[0].offset {
                found.violation_elsewhere(format!(
                    "{} was at {} of {}/{} at {}, and at {} at {}",
                    history.group_name(pair[0].group),
                    pair[0].offset,
                    history.broker_name(pair[0].broker),
                    pair[0].queue,
                    pair[0].t,
                    pair[1].offset,
                    pair[1].t
                ));
            }
        }
    }
}
