//! Two masters that know nothing of one another, with one log up to where they began.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::fault_disk::FaultDisk;
use super::replica::{all_of, feed, fill, master, replica_of};
use super::support::*;
use crate::*;

/// How a store comes back.
#[derive(Clone, Copy, Debug)]
enum Restart {
    None,
    /// It finds who wrote its log in the log.
    Killed,
    /// And in its snapshot.
    Closed,
}

#[test]
fn masters_that_took_one_epoch_at_one_place_are_told_apart() {
    for restart in [Restart::None, Restart::Killed, Restart::Closed] {
        let (here, there) = (scratch(), scratch());
        let (old, _) = master(here.path());
        old.lead(1, Durability::Disk).unwrap().wait().unwrap();
        put(&old, "both have it", Durability::Disk).unwrap();
        let (new, _) = replica_of(&old, there.path());
        feed(&old, &new, 1 << 20, Durability::Disk);
        let parted = new.watermarks().written;
        // As with roles by configuration: each takes the last one of its log plus 1.
        for (store, text) in [(&old, "the one's"), (&new, "the other's")] {
            store.lead(2, Durability::Disk).unwrap().wait().unwrap();
            put(store, text, Durability::Disk).unwrap();
        }
        let end = old.watermarks().written;
        let again = |store: Store, directory: &Path| {
            match restart {
                Restart::None => return store,
                Restart::Killed => {}
                Restart::Closed => store.close().unwrap(),
            }
            drop(store);
            open(directory)
        };
        let (old, new) = (again(old, here.path()), again(new, there.path()));
        assert_eq!(old.epochs().last().map(|last| (last.epoch, last.start)), Some((2, parted)));
        assert_eq!(new.common_end(&old.epochs(), end), Some(parted), "{restart:?}");
        assert_eq!(old.common_end(&new.epochs(), new.watermarks().written), Some(parted), "{restart:?}");
        drop(old);
        offline::Offline::open(here.path()).unwrap().cut(parted..end).unwrap();
        let (old, _) = replica_of(&new, here.path());
        feed(&new, &old, 1 << 20, Durability::Disk);
        assert_eq!(old.epochs(), new.epochs());
        assert!(all_of(&new) == all_of(&old));
        assert_eq!(read_all(&old, QUEUE), ["both have it", "the other's"]);
    }
}

#[test]
fn a_deposed_master_gives_up_what_nobody_followed() {
    let mut random = Random::seeded(82);
    for _ in 0..10 {
        let (here, there) = (scratch(), scratch());
        let (old, _) = master(here.path());
        old.lead(1, Durability::Disk).unwrap().wait().unwrap();
        let (new, seen) = replica_of(&old, there.path());
        fill(&old, 1 + random.below(100), random.below(1000));
        feed(&old, &new, 100_000, Durability::Disk);
        let parted = new.watermarks().written;
        new.lead(2, Durability::Disk).unwrap().wait().unwrap();
        fill(&old, 1 + random.below(100), random.below(1000));
        fill(&new, 1 + random.below(100), random.below(1000));
        let end = old.watermarks().written;
        if random.below(2) == 0 {
            old.close().unwrap();
        }
        drop(old);

        // It comes back, and hears where they part.
        let (mut old, _) = replica_of(&new, here.path());
        assert_eq!(old.watermarks().written, end);
        assert_eq!(new.common_end(&old.epochs(), end), Some(parted));
        drop(old);
        offline::Offline::open(here.path()).unwrap().cut(parted..end).unwrap();
        let reopened = replica_of(&new, here.path());
        old = reopened.0;
        assert_eq!(old.watermarks().written, parted);
        feed(&new, &old, 100_000, Durability::Disk);
        assert!(all_of(&new) == all_of(&old));
        assert_eq!(reopened.1.list(), seen.list());
        for queue in (0..8).map(QueueNumber) {
            assert_eq!(read_all(&new, queue), read_all(&old, queue));
        }
        // What was cut is kept aside.
        let kept: u64 = std::fs::read_dir(here.path().join("quarantine"))
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert_eq!(kept, end - parted);
    }
}

/// A store whose first segment was deleted: without a snapshot it cannot be opened.
fn without_beginning(directory: &Path) -> Store {
    let short = Retention { size_limit_bytes: Some(4 * MIB), ..config(directory).retention };
    let config = StoreConfig {
        retention: short,
        cleanup_interval: Duration::from_millis(5),
        snapshot_interval_bytes: MIB / 2,
        flush_interval: Duration::from_millis(10),
        ..config(directory)
    };
    let store = Store::open(config, vec![Arc::new(Seen::default())], Arc::new(Silent)).unwrap();
    eventually("the first segment is gone", || {
        put_in(&store, QUEUE, vec![7; 100_000], Durability::Disk).unwrap();
        store.watermarks().log_start > 0
    });
    store
}

#[test]
fn a_log_that_is_cut_goes_on_from_the_snapshot_in_front_of_the_cut() {
    let place = scratch();
    let store = without_beginning(place.path());
    let parted = store.watermarks().written;
    store.close().unwrap();
    drop(store);
    let store = open(place.path());
    put(&store, "alone", Durability::Disk).unwrap();
    store.close().unwrap();
    drop(store);
    // It comes back, and hears that it has to be cut in front of the newest of its two snapshots.
    let store = open(place.path());
    put(&store, "more", Durability::Disk).unwrap();
    let end = store.watermarks().written;
    store.close_to_cut().unwrap();
    drop(store);
    offline::Offline::open(place.path()).unwrap().cut(parted..end).unwrap();
    let store = open(place.path());
    assert_eq!(store.watermarks().written, parted);
    put(&store, "and on", Durability::Disk).unwrap();
}

#[test]
fn a_store_that_cannot_be_opened_is_set_aside_whole_and_replaced_by_a_copy() {
    let (here, there) = (scratch(), scratch());
    let master = without_beginning(here.path());
    super::replica::copy(&master, there.path(), 100_000);
    let (replica, _) = replica_of(&master, there.path());
    feed(&master, &replica, 1 << 20, Durability::Disk);
    replica.close().unwrap();
    drop(replica);
    let files = |part: &str| {
        let files = std::fs::read_dir(there.path().join(part)).unwrap();
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    files("snapshot").iter().for_each(|snapshot| std::fs::remove_file(snapshot).unwrap());
    let bytes = |paths: Vec<std::path::PathBuf>| {
        let mut all: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        all.sort();
        all
    };
    let before = bytes(files("commitlog"));
    let refused = try_open(there.path()).unwrap_err();
    assert!(matches!(refused, OpenError::NoSnapshot { .. }), "{refused}");

    let aside = offline::Offline::open(there.path()).unwrap();
    assert_eq!(aside.log_id().unwrap(), master.log_id());
    aside.set_aside().unwrap();
    drop(aside);
    let mut kept = files("quarantine");
    kept.retain(|path| path.extension().is_some_and(|extension| extension == "log" || extension == "idx"));
    assert!(bytes(kept) == before && files("commitlog").is_empty());
    super::replica::copy(&master, there.path(), 100_000);
    let (replica, _) = replica_of(&master, there.path());
    feed(&master, &replica, 1 << 20, Durability::Disk);
    assert!(all_of(&master) == all_of(&replica));
}

#[test]
fn setting_a_log_aside_loses_nothing_wherever_it_is_interrupted() {
    let bytes = |directory: &Path| {
        let mut all: Vec<_> = ["commitlog", "quarantine"]
            .iter()
            .filter_map(|part| std::fs::read_dir(directory.join(part)).ok())
            .flat_map(|files| files.map(|file| file.unwrap().path()))
            .filter(|path| path.to_string_lossy().contains(".log"))
            .map(|path| std::fs::read(path).unwrap())
            .collect();
        all.sort();
        all
    };
    for number in 0.. {
        let place = scratch_in_memory();
        without_beginning(place.path()).close().unwrap();
        let before = bytes(place.path());
        let disk = Arc::new(FaultDisk::default());
        let aside = offline::Offline::open_on(disk.clone(), place.path()).unwrap();
        disk.kill_at(None, number, 33);
        let interrupted = aside.set_aside().is_err();
        drop(aside);
        // What is left opens, or asks for a copy: a slave goes on from both.
        match try_open(place.path()) {
            Ok(store) => drop(store),
            Err(OpenError::NoSnapshot { .. }) => {}
            Err(other) => panic!("interrupted at call {number}: {other}"),
        }
        assert!(before.iter().all(|file| bytes(place.path()).contains(file)), "interrupted at call {number}");
        let again = offline::Offline::open(place.path()).unwrap();
        again.set_aside().unwrap();
        assert_eq!(std::fs::read_dir(place.path().join("commitlog")).unwrap().count(), 0);
        assert!(before.iter().all(|file| bytes(place.path()).contains(file)), "interrupted at call {number}");
        if !interrupted {
            assert!(number > 10, "{number} calls");
            return;
        }
    }
}
