//! What was acknowledged against what was delivered.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::driver::Event;

/// The clients wait so long for an answer to a send; then they send again, maybe to another broker, under the same id.
const SEND_TIMEOUT_MS: u64 = 3000;

const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// The tag of message `index`.
pub fn tag_of(index: u64) -> &'static str {
    COLOURS[usize::try_from(index % 3).unwrap()]
}

/// Length and SHA-256 of the body that the drivers make for message `index` of `seed`, of `size` bytes unless that is 0.
fn body_of(seed: &str, index: u64, size: usize) -> (usize, String) {
    let root = Sha256::digest(format!("{seed}:{index}"));
    let own = 1 + usize::from(u16::from_be_bytes([root[0], root[1]])) % 2048;
    let length = if size > 0 { size } else { own };
    let mut body = Vec::with_capacity(length + 32);
    for block in 0u32.. {
        if body.len() >= length {
            break;
        }
        body.extend(Sha256::new().chain_update(root).chain_update(block.to_be_bytes()).finalize());
    }
    body.truncate(length);
    let sha256 = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    (length, sha256)
}

/// SHA-256 of the body that the drivers make for message `index` of `seed` with this `size`.
pub fn sha256_of(seed: &str, index: u64, size: usize) -> String {
    body_of(seed, index, size).1
}

/// Panics unless a delivered message is in every field what the drivers send as `index` of `seed`.
pub fn check_content(event: &Event, topic: &str, seed: &str) {
    let index: u64 = event.properties["index"].parse().unwrap();
    let (length, sha256) = body_of(seed, index, 0);
    assert_eq!((event.length, &event.sha256), (length, &sha256), "body of {event:?}");
    assert_eq!(event.topic, topic);
    assert_eq!(event.tag.as_deref(), Some(tag_of(index)));
    let keys = BTreeSet::from([format!("key-{seed}-{index}"), format!("seventh-{}", index % 7)]);
    assert_eq!(event.keys.iter().cloned().collect::<BTreeSet<_>>(), keys);
    let text = format!("größe {index} 漢字 🚀");
    let mut properties = BTreeMap::from([("index".to_owned(), index.to_string()), ("text".to_owned(), text)]);
    properties.extend(event.seq.map(|seq| ("seq".to_owned(), seq.to_string())));
    let mut said = event.properties.clone();
    if topic.starts_with("%DLQ%") {
        for name in ["DLQ_ORIGIN_TOPIC", "DLQ_ORIGIN_MESSAGE_ID", "DLQ_REASON", "DLQ_ATTEMPTS"] {
            assert!(said.remove(name).is_some_and(|value| !value.is_empty()), "{name} of {event:?}");
        }
    }
    assert_eq!(said, properties, "nothing is added to the user's properties but why a letter is dead");
    assert!(!event.corrupted, "the digest does not fit the body of {event:?}");
    assert!(event.attempt >= 1 && event.born > 0, "{event:?}");
}

/// Sends, deliveries and acknowledgements by message id: of one topic and one consumer group.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Acknowledged sends.
    pub sent: HashMap<String, Event>,
    /// Each delivery; of a push consumer each call of the listener.
    pub delivered: HashMap<String, Vec<Event>>,
    /// The first confirmed acknowledgement by a consumer.
    pub acked: HashMap<String, Event>,
    /// The first moment at which the broker can have known that a message is done.
    released: HashMap<String, u64>,
    /// Answers to the broker's questions about transactions.
    checked: HashMap<String, Vec<Event>>,
    /// Recalls that were accepted.
    recalled: HashMap<String, Event>,
}

impl Ledger {
    /// Adds what a driver reported.
    pub fn add(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let Some(id) = event.id.clone() else { continue };
            if let Some(at) = release(&event) {
                self.released.entry(id.clone()).and_modify(|first| *first = at.min(*first)).or_insert(at);
            }
            match event.event.as_str() {
                "sent" => drop(self.sent.insert(id, event)),
                "message" => self.delivered.entry(id).or_default().push(event),
                "acked" => drop(self.acked.entry(id).or_insert(event)),
                "recalled" if event.outcome.as_deref() == Some("accepted") => {
                    drop(self.recalled.insert(id, event));
                }
                "checked" => self.checked.entry(id).or_default().push(event),
                _ => {}
            }
        }
    }

    /// Panics when an acknowledged message was not delivered.
    pub fn assert_nothing_lost(&self) {
        let lost: Vec<&Event> =
            self.sent.values().filter(|sent| !self.delivered.contains_key(id(sent))).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged messages lost: {lost:?}",
            lost.len(),
            self.sent.len()
        );
    }

    /// The acknowledged messages whose ids are not in `held`.
    pub fn not_among(&self, held: &HashSet<String>) -> Vec<&Event> {
        self.sent.values().filter(|sent| !held.contains(id(sent))).collect()
    }

    /// Panics when a message came more than once, or one came that was not acknowledged to its sender. A send that took so
    /// long that the client tried again, as on a machine that stands still for a while, may have stored two.
    pub fn assert_exactly_once(&self) {
        self.assert_nothing_lost();
        let twice: Vec<_> = self
            .delivered
            .iter()
            .filter(|(id, deliveries)| deliveries.len() > 1 && !self.may_be_stored_twice(id))
            .collect();
        assert!(twice.is_empty(), "{} messages delivered more than once: {:?}", twice.len(), twice.first());
        let strange = self.delivered.keys().find(|&id| !self.sent.contains_key(id));
        assert!(strange.is_none(), "a message that nobody sent: {strange:?}");
    }

    fn may_be_stored_twice(&self, id: &str) -> bool {
        self.sent.get(id).is_some_and(|sent| sent.at >= sent.began + SEND_TIMEOUT_MS)
    }

    /// Panics when a message came again after its acknowledgement was confirmed, unless a crash at one of `crashes`
    /// (milliseconds since 1970) fell into the acknowledgement or into the send, which the client then repeated.
    pub fn assert_none_twice_but_in_flight(&self, crashes: &[u64]) {
        let crossed = |event: &Event| crashes.iter().any(|&at| event.began <= at && at <= event.at);
        for (id, acked) in &self.acked {
            let again = self.delivered[id].iter().any(|delivery| delivery.at > acked.at);
            let excused = crossed(acked) || self.sent.get(id).is_none_or(crossed);
            assert!(
                !again || excused,
                "delivered again after its acknowledgement: {acked:?}: {:?}",
                self.delivered[id]
            );
        }
    }

    /// Panics unless each message group, and each lite topic, came in the order in which it was sent, one message at a
    /// time: the first delivery of each lies behind the release of all that were sent before it. A message ends with its
    /// last delivery, without a release, if its id is in `dead`: the dead letters.
    pub fn assert_in_order(&self, dead: &HashSet<String>) {
        let mut lanes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (id, deliveries) in &self.delivered {
            // What was never acknowledged to its sender may have been stored whenever the request got through.
            let Some(sent) = self.sent.get(id) else { continue };
            let Some(seq) = sent.seq else { continue };
            let first = deliveries.iter().map(|delivery| delivery.at).min();
            lanes.entry((&sent.group, &sent.lite)).or_default().push((seq, first, id));
        }
        for (lane, mut messages) in lanes {
            messages.sort();
            let mut held_by = (0, "nothing");
            for (seq, first, id) in messages {
                let (until, holder) = held_by;
                let delivered = first.unwrap_or_default();
                assert!(
                    delivered >= until,
                    "{lane:?}: {id} ({seq}) came at {delivered}, when {holder} was not done: {:?}",
                    self.delivered.get(holder)
                );
                held_by = held_by.max((self.done_at(id, dead), id.as_str()));
            }
        }
    }

    fn done_at(&self, id: &str, dead: &HashSet<String>) -> u64 {
        let last = || self.delivered[id].iter().map(|delivery| delivery.at).max().unwrap_or_default();
        match self.released.get(id) {
            Some(&released) => released,
            None if dead.contains(id) => last(),
            None => u64::MAX,
        }
    }

    /// Panics when a delayed message came before its time, by the clock that senders, consumers and brokers share. How
    /// late each one came for the first time, in milliseconds, ascending.
    pub fn assert_none_early(&self) -> Vec<u64> {
        let mut late = Vec::new();
        for (id, deliveries) in &self.delivered {
            let Some(due) = self.sent.get(id).and_then(|sent| sent.due) else { continue };
            let first = deliveries.iter().map(|delivery| delivery.at).min().unwrap_or_default();
            assert!(first >= due, "{} ms early: {:?}", due - first, deliveries[0]);
            assert_eq!(
                deliveries[0].due,
                Some(due),
                "the consumer is told another time: {:?}",
                deliveries[0]
            );
            late.push(first - due);
        }
        late.sort_unstable();
        late
    }

    /// Panics when a message was seen whose recall was accepted.
    pub fn assert_recalled_unseen(&self) {
        let seen = self.recalled.iter().find(|(id, _)| self.delivered.contains_key(*id));
        assert!(seen.is_none(), "recalled, but seen: {seen:?}");
    }

    /// The ids of the transactions that end in a commit: by the word of their sender or, where that is `unknown` or the
    /// sender never learnt that the message is there, by the last answer of a checker.
    pub fn committed(&self) -> HashSet<&str> {
        let ids = self.sent.keys().chain(self.checked.keys());
        ids.map(String::as_str).filter(|id| self.decision(id) == Some("commit")).collect()
    }

    fn decision(&self, id: &str) -> Option<&str> {
        let by_sender = self.sent.get(id).into_iter();
        let by_checkers = self.checked.get(id).into_iter().flatten().rev();
        let mut decisions = by_sender.chain(by_checkers).filter_map(|event| event.decision.as_deref());
        decisions.find(|&decision| decision != "unknown")
    }

    /// Panics when a half message was seen that was rolled back, or is still unknown.
    pub fn assert_only_commits_seen(&self) {
        let committed = self.committed();
        let seen = self.delivered.iter().find(|(id, _)| !committed.contains(id.as_str()));
        assert!(seen.is_none(), "seen, but {:?}: {seen:?}", seen.map(|(id, _)| self.decision(id)));
    }

    /// Panics unless all that was committed came exactly once, and nothing else. Not for runs with crashes. A send that
    /// the client tried again may have stored two half messages.
    pub fn assert_commits_once(&self) {
        self.assert_only_commits_seen();
        for id in self.committed() {
            let deliveries = self.delivered.get(id).map_or(0, Vec::len);
            let is_right = deliveries == 1 || deliveries > 1 && self.may_be_stored_twice(id);
            assert!(is_right, "{deliveries} deliveries of the committed {id}, {:?}", self.sent.get(id));
        }
    }
}

/// When the broker can have learnt from this event, at the earliest, that the message is done.
fn release(event: &Event) -> Option<u64> {
    match event.event.as_str() {
        "acked" => Some(event.began),
        // Without a code there was no answer: the broker may have done it.
        "ack-failed" if event.code.is_none() => Some(event.began),
        // The client acknowledges when the listener has returned, which is after this.
        "consumed" => Some(event.at),
        _ => None,
    }
}

fn id(event: &Event) -> &str {
    event.id.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, at: u64, id: &str) -> Event {
        Event { event: event.to_owned(), at, began: at, id: Some(id.to_owned()), ..Event::default() }
    }

    /// Two messages of one message group, sent, and what became of them.
    fn fifo(events: &[(&str, u64, &str)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (seq, id) in [(0, "a"), (1, "b")] {
            ledger.add([Event { group: Some("g".into()), seq: Some(seq), ..event("sent", 1, id) }]);
        }
        ledger.add(events.iter().map(|&(name, at, id)| event(name, at, id)));
        ledger
    }

    fn panics(judge: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(judge)).is_err()
    }

    fn is_in_order(events: &[(&str, u64, &str)]) -> bool {
        !panics(|| fifo(events).assert_in_order(&HashSet::new()))
    }

    #[test]
    fn order_needs_each_message_done_before_the_next_comes() {
        assert!(is_in_order(&[("message", 10, "a"), ("acked", 20, "a"), ("message", 20, "b")]));
        assert!(is_in_order(&[("message", 10, "a"), ("consumed", 20, "a"), ("message", 20, "b")]));
        assert!(is_in_order(&[("message", 10, "a"), ("message", 15, "a"), ("acked", 20, "a")]));
        assert!(!is_in_order(&[("message", 10, "a"), ("acked", 20, "a"), ("message", 19, "b")]));
        assert!(!is_in_order(&[("message", 10, "a"), ("nacked", 15, "a"), ("message", 20, "b")]));
        assert!(!is_in_order(&[("message", 10, "b"), ("acked", 11, "b"), ("message", 20, "a")]));
    }

    #[test]
    fn an_acknowledgement_counts_unless_it_was_refused() {
        assert!(is_in_order(&[("message", 10, "a"), ("ack-failed", 15, "a"), ("message", 20, "b")]));
        let mut ledger = fifo(&[("message", 10, "a"), ("message", 20, "b")]);
        ledger.add([Event { code: Some(40014), ..event("ack-failed", 15, "a") }]);
        assert!(panics(|| ledger.assert_in_order(&HashSet::new())));
    }

    #[test]
    fn a_dead_letter_holds_its_group_until_its_last_delivery() {
        let dead = HashSet::from(["a".to_owned()]);
        let deliveries = [("message", 10, "a"), ("message", 30, "a")];
        fifo(&[deliveries[0], deliveries[1], ("message", 30, "b")]).assert_in_order(&dead);
        let early = fifo(&[deliveries[0], deliveries[1], ("message", 29, "b")]);
        assert!(panics(|| early.assert_in_order(&dead)));
    }

    #[test]
    fn early_deliveries_are_found_and_late_ones_measured() {
        let mut ledger = Ledger::default();
        for (id, at) in [("a", 107), ("b", 100)] {
            ledger.add([Event { due: Some(100), ..event("sent", 1, id) }]);
            ledger.add([Event { due: Some(100), ..event("message", at, id) }]);
        }
        assert_eq!(ledger.assert_none_early(), [0, 7]);
        ledger.add([event("message", 99, "a")]);
        assert!(panics(|| drop(ledger.assert_none_early())));
    }

    #[test]
    fn a_recall_that_was_accepted_leaves_nothing_to_be_seen() {
        let mut ledger = Ledger::default();
        for (id, outcome) in [("a", "accepted"), ("b", "refused")] {
            ledger.add([Event { outcome: Some(outcome.into()), ..event("recalled", 1, id) }]);
        }
        ledger.add([event("message", 2, "b")]);
        ledger.assert_recalled_unseen();
        ledger.add([event("message", 2, "a")]);
        assert!(panics(|| ledger.assert_recalled_unseen()));
    }

    fn transactions() -> Ledger {
        let mut ledger = Ledger::default();
        for (id, decision) in [("c", "commit"), ("r", "rollback"), ("u", "unknown")] {
            ledger.add([Event { decision: Some(decision.into()), ..event("sent", 1, id) }]);
        }
        ledger.add([event("message", 2, "c")]);
        ledger
    }

    #[test]
    fn transactions_are_seen_once_and_only_when_committed() {
        transactions().assert_commits_once();
        for seen in ["r", "u", "c"] {
            let mut ledger = transactions();
            ledger.add([event("message", 3, seen)]);
            assert!(panics(|| ledger.assert_commits_once()), "{seen}");
        }
        let mut lost = transactions();
        lost.delivered.clear();
        assert!(panics(|| lost.assert_commits_once()));
    }

    #[test]
    fn a_checker_decides_what_the_sender_left_open() {
        let mut ledger = transactions();
        // Sent too, but its sender never learnt that.
        for (id, decision) in [("u", "unknown"), ("u", "commit"), ("r", "commit"), ("x", "commit")] {
            ledger.add([Event { decision: Some(decision.into()), ..event("checked", 3, id) }]);
        }
        assert_eq!(ledger.committed(), HashSet::from(["c", "u", "x"]));
        ledger.add([event("message", 4, "u"), event("message", 4, "x")]);
        ledger.assert_commits_once();
    }
}
