//! TLS between real nodes: everything they say to one another goes over it, and whoever has no certificate of their authority
//! is refused, whatever secret it knows; both sides say why.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use karman_remoting::metadata;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::proto::karman::registration_client::RegistrationClient;
use karman_remoting::proto::karman::repair_client::RepairClient;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::{self, Code};
use karman_tests::authority::Authority;
use karman_tests::cluster::{CLUSTER_SECRET, Node, internal_tls, program};
use karman_tests::failover::{TOPIC, send_until_ok, wait_in_sync};
use karman_tests::process::Process;
use karman_tests::raw::{is_ok, message, receive_request, resource, seconds};
use karman_tests::replicas::wait_whole;
use karman_tests::{Cluster, Raw, until};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const DEADLINE: Duration = Duration::from_secs(30);

/// What a group is given of a topic by both brokers, until it has so many.
fn receive_all(raw: &Raw, topic: &str, group: &str, count: usize) {
    let mut ids = BTreeSet::new();
    until(&format!("{count} messages of {topic}"), DEADLINE, || {
        for broker in ["broker-a", "broker-b"] {
            let request = receive_request(topic, group, broker);
            let (_, messages) =
                raw.receive(v2::ReceiveMessageRequest { long_polling_timeout: Some(seconds(0)), ..request });
            ids.extend(messages.into_iter().map(|message| message.system_properties.unwrap().message_id));
        }
        (ids.len() == count).then_some(())
    });
}

fn said(node: &Node, words: &[&str]) -> usize {
    node.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

#[test]
fn everything_that_nodes_say_to_one_another_works_over_tls() {
    let builder = Cluster::builder().namesrvs(2).brokers(2).slaves(1).secured();
    let cluster = builder.internal_tls(&Authority::default()).start();
    wait_whole(&cluster, 1, DEADLINE);
    cluster.create_topic("orders");
    // Through every door: what a node does not own it relays.
    let doors = cluster.namesrvs.iter().chain(&cluster.brokers).chain(&cluster.slaves);
    for (number, door) in doors.enumerate() {
        let raw = cluster.raw(door);
        for index in 0..10 {
            is_ok(raw.send(&[message("orders", &format!("{number}-{index}"))]).status);
        }
        receive_all(&raw, "orders", &format!("g{number}"), 10 * (number + 1));
    }
    wait_whole(&cluster, 1, DEADLINE);
    assert_eq!(said(&cluster.slaves[0], &["follows its master"]), 1, "{}", cluster.slaves[0].log());
}

#[test]
fn controllers_agree_and_a_set_elects_its_master_over_tls() {
    let mut cluster =
        Cluster::builder().namesrvs(3).controlled(3).secured().internal_tls(&Authority::default()).start();
    let master = wait_in_sync(&cluster, 3);
    let raw = cluster.raw(&cluster.namesrvs[0]);
    is_ok(raw.create_topic(TOPIC, v2::MessageType::Normal));
    let mut sent = BTreeSet::new();
    send_until_ok(&raw, "before", &mut sent);
    cluster.members[master].kill();
    send_until_ok(&raw, "behind", &mut sent);
    receive_all(&raw, TOPIC, "g", 2);
    // Operators come with the secret, to any of them, which asks the one that leads.
    for node in &cluster.namesrvs {
        let mut command = Command::new(program("karman"));
        command.args(["-e", &node.endpoint(), "cluster", "show", "--cluster-secret", CLUSTER_SECRET]);
        // On a slow machine a leader is not confirmed each time.
        until(&format!("{} shows the set", node.name()), DEADLINE, || {
            command.output().unwrap().status.success().then_some(())
        });
    }
}

/// A slave that knows the cluster's secret, with `settings` in place of those of the cluster.
fn stranger(cluster: &Cluster, id: usize, settings: &[String]) -> Node {
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut slave = cluster.slave(id, &settings);
    slave.start();
    slave
}

#[test]
fn one_that_shows_no_certificate_of_the_cluster_is_refused_whatever_it_knows_and_both_sides_say_why() {
    let authority = Authority::default();
    let cluster = Cluster::builder().namesrvs(1).brokers(1).secured().internal_tls(&authority).start();
    let (namesrv, master) = (&cluster.namesrvs[0], &cluster.brokers[0]);
    let told = |node: &Node, words: &[&str]| {
        until(&format!("{} says {words:?}", node.name()), DEADLINE, || (said(node, words) > 0).then_some(()));
    };
    let is_nowhere = |slave: &Node| {
        assert_eq!(said(slave, &["follows its master"]), 0, "{}", slave.log());
        assert_eq!(said(slave, &["registered"]), 0, "{}", slave.log());
    };
    // It registers nowhere, so it has to be told where its master is.
    let to_master = format!("haMasterAddress={}", master.ready("internal"));

    let none = ["Ca", "Cert", "Key"].map(|key| format!("internalTls{key}Path="));
    let mut plaintext = stranger(&cluster, 2, &[&none[..], std::slice::from_ref(&to_master)].concat());
    told(&plaintext, &["does not follow its master", "plaintext is not taken here", "internalTlsCaPath"]);
    told(master, &["one that may be a node is refused", "127.0.0.1", "plaintext is not taken here"]);
    told(&plaintext, &["registration ended", "has not come with a certificate of this cluster's nodes"]);
    told(namesrv, &["a broker is refused", "127.0.0.1", "has not come with a certificate"]);
    is_nowhere(&plaintext);
    plaintext.stop();

    let other = cluster.path().join("other-tls");
    Authority::default().write(&other, "a node");
    let settings = [&internal_tls(&other)[..], std::slice::from_ref(&to_master)].concat();
    let mut other_authority = stranger(&cluster, 3, &settings);
    for words in ["does not follow its master", "registration ended"] {
        told(&other_authority, &[words, "the other side's certificate is refused", "UnknownIssuer"]);
    }
    for node in [master, namesrv] {
        told(node, &["one that may be a node is refused", "refuses this node's certificate", "UnknownCA"]);
    }
    is_nowhere(&other_authority);
    other_authority.stop();

    // One that would take the others.
    std::fs::write(other.join("ca.pem"), other_and(&authority, &other)).unwrap();
    let mut unknown = stranger(&cluster, 4, &settings);
    for words in ["does not follow its master", "registration ended"] {
        told(&unknown, &[words, "the other side refuses this node's certificate", "UnknownCA"]);
    }
    for node in [master, namesrv] {
        told(node, &["one that may be a node is refused", "UnknownIssuer"]);
    }
    is_nowhere(&unknown);
    unknown.stop();
    // Nobody who was there has noticed.
    assert_eq!(said(master, &["registration ended"]), 0, "{}", master.log());
    cluster.create_topic("orders");
}

fn other_and(authority: &Authority, other: &Path) -> String {
    std::fs::read_to_string(other.join("ca.pem")).unwrap() + &authority.pem()
}

async fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

fn with_secret<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    metadata::add_secret(request.metadata_mut(), &CLUSTER_SECRET.into());
    request
}

#[test]
fn the_secret_alone_opens_nothing_that_is_for_nodes() {
    let builder = Cluster::builder().namesrvs(1).controlled(1).secured();
    let cluster = builder.internal_tls(&Authority::default()).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call_with_the_secret(&cluster));
}

async fn call_with_the_secret(cluster: &Cluster) {
    let (namesrv, broker) = (cluster.namesrvs[0].endpoint(), &cluster.members[0]);
    let is_refused = |call: &str, status: Status| {
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{call}: {status:?}");
        assert!(status.message().contains("has not come with a certificate"), "{call}: {status:?}");
    };
    let mut controller = ControllerClient::new(channel(&namesrv).await);
    let consent = v1::ConsentMessage { kind: "vote".into(), body: Vec::new() };
    is_refused("consent", controller.consent(with_secret(consent)).await.unwrap_err());
    let nothing = || with_secret(tokio_stream::pending());
    is_refused("attend", controller.attend(nothing()).await.unwrap_err());
    let mut registration = RegistrationClient::new(channel(&namesrv).await);
    is_refused("register", registration.register(with_secret(tokio_stream::pending())).await.unwrap_err());
    // Operators have no certificates.
    controller.describe_controller(with_secret(v1::DescribeControllerRequest {})).await.unwrap();

    // A call that says that a node has relayed it, at the ports for clients.
    for address in [&namesrv, &broker.endpoint()] {
        let mut request = with_secret(v2::QueryRouteRequest { topic: resource("t"), endpoints: None });
        request.metadata_mut().insert("x-mq-client-id", "c".parse().unwrap());
        request.metadata_mut().insert("x-karman-hop", "1".parse().unwrap());
        let answer = MessagingServiceClient::new(channel(address).await).query_route(request).await;
        let status = answer.unwrap().into_inner().status.unwrap();
        assert_eq!(status.code(), Code::Unauthorized, "{status:?}");
        assert!(status.message.contains("did not come with the certificate of one"), "{status:?}");
    }

    // The internal port takes nothing else at all.
    let mut repair = RepairClient::new(channel(broker.ready("internal")).await);
    let status = repair.read(with_secret(v1::ReadRequest::default())).await.unwrap_err();
    let why = karman_remoting::between::why(&status);
    assert!(why.contains("plaintext is not taken here"), "{why}");
}

#[test]
fn all_certificates_and_their_authority_change_and_no_stream_ends() {
    let builder = Cluster::builder().namesrvs(1).brokers(1).slaves(1).secured();
    let mut cluster = builder.internal_tls(&Authority::default()).start();
    wait_whole(&cluster, 1, DEADLINE);
    cluster.create_topic("orders");
    Authority::default().write(&cluster.node_tls(), "a node");
    // Whoever comes new makes the others look.
    let mut second = cluster.slave(2, &[]);
    second.start();
    wait_whole(&cluster, 2, DEADLINE);
    let raw = cluster.raw(&cluster.namesrvs[0]);
    is_ok(raw.send(&[message("orders", "behind the change")]).status);
    wait_whole(&cluster, 2, DEADLINE);
    let (namesrv, master, first) = (&cluster.namesrvs[0], &cluster.brokers[0], &cluster.slaves[0]);
    for node in [namesrv, master] {
        assert!(said(node, &["the certificate has changed"]) > 0, "{}", node.log());
    }
    assert_eq!(said(namesrv, &["registration stream ended"]), 0, "{}", namesrv.log());
    assert_eq!(said(master, &["a slave is gone"]), 0, "{}", master.log());
    for node in [master, first] {
        assert_eq!(said(node, &["registration ended"]), 0, "{}", node.log());
    }
    // What was there before comes back with the new ones.
    cluster.brokers[0].stop();
    cluster.brokers[0].start();
    wait_whole(&cluster, 2, DEADLINE);
}

#[test]
fn a_node_whose_files_cannot_be_used_does_not_start_and_names_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let (path, data) = (directory.path(), directory.path().join("data"));
    for program_name in ["karman-broker", "karman-namesrv"] {
        let ends = |settings: &[String], words: &[&str]| {
            let mut command = Command::new(program(program_name));
            let data = format!("storePathRootDir={}", data.display());
            command.args(settings.iter().chain([&data]).flat_map(|setting| ["--set", setting]));
            let mut process = Process::start(program_name, command, path);
            assert!(!process.wait_end(DEADLINE).success());
            let log = process.log();
            assert!(words.iter().all(|word| log.contains(word)), "{words:?} in\n{log}");
            std::fs::remove_file(path.join(format!("{program_name}.log"))).unwrap();
        };
        let tls = path.join("tls");
        Authority::default().write(&tls, "a node");
        let all = internal_tls(&tls);
        ends(&all[..2], &["internalTlsCaPath", "set all of"]);
        std::fs::write(tls.join("key.pem"), "no key").unwrap();
        ends(&all, &["internalTlsKeyPath", "key.pem"]);
        Authority::default().write(&tls, "a node");
        std::fs::write(tls.join("ca.pem"), Authority::default().pem()).unwrap();
        ends(&all, &["internalTlsCertPath", "cert.pem", "UnknownIssuer"]);
    }
}
