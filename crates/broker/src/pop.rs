//! A consumer group on a topic: who gets which message, and when again.
//!
//! The core ([`Pop`]) is pure: commands in, deliveries and effects out; time, index and liveness of clients are
//! arguments. One [`Pop`] is owned by one [`GroupTopic`](crate::progress::GroupTopic), behind its lock, on any data
//! thread. Redelivery copies nothing: a message is delivered again from where it lies.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use karman_store::{Entry, QueueOffset};

use crate::records::QueueProgress;

pub mod queue;
mod recorded;

#[cfg(test)]
use queue::BURIAL_MS;
use queue::{InFlight, PopQueue};
use recorded::Recorder;

/// Entries looked at in one call; a filter that matches little gives way to others after that many.
const SCAN_MAX: usize = 4096;
/// Entries read from the index at once.
const SCAN_STEP: usize = 64;
/// Dead messages found in one call; each is copied before the call is answered.
const DEAD_MAX: usize = 32;
/// Overtaken entries of the schedule that are not worth a clean-up.
const DUE_SLACK: usize = 4096;
/// What a client holds is renewed for at most this long.
const RENEW_MAX_MS: u64 = 3 * 3_600_000;

/// Where a message lies in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the queue in the topic.
    pub queue_id: u32,
    /// Offset in that queue.
    pub offset: u64,
}

/// Who asks for messages, and how.
#[derive(Debug)]
pub struct Take {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// At most this many messages.
    pub max: usize,
    /// How long a delivered message stays invisible to others.
    pub invisible_ms: u64,
    /// The client whose messages are renewed while it lives.
    pub renew_for: Option<Arc<str>>,
    /// After this many deliveries a message is dead.
    pub attempts_max: u32,
    /// Not done messages per queue, at most; beyond, nothing new is handed out from it.
    pub inflight_max: usize,
    /// Revisions of this process are above: a handle from before a restart never equals one from after it.
    pub revision_base: u32,
}

/// What the core needs to know and cannot hold.
pub trait Surroundings {
    /// The index entries of a queue from an offset on, at most `max`, appended to `out`. Confirmed ones only.
    fn entries(&self, queue_id: u32, from: QueueOffset, max: usize, out: &mut Vec<Entry>)
    -> Result<(), Gone>;
    /// Whether the filter of the caller may want a message with this tag hash.
    fn wants(&self, tag_hash: u64) -> bool;
    /// Whether a client is alive.
    fn is_alive(&self, client_id: &str) -> bool;
}

/// The message asked for was deleted when its time had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The first offset of the queue that is still there; above the one asked for.
    pub minimum: u64,
}

/// A message handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub position: Position,
    pub entry: Entry,
    pub attempt: u32,
    pub revision: u32,
    pub visible_at_ms: u64,
}

/// What a call of [`Pop::take`] gives.
#[derive(Debug, Default)]
pub struct Taken {
    /// For the consumer.
    pub deliveries: Vec<Delivery>,
    /// Dead: to be copied to the dead letters, then finished. They stay invisible meanwhile.
    pub dead: Vec<Position>,
    /// The scan ended before the end of the queues: ask again at once.
    pub more: bool,
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

/// See the module's comment.
#[derive(Debug)]
pub struct Pop {
    queues: Vec<PopQueue>,
    /// When something becomes visible again. Entries are not removed when they are overtaken; each is checked when due.
    due: BinaryHeap<Reverse<(u64, Position)>>,
    /// The queue to begin with, so that none is preferred.
    turn: usize,
    /// What was passed over and is not in any record yet.
    recorder: Recorder,
}

impl Pop {
    /// A group that has not read anything: it begins at `starts`, one offset for each queue.
    pub fn new(starts: &[u64]) -> Self {
        let queues = starts.iter().map(|&next| PopQueue { next, ..PopQueue::default() }).collect();
        Self { queues, due: BinaryHeap::new(), turn: 0, recorder: Recorder::default() }
    }

    /// Hands out messages: first those whose time has come again, then new ones.
    pub fn take(&mut self, ask: &Take, around: &impl Surroundings) -> Taken {
        let mut taken = Taken::default();
        self.compact();
        self.take_due(ask, around, &mut taken);
        self.take_new(ask, around, &mut taken);
        taken
    }

    /// Acknowledged messages leave their times behind; when these outnumber what is in flight they are thrown out.
    fn compact(&mut self) {
        let inflight: usize = self.queues.iter().map(|queue| queue.inflight.len()).sum();
        if self.due.len() > 2 * inflight + DUE_SLACK {
            self.schedule();
        }
    }

    fn take_due(&mut self, ask: &Take, around: &impl Surroundings, taken: &mut Taken) {
        let mut entry = Vec::with_capacity(1);
        for _ in 0..SCAN_MAX {
            if taken.deliveries.len() >= ask.max {
                return;
            }
            if taken.dead.len() >= DEAD_MAX {
                break;
            }
            let Some(position) = self.next_due(ask.now_ms, &|client| around.is_alive(client)) else { return };
            entry.clear();
            let found = around.entries(position.queue_id, QueueOffset(position.offset), 1, &mut entry);
            let Some(entry) = entry.first().copied().filter(|_| found.is_ok()) else {
                // Gone from the log: nobody can have it any more.
                self.finish(position);
                continue;
            };
            if !around.wants(entry.tag_hash) {
                self.finish(position);
                self.recorder.pass(position);
                continue;
            }
            let inflight = self.queues[position.queue_id as usize].inflight.get_mut(&position.offset);
            let Some(inflight) = inflight else { continue };
            if inflight.attempt >= ask.attempts_max {
                self.due.push(Reverse((inflight.begin_burial(ask.now_ms), position)));
                taken.dead.push(position);
                continue;
            }
            inflight.attempt += 1;
            inflight.renewed_for = ask.renewal();
            let delivery = deliver(position, entry, inflight, ask);
            self.due.push(Reverse((delivery.visible_at_ms, position)));
            taken.deliveries.push(delivery);
        }
        taken.more = true;
    }

    /// Messages whose time has come and that were delivered often enough, at most `max`. They are invisible for a while
    /// then, in which they are to be buried. At most `max` entries are looked at.
    pub fn dead(
        &mut self,
        now_ms: u64,
        attempts_max: u32,
        max: usize,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Vec<Position> {
        let (mut dead, mut others) = (Vec::new(), Vec::new());
        for _ in 0..max {
            let Some(position) = self.next_due(now_ms, is_alive) else { break };
            let Some(entry) = self.queues[position.queue_id as usize].inflight.get_mut(&position.offset)
            else {
                continue;
            };
            if entry.attempt < attempts_max {
                others.push(Reverse((entry.visible_at_ms, position)));
                continue;
            }
            others.push(Reverse((entry.begin_burial(now_ms), position)));
            dead.push(position);
        }
        self.due.extend(others);
        dead
    }

    /// The next message whose time has come. A message of a living client is renewed instead.
    fn next_due(&mut self, now_ms: u64, is_alive: &dyn Fn(&str) -> bool) -> Option<Position> {
        while let Some(&Reverse((at_ms, position))) = self.due.peek()
            && at_ms <= now_ms
        {
            self.due.pop();
            let entry = self.queues.get_mut(position.queue_id as usize)?.inflight.get_mut(&position.offset);
            let Some(entry) = entry.filter(|entry| entry.visible_at_ms <= now_ms) else { continue };
            if let Some((client, until_ms)) = &entry.renewed_for
                && now_ms < *until_ms
                && is_alive(client)
            {
                entry.visible_at_ms = (now_ms + RENEWAL_MS).min(*until_ms);
                self.due.push(Reverse((entry.visible_at_ms, position)));
                continue;
            }
            return Some(position);
        }
        None
    }

    fn take_new(&mut self, ask: &Take, around: &impl Surroundings, taken: &mut Taken) {
        let mut scanned = 0;
        let mut entries = Vec::with_capacity(SCAN_STEP);
        let count = self.queues.len();
        for step in 0..count {
            let queue_id = (self.turn + step) % count;
            let number = u32::try_from(queue_id).expect("queue numbers are u32");
            while taken.deliveries.len() < ask.max {
                let queue = &mut self.queues[queue_id];
                if queue.inflight.len() >= ask.inflight_max {
                    break;
                }
                if scanned >= SCAN_MAX {
                    taken.more = true;
                    return;
                }
                let want = SCAN_STEP.min(ask.max - taken.deliveries.len());
                entries.clear();
                let found = around.entries(number, QueueOffset(queue.next), want, &mut entries);
                if let Err(Gone { minimum }) = found
                    && minimum > queue.next
                {
                    self.recorder.skip(number, queue.next..minimum);
                    queue.next = minimum;
                    continue;
                }
                if entries.is_empty() {
                    break;
                }
                scanned += entries.len();
                for entry in entries.drain(..) {
                    let position = Position { queue_id: number, offset: queue.next };
                    queue.next += 1;
                    if !around.wants(entry.tag_hash) {
                        self.recorder.pass(position);
                        continue;
                    }
                    let mut inflight =
                        InFlight { visible_at_ms: 0, attempt: 1, revision: 0, renewed_for: ask.renewal() };
                    let delivery = deliver(position, entry, &mut inflight, ask);
                    queue.inflight.insert(position.offset, inflight);
                    self.due.push(Reverse((delivery.visible_at_ms, position)));
                    taken.deliveries.push(delivery);
                }
            }
            if taken.deliveries.len() >= ask.max {
                self.turn = (queue_id + 1) % count;
                return;
            }
        }
    }

    /// Whether `held` still speaks for its message at `now_ms`.
    pub fn check(&self, now_ms: u64, held: &Held, is_alive: &dyn Fn(&str) -> bool) -> Result<(), Void> {
        let Some(queue) = self.queues.get(held.position.queue_id as usize) else { return Err(Void::Done) };
        if queue.is_done(held.position.offset) {
            return Err(Void::Done);
        }
        let entry = queue.inflight.get(&held.position.offset).filter(|entry| entry.revision > 0);
        let Some(entry) = entry else {
            // Delivered before a restart: the handle alone knows its time.
            return if held.expires_ms <= now_ms { Err(Void::Expired) } else { Ok(()) };
        };
        if held.revision != entry.revision {
            return Err(Void::Superseded);
        }
        let renewed = entry
            .renewed_for
            .as_ref()
            .is_some_and(|(client, until_ms)| now_ms < *until_ms && is_alive(client));
        if entry.visible_at_ms <= now_ms && !renewed { Err(Void::Expired) } else { Ok(()) }
    }

    /// A message is done.
    pub fn finish(&mut self, position: Position) {
        if let Some(queue) = self.queues.get_mut(position.queue_id as usize) {
            queue.finish(position.offset);
        }
    }

    /// The holder wants the message to be visible at `visible_at_ms`; the revision of the new handle.
    pub fn change(&mut self, held: &Held, visible_at_ms: u64) -> u32 {
        let Some(queue) = self.queues.get_mut(held.position.queue_id as usize) else { return 0 };
        queue.pass_to(held.position.offset);
        queue.next = queue.next.max(held.position.offset + 1);
        let entry = queue.inflight.entry(held.position.offset).or_insert(InFlight {
            visible_at_ms,
            attempt: held.attempt,
            revision: held.revision,
            renewed_for: None,
        });
        entry.attempt = entry.attempt.max(held.attempt);
        entry.visible_at_ms = visible_at_ms;
        entry.revision = entry.revision.max(held.revision) + 1;
        entry.renewed_for = None;
        self.due.push(Reverse((visible_at_ms, held.position)));
        entry.revision
    }

    /// A delivery did not leave this process: the message is as if it had not been taken.
    pub fn put_back(&mut self, delivery: &Delivery) {
        let Some(queue) = self.queues.get_mut(delivery.position.queue_id as usize) else { return };
        let Some(entry) = queue.inflight.get_mut(&delivery.position.offset) else { return };
        if entry.revision == delivery.revision {
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
                if entry.renewed_for.as_ref().is_some_and(|(client, _)| **client == *client_id) {
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
            let waiting = queue.inflight.iter();
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

/// How long one renewal lasts.
const RENEWAL_MS: u64 = 60_000;

impl Take {
    fn renewal(&self) -> Option<(Arc<str>, u64)> {
        self.renew_for.clone().map(|client| (client, self.now_ms + RENEW_MAX_MS))
    }
}

fn deliver(position: Position, entry: Entry, inflight: &mut InFlight, ask: &Take) -> Delivery {
    inflight.visible_at_ms = ask.now_ms + ask.invisible_ms;
    inflight.revision = inflight.revision.max(ask.revision_base) + 1;
    Delivery {
        position,
        entry,
        attempt: inflight.attempt,
        revision: inflight.revision,
        visible_at_ms: inflight.visible_at_ms,
    }
}

#[cfg(test)]
mod tests;
