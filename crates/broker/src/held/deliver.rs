//! The delivery thread: makes delayed messages visible when their time comes.
//!
//! A thread of its own, because what it reads may have to come from the device, and nobody else is to wait for that. It
//! sleeps until the next message is due. What is due is claimed, so that nobody takes it back meanwhile, and appended;
//! the log writer's answer means that it is visible and no longer held. What could not be appended stays due.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use karman_store::{Append, AppendError, Durability, NewRecord, PhysicalOffset, RecordKind, Store};
use prost::Message as _;

use super::HeldTable;
use super::released::HeldMessage;
use super::timers::TimerKey;
use crate::catalog::{Catalog, Topic};
use crate::clock::Clock;
use crate::records::{Dropped, Settled};

/// Messages claimed at once.
const CLAIM_MAX: usize = 4096;
/// And while the store takes none: each attempt reads them all.
const CLAIM_MAX_REFUSED: usize = 64;
/// Of messages that are appended before anything is waited for; the log writer's inbox takes several times as much.
const ROUND_BYTES: usize = 16 << 20;
/// Messages of one append call.
const APPEND_MAX: usize = 256;
/// Bytes of one append call, if it has more than one message.
const APPEND_BYTES: usize = 1 << 20;
/// The pause after something could not be appended or read: others are due meanwhile.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// What fails for long is reported so often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What the thread works with.
#[derive(Debug)]
pub struct Deliverer {
    /// Where messages lie, and where they go.
    pub store: Arc<Store>,
    /// Their topics.
    pub catalog: Arc<Catalog>,
    /// What is held.
    pub held: Arc<HeldTable>,
    /// Tells what is due.
    pub clock: Clock,
    /// For topics without a class of their own.
    pub durability: Durability,
}

/// Messages that are appended together, by the number of their topic.
#[derive(Debug, Default)]
struct Round {
    messages: BTreeMap<u32, Vec<(TimerKey, HeldMessage)>>,
    bytes: usize,
    dropped: Vec<TimerKey>,
}

/// Why a claimed message is not delivered.
enum Missing {
    ForGood(String),
    ForNow(String),
}

/// Why some of what was due was not delivered.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("some cannot be read: {0}")]
    Read(String),
    #[error("the store takes none: {0}")]
    Refused(String),
}

/// An append under way, with the messages that stay due if it fails.
type Begun = (Vec<TimerKey>, Result<Append, AppendError>);

impl Deliverer {
    /// Starts the thread; [`HeldTable::stop`] ends it.
    pub fn start(self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("broker-delivery".into()).spawn(move || self.run())
    }

    fn run(&self) {
        let (mut claim_max, mut reported) = (CLAIM_MAX, None::<Instant>);
        while let Some(due) = self.held.wait_due(&self.clock, claim_max) {
            claim_max = CLAIM_MAX;
            let Err(trouble) = self.deliver(due) else { continue };
            if reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
                reported = Some(Instant::now());
                tracing::warn!(%trouble, "delayed messages are not delivered in time; they are tried again");
            }
            if matches!(trouble, Trouble::Refused(_)) {
                claim_max = CLAIM_MAX_REFUSED;
            }
            self.held.pause_delivery(RETRY_PAUSE);
        }
    }

    /// Delivers what was claimed. `Err`: what is wrong with some of it, which is not claimed any more.
    fn deliver(&self, due: Vec<(TimerKey, PhysicalOffset)>) -> Result<(), Trouble> {
        let (mut round, mut outcome) = (Round::default(), Ok(()));
        for (key, at) in due {
            match self.read(key, at) {
                Ok(message) => {
                    round.bytes += message.size_bytes();
                    round.messages.entry(message.head.topic).or_default().push((key, message));
                }
                Err(Missing::ForGood(why)) => {
                    tracing::error!(id = key.id, due_ms = key.due_ms, why, "a delayed message is dropped");
                    round.dropped.push(key);
                }
                Err(Missing::ForNow(why)) => {
                    self.held.release_timer(key);
                    outcome = Err(Trouble::Read(why));
                }
            }
            if round.bytes >= ROUND_BYTES {
                outcome = self.append(std::mem::take(&mut round)).and(outcome);
            }
        }
        self.append(round).and(outcome)
    }

    fn read(&self, key: TimerKey, mut at: PhysicalOffset) -> Result<HeldMessage, Missing> {
        loop {
            match HeldMessage::read(&self.store, at) {
                Ok(message) if self.catalog.topic_numbered(message.head.topic).is_none() => {
                    let why = format!("topic number {} was deleted", message.head.topic);
                    return Err(Missing::ForGood(why));
                }
                Ok(message) => return Ok(message),
                // Its segment may have gone since it was claimed; it lies elsewhere then.
                Err(error) => match self.held.timer(key) {
                    Some(place) if place != at => at = place,
                    _ if error.is_final() => return Err(Missing::ForGood(error.to_string())),
                    _ => return Err(Missing::ForNow(error.to_string())),
                },
            }
        }
    }

    fn append(&self, round: Round) -> Result<(), Trouble> {
        let mut begun: Vec<Begun> = Vec::new();
        for (topic, messages) in round.messages {
            match self.catalog.topic_numbered(topic) {
                Some(topic) => self.begin(&topic, messages, &mut begun),
                // Deleted just now; they are found so when they are looked at again.
                None => messages.into_iter().for_each(|(key, _)| self.held.release_timer(key)),
            }
        }
        let mut outcome = Ok(());
        for (keys, append) in begun {
            match append.and_then(Append::wait) {
                Ok(_) => self.delivered(&keys),
                Err(error) => {
                    keys.into_iter().for_each(|key| self.held.release_timer(key));
                    outcome = Err(Trouble::Refused(error.to_string()));
                }
            }
        }
        self.drop(round.dropped).and(outcome)
    }

    /// Hands the messages of one topic to the log writer, shared among the queues.
    fn begin(&self, topic: &Topic, messages: Vec<(TimerKey, HeldMessage)>, begun: &mut Vec<Begun>) {
        let durability = topic.durability().unwrap_or(self.durability);
        let share = messages.len().div_ceil(topic.queues.len().max(1)).clamp(1, APPEND_MAX);
        let mut rest = messages.into_iter().peekable();
        while rest.peek().is_some() {
            let (_, queue) = topic.next_queue();
            let (mut keys, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
            let fits = |count: usize, bytes: usize, next: &(TimerKey, HeldMessage)| {
                count == 0 || count < share && bytes + next.1.size_bytes() <= APPEND_BYTES
            };
            while let Some((key, message)) = rest.next_if(|next| fits(keys.len(), bytes, next)) {
                bytes += message.size_bytes();
                keys.push(key);
                records.push(message.released(queue));
            }
            begun.push((keys, self.store.append(records, durability)));
        }
    }

    fn delivered(&self, keys: &[TimerKey]) {
        let (counters, now_ms) = (&self.held.counters, self.clock.latest_ms());
        counters.delivered.fetch_add(keys.len() as u64, Ordering::Relaxed);
        for key in keys {
            counters.lateness.observe(now_ms.saturating_sub(key.due_ms) as f64 / 1000.0);
        }
    }

    /// Records that messages will not be delivered.
    fn drop(&self, keys: Vec<TimerKey>) -> Result<(), Trouble> {
        if keys.is_empty() {
            return Ok(());
        }
        let dropped = keys.iter().map(|key| Dropped { id: key.id, due_ms: key.due_ms });
        let settled = Settled { dropped: dropped.collect(), ..Default::default() };
        let record = settled_record(&settled);
        let appended = self.store.append(vec![record], self.durability).and_then(Append::wait);
        if let Err(error) = appended {
            keys.into_iter().for_each(|key| self.held.release_timer(key));
            return Err(Trouble::Refused(error.to_string()));
        }
        self.held.counters.dropped.fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The record that says what became of held messages.
pub fn settled_record(settled: &Settled) -> NewRecord {
    NewRecord {
        kind: RecordKind::Settled,
        queue: None,
        tag_hash: 0,
        mark: 0,
        keys: Vec::new(),
        payload: settled.encode_to_vec().into(),
    }
}

#[cfg(test)]
mod tests;
