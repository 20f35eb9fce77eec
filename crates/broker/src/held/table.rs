//! [`Held`] for all threads: applied by the log writer, saved and asked for what is pinned by the maintenance thread, and
//! used by the delivery thread, the checks and the calls of producers. The lock is held for one step or a small part of
//! a long one.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use karman_store::{PhysicalOffset, Projection, Record, RecordKind};
use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::histogram::Histogram;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::halves::Half;
use super::history::Outcome;
use super::timers::TimerKey;
use super::{Held, Saving};
use crate::clock::Clock;
use crate::records::{HeldHead, Hold};
use crate::spread::{Scale, Spread};

/// Looked at under one lock.
const CHUNK: usize = if cfg!(test) { 3 } else { 4096 };
/// The wall clock may be set, or go on while this machine is suspended, which nobody is told of.
const CLOCK_LOOK: Duration = Duration::from_secs(1);
/// Upper bounds for lateness, in seconds; 0.1 is what is promised.
const LATENESS_SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 60.0];

/// How long a transaction takes: seconds, of milliseconds that are added.
static SECONDS: Scale = Scale { bounds: &[1, 5, 60, 600, 3600, 43_200], unit: 1000 };

/// What happened since the start of the process.
#[derive(Debug)]
pub struct HeldCounters {
    /// Delayed messages delivered.
    pub delivered: AtomicU64,
    /// Delayed messages taken back.
    pub recalled: AtomicU64,
    /// Transactions committed.
    pub committed: AtomicU64,
    /// Transactions rolled back.
    pub rolled_back: AtomicU64,
    /// How long half messages waited for their commit. Milliseconds.
    pub finished: Spread,
    /// Times that a producer was asked about a transaction.
    pub checks: AtomicU64,
    /// Transactions that nobody decided.
    pub given_up: AtomicU64,
    /// Held messages that were damaged, or whose topic was deleted.
    pub dropped: AtomicU64,
    /// How long after their time delayed messages became visible. Seconds.
    pub lateness: Histogram,
}

impl Default for HeldCounters {
    fn default() -> Self {
        Self {
            delivered: AtomicU64::new(0),
            recalled: AtomicU64::new(0),
            committed: AtomicU64::new(0),
            rolled_back: AtomicU64::new(0),
            finished: Spread::new(&SECONDS),
            checks: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            lateness: Histogram::new(LATENESS_SECONDS),
        }
    }
}

/// Whether a message is now one's own to finish.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim<T> {
    /// It is. Whoever does not finish it must release it.
    Yours(T),
    /// Somebody else is about to finish it; look again when [`HeldTable::settled`] says so.
    Others,
    /// It is finished.
    Ended(Outcome),
    /// Nothing is known of it: it was finished long ago, or never here.
    Unknown,
}

#[derive(Debug, Default)]
struct Shared {
    held: Held,
    /// Until when the delivery thread sleeps. 0: it does not.
    delivery_sleeps_until_ms: u64,
    /// Until when the checks sleep. 0: they do not.
    checks_sleep_until_ms: u64,
    stopped: bool,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct HeldTable {
    shared: Mutex<Shared>,
    /// The delivery thread waits on it.
    delivery: Condvar,
    /// The checks wait on it.
    checks: Notify,
    /// Producers wait on it whose message somebody else is about to finish.
    settled: Notify,
    /// Where the last search for what is pinned ended.
    pin_from: Mutex<TimerKey>,
    /// For metrics.
    pub counters: HeldCounters,
}

impl HeldTable {
    /// Delayed messages and half messages that are held.
    pub fn counts(&self) -> (usize, usize) {
        let shared = self.shared.lock();
        (shared.held.timers.len(), shared.held.halves.len())
    }

    /// When the oldest half message was stored. Milliseconds since 1970.
    pub fn oldest_half_ms(&self) -> Option<u64> {
        let mut oldest_ms: Option<u64> = None;
        self.visit_halves(|half| {
            oldest_ms = oldest_ms.into_iter().chain([half.stored_ms]).min();
            true
        });
        oldest_ms
    }

    /// Shows half messages, a few under each lock, until it is told to stop.
    fn visit_halves(&self, mut show: impl FnMut(&Half) -> bool) {
        let (mut next, mut goes_on) = (Some(0), true);
        while let Some(from) = next.filter(|_| goes_on) {
            let shared = self.shared.lock();
            next = shared.held.halves.visit(from, CHUNK, |_, half| goes_on = goes_on && show(half));
        }
    }

    /// Where a delayed message lies, if it is held.
    pub fn timer(&self, key: TimerKey) -> Option<PhysicalOffset> {
        self.shared.lock().held.timers.place(key)
    }

    /// Up to `max` delayed messages from `from` on, and where to go on; `None`: there are no more.
    pub fn timers_from(
        &self,
        from: TimerKey,
        max: usize,
    ) -> (Vec<(TimerKey, PhysicalOffset)>, Option<TimerKey>) {
        let mut timers = Vec::with_capacity(max);
        let next = self.shared.lock().held.timers.visit(from, max, |key, at| timers.push((key, at)));
        (timers, next)
    }

    /// A half message, if it is held.
    pub fn half(&self, id: u64) -> Option<Half> {
        self.shared.lock().held.halves.get(id)
    }

    /// What became of a message, if that is remembered.
    pub fn outcome(&self, id: u64) -> Option<Outcome> {
        self.shared.lock().held.history.get(id).cloned()
    }

    /// Claims a delayed message.
    pub fn claim_timer(&self, key: TimerKey) -> Claim<PhysicalOffset> {
        let held = &mut self.shared.lock().held;
        claim(held.timers.claim(key), held, key.id)
    }

    /// Claims a half message.
    pub fn claim_half(&self, id: u64) -> Claim<Half> {
        let held = &mut self.shared.lock().held;
        claim(held.halves.claim(id), held, id)
    }

    /// A claimed delayed message was not finished.
    pub fn release_timer(&self, key: TimerKey) {
        let mut shared = self.shared.lock();
        shared.held.timers.release(key);
        self.wake_delivery(&shared, key.due_ms);
        drop(shared);
        self.settled.notify_waiters();
    }

    /// A claimed half message was not decided.
    pub fn release_half(&self, id: u64) {
        let mut shared = self.shared.lock();
        shared.held.halves.release(id);
        if let Some(half) = shared.held.halves.get(id) {
            self.wake_checks(&shared, half.next_check_ms);
        }
        drop(shared);
        self.settled.notify_waiters();
    }

    /// Becomes ready when some message was finished or released after this call.
    pub fn settled(&self) -> Notified<'_> {
        self.settled.notified()
    }

    /// Waits until delayed messages are due and claims up to `max` of them, in order. `None`: the broker stops. Blocks.
    pub fn wait_due(&self, clock: &Clock, max: usize) -> Option<Vec<(TimerKey, PhysicalOffset)>> {
        let mut shared = self.shared.lock();
        loop {
            if shared.stopped {
                return None;
            }
            let due = shared.held.timers.claim_due(clock.latest_ms(), max);
            if !due.is_empty() {
                shared.delivery_sleeps_until_ms = 0;
                return Some(due);
            }
            match shared.held.timers.first_due() {
                Some(first_ms) => {
                    shared.delivery_sleeps_until_ms = first_ms;
                    let time = Duration::from_millis(first_ms.saturating_sub(clock.latest_ms()));
                    self.delivery.wait_for(&mut shared, time.min(CLOCK_LOOK));
                }
                None => {
                    shared.delivery_sleeps_until_ms = u64::MAX;
                    self.delivery.wait(&mut shared);
                }
            }
        }
    }

    /// Lets `time` pass, unless the broker stops. Blocks.
    pub fn pause_delivery(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut shared = self.shared.lock();
        while !shared.stopped && !self.delivery.wait_until(&mut shared, end).timed_out() {}
    }

    /// Ends [`HeldTable::wait_due`] for good.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.delivery.notify_all();
    }

    /// Up to `max` half messages that producers are to be asked about now. When there are none, the time of the next,
    /// before which [`HeldTable::check_added`] says if an earlier one comes.
    pub fn due_checks(&self, now_ms: u64, max: usize) -> Result<Vec<(u64, Half)>, Option<u64>> {
        let mut shared = self.shared.lock();
        let due = shared.held.halves.due(now_ms, max);
        if !due.is_empty() {
            shared.checks_sleep_until_ms = 0;
            return Ok(due);
        }
        let first_ms = shared.held.halves.first_check_ms();
        shared.checks_sleep_until_ms = first_ms.unwrap_or(u64::MAX);
        Err(first_ms)
    }

    /// Ready when a half message has come that is to be asked about earlier than those in front of it.
    pub async fn check_added(&self) {
        self.checks.notified().await;
    }

    fn wake_delivery(&self, shared: &Shared, due_ms: u64) {
        if due_ms < shared.delivery_sleeps_until_ms {
            self.delivery.notify_one();
        }
    }

    fn wake_checks(&self, shared: &Shared, due_ms: u64) {
        if due_ms < shared.checks_sleep_until_ms {
            self.checks.notify_one();
        }
    }

    #[cfg(test)]
    pub(super) fn is_delivery_asleep(&self) -> bool {
        self.shared.lock().delivery_sleeps_until_ms > 0
    }

    #[cfg(test)]
    pub(super) fn shared_held<T>(&self, ask: impl FnOnce(&mut Held) -> T) -> T {
        ask(&mut self.shared.lock().held)
    }

    pub(super) fn save(&self) -> Saving {
        self.shared.lock().held.save()
    }

    pub(super) fn save_some(&self, saving: &mut Saving) -> bool {
        self.shared.lock().held.save_some(saving, CHUNK)
    }

    /// Looks for places below `below` from the timer at `from` on, up to `max`. `None`: no more.
    fn pinned_timers(
        &self,
        from: TimerKey,
        below: PhysicalOffset,
        max: usize,
        found: &mut Vec<PhysicalOffset>,
    ) -> Option<TimerKey> {
        let mut next = Some(from);
        while let Some(from) = next {
            let room = max - found.len();
            if room == 0 {
                return next;
            }
            let shared = self.shared.lock();
            let take = |_, at| found.extend((at < below).then_some(at));
            next = shared.held.timers.visit(from, CHUNK.min(room), take);
        }
        None
    }
}

fn claim<T>(claimed: Result<T, bool>, held: &Held, id: u64) -> Claim<T> {
    match claimed {
        Ok(place) => Claim::Yours(place),
        Err(true) => Claim::Others,
        Err(false) => held.history.get(id).map_or(Claim::Unknown, |outcome| Claim::Ended(outcome.clone())),
    }
}

impl Projection for HeldTable {
    fn name(&self) -> &'static str {
        "held"
    }

    fn apply(&self, record: &Record) {
        match record.kind {
            RecordKind::Held | RecordKind::Kept => {
                let mut shared = self.shared.lock();
                match shared.held.apply(record) {
                    Some(HeldHead { hold: Hold::Half, due_ms, .. }) => self.wake_checks(&shared, due_ms),
                    Some(HeldHead { due_ms, .. }) => self.wake_delivery(&shared, due_ms),
                    None => {}
                }
            }
            RecordKind::Released | RecordKind::Settled => {
                self.shared.lock().held.apply(record);
                self.settled.notify_waiters();
            }
            RecordKind::Message
            | RecordKind::DeadLetter
            | RecordKind::Metadata
            | RecordKind::Progress
            | RecordKind::Epoch => {}
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut saving = self.save();
        while self.save_some(&mut saving) {}
        saving.snapshot.encode_to_vec()
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), String> {
        self.shared.lock().held = Held::restored(bytes)?;
        Ok(())
    }

    /// Nothing was held before there was this projection.
    fn was_added_later(&self) -> bool {
        true
    }

    fn pinned(&self, below: PhysicalOffset, max: usize) -> Vec<PhysicalOffset> {
        let mut found = Vec::new();
        self.visit_halves(|half| {
            found.extend((half.at < below && found.len() < max).then_some(half.at));
            found.len() < max
        });
        // Each call goes on where the last one ended: those in front of it have been moved by now, or come again later.
        let mut pin_from = self.pin_from.lock();
        let started = *pin_from;
        let next = self.pinned_timers(started, below, max, &mut found);
        let next = match next {
            Some(next) => Some(next),
            None if found.is_empty() && started > TimerKey::default() => {
                self.pinned_timers(TimerKey::default(), below, max, &mut found)
            }
            None => None,
        };
        *pin_from = next.unwrap_or(TimerKey::default());
        found
    }
}
