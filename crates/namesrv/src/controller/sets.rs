//! Who is master of each broker set, and who may become it: the state that the controllers agree on. Pure; the same
//! commands in the same order give the same state on every controller (`raft.rs` sees to the order).
//!
//! What holds after every command: epochs of a set only grow, and lie behind all that its members' logs had when they joined; there
//! is at most one master for an epoch; a master is a member of its `in_sync`; and `in_sync` grows only in the epoch, and from the
//! version, that its master named. A message that was acknowledged as replicated is with every member of `in_sync`, so each of
//! them may be elected. An election counts only in the term of the leader that decided it: what an earlier one knew of leases may be
//! out of date.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Sets, and members of a set: more are refused, so that all of them fit in one message.
pub const SETS_MAX: usize = 1024;
/// See [`SETS_MAX`].
pub const MEMBERS_MAX: usize = 32;
/// A log cannot have had more masters than that.
pub const EPOCH_MAX: u32 = u32::MAX / 2;

/// A broker of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its internal address, `host:port`.
    pub address: String,
    /// `brokerElectionPriority`: of two that are equally complete the one with the lower number is elected.
    pub priority: i32,
}

/// One broker set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerSet {
    /// `brokerClusterName`
    pub cluster: String,
    /// Of the last master that was elected, or of the logs that the set began with.
    pub epoch: u32,
    /// The last epoch that the log of a member had when it joined: the next master's is a later one. A member may come from where
    /// there were masters that nobody here knows of.
    pub epoch_before: u32,
    /// The log of whoever counts ends in this epoch or a later one; one that ends before is that of a new disk, not the one that
    /// was agreed on. The master has the beginning of its epoch on its device before it says who is in sync.
    #[serde(default)]
    pub log_epoch: u32,
    /// Who it is; `None`: nobody was elected yet.
    pub master: Option<i32>,
    /// Who has everything that was acknowledged, by `brokerId`.
    pub in_sync: BTreeSet<i32>,
    /// How often `in_sync` has changed.
    pub version: u64,
    /// Everybody, by `brokerId`.
    pub members: BTreeMap<i32, Member>,
    /// Of these, who is to be stopped, as an operator said: they are elected last.
    #[serde(default)]
    pub drained: BTreeSet<i32>,
    /// When the last master was elected, milliseconds since 1970.
    pub elected_ms: u64,
    /// Why.
    pub reason: String,
}

/// What changes the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A broker is there, for the first time or with another address.
    Join {
        /// `brokerName`
        set: String,
        /// `brokerClusterName`
        cluster: String,
        /// `brokerId`
        id: i32,
        /// What is known of it.
        member: Member,
        /// The last epoch in its log.
        epoch: u32,
    },
    /// A broker becomes the master of the next epoch.
    Elect {
        /// `brokerName`
        set: String,
        /// The epoch that ends.
        epoch: u32,
        /// In which the leader that decided it leads; in another it changes nothing.
        term: u64,
        /// `brokerId`
        master: i32,
        /// Though it may not have everything (`enableElectUncleanMaster`, or there was no master before).
        unclean: bool,
        /// The last epoch in its log, as it said.
        #[serde(default)]
        log_epoch: u32,
        /// Milliseconds since 1970.
        at_ms: u64,
        /// Why, in words.
        reason: String,
    },
    /// The master says who has everything.
    Sync {
        /// `brokerName`
        set: String,
        /// Its epoch.
        epoch: u32,
        /// The version that it knows.
        version: u64,
        /// Who, itself included.
        in_sync: BTreeSet<i32>,
    },
    /// A broker is to be stopped, or is not any more.
    Drain {
        /// `brokerName`
        set: String,
        /// `brokerId`
        id: i32,
        /// Which of the two.
        drained: bool,
    },
    /// A broker is gone for good.
    Remove {
        /// `brokerName`
        set: String,
        /// `brokerId`
        id: i32,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// Nobody of the set has joined.
    #[error("no broker set {0:?} is known")]
    UnknownSet(String),
    /// It has not joined.
    #[error("broker set {set:?} has no member {id}")]
    UnknownMember {
        /// `brokerName`
        set: String,
        /// `brokerId`
        id: i32,
    },
    /// The set belongs to another cluster.
    #[error("broker set {set:?} belongs to cluster {cluster:?}")]
    OtherCluster {
        /// `brokerName`
        set: String,
        /// `brokerClusterName`
        cluster: String,
    },
    /// It is about an epoch, or a version, that is over.
    #[error("broker set {set:?} is at epoch {epoch}, version {version}")]
    Outdated {
        /// `brokerName`
        set: String,
        /// The one now.
        epoch: u32,
        /// The one now.
        version: u64,
    },
    /// It may not have everything that was acknowledged.
    #[error("broker {id} of set {set:?} is not in sync; electing it could lose what was acknowledged")]
    NotInSync {
        /// `brokerName`
        set: String,
        /// `brokerId`
        id: i32,
    },
    /// There is nobody who could say.
    #[error("broker set {0:?} has no master yet")]
    NoMaster(String),
    /// Of the consensus: somebody else leads since.
    #[error("it was decided in term {decided}, and this is term {term}")]
    OtherTerm {
        /// When it was decided.
        decided: u64,
        /// The one of the command.
        term: u64,
    },
    /// There are too many already.
    #[error("there are {0} already, as many as there may be")]
    TooMany(usize),
    /// No log has that.
    #[error("{0} is no epoch of a log")]
    IllegalEpoch(u32),
    /// A master cannot be missing from those in sync, nor be removed.
    #[error("broker {id} is the master of set {set:?}")]
    IsMaster {
        /// `brokerName`
        set: String,
        /// `brokerId`
        id: i32,
    },
}

/// All broker sets, by `brokerName`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sets(pub BTreeMap<String, BrokerSet>);

impl Sets {
    /// One set.
    pub fn get(&self, set: &str) -> Option<&BrokerSet> {
        self.0.get(set)
    }

    /// Follows one command of that term; `Err`: it changed nothing.
    pub fn apply(&mut self, command: &Command, term: u64) -> Result<(), Refused> {
        match command {
            Command::Join { set, cluster, id, member, epoch } => self.join(set, cluster, *id, member, *epoch),
            Command::Elect { term: decided, .. } if *decided != term => {
                Err(Refused::OtherTerm { decided: *decided, term })
            }
            Command::Elect { set, epoch, master, unclean, log_epoch, at_ms, reason, .. } => {
                let own = self.at(set, *epoch, None)?;
                own.elect(set, *master, *unclean)?;
                (own.log_epoch, own.elected_ms, own.reason) = (*log_epoch, *at_ms, reason.clone());
                Ok(())
            }
            Command::Sync { set, epoch, version, in_sync } => {
                let own = self.at(set, *epoch, Some(*version))?;
                let master = own.master.ok_or_else(|| Refused::NoMaster(set.clone()))?;
                if !in_sync.contains(&master) {
                    return Err(Refused::IsMaster { set: set.clone(), id: master });
                }
                if let Some(id) = in_sync.iter().find(|id| !own.members.contains_key(id)) {
                    return Err(Refused::UnknownMember { set: set.clone(), id: *id });
                }
                own.in_sync.clone_from(in_sync);
                own.log_epoch = own.epoch;
                own.version += 1;
                Ok(())
            }
            Command::Drain { set, id, drained } => self.drain(set, *id, *drained),
            Command::Remove { set, id } => self.remove(set, *id),
        }
    }

    fn join(
        &mut self,
        set: &str,
        cluster: &str,
        id: i32,
        member: &Member,
        epoch: u32,
    ) -> Result<(), Refused> {
        if epoch > EPOCH_MAX {
            return Err(Refused::IllegalEpoch(epoch));
        }
        if self.0.len() >= SETS_MAX && !self.0.contains_key(set) {
            return Err(Refused::TooMany(SETS_MAX));
        }
        let own = self
            .0
            .entry(set.to_owned())
            .or_insert_with(|| BrokerSet { cluster: cluster.to_owned(), ..BrokerSet::default() });
        if own.cluster != cluster {
            return Err(Refused::OtherCluster { set: set.to_owned(), cluster: own.cluster.clone() });
        }
        if own.members.len() >= MEMBERS_MAX && !own.members.contains_key(&id) {
            return Err(Refused::TooMany(MEMBERS_MAX));
        }
        own.members.insert(id, member.clone());
        own.epoch_before = own.epoch_before.max(epoch);
        if own.master.is_none() {
            // It had masters before it had controllers.
            own.epoch = own.epoch_before;
        }
        Ok(())
    }

    fn drain(&mut self, set: &str, id: i32, drained: bool) -> Result<(), Refused> {
        let own = self.0.get_mut(set).ok_or_else(|| Refused::UnknownSet(set.to_owned()))?;
        if !own.members.contains_key(&id) {
            return Err(Refused::UnknownMember { set: set.to_owned(), id });
        }
        let _ = if drained { own.drained.insert(id) } else { own.drained.remove(&id) };
        Ok(())
    }

    /// The master goes last; the set goes with it.
    fn remove(&mut self, set: &str, id: i32) -> Result<(), Refused> {
        let own = self.0.get_mut(set).ok_or_else(|| Refused::UnknownSet(set.to_owned()))?;
        if !own.members.contains_key(&id) {
            return Err(Refused::UnknownMember { set: set.to_owned(), id });
        }
        if own.members.len() == 1 {
            self.0.remove(set);
            return Ok(());
        }
        if own.master == Some(id) {
            return Err(Refused::IsMaster { set: set.to_owned(), id });
        }
        own.members.remove(&id);
        own.drained.remove(&id);
        own.version += u64::from(own.in_sync.remove(&id));
        Ok(())
    }

    /// The set, if it is at that epoch and version.
    fn at(&mut self, set: &str, epoch: u32, version: Option<u64>) -> Result<&mut BrokerSet, Refused> {
        let own = self.0.get_mut(set).ok_or_else(|| Refused::UnknownSet(set.to_owned()))?;
        if own.epoch != epoch || version.is_some_and(|version| version != own.version) {
            return Err(Refused::Outdated { set: set.to_owned(), epoch: own.epoch, version: own.version });
        }
        Ok(own)
    }
}

impl BrokerSet {
    fn elect(&mut self, set: &str, master: i32, unclean: bool) -> Result<(), Refused> {
        if !self.members.contains_key(&master) {
            return Err(Refused::UnknownMember { set: set.to_owned(), id: master });
        }
        if !self.in_sync.contains(&master) && !unclean {
            return Err(Refused::NotInSync { set: set.to_owned(), id: master });
        }
        self.epoch = self.epoch.max(self.epoch_before) + 1;
        self.master = Some(master);
        // The others count again when they have what this one has.
        self.in_sync = BTreeSet::from([master]);
        self.version += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
