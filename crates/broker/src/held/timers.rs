//! Delayed messages by their delivery time: where they lie, and which of them somebody is about to finish. Pure.
//!
//! One map, so that each costs less than 64 bytes: the key is 16, the value 8.

use std::collections::BTreeMap;

use karman_store::PhysicalOffset;

/// Stands for a delayed message; in the order of delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimerKey {
    /// When it is to be delivered. Milliseconds since 1970.
    pub due_ms: u64,
    /// Tells those of one millisecond apart.
    pub id: u64,
}

/// Where the message lies. The highest bit says that it is claimed: no log is that long.
#[derive(Clone, Copy, Debug)]
struct Place(u64);

const CLAIMED: u64 = 1 << 63;

impl Place {
    fn at(self) -> PhysicalOffset {
        PhysicalOffset(self.0 & !CLAIMED)
    }

    fn is_claimed(self) -> bool {
        self.0 & CLAIMED != 0
    }
}

/// All delayed messages that wait.
#[derive(Debug, Default)]
pub struct Timers {
    places: BTreeMap<TimerKey, Place>,
}

impl Timers {
    /// A message is held.
    pub fn add(&mut self, key: TimerKey, at: PhysicalOffset) {
        self.places.insert(key, Place(at.0));
    }

    /// It lies elsewhere; nothing happens when it is not held any more.
    pub fn moved(&mut self, key: TimerKey, at: PhysicalOffset) {
        if let Some(place) = self.places.get_mut(&key) {
            place.0 = place.0 & CLAIMED | at.0;
        }
    }

    /// It was delivered, recalled or dropped.
    pub fn remove(&mut self, key: TimerKey) {
        self.places.remove(&key);
    }

    /// Where it lies, if it is held.
    pub fn place(&self, key: TimerKey) -> Option<PhysicalOffset> {
        self.places.get(&key).map(|place| place.at())
    }

    /// Claims one, so that nobody else finishes it. `Err(true)`: somebody has; `Err(false)`: it is not held.
    pub fn claim(&mut self, key: TimerKey) -> Result<PhysicalOffset, bool> {
        let place = self.places.get_mut(&key).ok_or(false)?;
        if place.is_claimed() {
            return Err(true);
        }
        place.0 |= CLAIMED;
        Ok(place.at())
    }

    /// Claims up to `max` of those whose time has come, in order.
    pub fn claim_due(&mut self, now_ms: u64, max: usize) -> Vec<(TimerKey, PhysicalOffset)> {
        let end = TimerKey { due_ms: now_ms.saturating_add(1), id: 0 };
        let due = self.places.range_mut(..end).filter(|(_, place)| !place.is_claimed()).take(max);
        due.map(|(key, place)| {
            place.0 |= CLAIMED;
            (*key, place.at())
        })
        .collect()
    }

    /// Whoever claimed it has not finished it.
    pub fn release(&mut self, key: TimerKey) {
        if let Some(place) = self.places.get_mut(&key) {
            place.0 &= !CLAIMED;
        }
    }

    /// When the first one that is not claimed is due.
    pub fn first_due(&self) -> Option<u64> {
        self.places.iter().find(|(_, place)| !place.is_claimed()).map(|(key, _)| key.due_ms)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Shows up to `max` of those from `from` on, claimed or not, and returns where to go on; `None` behind the last.
    pub fn visit(
        &self,
        from: TimerKey,
        max: usize,
        mut show: impl FnMut(TimerKey, PhysicalOffset),
    ) -> Option<TimerKey> {
        let mut rest = self.places.range(from..);
        rest.by_ref().take(max).for_each(|(key, place)| show(*key, place.at()));
        rest.next().map(|(key, _)| *key)
    }

    /// As they were; in order, so that the map is built at once, and dense.
    pub fn restored(timers: impl Iterator<Item = (TimerKey, PhysicalOffset)>) -> Self {
        Self { places: timers.map(|(key, at)| (key, Place(at.0))).collect() }
    }
}
