//! Clients that say who they are by a certificate, at real nodes: what is verified in the handshake decides like a signature.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use karman_remoting::proto::v2::{self, Code};
use karman_tests::authority::Authority;
use karman_tests::cluster::{Node, ROOT};
use karman_tests::raw::{message, resource};
use karman_tests::{Cluster, Raw, until};

const DEADLINE: Duration = Duration::from_secs(10);

/// What a client has in a directory.
struct Identity {
    cert: String,
    key: String,
}

fn identity(authority: &Authority, directory: &Path, name: &str) -> Identity {
    let directory = directory.join(format!("client-{name}"));
    authority.write(&directory, name);
    let read = |file| std::fs::read_to_string(directory.join(file)).unwrap();
    Identity { cert: read("cert.pem"), key: read("key.pem") }
}

/// A client of `node`, which has made a certificate of its own.
fn over_tls(cluster: &Cluster, node: &Node, identity: Option<&Identity>) -> Raw {
    let root = std::fs::read_to_string(cluster.path().join(node.name()).join("tls/cert.pem")).unwrap();
    Raw::over_tls(&node.endpoint(), &root, identity.map(|own| (own.cert.as_str(), own.key.as_str())))
}

fn route(raw: &Raw, topic: &str) -> v2::Status {
    raw.query_route(v2::QueryRouteRequest { topic: resource(topic), endpoints: None }).status.unwrap()
}

fn send(raw: &Raw, topic: &str) -> v2::Status {
    let response = raw.send(&[message(topic, "id")]);
    response.entries.first().and_then(|entry| entry.status.clone()).or(response.status).unwrap()
}

fn assert_unauthorized(status: &v2::Status, why: &str) {
    assert_eq!(status.code(), Code::Unauthorized, "{status:?}");
    assert!(status.message.contains(why), "{why}: {status:?}");
}

#[test]
fn the_certificate_of_a_client_says_which_user_calls_where_the_call_does_not() {
    let authority = Authority::default();
    let builder = Cluster::builder().namesrvs(1).brokers(1).secured();
    let cluster = builder.client_certificates(&authority).start();
    cluster.create_topic("orders");
    cluster.create_topic("bills");
    let secret = cluster.path().join("secret");
    std::fs::write(&secret, "secret of the shop").unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", secret.to_str().unwrap()]);
    cluster.karman(&["acl", "create", "shop", "--resource", "Topic:orders", "--actions", "Pub,Sub"]);
    let named = |name| identity(&authority, cluster.path(), name);
    let (shop, nobody) = (named("shop"), named("nobody"));
    let stranger = identity(&Authority::default(), cluster.path(), "stranger");
    // Each is a door of its own.
    for node in cluster.namesrvs.iter().chain(&cluster.brokers) {
        let raw = over_tls(&cluster, node, Some(&shop));
        until("the node knows the user", DEADLINE, || {
            (route(&raw, "orders").code() == Code::Ok).then_some(())
        });
        assert_eq!(send(&raw, "orders").code(), Code::Ok);
        assert_unauthorized(&send(&raw, "bills"), "User:shop has no permission to access Topic:bills");
        // Who signs is who signs.
        let root = over_tls(&cluster, node, Some(&shop)).signed_by(ROOT.0, ROOT.1);
        assert_eq!(send(&root, "bills").code(), Code::Ok);
        let wrong = over_tls(&cluster, node, Some(&shop)).signed_by("shop", "a guess of it");
        assert_unauthorized(&send(&wrong, "orders"), "Check signature failed");
        let unknown = over_tls(&cluster, node, Some(&nobody));
        assert_unauthorized(&send(&unknown, "orders"), "Username is not matched: \"nobody\"");
        for none in [over_tls(&cluster, node, None), Raw::connect(&node.endpoint())] {
            assert_unauthorized(&send(&none, "orders"), "no authorization header");
        }
        let refused = over_tls(&cluster, node, Some(&stranger)).try_list_topics().unwrap_err();
        assert_ne!(refused.code(), tonic::Code::PermissionDenied, "its handshake is refused: {refused:?}");
    }
    let raw = over_tls(&cluster, &cluster.brokers[0], Some(&shop));
    assert_eq!(send(&raw, "orders").code(), Code::Ok);
    cluster.karman(&["user", "update", "shop", "--disable"]);
    until("the user is out", DEADLINE, || (send(&raw, "orders").code() == Code::Unauthorized).then_some(()));
    assert_unauthorized(&send(&raw, "orders"), "Username is not matched");
}
