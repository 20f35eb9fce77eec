//! The core against a model of what at-least-once delivery to one group means.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::{ATTEMPTS_MAX, Stored, ask, held, never, stored};
use super::*;
use crate::records::Later;

#[derive(Clone, Debug)]
enum Step {
    Store {
        queue: usize,
        count: u64,
    },
    Take {
        max: usize,
    },
    Ack {
        nth: usize,
    },
    Nack {
        nth: usize,
        delay_ms: u64,
    },
    PutBack {
        nth: usize,
    },
    Pass {
        millis: u64,
    },
    /// Retention takes the first ones of a queue.
    Retire {
        queue: usize,
        count: u64,
    },
    /// Everything that is not in a record is forgotten.
    Crash,
    /// The state is saved and read back.
    Snapshot,
    /// The last receive is repeated: its answer got lost.
    Repeat,
    /// The group becomes orderly, or is it no more.
    Turn,
    /// The index can be read, or not.
    Device {
        fails: bool,
    },
    /// An operator moves the group on a queue, back or ahead.
    Reset {
        queue: usize,
        to: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..2_usize, 1..8_u64).prop_map(|(queue, count)| Step::Store { queue, count }),
        4 => (1..6_usize).prop_map(|max| Step::Take { max }),
        4 => (0..12_usize).prop_map(|nth| Step::Ack { nth }),
        1 => (0..12_usize, 0..300_u64).prop_map(|(nth, delay_ms)| Step::Nack { nth, delay_ms }),
        1 => (0..8_usize).prop_map(|nth| Step::PutBack { nth }),
        2 => (1..150_u64).prop_map(|millis| Step::Pass { millis }),
        1 => (0..2_usize, 1..12_u64).prop_map(|(queue, count)| Step::Retire { queue, count }),
        1 => Just(Step::Crash),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Repeat),
        1 => Just(Step::Turn),
        1 => any::<bool>().prop_map(|fails| Step::Device { fails }),
        1 => (0..2_usize, 0..40_u64).prop_map(|(queue, to)| Step::Reset { queue, to }),
    ];
    prop::collection::vec(step, 0..120)
}

/// What a test run knows: the records written, what was acknowledged, and who holds what until when.
struct Run {
    pop: Pop,
    stored: Stored,
    now_ms: u64,
    log: Vec<Vec<QueueProgress>>,
    acked: BTreeSet<Position>,
    holding: Vec<Delivery>,
    /// From before a restart: as good as ever, while nobody else was given the message.
    old: Vec<Delivery>,
    /// From before a reset of their queue.
    void: Vec<Delivery>,
    /// Revisions of this process are above.
    revision_base: u32,
    invisible_until: BTreeMap<Position, u64>,
    attempts: BTreeMap<Position, u32>,
    orderly: bool,
    /// Key of the last receive.
    key: u64,
}

impl Run {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            // Three message groups, by the high half of the label.
            Step::Store { queue, count } => {
                self.stored.queues[queue].extend((0..count).map(|n| (n % 3 + 1) << 32 | n));
            }
            Step::Take { max } => self.take(max)?,
            Step::Ack { nth } => {
                if let Some(delivery) = self.pick_any(nth) {
                    let valid = self.pop.check(self.now_ms, &held(&delivery), &never);
                    if valid.is_ok() {
                        self.pop.finish(delivery.position);
                        self.log.push(self.pop.done_record(&[delivery.position]));
                        self.acked.insert(delivery.position);
                    }
                }
            }
            Step::Nack { nth, delay_ms } => {
                if let Some(delivery) = self.pick_any(nth)
                    && self.pop.check(self.now_ms, &held(&delivery), &never).is_ok()
                {
                    let visible_at_ms = self.now_ms + delay_ms;
                    self.pop.change(&held(&delivery), visible_at_ms);
                    self.invisible_until.insert(delivery.position, visible_at_ms);
                    let Position { queue_id, offset } = delivery.position;
                    let later = Later { offset, visible_at_ms, attempt: delivery.attempt };
                    self.log.push(self.pop.later_record(queue_id, later));
                }
            }
            Step::PutBack { nth } => {
                if let Some(delivery) = self.pick(nth) {
                    let newest =
                        self.pop.check(self.now_ms, &held(&delivery), &never) != Err(Void::Superseded);
                    self.pop.put_back(&delivery);
                    if newest && !self.acked.contains(&delivery.position) {
                        self.invisible_until.insert(delivery.position, 0);
                        self.attempts.insert(delivery.position, delivery.attempt - 1);
                    }
                }
            }
            Step::Repeat => self.repeat()?,
            Step::Device { fails } => self.stored.unreadable = fails,
            Step::Reset { queue, to } => self.reset(queue, to),
            Step::Turn => self.orderly = !self.orderly,
            Step::Pass { millis } => self.now_ms += millis,
            Step::Retire { queue, count } => {
                let minimum = &mut self.stored.minimums[queue];
                *minimum = (*minimum + count).min(self.stored.queues[queue].len() as u64);
            }
            Step::Crash => {
                let mut pop = Pop::new(&[0, 0]);
                self.log.iter().flatten().for_each(|progress| pop.apply(progress));
                self.restart(pop);
            }
            Step::Snapshot => {
                let snapshot = self.pop.snapshot();
                let mut pop = Pop::new(&[0, 0]);
                snapshot.iter().for_each(|progress| pop.apply(progress));
                // Records that the snapshot contains already may come once more.
                self.log.iter().rev().take(3).rev().flatten().for_each(|progress| pop.apply(progress));
                self.restart(pop);
            }
        }
        for delivery in &self.void {
            let checked = self.pop.check(self.now_ms, &held(delivery), &never);
            prop_assert!(checked.is_err(), "{delivery:?} is from before a reset");
        }
        Ok(())
    }

    fn restart(&mut self, pop: Pop) {
        self.pop = pop;
        self.pop.schedule();
        self.revision_base += 1000;
        self.old.append(&mut self.holding);
        self.invisible_until.clear();
        self.attempts.clear();
    }

    /// Everything in front of `to` is done, and nothing else.
    fn reset(&mut self, queue: usize, to: u64) {
        let to = to.clamp(self.stored.minimums[queue], self.stored.queues[queue].len() as u64);
        let queue_id = queue as u32;
        self.log.push(self.pop.reset(queue_id, to, self.revision_base));
        self.acked.retain(|at| at.queue_id != queue_id);
        self.acked.extend((0..to).map(|offset| Position { queue_id, offset }));
        self.invisible_until.retain(|at, _| at.queue_id != queue_id);
        self.attempts.retain(|at, _| at.queue_id != queue_id);
        for handles in [&mut self.holding, &mut self.old] {
            self.void.extend(handles.extract_if(.., |delivery| delivery.position.queue_id == queue_id));
        }
    }

    /// Of what is held, and behind it what was before a restart.
    fn pick_any(&mut self, nth: usize) -> Option<Delivery> {
        let old = nth.checked_sub(self.holding.len()).filter(|nth| *nth < self.old.len());
        old.map(|nth| self.old.swap_remove(nth)).or_else(|| self.pick(nth))
    }

    fn pick(&mut self, nth: usize) -> Option<Delivery> {
        (nth < self.holding.len()).then(|| self.holding.swap_remove(nth))
    }

    fn take(&mut self, max: usize) -> Result<(), TestCaseError> {
        self.key += 1;
        let attempt_key = self.orderly.then_some(self.key);
        let revision_base = self.revision_base;
        let ask = Take { orderly: self.orderly, attempt_key, revision_base, ..ask(self.now_ms, max) };
        let taken = self.pop.take(&ask, &self.stored);
        prop_assert!(taken.deliveries.len() <= max);
        let redelivered = self.pop.redelivered(&taken.deliveries);
        if !redelivered.is_empty() {
            self.log.push(redelivered);
        }
        for delivery in &taken.deliveries {
            let position = delivery.position;
            prop_assert!(!self.acked.contains(&position), "{position:?} was acknowledged");
            prop_assert!(position.offset >= self.stored.minimums[position.queue_id as usize], "it is gone");
            let until = self.invisible_until.insert(position, delivery.visible_at_ms).unwrap_or(0);
            prop_assert!(until <= self.now_ms, "{position:?} is invisible until {until}");
            if let Some(before) = self.attempts.insert(position, delivery.attempt) {
                prop_assert_eq!(delivery.attempt, before + 1);
            }
            prop_assert!((1..=ATTEMPTS_MAX).contains(&delivery.attempt));
            self.check_order(position)?;
        }
        let passed = self.pop.passed_record();
        if !passed.is_empty() {
            self.log.push(passed);
        }
        for &dead in &taken.dead {
            prop_assert!(!self.acked.contains(&dead));
            self.pop.finish(dead);
            self.log.push(self.pop.done_record(&[dead]));
            self.acked.insert(dead);
        }
        self.holding.extend(taken.deliveries);
        Ok(())
    }

    /// What stands in front of it in its message group is done, if the group is orderly.
    fn check_order(&self, at: Position) -> Result<(), TestCaseError> {
        let queue = &self.stored.queues[at.queue_id as usize];
        let message_group = |offset: u64| queue[offset as usize] >> 32;
        let first = self.stored.minimums[at.queue_id as usize];
        for offset in (first..at.offset).filter(|&offset| message_group(offset) == message_group(at.offset)) {
            let earlier = Position { offset, ..at };
            prop_assert!(!self.orderly || self.acked.contains(&earlier), "{at:?} in front of {earlier:?}");
        }
        Ok(())
    }

    /// Nobody else has had what the last receive was answered with, so its client gets just that, as the same delivery.
    fn repeat(&mut self) -> Result<(), TestCaseError> {
        let (attempt_key, revision_base) = (Some(self.key), self.revision_base);
        let ask = Take { orderly: self.orderly, attempt_key, revision_base, ..ask(self.now_ms, 0) };
        for delivery in self.pop.take(&ask, &self.stored).deliveries {
            let position = delivery.position;
            prop_assert!(!self.acked.contains(&position));
            prop_assert_eq!(self.attempts.get(&position), Some(&delivery.attempt));
            self.invisible_until.insert(position, delivery.visible_at_ms);
            self.holding.retain(|held| held.position != position);
            self.holding.push(delivery);
        }
        Ok(())
    }

    /// Whoever goes on asking and acknowledging gets all the rest.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        self.stored.unreadable = false;
        for _ in 0..2000 {
            self.now_ms += 1000;
            self.take(100)?;
            for delivery in std::mem::take(&mut self.holding) {
                if self.pop.check(self.now_ms, &held(&delivery), &never).is_ok() {
                    self.pop.finish(delivery.position);
                    self.acked.insert(delivery.position);
                }
            }
            let stored: usize = self.stored.queues.iter().map(Vec::len).sum();
            let minimums = self.stored.minimums;
            let there = |at: &&Position| at.offset >= minimums[at.queue_id as usize];
            if self.acked.iter().filter(there).count() + minimums.iter().sum::<u64>() as usize == stored {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("something was never delivered"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12_000))]

    /// Nothing acknowledged comes back, nothing invisible is handed out, attempts grow by one, and nothing is lost:
    /// over nacks, expiries, crashes, snapshots, resets, handles from before all of these, and an index that
    /// cannot be read for a while. While the group is orderly no message is handed out in front of an
    /// earlier one of its message group that is not done.
    #[test]
    fn deliveries_keep_the_promises(steps in steps()) {
        let mut run = Run {
            pop: Pop::new(&[0, 0]),
            stored: stored(0, 0),
            now_ms: 1,
            log: vec![],
            acked: BTreeSet::new(),
            holding: vec![],
            old: vec![],
            void: vec![],
            revision_base: 0,
            invisible_until: BTreeMap::new(),
            attempts: BTreeMap::new(),
            orderly: false,
            key: 0,
        };
        for step in steps {
            run.step(step)?;
        }
        run.drain()?;
    }
}
