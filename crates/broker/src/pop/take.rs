//! Handing out: what is due again first, then what was never looked at. Part of [`Pop`]; pure, behind the same lock.

use std::cmp::Reverse;
use std::sync::Arc;

use karman_store::{Entry, QueueOffset};

use super::order::Order;
use super::queue::{InFlight, PopQueue, Renewal, WITHHELD};
use super::{Pop, Position};
use crate::label::Label;

/// Entries read from the index at once.
const SCAN_STEP: usize = 64;
/// Attempts to receive that are remembered; who repeats one does so at once.
const ATTEMPTS_MAX: usize = 256;
/// Dead messages found in one call; each is copied before the call is answered.
const DEAD_MAX: usize = 32;
/// And in one search for those that nobody asks for.
const DEAD_SWEPT_MAX: usize = 256;
/// Overtaken entries of the schedule that are not worth a clean-up.
pub(super) const DUE_SLACK: usize = 4096;
/// When something is tried again that could not be read.
pub(crate) const UNREADABLE_MS: u64 = 1000;

/// Who asks for messages, and how.
#[derive(Debug)]
pub struct Take {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// At most this many messages.
    pub max: usize,
    /// How long a delivered message stays invisible to others.
    pub invisible_ms: u64,
    /// The messages are renewed.
    pub renewal: Option<Arc<Renewal>>,
    /// After this many deliveries a message is dead.
    pub attempts_max: u32,
    /// Not done messages per queue, at most; beyond, nothing new is handed out from it.
    pub inflight_max: usize,
    /// Revisions of this process are above: a handle from before a restart never equals one from after it.
    pub revision_base: u32,
    /// Entries looked at, at most; a filter that matches little gives way to others after that many.
    pub scan_max: usize,
    /// Messages of one message group are handed out one by one.
    pub orderly: bool,
    /// Later queues go before earlier ones, instead of all in turn.
    pub last_queue_first: bool,
    /// Names this attempt to receive. Who repeats it did not get what it was answered with, and gets the same again.
    pub attempt_key: Option<u64>,
}

/// What the core needs to know and cannot hold.
pub trait Surroundings {
    /// The index entries of a queue from an offset on, at most `max`, appended to `out`. Confirmed ones only.
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), NoEntries>;
    /// Whether the filter of the caller may want a message.
    fn wants(&self, entry: &Entry) -> bool;
    /// Whether a client is alive.
    fn is_alive(&self, client_id: &str) -> bool;
}

/// Why there are no entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntries {
    /// The message asked for was deleted when its time had come.
    Gone {
        /// The first offset of the queue that is still there; above the one asked for.
        minimum: u64,
    },
    /// What is there cannot be read at the moment.
    Unreadable,
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
    /// Something could not be read: ask again after `UNREADABLE_MS`.
    pub unreadable: bool,
}

impl Pop {
    /// Hands out messages: first those whose time has come again, then new ones.
    pub fn take(&mut self, ask: &Take, around: &impl Surroundings) -> Taken {
        let mut taken = Taken::default();
        self.put_in_order(ask.orderly, around);
        self.compact();
        if let Some(key) = ask.attempt_key {
            self.repeat(key, ask, around, &mut taken);
        }
        if taken.deliveries.is_empty() {
            self.take_due(ask, around, &mut taken);
            self.take_new(ask, around, &mut taken);
            if let Some(key) = ask.attempt_key {
                self.attempts.remember(key, answered(&taken.deliveries), ATTEMPTS_MAX);
            }
        }
        let revisions = taken.deliveries.iter().map(|delivery| delivery.revision);
        self.revision_max = revisions.fold(self.revision_max, u32::max);
        taken
    }

    /// Makes every queue as orderly as the group is now.
    fn put_in_order(&mut self, orderly: bool, around: &impl Surroundings) {
        if !orderly && !self.has_order {
            return;
        }
        self.has_order = orderly;
        let mut changed = false;
        for (queue_id, queue) in self.queues.iter_mut().enumerate() {
            if !orderly {
                if queue.order.is_some() {
                    queue.drop_order();
                    changed = true;
                }
                continue;
            }
            if queue.order.get_or_insert_with(Order::stale).is_stale {
                let queue_id = u32::try_from(queue_id).expect("queue numbers are u32");
                // Until they can be read nothing of the queue is handed out.
                let Some(message_groups) = message_groups(queue_id, queue, around) else { continue };
                queue.put_in_order(message_groups);
                changed = true;
            }
        }
        if changed {
            self.schedule();
        }
    }

    /// Acknowledged messages leave their times behind; when these outnumber what is in flight they are thrown out.
    fn compact(&mut self) {
        if self.due.len() <= self.due_max {
            return;
        }
        let inflight: usize = self.queues.iter().map(|queue| queue.inflight.len()).sum();
        self.due_max = 2 * inflight + DUE_SLACK;
        if self.due.len() > self.due_max {
            self.schedule();
        }
    }

    /// Hands out once more what the attempt to receive with this key was answered with, as far as nobody else has had it
    /// since. It counts as the same delivery.
    fn repeat(&mut self, key: u64, ask: &Take, around: &impl Surroundings, taken: &mut Taken) {
        for (position, revision) in self.attempts.forget(key) {
            let Ok(Some(entry)) = entry_at(position, around) else { continue };
            let queue = &mut self.queues[position.queue_id as usize];
            let held = queue.inflight.get_mut(&position.offset).filter(|held| held.revision == revision);
            if let Some(inflight) = held {
                taken.deliveries.push(deliver(position, entry, inflight, ask, queue.void_to));
            }
        }
        self.due.extend(taken.deliveries.iter().map(|delivery| Reverse(delivery.due())));
        self.attempts.remember(key, answered(&taken.deliveries), ATTEMPTS_MAX);
    }

    fn take_due(&mut self, ask: &Take, around: &impl Surroundings, taken: &mut Taken) {
        for _ in 0..ask.scan_max {
            if taken.deliveries.len() >= ask.max {
                return;
            }
            if taken.dead.len() >= DEAD_MAX {
                break;
            }
            let Some(position) = self.next_due(ask.now_ms, &|client| around.is_alive(client)) else { return };
            let entry = match entry_at(position, around) {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    // Gone from the log: nobody can have it any more.
                    self.finish(position);
                    continue;
                }
                Err(Unreadable) => {
                    self.due.push(Reverse((ask.now_ms + UNREADABLE_MS, position)));
                    taken.unreadable = true;
                    continue;
                }
            };
            if !around.wants(&entry) {
                self.finish(position);
                self.recorder.pass(position);
                continue;
            }
            let queue = &mut self.queues[position.queue_id as usize];
            let Some(inflight) = queue.inflight.get_mut(&position.offset) else { continue };
            if inflight.attempt >= ask.attempts_max {
                self.due.push(Reverse((inflight.begin_burial(ask.now_ms), position)));
                taken.dead.push(position);
                continue;
            }
            inflight.attempt += 1;
            let delivery = deliver(position, entry, inflight, ask, queue.void_to);
            self.due.push(Reverse(delivery.due()));
            taken.deliveries.push(delivery);
        }
        taken.more = true;
    }

    /// Messages whose time has come and that were delivered often enough. They are invisible for a while then, in which
    /// they are to be buried. At most `max` are looked at, from where the last call ended: there may be any number of
    /// others that nobody asks for.
    pub fn dead(
        &mut self,
        now_ms: u64,
        attempts_max: u32,
        max: usize,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Vec<Position> {
        if self.next_due_ms().is_none_or(|at_ms| at_ms > now_ms) {
            return Vec::new();
        }
        self.compact();
        let (mut dead, mut left, count) = (Vec::new(), max, self.queues.len());
        // Once round: the queue that the last call ended in comes in two parts.
        for _ in 0..=count {
            let Position { queue_id, offset: from } = self.swept;
            let PopQueue { inflight, order, .. } = &mut self.queues[queue_id as usize];
            for (&offset, entry) in inflight.range_mut(from..) {
                let position = Position { queue_id, offset };
                if left == 0 || dead.len() == DEAD_SWEPT_MAX {
                    self.swept = position;
                    return dead;
                }
                left -= 1;
                if entry.visible_at_ms > now_ms {
                    continue;
                }
                if entry.renew(now_ms, is_alive) {
                    self.due.push(Reverse((entry.visible_at_ms, position)));
                    continue;
                }
                let is_front = order.as_ref().is_none_or(|order| order.is_front(entry.message_group, offset));
                if is_front && entry.attempt >= attempts_max {
                    self.due.push(Reverse((entry.begin_burial(now_ms), position)));
                    dead.push(position);
                }
            }
            self.swept = Position { queue_id: (queue_id + 1) % count as u32, offset: 0 };
        }
        dead
    }

    /// The next message whose time has come, and whose turn it is. A message of a living client is renewed instead.
    fn next_due(&mut self, now_ms: u64, is_alive: &dyn Fn(&str) -> bool) -> Option<Position> {
        while let Some(&Reverse((at_ms, position))) = self.due.peek()
            && at_ms <= now_ms
        {
            self.due.pop();
            let queue = self.queues.get_mut(position.queue_id as usize)?;
            let (is_stale, is_front) = (queue.is_stale(), queue.is_front(position.offset));
            let entry = queue.inflight.get_mut(&position.offset);
            let Some(entry) = entry.filter(|entry| entry.visible_at_ms <= now_ms) else { continue };
            if entry.renew(now_ms, is_alive) {
                self.due.push(Reverse((entry.visible_at_ms, position)));
                continue;
            }
            if is_stale {
                self.due.push(Reverse((now_ms + UNREADABLE_MS, position)));
                continue;
            }
            if !is_front {
                // It was delivered before the group became orderly.
                entry.visible_at_ms = WITHHELD;
                continue;
            }
            return Some(position);
        }
        None
    }

    fn take_new(&mut self, ask: &Take, around: &impl Surroundings, taken: &mut Taken) {
        let (mut scan_left, mut entries) = (ask.scan_max, Vec::with_capacity(SCAN_STEP));
        let count = self.queues.len();
        for step in 0..count {
            let queue_id = if ask.last_queue_first { count - 1 - step } else { (self.turn + step) % count };
            self.take_new_of(queue_id, ask, around, &mut entries, &mut scan_left, taken);
            if taken.deliveries.len() >= ask.max {
                self.turn = (queue_id + 1) % count;
                return;
            }
            if scan_left == 0 {
                taken.more = true;
                return;
            }
        }
    }

    fn take_new_of(
        &mut self,
        queue_id: usize,
        ask: &Take,
        around: &impl Surroundings,
        entries: &mut Vec<Entry>,
        scan_left: &mut usize,
        taken: &mut Taken,
    ) {
        let number = u32::try_from(queue_id).expect("queue numbers are u32");
        let queue = &mut self.queues[queue_id];
        if queue.is_stale() {
            taken.unreadable = true;
            return;
        }
        while *scan_left > 0 && taken.deliveries.len() < ask.max && queue.inflight.len() < ask.inflight_max {
            let want = (ask.max - taken.deliveries.len()).clamp(16, SCAN_STEP).min(*scan_left);
            entries.clear();
            match around.entries(number, QueueOffset(queue.next), want, entries) {
                Err(NoEntries::Gone { minimum }) if minimum > queue.next => {
                    self.recorder.skip(number, queue.next..minimum);
                    queue.next = minimum;
                    continue;
                }
                Err(NoEntries::Unreadable) => taken.unreadable = true,
                Ok(()) | Err(NoEntries::Gone { .. }) => {}
            }
            if entries.is_empty() {
                return;
            }
            for entry in entries.drain(..) {
                if taken.deliveries.len() >= ask.max {
                    return;
                }
                *scan_left -= 1;
                let position = Position { queue_id: number, offset: queue.next };
                queue.next += 1;
                if !around.wants(&entry) {
                    self.recorder.pass(position);
                    continue;
                }
                let mut inflight = InFlight::unseen();
                if let Some(order) = &mut queue.order {
                    inflight.message_group = Label::in_entry(&entry).message_group();
                    if !order.join(inflight.message_group, position.offset) {
                        inflight.visible_at_ms = WITHHELD;
                        queue.inflight.insert(position.offset, inflight);
                        continue;
                    }
                }
                inflight.attempt = 1;
                let delivery = deliver(position, entry, &mut inflight, ask, queue.void_to);
                queue.inflight.insert(position.offset, inflight);
                self.due.push(Reverse(delivery.due()));
                taken.deliveries.push(delivery);
            }
        }
    }
}

impl Delivery {
    /// When it becomes visible again, as the schedule has it.
    fn due(&self) -> (u64, Position) {
        (self.visible_at_ms, self.position)
    }
}

fn answered(deliveries: &[Delivery]) -> Vec<(Position, u32)> {
    deliveries.iter().map(|delivery| (delivery.position, delivery.revision)).collect()
}

/// It cannot be read at the moment.
struct Unreadable;

/// The entry of a message; `None` when it is gone.
fn entry_at(position: Position, around: &impl Surroundings) -> Result<Option<Entry>, Unreadable> {
    let mut entries = Vec::with_capacity(1);
    match around.entries(position.queue_id, QueueOffset(position.offset), 1, &mut entries) {
        Err(NoEntries::Unreadable) => Err(Unreadable),
        Ok(()) | Err(NoEntries::Gone { .. }) => Ok(entries.pop()),
    }
}

/// The message group of everything that is in flight; `None` when not all of them can be read at the moment.
fn message_groups(queue_id: u32, queue: &PopQueue, around: &impl Surroundings) -> Option<Vec<u32>> {
    let (mut from, mut entries) = (0, Vec::new());
    let message_group = |&offset: &u64| {
        if offset >= from + entries.len() as u64 {
            from = offset;
            entries.clear();
            match around.entries(queue_id, QueueOffset(from), SCAN_STEP, &mut entries) {
                Err(NoEntries::Unreadable) => return None,
                // Of what is gone nobody has to know the message group: it is never delivered.
                Ok(()) | Err(NoEntries::Gone { .. }) => {}
            }
        }
        let entry = entries.get((offset - from) as usize);
        Some(entry.map_or(0, |entry| Label::in_entry(entry).message_group()))
    };
    queue.inflight.keys().map(message_group).collect()
}

fn deliver(position: Position, entry: Entry, inflight: &mut InFlight, ask: &Take, void_to: u32) -> Delivery {
    inflight.visible_at_ms = ask.now_ms + ask.invisible_ms;
    inflight.revision = inflight.revision.max(ask.revision_base).max(void_to) + 1;
    inflight.renewed_for.clone_from(&ask.renewal);
    Delivery {
        position,
        entry,
        attempt: inflight.attempt,
        revision: inflight.revision,
        visible_at_ms: inflight.visible_at_ms,
    }
}
