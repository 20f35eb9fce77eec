//! The core, promise by promise.

use karman_remoting::line::Line;
use karman_store::{Entry, PhysicalOffset, QueueOffset};

use super::queue::{BURIAL_MS, RENEW_MAX_MS, RENEWAL_MS};
use super::take::{DUE_SLACK, UNREADABLE_MS};
use super::*;
use crate::records::Later;

pub(super) const ATTEMPTS_MAX: u32 = 4;
const SCAN_MAX: usize = 4096;

/// Two queues of tagged messages, in memory; the first ones of each may be gone. An even tag hash is wanted.
pub(super) struct Stored {
    pub(super) queues: [Vec<u64>; 2],
    pub(super) minimums: [u64; 2],
    only_even: bool,
    alive: bool,
    /// The index cannot be read at the moment.
    pub(super) unreadable: bool,
}

impl Surroundings for Stored {
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), NoEntries> {
        if self.unreadable {
            return Err(NoEntries::Unreadable);
        }
        let (queue, minimum) = (&self.queues[queue_id as usize], self.minimums[queue_id as usize]);
        if from.0 < minimum {
            return Err(NoEntries::Gone { minimum });
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

pub(super) fn stored(first: usize, second: usize) -> Stored {
    let tags = |count: usize| (0..count as u64).collect();
    let (queues, minimums) = ([tags(first), tags(second)], [0, 0]);
    Stored { queues, minimums, only_even: false, alive: true, unreadable: false }
}

pub(super) fn ask(now_ms: u64, max: usize) -> Take {
    Take {
        now_ms,
        max,
        invisible_ms: 100,
        renewal: None,
        attempts_max: ATTEMPTS_MAX,
        inflight_max: 1000,
        revision_base: 0,
        scan_max: SCAN_MAX,
        orderly: false,
        last_queue_first: false,
        attempt_key: None,
    }
}

pub(super) fn held(delivery: &Delivery) -> Held {
    Held {
        position: delivery.position,
        revision: delivery.revision,
        attempt: delivery.attempt,
        expires_ms: delivery.visible_at_ms,
    }
}

pub(super) fn never(_: &str) -> bool {
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
    let renewing = Take { renewal: Some(Renewal::of("me".into(), Line::default(), 0)), ..ask(0, 1) };
    let delivery = pop.take(&renewing, &stored).deliveries.remove(0);
    assert!(pop.take(&ask(1000, 1), &stored).deliveries.is_empty());
    assert_eq!(pop.check(1000, &held(&delivery), &|_| true), Ok(()));
    stored.alive = false;
    assert_eq!(pop.take(&ask(1000 + RENEWAL_MS, 1), &stored).deliveries.len(), 1);
}

#[test]
fn what_went_out_on_a_line_that_is_closed_is_not_renewed_for_its_living_client() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), Stored { alive: true, ..stored(1, 0) });
    let line = Line::default();
    let open = line.open_until_dropped();
    let renewing = Take { renewal: Some(Renewal::of("me".into(), line, 0)), ..ask(0, 1) };
    let delivery = pop.take(&renewing, &stored).deliveries.remove(0);
    let holder = |pop: &Pop| match pop.message_state(delivery.position) {
        MessageState::InFlight { holder, .. } => holder,
        other => panic!("{other:?}"),
    };
    assert_eq!(holder(&pop).as_deref(), Some("me"));
    drop(open);
    assert_eq!(holder(&pop), None);
    // Its handle is good for the time it was given.
    assert_eq!(pop.check(99, &held(&delivery), &|_| true), Ok(()));
    assert_eq!(pop.check(100, &held(&delivery), &|_| true), Err(Void::Expired));
    assert_eq!(pop.take(&ask(100, 1), &stored).deliveries.len(), 1);
}

#[test]
fn renewal_ends_after_three_hours() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let renewing = Take { renewal: Some(Renewal::of("me".into(), Line::default(), 0)), ..ask(0, 1) };
    pop.take(&renewing, &stored);
    assert!(pop.take(&ask(RENEW_MAX_MS - 1, 1), &stored).deliveries.is_empty());
    assert_eq!(pop.take(&ask(RENEW_MAX_MS, 1), &stored).deliveries.len(), 1);
}

#[test]
fn a_client_that_ends_gives_its_messages_back() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(2, 0));
    let renewing = Take { renewal: Some(Renewal::of("me".into(), Line::default(), 0)), ..ask(0, 1) };
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
fn a_dead_message_is_found_behind_any_number_of_live_ones() {
    const LOOKED_AT: usize = 10;
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(25, 25));
    let deliveries = pop.take(&ask(0, 50), &stored).deliveries;
    for last in [24, 49] {
        let held = Held { attempt: ATTEMPTS_MAX, ..held(&deliveries[last]) };
        pop.change(&held, 200);
    }
    let mut found = Vec::new();
    for _ in 0..6 {
        found.extend(pop.dead(200, ATTEMPTS_MAX, LOOKED_AT, &never));
    }
    found.sort();
    assert_eq!(found, [24, 49].map(|last| deliveries[last].position));
    assert_eq!(pop.take(&ask(200, 99), &stored).deliveries.len(), 48);
}

#[test]
fn a_message_that_could_not_be_buried_is_with_its_holder_as_before() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(3, 0));
    let delivery = pop.take(&ask(0, 1), &stored).deliveries.remove(0);
    // Also one that only the process before this one had handed out.
    let old = Held { position: Position { offset: 2, ..delivery.position }, ..held(&delivery) };
    for held in [held(&delivery), old] {
        let burial = pop.begin_burial(&held, 10).unwrap();
        assert_eq!(pop.check(10, &held, &never), Err(Void::Superseded));
        pop.undo_burial(held.position, burial);
        assert_eq!(pop.check(10, &held, &never), Ok(()));
    }
    assert_eq!(offsets(&pop.take(&ask(50, 9), &stored)), [1, 2]);
    assert_eq!(offsets(&pop.take(&ask(100, 1), &stored)), [0]);
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
fn what_lies_in_front_of_a_handle_from_before_a_crash_is_delivered() {
    for nacked in [false, true] {
        let stored = stored(6, 0);
        let old = Pop::new(&[0, 0]).take(&ask(0, 9), &stored).deliveries;
        let mut restarted = Pop::new(&[0, 0]);
        restarted.schedule();
        assert_eq!(restarted.check(1, &held(&old[3]), &never), Ok(()));
        if nacked {
            restarted.change(&held(&old[3]), 500);
        } else {
            assert!(restarted.finish(old[3].position), "there is something for others");
        }
        assert_eq!(restarted.next_due_ms(), Some(0));
        assert_eq!(offsets(&restarted.take(&ask(1, 9), &stored)), [0, 1, 2, 4, 5]);
    }
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
fn what_cannot_be_read_at_the_moment_is_not_taken_for_deleted() {
    let (mut pop, mut stored) = (Pop::new(&[0, 0]), stored(3, 0));
    pop.take(&ask(0, 2), &stored);
    stored.unreadable = true;
    let taken = pop.take(&ask(100, 9), &stored);
    assert!(taken.deliveries.is_empty() && taken.unreadable);
    assert_eq!(pop.next_due_ms(), Some(100 + UNREADABLE_MS), "it is not asked for all the time");
    stored.unreadable = false;
    assert_eq!(offsets(&pop.take(&ask(100 + UNREADABLE_MS, 9), &stored)), [0, 1, 2]);
}

#[test]
fn order_is_kept_while_the_message_groups_cannot_be_read() {
    let mut stored = of_groups(&[1, 1, 2]);
    let old = Pop::new(&[0, 0]).take(&orderly(0, 9), &stored).deliveries;
    let mut pop = Pop::new(&[0, 0]);
    pop.take(&orderly(0, 1), &stored);
    pop.finish(old[1].position);
    stored.unreadable = true;
    assert!(pop.take(&orderly(1, 9), &stored).deliveries.is_empty());
    assert!(pop.take(&orderly(200, 9), &stored).deliveries.is_empty());
    stored.unreadable = false;
    assert_eq!(offsets(&pop.take(&orderly(1200, 9), &stored)), [0], "1 stands behind it");
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
    assert_eq!(pop.check(1, &held(&before[6]), &never), Err(Void::Superseded), "nobody has it yet");
    assert_eq!(offsets(&pop.take(&ask(1, 32), &stored)), [4, 5, 6, 7, 8, 9]);
    assert_eq!(pop.check(2, &held(&before[6]), &never), Err(Void::Superseded));
    assert_eq!(pop.check(2, &held(&before[2]), &never), Err(Void::Done));
    let mut restarted = Pop::new(&[0, 0]);
    log.iter().flatten().for_each(|progress| restarted.apply(progress));
    restarted.snapshot().iter().for_each(|progress| restarted.apply(progress));
    assert_eq!(restarted.check(1, &held(&before[6]), &never), Err(Void::Superseded), "also after a restart");
    assert_eq!(offsets(&restarted.take(&ask(1, 32), &stored)), [4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_queue_can_be_reset_as_often_as_anyone_likes() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(1, 0));
    let at_start = Take { revision_base: 1_800_000_000, ..ask(0, 1) };
    let mut former = pop.take(&at_start, &stored).deliveries.remove(0);
    for _ in 0..100_000 {
        pop.reset(0, 0, at_start.revision_base);
        let delivery = pop.take(&at_start, &stored).deliveries.remove(0);
        assert_eq!(pop.check(1, &held(&former), &never), Err(Void::Superseded));
        assert_eq!(pop.check(1, &held(&delivery), &never), Ok(()));
        former = delivery;
    }
}

#[test]
fn a_dead_letter_that_was_under_way_takes_nothing_of_what_a_reset_gave_back() {
    let (mut pop, stored) = (Pop::new(&[0, 0]), stored(5, 0));
    let last = pop.take(&ask(0, 5), &stored).deliveries.pop().unwrap();
    assert!(pop.begin_burial(&held(&last), 1).is_some());
    pop.reset(0, 0, 0);
    assert!(!pop.buried(last.position, true));
    assert_eq!(offsets(&pop.take(&ask(1, 32), &stored)), [0, 1, 2, 3, 4]);
    // A start reads of the letter only, not of the deliveries in front of it.
    let mut restarted = Pop::new(&[0, 0]);
    restarted.buried(last.position, false);
    restarted.schedule();
    assert_eq!(offsets(&restarted.take(&ask(1, 32), &stored)), [0, 1, 2, 3]);
}

#[test]
fn what_was_passed_over_before_a_reset_is_not_done_by_a_later_record() {
    let (mut pop, mut stored) = (Pop::new(&[0, 0]), stored(4, 0));
    stored.only_even = true;
    assert_eq!(pop.take(&ask(0, 9), &stored).deliveries.len(), 2, "1 and 3 are passed over");
    let mut log = vec![pop.reset(0, 0, 0)];
    // The group wants everything now.
    stored.only_even = false;
    let first = pop.take(&ask(0, 1), &stored).deliveries.remove(0).position;
    pop.finish(first);
    log.push(pop.done_record(&[first]));
    let mut again = Pop::new(&[0, 0]);
    log.iter().flatten().for_each(|progress| again.apply(progress));
    again.schedule();
    let offsets = |pop: &mut Pop| -> Vec<u64> {
        pop.take(&ask(1000, 9), &stored).deliveries.iter().map(|delivery| delivery.position.offset).collect()
    };
    assert_eq!((offsets(&mut pop), offsets(&mut again)), (vec![1, 2, 3], vec![1, 2, 3]));
}
