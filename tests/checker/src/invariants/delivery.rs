//! Everything comes, as it was sent, from one place, and not too early: S1, S2, S3, S8.

use super::Found;
use crate::History;
use crate::history::{Message, Place};

/// S1. A message whose bits were flipped on the disk may be gone; nothing else may. Half messages count from the answer to
/// their commit on.
pub(super) fn not_lost(history: &History, found: &mut Found) {
    for (number, message) in
        history.numbered().filter(|(_, message)| message.is_promised() && !message.flipped)
    {
        for (group, _) in history.readers(message) {
            found.checked();
            let case = history.case(number, group);
            if case.deliveries.is_empty() && case.letters.is_empty() {
                found.violation(history, number, || format!("never came to {}", history.group_name(group)));
            }
        }
    }
}

/// S2. Deliveries and dead letters alike. A group that is given what its filter does not want counts as wrong too.
pub(super) fn as_it_was_sent(history: &History, found: &mut Found) {
    let deliveries = history.deliveries.iter().map(|one| (one.message, one.group, one.t, one.digest));
    let letters = history.letters.iter().map(|one| (one.message, one.group, one.t, one.digest));
    for (number, group_number, t, digest) in deliveries.chain(letters) {
        found.checked();
        let message = &history.messages[number as usize];
        let group = &history.groups[group_number as usize];
        let came = || format!("came to {} at {t}", history.group_name(group_number));
        if let Some(wrong) = wrong_about(message, group.topic, t, digest) {
            found.violation(history, number, || format!("{}: {wrong}", came()));
        } else if !group.wants(message) {
            let label = message.label.map_or("none", |label| history.name(label));
            found.violation(history, number, || format!("{}, which does not want label {label}", came()));
        }
    }
}

fn wrong_about(message: &Message, topic: u32, t: u64, digest: u32) -> Option<String> {
    match message.topic {
        None => Some("nobody sent it".to_owned()),
        Some(sent) if sent != topic => Some("it was sent to another topic".to_owned()),
        _ if t < message.began => Some(format!("it was not sent before {}", message.began)),
        _ if digest != message.digest => Some(format!("digest {digest} is not {} as sent", message.digest)),
        _ => None,
    }
}

/// S3. Over all groups and restarts.
pub(super) fn one_message_in_a_place(history: &History, found: &mut Found) {
    let mut places = places(history);
    places.sort_unstable_by_key(|&(queues, place, message)| (queues, place, message));
    places.dedup();
    for same in places.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        found.checked();
        for other in &same[1..] {
            let (place, first) = (told(history, other.1), history.id(same[0].2));
            found.violation(history, other.2, || format!("came from {place}, where {first} came from too"));
        }
    }
}

/// S3b. A message that was sent to two brokers may be stored by both.
pub(super) fn one_place_of_a_message(history: &History, found: &mut Found) {
    let mut places = places(history);
    places.sort_unstable_by_key(|&(queues, place, message)| (queues, message, place));
    places.dedup();
    let same_copy = |a: &Held, b: &Held| (a.0, a.2, a.1.broker) == (b.0, b.2, b.1.broker);
    for copies in places.chunk_by(same_copy) {
        found.checked();
        if let [first, second, ..] = copies {
            let (first, second) = (told(history, first.1), told(history, second.1));
            found.violation(history, copies[0].2, || format!("lies in {first} and in {second}"));
        }
    }
}

/// Which queues: those of a topic, or of the dead letters of a group; the place in them; the message.
type Held = ((bool, u32), Place, u32);

fn places(history: &History) -> Vec<Held> {
    let topic_of = |group: u32| history.groups[group as usize].topic;
    let live = history.deliveries.iter().map(|one| ((false, topic_of(one.group)), one.place, one.message));
    let dead = history.letters.iter().map(|one| ((true, one.group), one.place, one.message));
    live.chain(dead).collect()
}

fn told(history: &History, place: Place) -> String {
    format!("{}/{}@{}", history.broker_name(place.broker), place.queue, place.offset)
}

/// S8. All clocks are one, but for those that were set.
pub(super) fn not_early(history: &History, found: &mut Found) {
    for delivery in &history.deliveries {
        let Some(due) = history.messages[delivery.message as usize].due else { continue };
        found.checked();
        if delivery.t + history.skew(delivery.place.broker, delivery.t) < due {
            found.violation(history, delivery.message, || format!("came {} ms early", due - delivery.t));
        }
    }
}
