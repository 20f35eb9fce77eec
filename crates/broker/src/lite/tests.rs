//! The core, case by case; [`run`] puts it against a model of what it means to read many ordered topics together.

use std::ops::Range;
use std::sync::Arc;

use karman_store::QueueNumber;

use super::LiteTable;
use super::pop::{Ask, Handed, LitePop, Start};
use super::subscriptions::{Claim, SYNC_TIMEOUT_MS};
use super::topics::LiteTopics;
use super::topics::tests::{made, parent};
use crate::pop::{Held, Position, Void};
use crate::records::QueueProgress;

mod model;
mod run;

const ATTEMPTS_MAX: u32 = 3;
const INVISIBLE_MS: u64 = 100;

fn ask(client: &str, now_ms: u64, max: usize) -> Ask {
    Ask {
        now_ms,
        client: client.into(),
        max,
        invisible_ms: INVISIBLE_MS,
        renewal: None,
        attempts_max: ATTEMPTS_MAX,
        revision_base: 0,
        attempt_key: None,
    }
}

fn held(handed: &Handed) -> Held {
    let Handed { position, attempt, revision, visible_at_ms } = *handed;
    Held { position, revision, attempt, expires_ms: visible_at_ms }
}

fn never(_: &str) -> bool {
    false
}

/// A group of one client with a place at the beginning of lite topics of these lengths.
fn subscribed(lengths: &[u64]) -> (LitePop, impl Fn(u32) -> Range<u64>) {
    let mut pop = LitePop::default();
    let client: Arc<str> = "me".into();
    let queues: Vec<_> = (0..).zip(lengths).map(|(queue, _)| (queue, Start::Min)).collect();
    let ends = lengths.to_vec();
    let range = move |queue: u32| 0..ends[queue as usize];
    assert!(pop.subscriptions.synced(&client, 0));
    pop.subscribe(&client, &queues, Claim::Share, 0, &range);
    (pop, range)
}

fn positions(taken: &(Vec<Handed>, bool)) -> Vec<(u32, u64)> {
    taken.0.iter().map(|handed| (handed.position.queue_id, handed.position.offset)).collect()
}

#[test]
fn a_place_is_recorded_until_the_log_has_it() {
    let mut pop = LitePop::default();
    let (me, you): (Arc<str>, Arc<str>) = ("me".into(), "you".into());
    assert!(pop.subscriptions.synced(&me, 0) && pop.subscriptions.synced(&you, 0));
    let subscribe = |pop: &mut LitePop, client, end| {
        let records = pop.subscribe(client, &[(0, Start::Last)], Claim::Share, 0, &|_| 0..end).records;
        records.iter().map(|record| (record.queue_id, record.floor)).collect::<Vec<_>>()
    };
    assert_eq!(subscribe(&mut pop, &me, 5), [(0, 5)]);
    // The store refused that one. Whoever subscribes next is promised the place as well.
    assert_eq!(subscribe(&mut pop, &you, 7), [(0, 5)]);
    pop.recorded(&[0]);
    assert_eq!(subscribe(&mut pop, &me, 9), []);
}

#[test]
fn each_lite_topic_gives_one_message_at_a_time_and_all_of_them_take_turns() {
    let (mut pop, range) = subscribed(&[2, 0, 3]);
    let first = pop.take(&ask("me", 1, 32), &range);
    assert_eq!(positions(&first), [(0, 0), (2, 0)]);
    assert_eq!(positions(&pop.take(&ask("me", 2, 32), &range)), []);
    pop.finish(first.0[1].position, 3);
    assert_eq!(positions(&pop.take(&ask("me", 3, 32), &range)), [(2, 1)]);
}

#[test]
fn a_lite_topic_waits_for_its_message_and_no_other_does() {
    let (mut pop, range) = subscribed(&[2, 2]);
    let first = pop.take(&ask("me", 1, 1), &range).0.remove(0);
    pop.change(&held(&first), 500, true);
    assert_eq!(positions(&pop.take(&ask("me", 2, 32), &range)), [(1, 0)]);
    assert_eq!(pop.next_due_ms(), Some(2 + INVISIBLE_MS));
    assert_eq!(pop.tick(499, ATTEMPTS_MAX, 99, &never), []);
    assert_eq!(positions(&pop.take(&ask("me", 499, 32), &range)), [(1, 0)], "its time has ended");
    pop.tick(500, ATTEMPTS_MAX, 99, &never);
    let again = pop.take(&ask("me", 500, 32), &range);
    assert_eq!((positions(&again), again.0[0].attempt), (vec![(0, 0)], 2));
}

#[test]
fn a_dead_letter_that_was_under_way_takes_nothing_of_what_a_subscription_set_back() {
    let (mut pop, range) = subscribed(&[3]);
    let client: Arc<str> = "me".into();
    for offset in 0..2 {
        let first = pop.take(&ask("me", offset, 1), &range).0.remove(0);
        pop.finish(first.position, 3);
    }
    let last = pop.take(&ask("me", 2, 1), &range).0.remove(0);
    assert!(pop.begin_burial(&held(&last), 3).is_some());
    pop.subscribe(&client, &[(0, Start::Min)], Claim::Share, 0, &range);
    pop.buried(last.position, true);
    assert_eq!(positions(&pop.take(&ask("me", 4, 1), &range)), [(0, 0)]);
    // A start reads of the letter only, not always of what lies in front of it.
    let mut restarted = subscribed(&[3]).0;
    restarted.buried(last.position, false);
    assert_eq!(restarted.cursor(0).unwrap().floor, 3);
}

#[test]
fn a_suspended_lite_topic_counts_no_attempt_and_its_new_handle_is_good() {
    let (mut pop, range) = subscribed(&[1]);
    for round in 1..=3 * u64::from(ATTEMPTS_MAX) {
        let handed = pop.take(&ask("me", round * 10, 1), &range).0.remove(0);
        assert_eq!(handed.attempt, 1);
        let revision = pop.change(&held(&handed), round * 10 + 5, false);
        let newer = Held { revision, ..held(&handed) };
        assert_eq!(pop.check(round * 10 + 4, &newer, &never), Ok(()));
        assert_eq!(pop.check(round * 10 + 4, &held(&handed), &never), Err(Void::Superseded));
        assert_eq!(pop.tick(round * 10 + 5, ATTEMPTS_MAX, 9, &never), []);
    }
}

#[test]
fn a_message_is_dead_after_its_last_attempt_and_the_next_one_follows() {
    let (mut pop, range) = subscribed(&[2]);
    let mut now_ms = 1;
    for attempt in 1..=ATTEMPTS_MAX {
        assert_eq!(pop.take(&ask("me", now_ms, 1), &range).0[0].attempt, attempt);
        now_ms += INVISIBLE_MS;
        let dead = pop.tick(now_ms, ATTEMPTS_MAX, 9, &never);
        assert_eq!(dead.len(), usize::from(attempt == ATTEMPTS_MAX));
    }
    assert_eq!(positions(&pop.take(&ask("me", now_ms, 1), &range)), [], "it is being buried");
    pop.finish(Position { queue_id: 0, offset: 0 }, 2);
    assert_eq!(positions(&pop.take(&ask("me", now_ms, 1), &range)), [(0, 1)]);
}

#[test]
fn who_repeats_its_call_gets_the_same_delivery() {
    let (mut pop, range) = subscribed(&[1, 1]);
    let call = Ask { attempt_key: Some(7), ..ask("me", 1, 1) };
    let first = pop.take(&call, &range);
    let again = pop.take(&Ask { now_ms: 5, ..call }, &range);
    assert_eq!((positions(&first), again.0[0].attempt), (positions(&again), 1));
    assert_eq!(pop.check(6, &held(&first.0[0]), &never), Err(Void::Superseded));
    assert_eq!(positions(&pop.take(&ask("me", 6, 9), &range)), [(1, 0)]);
}

#[test]
fn an_exclusive_lite_topic_goes_to_its_new_subscriber_and_is_not_taken_back() {
    let (mut pop, range) = subscribed(&[3]);
    let (me, you): (Arc<str>, Arc<str>) = ("me".into(), "you".into());
    pop.subscriptions.synced(&you, 0);
    let done = pop.subscribe(&you, &[(0, Start::Last)], Claim::Evict, 0, &range);
    assert_eq!(done.lost, [(me.clone(), 0)]);
    assert_eq!(positions(&pop.take(&ask("me", 1, 9), &range)), []);
    let done = pop.subscribe(&me, &[(0, Start::Last)], Claim::Yield, 0, &range);
    assert_eq!((done.lost, pop.subscriptions.count()), (vec![(me, 0)], 1));
    assert_eq!(positions(&pop.take(&ask("you", 1, 9), &range)), [(0, 0)]);
}

#[test]
fn a_place_is_chosen_among_what_there_is() {
    let range = |_| 10..20;
    let floor = |known: Option<u64>, start| {
        let (mut pop, client) = (LitePop::default(), Arc::from("me"));
        pop.subscriptions.synced(&client, 0);
        let apply = known.map(|floor| QueueProgress { floor, ..QueueProgress::default() });
        apply.iter().for_each(|progress| pop.apply(progress));
        pop.subscribe(&client, &[(0, start)], Claim::Share, 0, &range);
        pop.cursor(0).unwrap().floor
    };
    for (start, new, at_15) in [
        (Start::Last, 20, 15),
        (Start::Min, 10, 10),
        (Start::Max, 20, 20),
        (Start::At(12), 12, 12),
        (Start::At(99), 20, 20),
        (Start::Tail(3), 17, 12),
        (Start::Tail(99), 10, 10),
    ] {
        assert_eq!((floor(None, start), floor(Some(15), start)), (new, at_15), "{start:?}");
    }
}

#[test]
fn a_silent_client_is_forgotten_and_the_place_of_its_group_is_not() {
    let (mut pop, range) = subscribed(&[2]);
    assert!(pop.subscriptions.expire(SYNC_TIMEOUT_MS).is_empty());
    assert_eq!(pop.subscriptions.expire(SYNC_TIMEOUT_MS + 1), [Arc::from("me")]);
    assert_eq!((pop.subscriptions.count(), pop.cursor(0).unwrap().floor), (0, 0));
    assert_eq!(positions(&pop.take(&ask("me", 1, 9), &range)), []);
}

#[test]
fn what_arrives_while_the_core_is_in_use_is_seen_when_it_is_not() {
    let (catalog, topic) = parent();
    let topics = Arc::new(LiteTopics::new(catalog.clone()));
    topics.change(made(topic.number, "a", 8));
    let table = LiteTable::new(catalog, topics);
    let (row, client) = (table.open(7, &topic), Arc::from("me"));
    row.run(|pop| {
        pop.subscriptions.synced(&client, 0);
        pop.subscribe(&client, &[(8, Start::Last)], Claim::Share, 0, &|_| 0..0);
        std::thread::scope(|scope| {
            // It would wait for ever if it waited.
            scope.spawn(|| table.arrived(QueueNumber(8))).join().unwrap();
        });
        assert!(!pop.subscriptions.is_in_line("me", 8));
    });
    assert!(row.run(|pop| pop.subscriptions.is_in_line("me", 8)));
}
