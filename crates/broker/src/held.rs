//! Messages that nobody may see yet: delayed ones until their time, half messages until their transaction is decided.
//!
//! [`Held`] follows from the records of the log alone: no clock and no locks, so it is the same on a running broker, in
//! recovery and from a snapshot. [`HeldTable`] shares it between threads and wakes those who wait. A message leaves by one
//! record that both shows and finishes it, so it is shown once after any crash (`docs/adr/0014-held-messages.md`).

pub mod deliver;
pub mod halves;
pub mod history;
pub mod released;
mod table;
pub mod timers;

#[cfg(test)]
mod tests;

use karman_store::{PhysicalOffset, Record, RecordKind};
use prost::Message as _;

use crate::records::{HeldHead, Hold, Settled};
use halves::{Half, Halves};
use history::{History, Outcome};
pub use table::{Claim, HeldCounters, HeldTable};
use timers::{TimerKey, Timers};

/// All held messages, and what became of some.
#[derive(Debug, Default)]
pub struct Held {
    /// Delayed messages.
    pub timers: Timers,
    /// Messages of undecided transactions.
    pub halves: Halves,
    /// What became of half messages and recalled ones.
    pub history: History,
}

impl HeldHead {
    /// The key of a delayed message.
    pub fn timer_key(&self) -> TimerKey {
        TimerKey { due_ms: self.due_ms, id: self.id }
    }
}

impl Held {
    /// Follows one record. What it holds, if it holds something new.
    pub fn apply(&mut self, record: &Record) -> Option<HeldHead> {
        match record.kind {
            RecordKind::Held => return self.hold(record),
            RecordKind::Kept => self.keep(record),
            RecordKind::Released => self.release(record),
            RecordKind::Settled => self.settle(record),
            RecordKind::Message
            | RecordKind::DeadLetter
            | RecordKind::Metadata
            | RecordKind::Progress
            | RecordKind::Epoch => {}
        }
        None
    }

    fn hold(&mut self, record: &Record) -> Option<HeldHead> {
        let head = HeldHead::of(&record.payload)?;
        let at = record.physical_offset;
        match head.hold {
            Hold::Timer => self.timers.add(head.timer_key(), at),
            Hold::Half => {
                let (topic, next_check_ms, stored_ms) = (head.topic, head.due_ms, record.store_time_ms);
                self.halves.add(head.id, Half { at, topic, checks: 0, next_check_ms, stored_ms });
            }
            Hold::GivenUp => return None,
        }
        Some(head)
    }

    /// A copy of a message that was finished while it was copied finds nothing.
    fn keep(&mut self, record: &Record) {
        let Some(head) = HeldHead::of(&record.payload) else { return };
        match head.hold {
            Hold::Timer => self.timers.moved(head.timer_key(), record.physical_offset),
            Hold::Half => self.halves.moved(head.id, record.physical_offset),
            Hold::GivenUp => {}
        }
    }

    fn release(&mut self, record: &Record) {
        let Some(head) = HeldHead::of(&record.payload) else { return };
        match head.hold {
            Hold::Timer => self.timers.remove(head.timer_key()),
            Hold::Half => self.end(record, head.id, Outcome::Committed),
            Hold::GivenUp => self.end(record, head.id, Outcome::GivenUp),
        }
    }

    fn settle(&mut self, record: &Record) {
        let Ok(settled) = Settled::decode(&record.payload[..]) else { return };
        for recalled in settled.recalled {
            self.timers.remove(TimerKey { due_ms: recalled.due_ms, id: recalled.id });
            let outcome = Outcome::Recalled(recalled.message_id.into());
            self.history.add(record.physical_offset, recalled.id, outcome);
        }
        settled.rolled_back.into_iter().for_each(|id| self.end(record, id, Outcome::RolledBack));
        for checked in settled.checked {
            self.halves.checked(checked.id, checked.checks, checked.next_check_ms);
        }
        for dropped in settled.dropped {
            if dropped.due_ms == 0 {
                self.end(record, dropped.id, Outcome::Dropped);
            } else {
                self.timers.remove(TimerKey { due_ms: dropped.due_ms, id: dropped.id });
            }
        }
    }

    fn end(&mut self, record: &Record, id: u64, outcome: Outcome) {
        self.halves.remove(id);
        self.history.add(record.physical_offset, id, outcome);
    }

    /// Begins a snapshot: what became of messages. What is held may be millions and follows bit by bit.
    fn save(&self) -> Saving {
        let history =
            self.history.iter().map(|(at, id, outcome)| OutcomeSaved::of(at, id, outcome)).collect();
        let halves = Vec::with_capacity(self.halves.len());
        let timers = Vec::with_capacity(3 * self.timers.len());
        Saving { snapshot: Snapshot { halves, history, timers }, next: Some(Next::Half(0)) }
    }

    /// Adds up to `max` held messages to a snapshot. `false`: it has all.
    fn save_some(&self, saving: &mut Saving, max: usize) -> bool {
        let Snapshot { halves, timers, .. } = &mut saving.snapshot;
        saving.next = match saving.next {
            Some(Next::Half(from)) => {
                let next = self.halves.visit(from, max, |id, half| halves.push(HalfSaved::of(id, half)));
                Some(next.map_or(Next::Timer(TimerKey::default()), Next::Half))
            }
            Some(Next::Timer(from)) => {
                let show = |key: TimerKey, at: PhysicalOffset| timers.extend([key.due_ms, key.id, at.0]);
                self.timers.visit(from, max, show).map(Next::Timer)
            }
            None => None,
        };
        saving.next.is_some()
    }

    fn restored(bytes: &[u8]) -> Result<Self, String> {
        let snapshot = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        let mut halves = Halves::default();
        for saved in snapshot.halves {
            let HalfSaved { id, at, topic, checks, next_check_ms, stored_ms } = saved;
            let at = PhysicalOffset(at);
            halves.add(id, Half { at, topic, checks, next_check_ms, stored_ms });
        }
        let mut history = History::default();
        for saved in snapshot.history {
            let outcome = saved.outcome().ok_or_else(|| format!("outcome {} is not known", saved.what))?;
            history.add(PhysicalOffset(saved.at), saved.id, outcome);
        }
        let timers = snapshot.timers.chunks_exact(3).map(|timer| {
            let [due_ms, id, at] = timer else { unreachable!("chunks of three") };
            (TimerKey { due_ms: *due_ms, id: *id }, PhysicalOffset(*at))
        });
        Ok(Self { timers: Timers::restored(timers), halves, history })
    }
}

/// A snapshot that is being made, bit by bit: records are applied meanwhile. The messages in it may then be newer than the
/// rest; applying what came in between once more leads to the same.
#[derive(Debug)]
struct Saving {
    snapshot: Snapshot,
    /// Where to go on; `None` at the end.
    next: Option<Next>,
}

/// The held messages from which on a snapshot does not have them: first the half messages, then the delayed ones.
#[derive(Clone, Copy, Debug)]
enum Next {
    Half(u64),
    Timer(TimerKey),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(message, repeated, tag = "1")]
    halves: Vec<HalfSaved>,
    #[prost(message, repeated, tag = "2")]
    history: Vec<OutcomeSaved>,
    /// Time, id and place, one behind the other, in order.
    #[prost(fixed64, repeated, tag = "3")]
    timers: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct HalfSaved {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    at: u64,
    #[prost(uint32, tag = "3")]
    topic: u32,
    #[prost(uint32, tag = "4")]
    checks: u32,
    #[prost(uint64, tag = "5")]
    next_check_ms: u64,
    #[prost(uint64, tag = "6")]
    stored_ms: u64,
}

impl HalfSaved {
    fn of(id: u64, half: &Half) -> Self {
        let Half { at, topic, checks, next_check_ms, stored_ms } = *half;
        Self { id, at: at.0, topic, checks, next_check_ms, stored_ms }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct OutcomeSaved {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    what: u32,
    #[prost(string, tag = "3")]
    message_id: String,
    #[prost(uint64, tag = "4")]
    at: u64,
}

impl OutcomeSaved {
    fn of(at: PhysicalOffset, id: u64, outcome: &Outcome) -> Self {
        let (what, message_id) = match outcome {
            Outcome::Committed => (1, ""),
            Outcome::RolledBack => (2, ""),
            Outcome::GivenUp => (3, ""),
            Outcome::Dropped => (4, ""),
            Outcome::Recalled(message_id) => (5, &**message_id),
        };
        Self { id, what, message_id: message_id.to_owned(), at: at.0 }
    }

    fn outcome(&self) -> Option<Outcome> {
        match self.what {
            1 => Some(Outcome::Committed),
            2 => Some(Outcome::RolledBack),
            3 => Some(Outcome::GivenUp),
            4 => Some(Outcome::Dropped),
            5 => Some(Outcome::Recalled(self.message_id.as_str().into())),
            _ => None,
        }
    }
}
