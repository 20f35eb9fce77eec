//! Which messages are claimed or done, in memory. Pure: the time is an argument, in milliseconds of whatever clock.
//!
//! Owned by a store, behind its lock.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{Claim, ClaimToken, DedupeError, DedupeLimits};

/// A group and a message id, in a size of its own: ids are the producers' and may be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(pub(super) [u8; Key::LEN]);

impl Key {
    pub(super) const LEN: usize = 16;

    pub(super) fn new(group: &str, message_id: &str) -> Self {
        let mut hash = Sha256::new();
        // So that no other group and id are the same bytes.
        hash.update((group.len() as u64).to_le_bytes());
        hash.update(group);
        hash.update(message_id);
        let digest = hash.finalize();
        Self(std::array::from_fn(|index| digest[index]))
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    Claimed { token: ClaimToken, until: u64 },
    Done { at: u64, until: u64 },
}

impl State {
    fn until(self) -> u64 {
        match self {
            Self::Claimed { until, .. } | Self::Done { until, .. } => until,
        }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    limits: DedupeLimits,
    entries: HashMap<Key, State>,
    /// Every entry once, by the time at which it is forgotten.
    ends: BTreeSet<(u64, Key)>,
}

impl Table {
    pub(super) fn new(limits: DedupeLimits) -> Self {
        Self { limits, entries: HashMap::new(), ends: BTreeSet::new() }
    }

    pub(super) fn claim(&mut self, key: Key, token: ClaimToken, now: u64) -> Result<Claim, DedupeError> {
        self.forget_old(now);
        match self.entries.get(&key) {
            Some(State::Claimed { .. }) => return Ok(Claim::InProgress),
            Some(State::Done { .. }) => return Ok(Claim::Done),
            None => {}
        }
        let DedupeLimits { capacity, window, claim } = self.limits;
        if self.entries.len() >= capacity {
            return Err(DedupeError::Full { capacity, window });
        }
        self.insert(key, State::Claimed { token, until: now.saturating_add(millis(claim)) });
        Ok(Claim::New(token))
    }

    /// Also of what nobody holds any more: it may exceed the capacity by as many effects as are running.
    pub(super) fn done(&mut self, key: Key, at: u64) {
        let until = at.saturating_add(millis(self.limits.window));
        self.insert(key, State::Done { at, until });
    }

    pub(super) fn release(&mut self, key: Key, token: ClaimToken) {
        match self.entries.get(&key) {
            Some(&State::Claimed { token: held, until }) if held == token => {
                self.entries.remove(&key);
                self.ends.remove(&(until, key));
            }
            _ => {}
        }
    }

    pub(super) fn forget_old(&mut self, now: u64) {
        while let Some(&(until, key)) = self.ends.first().filter(|(until, _)| *until <= now) {
            self.ends.remove(&(until, key));
            self.entries.remove(&key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is done, and since when.
    pub(super) fn dones(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        self.entries.iter().filter_map(|(key, state)| match state {
            State::Done { at, .. } => Some((*key, *at)),
            State::Claimed { .. } => None,
        })
    }

    fn insert(&mut self, key: Key, state: State) {
        if let Some(old) = self.entries.insert(key, state) {
            self.ends.remove(&(old.until(), key));
        }
        self.ends.insert((state.until(), key));
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIM: u64 = 10;
    const WINDOW: u64 = 100;

    fn table(capacity: usize) -> Table {
        let limits = DedupeLimits {
            window: Duration::from_millis(WINDOW),
            claim: Duration::from_millis(CLAIM),
            capacity,
        };
        Table::new(limits)
    }

    fn key(id: u32) -> Key {
        Key::new("g", &id.to_string())
    }

    const FIRST: ClaimToken = ClaimToken(1);
    const SECOND: ClaimToken = ClaimToken(2);

    #[test]
    fn a_claim_is_over_at_its_time_and_a_message_is_forgotten_at_its_own() {
        let mut table = table(9);
        assert_eq!(table.claim(key(1), FIRST, 0).unwrap(), Claim::New(FIRST));
        assert_eq!(table.claim(key(1), SECOND, CLAIM - 1).unwrap(), Claim::InProgress);
        assert_eq!(table.claim(key(1), SECOND, CLAIM).unwrap(), Claim::New(SECOND));
        table.done(key(1), CLAIM);
        assert_eq!(table.claim(key(1), FIRST, CLAIM + WINDOW - 1).unwrap(), Claim::Done);
        assert_eq!(table.claim(key(1), FIRST, CLAIM + WINDOW).unwrap(), Claim::New(FIRST));
    }

    #[test]
    fn who_has_lost_a_claim_cannot_release_it_and_its_effect_counts_all_the_same() {
        let mut table = table(9);
        table.claim(key(1), FIRST, 0).unwrap();
        table.claim(key(1), SECOND, CLAIM).unwrap();
        table.release(key(1), FIRST);
        assert_eq!(table.claim(key(1), FIRST, CLAIM).unwrap(), Claim::InProgress);
        table.done(key(1), CLAIM);
        table.release(key(1), SECOND);
        assert_eq!(table.claim(key(1), FIRST, CLAIM).unwrap(), Claim::Done);
    }

    #[test]
    fn a_full_table_refuses_what_is_new_and_keeps_what_it_has_promised() {
        let mut table = table(2);
        table.done(key(1), 0);
        table.claim(key(2), FIRST, 0).unwrap();
        let error = table.claim(key(3), FIRST, 0).unwrap_err();
        assert!(matches!(error, DedupeError::Full { capacity: 2, .. }), "{error}");
        assert_eq!(table.claim(key(1), FIRST, 0).unwrap(), Claim::Done);
        table.release(key(2), FIRST);
        assert_eq!(table.claim(key(3), FIRST, 0).unwrap(), Claim::New(FIRST));
        assert_eq!((table.len(), table.dones().count()), (2, 1));
        table.forget_old(WINDOW);
        assert_eq!((table.len(), table.ends.len()), (0, 0));
    }

    #[test]
    fn groups_and_ids_that_read_alike_are_apart() {
        assert_ne!(Key::new("ab", "c"), Key::new("a", "bc"));
    }
}
