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
/// A broker that has just come to the set may follow before its master has heard of it.
const STRANGE_AFTER: Duration = Duration::from_secs(5);

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
    /// When it connected; `None`: it was told of as [`InSync::strangers`] do.
    joined: Option<Duration>,
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
    /// They have said who counts, or will.
    has_controllers: bool,
    controlled: Option<Controlled>,
    /// Whom controllers know as brokers of the set; nobody else is proposed, or waited for. `None`: they have not said it.
    members: Option<BTreeSet<i32>>,
    /// So much may have been acknowledged: all with which the master began, and the furthest that [`Self::marks`] ever said.
    told: u64,
}

impl InSync {
    /// Nobody follows yet; the log of this master, which begins now, ends at `end`.
    pub fn new(demands: Demands, end: u64) -> Self {
        let (followers, has_controllers) = (BTreeMap::new(), false);
        Self { demands, followers, has_controllers, controlled: None, members: None, told: end }
    }

    /// Controllers say who counts; before they do nobody does.
    pub fn of_controllers(self) -> Self {
        Self { has_controllers: true, ..self }
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
            joined: Some(now),
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
        let controlled = self.has_controllers;
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
        self.has_controllers = true;
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

    /// Who has followed for a while and is no broker of the set for the controllers: it never counts. Each stream is told of once.
    pub fn strangers(&mut self, now: Duration) -> Vec<(i32, String)> {
        let Some(members) = &self.members else { return Vec::new() };
        let is_strange = |joined: &mut Duration| now.saturating_sub(*joined) > STRANGE_AFTER;
        let others = self.followers.iter_mut().filter(|(id, _)| !members.contains(id));
        let told = others.filter_map(|(id, follower)| {
            follower.joined.take_if(is_strange).map(|_| (*id, follower.address.clone()))
        });
        told.collect()
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
            None if self.has_controllers => 1,
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
        if others == 0 || !self.suffices() || (self.has_controllers && self.controlled.is_none()) {
            return None;
        }
        let mark = |of: fn(&Follower) -> u64| {
            let mut marks = self.waited_for(of);
            marks.sort_unstable();
            let all = self.demands.all || self.has_controllers;
            let from_the_top = if all { marks.len() } else { others };
            marks.len().checked_sub(from_the_top).and_then(|at| marks.get(at).copied())
        };
        let flushed = mark(|f| f.flushed)?;
        let written = if self.has_controllers { flushed } else { mark(|f| f.written)? };
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
mod tests;
