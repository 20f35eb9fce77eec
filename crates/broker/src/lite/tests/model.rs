//! What it means to read many ordered topics together, in the plainest way.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{ATTEMPTS_MAX, INVISIBLE_MS};
use crate::lite::pop::Handed;
use crate::pop::Position;
use crate::pop::queue::RENEW_MAX_MS;
use crate::pop::queue::RENEWAL_MS;

/// What the model knows of one lite topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lite {
    /// Everything below is done; `None`: the group never had to do with it.
    pub(super) floor: Option<u64>,
    /// Not to be delivered before; 0: at once.
    pub(super) until_ms: u64,
    /// Deliveries that count.
    pub(super) attempt: u32,
    /// The message is with somebody, and that will not count.
    pub(super) paused: bool,
    /// Revision of the handle that is good, and until when its client's life renews it.
    pub(super) handle: Option<u32>,
    pub(super) renewed_ms: u64,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) lites: BTreeMap<u32, Lite>,
    /// The same as the log has it.
    pub(super) logged: BTreeMap<u32, Lite>,
    pub(super) wants: BTreeSet<(usize, u32)>,
    pub(super) alive: bool,
}

impl Model {
    pub(super) fn move_to(&mut self, queue: u32, floor: u64) {
        self.lites.insert(queue, Lite { floor: Some(floor), ..Lite::default() });
    }

    pub(super) fn logs(&mut self, queue: u32) {
        let mut lite = self.lites[&queue].clone();
        if lite.renewed_ms > 0 {
            lite.until_ms = 1;
        }
        lite.attempt -= u32::from(lite.paused);
        self.logged.insert(queue, Lite { handle: None, renewed_ms: 0, paused: false, ..lite });
    }

    pub(super) fn has_more(&self, queue: u32, range: &Range<u64>) -> bool {
        let floor = self.lites.get(&queue).and_then(|lite| lite.floor);
        floor.is_some_and(|floor| floor.max(range.start) < range.end)
    }

    pub(super) fn is_deliverable(&self, queue: u32, range: &Range<u64>) -> bool {
        self.has_more(queue, range) && self.lites[&queue].until_ms == 0
    }

    pub(super) fn is_good(&self, handed: &Handed, now_ms: u64) -> bool {
        self.lites.get(&handed.position.queue_id).is_some_and(|lite| {
            lite.floor == Some(handed.position.offset)
                && lite.handle == Some(handed.revision)
                && (lite.until_ms > now_ms || self.alive && lite.renewed_ms > now_ms)
        })
    }

    pub(super) fn delivers(&mut self, handed: &Handed, now_ms: u64, renew: bool, again: bool) {
        let lite = self.lites.get_mut(&handed.position.queue_id).unwrap();
        lite.attempt += u32::from(!again && !lite.paused);
        lite.paused = false;
        lite.until_ms = now_ms + INVISIBLE_MS;
        lite.handle = Some(handed.revision);
        lite.renewed_ms = if renew { now_ms + RENEW_MAX_MS } else { 0 };
    }

    /// Lets time pass; what is dead now.
    pub(super) fn tick(&mut self, now_ms: u64) -> BTreeSet<Position> {
        let mut dead = BTreeSet::new();
        for (&queue_id, lite) in self.lites.iter_mut().filter(|(_, lite)| lite.until_ms > 0) {
            if lite.until_ms > now_ms {
                continue;
            }
            if self.alive && lite.renewed_ms > now_ms {
                lite.until_ms = (now_ms + RENEWAL_MS).min(lite.renewed_ms);
                continue;
            }
            (lite.until_ms, lite.handle, lite.renewed_ms) = (0, None, 0);
            if lite.attempt - u32::from(lite.paused) >= ATTEMPTS_MAX {
                dead.insert(Position { queue_id, offset: lite.floor.unwrap() });
            }
        }
        dead
    }
}
