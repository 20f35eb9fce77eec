//! Which slaves count, and how far all of them are: pure, the time is an argument. Owned by `Followers`, behind
//! its lock.
//!
//! A slave counts from when it has all that can be seen, until it is gone or was behind for longer than
//! `haMaxTimeSlaveNotCatchup`. What is acknowledged as replicated is with all that count (`allAckInSyncStateSet`, which a
//! controller needs: any of them may be elected) or with as many as were asked for (`inSyncReplicas`, the master included).
//! While fewer count than must, nothing is: the master stops acknowledging rather than promise what it cannot keep.
//!
//! With controllers a slave has what its device has, never less: it may lose its power and be elected when it is back, as long as it is
//! agreed on, and a master that was never told would be cut to what is left. One that is hardly behind is waited for, so that what
//! the others let the master acknowledge does not run ahead of it; it is proposed when it has all of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Who had everything so short a time ago is hardly behind.
const HARDLY_BEHIND: Duration = Duration::from_secs(1);

/// What is asked of replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// `inSyncReplicas`: so many must have it, the master included.
    pub replicas: usize,
    /// `allAckInSyncStateSet`: and all that count.
    pub all: bool,
    /// `haMaxTimeSlaveNotCatchup`
    pub behind_max: Duration,
}

/// How far the slaves are that have to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Their kernels have it.
    pub written: u64,
    /// Their devices have.
    pub flushed: u64,
}

/// Where the master's log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// What can be seen of it.
    pub confirmed: u64,
    /// All of it.
    pub end: u64,
}

/// One connected slave.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Which of its streams.
    pub session: u64,
    /// Where it can be reached.
    pub address: String,
    /// As it acknowledged.
    pub written: u64,
    /// As it acknowledged; never more than `written`.
    pub flushed: u64,
    /// It counts; with controllers: it is waited for, and proposed when it has everything.
    pub in_sync: bool,
    /// It has had all that there was when it connected.
    reached: bool,
    /// When it last had all that was there.
    pub caught_up: Duration,
    /// Where the log ended at `aimed`: once it has that, it was caught up then.
    aim: u64,
    aimed: Duration,
}

/// What controllers say of who counts. The master only proposes.
#[derive(Clone, Debug)]
struct Controlled {
    /// This master.
    own: i32,
    /// Who counts, this master included.
    agreed: BTreeSet<i32>,
    /// Of `agreed`.
    version: u64,
    /// All that were ever proposed for the next version, and may become it whenever: they are waited for too, since a new
    /// master may be elected from among them before this one hears of it.
    proposed: BTreeSet<i32>,
    /// Whether one is under way, and what it was.
    under_way: Option<BTreeSet<i32>>,
}

/// The connected slaves by `brokerId`.
#[derive(Clone, Debug)]
pub struct InSync {
    demands: Demands,
    followers: BTreeMap<i32, Follower>,
    controlled: Option<Controlled>,
    /// Whom controllers know as brokers of the set; nobody else is proposed, or waited for. `None`: they have not said it.
    members: Option<BTreeSet<i32>>,
    /// So much may have been acknowledged: all with which the master began, and the furthest that [`Self::marks`] ever said.
    told: u64,
}

impl InSync {
    /// Nobody follows yet; the log of this master, which begins now, ends at `end`.
    pub fn new(demands: Demands, end: u64) -> Self {
        Self { demands, followers: BTreeMap::new(), controlled: None, members: None, told: end }
    }

    /// A slave has connected, with a log that ends at `written`, all of it this one's; `end` is where this one ends. `Err`
    /// with the address of another one that has this id.
    pub fn join(
        &mut self,
        id: i32,
        session: u64,
        address: &str,
        written: u64,
        end: u64,
        now: Duration,
    ) -> Result<(), String> {
        if let Some(other) = self.followers.get(&id).filter(|other| other.address != address) {
            return Err(other.address.clone());
        }
        let address = address.to_owned();
        // What its device has is not known before it says so.
        let follower = Follower {
            session,
            address,
            written,
            flushed: 0,
            in_sync: false,
            reached: false,
            caught_up: now,
            aim: end,
            aimed: now,
        };
        self.followers.insert(id, follower);
        Ok(())
    }

    /// A slave says how far it is.
    pub fn ack(&mut self, id: i32, session: u64, acked: Marks, log: LogEnd, now: Duration) {
        let controlled = self.controlled.is_some();
        let Some(follower) = self.of(id, session) else { return };
        follower.written = follower.written.max(acked.written);
        follower.flushed = follower.flushed.max(acked.flushed.min(acked.written));
        if follower.written >= follower.aim {
            follower.reached = true;
            follower.caught_up = follower.aimed;
            (follower.aim, follower.aimed) = (log.end, now);
        }
        if follower.written >= log.end {
            follower.caught_up = now;
        }
        follower.in_sync |= match controlled {
            true => follower.reached && now.saturating_sub(follower.caught_up) <= HARDLY_BEHIND,
            false => follower.written >= log.confirmed,
        };
    }

    /// A slave is gone.
    pub fn leave(&mut self, id: i32, session: u64) {
        if self.of(id, session).is_some() {
            self.followers.remove(&id);
        }
    }

    /// Slaves that were behind for too long do not count any more; says which.
    pub fn expire(&mut self, now: Duration) -> Vec<i32> {
        let behind_max = self.demands.behind_max;
        let late = |follower: &Follower| now.saturating_sub(follower.caught_up) > behind_max;
        let mut expired = Vec::new();
        for (id, follower) in &mut self.followers {
            if follower.in_sync && late(follower) {
                follower.in_sync = false;
                expired.push(*id);
            }
        }
        expired
    }

    /// Controllers say who counts, in that version; this master is `own`. True: others than before.
    pub fn control(&mut self, own: i32, agreed: BTreeSet<i32>, version: u64) -> bool {
        if self.controlled.as_ref().is_some_and(|known| known.version >= version) {
            return false;
        }
        let are_others = self.controlled.as_ref().is_none_or(|known| known.agreed != agreed);
        let proposed = BTreeSet::new();
        self.controlled = Some(Controlled { own, agreed, version, proposed, under_way: None });
        are_others
    }

    /// Controllers say who the set is.
    pub fn set_members(&mut self, members: BTreeSet<i32>) {
        self.members = Some(members);
    }

    fn is_member(&self, id: i32) -> bool {
        self.members.as_ref().is_none_or(|members| members.contains(&id))
    }

    /// What should count from now on, and the version that it is to replace; `None`: what does. Once said it counts as under way
    /// until there is another version, or [`Self::propose_again`].
    pub fn propose(&mut self) -> Option<(u64, BTreeSet<i32>)> {
        // One that is hardly behind may lack what was acknowledged before it was waited for.
        let has_all = |follower: &Follower| follower.in_sync && follower.flushed >= self.told;
        let caught_up =
            self.followers.iter().filter(|(id, follower)| self.is_member(**id) && has_all(follower));
        let mut wanted: BTreeSet<i32> = caught_up.map(|(id, _)| *id).collect();
        let known = self.controlled.as_mut()?;
        wanted.insert(known.own);
        // With the same once more it becomes certain what was agreed.
        let is_certain = known.proposed.is_subset(&known.agreed);
        if (wanted == known.agreed && is_certain) || known.under_way.is_some() {
            return None;
        }
        known.proposed.extend(&wanted);
        known.under_way = Some(wanted.clone());
        Some((known.version, wanted))
    }

    /// It is not known what became of the last proposal.
    pub fn propose_again(&mut self) {
        if let Some(known) = &mut self.controlled {
            known.under_way = None;
        }
    }

    fn of(&mut self, id: i32, session: u64) -> Option<&mut Follower> {
        self.followers.get_mut(&id).filter(|follower| follower.session == session)
    }

    /// The connected slaves.
    pub fn followers(&self) -> impl Iterator<Item = (i32, &Follower)> {
        self.followers.iter().map(|(id, follower)| (*id, follower))
    }

    /// How many count, the master included.
    pub fn count(&self) -> usize {
        match &self.controlled {
            Some(known) => known.agreed.len(),
            None => 1 + self.followers.values().filter(|follower| follower.in_sync).count(),
        }
    }

    /// Enough count for what is asked.
    pub fn suffices(&self) -> bool {
        self.count() >= self.demands.replicas
    }

    /// How far all are that have to be waited for. `None`: nothing is asked of them, or too few count.
    pub fn marks(&mut self) -> Option<Marks> {
        let others = self.demands.replicas.saturating_sub(1);
        if others == 0 || !self.suffices() {
            return None;
        }
        let mark = |of: fn(&Follower) -> u64| {
            let mut marks = self.waited_for(of);
            marks.sort_unstable();
            let all = self.demands.all || self.controlled.is_some();
            let from_the_top = if all { marks.len() } else { others };
            marks.len().checked_sub(from_the_top).and_then(|at| marks.get(at).copied())
        };
        let flushed = mark(|f| f.flushed)?;
        let written = if self.controlled.is_some() { flushed } else { mark(|f| f.written)? };
        self.told = self.told.max(written);
        Some(Marks { written, flushed })
    }

    /// How far each is that counts, may count, or is to be proposed. One that counts and is not connected may have nothing.
    fn waited_for(&self, of: fn(&Follower) -> u64) -> Vec<u64> {
        let Some(known) = &self.controlled else {
            return self.followers.values().filter(|follower| follower.in_sync).map(of).collect();
        };
        let ids = known.agreed.union(&known.proposed).filter(|id| **id != known.own);
        let others = self.followers.iter().filter(|(id, follower)| {
            let is_known = known.agreed.contains(id) || known.proposed.contains(id);
            follower.in_sync && !is_known && self.is_member(**id)
        });
        let others = others.map(|(_, follower)| of(follower));
        ids.map(|id| self.followers.get(id).map_or(0, of)).chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn set(replicas: usize, all: bool) -> InSync {
        InSync::new(Demands { replicas, all, behind_max: ms(1000) }, 0)
    }

    fn ack(set: &mut InSync, id: i32, session: u64, acked: (u64, u64), log: (u64, u64), now: Duration) {
        let (acked, log) =
            (Marks { written: acked.0, flushed: acked.1 }, LogEnd { confirmed: log.0, end: log.1 });
        set.ack(id, session, acked, log, now);
    }

    fn marks(written: u64, flushed: u64) -> Option<Marks> {
        Some(Marks { written, flushed })
    }

    #[test]
    fn a_slave_counts_once_it_has_all_that_can_be_seen() {
        let mut set = set(2, false);
        assert_eq!((set.count(), set.suffices(), set.marks()), (1, false, None));
        set.join(1, 7, "a", 100, 900, ms(0)).unwrap();
        ack(&mut set, 1, 7, (300, 200), (500, 900), ms(1));
        assert_eq!((set.count(), set.marks()), (1, None));
        ack(&mut set, 1, 7, (500, 200), (500, 900), ms(2));
        assert_eq!((set.count(), set.marks()), (2, marks(500, 200)));
        // Acks come in any order, but what it has it has.
        ack(&mut set, 1, 7, (400, 400), (500, 900), ms(3));
        assert_eq!(set.marks(), marks(500, 400));
        set.leave(1, 6);
        assert_eq!(set.count(), 2, "another stream of it ended");
        set.leave(1, 7);
        assert_eq!(set.marks(), None);
    }

    #[test]
    fn as_many_are_waited_for_as_were_asked_for_or_all_that_count() {
        for (replicas, all, expected) in [(2, false, 300), (3, false, 200), (2, true, 100), (1, true, 0)] {
            let mut set = set(replicas, all);
            for (id, written) in [(1, 100), (2, 200), (3, 300)] {
                set.join(id, 1, "a", 0, 300, ms(0)).unwrap();
                ack(&mut set, id, 1, (written, written - 50), (100, 300), ms(1));
            }
            let expected =
                (replicas > 1).then_some(Marks { written: expected, flushed: expected.saturating_sub(50) });
            assert_eq!(set.marks(), expected, "{replicas} {all}");
        }
    }

    #[test]
    fn a_slave_that_is_behind_for_too_long_does_not_count_until_it_has_caught_up() {
        let mut set = set(2, true);
        set.join(1, 1, "a", 0, 100, ms(0)).unwrap();
        ack(&mut set, 1, 1, (100, 100), (100, 200), ms(10));
        // Always some bytes behind, but never for long.
        for step in 1..50 {
            let end = 100 + 100 * step;
            ack(&mut set, 1, 1, (end, end), (end, end + 100), ms(10 + 100 * step));
            assert!(set.expire(ms(10 + 100 * step)).is_empty());
        }
        assert!(set.expire(ms(5800)).is_empty());
        assert_eq!(set.expire(ms(6200)), [1]);
        assert!(set.expire(ms(6300)).is_empty() && !set.suffices());
        ack(&mut set, 1, 1, (5100, 5100), (5200, 5300), ms(6400));
        assert!(!set.suffices());
        ack(&mut set, 1, 1, (5300, 5300), (5300, 5300), ms(6500));
        assert!(set.suffices() && set.expire(ms(7000)).is_empty());
    }

    #[test]
    fn an_id_belongs_to_one_slave_at_a_time() {
        let mut set = set(2, false);
        set.join(1, 1, "a:1", 0, 0, ms(0)).unwrap();
        assert_eq!(set.join(1, 2, "b:1", 0, 0, ms(1)), Err("a:1".into()));
        // The same one once more: its former stream has not ended yet.
        set.join(1, 3, "a:1", 50, 50, ms(2)).unwrap();
        ack(&mut set, 1, 1, (900, 900), (0, 900), ms(3));
        set.leave(1, 1);
        assert_eq!(
            set.followers().map(|(id, follower)| (id, follower.written)).collect::<Vec<_>>(),
            [(1, 50)]
        );
    }

    #[test]
    fn who_may_be_elected_counts_by_what_its_device_has() {
        let mut set = InSync::new(Demands { replicas: 2, all: false, behind_max: ms(1000) }, 450);
        set.control(1, BTreeSet::from([1]), 1);
        set.join(2, 1, "a", 0, 500, ms(0)).unwrap();
        ack(&mut set, 2, 1, (500, 400), (450, 500), ms(1));
        assert_eq!(set.propose(), None, "without its power it would have less than was seen");
        ack(&mut set, 2, 1, (500, 450), (450, 500), ms(2));
        assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2]))));
        set.control(1, BTreeSet::from([1, 2]), 2);
        assert_eq!(set.marks(), marks(450, 450));
    }

    #[test]
    fn who_lacks_what_may_have_been_acknowledged_is_not_proposed() {
        let mut set = set(2, false);
        set.control(1, BTreeSet::from([1]), 1);
        set.join(2, 1, "a", 0, 300, ms(0)).unwrap();
        ack(&mut set, 2, 1, (300, 300), (300, 300), ms(1));
        assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2]))));
        // What became of that is not known; another caught up meanwhile, and is proposed too. The first one is agreed on.
        set.propose_again();
        set.join(3, 1, "a", 0, 300, ms(2)).unwrap();
        ack(&mut set, 3, 1, (300, 300), (300, 300), ms(2));
        assert_eq!(set.propose(), Some((1, BTreeSet::from([1, 2, 3]))));
        set.control(1, BTreeSet::from([1, 2]), 2);
        ack(&mut set, 2, 1, (500, 500), (300, 500), ms(900));
        assert_eq!(set.marks(), marks(300, 300), "3 is to be proposed again, and waited for");
        assert_eq!(set.expire(ms(1500)), [3]);
        assert_eq!(set.marks(), marks(500, 500), "3 does not count");
        assert_eq!(set.propose(), None, "3 lacks what is acknowledged now");
        ack(&mut set, 3, 1, (500, 400), (500, 500), ms(1501));
        assert_eq!(set.propose(), None);
        ack(&mut set, 3, 1, (500, 500), (500, 500), ms(1502));
        assert_eq!(set.propose(), Some((2, BTreeSet::from([1, 2, 3]))));
        // Nor one that has all that can be seen, while the lease is over and nothing more is shown.
        set.control(1, BTreeSet::from([1, 2]), 3);
        set.leave(3, 1);
        ack(&mut set, 2, 1, (900, 900), (500, 900), ms(1503));
        assert_eq!(set.marks(), marks(900, 900));
        set.join(3, 2, "a", 600, 900, ms(1504)).unwrap();
        ack(&mut set, 3, 2, (600, 600), (500, 900), ms(1505));
        assert_eq!(set.propose(), None);
    }

    #[test]
    fn one_that_is_a_little_behind_for_ever_comes_to_count() {
        let mut set = set(2, false);
        set.join(2, 1, "a", 0, 100, ms(0)).unwrap();
        set.join(3, 1, "a", 0, 100, ms(0)).unwrap();
        set.control(1, BTreeSet::from([1, 2]), 5);
        // 3 has each time what 2 had 100 ms before, and the log goes on.
        let mut proposed = None;
        for step in 1..20 {
            let end = 100 + 100 * step;
            ack(&mut set, 2, 1, (end, end), (end - 100, end), ms(100 * step));
            set.marks();
            proposed = proposed.or_else(|| set.propose());
            ack(&mut set, 3, 1, (end - 100, end - 100), (end - 100, end), ms(100 * step));
            set.marks();
            proposed = proposed.or_else(|| set.propose());
        }
        assert_eq!(proposed, Some((5, BTreeSet::from([1, 2, 3]))));
        // It has nothing any more: until then it holds up the others, as whoever counts does, and no longer.
        assert_eq!(set.expire(ms(5000)), [2, 3]);
    }

    #[test]
    fn who_may_be_elected_is_waited_for() {
        let mut set = set(2, false);
        for (id, written) in [(2, 500), (3, 300)] {
            set.join(id, 1, "a", 0, 500, ms(0)).unwrap();
            ack(&mut set, id, 1, (written, written), (500, 500), ms(1));
        }
        set.control(1, BTreeSet::from([1, 2]), 5);
        assert_eq!((set.count(), set.marks()), (2, marks(500, 500)));
        assert_eq!(set.propose(), None, "3 has not caught up");
        ack(&mut set, 3, 1, (500, 500), (500, 600), ms(2));
        ack(&mut set, 2, 1, (600, 600), (500, 600), ms(2));
        assert_eq!(set.propose(), Some((5, BTreeSet::from([1, 2, 3]))));
        assert_eq!(set.marks(), marks(500, 500), "3 counts from when it was proposed");
        assert_eq!(set.propose(), None, "that is under way");
        // The answer is lost, and 3 is gone: it may have become part of what counts all the same.
        set.leave(3, 1);
        set.propose_again();
        assert_eq!(set.propose(), Some((5, BTreeSet::from([1, 2]))), "what counts, as far as is known");
        assert_eq!(set.marks(), marks(0, 0));
        set.control(1, BTreeSet::from([1, 2, 3]), 6);
        assert_eq!(set.marks(), marks(0, 0));
        assert_eq!(set.propose(), Some((6, BTreeSet::from([1, 2]))));
        assert_eq!(set.marks(), marks(0, 0), "not before that is agreed");
        set.control(1, BTreeSet::from([1, 2]), 7);
        assert_eq!(set.marks(), marks(600, 600));
        set.control(1, BTreeSet::from([1, 3]), 6);
        assert_eq!(set.marks(), marks(600, 600), "old news");
        set.leave(2, 1);
        assert_eq!(set.propose(), Some((7, BTreeSet::from([1]))));
        set.control(1, BTreeSet::from([1]), 8);
        assert_eq!((set.count(), set.suffices(), set.marks()), (1, false, None));
    }

    #[test]
    fn a_slave_that_is_no_member_is_neither_proposed_nor_waited_for() {
        let mut set = InSync::new(Demands { replicas: 2, all: false, behind_max: ms(1000) }, 0);
        set.control(1, BTreeSet::from([1]), 1);
        set.set_members(BTreeSet::from([1, 2]));
        for id in [2, 9] {
            set.join(id, 1, "a", 0, 500, ms(0)).unwrap();
            ack(&mut set, id, 1, (500, 500), (500, 500), ms(1));
        }
        assert_eq!(
            set.propose(),
            Some((1, BTreeSet::from([1, 2]))),
            "the controllers would refuse 9, and 2 with it"
        );
        set.control(1, BTreeSet::from([1, 2]), 2);
        ack(&mut set, 2, 1, (600, 600), (500, 600), ms(2));
        assert_eq!(set.marks(), marks(600, 600), "9 has 500");
        set.set_members(BTreeSet::from([1, 2, 9]));
        ack(&mut set, 9, 1, (600, 600), (600, 600), ms(3));
        assert_eq!(set.propose(), Some((2, BTreeSet::from([1, 2, 9]))));
    }
}
