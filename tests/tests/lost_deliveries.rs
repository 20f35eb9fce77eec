//! What goes out to a push consumer and is lost with its connection is not renewed for it, though it lives on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use karman_remoting::proto::v2;
use karman_tests::raw::{ids, is_ok, message, raw, receive_request, resource, system};
use karman_tests::{Cluster, Raw, until};

const TOPIC: &str = "orders";
const GROUP: &str = "crew";
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends a message and receives it as a push consumer does.
fn hold(operator: &Raw, consumer: &Raw, id: &str) -> v2::Message {
    operator.send(&[message(TOPIC, id)]);
    let request = receive_request(TOPIC, GROUP, "broker-a");
    let request = v2::ReceiveMessageRequest { auto_renew: true, invisible_duration: None, ..request };
    let received = consumer.receive(request).1;
    assert_eq!(ids(&received), [id]);
    received.into_iter().next().unwrap()
}

/// For whom the message is renewed.
fn holder(operator: &Raw, id: &str) -> String {
    let mut groups = operator.explain(TOPIC, id).remove(0).groups;
    assert_eq!(groups.len(), 1, "{groups:?}");
    groups.remove(0).client_id
}

fn ack(raw: &Raw, message: &v2::Message) {
    let system = system(message).clone();
    let entry = v2::AckMessageEntry {
        message_id: system.message_id,
        receipt_handle: system.receipt_handle.unwrap(),
        ..Default::default()
    };
    let request =
        v2::AckMessageRequest { group: resource(GROUP), topic: resource(TOPIC), entries: vec![entry] };
    is_ok(raw.ack_message(request).status);
}

#[test]
fn what_is_lost_with_its_connection_is_not_renewed_whatever_node_it_went_through() {
    let mut cluster = Cluster::builder().namesrvs(2).brokers(1).start();
    let operator = raw(&cluster).named("operator");
    cluster.create_topic(TOPIC);
    let (broker, namesrv) = (cluster.brokers[0].endpoint(), cluster.namesrvs[0].endpoint());
    for (client_id, endpoint) in [("direct", &broker), ("through-namesrv", &namesrv)] {
        let consumer = Raw::connect(endpoint).named(client_id);
        let (first, second) = (format!("{client_id}-1"), format!("{client_id}-2"));
        let held = hold(&operator, &consumer, &first);
        hold(&operator, &consumer, &second);
        // Another connection of the same client is not the one it went out on.
        let another = Raw::connect(endpoint).named(client_id);
        is_ok(another.heartbeat(v2::HeartbeatRequest::default()).status);
        drop(another);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(holder(&operator, &first), client_id);
        drop(consumer);
        until("nothing is renewed on a closed line", DEADLINE, || {
            [&first, &second].into_iter().all(|id| holder(&operator, id).is_empty()).then_some(())
        });
        // It may have arrived all the same: for the time it was given its handle is good, on any connection.
        ack(&operator, &held);
    }
    // The consumer notices nothing of it when the node dies that relays for it, and asks another.
    let consumer = Raw::connect(&cluster.namesrvs[1].endpoint()).named("through-another");
    hold(&operator, &consumer, "last");
    assert_eq!(holder(&operator, "last"), "through-another");
    cluster.namesrvs[1].kill();
    until("nothing is renewed that went through a dead node", DEADLINE, || {
        holder(&operator, "last").is_empty().then_some(())
    });
}
