//! A controller with an empty directory may have been in the group before: what it promised to which leader it has forgotten. So
//! until it votes it takes nothing from a leader that it may have helped to depose: not its entries either, for a leader counts who
//! has them. What is lost comes back from the others, who were promised the same. Its task, and the answers, are on the controller's threads.
//!
//! A leader that it helped to elect, or whose entries it helped to agree on, is known to all others of some majority. With as many others as a
//! majority has members one of those is heard; of three controllers that is both of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::{LeaderId, LogId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::Consensus;

const RETRY: Duration = Duration::from_millis(200);
/// A group that starts needs less.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// What a controller knows, of its own disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// It has forgotten nothing.
    pub(super) votes: bool,
    /// It follows no leader before this one, and neither did anybody with whose vote another one was elected.
    pub(super) leader: LeaderId<u64>,
    /// Since when the controllers are these.
    pub(super) since: Option<LogId<u64>>,
    /// Whose majority decides; two while one replaces the other.
    pub(super) voters: Vec<BTreeSet<u64>>,
    /// Where they are.
    pub(super) addresses: BTreeMap<u64, String>,
}

/// The first leader that may be followed; `None`: that is not known yet.
#[derive(Debug, Default)]
pub(super) struct FirstLeader(Mutex<Option<LeaderId<u64>>>);

/// What controller `own`, which has forgotten it, would know. `None`: too few of the others have answered.
fn recalled(own: u64, others: &BTreeMap<u64, Memory>) -> Option<LeaderId<u64>> {
    let remembering: BTreeMap<_, _> =
        others.iter().filter(|(id, other)| **id != own && other.votes).collect();
    // Who has a later one of the lists was in a majority of the one before, or knows a later leader by it.
    let newest = remembering.values().max_by_key(|other| other.since)?;
    let is_heard = |voters: &BTreeSet<u64>| {
        let heard = voters.iter().filter(|id| remembering.contains_key(id)).count();
        heard > voters.len() / 2
    };
    let enough = !newest.voters.is_empty() && newest.voters.iter().all(is_heard);
    remembering.values().map(|other| other.leader).max().filter(|_| enough)
}

impl Consensus {
    /// Asks the others, as long as this controller does not vote, until it is known whom it may follow.
    pub(in crate::controller) async fn recall(&self) {
        let (own, began) = (self.options.self_id, Instant::now());
        let mut addresses = self.options.peers.clone();
        let (mut heard, mut told) = (BTreeMap::new(), false);
        while !self.directory.votes() {
            for (id, address) in addresses.clone().into_iter().filter(|(id, _)| *id != own) {
                let Ok(memory) = self.network.remember((id, &address)).await else { continue };
                // Its own list may be older than the group's.
                memory.addresses.iter().for_each(|(id, address)| {
                    addresses.entry(*id).or_insert_with(|| address.clone());
                });
                heard.insert(id, memory);
            }
            if let Some(first) = recalled(own, &heard) {
                tracing::info!(term = first.term, "its directory is new: follows leaders from this term on");
                *self.first_leader.0.lock() = Some(first);
                return;
            }
            if began.elapsed() > TOLD_AFTER && !told {
                told = true;
                let remember = heard.iter().filter(|(_, memory)| memory.votes).map(|(id, _)| *id);
                let heard = remember.collect::<Vec<_>>();
                tracing::warn!(
                    ?heard,
                    "its directory is new, and too few of the other controllers have said what may have been agreed on with it: it \
                     takes part when more are there; if two disks of three are lost, one has to be found again"
                );
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether something may be taken from this leader.
    pub(super) fn may_follow(&self, leader: LeaderId<u64>) -> Result<(), Status> {
        if self.directory.votes() {
            return Ok(());
        }
        match *self.first_leader.0.lock() {
            Some(first) if leader >= first => Ok(()),
            Some(first) => {
                let why =
                    format!("the leader of term {} was deposed: another is at {}", leader.term, first.term);
                Err(Status::failed_precondition(why))
            }
            None => {
                let why = "its directory is new, and it has not heard yet what it may have agreed to";
                Err(Status::unavailable(why))
            }
        }
    }

    /// For one that has forgotten it.
    pub(super) async fn memory(&self) -> Result<Memory, Status> {
        // In this order: what it knows from then on is on its disk.
        let votes = self.directory.votes();
        let read = self.raft.with_raft_state(move |state| {
            let membership = state.membership_state.effective();
            let nodes = membership.membership().nodes();
            Memory {
                votes,
                leader: state.vote_ref().leader_id,
                since: *membership.log_id(),
                voters: membership.membership().get_joint_config().clone(),
                addresses: nodes.map(|(id, node)| (*id, node.addr.clone())).collect(),
            }
        });
        read.await.map_err(|error| Status::unavailable(format!("the controller has stopped: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(votes: bool, leader: (u64, u64), since: u64, voters: &[&[u64]]) -> Memory {
        Memory {
            votes,
            leader: LeaderId::new(leader.0, leader.1),
            since: Some(LogId::new(LeaderId::new(1, 1), since)),
            voters: voters.iter().map(|ids| ids.iter().copied().collect()).collect(),
            addresses: BTreeMap::new(),
        }
    }

    #[test]
    fn every_majority_that_it_may_have_been_part_of_is_heard() {
        let three: &[&[u64]] = &[&[1, 2, 3]];
        let five: &[&[u64]] = &[&[1, 2, 3, 4, 5]];
        let grows: &[&[u64]] = &[&[1], &[1, 2, 3]];
        let (new, old) = (memory(false, (9, 2), 0, &[]), |term, voters| memory(true, (term, 1), 1, voters));
        type Case<'a> = (&'a [(u64, Memory)], Option<(u64, u64)>);
        let cases: [Case; 11] = [
            (&[], None),
            (&[(1, old(5, three))], None),
            (&[(1, old(5, three)), (2, memory(true, (6, 2), 1, three))], Some((6, 2))),
            // Two may lead in one term, one after the other.
            (&[(1, memory(true, (6, 1), 1, three)), (2, memory(true, (6, 2), 1, three))], Some((6, 2))),
            // It has forgotten everything too.
            (&[(1, old(5, three)), (2, new.clone())], None),
            (&[(1, old(5, five)), (2, old(5, five))], None),
            (&[(1, old(5, five)), (2, old(5, five)), (4, old(7, five))], Some((7, 1))),
            // It is added: it was not asked for anything before.
            (&[(1, old(5, &[&[1]])), (2, new.clone())], Some((5, 1))),
            (&[(1, old(5, grows)), (2, new.clone())], None),
            // The first one does not know yet that there are more.
            (&[(1, old(5, &[&[1]])), (2, memory(true, (5, 1), 2, grows))], Some((5, 1))),
            // Nobody is in a group yet.
            (&[(1, memory(true, (0, 0), 0, &[])), (2, memory(true, (0, 0), 0, &[]))], None),
        ];
        for (others, expected) in cases {
            let heard = others.iter().cloned().collect();
            let expected = expected.map(|(term, id)| LeaderId::new(term, id));
            assert_eq!(recalled(3, &heard), expected, "{others:?}");
        }
    }
}
