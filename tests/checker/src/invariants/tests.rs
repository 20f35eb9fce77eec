//! For each invariant: histories that it must let pass, and bad ones that it, and no other, must find.

use crate::book::{BROKER, Book};
use crate::event::{self, Event, Group, Outcome};
use crate::{History, judge};

use Outcome::{Ok, Refused, Unknown};

const NONE: [&str; 0] = [];

/// `a` came and was acknowledged.
fn done(book: Book, id: &str, t: u64) -> Book {
    book.deliver(id, t).ack(id, t + 1, Ok)
}

#[test]
fn a_history_without_its_end_or_an_undrained_group_proves_nothing() {
    let history = History::read(Book::new().0.as_bytes()).unwrap();
    assert_eq!(judge(&history)[0].violations, 1);
    let undrained = Book::new().0.replace("{\"drained\":{\"t\":0,\"g\":\"g\"}}\n", "");
    assert_eq!(Book(undrained).violated(), ["whole"]);
    assert_eq!(Book::new().violated(), NONE);
}

#[test]
fn s1_what_was_answered_ok_and_never_came_is_found() {
    assert_eq!(Book::new().send("a").violated(), ["S1"]);
    assert_eq!(done(Book::new().send("a"), "a", 5).violated(), NONE);
    assert_eq!(Book::new().send_as("a", |send| send.out = Unknown).violated(), NONE);
    assert_eq!(Book::new().send_as("a", |send| send.out = Refused).violated(), NONE);
    assert_eq!(Book::new().send("a").flip("a").violated(), NONE);
    let other = Group {
        g: "h".into(),
        topic: "t".into(),
        attempts_max: 2,
        orderly: false,
        wants: Some(vec!["red".into()]),
    };
    let two = |label: &'static str| {
        let book = Book::new().group(other.clone()).send_as("a", |send| send.label = Some(label.into()));
        done(book, "a", 5)
    };
    assert_eq!(two("red").violated(), ["S1"], "it came to one group of two");
    assert_eq!(two("blue").violated(), NONE, "the other does not want it");
}

#[test]
fn s1_a_commit_that_was_answered_ok_counts_as_a_send() {
    let half = Book::new().send_as("a", |send| send.half = true);
    assert_eq!(half.clone().end("a", 3, true, Ok).violated(), ["S1"]);
    assert_eq!(half.clone().end("a", 3, false, Ok).violated(), NONE);
    assert_eq!(done(half.end("a", 3, true, Ok), "a", 4).violated(), NONE);
}

#[test]
fn s2_what_was_not_sent_so_is_found() {
    assert_eq!(done(Book::new(), "a", 5).violated(), ["S2"], "nobody sent it");
    let ack = |book: Book| book.ack("a", 6, Ok);
    let sent = Book::new().send_as("a", |send| (send.b, send.e) = (3, 9));
    assert_eq!(ack(sent.clone().deliver("a", 3)).violated(), NONE);
    assert_eq!(ack(sent.clone().deliver("a", 2)).violated(), ["S2"], "before it was sent");
    assert_eq!(ack(sent.clone().deliver_as("a", 5, |one| one.digest += 1)).violated(), ["S2"]);
    let elsewhere = Book::new().send_as("a", |send| send.topic = "u".into());
    assert_eq!(ack(elsewhere.deliver("a", 5)).violated(), ["S2"], "sent to another topic");
    let letter = sent.deliver("a", 5).deliver("a", 10_005).letter_as("a", 30_000, 2, |one| one.digest += 1);
    assert_eq!(letter.violated(), ["S2"], "a dead letter too");
}

#[test]
fn s2_what_a_filter_does_not_want_is_found() {
    let filtered = Book::default().group(Group {
        g: "g".into(),
        topic: "t".into(),
        attempts_max: 2,
        orderly: false,
        wants: Some(vec!["red".into()]),
    });
    let labelled = |label: &'static str| {
        done(filtered.clone().send_as("a", |send| send.label = Some(label.into())), "a", 5).violated()
    };
    assert_eq!(labelled("red"), NONE);
    assert_eq!(labelled("blue"), ["S2"]);
}

#[test]
fn s3_a_place_with_two_messages_is_found() {
    let two = |offset| {
        let book = done(Book::new().send("a").send("b"), "a", 5);
        book.deliver_as("b", 7, |one| one.offset = offset).ack("b", 8, Ok).violated()
    };
    assert_eq!(two(u64::from(b'a')), ["S3"]);
    assert_eq!(two(3), NONE);
}

#[test]
fn s3b_a_message_in_two_places_is_found() {
    let twice = |broker: &'static str| {
        let book = done(Book::new().send("a").send_as("a", |send| send.to = broker.into()), "a", 5);
        let again = book.deliver_as("a", 9, |one| (one.offset, one.broker) = (3, broker.into()));
        again.0
    };
    // Not acknowledged before the second came, for that would be another violation.
    let unacknowledged = |text: String| {
        let lines = text.lines().filter(|line| !line.contains("ack"));
        let late = lines.map(|line| format!("{line}\n")).collect();
        Book(late).ack("a", 12, Ok).violated()
    };
    assert_eq!(unacknowledged(twice(BROKER)), ["S3b"]);
    assert_eq!(unacknowledged(twice("broker-b")), NONE, "each broker stored it once");
}

#[test]
fn s4_a_message_that_does_not_wait_for_those_before_it_is_found() {
    let lane = || Book::new().send_in_lane("a", 0).send_in_lane("b", 1);
    assert_eq!(done(done(lane(), "a", 5), "b", 6).violated(), NONE);
    assert_eq!(done(done(lane(), "a", 5), "b", 5).violated(), ["S4"], "a was not acknowledged");
    assert_eq!(done(done(lane(), "b", 5), "a", 7).violated(), ["S4"], "swapped");
    let refused =
        lane().deliver("a", 5).ack("a", 6, Refused).deliver("b", 8).ack("b", 9, Ok).ack("a", 20, Ok);
    assert_eq!(refused.violated(), ["S4"]);
    let nacked = lane().deliver("a", 5).nack("a", 6, Ok, 10).deliver("b", 8).ack("b", 9, Ok).ack("a", 20, Ok);
    assert_eq!(nacked.violated(), ["S4"], "a was waiting for its next attempt");
    let unordered = Book(lane().0.replace(",\"orderly\":true", ""));
    assert_eq!(done(done(unordered, "b", 5), "a", 7).violated(), NONE, "the group did not ask for order");
}

#[test]
fn s4_a_dead_letter_holds_its_lane_until_its_last_delivery() {
    let dead = Book::new().send_in_lane("a", 0).send_in_lane("b", 1).deliver("a", 5).deliver("a", 10_005);
    let dead = dead.letter("a", 30_000, 2);
    assert_eq!(done(dead.clone(), "b", 20_005).violated(), NONE);
    assert_eq!(done(dead, "b", 10_004).violated(), ["S4"]);
}

#[test]
fn s4_a_message_that_comes_again_behind_a_later_one_is_found() {
    let lane = || Book::new().send_in_lane("a", 0).send_in_lane("b", 1).deliver("a", 5).ack("a", 6, Unknown);
    let again = |book: Book| book.deliver("b", 8).ack("b", 9, Ok).deliver("a", 20_000).ack("a", 20_001, Ok);
    assert_eq!(again(lane()).violated(), ["S4"]);
    assert_eq!(again(lane().kill(6)).violated(), NONE, "the acknowledgement was lost with the process");
    assert_eq!(
        again(lane().kill(15_000)).violated(),
        NONE,
        "the same, some time after nobody waited for it any more"
    );
    for other in [2, 20_500] {
        assert_eq!(again(lane().kill(other)).violated(), ["S4"], "a kill at {other} took nothing of it");
    }
}

#[test]
fn s5_a_delivery_after_an_acknowledgement_is_found() {
    let acked = |out| {
        Book::new().send("a").deliver("a", 5).ack("a", 6, out).deliver("a", 12_000).ack("a", 12_001, Ok)
    };
    assert_eq!(acked(Ok).violated(), ["S5"]);
    assert_eq!(acked(Unknown).violated(), NONE);
    assert_eq!(acked(Refused).violated(), NONE);
    assert_eq!(acked(Ok).kill(50).violated(), ["S5"], "no kill excuses it");
}

#[test]
fn s6_a_delivery_to_two_at_once_is_found() {
    let twice = |t| Book::new().send("a").deliver("a", 5).deliver("a", t).ack("a", t + 1, Ok);
    assert_eq!(twice(9500).violated(), NONE, "a little early, by the way from one to the other");
    assert_eq!(twice(8000).violated(), ["S6"]);
    assert_eq!(twice(8000).kill(4000).violated(), NONE);
    assert_eq!(twice(8000).kill(9000).violated(), ["S6"]);
    assert_eq!(twice(8000).nack("a", 3000, Ok, 7000).violated(), NONE);
    assert_eq!(twice(8000).nack("a", 3000, Refused, 7000).violated(), ["S6"]);
    assert_eq!(twice(12_000).nack("a", 3000, Ok, 50_000).violated(), ["S6"], "it was to stay away longer");
    assert_eq!(twice(12_000).nack("a", 3000, Unknown, 50_000).violated(), NONE, "or not");
}

#[test]
fn s7_progress_that_goes_back_is_found() {
    assert_eq!(Book::new().offset(5, 3).offset(7, 3).offset(9, 4).violated(), NONE);
    assert_eq!(Book::new().offset(5, 3).offset(9, 2).violated(), ["S7"]);
}

#[test]
fn s8_a_delayed_message_before_its_time_is_found() {
    let due = |t| done(Book::new().send_as("a", |send| send.due = Some(100)), "a", t).violated();
    assert_eq!(due(100), NONE);
    assert_eq!(due(99), ["S8"]);
}

#[test]
fn s9_what_was_not_committed_and_is_seen_is_found() {
    let half = || Book::new().send_as("a", |send| send.half = true);
    assert_eq!(done(half().end("a", 3, false, Ok), "a", 5).violated(), ["S9"], "rolled back");
    assert_eq!(done(half(), "a", 5).violated(), ["S9", "S9b"], "undecided");
    assert_eq!(done(half().end("a", 9, true, Ok), "a", 5).violated(), ["S9"], "before its commit");
    let refused = half().end("a", 3, true, Refused).end("a", 3, false, Ok);
    assert_eq!(done(refused, "a", 5).violated(), ["S9"]);
    let repeated = half().end("a", 3, true, Unknown).end("a", 7, true, Ok);
    assert_eq!(done(repeated, "a", 5).violated(), NONE, "without its answer the commit may be done");
}

#[test]
fn s9b_a_transaction_without_a_decision_is_found() {
    let half = || Book::new().send_as("a", |send| send.half = true);
    assert_eq!(half().violated(), ["S9b"]);
    assert_eq!(half().end("a", 3, false, Unknown).violated(), ["S9b"]);
    assert_eq!(half().end("a", 3, false, Ok).violated(), NONE);
}

#[test]
fn s10_a_dead_letter_without_its_reasons_is_found() {
    let once = || Book::new().send("a").deliver("a", 5);
    assert_eq!(once().deliver("a", 10_005).letter("a", 30_000, 2).violated(), NONE);
    assert_eq!(once().letter("a", 30_000, 1).violated(), ["S10"], "too few attempts");
    assert_eq!(once().letter("a", 30_000, 2).violated(), ["S10"], "one was never seen");
    assert_eq!(once().failed_receive(10, 20).letter("a", 30_000, 2).violated(), NONE, "it was on its way");
    assert_eq!(once().bury("a", 6, Ok).letter("a", 30_000, 1).violated(), NONE, "given up");
    assert_eq!(once().bury("a", 6, Refused).letter("a", 30_000, 1).violated(), ["S10"]);
    let acked = once().deliver("a", 10_005).ack("a", 10_010, Ok).letter("a", 30_000, 2);
    assert_eq!(acked.violated(), ["S10"], "it was acknowledged");
    let late = once().deliver("a", 10_005).ack("a", 21_000, Ok).letter("a", 30_000, 2);
    assert_eq!(late.violated(), NONE, "it was dead when that was said");
    let lives = once().deliver("a", 10_005).letter("a", 30_000, 2).deliver("a", 40_000);
    assert_eq!(lives.violated(), ["S10"], "it came again");
    let two =
        once().deliver("a", 10_005).letter("a", 30_000, 2).letter_as("a", 30_001, 2, |one| one.offset = 9);
    assert_eq!(two.violated(), ["S3b"], "two letters");
}

#[test]
fn s10b_what_came_and_disappeared_is_found() {
    assert_eq!(Book::new().send("a").deliver("a", 5).violated(), ["S10b"]);
    assert_eq!(Book::new().send("a").deliver("a", 5).ack("a", 6, Refused).violated(), ["S10b"]);
    assert_eq!(Book::new().send("a").deliver("a", 5).ack("a", 6, Unknown).violated(), NONE);
    assert_eq!(Book::new().send("a").deliver("a", 5).nack("a", 6, Ok, 9).violated(), ["S10b"]);
}

fn leads(t: u64, id: u32, epoch: u32) -> Event<'static> {
    Event::Leads(event::Leads { t, broker: BROKER.into(), id, epoch })
}

fn stretch(id: u32, at: u64, sum: u32) -> Event<'static> {
    let broker = BROKER.into();
    Event::Stretch(event::Stretch { broker, id, at, bytes: 100, sum, epochs: (1, 1) })
}

#[test]
fn s11_two_masters_of_an_epoch_are_found() {
    let one = || Book::new().line(&leads(1, 1, 1));
    assert_eq!(one().line(&leads(5, 2, 2)).violated(), NONE);
    assert_eq!(one().line(&leads(5, 2, 1)).violated(), ["S11"]);
    assert_eq!(one().line(&stretch(1, 0, 7)).violated(), NONE);
    let stranger = event::Stretch { broker: BROKER.into(), id: 1, at: 0, bytes: 8, sum: 7, epochs: (1, 2) };
    assert_eq!(one().line(&Event::Stretch(stranger)).violated(), ["S11"], "nobody began it");
}

#[test]
fn s12_logs_that_differ_are_found() {
    let one = || Book::new().line(&leads(1, 1, 1)).line(&stretch(1, 0, 7)).line(&stretch(1, 100, 8));
    assert_eq!(one().line(&stretch(2, 0, 7)).line(&stretch(2, 100, 8)).violated(), NONE);
    assert_eq!(one().line(&stretch(2, 0, 7)).line(&stretch(2, 100, 9)).violated(), ["S12"]);
}

#[test]
fn s13_an_answer_after_the_disk_has_failed_is_found() {
    let failed = Event::Failed(event::Failed { t: 10, broker: BROKER.into(), id: 1 });
    let sent = |b: u64, e: u64| {
        let book = Book::new().line(&leads(1, 1, 1)).line(&failed).line(&leads(50, 2, 2));
        book.send_as("a", |send| (send.b, send.e) = (b, e)).deliver("a", e).ack("a", e + 1, Ok)
    };
    assert_eq!(sent(9, 11).violated(), NONE, "it may have been written before");
    assert_eq!(sent(11, 49).violated(), ["S13"]);
    assert_eq!(sent(11, 51).violated(), NONE, "another answered");
}

#[test]
fn s14_a_panic_is_found() {
    let words = |panic| Event::Words(event::Words { node: "n".into(), lines: 3, panic });
    assert_eq!(Book::new().line(&words(None)).violated(), NONE);
    assert_eq!(Book::new().line(&words(Some("thread panicked".into()))).violated(), ["S14"]);
}

#[test]
fn what_was_long_on_its_way_was_given_before() {
    let late = |given| {
        Book::new().send("a").deliver("a", 5).ack("a", 6, Ok).deliver_as("a", 20_000, |one| one.given = given)
    };
    assert_eq!(late(None).violated(), ["S5"]);
    assert_eq!(late(Some(5)).violated(), NONE);
}

#[test]
fn a_clock_that_was_set_excuses_what_is_early_by_so_much() {
    let early = |ms| {
        let skew = Some((BROKER.into(), ms));
        let inject = event::Inject { number: 1, t: 2, kind: "F20".into(), what: "".into(), skew };
        let book = Book::new().send_as("a", |send| send.due = Some(1000)).line(&Event::Inject(inject));
        book.deliver("a", 500).ack("a", 501, Ok).violated()
    };
    assert_eq!(early(400), ["S8"]);
    assert_eq!(early(500), NONE);
}

#[test]
fn a_report_names_the_message_with_its_history() {
    let text = Book::new().send("lost").line(&crate::event::Event::Done { t: 1 }).0;
    let mut report = crate::report::Report::of(&History::read(text.as_bytes()).unwrap());
    report.explain(3, text.as_bytes()).unwrap();
    assert!(!report.is_well());
    let table = report.table();
    assert!(table.contains("lost  never came to g") && table.contains("      {\"send\":"), "{table}");
    assert!(table.contains("the run again: again"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["verdicts"][1]["first"][0]["message"], "lost");
}
