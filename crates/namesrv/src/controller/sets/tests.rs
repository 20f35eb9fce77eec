use proptest::prelude::*;

use super::*;

fn member(port: u16) -> Member {
    Member { address: format!("n:{port}"), priority: i32::from(port) }
}

fn join(id: i32, epoch: u32) -> Command {
    Command::Join { set: "a".into(), cluster: "c".into(), id, member: member(1), epoch }
}

fn elect(epoch: u32, master: i32, unclean: bool) -> Command {
    let (set, reason) = ("a".into(), "why".into());
    Command::Elect { set, epoch, term: 1, master, unclean, log_epoch: 0, at_ms: 7, reason }
}

fn sync(epoch: u32, version: u64, in_sync: &[i32]) -> Command {
    Command::Sync { set: "a".into(), epoch, version, in_sync: in_sync.iter().copied().collect() }
}

fn remove(id: i32) -> Command {
    Command::Remove { set: "a".into(), id }
}

/// Brokers 1 to 3; 1 is the master in epoch 5, 2 is in sync.
fn settled() -> Sets {
    let mut sets = Sets::default();
    for command in [join(1, 4), join(2, 3), join(3, 0), elect(4, 1, true), sync(5, 1, &[1, 2])] {
        sets.apply(&command, 1).unwrap();
    }
    sets
}

#[test]
fn commands_are_followed() {
    let sets = settled();
    let set = sets.get("a").unwrap();
    assert_eq!((set.epoch, set.master, set.version), (5, Some(1), 2));
    assert_eq!(set.in_sync, BTreeSet::from([1, 2]));
    assert_eq!((set.elected_ms, set.reason.as_str(), set.cluster.as_str()), (7, "why", "c"));
    let mut after = sets.clone();
    after.apply(&elect(5, 2, false), 1).unwrap();
    let set = after.get("a").unwrap();
    assert_eq!((set.epoch, set.master, set.version), (6, Some(2), 3));
    assert_eq!(set.in_sync, BTreeSet::from([2]), "the others have to catch up with it");
    let mut after = sets.clone();
    after.apply(&remove(2), 1).unwrap();
    let set = after.get("a").unwrap();
    assert_eq!((set.in_sync.clone(), set.version), (BTreeSet::from([1]), 3));
}

#[test]
fn what_may_not_be_changes_nothing() {
    let (set, id) = ("a".to_owned(), 1);
    let outdated = Refused::Outdated { set: set.clone(), epoch: 5, version: 2 };
    let unknown = |id| Refused::UnknownMember { set: "a".into(), id };
    let other_cluster =
        Command::Join { set: "a".into(), cluster: "d".into(), id: 4, member: member(4), epoch: 0 };
    let other_set = Command::Remove { set: "b".into(), id: 1 };
    for (command, why) in [
        (elect(4, 2, false), outdated.clone()),
        (elect(5, 3, false), Refused::NotInSync { set: set.clone(), id: 3 }),
        (elect(5, 9, true), unknown(9)),
        (sync(5, 1, &[1]), outdated.clone()),
        (sync(4, 2, &[1]), outdated),
        (sync(5, 2, &[2, 3]), Refused::IsMaster { set: set.clone(), id }),
        (sync(5, 2, &[1, 9]), unknown(9)),
        (remove(1), Refused::IsMaster { set: set.clone(), id }),
        (remove(9), unknown(9)),
        (other_set, Refused::UnknownSet("b".into())),
        (other_cluster, Refused::OtherCluster { set, cluster: "c".into() }),
        (join(4, u32::MAX), Refused::IllegalEpoch(u32::MAX)),
    ] {
        let mut sets = settled();
        assert_eq!(sets.apply(&command, 1), Err(why), "{command:?}");
        assert_eq!(sets, settled(), "{command:?}");
    }
}

#[test]
fn an_election_counts_in_the_term_that_decided_it_only() {
    let mut sets = settled();
    assert_eq!(sets.apply(&elect(5, 2, false), 2), Err(Refused::OtherTerm { decided: 1, term: 2 }));
    assert_eq!(sets, settled());
}

#[test]
fn nobody_is_in_sync_with_a_master_that_there_is_not() {
    let mut sets = Sets::default();
    sets.apply(&join(1, 0), 1).unwrap();
    assert_eq!(sets.apply(&sync(0, 0, &[1]), 1), Err(Refused::NoMaster("a".into())));
}

#[test]
fn a_member_that_comes_with_a_later_log_makes_the_next_epoch_later_still() {
    let mut sets = settled();
    sets.apply(&join(4, 9), 1).unwrap();
    assert_eq!(sets.get("a").unwrap().epoch, 5, "the master goes on");
    sets.apply(&elect(5, 2, false), 1).unwrap();
    assert_eq!(sets.get("a").unwrap().epoch, 10, "6 to 9 were somebody else's");
}

#[test]
fn the_last_member_takes_the_set_with_it() {
    let mut sets = settled();
    [2, 3, 1].iter().for_each(|id| sets.apply(&remove(*id), 1).unwrap());
    assert_eq!(sets, Sets::default());
}

#[test]
fn there_are_not_more_than_fit_in_a_message() {
    let mut sets = Sets::default();
    for id in 0..i32::try_from(MEMBERS_MAX).unwrap() {
        sets.apply(&join(id, 0), 1).unwrap();
    }
    assert_eq!(sets.apply(&join(99, 0), 1), Err(Refused::TooMany(MEMBERS_MAX)));
    sets.apply(&join(0, 0), 1).unwrap();
    let named = |set: String| Command::Join { set, cluster: "c".into(), id: 0, member: member(1), epoch: 0 };
    (1..SETS_MAX).for_each(|number| sets.apply(&named(number.to_string()), 1).unwrap());
    assert_eq!(sets.apply(&named("more".into()), 1), Err(Refused::TooMany(SETS_MAX)));
}

fn any_command() -> impl Strategy<Value = Command> {
    let in_sync = proptest::collection::btree_set(0..4, 0..4);
    prop_oneof![
        (0..4, 0..6u32).prop_map(|(id, epoch)| join(id, epoch)),
        (0..12u32, 0..4, any::<bool>()).prop_map(|(epoch, master, unclean)| elect(epoch, master, unclean)),
        (0..12u32, 0..12u64, in_sync).prop_map(|(epoch, version, in_sync)| Command::Sync {
            set: "a".into(),
            epoch,
            version,
            in_sync
        }),
        (0..4).prop_map(remove),
    ]
}

proptest! {
    #[test]
    fn what_the_module_promises_holds_after_every_command(
        commands in proptest::collection::vec((any_command(), any::<bool>()), 1..80)
    ) {
        let mut sets = Sets::default();
        let mut masters: BTreeMap<u32, i32> = BTreeMap::new();
        for (mut command, current) in commands {
            let before = sets.get("a").cloned().unwrap_or_default();
            // Most are about what there is.
            match &mut command {
                Command::Elect { epoch, .. } if current => *epoch = before.epoch,
                Command::Sync { epoch, version, .. } if current => {
                    (*epoch, *version) = (before.epoch, before.version);
                }
                _ => {}
            }
            let done = sets.apply(&command, 1);
            let Some(after) = sets.get("a").cloned() else {
                // A set that is gone may begin again.
                masters.clear();
                continue;
            };
            if done.is_err() { prop_assert_eq!(&before, &after) }
            prop_assert!(after.epoch >= before.epoch && after.version >= before.version);
            prop_assert!(after.in_sync.iter().all(|id| after.members.contains_key(id)));
            if let Some(master) = after.master {
                prop_assert!(after.in_sync.contains(&master));
                prop_assert_eq!(*masters.entry(after.epoch).or_insert(master), master);
            }
            if !after.in_sync.is_subset(&before.in_sync) {
                let by_master = matches!(&command, Command::Sync { epoch, version, .. }
                    if *epoch == before.epoch && *version == before.version && before.master.is_some());
                prop_assert!(by_master || after.epoch > before.epoch);
            }
            if let Command::Elect { master, unclean: false, .. } = command && done.is_ok() {
                prop_assert!(before.in_sync.contains(&master));
            }
        }
    }
}
