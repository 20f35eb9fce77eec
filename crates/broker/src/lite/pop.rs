//! A consumer group on the lite topics of one parent: who gets which message, and when again.
//!
//! Pure: commands in, deliveries and records out; time, the ends of queues and liveness of clients are arguments, and the
//! only effect is that clients are woken who may have something. One [`LitePop`] is owned by one
//! [`LiteGroup`](crate::lite::LiteGroup), behind its lock, on any data thread, the log writer's and the control thread.
//! Nothing is read from the log under that lock, and nothing costs more with more lite topics.
//!
//! What always holds: a lite topic with a message that may be delivered is in the line of every client that wants it; one
//! whose message may not be delivered yet is in the schedule.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::cursor::Cursor;
use super::subscriptions::{Claim, Subscriptions};
use crate::pop::queue::{BURIAL_MS, RENEWAL_MS};
use crate::pop::{Held, Position, Renewal, Void};
use crate::records::QueueProgress;

/// Attempts to receive that are remembered of one client: it has a few calls under way at a time.
const ATTEMPTS_MAX: usize = 16;
/// Lite topics that one call finds in the line of its client and that turn out to have nothing.
const VAIN_MAX: usize = 4096;

/// Who asks for messages, and how.
#[derive(Debug)]
pub struct Ask {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// The client.
    pub client: Arc<str>,
    /// At most this many messages.
    pub max: usize,
    /// How long a delivered message stays invisible.
    pub invisible_ms: u64,
    /// The messages are renewed.
    pub renewal: Option<Arc<Renewal>>,
    /// After this many deliveries a message is dead.
    pub attempts_max: u32,
    /// Revisions of this process are above.
    pub revision_base: u32,
    /// Names this attempt to receive. Who repeats it did not get what it was answered with, and gets the same again.
    pub attempt_key: Option<u64>,
}

/// A message handed out; where it lies is still to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The queue of the lite topic and the offset in it.
    pub position: Position,
    pub attempt: u32,
    pub revision: u32,
    pub visible_at_ms: u64,
}

/// Where a group begins with a lite topic, or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Where it is; at the end, if it is new.
    Last,
    /// The first message there is.
    Min,
    /// Behind the last message.
    Max,
    /// There, or the nearest there is.
    At(u64),
    /// So many messages before where it is, or before the end, if it is new.
    Tail(u64),
}

/// What a subscription has led to.
#[derive(Debug, Default)]
pub struct Subscribed {
    /// Where the group begins or goes on; to be recorded.
    pub records: Vec<QueueProgress>,
    /// Clients that lost a lite topic to another, or did not get it.
    pub lost: Vec<(Arc<str>, u32)>,
}

/// A message is about to be copied to the dead letters.
#[derive(Debug)]
pub struct Burial {
    /// As it was.
    before: Cursor,
    /// As long as the cursor has this one nothing else has happened to it.
    revision: u32,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct LitePop {
    cursors: HashMap<u32, Cursor>,
    /// Every cursor whose message may not be delivered yet, by its time.
    due: BTreeSet<(u64, u32)>,
    /// Whose beginning the log may not have: subscribing says it again.
    unrecorded: HashSet<u32>,
    /// Who wants what.
    pub subscriptions: Subscriptions,
}

impl LitePop {
    /// A client wants these lite topics too, from `start` on. It must be there; see [`Subscriptions::synced`].
    pub fn subscribe(
        &mut self,
        client: &Arc<str>,
        queues: &[(u32, Start)],
        claim: Claim,
        revision_base: u32,
        range: &dyn Fn(u32) -> Range<u64>,
    ) -> Subscribed {
        let mut done = Subscribed::default();
        for &(queue, start) in queues {
            match self.subscriptions.add(client, queue, claim) {
                Some(lost) => done.lost.extend(lost.into_iter().map(|client| (client, queue))),
                None => {
                    done.lost.push((client.clone(), queue));
                    continue;
                }
            }
            let range = range(queue);
            let known = self.cursors.get(&queue).map(|cursor| cursor.floor);
            let floor = start.floor(known, &range);
            if known.is_none() {
                self.cursors.insert(queue, Cursor::at(floor));
                self.unrecorded.insert(queue);
                done.records.push(QueueProgress { queue_id: queue, floor, ..QueueProgress::default() });
            } else if start != Start::Last {
                done.records.push(self.reset(queue, floor, revision_base));
            } else if self.unrecorded.contains(&queue) {
                done.records.extend(self.record(queue));
            }
            if self.cursors[&queue].visible_at_ms == 0 && floor < range.end {
                self.subscriptions.ready_for(client, queue);
            }
        }
        done
    }

    /// The log has where the group begins with these lite topics.
    pub fn recorded(&mut self, queues: &[u32]) {
        for queue in queues {
            self.unrecorded.remove(queue);
        }
    }

    fn reset(&mut self, queue: u32, floor: u64, revision_base: u32) -> QueueProgress {
        self.show_at(queue, 0);
        self.cursors.entry(queue).or_default().reset(floor, revision_base);
        self.subscriptions.ready(queue);
        QueueProgress { queue_id: queue, floor, reset: true, ..QueueProgress::default() }
    }

    /// Hands out messages of the lite topics that the client wants, one of each at most. `true`: ask again at once.
    pub fn take(&mut self, ask: &Ask, range: &dyn Fn(u32) -> Range<u64>) -> (Vec<Handed>, bool) {
        let mut handed = self.repeat(ask);
        if handed.is_empty() {
            let mut vain = 0;
            while handed.len() < ask.max {
                let Some(queue) = self.subscriptions.next(&ask.client) else { break };
                match self.hand_out(queue, ask, &range(queue)) {
                    Some(message) => handed.push(message),
                    None if vain == VAIN_MAX => return (handed, true),
                    None => vain += 1,
                }
            }
        }
        if let Some(key) = ask.attempt_key
            && let Some(subscriber) = self.subscriptions.subscriber(&ask.client, ask.now_ms)
        {
            let answered = handed.iter().map(|message| (message.position, message.revision)).collect();
            subscriber.attempts.remember(key, answered, ATTEMPTS_MAX);
        }
        (handed, false)
    }

    /// What the attempt with this key was answered with, as far as nobody else has had it since. It counts as the same
    /// delivery.
    fn repeat(&mut self, ask: &Ask) -> Vec<Handed> {
        let subscriber = self.subscriptions.subscriber(&ask.client, ask.now_ms);
        let answered = ask.attempt_key.zip(subscriber).map(|(key, own)| own.attempts.forget(key));
        let mut handed = Vec::new();
        for (position, revision) in answered.unwrap_or_default() {
            let cursor = self.cursors.get_mut(&position.queue_id);
            let is_same =
                |cursor: &&mut Cursor| cursor.floor == position.offset && cursor.revision == revision;
            if let Some(cursor) = cursor.filter(is_same) {
                cursor.again = true;
                handed.push(self.deliver(position.queue_id, ask));
            }
        }
        handed
    }

    fn hand_out(&mut self, queue: u32, ask: &Ask, range: &Range<u64>) -> Option<Handed> {
        let cursor = self.cursors.get_mut(&queue)?;
        if cursor.visible_at_ms > 0 {
            return None;
        }
        // What was deleted when its time had come is passed over.
        cursor.advance(range.start);
        if cursor.floor >= range.end {
            return None;
        }
        if cursor.is_dead(ask.attempts_max) {
            // The group may have fewer attempts than before. It is found dead by its time.
            self.show_at(queue, ask.now_ms);
            return None;
        }
        Some(self.deliver(queue, ask))
    }

    fn deliver(&mut self, queue: u32, ask: &Ask) -> Handed {
        let visible_at_ms = ask.now_ms + ask.invisible_ms;
        self.show_at(queue, visible_at_ms);
        let cursor = self.cursors.get_mut(&queue).expect("whoever delivers has found it");
        cursor.deliver(ask.revision_base);
        cursor.renewed_for.clone_from(&ask.renewal);
        Handed {
            position: Position { queue_id: queue, offset: cursor.floor },
            attempt: cursor.attempt,
            revision: cursor.revision,
            visible_at_ms,
        }
    }

    /// Something has come into a lite topic.
    pub fn arrived(&mut self, queue: u32) {
        if self.cursors.get(&queue).is_some_and(|cursor| cursor.visible_at_ms == 0) {
            self.subscriptions.ready(queue);
        }
    }

    /// Whether `held` still speaks for its message at `now_ms`.
    pub fn check(&self, now_ms: u64, held: &Held, is_alive: &dyn Fn(&str) -> bool) -> Result<(), Void> {
        match self.cursors.get(&held.position.queue_id) {
            Some(cursor) => cursor.check(now_ms, held, is_alive),
            None => Err(Void::Done),
        }
    }

    /// A message is done; `end` is the end of its queue.
    pub fn finish(&mut self, position: Position, end: u64) {
        let Some(cursor) = self.cursors.get(&position.queue_id) else { return };
        if cursor.floor > position.offset {
            return;
        }
        self.show_at(position.queue_id, 0);
        let cursor = self.cursors.get_mut(&position.queue_id).expect("it was found above");
        cursor.advance(position.offset + 1);
        if cursor.floor < end {
            self.subscriptions.ready(position.queue_id);
        }
    }

    /// The log has a dead letter of a message, which is done by that. `is_live`: where the cursor is, is known here; a cursor
    /// that is not at the message any more was set back since, and stays so.
    pub fn buried(&mut self, position: Position, is_live: bool) {
        let is_there = |cursor: &Cursor| cursor.floor == position.offset;
        if !is_live || self.cursors.get(&position.queue_id).is_some_and(is_there) {
            // Whether there is more behind it is found out by whoever looks.
            self.finish(position, u64::MAX);
        }
    }

    /// The holder wants the message to be visible at `visible_at_ms`, not 0; the revision of the new handle. `held` has
    /// been checked. `counts`: the delivery counts as an attempt.
    pub fn change(&mut self, held: &Held, visible_at_ms: u64, counts: bool) -> u32 {
        let queue = held.position.queue_id;
        if !self.cursors.contains_key(&queue) {
            return 0;
        }
        self.show_at(queue, visible_at_ms);
        let cursor = self.cursors.get_mut(&queue).expect("it was found above");
        cursor.attempt = cursor.attempt.max(held.attempt);
        cursor.again = !counts;
        cursor.revision = cursor.next_revision(held.revision);
        cursor.renewed_for = None;
        cursor.revision
    }

    /// The holder gives the message up: it is kept back while it is copied, and its handles are void, so that it is copied
    /// once. `held` has been checked under the same lock.
    pub fn begin_burial(&mut self, held: &Held, now_ms: u64) -> Option<Burial> {
        let queue = held.position.queue_id;
        let before = self.cursors.get(&queue)?.clone();
        self.show_at(queue, now_ms + BURIAL_MS);
        let cursor = self.cursors.get_mut(&queue)?;
        cursor.attempt = cursor.attempt.max(held.attempt);
        cursor.revision = cursor.next_revision(held.revision);
        cursor.renewed_for = None;
        Some(Burial { before, revision: cursor.revision })
    }

    /// The copy could not be stored: the message is with its holder as before.
    pub fn undo_burial(&mut self, queue: u32, burial: Burial) {
        let Some(cursor) = self.cursors.get_mut(&queue) else { return };
        if cursor.floor != burial.before.floor || cursor.revision != burial.revision {
            return;
        }
        cursor.revision = burial.before.revision;
        cursor.renewed_for = burial.before.renewed_for;
        self.show_at(queue, burial.before.visible_at_ms);
        if burial.before.visible_at_ms == 0 {
            self.subscriptions.ready(queue);
        }
    }

    /// A delivery did not leave this process: the message is as if it had not been taken.
    pub fn put_back(&mut self, position: Position, revision: u32) {
        let Some(cursor) = self.cursors.get_mut(&position.queue_id) else { return };
        if cursor.floor != position.offset || cursor.revision != revision {
            return;
        }
        // Not this delivery any more, also for a client that repeats its call.
        cursor.revision += 1;
        cursor.again = true;
        cursor.renewed_for = None;
        self.show_at(position.queue_id, 0);
        self.subscriptions.ready(position.queue_id);
    }

    /// A client is gone: what is renewed for it becomes visible at `visible_at_ms`. The one thing that looks at every lite
    /// topic.
    pub fn release(&mut self, client: &str, visible_at_ms: u64) {
        let is_held = |cursor: &Cursor| cursor.renewed_for.as_ref().is_some_and(|own| *own.client == *client);
        let held = self.cursors.iter().filter(|(_, cursor)| is_held(cursor));
        for queue in held.map(|(queue, _)| *queue).collect::<Vec<_>>() {
            self.show_at(queue, visible_at_ms);
            if let Some(cursor) = self.cursors.get_mut(&queue) {
                cursor.renewed_for = None;
            }
        }
    }

    /// When the next message may be delivered again, or is dead.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// Lets what is due be delivered again, at most `max`; what is renewed stays where it is. Gives the dead: they stay
    /// invisible for a while, in which they are to be buried.
    pub fn tick(
        &mut self,
        now_ms: u64,
        attempts_max: u32,
        max: usize,
        is_alive: &dyn Fn(&str) -> bool,
    ) -> Vec<Position> {
        let mut dead = Vec::new();
        for _ in 0..max {
            let Some(&(_, queue)) = self.due.first().filter(|(at_ms, _)| *at_ms <= now_ms) else { break };
            let cursor = self.cursors.get_mut(&queue).expect("what is in the schedule has a cursor");
            if let Some(until_ms) = cursor.renewal(now_ms, is_alive) {
                self.show_at(queue, (now_ms + RENEWAL_MS).min(until_ms));
                continue;
            }
            cursor.renewed_for = None;
            if cursor.is_dead(attempts_max) {
                // Its last handle is void: an acknowledgement that came now would meet the copy.
                cursor.revision += 1;
                dead.push(Position { queue_id: queue, offset: cursor.floor });
                self.show_at(queue, now_ms + BURIAL_MS);
                continue;
            }
            self.show_at(queue, 0);
            self.subscriptions.ready(queue);
        }
        dead
    }

    /// Sets from when the message at a cursor may be delivered, in the schedule too.
    fn show_at(&mut self, queue: u32, visible_at_ms: u64) {
        let Some(cursor) = self.cursors.get_mut(&queue) else { return };
        if cursor.visible_at_ms > 0 {
            self.due.remove(&(cursor.visible_at_ms, queue));
        }
        cursor.visible_at_ms = visible_at_ms;
        if visible_at_ms > 0 {
            self.due.insert((visible_at_ms, queue));
        }
    }

    /// A lite topic is no more.
    pub fn forget(&mut self, queue: u32) {
        self.show_at(queue, 0);
        self.cursors.remove(&queue);
        self.unrecorded.remove(&queue);
        self.subscriptions.drop_queue(queue);
    }

    /// Takes over what a record or a snapshot says.
    pub fn apply(&mut self, progress: &QueueProgress) {
        let queue = progress.queue_id;
        let mut cursor = self.cursors.get(&queue).cloned().unwrap_or_else(|| Cursor::at(progress.floor));
        cursor.apply(progress);
        self.show_at(queue, 0);
        let visible_at_ms = std::mem::take(&mut cursor.visible_at_ms);
        self.cursors.insert(queue, cursor);
        self.show_at(queue, visible_at_ms);
    }

    /// What is recorded of a lite topic; `None` when the group has nothing to do with it.
    pub fn record(&self, queue: u32) -> Option<QueueProgress> {
        self.cursors.get(&queue).map(|cursor| cursor.record(queue))
    }

    /// All there is, for a snapshot.
    pub fn snapshot(&self) -> Vec<QueueProgress> {
        self.cursors.iter().map(|(&queue, cursor)| cursor.record(queue)).collect()
    }

    /// How far the group is with every lite topic it has a place in; for operators.
    pub fn cursors(&self) -> Vec<(u32, Cursor)> {
        self.cursors.iter().map(|(&queue, cursor)| (queue, cursor.clone())).collect()
    }

    /// How far the group is with a lite topic.
    pub fn cursor(&self, queue: u32) -> Option<&Cursor> {
        self.cursors.get(&queue)
    }

    /// A client wants none but these.
    pub fn keep(&mut self, client: &str, kept: &HashSet<u32>) {
        self.subscriptions.keep(client, kept);
    }
}

impl Start {
    /// The offset to go on from; `known` is where the group is.
    fn floor(self, known: Option<u64>, range: &Range<u64>) -> u64 {
        let last = known.unwrap_or(range.end);
        match self {
            Self::Last => last,
            Self::Min => range.start,
            Self::Max => range.end,
            Self::At(offset) => offset.clamp(range.start, range.end),
            Self::Tail(count) => last.saturating_sub(count).clamp(range.start, range.end),
        }
    }
}
