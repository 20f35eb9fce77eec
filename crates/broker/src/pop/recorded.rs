//! What is put on record of a group's way through a topic. Owned by its [`Pop`](super::Pop), behind the same lock.
//!
//! Every record says the floor of its queues: so whoever reads the log again knows that what lies in front is done, or was
//! deleted unread, and does not wait for it.

use std::ops::Range;

use super::{Delivery, Pop, PopQueue, Position};
use crate::records::{Later, QueueProgress};

/// What was passed over is recorded when it has come to this many ranges, acknowledgement or not.
const PASSED_MAX: usize = 256;

/// What no record says yet.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Done without a delivery, as ranges: queue, start, count.
    passed: Vec<(u32, u64, u64)>,
    /// Some of it was deleted, not passed over: many messages at once, so it is said soon.
    skipped: bool,
}

impl Recorder {
    /// Nobody wants it.
    pub(super) fn pass(&mut self, position: Position) {
        match self.passed.last_mut() {
            Some((queue_id, start, count))
                if *queue_id == position.queue_id && *start + *count == position.offset =>
            {
                *count += 1;
            }
            _ => self.passed.push((position.queue_id, position.offset, 1)),
        }
    }

    /// They were deleted before anyone looked at them.
    pub(super) fn skip(&mut self, queue_id: u32, gone: Range<u64>) {
        self.passed.push((queue_id, gone.start, gone.end - gone.start));
        self.skipped = true;
    }

    /// What is done in a queue is not done any more.
    pub(super) fn forget(&mut self, queue_id: u32) {
        self.passed.retain(|(passed, ..)| *passed != queue_id);
    }

    fn take(&mut self) -> Vec<(u32, u64, u64)> {
        self.skipped = false;
        std::mem::take(&mut self.passed)
    }
}

impl Pop {
    /// The record of what was passed over, when it is time for one. Empty otherwise.
    pub fn passed_record(&mut self) -> Vec<QueueProgress> {
        let due = self.recorder.passed.len() >= PASSED_MAX || self.recorder.skipped;
        if due { self.done_record(&[]) } else { Vec::new() }
    }

    /// The record of what became done: `positions`, and what was passed over since the last record.
    pub fn done_record(&mut self, positions: &[Position]) -> Vec<QueueProgress> {
        let mut ranges = self.recorder.take();
        ranges.extend(positions.iter().map(|position| (position.queue_id, position.offset, 1)));
        ranges.sort_unstable();
        let mut queues: Vec<QueueProgress> = Vec::new();
        for (queue_id, start, count) in ranges {
            let queue = self.record_of(&mut queues, queue_id);
            // Below the floor everything is done anyway.
            if start + count > queue.floor {
                queue.done.extend([start, count]);
            }
        }
        queues
    }

    /// The record that says how far each queue is.
    pub fn floors(&self) -> Vec<QueueProgress> {
        let floor = |(queue_id, queue): (u32, &PopQueue)| QueueProgress {
            queue_id,
            floor: queue.floor(),
            ..QueueProgress::default()
        };
        (0..).zip(&self.queues).map(floor).collect()
    }

    /// The record of a message that waits for another delivery.
    pub fn later_record(&self, queue_id: u32, later: Later) -> Vec<QueueProgress> {
        let mut queues = Vec::new();
        self.record_of(&mut queues, queue_id).later.push(later);
        queues
    }

    /// What is recorded of deliveries: only second and later ones, so that attempts grow across a restart.
    pub fn redelivered(&self, deliveries: &[Delivery]) -> Vec<QueueProgress> {
        let mut queues: Vec<QueueProgress> = Vec::new();
        for delivery in deliveries.iter().filter(|delivery| delivery.attempt > 1) {
            let later = Later {
                offset: delivery.position.offset,
                visible_at_ms: delivery.visible_at_ms,
                attempt: delivery.attempt,
            };
            self.record_of(&mut queues, delivery.position.queue_id).later.push(later);
        }
        queues
    }

    fn record_of<'a>(&self, queues: &'a mut Vec<QueueProgress>, queue_id: u32) -> &'a mut QueueProgress {
        let at = queues.iter().rposition(|queue| queue.queue_id == queue_id).unwrap_or_else(|| {
            let floor = self.queues.get(queue_id as usize).map_or(0, PopQueue::floor);
            queues.push(QueueProgress { queue_id, floor, ..QueueProgress::default() });
            queues.len() - 1
        });
        &mut queues[at]
    }
}
