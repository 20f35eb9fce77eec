use openraft::{CommittedLeaderId, EntryPayload};

use super::*;

fn id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(1, 0), index)
}

fn row(indexes: Range<u64>) -> Vec<Entry> {
    indexes.map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank }).collect()
}

fn directory(root: &Path) -> Directory {
    Directory::open(root, "g", 1).unwrap()
}

fn indexes(contents: &Contents) -> Vec<u64> {
    contents.entries.iter().map(|entry| entry.log_id.index).collect()
}

/// Two rows, as bytes, and where the second begins.
fn two_rows(root: &Path) -> (Vec<u8>, usize) {
    let directory = directory(root);
    let (mut file, _) = LogFile::open(&directory).unwrap();
    file.append(&row(0..3)).unwrap();
    let second = usize::try_from(file.end).unwrap();
    file.append(&row(3..5)).unwrap();
    (fs::read(directory.path(NAME)).unwrap(), second)
}

#[test]
fn what_was_appended_is_there_again() {
    let root = tempfile::tempdir().unwrap();
    two_rows(root.path());
    let directory = directory(root.path());
    let (mut file, contents) = LogFile::open(&directory).unwrap();
    assert_eq!((indexes(&contents), contents.purged, contents.cut_bytes), (vec![0, 1, 2, 3, 4], None, 0));
    file.append(&row(5..6)).unwrap();
    let (_, contents) = LogFile::open(&directory).unwrap();
    assert_eq!(indexes(&contents), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn what_was_dropped_is_not() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(root.path());
    for (purged, kept) in [(Some(id(7)), 8..10), (Some(id(7)), 0..0), (None, 0..2)] {
        LogFile::create(&directory, purged, &row(kept.clone())).unwrap();
        let (_, contents) = LogFile::open(&directory).unwrap();
        assert_eq!((contents.purged, indexes(&contents)), (purged, kept.collect()));
    }
}

#[test]
fn a_torn_tail_is_cut_wherever_it_was_torn() {
    let root = tempfile::tempdir().unwrap();
    let (bytes, second) = two_rows(root.path());
    let directory = directory(root.path());
    for end in second..bytes.len() {
        // The rest is missing, or there, but was not written.
        for rest in [0, bytes.len() - end] {
            let torn = [&bytes[..end], &vec![0; rest]].concat();
            fs::write(directory.path(NAME), &torn).unwrap();
            let (mut file, contents) = LogFile::open(&directory).unwrap();
            assert_eq!(
                (indexes(&contents), contents.cut_bytes as usize),
                (vec![0, 1, 2], torn.len() - second)
            );
            file.append(&row(3..4)).unwrap();
            let (_, contents) = LogFile::open(&directory).unwrap();
            assert_eq!((indexes(&contents), contents.cut_bytes), (vec![0, 1, 2, 3], 0), "{end} {rest}");
        }
    }
}

#[test]
fn damage_in_front_of_what_is_valid_is_refused_wherever_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (bytes, second) = two_rows(root.path());
    let directory = directory(root.path());
    for at in 0..second {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(directory.path(NAME), &damaged).unwrap();
        let error = LogFile::open(&directory).unwrap_err();
        let OpenError::Damaged { path, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(*path, directory.path(NAME));
        assert!(*offset <= at as u64, "{at}: {error}");
        assert_eq!(fs::read(directory.path(NAME)).unwrap(), damaged, "nothing is changed");
    }
}

#[test]
fn a_hole_between_rows_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let directory = directory(root.path());
    let (mut file, _) = LogFile::open(&directory).unwrap();
    file.append(&row(0..2)).unwrap();
    file.append(&row(3..4)).unwrap();
    assert!(matches!(LogFile::open(&directory), Err(OpenError::Damaged { .. })));
}
