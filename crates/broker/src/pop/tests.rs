//! The core against a model of what at-least-once delivery to one group means.

use std::collections::{BTreeMap, BTreeSet};

use karman_store::{Entry, PhysicalOffset, QueueOffset};
use proptest::prelude::*;

use super::queue::BURIAL_MS;
use super::take::{DUE_SLACK, RENEW_MAX_MS, RENEWAL_MS};
use super::*;
use crate::records::Later;

const ATTEMPTS_MAX: u32 = 4;
const SCAN_MAX: usize = 4096;

/// Two queues of tagged messages, in memory; the first ones of each may be gone. An even tag hash is wanted.
struct Stored {
    queues: [Vec<u64>; 2],
    minimums: [u64; 2],
    only_even: bool,
    alive: bool,
}

impl Surroundings for Stored {
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), Gone> {
        let (queue, minimum) = (&self.queues[queue_id as usize], self.minimums[queue_id as usize]);
        if from.0 < minimum {
            return Err(Gone { minimum });
        }
        let rest = queue.iter().enumerate().skip(from.0 as usize).take(max);
        out.extend(rest.map(|(offset, &tag_hash)| Entry {
            physical_offset: PhysicalOffset(offset as u64),
            size: 1,
            tag_hash,
        }));
        Ok(())
    }

    fn wants(&self, entry: &Entry) -> bool {
        !self.only_even || entry.tag_hash.is_multiple_of(2)
    }

    fn is_alive(&self, _client_id: &str) -> bool {
        self.alive
    }
}

fn stored(first: usize, second: usize) -> Stored {
    let tags = |count: usize| (0..count as u64).collect();
    Stored { queues: [tags(first), tags(second)], minimums: [0, 0], only_even: false, alive: true }
}

fn ask(now_ms: u64, max: usize) -> Take {
    Take {
        now_ms,
        max,
        invisible_ms: 100,
        renew_for: None,
        attempts_max: ATTEMPTS_MAX,
        inflight_max: 1000,
        revision_base: 0,
        scan_max: SCAN_MAX,
        orderly: false,
        last_queue_first: false,
        attempt_key: None,
    }
}

fn held(delivery: &Delivery) -> Held {
    Held {
        position: delivery.position,
        revision: delivery.revision,
        attempt: delivery.attempt,
        expires_ms: delivery.visible_at_ms,
    }
}

fn never(_: &str) -> bool {
    false
}

#[test]
fn every_message_is_handed_out_once_until_its_time_ends() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(40, 3));
    let first = pop.take(&ask(0, 32), &stored).deliveries;
    let second = pop.take(&ask(0, 32), &stored).deliveries;
    assert_eq!((first.len(), second.len()), (32, 11));
    assert!(pop.take(&ask(99, 32), &stored).deliveries.is_empty());
    let again = pop.take(&ask(100, 64), &stored).deliveries;
    assert_eq!(again.len(), 43);
    assert!(again.iter().all(|delivery| delivery.attempt == 2));
}

#[test]
fn a_handle_is_void_once_its_time_has_ended_or_a_newer_one_exists() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let delivery = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
    assert_eq!(pop.check(99, &held(&delivery), &never), Ok(()));
    assert_eq!(pop.check(100, &held(&delivery), &never), Err(Void::Expired));
    let revision = pop.change(&held(&delivery), 500);
    assert_eq!(pop.check(99, &held(&delivery), &never), Err(Void::Superseded));
    let newer = Held { revision, expires_ms: 500, ..held(&delivery) };
    assert_eq!(pop.check(499, &newer, &never), Ok(()));
    pop.finish(newer.position);
    assert_eq!(pop.check(499, &newer, &never), Err(Void::Done));
}

#[test]
fn a_message_of_a_living_client_is_renewed_and_its_first_handle_stays_good() {
    let (mut pop, mut stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let renewing = Take { renew_for: Some("me".into()), ..ask(0, 1) };
    let delivery = pop.take(&renewing, &stored).deliveries.remove(0);
    assert!(pop.take(&ask(1000, 1), &stored).deliveries.is_empty());
    assert_eq!(pop.check(1000, &held(&delivery), &|_| true), Ok(()));
    stored.alive = false;
    assert_eq!(pop.take(&ask(1000 + RENEWAL_MS, 1), &stored).deliveries.len(), 1);
}

#[test]
fn renewal_ends_after_three_hours() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let renewing = Take { renew_for: Some("me".into()), ..ask(0, 1) };
    pop.take(&renewing, &stored);
    assert!(pop.take(&ask(RENEW_MAX_MS - 1, 1), &stored).deliveries.is_empty());
    assert_eq!(pop.take(&ask(RENEW_MAX_MS, 1), &stored).deliveries.len(), 1);
}

#[test]
fn a_client_that_ends_gives_its_messages_back() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(2, 0));
    let renewing = Take { renew_for: Some("me".into()), ..ask(0, 1) };
    pop.take(&renewing, &stored);
    pop.take(&ask(0, 1), &stored);
    pop.release("me", 10);
    let back = pop.take(&ask(10, 9), &stored).deliveries;
    assert_eq!(back.len(), 1, "only what was renewed for it");
}

#[test]
fn a_message_dies_after_its_last_attempt_also_when_nobody_asks() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let mut last = None;
    for attempt in 1..=ATTEMPTS_MAX {
        let taken = pop.take(&ask(u64::from(attempt) * 100, 1), &stored);
        assert_eq!(taken.deliveries[0].attempt, attempt);
        assert!(taken.dead.is_empty());
        last = taken.deliveries.into_iter().next();
    }
    let end = u64::from(ATTEMPTS_MAX + 1) * 100;
    assert_eq!(pop.dead(end - 1, ATTEMPTS_MAX, 9, &never), []);
    let position = Position { queue_id: 0, offset: 0 };
    assert_eq!(pop.dead(end, ATTEMPTS_MAX, 9, &never), [position]);
    assert_eq!(pop.dead(end, ATTEMPTS_MAX, 9, &never), [], "it is being buried");
    assert_eq!(pop.check(end, &held(&last.unwrap()), &never), Err(Void::Superseded));
    let taken = pop.take(&ask(end + BURIAL_MS, 1), &stored);
    assert!(taken.deliveries.is_empty());
    assert_eq!(taken.dead, [position]);
}

#[test]
fn what_did_not_leave_is_delivered_with_the_same_attempt() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let delivery = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
    pop.put_back(&delivery);
    assert_eq!(pop.take(&ask(0, 1), &stored).deliveries[0].attempt, 1);
}

#[test]
fn a_filter_that_matches_little_is_done_with_the_rest_and_gives_way() {
    let mut stored = stored(2 * SCAN_MAX, 0);
    stored.queues[0].iter_mut().for_each(|tag_hash| *tag_hash = 1);
    stored.only_even = true;
    let mut pop = Pop::new(&[0, 0]);
    assert!(pop.take(&ask(0, 1), &stored).more);
    while pop.take(&ask(0, 1), &stored).more {}
    let record = pop.done_record(&[]);
    assert_eq!(record[0].floor, 2 * SCAN_MAX as u64);
    assert!(record[0].done.is_empty(), "what lies below the floor is not said again");
}

#[test]
fn what_is_passed_over_is_recorded_though_nobody_acknowledges() {
    let mut stored = stored(600, 600);
    stored.only_even = true;
    let mut pop = Pop::new(&[0, 0]);
    while !pop.take(&ask(0, 1), &stored).deliveries.is_empty() {}
    assert!(!pop.passed_record().is_empty());
    assert!(pop.passed_record().is_empty(), "said once");
}

#[test]
fn a_handle_from_before_a_restart_is_none_of_the_new_delivery() {
    let stored = stored(1, 0);
    let old = Pop::new(&[0, 0]).take(&Take { revision_base: 7, ..ask(0, 1) }, &stored).deliveries.remove(0);
    let mut restarted = Pop::new(&[0, 0]);
    restarted.take(&Take { revision_base: 8, ..ask(1, 1) }, &stored);
    assert_eq!(restarted.check(2, &held(&old), &never), Err(Void::Superseded));
}

#[test]
fn acknowledged_messages_do_not_pile_up_in_the_schedule() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(4 * DUE_SLACK, 0));
    for _ in 0..4 * DUE_SLACK {
        let delivery = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
        pop.finish(delivery.position);
    }
    assert!(pop.due.len() <= DUE_SLACK + 2);
}

#[test]
fn nothing_new_is_handed_out_beyond_the_threshold() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(100, 0));
    let few = Take { inflight_max: 10, ..ask(0, 32) };
    while !pop.take(&few, &stored).deliveries.is_empty() {}
    assert!(pop.counts().0 < 10 + 32);
}

#[test]
fn a_group_behind_what_was_deleted_goes_on_at_what_there_is() {
    let (mut pop, mut stored) = (Pop::new(&[0, 0]), stored(40, 3));
    let held_one = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
    stored.minimums = [30, 3];
    let taken = pop.take(&ask(1, 32), &stored);
    let offsets: Vec<_> = taken.deliveries.iter().map(|delivery| delivery.position.offset).collect();
    assert_eq!(offsets, (30..40).collect::<Vec<_>>());
    assert_eq!(pop.check(2, &held(&held_one), &never), Ok(()), "whoever has it may still acknowledge it");
    assert!(
        pop.take(&ask(100, 64), &stored).deliveries.iter().all(|delivery| delivery.position.offset >= 30)
    );
    assert_eq!(pop.check(101, &held(&held_one), &never), Err(Void::Done), "nobody can have it again");
}

#[test]
fn what_was_deleted_unread_does_not_wait_for_delivery_after_a_restart() {
    const FIRST: u64 = 1_000_000;
    let mut stored = stored(0, 0);
    stored.queues[0] = vec![0; FIRST as usize + 10];
    stored.minimums[0] = FIRST;
    let mut pop = Pop::new(&[0, 0]);
    let delivery = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
    let skipped = pop.passed_record();
    assert!(!skipped.is_empty(), "a leap is recorded at once");
    pop.change(&held(&delivery), 5);
    let nacked =
        pop.later_record(0, Later { offset: delivery.position.offset, visible_at_ms: 5, attempt: 1 });
    let redelivered = pop.take(&ask(5, 1), &stored).deliveries;
    for record in [skipped, nacked, pop.redelivered(&redelivered), pop.snapshot()] {
        let mut restarted = Pop::new(&[0, 0]);
        record.iter().for_each(|progress| restarted.apply(progress));
        assert!(restarted.counts().0 <= 1, "{record:?}");
        assert!(restarted.counts().1[0] >= FIRST, "{record:?}");
    }
}

fn orderly(now_ms: u64, max: usize) -> Take {
    Take { orderly: true, ..ask(now_ms, max) }
}

/// The offsets handed out, all of one queue.
fn offsets(taken: &Taken) -> Vec<u64> {
    taken.deliveries.iter().map(|delivery| delivery.position.offset).collect()
}

fn of_groups(groups: &[u64]) -> Stored {
    let mut stored = stored(0, 0);
    stored.queues[0] = groups.iter().map(|group| group << 32).collect();
    stored
}

#[test]
fn a_message_group_waits_for_its_first_message_and_the_others_do_not() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), of_groups(&[1, 1, 2, 1, 3]));
    let first = pop.take(&orderly(0, 9), &stored);
    assert_eq!(offsets(&first), [0, 2, 4]);
    assert_eq!(pop.message_state(Position { queue_id: 0, offset: 3 }), MessageState::Withheld { front: 0 });
    // Waiting for a retry it still holds its group up.
    pop.change(&held(&first.deliveries[0]), 50);
    assert!(pop.take(&orderly(10, 9), &stored).deliveries.is_empty());
    let again = pop.take(&orderly(50, 9), &stored);
    assert_eq!((offsets(&again), again.deliveries[0].attempt), (vec![0], 2));
    assert!(pop.finish(again.deliveries[0].position), "the next one may go");
    assert_eq!(offsets(&pop.take(&orderly(60, 9), &stored)), [1]);
    assert!(!pop.finish(Position { queue_id: 0, offset: 2 }), "nothing waits behind it");
}

#[test]
fn a_group_larger_than_the_window_comes_in_order_to_its_end() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), of_groups(&[7; 500]));
    let narrow = Take { inflight_max: 10, ..orderly(0, 32) };
    for offset in 0..500 {
        let taken = pop.take(&narrow, &stored);
        assert_eq!(offsets(&taken), [offset]);
        pop.finish(taken.deliveries[0].position);
    }
}

#[test]
fn order_is_kept_over_a_restart_in_which_nobody_remembers_message_groups() {
    let stored = of_groups(&[1, 1, 2, 2, 1]);
    let mut pop = Pop::new(&[0, 0]);
    assert_eq!(offsets(&pop.take(&orderly(0, 9), &stored)), [0, 2]);
    pop.finish(Position { queue_id: 0, offset: 2 });
    let mut restarted = Pop::new(&[0, 0]);
    pop.snapshot().iter().for_each(|progress| restarted.apply(progress));
    restarted.schedule();
    // The first is invisible until 100; the second of the other group is free.
    assert_eq!(offsets(&restarted.take(&orderly(50, 9), &stored)), [3]);
    assert_eq!(offsets(&restarted.take(&orderly(100, 9), &stored)), [0]);
}

#[test]
fn the_highest_priority_goes_first() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(3, 2));
    let taken = pop.take(&Take { last_queue_first: true, ..ask(0, 3) }, &stored);
    let queues: Vec<_> = taken.deliveries.iter().map(|delivery| delivery.position.queue_id).collect();
    assert_eq!(queues, [1, 1, 0]);
}

#[test]
fn after_a_reset_everything_behind_it_comes_again_and_old_handles_are_void() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(10, 0));
    let before = pop.take(&ask(0, 32), &stored).deliveries;
    pop.finish(before[5].position);
    let mut log = vec![pop.done_record(&[before[5].position])];
    log.push(pop.reset(0, 4, 0));
    assert_eq!(offsets(&pop.take(&ask(1, 32), &stored)), [4, 5, 6, 7, 8, 9]);
    assert_eq!(pop.check(2, &held(&before[6]), &never), Err(Void::Superseded));
    assert_eq!(pop.check(2, &held(&before[2]), &never), Err(Void::Done));
    let mut restarted = Pop::new(&[0, 0]);
    log.iter().flatten().for_each(|progress| restarted.apply(progress));
    assert_eq!(offsets(&restarted.take(&ask(1, 32), &stored)), [4, 5, 6, 7, 8, 9]);
}

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
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..2_usize, 1..8_u64).prop_map(|(queue, count)| Step::Store { queue, count }),
        4 => (1..6_usize).prop_map(|max| Step::Take { max }),
        4 => (0..8_usize).prop_map(|nth| Step::Ack { nth }),
        1 => (0..8_usize, 0..300_u64).prop_map(|(nth, delay_ms)| Step::Nack { nth, delay_ms }),
        1 => (0..8_usize).prop_map(|nth| Step::PutBack { nth }),
        2 => (1..150_u64).prop_map(|millis| Step::Pass { millis }),
        1 => (0..2_usize, 1..12_u64).prop_map(|(queue, count)| Step::Retire { queue, count }),
        1 => Just(Step::Crash),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Repeat),
        1 => Just(Step::Turn),
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
                if let Some(delivery) = self.pick(nth) {
                    let valid = self.pop.check(self.now_ms, &held(&delivery), &never);
                    if valid.is_ok() {
                        self.pop.finish(delivery.position);
                        self.log.push(self.pop.done_record(&[delivery.position]));
                        self.acked.insert(delivery.position);
                    }
                }
            }
            Step::Nack { nth, delay_ms } => {
                if let Some(delivery) = self.pick(nth)
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
        Ok(())
    }

    fn restart(&mut self, pop: Pop) {
        self.pop = pop;
        self.pop.schedule();
        self.holding.clear();
        self.invisible_until.clear();
        self.attempts.clear();
    }

    fn pick(&mut self, nth: usize) -> Option<Delivery> {
        (nth < self.holding.len()).then(|| self.holding.swap_remove(nth))
    }

    fn take(&mut self, max: usize) -> Result<(), TestCaseError> {
        self.key += 1;
        let attempt_key = self.orderly.then_some(self.key);
        let ask = Take { orderly: self.orderly, attempt_key, ..ask(self.now_ms, max) };
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
        let ask = Take { orderly: self.orderly, attempt_key: Some(self.key), ..ask(self.now_ms, 0) };
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
    /// over nacks, expiries, crashes and snapshots. While the group is orderly no message is handed out in front of an
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
