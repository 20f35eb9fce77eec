//! Controllers as they are in namesrvs, with brokers that say what brokers say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod broker;
mod cluster;
mod disks;
mod operators;

use std::time::{Duration, Instant};

use karman_remoting::channel::ChannelPool;
use karman_remoting::proto::karman::broker_report::Report;
use karman_remoting::proto::karman::registration_client::RegistrationClient;
use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::karman::route_update::Update;
use karman_remoting::proto::karman::{BrokerIdentity, BrokerReport, BrokerState};

use broker::FakeBroker;
use cluster::{Cluster, eventually, with_secret};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// A master, 1, and 2 that is in sync.
async fn master_and_slave(cluster: &Cluster) -> (FakeBroker, FakeBroker) {
    let master = FakeBroker::start(cluster, 1);
    master.acknowledging().await;
    let slave = FakeBroker::start(cluster, 2);
    eventually("2 has joined", async || slave.state()).await;
    eventually("1 knows", async || master.state().filter(|state| state.members.len() == 2)).await;
    master.in_sync(&[1, 2]).await;
    (master, slave)
}

#[test]
fn a_broker_joins_is_elected_and_acknowledges_while_it_renews() {
    run(async {
        let cluster = Cluster::of_three();
        let leader = cluster.led().await;
        let broker = FakeBroker::start(&cluster, 1);
        let epoch = broker.acknowledging().await;
        broker.granted_more(20).await;
        assert_eq!(broker.acknowledges(), Some(epoch));
        for id in 1..=3 {
            let answer = cluster.describe(id).await.unwrap();
            assert_eq!(answer.leader, cluster.addresses[&leader], "asked {id}");
            assert_eq!((answer.controllers.len(), answer.sets.len()), (3, 1), "asked {id}");
            assert_eq!(answer.sets[0].master, Some(1), "asked {id}");
            assert!(answer.sets[0].members[0].alive, "asked {id}");
        }
        let metrics = cluster.http(leader, "/metrics");
        for line in [
            "karman_controller_leader 1",
            "karman_controller_sets 1",
            "karman_controller_elections_total 1",
            "karman_controller_set_served{set=\"a\"} 1",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        assert!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    });
}

#[test]
fn one_controller_is_its_own_majority() {
    run(async {
        let mut cluster = Cluster::new(1, 1);
        cluster.start(1);
        let broker = FakeBroker::start(&cluster, 1);
        broker.acknowledging().await;
    });
}

#[test]
fn a_new_leader_keeps_the_master_that_goes_on_renewing() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        let leader = cluster.led().await;
        cluster.stop(leader).await;
        master.granted_more(25).await;
        assert_eq!(master.acknowledges(), Some(epoch));
        assert_eq!(slave.state().unwrap().epoch, epoch);
        assert_ne!(cluster.led().await, leader);
    });
}

#[test]
fn a_dead_master_is_followed_when_its_lease_is_over_and_soon() {
    run(async {
        let cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        let (known, died) = (master.known.clone(), Instant::now());
        drop(master);
        assert!(slave.acknowledging().await > epoch);
        let (_, elected) = slave.known.lock().master_since.unwrap();
        assert!(elected > known.lock().until.unwrap().1, "the old one may still have acknowledged");
        assert!(elected.duration_since(died) < Duration::from_secs(3), "{:?}", elected.duration_since(died));
    });
}

#[test]
fn a_new_leader_does_not_elect_around_a_lease_that_its_predecessor_granted() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        let leader = cluster.led().await;
        let known = master.known.clone();
        drop(master);
        cluster.stop(leader).await;
        assert!(slave.acknowledging().await > epoch);
        let (_, elected) = slave.known.lock().master_since.unwrap();
        assert!(elected > known.lock().until.unwrap().1, "the old one may still have acknowledged");
    });
}

#[test]
fn without_a_majority_nothing_is_granted_and_routes_still_work() {
    run(async {
        let mut cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        cluster.stop(1).await;
        cluster.stop(2).await;
        eventually("the lease ends", async || master.acknowledges().is_none().then_some(())).await;
        let channel = ChannelPool::new().get(&cluster.addresses[&3]).unwrap();
        let identity = BrokerIdentity { broker_name: "a".into(), ..BrokerIdentity::default() };
        let state = BrokerState { identity: Some(identity), ..BrokerState::default() };
        let report = BrokerReport { report: Some(Report::Full(state)) };
        let reports = tokio_stream::StreamExt::chain(tokio_stream::once(report), tokio_stream::pending());
        let updates = RegistrationClient::new(channel).register(with_secret(reports)).await.unwrap();
        let mut updates = updates.into_inner();
        // In the table, or as a change behind it: which of the two is the first is open.
        let routes_work = async || match updates.message().await.unwrap().unwrap().update {
            Some(Update::Full(table)) => (table.brokers.len() == 1).then_some(()),
            Some(Update::Change(change)) => matches!(change.change, Some(Change::Joined(_))).then_some(()),
            _ => None,
        };
        eventually("routes work", routes_work).await;
        let ready = cluster.http(3, "/readyz");
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(cluster.set().await.is_none(), "nobody leads");
        assert_eq!((master.acknowledges(), slave.acknowledges()), (None, None));
        cluster.start(1);
        let again =
            eventually("somebody is master", async || master.acknowledges().or(slave.acknowledges())).await;
        assert!(again >= epoch);
    });
}

#[test]
fn a_broker_id_is_one_broker_s() {
    run(async {
        let cluster = Cluster::of_three();
        let broker = FakeBroker::start(&cluster, 1);
        let epoch = broker.acknowledging().await;
        let other = FakeBroker::at(&cluster, 1, "127.0.0.1:9");
        let ended = async || {
            let ended = other.known.lock().ended.clone();
            ended.filter(|status| status.code() == tonic::Code::AlreadyExists)
        };
        let status = eventually("it is refused", ended).await;
        assert!(status.message().contains("which is alive"), "{status}");
        let refused = cluster.describe(1).await.unwrap().refused;
        assert_eq!(refused[0].who, "broker 1 of set a at 127.0.0.1:9");
        assert!(refused[0].why.contains("which is alive"), "{refused:?}");
        assert_eq!((broker.acknowledges(), other.acknowledges()), (Some(epoch), None));
        drop(broker);
        // It has moved.
        other.acknowledging().await;
        assert_eq!(other.state().unwrap().members[0].address, "127.0.0.1:9");
    });
}

#[test]
fn who_does_not_carry_the_secret_is_refused() {
    run(async {
        let cluster = Cluster::of_three();
        cluster.led().await;
        let mut client = cluster.client(1);
        let status = client.attend(tokio_stream::pending()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        let leader = cluster.leader().await.unwrap();
        let _ = cluster.client(leader).attend(tokio_stream::pending()).await;
        let refused = cluster.describe(1).await.unwrap().refused;
        assert_eq!(refused[0].who, "a broker at 127.0.0.1");
        assert!(refused[0].why.contains("clusterSecret"), "{refused:?}");
        let status =
            client.consent(karman_remoting::proto::karman::ConsentMessage::default()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
    });
}
