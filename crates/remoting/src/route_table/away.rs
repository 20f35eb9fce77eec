//! Brokers that have left and are expected back. Part of the route table: what they hold of a message group may not be
//! overtaken, so the group waits for them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::BrokerEntry;
use crate::proto::karman::BrokerIdentity;

/// A broker that comes back later than this finds its message groups elsewhere.
const EXPECTED_BACK: Duration = Duration::from_secs(300);
/// Brokers that are remembered; beyond, those that left first are not.
const AWAY_MAX: usize = 64;

/// By name, with the time at which each left.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Away(BTreeMap<String, (Instant, BrokerEntry)>);

impl Away {
    pub(super) fn left(&mut self, entry: BrokerEntry, now: Instant) {
        self.0.retain(|_, (left, _)| is_expected(*left, now));
        self.0.insert(entry.identity.broker_name.clone(), (now, entry));
        if self.0.len() > AWAY_MAX {
            let first = self.0.iter().min_by_key(|(_, (left, _))| *left).map(|(name, _)| name.clone());
            first.map(|name| self.0.remove(&name));
        }
    }

    pub(super) fn back(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(super) fn expects(&self, name: &str, now: Instant) -> bool {
        self.0.get(name).is_some_and(|(left, _)| is_expected(*left, now))
    }

    /// The masters that had `topic` when they left.
    pub(super) fn masters_of(&self, topic: &str, now: Instant) -> impl Iterator<Item = &BrokerIdentity> {
        let masters = self.expected(now).filter(|entry| entry.identity.broker_id == 0);
        masters.filter(move |entry| entry.topics.contains_key(topic)).map(|entry| &entry.identity)
    }

    /// All that may come back yet.
    pub(super) fn expected(&self, now: Instant) -> impl Iterator<Item = &BrokerEntry> {
        self.0.values().filter(move |(left, _)| is_expected(*left, now)).map(|(_, entry)| entry)
    }
}

fn is_expected(left: Instant, now: Instant) -> bool {
    now.saturating_duration_since(left) < EXPECTED_BACK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> BrokerEntry {
        let identity = BrokerIdentity { broker_name: name.into(), ..Default::default() };
        BrokerEntry {
            identity,
            topics: BTreeMap::from([("t".into(), Default::default())]),
            ..Default::default()
        }
    }

    fn names(away: &Away, topic: &str, now: Instant) -> Vec<String> {
        away.masters_of(topic, now).map(|identity| identity.broker_name.clone()).collect()
    }

    #[test]
    fn a_broker_is_expected_back_for_a_while() {
        let (mut away, now) = (Away::default(), Instant::now());
        away.left(entry("a"), now);
        away.left(entry("b"), now + Duration::from_secs(1));
        assert_eq!(names(&away, "t", now), ["a", "b"]);
        assert!(names(&away, "u", now).is_empty());
        assert_eq!(names(&away, "t", now + EXPECTED_BACK), ["b"]);
        assert!(away.expects("a", now) && !away.expects("a", now + EXPECTED_BACK) && !away.expects("c", now));
        away.back("b");
        assert_eq!(names(&away, "t", now), ["a"]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut away, now) = (Away::default(), Instant::now());
        for number in 0..=AWAY_MAX {
            away.left(entry(&format!("{number:03}")), now + Duration::from_millis(number as u64));
        }
        assert_eq!(names(&away, "t", now).len(), AWAY_MAX);
        assert_eq!(names(&away, "t", now)[0], "001");
    }
}
