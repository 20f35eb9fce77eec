//! How far a member is with one queue: what was pulled, what of it is done, and what may be said to be done. Pure.

use std::collections::BTreeSet;

/// Pulled messages are unfinished until the application says that they are done, whether it has seen them or not.
#[derive(Debug)]
pub(super) struct Progress {
    /// Where to pull next.
    position: i64,
    /// Offsets of pulled messages that are not done.
    unfinished: BTreeSet<i64>,
    /// What was recorded last.
    committed: Option<i64>,
}

impl Progress {
    /// Everything in front of `begin` is done; that is recorded already.
    pub(super) fn new(begin: i64) -> Self {
        Self { position: begin, unfinished: BTreeSet::new(), committed: Some(begin) }
    }

    pub(super) fn position(&self) -> i64 {
        self.position
    }

    pub(super) fn unfinished(&self) -> usize {
        self.unfinished.len()
    }

    /// Messages at `offsets` were pulled; what lies between them up to `next` is not wanted.
    pub(super) fn pulled(&mut self, offsets: impl IntoIterator<Item = i64>, next: i64) {
        self.unfinished.extend(offsets);
        self.position = next;
    }

    /// The queue does not reach to the position any more: reading goes on at `position`.
    pub(super) fn moved(&mut self, position: i64) {
        self.position = position;
    }

    /// Whether it was unfinished until now.
    pub(super) fn done(&mut self, offset: i64) -> bool {
        self.unfinished.remove(&offset)
    }

    /// Everything in front of it is done.
    pub(super) fn done_before(&self) -> i64 {
        self.unfinished.first().map_or(self.position, |first| self.position.min(*first))
    }

    /// What is to be recorded, when it is not yet.
    pub(super) fn to_commit(&self) -> Option<i64> {
        let done = self.done_before();
        (self.committed != Some(done)).then_some(done)
    }

    pub(super) fn committed(&mut self, offset: i64) {
        self.committed = Some(offset);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_done_counts_only_when_everything_in_front_of_it_is() {
        let mut progress = Progress::new(10);
        progress.pulled([10, 11, 13], 14);
        assert_eq!((progress.position(), progress.to_commit()), (14, None));
        assert!(progress.done(11));
        assert_eq!(progress.to_commit(), None);
        assert!(progress.done(10));
        assert_eq!(progress.to_commit(), Some(13), "12 was not wanted");
        progress.committed(13);
        assert_eq!(progress.to_commit(), None);
        assert!(progress.done(13) && !progress.done(13) && !progress.done(99));
        assert_eq!(progress.to_commit(), Some(14));
    }

    #[test]
    fn messages_that_nobody_wants_move_the_place_by_themselves() {
        let mut progress = Progress::new(0);
        progress.pulled([], 500);
        assert_eq!(progress.to_commit(), Some(500));
    }

    #[test]
    fn a_queue_that_lost_its_end_is_read_from_where_it_ends_now() {
        let mut progress = Progress::new(0);
        progress.pulled([100, 101], 102);
        progress.moved(50);
        assert_eq!((progress.position(), progress.done_before()), (50, 50));
    }

    proptest! {
        /// Whatever is done in whatever order: nothing that is not done lies in front of what is recorded.
        #[test]
        fn nothing_unfinished_is_ever_passed_over(
            wanted in prop::collection::vec(any::<bool>(), 1..100), done in prop::collection::vec(0..100_i64, 0..100),
        ) {
            let mut progress = Progress::new(0);
            let end = i64::try_from(wanted.len()).expect("it is short");
            let offsets = (0..end).zip(&wanted).filter(|(_, wanted)| **wanted).map(|(offset, _)| offset);
            let mut unfinished: BTreeSet<i64> = offsets.collect();
            progress.pulled(unfinished.iter().copied(), end);
            for offset in done {
                prop_assert_eq!(progress.done(offset), unfinished.remove(&offset));
                prop_assert_eq!(progress.done_before(), unfinished.first().copied().unwrap_or(end));
                prop_assert_eq!(progress.unfinished(), unfinished.len());
            }
        }
    }
}
