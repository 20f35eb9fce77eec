//! A consumer group on a topic: who gets which message, and when again.
//!
//! The core ([`Pop`]) is pure: commands in, deliveries and effects out; time, index and liveness of clients are
//! arguments. One [`Pop`] is owned by one [`GroupTopic`](crate::progress::GroupTopic), behind its lock, on any data
//! thread. Redelivery copies nothing: a message is delivered again from where it lies.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::records::QueueProgress;

pub(crate) mod attempts;
mod order;
pub mod queue;
mod recorded;
pub(crate) mod take;

use attempts::Attempts;
pub use queue::Renewal;
use queue::{InFlight, PopQueue};
use recorded::Recorder;
pub use take::{Delivery, NoEntries, Surroundings, Take, Taken};

/// Where a message lies in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the queue in the topic.
    pub queue_id: u32,
    /// Offset in that queue.
    pub offset: u64,
}

/// Why a handle is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Void {
    /// The invisible time has ended.
    Expired,
    /// The message was delivered again, or its invisible time was changed: a newer handle exists.
    Superseded,
    /// The message is done.
    Done,
}

/// The part of a receipt handle that the core checks.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub position: Position,
    pub revision: u32,
    /// Deliveries at the time of the handle.
    pub attempt: u32,
    /// The end of the invisible time at the time of the handle.
    pub expires_ms: u64,
}

/// A message is about to be copied to the dead letters.
#[derive(Debug)]
pub struct Burial {
    /// As it was.
    before: InFlight,
    /// As long as it has this one nothing else has happened to it.
    revision: u32,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Pop {
    queues: Vec<PopQueue>,
    /// When something becomes visible again. Entries are not removed when they are overtaken; each is checked when due.
    due: BinaryHeap<Reverse<(u64, Position)>>,
    /// With more than so many in `due` it is asked whether too many are overtaken: that looks at every queue.
    due_max: usize,
    /// Some queue may have an `order`.
    has_order: bool,
    /// The queue to begin with, so that none is preferred.
    turn: usize,
    /// Where the search for dead messages that nobody asks for goes on.
    swept: Position,
    /// What was passed over and is not in any record yet.
    recorder: Recorder,
    /// Of an orderly group: what may have to be handed out once more.
    attempts: Attempts,
    /// The highest revision of a handle that this process gave out.
    revision_max: u32,
}

/// What the state knows of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// Not looked at yet.
    Waiting,
    /// It waits for an earlier message of its message group: the one at this offset of the same queue.
    Withheld { front: u64 },
    /// Delivered so often, and to be delivered again at `visible_at_ms` unless it is acknowledged; `holder` is a client
    /// for whom it is renewed. With attempt 0 it is to be delivered at once.
    InFlight { attempt: u32, visible_at_ms: u64, holder: Option<Arc<str>> },
    /// Acknowledged, passed over, given up or dead.
    Done,
}

/// How far a group is with one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Everything below is done.
    pub floor: u64,
    /// The first offset that was never looked at.
    pub next: u64,
    /// Delivered and not done.
    pub inflight: u64,
    /// Waiting for an earlier message of their message group.
    pub withheld: u64,
}

impl Pop {
    /// A group that has not read anything: it begins at `starts`, one offset for each queue.
    pub fn new(starts: &[u64]) -> Self {
        let queues = starts.iter().map(|&next| PopQueue { next, ..PopQueue::default() }).collect();
        Self {
            queues,
            due: BinaryHeap::new(),
            due_max: take::DUE_SLACK,
            has_order: false,
            turn: 0,
            swept: Position { queue_id: 0, offset: 0 },
            recorder: Recorder::default(),
            attempts: Attempts::default(),
            revision_max: 0,
        }
    }

    /// Whether `held` still speaks for its message at `now_ms`.
    pub fn check(&self, now_ms: u64, held: &Held, is_alive: &dyn Fn(&str) -> bool) -> Result<(), Void> {
        let Some(queue) = self.queues.get(held.position.queue_id as usize) else { return Err(Void::Done) };
        if queue.is_done(held.position.offset) {
            return Err(Void::Done);
        }
        if held.revision <= queue.void_to {
            return Err(Void::Superseded);
        }
        let entry = queue.inflight.get(&held.position.offset).filter(|entry| entry.revision > 0);
        let Some(entry) = entry else {
            // Delivered before a restart: the handle alone knows its time.
            return if held.expires_ms <= now_ms { Err(Void::Expired) } else { Ok(()) };
        };
        if held.revision != entry.revision {
            return Err(Void::Superseded);
        }
        let renewed = entry.renewed_for.as_ref().is_some_and(|renewal| renewal.goes_on(now_ms, is_alive));
        if entry.visible_at_ms <= now_ms && !renewed { Err(Void::Expired) } else { Ok(()) }
    }

    /// A message is done. True when another may be delivered now: one that was withheld for it, or those in front of it
    /// that only the process before this one had handed out.
    pub fn finish(&mut self, position: Position) -> bool {
        let Some(queue) = self.queues.get_mut(position.queue_id as usize) else { return false };
        let missed = queue.pass_to(position.offset);
        let next = queue.finish(position.offset);
        let is_more = !missed.is_empty() || next.is_some();
        self.due.extend(missed.chain(next).map(|offset| Reverse((0, Position { offset, ..position }))));
        is_more
    }

    /// The log has a dead letter of a message, which is done by that; true as with [`Self::finish`]. `is_live`: all that was
    /// handed out is known here. What lies behind that in a queue that was reset has been given back since, and stays so.
    pub fn buried(&mut self, position: Position, is_live: bool) -> bool {
        let is_given_back = |queue: &PopQueue| queue.void_to > 0 && position.offset >= queue.next;
        if is_live && self.queues.get(position.queue_id as usize).is_some_and(is_given_back) {
            return false;
        }
        self.finish(position)
    }

    /// From now on everything below `offset` of a queue counts as done, and nothing else; handles of the queue are void.
    pub fn reset(&mut self, queue_id: u32, offset: u64, revision_base: u32) -> Vec<QueueProgress> {
        let Some(queue) = self.queues.get_mut(queue_id as usize) else { return Vec::new() };
        queue.reset(offset);
        // Those of the processes before this one are not above `revision_base`.
        queue.void_to = queue.void_to.max(self.revision_max).max(revision_base);
        self.recorder.forget(queue_id);
        let void_to = queue.void_to;
        vec![QueueProgress { queue_id, floor: offset, reset: true, void_to, ..QueueProgress::default() }]
    }

    /// What is known of one message.
    pub fn message_state(&self, position: Position) -> MessageState {
        let Some(queue) = self.queues.get(position.queue_id as usize) else { return MessageState::Done };
        if position.offset >= queue.next {
            return MessageState::Waiting;
        }
        let Some(entry) = queue.inflight.get(&position.offset) else { return MessageState::Done };
        let front = queue.order.as_ref().and_then(|order| order.front_of(entry.message_group));
        match front.filter(|front| *front != position.offset) {
            Some(front) => MessageState::Withheld { front },
            None => MessageState::InFlight {
                attempt: entry.attempt,
                visible_at_ms: entry.visible_at_ms,
                holder: entry.renewed_for.as_ref().and_then(|renewal| renewal.holder()),
            },
        }
    }

    /// How far the group is with a queue.
    pub fn queue_state(&self, queue_id: u32) -> Option<QueueState> {
        let queue = self.queues.get(queue_id as usize)?;
        let withheld = queue.inflight.values().filter(|entry| entry.is_withheld()).count();
        Some(QueueState {
            floor: queue.floor(),
            next: queue.next,
            inflight: (queue.inflight.len() - withheld) as u64,
            withheld: withheld as u64,
        })
    }

    /// The holder wants the message to be visible at `visible_at_ms`; the revision of the new handle.
    pub fn change(&mut self, held: &Held, visible_at_ms: u64) -> u32 {
        let Some(entry) = self.held_entry(held) else { return 0 };
        entry.visible_at_ms = visible_at_ms;
        entry.revision = entry.revision.max(held.revision) + 1;
        entry.renewed_for = None;
        let revision = entry.revision;
        self.due.push(Reverse((visible_at_ms, held.position)));
        self.revision_max = self.revision_max.max(revision);
        revision
    }

    /// The holder gives the message up: it is kept back while it is copied, and its handles are void, so that it is copied
    /// once. `held` has been checked under the same lock.
    pub fn begin_burial(&mut self, held: &Held, now_ms: u64) -> Option<Burial> {
        let entry = self.held_entry(held)?;
        let before = entry.clone();
        let until_ms = entry.begin_burial(now_ms);
        entry.revision = entry.revision.max(held.revision + 1);
        let revision = entry.revision;
        self.due.push(Reverse((until_ms, held.position)));
        Some(Burial { before, revision })
    }

    /// The copy could not be stored: the message is with its holder as before.
    pub fn undo_burial(&mut self, position: Position, burial: Burial) {
        let Some(queue) = self.queues.get_mut(position.queue_id as usize) else { return };
        let entry = queue.inflight.get_mut(&position.offset);
        if let Some(entry) = entry.filter(|entry| entry.revision == burial.revision) {
            entry.revision = burial.before.revision;
            entry.visible_at_ms = burial.before.visible_at_ms;
            entry.renewed_for = burial.before.renewed_for;
            self.due.push(Reverse((entry.visible_at_ms, position)));
        }
    }

    /// The message that `held` speaks for; perhaps only the process before this one had handed it out.
    fn held_entry(&mut self, held: &Held) -> Option<&mut InFlight> {
        let queue = self.queues.get_mut(held.position.queue_id as usize)?;
        let missed = queue.pass_to(held.position.offset);
        self.due.extend(missed.map(|offset| Reverse((0, Position { offset, ..held.position }))));
        queue.next = queue.next.max(held.position.offset + 1);
        if !queue.inflight.contains_key(&held.position.offset)
            && let Some(order) = &mut queue.order
        {
            order.is_stale = true;
        }
        let entry = queue.inflight.entry(held.position.offset).or_insert_with(InFlight::unseen);
        entry.attempt = entry.attempt.max(held.attempt);
        Some(entry)
    }

    /// A delivery did not leave this process: the message is as if it had not been taken.
    pub fn put_back(&mut self, delivery: &Delivery) {
        let Some(queue) = self.queues.get_mut(delivery.position.queue_id as usize) else { return };
        let Some(entry) = queue.inflight.get_mut(&delivery.position.offset) else { return };
        if entry.revision == delivery.revision {
            // Not this delivery any more, also for a client that repeats its call.
            entry.revision += 1;
            entry.attempt = entry.attempt.saturating_sub(1);
            entry.visible_at_ms = 0;
            entry.renewed_for = None;
            self.due.push(Reverse((0, delivery.position)));
        }
    }

    /// A client is gone: what was renewed for it becomes visible at `visible_at_ms`.
    pub fn release(&mut self, client_id: &str, visible_at_ms: u64) {
        for (queue_id, queue) in self.queues.iter_mut().enumerate() {
            for (&offset, entry) in &mut queue.inflight {
                if entry.renewed_for.as_ref().is_some_and(|renewal| *renewal.client == *client_id) {
                    entry.renewed_for = None;
                    entry.visible_at_ms = visible_at_ms;
                    let queue_id = u32::try_from(queue_id).expect("queue numbers are u32");
                    self.due.push(Reverse((visible_at_ms, Position { queue_id, offset })));
                }
            }
        }
    }

    /// When the next message becomes visible again, if one waits.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.due.peek().map(|&Reverse((at_ms, _))| at_ms)
    }

    /// Whether some queue hands out nothing new because so much of it is not done.
    pub fn is_full(&self, inflight_max: usize) -> bool {
        self.queues.iter().any(|queue| queue.inflight.len() >= inflight_max)
    }

    /// Takes over what a record or a snapshot says.
    pub fn apply(&mut self, progress: &QueueProgress) {
        let Some(queue) = self.queues.get_mut(progress.queue_id as usize) else { return };
        queue.apply(progress);
    }

    /// Puts everything in flight on its time, and nothing else; after the last [`Self::apply`] it must be called once.
    pub fn schedule(&mut self) {
        self.due.clear();
        for (queue_id, queue) in self.queues.iter().enumerate() {
            let queue_id = u32::try_from(queue_id).expect("queue numbers are u32");
            let waiting = queue.inflight.iter().filter(|(_, entry)| !entry.is_withheld());
            self.due.extend(
                waiting.map(|(&offset, entry)| Reverse((entry.visible_at_ms, Position { queue_id, offset }))),
            );
        }
    }

    /// All there is, for a snapshot.
    pub fn snapshot(&self) -> Vec<QueueProgress> {
        let queues = self.queues.iter().enumerate();
        queues.map(|(id, queue)| queue.snapshot(u32::try_from(id).expect("queue numbers are u32"))).collect()
    }

    /// Messages that were delivered and are not done, and the first offset of each queue that was never looked at.
    pub fn counts(&self) -> (usize, Vec<u64>) {
        (
            self.queues.iter().map(|queue| queue.inflight.len()).sum(),
            self.queues.iter().map(|queue| queue.next).collect(),
        )
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
