use super::super::sets::Member;
use super::*;

const LEASE: Duration = Duration::from_millis(1000);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Brokers 1 to 4; 1 is the master in epoch 1, 2 and 3 are in sync.
fn sets() -> Sets {
    let mut sets = Sets::default();
    let set = || "a".to_owned();
    let member = |priority| Member { address: "n:1".into(), priority };
    let joins =
        (1..=4).map(|id| Command::Join { set: set(), cluster: "c".into(), id, member: member(id), epoch: 0 });
    let elect = Command::Elect {
        set: set(),
        epoch: 0,
        term: 1,
        master: 1,
        unclean: true,
        log_epoch: 0,
        at_ms: 0,
        reason: String::new(),
    };
    let sync = Command::Sync { set: set(), epoch: 1, version: 1, in_sync: [1, 2, 3].into() };
    joins.chain([elect, sync]).for_each(|command| sets.apply(&command, 1).unwrap());
    sets
}

fn leases() -> Leases {
    Leases::new(1, LEASE, false, Duration::ZERO)
}

fn report(end: u64) -> Report {
    Report { epoch: 1, end, master_of: 0 }
}

const MASTER: Report = Report { epoch: 1, end: 100, master_of: 1 };

/// Who is elected at that time, and whether it may lack something.
fn elected(leases: &mut Leases, sets: &Sets, now: u64) -> Vec<(i32, bool)> {
    let due = leases.elections(sets, ms(now), 0);
    due.iter()
        .map(|command| match command {
            Command::Elect { master, unclean, .. } => (*master, *unclean),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_silent_master_is_replaced_when_its_last_lease_is_over_and_not_before() {
    let (mut leases, sets) = (leases(), sets());
    leases.hear("a", 1, MASTER, ms(500));
    assert!(leases.grant(&sets, "a", 1, 1, ms(500)));
    for now in (500..=1550).step_by(50) {
        leases.hear("a", 2, report(100), ms(now));
        assert_eq!(elected(&mut leases, &sets, now), [], "{now}");
    }
    assert_eq!(elected(&mut leases, &sets, 1551), [(2, false)]);
    assert!(usable(LEASE) < blocked(LEASE));
}

#[test]
fn a_new_leader_waits_as_if_it_had_granted_when_it_was_elected() {
    let (mut leases, sets) = (Leases::new(2, LEASE, false, ms(10_000)), sets());
    leases.hear("a", 2, report(100), ms(10_000));
    assert_eq!(elected(&mut leases, &sets, 10_900), []);
    leases.hear("a", 2, report(100), ms(11_050));
    assert_eq!(elected(&mut leases, &sets, 11_050), []);
    assert_eq!(elected(&mut leases, &sets, 11_051), [(2, false)]);
}

#[test]
fn a_set_that_is_made_anew_gets_a_master_again() {
    let (mut leases, mut sets) = (leases(), Sets::default());
    let member = Member { address: "n:1".into(), priority: 1 };
    let join = Command::Join { set: "a".into(), cluster: "c".into(), id: 1, member, epoch: 0 };
    sets.apply(&join, 1).unwrap();
    let mut is_elected = |sets: &Sets, from: u64| {
        (from..from + 10_000).step_by(50).any(|now| {
            leases.hear("a", 1, report(0), ms(now));
            !elected(&mut leases, sets, now).is_empty()
        })
    };
    assert!(is_elected(&sets, 0));
    assert!(!is_elected(&Sets::default(), 20_000), "all members were removed");
    assert!(is_elected(&sets, 40_000), "with empty disks, in epoch 0 again");
}

#[test]
fn nothing_is_granted_in_an_epoch_that_an_election_under_way_ends() {
    let (mut leases, sets) = (leases(), sets());
    leases.hear("a", 2, report(100), ms(1000));
    assert_eq!(elected(&mut leases, &sets, 1100), [(2, false)]);
    leases.hear("a", 1, MASTER, ms(1110));
    assert!(!leases.grant(&sets, "a", 1, 1, ms(1120)), "it would outlive the election");
    assert_eq!(elected(&mut leases, &sets, 1150), [], "one at a time");
    leases.not_elected("a", 1, 9);
    assert!(!leases.grant(&sets, "a", 1, 1, ms(1120)), "that was another term's");
    leases.not_elected("a", 1, 1);
    assert!(leases.grant(&sets, "a", 1, 1, ms(1120)));
}

#[test]
fn only_the_master_of_the_epoch_is_granted_anything() {
    let (mut leases, sets) = (leases(), sets());
    for (set, id, epoch) in [("a", 2, 1), ("a", 1, 0), ("a", 1, 2), ("b", 1, 1)] {
        assert!(!leases.grant(&sets, set, id, epoch, ms(1)), "{set} {id} {epoch}");
        assert!(!leases.resign(&sets, set, id, epoch, None, ms(1)), "{set} {id} {epoch}");
    }
    assert!(leases.resign(&sets, "a", 1, 1, None, ms(1)));
    assert!(!leases.grant(&sets, "a", 1, 1, ms(2)), "it has resigned");
}

#[test]
fn a_master_that_hands_over_is_followed_at_once_by_whom_it_names() {
    for (to, heard, expected) in [
        (Some(3), &[2, 3][..], vec![(3, false)]),
        (Some(3), &[2], vec![(2, false)]),
        (Some(4), &[2, 4], vec![(2, false)]),
        (None, &[2, 3, 4], vec![(2, false)]),
        (None, &[4], vec![]),
    ] {
        let (mut leases, sets) = (leases(), sets());
        leases.hear("a", 1, MASTER, ms(10));
        heard.iter().for_each(|id| leases.hear("a", *id, report(100), ms(10)));
        assert!(leases.grant(&sets, "a", 1, 1, ms(10)));
        assert!(leases.resign(&sets, "a", 1, 1, to, ms(11)));
        assert_eq!(elected(&mut leases, &sets, 11), expected, "{to:?} {heard:?}");
    }
}

#[test]
fn a_master_that_handed_over_to_nobody_goes_on_in_a_new_epoch() {
    for unclean in [false, true] {
        let (mut leases, sets) = (Leases::new(1, LEASE, unclean, Duration::ZERO), sets());
        assert!(leases.resign(&sets, "a", 1, 1, None, ms(100)));
        leases.hear("a", 1, report(100), ms(1000));
        leases.hear("a", 4, report(100), ms(1000));
        assert_eq!(elected(&mut leases, &sets, 1100), [], "others may come; and it has everything");
        assert_eq!(elected(&mut leases, &sets, 1101), [(1, false)]);
    }
}

#[test]
fn a_master_that_is_there_but_is_none_is_replaced_after_a_while() {
    let (mut leases, sets) = (leases(), sets());
    for now in (0..=5000).step_by(500) {
        leases.hear("a", 1, report(100), ms(now));
        leases.hear("a", 2, report(100), ms(now));
        assert_eq!(elected(&mut leases, &sets, now), [], "{now}");
    }
    leases.hear("a", 2, report(100), ms(5001));
    assert_eq!(elected(&mut leases, &sets, 5001), [(2, false)]);
}

#[test]
fn the_most_complete_of_those_in_sync_follows_then_the_preferred_one() {
    for (ends, expected) in [
        ([(2, 10), (3, 11)], 3),
        ([(2, 5_000_000_000), (3, 11)], 2),
        ([(2, 10), (3, 10)], 2),
        ([(3, 10), (4, 99)], 3),
    ] {
        let (mut leases, sets) = (leases(), sets());
        ends.iter().for_each(|(id, end)| leases.hear("a", *id, report(*end), ms(500)));
        assert_eq!(elected(&mut leases, &sets, 1060), [(expected, false)], "{ends:?}");
    }
}

#[test]
fn one_that_is_not_in_sync_follows_only_where_that_is_allowed() {
    for (unclean, expected) in [(false, vec![]), (true, vec![(4, true)])] {
        let (mut leases, sets) = (Leases::new(1, LEASE, unclean, Duration::ZERO), sets());
        leases.hear("a", 4, report(99), ms(500));
        assert_eq!(elected(&mut leases, &sets, 1060), expected);
    }
}

#[test]
fn a_set_without_a_master_waits_for_its_members_first() {
    let (mut leases, mut sets) = (leases(), sets());
    let set = sets.0.get_mut("a").unwrap();
    (set.master, set.in_sync) = (None, [].into());
    leases.hear("a", 1, report(5), ms(0));
    assert_eq!(elected(&mut leases, &sets, 3100), [], "it has left");
    leases.hear("a", 1, report(5), ms(3100));
    for now in (3600..=6100).step_by(500) {
        leases.hear("a", 1, report(5), ms(now));
        assert_eq!(elected(&mut leases, &sets, now), [], "{now}");
    }
    leases.hear("a", 3, report(6), ms(6100));
    assert_eq!(elected(&mut leases, &sets, 6101), [(3, true)]);
}

#[test]
fn an_operator_s_wish_counts_for_one_election() {
    let (mut leases, mut sets) = (leases(), sets());
    leases.wish("a", 1, 3);
    [2, 3].iter().for_each(|id| leases.hear("a", *id, report(10), ms(500)));
    let due = leases.elections(&sets, ms(1060), 0);
    sets.apply(&due[0], 1).unwrap();
    assert_eq!(sets.get("a").unwrap().master, Some(3));
    let sync = Command::Sync { set: "a".into(), epoch: 2, version: 3, in_sync: [2, 3].into() };
    sets.apply(&sync, 1).unwrap();
    leases.hear("a", 2, Report { epoch: 2, ..report(10) }, ms(3000));
    assert_eq!(elected(&mut leases, &sets, 3000), [(2, false)]);
}

#[test]
fn who_comes_back_with_a_new_disk_is_not_elected() {
    let (sets, new_disk) = (sets(), Report::default());
    let mut after_master_died = leases();
    after_master_died.hear("a", 2, new_disk, ms(1000));
    assert_eq!(elected(&mut after_master_died, &sets, 1500), []);
    after_master_died.hear("a", 3, report(5), ms(1500));
    assert_eq!(elected(&mut after_master_died, &sets, 1500), [(3, false)]);

    // The master itself, which has resigned: it waits for one that has everything.
    let mut resigned = leases();
    resigned.hear("a", 1, new_disk, ms(0));
    assert!(resigned.resign(&sets, "a", 1, 1, Some(1), ms(0)));
    for now in (0..4000).step_by(100) {
        resigned.hear("a", 1, new_disk, ms(now));
        assert_eq!(elected(&mut resigned, &sets, now), []);
    }
    resigned.hear("a", 2, report(5), ms(4000));
    assert_eq!(elected(&mut resigned, &sets, 4000), [(2, false)]);
}

#[test]
fn a_lone_master_with_a_new_disk_is_not_elected_again() {
    let (mut leases, mut sets) = (leases(), sets());
    let alone = Command::Sync { set: "a".into(), epoch: 1, version: 2, in_sync: [1].into() };
    sets.apply(&alone, 1).unwrap();
    // 2 was agreed on before and has everything, which nobody can know here: better nobody than an empty log.
    for now in (0..9000).step_by(100) {
        leases.hear("a", 1, Report::default(), ms(now));
        leases.hear("a", 2, report(5), ms(now));
        assert_eq!(elected(&mut leases, &sets, now), [], "{now}");
    }
    leases.hear("a", 1, report(5), ms(9000));
    assert_eq!(elected(&mut leases, &sets, 9000), [(1, false)]);

    // The same before it has said who is in sync: it was elected for what its log had then.
    let elect = leases.elections(&sets, ms(9000), 0);
    assert!(elect.is_empty(), "that is under way");
    let elect = Command::Elect {
        set: "a".into(),
        epoch: 1,
        term: 1,
        master: 1,
        unclean: false,
        log_epoch: 1,
        at_ms: 0,
        reason: String::new(),
    };
    sets.apply(&elect, 1).unwrap();
    for now in (9100..20_000).step_by(100) {
        leases.hear("a", 1, Report::default(), ms(now));
        assert_eq!(elected(&mut leases, &sets, now), [], "{now}");
    }
}

#[test]
fn who_is_drained_is_elected_last() {
    let (mut leases, mut sets) = (leases(), sets());
    let drain = Command::Drain { set: "a".into(), id: 2, drained: true };
    sets.apply(&drain, 1).unwrap();
    // It has more than the other, and the lower number.
    leases.hear("a", 2, report(10), ms(1000));
    leases.hear("a", 3, report(5), ms(1000));
    assert_eq!(elected(&mut leases, &sets, 1500), [(3, false)]);
}
