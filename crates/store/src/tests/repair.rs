//! Everything that stops a start has a repair, and a repair can be interrupted anywhere.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use super::fault_disk::FaultDisk;
use super::offline::*;
use super::support::*;
use crate::offline::{Offline, RepairOptions};
use crate::*;

type Damaging = fn(&Path);
type Expected = fn(&OpenError) -> bool;

fn segment_file(directory: &Path, base: u64) -> std::path::PathBuf {
    segment_path(directory, base)
}

/// What stops a start, the repair's options, and the messages that are lost by it.
fn cases() -> Vec<(&'static str, Damaging, Expected, RepairOptions, Vec<u64>)> {
    let options = RepairOptions::default;
    let owned = || RepairOptions { owner: Some(String::new()), ..options() };
    let identity: Expected = |error| matches!(error, OpenError::NotAStore { .. });
    let missing: Expected = |error| matches!(error, OpenError::MissingSegment { .. });
    let io: Expected = |error| matches!(error, OpenError::Io { .. });
    vec![
        ("damaged identity", |at| flip(&at.join("identity"), 20), identity, owned(), vec![]),
        ("damaged version", |at| flip(&at.join("identity"), 8), identity, owned(), vec![]),
        ("no identity", |at| fs::remove_file(at.join("identity")).unwrap(), identity, owned(), vec![]),
        (
            "another owner",
            |at| {
                let owner = RepairOptions { owner: Some("shop/broker-b".into()), ..RepairOptions::default() };
                repair(at, &owner);
            },
            |error| matches!(error, OpenError::ForeignOwner { found, .. } if found == "shop/broker-b"),
            owned(),
            vec![],
        ),
        (
            "no first segment",
            |at| fs::remove_file(segment_file(at, 0)).unwrap(),
            missing,
            options(),
            (0..10).collect(),
        ),
        (
            "no second and third segment",
            |at| [MIB, 2 * MIB].iter().for_each(|base| fs::remove_file(segment_file(at, *base)).unwrap()),
            missing,
            options(),
            (10..30).collect(),
        ),
        (
            "no last segment",
            |at| {
                fs::remove_file(segment_file(at, 4 * MIB)).unwrap();
                let _ = fs::remove_file(segment_file(at, 5 * MIB));
            },
            missing,
            options(),
            (40..45).collect(),
        ),
        (
            "no last segment and nothing that says how far it went",
            |at| {
                fs::remove_file(segment_file(at, 4 * MIB)).unwrap();
                let _ = fs::remove_file(segment_file(at, 5 * MIB));
                fs::remove_file(at.join("cursor")).unwrap();
                fs::remove_dir_all(at.join("snapshot")).unwrap();
                fs::create_dir(at.join("snapshot")).unwrap();
            },
            missing,
            options(),
            (40..45).collect(),
        ),
        (
            "an empty segment file",
            |at| fs::write(segment_file(at, MIB), "").unwrap(),
            io,
            options(),
            (10..20).collect(),
        ),
        (
            "half a page",
            |at| {
                let file = OpenOptions::new().write(true).open(segment_file(at, MIB)).unwrap();
                file.set_len(5 * LENGTH + 1000).unwrap();
            },
            io,
            options(),
            (15..20).collect(),
        ),
        (
            "a segment too many",
            |at| {
                let last = fs::read_dir(at.join("commitlog")).unwrap().count();
                assert!(last > 5);
                for base in [5 * MIB, 6 * MIB] {
                    fs::File::create(segment_file(at, base)).unwrap().set_len(MIB).unwrap();
                }
            },
            missing,
            options(),
            vec![],
        ),
        (
            "a snapshot that is not understood",
            |at| {
                let bytes = fs::read(at.join("identity")).unwrap();
                let log = directory::Identity::read(&bytes).unwrap().log;
                let snapshots = at.join("snapshot");
                let sections = [("seen", b"\xff".to_vec())];
                fs::remove_dir_all(&snapshots).unwrap();
                fs::create_dir(&snapshots).unwrap();
                let bytes = snapshot::encode(log, 77, &sections);
                fs::write(snapshots.join(segment::file_name(77, "snap")), bytes).unwrap();
            },
            |error| matches!(error, OpenError::Restore { .. }),
            RepairOptions { set_aside_snapshot: Some(77), ..options() },
            vec![],
        ),
        (
            "no snapshot",
            |at| {
                for file in
                    ["commitlog/00000000000000000000.log", "commitlog/00000000000000000000.idx", "cursor"]
                {
                    fs::remove_file(at.join(file)).unwrap();
                }
                for file in fs::read_dir(at.join("snapshot")).unwrap() {
                    flip(&file.unwrap().path(), 50);
                }
            },
            |error| matches!(error, OpenError::NoSnapshot { .. }),
            RepairOptions { forget_state: true, ..options() },
            (0..10).collect(),
        ),
    ]
}

#[test]
fn what_stops_a_start_has_a_repair_that_loses_nothing_more() {
    for (name, damage, expected, options, lost) in cases() {
        println!("{name}");
        let scratch = scratch();
        filled(scratch.path());
        damage(scratch.path());
        let error = open_with(scratch.path(), "", &Arc::default()).unwrap_err();
        assert!(expected(&error), "{name}: {error}");
        let report = verify(scratch.path());
        let found_it = report.findings.iter().any(|finding| finding.severity == Severity::StopsStart);
        let is_asked_for = ["another owner", "a snapshot that is not understood"].contains(&name);
        assert!(found_it || is_asked_for, "{name}: {report:?}");
        let done = repair(scratch.path(), &options);
        assert!(!done.is_empty());
        let seen = Arc::default();
        let store = open_with(scratch.path(), "", &seen).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(store.damage(), [], "{name}");
        assert_eq!(readable(&store), all_but(lost), "{name}");
        if name == "no snapshot" {
            // Progress may be ahead of what is known of its queues.
            let expected: Vec<_> = (2..5).map(|ten| format!("Metadata {ten}0")).collect();
            assert_eq!(seen.list(), expected);
        }
        let record = other(RecordKind::Progress, "later");
        store.append(vec![record], Durability::Disk).unwrap().wait().unwrap();
        assert_eq!(seen.list().last().unwrap(), "later");
        put(&store, "goes on", Durability::Disk).unwrap();
        drop(store);
        let seen = Arc::default();
        open_with(scratch.path(), "", &seen).unwrap().close().unwrap();
        assert_eq!(seen.list().last().unwrap(), "later", "{name}");
        assert!(
            verify(scratch.path()).findings.iter().all(|finding| finding.severity != Severity::StopsStart)
        );
    }
}

#[test]
fn a_repair_that_is_interrupted_anywhere_is_taken_up_again() {
    for number in 0.. {
        let scratch = scratch_in_memory();
        filled(scratch.path());
        fs::remove_file(segment_path(scratch.path(), MIB)).unwrap();
        flip(&segment_path(scratch.path(), 0), 3 * LENGTH + 1000);
        flip(&segment_path(scratch.path(), 3 * MIB), 500);
        flip(&segment_path(scratch.path(), 4 * MIB), LENGTH);
        flip(&scratch.path().join("identity"), 20);
        let options = RepairOptions { owner: Some(String::new()), ..RepairOptions::default() };
        let disk = Arc::new(FaultDisk::default());
        let interrupted = {
            let offline = Offline::open_on(disk.clone(), scratch.path()).unwrap();
            let plan = offline.plan(&options, &mut |_| {}).unwrap();
            disk.kill_at(None, number, 33);
            offline.repair(&plan, &mut |_| {}).is_err()
        };
        if interrupted {
            repair(scratch.path(), &options);
        }
        let store = open(scratch.path());
        assert_eq!(store.damage(), [], "interrupted at call {number}");
        let lost = [3, 30, 41].into_iter().chain(10..20);
        assert_eq!(readable(&store), all_but(lost), "interrupted at call {number}");
        if !interrupted {
            assert!(number > 20, "{number} calls");
            return;
        }
    }
}
