//! One queue as one consumer group sees it. Pure: times are arguments, nothing is read or written.
//!
//! Everything below `next` has been handed out or passed over; of that, what is in `inflight` is not done yet and all
//! else is. There is no list of acknowledged offsets: being done is being absent.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::records::{Later, QueueProgress};

/// A message that is with a consumer, or waits for its next delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// From this time it may be delivered again. Milliseconds since 1970.
    pub visible_at_ms: u64,
    /// Deliveries so far.
    pub attempt: u32,
    /// Grows with each delivery and each change of the invisible time; a handle of an older one is void.
    pub revision: u32,
    /// The client for whom the invisible time is extended as long as it lives, and until when at most.
    pub renewed_for: Option<(Arc<str>, u64)>,
}

/// How long a dead message is kept from being delivered while it is copied.
pub(super) const BURIAL_MS: u64 = 10_000;

impl InFlight {
    /// The message is dead and about to be copied; until when it is kept back. Its last handle is void: an
    /// acknowledgement that came now would meet the copy.
    pub(super) fn begin_burial(&mut self, now_ms: u64) -> u64 {
        self.visible_at_ms = now_ms + BURIAL_MS;
        self.revision += 1;
        self.renewed_for = None;
        self.visible_at_ms
    }
}

/// See the module's comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PopQueue {
    /// The first offset that was never looked at.
    pub next: u64,
    /// Not done, below `next`.
    pub inflight: BTreeMap<u64, InFlight>,
}

impl PopQueue {
    /// Everything below is done.
    pub fn floor(&self) -> u64 {
        self.inflight.first_key_value().map_or(self.next, |(&offset, _)| offset)
    }

    /// Whether `offset` is done.
    pub fn is_done(&self, offset: u64) -> bool {
        offset < self.next && !self.inflight.contains_key(&offset)
    }

    /// `offset` is done. Offsets between that this state never saw are taken as not delivered: after a crash the log
    /// tells of the acknowledgement but not of the deliveries around it.
    pub fn finish(&mut self, offset: u64) {
        self.pass_to(offset);
        self.next = self.next.max(offset + 1);
        self.inflight.remove(&offset);
    }

    /// Makes everything from `next` up to `offset` wait for delivery.
    pub fn pass_to(&mut self, offset: u64) {
        let unseen = InFlight { visible_at_ms: 0, attempt: 0, revision: 0, renewed_for: None };
        for missed in self.next..offset {
            self.inflight.insert(missed, unseen.clone());
        }
        self.next = self.next.max(offset);
    }

    /// Takes over what a record or a snapshot says. Taking the same twice, or something older, changes nothing that
    /// matters: what is done stays done.
    pub fn apply(&mut self, progress: &QueueProgress) {
        if progress.floor > self.floor() {
            self.inflight = self.inflight.split_off(&progress.floor);
            self.next = self.next.max(progress.floor);
        }
        for range in progress.done.chunks_exact(2) {
            let (start, end) = (range[0], range[0].saturating_add(range[1]));
            self.pass_to(start);
            let mut rest = self.inflight.split_off(&start);
            self.inflight.append(&mut rest.split_off(&end));
            self.next = self.next.max(end);
        }
        for later in &progress.later {
            if self.is_done(later.offset) {
                continue;
            }
            self.pass_to(later.offset);
            self.next = self.next.max(later.offset + 1);
            let entry = InFlight {
                visible_at_ms: later.visible_at_ms,
                attempt: later.attempt,
                revision: 0,
                renewed_for: None,
            };
            self.inflight.insert(later.offset, entry);
        }
    }

    /// All there is, for a snapshot.
    pub fn snapshot(&self, queue_id: u32) -> QueueProgress {
        let floor = self.floor();
        let mut done = Vec::new();
        let mut from = floor;
        let mut push = |start: u64, end: u64| {
            if end > start {
                done.extend([start, end - start]);
            }
        };
        for &offset in self.inflight.keys() {
            push(from, offset);
            from = offset + 1;
        }
        push(from.max(floor), self.next);
        let later = self.inflight.iter().map(|(&offset, entry)| Later {
            offset,
            // What is with a consumer may be delivered at once after a restart: nobody knows whether it arrived.
            visible_at_ms: if entry.renewed_for.is_some() { 0 } else { entry.visible_at_ms },
            attempt: entry.attempt,
        });
        QueueProgress { queue_id, floor, done, later: later.collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ack_ahead_leaves_what_lies_between_to_be_delivered() {
        let mut queue = PopQueue::default();
        queue.finish(2);
        assert_eq!((queue.next, queue.floor()), (3, 0));
        assert!(queue.is_done(2) && !queue.is_done(0) && !queue.is_done(1));
        queue.finish(0);
        queue.finish(1);
        assert_eq!(queue.floor(), 3);
    }

    #[test]
    fn an_older_record_does_not_bring_back_what_a_snapshot_says_is_done() {
        let mut queue = PopQueue::default();
        queue.apply(&done(0, 3));
        let older = vec![Later { offset: 1, visible_at_ms: 5, attempt: 2 }];
        queue.apply(&QueueProgress { later: older, ..Default::default() });
        assert!(queue.is_done(1));
    }

    fn done(start: u64, count: u64) -> QueueProgress {
        QueueProgress { queue_id: 0, floor: 0, done: vec![start, count], later: vec![] }
    }

    proptest! {
        /// Records in any order and number, some of them twice, leave exactly the union of what they say done.
        #[test]
        fn what_is_done_is_the_union_of_all_that_was_said(
            ranges in prop::collection::vec((0..60_u64, 1..5_u64), 0..40),
            floors in prop::collection::vec(0..30_u64, 0..4),
        ) {
            let mut queue = PopQueue::default();
            for &(start, count) in &ranges {
                queue.apply(&done(start, count));
                queue.apply(&done(start, count));
            }
            for &floor in &floors {
                queue.apply(&QueueProgress { floor, ..Default::default() });
            }
            let floor = floors.iter().copied().max().unwrap_or(0);
            for offset in 0..80_u64 {
                let said = offset < floor || ranges.iter().any(|&(start, count)| (start..start + count).contains(&offset));
                prop_assert_eq!(queue.is_done(offset), said, "offset {}", offset);
            }
            let mut restored = PopQueue::default();
            restored.apply(&queue.snapshot(0));
            prop_assert_eq!(restored, queue);
        }
    }
}
