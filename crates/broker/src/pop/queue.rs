//! One queue as one consumer group sees it. Pure: times are arguments, nothing is read or written.
//!
//! Everything below `next` has been handed out or passed over; of that, what is in `inflight` is not done yet and all
//! else is. There is no list of acknowledged offsets: being done is being absent.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use karman_remoting::line::Line;

use super::order::Order;
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
    /// Hash of its message group; of use only where the queue has an `order`.
    pub message_group: u32,
    /// For whom the invisible time is extended. One for all messages of a receive: there may be a million in flight.
    pub renewed_for: Option<Arc<Renewal>>,
}

/// The invisible time of what a client holds is extended as long as it lives, and the connection on which it went out: with
/// that it may have been lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The client.
    pub client: Arc<str>,
    /// How it went out.
    pub line: Line,
    /// At most until then. Milliseconds since 1970.
    pub until_ms: u64,
}

impl Renewal {
    /// Of what the client receives at `now_ms`.
    pub fn of(client: Arc<str>, line: Line, now_ms: u64) -> Arc<Self> {
        Arc::new(Self { client, line, until_ms: now_ms + RENEW_MAX_MS })
    }

    /// The client, if what it holds may have arrived.
    pub(crate) fn holder(&self) -> Option<Arc<str>> {
        self.line.is_open().then(|| self.client.clone())
    }

    /// Whether it is to be extended now.
    pub(crate) fn goes_on(&self, now_ms: u64, is_alive: &dyn Fn(&str) -> bool) -> bool {
        now_ms < self.until_ms && self.line.is_open() && is_alive(&self.client)
    }
}

/// What a client holds is renewed for at most this long.
pub(crate) const RENEW_MAX_MS: u64 = 3 * 3_600_000;

/// How long one renewal lasts.
pub(crate) const RENEWAL_MS: u64 = 60_000;

/// The time of a message that waits for an earlier one of its message group: never, until its turn comes.
pub const WITHHELD: u64 = u64::MAX;

/// How long a dead message is kept from being delivered while it is copied, and before a copy that failed is made again.
pub(crate) const BURIAL_MS: u64 = 60_000;

impl InFlight {
    /// Not delivered yet, and deliverable.
    pub(super) fn unseen() -> Self {
        Self { visible_at_ms: 0, attempt: 0, revision: 0, message_group: 0, renewed_for: None }
    }

    /// It waits for an earlier message of its message group.
    pub(super) fn is_withheld(&self) -> bool {
        self.visible_at_ms == WITHHELD
    }

    /// Its time has come: it is extended if a living client holds it. False if not.
    pub(super) fn renew(&mut self, now_ms: u64, is_alive: &dyn Fn(&str) -> bool) -> bool {
        let renewal = self.renewed_for.as_ref().filter(|renewal| renewal.goes_on(now_ms, is_alive));
        let Some(renewal) = renewal else { return false };
        self.visible_at_ms = (now_ms + RENEWAL_MS).min(renewal.until_ms);
        true
    }

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
    /// Of an orderly group: which of them may be delivered.
    pub order: Option<Order>,
    /// Handles with revisions up to this one are from before a reset, and void.
    pub void_to: u32,
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
    /// tells of the acknowledgement but not of the deliveries around it. Gives the message whose turn it is now, if one
    /// was withheld for this one.
    pub fn finish(&mut self, offset: u64) -> Option<u64> {
        self.pass_to(offset);
        self.next = self.next.max(offset + 1);
        let done = self.inflight.remove(&offset)?;
        let inflight = &self.inflight;
        let front =
            self.order.as_mut()?.leave(done.message_group, offset, |other| inflight.contains_key(&other))?;
        let front_entry = self.inflight.get_mut(&front).filter(|entry| entry.is_withheld())?;
        front_entry.visible_at_ms = 0;
        Some(front)
    }

    /// Makes everything from `next` up to `offset` wait for delivery, and says what that is: who is live schedules it.
    pub fn pass_to(&mut self, offset: u64) -> Range<u64> {
        let all_missed = self.next..offset.max(self.next);
        for missed in all_missed.clone() {
            self.inflight.insert(missed, InFlight::unseen());
            if let Some(order) = &mut self.order {
                order.is_stale = true;
            }
        }
        self.next = self.next.max(offset);
        all_missed
    }

    /// It is not known which message of each message group is the front.
    pub fn is_stale(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_stale)
    }

    /// Whether the message may be delivered as far as its message group goes.
    pub fn is_front(&self, offset: u64) -> bool {
        match (&self.order, self.inflight.get(&offset)) {
            (Some(order), Some(entry)) => order.is_front(entry.message_group, offset),
            _ => true,
        }
    }

    /// Puts everything in flight into the line of its message group; these are in the order of the offsets.
    pub fn put_in_order(&mut self, message_groups: Vec<u32>) {
        let mut order = Order::default();
        for ((&offset, entry), message_group) in self.inflight.iter_mut().zip(message_groups) {
            entry.message_group = message_group;
            let is_front = order.join(entry.message_group, offset);
            if is_front && entry.is_withheld() {
                entry.visible_at_ms = 0;
            } else if !is_front && entry.attempt == 0 {
                entry.visible_at_ms = WITHHELD;
            }
        }
        self.order = Some(order);
    }

    /// The group is not orderly any more: nothing is withheld.
    pub fn drop_order(&mut self) {
        self.order = None;
        for entry in self.inflight.values_mut().filter(|entry| entry.is_withheld()) {
            entry.visible_at_ms = 0;
        }
    }

    /// Everything below `offset` counts as done from now on, and nothing else.
    pub fn reset(&mut self, offset: u64) {
        self.next = offset;
        self.inflight.clear();
        self.order = self.order.is_some().then(Order::default);
    }

    /// Takes over what a record or a snapshot says. Taking the same twice, or something older, changes nothing that
    /// matters: what is done stays done.
    pub fn apply(&mut self, progress: &QueueProgress) {
        if progress.reset {
            self.reset(progress.floor);
        }
        self.void_to = self.void_to.max(progress.void_to);
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
            let entry =
                InFlight { visible_at_ms: later.visible_at_ms, attempt: later.attempt, ..InFlight::unseen() };
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
        // What was never delivered is known by not being done.
        let delivered = self.inflight.iter().filter(|(_, entry)| entry.attempt > 0);
        let later = delivered.map(|(&offset, entry)| Later {
            offset,
            // What is with a consumer may be delivered at once after a restart: nobody knows whether it arrived.
            visible_at_ms: if entry.renewed_for.is_some() || entry.is_withheld() {
                0
            } else {
                entry.visible_at_ms
            },
            attempt: entry.attempt,
        });
        let (later, void_to) = (later.collect(), self.void_to);
        QueueProgress { queue_id, floor, done, later, reset: false, void_to }
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
        QueueProgress { done: vec![start, count], ..Default::default() }
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
