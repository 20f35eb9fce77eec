use super::*;

#[test]
fn a_directory_belongs_to_one_controller_of_one_group_and_one_process() {
    let root = tempfile::tempdir().unwrap();
    let first = Directory::open(root.path(), "g", 1).unwrap();
    assert!(matches!(Directory::open(root.path(), "g", 1), Err(OpenError::Locked(_))));
    drop(first);
    for (group, id) in [("g", 2), ("h", 1)] {
        let error = Directory::open(root.path(), group, id).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("belongs to controller 1 of group \"g\""), "{error}");
    }
    Directory::open(root.path(), "g", 1).unwrap();
}

#[test]
fn whether_it_votes_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path(), "g", 1).unwrap();
    assert!(!directory.votes());
    directory.let_vote().unwrap();
    drop(directory);
    assert!(Directory::open(root.path(), "g", 1).unwrap().votes());
}

#[test]
fn a_file_is_replaced_as_a_whole_and_damage_to_it_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path(), "g", 1).unwrap();
    assert_eq!(directory.read::<u64>("vote").unwrap(), None);
    directory.write("vote", &7_u64).unwrap();
    directory.write("vote", &123_456_u64).unwrap();
    // What a crash left of the next one.
    fs::write(root.path().join("vote.new"), b"karm").unwrap();
    assert_eq!(directory.read("vote").unwrap(), Some(123_456_u64));
    let bytes = fs::read(root.path().join("vote")).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(root.path().join("vote"), damaged).unwrap();
        assert!(matches!(directory.read::<u64>("vote"), Err(OpenError::Damaged { .. })), "{at}");
    }
}

#[test]
fn a_directory_that_has_lost_its_identity_is_no_new_one() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::open(root.path(), "g", 1).unwrap();
    directory.write("vote", &7_u64).unwrap();
    drop(directory);
    fs::remove_file(root.path().join(IDENTITY)).unwrap();
    assert!(matches!(Directory::open(root.path(), "g", 1), Err(OpenError::Damaged { .. })));
}
