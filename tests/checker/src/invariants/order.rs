//! Order in message groups: S4.

use std::collections::BTreeMap;

use super::Found;
use crate::History;
use crate::event::Outcome;
use crate::history::{Case, NEVER, Word};

/// S4. The first delivery of each message lies behind the release of all that were sent before it, and none of those comes
/// again afterwards. Only messages that were answered OK have a place in the order: another may have been stored whenever
/// the request got through.
pub(super) fn in_order(history: &History, found: &mut Found) {
    let mut lanes: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    for (number, message) in history.numbered() {
        if let (Some(topic), Some(lane), true) = (message.topic, message.lane, message.is_promised()) {
            lanes.entry((topic, lane)).or_default().push(number);
        }
    }
    for lane in lanes.values_mut() {
        lane.sort_unstable_by_key(|&number| history.messages[number as usize].seq);
    }
    for (group, _) in (0u32..).zip(&history.groups).filter(|(_, group)| group.orderly) {
        let topic = history.groups[group as usize].topic;
        for (_, lane) in lanes.range((topic, 0)..=(topic, u32::MAX)) {
            judge_lane(history, group, lane, found);
        }
    }
}

fn judge_lane(history: &History, group: u32, lane: &[u32], found: &mut Found) {
    // Until when those before it hold it back, and which of them.
    let mut held = (0, None);
    // The first delivery of any that came later, from the end on.
    let mut followed = vec![NEVER; lane.len()];
    for index in (1..lane.len()).rev() {
        let first = history.case(lane[index], group).deliveries.first().map_or(NEVER, |delivery| delivery.t);
        followed[index - 1] = followed[index].min(first);
    }
    for (&number, followed) in lane.iter().zip(followed) {
        let case = history.case(number, group);
        let Some(first) = case.deliveries.first() else {
            if !history.messages[number as usize].flipped {
                held = (NEVER, Some(number));
            }
            continue;
        };
        found.checked();
        if let (until, Some(holder)) = held
            && first.t < until
        {
            let holder = history.id(holder);
            found.violation(history, number, || format!("came at {}, when {holder} was not done", first.t));
        }
        let last = case.deliveries.iter().map(|one| one.given).max().unwrap_or_default();
        if last > followed && !is_taken_back_by_a_crash(history, &case, followed, last) {
            let what = || format!("came again at {last}, when one behind it had come at {followed}");
            found.violation(history, number, what);
        }
        held = held.max((released(&case), Some(number)));
    }
}

/// The first moment at which the broker can have known that the message is done. A dead letter is done after its last
/// delivery.
fn released(case: &Case<'_>) -> u64 {
    let done = |word| matches!(word, Word::Ack | Word::Bury);
    let said = case.releases.iter().filter(|one| done(one.word) && one.out != Outcome::Refused);
    let dead = case.letters.first().and(case.deliveries.last()).map(|last| last.t);
    said.map(|one| one.b).chain(dead).min().unwrap_or(NEVER)
}

/// An acknowledgement that was never answered may have let the next one go and then have been lost with the process, or with a
/// master whose place another took before this one came `again`.
fn is_taken_back_by_a_crash(history: &History, case: &Case<'_>, followed: u64, again: u64) -> bool {
    let mut open = case.releases.iter().filter(|one| one.out == Outcome::Unknown && one.b <= followed);
    open.any(|one| history.killed(one.broker, one.b, one.e.max(again)))
}
