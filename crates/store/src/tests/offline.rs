//! A stopped store is verified, shown and repaired.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::fault_disk::FaultDisk;
use super::support::*;
use crate::offline::{Dumped, Offline, Plan, RepairOptions, What};
use crate::*;

/// Of a message of 100,000 bytes with one key.
pub(super) const LENGTH: u64 = 100_072;
const MESSAGES: u64 = 45;

pub(super) fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

pub(super) fn open_with(directory: &Path, owner: &str, projection: &Arc<Seen>) -> Result<Store, OpenError> {
    let config = StoreConfig { owner: owner.into(), ..config(directory) };
    Store::open_on(Arc::new(FaultDisk::default()), config, vec![projection.clone()], Arc::new(Silent))
}

/// Messages in five segments, ten in each, with metadata and progress in front of each ten.
fn fill(store: &Store) {
    for number in 0..MESSAGES {
        if number % 10 == 0 {
            for kind in [RecordKind::Metadata, RecordKind::Progress] {
                let record = other(kind, format!("{kind:?} {number}"));
                store.append(vec![record], Durability::Disk).unwrap().wait().unwrap();
            }
        }
        let record = NewRecord { keys: vec![number], ..message(QUEUE, vec![number as u8; 100_000]) };
        store.append(vec![record], Durability::Disk).unwrap().wait().unwrap();
    }
}

pub(super) fn filled(directory: &Path) {
    let store = open_with(directory, "", &Arc::default()).unwrap();
    fill(&store);
    store.close().unwrap();
}

fn offline(directory: &Path) -> Offline {
    Offline::open(directory).unwrap()
}

pub(super) fn verify(directory: &Path) -> Report {
    offline(directory).verify(&mut |_| {}).unwrap()
}

fn plan(directory: &Path, options: &RepairOptions) -> Plan {
    offline(directory).plan(options, &mut |_| {}).unwrap()
}

/// Repairs until there is nothing left to do; what was done.
pub(super) fn repair(directory: &Path, options: &RepairOptions) -> Vec<String> {
    let mut done = Vec::new();
    let offline = offline(directory);
    let plan = offline.plan(options, &mut |_| {}).unwrap();
    assert!(!plan.stays_closed(), "{:?}", plan.remaining);
    offline.repair(&plan, &mut |step| done.push(step.to_string())).unwrap();
    let again = offline.plan(&RepairOptions::default(), &mut |_| {}).unwrap();
    assert!(again.steps.is_empty() && !again.stays_closed(), "{again:?}");
    done
}

/// The numbers of the messages that can be read; the others must be gaps.
pub(super) fn readable(store: &Store) -> Vec<u64> {
    let range = store.queue_range(QUEUE);
    let mut entries = Vec::new();
    store.entries(QUEUE, QueueOffset(range.start), usize::MAX, &mut entries).unwrap();
    assert_eq!(entries.len() as u64, range.end - range.start);
    let mut found = Vec::new();
    for (entry, offset) in entries.iter().zip(range) {
        match store.record(entry.physical_offset, entry.size) {
            Ok(record) => {
                assert_eq!((record.queue_offset.0, record.payload[0]), (offset, offset as u8));
                found.push(offset);
            }
            Err(ReadError::Lost { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    found
}

pub(super) fn all_but(lost: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let lost: Vec<_> = lost.into_iter().collect();
    (0..MESSAGES).filter(|number| !lost.contains(number)).collect()
}

fn files_of(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for part in ["", "commitlog", "snapshot"] {
        for file in fs::read_dir(directory.join(part)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                files.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_store_that_was_closed_is_sound_and_looking_at_it_changes_nothing() {
    let scratch = scratch();
    filled(scratch.path());
    let before = files_of(scratch.path());
    let mut steps = Vec::new();
    let report = offline(scratch.path()).verify(&mut |progress| steps.push(progress)).unwrap();
    assert!(report.is_sound() && report.findings.is_empty(), "{report:?}");
    assert_eq!(report.segments.iter().map(|segment| segment.records).sum::<u64>(), MESSAGES + 10);
    assert!(steps.is_sorted_by_key(|step| step.verified_bytes));
    let last = steps.last().unwrap();
    assert_eq!(last.verified_bytes, last.total_bytes);
    assert!(plan(scratch.path(), &RepairOptions::default()).steps.is_empty());
    let stat = offline(scratch.path()).stat().unwrap();
    assert_eq!((stat.owner.as_deref(), stat.queues, stat.log_start), (Some(""), 1, 0));
    assert_eq!(stat.segments.iter().filter_map(|segment| segment.entries).sum::<u64>(), 40);
    assert!(stat.snapshots[0].intact && stat.flushed.is_some());
    assert!(files_of(scratch.path()) == before);
    let store = open(scratch.path());
    let error = Offline::open(scratch.path()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(store);
    let error = Offline::open(&scratch.path().join("commitlog")).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
}

#[test]
fn a_store_that_was_killed_is_sound_too() {
    let scratch = scratch();
    let store = open(scratch.path());
    fill(&store);
    put(&store, vec![9; 5000], Durability::Memory).unwrap();
    let end = store.watermarks().written;
    drop(store);
    // Of two records that were not flushed the first is torn.
    let (segment, base) = (segment_path(scratch.path(), 4 * MIB), 4 * MIB);
    flip(&segment, end - base - 100);
    let report = verify(scratch.path());
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(readable(&open(scratch.path())), all_but([]));
}

#[test]
fn flipped_bits_are_given_up_and_nothing_else_is_lost() {
    let mut random = Random::seeded(4711);
    for round in 0..6 {
        let scratch = scratch();
        filled(scratch.path());
        let mut lost: Vec<u64> = (0..1 + random.below(4)).map(|_| random.below(MESSAGES)).collect();
        lost.sort_unstable();
        lost.dedup();
        let place = |number: u64| {
            let mut at = None;
            let what = What { range: 0..u64::MAX, queue: Some(QUEUE), payload: false };
            let mut count = 0;
            let find = &mut |dumped| {
                if let Dumped::Record { physical_offset, .. } = dumped {
                    if count == number {
                        at = Some(physical_offset);
                    }
                    count += 1;
                }
                at.is_none()
            };
            offline(scratch.path()).dump(&what, find).unwrap();
            at.unwrap()
        };
        let places: Vec<u64> = lost.iter().map(|number| place(*number)).collect();
        for at in &places {
            flip(&segment_path(scratch.path(), at / MIB * MIB), at % MIB + 8 + random.below(LENGTH - 8));
        }
        let damaged = files_of(scratch.path());
        if round % 2 == 1 {
            fs::remove_file(scratch.path().join("commitlog").join(segment::file_name(0, "idx"))).unwrap();
        }
        let report = verify(scratch.path());
        assert!(!report.is_sound());
        let found: u64 = report.damage().map(|damage| damage.to - damage.from).sum();
        assert_eq!(found, lost.len() as u64 * LENGTH);
        repair(scratch.path(), &RepairOptions::default());
        assert!(verify(scratch.path()).is_sound());
        for file in fs::read_dir(scratch.path().join("quarantine")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let from: u64 = name.split('-').next().unwrap().parse().unwrap();
            let copy = fs::read(&path).unwrap();
            let segment = segment_path(scratch.path(), from / MIB * MIB);
            let (_, former) = damaged.iter().find(|(path, _)| *path == segment).unwrap();
            assert!(copy == former[(from % MIB) as usize..][..copy.len()], "{name}");
        }
        let store = open(scratch.path());
        assert_eq!(store.damage(), [], "round {round}");
        assert_eq!(readable(&store), all_but(lost.clone()), "round {round}");
        for number in 0..MESSAGES {
            let mut found = Vec::new();
            store.find(number, 0..u64::MAX, 2, &mut found).unwrap();
            assert_eq!(found.len(), usize::from(!lost.contains(&number)));
        }
        put(&store, "goes on", Durability::Disk).unwrap();
        store.close().unwrap();
        assert!(verify(scratch.path()).is_sound());
    }
}

#[test]
fn the_last_records_of_a_queue_leave_their_places_when_they_are_given_up() {
    let scratch = scratch();
    let store = open(scratch.path());
    for number in 0..10_u8 {
        put(&store, vec![number; 100_000], Durability::Disk).unwrap();
    }
    // The other queue has the next segments.
    for number in 0..20_u8 {
        put_in(&store, QueueNumber(9), vec![number; 100_000], Durability::Disk).unwrap();
    }
    store.close().unwrap();
    drop(store);
    flip(&segment_path(scratch.path(), 0), 9 * 100_064 + 90);
    repair(scratch.path(), &RepairOptions::default());
    let store = open(scratch.path());
    assert_eq!(store.queue_range(QUEUE), 0..10);
    assert_eq!(readable(&store).len(), 9);
}

#[test]
fn what_a_newer_version_wrote_is_named_and_left_alone() {
    let scratch = scratch();
    filled(scratch.path());
    let path = segment_path(scratch.path(), 4 * MIB);
    let mut bytes = fs::read(&path).unwrap();
    let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    bytes[8] = 2;
    let crc = crc32c::crc32c_append(seal_of(scratch.path()).0, &bytes[8..length]).to_le_bytes();
    bytes[4..8].copy_from_slice(&crc);
    fs::write(&path, bytes).unwrap();
    flip(&segment_path(scratch.path(), 0), 1000);
    let before = files_of(scratch.path());
    let plan = plan(scratch.path(), &RepairOptions::default());
    assert!(plan.steps.is_empty() && plan.stays_closed());
    assert!(plan.remaining.iter().any(|finding| finding.to_string().contains("format version 2")));
    assert!(files_of(scratch.path()) == before);
}

#[test]
fn state_is_not_given_up_while_a_snapshot_is_intact() {
    let scratch = scratch();
    filled(scratch.path());
    let forget = RepairOptions { forget_state: true, ..RepairOptions::default() };
    let plan = plan(scratch.path(), &forget);
    assert!(plan.steps.is_empty() && plan.stays_closed(), "{plan:?}");
    assert!(plan.remaining[0].to_string().contains("intact"), "{plan:?}");
}

#[test]
fn an_index_file_is_built_anew_as_it_was() {
    let scratch = scratch();
    filled(scratch.path());
    let path = |base| scratch.path().join("commitlog").join(segment::file_name(base, "idx"));
    let intact = [0, MIB].map(|base| fs::read(path(base)).unwrap());
    fs::remove_file(path(0)).unwrap();
    flip(&path(MIB), 100);
    assert!(matches!(verify(scratch.path()).segments[1].index, IndexState::Damaged(_)));
    let built = offline(scratch.path()).rebuild_index(Some(0), &mut |_| {}).unwrap();
    assert_eq!(built, [0]);
    let built = offline(scratch.path()).rebuild_index(None, &mut |_| {}).unwrap();
    assert_eq!(built, [0, MIB, 2 * MIB, 3 * MIB]);
    assert!([0, MIB].map(|base| fs::read(path(base)).unwrap()) == intact);
    let error = offline(scratch.path()).rebuild_index(Some(7), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("starts at 7"), "{error}");
    assert!(verify(scratch.path()).is_sound());
}

#[test]
fn a_dump_shows_what_was_asked_for() {
    let scratch = scratch();
    filled(scratch.path());
    flip(&segment_path(scratch.path(), MIB), 300);
    let dump = |what: What| {
        let mut all = Vec::new();
        offline(scratch.path())
            .dump(&what, &mut |dumped| {
                all.push(dumped);
                all.len() < 100
            })
            .map(|()| all)
            .unwrap()
    };
    let everything = dump(What { range: 0..u64::MAX, queue: None, payload: false });
    let records = everything.iter().filter(|dumped| matches!(dumped, Dumped::Record { .. })).count() as u64;
    assert_eq!(records, MESSAGES + 10 - 1);
    assert_eq!(
        everything
            .iter()
            .filter(|dumped| matches!(dumped, Dumped::None(damage) if damage.from < 4 * MIB))
            .count(),
        1
    );
    let one = dump(What { range: 0..LENGTH, queue: None, payload: true });
    let payloads: Vec<_> = one
        .iter()
        .filter_map(|dumped| match dumped {
            Dumped::Record { payload: Some(payload), .. } => {
                Some(String::from_utf8_lossy(payload).into_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(payloads[..2], ["Metadata 0", "Progress 0"]);
    assert_eq!(
        dump(What { range: 0..u64::MAX, queue: Some(QueueNumber(77)), payload: false })
            .iter()
            .filter(|dumped| matches!(dumped, Dumped::Record { .. }))
            .count(),
        0
    );
}
