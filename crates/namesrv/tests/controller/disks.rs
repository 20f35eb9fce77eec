//! Controllers that come back without their disks, or with what is left of them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use karman_remoting::proto::karman::ConsentMessage;
use openraft::raft::{VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, LogId, Vote};
use serde_json::json;
use tonic::Status;

use super::broker::FakeBroker;
use super::cluster::{Cluster, eventually, with_secret};
use super::run;

/// Asks a controller for its vote, as a candidate that has everything would; whether it gives it.
async fn vote(cluster: &Cluster, id: u64, candidate: u64) -> Result<bool, Status> {
    let last = LogId::new(CommittedLeaderId::new(999, candidate), 1_000_000);
    let message = VoteRequest::new(Vote::new(1000, candidate), Some(last));
    let group = cluster.config(id).controller_dleger_group;
    let body = serde_json::to_vec(&json!({ "group": group, "to": id, "message": message })).unwrap();
    let request = with_secret(ConsentMessage { kind: "vote".into(), body });
    let answer = cluster.client(id).consent(request).await?.into_inner();
    let answer: VoteResponse<u64> = serde_json::from_slice(&answer.body).unwrap();
    Ok(answer.vote_granted)
}

/// None of them, as long as it takes the first controller to ask the others many times.
async fn nobody_votes(cluster: &Cluster, ids: &[u64]) {
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        for &id in ids {
            let refused = vote(cluster, id, 3).await.unwrap_err();
            assert!(refused.message().contains("has not caught up"), "{id}: {refused}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Cluster {
    async fn stop_all(&mut self) {
        for id in self.running.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    /// Its directory is put aside; where it is.
    fn lose_disk(&self, id: u64) -> PathBuf {
        let aside = self.directory(id).with_extension("lost");
        std::fs::rename(self.directory(id), &aside).unwrap();
        aside
    }
}

/// Three that have agreed on a set, and are stopped.
async fn agreed() -> Cluster {
    let mut cluster = Cluster::of_three();
    let broker = FakeBroker::start(&cluster, 1);
    broker.acknowledging().await;
    drop(broker);
    // All three have it: none of them may have been behind.
    eventually("all know the set", async || {
        for id in 1..=3 {
            let answer = cluster.describe(id).await?;
            let applied = answer.controllers.iter().map(|own| own.applied).collect::<Vec<_>>();
            let leads = answer.leader == cluster.addresses[&id];
            if leads && applied.iter().any(|index| *index != applied[0]) {
                return None;
            }
        }
        Some(())
    })
    .await;
    cluster.stop_all().await;
    cluster
}

#[test]
fn a_controller_that_has_lost_its_disk_votes_when_it_has_everything_again() {
    run(async {
        let mut cluster = agreed().await;
        cluster.lose_disk(1);
        cluster.start(1);
        let refused = vote(&cluster, 1, 2).await.unwrap_err();
        assert!(refused.message().contains("has not caught up"), "{refused}");
        // Neither has the lowest id formed a group of its own.
        assert_eq!(cluster.leader().await, None);
        cluster.start(2);
        cluster.start(3);
        let leader = cluster.led().await;
        assert_ne!(leader, 1, "it has not stood before it had everything");
        eventually("it votes", async || vote(&cluster, 1, 2).await.ok()).await;
        // Of the two that never lost anything one goes: the third counts.
        let other = if leader == 2 { 3 } else { 2 };
        cluster.stop(other).await;
        cluster.led().await;
        let set = eventually("the set is known", async || cluster.set().await).await;
        assert_eq!((set.master, set.members.len()), (Some(1), 1));
    });
}

/// The leader knows how far the others were, and one of them is not any more.
#[test]
fn a_controller_that_has_lost_its_disk_catches_up_with_a_leader_that_goes_on() {
    run(async {
        let mut cluster = Cluster::of_three();
        let broker = FakeBroker::start(&cluster, 1);
        broker.acknowledging().await;
        let leader = cluster.led().await;
        let lost = if leader == 3 { 2 } else { 3 };
        cluster.stop(lost).await;
        cluster.lose_disk(lost);
        cluster.start(lost);
        let applied = async || {
            let answer = cluster.describe(leader).await?;
            let of = |id| answer.controllers.iter().find(|own| own.id == id).map(|own| own.applied);
            (of(lost)? > 0 && of(lost) == of(leader)).then_some(())
        };
        eventually("it has everything", applied).await;
        assert_eq!(cluster.leader().await, Some(leader), "nobody else had to be elected");
        eventually("it votes", async || vote(&cluster, lost, leader).await.ok()).await;
    });
}

/// It was away when another was elected, takes itself for the leader still, and the one that it reaches has forgotten the other.
#[test]
fn a_deposed_leader_and_a_controller_that_has_lost_its_disk_agree_on_nothing() {
    run(async {
        let mut cluster = Cluster::of_three();
        let first = FakeBroker::start(&cluster, 1);
        first.acknowledging().await;
        let deposed = cluster.led().await;
        cluster.stop(deposed).await;
        let second = FakeBroker::start(&cluster, 2);
        let members = async |count| cluster.set().await.filter(|set| set.members.len() == count);
        eventually("the others have agreed on a second member", async || members(2).await).await;
        drop((first, second));
        cluster.stop_all().await;
        let lost = if deposed == 3 { 2 } else { 3 };
        cluster.lose_disk(lost);
        cluster.start(deposed);
        cluster.start(lost);
        nobody_votes(&cluster, &[lost]).await;
        assert_eq!(cluster.leader().await, None, "a majority agrees on something else");
        cluster.start(6 - deposed - lost);
        cluster.led().await;
        let set = eventually("the set is known", async || cluster.set().await).await;
        assert_eq!(set.members.len(), 2, "what was agreed on is forgotten");
        eventually("it votes", async || vote(&cluster, lost, deposed).await.ok()).await;
    });
}

#[test]
fn two_lost_disks_of_three_form_no_new_group() {
    run(async {
        let mut cluster = agreed().await;
        let aside = cluster.lose_disk(1);
        cluster.lose_disk(2);
        for id in [1, 2] {
            cluster.start(id);
        }
        // The first asks the others, as long as not all have answered.
        nobody_votes(&cluster, &[1, 2]).await;
        // The one that knows what was agreed is no majority, and nobody joins a group without it.
        cluster.start(3);
        nobody_votes(&cluster, &[1, 2]).await;
        assert_eq!(cluster.leader().await, None);
        // One of the disks is found again.
        cluster.stop(1).await;
        std::fs::remove_dir_all(cluster.directory(1)).unwrap();
        std::fs::rename(aside, cluster.directory(1)).unwrap();
        cluster.start(1);
        cluster.led().await;
        let set = eventually("the set is known", async || cluster.set().await).await;
        assert_eq!(set.master, Some(1));
        eventually("the second votes again", async || vote(&cluster, 2, 1).await.ok()).await;
    });
}

#[test]
fn a_directory_that_is_another_controllers_or_damaged_is_refused() {
    run(async {
        let mut cluster = agreed().await;
        let aside = cluster.lose_disk(1);
        std::fs::rename(cluster.directory(2), cluster.directory(1)).unwrap();
        let error = cluster.try_start(1).unwrap_err().to_string();
        assert!(error.contains("belongs to controller 2") && error.contains("controllerSelfId"), "{error}");
        std::fs::rename(cluster.directory(1), cluster.directory(2)).unwrap();
        std::fs::rename(aside, cluster.directory(1)).unwrap();
        // In front of what is valid: not a torn end.
        let log = cluster.directory(1).join("log");
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&log, bytes).unwrap();
        let error = cluster.try_start(1).unwrap_err().to_string();
        assert!(error.contains("damaged at byte") && error.contains("start with an empty one"), "{error}");
        cluster.start(2);
        cluster.start(3);
        cluster.led().await;
    });
}
