use std::sync::Arc;

use super::fault_disk::{Call, EIO, ENOSPC, FaultDisk};
use super::support::*;
use crate::*;

fn poisoned_by(call: Call, durability: Durability) {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    let poisoned = store.poisoned();
    put(&store, "before", Durability::Disk).unwrap();
    disk.fail(call, EIO);
    let error = put(&store, "during", durability).unwrap_err();
    assert!(matches!(&error, AppendError::Poisoned(reason) if reason.contains("error 5")), "{error}");
    disk.heal();
    let syncs = disk.count(Call::Sync);
    assert!(matches!(put(&store, "after", durability), Err(AppendError::Poisoned(_))));
    assert!(poisoned.borrow().as_ref().is_some_and(|reason| reason.contains(".log")));
    assert_eq!(read_all(&store, QUEUE), ["before"], "what was confirmed can still be read");
    assert!(matches!(store.close(), Err(CloseError::Poisoned(_))));
    assert_eq!(disk.count(Call::Sync), syncs, "a failed flush is not tried again");
    drop(store);
    assert_eq!(read_all(&open(scratch.path()), QUEUE)[0], "before");
}

#[test]
fn a_failed_write_poisons() {
    poisoned_by(Call::Write, Durability::Memory);
    poisoned_by(Call::Write, Durability::Disk);
}

#[test]
fn a_failed_flush_poisons() {
    poisoned_by(Call::Sync, Durability::Disk);
}

#[test]
fn a_failed_flush_in_the_background_poisons() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let config =
        StoreConfig { flush_interval: std::time::Duration::from_millis(5), ..config(scratch.path()) };
    let store = Store::open_on(disk.clone(), config, Vec::new(), Arc::new(Silent)).unwrap();
    disk.fail(Call::Sync, EIO);
    put(&store, "unflushed", Durability::Memory).unwrap();
    eventually("the poison", || store.poisoned().borrow().is_some());
    assert!(matches!(put(&store, "after", Durability::Memory), Err(AppendError::Poisoned(_))));
}

#[test]
fn a_failed_rename_or_directory_flush_of_a_new_segment_poisons() {
    for operation in [Call::Rename, Call::SyncDirectory] {
        let scratch = scratch();
        let disk = Arc::new(FaultDisk::default());
        let store = open_on(disk.clone(), scratch.path()).unwrap();
        disk.fail(operation, EIO);
        let result = (0..20).try_for_each(|_| put(&store, vec![0; 100_000], Durability::Memory).map(drop));
        assert!(matches!(result, Err(AppendError::Poisoned(_))), "{operation:?}");
    }
}

#[test]
fn a_failed_snapshot_poisons_and_a_full_disk_only_skips_it() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    put(&store, "x", Durability::Disk).unwrap();
    disk.fail(Call::Write, ENOSPC);
    assert!(matches!(store.close(), Err(CloseError::Snapshot(_))));
    assert!(store.poisoned().borrow().is_none());
    drop(store);
    disk.heal();
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    disk.fail(Call::Rename, EIO);
    assert!(matches!(store.close(), Err(CloseError::Poisoned(_))));
}

/// Appends until the store refuses; returns how many were taken.
fn fill(store: &Store) -> (u64, AppendError) {
    let mut taken = 0;
    loop {
        match put(store, vec![7; 10_000], Durability::Memory) {
            Ok(_) => taken += 1,
            Err(error) => return (taken, error),
        }
    }
}

/// What makes a disk full must not matter.
#[test]
fn a_full_disk_refuses_messages_keeps_reading_and_recording_progress_and_heals() {
    full_and_healed(|disk| disk.set_free_bytes(MIB / 2), |disk| disk.set_free_bytes(10 * MIB));
    full_and_healed(|disk| disk.fail(Call::Allocate, ENOSPC), FaultDisk::heal);
}

fn full_and_healed(fill_up: impl Fn(&FaultDisk), make_room: impl Fn(&FaultDisk)) {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    fill_up(&disk);
    let (taken, error) = fill(&store);
    assert!(matches!(error, AppendError::DiskFull { needed_bytes: MIB, .. }), "{error}");
    assert_eq!(read_all(&store, QUEUE).len() as u64, taken);
    let reserve = MIB / 16;
    assert!(
        store.watermarks().written > MIB - reserve - 11_000 && store.watermarks().written <= MIB - reserve
    );

    let record = |kind| store.append(vec![other(kind, vec![1; 1000])], Durability::Disk).unwrap().wait();
    for kind in [RecordKind::Progress, RecordKind::Metadata].repeat(reserve as usize / 1064 / 2) {
        record(kind).unwrap();
    }
    eventually("the end of the reserve", || record(RecordKind::Progress).is_err());
    assert!(matches!(record(RecordKind::Progress), Err(AppendError::DiskFull { .. })));
    assert!(store.poisoned().borrow().is_none());

    make_room(&disk);
    eventually("space", || put(&store, "again", Durability::Disk).is_ok());
    record(RecordKind::Metadata).unwrap();
    assert_eq!(read_all(&store, QUEUE).len() as u64, taken + 1);
    store.close().unwrap();
    drop(store);
    assert_eq!(read_all(&open(scratch.path()), QUEUE).len() as u64, taken + 1);
}

#[test]
fn a_device_that_stalls_makes_wait_and_nothing_else() {
    for call in [Call::Write, Call::Sync] {
        let scratch = scratch();
        let disk = Arc::new(FaultDisk::default());
        let config = StoreConfig { inbox_bytes: 10_000, ..config(scratch.path()) };
        let store = Store::open_on(disk.clone(), config, Vec::new(), Arc::new(Silent)).unwrap();
        put(&store, "before", Durability::Disk).unwrap();
        disk.stall(call);
        let append = |number: u32| store.append(vec![message(QUEUE, number.to_string())], Durability::Disk);
        let mut waiting = vec![append(0).unwrap()];
        eventually("the stall", || disk.stalled() == 1);
        let refused = loop {
            match append(waiting.len() as u32) {
                Ok(append) => waiting.push(append),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, AppendError::Overloaded { .. }), "{refused}");
        assert_eq!(read_all(&store, QUEUE), ["before"], "what is not flushed is not seen");
        disk.heal();
        let count = waiting.len();
        for append in waiting {
            append.wait().unwrap();
        }
        drop(store);
        let found = read_all(&open(scratch.path()), QUEUE);
        assert!(found.len() == count + 1 && found[count] == (count - 1).to_string());
    }
}

#[test]
fn the_reserve_of_the_disk_is_left_alone() {
    let scratch = scratch();
    let disk = Arc::new(FaultDisk::default());
    let config = StoreConfig { disk_reserve_bytes: 5 * MIB, ..config(scratch.path()) };
    let store = Store::open_on(disk.clone(), config, Vec::new(), Arc::new(Silent)).unwrap();
    disk.set_free_bytes(6 * MIB - 1);
    let (_, error) = fill(&store);
    let text = error.to_string();
    assert!(text.contains("6291456 bytes needed, 6291455 available"), "{text}");
    disk.set_free_bytes(6 * MIB);
    eventually("space", || put(&store, vec![0; 100_000], Durability::Disk).is_ok());
}

#[test]
fn a_restart_on_a_full_disk_works_and_catches_up_with_index_files_later() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..40 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let index = |base: u64| scratch.path().join("commitlog").join(segment::file_name(base, "idx"));
    std::fs::remove_file(index(MIB)).unwrap();
    let disk = Arc::new(FaultDisk::default());
    disk.fail(Call::Write, ENOSPC);
    let store = open_on(disk.clone(), scratch.path()).unwrap();
    assert_eq!(read_all(&store, QUEUE).len(), 40);
    disk.heal();
    eventually("the index file", || index(MIB).exists());
    assert_eq!(read_all(&store, QUEUE).len(), 40);
    store.close().unwrap();
    drop(store);
    assert_eq!(read_all(&open(scratch.path()), QUEUE).len(), 40);
}

#[derive(Debug)]
struct Panics;

impl Listener for Panics {
    fn confirmed(&self, _queue: QueueNumber, _count: u32) {
        panic!("a listener of this test panics");
    }
}

#[test]
fn a_panic_on_the_log_writer_poisons_instead_of_hanging() {
    let scratch = scratch();
    let store = Store::open(config(scratch.path()), Vec::new(), Arc::new(Panics)).unwrap();
    assert!(matches!(put(&store, "x", Durability::Disk), Err(AppendError::Poisoned(_))));
    eventually("the poison", || store.poisoned().borrow().is_some());
    assert!(matches!(put(&store, "y", Durability::Disk), Err(AppendError::Poisoned(_))));
    assert!(store.close().is_err());
}
