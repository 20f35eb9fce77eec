//! A slave with `slaveReadEnable` answers what needs no record when its master is gone, says so, and shows nothing that was not
//! confirmed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::Duration;

use karman_remoting::proto::karman::TopicConfig;
use karman_remoting::proto::v2::{self, Code};
use karman_tests::cluster::{Builder, Node, program};
use karman_tests::raw::{ids, message, receive_request, resource, seconds};
use karman_tests::replicas::wait_whole;
use karman_tests::{Cluster, Raw, failover, until};

const DEADLINE: Duration = Duration::from_secs(30);
const MESSAGES: i64 = 20;

fn queue() -> Option<v2::MessageQueue> {
    let broker = Some(v2::Broker { name: "broker-a".into(), ..Default::default() });
    Some(v2::MessageQueue { topic: resource("t"), id: 0, broker, ..Default::default() })
}

fn pull(raw: &Raw, offset: i64) -> (v2::Status, Vec<v2::Message>, Option<i64>) {
    raw.pull(v2::PullMessageRequest {
        group: resource("g"),
        message_queue: queue(),
        offset,
        batch_size: 32,
        filter_expression: None,
        long_polling_timeout: Some(seconds(0)),
    })
}

/// The master's set: a slave that may be read, and another.
fn start(master: Builder) -> (Cluster, Node, Node) {
    let cluster = master.namesrvs(1).brokers(1).set("brokerRole", "SYNC_MASTER").start();
    let (mut slave, mut other) = (cluster.slave(1, &["slaveReadEnable=true"]), cluster.slave(2, &[]));
    slave.start();
    other.start();
    wait_whole(&cluster, 2, DEADLINE);
    make_topic(&Raw::connect(&cluster.brokers[0].endpoint()));
    (cluster, slave, other)
}

fn make_topic(raw: &Raw) {
    let topic = TopicConfig { name: "t".into(), queue_nums: 1, ..Default::default() };
    assert_eq!(raw.make_topic(topic).code(), Code::Ok);
}

/// With controllers a member opens its log before it knows any master.
#[test]
fn a_slave_that_was_started_anew_shows_nothing_before_a_master_says_what_may_be_seen() {
    let members = Cluster::builder().namesrvs(3).controlled(3);
    let mut cluster = members.set("slaveReadEnable", "true").set("slaveTimeout", "1000").start();
    let master = failover::wait_in_sync(&cluster, 3);
    let raw = Raw::connect(&cluster.members[master].endpoint());
    make_topic(&raw);
    assert_eq!(raw.send(&[message("t", "confirmed")]).status.unwrap().code(), Code::Ok);
    // One slave gets it; the other does not, and counts.
    let (slave, other) = ((master + 1) % 3, (master + 2) % 3);
    cluster.members[other].pause();
    let unconfirmed = raw.send(&[message("t", "unconfirmed")]);
    assert_ne!(unconfirmed.status.unwrap().code(), Code::Ok);
    // Nobody is elected any more.
    cluster.namesrvs.iter_mut().for_each(Node::kill);
    cluster.members.iter_mut().for_each(Node::kill);
    cluster.members[slave].start();
    let door = Raw::connect(&cluster.members[slave].endpoint());
    let refused = until("it knows why it cannot answer", DEADLINE, || {
        let (status, messages, _) = pull(&door, 0);
        assert_eq!(ids(&messages), [] as [&str; 0], "what a failover could take back");
        status.message.contains("has not heard yet").then_some(status)
    });
    assert_eq!(refused.code(), Code::InternalServerError, "{refused:?}");
}

#[test]
fn a_slave_answers_reads_of_what_is_confirmed_when_its_master_is_gone_if_it_may() {
    let (mut cluster, mut slave, mut other) = start(Cluster::builder());
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    for number in 0..MESSAGES {
        let sent = raw.send(&[message("t", &format!("M{number:02}"))]);
        assert_eq!(sent.status.unwrap().code(), Code::Ok);
    }
    let update = v2::UpdateOffsetRequest { group: resource("g"), message_queue: queue(), offset: 7 };
    assert_eq!(raw.update_offset(update).status.unwrap().code(), Code::Ok);

    // While its master is there it is asked.
    let door = Raw::connect(&slave.endpoint());
    until("the door knows its master", DEADLINE, || (pull(&door, 0).0.code() == Code::Ok).then_some(()));
    assert!(!slave.log().contains("in place of its master"), "{}", slave.log());
    // What no other broker has is not confirmed, and not shown anywhere.
    slave.pause();
    other.pause();
    let unconfirmed = raw.send(&[message("t", "unconfirmed")]);
    assert_eq!(unconfirmed.status.unwrap().code(), Code::SlavePersistenceTimeout);
    cluster.brokers[0].kill();
    slave.resume();
    other.resume();

    until("the slave answers", DEADLINE, || (pull(&door, 0).0.code() == Code::Ok).then_some(()));
    assert!(slave.log().contains("answers reads in place of its master"), "{}", slave.log());
    let (_, messages, next) = pull(&door, 0);
    let expected: Vec<_> = (0..MESSAGES).map(|number| format!("M{number:02}")).collect();
    assert_eq!((ids(&messages), next), (expected, Some(MESSAGES)));
    let (status, messages, next) = pull(&door, MESSAGES);
    assert_eq!((status.code(), messages.len(), next), (Code::MessageNotFound, 0, Some(MESSAGES)));
    let end = v2::QueryOffsetRequest {
        message_queue: queue(),
        query_offset_policy: v2::QueryOffsetPolicy::End.into(),
        ..Default::default()
    };
    assert_eq!(door.query_offset(end).offset, MESSAGES);
    let get = || v2::GetOffsetRequest { group: resource("g"), message_queue: queue() };
    assert_eq!(door.get_offset(get()).offset, 7);
    let why = door.answered_by_slave(get()).unwrap();
    assert!(why.contains("the master of broker-a does not answer"), "{why}");
    let endpoint = slave.endpoint();
    let arguments = ["-e", &endpoint, "-o", "json", "message", "get", "t", "--id", "M07"];
    let found = Command::new(program("karman")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&found.stdout);
    assert!(
        found.status.success() && text.contains("M07"),
        "{text}{}",
        String::from_utf8_lossy(&found.stderr)
    );
    // What has to be recorded, and all that a slave may not answer, is to be tried again.
    let again = Code::InternalServerError;
    let (status, messages) = door.receive(receive_request("t", "g", "broker-a"));
    assert_eq!((status.code(), messages.len()), (again, 0), "{status:?}");
    let refusing = Raw::connect(&other.endpoint());
    let (status, messages, _) = pull(&refusing, 0);
    assert_eq!((status.code(), messages.len()), (again, 0), "{status:?}");
    assert!(status.message.contains("slaveReadEnable"), "{status:?}");
    assert_eq!(refusing.get_offset(get()).status.unwrap().code(), again);

    // Its master is asked again when it is there.
    cluster.brokers[0].start();
    cluster.wait_whole();
    until("sends are taken", DEADLINE, || {
        let sent = door.send(&[message("t", "last")]);
        (sent.entries.first().is_some_and(|entry| entry.status.as_ref().unwrap().code() == Code::Ok))
            .then_some(())
    });
    assert_eq!(door.answered_by_slave(get()), None);
    let (_, messages, _) = pull(&door, MESSAGES);
    assert!(ids(&messages).contains(&"last".to_owned()), "{:?}", ids(&messages));
    slave.stop();
}
