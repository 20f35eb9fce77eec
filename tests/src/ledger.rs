//! What was acknowledged against what was delivered.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};

use crate::driver::Event;

const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// The tag of message `index`.
pub fn tag_of(index: u64) -> &'static str {
    COLOURS[usize::try_from(index % 3).unwrap()]
}

/// Length and SHA-256 of the body that the drivers make for message `index` of `seed`.
fn body_of(seed: &str, index: u64) -> (usize, String) {
    let root = Sha256::digest(format!("{seed}:{index}"));
    let length = 1 + usize::from(u16::from_be_bytes([root[0], root[1]])) % 2048;
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

/// Panics unless a delivered message is in every field what the drivers send as `index` of `seed`.
pub fn check_content(event: &Event, topic: &str, seed: &str) {
    let index: u64 = event.properties["index"].parse().unwrap();
    let (length, sha256) = body_of(seed, index);
    assert_eq!((event.length, &event.sha256), (length, &sha256), "body of {event:?}");
    assert_eq!(event.topic, topic);
    assert_eq!(event.tag.as_deref(), Some(tag_of(index)));
    let keys = BTreeSet::from([format!("key-{seed}-{index}"), format!("seventh-{}", index % 7)]);
    assert_eq!(event.keys.iter().cloned().collect::<BTreeSet<_>>(), keys);
    let text = format!("größe {index} 漢字 🚀");
    let properties = BTreeMap::from([("index".to_owned(), index.to_string()), ("text".to_owned(), text)]);
    assert_eq!(event.properties, properties, "nothing is added to the user's properties");
    assert!(!event.corrupted, "the digest does not fit the body of {event:?}");
    assert!(event.attempt >= 1 && event.born > 0, "{event:?}");
}

/// Sends, deliveries and acknowledgements by message id.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Acknowledged sends.
    pub sent: HashMap<String, Event>,
    /// Each delivery.
    pub delivered: HashMap<String, Vec<Event>>,
    /// The first confirmed acknowledgement by a consumer.
    pub acked: HashMap<String, Event>,
}

impl Ledger {
    /// Adds what a driver reported.
    pub fn add(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let Some(id) = event.id.clone() else { continue };
            match event.event.as_str() {
                "sent" => drop(self.sent.insert(id, event)),
                "message" => self.delivered.entry(id).or_default().push(event),
                "acked" => drop(self.acked.entry(id).or_insert(event)),
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

    /// Panics when a message came more than once, or one came that was not acknowledged to its sender.
    pub fn assert_exactly_once(&self) {
        self.assert_nothing_lost();
        let twice: Vec<_> = self.delivered.values().filter(|deliveries| deliveries.len() > 1).collect();
        assert!(twice.is_empty(), "{} messages delivered more than once: {:?}", twice.len(), twice.first());
        let strange = self.delivered.keys().find(|&id| !self.sent.contains_key(id));
        assert!(strange.is_none(), "a message that nobody sent: {strange:?}");
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
}

fn id(event: &Event) -> &str {
    event.id.as_deref().unwrap_or_default()
}
