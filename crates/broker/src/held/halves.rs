//! Half messages: where they lie, how often producers were asked about them, and when that is due again. Pure.

use std::collections::{BTreeMap, BTreeSet};

use karman_store::PhysicalOffset;

/// A message whose transaction is not decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// Where it lies.
    pub at: PhysicalOffset,
    /// Number of its topic.
    pub topic: u32,
    /// How often a producer was asked.
    pub checks: u32,
    /// When one is asked next. Milliseconds since 1970.
    pub next_check_ms: u64,
    /// When it was stored first. Milliseconds since 1970.
    pub stored_ms: u64,
}

/// All half messages.
#[derive(Debug, Default)]
pub struct Halves {
    /// Ordered, so that they can be gone through bit by bit.
    by_id: BTreeMap<u64, Half>,
    /// By the time of the next check: those that nobody is about to decide.
    checks: BTreeSet<(u64, u64)>,
}

impl Halves {
    /// A message is held.
    pub fn add(&mut self, id: u64, half: Half) {
        self.remove(id);
        self.by_id.insert(id, half);
        self.checks.insert((half.next_check_ms, id));
    }

    /// It lies elsewhere; nothing happens when it is not held any more.
    pub fn moved(&mut self, id: u64, at: PhysicalOffset) {
        if let Some(half) = self.by_id.get_mut(&id) {
            half.at = at;
        }
    }

    /// A producer was asked, or there was none to ask.
    pub fn checked(&mut self, id: u64, checks: u32, next_check_ms: u64) {
        let Some(half) = self.by_id.get_mut(&id) else { return };
        if self.checks.remove(&(half.next_check_ms, id)) {
            self.checks.insert((next_check_ms, id));
        }
        (half.checks, half.next_check_ms) = (checks, next_check_ms);
    }

    /// It was decided, or dropped.
    pub fn remove(&mut self, id: u64) {
        if let Some(half) = self.by_id.remove(&id) {
            self.checks.remove(&(half.next_check_ms, id));
        }
    }

    /// What is known of it, if it is held.
    pub fn get(&self, id: u64) -> Option<Half> {
        self.by_id.get(&id).copied()
    }

    /// Claims one, so that nobody else decides it. `Err(true)`: somebody has; `Err(false)`: it is not held.
    pub fn claim(&mut self, id: u64) -> Result<Half, bool> {
        let half = self.get(id).ok_or(false)?;
        if self.checks.remove(&(half.next_check_ms, id)) { Ok(half) } else { Err(true) }
    }

    /// Whoever claimed it has not decided it.
    pub fn release(&mut self, id: u64) {
        if let Some(half) = self.by_id.get(&id) {
            self.checks.insert((half.next_check_ms, id));
        }
    }

    /// Up to `max` of those that a producer is to be asked about, in order.
    pub fn due(&self, now_ms: u64, max: usize) -> Vec<(u64, Half)> {
        let due = self.checks.iter().take_while(|(at_ms, _)| *at_ms <= now_ms).take(max);
        due.map(|(_, id)| (*id, self.by_id[id])).collect()
    }

    /// When the next one is to be asked about.
    pub fn first_check_ms(&self) -> Option<u64> {
        self.checks.first().map(|(at_ms, _)| *at_ms)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Shows up to `max` of those from `from` on, claimed or not, and returns where to go on; `None` behind the last.
    pub fn visit(&self, from: u64, max: usize, mut show: impl FnMut(u64, &Half)) -> Option<u64> {
        let mut rest = self.by_id.range(from..);
        rest.by_ref().take(max).for_each(|(id, half)| show(*id, half));
        rest.next().map(|(id, _)| *id)
    }
}
