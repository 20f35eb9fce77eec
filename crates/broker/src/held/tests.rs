//! Histories of held messages against a model that forgets nothing: with crashes, snapshots that are made while records are
//! applied, and retention that copies messages while others finish them.
//!
//! `KARMAN_MODEL_CASES=<n>` draws more than 10,000 histories.

use std::collections::BTreeMap;

use bytes::Bytes;
use karman_store::{PhysicalOffset, Projection, QueueOffset, Record, RecordKind};
use proptest::prelude::*;
use prost::Message as _;

use super::halves::Half;
use super::history::Outcome;
use super::timers::TimerKey;
use super::{Claim, HeldTable, Saving};
use crate::records::{Checked, Dropped, HeldHead, Hold, Recalled, Settled};

#[derive(Debug, Clone)]
enum Step {
    Delay {
        due_ms: u64,
    },
    Half,
    /// One of the held messages, by its number among them.
    Release(usize),
    GiveUp(usize),
    Recall(usize),
    RollBack(usize),
    Check {
        which: usize,
        next_ms: u64,
    },
    Drop(usize),
    Claim(usize),
    ClaimDue {
        now_ms: u64,
        max: usize,
    },
    GiveBack(usize),
    /// Retention asks what is pinned in this part of the log, in percent.
    Pin {
        percent: u64,
        max: usize,
    },
    /// It appends the first of what it was told, finished meanwhile or not.
    Copy,
    BeginSnapshot,
    SaveSome,
    /// The snapshot is kept; it stands for a place up to so many records before it was begun.
    EndSnapshot {
        earlier: usize,
    },
    /// The end of the log that no snapshot has, up to so many records, is lost with it.
    Crash {
        lost: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..64_usize;
    prop_oneof![
        6 => (1..20_u64).prop_map(|due_ms| Step::Delay { due_ms }),
        4 => Just(Step::Half),
        3 => which.clone().prop_map(Step::Release),
        1 => which.clone().prop_map(Step::GiveUp),
        2 => which.clone().prop_map(Step::Recall),
        1 => which.clone().prop_map(Step::RollBack),
        2 => (which.clone(), 0..40_u64).prop_map(|(which, next_ms)| Step::Check { which, next_ms }),
        1 => which.clone().prop_map(Step::Drop),
        2 => which.clone().prop_map(Step::Claim),
        1 => (0..20_u64, 1..5_usize).prop_map(|(now_ms, max)| Step::ClaimDue { now_ms, max }),
        2 => which.prop_map(Step::GiveBack),
        2 => (0..=100_u64, 1..8_usize).prop_map(|(percent, max)| Step::Pin { percent, max }),
        5 => Just(Step::Copy),
        2 => Just(Step::BeginSnapshot),
        3 => Just(Step::SaveSome),
        2 => (0..6_usize).prop_map(|earlier| Step::EndSnapshot { earlier }),
        1 => (0..6_usize).prop_map(|lost| Step::Crash { lost }),
    ]
}

// ---- The model: every message ever held, with all that became of it. ----

#[derive(Debug, Clone, PartialEq)]
struct Told {
    head: HeldHead,
    at: u64,
    checks: u32,
    next_check_ms: u64,
    stored_ms: u64,
    ended: bool,
    outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    told: Vec<Told>,
}

impl Model {
    fn held(&self) -> Vec<&Told> {
        self.told.iter().filter(|told| !told.ended).collect()
    }

    /// The held message that a step means.
    fn which(&self, which: usize, hold: Option<Hold>) -> Option<usize> {
        let held = (0..self.told.len())
            .filter(|&n| !self.told[n].ended && hold.is_none_or(|hold| self.told[n].head.hold == hold));
        let held: Vec<usize> = held.collect();
        (!held.is_empty()).then(|| held[which % held.len()])
    }

    fn end(&mut self, number: usize, outcome: Option<Outcome>) {
        self.told[number].ended = true;
        self.told[number].outcome = outcome;
    }

    fn at(&self, at: u64) -> Option<usize> {
        self.told.iter().position(|told| told.at == at)
    }
}

// ---- The history of one case. ----

struct History {
    table: HeldTable,
    log: Vec<Record>,
    /// As it was with so many records of the log.
    models: Vec<Model>,
    model: Model,
    claimed: Vec<usize>,
    /// Places that retention was told, with the messages that lay there.
    to_copy: Vec<(u64, usize)>,
    saving: Option<(Saving, usize)>,
    /// With the place it stands for, and how much of the log was there when it was made.
    snapshot: Option<(Vec<u8>, usize, usize)>,
}

const SIZE: u64 = 64;

impl History {
    fn new() -> Self {
        Self {
            table: HeldTable::default(),
            log: Vec::new(),
            models: vec![Model::default()],
            model: Model::default(),
            claimed: Vec::new(),
            to_copy: Vec::new(),
            saving: None,
            snapshot: None,
        }
    }

    fn next_at(&self) -> u64 {
        self.log.len() as u64 * SIZE
    }

    fn append(&mut self, kind: RecordKind, payload: Bytes) {
        let record = Record {
            kind,
            epoch: 0,
            physical_offset: PhysicalOffset(self.next_at()),
            store_time_ms: self.log.len() as u64,
            queue: None,
            queue_offset: QueueOffset(0),
            tag_hash: 0,
            mark: 0,
            payload,
        };
        self.table.apply(&record);
        self.log.push(record);
        self.models.push(self.model.clone());
    }

    fn hold(&mut self, hold: Hold, due_ms: u64) {
        let (number, at, stored_ms) = (self.model.told.len(), self.next_at(), self.log.len() as u64);
        // As random as ids are, and the same in every run.
        let id = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let head = HeldHead { id, due_ms, topic: 7, hold };
        self.model.told.push(Told {
            head,
            at,
            checks: 0,
            next_check_ms: due_ms,
            stored_ms,
            ended: false,
            outcome: None,
        });
        self.append(RecordKind::Held, head.before(b"message"));
    }

    fn release(&mut self, number: usize, hold: Hold, outcome: Option<Outcome>) {
        let head = HeldHead { hold, ..self.model.told[number].head };
        self.model.end(number, outcome);
        self.append(RecordKind::Released, head.before(b"message"));
    }

    fn settle(&mut self, settled: &Settled) {
        self.append(RecordKind::Settled, settled.encode_to_vec().into());
    }

    fn key(&self, number: usize) -> TimerKey {
        self.model.told[number].head.timer_key()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Delay { due_ms } => self.hold(Hold::Timer, due_ms),
            Step::Half => self.hold(Hold::Half, self.log.len() as u64 % 20),
            Step::Release(which) => {
                let Some(number) = self.model.which(which, None) else { return };
                let hold = self.model.told[number].head.hold;
                self.release(number, hold, (hold == Hold::Half).then_some(Outcome::Committed));
            }
            Step::GiveUp(which) => {
                let Some(number) = self.model.which(which, Some(Hold::Half)) else { return };
                self.release(number, Hold::GivenUp, Some(Outcome::GivenUp));
            }
            Step::Recall(which) => {
                let Some(number) = self.model.which(which, Some(Hold::Timer)) else { return };
                let TimerKey { id, due_ms } = self.key(number);
                self.model.end(number, Some(Outcome::Recalled("id".into())));
                let recalled = vec![Recalled { id, due_ms, message_id: "id".into() }];
                self.settle(&Settled { recalled, ..Default::default() });
            }
            Step::RollBack(which) => {
                let Some(number) = self.model.which(which, Some(Hold::Half)) else { return };
                self.model.end(number, Some(Outcome::RolledBack));
                self.settle(&Settled { rolled_back: vec![self.key(number).id], ..Default::default() });
            }
            Step::Check { which, next_ms } => {
                let Some(number) = self.model.which(which, Some(Hold::Half)) else { return };
                let told = &mut self.model.told[number];
                (told.checks, told.next_check_ms) = (told.checks + 1, next_ms);
                let checked = Checked { id: told.head.id, checks: told.checks, next_check_ms: next_ms };
                self.settle(&Settled { checked: vec![checked], ..Default::default() });
            }
            Step::Drop(which) => {
                let Some(number) = self.model.which(which, None) else { return };
                let TimerKey { id, due_ms } = self.key(number);
                let is_half = self.model.told[number].head.hold == Hold::Half;
                self.model.end(number, is_half.then_some(Outcome::Dropped));
                let dropped = vec![Dropped { id, due_ms: if is_half { 0 } else { due_ms } }];
                self.settle(&Settled { dropped, ..Default::default() });
            }
            other => self.live_step(other),
        }
    }

    /// Steps that no record tells of.
    fn live_step(&mut self, step: Step) {
        match step {
            Step::Claim(which) => {
                let Some(number) = self.model.which(which, None) else { return };
                let was_claimed = self.claimed.contains(&number);
                assert_eq!(self.claim(number), if was_claimed { Claim::Others } else { Claim::Yours(()) });
                self.claimed.push(number);
            }
            Step::ClaimDue { now_ms, max } => {
                let mut due: Vec<usize> = (0..self.model.told.len()).collect();
                due.retain(|&n| {
                    let told = &self.model.told[n];
                    let is_free = !told.ended && !self.claimed.contains(&n);
                    is_free && told.head.hold == Hold::Timer && told.head.due_ms <= now_ms
                });
                due.sort_by_key(|&number| self.key(number));
                due.truncate(max);
                let claimed = self.table.shared_held(|held| held.timers.claim_due(now_ms, max));
                let expected = due.iter().map(|&n| (self.key(n), PhysicalOffset(self.model.told[n].at)));
                assert_eq!(claimed, expected.collect::<Vec<_>>());
                self.claimed.extend(due);
            }
            Step::GiveBack(which) => {
                self.claimed.retain(|&number| !self.model.told[number].ended);
                if self.claimed.is_empty() {
                    return;
                }
                let number = self.claimed[which % self.claimed.len()];
                self.claimed.retain(|other| *other != number);
                match self.model.told[number].head.hold {
                    Hold::Timer => self.table.release_timer(self.key(number)),
                    _ => self.table.release_half(self.key(number).id),
                }
            }
            Step::Pin { percent, max } => self.pin(self.next_at() * percent / 100, max),
            Step::Copy => {
                if self.to_copy.is_empty() {
                    return;
                }
                let (at, number) = self.to_copy.remove(0);
                let payload = self.log[(at / SIZE) as usize].payload.clone();
                let next_at = self.next_at();
                if !self.model.told[number].ended {
                    self.model.told[number].at = next_at;
                }
                self.append(RecordKind::Kept, payload);
            }
            Step::BeginSnapshot => self.saving = Some((self.table.save(), self.log.len())),
            Step::SaveSome => {
                if let Some((saving, _)) = &mut self.saving {
                    self.table.save_some(saving);
                }
            }
            Step::EndSnapshot { earlier } => {
                let Some((mut saving, begun)) = self.saving.take() else { return };
                while self.table.save_some(&mut saving) {}
                self.snapshot =
                    Some((saving.snapshot.encode_to_vec(), begun.saturating_sub(earlier), self.log.len()));
            }
            Step::Crash { lost } => self.crash(lost),
            _ => unreachable!("it is told by a record"),
        }
    }

    fn claim(&self, number: usize) -> Claim<()> {
        let told = &self.model.told[number];
        let claimed = match told.head.hold {
            Hold::Timer => self.table.claim_timer(self.key(number)),
            _ => match self.table.claim_half(told.head.id) {
                Claim::Yours(half) => Claim::Yours(half.at),
                Claim::Others => Claim::Others,
                Claim::Ended(outcome) => Claim::Ended(outcome),
                Claim::Unknown => Claim::Unknown,
            },
        };
        match claimed {
            Claim::Yours(at) => {
                assert_eq!(at.0, told.at);
                Claim::Yours(())
            }
            Claim::Others => Claim::Others,
            Claim::Ended(outcome) => Claim::Ended(outcome),
            Claim::Unknown => Claim::Unknown,
        }
    }

    /// Asks as the store does: what it is told it appends before it asks again. Here others come in between.
    fn pin(&mut self, below: u64, max: usize) {
        if !self.to_copy.is_empty() {
            return;
        }
        let pinned = self.table.pinned(PhysicalOffset(below), max);
        let in_front = self.model.held().iter().filter(|told| told.at < below).count();
        assert!(pinned.len() <= max && pinned.is_empty() == (in_front == 0), "{pinned:?} of {in_front}");
        for at in pinned {
            let number = self.model.at(at.0).expect("a place where a message lies");
            assert!(at.0 < below && !self.model.told[number].ended);
            self.to_copy.push((at.0, number));
        }
    }

    fn crash(&mut self, lost: usize) {
        // What a snapshot has seen was flushed before.
        let (saved, seen) = self.snapshot.as_ref().map_or((0, 0), |(_, from, seen)| (*from, *seen));
        let kept = self.log.len().saturating_sub(lost).max(seen);
        self.log.truncate(kept);
        self.models.truncate(kept + 1);
        self.model = self.models[kept].clone();
        (self.claimed, self.to_copy, self.saving) = (Vec::new(), Vec::new(), None);
        self.table = HeldTable::default();
        if let Some((bytes, _, _)) = &self.snapshot {
            self.table.restore(bytes).unwrap();
        }
        self.log[saved..].iter().for_each(|record| self.table.apply(record));
    }

    fn check(&self) {
        let held = self.model.held();
        let timers = held.iter().filter(|told| told.head.hold == Hold::Timer).count();
        assert_eq!(self.table.counts(), (timers, held.len() - timers));
        let halves = held.iter().filter(|told| told.head.hold == Hold::Half);
        assert_eq!(self.table.oldest_half_ms(), halves.map(|told| told.stored_ms).min());
        for told in &self.model.told {
            let (timer, half) = (self.table.timer(told.head.timer_key()), self.table.half(told.head.id));
            let at = PhysicalOffset(told.at);
            let (checks, next_check_ms, stored_ms) = (told.checks, told.next_check_ms, told.stored_ms);
            match (told.ended, told.head.hold) {
                (true, _) => {
                    assert_eq!((timer, half), (None, None), "{told:?}");
                    let ended = self.table.claim_half(told.head.id);
                    let expected = told.outcome.clone().map_or(Claim::Unknown, Claim::Ended);
                    assert_eq!(ended, expected, "{told:?}");
                }
                (false, Hold::Timer) => assert_eq!((timer, half), (Some(at), None), "{told:?}"),
                (false, _) => {
                    let expected = Half { at, topic: 7, checks, next_check_ms, stored_ms };
                    assert_eq!((timer, half), (None, Some(expected)), "{told:?}");
                }
            }
        }
        self.check_order();
    }

    fn check_order(&self) {
        let free = |hold| {
            let told = self.model.told.iter().enumerate();
            let free = told
                .filter(move |(n, told)| !told.ended && told.head.hold == hold && !self.claimed.contains(n));
            free.map(|(_, told)| told)
        };
        let first = free(Hold::Timer).map(|told| told.head.due_ms).min();
        let first_check = free(Hold::Half).map(|told| told.next_check_ms).min();
        let found = self.table.shared_held(|held| (held.timers.first_due(), held.halves.first_check_ms()));
        assert_eq!(found, (first, first_check));
        let due: BTreeMap<_, _> =
            free(Hold::Half).map(|told| ((told.next_check_ms, told.head.id), ())).collect();
        let asked = self.table.due_checks(u64::MAX, usize::MAX).unwrap_or_default();
        assert_eq!(
            asked.into_iter().map(|(id, _)| id).collect::<Vec<_>>(),
            due.into_keys().map(|(_, id)| id).collect::<Vec<_>>()
        );
    }
}

fn cases() -> u32 {
    std::env::var("KARMAN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn held_messages_are_as_the_model_has_them(steps in prop::collection::vec(step(), 0..60)) {
        let mut history = History::new();
        for step in steps {
            history.step(step);
            history.check();
        }
        history.crash(0);
        history.check();
    }
}

#[test]
fn the_log_writer_waits_for_a_few_messages_of_a_snapshot_not_for_all() {
    let mut history = History::new();
    (0..10).for_each(|_| history.step(Step::Half));
    (0..10).for_each(|due_ms| history.step(Step::Delay { due_ms }));
    let mut saving = history.table.save();
    let saved = |saving: &Saving| saving.snapshot.halves.len() + saving.snapshot.timers.len() / 3;
    let mut before = saved(&saving);
    assert_eq!(before, 0);
    while history.table.save_some(&mut saving) {
        assert!(saved(&saving) - before <= 3, "that is a chunk here");
        before = saved(&saving);
    }
    assert_eq!((saving.snapshot.halves.len(), saving.snapshot.timers.len()), (10, 30));
}
