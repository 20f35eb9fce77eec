//! Two masters that know nothing of one another, with one log up to where they began.

use std::path::Path;

use super::replica::{all_of, feed, master, replica_of};
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
