use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn set(replicas: usize, all: bool) -> InSync {
    InSync::new(Demands { replicas, all, behind_max: ms(1000) }, 0)
}

fn ack(set: &mut InSync, id: i32, session: u64, acked: (u64, u64), log: (u64, u64), now: Duration) {
    let (acked, log) =
        (Marks { written: acked.0, flushed: acked.1 }, LogEnd { confirmed: log.0, end: log.1 });
    set.ack(id, session, acked, log, now);
}

fn marks(written: u64, flushed: u64) -> Option<Marks> {
    Some(Marks { written, flushed })
}

#[test]
fn a_slave_counts_once_it_has_all_that_can_be_seen() {
    let mut set = set(2, false);
    assert_eq!((set.count(), set.suffices(), set.marks()), (1, false, None));
    set.join(1, 7, "a", 100, 900, ms(0)).unwrap();
    ack(&mut set, 1, 7, (300, 200), (500, 900), ms(1));
    assert_eq!((set.count(), set.marks()), (1, None));
    ack(&mut set, 1, 7, (500, 200), (500, 900), ms(2));
    assert_eq!((set.count(), set.marks()), (2, marks(500, 200)));
    // Acks come in any order, but what it has it has.
    ack(&mut set, 1, 7, (400, 400), (500, 900), ms(3));
    assert_eq!(set.marks(), marks(500, 400));
    set.leave(1, 6);
    assert_eq!(set.count(), 2, "another stream of it ended");
    set.leave(1, 7);
    assert_eq!(set.marks(), None);
}

#[test]
fn as_many_are_waited_for_as_were_asked_for_or_all_that_count() {
    for (replicas, all, expected) in [(2, false, 300), (3, false, 200), (2, true, 100), (1, true, 0)] {
        let mut set = set(replicas, all);
        for (id, written) in [(1, 100), (2, 200), (3, 300)] {
            set.join(id, 1, "a", 0, 300, ms(0)).unwrap();
            ack(&mut set, id, 1, (written, written - 50), (100, 300), ms(1));
        }
        let expected =
            (replicas > 1).then_some(Marks { written: expected, flushed: expected.saturating_sub(50) });
        assert_eq!(set.marks(), expected, "{replicas} {all}");
    }
}

#[test]
fn a_slave_that_is_behind_for_too_long_does_not_count_until_it_has_caught_up() {
    let mut set = set(2, true);
    set.join(1, 1, "a", 0, 100, ms(0)).unwrap();
    ack(&mut set, 1, 1, (100, 100), (100, 200), ms(10));
    // Always some bytes behind, but never for long.
    for step in 1..50 {
        let end = 100 + 100 * step;
        ack(&mut set, 1, 1, (end, end), (end, end + 100), ms(10 + 100 * step));
        assert!(set.expire(ms(10 + 100 * step)).is_empty());
    }
    assert!(set.expire(ms(5800)).is_empty());
    assert_eq!(set.expire(ms(6200)), [1]);
    assert!(set.expire(ms(6300)).is_empty() && !set.suffices());
    ack(&mut set, 1, 1, (5100, 5100), (5200, 5300), ms(6400));
    assert!(!set.suffices());
    ack(&mut set, 1, 1, (5300, 5300), (5300, 5300), ms(6500));
    assert!(set.suffices() && set.expire(ms(7000)).is_empty());
}

#[test]
fn with_controllers_nobody_counts_before_they_have_said_who_does() {
    let mut set = InSync::new(Demands { replicas: 2, all: false, behind_max: ms(1000) }, 0).of_controllers();
    set.join(2, 1, "a", 500, 500, ms(0)).unwrap();
    ack(&mut set, 2, 1, (500, 400), (500, 500), ms(1));
    assert_eq!((set.count(), set.suffices(), set.marks(), set.propose()), (1, false, None, None));
    set.control(1, BTreeSet::from([1, 2]), 1);
    assert_eq!((set.count(), set.marks()), (2, marks(400, 400)), "by what its device has");
}

#[test]
fn an_id_belongs_to_one_slave_at_a_time() {
    let mut set = set(2, false);
    set.join(1, 1, "a:1", 0, 0, ms(0)).unwrap();
    assert_eq!(set.join(1, 2, "b:1", 0, 0, ms(1)), Err("a:1".into()));
    // The same one once more: its former stream has not ended yet.
    set.join(1, 3, "a:1", 50, 50, ms(2)).unwrap();
    ack(&mut set, 1, 1, (900, 900), (0, 900), ms(3));
    set.leave(1, 1);
    assert_eq!(set.followers().map(|(id, follower)| (id, follower.written)).collect::<Vec<_>>(), [(1, 50)]);
}

#[test]
fn who_may_be_elected_counts_by_what_its_device_has() {
    let mut set = InSync::new(Demands { replicas: 2, all: false, behind_max: ms(1000) }, 450);
    set.control(1, BTreeSet::from([1]), 1);
    set.join(2, 1, "a", 0, 500, ms(0)).unwrap();
    ack(&mut set, 2, 1, (500, 400), (450, 500), ms(1));
    assert_eq!(set.propose(), None, "without its power it would have less than was seen");
    ack(&mut set, 2, 1, (500, 450), (450, 500), ms(2));
    assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2]))));
    set.control(1, BTreeSet::from([1, 2]), 2);
    assert_eq!(set.marks(), marks(450, 450));
}

#[test]
fn who_lacks_what_may_have_been_acknowledged_is_not_proposed() {
    let mut set = set(2, false);
    set.control(1, BTreeSet::from([1]), 1);
    set.join(2, 1, "a", 0, 300, ms(0)).unwrap();
    ack(&mut set, 2, 1, (300, 300), (300, 300), ms(1));
    assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2]))));
    // What became of that is not known; another caught up meanwhile, and is proposed too. The first one is agreed on.
    set.propose_again();
    set.join(3, 1, "a", 0, 300, ms(2)).unwrap();
    ack(&mut set, 3, 1, (300, 300), (300, 300), ms(2));
    assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2, 3]))));
    set.control(1, BTreeSet::from([1, 2]), 2);
    ack(&mut set, 2, 1, (500, 500), (300, 500), ms(900));
    assert_eq!(set.marks(), marks(300, 300), "3 is to be proposed again, and waited for");
    assert_eq!(set.expire(ms(1500)), [3]);
    assert_eq!(set.marks(), marks(500, 500), "3 does not count");
    assert_eq!(set.propose(), None, "3 lacks what is acknowledged now");
    ack(&mut set, 3, 1, (500, 400), (500, 500), ms(1501));
    assert_eq!(set.propose(), None);
    ack(&mut set, 3, 1, (500, 500), (500, 500), ms(1502));
    assert_eq!(set.propose(), Some((2, BTreeSet::from([1, 2, 3]))));
    // Nor one that has all that can be seen, while the lease is over and nothing more is shown.
    set.control(1, BTreeSet::from([1, 2]), 3);
    set.leave(3, 1);
    ack(&mut set, 2, 1, (900, 900), (500, 900), ms(1503));
    assert_eq!(set.marks(), marks(900, 900));
    set.join(3, 2, "a", 600, 900, ms(1504)).unwrap();
    ack(&mut set, 3, 2, (600, 600), (500, 900), ms(1505));
    assert_eq!(set.propose(), None);
}

#[test]
fn one_that_is_a_little_behind_for_ever_comes_to_count() {
    let mut set = set(2, false);
    set.join(2, 1, "a", 0, 100, ms(0)).unwrap();
    set.join(3, 1, "a", 0, 100, ms(0)).unwrap();
    set.control(1, BTreeSet::from([1, 2]), 5);
    // 3 has each time what 2 had 100 ms before, and the log goes on.
    let mut proposed = None;
    for step in 1..20 {
        let end = 100 + 100 * step;
        ack(&mut set, 2, 1, (end, end), (end - 100, end), ms(100 * step));
        set.marks();
        proposed = proposed.or_else(|| set.propose());
        ack(&mut set, 3, 1, (end - 100, end - 100), (end - 100, end), ms(100 * step));
        set.marks();
        proposed = proposed.or_else(|| set.propose());
    }
    assert_eq!(proposed, Some((5, BTreeSet::from([1, 2, 3]))));
    // It has nothing any more: until then it holds up the others, as whoever counts does, and no longer.
    assert_eq!(set.expire(ms(5000)), [2, 3]);
}

#[test]
fn who_may_be_elected_is_waited_for() {
    let mut set = set(2, false);
    for (id, written) in [(2, 500), (3, 300)] {
        set.join(id, 1, "a", 0, 500, ms(0)).unwrap();
        ack(&mut set, id, 1, (written, written), (500, 500), ms(1));
    }
    set.control(1, BTreeSet::from([1, 2]), 5);
    assert_eq!((set.count(), set.marks()), (2, marks(500, 500)));
    assert_eq!(set.propose(), None, "3 has not caught up");
    ack(&mut set, 3, 1, (500, 500), (500, 600), ms(2));
    ack(&mut set, 2, 1, (600, 600), (500, 600), ms(2));
    assert_eq!(set.propose(), Some((5, BTreeSet::from([1, 2, 3]))));
    assert_eq!(set.marks(), marks(500, 500), "3 counts from when it was proposed");
    assert_eq!(set.propose(), None, "that is under way");
    // The answer is lost, and 3 is gone: it may have become part of what counts all the same.
    set.leave(3, 1);
    set.propose_again();
    assert_eq!(set.propose(), Some((5, BTreeSet::from([1, 2]))), "what counts, as far as is known");
    assert_eq!(set.marks(), marks(0, 0));
    set.control(1, BTreeSet::from([1, 2, 3]), 6);
    assert_eq!(set.marks(), marks(0, 0));
    assert_eq!(set.propose(), Some((6, BTreeSet::from([1, 2]))));
    assert_eq!(set.marks(), marks(0, 0), "not before that is agreed");
    set.control(1, BTreeSet::from([1, 2]), 7);
    assert_eq!(set.marks(), marks(600, 600));
    set.control(1, BTreeSet::from([1, 3]), 6);
    assert_eq!(set.marks(), marks(600, 600), "old news");
    set.leave(2, 1);
    assert_eq!(set.propose(), Some((7, BTreeSet::from([1]))));
    set.control(1, BTreeSet::from([1]), 8);
    assert_eq!((set.count(), set.suffices(), set.marks()), (1, false, None));
}

#[test]
fn a_slave_that_is_no_member_is_neither_proposed_nor_waited_for() {
    let mut set = InSync::new(Demands { replicas: 2, all: false, behind_max: ms(1000) }, 0);
    set.control(1, BTreeSet::from([1]), 1);
    set.set_members(BTreeSet::from([1, 2]));
    for id in [2, 9] {
        set.join(id, 1, "a", 0, 500, ms(0)).unwrap();
        ack(&mut set, id, 1, (500, 500), (500, 500), ms(1));
    }
    assert_eq!(
        set.propose(),
        Some((1, BTreeSet::from([1, 2]))),
        "the controllers would refuse 9, and 2 with it"
    );
    set.control(1, BTreeSet::from([1, 2]), 2);
    ack(&mut set, 2, 1, (600, 600), (500, 600), ms(2));
    assert_eq!(set.marks(), marks(600, 600), "9 has 500");
    assert_eq!(set.strangers(ms(5000)), [], "its master may hear of it yet");
    assert_eq!(set.strangers(ms(5001)), [(9, "a".to_owned())]);
    assert_eq!(set.strangers(ms(9000)), [], "it is told once");
    set.set_members(BTreeSet::from([1, 2, 9]));
    ack(&mut set, 9, 1, (600, 600), (600, 600), ms(3));
    assert_eq!(set.propose(), Some((2, BTreeSet::from([1, 2, 9]))));
}
