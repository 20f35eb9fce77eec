//! One lite topic as one consumer group sees it. Pure; owned by its [`LitePop`](super::pop::LitePop).
//!
//! A lite topic is read strictly one message behind the other: everything in front of the cursor is done, the message at
//! the cursor is with a consumer or waits for one, and nothing behind it was ever delivered.

use std::sync::Arc;

use crate::pop::{Held, Renewal, Void};
use crate::records::{Later, QueueProgress};

/// See the module's comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Everything below is done.
    pub floor: u64,
    /// From when the message at the floor may be delivered; 0: at once. Milliseconds since 1970.
    pub visible_at_ms: u64,
    /// Deliveries of it so far.
    pub attempt: u32,
    /// The last of these does not count: the next one has the same number.
    pub again: bool,
    /// Grows with each delivery and each change; a handle of an older one is void. 0: not delivered by this process.
    pub revision: u32,
    /// For whom the invisible time is extended.
    pub renewed_for: Option<Arc<Renewal>>,
}

impl Cursor {
    /// A group that begins at `floor`.
    pub fn at(floor: u64) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Goes on to `floor`, if that is ahead. What was at the former place is done.
    pub fn advance(&mut self, floor: u64) {
        if floor > self.floor {
            *self = Self { revision: self.revision, ..Self::at(floor) };
        }
    }

    /// Goes on from `floor`, wherever that is; handles given out before are void.
    pub fn reset(&mut self, floor: u64, revision_base: u32) {
        *self = Self { revision: self.next_revision(revision_base), ..Self::at(floor) };
    }

    /// The revision of the next delivery or change: above those of this process, and of every process before.
    pub fn next_revision(&self, base: u32) -> u32 {
        self.revision.max(base).saturating_add(1)
    }

    /// Whether `held` still speaks for its message at `now_ms`.
    pub fn check(&self, now_ms: u64, held: &Held, is_alive: &dyn Fn(&str) -> bool) -> Result<(), Void> {
        if held.position.offset < self.floor {
            return Err(Void::Done);
        }
        if held.position.offset == self.floor && self.revision == 0 {
            // Delivered before a restart: the handle alone knows its time.
            return if held.expires_ms <= now_ms { Err(Void::Expired) } else { Ok(()) };
        }
        if held.position.offset > self.floor || held.revision != self.revision {
            return Err(Void::Superseded);
        }
        let renewed = self.renewal(now_ms, is_alive).is_some();
        if self.visible_at_ms <= now_ms && !renewed { Err(Void::Expired) } else { Ok(()) }
    }

    /// Whether it was delivered often enough.
    pub fn is_dead(&self, attempts_max: u32) -> bool {
        self.counted() >= attempts_max
    }

    /// Deliveries that count.
    fn counted(&self) -> u32 {
        self.attempt.saturating_sub(u32::from(self.again))
    }

    /// It is delivered once more.
    pub fn deliver(&mut self, revision_base: u32) {
        self.attempt = self.counted() + 1;
        self.again = false;
        self.revision = self.next_revision(revision_base);
    }

    /// Until when it is renewed at most, if somebody lives who holds it.
    pub fn renewal(&self, now_ms: u64, is_alive: &dyn Fn(&str) -> bool) -> Option<u64> {
        let renewal = self.renewed_for.as_ref().filter(|renewal| renewal.goes_on(now_ms, is_alive));
        renewal.map(|renewal| renewal.until_ms)
    }

    /// Takes over what a record or a snapshot says. Taking the same twice, or something older, changes nothing.
    pub fn apply(&mut self, progress: &QueueProgress) {
        if progress.reset {
            *self = Self::at(progress.floor);
        }
        self.advance(progress.floor);
        for later in progress.later.iter().filter(|later| later.offset == self.floor) {
            (self.visible_at_ms, self.attempt, self.again) = (later.visible_at_ms, later.attempt, false);
        }
    }

    /// What is recorded of it: how far it is, and the message that waits for another delivery.
    pub fn record(&self, queue_id: u32) -> QueueProgress {
        let later = (self.counted() > 0 || self.visible_at_ms > 0).then(|| Later {
            offset: self.floor,
            // What is with a consumer may be delivered at once after a restart: nobody knows whether it arrived. Not 0,
            // so that it is looked at whether it is dead.
            visible_at_ms: if self.renewed_for.is_some() { 1 } else { self.visible_at_ms },
            attempt: self.counted(),
        });
        let later = later.into_iter().collect();
        QueueProgress { queue_id, floor: self.floor, later, ..QueueProgress::default() }
    }
}
