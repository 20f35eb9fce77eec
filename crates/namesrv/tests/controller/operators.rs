//! What operators ask for.

use karman_remoting::proto::karman::{
    ChangeControllersRequest, DrainMemberRequest, DrainMemberResponse, ElectRequest, RemoveMemberRequest,
};
use karman_remoting::proto::v2::{Code, Status};

use crate::broker::FakeBroker;
use crate::cluster::{Cluster, eventually, with_secret};
use crate::{master_and_slave, run};

/// Through any controller.
async fn elect(cluster: &Cluster, through: u64, to: Option<i32>) -> (Status, u32) {
    let request = ElectRequest { broker_name: "a".into(), broker_id: to };
    let answer = cluster.client(through).elect(with_secret(request)).await.unwrap().into_inner();
    (answer.status.unwrap(), answer.epoch)
}

async fn remove(cluster: &Cluster, id: i32) -> Status {
    let request = RemoveMemberRequest { broker_name: "a".into(), broker_id: id };
    cluster.client(1).remove_member(with_secret(request)).await.unwrap().into_inner().status.unwrap()
}

async fn controllers(cluster: &Cluster, ids: &[u64]) -> Status {
    let controllers = ids.iter().map(|id| format!("{id}-{}", cluster.addresses[id])).collect();
    let request = with_secret(ChangeControllersRequest { controllers });
    cluster.client(1).change_controllers(request).await.unwrap().into_inner().status.unwrap()
}

#[test]
fn a_master_hands_over_when_it_is_asked_for() {
    run(async {
        let cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        for through in 1..=3 {
            let (status, now) = elect(&cluster, through, Some(1)).await;
            assert_eq!((status.code(), now), (Code::Ok, epoch), "it is already: {status:?}");
        }
        let (status, now) = elect(&cluster, 1, Some(2)).await;
        assert_eq!((status.code(), now), (Code::Ok, epoch + 1), "{status:?}");
        assert_eq!(master.acknowledges(), None);
        assert_eq!(slave.acknowledging().await, epoch + 1);
        let set = cluster.set().await.unwrap();
        assert_eq!(set.reason, "master 1 has handed over");
        let (status, _) = elect(&cluster, 2, None).await;
        assert_eq!(status.code(), Code::HaNotAvailable, "{status:?}");
        assert!(status.message.contains("no other broker of set \"a\" is there and in sync"), "{status:?}");
        let (status, _) = elect(&cluster, 2, Some(1)).await;
        assert!(status.message.contains("not in sync"), "{status:?}");
        let (status, _) = elect(&cluster, 2, Some(9)).await;
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    });
}

async fn drain(cluster: &Cluster, through: u64, id: i32, undo: bool) -> DrainMemberResponse {
    let request = DrainMemberRequest { broker_name: "a".into(), broker_id: id, undo };
    cluster.client(through).drain_member(with_secret(request)).await.unwrap().into_inner()
}

#[test]
fn a_drained_member_is_master_only_if_nobody_else_can_be() {
    run(async {
        let cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        let epoch = master.acknowledging().await;
        let answer = drain(&cluster, 2, 1, false).await;
        assert_eq!((answer.status.unwrap().code(), answer.in_sync_beside), (Code::Ok, 1));
        assert_eq!(slave.acknowledging().await, epoch + 1);
        let set = cluster.set().await.unwrap();
        assert_eq!(set.members.iter().map(|own| own.drained).collect::<Vec<_>>(), [true, false]);

        // It counts again, has the lower id, and is not elected.
        slave.in_sync(&[1, 2]).await;
        let answer = drain(&cluster, 1, 2, false).await;
        assert_eq!(answer.status.unwrap().code(), Code::Ok, "both may be: better one of these than none");
        assert_eq!(master.acknowledging().await, epoch + 2);
        let status = drain(&cluster, 1, 1, true).await.status.unwrap();
        assert_eq!(status.code(), Code::Ok);

        // Nobody could take its place: all stays as it was.
        let status = drain(&cluster, 1, 1, false).await.status.unwrap();
        assert_eq!(status.code(), Code::HaNotAvailable, "{status:?}");
        let set = cluster.set().await.unwrap();
        assert_eq!(set.members.iter().map(|own| own.drained).collect::<Vec<_>>(), [false, true]);
        assert_eq!(master.acknowledges(), Some(epoch + 2));
        for (name, id) in [("a", 9), ("nobody", 1)] {
            let request = DrainMemberRequest { broker_name: name.into(), broker_id: id, undo: false };
            let answer = cluster.client(1).drain_member(with_secret(request)).await.unwrap().into_inner();
            assert_eq!(answer.status.unwrap().code(), Code::NotFound);
        }
    });
}

#[test]
fn a_member_is_removed_when_it_is_gone() {
    run(async {
        let cluster = Cluster::of_three();
        let (master, slave) = master_and_slave(&cluster).await;
        cluster.led().await;
        let status = remove(&cluster, 2).await;
        assert!(status.code() == Code::Forbidden && status.message.contains("stop it first"), "{status:?}");
        drop(slave);
        let removed = async || (remove(&cluster, 2).await.code() == Code::Ok).then_some(());
        eventually("it is removed", removed).await;
        let known = async || master.state().filter(|state| state.members.len() == 1 && state.in_sync == [1]);
        eventually("the master knows", known).await;
        assert_eq!(remove(&cluster, 2).await.code(), Code::NotFound);
    });
}

#[test]
fn controllers_are_added_and_removed() {
    run(async {
        let mut cluster = Cluster::new(3, 1);
        cluster.start(1);
        cluster.led().await;
        let broker = FakeBroker::start(&cluster, 1);
        let epoch = broker.acknowledging().await;
        let status = controllers(&cluster, &[1, 2]).await;
        assert!(status.code() == Code::BadRequest && status.message.contains("2 controllers"), "{status:?}");
        cluster.start(2);
        cluster.start(3);
        let status = controllers(&cluster, &[1, 2, 3]).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
        let answer = cluster.describe(1).await.unwrap();
        assert_eq!(answer.controllers.iter().filter(|controller| controller.voter).count(), 3);
        let votes = async |id| {
            let identity = std::fs::read_to_string(cluster.directory(id).join("identity")).unwrap();
            identity.contains("\"votes\":true").then_some(())
        };
        eventually("2 votes", async || votes(2).await).await;
        eventually("3 votes", async || votes(3).await).await;
        cluster.stop(1).await;
        broker.granted_more(3).await;
        assert!(broker.acknowledging().await >= epoch);
        assert_eq!(cluster.set().await.unwrap().master, Some(1));
    });
}
