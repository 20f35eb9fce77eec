//! Damage is mended with what another store has of the same log, while both are open.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::fault_disk::{Call, EIO, FaultDisk};
use super::retention_crashes::copy_all;
use super::support::*;
use crate::*;

const SOURCE: &str = "10.0.0.7:10911";

/// Three full segments and a fourth one, with keys and records of a projection; the same in both directories.
fn two_copies(one: &Path, copy: &Path) {
    let seen: Arc<Seen> = Arc::default();
    let store = Store::open(config(one), vec![seen], Arc::new(Silent)).unwrap();
    assert!(store.lead(1, Durability::Disk).unwrap().wait().is_ok());
    for number in 0..70_u64 {
        let queue = QueueNumber(1 + (number % 3) as u32);
        let length = 20_000 + (number * 7919 % 50_000) as usize;
        let record = NewRecord { keys: vec![number], ..message(queue, vec![number as u8; length]) };
        store.append(vec![record], Durability::Memory).unwrap().wait().unwrap();
        let progress = other(RecordKind::Progress, format!("progress {number}"));
        store.append(vec![progress], Durability::Memory).unwrap().wait().unwrap();
    }
    store.close().unwrap();
    assert!(store.segments().len() >= 3, "{:?}", store.segments());
    copy_all(one, copy);
}

fn open_mending(disk: Arc<FaultDisk>, directory: &Path) -> Result<(Store, Arc<Seen>), OpenError> {
    let seen: Arc<Seen> = Arc::default();
    let config = StoreConfig { mends: true, ..config(directory) };
    Ok((Store::open_on(disk, config, vec![seen.clone()], Arc::new(Silent))?, seen))
}

fn flip(path: &Path, at: u64, bytes: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut old = vec![0; bytes];
    file.read_exact_at(&mut old, at).unwrap();
    old.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&old, at).unwrap();
}

/// Fetches everything, as a broker does. The first error ends it.
fn mend_all(damaged: &Store, intact: &Store, piece: usize) -> Result<(), MendError> {
    while let Some(damage) = damaged.mendable().first() {
        let mut from = Some(damage.from);
        while let Some(at) = from {
            let raw = intact.intact(at, piece).unwrap();
            from = damaged.mend(at, &raw.bytes, SOURCE)?;
        }
    }
    Ok(())
}

fn verify(store: &Store) -> Report {
    store.verify(0, &mut |_| true).unwrap()
}

fn assert_equal_logs(one: &Path, two: &Path) {
    for base in (0..3).map(|number| number * MIB) {
        let read = |directory| fs::read(segment_path(directory, base)).unwrap();
        assert!(read(one) == read(two), "the segments at {base} differ");
    }
}

/// All that can be asked of both is the same.
fn assert_same(damaged: &Store, intact: &Store) {
    eventually("the index is built anew", || verify(damaged).is_sound());
    for queue in (1..4).map(QueueNumber) {
        eventually("all entries are back", || {
            let mut entries = Vec::new();
            damaged.entries(queue, QueueOffset(0), 1000, &mut entries).unwrap();
            entries.iter().all(|entry| !entry.is_lost())
        });
        assert_eq!(damaged.queue_range(queue), intact.queue_range(queue));
        assert!(read_all(damaged, queue) == read_all(intact, queue));
    }
    for key in 0..70 {
        let find = |store: &Store| {
            let mut found = Vec::new();
            store.find(key, 0..u64::MAX, 10, &mut found).unwrap();
            found
        };
        eventually("all keys are back", || find(damaged) == find(intact));
    }
}

#[test]
fn flipped_bits_and_a_missing_segment_come_back_from_another_store() {
    for piece in [1, 100_000, 4 << 20] {
        let (bad, good) = (scratch(), scratch());
        two_copies(bad.path(), good.path());
        flip(&segment_path(bad.path(), 0), 70_000, 1);
        flip(&segment_path(bad.path(), 0), 400_000, 200_000);
        fs::remove_file(segment_path(bad.path(), MIB)).unwrap();
        fs::remove_file(segment_path(bad.path(), MIB).with_extension("idx")).unwrap();
        let (damaged, _) = open_mending(Arc::default(), bad.path()).unwrap();
        let intact = open(good.path());
        // What is missing is known at once, the rest is found.
        assert!(damaged.mendable().iter().any(|damage| (damage.from, damage.to) == (MIB, 2 * MIB)));
        assert!(!verify(&damaged).is_sound());
        // It is written on meanwhile, also to queues of which something is missing.
        put_in(&damaged, QueueNumber(9), "meanwhile", Durability::Disk).unwrap();
        let known = damaged.damage();
        mend_all(&damaged, &intact, piece).unwrap();
        assert_eq!(damaged.damage(), []);
        let mended = damaged.mended();
        let bytes: u64 = mended.iter().map(|mended| mended.to - mended.from).sum();
        assert_eq!(bytes, known.iter().map(|damage| damage.to - damage.from).sum::<u64>());
        assert!(mended.iter().all(|mended| mended.source == SOURCE && mended.mended_ms > 0));
        assert_same(&damaged, &intact);
        assert_equal_logs(bad.path(), good.path());
        assert!(!damaged.wants_reopening());
        damaged.close().unwrap();
        drop(damaged);
        let (again, _) = open_mending(Arc::default(), bad.path()).unwrap();
        assert_same(&again, &intact);
    }
}

#[test]
fn the_end_of_a_queue_that_only_a_snapshot_knows_comes_back() {
    let (bad, good) = (scratch(), scratch());
    let (store, _) = open_mending(Arc::default(), bad.path()).unwrap();
    // The queue ends in the segment that goes.
    put_in(&store, QueueNumber(5), "first", Durability::Memory).unwrap();
    for number in 0..40_u8 {
        put(&store, vec![number; 100_000], Durability::Memory).unwrap();
        if number == 15 {
            put_in(&store, QueueNumber(5), "last", Durability::Memory).unwrap();
        }
    }
    store.close().unwrap();
    drop(store);
    copy_all(bad.path(), good.path());
    fs::remove_file(segment_path(bad.path(), MIB)).unwrap();
    fs::remove_file(segment_path(bad.path(), MIB).with_extension("idx")).unwrap();
    let (damaged, _) = open_mending(Arc::default(), bad.path()).unwrap();
    assert_eq!(damaged.queue_range(QueueNumber(5)), 0..2);
    put_in(&damaged, QueueNumber(5), "new", Durability::Memory).unwrap();
    mend_all(&damaged, &open(good.path()), 1 << 20).unwrap();
    eventually("the entry is back", || {
        let mut entries = Vec::new();
        damaged.entries(QueueNumber(5), QueueOffset(0), 10, &mut entries).unwrap();
        entries.iter().all(|entry| !entry.is_lost())
    });
    assert_eq!(read_all(&damaged, QueueNumber(5)), ["first", "last", "new"]);
    assert_eq!(read_all(&damaged, QUEUE).len(), 40);
}

#[test]
fn mending_that_ends_at_any_call_is_finished_after_the_next_start() {
    let (full, good) = (scratch_in_memory(), scratch_in_memory());
    two_copies(full.path(), good.path());
    flip(&segment_path(full.path(), 0), 300_000, 150_000);
    fs::remove_file(segment_path(full.path(), MIB)).unwrap();
    let intact = open(good.path());
    for number in 0.. {
        let crashed = scratch_in_memory();
        copy_all(full.path(), crashed.path());
        let disk = Arc::new(FaultDisk::default());
        disk.kill_at(None, number, 1000);
        let ended = open_mending(disk.clone(), crashed.path()).map(|(store, _)| {
            let _ = store.verify(0, &mut |_| true);
            let _ = mend_all(&store, &intact, 200_000);
            if store.poisoned().borrow().is_none() {
                let _ = store.close();
            }
        });
        let died = disk.hits() > 0;
        drop(ended);
        let (again, _) = open_mending(Arc::default(), crashed.path()).unwrap();
        verify(&again);
        mend_all(&again, &intact, 1 << 20).unwrap();
        assert_same(&again, &intact);
        assert_equal_logs(crashed.path(), good.path());
        if !died {
            assert!(number > 10, "{number} calls");
            return;
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let (bad, good, foreign) = (scratch(), scratch(), scratch());
    two_copies(bad.path(), good.path());
    two_copies(foreign.path(), scratch().path());
    flip(&segment_path(bad.path(), 0), 300_000, 1);
    let (damaged, _) = open_mending(Arc::default(), bad.path()).unwrap();
    let (intact, foreign) = (open(good.path()), open(foreign.path()));
    verify(&damaged);
    let damage = damaged.mendable()[0].clone();
    let before = fs::read(segment_path(bad.path(), 0)).unwrap();
    let right = intact.intact(damage.from, 1).unwrap().bytes;
    let refused = |bytes: &[u8], expected: fn(&MendError) -> bool| {
        let error = damaged.mend(damage.from, bytes, SOURCE).unwrap_err();
        assert!(expected(&error), "{error}");
        assert!(fs::read(segment_path(bad.path(), 0)).unwrap() == before, "{error}");
        assert_eq!(damaged.mendable().as_slice(), std::slice::from_ref(&damage));
    };
    refused(&[], |error| matches!(error, MendError::Nothing { .. }));
    refused(&right[..right.len() - 8], |error| matches!(error, MendError::Invalid { .. }));
    let mut flipped = right.to_vec();
    flipped[100] ^= 1;
    refused(&flipped, |error| matches!(error, MendError::Invalid { reason: Invalid::Checksum, .. }));
    // Of the same content, but another log.
    let alien = foreign.intact(damage.from, 1).unwrap().bytes;
    assert_eq!(alien.len(), right.len());
    refused(&alien, |error| matches!(error, MendError::Invalid { reason: Invalid::Checksum, .. }));
    // Of this log and for this place, but of another master, or longer than what was there.
    let seal = seal_of(bad.path());
    let resealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = right.to_vec();
        change(&mut bytes);
        let crc = crc32c::crc32c_append(seal.0, &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let later = resealed(&|bytes| bytes[12] = 2);
    refused(&later, |error| matches!(error, MendError::Epoch { epoch: 2, oldest: 1, newest: 1, .. }));
    let longer = resealed(&|bytes| {
        bytes.extend_from_slice(&[0; 8]);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let payload = u32::from_le_bytes(bytes[36..40].try_into().unwrap()) + 8;
        bytes[36..40].copy_from_slice(&payload.to_le_bytes());
    });
    refused(&longer, |error| matches!(error, MendError::Beyond { .. }));
    let error = damaged.mend(damage.from + 8, &right, SOURCE).unwrap_err();
    assert!(matches!(error, MendError::NotDamaged { .. }), "{error}");
    assert_eq!(damaged.mend(damage.from, &right, SOURCE).unwrap(), None);
    assert_same(&damaged, &intact);
}

#[test]
fn what_is_damaged_there_too_is_not_given() {
    let (bad, good) = (scratch(), scratch());
    two_copies(bad.path(), good.path());
    [&bad, &good].iter().for_each(|copy| flip(&segment_path(copy.path(), 0), 300_000, 1));
    let (damaged, _) = open_mending(Arc::default(), bad.path()).unwrap();
    verify(&damaged);
    let from = damaged.mendable()[0].from;
    let error = open(good.path()).intact(from, 1 << 20).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { .. } | ReadError::Lost { .. }), "{error}");
    assert_eq!(damaged.damage().len(), 1);
}

#[test]
fn a_device_that_does_not_take_it_leaves_it_as_damaged_as_it_was() {
    let (bad, good) = (scratch(), scratch());
    two_copies(bad.path(), good.path());
    flip(&segment_path(bad.path(), 0), 300_000, 1);
    let disk = Arc::new(FaultDisk::default());
    let (damaged, _) = open_mending(disk.clone(), bad.path()).unwrap();
    let intact = open(good.path());
    verify(&damaged);
    for call in [Call::Write, Call::Sync] {
        disk.fail_one(call, "00000.log", 0, EIO, 0);
        let error = mend_all(&damaged, &intact, 1 << 20).unwrap_err();
        assert!(matches!(error, MendError::Device { .. }), "{error}");
        assert_eq!(damaged.mendable().len(), 1);
        assert!(damaged.poisoned().borrow().is_none());
    }
    mend_all(&damaged, &intact, 1 << 20).unwrap();
    assert_same(&damaged, &intact);
}

#[test]
fn a_page_that_the_device_does_not_give_is_written_whole() {
    let (bad, good) = (scratch(), scratch());
    two_copies(bad.path(), good.path());
    let disk = Arc::new(FaultDisk::default());
    let (damaged, _) = open_mending(disk.clone(), bad.path()).unwrap();
    let intact = open(good.path());
    // A page in which one record ends and the next one begins.
    let mut boundary = 0;
    while boundary < 250_000 || boundary % 4096 > 3000 {
        boundary = intact.intact(boundary, 1).unwrap().end;
    }
    let page = boundary - boundary % 4096;
    disk.make_unreadable("00000.log".into(), page..page + 4096);
    verify(&damaged);
    let damage = damaged.mendable();
    assert!(damage[0].to > boundary && damage[0].reason.contains("cannot be read"), "{damage:?}");
    let first = intact.intact(damage[0].from, 1).unwrap();
    assert_eq!(first.end, boundary);
    assert_eq!(damaged.mend(first.start, &first.bytes, SOURCE).unwrap(), Some(boundary));
    // The device gives it again once it was written.
    disk.heal();
    mend_all(&damaged, &intact, 1).unwrap();
    assert_same(&damaged, &intact);
    assert_equal_logs(bad.path(), good.path());
}

#[test]
fn a_state_that_lacks_something_is_not_kept_and_whole_after_it_was_mended() {
    let (bad, good) = (scratch(), scratch());
    two_copies(bad.path(), good.path());
    // No snapshot stands for anything: all of the state comes from the log.
    for snapshot in fs::read_dir(bad.path().join("snapshot")).unwrap() {
        fs::remove_file(snapshot.unwrap().path()).unwrap();
    }
    flip(&segment_path(bad.path(), MIB), 0, 300_000);
    // Else the index would say where the records are, and the log is read all the same.
    let (damaged, seen) = open_mending(Arc::default(), bad.path()).unwrap();
    assert!(seen.list().len() < 70, "{}", seen.list().len());
    assert!(!damaged.wants_reopening());
    let intact = open(good.path());
    mend_all(&damaged, &intact, 1 << 20).unwrap();
    assert!(damaged.wants_reopening());
    damaged.close().unwrap();
    drop(damaged);
    assert_eq!(fs::read_dir(bad.path().join("snapshot")).unwrap().count(), 0, "it would lack something");
    let (again, seen) = open_mending(Arc::default(), bad.path()).unwrap();
    assert_eq!(seen.list().iter().filter(|line| line.starts_with("progress")).count(), 70);
    assert!(!again.wants_reopening());
    again.close().unwrap();
    assert_eq!(fs::read_dir(bad.path().join("snapshot")).unwrap().count(), 1);
}

#[test]
fn without_another_store_or_a_snapshot_a_missing_segment_stops_the_start() {
    let (bad, good) = (scratch(), scratch());
    two_copies(bad.path(), good.path());
    fs::remove_file(segment_path(bad.path(), MIB)).unwrap();
    let error = try_open(bad.path()).unwrap_err();
    assert!(matches!(error, OpenError::MissingSegment { offset: MIB, .. }), "{error}");
    for snapshot in fs::read_dir(bad.path().join("snapshot")).unwrap() {
        fs::remove_file(snapshot.unwrap().path()).unwrap();
    }
    let error = open_mending(Arc::default(), bad.path()).unwrap_err();
    assert!(matches!(error, OpenError::MissingSegment { offset: MIB, .. }), "{error}");
}
