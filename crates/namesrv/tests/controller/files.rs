//! What is on disk: after a restart, after a crash, after damage, and when it is gone.

use karman_namesrv::controller::OpenError;
use karman_remoting::proto::karman::SetState;

use crate::broker::FakeBroker;
use crate::cluster::{Cluster, eventually};
use crate::{master_and_slave, run};

/// What is agreed on, without what only the leader knows.
fn agreed(set: SetState) -> SetState {
    let members = set.members.into_iter().map(|mut member| {
        (member.alive, member.log_epoch, member.log_end) = (false, 0, 0);
        member
    });
    SetState { members: members.collect(), ..set }
}

#[test]
fn a_restart_of_all_keeps_everything() {
    run(async {
        let mut cluster = Cluster::of_three();
        let brokers = master_and_slave(&cluster).await;
        let before = agreed(cluster.set().await.unwrap());
        drop(brokers);
        for id in 1..=3 {
            cluster.stop(id).await;
        }
        for id in [3, 2, 1] {
            cluster.start(id);
        }
        let after = eventually("the sets", async || cluster.set().await).await;
        assert_eq!(agreed(after), before);
    });
}

#[test]
fn snapshots_take_the_place_of_commands() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        cluster.stop(3).await;
        // More than a snapshot stands for, and more than a follower is sent one by one.
        for _ in 0..1300 {
            master.in_sync(&[1]).await;
            master.in_sync(&[1, 2]).await;
        }
        let before = agreed(cluster.set().await.unwrap());
        cluster.start(3);
        for id in [1, 2] {
            let log = std::fs::metadata(cluster.directory(id).join("log")).unwrap().len();
            assert!(cluster.directory(id).join("snapshot").exists() && log < 600_000, "{log}");
        }
        let follows = async || {
            let metrics = cluster.http(3, "/metrics");
            let line = metrics.lines().find(|line| line.starts_with("karman_controller_applied")).unwrap();
            let applied: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            (applied > 2600).then_some(())
        };
        eventually("3 follows", follows).await;
        drop((master, slave));
        for id in 1..=3 {
            cluster.stop(id).await;
        }
        for id in 1..=3 {
            cluster.start(id);
        }
        let after = eventually("the sets", async || cluster.set().await).await;
        assert_eq!(agreed(after), before);
    });
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused_with_its_place() {
    run(async {
        let mut cluster = Cluster::new(1, 1);
        cluster.start(1);
        let broker = FakeBroker::start(&cluster, 1);
        broker.acknowledging().await;
        drop(broker);
        cluster.stop(1).await;
        let path = cluster.directory(1).join("log");
        let mut bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&bytes[..], b"\x30\x00\x00\x00torn"].concat()).unwrap();
        cluster.start(1);
        eventually("the sets", async || cluster.set().await.filter(|set| set.master == Some(1))).await;
        cluster.stop(1).await;
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = cluster.try_start(1).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("damaged at byte") && error.contains("start with an empty one"), "{error}");
    });
}

#[test]
fn a_directory_is_used_by_one_process_and_by_the_controller_that_it_belongs_to() {
    run(async {
        let mut cluster = Cluster::new(2, 1);
        cluster.start(1);
        cluster.led().await;
        let directory = cluster.config(1).controller_store_path;
        let mut other = cluster.config(2);
        other.controller_store_path = directory;
        let error = karman_namesrv::start(&other).unwrap_err().to_string();
        assert!(error.contains("another process uses"), "{error}");
        cluster.stop(1).await;
        let error = karman_namesrv::start(&other).unwrap_err().to_string();
        assert!(
            error.contains("belongs to controller 1 of group \"karman\", this is controller 2"),
            "{error}"
        );
        let mut other = cluster.config(1);
        other.controller_dleger_group = "other".into();
        let error = karman_namesrv::start(&other).unwrap_err().to_string();
        assert!(error.contains("this is controller 1 of group \"other\""), "{error}");
        let _: fn(std::path::PathBuf) -> OpenError = OpenError::Locked;
    });
}

#[test]
fn an_error_of_the_disk_stops_the_controller_and_nothing_else() {
    run(async {
        let mut cluster = Cluster::of_three();
        let leader = cluster.led().await;
        let broken = (1..=3).find(|id| *id != leader).unwrap();
        std::fs::remove_dir_all(cluster.directory(broken)).unwrap();
        // It has to vote now, and cannot write that down.
        cluster.stop(leader).await;
        let failed = async || {
            let ready = cluster.http(broken, "/readyz");
            ready.contains("the controller has stopped").then_some(ready)
        };
        let ready = eventually("it says why", failed).await;
        assert!(ready.contains("vote") || ready.contains("Vote"), "{ready}");
        assert!(cluster.http(broken, "/metrics").contains("karman_controller_up 0"));
        let answer = cluster.describe(broken).await.unwrap();
        assert!(answer.status.unwrap().message.contains("has stopped"));
    });
}

#[test]
fn a_controller_that_lost_its_disk_votes_when_it_has_caught_up_and_forms_no_other_group() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (master, _slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        // The one that forms groups.
        cluster.stop(1).await;
        std::fs::remove_dir_all(cluster.directory(1)).unwrap();
        cluster.start(1);
        let identity = cluster.directory(1).join("identity");
        let votes =
            async || std::fs::read_to_string(&identity).unwrap().contains("\"votes\":true").then_some(());
        eventually("it votes again", votes).await;
        cluster.stop(2).await;
        master.granted_more(5).await;
        assert!(master.acknowledging().await >= epoch);
    });
}

#[test]
fn a_controller_that_lost_its_disk_does_not_vote_before() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (_master, _slave) = master_and_slave(&cluster).await;
        let before = agreed(cluster.set().await.unwrap());
        for id in 1..=3 {
            cluster.stop(id).await;
        }
        std::fs::remove_dir_all(cluster.directory(2)).unwrap();
        cluster.start(2);
        cluster.start(1);
        // 1 asks 2 for its vote, and gets none.
        let asks = async || {
            let metrics = cluster.http(1, "/metrics");
            let line =
                metrics.lines().find(|line| line.starts_with("karman_controller_term")).unwrap().to_owned();
            eprintln!("{line} {}", std::fs::read_to_string(cluster.directory(1).join("vote")).unwrap());
            line.rsplit(' ').next().unwrap().parse::<u64>().ok().filter(|term| *term >= 3)
        };
        eventually("1 has asked", asks).await;
        assert!(cluster.set().await.is_none());
        let identity = std::fs::read_to_string(cluster.directory(2).join("identity")).unwrap();
        assert!(identity.contains("\"votes\":false"), "{identity}");
        cluster.start(3);
        let after = eventually("the sets", async || cluster.set().await).await;
        assert!(after.epoch >= before.epoch);
    });
}
