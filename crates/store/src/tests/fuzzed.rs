//! Replays what the fuzzer has kept (`crates/store/fuzz/corpus`), and adds to it what a store really writes.

use std::fs;
use std::path::{Path, PathBuf};

use super::support::*;
use crate::*;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("record", fuzz::record),
    ("index", fuzz::index),
    ("snapshot", fuzz::snapshot),
    ("cursor", fuzz::cursor),
    ("identity", fuzz::identity),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn no_file_of_the_corpus_makes_a_reader_panic() {
    for (target, run) in TARGETS {
        let files: Vec<_> = fs::read_dir(corpus(target)).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 5, "the corpus of {target} has only {} files", files.len());
        for file in files {
            let bytes = fs::read(&file).unwrap();
            let ran = std::panic::catch_unwind(|| run(&bytes));
            assert!(ran.is_ok(), "{}", file.display());
        }
    }
}

/// With every prefix and with each byte changed, checksums put right and not.
#[test]
fn no_reader_panics_on_a_file_of_a_store_that_was_cut_or_changed() {
    for (target, bytes) in real_files() {
        let run = TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
        let mut random = Random::seeded(bytes.len() as u64);
        for repaired in [0, 1] {
            let input = [&[repaired], &bytes[..]].concat();
            (0..input.len()).step_by(1 + input.len() / 2000).for_each(|length| run(&input[..length]));
            for at in 1..input.len() {
                let mut changed = input.clone();
                changed[at] = random.below(256) as u8;
                run(&changed);
            }
        }
    }
}

/// One of each kind, small; what a fuzzer starts from.
fn real_files() -> Vec<(&'static str, Vec<u8>)> {
    let scratch = scratch_in_memory();
    let seen = std::sync::Arc::new(Seen::default());
    let disk = std::sync::Arc::new(super::fault_disk::FaultDisk::default());
    let config = StoreConfig { owner: "cluster/broker-a".into(), ..config(scratch.path()) };
    let store = Store::open_on(disk, config, vec![seen], std::sync::Arc::new(Silent)).unwrap();
    for number in 0..14_u64 {
        let record =
            NewRecord { keys: vec![number, 7], ..message(QueueNumber(number as u32 % 3), "payload") };
        store
            .append(vec![record, other(RecordKind::Progress, "progress")], Durability::Disk)
            .unwrap()
            .wait()
            .unwrap();
        put(&store, vec![3; 80_000], Durability::Memory).unwrap();
    }
    store.close().unwrap();
    let read = |name: PathBuf| fs::read(scratch.path().join(name)).unwrap();
    let newest = snapshot::list(&scratch.path().join("snapshot")).unwrap().remove(0).1;
    let log = read(Path::new("commitlog").join(segment::file_name(0, "log")));
    vec![
        ("record", log[..88 + 72].to_vec()),
        ("index", read(Path::new("commitlog").join(segment::file_name(0, "idx")))),
        ("snapshot", read(newest)),
        ("cursor", read(cursor::FILE_NAME.into())),
        ("identity", read(directory::IDENTITY.into())),
    ]
}
